"""The large worlds, and the grids that their best L0 is read from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.l0 import large, truth
from benchmarks.l0.large import LargeWorld, read_large_worlds
from tests.worlds.synthetic import CONFIG

WORLDS = read_large_worlds()
SMALL = LargeWorld("small", "tune", d_sae=32, synthetic=CONFIG, noise=0.1)


@pytest.fixture(autouse=True)
def kept_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(large, "WORLDS", tmp_path)


def n_features(world: LargeWorld) -> int:
    return world.toy.n_features if world.toy else (world.synthetic or {})["num_features"]


@pytest.mark.parametrize("split", ["tune", "report"])
def test_they_are_as_different_as_they_are_to_be(split: str) -> None:
    worlds = [world for world in WORLDS.values() if world.split == split]
    assert len(worlds) == 7
    assert {world.d_sae for world in worlds} >= {512, 1024, 2048}
    shares = [world.d_sae / n_features(world) for world in worlds]
    assert min(shares) == 0.125
    assert max(shares) == 2
    assert {512} <= {n_features(world) for world in worlds} <= set(range(512, 4097))
    assert any(world.noise for world in worlds)
    assert any(world.toy for world in worlds)
    assert any((world.synthetic or {}).get("hierarchy") for world in worlds)


def test_samples_and_streams_follow_from_their_purpose() -> None:
    x, features = SMALL.samples(3_000, "a")
    assert x.shape == (3_000, 16)
    assert torch.equal(x, SMALL.samples(3_000, "a")[0])
    assert not torch.equal(x[:64], next(SMALL.stream(64, "a")))
    noise = x - SMALL.world.model.embed(features)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    every, top = SMALL.l0
    assert every == pytest.approx(float((features > 0).sum(1).double().mean()), rel=0.05)
    assert 0 < top < every


def test_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "STEPS", 60)
    monkeypatch.setattr(truth, "N_SAMPLES", 2_048)
    targets = truth.missing_targets(SMALL, pd.DataFrame())
    assert targets[0] == pytest.approx(0.35 * SMALL.l0[0])
    assert targets[1] / targets[0] == pytest.approx(1.25)
    assert max(targets) < 0.45 * 32
    saes = truth.train(SMALL, "matryoshka_batchtopk", targets[:2])
    table = pd.DataFrame(list(truth.rows(SMALL, saes, targets[:2])))
    assert table["target"].tolist() == [targets[0]] * 2 + [targets[1]] * 2
    # With each other, and so the same of both up to rounding.
    first, second = table["pw_mcc"].to_numpy(float).reshape(2, 2).T
    assert first == pytest.approx(second, abs=1e-6)
    assert abs(first[0] - first[1]) > 1e-4
    for name in ("best_cosine", "mcc", "f1", "pw_mcc", "uniqueness"):
        values = table[name].to_numpy(float)
        assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.parametrize(("best", "more"), [(0, [1.28, 1.6]), (1, []), (2, [3.90625, 4.8828125])])
def test_a_grid_is_extended_where_the_best_is_at_its_end(best: int, more: list[float]) -> None:
    true_l0 = SMALL.l0[0]
    table = pd.DataFrame({"target": [2 * true_l0, 2.5 * true_l0, 3.125 * true_l0]})
    for name in truth.TRUTHS:
        table[name] = [float(i == best) for i in range(3)]
    found = sorted(truth.missing_targets(SMALL, table))
    assert found == pytest.approx([f * true_l0 for f in more])
