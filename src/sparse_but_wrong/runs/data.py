"""Where the activations of a run come from: a toy world, or what is stored on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.spec import ExperimentSpec, WorldSpec
from sparse_but_wrong.runs.stored_world import StoredWorld, is_stored_world
from sparse_but_wrong.worlds.world import ToyWorld


def make_data(
    spec: ExperimentSpec, name: str, seed: int, device: torch.device | str = "cpu"
) -> ToyWorld | StoredWorld:
    """A world of a spec, made or opened.

    Raises:
        ValueError: a world that cannot be; stored activations that cannot be read.
        OSError: stored activations that are not there.
    """
    world = spec.worlds[name]
    if isinstance(world, WorldSpec):
        return make_world(world, seed, device, name)
    return StoredWorld(world.activations, world.column, spec.evaluation_samples)


def load_data(folder: Path, device: torch.device | str = "cpu") -> ToyWorld | StoredWorld:
    """A world as a run's folder holds it.

    Raises:
        ValueError, OSError: it is damaged, or stored activations are not what they were.
    """
    return StoredWorld.load(folder) if is_stored_world(folder) else ToyWorld.load(folder, device)
