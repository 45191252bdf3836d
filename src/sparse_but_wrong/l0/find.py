"""From a stream of activations to the L0 that its SAEs should have."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_but_wrong.l0.agreement import SMALLEST_SHARE
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.options import (
    SCALED,
    FindOptions as FindOptions,
    has_k,
    training_config,
)
from sparse_but_wrong.l0.presence import featureless
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.refine import HOPELESS, most_worth
from sparse_but_wrong.l0.source import Activations, draw_batch, draw_samples, open_source
from sparse_but_wrong.l0.sweep import (
    CURVE_SAMPLES,
    Count,
    EvaluatedSweep,
    count_from,
    evaluate_saes,
)
from sparse_but_wrong.threads import threads_per_operation
from sparse_but_wrong.training.batches import next_batch
from sparse_but_wrong.training.controls import TargetL0
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.untrusted import usable_device

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

_SLOWNESS = 2
"""A coefficient takes time to bring an SAE to its L0; a k does not."""

_CLEAR = 0.03
"""`Presence.score` below which there is nothing more to look for."""

_WIDER = 1.5
"""Power of the fine factors around the highest agreement, which a coarse sweep only suggests."""

_NEAR = 0.05
"""Share of the L0 by which a count may move without a new sweep around it."""

_WORTH_SAMPLES = 2048


def find_l0(
    activations: Activations,
    d_sae: int | None = None,
    options: FindOptions | None = None,
    *,
    column: str | None = None,
) -> L0Recommendation:
    """The L0 that SAEs on these activations should have, with an interval and the evidence.

    A coarse sweep of SAEs is trained in one stack. From the decoders of the most promising ones the
    directions are learned that the activations are made of, and counted (`refine_directions`,
    `count_present`). A finer sweep around the count shows whether the curves of s_n^dec and c_dec
    bear it out; they decide only where the count is not clear (`recommend_l0`). This uses neither
    ground truth nor the SAEs' reconstruction error, only the variance that the learned directions
    leave unexplained.

    The mean of the activations is subtracted first, so that nothing depends on a vector that is
    added to all of them; the SAE that is returned, and the directions, are for the activations as
    they are.

    Args:
        activations: the path or Hub name of stored activations, stored activations, a tensor
            [samples, d_in], a toy world, or batches [batch, d_in] (an iterator). Up to a quarter
            of stored ones is held out to measure on. An iterator is read for about coarse_steps +
            2 × fine_steps batches, twice that where L0 is set by a coefficient or the first count
            is not clear. What it yields first is measured on: if it comes round again, let it begin
            with `options.evaluation_samples` that do not, or the interval is too narrow. The
            learning rate is scheduled for batches of the first one's size.
        d_sae: latents of the SAEs; of a toy world as many as it has features, if left out.
        options: how much work goes into it.
        column: of a dataset, the one that holds the activations.
    Returns:
        The recommendation. Its `sae` is trained from the learned directions, and its L0 (`sae_l0`)
        lies in the interval; it is None where nothing is recommended, and, with a reason, where no
        SAE came there (the k of a TopK SAE is a whole number).
    Raises:
        ValueError: a d_sae below 2 or none, activations that are not finite, of several shapes or
            all the same, an iterator that ends, a device that is not there, or as `train_saes`.
        TypeError: something else than such activations.
        OSError: stored activations that cannot be read.
    """
    options = options or FindOptions()
    device = usable_device(options.device)
    source, n_samples, n_features = open_source(
        activations, column, options.evaluation_samples, options.seed
    )
    width = d_sae if d_sae is not None else n_features
    if width is None:
        raise ValueError("These activations do not say how many latents to use; give d_sae.")
    if width < 2:
        raise ValueError(
            f"d_sae must be at least 2, got {width}: there is no L0 to choose below it."
        )
    with threads_per_operation(options.threads), quiet_training():
        return _find(
            source, width, replace(options, evaluation_samples=n_samples, device=str(device))
        )


@contextmanager
def quiet_training() -> Iterator[None]:
    """Keep training from reporting on single SAEs: each is evaluated anyway."""
    training = logging.getLogger("sparse_but_wrong.training")
    level = training.level
    training.setLevel(logging.ERROR)
    try:
        yield
    finally:
        training.setLevel(level)


def _find(source: Iterator[Tensor], d_sae: int, options: FindOptions) -> L0Recommendation:
    first = draw_batch(source)
    drawn = draw_samples(chain([first], source), options.evaluation_samples, options.device)
    mean = drawn.mean(0)
    search = _Search(_centred(source, mean), drawn - mean, len(first), d_sae, options)
    return _moved(_found(search), mean)


def _centred(source: Iterator[Tensor], mean: Tensor) -> Iterator[Tensor]:
    # Whether they are finite is asked by those who read them; asked here too, a GPU would be waited
    # for at every batch.
    while True:
        yield next_batch(source, len(mean), mean.device) - mean


def _found(search: _Search) -> L0Recommendation:
    coarse = search.coarse()
    batches = search.batches()
    counts = search.count(coarse, batches)
    if counts and counts[0].presence.score < HOPELESS:
        found = _around_count(search, coarse, counts, batches)
    else:
        found = recommend_l0(search.sweep([coarse], counts))
    if found.l0 is not None and found.basis == "count":
        return found
    return _around_agreement(search, coarse, found)


def _around_count(
    search: _Search, coarse: _Trained, counts: tuple[Count, ...], batches: Sequence[Tensor]
) -> L0Recommendation:
    used = counts[0]
    fine, started = search.around(used)
    trained = [coarse, fine]
    if used.presence.score > _CLEAR:
        # The coarse sweep may have had no SAE near enough; the fine one has some now.
        more = search.count(fine, batches)
        counts = tuple(sorted([*counts, *more], key=lambda count: count.presence.score))
        if abs(counts[0].presence.l0 / search.reachable(used) - 1) > _NEAR:
            used = counts[0]
            fine, started = search.around(used, "again_")
            trained.append(fine)
    found = recommend_l0(search.sweep([*trained, started], counts))
    if found.basis == "agreement":
        return found
    # SAEs of other directions than those that are recommended from are not given.
    return search.with_sae(found, started if used is counts[0] else None)


def _around_agreement(
    search: _Search, coarse: _Trained, found: L0Recommendation
) -> L0Recommendation:
    """Sweeps around the L0 at which SAEs are most alike, until it lies inside of one; there some
    are trained on noise, to see what is shared where there is nothing to find."""
    parts, peak = [coarse], found.agreement
    for prefix in ("shared", "shared_again"):
        if peak is None or peak.share < SMALLEST_SHARE:
            break
        low, high = peak.interval
        # Where they are most alike at an end of the sweep, they may be more so beyond it.
        centre = {"lower": low, "higher": high}.get(peak.at_end, peak.l0)
        # PW-MCC counts dead latents too, of which a short run at a low L0 has many. They may be
        # alike: they started again along samples that SAEs of any seed reconstruct badly.
        if prefix == "shared" and not low <= peak.most_shared_at <= high:
            centre = peak.most_shared_at
        targets = [centre * f**_WIDER for f in search.options.fine_factors]
        parts.append(search.fine(prefix, targets))
        sweep = search.sweep(parts, found.sweep.counts)
        found = recommend_l0(sweep)
        peak = found.agreement
        if peak is not None and not peak.at_end:
            found = recommend_l0(replace(sweep, on_noise=search.on_noise(peak.l0)))
            # The coarse one last: it may have been trained for less.
            found_in = [*parts[1:], coarse] if found.l0 is not None else []
            with_sae = [_nearest(found, part) for part in found_in]
            return next((one for one in with_sae if one is not None), found)
    return found


@torch.no_grad()
def _moved(found: L0Recommendation, by: Tensor) -> L0Recommendation:
    """What was found on centred activations, for the activations as they are."""
    counts = tuple(
        replace(count, directions=replace(count.directions, bias=count.directions.bias + by))
        for count in found.sweep.counts
    )
    if found.sae is not None:
        identity = torch.eye(len(by), dtype=by.dtype, device=by.device)
        # Of the affine maps that sae_lens can fold into an SAE, the one that moves only.
        found.sae.fold_activation_whitening(by, identity, identity)
    return replace(found, sweep=replace(found.sweep, counts=counts))


@dataclass(frozen=True, eq=False)
class _Trained:
    saes: list[sae_lens.TrainingSAE[Any]]
    ids: list[str]
    targets: list[float]
    """The target L0 of each."""
    evaluated: EvaluatedSweep


class _Search:
    """The sweeps of one search, on one stream."""

    def __init__(
        self,
        source: Iterator[Tensor],
        held_out: Tensor,
        batch_size: int,
        d_sae: int,
        options: FindOptions,
    ) -> None:
        self.source, self.held_out, self.batch_size = source, held_out, batch_size
        self.d_in, self.d_sae, self.options = held_out.shape[1], d_sae, options
        self._has_k = has_k(options.architecture)
        self._fine_steps = options.fine_steps * (1 if self._has_k else _SLOWNESS)

    def coarse(self) -> _Trained:
        n = self.options.n_coarse
        low, high = 1.5, 0.45 * self.d_sae
        targets = [low * (high / low) ** (i / max(1, n - 1)) for i in range(n)]
        return self._from_scratch("coarse", _distinct(targets), self.options.coarse_steps)

    def batches(self) -> list[Tensor]:
        """Those to learn directions from."""
        n, device = self.options.learning_batches, self.options.device
        return [draw_batch(self.source, device=device) for _ in range(n)]

    def count(self, trained: _Trained, batches: Sequence[Tensor]) -> tuple[Count, ...]:
        return count_from(
            trained.saes,
            trained.ids,
            trained.evaluated.table["group"].tolist(),
            batches,
            self.held_out,
            seed=self.options.seed,
            progress=self.options.progress,
        )

    def around(self, count: Count, prefix: str = "") -> tuple[_Trained, _Trained]:
        """Fine sweeps around a count: from random initial weights, and from its directions.

        The prefix tells their ids from those of others.
        """
        l0 = self.reachable(count)
        targets = [l0 * f for f in self.options.fine_factors]
        fine = self.fine(f"{prefix}fine", targets)
        return fine, self._from_directions(
            f"{prefix}directions", fine.targets[: len(targets)], count.directions
        )

    def fine(self, stage: str, targets: Sequence[float]) -> _Trained:
        reachable = _distinct([min(target, 0.98 * self.d_sae) for target in targets])
        return self._from_scratch(stage, reachable, self._fine_steps)

    def on_noise(self, l0: float) -> pd.DataFrame:
        """The table of SAEs of an L0, trained on Gaussian noise of the same mean and covariance."""
        source = featureless(self.held_out, self.batch_size, self.options.seed)
        n = min(len(self.held_out), CURVE_SAMPLES)
        held_out = draw_samples(source, n, self.options.device)
        noise = _Search(source, held_out, self.batch_size, self.d_sae, self.options)
        return noise.fine("noise", [l0]).evaluated.table

    def reachable(self, count: Count) -> float:
        """Its L0, or the highest that SAEs of this width are trained for."""
        return min(count.presence.l0, 0.9 * self.d_sae)

    def sweep(self, trained: Sequence[_Trained], counts: tuple[Count, ...]) -> EvaluatedSweep:
        sweep = reduce(EvaluatedSweep.joined, [part.evaluated for part in trained])
        return replace(sweep, counts=counts)

    def with_sae(self, found: L0Recommendation, started: _Trained | None) -> L0Recommendation:
        """A recommendation with an SAE whose measured L0 lies in its interval.

        Args:
            found: a recommendation, or that nothing is recommended.
            started: SAEs of its sweep that may be given, if there are any.
        """
        if found.l0 is None:
            return found
        if started is not None and (with_sae := _nearest(found, started)) is not None:
            return with_sae
        count = found.sweep.counts[0]
        again = self._from_directions("last_directions", [self.reachable(count)], count.directions)
        judged = recommend_l0(found.sweep.joined(again.evaluated))
        if judged.l0 is None:
            return judged
        if (with_sae := _nearest(judged, again)) is not None:
            return with_sae
        missed = (
            f"No SAE is given: the one that was trained for it has an L0 of "
            f"{judged.sweep.table['l0'].iloc[-1]:.2f}, outside the interval."
        )
        return replace(judged, reasons=(*judged.reasons, missed))

    def _evaluated(
        self,
        saes: list[sae_lens.TrainingSAE[Any]],
        ids: list[str],
        groups: list[str],
        targets: list[float],
        steps: int,
    ) -> _Trained:
        sweep = evaluate_saes(saes, self.held_out[:CURVE_SAMPLES], ids, groups)
        sweep.table["steps"] = steps
        if not self._has_k:
            # A target that SAEs do not reach is evidence: L0 may stick.
            sweep.table["target_l0"] = targets
        return _Trained(saes, ids, targets, replace(sweep, n_samples=len(self.held_out)))

    def _from_scratch(self, stage: str, targets: list[float], steps: int) -> _Trained:
        pairs = [(seed, target) for seed in range(self.options.n_seeds) for target in targets]
        every = [target for _, target in pairs]
        saes = self._make(every, [seed for seed, _ in pairs])
        self._fit(saes, every, steps, reinit=self.options.reinit_dead_every)
        ids = [f"{stage}_{target:.2f}_seed_{seed}" for seed, target in pairs]
        return self._evaluated(saes, ids, [f"seed_{seed}" for seed, _ in pairs], every, steps)

    def _from_directions(
        self, stage: str, targets: list[float], directions: Directions
    ) -> _Trained:
        saes = self._make(targets, [0] * len(targets))
        # There may be a few more than latents.
        directions = most_worth(directions, self.held_out[:_WORTH_SAMPLES], self.d_sae)
        for sae in saes:
            _start_at(sae, directions, self._scale())
        self._fit(saes, targets, self._fine_steps, reinit=None)
        ids = [f"{stage}_{target:.2f}" for target in targets]
        groups = ["directions"] * len(saes)
        return self._evaluated(saes, ids, groups, targets, self._fine_steps)

    def _scale(self) -> float:
        """From the units of the activations to those that SAEs train on."""
        if self.options.sae_config.get("normalize_activations", SCALED) == "none":
            return 1.0
        return math.sqrt(self.d_in) / self._norm()

    def _norm(self) -> float:
        return self.held_out.norm(dim=1).mean().item()

    def _make(
        self, targets: Sequence[float], seeds: Sequence[int]
    ) -> list[sae_lens.TrainingSAE[Any]]:
        architecture, own = self.options.architecture, self.options.sae_config
        spread = self._scale() * self._norm() / math.sqrt(self.d_in)
        cfgs = [
            training_config(architecture, target, self.d_in, self.d_sae, spread, **own)
            for target in targets
        ]
        first = self.options.seed * 1_000_003
        own_seeds = [(first + s) * 1_000 + i for i, s in enumerate(seeds)]
        return make_saes(cfgs, own_seeds, device=self.options.device)

    def _fit(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        targets: Sequence[float],
        steps: int,
        reinit: int | None,
    ) -> None:
        options = self.options
        train_saes(
            saes,
            self.source,
            TrainOptions(
                total_training_samples=steps * self.batch_size,
                train_batch_size_samples=self.batch_size,
                lr=options.lr,
                lr_decay_steps=steps // 5,
                reinit_dead_every=reinit,
                n_batches_for_norm_estimate=min(50, steps),
                autocast=options.autocast,
                threads=options.threads,
                progress=options.progress,
            ),
            controls=[None if self._has_k else TargetL0(target) for target in targets],
        )


def _distinct(targets: list[float]) -> list[float]:
    """Without those that have the name of an earlier one."""
    named: dict[str, float] = {}
    for target in targets:
        named.setdefault(f"{target:.2f}", target)
    return list(named.values())


def _nearest(found: L0Recommendation, started: _Trained) -> L0Recommendation | None:
    """A recommendation with the one of some SAEs whose L0 is nearest; None if none is in it."""
    assert found.l0 is not None
    assert found.interval is not None
    wanted, (low, high) = found.l0, found.interval
    l0s = found.sweep.table.set_index("sae_id")["l0"].loc[started.ids].to_numpy(float).tolist()
    inside = [place for place, l0 in enumerate(l0s) if low <= l0 <= high]
    if not inside:
        return None
    # Where L0 sticks many are as near; of those, the one that had it as its target.
    best = min(
        inside,
        key=lambda place: (
            round(abs(l0s[place] / wanted - 1), 2),
            abs(started.targets[place] - wanted),
        ),
    )
    return replace(found, sae=started.saes[best], sae_l0=l0s[best])


@torch.no_grad()
def _start_at(sae: sae_lens.TrainingSAE[Any], directions: Directions, scale: float) -> None:
    """Let an SAE start with one latent per direction; what latents it has beside stay silent.

    Args:
        sae: changed in place.
        directions: at most as many as latents, in the units of the activations.
        scale: from those to the units that it trains on.
    """
    rows = directions.rows
    n = len(rows)
    sae.W_dec[:n] = rows
    sae.W_enc.zero_()
    sae.W_enc[:, :n] = rows.T
    sae.b_dec.copy_(directions.bias * scale)
    b_enc = getattr(sae, "b_enc", None)
    if isinstance(b_enc, Tensor) and not sae.cfg.apply_b_dec_to_input:
        b_enc.copy_(-(sae.b_dec @ sae.W_enc))
