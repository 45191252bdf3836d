"""Draw batches of toy-world feature activations, everything constant computed once.

B batch, F features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Rounding a correlation matrix to float32 moves its entries by 6e-8 and its eigenvalues by a little
# more; anything beyond these is not rounding but a matrix that was never a correlation matrix.
_ENTRY_TOLERANCE = 1e-5
_EIGENVALUE_TOLERANCE = 1e-5


class FeatureSampler:
    """Samples of the activations of F features of which some fire, with correlated firing.

    Feature i fires when g_i > Φ⁻¹(1 − p_i), with g ~ N(0, C) a Gaussian copula; a feature that
    fires has magnitude max(0, m_i + σ_i·ε), ε ~ N(0, 1). C is the correlation of the latent g: the
    correlation of the 0/1 firings is weaker (see `firing_correlation`).

    Thresholds, the factor of C and all checks belong to the construction. Each batch draws
    `randn(B, F)` for the copula and then `randn(B, F)` for the magnitudes, in this order (also
    where σ is 0), so that the same torch seed gives the same batch as the published code. Without
    C the firings are independent and come from one `torch.bernoulli` in place of the first draw.

    Args:
        firing_probabilities: p, shape [F], each in [0, 1]; exactly 0 and 1 are legal.
        std_firing_magnitudes: σ, shape [F] or [] for one value everywhere, none negative; 0
            everywhere if left out.
        mean_firing_magnitudes: m, shape [F] or []; 1 everywhere if left out.
        correlation_matrix: C, shape [F, F], symmetric, positive semi-definite, unit diagonal;
            independent firing if left out.
        device: where batches are drawn. Seeds give different numbers on different kinds of device.

    The sampler keeps copies: changing a tensor afterwards does not change the sampler.

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
        probabilities = firing_probabilities.detach().cpu()
        _check_probabilities(probabilities)
        self.n_features = probabilities.shape[0]
        std = self._magnitude_parameter(std_firing_magnitudes, "std_firing_magnitudes", 0.0)
        mean = self._magnitude_parameter(mean_firing_magnitudes, "mean_firing_magnitudes", 1.0)
        _check_std(std)
        self._probabilities = self._on_device(probabilities)
        self._std = self._on_device(std)
        self._mean = self._on_device(mean)
        self._factor: Tensor | None = None
        self._thresholds: Tensor | None = None
        if correlation_matrix is not None:
            matrix = correlation_matrix.detach().cpu()
            _check_correlation_matrix(matrix, self.n_features)
            # Factorised on the CPU for every device: one world, one factor.
            self._factor = self._on_device(_factorise(matrix))
            self._thresholds = self._on_device(_firing_thresholds(probabilities))

    def sample(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        """A batch of feature activations, float32, on the sampler's device.

        Args:
            batch_size: number of samples B, at least 1.
            generator: on the sampler's device; torch's global generator if left out.
        Returns:
            shape [B, F]; 0 where a feature does not fire, its magnitude (never negative) where it
            does.
        Raises:
            ValueError: `batch_size` below 1, or a generator of another kind of device.
        """
        firings = self.sample_firings(batch_size, generator)
        return self.sample_magnitudes(batch_size, generator).mul_(firings)

    def sample_firings(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        """The first half of a draw: which features fire, as 0.0 and 1.0.

        Args, Raises: as `sample`.
        """
        self._check_draw(batch_size, generator)
        if self._factor is None or self._thresholds is None:
            return torch.bernoulli(
                self._probabilities.unsqueeze(0).expand(batch_size, -1), generator=generator
            )
        noise = self._standard_normal(batch_size, generator)
        # Factor.T stays a view: a transposed copy might be multiplied in another order of sums.
        return (noise @ self._factor.T).gt_(self._thresholds)

    def sample_magnitudes(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        """The second half of a draw: the magnitude each feature has if it fires.

        Args, Raises: as `sample`.
        """
        self._check_draw(batch_size, generator)
        noise = self._standard_normal(batch_size, generator)
        # Two roundings, as published; a fused multiply-add would differ in the last bit.
        return noise.mul_(self._std).add_(self._mean).relu_()

    def _standard_normal(self, batch_size: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(
            batch_size,
            self.n_features,
            generator=generator,
            device=self.device,
            dtype=torch.float32,
        )

    def _check_draw(self, batch_size: int, generator: torch.Generator | None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; ask for at least 1 sample.")
        if generator is not None and generator.device.type != self.device.type:
            raise ValueError(
                f"The generator lives on {generator.device.type!r} but this sampler draws on "
                f"{self.device.type!r}: make it with torch.Generator({str(self.device)!r})."
            )

    def _on_device(self, values: Tensor) -> Tensor:
        # copy=True: the caller may change its tensor later, the sampler must not follow.
        return values.to(self.device, torch.float32, copy=True)

    def _magnitude_parameter(self, values: Tensor | None, name: str, default: float) -> Tensor:
        if values is None:
            return torch.full((self.n_features,), default, dtype=torch.float32)
        values = values.detach().cpu()
        if values.ndim == 0:
            values = values.expand(self.n_features)
        if tuple(values.shape) != (self.n_features,):
            raise ValueError(
                f"{name} has shape {list(values.shape)} but firing_probabilities describe "
                f"{self.n_features} features: give one value per feature, shape "
                f"[{self.n_features}]."
            )
        wrong = ~values.isfinite()
        if wrong.any():
            index = _first(wrong)
            raise ValueError(
                f"{name}[{index}] is {values[index].item()}; every magnitude must be finite."
            )
        return values


def _first(wrong: Tensor) -> int:
    return int(wrong.nonzero()[0, 0])


def _check_probabilities(probabilities: Tensor) -> None:
    if probabilities.ndim != 1 or probabilities.shape[0] == 0:
        raise ValueError(
            f"firing_probabilities has shape {list(probabilities.shape)}: give one probability per "
            "feature, shape [n_features], for at least one feature."
        )
    # Negated, so that NaN counts as wrong.
    wrong = ~((probabilities >= 0) & (probabilities <= 1))
    if wrong.any():
        index = _first(wrong)
        raise ValueError(
            f"firing_probabilities[{index}] is {probabilities[index].item():g}; every probability "
            "must lie in [0, 1]."
        )


def _check_std(std: Tensor) -> None:
    wrong = std < 0
    if wrong.any():
        index = _first(wrong)
        raise ValueError(
            f"std_firing_magnitudes[{index}] is {std[index].item():g}; a standard deviation cannot "
            "be negative."
        )


def _check_correlation_matrix(matrix: Tensor, n_features: int) -> None:
    if tuple(matrix.shape) != (n_features, n_features):
        raise ValueError(
            f"correlation_matrix has shape {list(matrix.shape)} but firing_probabilities describe "
            f"{n_features} features: it must have shape [{n_features}, {n_features}]."
        )
    wrong = ~matrix.isfinite()
    if wrong.any():
        i, j = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"correlation_matrix[{i}, {j}] is {matrix[i, j].item()}; every correlation must be a "
            "finite number in [-1, 1]."
        )
    wrong = (matrix.diagonal() - 1).abs() > _ENTRY_TOLERANCE
    if wrong.any():
        i = _first(wrong)
        raise ValueError(
            f"correlation_matrix[{i}, {i}] is {matrix[i, i].item():g}; the diagonal of a "
            "correlation matrix is 1 (for a covariance matrix, divide row and column i by the "
            "standard deviation of i)."
        )
    wrong = (matrix - matrix.T).abs() > _ENTRY_TOLERANCE
    if wrong.any():
        i, j = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"correlation_matrix is not symmetric: [{i}, {j}] is {matrix[i, j].item():g} but "
            f"[{j}, {i}] is {matrix[j, i].item():g}. Make both the same."
        )


def _factorise(matrix: Tensor) -> Tensor:
    """A lower triangular L with L·Lᵀ = C, for a C that may be singular or a rounding beyond it.

    The float32 Cholesky factor wherever there is one, because published batches depend on its
    bits. It may fail for a nearly singular matrix on one machine and not on another; the factors
    taken instead are the same one up to rounding, so that batches hardly differ.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix.float())
    if not failed:
        return factor
    matrix = matrix.double()
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return factor
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    smallest = float(eigenvalues[0])
    if smallest < -_EIGENVALUE_TOLERANCE:
        raise ValueError(
            "correlation_matrix is not positive semi-definite: its smallest eigenvalue is "
            f"{smallest:.4g}, so no set of features has these correlations. "
            "create_correlation_matrix repairs such a matrix and says what it changed."
        )
    root = eigenvectors * eigenvalues.clamp(min=0).sqrt()
    # root·rootᵀ = C for any rotation of root's columns; R of rootᵀ = Q·R is the triangular one.
    upper = torch.linalg.qr(root.T, mode="r").R
    return torch.where(upper.diagonal() < 0, -1.0, 1.0) * upper.T


def _firing_thresholds(probabilities: Tensor) -> Tensor:
    from scipy.special import ndtri

    # 1 − p in double precision, then one rounding to float32: the bits of the published code.
    return torch.from_numpy(ndtri(1 - probabilities.double().numpy()))
