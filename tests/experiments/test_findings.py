"""What is said about a curve of s_n: sharp, flat, or away from the truth."""

from __future__ import annotations

import math

import pandas as pd

from sparse_but_wrong.experiments.findings import find_projection_minima, in_words


def table(l0: list[float], **columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"l0": l0, **columns})


L0 = [22.0, 5.0, 10.9, 15.0, 8.0, 11.2]


def test_a_minimum_at_the_truth_that_rises_on_both_sides() -> None:
    found = find_projection_minima(table(L0, s_12=[0.3, 0.5, 0.002, 0.33, 0.4, 0.0015]), [12])
    assert found[0].l0_at_minimum == 11.2
    assert found[0].minimum == 0.0015
    assert found[0].plateau == (10.9, 11.2)  # within 1e-3 of the smallest
    assert found[0].shape(true_l0=11.0) == "sharp"
    assert found[0].shape(true_l0=14.0) == "away"
    assert in_words(found, 11.0) == [
        "For n = 12 s_n^dec is smallest within 1 of the true L0 (11.00), and rises on both sides."
    ]


def test_a_sweep_that_reaches_one_side_only_claims_no_other() -> None:
    above = find_projection_minima(table([11.0, 15.0], s_12=[0.1, 0.4]), [12])
    assert in_words(above, 11.0)[0].endswith(
        "and rises above; the sweep has no SAE on the other side."
    )
    near = find_projection_minima(table([11.0, 11.5], s_12=[0.1, 0.4]), [12])
    assert in_words(near, 11.0)[0].endswith("the sweep has no SAE further away than that.")


def test_a_curve_that_is_flat_above_the_truth_names_no_argmin() -> None:
    flat = [0.11, 0.3, 0.0007, 0.0003, 0.2, 0.0006]
    found = find_projection_minima(table(L0, s_20=flat, s_21=flat, s_23=flat), [20, 21, 23])
    assert [f.l0_at_minimum for f in found] == [15.0] * 3
    assert found[0].plateau == (10.9, 15.0)
    assert found[0].shape(true_l0=11.0) == "flat"
    (line,) = in_words(found, 11.0)
    assert "n = 20–21, 23" in line
    assert "from L0 10.9 to 15.0" in line
    assert "noise" in line


def test_a_minimum_elsewhere_is_said_to_be_elsewhere() -> None:
    found = find_projection_minima(table(L0, s_12=[0.01, 0.5, 0.3, 0.2, 0.4, 0.3]), [12])
    assert in_words(found, 11.0) == [
        "n = 12: s_n^dec is smallest at L0 22.00, away from the true L0 (11.00)."
    ]


def test_saes_that_diverged_are_left_out() -> None:
    frame = table([math.nan, 11.0, 12.0], s_3=[0.0, math.nan, 0.5])
    (found,) = find_projection_minima(frame, [3])
    assert found.l0_at_minimum == 12.0
    assert find_projection_minima(table([math.nan], s_3=[0.0]), [3]) == []
