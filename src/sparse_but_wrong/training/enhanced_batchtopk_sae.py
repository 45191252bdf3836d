"""The published variant of BatchTopK, whose k may move while it trains, as a sae_lens SAE.

sae_lens knows it once this module is imported; `sparse_but_wrong.registration` sees to that.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from numbers import Real
from typing import Any, no_type_check

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, register_sae_training_class

from sparse_but_wrong.training.controls import KTransition

logger = logging.getLogger(__name__)


# Like all configs of sae_lens it takes an int where a float is meant, which type checks refuse.
@no_type_check
@dataclass
class EnhancedBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """Config of an `EnchancedBatchTopKTrainingSAE`: a BatchTopK config and what is said here.

    Raises:
        ValueError: a transition that no k can make; the message names the field.
    """

    rescale_acts_by_decoder_norm: bool = False
    """sae_lens' name of `normalize_acts_by_decoder_norm`, which turns it on."""
    normalize_acts_by_decoder_norm: bool = False
    """Rank latents by pre-activation times decoder norm, and decode as if decoder rows had norm 1.
    The norms count once, also where both fields are on."""
    initial_k: float | None = None
    """k until its transition to `k` begins; None for no transition."""
    transition_k_duration_steps: int | None = None
    """Steps over which k moves linearly from `initial_k` to `k`; None for no transition."""
    transition_k_start_step: int = 0
    """The last step, counted from 0, that is taken at `initial_k`."""

    def __post_init__(self) -> None:
        if self.normalize_acts_by_decoder_norm:
            self.rescale_acts_by_decoder_norm = True
        super().__post_init__()
        given = [self.initial_k is not None, self.transition_k_duration_steps is not None]
        if self.k_transition is None and any(given):
            logger.warning(
                "k stays at %s throughout: a transition needs both initial_k (%s) and "
                "transition_k_duration_steps (%s).",
                self.k,
                self.initial_k,
                self.transition_k_duration_steps,
            )

    @classmethod
    def architecture(cls) -> str:
        """Its name in sae_lens."""
        return "enhanced_batchtopk"

    @property
    def k_transition(self) -> KTransition | None:
        """How k moves in training; None if it stays."""
        if self.initial_k is None or self.transition_k_duration_steps is None:
            return None
        k, duration = self.initial_k, self.transition_k_duration_steps
        if not isinstance(k, Real) or k > self.d_sae:
            raise ValueError(f"initial_k must be a number up to d_sae = {self.d_sae}, got {k!r}.")
        try:
            return KTransition(float(k), self.transition_k_start_step, duration)
        except ValueError as error:
            raise ValueError(f"initial_k or transition_k_…: {error}") from error


class EnchancedBatchTopKTrainingSAE(BatchTopKTrainingSAE):
    """BatchTopK whose k may move while it trains (the class's name is spelt as published).

    `cfg.k` is where a transition ends; `activation_fn.k` is where it stands. For inference the SAE
    is saved as JumpReLU, with decoder norms folded into the encoder where they count.
    """

    cfg: EnhancedBatchTopKTrainingSAEConfig  # type: ignore[assignment]

    def training_forward_pass(self, step_input: Any) -> Any:
        """sae_lens' own, at the k of this step."""
        transition = self.cfg.k_transition
        if transition is not None:
            k = transition.k_at(step_input.n_training_steps, self.cfg.k)
            self.activation_fn.k = k  # pyright: ignore[reportFunctionMemberAccess]
        return super().training_forward_pass(step_input)

    @torch.no_grad()
    def fold_activation_whitening(self, *args: Any, **kwargs: Any) -> None:
        """sae_lens' own, which folds decoder norms into the encoder, so that they count no more."""
        super().fold_activation_whitening(*args, **kwargs)
        self.cfg.normalize_acts_by_decoder_norm = self.cfg.rescale_acts_by_decoder_norm


# A notebook may have registered its own copy of the class before; then that one stays.
with contextlib.suppress(ValueError):
    register_sae_training_class(
        EnhancedBatchTopKTrainingSAEConfig.architecture(),
        EnchancedBatchTopKTrainingSAE,
        EnhancedBatchTopKTrainingSAEConfig,
    )
