"""The experiments on the small world: their specs, and when a claim fails."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sparse_but_wrong.experiments.analysis import floats, rank_correlation
from sparse_but_wrong.experiments.registry import (
    CORRELATION_STRENGTH,
    L0_STRENGTH,
    SMALL,
    SUPERPOSITION,
)
from sparse_but_wrong.experiments.small import (
    ANALYSES,
    by_setting,
    judge_correlations,
    judge_l0s,
    judge_signs,
    judge_superposition,
    lowering_in_words,
    remarks,
)
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition
from tests.experiments.tiny import assert_run_is_whole, few, finished, found

SPECS = (SMALL, CORRELATION_STRENGTH, L0_STRENGTH, SUPERPOSITION)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_factors_are_what_is_trained(spec: ExperimentSpec) -> None:
    assert spec.training.total_training_samples == 15_000_000
    for sae in spec.saes:
        assert (sae.architecture, sae.init) == ("batchtopk", "true_features")
        assert sae.config["k"] == sae.factors["k"]
        world = spec.toy_world(sae.world)
        assert world.firing_probabilities == (0.4,) * 5
        pairs = getattr(world.correlation, "pairs", ())
        assert {c for _, _, c in pairs} | {0.0} == {sae.factors["correlation"], 0.0}


def test_the_grids_are_those_of_the_paper() -> None:
    def grid(spec: ExperimentSpec, *factors: str) -> set[tuple[float, ...]]:
        saes = [sae for sae in spec.saes if not sae.added]
        return {tuple(float(sae.factors[name]) for name in factors) for sae in saes}

    assert grid(SMALL, "correlation", "k") == {(0.4, 2), (0.4, 1.8), (-0.4, 2), (-0.4, 1.8)}
    correlations = (-0.5, -0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert grid(CORRELATION_STRENGTH, "correlation", "k", "seed") == {
        (c, 1.8, seed) for c in correlations for seed in range(5)
    }
    ks = (1.7, 1.75, 1.8, 1.85, 1.9, 1.95, 2.0)
    assert grid(L0_STRENGTH, "correlation", "k", "seed") == {
        (c, k, seed) for c in (0.4, -0.4) for k in ks for seed in range(5)
    }
    lowered = [sae for sae in L0_STRENGTH.saes if sae.added]
    assert len(lowered) == 2 * 5 * 6
    assert {sae.control for sae in lowered} == {KTransition(2.0, 0, 7324)}
    assert lowering_in_words(L0_STRENGTH) == "from 2 between steps 0 and 7,324 of 14,649"
    assert lowering_in_words(SMALL) == ""
    assert grid(SUPERPOSITION, "correlation", "k", "seed") == {
        (c, k, seed) for c in (0.4, -0.4) for k in (2, 1.8) for seed in range(5)
    }


def test_worlds_differ_by_seed_and_those_of_superposition_are_not_orthogonal() -> None:
    first, second = (
        make_world(CORRELATION_STRENGTH.toy_world(name), 0, name=name).directions
        for name in ("c_+0.4_seed_0", "c_+0.4_seed_1")
    )
    assert not torch.allclose(first, second, atol=0.01)

    def mean_abs_cosine(name: str) -> float:
        directions = make_world(SUPERPOSITION.toy_world(name), 0, name=name).directions
        cosines = directions.T @ directions
        return cosines[~torch.eye(5, dtype=torch.bool)].abs().mean().item()

    assert 0.08 < mean_abs_cosine("c_+0.4_seed_0") < 0.3
    assert 0.01 < mean_abs_cosine("mild_c_+0.4_seed_0") < 0.08
    # Five unit vectors in four dimensions cannot do better than a root mean square of 0.25.
    assert mean_abs_cosine("d_in_4_c_+0.4_seed_0") == pytest.approx(0.25, abs=0.01)


def row(correlation: float, k: float, components: list[float], **others: object) -> dict:
    """A row of the table of mixing."""
    return {
        "sae_id": f"c_{correlation:+g}_k_{k:g}",
        "world": f"c_{correlation:+g}",
        "added": False,
        "lowered": False,
        "d_in": 20,
        "ortho_num_steps": 1000,
        "correlation": correlation,
        "k": k,
        "seed": 0,
        "firing_correlation": 0.65 * correlation,
        "true_l0": 2.0,
        "l0": k + 0.01,
        "mse": 0.1,
        "mean_abs_cosine": 0.0,
        "mixing": sum(components) / len(components),
        **{f"component_{i}": value for i, value in enumerate(components, start=1)},
        "elsewhere": 0.01,
        **others,
    }


def small_table(low: list[float], right: list[float]) -> pd.DataFrame:
    rows = [row(0.4, 2.0, right), row(0.4, 1.8, [0.2, 0.3])]
    return pd.DataFrame([*rows, row(-0.4, 2.0, [0.0, 0.01]), row(-0.4, 1.8, low)])


@pytest.mark.parametrize(
    ("low", "right", "holds"),
    [
        ([-0.2, -0.06], [0.01, -0.04], [True, True, True]),
        ([-0.2, 0.1], [0.0, 0.0], [True, False, True]),  # one latent with the wrong sign
        ([-0.2, -0.04], [0.0, 0.0], [True, False, True]),  # one that is clean
        ([-0.2, -0.2], [0.0, 0.06], [True, True, False]),  # mixing at the truth
    ],
)
def test_every_latent_mixes_below_the_truth_and_none_at_it(
    low: list[float], right: list[float], holds: list[bool]
) -> None:
    not_judged = pd.DataFrame([row(0.4, 1.8, [-0.9, -0.9], added=True)])
    checks = judge_signs(pd.concat([small_table(low, right), not_judged]))
    assert [check.holds for check in checks] == holds
    if all(holds):
        assert [check.measured for check in checks] == [
            "2 of 2 latents; from +0.200 to +0.300",
            "2 of 2 latents; from -0.200 to -0.060",
            "4 of 4 latents; from -0.040 to +0.010",
        ]


def test_each_noise_is_judged_by_itself() -> None:
    noisy = small_table([-0.2, 0.1], [0.0, 0.0]).assign(ortho_num_steps=0, mean_abs_cosine=0.2)
    checks = judge_superposition(pd.concat([small_table([-0.2, -0.2], [0.0, 0.0]), noisy]))
    assert [check.holds for check in checks] == [True, False, True, True, True, True]
    assert checks[0].claim.startswith("noise of mean |cosine| 0.200 ")


def test_an_sae_that_diverged_leaves_nothing_judged() -> None:
    table = small_table([-0.2, math.nan], [0.0, 0.0])
    for judge in (judge_signs, judge_correlations, judge_l0s):
        assert None in [check.holds for check in judge(table)]
    assert "c_-0.4_k_1.8" in judge_signs(table)[0].measured
    assert ANALYSES["small"].draw(found(SMALL, 2.0, mixing=table.assign(mixing=math.nan))) == {}


def test_settings_count_what_means_hide() -> None:
    table = pd.DataFrame(
        [
            row(0.4, 1.8, [0.06, 0.5, 0.06]),
            row(0.4, 1.8, [0.2, -0.2, 0.01], seed=1),
            row(-0.4, 1.8, [-0.1] * 3, elsewhere=0.7),
            row(-0.4, 1.8, [0.9] * 3, elsewhere=1.0, added=True, lowered=True),
        ]
    )
    settings = by_setting(table)
    assert settings["saes"].tolist() == [2, 1, 1]
    assert settings["with_sign"].tolist() == [4, 3, 0]
    assert settings["against_sign"].tolist() == [1, 0, 3]
    assert settings["one_latent"].tolist() == [1, 0, 0]
    assert settings["elsewhere"].tolist() == [0, 1, 1]
    assert settings["largest_elsewhere"].tolist() == [0.01, 0.7, 1.0]
    alone, elsewhere = remarks(settings)
    assert "1 of 3 SAEs" in alone
    assert "1 of 3 SAEs" in elsewhere
    assert remarks(settings.iloc[2:]) == []


def strengths(mixing: dict[float, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        row(c, 1.8, [value] * 4, seed=i) for c, vs in mixing.items() for i, value in enumerate(vs)
    )


@pytest.mark.parametrize(
    ("mixing", "holds"),
    [
        ({0.4: [0.3, 0.1], -0.4: [-0.2, -0.3], 0.0: [0.0, 0.04]}, [True, True]),
        ({-0.4: [-0.2], 0.2: [0.3], 0.4: [0.2]}, [False, True]),  # it falls
        ({-0.4: [-0.2], 0.2: [0.2], 0.4: [0.2]}, [False, True]),  # it stays
        ({-0.4: [-0.2], -0.2: [0.01], 0.4: [0.2]}, [True, False]),  # one sign
        ({-0.4: [-0.2], 0.0: [0.06], 0.4: [0.2]}, [True, False]),  # mixing without correlation
    ],
)
def test_means_rise_with_the_correlation_and_signs_agree(
    mixing: dict[float, list[float]], holds: list[bool]
) -> None:
    rises, signs = judge_correlations(strengths(mixing))
    assert [rises.holds, signs.holds] == holds
    assert ("from +0.2 to +0.4" in rises.measured) is not holds[0]
    if all(holds):
        assert "-0.4: -0.250 ± 0.071; +0: +0.020 ± 0.028; +0.4: +0.200 ± 0.141" in rises.measured
        assert signs.measured == "4 of 4 SAEs; without correlation up to 0.040"


def l0s(last: float) -> pd.DataFrame:
    rows = [row(0.4, k, [v]) for k, v in ((2.0, 0.0), (1.9, 0.1), (1.8, 0.3))]
    rows += [row(-0.4, k, [v]) for k, v in ((2.0, 0.0), (1.9, -0.1), (1.8, last))]
    return pd.DataFrame([*rows, row(-0.4, 1.7, [0.5], added=True)])


def test_l0s_are_judged_for_each_correlation_by_itself() -> None:
    checks = judge_l0s(l0s(-0.2))
    assert [check.holds for check in checks] == [True, True]
    assert checks[1].measured.startswith("k = 2: +0.000; k = 1.9: -0.100; k = 1.8: -0.200")
    assert checks[1].measured.endswith("-1.000")
    assert [check.holds for check in judge_l0s(l0s(0.01))] == [True, False]


def test_rank_correlation_by_hand() -> None:
    x, y = np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])
    assert rank_correlation(x, y) == pytest.approx(0.5)
    assert math.isnan(rank_correlation(x, 0 * x))
    assert math.isnan(rank_correlation(x, y * math.nan))


@pytest.mark.parametrize(
    ("spec", "ids", "figures", "checks"),
    [
        (SMALL, [sae.sae_id for sae in SMALL.saes], ["overview"], 3),
        (
            SUPERPOSITION,
            [
                *("c_+0.4_seed_0_k_1.8", "c_+0.4_seed_0_k_1.8_lowered", "mild_c_-0.4_seed_2_k_1.8"),
                *("mild_c_-0.4_seed_2_k_2", "d_in_4_c_+0.4_seed_0_k_2"),
                "d_in_4_c_+0.4_seed_0_k_1.8",
            ],
            ["overview", "lowered_overview", "weaker_1_overview", "fewer_dimensions_overview"],
            3,
        ),
        (CORRELATION_STRENGTH, ["c_-0.5_seed_0", "c_+0.3_seed_1"], ["overview"], 2),
        (
            L0_STRENGTH,
            ["c_+0.4_seed_0_k_2", "c_+0.4_seed_0_k_1.7", "c_+0.4_seed_0_k_1.7_lowered"],
            ["overview"],
            1,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ExperimentSpec) else "",
)
def test_it_runs_from_end_to_end(
    spec: ExperimentSpec, ids: list[str], figures: list[str], checks: int, tmp_path: Path
) -> None:
    run = finished(few(spec, *ids), tmp_path / "run")
    table = run.tables["mixing"].frame
    assert set(table["sae_id"]) == set(ids)
    # So few steps of Adam at 3e-4 cannot take a latent far from where it starts, at its feature.
    assert floats(table, "smallest_own_cosine").min() > 0.9
    assert floats(table, "mixing").tolist() == pytest.approx(
        table[[f"component_{i}" for i in range(1, 5)]].mean(axis=1).tolist()
    )
    ratio = floats(table, "firing_correlation") / floats(table, "correlation")
    assert 0.6 < ratio.min() <= ratio.max() < 0.7
    assert sum(run.tables["by_setting"].frame["saes"].tolist()) == len(ids)
    assert len(run.verdict.checks) == checks
    assert_run_is_whole(run, ["mixing", "by_setting"])
    assert [shown["name"] for shown in run.folder.manifest["shown_figures"]] == figures
