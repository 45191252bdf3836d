"""Four experiments on five features: do latents take on a feature correlated to theirs?

Every SAE starts at the true features, so latent i is that of feature i; feature 0 is the one that
is correlated with all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sparse_but_wrong.experiments.analysis import (
    Analysis,
    Figures,
    MeasuredTable,
    Run,
    floats,
    rank_correlation,
)
from sparse_but_wrong.experiments.registry import N_SMALL
from sparse_but_wrong.experiments.verdict import Check, Verdict, check
from sparse_but_wrong.figures.heatmaps import feature_components_heatmaps
from sparse_but_wrong.figures.mixing import mixing_vs_correlation, mixing_vs_k
from sparse_but_wrong.metrics.recovery import feature_components, mean_abs_cosine
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.worlds.correlations import firing_correlation

NO_COMPONENT = 0.05
"""A latent with no more than this of another feature counts as clean. Exactly 0 is not to be had:
BatchTopK keeps k·B values of every batch, and k is too low for one whose features fire more often
than on average."""

_COMPONENT = "component_"


def of_components(table: pd.DataFrame) -> Float[np.ndarray, "rows others"]:
    """What the latents of features 1, 2, … hold of feature 0, a row per SAE."""
    return table.filter(regex=f"^{_COMPONENT}").to_numpy(dtype=np.float64)


def lowering_in_words(spec: ExperimentSpec) -> str:
    """From where k came down, and when; to follow "came down". Empty if none did."""
    for sae in spec.saes:
        if isinstance(control := sae.control, KTransition):
            steps = f"{control.start_step:,} and {control.end_step:,} of {spec.training.n_steps:,}"
            return f"from {control.initial_k:g} between steps {steps}"
    return ""


def _measure(run: Run) -> dict[str, MeasuredTable]:
    """How much of feature 0 the latents of the others hold: a row per SAE, and one per setting."""
    mixing = measure_mixing(run)
    came_down = lowering_in_words(run.spec)
    lowered = f" In the lowered ones k came down {came_down}." if came_down else ""
    return {
        "mixing": MeasuredTable(
            mixing,
            "What the decoder rows of the latents of features 1, 2, … hold of feature 0, over and "
            "above what the true directions have in common. mixing is the mean; elsewhere, the "
            "largest that they hold of any third feature.",
        ),
        "by_setting": MeasuredTable(
            by_setting(_with_steps(run, mixing)),
            "Means over the seeds of each setting. with_sign and against_sign count latents that "
            f"hold more than {NO_COMPONENT:g} of feature 0, with the sign of the correlation or "
            "against it; one_latent, SAEs of which one latent holds more of it than all others "
            "together; elsewhere, SAEs whose latents hold more of a third feature. correlation is "
            "that of the copula, firing_correlation the weaker one of the 0/1 firings. k is that "
            f"of training, l0 that of use. Added SAEs are not judged.{lowered}",
        ),
    }


def _with_steps(run: Run, mixing: pd.DataFrame) -> pd.DataFrame:
    steps = [run.spec.toy_world(name).ortho_num_steps for name in mixing["world"]]
    return mixing.assign(ortho_num_steps=steps)


def measure_mixing(run: Run) -> pd.DataFrame:
    """A row per SAE: its factors, both correlations, its L0, and what its latents hold."""
    measured, rows = run.table.set_index("sae_id"), []
    for sae in run.spec.saes:
        world, directions = run.spec.toy_world(sae.world), run.world(sae.world).directions
        first, *others = world.firing_probabilities
        matrix = feature_components(run.saes[sae.sae_id], directions)
        mixing, own = matrix[1:, 0].contiguous(), matrix.diagonal()[1:]
        c, components = float(sae.factors["correlation"]), mixing.tolist()
        rows.append(
            {
                "sae_id": sae.sae_id,
                "world": sae.world,
                "added": sae.added,
                "lowered": sae.control is not None,
                "d_in": world.d_in,
                **sae.factors,
                "firing_correlation": fmean(firing_correlation(c, first, p) for p in others),
                "true_l0": sum(world.firing_probabilities),
                **measured.loc[sae.sae_id, ["l0", "mse"]].to_dict(),
                "mean_abs_cosine": mean_abs_cosine(directions),
                "mixing": mixing.mean().item(),
                **{f"{_COMPONENT}{i}": value for i, value in enumerate(components, start=1)},
                "elsewhere": (matrix[1:, 1:] - own.diag()).abs().max().item(),
                "smallest_own_cosine": own.min().item(),
            }
        )
    return pd.DataFrame(rows)


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """A row per setting of a table of mixing that has `ortho_num_steps` too."""
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
    """What the means over latents and seeds hide in the SAEs that are judged."""
    judged = settings.loc[~settings["added"]]
    hidden = {
        "one_latent": "one latent holds more of feature 0 than all others together",
        "elsewhere": "the latents mix, but mostly with features other than feature 0",
    }
    counts = {column: int(judged[column].sum()) for column in hidden}
    return [
        f"In {n} of {int(judged['saes'].sum())} SAEs {hidden[column]} (see by_setting, {column})."
        for column, n in counts.items()
        if n
    ]


def judge_signs(table: pd.DataFrame, where: str = "") -> list[Check]:
    """Whether latents mix where k is below the true L0, and nowhere else; SAEs added to the
    published ones are left out. Every check begins with `where`, the worlds that it is about."""
    table = table.loc[~table["added"]]
    # The firing probabilities are added up in floating point.
    too_low = floats(table, "k") < floats(table, "true_l0") - 1e-9
    checks = []
    for sign, word in ((1, "positive"), (-1, "negative"), (0, "")):
        rows = too_low & (np.sign(floats(table, "correlation")) == sign) if sign else ~too_low
        if not rows.any():
            continue
        values, ks = of_components(table.loc[rows]), np.unique(floats(table, "k")[rows])[::-1]
        at = f"(k = {', '.join(f'{k:g}' for k in ks)})"
        if sign:
            fits = sign * values > NO_COMPONENT
            claim = (
                f"below the true L0 {at}, where the correlation is {word}, every latent of another "
                f"feature takes on a {word} component of feature 0, beyond {sign * NO_COMPONENT:+g}"
            )
        else:
            fits = np.abs(values) <= NO_COMPONENT
            claim = (
                f"at the true L0 or above {at} none takes on more than {NO_COMPONENT:g} of it, of "
                "either sign"
            )
        checks.append(
            check(
                f"{where}{claim}",
                f"{int(fits.sum())} of {fits.size} latents; from {values.min():+.3f} to "
                f"{values.max():+.3f}",
                fits.all(),
                unless=not_finite(table),
            )
        )
    return checks


def judge_superposition(table: pd.DataFrame) -> list[Check]:
    """As `judge_signs`, for each strength of the noise by itself.

    What the true directions have in common is subtracted from all that is judged.
    """
    checks: list[Check] = []
    for _, noise in table.loc[~table["added"]].groupby("ortho_num_steps", sort=True):
        cosine = floats(noise.drop_duplicates("world"), "mean_abs_cosine")
        spread = f"{cosine.mean():.3f} ({cosine.min():.3f} to {cosine.max():.3f})"
        checks += judge_signs(noise, f"noise of mean |cosine| {spread}, ")
    return checks


def judge_correlations(table: pd.DataFrame) -> list[Check]:
    """Whether mixing rises with the correlation and has its sign; all SAEs are of the same k."""
    correlation, mixing = floats(table, "correlation"), floats(table, "mixing")
    right = np.sign(mixing[correlation != 0]) == np.sign(correlation[correlation != 0])
    without = np.abs(mixing[correlation == 0])
    largest = f"; without correlation up to {without.max():.3f}" if without.size else ""
    return [
        _judge_rise(
            "the mean over seeds of mixing rises from each correlation to the next",
            *(table, "correlation", "{:+g}"),
        ),
        check(
            "it has the sign of the correlation for every SAE, and without correlation it is at "
            f"most {NO_COMPONENT:g} either way",
            f"{int(right.sum())} of {len(right)} SAEs{largest}",
            right.all() and (without <= NO_COMPONENT).all(),
            unless=not_finite(table),
        ),
    ]


def judge_l0s(table: pd.DataFrame) -> list[Check]:
    """Whether mixing of the correlation's sign rises as k falls, for every correlation by itself.

    No correlation is 0; SAEs added to the published ones are left out.
    """
    judged = table.loc[~table["added"]]
    return [
        _judge_rise(
            f"correlation {c:+g}: the mean over seeds of mixing, with the sign of the correlation, "
            "rises from each k to the next lower one",
            *(judged.loc[floats(judged, "correlation") == c], "k", "k = {:g}"),
            sign=int(np.sign(c)),
            falling=True,
        )
        for c in np.unique(floats(judged, "correlation"))[::-1]
    ]


def _judge_rise(
    claim: str,
    table: pd.DataFrame,
    factor: str,
    label: str,
    *,
    sign: int = 1,
    falling: bool = False,
) -> Check:
    """Whether the mean of mixing, times a sign, rises over the values of a factor."""
    at, mixing = floats(table, factor), floats(table, "mixing")
    said, means = [], {}
    for value in np.unique(at)[:: -1 if falling else 1]:
        values, name = mixing[at == value], label.format(value)
        spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        means[name] = values.mean()
        said.append(f"{name}: {means[name]:+.3f}{spread}")
    falls = [f"{a} to {b}" for a, b in pairwise(means) if not sign * means[a] < sign * means[b]]
    if falls:
        said.append(f"it does not from {', '.join(falls)}")
    rank = rank_correlation(at, sign * mixing)
    said.append(f"Spearman's rank correlation with {factor} over all SAEs {rank:.3f}")
    return check(claim, "; ".join(said), not falls, unless=not_finite(table))


def not_finite(table: pd.DataFrame) -> str:
    """Which SAEs diverged, in words; empty if none did."""
    diverged = table.loc[~np.isfinite(floats(table, "mixing")), "sae_id"].tolist()
    return f"SAEs that diverged: {', '.join(diverged)}" if diverged else ""


def _judge(checks: Callable[[pd.DataFrame], Sequence[Check]], run: Run) -> Verdict:
    mixing, settings = (run.tables[name].frame for name in ("mixing", "by_setting"))
    return Verdict(tuple(checks(_with_steps(run, mixing))), tuple(remarks(settings)))


def _draw(draw: Callable[[Run, pd.DataFrame], Figures], run: Run) -> Figures:
    """SAEs that diverged are left out, which the verdict says."""
    table = _with_steps(run, run.tables["mixing"].frame)
    return draw(run, table.loc[np.isfinite(floats(table, "mixing"))])


_DOTS = (
    "What the latents of the other features hold of feature 0: each latent (dots), and the mean "
    "over latents with its mean and standard deviation over seeds."
)


def _draw_by_correlation(_: Run, table: pd.DataFrame) -> Figures:
    return {"overview": (mixing_vs_correlation(table), _DOTS)} if len(table) else {}


def _draw_by_k(run: Run, table: pd.DataFrame) -> Figures:
    how = f"whose k came down {lowering_in_words(run.spec)}"
    caption = f"{_DOTS} Dashed: SAEs added to the published ones, {how}."
    return {"overview": (mixing_vs_k(table, "$k$ lowered"), caption)} if len(table) else {}


def _draw_components(run: Run, table: pd.DataFrame) -> Figures:
    """What each latent holds of each feature: by the noise of the world, and what was added."""
    few, lowered = floats(table, "d_in") < N_SMALL, table["lowered"].to_numpy(bool)
    steps = floats(table, "ortho_num_steps")
    levels = np.unique(steps[~few])  # from the strongest noise to the weakest
    is_shown = ~few & ~lowered
    drawn = [
        *((is_shown & (steps == n), "", "") for n in levels[:1]),
        (lowered, "lowered_", f", where k came down {lowering_in_words(run.spec)}"),
        *(
            (is_shown & (steps == n), f"weaker_{i}_", ", in worlds with weaker noise")
            for i, n in enumerate(levels[1:], start=1)
        ),
        (few, "fewer_dimensions_", ", in worlds with fewer dimensions than features"),
    ]

    def panel(row: dict[Any, Any]) -> tuple[str, np.ndarray]:
        title = f"$k = {row['k']:g}$, correlation ${row['correlation']:+g}$"
        sae, directions = run.saes[row["sae_id"]], run.world(row["world"]).directions
        return title, feature_components(sae, directions).numpy()

    figures: Figures = {}
    for rows, prefix, where in drawn:
        of = table.loc[rows]
        # The first world of each correlation.
        shown = of.loc[of["world"].isin(of.drop_duplicates("correlation")["world"])]
        if not shown.empty:
            figure = feature_components_heatmaps([panel(row) for row in shown.to_dict("records")])
            caption = (
                f"What the decoder row of each latent holds of each true feature{where}, over and "
                "above what the true directions have in common. Feature 0 is correlated with all "
                "others."
            )
            figures[f"{prefix}overview"] = (figure, caption)
    return figures


ANALYSES = {
    name: Analysis(partial(_judge, checks), partial(_draw, draw), _measure)
    for name, checks, draw in (
        ("small", judge_signs, _draw_components),
        ("correlation-strength", judge_correlations, _draw_by_correlation),
        ("l0-strength", judge_l0s, _draw_by_k),
        ("superposition", judge_superposition, _draw_components),
    )
}
