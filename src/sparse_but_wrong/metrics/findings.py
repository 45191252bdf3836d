"""What is easily overlooked of SAEs, in sentences: the number, the bound, the remedy.

What sets their L0 is asked with plain numbers, so that whoever has a table can ask; how an SAE was
trained is read from itself, as far as it says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_but_wrong.metrics.evaluation import DENSE, Evaluation

if TYPE_CHECKING:
    import sae_lens

UNSETTLED = 0.1
"""A BatchTopK SAE's L0 may be off its k by this share of k. On the 50-feature toy world, k from 1
to 25, it was off by 30 to 70% of k after 300 steps and by less than 3% after 1,000."""

SATURATED = 0.02
"""L0s within this share of each other are one L0 to a coefficient."""

MANY_DEAD, MANY_DENSE = 0.1, 0.01
"""Shares of the latents from which dead ones, or dense ones, are worth a remark."""

FEW_BATCHES = 8

_Point = tuple[str, float | int, float | int]

_FACTOR = 4.0
"""How much larger a coefficient has to be for the same L0 to be odd."""

_COEFFICIENTS = ("l0_coefficient", "l1_coefficient")


@dataclass(frozen=True)
class Origin:
    """What is on record of an SAE's training; None where nothing is."""

    batchtopk_k: float | None = None
    """k of a BatchTopK SAE, whose L0 as it is used follows from a threshold instead."""
    coefficient: float | None = None
    """What set the L0, where that was a coefficient."""
    family: str = ""
    """Everything else of the config: SAEs of one family differ in the above and in their seed."""
    model: str | None = None
    hook: str | None = None


