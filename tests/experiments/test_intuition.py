"""The drawing of why s_n^dec works."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparse_but_wrong.experiments.intuition import (
    INTUITION,
    MIXED_BY,
    mixed_directions,
    nth_projection,
)
from sparse_but_wrong.experiments.registry import ANALYSES, EXPERIMENTS
from sparse_but_wrong.experiments.runner import RunSettings, finish_run
from sparse_but_wrong.experiments.small import SMALL
from sparse_but_wrong.experiments.worlds import small_world
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec
from tests.experiments.tiny import started


def test_the_spec_has_a_world_and_no_saes() -> None:
    assert ExperimentSpec.from_dict(json.loads(json.dumps(INTUITION.to_dict()))) == INTUITION
    assert EXPERIMENTS["intuition"] is INTUITION
    assert list(INTUITION.worlds) == [ONLY_WORLD]
    assert INTUITION.saes == ()
    ANALYSES[INTUITION.analysis].check(INTUITION)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SMALL, "trains nothing, but there are 4 SAEs"),
        (replace(SMALL, saes=()), "looks at one world, and there are 2"),
        (replace(INTUITION, worlds={}), "looks at one world, and there are 0"),
        (replace(INTUITION, worlds={"w": small_world(0.0)}), "whose features are correlated"),
        (replace(INTUITION, worlds={"w": small_world(0.4)}), "more than 36 features; it has 5"),
    ],
)
def test_a_spec_that_cannot_be_drawn_is_refused(spec: ExperimentSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ANALYSES["intuition"].check(spec)


def test_latents_are_mixed_with_the_features_theirs_is_correlated_with() -> None:
    world = make_world(small_world(-0.4), 0)
    rows = mixed_directions(world, 0.5)
    cosines = rows @ world.directions
    # Feature 0 with −0.2 of four others, over the norm √1.16; the others with −0.2 of it alone.
    assert cosines[0].tolist() == pytest.approx([0.9285] + [-0.1857] * 4, abs=2e-3)
    assert cosines[3].tolist() == pytest.approx([-0.1961, 0, 0, 0.9806, 0], abs=2e-3)
    torch.testing.assert_close(mixed_directions(world, 0.0), world.directions.T)
    with pytest.raises(ValueError, match="nothing to mix"):
        mixed_directions(make_world(small_world(0.0), 0), 0.5)


def test_the_nth_projection_is_an_order_statistic() -> None:
    activations = torch.tensor([[3.0, 1.0], [2.0, -1.0]])
    assert [nth_projection(activations, torch.eye(2), n) for n in (0, 1)] == [3, 1]


def test_it_draws_and_judges_nothing(tmp_path: Path) -> None:
    spec = replace(INTUITION, evaluation_samples=2000)
    settings = RunSettings(progress=False)
    folder = started(spec, tmp_path / "run", settings)
    results = finish_run(folder, spec, settings)
    assert results.verdict.outcome == "not judged"
    assert "This is a drawing" in results.verdict.remarks[0]
    assert results.true_l0[ONLY_WORLD] == pytest.approx(10.95, abs=0.3)
    assert [shown["name"] for shown in folder.manifest["shown_figures"]] == ["overview"]
    assert (folder.plots_path / "overview.png").stat().st_size > 1000
    world, x = results.world(ONLY_WORLD), results.activations(ONLY_WORLD)
    # Of exact features the 18th projection is 0, and mixing is what raises it.
    assert nth_projection(x, world.directions.T, 18) == pytest.approx(0, abs=0.01)
    assert nth_projection(x, mixed_directions(world, MIXED_BY), 18) > 0.1
