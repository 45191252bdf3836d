"""A training run in the middle, as one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong import atomic
from sparse_but_wrong.training.loop import TrainingState
from sparse_but_wrong.untrusted import one_line, parse_json

if TYPE_CHECKING:
    from torch import Tensor


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

        header = {
            "sae_ids": self.sae_ids,
            "seconds": self.seconds,
            "n_drawn": self.state.n_drawn,
            "n_steps": self.state.n_steps,
            "n_samples": self.state.n_samples,
        }
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state.tensors.items()}
        text = json.dumps(header)
        # With it and not in the manifest, because the two cannot be replaced as one.
        metadata = {"checkpoint": text, "sha256": _digest(text, tensors)}
        atomic.write_bytes(path, save(tensors, metadata=metadata))

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read what `write` wrote.

        Raises:
            ValueError: the file is damaged; the message says what to do.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # On the CPU, where generator states have to be; the rest is copied where it goes.
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = parse_json(metadata["checkpoint"])
            # Those of earlier versions have no digest.
            if metadata.get("sha256") not in (None, _digest(metadata["checkpoint"], tensors)):
                raise ValueError("its content has changed")
            state = TrainingState(
                tensors=tensors,
                n_drawn=int(header["n_drawn"]),
                n_steps=[int(n) for n in header["n_steps"]],
                n_samples=[int(n) for n in header["n_samples"]],
            )
            sae_ids = [str(sae_id) for sae_id in header["sae_ids"]]
            return cls(sae_ids, float(header["seconds"]), state)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({one_line(error)}); delete it to train the unfinished SAEs "
                "from their start."
            ) from error


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
