"""How the features of a toy world fire: batches of their activations. B batch, F features."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.tensors import DEFAULT_DEVICE

# Rounding a correlation matrix to float32 moves its entries by 6e-8 and its eigenvalues by a little
# more; anything beyond this is not rounding but a matrix that was never a correlation matrix.
_TOLERANCE = 1e-5

_Content = tuple[torch.dtype, torch.Size, bytes]
"""What a tensor holds, as a value that can be hashed."""


@runtime_checkable
class Sampler(Protocol):
    """Draws the activations of a world's features, on a device."""

    device: torch.device

    def sample(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]: ...


class FeatureSampler:
    """Samples of the activations of F features of which some fire, with correlated firing.

    Feature i fires when g_i > Φ⁻¹(1 − p_i), with g ~ N(0, C) a Gaussian copula; a feature that
    fires has magnitude max(0, m_i + σ_i·ε), ε ~ N(0, 1). C is the correlation of the latent g: the
    correlation of the 0/1 firings is weaker (see `firing_correlation`).

    Each batch draws `randn(B, F)` for the copula and then `randn(B, F)` for the magnitudes, in this
    order (also where σ is 0), so that the same torch seed gives the same batch as the published
    code. Without C the firings are independent and come from one `torch.bernoulli` in place of the
    first draw. Seeds give different numbers on different kinds of device. Tensors are copied.

    Args:
        firing_probabilities: p, shape [F], each in [0, 1]; exactly 0 and 1 are legal.
        std_firing_magnitudes: σ, shape [F] or [] for one value everywhere; 0 if left out.
        mean_firing_magnitudes: m, shape [F] or []; 1 if left out.
        correlation_matrix: C, shape [F, F], symmetric, positive semi-definite, unit diagonal;
            independent firing if left out.
        device: where batches are drawn.
    Raises:
        ValueError: a probability outside [0, 1], a negative standard deviation, a value that is not
            finite, shapes that disagree, or a matrix that is not a correlation matrix. The message
            names the first offending entry.
    """

    def __init__(
        self,
        firing_probabilities: Float[Tensor, " n_features"],
        std_firing_magnitudes: Float[Tensor, " n_features"] | Float[Tensor, ""] | None = None,
        mean_firing_magnitudes: Float[Tensor, " n_features"] | Float[Tensor, ""] | None = None,
        correlation_matrix: Float[Tensor, "n_features n_features"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        p = firing_probabilities.detach().cpu()
        if p.ndim != 1 or len(p) == 0:
            raise ValueError(
                f"firing_probabilities has shape {list(p.shape)}: give one probability per feature."
            )
        # Negated, so that NaN counts as wrong.
        _refuse(~((p >= 0) & (p <= 1)), p, "firing_probabilities", "a probability lies in [0, 1]")
        self.n_features = len(p)
        self._probabilities = self._kept(p)
        self._std = self._magnitudes("std_firing_magnitudes", std_firing_magnitudes, 0.0)
        self._mean = self._magnitudes("mean_firing_magnitudes", mean_firing_magnitudes, 1.0)
        self._factor: Tensor | None = None
        if correlation_matrix is not None:
            from scipy.special import ndtri

            matrix = correlation_matrix.detach().cpu()
            self._check_shape("correlation_matrix", matrix, [self.n_features, self.n_features])
            # Factorised on the CPU for every device: one world, one factor.
            self._factor = self._kept(_factorise(matrix))
            # 1 − p in double precision, then one rounding to float32, as in the published code.
            self._thresholds = self._kept(torch.from_numpy(ndtri(1 - p.double().numpy())))

    def sample(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        """Feature activations, float32, shape [B, F]: 0 where a feature does not fire.

        Args:
            batch_size: B.
            generator: on the sampler's device; torch's global generator if left out.
        Raises:
            ValueError: `batch_size` below 1, or a generator of another kind of device.
        """
        firings = self.sample_firings(batch_size, generator)
        return self.sample_magnitudes(batch_size, generator).mul_(firings)

    def sample_firings(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        """The first half of a draw: which features fire, as 0.0 and 1.0; see `sample`."""
        if self._factor is None:
            self._check_draw(batch_size, generator)
            probabilities = self._probabilities.unsqueeze(0).expand(batch_size, -1)
            return torch.bernoulli(probabilities, generator=generator)
        noise = self._standard_normal(batch_size, generator)
        # Factor.T stays a view: a transposed copy might be multiplied in another order of sums.
        return (noise @ self._factor.T).gt_(self._thresholds)

    def sample_magnitudes(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        """The second half of a draw: the magnitude each feature has if it fires; see `sample`."""
        noise = self._standard_normal(batch_size, generator)
        # Two roundings, as published; a fused multiply-add would differ in the last bit.
        return noise.mul_(self._std).add_(self._mean).relu_()

    def _standard_normal(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        self._check_draw(batch_size, generator)
        shape = batch_size, self.n_features
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32)

    def _check_draw(self, batch_size: int, generator: torch.Generator | None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; ask for at least 1 sample.")
        if generator is not None and generator.device.type != self.device.type:
            raise ValueError(
                f"The generator lives on {generator.device.type!r} but this sampler draws on "
                f"{self.device.type!r}; make it with torch.Generator({str(self.device)!r})."
            )

    def _kept(self, values: Tensor) -> Tensor:
        # copy=True: the caller may change its tensor later, the sampler must not follow.
        return values.to(self.device, torch.float32, copy=True)

    def _check_shape(self, name: str, values: Tensor, shape: list[int]) -> None:
        if list(values.shape) != shape:
            raise ValueError(
                f"{name} has shape {list(values.shape)}, but {self.n_features} features need "
                f"{shape}."
            )
        _refuse(~values.isfinite(), values, name, "it must be finite")

    def _magnitudes(self, name: str, values: Tensor | None, default: float) -> Tensor:
        values = torch.tensor(default) if values is None else values.detach().cpu()
        if values.ndim == 0:
            values = values.expand(self.n_features)
        self._check_shape(name, values, [self.n_features])
        if name.startswith("std"):
            _refuse(values < 0, values, name, "a standard deviation cannot be negative")
        return self._kept(values)


def _refuse(wrong: Tensor, values: Tensor, name: str, why: str) -> None:
    """Name the first entry that is wrong."""
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name}{at} is {values[tuple(at)].item():g}; {why}.")


def _factorise(matrix: Tensor) -> Tensor:
    """A lower triangular L with L·Lᵀ = C, for a C that may be singular or a rounding beyond it.

    The float32 Cholesky factor wherever there is one, because published batches depend on its
    bits. It may fail for a nearly singular matrix on one machine and not on another; the factors
    taken instead are the same one up to rounding, so that batches hardly differ.
    """
    name = "correlation_matrix"
    off_one = torch.diag((matrix.diagonal() - 1).abs() > _TOLERANCE)
    why = "the diagonal must be 1 (divide a covariance matrix by the standard deviations)"
    _refuse(off_one, matrix, name, why)
    asymmetric = (matrix - matrix.T).abs() > _TOLERANCE
    _refuse(asymmetric, matrix, name, "the opposite entry differs, so the matrix is not symmetric")
    for of_dtype in (matrix.float(), matrix.double()):
        factor, failed = torch.linalg.cholesky_ex(of_dtype)
        if not failed:
            return factor
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix.double())
    smallest = float(eigenvalues[0])
    if smallest < -_TOLERANCE:
        raise ValueError(
            f"{name} is not positive semi-definite: its smallest eigenvalue is {smallest:.4g}. "
            "create_correlation_matrix repairs such a matrix."
        )
    root = eigenvectors * eigenvalues.clamp(min=0).sqrt()
    # root·rootᵀ = C for any rotation of root's columns; R of rootᵀ = Q·R is the triangular one.
    upper = torch.linalg.qr(root.T, mode="r").R
    return torch.where(upper.diagonal() < 0, -1.0, 1.0) * upper.T


def get_correlated_features(
    batch_size: int,
    firing_probabilities: Float[Tensor, " n_features"],
    correlation_matrix: Float[Tensor, "n_features n_features"],
    device: torch.device | str = DEFAULT_DEVICE,
) -> Float[Tensor, "batch n_features"]:
    """Which features fire, as 0.0 and 1.0, shape [B, F], drawn from torch's global generator.

    Args, Raises: as `FeatureSampler`, with batch_size B, at least 1.
    """
    sampler = _remembered_sampler(device, firing_probabilities, None, None, correlation_matrix)
    return sampler.sample_firings(batch_size)


def get_training_batch(
    batch_size: int,
    firing_probabilities: Float[Tensor, " n_features"],
    std_firing_magnitudes: Float[Tensor, " n_features"] | Float[Tensor, ""] | None = None,
    mean_firing_magnitudes: Float[Tensor, " n_features"] | Float[Tensor, ""] | None = None,
    device: torch.device | str = DEFAULT_DEVICE,
    modify_firing_features: Callable[[Tensor], Tensor] | None = None,
    correlation_matrix: Float[Tensor, "n_features n_features"] | None = None,
) -> Float[Tensor, "batch n_features"]:
    """A batch of feature activations [B, F], drawn from torch's global generator.

    What is constant in a world is computed on the first call and remembered for the last few
    worlds, by the content of the tensors: a tensor changed in place is a new world. Comparing
    contents copies tensors that live on a GPU to the host on every call; keep them on the CPU, or
    make a `FeatureSampler` once, which also takes an explicit generator.

    Args: as `FeatureSampler`, and
        batch_size: number of samples B, at least 1.
        modify_firing_features: a function of the 0/1 firings [B, F], applied before they are
            multiplied by magnitudes; it returns firings of the same shape.
    Raises:
        ValueError: as `FeatureSampler`, or `modify_firing_features` returned another shape.
    """
    sampler = _remembered_sampler(
        device,
        firing_probabilities,
        std_firing_magnitudes,
        mean_firing_magnitudes,
        correlation_matrix,
    )
    drawn = sampler.sample_firings(batch_size)
    firings = drawn if modify_firing_features is None else modify_firing_features(drawn)
    if firings.shape != drawn.shape:
        raise ValueError(
            f"modify_firing_features returned shape {list(firings.shape)} for firings of shape "
            f"{list(drawn.shape)}; it must return one value per sample and feature."
        )
    return sampler.sample_magnitudes(batch_size).mul_(firings)


def _remembered_sampler(device: torch.device | str, *tensors: Tensor | None) -> FeatureSampler:
    contents: list[_Content | None] = []
    for tensor in tensors:
        if tensor is None:
            contents.append(None)
        else:
            flat = tensor.detach().cpu().reshape(-1).view(torch.uint8)
            contents.append((tensor.dtype, tensor.shape, flat.numpy().tobytes()))
    return _sampler_of_content(str(device), *contents)


# The key is the content itself, so neither a tensor changed in place nor a hash collision can bring
# back a wrong sampler. A sampler never changes once made, so threads may share it.
@lru_cache(maxsize=8)
def _sampler_of_content(device: str, *contents: _Content | None) -> FeatureSampler:
    tensors: list[Any] = [None] * len(contents)
    for at, content in enumerate(contents):
        if content is not None:
            dtype, shape, data = content
            tensors[at] = torch.empty(shape, dtype=dtype)
            tensors[at].view(-1).view(torch.uint8).numpy()[:] = memoryview(data)
    return FeatureSampler(*tensors, device=device)
