"""Running out of memory: telling it from other errors."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch's CPU allocator has no class of its own for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
