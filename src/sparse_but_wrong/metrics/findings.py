"""What is easily overlooked in a table of SAEs, in sentences: the number, the bound, the remedy.

They take plain numbers, so that whoever has a table can ask: of a run, a sweep, a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparse_but_wrong.metrics.evaluation import DENSE, Evaluation
from sparse_but_wrong.metrics.origin import Origin

UNSETTLED = 0.1
"""A BatchTopK SAE's L0 may be off its k by this share of k. On the 50-feature toy world, k from 1
to 25, it was off by 30 to 70% of k after 300 steps and by less than 3% after 1,000."""

SATURATED = 0.02
"""L0s within this share of each other are one L0 to a coefficient."""

MANY_DEAD, MANY_DENSE = 0.1, 0.01
"""Shares of the latents from which dead ones, or dense ones, are worth a remark."""

FEW_BATCHES = 8

_Point = tuple[str, float | int, float | int]

_FACTOR = 4.0
"""How much larger a coefficient has to be for the same L0 to be odd."""


def unsettled_thresholds(saes: Iterable[_Point]) -> str | None:
    """Which BatchTopK SAEs have another L0 as they are used than the k they were trained with.

    In training the largest k·batch latents are active; as it is used, those above a threshold,
    which is a running mean that begins at 0 and is too low until it has settled.

    Args:
        saes: name, k, and L0 by the threshold. Where one of these is not finite, nothing is said.
    Returns:
        A sentence or two; None where all are within `UNSETTLED`.
    """
    off = [(name, k, l0) for name, k, l0 in saes if k > 0 and abs(l0 - k) > UNSETTLED * k]
    if not off:
        return None
    return (
        f"L0 as used, by the threshold, more than {UNSETTLED:.0%} off the k of training: "
        + ", ".join(f"{l0:.3g} at k = {k:g} ({name})" for name, k, l0 in off)
        + ". The threshold of a BatchTopK SAE is a running mean that begins at 0. It takes 5 / "
        "topk_threshold_lr steps, 500 by default, to come within 1% of its goal, and until then "
        "L0 is too high. Train for more steps; after a long training, measure on activations like "
        "those of the training."
    )


def saturated(saes: Iterable[_Point]) -> str | None:
    """Whether the largest sparsity coefficients of a sweep all give one L0.

    Args:
        saes: name, coefficient and L0 of SAEs that differ in nothing else, unless in their seed.
            Those that are not finite are left out.
    Returns:
        A sentence or two; None where the largest coefficient has its own L0, or shares it only with
        those within a factor of 4, as neighbours in a sweep may.
    """
    points = sorted(
        ((c, l0, name) for name, c, l0 in saes if 0 < c < float("inf") and l0 == l0),
        reverse=True,
    )
    if not points:
        return None
    top, l0_at_top, top_name = points[0]
    alike = []
    for coefficient, l0, name in points:
        if abs(l0 - l0_at_top) > SATURATED * max(l0, l0_at_top):
            break
        alike.append((coefficient, l0, name))
    lowest, l0_at_lowest, lowest_name = alike[-1]
    if lowest * _FACTOR > top:
        return None
    return (
        f"One L0 from the coefficient {lowest:g} on: {l0_at_lowest:.4g} there ({lowest_name}) and "
        f"{l0_at_top:.4g} at {top:g} ({top_name}), within {SATURATED:.0%}. A larger coefficient no "
        "longer lowers it: Adam sees the direction of the gradient only, and from some size on the "
        f"coefficient alone decides that. Take coefficients below {lowest:g}, or set the L0 itself "
        "(TargetL0)."
    )


def remarks(
    evaluations: Sequence[Evaluation], origins: Mapping[str, Origin] | None = None
) -> list[str]:
    """What must not be overlooked in evaluations: the numbers, the bound and what to do.

    Args:
        origins: how SAEs were trained, by their name, where that is known.
    """
    said = []
    diverged = [found for found in evaluations if _diverged(found)]
    if diverged:
        names = ", ".join(found.name for found in diverged)
        said.append(f"Diverged, with weights or activations that are not finite: {names}.")
    fine = [found for found in evaluations if not _diverged(found)]
    # Where no latent is active only the bias remains, which the remark on dead latents covers.
    if worse := [found for found in fine if found.l0 and found.variance_explained < 0]:
        values = ", ".join(f"{found.variance_explained:.3g} ({found.name})" for found in worse)
        said.append(
            f"Variance explained below 0, worse than the mean of the samples alone: {values}. Such "
            "an SAE was trained on other activations (model, hook, or scale), or is read as "
            "something that it is not; check where both come from before using any number here."
        )
    said += _of_training(fine, origins or {})
    dead = [(found, found.dead_latents / found.d_sae) for found in fine]
    if many := [(found, share) for found, share in dead if share > MANY_DEAD]:
        said.append(
            f"Latents that were active on no sample: {_shares(many)}. Where they are more than "
            f"{MANY_DEAD:.0%}, s_n^dec and c_dec are in part those of directions that nothing "
            "trained. Evaluate on more samples; if they stay dead, train with reinit_dead_every."
        )
    dense = [
        (found, float(found.densities[found.densities > DENSE].sum()) / found.l0)
        for found in fine
        if found.dense_latents > MANY_DENSE * found.d_sae
    ]
    if dense:
        said.append(
            f"Share of the L0 that comes from latents active on more than {DENSE:.0%} of the "
            f"samples: {_shares(dense)}."
        )
    few = min(found.n_batches for found in evaluations)
    if few < FEW_BATCHES:
        said.append(
            f"Only {few} batch{'' if few == 1 else 'es'}: standard errors are unreliable below "
            f"{FEW_BATCHES}. Evaluate on more samples, or in smaller batches."
        )
    return said


def _of_training(evaluations: Sequence[Evaluation], origins: Mapping[str, Origin]) -> list[str]:
    """What the L0 says of the training."""
    known = [(found, origins[found.name]) for found in evaluations if found.name in origins]
    settled = unsettled_thresholds(
        (found.name, origin.batchtopk_k, found.l0)
        for found, origin in known
        if origin.batchtopk_k is not None
    )
    families: dict[str, list[_Point]] = {}
    for found, origin in known:
        if origin.coefficient is not None:
            point = (found.name, origin.coefficient, found.l0)
            families.setdefault(origin.family, []).append(point)
    return [said for said in (settled, *map(saturated, families.values())) if said]


def _diverged(found: Evaluation) -> bool:
    return math.isnan(found.l0) or bool(np.isnan(found.projections).any())


def _shares(shares: Sequence[tuple[Evaluation, float]]) -> str:
    return ", ".join(f"{share:.0%} ({found.name})" for found, share in shares)
