"""The architectures that the engine steps as stacks; others go to sae_lens' own trainer."""

from __future__ import annotations

from sparse_but_wrong.training.architectures.base import Architecture
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.architectures.l1 import Gated, Standard
from sparse_but_wrong.training.architectures.topk import BatchTopK, Matryoshka, TopK

ARCHITECTURES: tuple[type[Architecture], ...] = (
    *(JumpReLU, Standard, Gated),
    *(TopK, BatchTopK, Matryoshka),
)
