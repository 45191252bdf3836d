"""What the analyses of the small world measure: do latents take on a feature correlated to theirs?

Every SAE starts at the true features, so latent i is that of feature i; feature 0 is the one that
is correlated with all others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from sparse_but_wrong.experiments.analysis import Analysis, MeasuredTable, Results
from sparse_but_wrong.experiments.requirements import require_k_as_trained
from sparse_but_wrong.experiments.worlds import BUDGET, N_SMALL, batchtopk
from sparse_but_wrong.metrics.recovery import feature_mixing, mean_abs_cosine
from sparse_but_wrong.runs.spec import (
    CorrelatedPairs,
    ExperimentSpec,
    SAESpec,
    WorldSpec,
)
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.worlds.correlations import firing_correlation

if TYPE_CHECKING:
    import pandas as pd

TRUE_L0 = 2.0
"""Of every small world: five features of probability 0.4."""

EVALUATION_SAMPLES = 20_000
"""Of experiments with many SAEs. Mixing is read off the weights; on samples only L0 and error are
measured, and with 100,000 of them the scores would take a third of the time of such a run."""

NO_COMPONENT = 0.05
"""A latent with no more than this of another feature counts as clean. Exactly 0 is not to be had:
BatchTopK keeps k·B values of every batch, and k is too low for one whose features fire more often
than on average."""

_FACTORS = ("correlation", "k", "seed")
_COMPONENT = "component_"


def small_sae(
    k: float,
    correlation: float,
    seed: int = 0,
    *,
    world: str,
    sae_id: str,
    added: bool = False,
    lowered: bool = False,
) -> SAESpec:
    """A BatchTopK SAE on a small world, at the true features when it starts.

    Args:
        k: latents active per sample.
        correlation: latent correlation of the world's feature 0 with each other.
        seed: number of the world among those with the same correlation.
        world: its name.
        sae_id: of the SAE.
        added: not part of the published grid.
        lowered: k comes down from the true L0 over the first half of training. That tells what a
            low k does from what starting at it does: a low k from the first step may lead to
            another minimum.
    """
    return SAESpec(
        sae_id=sae_id,
        architecture="batchtopk",
        config=batchtopk(k, N_SMALL),
        added=added,
        world=world,
        factors={"correlation": correlation, "k": k, "seed": seed},
        init="true_features",
        control=KTransition(TRUE_L0, 0, BUDGET.n_steps // 2) if lowered else None,
    )


class Mixing(Analysis):
    """Measures how much of feature 0 the latents of the other features hold."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: BatchTopK SAEs that start at the true features.

        Their factors are to be what they are trained with: the k of their config (at which one
        with a `KTransition` ends) and the correlation of feature 0 in their world.

        Raises:
            ValueError: what is missing in the spec.
        """
        where = f"the analysis {spec.analysis!r} of the spec {spec.name!r}"
        if not spec.saes:
            raise ValueError(f"{where} needs SAEs, and there are none.")
        if all(sae.added for sae in spec.saes):
            raise ValueError(f"{where} judges SAEs that are not added, and all of them are.")
        for sae in spec.saes:
            for name in _FACTORS:
                if isinstance(sae.factors.get(name), str | None):
                    raise ValueError(
                        f"{where} needs the factors {', '.join(_FACTORS)} as numbers; SAE "
                        f"{sae.sae_id!r} has {name} = {sae.factors.get(name)!r}."
                    )
            # Only then is latent i that of feature i.
            if sae.init != "true_features":
                raise ValueError(
                    f"{where} needs SAEs that start at the true features; SAE {sae.sae_id!r} has "
                    f"init = {sae.init!r}."
                )
            n_features = spec.toy_world(sae.world).n_features
            if sae.config.get("d_sae") != n_features or n_features < 2:
                raise ValueError(
                    f"{where} needs as many latents as features, at least 2; SAE {sae.sae_id!r} "
                    f"has d_sae = {sae.config.get('d_sae')}, its world {n_features} features."
                )
            _require_correlation_of_world(spec, sae)
        require_k_as_trained(spec)
        sizes = sorted({spec.toy_world(sae.world).n_features for sae in spec.saes})
        if len(sizes) > 1:
            raise ValueError(
                f"{where} compares latents of worlds of one size, but the worlds of its SAEs have "
                f"{', '.join(map(str, sizes))} features."
            )

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        """As the base class: a row per SAE."""
        return {
            "mixing": MeasuredTable(
                measure_mixing(results),
                "What the decoder rows of the latents of features 1, 2, … hold of feature 0, over "
                "and above what the true directions have in common. mixing is the mean; elsewhere, "
                "the largest that they hold of any third feature.",
            )
        }


def measure_mixing(results: Results) -> pd.DataFrame:
    """A row per SAE: its factors, both correlations, its L0, and what its latents hold."""
    import pandas as pd

    scored = results.table
    scores = {
        sae_id: {"l0": l0, "mse": mse}
        for sae_id, l0, mse in zip(scored["sae_id"], scored["l0"], scored["mse"], strict=True)
    }
    rows = {}
    for name in results.spec.worlds:
        world_spec = results.spec.toy_world(name)
        directions = results.world(name).directions
        for sae_spec in results.spec.of_world(name):
            mixing = feature_mixing(results.sae(sae_spec.sae_id), directions)
            rows[sae_spec.sae_id] = {
                "sae_id": sae_spec.sae_id,
                "world": name,
                "added": sae_spec.added,
                "lowered": is_lowered(sae_spec),
                "d_in": world_spec.d_in,
                **{factor: sae_spec.factors[factor] for factor in _FACTORS},
                "firing_correlation": _firing_correlation(world_spec),
                "true_l0": sum(world_spec.firing_probabilities),
                **scores[sae_spec.sae_id],
                "mean_abs_cosine": mean_abs_cosine(directions),
                "mixing": mixing.mean,
                **{
                    f"{_COMPONENT}{i}": value
                    for i, value in enumerate(mixing.components.tolist(), start=1)
                },
                "elsewhere": mixing.elsewhere,
                "smallest_own_cosine": mixing.own.min().item(),
            }
    return pd.DataFrame([rows[sae.sae_id] for sae in results.spec.saes])


def of_components(table: pd.DataFrame) -> Float[np.ndarray, "rows others"]:
    """What the latents of features 1, 2, … hold of feature 0, a row per SAE."""
    names = [name for name in table.columns if str(name).startswith(_COMPONENT)]
    return table[names].to_numpy(dtype=np.float64)


def floats(table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    """A column as float64."""
    return table[column].to_numpy(dtype=np.float64)


def is_too_low(table: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
    """Which SAEs have a k below the true L0 of their world."""
    # The firing probabilities are added up in floating point.
    return floats(table, "k") < floats(table, "true_l0") - 1e-9


def mixing_by(table: pd.DataFrame, factor: str) -> dict[float, Float[np.ndarray, " _saes"]]:
    """Mixing of the SAEs at each value of a factor, in ascending order of the factor."""
    at, mixing = floats(table, factor), floats(table, "mixing")
    return {float(value): mixing[at == value] for value in np.unique(at)}


def not_finite(table: pd.DataFrame) -> str | None:
    """Which SAEs diverged, in words; None if none did."""
    diverged = [
        str(sae_id)
        for sae_id, mixing in zip(table["sae_id"], table["mixing"], strict=True)
        if not math.isfinite(mixing)
    ]
    return f"SAEs that diverged: {', '.join(diverged)}" if diverged else None


def strictly_rising(values: Sequence[float]) -> bool:
    """Whether each value is larger than the one before it."""
    return all(before < after for before, after in pairwise(values))


def mean_and_spread(values: Float[np.ndarray, " saes"]) -> str:
    """Mean ± standard deviation over SAEs, as words."""
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"{values.mean():+.3f}{spread}"


def correlations_in_words(table: pd.DataFrame) -> str:
    """The latent and the binary correlations of a table of mixing, in a sentence."""
    pairs = set(zip(table["correlation"], table["firing_correlation"], strict=True))
    said = ", ".join(f"{latent:+g} is {firing:+.2f}" for latent, firing in sorted(pairs))
    return (
        "Correlations are latent, those of the copula; between the 0/1 firings they are weaker: "
        f"{said}."
    )


def concentrated_in_words(table: pd.DataFrame) -> list[str]:
    """SAEs of which one latent holds more of feature 0 than all others together: where and how."""
    shares = np.abs(of_components(table))
    is_one = (2 * shares.max(1) > shares.sum(1)) & (shares.max(1) > NO_COMPONENT)
    if shares.shape[1] < 3 or not is_one.any():
        return []
    return [
        f"Latents do not always mix alike: in {int(is_one.sum())} of {len(table)} SAEs one latent "
        f"holds more of feature 0 than all others together (up to {shares[is_one].max():.2f}): "
        f"{_where(table, is_one)}. The mean over latents hides that."
    ]


def elsewhere_in_words(table: pd.DataFrame) -> list[str]:
    """SAEs whose latents hold more of a third feature than of feature 0: where and how much."""
    elsewhere = floats(table, "elsewhere")
    is_one = (elsewhere > np.abs(of_components(table)).max(1)) & (elsewhere > NO_COMPONENT)
    if not is_one.any():
        return []
    return [
        f"In {int(is_one.sum())} of {len(table)} SAEs the latents mix, but mostly with features "
        "other than feature 0, which the numbers above do not count: they hold up to "
        f"{elsewhere[is_one].max():.2f} of such a feature ({_where(table, is_one)})."
    ]


def _where(table: pd.DataFrame, chosen: Bool[np.ndarray, " rows"]) -> str:
    """How many of the chosen SAEs there are at each setting."""
    settings = zip(floats(table, "correlation"), floats(table, "k"), strict=True)
    counts = Counter(setting for setting, one in zip(settings, chosen, strict=True) if one)
    return ", ".join(
        f"{n} at correlation {c:+g} and k = {k:g}" for (c, k), n in sorted(counts.items())
    )


def is_lowered(sae: SAESpec) -> bool:
    """Whether k came down to the config's own while the SAE trained."""
    control = sae.control
    return isinstance(control, KTransition) and control.initial_k > float(sae.factors["k"])


