"""The benchmark's worlds: as many and as different as is asked, and each what its entry says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from benchmarks.l0.worlds import (
    BenchmarkWorld,
    Blocks,
    HierarchyRecipe,
    NoiseRecipe,
    ToyRecipe,
    make,
    read_worlds,
)
from sparse_but_wrong.runs.spec import CorrelatedPairs, CorrelationSpec
from sparse_but_wrong.worlds.world import ToyActivations

WORLDS = read_worlds()
REPORTED = [world for world in WORLDS.values() if world.split == "report"]
TOYS = [world.world for world in REPORTED if isinstance(world.world, ToyRecipe)]


def test_the_reported_worlds_cover_what_they_are_to_cover() -> None:
    assert len(REPORTED) >= 24
    assert {world.width for world in REPORTED} == {0.75, 1.0, 1.5}
    assert {world.architecture for world in REPORTED} == {"batchtopk", "jumprelu"}
    assert min(toy.l0 for toy in TOYS) == 3
    assert max(toy.l0 for toy in TOYS) == 40
    assert min(toy.n_features for toy in TOYS) == 20
    assert max(toy.n_features for toy in TOYS) == 256
    assert {toy.firing for toy in TOYS} == {"linear", "zipf", "constant"}
    assert {toy.sigma for toy in TOYS} == {0.15, 0.5}
    assert any(toy.d_in < toy.n_features for toy in TOYS)
    assert any(isinstance(world.world, HierarchyRecipe) for world in REPORTED)
    assert any(isinstance(world.world, NoiseRecipe) for world in REPORTED)
    assert max(toy.offset for toy in TOYS) == 10
    assert max(toy.noise for toy in TOYS) == 0.05
    correlations = [toy.correlation for toy in TOYS]
    assert None in correlations
    assert any(isinstance(correlation, Blocks) for correlation in correlations)
    drawn = [c for c in correlations if isinstance(c, CorrelationSpec)]
    assert {c.positive_ratio for c in drawn} >= {0.1, 0.5, 0.9}
    assert {c.correlation_strength_range for c in drawn} >= {(0.1, 0.3), (0.3, 0.9)}


def test_no_world_is_in_both_splits() -> None:
    recipes = [world.world for world in WORLDS.values()]
    assert len(set(map(repr, recipes))) == len(recipes)
    seeds = {split: set() for split in ("tune", "report")}
    for world in WORLDS.values():
        if isinstance(world.world, ToyRecipe) and isinstance(
            world.world.correlation, CorrelationSpec
        ):
            seeds[world.split].add(world.world.correlation.seed)
    assert not seeds["tune"] & seeds["report"]


@pytest.mark.parametrize("firing", ["linear", "zipf", "constant"])
def test_a_recipe_sums_to_its_l0(firing: str) -> None:
    spec = (
        TypeAdapter(ToyRecipe)
        .validate_python({"n_features": 30, "d_in": 40, "l0": 5, "firing": firing, "sigma": 0.5})
        .spec()
    )
    assert sum(spec.firing_probabilities) == pytest.approx(5)
    assert list(spec.firing_probabilities) == sorted(spec.firing_probabilities, reverse=True)
    assert spec.std_firing_magnitudes == (0.5,) * 30


def test_blocks() -> None:
    spec = ToyRecipe(5, 10, 1.0, correlation=Blocks(block=2, strength=0.6)).spec()
    assert spec.correlation == CorrelatedPairs(((0, 1, 0.6), (2, 3, 0.6)))


def test_a_recipe_without_a_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be 0\.95 or less"):
        ToyRecipe(10, 10, 9.0).spec()
    with pytest.raises(ValidationError, match="fringe"):
        TypeAdapter(BenchmarkWorld).validate_python(
            {"name": "a", "split": "fringe", "architecture": "batchtopk", "world": {}}
        )


def test_made_worlds_follow_from_name_and_seed() -> None:
    entry = BenchmarkWorld("a", "tune", "batchtopk", ToyRecipe(12, 16, 3.0))
    one, same, other = (make(entry, seed, batch_size=64) for seed in (0, 0, 1))
    assert isinstance(one.source, ToyActivations)
    assert torch.equal(next(one.source), next(same.source))
    assert not torch.equal(next(one.source), next(other.source))
    assert one.true_l0 == other.true_l0
    assert one.true_l0 == pytest.approx(3, abs=0.03)


def test_clipped_magnitudes_do_not_count() -> None:
    narrow, wide = (
        make(BenchmarkWorld("a", "tune", "batchtopk", ToyRecipe(12, 16, 3.0, sigma=s)), 0)
        for s in (0.15, 0.5)
    )
    # Φ(−2) = 2.3 % of the magnitudes are cut off at 0.
    assert wide.true_l0 / narrow.true_l0 == pytest.approx(1 - 0.0228, abs=0.01)


def test_hierarchy_and_the_global_generator() -> None:
    recipe = HierarchyRecipe(n_features=20, d_in=24, roots=3, branching=2, depth=2, probability=0.3)
    entry = BenchmarkWorld("tree", "tune", "batchtopk", recipe)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, same = make(entry, 0, batch_size=64), make(entry, 0, batch_size=64)
    batches = [next(one.source) for _ in range(2)]
    assert torch.equal(torch.rand(2), expected), "the global generator was moved"
    assert torch.equal(batches[0], next(same.source))
    assert torch.equal(batches[1], next(same.source))
    assert not torch.equal(*batches)
    assert batches[0].shape == (64, 24)
    # Three trees of 1 + 2 + 4 features at most; a child needs all above it.
    assert 3 * 0.3 < one.true_l0 < 20 * 0.3


def test_offset_and_noise_are_added() -> None:
    recipe = ToyRecipe(n_features=10, d_in=16, l0=2.0)
    disturbed = replace(recipe, offset=7.0, noise=0.3)
    plain, moved = (
        torch.cat([batch for batch, _ in zip(made.source, range(10), strict=False)])
        for made in (make(world("same", r), seed=3) for r in (recipe, disturbed))
    )
    added = moved - plain
    assert float(added.mean(0).norm()) == pytest.approx(7, rel=0.01)
    assert float(added.std(0).mean()) == pytest.approx(0.3, rel=0.01)
    torch.testing.assert_close(
        next(make(world("same", disturbed), seed=3).source), moved[:1024], rtol=0, atol=0
    )
    other = next(make(world("same", disturbed), seed=4).source)
    assert not torch.equal(other, moved[:1024])
    # The offset belongs to the world, not to the stream.
    torch.testing.assert_close(other.mean(0), moved[:1024].mean(0), rtol=0, atol=0.15)


def test_noise_alone() -> None:
    made = make(world("noise", NoiseRecipe(d_in=8, latents=12, decay=1.0)), seed=0)
    assert math.isnan(made.true_l0)
    x = torch.cat([next(made.source) for _ in range(40)])
    deviations = torch.linalg.eigvalsh(torch.cov(x.T)).sqrt().flip(0)
    torch.testing.assert_close(deviations, 1 / torch.arange(1.0, 9.0), rtol=0.03, atol=0)
    entry = WORLDS["noise-only"]
    assert (entry.world.n_features, entry.d_sae) == (0, 40)


def world(name: str, recipe: ToyRecipe | NoiseRecipe) -> BenchmarkWorld:
    return BenchmarkWorld(name, "tune", "batchtopk", recipe)
