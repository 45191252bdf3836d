"""TopK, BatchTopK, its published variant, and Matryoshka BatchTopK.

Axes: C SAEs stepped together, B batch, D d_in, H d_sae, W some of the latents; in choosing the
largest values R rows of an SAE, N values of a row.

Active are the largest pre-activations that are positive: k of each sample (TopK, Gao et al. 2024,
arXiv:2406.04093) or k · B of the batch (BatchTopK, Bussmann et al. 2024, arXiv:2412.06410). With
`rescale_acts_by_decoder_norm` the decoder's norms decide which they are and cancel in all else, so
that they have no gradient. (A decoder row of exactly 0, at which sae_lens divides 0 by 0, only
makes its latent inactive here.)

`use_sparse_activations` says how sae_lens computes, not what, and makes no difference here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_but_wrong.training.architectures.base import (
    Architecture,
    Compiled,
    Forward,
    Inputs,
    Parameters,
    above,
    decoder_norm,
    mse,
    product,
    residual,
)
from sparse_but_wrong.training.controls import own_transition

_Reconstruction = tuple[dict[str, Float[Tensor, " C"]], list[tuple[slice, Float[Tensor, "C B D"]]]]


class TopK(Architecture):
    """k and the coefficients of the auxiliary loss may differ between the SAEs."""

    sae_classes = ("sae_lens:TopKTrainingSAE",)
    sparsity = "k"
    policy = 1

    @classmethod
    def why_impossible(cls, sae: Any, values: Sequence[float], batch_size: int) -> str | None:
        """A k that the SAE cannot keep, or of which it is not clear what it is."""
        k = sae.cfg.k
        if cls is TopK and not isinstance(k, Integral):
            return f"has cfg.k {k!r}, but TopK keeps a whole number per sample; give an int"
        for k in values:
            if not 1 <= k * batch_size < sae.cfg.d_sae * batch_size + 1:
                return (
                    f"is to keep k = {k:g} of {sae.cfg.d_sae} latents; k must be at most d_sae, "
                    f"and large enough for one active latent in a batch of {batch_size}"
                )
        # Where the config moves k by itself, the activation function keeps the k of some step.
        if sae.activation_fn.k != sae.cfg.k and own_transition(sae.cfg) is None:
            return (
                f"has cfg.k {sae.cfg.k} but an activation_fn that keeps {sae.activation_fn.k}; set "
                "both to the same, or make the SAE anew"
            )
        return None

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        return cfg.rescale_acts_by_decoder_norm, cfg.aux_loss_coefficient == 0

    @classmethod
    def compiled(cls, cfg: Any) -> Compiled:
        options = {
            "policy": cls.policy,
            "rescale": cfg.rescale_acts_by_decoder_norm,
            "aux_coefficient": cfg.aux_loss_coefficient,
            "topk_threshold_lr": getattr(cfg, "topk_threshold_lr", 0.0),
        }
        return Compiled(options, ("mse_loss", "auxiliary_reconstruction_loss"), [cfg.d_sae])

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        super().__init__(cfgs, device)
        self.aux_coefficient = self.per_sae("aux_loss_coefficient").view(-1, 1)
        self.uses_dead_latents = any(cfg.aux_loss_coefficient for cfg in cfgs)

    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
        x = inputs.x
        pre = self.encode(x, p)
        ranked = pre.detach()
        if self.cfg.rescale_acts_by_decoder_norm:
            ranked = ranked * decoder_norm(p).detach()
        # Where fewer are positive than there are places, the places stay empty.
        active = self.choose(ranked, inputs.sparsity).mul_(above(ranked, 0.0))
        acts = pre * active
        losses, errors = self.reconstruct(x, acts, p)
        auxiliary = torch.zeros(len(pre), device=self.device)
        if inputs.dead is not None:
            for part, error in errors:
                candidates = inputs.dead[:, part], pre[:, :, part], ranked[:, :, part]
                W_dec = p["W_dec"][:, part]
                auxiliary = auxiliary + self.auxiliary_loss(*candidates, error.detach(), W_dec)
        losses["auxiliary_reconstruction_loss"] = auxiliary
        return Forward(losses, acts.detach(), self.moved(inputs.buffers, ranked, active))

    def choose(self, ranked: Float[Tensor, "C B H"], k: Float[Tensor, "C 1"]) -> Tensor:
        """1 for the k largest of each sample, else 0.

        At a fractional k, which only a transition has, the first samples keep one more, so that
        the batch keeps int(k · B) in all.
        """
        batch_size = ranked.shape[1]
        whole = k.floor()
        n_with_one_more = (k * batch_size).floor() - whole * batch_size
        sample = torch.arange(batch_size, device=k.device)
        return largest(ranked, (whole + (sample < n_with_one_more)).long())

    def reconstruct(self, x: Tensor, acts: Tensor, p: Parameters) -> _Reconstruction:
        """Losses, and which latents the auxiliary loss holds to which error."""
        error = residual(x, acts, p)
        return {"mse_loss": mse(error)}, [(slice(None), error)]

    def moved(self, buffers: Parameters, ranked: Tensor, active: Tensor) -> Parameters:  # noqa: ARG002
        """The buffers after this step."""
        return {}

    def auxiliary_loss(
        self,
        dead: Bool[Tensor, "C W"],
        pre: Float[Tensor, "C B W"],
        ranked: Float[Tensor, "C B W"],
        error: Float[Tensor, "C B D"],
        W_dec: Float[Tensor, "C W D"],
    ) -> Float[Tensor, " C"]:
        """Dead latents learn to reconstruct the residual (Gao et al. 2024, A.2).

        Those of the `d_in // 2` largest pre-activations of each sample do, as if they were all
        that is active; pre-activations may be negative.
        """
        if may_look(dead) and len(dead) == 1:  # on a GPU all go along, masked
            which = dead[0].nonzero().squeeze(1)
            if len(which) == 0:
                return torch.zeros(1)
            dead, W_dec = dead[:, which], W_dec.index_select(1, which)
            pre, ranked = pre.index_select(2, which), ranked.index_select(2, which)
        k_aux = max(self.cfg.d_in // 2, 1)  # at d_in 1 sae_lens divides by 0
        n_dead = dead.sum(1, keepdim=True)
        weight = self.aux_coefficient * (n_dead / k_aux).clamp(max=1.0)
        candidates = ranked.masked_fill(~dead.unsqueeze(1), -torch.inf)
        counts = n_dead.clamp(max=k_aux).expand(-1, pre.shape[1])
        acts = pre * largest(candidates, counts)
        return weight.squeeze(1) * mse(product(error, acts, W_dec))


class BatchTopK(TopK):
    """As TopK; k may be fractional, and the threshold's learning rate may differ.

    Each SAE keeps a running threshold, the mean of the smallest activation of each batch, by which
    the JumpReLU SAE that it is saved as for inference goes, in the units of the choice.
    A batch without active latents leaves it as it is.

    The published variant moves its k as its config says; what `normalize_acts_by_decoder_norm` asks
    for is sae_lens' `rescale_acts_by_decoder_norm`.
    """

    sae_classes = (
        "sae_lens:BatchTopKTrainingSAE",
        "sparse_but_wrong.training.enhanced_batchtopk_sae:EnchancedBatchTopKTrainingSAE",
    )
    buffers = ("topk_threshold",)
    policy = 2

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        super().__init__(cfgs, device)
        rates = [cfg.topk_threshold_lr for cfg in cfgs]
        self.threshold_lr = torch.tensor(rates, dtype=torch.float64, device=device)

    def choose(self, ranked: Float[Tensor, "C B H"], k: Float[Tensor, "C 1"]) -> Tensor:
        """1 for the int(k · B) largest of the batch, else 0; a batch has no more than it has."""
        flat = ranked.flatten(1).unsqueeze(1)
        counts = (k * ranked.shape[1]).long().clamp_(max=flat.shape[2])
        return largest(flat, counts).view_as(ranked)

    def moved(self, buffers: Parameters, ranked: Tensor, active: Tensor) -> Parameters:
        # 1/active − 1 is 0 where a latent is active and infinite where it is not.
        smallest = active.reciprocal().sub_(1).add_(ranked).amin((1, 2)).double()
        threshold = buffers["topk_threshold"]
        mean = (1 - self.threshold_lr) * threshold + self.threshold_lr * smallest
        return {"topk_threshold": torch.where(smallest < torch.inf, mean, threshold)}


class Matryoshka(BatchTopK):
    """Nested levels of latents, each of which reconstructs by itself (arXiv:2503.17547).

    The latents below each width of `matryoshka_widths` make up one level, with a loss of its own.
    With `use_matryoshka_aux_loss` the dead latents that join at a level reconstruct its residual,
    otherwise that of the whole SAE. To the compiled step it is BatchTopK with more than one level.
    """

    sae_classes = ("sae_lens:MatryoshkaBatchTopKTrainingSAE",)

    @classmethod
    def why_impossible(cls, sae: Any, values: Sequence[float], batch_size: int) -> str | None:
        """Widths that are no nested levels, or a k that the SAE cannot keep."""
        widths = sae.cfg.matryoshka_widths
        ends = [0, *widths]
        if any(wide <= narrow for narrow, wide in pairwise(ends)) or ends[-1] != sae.cfg.d_sae:
            return (
                f"has the matryoshka_widths {widths}; they must rise and end at d_sae = "
                f"{sae.cfg.d_sae}"
            )
        return super().why_impossible(sae, values, batch_size)

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        levels = tuple(cfg.matryoshka_widths), cfg.use_matryoshka_aux_loss
        return *BatchTopK.stack_key(cfg), *levels

    @classmethod
    def compiled(cls, cfg: Any) -> Compiled:
        told, widths = super().compiled(cfg), cfg.matryoshka_widths
        inner = [f"inner_mse_loss_{width}" for width in widths[:-1]]
        options = {**told.options, "aux_by_level": cfg.use_matryoshka_aux_loss}
        return Compiled(options, (*inner, *told.losses), widths)

    def reconstruct(self, x: Tensor, acts: Tensor, p: Parameters) -> _Reconstruction:
        ends = self.cfg.matryoshka_widths
        widths = [end - start for start, end in pairwise([0, *ends])]
        error = p["b_dec"].unsqueeze(1) - x
        losses, errors = {}, []
        parts = zip(ends, widths, acts.split(widths, 2), p["W_dec"].split(widths, 1), strict=True)
        for end, width, level_acts, level_W_dec in parts:
            error = product(error, level_acts, level_W_dec)
            name = "mse_loss" if end == ends[-1] else f"inner_mse_loss_{end}"
            losses[name] = mse(error)
            errors.append((slice(end - width, end), error))
        if not self.cfg.use_matryoshka_aux_loss:
            errors = [(slice(None), error)]
        return losses, errors


def may_look(tensor: Tensor) -> bool:
    """Whether values can be read without keeping a device waiting."""
    return tensor.device.type == "cpu"


def largest(values: Float[Tensor, "C R N"], counts: Int[Tensor, "C R"]) -> Float[Tensor, "C R N"]:
    """1 where a value is among the `counts` (0 to N) largest of its row, else 0.

    Of values that tie for the last places the first are kept, so that every row keeps exactly its
    own number. Nothing that one SAE holds reaches another, NaN included; which values a row that
    holds NaN keeps is left open.
    """
    if may_look(values):
        return torch.stack([_by_partition(*row) for row in zip(values, counts, strict=True)])
    # Integers in the order of the floats: their bits, those of negative ones turned over. The sum
    # turns −0 into 0, which it equals.
    bits = (values + 0.0).view(torch.int32)
    keys = torch.where(bits < 0, ~bits ^ -(2**31), bits)
    # The smallest of the largest keys, from the sign down: the largest that enough keys reach.
    last = torch.full_like(counts, -(2**31), dtype=torch.int32)
    for bit in (-(2**31), *(1 << place for place in range(30, -1, -1))):
        candidate = last ^ bit
        n_reaching = (keys >= candidate.unsqueeze(2)).sum(2)
        last = torch.where(n_reaching >= counts, candidate, last)
    last = last.unsqueeze(2)
    return _exactly(counts, above=keys > last, tied=keys == last).to(values.dtype)


def _by_partition(values: Float[Tensor, "R N"], counts: Int[Tensor, " R"]) -> Float[Tensor, "R N"]:
    """By NumPy's partition: ten times as fast as `torch.topk` and `torch.kthvalue` on the CPU.

    Measured on 51,200 values: 0.03 ms against 0.4 and 0.3; on 1024 rows of 50: 0.06 against 0.5.
    """
    n_values = values.shape[1]
    array, wanted = values.numpy(), counts.numpy()
    last = np.full((len(wanted), 1), np.inf, dtype=np.float32)  # where none is kept
    for count in np.unique(wanted):
        rows = wanted == count
        at = n_values - count
        if at == 0:
            last[rows] = -np.inf
        elif count > 0:
            last[rows, 0] = np.partition(array if rows.all() else array[rows], at, axis=1)[:, at]
    threshold = torch.from_numpy(last)
    if np.count_nonzero(array >= last) == wanted.sum():
        return torch.ge(values, threshold, out=torch.empty_like(values))
    return _exactly(counts, above=values > threshold, tied=values == threshold).to(values.dtype)


def _exactly(
    counts: Int[Tensor, "*rows"], above: Bool[Tensor, "*rows N"], tied: Bool[Tensor, "*rows N"]
) -> Bool[Tensor, "*rows N"]:
    """All that lie above and, of those tied for the last places, the first."""
    n_places = (counts - above.sum(-1)).unsqueeze(-1)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= n_places))
