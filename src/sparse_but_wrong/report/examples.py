"""Top examples of latents: a section of a page, and a file with a line per example."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from markupsafe import Markup

from sparse_but_wrong.metrics.examples import Example, LatentExamples
from sparse_but_wrong.report.page import Section, format_number

FILE = "examples.jsonl"

_SHOWN = str.maketrans({"\n": "↵", "\r": "↵", "\t": "⇥"})
_WHY = {
    "strongest": "one of the strongest",
    "densest": "one of the densest",
    "random": "chosen at random",
}
_NOTE = (
    "Tokens on which a latent is most active, and those around them as they are stored: the first "
    "tokens of sequences and special ones are left out of a cache and so not shown. The number is "
    "the activation at the underlined token; backgrounds are relative to the strongest of the "
    "latent."
)
_TWO = "Those marked ≀ may be of two sequences: where one ends is not on record."


def examples_section(
    found: Sequence[LatentExamples], densities: Mapping[str, Sequence[float]]
) -> Section:
    """Examples by SAE.

    Args:
        densities: of the latents of each SAE.
    """
    by_sae: dict[str, list[LatentExamples]] = {}
    for latent in found:
        by_sae.setdefault(latent.sae, []).append(latent)
    parts = {
        name: Markup().join(_latent(one, densities[name][one.latent]) for one in latents)
        for name, latents in by_sae.items()
    }
    are_sure = all(example.one_sequence for latent in found for example in latent.examples)
    notes = [_NOTE] if are_sure else [_NOTE, _TWO]
    return Section("examples", "Top examples", csv=FILE, notes=notes, parts=parts)


def _latent(found: LatentExamples, density: float) -> Markup:
    why, share = _WHY.get(found.chosen, found.chosen), f"{100 * density:.3g} %"
    heading = f"Latent {found.latent}: {why}, active on {share} of the samples"
    strongest = max((e.activations[e.at] for e in found.examples), default=0.0)
    passages = Markup().join(_passage(example, strongest) for example in found.examples)
    if not passages:
        passages = Markup("<li>Not active on the samples looked at.</li>")
    return Markup('<h3>{}</h3><ol class="passages">{}</ol>').format(heading, passages)


def _passage(example: Example, strongest: float) -> Markup:
    tokens = Markup()
    for i, (text, active) in enumerate(zip(example.tokens, example.activations, strict=True)):
        shown = text.translate(_SHOWN)
        if active > 0:
            kind = Markup(' class="peak"') if i == example.at else ""
            style = f"--strength: {min(1.0, active / strongest):.2f}"
            title = f"{active:.3g}"
            mark = Markup('<mark{} style="{}" title="{}">{}</mark>')
            tokens += mark.format(kind, style, title, shown)
        else:
            tokens += shown
    sign = "" if example.one_sequence else " ≀"
    value = format_number(example.activations[example.at]) + sign
    line = Markup('<li><span class="value">{}</span><span class="tokens">{}</span></li>')
    return line.format(value, tokens)


def examples_lines(found: Iterable[LatentExamples]) -> bytes:
    """A line of JSON per example."""
    lines = [
        {"sae": one.sae, "latent": one.latent, "chosen": one.chosen, **asdict(example)}
        for one in found
        for example in one.examples
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
