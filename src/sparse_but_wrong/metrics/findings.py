"""What is easily overlooked in a table of SAEs, in sentences: the number, the bound, the remedy.

They take plain numbers, so that whoever has a table can ask: of a run, a sweep, a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

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
        + ". The threshold begins at 0 and takes 5 / topk_threshold_lr steps, 500 by default, to "
        "settle to 1%. Train for more steps; after a long training, measure on activations like "
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
    known = [(c, l0, name) for name, c, l0 in saes if 0 < c < math.inf and l0 == l0]
    if not known:
        return None
    points = sorted(known, reverse=True)
    top, l0_at_top, top_name = points[0]

    def is_alike(point: tuple[float, float, str]) -> bool:
        return abs(point[1] - l0_at_top) <= SATURATED * max(point[1], l0_at_top)

    *_, (lowest, l0_at_lowest, lowest_name) = takewhile(is_alike, points)
    if lowest * _FACTOR > top:
        return None
    return (
        f"One L0 from the coefficient {lowest:g} on: {l0_at_lowest:.4g} there ({lowest_name}) and "
        f"{l0_at_top:.4g} at {top:g} ({top_name}), within {SATURATED:.0%}. A larger one no longer "
        "lowers it, since it alone decides the direction of the gradient, which is all that Adam "
        f"sees. Take coefficients below {lowest:g}, or set the L0 itself (TargetL0)."
    )


def remarks(
    evaluations: Sequence[Evaluation], origins: Mapping[str, Origin] | None = None
) -> list[str]:
    """What must not be overlooked in evaluations: the numbers, the bound and what to do.

    Args:
        origins: how SAEs were trained, by their name, where that is known.
    """
    diverged = [e for e in evaluations if math.isnan(e.l0) or np.isnan(e.projections).any()]
    fine = [e for e in evaluations if e not in diverged]
    # Where no latent is active only the bias remains, which the remark on dead latents covers.
    worse = [e for e in fine if e.l0 and e.variance_explained < 0]
    dead = [(e.dead_latents / e.d_sae, e.name) for e in fine]
    dense = [
        (e.densities[e.densities > DENSE].sum() / e.l0, e.name)
        for e in fine
        if e.dense_latents > MANY_DENSE * e.d_sae
    ]
    few = min(e.n_batches for e in evaluations)
    table = [
        ("Diverged, weights or activations are not finite: {}.", [e.name for e in diverged]),
        (
            "Variance explained below 0, worse than the mean of the samples alone: {}. Check on "
            "which activations (model, hook, scale) they were trained before using any number "
            "here.",
            [f"{e.variance_explained:.3g} ({e.name})" for e in worse],
        ),
        *(("{}", [said]) for said in _of_training(fine, origins or {})),
        (
            "Latents that were active on no sample: {}. "
            f"Above {MANY_DEAD:.0%}, s_n^dec and c_dec are in part those of directions that "
            "nothing trained. Evaluate on more samples; if they stay dead, train with "
            "reinit_dead_every.",
            [f"{share:.0%} ({name})" for share, name in dead if share > MANY_DEAD],
        ),
        (
            f"Share of the L0 from latents active on more than {DENSE:.0%} of the samples: {{}}.",
            [f"{share:.0%} ({name})" for share, name in dense],
        ),
        (
            f"Only {{}}: standard errors are unreliable below {FEW_BATCHES}. Evaluate on more "
            "samples, or in smaller batches.",
            [f"{few} batch{'' if few == 1 else 'es'}"] if few < FEW_BATCHES else [],
        ),
    ]
    return [text.format(", ".join(values)) for text, values in table if values]


def _of_training(evaluations: Sequence[Evaluation], origins: Mapping[str, Origin]) -> list[str]:
    """What the L0 says of the training."""
    thresholds: list[_Point] = []
    families: dict[str, list[_Point]] = {}
    for found in evaluations:
        origin = origins.get(found.name, Origin())
        if origin.batchtopk_k is not None:
            thresholds.append((found.name, origin.batchtopk_k, found.l0))
        if origin.coefficient is not None:
            point = (found.name, origin.coefficient, found.l0)
            families.setdefault(origin.family, []).append(point)
    said = (unsettled_thresholds(thresholds), *map(saturated, families.values()))
    return [remark for remark in said if remark]
