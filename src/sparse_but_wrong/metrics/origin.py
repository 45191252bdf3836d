"""How an SAE was trained, as far as it says so itself, and whether activations fit that."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sae_lens

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
    coefficients = {name: _number(details.get(name)) for name in _COEFFICIENTS}
    rest = {k: v for k, v in details.items() if k not in (*coefficients, "metadata", "device")}
    is_batchtopk = "batchtopk" in str(architecture)
    return Origin(
        batchtopk_k=_number(details.get("k")) if is_batchtopk else None,
        coefficient=next((c for c in coefficients.values() if c is not None), None),
        family=json.dumps([architecture, *sae.W_dec.shape, rest], sort_keys=True, default=str),
        model=_text(metadata.model_name),
        hook=_text(metadata.hook_name),
    )


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def of_other_activations(
    origins: Mapping[str, Origin], model: str | None, hook: str | None
) -> list[str]:
    """Which SAEs have another model or hook on record than activations come from.

    Names of TransformerLens and module paths are told to be the same where both can be read; what
    cannot be compared gives no remark.

    Args:
        origins: by the name of the SAE.
        model: that gave the activations; None where that is not known.
        hook: at which they were read.
    Returns:
        A sentence for models and one for hooks, where there is something to say.
    """
    said = []
    for what, here, recorded, differs in (
        ("model", model, {name: o.model for name, o in origins.items()}, _models_differ),
        ("hook", hook, {name: o.hook for name, o in origins.items()}, _hooks_differ),
    ):
        if here is None:
            continue
        others = [
            f"{theirs} ({name})" for name, theirs in recorded.items() if differs(theirs, here)
        ]
        if others:
            said.append(
                f"Trained at another {what} than these activations, which are of {here}: "
                f"{', '.join(others)}. What is measured says little about them unless that is "
                f"meant; measure on activations of their {what}."
            )
    return said


def _models_differ(one: str | None, other: str) -> bool:
    if one is None or any(_is_path(name) for name in (one, other)):
        return False  # a folder may be called anything
    return _canonical(one) != _canonical(other)


def _is_path(name: str) -> bool:
    looks = name.count("/") > 1 or name.startswith((".", "~", "/")) or name.endswith(".gguf")
    return looks or Path(name).exists()


def _canonical(name: str) -> str:
    """A model's name as the Hub has it, without whose it is."""
    from transformer_lens.loading_from_pretrained import get_official_model_name

    with suppress(ValueError):  # a model that TransformerLens does not know
        name = get_official_model_name(name)
    return name.rsplit("/", 1)[-1].casefold()


def _hooks_differ(one: str | None, other: str) -> bool:
    places = [_place(hook) for hook in (one, other) if hook is not None]
    if len(places) < 2 or any(place is None for place in places):
        return False
    (site, at), (other_site, other_at) = (place for place in places if place is not None)
    if site is not None and other_site is not None:
        return (site, at) != (other_site, other_at)
    # What else a block holds, somewhere between the streams that enter and leave it.
    return not set(_blocks(site, at)) & set(_blocks(other_site, other_at))


_HOOKED = re.compile(r"blocks\.(\d+)\.(?:hook_)?(.*)")
_MODULE = re.compile(r"(?:.*\.)?(?:layers|h|blocks|block|layer)\.(\d+)(?:\.(.*))?")
_SUBMODULE = re.compile(r"(resid_post|mlp|attn)[\w]*?layer_?(\d+)")


def _place(hook: str) -> tuple[str | None, int] | None:
    """What a hook point reads and where: ("resid", 9) between block 8 and block 9."""
    if found := _HOOKED.fullmatch(hook):
        layer, rest = int(found[1]), found[2]
        if rest in ("resid_pre", "resid_post"):
            return "resid", layer + (rest == "resid_post")
        return _site(rest), layer
    if found := _SUBMODULE.fullmatch(hook):
        layer = int(found[2])
        return ("resid", layer + 1) if found[1] == "resid_post" else (found[1], layer)
    if found := _MODULE.fullmatch(hook):
        layer, rest = int(found[1]), found[2]
        return ("resid", layer + 1) if rest is None else (_site(rest), layer)
    return None


def _site(rest: str) -> str | None:
    return next(
        (site for site in ("mlp", "attn") if site in rest.replace("attention", "attn")), None
    )


def _blocks(site: str | None, at: int) -> tuple[int, ...]:
    return (at - 1, at) if site == "resid" else (at,)
