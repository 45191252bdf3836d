"""The public functions whose results draw and save themselves."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKTrainingSAEConfig,
)

import sparse_but_wrong as sbw
from tests.activations.tiny_model import make_tiny_model, write_text
from tests.experiments import tiny
from tests.l0.evidence import count, presence, sweep


def test_a_recommendation_prints_draws_and_saves_itself(tmp_path: Path) -> None:
    found = sbw.recommend_l0(sweep())
    assert repr(found).splitlines()[:2] == [
        "L0 10, between 9.754 and 10.25, for SAEs of 50 latents",
        "Why:",
    ]
    assert str(found).count("\n  - ") == len(found.reasons)
    assert found._repr_html_().count("<li>") == len(found.reasons)
    assert len(found.to_frame()) == 7
    assert len(found.plot().axes) == 4
    page = found.save(tmp_path / "out", title="Small & hand-made")
    assert "Small &amp; hand-made" in page.read_text()
    assert (tmp_path / "out/sweep.csv").is_file()
    with pytest.raises(OSError, match="out"):
        found.save(tmp_path / "out")


def test_a_recommendation_that_is_none_says_why() -> None:
    found = sbw.recommend_l0(sweep([count(presence(residual=0.3))]))
    assert repr(found).startswith("No recommendation for SAEs of 50 latents:\n  - ")
    assert "30%" in found._repr_html_()


# What people do, in public names only.


def test_a_sweep_on_a_toy_world(tmp_path: Path) -> None:
    world = sbw.ToyWorld(n_features=6, d_in=12, firing_probability=0.3, std_magnitude=0.1, seed=0)
    cfgs = [BatchTopKTrainingSAEConfig(d_in=12, d_sae=6, k=k) for k in (1, 2, 2)]
    sweep = sbw.train_sweep(cfgs, world, n_samples=20_480, batch_size=128, lr=3e-3, seed=0)
    assert list(sweep.saes) == ["batchtopk_k_1", "batchtopk_k_2_1", "batchtopk_k_2_2"]
    table = sweep.evaluate(n_samples=2_000)
    assert [sae.n_samples for sae in table] == [2_000] * 3
    # The same samples every time, none of which the SAEs were trained on.
    assert sweep.evaluate(2_000)[1].mse == table[1].mse
    assert 0.5 < table["batchtopk_k_2_1"].mcc <= 1
    assert 0.5 < table["batchtopk_k_1"].f1 < table["batchtopk_k_2_1"].f1 < 1
    assert table[1].mse != table[2].mse  # each has its own seed
    assert sbw.plot_projections(table, n=3).axes
    assert "batchtopk_k_1: L0 1.00" in repr(sweep)
    sweep.save(tmp_path / "sweep")
    again = sbw.load_sae(tmp_path / "sweep/saes/batchtopk_k_1")
    assert sbw.evaluate(again, next(world.stream(500, seed=1))).l0 == pytest.approx(1, abs=0.8)
    assert len(list((tmp_path / "sweep/world").rglob("*.safetensors"))) == 2
    with pytest.raises(OSError, match="sweep"):
        sweep.save(tmp_path / "sweep")


def test_a_sweep_on_stored_activations_holds_samples_out(tmp_path: Path) -> None:
    acts = np.random.default_rng(0).normal(size=(1_000, 8)).astype("float32")
    np.save(tmp_path / "acts.npy", acts)
    cfgs = [TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2)]
    sweep = sbw.train_sweep(cfgs, tmp_path / "acts.npy", n_samples=2_000, batch_size=100)
    (metrics,) = sweep.evaluate()
    assert metrics.n_samples == 100
    assert metrics.l0 <= 2
    assert [sweep.evaluate(n)[0].n_samples for n in (30, 1_000)] == [30, 100]


def test_an_sae_on_a_language_model(tmp_path: Path) -> None:
    model, text = make_tiny_model(tmp_path / "model"), write_text(tmp_path / "plays")
    acts = sbw.cache_activations(
        model, "model.layers.0", text=text, n_tokens=500, out=tmp_path / "acts", context_size=16
    )
    JumpReLUSAE(JumpReLUSAEConfig(d_in=acts.d_in, d_sae=48)).save_model(tmp_path / "sae")
    metrics = sbw.evaluate(sbw.load_sae(tmp_path / "sae"), acts)
    assert metrics.n_samples == acts.n_samples
    assert 0 < metrics.l0 < 48
    assert 0 < metrics.c_dec < 1
    assert metrics.projections[12] > metrics.projections[24]


def test_an_sae_trained_elsewhere() -> None:
    world = sbw.ToyWorld(n_features=6, d_in=12, seed=0)
    sae = StandardSAE(StandardSAEConfig(d_in=12, d_sae=6))
    with torch.no_grad():
        sae.W_dec.copy_(world.directions.T)
    x, features = world.stream(seed=1).draw()
    assert torch.equal(x, next(world.stream(seed=1)))
    metrics = sbw.evaluate(sae, x, true_features=world.directions, true_feature_acts=features)
    assert metrics.mcc == pytest.approx(1, abs=1e-5)
    assert metrics.uniqueness == 1
    # True directions project to features: those beyond the true L0 of 1.2 are 0.
    assert metrics.projections[1] > 0.9
    assert metrics.projections[2] == pytest.approx(0, abs=1e-4)


def test_the_version_is_the_packages() -> None:
    assert sbw.__version__ == metadata.version("sparse_but_wrong")


def test_an_experiment_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(monkeypatch, name="jumprelu")
    run = sbw.run_experiment("jumprelu", out=tmp_path / "run", seed=0, progress=False)
    assert run.verdict.outcome
    assert len(run.table) == len(run.saes) > 1
    assert (tmp_path / "run/report.html").is_file()
    assert repr(run)
