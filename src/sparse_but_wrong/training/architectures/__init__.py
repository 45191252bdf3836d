"""The architectures that the engine steps as stacks; others go to sae_lens' own trainer."""

from __future__ import annotations

from sparse_but_wrong.training.architectures.penalty import Gated, JumpReLU, Standard
from sparse_but_wrong.training.architectures.topk import BatchTopK, Matryoshka, TopK

ARCHITECTURES = (JumpReLU, Standard, Gated, TopK, BatchTopK, Matryoshka)
