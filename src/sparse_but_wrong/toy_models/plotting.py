"""The published import path of the notebooks' plots."""

from sparse_but_wrong.figures.published import (
    SEABORN_RC_CONTEXT,
    find_best_index_reordering_for_saes,
    plot_correlation_matrix,
    plot_sae_feat_cos_sims,
    plot_sae_feat_cos_sims_seaborn,
)

__all__ = [
    "SEABORN_RC_CONTEXT",
    "find_best_index_reordering_for_saes",
    "plot_correlation_matrix",
    "plot_sae_feat_cos_sims",
    "plot_sae_feat_cos_sims_seaborn",
]
