"""The decoder of each SAE against the true features, small enough for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.report.embed import pack_cosines
from sparse_but_wrong.report.plots import spread
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.threads import one_thread_per_operation

MOST_SIDE = 128
"""Rows and columns of a matrix that are shown."""

_MOST_SAES = 200
_MOST_CELLS = 1_000_000


def cosine_frames(folder: RunFolder, saes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The decoder cosines of every SAE whose world is in the folder, a matrix per SAE.

    Of too many SAEs some are taken, evenly over the sweep; of too many features likewise, with
    the latents that are matched to them.

    Args:
        folder: of the run.
        saes: with `id` and `world`, in the order of the sweep.
    Raises:
        ValueError: a world or an SAE is damaged.
    """
    features = _directions(folder, {str(sae["world"]) for sae in saes})
    there = [
        index
        for index, sae in enumerate(saes)
        if sae["world"] in features and folder.has_sae(sae["id"])
    ]
    if not there:
        return None
    widest = max(min(d.shape[1], MOST_SIDE) for d in features.values())
    # An SAE is not always as wide as its world has features; a few times that is still small.
    most = max(2, min(_MOST_SAES, _MOST_CELLS // (widest * max(widest, 64))))
    shown = [there[i] for i in spread(len(there), most)]
    with one_thread_per_operation():
        frames = [
            {"sae": i, **_frame(folder, saes[i]["id"], features[saes[i]["world"]])} for i in shown
        ]
    return {
        "frames": frames,
        "left_out": len(there) - len(shown),
        "thinned": any(frame.pop("thinned") for frame in frames),
    }


def _directions(folder: RunFolder, worlds: set[str]) -> dict[str, Float[Tensor, "_d_in _features"]]:
    from sparse_but_wrong.worlds.world import ToyWorld

    return {
        name: ToyWorld.load(folder.checked_world_path(name)).directions
        for name in sorted(worlds)
        if ToyWorld.is_saved_in(folder.world_path(name))
    }


@torch.no_grad()
def _frame(
    folder: RunFolder, sae_id: str, features: Float[Tensor, "d_in features"]
) -> dict[str, Any]:
    from sparse_but_wrong.metrics.recovery import match_latents
    from sparse_but_wrong.tensors import cos_sims

    sae = folder.load_sae(sae_id)
    match = match_latents(sae, features)
    d_sae, n_features = sae.W_dec.shape[0], features.shape[1]
    columns = spread(n_features, MOST_SIDE)
    rows = _rows(match.latents.tolist(), match.features.tolist(), columns, d_sae)
    decoder = sae.W_dec[rows].float().cpu()
    cosines = cos_sims(decoder.T, features[:, columns].float().cpu())
    return {
        "latents": rows,
        "features": columns,
        "values": pack_cosines(cosines.numpy().astype(np.float64)),
        "thinned": len(columns) < n_features or len(rows) < d_sae,
    }


def _rows(
    latents: Sequence[int], features: Sequence[int], columns: Sequence[int], d_sae: int
) -> list[int]:
    """The latents matched to the shown features in their order, then those without a partner."""
    shown = set(columns)
    matched = [latent for latent, f in zip(latents, features, strict=True) if f in shown]
    partners = set(latents)
    rest = [latent for latent in range(d_sae) if latent not in partners]
    room = MOST_SIDE - len(matched)
    return matched + [rest[i] for i in spread(len(rest), room)] if room >= 2 else matched
