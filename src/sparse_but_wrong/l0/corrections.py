"""Corrections of directions that express activations and yet are not what those are made of.

Each function corrects one way in which that happens, which neither the residual nor the
distribution of the codes need show.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.l0.codes import sparse_codes
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import Presence, levels_of


@torch.no_grad()
def unmix(directions: Directions, presence: Presence, samples: Tensor) -> Directions:
    """Take out of each direction what it holds of others, as their codes give it away.

    The cheapest directions are those whose cone is as narrow as that of the samples: a child that
    never occurs without its parent takes in as much of the parent as every sample allows, and the
    parent's codes are smaller where the child is present. So each direction is given back the
    difference that its presence makes to the mean code of every other. This assumes that the
    magnitude of a feature does not depend on which others are there; the caller has to judge.
    """
    rows, bias = directions.rows.clone(), directions.bias
    for _ in range(_UNMIXING_ROUNDS):
        codes = sparse_codes(samples - bias, rows, directions.penalty)
        levels = levels_of(codes)
        present = (codes > max(presence.cut, 0.1) * levels).float()
        codes *= present
        both = present.T @ present
        total = present.sum(0)
        alone = total[:, None] - both
        # Row i, column j: the mean code of i where j is present, and where it is not.
        sums = codes.T @ present
        beside = sums / both.clamp_min(1)
        without = (codes.sum(0)[:, None] - sums) / alone.clamp_min(1)
        mean = codes.sum(0) / total.clamp_min(1)
        variance = codes.square().sum(0) / total.clamp_min(1) - mean**2
        error = (variance[:, None] * (1 / both.clamp_min(1) + 1 / alone.clamp_min(1))).sqrt()
        missing = without - beside
        sure = (both >= 30) & (alone >= 30) & (missing.abs() > 4 * error)
        missing = torch.where(sure, missing, 0.0).fill_diagonal_(0)
        if not bool((missing != 0).any()):
            break
        rows = torch.nn.functional.normalize(
            levels[:, None] * rows - _UNMIXING_STEP * (missing.T @ rows), dim=1
        )
    return replace(directions, rows=rows)


_UNMIXING_ROUNDS = 6
_UNMIXING_STEP = 0.7
"""A whole step overshoots: codes are not negative, so a difference is seen larger than it is."""


@torch.no_grad()
def keep_one_side(directions: Directions, samples: Tensor) -> Directions:
    """Without directions whose reverse a few others add up to.

    With the bias somewhere between where a feature is and where it is not, two directions express
    what one can, and one of them is present in any sample; three can do so for two features. The
    one is dropped without which the others cost least, once the bias is at the end of what they
    span. If its sum with the others is not nothing, that may be a direction of its own.
    """
    samples = samples[:_TOLD_BY]
    settled = directions
    for _ in range(_SETTLING_ROUNDS):
        rows, bias = settled.rows.clone(), settled.bias
        if not (found := _reverses(rows)):
            break
        codes = sparse_codes(samples - bias, rows, settled.penalty)
        ways = []
        for i, others, weights in found:
            amounts = codes[:, others] - codes[:, i : i + 1] * weights
            low = amounts.quantile(_LOW, dim=0)
            change = (amounts - low).sum(1).mean() - codes[:, [i, *others]].sum(1).mean()
            ways.append((change.item(), i, others, weights, low))
        touched = torch.zeros(len(rows), dtype=torch.bool)
        kept = torch.ones(len(rows), dtype=torch.bool)
        for _, i, others, weights, low in sorted(ways, key=lambda way: way[0]):
            if bool(touched[[i, *others]].any()):
                continue
            touched[[i, *others]] = True
            bias = bias + low @ rows[others]
            rest = rows[i] + weights @ rows[others]
            kept[i] = bool(rest.norm() > _REST)
            rows[i] = rest / rest.norm().clamp_min(1e-30)
        settled = replace(directions, rows=rows[kept], bias=bias)
    return settled


_SETTLING_ROUNDS = 10
_LOW = 0.05
"""Quantile of a direction's amounts that stands for their lower end."""

_REST = 0.15


