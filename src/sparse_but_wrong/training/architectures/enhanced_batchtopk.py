"""The published variant of BatchTopK: its step is BatchTopK's, its k moves as its config says.

What `normalize_acts_by_decoder_norm` asks for is what sae_lens has since called
`rescale_acts_by_decoder_norm`, so it is stepped like that.
"""

from __future__ import annotations

from typing import Any

from sparse_but_wrong.training.architectures.batchtopk import BatchTopK


class EnhancedBatchTopK(BatchTopK):
    """The step of a stack of SAEs that share shapes and whether decoder norms count."""

    sae_class = "EnchancedBatchTopKTrainingSAE"

    @classmethod
    def handles(cls, sae: Any) -> bool:
        """Whether an SAE is exactly of our class, and not of another of its architecture."""
        from sparse_but_wrong.training.enhanced_batchtopk_sae import EnchancedBatchTopKTrainingSAE

        return type(sae) is EnchancedBatchTopKTrainingSAE
