"""The drawing of why s_n^dec works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparse_but_wrong.experiments.intuition import MIXED_BY, mixed_directions, nth_projection
from sparse_but_wrong.experiments.registry import INTUITION, small_world
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.spec import ONLY_WORLD
from tests.experiments.tiny import finished


def test_latents_are_mixed_with_the_features_theirs_is_correlated_with() -> None:
    world = make_world(small_world(-0.4), 0)
    cosines = mixed_directions(world, 0.5) @ world.directions
    # Feature 0 with −0.2 of four others, over the norm √1.16; the others with −0.2 of it alone.
    assert cosines[0].tolist() == pytest.approx([0.9285] + [-0.1857] * 4, abs=2e-3)
    assert cosines[3].tolist() == pytest.approx([-0.1961, 0, 0, 0.9806, 0], abs=2e-3)
    torch.testing.assert_close(mixed_directions(world, 0.0), world.directions.T)


def test_the_nth_projection_is_an_order_statistic() -> None:
    activations = torch.tensor([[3.0, 1.0], [2.0, -1.0]])
    assert [nth_projection(activations, torch.eye(2), n) for n in (0, 1)] == [3, 1]


def test_it_draws_and_judges_nothing(tmp_path: Path) -> None:
    run = finished(replace(INTUITION, evaluation_samples=2000), tmp_path / "run")
    assert run.verdict.outcome == "not judged"
    assert run.true_l0[ONLY_WORLD] == pytest.approx(10.95, abs=0.3)
    assert [shown["name"] for shown in run.folder.manifest["shown_figures"]] == ["overview"]
    assert (run.folder.plots_path / "overview.png").stat().st_size > 1000
    world, (x, _) = run.world(ONLY_WORLD), run.samples(ONLY_WORLD)
    # The 18th projection of exact features is 0, and mixing is what raises it.
    assert nth_projection(x, world.directions.T, 18) == pytest.approx(0, abs=0.01)
    assert nth_projection(x, mixed_directions(world, MIXED_BY), 18) > 0.1
