"""The experiments on the small world: their specs, what they refuse, and when a claim fails."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from sparse_but_wrong.experiments.mixing import (
    Mixing,
    floats,
    is_lowered,
    lowering_in_words,
    mean_and_spread,
    strictly_rising,
)
from sparse_but_wrong.experiments.rank_correlation import rank_correlation
from sparse_but_wrong.experiments.registry import ANALYSES, EXPERIMENTS
from sparse_but_wrong.experiments.runner import RunSettings, finish_run
from sparse_but_wrong.experiments.small import (
    SMALL,
    SUPERPOSITION,
    _has_fewer_dimensions,
    _of_fewer_dimensions,
    _of_lowered,
    judge_signs,
)
from sparse_but_wrong.experiments.strength import (
    CORRELATION_STRENGTH,
    L0_STRENGTH,
    judge_correlations,
    judge_l0s,
)
from sparse_but_wrong.experiments.worlds import small_world
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.spec import (
    CorrelatedPairs,
    CorrelationSpec,
    ExperimentSpec,
    WorldSpec,
)
from sparse_but_wrong.training.controls import KTransition
from tests.experiments.tiny import started

SPECS = (SMALL, CORRELATION_STRENGTH, L0_STRENGTH, SUPERPOSITION)


def row(correlation: float, k: float, components: list[float], **others: object) -> dict:
    """A row of the table of mixing."""
    return {
        "sae_id": f"c_{correlation:+g}_k_{k:g}",
        "world": f"c_{correlation:+g}",
        "added": False,
        "lowered": False,
        "d_in": 20,
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


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_spec_survives_json_and_its_analysis_takes_it(spec: ExperimentSpec) -> None:
    assert ExperimentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert EXPERIMENTS[spec.name] is spec
    ANALYSES[spec.analysis].check(spec)
    ANALYSES[spec.analysis].check(spec.quick())
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
        return {
            tuple(float(sae.factors[name]) for name in factors)
            for sae in spec.saes
            if not sae.added
        }

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
    assert grid(SUPERPOSITION, "correlation", "k", "seed") == {
        (c, k, seed) for c in (0.4, -0.4) for k in (2, 1.8) for seed in range(5)
    }


def test_worlds_of_other_seeds_have_other_directions() -> None:
    first, second = (
        make_world(CORRELATION_STRENGTH.toy_world(name), 0, name=name).directions
        for name in ("c_+0.4_seed_0", "c_+0.4_seed_1")
    )
    assert not torch.allclose(first, second, atol=0.01)


def test_the_worlds_of_superposition_are_not_orthogonal() -> None:
    def mean_abs_cosine(name: str) -> float:
        directions = make_world(SUPERPOSITION.toy_world(name), 0, name=name).directions
        cosines = directions.T @ directions
        return cosines[~torch.eye(5, dtype=torch.bool)].abs().mean().item()

    assert 0.08 < mean_abs_cosine("c_+0.4_seed_0") < 0.3
    assert 0.01 < mean_abs_cosine("mild_c_+0.4_seed_0") < 0.08
    # Five unit vectors in four dimensions cannot do better than a root mean square of 0.25.
    assert mean_abs_cosine("d_in_4_c_+0.4_seed_0") == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": {"correlation": 0.4, "seed": 0}}, "has k = None"),
        ({"factors": {"correlation": "high", "k": 2, "seed": 0}}, "has correlation = 'high'"),
        ({"init": "random"}, "has init = 'random'"),
        ({"config": {"d_sae": 6, "k": 2}}, "has d_sae = 6, its world 5 features"),
    ],
)
def test_a_spec_that_lacks_something_is_refused(change: dict, message: str) -> None:
    spec = replace(SMALL, saes=(replace(SMALL.saes[0], **change), *SMALL.saes[1:]))
    with pytest.raises(ValueError, match=message):
        ANALYSES["small"].check(spec)


def test_a_spec_without_what_is_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="needs SAEs, and there are none"):
        ANALYSES["small"].check(replace(SMALL, saes=()))
    added = tuple(replace(sae, added=True) for sae in SMALL.saes)
    with pytest.raises(ValueError, match="that are not added, and all of them are"):
        ANALYSES["small"].check(replace(SMALL, saes=added))
    with pytest.raises(ValueError, match="several values of correlation"):
        ANALYSES["correlation-strength"].check(
            replace(CORRELATION_STRENGTH, saes=CORRELATION_STRENGTH.saes[:5])
        )
    with pytest.raises(ValueError, match=r"at one k, but the spec 'small' has several: 1.8, 2.0"):
        ANALYSES["correlation-strength"].check(SMALL)
    with pytest.raises(ValueError, match="several values of k"):
        ANALYSES["l0-strength"].check(replace(L0_STRENGTH, saes=L0_STRENGTH.saes[:1]))
    saes = tuple(
        replace(sae, factors={**sae.factors, "correlation": 0}) for sae in L0_STRENGTH.saes[:4]
    )
    worlds = {"c_+0.4_seed_0": small_world(0.0)}
    with pytest.raises(ValueError, match="has SAEs of correlation 0"):
        ANALYSES["l0-strength"].check(replace(L0_STRENGTH, worlds=worlds, saes=saes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"d_sae": 5, "k": 1.5}}, r"'c_\+0.4_k_2' has the factor k = 2.0, but its"),
        ({"architecture": "topk"}, r"SAE 'c_\+0.4_k_2' has the architecture 'topk'"),
        (
            {"world": "c_-0.4"},
            r"SAE 'c_\+0.4_k_2' has the factor correlation = 0.4, but .* 'c_-0.4' .* is -0.4;",
        ),
        ({"world": "none"}, r"'c_\+0.4_k_2' has the factor correlation = 0.4, .* is 0;"),
        ({"world": "partial"}, r"world 'partial' of SAE 'c_\+0.4_k_2' is not one"),
        ({"world": "further"}, r"world 'further' of SAE 'c_\+0.4_k_2' is not one"),
        ({"world": "random"}, r"world 'random' of SAE 'c_\+0.4_k_2' is not one"),
        ({"world": "two", "config": {"d_sae": 2, "k": 2}}, "of its SAEs have 2, 5 features"),
    ],
)
def test_factors_other_than_what_is_trained_are_refused(change: dict, message: str) -> None:
    world = small_world(0.4)
    pairs = tuple((0, i, 0.4) for i in range(1, 5))
    others = {
        "none": replace(world, correlation=None),
        "partial": replace(world, correlation=CorrelatedPairs(pairs[:2])),
        "further": replace(world, correlation=CorrelatedPairs((*pairs, (1, 2, 0.1)))),
        "random": replace(world, correlation=CorrelationSpec(seed=0)),
        "two": WorldSpec(20, (0.4,) * 2, (0.15,) * 2, (1.0,) * 2, CorrelatedPairs(pairs[:1])),
    }
    spec = replace(
        SMALL,
        worlds={**SMALL.worlds, **others},
        saes=(replace(SMALL.saes[0], **change), *SMALL.saes[1:]),
    )
    with pytest.raises(ValueError, match=message):
        ANALYSES["small"].check(spec)


def test_one_k_at_a_correlation_is_refused_and_not_judged() -> None:
    saes = tuple(
        sae
        for sae in L0_STRENGTH.saes
        if sae.factors["correlation"] == 0.4 or sae.factors["k"] == 1.8
    )
    with pytest.raises(ValueError, match=r"none or one at correlation -0\.4"):
        ANALYSES["l0-strength"].check(replace(L0_STRENGTH, saes=saes))
    table = l0s(-0.2)
    table = table.loc[(table["correlation"] > 0) | (table["k"] == 1.8)]
    verdict = judge_l0s(table)
    assert [check.holds for check in verdict.checks] == [True, None]
    assert verdict.checks[1].measured == "k = 1.8: -0.200; there is no other k to compare it with"


def test_signs_are_not_judged_without_a_k_below_the_truth() -> None:
    verdict = judge_signs(small_table([0.0, 0.0], [0.0, 0.0]).query("k == 2"))
    assert verdict.outcome == "not judged"
    assert [check.holds for check in verdict.checks] == [None, True]
    assert "no SAE with a correlation has a k below the true L0" in verdict.checks[0].measured


@pytest.mark.parametrize(
    ("k", "said", "unsaid"),
    [
        (1.8, "1 of 2 latents hold more than 0.05 of feature 0 with the sign", "at k = 2"),
        (2.0, "at k = 2 1 of 2 latents hold more than 0.05 of feature 0, up to 0.30", "the sign"),
    ],
)
def test_what_is_said_of_fewer_dimensions_with_one_side_only(
    k: float, said: str, unsaid: str
) -> None:
    table = pd.DataFrame([row(0.4, k, [0.3, 0.01], d_in=2)])
    (line,) = _of_fewer_dimensions(table)
    assert "in 2 dimensions, fewer than" in line
    assert said in line
    assert unsaid not in line
    # Three features, so two dimensions are fewer and three are not.
    assert _has_fewer_dimensions(table).tolist() == [True]
    assert _has_fewer_dimensions(table.assign(d_in=3)).tolist() == [False]


def test_lowered_is_read_off_the_control() -> None:
    sae = SMALL.saes[1]
    assert sae.factors["k"] == 1.8
    lowered = replace(sae, sae_id="lowered", control=KTransition(3.0, 100, 2000))
    raised = replace(sae, sae_id="raised", control=KTransition(1.0, 0, 10))
    assert [is_lowered(one) for one in (sae, lowered, raised)] == [False, True, False]
    spec = replace(SMALL, saes=(sae, lowered, raised))
    assert lowering_in_words(spec) == "from 3 between steps 100 and 2,100 of 14,649"
    assert lowering_in_words(SMALL) == ""


def test_what_lowered_saes_show_claims_no_cause() -> None:
    table = pd.DataFrame(
        [
            row(0.4, 1.8, [0.0, 0.2]),
            row(0.4, 1.8, [0.1, 0.2], added=True, lowered=True),
            row(0.4, 1.8, [0.9, 0.9], added=True),
        ]
    )
    (line, *_) = _of_lowered(table, "from 3 between steps 0 and 10 of 20")
    assert "came down from 3 between steps 0 and 10 of 20, to 1.8, 2 of 2 latents" in line
    assert "it is 1, which is consistent with" in line


def small_table(low: list[float], right: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            row(0.4, 2.0, right),
            row(0.4, 1.8, [0.2, 0.3]),
            row(-0.4, 2.0, [0.0, 0.01]),
            row(-0.4, 1.8, low),
        ]
    )


def test_signs_hold_where_every_latent_mixes_below_the_truth_and_none_at_it() -> None:
    verdict = judge_signs(small_table([-0.2, -0.06], [0.01, -0.04]))
    assert verdict.outcome == "holds"
    positive, negative, clean = verdict.checks
    assert positive.measured == "2 of 2 latents; from +0.200 to +0.300"
    assert negative.measured == "2 of 2 latents; from -0.060 to -0.200"
    assert clean.measured == "4 of 4 latents; the largest is 0.040"
    assert "-0.4 is -0.26, +0.4 is +0.26" in verdict.remarks[0]


@pytest.mark.parametrize(
    ("low", "right", "holds"),
    [
        ([-0.2, 0.1], [0.0, 0.0], [True, False, True]),  # one latent with the wrong sign
        ([-0.2, -0.04], [0.0, 0.0], [True, False, True]),  # one that is clean
        ([-0.2, -0.2], [0.0, 0.06], [True, True, False]),  # mixing at the truth
    ],
)
def test_signs_fail_with_a_single_latent(
    low: list[float], right: list[float], holds: list[bool]
) -> None:
    verdict = judge_signs(small_table(low, right))
    assert verdict.outcome == "fails"
    assert [check.holds for check in verdict.checks] == holds


def test_an_sae_that_diverged_leaves_nothing_judged() -> None:
    table = small_table([-0.2, math.nan], [0.0, 0.0])
    for verdict in (judge_signs(table), judge_correlations(table), judge_l0s(table)):
        assert verdict.outcome == "not judged"
    assert judge_signs(table).checks[0].measured == "SAEs that diverged: c_-0.4_k_1.8"


def test_added_saes_are_not_judged() -> None:
    table = small_table([-0.2, -0.2], [0.0, 0.0])
    wrong = pd.DataFrame([row(0.4, 1.8, [-0.9, -0.9], added=True)])
    assert judge_signs(pd.concat([table, wrong])).outcome == "holds"


def test_where_latents_do_not_mix_alike_it_is_said() -> None:
    table = pd.DataFrame(
        [row(0.4, 1.8, [0.06, 0.5, 0.06]), row(-0.4, 1.8, [-0.1] * 3, elsewhere=0.7)]
    )
    verdict = judge_signs(table)
    assert verdict.outcome == "holds"
    assert "in 1 of 2 SAEs one latent holds more" in verdict.remarks[1]
    assert "up to 0.50): 1 at correlation +0.4 and k = 1.8" in verdict.remarks[1]
    assert "up to 0.70 of such a feature (1 at correlation -0.4" in verdict.remarks[2]


def strengths(mixing: dict[float, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [row(c, 1.8, [value] * 4, seed=i) for c, vs in mixing.items() for i, value in enumerate(vs)]
    )


def test_correlations_hold_where_the_means_rise_and_the_signs_agree() -> None:
    verdict = judge_correlations(strengths({0.4: [0.3, 0.1], -0.4: [-0.2, -0.3], 0.0: [0.0, 0.04]}))
    assert verdict.outcome == "holds"
    rises, signs = verdict.checks
    assert "-0.4: -0.250 ± 0.071; +0: +0.020 ± 0.028; +0.4: +0.200 ± 0.141" in rises.measured
    assert signs.measured == "4 of 4 SAEs; without correlation up to 0.040"


@pytest.mark.parametrize(
    ("mixing", "holds"),
    [
        ({-0.4: [-0.2], 0.2: [0.3], 0.4: [0.2]}, [False, True]),  # it falls
        ({-0.4: [-0.2], 0.2: [0.2], 0.4: [0.2]}, [False, True]),  # it stays
        ({-0.4: [-0.2], -0.2: [0.01], 0.4: [0.2]}, [True, False]),  # one sign
        ({-0.4: [-0.2], 0.0: [0.06], 0.4: [0.2]}, [True, False]),  # mixing without correlation
    ],
)
def test_correlations_fail(mixing: dict[float, list[float]], holds: list[bool]) -> None:
    verdict = judge_correlations(strengths(mixing))
    assert [check.holds for check in verdict.checks] == holds


def test_where_the_means_do_not_rise_it_is_said() -> None:
    verdict = judge_correlations(strengths({-0.4: [-0.2], 0.2: [0.3], 0.4: [0.2]}))
    assert "it does not from +0.2 to +0.4; Spearman" in verdict.checks[0].measured


def l0s(last: float, **others: object) -> pd.DataFrame:
    rows = [row(0.4, k, [v]) for k, v in ((2.0, 0.0), (1.9, 0.1), (1.8, 0.3))]
    rows += [row(-0.4, k, [v]) for k, v in ((2.0, 0.0), (1.9, -0.1))]
    return pd.DataFrame([*rows, row(-0.4, 1.8, [last], **others)])


def test_l0s_hold_for_each_correlation_by_itself() -> None:
    verdict = judge_l0s(l0s(-0.2))
    assert verdict.outcome == "holds"
    assert verdict.checks[1].measured.startswith("k = 2: +0.000; k = 1.9: -0.100; k = 1.8: -0.200")
    assert verdict.checks[1].measured.endswith("-1.000")
    assert "+0.01 to +0.01 from it" in verdict.remarks[-1]
    above = pd.DataFrame([row(0.4, 2.2, [0.9])])  # above the truth nothing is judged
    assert judge_l0s(pd.concat([l0s(-0.2), above])).outcome == "holds"


def test_l0s_fail_where_one_of_them_falls_and_say_where_the_mixing_went() -> None:
    table = l0s(0.01, elsewhere=0.8)
    verdict = judge_l0s(table)
    assert [check.holds for check in verdict.checks] == [True, False]
    assert any("up to 0.80 of such a feature" in remark for remark in verdict.remarks)
    # Added, but not lowered: nothing is said of it.
    assert (
        judge_l0s(
            pd.concat([table, pd.DataFrame([row(-0.4, 1.8, [0.5], added=True)])], ignore_index=True)
        ).remarks
        == verdict.remarks
    )
    lowered = pd.DataFrame(
        [
            row(-0.4, k, [v], added=True, lowered=True, mse=0.05, l0=1.7)
            for k, v in ((1.9, -0.1), (1.8, -0.2))
        ]
    )
    verdict = judge_l0s(pd.concat([table, lowered], ignore_index=True), "from 2.5 early on")
    assert [check.holds for check in verdict.checks] == [True, False]
    (said,) = [remark for remark in verdict.remarks if "came down from 2.5 early on: " in remark]
    assert "mixing rises from each k" in said
    assert "0.050 at L0 1.700 in place of 0.100 at L0 1.810 for k = 1.8" in said
    assert "consistent with a poorer minimum" in said


def test_numbers_by_hand() -> None:
    assert strictly_rising([1.0, 2.0, 3.0])
    assert not strictly_rising([1.0, 1.0, 3.0])
    table = pd.DataFrame({"x": [1, 2, 3], "y": [10, 30, 20]})
    x, y = floats(table, "x"), floats(table, "y")
    assert rank_correlation(x, y) == pytest.approx(0.5)
    assert math.isnan(rank_correlation(x, 0 * x))
    assert mean_and_spread(y) == "+20.000 ± 10.000"
    assert mean_and_spread(y[:1]) == "+10.000"


def shrunken(spec: ExperimentSpec, *saes: str) -> ExperimentSpec:
    """The named SAEs with their worlds, and a few batches for each."""
    chosen = tuple(sae for sae in spec.saes if sae.sae_id in saes)
    chosen = tuple(
        replace(sae, control=replace(sae.control, duration_steps=20))
        if isinstance(sae.control, KTransition)
        else sae
        for sae in chosen
    )
    assert len(chosen) == len(saes)
    return replace(
        spec,
        worlds={
            name: replace(world, ortho_num_steps=min(world.ortho_num_steps, 50))
            for name in spec.worlds
            if name in {sae.world for sae in chosen}
            for world in [spec.toy_world(name)]
        },
        saes=chosen,
        training=replace(
            spec.training,
            total_training_samples=64 * 50,
            train_batch_size_samples=64,
            n_batches_for_norm_estimate=5,
            log_every=5,
        ),
        evaluation_samples=1000,
    )


@pytest.mark.parametrize(
    ("spec", "figures", "checks"),
    [
        (shrunken(SMALL, *(sae.sae_id for sae in SMALL.saes)), ["overview"], 3),
        (
            shrunken(
                SUPERPOSITION,
                "c_+0.4_seed_0_k_1.8",
                "c_+0.4_seed_0_k_1.8_lowered",
                "mild_c_-0.4_seed_2_k_1.8",
                "mild_c_-0.4_seed_2_k_2",
                "d_in_4_c_+0.4_seed_0_k_2",
                "d_in_4_c_+0.4_seed_0_k_1.8",
            ),
            ["overview", "lowered_overview", "weaker_1_overview", "fewer_dimensions_overview"],
            3,
        ),
        (shrunken(CORRELATION_STRENGTH, "c_-0.5_seed_0", "c_+0.3_seed_1"), ["overview"], 2),
        (
            shrunken(
                L0_STRENGTH,
                *("c_+0.4_seed_0_k_2", "c_+0.4_seed_0_k_1.7", "c_+0.4_seed_0_k_1.7_lowered"),
            ),
            ["overview"],
            1,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ExperimentSpec) else "",
)
def test_it_runs_from_end_to_end(
    spec: ExperimentSpec, figures: list[str], checks: int, tmp_path: Path
) -> None:
    settings = RunSettings(seed=1, progress=False)
    folder = started(spec, tmp_path / "run", settings)
    results = finish_run(folder, spec, settings)
    table = results.tables["mixing"].frame
    assert table["sae_id"].tolist() == [sae.sae_id for sae in spec.saes]
    # 50 steps of Adam at 3e-4 cannot take a latent far from where it starts, at its feature.
    assert floats(table, "smallest_own_cosine").min() > 0.9
    assert floats(table, "mixing").tolist() == pytest.approx(
        table[[f"component_{i}" for i in range(1, 5)]].mean(axis=1).tolist()
    )
    ratio = floats(table, "firing_correlation") / floats(table, "correlation")
    assert ((ratio > 0.6) & (ratio < 0.7)).all()
    assert len(results.verdict.checks) == checks
    assert [shown["name"] for shown in folder.manifest["shown_figures"]] == figures
    for name in figures:
        assert (folder.plots_path / f"{name}.png").stat().st_size > 1000


def test_every_analysis_of_small_worlds_measures_mixing() -> None:
    assert all(isinstance(ANALYSES[spec.analysis], Mixing) for spec in SPECS)
