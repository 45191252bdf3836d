from __future__ import annotations

import math

import pytest

from sparse_but_wrong.metrics.findings import remarks, saturated, unsettled_thresholds
from tests.metrics.evaluated import evaluated


def test_an_l0_far_from_its_k_is_said_with_both():
    # A BatchTopK SAE of k = 12 after 50, 100, 200 and many steps.
    said = unsettled_thresholds(
        [("a", 12, 140.0), ("b", 12, 62.0), ("c", 12, 14.0), ("d", 12, 12.3)]
    )
    assert said is not None
    assert "140 at k = 12 (a), 62 at k = 12 (b), 14 at k = 12 (c)." in said
    assert "(d)" not in said


@pytest.mark.parametrize("l0", [2.8, 3.0, 3.2, math.nan])
def test_an_l0_near_its_k_or_unknown_is_not(l0):
    assert unsettled_thresholds([("a", 3, l0)]) is None
    assert unsettled_thresholds([]) is None


def test_one_l0_at_the_largest_coefficients_is_said():
    said = saturated([("c", 100, 3.01), ("a", 1, 7.0), ("b", 10, 3.0), ("d", 1000, 3.0)])
    assert said is not None
    assert "coefficient 10 on: 3 there (b) and 3 at 1000 (d)" in said


def test_latents_that_are_all_silent_are_one_l0():
    assert saturated([("a", 10, 0.0), ("b", 100, 0.0)]) is not None


@pytest.mark.parametrize(
    "points",
    [
        [],
        [("a", 10, 3.0)],
        # Neighbours in a sweep, as at the truth of a toy world.
        [("a", 0.75, 11.55), ("b", 1.0, 10.95), ("c", 1.3, 10.97), ("d", 1.5, 10.93)],
        [("a", 1, 7.0), ("b", 10, 6.0), ("c", 100, 5.0)],
        # At the lower end, where a coefficient does nothing yet.
        [("a", 0.001, 25.0), ("b", 0.01, 25.0), ("c", 1, 7.0)],
        # Seeds of one coefficient.
        [("a", 1, 7.0), ("b", 1, 7.0)],
        [("a", 10, 3.0), ("b", 100, math.nan)],
        [("a", math.inf, 3.0), ("b", 10, 3.0)],
    ],
)
def test_other_sweeps_are_not(points):
    assert saturated(points) is None


def test_remarks_name_the_number_and_the_sae():
    said = " ".join(remarks(evaluated()))
    # Of 16 latents of the wide one, 4 have a decoder row of their own and no encoder.
    assert "25% (wide)" in said
    assert "3 batches" in said
    assert "iverged" not in said
    assert "Diverged" in " ".join(remarks(evaluated(broken=True)))
