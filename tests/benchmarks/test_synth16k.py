"""The script for SynthSAEBench-16k, on a member of its family with 128 features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sae_lens import TrainingSAE
from sae_lens.synthetic import eval_sae_on_synthetic_data

from benchmarks import synth16k
from benchmarks.l0.large import kept_world
from benchmarks.synth16k import Protocol
from sparse_but_wrong.worlds.synthetic import SyntheticWorld

SMALL = Protocol(
    n_features=128,
    d_in=32,
    orthogonalization_steps=2,
    d_sae=32,
    matryoshka_widths=(8, 32),
    l0s=(1.5, 4),
    n_seeds=2,
    n_samples=40_000,
    evaluation_samples=3_000,
)
ARGUMENTS = (
    *("--features", "128", "--d-in", "32", "--d-sae", "32", "--orthogonalization-steps", "2"),
    *("--l0", "1.5", "--l0", "4", "--seeds", "2", "--samples", "40_000"),
    *("--matryoshka-width", "8", "--matryoshka-width", "32", "--evaluation-samples", "3000"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synth16k")


@pytest.fixture(scope="module")
def world(here: Path) -> SyntheticWorld:
    return kept_world(SMALL.world(), here / "world", "cpu")


def test_the_defaults_are_the_published_protocol() -> None:
    published = Protocol()
    assert published.is_of_published_shape
    assert not SMALL.is_of_published_shape
    assert published.n_steps == 195_313
    assert len(published.sae_ids) == 35
    assert published.sae_ids["l0_25_seed_4"] == (25, 4)
    config = published.world()
    hierarchy = config["hierarchy"]
    assert (hierarchy["total_root_nodes"], hierarchy["branching_factor"]) == (128, 4)
    assert (config["num_features"], config["hidden_dim"], config["seed"]) == (16_384, 768, 42)
    batchtopk, matryoshka = (SMALL.saes(name, "cpu")[1].cfg for name in synth16k.ARCHITECTURES)
    assert (batchtopk.k, batchtopk.d_sae, batchtopk.d_in) == (4, 32, 32)
    assert matryoshka.matryoshka_widths == [8, 32]
    widths = published.search("matryoshka_batchtopk", "cpu").sae_config["matryoshka_widths"]
    assert widths == [1024, 2048, 4096]


def test_a_search_gets_a_tenth_of_the_budget_and_never_more_than_it() -> None:
    options = Protocol().search("batchtopk", "cpu")
    assert (options.coarse_steps, options.fine_steps) == (13_021, 19_531)
    assert options.learning_batches == 200
    options = SMALL.search("matryoshka_batchtopk", "cpu")
    assert (options.coarse_steps, options.fine_steps, options.learning_batches) == (27, 40, 40)
    assert options.sae_config["matryoshka_widths"] == [8, 32]


def test_a_kept_world_draws_what_it_drew_when_it_was_made(
    here: Path, world: SyntheticWorld
) -> None:
    made = SyntheticWorld(SMALL.world())
    again = kept_world(SMALL.world(), here / "world", "cpu")
    for drawn, kept in zip(made.stream(256, 3).draw(), again.stream(256, 3).draw(), strict=True):
        assert torch.equal(drawn, kept)
    every, top = synth16k.true_l0(world, 32)
    # Both over tens of thousands of samples, whose mean is uncertain by half a per cent.
    assert every == pytest.approx(world.true_l0, rel=0.03)
    assert 0 < top < every
    assert synth16k.true_l0(world, 128) == (every, every)
    other = SMALL.world() | {"seed": 43}
    with pytest.raises(ValueError, match="another config"):
        kept_world(other, here / "world", "cpu")


def test_the_rows_are_those_of_sae_lens(here: Path, world: SyntheticWorld) -> None:
    folder = here / "batchtopk"
    synth16k.train(world, SMALL, "batchtopk", folder)
    rows = synth16k.measure(world, SMALL, "batchtopk", folder)
    assert rows["l0"].tolist() == [1.5, 4, 1.5, 4]
    assert rows["seed"].tolist() == [0, 0, 1, 1]
    # A k per batch: of the last, which is not full, int(k·B) over its own samples.
    np.testing.assert_allclose(rows["sae_l0"], rows["l0"], rtol=1e-3)
    expected = eval_sae_on_synthetic_data(
        TrainingSAE.load_from_disk(folder / "l0_4_seed_0"),
        world.synthetic.feature_dict,
        world.synthetic.activation_generator,
        num_samples=20_000,
        batch_size=1024,
    )
    row = rows.iloc[1]
    assert row["mcc"] == pytest.approx(expected.mcc)
    assert row["uniqueness"] == pytest.approx(expected.uniqueness)
    assert row["explained_variance"] == pytest.approx(expected.explained_variance, abs=0.02)
    # Of other samples: F1 of a feature that fires in a hundredth of 3,000 is that uncertain.
    assert row["f1"] == pytest.approx(expected.classification.f1_score, abs=0.05)
    mcc, signed = (rows[name].to_numpy(float) for name in ("mcc", "signed_mcc"))
    assert (mcc - signed).min() > -1e-6


def test_the_published_numbers_stand_beside_the_published_shape_only() -> None:
    rows = pd.DataFrame(
        [
            {"architecture": name, "l0": l0, "seed": seed, "samples": 2e6, "f1": f1, "mcc": 0.5}
            for name, l0, f1 in (("batchtopk", 20.0, 0.25), ("batchtopk", 30.0, 0.5))
            for seed in (0, 1)
        ]
    )
    table = synth16k.means(rows, Protocol(n_seeds=2, n_samples=2_000_000))
    assert table["seeds"].tolist() == [2, 2]
    assert table["f1"].tolist() == [0.25, 0.5]
    assert table["share_of_published_samples"].tolist() == [0.01, 0.01]
    np.testing.assert_array_equal(table["published_f1"], [0.818, np.nan])
    np.testing.assert_array_equal(table["published_mcc"], [0.753, np.nan])
    assert (
        synth16k.means(rows, SMALL)["published_f1"].tolist()
        == [pytest.approx(np.nan, nan_ok=True)] * 2
    )


def test_the_command_continues_with_what_is_not_done(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synth16k, "_L0_SAMPLES", 2_048)
    trained: list[str] = []
    train = synth16k.train

    def counted(world: Any, protocol: Protocol, architecture: str, folder: Path) -> None:
        trained.append(architecture)
        train(world, protocol, architecture, folder)

    class Found:
        def save(self, place: Path, title: str) -> None:
            assert "128 features" in title
            place.mkdir()

    searched: list[tuple[int, ...]] = []

    def find(stream: Any, d_sae: int, options: Any) -> Found:
        searched.append((*next(stream).shape, d_sae, options.fine_steps))
        return Found()

    monkeypatch.setattr(synth16k, "train", counted)
    monkeypatch.setattr(synth16k, "find_l0", find)

    def run(*more: str) -> str:
        at = ("--out", str(here / "out"), "--world", str(here / "world"))
        result = CliRunner().invoke(synth16k.main, (*ARGUMENTS, *at, *more), catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    run("--architecture", "batchtopk", "--no-find-l0")
    shown = run("--architecture", "batchtopk", "--architecture", "matryoshka_batchtopk")
    assert trained == ["batchtopk", "matryoshka_batchtopk"]
    assert "0.020% of the published" in shown
    assert searched == [(1024, 32, 32, 40)] * 2
    run()
    assert len(trained) == len(searched) == 2
    table = pd.read_csv(here / "out" / "table.csv")
    assert table["architecture"].tolist() == ["batchtopk"] * 2 + ["matryoshka_batchtopk"] * 2
    assert table["samples"].tolist() == [40_000] * 4
    f1 = table["f1"].to_numpy(float)
    assert 0.01 < f1.min() <= f1.max() <= 1
    with pytest.raises(ValueError, match="other settings"):
        run("--samples", "50_000")
