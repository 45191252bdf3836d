"""What a sweep on a world of known L0 shows, and whether its L0s were still moving."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sparse_but_wrong.experiments.findings import (
    ProjectionFinding,
    find_projection_minima,
    in_words,
    l0_change_at_end,
    log_every_that_tells,
    moving_in_words,
    sparsity_in_words,
)
from sparse_but_wrong.runs.spec import SAESpec
from sparse_but_wrong.training.controls import TargetL0
from tests.experiments import tiny

L0 = [22.0, 5.0, 10.9, 15.0, 8.0, 11.2]


def find(values: list[float], l0: list[float] = L0) -> ProjectionFinding:
    """In a sweep of SAEs with 30 latents, whose s_12 is given."""
    projections = pd.DataFrame({n: values if n == 12 else [1.0] * len(l0) for n in range(30)})
    (found,) = find_projection_minima(pd.DataFrame({"l0": l0}), projections, [12])
    return found


def test_a_minimum_at_the_truth_that_rises_on_both_sides() -> None:
    found = find([0.3, 0.5, 0.002, 0.33, 0.4, 0.0015])
    assert (found.l0_at_minimum, found.minimum) == (11.2, 0.0015)
    assert found.plateau == (10.9, 11.2)  # within 1e-3 of the smallest
    assert found.swept == (5.0, 22.0)
    assert found.shape(true_l0=11.0) == "sharp"
    assert found.shape(true_l0=14.0) == "away"
    (line,) = in_words([found], 11.0)
    assert "n = 12 " in line
    assert "11.20" in line


def test_a_flat_bottom_is_called_noise_with_what_sticks_out_of_it() -> None:
    found = find([0.11, 0.3, 0.0007, 0.0003, 0.2, 0.05])
    assert found.plateau == (10.9, 15.0)
    assert found.n_higher_within == 1  # the SAE at 11.2
    assert found.shape(true_l0=11.0) == "flat"
    away, flat = in_words([found], 11.0)
    assert "15.00, away from the true L0" in away
    assert "noise" in flat
    assert "from L0 10.90 to 15.00" in flat


def test_two_ends_of_a_bottom_do_not_stand_for_what_is_between() -> None:
    # At a far too low L0 s_n is small again: the truth is bracketed, but no SAE at it is low.
    found = find([0.02, 0.3, 0.0205], l0=[1.0, 11.0, 20.0])
    assert found.shape(true_l0=11.0) == "away"


def test_n_from_half_of_the_latents_on_are_left_out() -> None:
    projections = pd.DataFrame({n: [0.1] * 6 for n in range(30)})
    found = find_projection_minima(pd.DataFrame({"l0": L0}), projections, range(10, 20))
    assert [f.n for f in found] == [10, 11, 12, 13, 14]


def test_a_side_that_was_not_swept_is_named() -> None:
    (line,) = in_words([find([0.1, 0.4], l0=[11.0, 15.0])], 11.0)[1:]
    assert "below the true L0" in line
    assert len(in_words([find([0.1, 0.4], l0=[11.0, 11.5])], 11.0)) == 3


def test_saes_that_diverged_are_left_out() -> None:
    assert find([0.0, math.nan, 0.5], l0=[math.nan, 11.0, 12.0]).l0_at_minimum == 12.0
    table = pd.DataFrame({"l0": [math.nan]})
    assert find_projection_minima(table, pd.DataFrame({n: [0.0] for n in range(30)}), [12]) == []


def test_an_l0_that_was_still_moving_is_named() -> None:
    steps = list(range(0, 1001, 10))
    assert l0_change_at_end(steps, [5.0] * 101) == 0.0
    falling = [10.0 if step <= 900 else 10.0 - (step - 900) / 20 for step in steps]
    # 960 … 1000 are the last twentieth: 7, 6.5, 6, 5.5, 5; before 900 it was 10
    assert l0_change_at_end(steps, falling) == pytest.approx(-4.0)
    assert math.isnan(l0_change_at_end([0], [3.0]))
    assert math.isnan(l0_change_at_end([], []))
    rows = {"sae_id": ["a", "b", "c"], "l0": [9.0, 5.0, math.nan]}
    line = moving_in_words(pd.DataFrame({**rows, "l0_change_at_end": [0.0, -2.0, math.nan]}))
    assert line is not None
    assert "b 7.0 → 5.0" in line
    assert "a 9.0" not in line


@pytest.mark.parametrize(
    ("log_every", "n_steps", "expected"),
    [
        (100, 14_649, 100),  # the published budget
        (100, 2000, 100),
        (50, 400, 50),  # 350 lies between 85 % and 90 %
        (100, 1000, 50),
        (2, 293, 2),
        (100, 30, 1),
        (100, 1, 1),
        (5, 1_000_000, 5),
    ],
)
def test_logs_are_close_enough_to_tell_whether_l0_moved(
    log_every: int, n_steps: int, expected: int
) -> None:
    assert log_every_that_tells(log_every, n_steps) == expected


def test_it_can_be_told_of_every_short_run() -> None:
    for n_steps in range(20, 2200):
        every = log_every_that_tells(100, n_steps)
        steps = [*range(0, n_steps - 1, every), n_steps - 1]
        assert l0_change_at_end(steps, [1.0] * len(steps)) == 0.0, n_steps


def l0s(*values: float) -> pd.DataFrame:
    return pd.DataFrame({"sae_id": [f"sae_{i}" for i in range(len(values))], "l0": values})


def test_coefficients_that_give_one_l0_are_named_by_kind() -> None:
    def sae(i: int, coefficient: float, **changes: object) -> SAESpec:
        config = {"d_sae": 4, "l0_coefficient": coefficient, **changes}
        return SAESpec(f"sae_{i}", "jumprelu", config, factors={"seed": i})

    one_kind = [sae(0, 1.0), sae(1, 10.0), sae(2, 100.0)]
    (line,) = sparsity_in_words(one_kind, l0s(3.0, 2.0, 2.0))
    assert "coefficient 10 on: 2 there (sae_1) and 2 at 100 (sae_2)" in line
    assert sparsity_in_words(one_kind, l0s(3.0, 2.0, 1.0)) == []
    two_kinds = [sae(0, 10.0), sae(1, 100.0, jumprelu_bandwidth=2.0)]
    assert sparsity_in_words(two_kinds, l0s(2.0, 2.0)) == []
    controlled = [replace(s, control=TargetL0(2.0)) for s in one_kind]
    assert sparsity_in_words(controlled, l0s(2.0, 2.0, 2.0)) == []


def test_a_threshold_that_has_not_settled_is_said_of_a_run() -> None:
    """At k = 12 the L0 as used is 140 after 50 steps, while the log of training says 12."""
    saes = [SAESpec(f"sae_{i}", "batchtopk", {"d_sae": 400, "k": 12}) for i in range(2)]
    (line,) = sparsity_in_words(saes, l0s(140.0, 12.3))
    assert "140 at k = 12 (sae_0)" in line
    assert "sae_1" not in line


def test_a_short_run_says_what_moved_and_what_is_saturated(tmp_path: Path) -> None:
    spec, sae = tiny.TINY, tiny.TINY.saes[0]
    spec = replace(
        spec,
        analysis="sweep",
        training=replace(spec.training, total_training_samples=70 * 64, log_every=100, lr=0.03),
        saes=tuple(
            replace(sae, sae_id=f"c_{c:g}", config={**sae.config, "l0_coefficient": c}, factors={})
            for c in (0.05, 300.0, 3000.0)
        ),
    )
    run = tiny.finished(spec, tmp_path / "run")
    assert bool(run.table["l0_change_at_end"].notna().all())
    assert any("still moving" in remark for remark in run.verdict.remarks)
    assert any("coefficient 300 on" in remark for remark in run.verdict.remarks)
