"""Ctrl-C that waits for a step to end."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class DeferredInterrupt:
    """While open, Ctrl-C only sets `pending`, unless `is_safe` says that it may interrupt at once.

    Several SAEs are in the middle of a step at any time, so an exception at an arbitrary point
    would leave them at different steps. Whoever opens this asks `pending` between steps, and sets
    `is_safe` where it may wait for long. There a second Ctrl-C interrupts. Does nothing outside the
    main thread, or where the program has a handler of its own.
    """

    def __init__(self) -> None:
        self.pending = False
        self.is_safe = False
        self._installed = False

    def __enter__(self) -> DeferredInterrupt:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.pending and self.is_safe:
            signal.default_int_handler(signum, frame)
        self.pending = True
