"""The comparison of controllers: what it counts, and what its ways do to an SAE."""

from __future__ import annotations

import math

import pytest

from benchmarks.controllers import AVERAGED, Task, Way, run_task, settled_at
from benchmarks.l0.large import LargeWorld
from benchmarks.l0.worlds import ToyRecipe


def test_an_l0_has_settled_once_it_stays_within_the_band() -> None:
    assert settled_at([10.0] * 20, 10.0) == AVERAGED / 20
    assert settled_at([20.0] * 10 + [10.0] * 10, 10.0) == (10 + AVERAGED) / 20
    assert math.isnan(settled_at([10.0] * 19 + [20.0], 10.0))


def test_every_way_lowers_l0_as_if_it_were_alone() -> None:
    world = LargeWorld("test", "tune", 8, toy=ToyRecipe(8, 12, 2.0))
    ways = [Way("TargetL0"), Way("quadratic", 0.03), Way("dual ascent", 0.1)]
    task = Task(world, (2.0,), n_steps=2_000)
    l0 = [row["l0"] for row in run_task(task, ways, batch_size=64)]
    assert l0 == pytest.approx([2.0] * 3, abs=1.0)  # all begin at about 4
    assert l0[0] != l0[2]
    assert [row["l0"] for row in run_task(task, ways[2:], batch_size=64)] == l0[2:]