def origin_of(sae: sae_lens.SAE[Any]) -> Origin:
    """What an SAE has on record of its training, for training or not; raises nothing.

    sae_lens writes the training config into the metadata of the SAEs that it exports.
    """
    metadata = sae.cfg.metadata
    details = metadata.training_architecture_details
    architecture = metadata.training_architecture
    if not isinstance(details, Mapping):
        details, architecture = vars(sae.cfg), sae.cfg.architecture()
    coefficients = [_number(details.get(name)) for name in _COEFFICIENTS]
    rest = {k: v for k, v in details.items() if k not in (*_COEFFICIENTS, "metadata", "device")}
    is_batchtopk = "batchtopk" in str(architecture)
    return Origin(
        batchtopk_k=_number(details.get("k")) if is_batchtopk else None,
        coefficient=next((c for c in coefficients if c is not None), None),
        family=json.dumps([architecture, *sae.W_dec.shape, rest], sort_keys=True, default=str),
        model=_text(metadata.model_name),
        hook=_text(metadata.hook_name),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def unsettled_thresholds(saes: Iterable[_Point]) -> str | None:
    """Which BatchTopK SAEs have another L0 as they are used than the k they were trained with.

    In training the largest k·batch latents are active; as it is used, those above a threshold,
    which is a running mean that begins at 0 and is too low until it has settled.

    Args:
        saes: name, k, and L0 by the threshold; those that are not finite are left out.
    """
    off = [(name, k, l0) for name, k, l0 in saes if k > 0 and abs(l0 - k) > UNSETTLED * k]
    if not off:
        return None
    return (
        f"L0 as used, by the threshold, more than {UNSETTLED:.0%} off the k of training: "
        + ", ".join(f"{l0:.3g} at k = {k:g} ({name})" for name, k, l0 in off)
        + ". The threshold begins at 0 and takes 5 / topk_threshold_lr steps, 500 by default, to "
        "settle to 1%. Train for more steps; after a long training, measure on activations like "
        "those of the training."
    )


def saturated(saes: Iterable[_Point]) -> str | None:
    """Whether the largest sparsity coefficients of a sweep all give one L0.

    Args:
        saes: name, coefficient and L0 of SAEs that differ in nothing else, unless in their seed;
            those that are not finite are left out.
    Returns:
        None where the largest coefficient has its own L0, or shares it only with those within a
        factor of 4, as neighbours in a sweep may.
    """
    known = [(c, l0, name) for name, c, l0 in saes if 0 < c < math.inf and l0 == l0]
    if not known:
        return None
    points = sorted(known, reverse=True)
    top, l0_at_top, top_name = points[0]

    def is_alike(point: tuple[float | int, float | int, str]) -> bool:
        return abs(point[1] - l0_at_top) <= SATURATED * max(point[1], l0_at_top)

    *_, (lowest, l0_at_lowest, lowest_name) = takewhile(is_alike, points)
    if lowest * _FACTOR > top:
        return None
    return (
        f"One L0 from the coefficient {lowest:g} on: {l0_at_lowest:.4g} there ({lowest_name}) and "
        f"{l0_at_top:.4g} at {top:g} ({top_name}), within {SATURATED:.0%}. A larger one no longer "
        "lowers it, since it alone decides the direction of the gradient, which is all that Adam "
        f"sees. Take coefficients below {lowest:g}, or set the L0 itself (TargetL0)."
    )


def remarks(
    evaluations: Sequence[Evaluation], origins: Mapping[str, Origin] | None = None
) -> list[str]:
    """What must not be overlooked in evaluations of SAEs, whose origins may be known by name."""
    diverged = [e for e in evaluations if math.isnan(e.l0) or np.isnan(e.projections).any()]
    fine = [e for e in evaluations if e not in diverged]
    # Where no latent is active only the bias remains, which the remark on dead latents covers.
    worse = [e for e in fine if e.l0 and e.variance_explained < 0]
    dead = [(e.dead_latents / e.d_sae, e.name) for e in fine]
    dense = [
        (e.densities[e.densities > DENSE].sum() / e.l0, e.name)
        for e in fine
        if e.dense_latents > MANY_DENSE * e.d_sae
    ]
    few = min(e.n_batches for e in evaluations)
    table = [
        ("Diverged, weights or activations are not finite: {}.", [e.name for e in diverged]),
        (
            "Variance explained below 0, worse than the mean of the samples alone: {}. Check on "
            "which activations (model, hook, scale) they were trained before using any number "
            "here.",
            [f"{e.variance_explained:.3g} ({e.name})" for e in worse],
        ),
        *(("{}", [said]) for said in _of_training(fine, origins or {})),
        (
            "Latents that were active on no sample: {}. "
            f"Above {MANY_DEAD:.0%}, s_n^dec and c_dec are in part those of directions that "
            "nothing trained. Evaluate on more samples; if they stay dead, train with "
            "reinit_dead_every.",
            [f"{share:.0%} ({name})" for share, name in dead if share > MANY_DEAD],
        ),
        (
            f"Share of the L0 from latents active on more than {DENSE:.0%} of the samples: {{}}.",
            [f"{share:.0%} ({name})" for share, name in dense],
        ),
        (
            f"Only {{}}: standard errors are unreliable below {FEW_BATCHES}. Evaluate on more "
            "samples, or in smaller batches.",
            [f"{few} batch{'' if few == 1 else 'es'}"] if few < FEW_BATCHES else [],
        ),
    ]
    return [text.format(", ".join(values)) for text, values in table if values]


def _of_training(evaluations: Sequence[Evaluation], origins: Mapping[str, Origin]) -> list[str]:
    """What the L0 says of the training."""
    thresholds: list[_Point] = []
    families: dict[str, list[_Point]] = {}
    for found in evaluations:
        origin = origins.get(found.name, Origin())
        if origin.batchtopk_k is not None:
            thresholds.append((found.name, origin.batchtopk_k, found.l0))
        if origin.coefficient is not None:
            point = (found.name, origin.coefficient, found.l0)
            families.setdefault(origin.family, []).append(point)
    said = (unsettled_thresholds(thresholds), *map(saturated, families.values()))
    return [remark for remark in said if remark]


def of_other_activations(
    origins: Mapping[str, Origin], model: str | None, hook: str | None
) -> list[str]:
    """Which SAEs, by name, have another model or hook on record than activations come from.

    Names of TransformerLens and module paths are told to be the same where both can be read; what
    cannot be compared gives no remark, but a hook that is on record on one side only does.
    """
    said = []
    for what, here, differ in (("model", model, _models_differ), ("hook", hook, hooks_differ)):
        others = [
            f"{theirs} ({name})"
            for name, origin in origins.items()
            if here is not None
            and (theirs := getattr(origin, what)) is not None
            and differ(theirs, here)
        ]
        if others:
            said.append(
                f"Trained at another {what} than these activations, which are of {here}: "
                f"{', '.join(others)}. Measure on activations of their {what}."
            )
    half_known = [
        name for name, origin in origins.items() if (origin.hook is None) != (hook is None)
    ]
    if half_known:
        whose = "these activations" if hook is None else "the SAEs"
        said.append(
            "Not known to read the hook that these activations are of, because the hook of "
            f"{whose} is not on record: {', '.join(half_known)}. Make sure of it: activations of "
            "another layer give numbers too, where they have the same width."
        )
    return said


def _models_differ(one: str, other: str) -> bool:
    # A folder may be called anything.
    return not (_is_path(one) or _is_path(other)) and _canonical(one) != _canonical(other)


def _is_path(name: str) -> bool:
    looks = name.count("/") > 1 or name.startswith((".", "~", "/")) or name.endswith(".gguf")
    return looks or Path(name).exists()


def _canonical(name: str) -> str:
    """A model's name as the Hub has it, without whose it is."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    with suppress(ValueError):  # a model that TransformerLens does not know
        name = get_official_model_name(name)
    return name.rsplit("/", 1)[-1].casefold()


def hooks_differ(one: str | None, other: str | None) -> bool:
    """Whether two hook points are on record that are not the same, as far as names tell.

    Names of TransformerLens and module paths are both read; others may be the same.
    """
    here, there = _place(one or ""), _place(other or "")
    if here is None or there is None:
        return False
    if here[0] is not None and there[0] is not None:
        return here != there
    # What else a block holds, somewhere between the streams that enter and leave it.
    return not _blocks(*here) & _blocks(*there)


_HOOKED = re.compile(r"blocks\.(\d+)\.(?:hook_)?(.*)")
_MODULE = re.compile(r"(?:.*\.)?(?:layers|h|blocks|block|layer)\.(\d+)(?:\.(.*))?")
_SUBMODULE = re.compile(r"(resid_post|mlp|attn)[\w]*?layer_?(\d+)")


def _place(hook: str) -> tuple[str | None, int] | None:
    """What a hook point reads and where: ("resid", 9) between block 8 and block 9."""
    if found := _SUBMODULE.fullmatch(hook):
        rest, layer = found[1], int(found[2])
    elif found := _HOOKED.fullmatch(hook) or _MODULE.fullmatch(hook):
        rest, layer = found[2] or "resid_post", int(found[1])
    else:
        return None
    if rest in ("resid_pre", "resid_post"):
        return "resid", layer + (rest == "resid_post")
    rest = rest.replace("attention", "attn")
    return next((site for site in ("mlp", "attn") if site in rest), None), layer


def _blocks(site: str | None, at: int) -> set[int]:
    return {at - 1, at} if site == "resid" else {at}
