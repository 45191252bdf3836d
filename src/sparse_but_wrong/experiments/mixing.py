"""The four experiments on five features: do latents take on a feature correlated to theirs?

Every SAE starts at the true features, so latent i is that of feature i; feature 0 is the one that
is correlated with all others.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the toy model of 5 features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sparse_but_wrong.experiments.analysis import (
    Analysis,
    MeasuredTable,
    NamedFigure,
    Run,
    rank_correlation,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import N_SMALL
from sparse_but_wrong.metrics.recovery import feature_components, feature_mixing, mean_abs_cosine
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.worlds.correlations import firing_correlation

if TYPE_CHECKING:
    import pandas as pd

NO_COMPONENT = 0.05
"""A latent with no more than this of another feature counts as clean. Exactly 0 is not to be had:
BatchTopK keeps k·B values of every batch, and k is too low for one whose features fire more often
than on average."""

_COMPONENT = "component_"


class Mixing(Analysis):
    """Measures how much of feature 0 the latents of the other features hold.

    Args:
        checks: what a table of mixing, with `ortho_num_steps` too, says about the claim.
        figures: of such a table.
    """

    def __init__(
        self,
        checks: Callable[[pd.DataFrame], Sequence[Check]],
        figures: Callable[[Run, pd.DataFrame], list[NamedFigure]],
    ) -> None:
        self.checks, self.figures = checks, figures

    def measure(self, run: Run) -> dict[str, MeasuredTable]:
        """As the base class: a row per SAE, and a row per setting."""
        table = measure_mixing(run)
        came_down = lowering_in_words(run.spec)
        return {
            "mixing": MeasuredTable(
                table,
                "What the decoder rows of the latents of features 1, 2, … hold of feature 0, over "
                "and above what the true directions have in common. mixing is the mean; elsewhere, "
                "the largest that they hold of any third feature.",
            ),
            "by_setting": MeasuredTable(
                by_setting(_with_steps(run, table)),
                "The same over the seeds of each setting: means, with the spread of mixing, and "
                f"how many latents hold more than {NO_COMPONENT:g} of feature 0, with the sign of "
                "the correlation or against it. one_latent counts SAEs of which one latent holds "
                "more of feature 0 than all others together; elsewhere, those whose latents hold "
                "more of a third feature. correlation is latent, that of the copula; between the "
                "0/1 firings it is the weaker firing_correlation. k is that of training, l0 that "
                "of use, with thresholds. Added SAEs are not part of the published grid and not "
                f"judged{f'; in the lowered ones k came down {came_down}' if came_down else ''}.",
            ),
        }

    def judge(self, run: Run) -> Verdict:
        """As the base class."""
        checks = self.checks(_with_steps(run, run.tables["mixing"].frame))
        return Verdict(tuple(checks), tuple(remarks(run.tables["by_setting"].frame)))

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class; SAEs that diverged are left out, which the verdict says."""
        table = _with_steps(run, run.tables["mixing"].frame)
        return self.figures(run, table.loc[np.isfinite(floats(table, "mixing"))])


