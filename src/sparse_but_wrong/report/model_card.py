"""SAEs of a run for others: a folder with each as it is used, and a card that explains them.

README.md              the card: figure, metrics, recommendation, how it was made
overview.png           that of the run
recommendation.png     the evidence of a recommendation, if one is given
<sae_id>/              each SAE as sae_lens' `SAE.load_from_disk` and `SAE.from_pretrained` read it
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse_but_wrong.report.page import format_number
from sparse_but_wrong.report.run import facts_of, shown_images
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.saes.sae_lens_folder import CONFIG
from sparse_but_wrong.untrusted import checked, read_json

_METRICS = (
    *("l0", "dead_latents", "variance_explained", "mse"),
    *("c_dec", "mean_max_cosine", "mcc", "f1"),
)


@dataclass(frozen=True)
class _Answer:
    """What is read of a recommendation's file."""

    text: str
    made: dict[str, str]


def write_saes(
    run: RunFolder,
    folder: Path,
    sae_ids: Sequence[str] = (),
    recommendation: Path | None = None,
    repo: str | None = None,
) -> None:
    """Write SAEs of a finished run, as they are used for inference, with their card.

    Args:
        folder: an empty one.
        sae_ids: which SAEs; all if there are none.
        recommendation: a folder that `sbw find-l0` or `FoundL0.save` wrote.
        repo: their repository on the Hub, if the card is to load them from there.
    Raises:
        ValueError: the run is not finished or damaged, or has no such SAE.
        OSError: there is no recommendation in its folder.
    """
    if run.manifest["status"] != "finished":
        raise ValueError(f"The run in {run.path} has not finished; --resume it first.")
    there = run.finished_saes()
    if not there:
        raise ValueError(f"The run in {run.path} has no SAEs; name one that trains some.")
    if unknown := [sae_id for sae_id in sae_ids if sae_id not in there]:
        raise ValueError(
            f"{run.path} has no SAE {', '.join(unknown)}. Available: {', '.join(there)}."
        )
    chosen = tuple(sae_id for sae_id in there if sae_id in (sae_ids or there))
    parts = [f"# {run.manifest['spec']['title']}", _head(repo, chosen[0])]
    if images := [image for image in shown_images(run) if image.png]:
        (folder / "overview.png").write_bytes(images[0].png or b"")
        parts.append(f"![overview](overview.png)\n\n{images[0].caption}")
    parts.append(f"## The SAEs\n\n{_metrics(run, chosen)}")
    if recommendation is not None:
        file, again = recommendation / "recommendation.json", "run `sbw find-l0` again"
        answer = checked(_Answer, read_json(file, again), file, again)
        text = f"## Which L0?\n\n```text\n{answer.text}\n```\n\n{_bullets(answer.made)}"
        figure = recommendation / "plots" / "recommendation.png"
        if figure.is_file():
            shutil.copyfile(figure, folder / "recommendation.png")
            text += "\n\n![the evidence](recommendation.png)"
        parts.append(text)
    metadata = read_json(run.sae_path(chosen[0]) / CONFIG).get("metadata") or {}
    trained_on = {"Model": metadata.get("model_name"), "Hook": metadata.get("hook_name")}
    made = {k: v for k, v in trained_on.items() if v} | facts_of(run.manifest)
    parts.append(f"## How they were made\n\n{_bullets(made)}")
    front = "---\nlibrary_name: saelens\ntags: [sparse-autoencoder, interpretability]\n---\n\n"
    card = front + "\n\n".join(parts) + "\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    for sae_id in chosen:
        run.load_sae(sae_id).save_inference_model(folder / sae_id)


def _head(repo: str | None, sae_id: str) -> str:
    load = f'from_pretrained("{repo}", "{sae_id}")' if repo else f'load_from_disk("{sae_id}")'
    return (
        "Sparse autoencoders for [SAELens](https://github.com/decoderesearch/SAELens), trained and "
        "evaluated with `sparse_but_wrong`.\n\n"
        f"```python\nfrom sae_lens import SAE\n\nsae = SAE.{load}\n```"
    )


def _metrics(run: RunFolder, sae_ids: Sequence[str]) -> str:
    """A row per SAE."""
    table = run.read_table("results").set_index("sae_id").loc[list(sae_ids)]
    s_n = [f"s_{n}" for n in run.manifest["spec"].get("projection_n", ())][::3]
    shown = [name for name in (*_METRICS, *s_n) if name in table and table[name].notna().any()]
    rows = [
        [f"`{sae_id}`", *(format_number(value) for value in row)]
        for sae_id, row in zip(sae_ids, table[shown].to_numpy(float), strict=True)
    ]
    lines = [["SAE", *shown], ["---", *["---:"] * len(shown)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {' '.join(str(value).split())}" for name, value in facts.items())
