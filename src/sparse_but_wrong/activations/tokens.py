"""Ids of stored tokens as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparse_but_wrong.activations.language_model import open_tokenizer
from sparse_but_wrong.activations.stored import StoredActivations

Decode = Callable[[Sequence[int]], list[str]]
"""Gives the text of each of some neighbouring tokens, which together are their text."""


def open_decoder(activations: StoredActivations, model: str | None = None) -> Decode:
    """What turns ids of stored tokens into text: the tokenizer of the model, without its weights.

    Args:
        model: its name, folder or .gguf file; by default the one on record.
    Raises:
        ValueError: no token ids are stored, no model is on record, or it has no tokenizer.
        OSError: the tokenizer cannot be loaded.
    """
    if activations.read_token_ids(0, 1) is None:
        raise ValueError(f"No token_ids are stored in {activations.name}, so there is no text.")
    name = model or activations.origin[0]
    if name is None:
        raise ValueError(f"The model of {activations.name} is not on record; name it (--model).")
    tokenizer = open_tokenizer(name)
    return lambda ids: token_texts(tokenizer, ids)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token as it is read behind those before it.

    A character may be made of several tokens; the last of them has it, and the others are empty.
    """
    texts, before = [], ""
    for n in range(1, len(ids) + 1):
        so_far = tokenizer.decode(list(ids[:n]), clean_up_tokenization_spaces=False)
        is_open = so_far.endswith("\N{REPLACEMENT CHARACTER}") and n < len(ids)
        texts.append("" if is_open else so_far[len(before) :])
        before = before if is_open else so_far
    return texts
