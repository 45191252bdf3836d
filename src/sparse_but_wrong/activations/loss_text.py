"""A text as a cache of activations would hold it, ready to run its model over again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from transformer_lens import HookedRootModule

from sparse_but_wrong.activations.language_model import LanguageModel, open_language_model
from sparse_but_wrong.activations.stored import StoredActivations, neighbours_per_batch
from sparse_but_wrong.activations.texts import Sequences, read_text

_OF_MEAN = 65_536


class LossText(NamedTuple):
    """What `model_loss` takes: a model, its hook point, and a text."""

    model: HookedRootModule
    hook: str
    tokens: Int64[Tensor, "sequences context"]
    replaced: Bool[Tensor, "sequences context"]
    """The tokens whose activations a cache would hold."""

    mean: Float32[Tensor, " d_in"]
    """Of up to 65,536 of the stored activations."""


def open_loss_text(
    activations: StoredActivations,
    text: str | Path | Sequence[str | Path],
    *,
    n_tokens: int = 20_000,
    model: str | LanguageModel | None = None,
    device: str = "cpu",
) -> LossText:
    """The model that cached activations come from, and a text cut as the cached one was.

    Context size, BOS, left-out tokens and skipped positions are those of the cache.

    Args:
        activations: a cache that `cache_activations` wrote.
        text: .txt, .jsonl or .parquet files, or folders of them; best one that no SAE was trained
            on.
        n_tokens: tokens whose activations are to be replaced; whole sequences that have so many.
        model: its name, folder or file, where it is not the one on record, which may have moved.
        device: where the model runs.
    Raises:
        ValueError: activations without a record of their model, one with activations of another
            width, or a text without a whole sequence; and as `open_language_model`.
        OSError: the model or the text cannot be found or read.
    """
    cache = activations.cache
    if cache is None:
        raise ValueError(
            f"The model and the hook of {activations.name} are not on record; only caches that "
            "`sbw cache-activations` wrote have them."
        )
    source = read_text([Path(path) for path in ([text] if isinstance(text, str | Path) else text)])
    if not isinstance(model, LanguageModel):
        kinds = {"model_class": cache.model_class, "dtype": cache.model_dtype}
        model = open_language_model(model or cache.model, cache.hook, device=device, **kinds)  # pyright: ignore[reportArgumentType]
    if model.d_in != activations.d_in:
        raise ValueError(
            f"{model.name} gives activations of width {model.d_in} at {model.hook}, but those of "
            f"{activations.name} have {activations.d_in}: they come from another model."
        )
    sequences = Sequences(
        model,
        source,
        cache.context_size,
        prepend_bos=cache.prepend_bos,
        piece_size=cache.piece_size,
    )
    tokens: list[Tensor] = []
    n_replaced = 0
    for sequence in sequences:
        tokens.append(sequence)
        n_replaced += int(cache.keeps(sequence[None]).sum())
        if n_replaced >= n_tokens:
            break
    if not tokens:
        raise ValueError(f"{source.name} has no full sequence of {cache.context_size} tokens.")
    together = torch.stack(tokens)
    return LossText(model.model, model.hook, together, cache.keeps(together), _mean(activations))


def _mean(activations: StoredActivations) -> Float32[Tensor, " d_in"]:
    n_samples = min(activations.n_samples, _OF_MEAN)
    total = torch.zeros(activations.d_in, dtype=torch.float64)
    n = 0
    for batch in activations.batches(neighbours_per_batch(n_samples), n_samples):
        total += batch.double().sum(0)
        n += len(batch)
    return (total / n).float()
