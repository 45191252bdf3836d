"""A GPU that is not there: tensors on the CPU that refuse what tensors on a GPU refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class OnGPU(Tensor):
    """A tensor that is taken to be there."""


def moved(tensor: Tensor) -> Tensor:
    return tensor.clone().as_subclass(OnGPU)


class ElsewhereMode(TorchFunctionMode):
    """While it is open, tensors can be made on `GPU`, and do not mix with others."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_there = any(isinstance(tensor, OnGPU) for tensor in given)
        if func == Tensor.device.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return GPU if is_there else torch.device("cpu")
        if func is Tensor.numpy and is_there:
            raise TypeError("can't convert a tensor on a GPU to numpy")
        asked = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        moves = func in (Tensor.cpu, Tensor.to, Tensor.copy_)
        if is_there and not moves:
            # What is indexed by may lie on the CPU, and so may single numbers.
            own = (args[0], *args[2:]) if func in _INDEXING else (args, kwargs)
            for leaf in tree_leaves(own):
                on_cpu = isinstance(leaf, Tensor) and not isinstance(leaf, OnGPU) and leaf.ndim > 0
                if on_cpu or isinstance(leaf, torch.Generator):
                    raise RuntimeError(f"{func.__name__} is given tensors of two devices")
        if func is Tensor.cpu or asked == [torch.device("cpu")]:
            is_there = False
        elif asked == [GPU]:
            is_there = True
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs))
        with torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
            kind = OnGPU if is_there else Tensor
            return tree_map_only(Tensor, lambda made: made.as_subclass(kind), result)
