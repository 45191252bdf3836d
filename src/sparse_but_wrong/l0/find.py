"""From a stream of activations to the L0 that its SAEs should have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_but_wrong.l0.directions import Directions
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.stream import draw_batch, draw_samples
from sparse_but_wrong.l0.sweep import MEASURED_SAMPLES, Count, Sweep, count_from, measure_saes
from sparse_but_wrong.training.controls import Control, TargetL0
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions

if TYPE_CHECKING:
    import sae_lens

_JUMPRELU = {
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 0.1,
    "jumprelu_sparsity_loss_mode": "tanh",
}
"""Those of the published toy models; `TargetL0` was measured with them."""


ARCHITECTURES = ("batchtopk", "gated", "jumprelu", "matryoshka_batchtopk", "standard", "topk")
"""Those whose L0 can be set: they have a k, or a coefficient that a `TargetL0` can move."""

_SLOWNESS = 2
"""A coefficient takes time to bring an SAE to its L0; a k does not."""


@dataclass(frozen=True)
class FindOptions:
    """How much work goes into a recommendation.

    Raises:
        ValueError: a value that cannot be worked with; the message names the field.
    """

    architecture: str = "batchtopk"
    """Of the SAEs, as registered with sae_lens; one of `ARCHITECTURES`."""

    sae_config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sae_lens training config besides d_in, d_sae and what sets the L0. Matryoshka
    SAEs have widths of a quarter, half and all of d_sae unless it says otherwise."""

    seed: int = 0
    """Of initial weights; the stream is the caller's."""

    batch_size: int = 1024
    """Samples per batch that the source gives."""

    coarse_steps: int = 2000
    """Of the SAEs that look for the region."""

    n_coarse: int = 8
    """L0s of the coarse sweep, in equal ratios from 1.5 to 0.45 d_sae."""

    fine_steps: int = 3000
    """Of the SAEs around it."""

    fine_factors: tuple[float, ...] = (0.6, 0.75, 0.87, 1.0, 1.15, 1.33, 1.6)
    """L0s of the fine sweep, in units of what was counted; 1 must be among them."""

    n_seeds: int = 2
    """SAEs with initial weights of their own at every L0."""

    lr: float = 1e-3
    """Learning rate; the last fifth of each run decays to 0."""

    reinit_dead_every: int = 200
    """As in `TrainOptions`."""

    evaluation_samples: int = 24_576
    """Drawn first, to measure and count on."""

    learning_batches: int = 200
    """Batches from which directions are learned."""

    threads: int | None = None
    """As in `TrainOptions`."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"FindOptions.architecture: the L0 of {self.architecture!r} SAEs cannot be set; "
                f"use one of {', '.join(ARCHITECTURES)}."
            )
        for name in (
            "batch_size",
            "coarse_steps",
            "n_coarse",
            "fine_steps",
            "n_seeds",
            "evaluation_samples",
            "learning_batches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"FindOptions.{name} must be at least 1, got {getattr(self, name)}."
                )
        if 1.0 not in self.fine_factors or min(self.fine_factors) <= 0:
            raise ValueError(
                "FindOptions.fine_factors must be positive, with 1.0 among them, got "
                f"{self.fine_factors}."
            )


def find_l0(
    source: Iterator[Tensor], d_sae: int, options: FindOptions | None = None
) -> L0Recommendation:
    """The L0 that SAEs on these activations should have, with an interval and the evidence.

    A coarse sweep of SAEs is trained in one stack. From the decoders of the most promising ones the
    directions are learned that the activations are made of, and counted (`refine_directions`,
    `measure_presence`). A finer sweep around the count then shows whether the curves of s_n^dec and
    c_dec bear it out (`recommend_l0`). No ground truth is used; how well SAEs reconstruct does
    not enter.

    Args:
        source: yields activations of shape [batch, d_in]; read for about 2 × (coarse_steps +
            fine_steps) batches.
        d_sae: latents of the SAEs.
        options: how much work goes into it.
    Returns:
        The recommendation. Its `sae` is trained at the recommended L0 from the learned directions;
        None where nothing is recommended.
    Raises:
        ValueError: a d_sae below 2, activations that are not finite, of several shapes or all the
            same, a source that ends, or as `train_saes`.
        TypeError: a source that is no iterator of tensors.
    """
    if d_sae < 2:
        raise ValueError(
            f"d_sae must be at least 2, got {d_sae}: there is no L0 to choose below it."
        )
    options = options or FindOptions()
    held_out = draw_samples(source, options.evaluation_samples)
    search = _Search(source, held_out, d_sae, options)
    coarse = search.coarse()
    batches = [draw_batch(source) for _ in range(options.learning_batches)]
    counts = count_from(
        coarse.saes, coarse.ids, coarse.groups, batches, held_out, seed=options.seed
    )
    if not counts:
        return recommend_l0(search.sweep([coarse], ()))
    around = search.around(counts[0])
    if counts[0].presence.score > _CLEAR:
        # The coarse sweep may have had no SAE near enough; the fine one has some now.
        fine = around.fine
        more = count_from(fine.saes, fine.ids, fine.groups, batches, held_out, seed=options.seed)
        counts = tuple(sorted([*counts, *more], key=lambda count: count.presence.score))
        if abs(counts[0].presence.l0 / around.l0 - 1) > _NEAR:
            around = search.around(counts[0])
    recommendation = recommend_l0(search.sweep([coarse, around.fine, around.started], counts))
    if recommendation.l0 is None:
        return recommendation
    return replace(recommendation, sae=around.started.saes[options.fine_factors.index(1.0)])


_CLEAR = 0.03
"""`Presence.score` below which there is nothing more to look for."""

_NEAR = 0.05
"""Share of the L0 by which a count may move without a new sweep around it."""


@dataclass(frozen=True, eq=False)
class _Trained:
    saes: list[sae_lens.TrainingSAE[Any]]
    ids: list[str]
    groups: list[str]


@dataclass(frozen=True, eq=False)
class _Around:
    l0: float
    fine: _Trained
    """With initial weights of their own."""

    started: _Trained
    """That started from the learned directions."""


class _Search:
    """The sweeps of one search, on one stream."""

    def __init__(
        self, source: Iterator[Tensor], held_out: Tensor, d_sae: int, options: FindOptions
    ) -> None:
        from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

        self.source, self.held_out = source, held_out
        self.d_in, self.d_sae = held_out.shape[1], d_sae
        self.options = options
        self._config_class: type[Any] = SAE_TRAINING_CLASS_REGISTRY[options.architecture][1]
        has_k = any(f.name == "k" for f in fields(self._config_class))
        self._slowness = 1 if has_k else _SLOWNESS

    def coarse(self) -> _Trained:
        n = self.options.n_coarse
        low, high = 1.5, 0.45 * self.d_sae
        targets = [low * (high / low) ** (i / max(1, n - 1)) for i in range(n)]
        return self._train("coarse", targets, self.options.coarse_steps)

    def around(self, count: Count) -> _Around:
        l0 = min(count.presence.l0, 0.9 * self.d_sae)
        steps = self.options.fine_steps * self._slowness
        fine = self._train("fine", self._targets(l0), steps)
        return _Around(l0, fine, self._from_directions(l0, count.directions, steps))

    def _from_directions(self, l0: float, directions: Directions, steps: int) -> _Trained:
        targets = self._targets(l0)
        saes = self._make(targets, [0] * len(targets))
        mean_norm = self.held_out.norm(dim=1).mean().item()
        for sae in saes:
            _start_at(sae, directions, math.sqrt(self.d_in) / mean_norm)
        self._fit(saes, targets, steps, reinit=None)
        ids = [f"directions_{target:.2f}" for target in targets]
        return _Trained(saes, ids, ["directions"] * len(saes))

    def sweep(self, trained: Sequence[_Trained], counts: tuple[Count, ...]) -> Sweep:
        ids = [name for part in trained for name in part.ids]
        groups = [name for part in trained for name in part.groups]
        saes = [sae for part in trained for sae in part.saes]
        table = measure_saes(saes, self.held_out[:MEASURED_SAMPLES], ids, groups)
        return Sweep(table, counts, self.d_sae, len(self.held_out))

    def _targets(self, l0: float) -> list[float]:
        return [min(l0 * factor, 0.98 * self.d_sae) for factor in self.options.fine_factors]

    def _train(self, stage: str, targets: Sequence[float], steps: int) -> _Trained:
        seeds = range(self.options.n_seeds)
        everywhere = [(seed, target) for seed in seeds for target in targets]
        saes = self._make([t for _, t in everywhere], [s for s, _ in everywhere])
        self._fit(saes, [t for _, t in everywhere], steps, reinit=self.options.reinit_dead_every)
        return _Trained(
            saes,
            [f"{stage}_{target:.2f}_seed_{seed}" for seed, target in everywhere],
            [f"seed_{seed}" for seed, _ in everywhere],
        )

    def _make(
        self, targets: Sequence[float], seeds: Sequence[int]
    ) -> list[sae_lens.TrainingSAE[Any]]:
        named = {f.name for f in fields(self._config_class)}
        shared = {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "normalize_activations": "expected_average_only_in",
            **self._defaults(),
            **self.options.sae_config,
        }
        cfgs = [
            self._config_class(**shared, **({"k": self._k(target)} if "k" in named else {}))
            for target in targets
        ]
        own = [(self.options.seed * 1_000_003 + seed) * 1_000 + i for i, seed in enumerate(seeds)]
        return make_saes(cfgs, seeds=own)

    def _defaults(self) -> dict[str, Any]:
        if self.options.architecture == "jumprelu":
            return dict(_JUMPRELU)
        if self.options.architecture == "matryoshka_batchtopk":
            return {"matryoshka_widths": sorted({-(-self.d_sae // part) for part in (4, 2, 1)})}
        return {}

    def _k(self, target: float) -> float | int:
        return max(1, round(target)) if self.options.architecture == "topk" else target

    def _fit(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        targets: Sequence[float],
        steps: int,
        reinit: int | None,
    ) -> None:
        options = self.options
        controls: list[Control | None] = [
            None if hasattr(sae.cfg, "k") else TargetL0(target)
            for sae, target in zip(saes, targets, strict=True)
        ]
        train_saes(
            saes,
            self.source,
            TrainOptions(
                total_training_samples=steps * options.batch_size,
                train_batch_size_samples=options.batch_size,
                lr=options.lr,
                lr_decay_steps=steps // 5,
                reinit_dead_every=reinit,
                n_batches_for_norm_estimate=min(50, steps),
                threads=options.threads,
                progress=options.progress,
            ),
            controls=controls,
        )


@torch.no_grad()
def _start_at(sae: sae_lens.TrainingSAE[Any], directions: Directions, scale: float) -> None:
    """Let an SAE start with one latent per direction; what latents it has beside stay silent.

    Args:
        sae: changed in place.
        directions: in the units of the activations.
        scale: from those to the units that it trains on.
    """
    device = sae.W_dec.device
    rows = directions.rows[: sae.W_dec.shape[0]].to(device)
    n = len(rows)
    sae.W_dec[:n] = rows
    sae.W_enc.zero_()
    sae.W_enc[:, :n] = rows.T
    sae.b_dec.copy_(directions.bias.to(device) * scale)
    if not sae.cfg.apply_b_dec_to_input and isinstance(
        b_enc := getattr(sae, "b_enc", None), Tensor
    ):
        b_enc.copy_(-(sae.b_dec @ sae.W_enc))
