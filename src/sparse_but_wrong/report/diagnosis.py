"""SAEs measured on a stream, as a folder: the tables, the figure, and a page that shows them.

saes.csv               a row per SAE
projections.csv        a row per SAE and n: s_n^dec and its standard error
latents.csv            a row per SAE and latent: the share of samples on which it is active
plots/                 the figure, as PDF and PNG
report.html            all of it on one page
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong import atomic
from sparse_but_wrong.figures.distributions import SHARES, stream_scores
from sparse_but_wrong.figures.style import save_figure
from sparse_but_wrong.metrics.findings import saturated, unsettled_thresholds
from sparse_but_wrong.metrics.origin import Origin
from sparse_but_wrong.metrics.stream import DENSE, StreamScore
from sparse_but_wrong.report.embed import data_uri
from sparse_but_wrong.report.render import own_script, render
from sparse_but_wrong.report.tables import shown_table
from sparse_but_wrong.report.write import shown_time

if TYPE_CHECKING:
    import pandas as pd

CAPTION = (
    "Above: s_n^dec over n for every SAE, the darkest at the lowest L0; s_n^dec over L0 for n from "
    "a quarter to half of the latents, bars of two standard errors; similarity of decoder rows and "
    "of encoder columns. Below: how many latents a sample has, on how many samples a latent is "
    "active, and all projections of samples on decoder rows."
)

MANY_DEAD = 0.1
MANY_DENSE = 0.01


def write_diagnosis(
    scores: Mapping[str, StreamScore],
    place: Path,
    title: str,
    facts: Mapping[str, Any],
    said: Sequence[str] | None = None,
    not_measured: Mapping[str, str] | None = None,
) -> Path:
    """Write what was measured into a folder.

    Args:
        scores: by the name of the SAE; at least one.
        place: an empty folder; it is made where there is none.
        title: of the page: what the activations are.
        facts: how it was made, by name.
        said: what stands out, in sentences; `remarks` of the scores if left out.
        not_measured: why not, by the name of the SAE.
    Returns:
        The path of the page.
    Raises:
        FileExistsError: the folder holds something.
    """
    if not atomic.is_free(place):
        raise FileExistsError(
            f"{place} already holds something, and nothing is overwritten; choose a new folder."
        )
    table = score_table(scores)
    _, png = save_figure(stream_scores(scores), place / "plots/scores")
    for name, content in (
        ("saes", table),
        ("projections", projection_table(scores)),
        ("latents", latent_table(scores)),
    ):
        atomic.write_bytes(place / f"{name}.csv", content.to_csv(index=False).encode())
    page = render(
        "diagnosis.html.jinja",
        [own_script("tables.js")],
        title=title,
        n_samples=f"{max(score.n_samples for score in scores.values()):,}",
        remarks=remarks(scores) if said is None else said,
        not_measured=not_measured or {},
        image=data_uri(png.read_bytes(), "image/png"),
        caption=CAPTION,
        scores=shown_table("saes", "A row per SAE.", table),
        facts={k: shown_time(v) if k == "Started" else str(v) for k, v in facts.items()},
    )
    atomic.write_bytes(place / "report.html", page)
    return place / "report.html"


def score_table(scores: Mapping[str, StreamScore]) -> pd.DataFrame:
    """A row per SAE, with s_n^dec for n of a quarter to half of its latents.

    Columns `s_0.25H` and so on, with their standard errors, are comparable between SAEs of one
    width only.
    """
    import pandas as pd

    rows = []
    for name, score in scores.items():
        row: dict[str, Any] = {"sae": name, **score.as_row()}
        for share in SHARES:
            n = int(share * score.d_sae)
            row[f"s_{share:g}H"] = float(score.projections.values[n])
            row[f"s_{share:g}H_standard_error"] = float(score.projections.standard_errors[n])
        rows.append(row)
    return pd.DataFrame(rows)


def projection_table(scores: Mapping[str, StreamScore]) -> pd.DataFrame:
    """A row per SAE and n: `sae`, `n`, `s_n`, `standard_error`."""
    import pandas as pd

    return pd.concat(
        [
            pd.DataFrame(
                {
                    "sae": name,
                    "n": range(score.d_sae),
                    "s_n": score.projections.values.numpy(),
                    "standard_error": score.projections.standard_errors.numpy(),
                }
            )
            for name, score in scores.items()
        ],
        ignore_index=True,
    )


def latent_table(scores: Mapping[str, StreamScore]) -> pd.DataFrame:
    """A row per SAE and latent: `sae`, `latent`, `density`."""
    import pandas as pd

    return pd.concat(
        [
            pd.DataFrame(
                {"sae": name, "latent": range(score.d_sae), "density": score.densities.numpy()}
            )
            for name, score in scores.items()
        ],
        ignore_index=True,
    )


def remarks(
    scores: Mapping[str, StreamScore], origins: Mapping[str, Origin] | None = None
) -> list[str]:
    """What of the figures should not be overlooked: the numbers, the bound and what to do.

    Args:
        scores: by the name of the SAE.
        origins: how these were trained, where that is known.
    """
    said = []
    diverged = [name for name, score in scores.items() if _diverged(score)]
    if diverged:
        said.append(
            f"Diverged, with weights or activations that are not finite: {', '.join(diverged)}."
        )
    fine = {name: score for name, score in scores.items() if name not in diverged}
    # Where no latent is active the bias alone is left, and that is said of dead latents.
    explained = {n: score.variance_explained.value for n, score in fine.items() if score.l0.value}
    if worse := {name: value for name, value in explained.items() if value < 0}:
        said.append(
            "Variance explained below 0, which is worse than the mean of the samples alone: "
            f"{', '.join(f'{value:.3g} ({name})' for name, value in worse.items())}. Such an SAE "
            "was trained on other activations (model, hook, or scale), or is read as something "
            "that it is not; check where both come from before using any number here."
        )
    said += _of_training(fine, origins or {})
    dead = {name: score.dead_latents / score.d_sae for name, score in fine.items()}
    if many := _named(dead, MANY_DEAD):
        said.append(
            f"Latents that were active on no sample: {many}. Where they are more than "
            f"{MANY_DEAD:.0%}, s_n^dec and c_dec are in part those of directions that nothing "
            "trained. Measure on more samples; if they stay dead, train with reinit_dead_every."
        )
    dense = {
        name: float(score.densities[score.densities > DENSE].sum()) / score.l0.value
        for name, score in fine.items()
        if score.dense_latents > MANY_DENSE * score.d_sae
    }
    if many := _named(dense, 0):
        said.append(
            f"Share of the L0 that comes from latents active on more than {DENSE:.0%} of the "
            f"samples: {many}."
        )
    few = min(score.n_batches for score in scores.values())
    if few < _FEW_BATCHES:
        said.append(
            f"There {'was 1 batch' if few == 1 else f'were {few} batches'}, and standard errors "
            f"want {_FEW_BATCHES} or more. Measure on more samples, or in smaller batches."
        )
    return said


def _of_training(scores: Mapping[str, StreamScore], origins: Mapping[str, Origin]) -> Iterator[str]:
    """What the measured L0 says of the training."""
    known = {
        name: (origins[name], score.l0.value) for name, score in scores.items() if name in origins
    }
    settled = unsettled_thresholds(
        (name, origin.batchtopk_k, l0)
        for name, (origin, l0) in known.items()
        if origin.batchtopk_k is not None
    )
    families: dict[str, list[tuple[str, float, float]]] = {}
    for name, (origin, l0) in known.items():
        if origin.coefficient is not None:
            families.setdefault(origin.family, []).append((name, origin.coefficient, l0))
    yield from filter(None, (settled, *map(saturated, families.values())))


_FEW_BATCHES = 8


def _diverged(score: StreamScore) -> bool:
    return math.isnan(score.l0.value) or bool(score.projections.values.isnan().any())


def _named(shares: Mapping[str, float], above: float | int) -> str:
    return ", ".join(f"{share:.0%} ({name})" for name, share in shares.items() if share > above)
