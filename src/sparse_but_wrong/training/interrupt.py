"""Ctrl-C, and the signal of batch systems, that wait for a step to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system is about to kill the process."""


def terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """A handler for SIGTERM that ends a program as Ctrl-C would."""
    raise Terminated


_HANDLERS: dict[int, Callable[[int, FrameType | None], None]] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: terminate,
}


class DeferredInterrupt:
    """While open, Ctrl-C only sets `pending`, unless `is_safe` says that it may interrupt at once.

    Several SAEs are in the middle of a step at any time, so an exception at an arbitrary point
    would leave them at different steps. Whoever opens this asks `raise_pending` between steps, and
    sets `is_safe` where it may wait for long. There a second Ctrl-C interrupts. Does nothing
    outside the main thread, or where the program has a handler of its own. The same holds of
    SIGTERM where the program has made `terminate` its handler.
    """

    def __init__(self) -> None:
        self.is_safe = False
        self._pending: int | None = None
        self._deferred: list[int] = []

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in _HANDLERS.items():
                if signal.getsignal(signum) is handler:
                    signal.signal(signum, self._handle)
                    self._deferred.append(signum)
        return self

    def __exit__(self, *_: object) -> None:
        for signum in self._deferred:
            signal.signal(signum, _HANDLERS[signum])

    def raise_pending(self) -> None:
        """Raise a KeyboardInterrupt, or a `Terminated`, if a signal came in the meantime."""
        if self._pending is not None:
            _HANDLERS[self._pending](self._pending, None)

    def _handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        is_second = self._pending is not None
        self._pending = signum
        if is_second and self.is_safe:
            self.raise_pending()
