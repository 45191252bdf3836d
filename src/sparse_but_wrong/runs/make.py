"""From a spec and a seed to the world and the SAEs it describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from sparse_but_wrong.runs.seeds import world_seed
from sparse_but_wrong.runs.spec import ONLY_WORLD, CorrelatedPairs, SAESpec, WorldSpec
from sparse_but_wrong.saes.initialization import init_sae_to_match_model
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.config_types import field_types, of_type
from sparse_but_wrong.training.make import make_sae
from sparse_but_wrong.worlds.correlations import (
    create_correlation_matrix,
    generate_random_correlation_matrix,
)
from sparse_but_wrong.worlds.toy_model import ToyModel
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import sae_lens


def make_world(
    spec: WorldSpec, seed: int, device: torch.device | str = "cpu", name: str = ONLY_WORLD
) -> ToyWorld:
    """The world of a spec. Its directions follow from seed and name, all else from the spec.

    Args:
        spec: the world.
        seed: of the run.
        name: of the world within the run.
        device: where batches are drawn and embedded.
    Raises:
        ValueError: probabilities, magnitudes or correlations that no world can have.
    """
    matrix = None
    if isinstance(spec.correlation, CorrelatedPairs):
        matrix = create_correlation_matrix(
            spec.n_features, {(i, j): c for i, j, c in spec.correlation.pairs}
        )
    elif spec.correlation is not None:
        matrix = generate_random_correlation_matrix(
            num_features=spec.n_features,
            positive_ratio=spec.correlation.positive_ratio,
            correlation_strength_range=spec.correlation.correlation_strength_range,
            sparsity=spec.correlation.sparsity,
            seed=spec.correlation.seed,
        )
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


def make_saes(
    specs: Sequence[SAESpec],
    d_in: int,
    seed: int,
    device: torch.device | str = "cpu",
    model: ToyModel | None = None,
) -> list[sae_lens.TrainingSAE[Any]]:
    """Untrained SAEs; the initial weights of each follow from the seed and its own id.

    Args:
        specs: SAEs of one world.
        d_in: width of its activations.
        seed: of the run.
        device: where they are put.
        model: the true features, for SAEs that start there.
    Raises:
        ValueError: an architecture that is not registered with sae_lens, a config field that the
            architecture does not have, a value that it refuses, or a width that cannot start at
            the true features; the message names the SAE.
    """
    from sparse_but_wrong.sae_lens_compat import SAE_TRAINING_CLASS_REGISTRY

    saes = []
    for spec in specs:
        if spec.architecture not in SAE_TRAINING_CLASS_REGISTRY:
            raise ValueError(
                f"SAE {spec.sae_id!r} has the architecture {spec.architecture!r}, which is not "
                f"registered with sae_lens; it knows {', '.join(SAE_TRAINING_CLASS_REGISTRY)}."
            )
        _, config_class = SAE_TRAINING_CLASS_REGISTRY[spec.architecture]
        known = {f.name for f in fields(config_class)}
        for name in spec.config:
            if name in ("d_in", "device"):
                raise ValueError(
                    f"SAE {spec.sae_id!r}: config.{name} follows from the "
                    f"{'world' if name == 'd_in' else 'run'}; leave it out."
                )
            if name not in known:
                raise ValueError(
                    f"SAE {spec.sae_id!r}: {config_class.__name__} has no field {name!r}."
                )
        try:
            cfg = config_class(**{**_typed(spec.config, config_class), "d_in": d_in})
            sae = make_sae(cfg, derive_seed(seed, "sae", spec.sae_id))
            if spec.init == "true_features":
                if model is None:
                    raise ValueError("it is to start at the true features, which were not given.")
                n_features = model.embed.weight.shape[1]
                if cfg.d_sae != n_features:
                    raise ValueError(
                        f"it is to start at the true features and has {cfg.d_sae} latents for "
                        f"{n_features} of them; give it d_sae={n_features}."
                    )
                init_sae_to_match_model(sae, model)
        except (TypeError, ValueError) as error:
            raise ValueError(f"SAE {spec.sae_id!r}: {error}") from error
        saes.append(sae.to(device))
    return saes


def _typed(config: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The values of a config, once they are of the types that its class declares."""
    types, values = field_types(config_class), dict(config)
    for name, value in config.items():
        try:
            values[name] = of_type(value, types.get(name, Any))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is {value!r}, but {error}.") from error
    return values
