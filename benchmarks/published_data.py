"""Features drawn at the cost of the published implementation: nothing is kept between batches.

Used only to time the notebook's way of training; the features follow the same law, in the same
order of draws, as `sparse_but_wrong.worlds.features`.
"""

from __future__ import annotations

import torch
from scipy.stats import norm
from torch import Tensor
from torch.distributions import MultivariateNormal


def draw_features_afresh(
    batch_size: int,
    firing_probabilities: Tensor,
    std_firing_magnitudes: Tensor,
    correlation_matrix: Tensor,
) -> Tensor:
    """Features [batch, F], with the distribution and every threshold built anew on each call.

    Drawn on the device of the arguments, which is one for all three.
    """
    n_features = len(firing_probabilities)
    device = firing_probabilities.device
    copula = MultivariateNormal(
        torch.zeros(n_features, device=device), covariance_matrix=correlation_matrix
    )
    gaussian = copula.sample((batch_size,))
    fires = torch.zeros(batch_size, n_features, device=device)
    for i in range(n_features):
        threshold = float(norm.ppf(1 - firing_probabilities[i].item()))
        fires[:, i] = (gaussian[:, i] > threshold).float()
    noise = torch.randn(batch_size, n_features, device=device) * std_firing_magnitudes
    return fires * (1.0 + noise).relu()
