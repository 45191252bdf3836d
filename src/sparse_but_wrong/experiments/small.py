"""One correlated feature among five: what an L0 that is slightly too low does to an SAE.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the toy model of 5 features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from sparse_but_wrong.experiments.analysis import NamedFigure, Results
from sparse_but_wrong.experiments.mixing import (
    EVALUATION_SAMPLES,
    NO_COMPONENT,
    TRUE_L0,
    Mixing,
    concentrated_in_words,
    correlations_in_words,
    elsewhere_in_words,
    floats,
    is_too_low,
    lowering_in_words,
    not_finite,
    of_components,
    small_sae,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, N_SMALL, small_world
from sparse_but_wrong.runs.spec import ExperimentSpec

if TYPE_CHECKING:
    import pandas as pd

_CORRELATIONS = (0.4, -0.4)
_KS = (2.0, 1.8)

SMALL = ExperimentSpec(
    name="small",
    title="Five features, the first correlated with the others, at the true L0 and below it",
    claim="at k = 1.8 every latent takes on a component of the correlated feature, of the sign of "
    "the correlation; at k = 2, the true L0, none does",
    worlds={f"c_{c:+g}": small_world(c) for c in _CORRELATIONS},
    saes=tuple(
        small_sae(k, c, world=f"c_{c:+g}", sae_id=f"c_{c:+g}_k_{k:g}")
        for c in _CORRELATIONS
        for k in _KS
    ),
    training=BUDGET,
    analysis="small",
)

_SEEDS = range(5)
_FEWER_DIMENSIONS = N_SMALL - 1

# Without orthogonalisation what is left is what random directions in 20 dimensions have in common,
# √(2/20π) = 0.18 on average: noise whose strength is no number of ours. A few steps leave about a
# quarter of it. In both the encoder can still tell features apart exactly. In 4 dimensions it
# cannot, and all cosines are ±0.25 at best; the claim is not judged there.
_NOISES = {
    "": {"ortho_num_steps": 0},
    "mild_": {"ortho_num_steps": 8},
    f"d_in_{_FEWER_DIMENSIONS}_": {"d_in": _FEWER_DIMENSIONS},
}

SUPERPOSITION = ExperimentSpec(
    name="superposition",
    title="The same five features with superposition noise",
    claim="with superposition noise as without, every latent takes on a component of the "
    "correlated feature at k = 1.8, of the sign of the correlation, and none does at k = 2, over "
    "and above what the true directions have in common",
    worlds={
        f"{prefix}c_{c:+g}_seed_{seed}": small_world(c, **noise)
        for prefix, noise in _NOISES.items()
        for c in _CORRELATIONS
        for seed in _SEEDS
    },
    saes=tuple(
        small_sae(
            k,
            c,
            seed,
            world=f"{prefix}c_{c:+g}_seed_{seed}",
            sae_id=f"{prefix}c_{c:+g}_seed_{seed}_k_{k:g}{'_lowered' if lowered else ''}",
            added="d_in" in noise or lowered,
            lowered=lowered,
        )
        for prefix, noise in _NOISES.items()
        for c in _CORRELATIONS
        for seed in _SEEDS
        for k, lowered in (
            *((k, False) for k in _KS),
            *((k, True) for k in _KS if k < TRUE_L0 and not prefix),
        )
    ),
    training=BUDGET,
    evaluation_samples=EVALUATION_SAMPLES,
    analysis="superposition",
)


class Small(Mixing):
    """Whether latents mix below the true L0, and not at it."""

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_signs(results.tables["mixing"].frame)

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class: what every latent holds of every feature."""
        table = results.tables["mixing"].frame
        return _heatmaps(results, table.loc[~table["added"]], "")


class Superposition(Small):
    """The same for each strength of the noise, and a look at more features than dimensions."""

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        table = results.tables["mixing"].frame
        checks: list[Check] = []
        for noise in _by_noise(results, table.loc[~table["added"]]):
            cosine = floats(noise.drop_duplicates("world"), "mean_abs_cosine")
            where = (
                f"noise of mean |cosine| {cosine.mean():.3f} ({cosine.min():.3f} to "
                f"{cosine.max():.3f}), "
            )
            checks += judge_signs(noise, where).checks
        few = _has_fewer_dimensions(table)
        remarks = (
            *judge_signs(table).remarks,
            "What the true directions have in common is subtracted from all that is judged.",
            *_of_lowered(table, lowering_in_words(results.spec)),
            *_of_fewer_dimensions(table.loc[few & ~table["lowered"]]),
        )
        return Verdict(tuple(checks), remarks)

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class, for each strength of the noise, and for what was added."""
        table = results.tables["mixing"].frame
        few = _has_fewer_dimensions(table)
        strongest, *weaker = _by_noise(results, table.loc[~table["added"]])
        return [
            *_heatmaps(results, strongest, ""),
            *_heatmaps(results, table.loc[table["lowered"] & ~few], "lowered_"),
            *(
                figure
                for i, noise in enumerate(weaker)
                for figure in _heatmaps(results, noise, f"weaker_{i + 1}_")
            ),
            *_heatmaps(results, table.loc[few & ~table["lowered"]], "fewer_dimensions_"),
        ]


def _has_fewer_dimensions(table: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
    """Which SAEs are those of worlds with more features than dimensions."""
    n_features = 1 + of_components(table).shape[1]
    return floats(table, "d_in") < n_features


def _by_noise(results: Results, table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each number of steps that orthogonalised the directions, the fewest first."""
    steps = np.array([results.spec.toy_world(name).ortho_num_steps for name in table["world"]])
    return [table.loc[steps == n] for n in np.unique(steps)]


