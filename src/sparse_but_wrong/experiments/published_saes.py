"""The SAEs that others have published, with their L0: what sae_lens' directory knows of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from sparse_but_wrong.sae_lens_compat import PretrainedSAELookup

RESIDUAL = "residual"

# "average_l0_71", "l0-40", "k_64", "topk_64". Not "l0_big", nor "l0r_8x" (layer 0, residual), nor
# "width_16k_…" and "v5_32k_layer_0", where the k is a thousand.
_L0_IN_NAME = re.compile(r"(?<![a-z0-9])(?:l0|(?:(?:batch)?top_?)?k)[_=-](\d+)(?![a-z0-9.])")

# Of the training of one SAE many are kept; they are no SAEs that anyone offers for use.
_CHECKPOINT = re.compile(r"_step_\d+$")

_LAYER = re.compile(r"(?:layer[_.]?|blocks\.|^l)(\d+)(?![0-9])")

_SITES = (
    ("transcoder", re.compile(r"transcoder|(?<![a-z])clt(?![a-z])")),
    ("embedding", re.compile(r"embedding")),
    ("attention", re.compile(r"hook_z|(?<![a-z])att(?:n)?(?![a-z])|^l\d+a_|-l0a-")),
    ("mlp", re.compile(r"(?<![a-z])mlp(?![a-z])|^l\d+m_")),
    (RESIDUAL, re.compile(r"(?<![a-z])res(?:id(?:ual)?)?(?![a-z])|^l\d+r_")),
)
"""Tried in this order on the id of an SAE, then on its path, release and repository."""

_ARCHITECTURES = (
    ("jumprelu", re.compile(r"^google/gemma-scope")),
    ("batchtopk", re.compile(r"batch[-_]?top[-_]?k")),
)


def published_saes(directory: Mapping[str, PretrainedSAELookup]) -> pd.DataFrame:
    """A row per published SAE.

    Several entries of the directory can name the same file (the "canonical" releases); they are
    one SAE, and the first entry whose L0 is known stands for it. Checkpoints of unfinished training
    are left out.

    Args:
        directory: by release, as `get_pretrained_saes_directory` gives it.
    Returns:
        columns `release`, `model` (without the organisation), `sae_id`, `site` ("" where the names
        do not say), `layer` (missing likewise), `architecture` ("" likewise), `l0` (NaN where
        nothing says), `l0_source` ("directory", "name" or "") and `entries`, how many entries name
        it.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, object]] = {}
    for release, lookup in directory.items():
        for sae_id, path in lookup.saes_map.items():
            if _CHECKPOINT.search(sae_id):
                continue
            names = [text.lower() for text in (sae_id, path, release, lookup.repo_id)]
            l0, source = _l0(lookup.expected_l0.get(sae_id), names)
            row = {
                "release": release,
                "model": lookup.model.rsplit("/", 1)[-1],
                "sae_id": sae_id,
                "site": next(filter(None, map(_site, names)), ""),
                "layer": next(
                    (layer for layer in map(_layer, names[:2]) if layer is not None), None
                ),
                "architecture": _architecture(names),
                "l0": l0,
                "l0_source": source,
                "entries": 1,
            }
            known = rows.setdefault((lookup.repo_id, path), row)
            if known is not row:
                entries = int(str(known["entries"])) + 1
                better = row if source and not known["l0_source"] else known
                rows[lookup.repo_id, path] = {**better, "entries": entries}
    return pd.DataFrame(list(rows.values())).astype({"layer": "Int64", "l0": "float64"})


def _l0(expected: float | int | None, names: list[str]) -> tuple[float, str]:
    """The L0 and where it comes from; the directory has 0 for what it does not know."""
    if expected:
        return float(expected), "directory"
    for name in names:
        found = _L0_IN_NAME.findall(name)
        if len(set(found)) == 1 and int(found[0]) > 0:
            return float(found[0]), "name"
    return float("nan"), ""


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _site(name: str) -> str:
    return next((site for site, pattern in _SITES if pattern.search(name)), "")


def _architecture(names: list[str]) -> str:
    return next((kind for kind, pattern in _ARCHITECTURES if any(map(pattern.search, names))), "")
