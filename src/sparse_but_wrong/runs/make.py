"""From a spec and a seed to the worlds, the activations and the SAEs that it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_but_wrong.runs.spec import (
    ONLY_WORLD,
    ActivationsSpec,
    CorrelatedPairs,
    ExperimentSpec,
    SAESpec,
    SyntheticSpec,
    WorldSpec,
)
from sparse_but_wrong.runs.stored_world import StoredWorld
from sparse_but_wrong.saes.config_types import field_types, of_type
from sparse_but_wrong.saes.initialization import init_sae_to_match_model
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.batches import next_batch
from sparse_but_wrong.training.make import init_b_dec_to_mean, make_sae
from sparse_but_wrong.worlds.correlations import (
    create_correlation_matrix,
    generate_random_correlation_matrix,
)
from sparse_but_wrong.worlds.synthetic import SyntheticWorld, has_world, load_world
from sparse_but_wrong.worlds.toy_model import ToyModel
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import sae_lens

_SAMPLES_FOR_MEAN = 16_384


def world_seed(seed: int, purpose: str, world: str) -> int:
    """The seed of a world's directions, stream or evaluation samples.

    Args:
        seed: of the run.
        purpose: ``world``, ``stream`` or ``evaluation``.
        world: its name. That of a world that is the only one does not enter.
    """
    return derive_seed(seed, purpose, *(() if world == ONLY_WORLD else (world,)))


def make_data(
    spec: ExperimentSpec, name: str, seed: int, device: torch.device | str = "cpu"
) -> ToyWorld | StoredWorld:
    """A world of a spec, made or opened.

    Raises:
        ValueError: a world that cannot be; stored activations that cannot be read.
        OSError: stored activations that are not there.
    """
    world = spec.worlds[name]
    if not isinstance(world, ActivationsSpec):
        return make_world(world, seed, device, name)
    return StoredWorld(world.activations, world.column, spec.evaluation_samples)


def load_data(folder: Path, device: torch.device | str = "cpu") -> ToyWorld | StoredWorld:
    """A world as a run's folder holds it.

    Raises:
        ValueError, OSError: it is damaged, or stored activations are not what they were.
    """
    return load_world(folder, device) if has_world(folder) else StoredWorld.load(folder)


def make_world(
    spec: WorldSpec | SyntheticSpec,
    seed: int,
    device: torch.device | str = "cpu",
    name: str = ONLY_WORLD,
) -> ToyWorld:
    """The world of a spec. Directions of a toy world follow from seed and name, all else from the
    spec.

    Raises:
        ValueError: probabilities, magnitudes or correlations that no world can have.
        ValueError, OSError: as `SyntheticWorld`.
    """
    if isinstance(spec, SyntheticSpec):
        return SyntheticWorld(spec.synthetic, device=device)
    matrix = None
    if isinstance(spec.correlation, CorrelatedPairs):
        pairs = {(i, j): c for i, j, c in spec.correlation.pairs}
        matrix = create_correlation_matrix(spec.n_features, pairs)
    elif spec.correlation is not None:
        matrix = generate_random_correlation_matrix(spec.n_features, **vars(spec.correlation))
    return ToyWorld(
        spec.n_features,
        spec.d_in,
        torch.tensor(spec.firing_probabilities),
        torch.tensor(spec.std_firing_magnitudes),
        torch.tensor(spec.mean_firing_magnitudes),
        matrix,
        seed=world_seed(seed, "world", name),
        ortho_num_steps=spec.ortho_num_steps,
        device=device,
    )


def make_spec_saes(
    specs: Sequence[SAESpec],
    d_in: int,
    seed: int,
    device: torch.device | str = "cpu",
    model: ToyModel | None = None,
    for_mean: Iterator[Tensor] | None = None,
) -> list[sae_lens.TrainingSAE[Any]]:
    """Untrained SAEs; the initial weights of each follow from the seed and its own id.

    Args:
        specs: SAEs of one world.
        seed: of the run.
        model: the true features, for SAEs that start there.
        for_mean: activations; SAEs that start at the mean take that of the first batches, of
            16,384 samples at least.
    Raises:
        ValueError: an architecture that is not registered with sae_lens, a config field that the
            architecture does not have, a value that it refuses, a width that cannot start at the
            true features, or what `init_b_dec_to_mean` refuses; the message names the SAE.
    """
    saes, drawn, n_drawn = [], [torch.empty(0, d_in)], 0
    if for_mean is not None and any(spec.init == "mean" for spec in specs):
        while n_drawn < _SAMPLES_FOR_MEAN:
            drawn.append(next_batch(for_mean, d_in, "cpu", "a batch to take the mean of"))
            n_drawn += len(drawn[-1])
    samples = torch.cat(drawn)
    for spec in specs:
        try:
            saes.append(_make_sae(spec, d_in, seed, model, samples).to(device))
        except (TypeError, ValueError) as error:
            raise ValueError(f"SAE {spec.sae_id!r}: {error}") from error
    return saes


def _make_sae(
    spec: SAESpec, d_in: int, seed: int, model: ToyModel | None, samples: Tensor
) -> sae_lens.TrainingSAE[Any]:
    from sparse_but_wrong.sae_lens_compat import SAE_TRAINING_CLASS_REGISTRY

    if spec.architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise ValueError(
            f"unknown architecture {spec.architecture!r}. Registered with sae_lens: "
            f"{', '.join(SAE_TRAINING_CLASS_REGISTRY)}."
        )
    _, config_class = SAE_TRAINING_CLASS_REGISTRY[spec.architecture]
    cfg = config_class(**{**_typed(spec.config, config_class), "d_in": d_in})
    sae = make_sae(cfg, derive_seed(seed, "sae", spec.sae_id))
    if spec.init == "true_features":
        if model is None:
            raise ValueError("only in a toy world can it start at the true features.")
        n_features = model.embed.weight.shape[1]
        if cfg.d_sae != n_features:
            raise ValueError(
                f"it starts at the true features and has {cfg.d_sae} latents for {n_features} of "
                f"them; give it d_sae={n_features}."
            )
        init_sae_to_match_model(sae, model)
    elif spec.init == "mean":
        init_b_dec_to_mean(sae, samples)
    sae.W_dec.requires_grad_(not spec.frozen_decoder)
    return sae


def _typed(config: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The values of a config, once its class has such fields and they are of its types."""
    values, types = dict(config), field_types(config_class)
    for name, value in config.items():
        if name in ("d_in", "device"):
            raise ValueError(f"config.{name} follows from the world or the run; leave it out.")
        if name not in types:
            raise ValueError(f"{config_class.__name__} has no field {name!r}.")
        try:
            values[name] = of_type(value, types[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is {value!r}, but {error}.") from error
    return values
