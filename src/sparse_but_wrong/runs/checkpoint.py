"""A training run in the middle, as one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong import atomic
from sparse_but_wrong.training.state import TrainingState
from sparse_but_wrong.untrusted import checked, damaged, parse_json

if TYPE_CHECKING:
    from torch import Tensor

_REMEDY = "delete it to train the unfinished SAEs from their start"


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says besides tensors; fields as of `Checkpoint` and `TrainingState`."""

    sae_ids: list[str]
    seconds: float
    n_drawn: int
    n_steps: list[int]
    n_samples: list[int]

    @classmethod
    def read(cls, path: Path) -> CheckpointHeader:
        """Read it alone; OSError, or ValueError for a damaged file, which says what to do."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                content = parse_json((file.metadata() or {})["checkpoint"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise damaged(path, error, _REMEDY) from error
        return checked(cls, content, path, _REMEDY)


@dataclass(frozen=True)
class Checkpoint:
    """Where the training of a group of SAEs stood."""

    sae_ids: list[str]
    """The group, in the order of the stack."""
    seconds: float
    """Time its training had taken so far."""
    state: TrainingState

    def write(self, path: Path) -> None:
        """Write it to a file, replacing an older one whole or not at all."""
        from safetensors.torch import save

        state = self.state
        counts = (state.n_drawn, state.n_steps, state.n_samples)
        text = json.dumps(asdict(CheckpointHeader(self.sae_ids, self.seconds, *counts)))
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
        # With it and not in the manifest, because the two cannot be replaced as one.
        metadata = {"checkpoint": text, "sha256": _digest(text, tensors)}
        atomic.write_bytes(path, save(tensors, metadata=metadata))

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read what `write` wrote; ValueError for a damaged file, which says what to do."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # On the CPU, where generator states have to be; the rest is copied where it goes.
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = metadata["checkpoint"]
            content = parse_json(text)
            if metadata["sha256"] != _digest(text, tensors):
                raise ValueError("its content has changed")
        except (SafetensorError, KeyError, ValueError) as error:
            raise damaged(path, error, _REMEDY) from error
        header: CheckpointHeader = checked(CheckpointHeader, content, path, _REMEDY)
        state = TrainingState(tensors, header.n_drawn, header.n_steps, header.n_samples)
        return cls(header.sae_ids, header.seconds, state)


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a checkpoint says."""
    import torch

    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()
