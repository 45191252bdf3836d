"""How much memory there is, and telling that it ran out from other errors."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

SHARD_IT = (
    "use a library that shards one SAE over several GPUs, which this one does not: llamascopium "
    "(OpenMOSS; model parallelism) or OpenAI's sparse_autoencoder (its train.py)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch's CPU allocator has no class of its own for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken on a device, with a fifth left to others and to fragments."""
    return int(0.8 * _available(device)) if device.type == "cuda" else sys.maxsize


def check_room(n_bytes: int, device: torch.device, what: str, remedy: str) -> None:
    """Raise a ValueError that names `what` and its remedy if so many bytes cannot fit."""
    available = _available(device)
    if n_bytes > available:
        raise ValueError(
            f"{what} take {n_bytes / 2**30:,.1f} GiB, but there are {available / 2**30:,.1f} GiB "
            f"of memory free; {remedy}."
        )


def _available(device: torch.device) -> int:
    """Bytes that are free on a device; as many as can be where nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return sys.maxsize
    with suppress(OSError, KeyError, ValueError):  # only Linux has it
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return sys.maxsize
