"""Online dictionary learning with non-negative codes.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.l0.codes import sparse_codes
from sparse_but_wrong.l0.directions import LEARNING_ITERATIONS, Directions

_MEMORY = 0.95
"""How much of what earlier batches said is kept from one to the next."""

_UNUSED = 1e-3
"""Share of samples below which a direction counts as unused."""


class Learner:
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
        codes = sparse_codes(centred, self.rows, penalty, LEARNING_ITERATIONS)
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
            self.rows[unused] = draw_residuals(residual, len(unused), self.generator)
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


def draw_residuals(
    residual: Tensor, count: int, generator: torch.Generator
) -> Float[Tensor, "count D"]:
    chances = residual.square().sum(1).double() + 1e-12
    drawn = torch.multinomial(
        chances, count, replacement=count > len(residual), generator=generator
    )
    return torch.nn.functional.normalize(residual[drawn], dim=1)