def lowering_in_words(spec: ExperimentSpec) -> str:
    """From where k came down, and when; to follow "came down". Empty if none did."""
    controls = {
        (sae.control.initial_k, sae.control.start_step, sae.control.duration_steps)
        for sae in spec.saes
        if isinstance(sae.control, KTransition) and is_lowered(sae)
    }
    return " or ".join(
        f"from {initial_k:g} between steps {start:,} and {start + duration:,} of "
        f"{spec.training.n_steps:,}"
        for initial_k, start, duration in sorted(controls)
    )


def _require_correlation_of_world(spec: ExperimentSpec, sae: SAESpec) -> None:
    correlation = _correlation_of(spec.toy_world(sae.world))
    if correlation is None:
        raise ValueError(
            f"the analysis {spec.analysis!r} needs worlds where feature 0 has one correlation with "
            f"all others, and these none with each other; world {sae.world!r} of SAE "
            f"{sae.sae_id!r} is not one."
        )
    if correlation != sae.factors["correlation"]:
        raise ValueError(
            f"SAE {sae.sae_id!r} has the factor correlation = {sae.factors['correlation']}, but "
            f"in its world {sae.world!r} the correlation of feature 0 with the others is "
            f"{correlation:g}; the analysis {spec.analysis!r} takes one for the other."
        )


def _correlation_of(world: WorldSpec) -> float | None:
    """The latent correlation of feature 0 with each other; None if it is not the only one."""
    if world.correlation is None:
        return 0.0
    if not isinstance(world.correlation, CorrelatedPairs):
        return None
    pairs = {(min(i, j), max(i, j)): c for i, j, c in world.correlation.pairs}
    with_first = {pairs.pop((0, j), 0.0) for j in range(1, world.n_features)}
    return with_first.pop() if len(with_first) == 1 and not any(pairs.values()) else None


def _firing_correlation(world: WorldSpec) -> float:
    """The mean over the other features, where these do not all fire alike."""
    correlation = _correlation_of(world)
    if correlation is None:
        return math.nan
    first, *others = world.firing_probabilities
    return fmean(firing_correlation(correlation, first, p) for p in others)