def _with_steps(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    steps = [run.spec.toy_world(name).ortho_num_steps for name in table["world"]]
    return table.assign(ortho_num_steps=steps)


def draw_components(run: Run, table: pd.DataFrame) -> list[NamedFigure]:
    """What each latent holds of each feature: by the noise of the world, and what was added."""
    few, lowered = floats(table, "d_in") < N_SMALL, table["lowered"].to_numpy(bool)
    steps = floats(table, "ortho_num_steps")
    strongest, *weaker = np.unique(steps[~few])
    is_shown = ~few & ~lowered
    drawn = [
        (is_shown & (steps == strongest), "", ""),
        (lowered, "lowered_", f", where k came down {lowering_in_words(run.spec)}"),
        *(
            (is_shown & (steps == n), f"weaker_{i}_", ", in worlds with weaker noise")
            for i, n in enumerate(weaker, start=1)
        ),
        (few, "fewer_dimensions_", ", in worlds with fewer dimensions than features"),
    ]
    return [figure for rows, *words in drawn for figure in _heatmaps(run, table.loc[rows], *words)]


def draw_by_correlation(run: Run, table: pd.DataFrame) -> list[NamedFigure]:
    """Mixing against the correlation."""
    from sparse_but_wrong.figures.mixing import mixing_vs_correlation

    del run
    return [NamedFigure("overview", mixing_vs_correlation(table), _DOTS)] if len(table) else []


def draw_by_k(run: Run, table: pd.DataFrame) -> list[NamedFigure]:
    """Mixing against k."""
    from sparse_but_wrong.figures.mixing import mixing_vs_k

    how = f"whose k came down {lowering_in_words(run.spec)}"
    caption = f"{_DOTS} Dashed: SAEs added to the published ones, {how}."
    figures = [mixing_vs_k(table, "$k$ lowered")] if len(table) else []
    return [NamedFigure("overview", figure, caption) for figure in figures]


_DOTS = (
    "What the latents of the other features hold of feature 0: each latent (dots), and the mean "
    "over latents with its mean and standard deviation over seeds."
)


def measure_mixing(run: Run) -> pd.DataFrame:
    """A row per SAE: its factors, both correlations, its L0, and what its latents hold."""
    import pandas as pd

    measured = run.table.set_index("sae_id")
    rows: dict[str, dict[str, Any]] = {}
    for name in run.spec.worlds:
        world, directions = run.spec.toy_world(name), run.world(name).directions
        first, *others = world.firing_probabilities
        for sae in run.spec.of_world(name):
            mixing = feature_mixing(run.saes[sae.sae_id], directions)
            c = float(sae.factors["correlation"])
            rows[sae.sae_id] = {
                "sae_id": sae.sae_id,
                "world": name,
                "added": sae.added,
                "lowered": sae.control is not None,
                "d_in": world.d_in,
                **sae.factors,
                "firing_correlation": fmean(firing_correlation(c, first, p) for p in others),
                "true_l0": sum(world.firing_probabilities),
                "l0": measured.at[sae.sae_id, "l0"],
                "mse": measured.at[sae.sae_id, "mse"],
                "mean_abs_cosine": mean_abs_cosine(directions),
                "mixing": mixing.mean,
                **{
                    f"{_COMPONENT}{i}": value
                    for i, value in enumerate(mixing.components.tolist(), start=1)
                },
                "elsewhere": mixing.elsewhere,
                "smallest_own_cosine": mixing.own.min().item(),
            }
    return pd.DataFrame([rows[sae.sae_id] for sae in run.spec.saes])


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """A row per setting of a table of mixing that has `ortho_num_steps` too."""
    import pandas as pd

    keys = ["ortho_num_steps", "d_in", "correlation", "k", "lowered", "added"]
    rows = []
    for _, of in table.groupby(keys, sort=False):
        components, elsewhere = of_components(of), floats(of, "elsewhere")
        with_sign = components * np.sign(floats(of, "correlation"))[:, None]
        largest = np.abs(components).max(1)
        alone = (2 * largest > np.abs(components).sum(1)) & (components.shape[1] > 2)
        means = ("firing_correlation", "mean_abs_cosine", "l0", "mse", "mixing")
        rows.append(
            {
                **of.iloc[0][keys].to_dict(),
                "saes": len(of),
                **{name: floats(of, name).mean() for name in means},
                "mixing_spread": floats(of, "mixing").std(ddof=1) if len(of) > 1 else math.nan,
                "latents": components.size,
                "with_sign": int((with_sign > NO_COMPONENT).sum()),
                "against_sign": int((with_sign < -NO_COMPONENT).sum()),
                "largest": largest.max(),
                "one_latent": int((alone & (largest > NO_COMPONENT)).sum()),
                "elsewhere": int(((elsewhere > largest) & (elsewhere > NO_COMPONENT)).sum()),
                "largest_elsewhere": elsewhere.max(),
            }
        )
    return pd.DataFrame(rows)


def remarks(settings: pd.DataFrame) -> list[str]:
    """What the means over latents and seeds hide in the SAEs that are judged, as sentences."""
    judged = settings.loc[~settings["added"]]
    n_saes, alone, elsewhere = (int(judged[n].sum()) for n in ("saes", "one_latent", "elsewhere"))
    said = []
    if alone:
        said.append(
            f"In {alone} of {n_saes} SAEs one latent holds more of feature 0 than all others "
            "together, which the mean over latents hides (see by_setting, one_latent)."
        )
    if elsewhere:
        said.append(
            f"In {elsewhere} of {n_saes} SAEs the latents mix, but mostly with features other than "
            "feature 0, which the checks do not count (see by_setting, elsewhere)."
        )
    return said


def of_components(table: pd.DataFrame) -> Float[np.ndarray, "rows others"]:
    """What the latents of features 1, 2, … hold of feature 0, a row per SAE."""
    names = [name for name in table.columns if str(name).startswith(_COMPONENT)]
    return table[names].to_numpy(dtype=np.float64)


def floats(table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    """A column as float64."""
    return table[column].to_numpy(dtype=np.float64)


def judge_signs(table: pd.DataFrame, where: str = "") -> tuple[Check, ...]:
    """Whether latents mix where k is below the true L0, and nowhere else.

    Args:
        table: of mixing; SAEs added to the published ones are left out.
        where: which worlds the checks are about; every check begins with it.
    """
    table = table.loc[~table["added"]]
    diverged = not_finite(table)
    # The firing probabilities are added up in floating point.
    too_low = floats(table, "k") < floats(table, "true_l0") - 1e-9
    checks = []
    for sign, word, beyond in ((1, "positive", "above"), (-1, "negative", "below")):
        rows = table.loc[too_low & (np.sign(floats(table, "correlation")) == sign)]
        if rows.empty:
            continue
        values = sign * of_components(rows)
        checks.append(
            Check(
                f"{where}below the true L0 (k = {_ks(rows)}), where the correlation is {word}, "
                f"every latent of another feature takes on a {word} component of feature 0, "
                f"{beyond} {sign * NO_COMPONENT:+g}",
                diverged
                or f"{int((values > NO_COMPONENT).sum())} of {values.size} latents; from "
                f"{sign * values.min():+.3f} to {sign * values.max():+.3f}",
                None if diverged else bool((values > NO_COMPONENT).all()),
            )
        )
    rows = table.loc[~too_low]
    if not rows.empty:
        values = np.abs(of_components(rows))
        checks.append(
            Check(
                f"{where}at the true L0 or above (k = {_ks(rows)}) none takes on more than "
                f"{NO_COMPONENT:g} of it, of either sign",
                diverged
                or f"{int((values <= NO_COMPONENT).sum())} of {values.size} latents; the largest "
                f"is {values.max():.3f}",
                None if diverged else bool((values <= NO_COMPONENT).all()),
            )
        )
    return tuple(checks)


def judge_superposition(table: pd.DataFrame) -> tuple[Check, ...]:
    """As `judge_signs`, for each strength of the noise by itself.

    What the true directions have in common is subtracted from all that is judged.
    """
    checks: list[Check] = []
    for _, noise in table.loc[~table["added"]].groupby("ortho_num_steps", sort=True):
        cosine = floats(noise.drop_duplicates("world"), "mean_abs_cosine")
        where = (
            f"noise of mean |cosine| {cosine.mean():.3f} ({cosine.min():.3f} to "
            f"{cosine.max():.3f}), "
        )
        checks += judge_signs(noise, where)
    return tuple(checks)


def judge_correlations(table: pd.DataFrame) -> tuple[Check, ...]:
    """Whether mixing rises with the correlation and has its sign.

    Args:
        table: of mixing, all SAEs of the same k.
    """
    rises = "the mean over seeds of mixing rises from each correlation to the next"
    signs = (
        "it has the sign of the correlation for every SAE, and without correlation it is at most "
        f"{NO_COMPONENT:g} either way"
    )
    if diverged := not_finite(table):
        return Check(rises, diverged, None), Check(signs, diverged, None)
    said, means = _means(table, "correlation", "{:+g}")
    falls = [f"{a:+g} to {b:+g}" for a, b in pairwise(means) if not means[a] < means[b]]
    where = f"; it does not from {', '.join(falls)}" if falls else ""
    correlation, mixing = floats(table, "correlation"), floats(table, "mixing")
    rank = rank_correlation(correlation, mixing)
    right = np.sign(mixing[correlation != 0]) == np.sign(correlation[correlation != 0])
    without = np.abs(mixing[correlation == 0])
    largest = f"; without correlation up to {without.max():.3f}" if without.size else ""
    return (
        Check(
            rises,
            f"{said}{where}; Spearman's rank correlation over all SAEs {rank:.3f}",
            not falls,
        ),
        Check(
            signs,
            f"{int(right.sum())} of {len(right)} SAEs{largest}",
            bool(right.all() and (without <= NO_COMPONENT).all()),
        ),
    )


def judge_l0s(table: pd.DataFrame) -> tuple[Check, ...]:
    """Whether mixing of the correlation's sign rises as k falls, for every correlation by itself.

    Args:
        table: of mixing, no correlation 0; SAEs added to the published ones are left out.
    """
    judged = table.loc[~table["added"]]
    checks = []
    for correlation in sorted(set(floats(judged, "correlation").tolist()), reverse=True):
        rows = judged.loc[floats(judged, "correlation") == correlation]
        claim = (
            f"correlation {correlation:+g}: the mean over seeds of mixing, with the sign of the "
            "correlation, rises from each k to the next lower one"
        )
        if diverged := not_finite(rows):
            checks.append(Check(claim, diverged, None))
            continue
        said, means = _means(rows, "k", "k = {:g}", falling=True)
        sign = float(np.sign(correlation))
        rank = rank_correlation(floats(rows, "k"), sign * floats(rows, "mixing"))
        holds = all(sign * a < sign * b for a, b in pairwise(means.values()))
        said = f"{said}; Spearman's rank correlation with k over all SAEs {rank:.3f}"
        checks.append(Check(claim, said, holds))
    return tuple(checks)


def _means(
    table: pd.DataFrame, factor: str, label: str, *, falling: bool = False
) -> tuple[str, dict[float, float]]:
    """Mixing at each value of a factor, in order: in words, with its spread, and the means."""
    at, mixing = floats(table, factor), floats(table, "mixing")
    said, means = [], {}
    for value in sorted(set(at.tolist()), reverse=falling):
        values = mixing[at == value]
        spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        said.append(f"{label.format(value)}: {values.mean():+.3f}{spread}")
        means[value] = float(values.mean())
    return "; ".join(said), means


def not_finite(table: pd.DataFrame) -> str:
    """Which SAEs diverged, in words; empty if none did."""
    diverged = table.loc[~np.isfinite(floats(table, "mixing")), "sae_id"].tolist()
    return f"SAEs that diverged: {', '.join(diverged)}" if diverged else ""


def lowering_in_words(spec: ExperimentSpec) -> str:
    """From where k came down, and when; to follow "came down". Empty if none did."""
    for sae in spec.saes:
        if isinstance(sae.control, KTransition):
            start, end = sae.control.start_step, sae.control.end_step
            return (
                f"from {sae.control.initial_k:g} between steps {start:,} and {end:,} of "
                f"{spec.training.n_steps:,}"
            )
    return ""


def _ks(rows: pd.DataFrame) -> str:
    return ", ".join(f"{k:g}" for k in sorted(set(floats(rows, "k").tolist()), reverse=True))


def _heatmaps(run: Run, table: pd.DataFrame, prefix: str, where: str) -> list[NamedFigure]:
    """What each latent holds of each feature, in the first world of each correlation."""
    from sparse_but_wrong.figures.heatmaps import feature_components_heatmaps

    firsts = table.drop_duplicates("correlation")["world"].tolist()
    shown = table.loc[table["world"].isin(firsts)]
    panels = [
        (
            f"$k = {row['k']:g}$, correlation ${row['correlation']:+g}$",
            feature_components(run.saes[row["sae_id"]], run.world(row["world"]).directions).numpy(),
        )
        for row in shown.to_dict("records")
    ]
    if not panels:
        return []
    caption = (
        f"What the decoder row of each latent holds of each true feature{where}, over and above "
        "what the true directions have in common. Feature 0 is correlated with all others; its "
        "column is empty but for its own latent where latents are features."
    )
    return [NamedFigure(f"{prefix}overview", feature_components_heatmaps(panels), caption)]
