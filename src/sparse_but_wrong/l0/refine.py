"""Learn the directions that activations are made of, and how many.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong.l0.codes import codes_by_others
from sparse_but_wrong.l0.corrections import drop_constants, keep_one_side, turn_round, unmix
from sparse_but_wrong.l0.dictionaries import Directions, Learner, draw_residuals, fewer
from sparse_but_wrong.l0.presence import Presence, count_present

_ANNEALING = (1.0, 0.75, 0.5, 0.25, 0.0)
_FIRST_PENALTY = 8.0
"""The penalty falls from 8 times to once its final value, in five stages. Directions whose cone is
wider than that of the samples cost only penalty, and a small one alone would narrow it slowly.
Features found from ten poor starts in two worlds (50 features; 80 in 40 dimensions): 68 % with the
final penalty throughout, 94 % from 8 times, 91 % from 30 times."""

_PRUNE_STEPS = 40
_PRUNE_BATCHES = 8
_PRUNE_SAMPLES = 8192
_WORST_RESIDUAL = 0.005

_NOT_WORTH_PRUNING = 0.5
"""Score of what was first learned, redundant directions included, above which nothing is taken out.
In small worlds it was at most 0.11."""

HOPELESS = 0.3
"""Score after the first cycle above which no further one, no other start and no finer sweep makes a
count clear. In small worlds it was at most 0.05."""

POOR = 0.1
"""Score above which a cycle that does not improve it is the last, and the second start that ends so
too: in small worlds all ended below 0.03."""

_WORTH_PENALTY = 0.05
"""Of expressing a direction by others: without one, any could be where there are more than
dimensions."""


@torch.no_grad()
def refine_directions(
    start: Directions,
    batches: Sequence[Float[Tensor, "_B D"]],
    held_out: Float[Tensor, "N D"],
    seed: int,
    n_extra: int = 0,
    n_cycles: int = 6,
    progress: bool = False,
) -> tuple[Directions, Presence]:
    """Learn the directions that activations are made of, and how many.

    Each cycle has two halves: online dictionary learning with an annealed penalty, in which unused
    directions start again on residuals; then directions are taken out one after the other, the one
    first that the others express best, until the residual rises. On the way the set is kept whose
    codes split most clearly into present and absent (`Presence.score`). Last come the corrections
    (`corrections.py`). Where codes hardly split after the first learning, that is all.

    Args:
        start: often `decoder_directions` of an SAE.
        batches: to learn from, fewer of them the more directions there are; read again in every
            cycle.
        held_out: not among the batches, to count on. Sets and corrections are chosen on the same
            samples: with few of them, some hundreds, the score comes out too good.
        seed: of the choice of samples for new starts.
        n_extra: directions added to the start, on its residuals. They show when there is more to
            find than the SAE has latents.
        n_cycles: at most; fewer once nothing improves.
        progress: show a bar with the time that is left in a cycle.
    Returns:
        The directions, and their presence in `held_out`.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = start
    if n_extra:
        rows = _on_residuals(batches[0], start, n_extra, generator)
        directions = replace(start, rows=torch.cat([start.rows, rows]))
    batches = batches[: fewer(len(batches), len(directions.rows))]
    best: tuple[Directions, Presence] | None = None
    counted_on = held_out[: fewer(_PRUNE_SAMPLES, len(directions.rows))]
    for cycle in range(n_cycles):
        n_pruned = _PRUNE_STEPS * fewer(_PRUNE_BATCHES, len(directions.rows))
        bar = tqdm(
            total=len(batches) + n_pruned,
            desc=f"Directions, cycle {cycle + 1}",
            unit="batch",
            disable=not progress,
            leave=False,
        )
        learner = Learner(directions, generator, bar.update)
        stages = len(_ANNEALING)
        for stage, exponent in enumerate(_ANNEALING):
            part = batches[len(batches) * stage // stages : len(batches) * (stage + 1) // stages]
            learner.learn(
                part,
                directions.penalty * _FIRST_PENALTY**exponent,
                renew=stage < stages - 2,
            )
        learned = count_present(learner.directions, counted_on)
        if cycle == 0 and learned.score > _NOT_WORTH_PRUNING:
            bar.close()
            return learner.directions, count_present(learner.directions, held_out)
        directions, presence = _prune(learner, learned, batches, counted_on)
        bar.close()
        unmixed = drop_constants(unmix(directions, presence, held_out), counted_on)
        directions, presence = _better(directions, presence, unmixed, counted_on)
        one_sided = keep_one_side(directions, counted_on)
        settled = one_sided is not directions
        if settled:
            # The score is no judge of that, and may rise until the others have learned of it.
            directions = drop_constants(one_sided, counted_on)
            presence = count_present(directions, counted_on)
        turned = drop_constants(turn_round(directions, counted_on), counted_on)
        directions, presence = _better(directions, presence, turned, counted_on)
        improved = best is None or presence.score < 0.9 * best[1].score
        if best is None or presence.score < best[1].score:
            best = directions, presence
        score = best[1].score
        goes_on = improved or (settled and score < POOR)
        if score < _GOOD_ENOUGH or score > HOPELESS or not goes_on:
            break
    assert best is not None
    return best[0], count_present(best[0], held_out)


_GOOD_ENOUGH = 0.002


def _prune(
    learner: Learner, presence: Presence, batches: Sequence[Tensor], held_out: Tensor
) -> tuple[Directions, Presence]:
    """Take out directions while the rest still express the samples; the best set on the way.

    Args:
        presence: in those samples, of what has been learned.
    """
    directions = learner.directions
    best, first = (directions, presence), presence.residual
    step = max(1, len(directions.rows) // _PRUNE_STEPS)
    at = 0
    while len(learner.rows) > step + 1:
        worth = _worth(directions, held_out[:2048])
        kept = torch.ones_like(worth, dtype=torch.bool)
        kept[worth.argsort()[:step]] = False
        learner.keep(kept)
        n_batches = fewer(_PRUNE_BATCHES, len(directions.rows))
        part = [batches[(at + i) % len(batches)] for i in range(n_batches)]
        at += n_batches
        learner.learn(part, learner.penalty, renew=False)
        directions = learner.directions
        presence = count_present(directions, held_out)
        if presence.score < best[1].score:
            best = directions, presence
        if presence.residual > 4 * first + _WORST_RESIDUAL:
            break
    return best


def _better(
    directions: Directions, presence: Presence, other: Directions, samples: Tensor
) -> tuple[Directions, Presence]:
    """Of two sets, the one that splits more clearly into present and absent."""
    if other is directions:
        return directions, presence
    presence_of_other = count_present(other, samples)
    if presence_of_other.score < presence.score:
        return other, presence_of_other
    return directions, presence


def _worth(directions: Directions, samples: Tensor) -> Float[Tensor, " A"]:
    """The energy that each direction carries and the others cannot express."""
    rows = directions.rows
    codes = directions.codes(samples)
    by_others = codes_by_others(rows, _WORTH_PENALTY)
    own = (rows - by_others @ rows).square().sum(1)
    return codes.square().mean(0) * own


def _on_residuals(
    batch: Tensor, directions: Directions, count: int, generator: torch.Generator
) -> Float[Tensor, "count D"]:
    codes = directions.codes(batch)
    residual = batch - directions.bias - codes @ directions.rows
    return draw_residuals(residual, count, generator)


@torch.no_grad()
def most_worth(directions: Directions, samples: Float[Tensor, "B D"], n: int) -> Directions:
    """The n directions that carry most energy which the others cannot express; all, if fewer."""
    if len(directions.rows) <= n:
        return directions
    kept = _worth(directions, samples).argsort(descending=True)[:n].sort().values
    return replace(directions, rows=directions.rows[kept])
