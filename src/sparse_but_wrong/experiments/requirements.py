"""What an analysis asks of a spec, said by name where it is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparse_but_wrong.runs.spec import ExperimentSpec


def require_numbers(spec: ExperimentSpec, factors: Sequence[str]) -> None:
    """Refuse SAEs that lack one of some factors, or have no number there.

    Raises:
        ValueError: the message names the SAE and the factor.
    """
    for sae in spec.saes:
        for name in factors:
            value = sae.factors.get(name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                has = "it has none" if value is None else f"it is {value!r}"
                raise ValueError(
                    f"the analysis {spec.analysis!r} needs a number as the factor {name!r} of "
                    f"every SAE; of SAE {sae.sae_id!r} {has}."
                )


def require_k_as_trained(spec: ExperimentSpec) -> None:
    """Refuse SAEs that are not BatchTopK SAEs with the factor k as their config's own.

    Raises:
        ValueError: the message names the SAE.
    """
    require_numbers(spec, ["k"])
    for sae in spec.saes:
        if sae.architecture != "batchtopk":
            raise ValueError(
                f"the analysis {spec.analysis!r} is about BatchTopK SAEs, but SAE {sae.sae_id!r} "
                f"has the architecture {sae.architecture!r}."
            )
        if sae.config.get("k") != sae.factors["k"]:
            raise ValueError(
                f"SAE {sae.sae_id!r} has the factor k = {sae.factors['k']}, but its config k = "
                f"{sae.config.get('k')}; the analysis {spec.analysis!r} takes one for the other."
            )


def require_latent_per_feature(spec: ExperimentSpec) -> None:
    """Refuse SAEs with more or fewer latents than their world has features.

    Raises:
        ValueError: the message names the SAE.
    """
    for sae in spec.saes:
        n_features = spec.toy_world(sae.world).n_features
        if sae.config.get("d_sae") != n_features:
            raise ValueError(
                f"the analysis {spec.analysis!r} compares with an SAE that has a latent for every "
                f"feature, so SAE {sae.sae_id!r} needs d_sae = {n_features}; it has "
                f"{sae.config.get('d_sae')}."
            )


def true_l0_of(spec: ExperimentSpec, world: str) -> float:
    """Features active per sample of a world: fired, and with a magnitude not clipped to 0."""
    of_world = spec.toy_world(world)
    return sum(
        p * _above_zero(mean, std)
        for p, mean, std in zip(
            of_world.firing_probabilities,
            of_world.mean_firing_magnitudes,
            of_world.std_firing_magnitudes,
            strict=True,
        )
    )


def _above_zero(mean: float, std: float) -> float:
    """The probability that a normal magnitude is above 0."""
    if std == 0:
        return float(mean > 0)
    return 0.5 * math.erfc(-mean / std / math.sqrt(2))


def require_k_around_the_truth(spec: ExperimentSpec, near: float, *, above: bool) -> None:
    """Refuse a sweep of k without one below, one at and, if asked for, one above the true L0.

    Args:
        spec: of one world, whose SAEs have the factor k.
        near: k within this of the true L0 is at it.
        above: whether one above it is needed too.
    Raises:
        ValueError: the message says on which side there is none.
    """
    (world,) = spec.worlds
    truth = true_l0_of(spec, world)
    off = [float(sae.factors["k"]) - truth for sae in spec.saes]
    sides = [
        ("below", any(value < -near for value in off)),
        ("at", any(abs(value) <= near for value in off)),
        ("above", not above or any(value > near for value in off)),
    ]
    missing = [side for side, is_there in sides if not is_there]
    if missing:
        raise ValueError(
            f"the analysis {spec.analysis!r} compares SAEs on both sides of the true L0 "
            f"({truth:.2f}), but the spec {spec.name!r} has no SAE with a k {' or '.join(missing)} "
            f"it (within {near:g} is at it)."
        )
