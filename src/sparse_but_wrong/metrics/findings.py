"""What is easily overlooked in a table of SAEs, in sentences: the number, the bound, the remedy.

They take plain numbers, so that whoever has a table can ask: of a run, a sweep, a measurement.
"""

from __future__ import annotations

from collections.abc import Iterable

UNSETTLED = 0.1
"""A BatchTopK SAE's L0 may be off its k by this share of k. On the 50-feature toy world, k from 1
to 25, it was off by 30 to 70% of k after 300 steps and by less than 3% after 1,000."""

SATURATED = 0.02
"""L0s within this share of each other are one L0 to a coefficient."""

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
