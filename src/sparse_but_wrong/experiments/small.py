"""Four experiments on five features: do latents take on a feature correlated to theirs?

Every SAE starts at the true features, so latent i is that of feature i; feature 0 is the one that
is correlated with all others.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the toy model of 5 features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sparse_but_wrong.experiments.analysis import (
    Analysis,
    MeasuredTable,
    NamedFigure,
    Run,
    floats,
    rank_correlation,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict, check
from sparse_but_wrong.experiments.worlds import BUDGET, N_SMALL, batchtopk, small_world
from sparse_but_wrong.metrics.recovery import feature_components, feature_mixing, mean_abs_cosine
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.worlds.correlations import firing_correlation

TRUE_L0 = 2.0
"""Of every small world: five features of probability 0.4."""

EVALUATION_SAMPLES = 20_000
"""Of experiments with many SAEs. Mixing is read off the weights; on samples only L0 and error are
measured, and with 100,000 of them evaluation would take a third of the time of such a run."""

NO_COMPONENT = 0.05
"""A latent with no more than this of another feature counts as clean. Exactly 0 is not to be had:
BatchTopK keeps k·B values of every batch, and k is too low for one whose features fire more often
than on average."""

_SEEDS, _SIGNS = range(5), (0.4, -0.4)
_CORRELATIONS = tuple(round(tenth / 10, 1) for tenth in range(-5, 6))
_KS = (1.7, 1.75, 1.8, 1.85, 1.9, 1.95, 2.0)

# Without orthogonalisation the directions keep what random ones in 20 dimensions have in common,
# √(2/20π) = 0.18 on average: noise whose strength is no number of ours. A few steps leave about a
# quarter of it. In both the encoder can still tell features apart exactly. In 4 dimensions it
# cannot, and all cosines are ±0.25 at best; the claim is not judged there.
_NOISES: dict[str, dict[str, int]] = {
    "": {"ortho_num_steps": 0},
    "mild_": {"ortho_num_steps": 8},
    f"d_in_{N_SMALL - 1}_": {"d_in": N_SMALL - 1},
}
_NO_NOISE: dict[str, dict[str, int]] = {"": {}}


def _experiment(
    name: str,
    title: str,
    claim: str,
    cells: Iterable[tuple[float, int, float, bool]],
    *,
    noises: Mapping[str, Mapping[str, int]] = _NO_NOISE,
    sae_id: str = "{world}_k_{k:g}",
    world: str = "c_{c:+g}_seed_{seed}",
    evaluation_samples: int = EVALUATION_SAMPLES,
) -> ExperimentSpec:
    """BatchTopK SAEs that start at the true features of small worlds.

    Args:
        cells: correlation, number of the world, k, and whether k comes down from the true L0 over
            the first half of training. That tells what a low k does from what starting at it does:
            a low k from the first step may lead to another minimum.
        noises: options of the worlds, by a prefix of their names.
        sae_id, world: how SAEs and worlds are named.
    """
    worlds, saes, cells = {}, [], list(cells)
    for prefix, noise in noises.items():
        for c, seed, k, lowered in cells:
            if lowered and prefix:
                continue
            of_world = prefix + world.format(c=c, seed=seed)
            worlds[of_world] = small_world(c, **noise)
            sae = batchtopk(
                sae_id.format(world=of_world, k=k) + ("_lowered" if lowered else ""),
                k,
                N_SMALL,
                added=lowered or "d_in" in noise,
                world=of_world,
                factors={"correlation": c, "k": k, "seed": seed},
                init="true_features",
                control=KTransition(TRUE_L0, 0, BUDGET.n_steps // 2) if lowered else None,
            )
            saes.append(sae)
    return ExperimentSpec(
        name, title, claim, worlds, tuple(saes), BUDGET, evaluation_samples, analysis=name
    )


SMALL = _experiment(
    "small",
    "Five features, the first correlated with the others, at the true L0 and below it",
    "at k = 1.8 every latent takes on a component of the correlated feature, of the sign of the "
    "correlation; at k = 2, the true L0, none does",
    ((c, 0, k, False) for c in _SIGNS for k in (2.0, 1.8)),
    world="c_{c:+g}",
    evaluation_samples=100_000,
)

CORRELATION_STRENGTH = _experiment(
    "correlation-strength",
    "How much latents mix at k = 1.8, over the strength of the correlation",
    "mixing grows with the correlation and has its sign",
    ((c, seed, 1.8, False) for c in _CORRELATIONS for seed in _SEEDS),
    sae_id="{world}",
)

L0_STRENGTH = _experiment(
    "l0-strength",
    "How much latents mix, over how far k is below the true L0",
    "the further k is below the true L0, the more latents mix",
    (
        (c, seed, k, lowered)
        for c in _SIGNS
        for seed in _SEEDS
        for lowered in (False, True)
        for k in _KS
        if k < TRUE_L0 or not lowered
    ),
)

SUPERPOSITION = _experiment(
    "superposition",
    "The same five features with superposition noise",
    "with superposition noise as without, every latent takes on a component of the correlated "
    "feature at k = 1.8, of the sign of the correlation, and none does at k = 2, over and above "
    "what the true directions have in common",
    (
        (c, seed, k, lowered)
        for c in _SIGNS
        for seed in _SEEDS
        for k, lowered in ((2.0, False), (1.8, False), (1.8, True))
    ),
    noises=_NOISES,
)

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
    lowered = f"; in the lowered ones k came down {came_down}" if came_down else ""
    return {
        "mixing": MeasuredTable(
            mixing,
            "What the decoder rows of the latents of features 1, 2, … hold of feature 0, over and "
            "above what the true directions have in common. mixing is the mean; elsewhere, the "
            "largest that they hold of any third feature.",
        ),
        "by_setting": MeasuredTable(
            by_setting(_with_steps(run, mixing)),
            "The same over the seeds of each setting: means, with the spread of mixing, and how "
            f"many latents hold more than {NO_COMPONENT:g} of feature 0, with the sign of the "
            "correlation or against it. one_latent counts SAEs of which one latent holds more of "
            "feature 0 than all others together; elsewhere, those whose latents hold more of a "
            "third feature. correlation is latent, that of the copula; between the 0/1 firings it "
            "is the weaker firing_correlation. k is that of training, l0 that of use, with "
            "thresholds. Added SAEs are not part of the published grid and not judged"
            f"{lowered}.",
        ),
    }


def _with_steps(run: Run, mixing: pd.DataFrame) -> pd.DataFrame:
    steps = [run.spec.toy_world(name).ortho_num_steps for name in mixing["world"]]
    return mixing.assign(ortho_num_steps=steps)


def measure_mixing(run: Run) -> pd.DataFrame:
    """A row per SAE: its factors, both correlations, its L0, and what its latents hold."""
    measured = run.table.set_index("sae_id")
    rows: dict[str, dict[str, Any]] = {}
    for name in run.spec.worlds:
        world, directions = run.spec.toy_world(name), run.world(name).directions
        first, *others = world.firing_probabilities
        for sae in run.spec.of_world(name):
            mixing = feature_mixing(run.saes[sae.sae_id], directions)
            c, components = float(sae.factors["correlation"]), mixing.components.tolist()
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
                **{f"{_COMPONENT}{i}": value for i, value in enumerate(components, start=1)},
                "elsewhere": mixing.elsewhere,
                "smallest_own_cosine": mixing.own.min().item(),
            }
    return pd.DataFrame([rows[sae.sae_id] for sae in run.spec.saes])


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
        "one_latent": "one latent holds more of feature 0 than all others together, which the mean "
        "over latents hides",
        "elsewhere": "the latents mix, but mostly with features other than feature 0, which the "
        "checks do not count",
    }
    counts = {column: int(judged[column].sum()) for column in hidden}
    return [
        f"In {n} of {int(judged['saes'].sum())} SAEs {hidden[column]} (see by_setting, {column})."
        for column, n in counts.items()
        if n
    ]


def judge_signs(table: pd.DataFrame, where: str = "") -> list[Check]:
    """Whether latents mix where k is below the true L0, and nowhere else.

    Args:
        table: of mixing; SAEs added to the published ones are left out.
        where: which worlds the checks are about; every check begins with it.
    """
    table = table.loc[~table["added"]]
    c = floats(table, "correlation")
    # The firing probabilities are added up in floating point.
    too_low = floats(table, "k") < floats(table, "true_l0") - 1e-9
    takes_on = "every latent of another feature takes on a component of feature 0"
    parts: tuple[tuple[np.ndarray, str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
        (
            too_low & (c > 0),
            "below the true L0",
            f"where the correlation is positive, {takes_on} above {NO_COMPONENT:+g}",
            lambda values: values > NO_COMPONENT,
        ),
        (
            too_low & (c < 0),
            "below the true L0",
            f"where the correlation is negative, {takes_on} below {-NO_COMPONENT:+g}",
            lambda values: values < -NO_COMPONENT,
        ),
        (
            ~too_low,
            "at the true L0 or above",
            f"none takes on more than {NO_COMPONENT:g} of it, of either sign",
            lambda values: np.abs(values) <= NO_COMPONENT,
        ),
    )
    checks = []
    for rows, side, claim, fits in parts:
        if rows.any():
            values, ks = of_components(table.loc[rows]), np.unique(floats(table, "k")[rows])[::-1]
            checks.append(
                check(
                    f"{where}{side} (k = {', '.join(f'{k:g}' for k in ks)}) {claim}",
                    f"{int(fits(values).sum())} of {values.size} latents; from {values.min():+.3f} "
                    f"to {values.max():+.3f}",
                    fits(values).all(),
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


def _draw(draw: Callable[[Run, pd.DataFrame], list[NamedFigure]], run: Run) -> list[NamedFigure]:
    """SAEs that diverged are left out, which the verdict says."""
    table = _with_steps(run, run.tables["mixing"].frame)
    return draw(run, table.loc[np.isfinite(floats(table, "mixing"))])


_DOTS = (
    "What the latents of the other features hold of feature 0: each latent (dots), and the mean "
    "over latents with its mean and standard deviation over seeds."
)


def _draw_by_correlation(_: Run, table: pd.DataFrame) -> list[NamedFigure]:
    from sparse_but_wrong.figures.mixing import mixing_vs_correlation

    return [NamedFigure("overview", mixing_vs_correlation(table), _DOTS)] if len(table) else []


def _draw_by_k(run: Run, table: pd.DataFrame) -> list[NamedFigure]:
    from sparse_but_wrong.figures.mixing import mixing_vs_k

    how = f"whose k came down {lowering_in_words(run.spec)}"
    caption = f"{_DOTS} Dashed: SAEs added to the published ones, {how}."
    figures = [mixing_vs_k(table, "$k$ lowered")] if len(table) else []
    return [NamedFigure("overview", figure, caption) for figure in figures]


def _draw_components(run: Run, table: pd.DataFrame) -> list[NamedFigure]:
    """What each latent holds of each feature: by the noise of the world, and what was added."""
    from sparse_but_wrong.figures.heatmaps import feature_components_heatmaps

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
    figures = []
    for rows, prefix, where in drawn:
        of = table.loc[rows]
        # The first world of each correlation.
        firsts = of.drop_duplicates("correlation")["world"]
        panels = [
            (f"$k = {row['k']:g}$, correlation ${row['correlation']:+g}$", components.numpy())
            for row in of.loc[of["world"].isin(firsts)].to_dict("records")
            for components in [
                feature_components(run.saes[row["sae_id"]], run.world(row["world"]).directions)
            ]
        ]
        caption = (
            f"What the decoder row of each latent holds of each true feature{where}, over and "
            "above what the true directions have in common. Feature 0 is correlated with all "
            "others; its column is empty but for its own latent where latents are features."
        )
        if panels:
            figure = feature_components_heatmaps(panels)
            figures.append(NamedFigure(f"{prefix}overview", figure, caption))
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
