"""Dictionaries: the directions that activations are made of, learned from an SAE's decoder.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from sparse_but_wrong.l0.codes import sparse_codes

if TYPE_CHECKING:
    import sae_lens

_PENALTY = 0.008
"""Of the spread of the activations: a hundredth to a fiftieth of the magnitude of a feature where 2
to 20 are active."""

_WIDE = 256
"""Directions up to which all of the samples are used that choices are made on; with more, fewer."""

_BIAS_SAMPLES = 2048
_BIAS_ROUNDS = 8
"""Each reduces the error along a direction to the share of samples that have it; the rest is
learned with the directions."""

_MEMORY = 0.95
"""How much of what earlier batches said is kept from one to the next."""

_BLOCK = 32
"""Rows that are moved between two products with all of them."""

_UNUSED = 1e-3
"""Share of samples below which a direction counts as unused."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions whose non-negative multiples, with a bias, add up to activations."""

    rows: Float[Tensor, "A D"]
    bias: Float[Tensor, " D"]
    penalty: float
    """Of the codes, in the units of the activations."""

    def codes(self, samples: Float[Tensor, "B D"]) -> Float[Tensor, "B A"]:
        """The `sparse_codes` of samples."""
        return sparse_codes(samples - self.bias, self.rows, self.penalty)


@torch.no_grad()
def decoder_directions(sae: sae_lens.SAE[Any], activations: Float[Tensor, "B D"]) -> Directions:
    """Where an SAE's decoder points, with the bias that fits. Rows of length 0 are left out.

    The SAE's own bias is not used: one that started at 0 may still be far from where the
    activations are, if they have a large mean.
    """
    rows = sae.W_dec.detach().float().to(activations.device)
    rows = normalize(rows[rows.isfinite().all(1) & (rows.norm(dim=1) > 0)], dim=1)
    penalty = _PENALTY * activations.var(dim=0, correction=0).sum().sqrt().item()
    return Directions(rows, _cheapest_bias(rows, activations, penalty), penalty)


def _cheapest_bias(
    rows: Float[Tensor, "A D"], activations: Float[Tensor, "B D"], penalty: float
) -> Float[Tensor, " D"]:
    """The bias with which the lasso over some directions costs least.

    It follows a vector that is added to all samples. Its cost is convex in codes and bias together;
    each is solved for in turn, from the mean. That is above the bias sought, along directions that
    are present at times, and is left at once; from below the penalty alone would drive it.
    """
    samples = activations[: fewer(_BIAS_SAMPLES, len(rows))]
    bias, codes = activations.mean(0), None
    for _ in range(_BIAS_ROUNDS if len(rows) else 0):
        centred = samples - bias
        codes = sparse_codes(centred, rows, penalty, codes)
        bias = bias + (centred - codes @ rows).mean(0)
    return bias


def fewer(n: int, n_directions: int) -> int:
    """Of n samples or batches those that are worth their time, which grows with the directions."""
    return max(n // 8, n * _WIDE // max(_WIDE, n_directions))


class Learner:
    """Online dictionary learning with non-negative codes, with what the last batches said.

    Source: Mairal et al. 2009, "Online dictionary learning for sparse coding".
    """

    def __init__(
        self,
        start: Directions,
        generator: torch.Generator,
        on_batch: Callable[[], object] = lambda: None,
    ) -> None:
        self.rows = start.rows.clone()
        self.bias = start.bias.clone()
        self.penalty = start.penalty
        self.generator, self.on_batch = generator, on_batch
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
            self.on_batch()

    def _step(self, batch: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        centred = batch - self.bias
        codes = sparse_codes(centred, self.rows, penalty)
        residual = centred - codes @ self.rows
        shift = 0.5 * residual.mean(0)
        self.bias += shift
        centred -= shift
        self._codes_codes.mul_(_MEMORY).addmm_(codes.T, codes)
        self._codes_samples.mul_(_MEMORY).addmm_(codes.T, centred)
        self._move_rows()
        return codes, residual

    def _move_rows(self) -> None:
        """Each row in turn to its best place beside the others, and back to unit length."""
        use = self._codes_codes.diagonal()
        is_used = (use > 1e-6 * use.max()).tolist()
        for first in range(0, len(self.rows), _BLOCK):
            # What earlier blocks have changed comes in with one product, what this one changes
            # row by row.
            block = slice(first, first + _BLOCK)
            codes_codes = self._codes_codes[block]
            pulls = self._codes_samples[block] - codes_codes @ self.rows
            for i, j in enumerate(range(first, first + len(pulls))):
                if not is_used[j]:
                    continue
                moved = self.rows[j] + pulls[i] / use[j]
                moved /= moved.norm()
                pulls.addr_(codes_codes[:, j], moved - self.rows[j], alpha=-1)
                self.rows[j] = moved

    def _renew(self, codes: Tensor, residual: Tensor) -> None:
        unused = ((codes > 0).float().mean(0) < _UNUSED).nonzero().flatten()
        if len(unused):
            self.rows[unused] = draw_residuals(residual, len(unused), self.generator)
            self._codes_codes[unused] = 0.0
            self._codes_codes[:, unused] = 0.0
            self._codes_samples[unused] = 0.0

    def keep(self, kept: Tensor) -> None:
        """Drop all other directions."""
        self.rows = self.rows[kept].clone()
        self._codes_codes = self._codes_codes[kept][:, kept].clone()
        self._codes_samples = self._codes_samples[kept].clone()


def draw_residuals(
    residual: Tensor, count: int, generator: torch.Generator
) -> Float[Tensor, "count D"]:
    """Directions of some residuals, drawn by their energy, on the CPU for every device."""
    chances = residual.square().sum(1).double().cpu() + 1e-12
    drawn = torch.multinomial(
        chances, count, replacement=count > len(residual), generator=generator
    )
    return normalize(residual[drawn], dim=1)
