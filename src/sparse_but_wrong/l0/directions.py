"""The directions that activations are made of, learned from where an SAE's decoder points.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.l0.codes import sparse_codes
from sparse_but_wrong.l0.presence import Presence, levels_of, measure_presence

if TYPE_CHECKING:
    import sae_lens

_ITERATIONS = 40
"""Of the codes that directions are learned from; those that are counted take more."""

_MEMORY = 0.95
"""How much of what earlier batches said is kept from one to the next."""

_ANNEALING = (1.0, 0.75, 0.5, 0.25, 0.0)
_FIRST_PENALTY = 8.0
"""The penalty falls from 8 times to once its final value, in five stages. Directions whose cone is
wider than that of the samples cost only penalty, and a small one alone would narrow it slowly.
Features found from ten poor starts in two worlds (50 features; 80 in 40 dimensions): 68 % with the
final penalty throughout, 94 % from 8 times, 91 % from 30 times."""

_NARROWER = 1.5
"""By what factor a direction's amounts must spread less where it is on than where it is off for it
to be turned round."""

_FLOOR = 0.05
"""Added to either spread, in units of the direction's level: less is no sign of anything."""

_TOLD_BY = 2048
_IN_EITHER = 20
"""Of at most so many samples, how many must be on either side to tell."""

_UNUSED = 1e-3
"""Share of samples below which a direction counts as unused."""