def _reverses(rows: Float[Tensor, "A D"]) -> list[tuple[int, list[int], Tensor]]:
    """Directions whose reverse is a positive sum of a few others; those others, and how much.

    In few dimensions, where chance would bring that about, fewer others are tried.
    """
    at_most = min(_MOST_OTHERS, 1 + rows.shape[1] // _DIMENSIONS_PER_OTHER)
    found = []
    for i, row in enumerate(rows):
        rest = -row
        others: list[int] = []
        for _ in range(min(at_most, len(rows) - 1)):
            closeness = rows @ rest
            closeness[[i, *others]] = -torch.inf
            others.append(int(closeness.argmax()))
            weights = -torch.linalg.lstsq(rows[others].T, row[:, None]).solution[:, 0]
            rest = -row - weights @ rows[others]
            if rest.square().sum() < 1 - _REVERSE**2:
                if bool((weights > 0).all()):
                    found.append((i, others, weights))
                break
    return found


_MOST_OTHERS = 3
_DIMENSIONS_PER_OTHER = 25
_REVERSE = 0.9
"""Cosine from which a sum is taken for a reverse. Among twice as many random directions as
dimensions the best sum comes to less than 0.7."""


@torch.no_grad()
def turn_round(directions: Directions, samples: Tensor) -> Directions:
    """With those turned round that show a feature from the other side: on where it is off.

    The spread of the amounts tells: those of a feature that is off are all the same, those of one
    that is on vary. This waits until all is learned: while the penalty is higher, a feature that is
    active more often than not costs less if the bias holds it.
    """
    samples = samples[:_TOLD_BY]
    rows, bias = directions.rows.clone(), directions.bias.clone()
    centred = samples - bias
    codes = sparse_codes(centred, rows, directions.penalty)
    level = levels_of(codes)
    # With what a direction would take where it is not allowed to be negative.
    amounts = codes + (centred - codes @ rows) @ rows.T
    on = _upper_of_two(amounts)
    n_on = on.sum(0)
    told = (n_on >= _IN_EITHER) & (len(samples) - n_on >= _IN_EITHER) & (level > 0)
    middle_on, spread_on = _middle_and_spread(amounts, on)
    _, spread_off = _middle_and_spread(amounts, ~on)
    which = told & (spread_off + _FLOOR * level > _NARROWER * (spread_on + _FLOOR * level))
    if not bool(which.any()):
        return directions
    bias += middle_on[which] @ rows[which]
    rows[which] *= -1
    return replace(directions, rows=rows, bias=bias)


_NARROWER = 1.5
"""By what factor a direction's amounts must spread less where it is on than where it is off for it
to be turned round."""

_FLOOR = 0.05
"""Added to either spread, in units of the direction's level: less is no sign of anything."""

_TOLD_BY = 2048
_IN_EITHER = 20
"""Of at most so many samples, how many must be on either side to tell."""


def _upper_of_two(values: Float[Tensor, "B A"]) -> Bool[Tensor, "B A"]:
    """Per column, which values belong to the upper one of two clusters."""
    upper = values > values.amax(0) / 2
    for _ in range(_CLUSTER_ROUNDS):
        n_upper = upper.sum(0)
        above = (values * upper).sum(0)
        below = values.sum(0) - above
        upper = (
            values
            > (above / n_upper.clamp_min(1) + below / (len(values) - n_upper).clamp_min(1)) / 2
        )
    return upper


_CLUSTER_ROUNDS = 10


def _middle_and_spread(values: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Per column, the median and the distance of the quartiles of those that are picked out."""
    levels = values.new_tensor([0.25, 0.5, 0.75])
    low, middle, high = values.where(which, torch.nan).nanquantile(levels, dim=0)
    return middle, high - low


@torch.no_grad()
def drop_constants(directions: Directions, samples: Tensor) -> Directions:
    """Without those that are in all samples alike: their amount goes into the bias."""
    rows = directions.rows
    codes = directions.codes(samples)
    in_all = codes.kthvalue(1 + int(_RARELY_LESS * len(codes)), dim=0).values
    if not bool((in_all > 0).any()):
        return directions
    moving = (codes - in_all).square().sum(0)
    kept = (in_all == 0) | (moving > _CONSTANT * codes.square().sum(0))
    return replace(directions, rows=rows[kept], bias=directions.bias + in_all @ rows)


_RARELY_LESS = 0.02
"""Share of samples that may hold less of a direction than what is taken to be in all."""

_CONSTANT = 0.02
"""Share of its energy that must vary for a direction not to be taken for a constant."""