def judge_signs(table: pd.DataFrame, where: str = "") -> Verdict:
    """Whether latents mix where k is below the true L0, and nowhere else.

    Args:
        table: of mixing; SAEs added to the published ones are left out.
        where: of which worlds this is said; every check begins with it.
    """
    table = table.loc[~table["added"]]
    diverged = not_finite(table)
    too_low = is_too_low(table)
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
    if not checks:
        checks.append(
            Check(
                f"{where}below the true L0 every latent of another feature takes on a component "
                "of feature 0, of the sign of the correlation",
                diverged or "no SAE with a correlation has a k below the true L0",
                None,
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
    remarks = (
        correlations_in_words(table),
        *concentrated_in_words(table),
        *elsewhere_in_words(table),
    )
    return Verdict(tuple(checks), remarks)


def _of_lowered(table: pd.DataFrame, lowering: str) -> list[str]:
    """What SAEs show whose k came down in training, which are no part of the claim.

    Args:
        table: of mixing.
        lowering: from where k came down, and when.
    """
    is_one = table["lowered"] & table["added"]
    published, table = table.loc[~table["added"] & ~table["lowered"]], table.loc[is_one]
    published = published.loc[published["world"].isin(table["world"].tolist())]
    if table.empty or not_finite(table) or not_finite(published):
        return []
    right = _with_right_sign(table)
    n_right = int((right > NO_COMPONENT).sum())
    n_before = int((_with_right_sign(published.loc[is_too_low(published)]) > NO_COMPONENT).sum())
    return [
        "Not judged, as the paper has none of them: of the same SAEs whose k came down "
        f"{lowering}, to {_ks(table)}, "
        f"{n_right} of {right.size} latents hold more than "
        f"{NO_COMPONENT:g} of feature 0 with the sign of the correlation, "
        f"{int((right < -NO_COMPONENT).sum())} with the other sign."
        + (
            f" Of those whose k was low from the start it is {n_before}, which is "
            "consistent with another minimum that a low k leads to when training begins at it."
            if n_right > n_before
            else ""
        ),
        *elsewhere_in_words(table),
    ]


def _of_fewer_dimensions(table: pd.DataFrame) -> list[str]:
    """What worlds with more features than dimensions show, which are no part of the claim."""
    if table.empty or not_finite(table):
        return []
    too_low, rest = table.loc[is_too_low(table)], table.loc[~is_too_low(table)]
    right, others = _with_right_sign(too_low), np.abs(of_components(rest))
    dimensions = ", ".join(f"{d:g}" for d in sorted(set(floats(table, "d_in").tolist())))
    seen = []
    if right.size:
        seen.append(
            f"{int((right > NO_COMPONENT).sum())} of {right.size} latents hold more than "
            f"{NO_COMPONENT:g} of feature 0 with the sign of the correlation at k = "
            f"{_ks(too_low)}, {int((right < -NO_COMPONENT).sum())} with the other sign"
        )
    if others.size:
        seen.append(
            f"at k = {_ks(rest)} {int((others > NO_COMPONENT).sum())} of {others.size} latents "
            f"hold more than {NO_COMPONENT:g} of feature 0, up to {others.max():.2f}"
        )
    return [
        f"Not judged, as it is beyond the claim: in {dimensions} dimensions, fewer than "
        f"there are features, where the mean |cosine| is "
        f"{floats(table, 'mean_abs_cosine').mean():.2f}, "
        f"{'; '.join(seen)}."
    ]


def _with_right_sign(table: pd.DataFrame) -> Float[np.ndarray, "rows others"]:
    """What latents hold of feature 0, positive where it has the sign of the correlation."""
    return of_components(table) * np.sign(floats(table, "correlation"))[:, None]


def _ks(rows: pd.DataFrame) -> str:
    return ", ".join(f"{k:g}" for k in sorted(set(floats(rows, "k").tolist()), reverse=True))


def _heatmaps(results: Results, table: pd.DataFrame, prefix: str) -> list[NamedFigure]:
    """What each latent holds of each feature, in the first world of each correlation."""
    from sparse_but_wrong.figures.heatmaps import feature_components_heatmaps
    from sparse_but_wrong.metrics.recovery import feature_components

    firsts = table.drop_duplicates("correlation")["world"].tolist()
    table = table.loc[table["world"].isin(firsts)]
    panels: list[tuple[str, np.ndarray]] = []
    for world, sae_id, correlation, k, mixing in zip(
        table["world"],
        table["sae_id"],
        table["correlation"],
        table["k"],
        table["mixing"],
        strict=True,
    ):
        if np.isfinite(mixing):  # otherwise it diverged, which the verdict says
            matrix = feature_components(results.sae(sae_id), results.world(world).directions)
            title = f"$k = {k:g}$, correlation ${correlation:+g}$"
            panels.append((title, matrix.numpy()))
    if not panels:
        return []
    where = {
        "": "",
        "lowered_": f", where k came down {lowering_in_words(results.spec)}",
        "fewer_dimensions_": ", in worlds with fewer dimensions than features",
    }.get(prefix, ", in worlds with weaker noise")
    return [
        NamedFigure(
            f"{prefix}overview",
            feature_components_heatmaps(panels),
            f"What the decoder row of each latent holds of each true feature{where}, over and "
            "above what the true directions have in common. Feature 0 is correlated with all "
            "others; its column is empty but for its own latent where latents are features.",
        )
    ]
