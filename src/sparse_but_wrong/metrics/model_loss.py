"""What a language model loses when an SAE's reconstructions take the place of its activations.

Axes: N sequences, T their tokens, B sequences of a batch, V vocabulary, D d_in, R runs of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparse_but_wrong.metrics.evidence import STANDARD_ERROR, Evidence, Measured
from sparse_but_wrong.metrics.samples import BatchMoments, encoder_inputs
from sparse_but_wrong.sae_lens_compat import inference_copy

if TYPE_CHECKING:
    import sae_lens
    from transformer_lens import HookedRootModule

BASELINES = ("model", "zeros", "mean")
"""What SAEs are compared with: the model as it is, and with zeros or the mean as activations."""

_MODEL, _ZEROS, _MEAN = range(3)
_NOTE = (
    "In nats per token, over {n_tokens:,} tokens of {n_sequences:,} sequences, with activations "
    "replaced at {hook}, though not where a cache leaves them out: at special tokens and first "
    "positions. Cross entropy and KL(model ‖ model with replacements) are those of the predictions "
    "made where activations are replaced."
)
_RECOVERED = (
    "loss_recovered is (CE of zeros − CE) / (CE of zeros − CE of the model); "
    "loss_recovered_from_mean has the mean activation instead of zeros. Standard errors are over "
    "sequences; SAEs share them, so that of cross_entropy_increase is the one to compare SAEs by."
)
_NOT_RECOVERED = "Ablation ({}) does not raise the loss here: there is nothing to recover."

_Replace = Callable[[Float[Tensor, "rows D"]], Float[Tensor, "rows D"]]


@torch.no_grad()
def model_loss(
    saes: Mapping[str, sae_lens.SAE[Any]],
    model: HookedRootModule,
    hook: str,
    tokens: Int64[Tensor, "N T"],
    replaced: Bool[Tensor, "N T"],
    mean: Float[Tensor, " D"],
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> Evidence:
    """Cross entropy and KL with reconstructions, zeros or the mean in place of activations.

    The model runs once as it is, once for each ablation and once for each SAE. SAEs are used as in
    `evaluate`: training SAEs by their export for inference.

    Args:
        saes: by name.
        model: as sae_lens runs it; `open_loss_text` gives this and what follows.
        hook: its hook point that the SAEs read.
        tokens: sequences of token ids.
        replaced: where activations are replaced.
        mean: of activations, for the mean ablation.
        batch_size: sequences that run at once; their logits [B, T, V] are held twice.
        progress: show a bar.
    Returns:
        a row per SAE: `cross_entropy` of the next token, `cross_entropy_increase` over the model as
        it is, `kl` and `loss_recovered` (against zeros, and `loss_recovered_from_mean`), NaN where
        the ablation does not raise the loss; with standard errors over sequences.
    Raises:
        ValueError: shapes that do not fit each other, or no position with a next token to replace.
    """
    from tqdm import tqdm

    if tokens.ndim != 2 or tokens.shape != replaced.shape:
        shapes = f"{list(tokens.shape)} and {list(replaced.shape)}"
        raise ValueError(f"tokens and replaced must both be [sequences, tokens], but are {shapes}.")
    for name, sae in saes.items():
        if sae.cfg.d_in != len(mean):
            raise ValueError(f"{name} has d_in {sae.cfg.d_in}, but the mean {len(mean)} numbers.")
    # What is predicted at the last position is not known.
    counted = replaced.clone()
    counted[:, -1] = False
    used = counted.any(1)
    if not used.any():
        raise ValueError("No position is replaced that has a next token; give longer sequences.")
    replace: list[_Replace | None] = [None, torch.zeros_like, mean.expand_as]
    replace += [_reconstruction(inference_copy(sae)) for sae in saes.values()]
    found = []
    batches = [part[used].split(batch_size) for part in (tokens, replaced, counted)]
    with tqdm(total=int(used.sum()), unit=" sequences", disable=not progress) as bar:
        for batch, where, at in zip(*batches, strict=True):
            clean = _logits(model, hook, batch, where, None)
            of_runs = [
                _losses(
                    clean if r is None else _logits(model, hook, batch, where, r), clean, batch, at
                )
                for r in replace
            ]
            found.append(torch.stack(of_runs, dim=1))
            bar.update(len(batch))
    return _evidence(list(saes), hook, torch.cat(found), counted[used].sum(1))


def _reconstruction(sae: sae_lens.SAE[Any]) -> _Replace:
    def reconstruct(rows: Float[Tensor, "rows D"]) -> Float[Tensor, "rows D"]:
        return torch.cat([sae.decode(sae.encode(chunk)) for chunk in encoder_inputs(rows, sae)])

    return reconstruct


def _logits(
    model: HookedRootModule,
    hook: str,
    tokens: Int64[Tensor, "B T"],
    where: Bool[Tensor, "B T"],
    replace: _Replace | None,
) -> Float[Tensor, "B T V"]:
    """What the model predicts, with some activations replaced."""

    def put(activations: Tensor, hook: Any) -> Tensor:
        del hook
        # Several heads count as one activation; a copy, because others may hold this one.
        flat, at = activations.flatten(2).clone(), where.to(activations.device)
        if replace is not None and at.any():
            flat[at] = replace(flat[at]).to(flat)
        return flat.reshape(activations.shape)

    device = next(model.parameters()).device
    hooks = [] if replace is None else [(hook, put)]
    return model.run_with_hooks(tokens.to(device), return_type="logits", fwd_hooks=hooks)  # pyright: ignore[reportArgumentType]


def _losses(
    logits: Float[Tensor, "B T V"],
    clean: Float[Tensor, "B T V"],
    tokens: Int64[Tensor, "B T"],
    counted: Bool[Tensor, "B T"],
) -> Float[Tensor, "B 2"]:
    """Mean cross entropy and KL of every sequence at the positions that count."""
    rows = []
    # One by one: the logits of many sequences take much memory, and each copy as much again.
    for i, at in enumerate(counted.to(logits.device)):
        new, old = (found[i, at].float().log_softmax(-1) for found in (logits, clean))
        following = tokens[i].roll(-1).to(logits.device)[at]
        cross_entropy = -new.gather(1, following[:, None]).double().mean()
        kl = (old.exp() * (old - new)).sum(-1).double().mean()
        rows.append(torch.stack([cross_entropy, kl]))
    return torch.stack(rows).cpu()


def _evidence(
    names: list[str], hook: str, losses: Float[Tensor, "N R 2"], n: Int64[Tensor, " N"]
) -> Evidence:
    import pandas as pd

    weights = n.double() / n.sum()

    def averaged(of_sequences: Float[Tensor, "N R"]) -> Float[Tensor, " R"]:
        return weights @ of_sequences

    cross_entropy, kl = losses.unbind(-1)
    of_sequences = {
        "cross_entropy": cross_entropy,
        "cross_entropy_increase": cross_entropy - cross_entropy[:, :1],
        "kl": kl,
    }
    values = {column: averaged(each) for column, each in of_sequences.items()}
    notes = [_NOTE.format(n_tokens=int(n.sum()), n_sequences=len(n), hook=hook), _RECOVERED]
    for column, ablation in (("loss_recovered", _ZEROS), ("loss_recovered_from_mean", _MEAN)):
        below = cross_entropy[:, [ablation]] - cross_entropy
        whole = averaged(below)[_MODEL]
        if whole <= 0:
            notes.append(_NOT_RECOVERED.format(BASELINES[ablation]))
            whole = torch.full_like(whole, math.nan)
        values[column] = averaged(below) / whole
        # A ratio of means is as uncertain as the mean of what it leaves unexplained.
        of_sequences[column] = (below - values[column] * below[:, [_MODEL]]) / whole
    moments = BatchMoments()
    for of_sequence, weight in zip(torch.stack(list(of_sequences.values()), -1), n, strict=True):
        moments.add(of_sequence, int(weight))
    errors = dict(zip(of_sequences, moments.standard_error.unbind(-1), strict=True))
    table = pd.DataFrame(index=pd.Index(names, name="sae"))
    for column, of_runs in values.items():
        table[column] = of_runs[len(BASELINES) :].numpy()
        table[column + STANDARD_ERROR] = errors[column][len(BASELINES) :].numpy()
    baselines = {
        column: {
            what: Measured(float(values[column][run]), float(errors[column][run]))
            for run, what in enumerate(BASELINES)
            if run != _MODEL or column == "cross_entropy"  # the model itself raises nothing
        }
        for column in ("cross_entropy", "cross_entropy_increase", "kl")
    }
    return Evidence("loss", "Cross entropy with reconstructions", table, baselines, tuple(notes))
