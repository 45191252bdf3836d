"""Unit vectors with a chosen cosine similarity between every two."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.threads import one_thread_per_operation

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
# Rows of the n × n cosine matrix held at once: 1024 × 8000 float32 is 32 MB.
_CHUNK = 1024
# Multiply-adds of one matrix product below which a second thread costs more than it brings.
_SMALL_PRODUCT = 10_000_000


@torch.no_grad()
def orthogonalize(
    num_vectors: int,
    vector_len: int,
    target_cos_sim: float | int = 0,
    num_steps: int = 1000,
    lr: float = 0.01,
    generator: torch.Generator | None = None,
    renormalize: bool = False,
) -> Float[Tensor, "num_vectors vector_len"]:
    """Unit vectors whose pairwise cosine similarities are as near to a target as descent gets.

    Random unit vectors, moved by Adam down Σ_{i≠j} (v_i·v_j − target)² + n·Σ_i (|v_i|² − 1)² and
    normalised at the end. More vectors than dimensions cannot all be orthogonal: what remains is
    superposition noise, at best a root mean square cosine of √((n − d)/(d·(n − 1))). Few steps
    leave more: after 4, 50 vectors in 100 dimensions have a mean |cos| of 0.049, from 0.080.

    Args:
        num_vectors: n.
        vector_len: d.
        target_cos_sim: in [-1, 1]; n vectors cannot all be nearer −1 than −1/(n − 1).
        num_steps: of Adam; 0 gives the random vectors.
        lr: Adam's step.
        generator: for the random start, on the CPU; torch's global one if left out.
        renormalize: descend on the cosines themselves, without the second sum, and bring every
            vector back to unit length after each step. Then fewer steps do (0.030 in the case
            above), and with no more vectors than dimensions the default target is met to rounding
            at the end. The worlds of experiments and specs are made so.
    Returns:
        shape [n, d], float32, unit rows, on the CPU, needing no gradient.
    Raises:
        ValueError: an argument outside its range.
    Source: the penalty on lengths is that of `sae_lens.synthetic`, which leaves the noise that the
        published code leaves; Adam as in Kingma & Ba 2015, arXiv:1412.6980; the lower limit is
        Welch 1974.
    """
    _check(num_vectors, vector_len, target_cos_sim, num_steps, lr)
    vectors = _unit_rows_(
        torch.randn(num_vectors, vector_len, generator=generator, dtype=torch.float32)
    )
    first_moment = torch.zeros_like(vectors)
    second_moment = torch.zeros_like(vectors)
    gradient = torch.empty_like(vectors)
    denominator = torch.empty_like(vectors)
    is_small = num_vectors * num_vectors * vector_len <= _SMALL_PRODUCT
    with one_thread_per_operation() if is_small else nullcontext():
        for step in range(1, num_steps + 1):
            _gradient_(gradient, vectors, target_cos_sim, of_cosines=renormalize)
            first_moment.lerp_(gradient, 1 - _BETA1)
            second_moment.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
            torch.sqrt(second_moment, out=denominator)
            denominator.div_((1 - _BETA2**step) ** 0.5).add_(_EPS)
            vectors.addcdiv_(first_moment, denominator, value=-lr / (1 - _BETA1**step))
            if renormalize:
                _unit_rows_(vectors)
    # Once more would move the last bit of vectors that are of unit length already.
    return vectors if renormalize else _unit_rows_(vectors)


def _gradient_(gradient: Tensor, vectors: Tensor, target: float | int, *, of_cosines: bool) -> None:
    """Write the gradient of the loss by the vectors into `gradient`.

    Args:
        of_cosines: of Σ_{i≠j} (v_i·v_j/|v_i||v_j| − target)², at unit vectors; else of
            Σ_{i≠j} (v_i·v_j − target)² + n·Σ_i (|v_i|² − 1)².
    """
    for start in range(0, vectors.shape[0], _CHUNK):
        rows = vectors[start : start + _CHUNK]
        error = rows @ vectors.T
        # What a vector has in common with itself lies, in this chunk, on a shifted diagonal.
        with_itself = error.diagonal(offset=start)
        of_length = len(vectors) * (with_itself - 1)
        error.sub_(target)
        if of_cosines:
            with_itself.zero_()
        else:
            with_itself.copy_(of_length)
        torch.mm(error, vectors, out=gradient[start : start + _CHUNK])
    gradient.mul_(4)
    if of_cosines:
        # A cosine does not change with length: drop the part of the gradient along the vector.
        along = (gradient * vectors).sum(dim=1, keepdim=True)
        gradient.addcmul_(along, vectors, value=-1)


def _unit_rows_(vectors: Tensor) -> Tensor:
    return vectors.div_(vectors.norm(dim=1, keepdim=True))


def _check(
    num_vectors: int, vector_len: int, target_cos_sim: float | int, num_steps: int, lr: float
) -> None:
    for name, count, least in (
        ("num_vectors", num_vectors, 1),
        ("vector_len", vector_len, 1),
        ("num_steps", num_steps, 0),
    ):
        if count < least:
            raise ValueError(f"{name} is {count}; it must be at least {least}.")
    if not -1 <= target_cos_sim <= 1:
        raise ValueError(f"target_cos_sim is {target_cos_sim}; a cosine lies in [-1, 1].")
    if not lr > 0:
        raise ValueError(f"lr is {lr}; it must be positive.")
