"""How much memory there is, and telling that it ran out from other errors."""

from __future__ import annotations

import sys

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch's CPU allocator has no class of its own for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken on a device, with a fifth left to others and to fragments."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(0.8 * (free + cached))
    return sys.maxsize  # not asked for on the CPU, and unknown elsewhere
