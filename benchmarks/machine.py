"""The machine that the benchmark runs on: what it is, how fast it multiplies, how much it holds."""

from __future__ import annotations

import os
import platform
import threading
import time
from pathlib import Path

import psutil
import torch

from sparse_but_wrong.runs.provenance import provenance

LARGE = 4096
"""Rows and columns of the matrices whose product sets the rate that counts as all there is."""


def describe_machine(device: torch.device) -> dict[str, object]:
    """Facts about machine and software, ready for JSON."""
    return {
        **provenance(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def is_busy() -> bool:
    """Whether others have kept half a core or more of this machine busy for the last minute."""
    return os.getloadavg()[0] > 0.5


def _cpu_model() -> str:
    """The processor's name; on Linux `platform.processor` does not tell it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait for all that was asked of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Products:
    """Products of a [rows, inner] and an [inner, columns] float32 matrix, to be timed in turns."""

    def __init__(self, rows: int, inner: int, columns: int, device: torch.device) -> None:
        self.shape, self.device = (rows, inner, columns), device
        self.rates: list[float] = []
        """Floating-point operations per second, of every time."""

    def measure(self, min_seconds: float = 0.1) -> None:
        """Multiply for at least so long (once if one takes longer) and keep the rate."""
        rows, inner, columns = self.shape
        # Not kept, so that they do not count as memory that the training between takes.
        left = torch.randn(rows, inner, device=self.device)
        right = torch.randn(inner, columns, device=self.device)
        out = torch.empty(rows, columns, device=self.device).zero_()
        synchronize(self.device)
        n = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < min_seconds:
            torch.mm(left, right, out=out)
            synchronize(self.device)
            n += 1
        self.rates.append(n * 2 * rows * inner * columns / elapsed)


class PeakMemory:
    """The most memory in use while it is open: of a GPU by its tensors, else of this process.

    The resident size of the process is sampled every 5 ms, and does not fall back to what it was
    before: PyTorch keeps some of what it once used.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
            return
        self._done.set()
        self._thread.join()
