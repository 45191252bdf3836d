"""A training run in the middle, as one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sparse_but_wrong import atomic
from sparse_but_wrong.training.loop import TrainingState
from sparse_but_wrong.untrusted import parse_json


@dataclass(frozen=True)
class Checkpoint:
    """Where the training of a group of SAEs stood."""

    sae_ids: list[str]
    """The group, in the order of the stack."""

    seconds: float
    """Time its training had taken so far."""

    state: TrainingState


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, replacing an older one whole or not at all."""
    from safetensors.torch import save

    state = checkpoint.state
    header = {
        "sae_ids": checkpoint.sae_ids,
        "seconds": checkpoint.seconds,
        "n_drawn": state.n_drawn,
        "n_steps": state.n_steps,
        "n_samples": state.n_samples,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
    atomic.write_bytes(path, save(tensors, metadata={"checkpoint": json.dumps(header)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what `write_checkpoint` wrote.

    Raises:
        ValueError: the file is damaged; the message says what to do.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})["checkpoint"])
            # Generator states have to be on the CPU; everything else is copied to where it belongs.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(
            sae_ids=header["sae_ids"],
            seconds=header["seconds"],
            state=TrainingState(
                tensors=tensors,
                n_drawn=header["n_drawn"],
                n_steps=header["n_steps"],
                n_samples=header["n_samples"],
            ),
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it to train the unfinished SAEs from their start."
        ) from error
