"""The published import path of a quick look at an SAE trained on a toy model."""

from sparse_but_wrong.metrics.toy_sae import (
    EvalResult,
    eval_sae,
)

__all__ = ["EvalResult", "eval_sae"]
