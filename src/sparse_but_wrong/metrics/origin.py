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
    for what, here, differ in (("model", model, _models_differ), ("hook", hook, _hooks_differ)):
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


def _hooks_differ(one: str, other: str) -> bool:
    here, there = _place(one), _place(other)
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
