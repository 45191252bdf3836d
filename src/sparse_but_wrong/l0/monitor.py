"""Measure an SAE while sae_lens trains it, and say when its L0 goes astray.

What sae_lens offers for this is the `evaluator` of its `SAETrainer`, which its runners have as an
attribute. The trainer calls it every ``wandb_log_frequency * eval_every_n_wandb_logs`` steps, but
only with ``log_to_wandb=True``, and logs what it returns; no account is needed where the
environment variable WANDB_MODE is ``offline`` or ``disabled``.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.l0.agreement import firing_rows, shared_latents
from sparse_but_wrong.l0.curves import useful_n
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.training.architectures.penalty import JumpReLU
from sparse_but_wrong.training.groups import architecture_of
from sparse_but_wrong.training.saturation import OUTWEIGHED, reconstruction_share

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

logger = logging.getLogger(__name__)

PATIENCE = 3
"""Measurements in a row before a coefficient is called saturated: while L0 comes down at first, the
sparsity loss outweighs reconstruction in runs that end well, too."""

_BATCH = 1024
"""Samples from which gradients are taken."""


class L0Monitor:
    """An `evaluator` for sae_lens' trainers that measures L0, s_n^dec, c_dec and agreement.

    Each time the SAE is measured as `evaluate` would once its training had ended there: normalised
    activations are folded in, a BatchTopK SAE is the thresholded one. The training is not touched,
    nor is the state of its random generators. It takes a copy and an export of the SAE.

    A line on the logger `sparse_but_wrong` says when L0 has left the interval, and when the
    coefficient of a JumpReLU SAE is saturated: on the thresholds, reconstruction's gradient has
    been less than a quarter of that of sparsity, at the final coefficient, three times in a row.

    Args:
        activations: to measure on, [samples, d_in], in their original units; not trained on.
        interval: where L0 should be, for example `L0Recommendation.interval`.
        partner: decoder rows [latents, d_in] of an SAE of another seed, for the agreement.
        also: another evaluator, called first, whose metrics are returned as well; the one that
            sae_lens' runner has, for example.
    """

    def __init__(
        self,
        activations: Float[Tensor, "samples d_in"],
        interval: tuple[float, float] | None = None,
        partner: Float[Tensor, "latents d_in"] | None = None,
        also: sae_lens_compat.Evaluator[Any] | None = None,
    ) -> None:
        self.activations, self.interval = activations, interval
        self.partner, self.also = partner, also
        self.measurements: list[dict[str, float]] = []
        """What was measured, in order: `l0`, `s_…` for several n, `c_dec`, `dead_latents`;
        `agreement`, the share of its active latents that the partner has too; and for JumpReLU SAEs
        `reconstruction_share`, that of the gradients."""
        self._saturated = 0

    def __call__(
        self,
        sae: sae_lens.TrainingSAE[Any],
        data_provider: Any,
        activation_scaler: sae_lens_compat.ActivationScaler,
    ) -> dict[str, Any]:
        """Measure; called by sae_lens' trainer. The names of the metrics begin with ``sbw/``."""
        others = self.also(sae, data_provider, activation_scaler) if self.also else {}
        device = sae.W_dec.device
        # Exports are made by way of SAEs with random weights.
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with forked, torch.no_grad():
            finished = copy.deepcopy(sae)
            sae_lens_compat.fold(activation_scaler, finished)
            found = evaluate(finished, self.activations)
        top = 0.0 if self.interval is None else self.interval[1]
        metrics = {"l0": found.l0, "c_dec": found.c_dec, "dead_latents": float(found.dead_latents)}
        metrics |= {f"s_{n}": float(found.projections[n]) for n in useful_n(top, found.d_sae)}
        if self.partner is not None:
            active = firing_rows(finished, found)
            n_shared = shared_latents(active, self.partner.detach().to(active))
            metrics["agreement"] = n_shared / max(1, len(active))
        if architecture_of(sae)[0] is JumpReLU:
            coefficient, _ = sae_lens_compat.sparsity(sae, JumpReLU.sparsity)
            leaves = {name: getattr(sae, name).detach()[None] for name in JumpReLU.parameters}
            x = activation_scaler.scale(self.activations[:_BATCH].to(sae.W_dec))
            share, _ = reconstruction_share(sae.cfg, leaves, x, coefficient)
            metrics["reconstruction_share"] = share
        self.measurements.append(metrics)
        self._say()
        return others | {f"sbw/{name}": value for name, value in metrics.items()}

    def to_frame(self) -> pd.DataFrame:
        """A row per measurement."""
        import pandas as pd

        return pd.DataFrame(self.measurements)

    def _say(self) -> None:
        """What has changed for the worse with the last measurement."""
        *earlier, now = self.measurements
        if self.interval is not None and earlier:
            side = _side(now["l0"], *self.interval)
            if side and side != _side(earlier[-1]["l0"], *self.interval):
                logger.warning(
                    "L0 has left the interval %.4g to %.4g: it is %.4g. %s.",
                    *(*self.interval, now["l0"]),
                    "Raise the coefficient or lower k"
                    if side > 0
                    else "Lower the coefficient or raise k",
                )
        share = now.get("reconstruction_share", math.inf)
        self._saturated = self._saturated + 1 if share < OUTWEIGHED else 0
        if self._saturated == PATIENCE:
            logger.warning(
                "The coefficient is saturated: %d times in a row, reconstruction's gradient on the "
                "thresholds was less than %g times that of sparsity (now %.2g). A larger one would "
                "not lower L0 (%.4g) any faster. Lower it, or train with a TargetL0.",
                *(PATIENCE, OUTWEIGHED, share, now["l0"]),
            )


def _side(l0: float, low: float, high: float) -> int:
    """−1 below the interval, 1 above it, 0 within or where L0 is not known."""
    return int(l0 > high) - int(l0 < low)
