"""SAEs of different L0, evaluated on the same activations: what a recommendation looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.l0.agreement import between_partners
from sparse_but_wrong.l0.dictionaries import Directions, decoder_directions, fewer
from sparse_but_wrong.l0.presence import SMALLEST_NOISE_COST, Presence, cost_on_noise, count_present
from sparse_but_wrong.l0.refine import HOPELESS, POOR, refine_directions
from sparse_but_wrong.l0.source import draw_batch, draw_samples
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.samples import check_activations

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens


@dataclass(frozen=True, eq=False)
class Count:
    """What was counted along the directions learned from one SAE's decoder."""

    sae_id: str
    """The SAE whose decoder was the start."""

    group: str
    """Of that SAE; starts of one group are not independent of each other."""

    directions: Directions
    presence: Presence
    noise_cost: float
    """What the same directions cost on samples without features (`cost_on_noise`), in units of
    what they cost here (`Presence.cost`): about 1 where there are no features here either."""

    @property
    def is_noise(self) -> bool:
        """Whether nothing tells the activations from such noise."""
        return self.noise_cost < SMALLEST_NOISE_COST


@dataclass(frozen=True, eq=False)
class EvaluatedSweep:
    """SAEs of one width, evaluated on the same activations."""

    table: pd.DataFrame
    """A row per SAE: `sae_id`, `group`, `l0`, `coefficient` (NaN where a k sets the L0, and for
    SAEs that are for inference only), `dead_latents`, `c_dec`, `pw_mcc` and `shared_latents` (with
    the SAE of another group whose L0 is nearest; NaN without one), and `target_l0` and `steps` if
    known."""

    projections: pd.DataFrame
    """s_n^dec: a row per SAE as in `table`, a column per n."""

    counts: tuple[Count, ...]
    """From the best starts, best first."""

    n_samples: int
    """On which directions were counted."""

    on_noise: pd.DataFrame | None = None
    """A table of SAEs like these, but trained and evaluated on Gaussian noise of the same mean and
    covariance (`featureless`), where some were."""

    @property
    def d_sae(self) -> int:
        """Latents of each SAE."""
        return self.projections.shape[1]

    def wide(self) -> pd.DataFrame:
        """The table with s_n^dec as columns `s_0` … `s_{d_sae − 1}`, as it is written to a file."""
        return self.table.join(self.projections.add_prefix("s_"))

    def joined(self, other: EvaluatedSweep) -> EvaluatedSweep:
        """With the SAEs of another."""
        import pandas as pd

        table, projections = (
            pd.concat([getattr(self, name), getattr(other, name)], ignore_index=True)
            for name in ("table", "projections")
        )
        return replace(self, table=table, projections=projections)


EVALUATION_SAMPLES = 24_576
"""On which directions are counted."""

CURVE_SAMPLES = 8192
"""On which the curves are measured; counts take all samples."""

_SORTED_UP_TO = 4096
"""Latents up to which projections are sorted; of wider SAEs they are counted."""


def evaluate_sweep(
    saes: Sequence[sae_lens.SAE[Any]],
    source: Iterator[Tensor],
    ids: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    evaluation_samples: int = EVALUATION_SAMPLES,
    learning_batches: int = 200,
) -> EvaluatedSweep:
    """Evaluate SAEs that were trained elsewhere, for `recommend_l0`.

    Args:
        saes: sae_lens SAEs of different L0, of one d_in and d_sae; for training or inference. They
            are left as they are.
        source: yields activations of shape [batch, d_in], those that the SAEs were trained on.
            They are measured, and directions learned from them, on the device of the first SAE.
        ids: a name for each; their places if left out.
        groups: of each, for example its seed: SAEs of different groups are taken to be independent
            of each other. All are, if left out.
        seed: of what is drawn while directions are learned.
        evaluation_samples: drawn first, to measure and count on.
        learning_batches: drawn next, to learn directions from.
    Raises:
        ValueError: no SAEs, SAEs of different shapes, lists of other lengths, activations of
            another width, not finite or all the same, or a source that ends.
        TypeError: a source that is no iterator of tensors.
    """
    if not saes:
        raise ValueError("there are no SAEs: give those of a sweep, at least one.")
    shapes = {tuple(sae.W_dec.shape) for sae in saes}
    if len(shapes) > 1:
        raise ValueError(
            f"the SAEs differ in (d_sae, d_in): {', '.join(map(str, sorted(shapes)))}; an L0 "
            "belongs to one width."
        )
    names = [str(i) for i in range(len(saes))] if ids is None else list(ids)
    own = names if groups is None else list(groups)
    for what, given in (("ids", names), ("groups", own)):
        if len(given) != len(saes):
            raise ValueError(f"there are {len(saes)} SAEs but {len(given)} {what}; give one each.")
    d_in, device = saes[0].W_dec.shape[1], saes[0].W_dec.device
    held_out = draw_samples(source, evaluation_samples, device)
    check_activations(held_out, d_in)
    batches = [draw_batch(source, d_in, device) for _ in range(learning_batches)]
    sweep = evaluate_saes(saes, held_out[:CURVE_SAMPLES], names, own)
    counts = count_from(saes, names, own, batches, held_out, seed=seed)
    return replace(sweep, counts=counts, n_samples=len(held_out))