_PRUNE_BATCHES = 8
_PRUNE_SAMPLES = 8192
_WORST_RESIDUAL = 0.005


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions whose non-negative multiples, with a bias, add up to activations."""

    rows: Float[Tensor, "A D"]
    bias: Float[Tensor, " D"]
    penalty: float
    """Of the codes, in the units of the activations."""

    def to(self, device: torch.device | str) -> Directions:
        """The same on another device."""
        return replace(self, rows=self.rows.to(device), bias=self.bias.to(device))


@torch.no_grad()
def decoder_directions(sae: sae_lens.SAE[Any], activations: Float[Tensor, "B D"]) -> Directions:
    """Where an SAE's decoder points, with the bias that fits. Rows of length 0 are left out.

    The SAE's own bias is not used: one that started at 0 may still be far from where the
    activations are, if they have a large mean.
    """
    rows = sae.W_dec.detach().float().cpu()
    rows = rows[rows.isfinite().all(1) & (rows.norm(dim=1) > 0)]
    rows = torch.nn.functional.normalize(rows, dim=1)
    penalty = _PENALTY * activations.var(dim=0, correction=0).sum().sqrt().item()
    return Directions(rows, _cheapest_bias(rows, activations, penalty), penalty)


_PENALTY = 0.008
"""Of the spread of the activations: a hundredth to a fiftieth of the magnitude of a feature where 2
to 20 are active."""


def _cheapest_bias(
    rows: Float[Tensor, "A D"], activations: Float[Tensor, "B D"], penalty: float
) -> Float[Tensor, " D"]:
    """The bias with which the lasso over some directions costs least.

    It follows a vector that is added to all samples. Its cost is convex in codes and bias together;
    each is solved for in turn, from the mean. That is above the bias sought, along directions that
    are present at times, and is left at once; from below the penalty alone would drive it.
    """
    samples = activations[:_BIAS_SAMPLES]
    bias = activations.mean(0)
    if len(rows):
        for _ in range(_BIAS_ROUNDS):
            centred = samples - bias
            codes = sparse_codes(centred, rows, penalty, _ITERATIONS)
            bias = bias + (centred - codes @ rows).mean(0)
    return bias


_BIAS_SAMPLES = 2048
_BIAS_ROUNDS = 8
"""Each leaves of what is wrong along a direction as much as the share of samples that have it; what
is left is learned with the directions."""


@torch.no_grad()
def refine_directions(
    start: Directions,
    batches: Sequence[Float[Tensor, "_B D"]],
    held_out: Float[Tensor, "N D"],
    seed: int,
    n_extra: int = 0,
    n_cycles: int = 6,
) -> tuple[Directions, Presence]:
    """Learn the directions that activations are made of, and how many.

    Each cycle has two halves. Online dictionary learning with non-negative codes, the penalty
    annealed; the bias is learned with it, and directions that stay unused start again on what is
    left over. Then directions are taken out one after the other, the one first that the others
    express best, until the residual rises: what is wholly a sum of others goes. On the way the set
    is kept whose codes split most clearly into present and absent (`Presence.score`). Last,
    directions are set apart that hold a share of one another (`_unmixed`), one of two goes that are
    each other's reverse (`_one_sided`), those that show a feature from the other side (on where the
    feature is not) are turned round, and what is in all samples goes into the bias.

    Args:
        start: often `decoder_directions` of an SAE.
        batches: to learn from; read again in every cycle.
        held_out: to count on.
        seed: of the choice of samples for new starts.
        n_extra: directions added to the start, on what it leaves over. They show when there is
            more to find than the SAE has latents.
        n_cycles: at most; fewer once nothing is left to improve.
    Returns:
        The directions, and their presence in `held_out`.
    Source: the learning step is that of Mairal et al. 2009, "Online dictionary learning for sparse
        coding".
    """
    generator = torch.Generator().manual_seed(seed)
    directions = start
    if n_extra:
        rows = _left_over(batches[0], start, n_extra, generator)
        directions = replace(start, rows=torch.cat([start.rows, rows]))
    best: tuple[Directions, Presence] | None = None
    counted_on = held_out[:_PRUNE_SAMPLES]
    for _ in range(n_cycles):
        learner = _Learner(directions, generator)
        stages = len(_ANNEALING)
        for stage, exponent in enumerate(_ANNEALING):
            part = batches[len(batches) * stage // stages : len(batches) * (stage + 1) // stages]
            learner.learn(
                part,
                directions.penalty * _FIRST_PENALTY**exponent,
                renew=stage < stages - 2,
            )
        directions, presence = _prune(learner, batches, counted_on)
        unmixed = _without_constants(_unmixed(directions, presence, held_out), counted_on)
        directions, presence = _better(directions, presence, unmixed, counted_on)
        one_sided = _one_sided(directions, counted_on)
        settled = one_sided is not directions
        if settled:
            # The score is no judge of that, and may rise until the others have learned of it.
            directions = _without_constants(one_sided, counted_on)
            presence = measure_presence(directions, counted_on)
        turned = _without_constants(_turned(directions, counted_on), counted_on)
        directions, presence = _better(directions, presence, turned, counted_on)
        improved = best is None or presence.score < 0.9 * best[1].score
        if best is None or presence.score < best[1].score:
            best = directions, presence
        if best[1].score < _GOOD_ENOUGH or not (improved or settled):
            break
    assert best is not None
    return best[0], measure_presence(best[0], held_out)


_GOOD_ENOUGH = 0.002


class _Learner:
    """Online dictionary learning, with what the last batches said."""

    def __init__(self, start: Directions, generator: torch.Generator) -> None:
        self.rows = start.rows.clone()
        self.bias = start.bias.clone()
        self.penalty = start.penalty
        self.generator = generator
        n, d_in = self.rows.shape
        self._codes_codes = self.rows.new_zeros(n, n)
        self._codes_samples = self.rows.new_zeros(n, d_in)

    @property
    def directions(self) -> Directions:
        return Directions(self.rows.clone(), self.bias.clone(), self.penalty)

    def learn(self, batches: Sequence[Tensor], penalty: float, *, renew: bool) -> None:
        for i, batch in enumerate(batches):
            codes, residual = self._step(batch, penalty)
            if renew and i % 20 == 19:
                self._renew(codes, residual)

    def _step(self, batch: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        centred = batch - self.bias
        codes = sparse_codes(centred, self.rows, penalty, _ITERATIONS)
        residual = centred - codes @ self.rows
        shift = 0.5 * residual.mean(0)
        self.bias += shift
        centred -= shift
        self._codes_codes.mul_(_MEMORY).addmm_(codes.T, codes)
        self._codes_samples.mul_(_MEMORY).addmm_(codes.T, centred)
        use = self._codes_codes.diagonal()
        for j in (use > 1e-6 * use.max()).nonzero().flatten().tolist():
            pull = self._codes_samples[j] - self._codes_codes[j] @ self.rows
            moved = self.rows[j] + pull / self._codes_codes[j, j]
            self.rows[j] = moved / moved.norm()
        return codes, residual

    def _renew(self, codes: Tensor, residual: Tensor) -> None:
        unused = ((codes > 0).float().mean(0) < _UNUSED).nonzero().flatten()
        if len(unused):
            self.rows[unused] = _draw_residuals(residual, len(unused), self.generator)
            self._forget(unused)

    def _forget(self, rows: Tensor) -> None:
        self._codes_codes[rows] = 0.0
        self._codes_codes[:, rows] = 0.0
        self._codes_samples[rows] = 0.0

    def keep(self, kept: Tensor) -> None:
        """Drop all other directions."""
        self.rows = self.rows[kept].clone()
        self._codes_codes = self._codes_codes[kept][:, kept].clone()
        self._codes_samples = self._codes_samples[kept].clone()


def _prune(
    learner: _Learner, batches: Sequence[Tensor], held_out: Tensor
) -> tuple[Directions, Presence]:
    """Take out directions while the rest still express the samples; the best set on the way."""
    directions = learner.directions
    presence = measure_presence(directions, held_out)
    best, first = (directions, presence), presence.residual
    step = max(1, len(directions.rows) // 40)
    at = 0
    while len(learner.rows) > step + 1:
        worth = _worth(directions, held_out[:2048])
        kept = torch.ones(len(worth), dtype=torch.bool)
        kept[worth.argsort()[:step]] = False
        learner.keep(kept)
        part = [batches[(at + i) % len(batches)] for i in range(_PRUNE_BATCHES)]
        at += _PRUNE_BATCHES
        learner.learn(part, learner.penalty, renew=False)
        directions = learner.directions
        presence = measure_presence(directions, held_out)
        if presence.score < best[1].score:
            best = directions, presence
        if presence.residual > 4 * first + _WORST_RESIDUAL:
            break
    return best


@torch.no_grad()
def _unmixed(directions: Directions, presence: Presence, samples: Tensor) -> Directions:
    """Take out of each direction what it holds of others, as their codes give it away.

    The cheapest directions are those whose cone is as narrow as that of the samples, and they need
    not be the true ones. A child that never occurs without its parent takes in as much of the
    parent as every sample allows; the parent's codes are smaller then where the child is present.
    So each direction is given back the difference that its presence makes to the mean code of every
    other.
    That takes the magnitude of a feature not to depend on which others are there.
    """
    rows, bias = directions.rows.clone(), directions.bias
    for _ in range(_UNMIXING_ROUNDS):
        codes = sparse_codes(samples - bias, rows, directions.penalty, 120)
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


def _better(
    directions: Directions, presence: Presence, other: Directions, samples: Tensor
) -> tuple[Directions, Presence]:
    """Of two sets, the one that splits more clearly into present and absent."""
    if other is directions:
        return directions, presence
    presence_of_other = measure_presence(other, samples)
    if presence_of_other.score < presence.score:
        return other, presence_of_other
    return directions, presence


@torch.no_grad()
def _one_sided(directions: Directions, samples: Tensor) -> Directions:
    """Without directions whose reverse a few others add up to.

    With the bias somewhere between where a feature is and where it is not, two directions express
    what one can, and one of them is present in any sample; three can do so for two features.
    Neither residual nor histogram shows it. That is dropped without which the others cost least,
    once the bias is at the end of what they span. If its sum with the others is not nothing, that
    may be a direction of its own, which they expressed by being far larger than it is.
    """
    samples = samples[:_TOLD_BY]
    settled = directions
    for _ in range(_SETTLING_ROUNDS):
        rows, bias = settled.rows.clone(), settled.bias
        if not (found := _reverses(rows)):
            break
        codes = sparse_codes(samples - bias, rows, settled.penalty, 120)
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
        left = -row
        others: list[int] = []
        for _ in range(min(at_most, len(rows) - 1)):
            closeness = rows @ left
            closeness[[i, *others]] = -torch.inf
            others.append(int(closeness.argmax()))
            weights = -torch.linalg.lstsq(rows[others].T, row[:, None]).solution[:, 0]
            left = -row - weights @ rows[others]
            if left.square().sum() < 1 - _REVERSE**2:
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
def _turned(directions: Directions, samples: Tensor) -> Directions:
    """With those turned round that show a feature from the other side: on where it is off.

    The bias holds such a feature, but a vector that is in all samples may do the same, so that the
    bias tells nothing. What does is the spread of the amounts: those of a feature that is off are
    all the same, those of one that is on vary.

    This waits until all is learned: while the penalty is higher, a feature that is active more
    often than not costs less if the bias holds it, and one turned round early is lost again.
    """
    samples = samples[:_TOLD_BY]
    rows, bias = directions.rows.clone(), directions.bias.clone()
    centred = samples - bias
    codes = sparse_codes(centred, rows, directions.penalty, 120)
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


@torch.no_grad()
def _without_constants(directions: Directions, samples: Tensor) -> Directions:
    """Without those that are in all samples alike: their amount goes into the bias."""
    rows = directions.rows
    codes = sparse_codes(samples - directions.bias, rows, directions.penalty, 120)
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


def _worth(directions: Directions, samples: Tensor) -> Float[Tensor, " A"]:
    """The energy that each direction carries and the others cannot express."""
    rows = directions.rows
    codes = sparse_codes(samples - directions.bias, rows, directions.penalty, 80)
    gram = rows @ rows.T
    step = 1 / (1.01 * float(torch.linalg.eigvalsh(gram)[-1]))
    # Each row by all others: the same descent with the diagonal held at 0.
    by_others = torch.zeros_like(gram)
    for _ in range(100):
        by_others = (by_others + step * (gram - by_others @ gram)).clamp_min_(0)
        by_others.fill_diagonal_(0)
    own = (rows - by_others @ rows).square().sum(1)
    return codes.square().mean(0) * own


def _left_over(
    batch: Tensor, directions: Directions, count: int, generator: torch.Generator
) -> Float[Tensor, "count D"]:
    centred = batch - directions.bias
    codes = sparse_codes(centred, directions.rows, directions.penalty, _ITERATIONS)
    return _draw_residuals(centred - codes @ directions.rows, count, generator)


def _draw_residuals(
    residual: Tensor, count: int, generator: torch.Generator
) -> Float[Tensor, "count D"]:
    chances = residual.square().sum(1).double() + 1e-12
    drawn = torch.multinomial(
        chances, count, replacement=count > len(residual), generator=generator
    )
    return torch.nn.functional.normalize(residual[drawn], dim=1)


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
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    low, middle, high = values.where(which, torch.nan).nanquantile(levels, dim=0)
    return middle, high - low