def evaluate_saes(
    saes: Sequence[sae_lens.SAE[Any]],
    activations: Float[Tensor, "samples d_in"],
    ids: Sequence[str],
    groups: Sequence[str],
) -> EvaluatedSweep:
    """The curves of a sweep, without a count; arguments as of `evaluate_sweep`.

    Raises:
        ValueError: as `evaluate`.
    """
    import pandas as pd

    found = evaluate(saes, activations, exact_below=_SORTED_UP_TO * len(activations))
    table = pd.DataFrame({"sae_id": list(ids), "group": list(groups)})
    table["l0"] = [one.l0 for one in found]
    table["coefficient"] = [_coefficient(sae) for sae in saes]
    table["dead_latents"] = [one.dead_latents for one in found]
    table["c_dec"] = [one.c_dec for one in found]
    agreed = between_partners(saes, found, groups)
    table[["pw_mcc", "shared_latents"]] = [(matched.value, shared) for matched, shared in agreed]
    return EvaluatedSweep(table, found.projections.reset_index(drop=True), (), len(activations))


def _coefficient(sae: sae_lens.SAE[Any]) -> float:
    """What sets the L0 of an SAE that is set by no k, as it was trained; NaN for all others."""
    for name in ("l0_coefficient", "l1_coefficient"):
        value = getattr(sae.cfg, name, None)
        if value is not None:
            return float(getattr(value, "value", value))
    return math.nan


@torch.no_grad()
def count_from(
    saes: Sequence[sae_lens.SAE[Any]],
    ids: Sequence[str],
    groups: Sequence[str],
    batches: Sequence[Float[Tensor, "_batch d_in"]],
    held_out: Float[Tensor, "samples d_in"],
    seed: int,
    progress: bool = False,
) -> tuple[Count, ...]:
    """Learn directions from the most promising decoders, and count them.

    Promising is a decoder whose directions express the activations at a low cost as they are
    (`Presence.cost`); the SAEs' encoders and their L0 play no part. The best of each group come
    first. Once two starts of different groups agree, or two end in vain, the others are left out.

    Args:
        saes: the SAEs.
        ids: a name for each.
        groups: of each.
        batches: to learn from.
        held_out: to choose by and to count on; not among the batches. Its first samples do for
            some of it: let those be like the others.
        seed: of what is drawn.
        progress: show bars with the time that is left.
    """
    ranked = []
    for sae, sae_id, group in zip(saes, ids, groups, strict=True):
        directions = decoder_directions(sae, held_out)
        if len(directions.rows) > 1 and bool(directions.bias.isfinite().all()):
            samples = held_out[: fewer(_RANKED_BY, len(directions.rows))]
            cost = count_present(directions, samples).cost
            ranked.append((cost, sae_id, group, directions))
    ranked.sort(key=lambda entry: entry[0])
    is_wide = any(len(entry[-1].rows) > _WIDE for entry in ranked)
    n_starts = _STARTS_IF_WIDE if is_wide else _STARTS
    counts: list[Count] = []
    for _, sae_id, group, start in _by_turns(ranked)[:n_starts]:
        width = len(start.rows)
        refined, presence = refine_directions(
            start,
            batches,
            held_out,
            seed=seed,
            n_extra=most_directions(width) - width,
            progress=progress,
        )
        noise_cost = cost_on_noise(refined, held_out[:_CONTROL_SAMPLES], seed) / presence.cost
        counts.append(count := Count(sae_id, group, refined, presence, noise_cost))
        # On noise, and where nothing parts, every start is as long as it is in vain.
        is_vain = count.is_noise or presence.score > HOPELESS
        if is_vain or _agree(counts) or sum(one.presence.score > POOR for one in counts) > 1:
            break
    return tuple(sorted(counts, key=lambda count: count.presence.score))


_STARTS, _WIDE, _STARTS_IF_WIDE = 4, 256, 2
"""Poor minima, which other starts avoid, were seen in small worlds only. Of 1,024 latents four
starts ended alike."""

_RANKED_BY = 4096
_CONTROL_SAMPLES = 8192
_EXTRA_SHARE = 2
_AGREED = 0.005
_CLEAR = 0.02


def most_directions(d_sae: int) -> int:
    """How many directions are learned from a decoder at most: there may be more than latents."""
    return d_sae + max(4, d_sae // _EXTRA_SHARE)


def _by_turns(
    ranked: list[tuple[float, str, str, Directions]],
) -> list[tuple[float, str, str, Directions]]:
    """The best of each group, then the second best of each, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for entry in ranked:
        turns.append((seen.get(entry[2], 0), entry))
        seen[entry[2]] = seen.get(entry[2], 0) + 1
    return [entry for _, entry in sorted(turns, key=lambda turn: (turn[0], turn[1][0]))]


def _agree(counts: Sequence[Count]) -> bool:
    """Whether two starts of different groups found the same, and clearly."""
    clear = [count for count in counts if count.presence.score < _CLEAR]
    return any(
        a.group != b.group and abs(a.presence.l0 / b.presence.l0 - 1) < _AGREED
        for i, a in enumerate(clear)
        for b in clear[:i]
    )
