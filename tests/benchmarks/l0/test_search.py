"""Searches on the large worlds: the controls by their moments, the table by its rows."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from benchmarks.l0 import large, regret, search, truth
from benchmarks.l0.large import LargeWorld
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from tests.l0 import evidence
from tests.worlds.synthetic import CONFIG

SMALL = LargeWorld("small", "tune", d_sae=32, synthetic=CONFIG, noise=0.1)


@pytest.fixture(autouse=True)
def kept_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(large, "WORLDS", tmp_path)


def drawn(control: str) -> torch.Tensor:
    return torch.cat(list(itertools.islice(search.source(SMALL, control), 40)))


def test_noise_has_the_mean_and_covariance_of_the_world_and_no_features() -> None:
    x, noise = drawn("none"), drawn("noise")
    assert noise.shape == x.shape
    torch.testing.assert_close(noise.mean(0), x.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(noise.T.cov(), x.T.cov(), rtol=0.1, atol=0.05)
    centred = noise - noise.mean(0)
    kurtosis = (centred**4).mean(0) / (centred**2).mean(0) ** 2
    torch.testing.assert_close(kurtosis, torch.full_like(kurtosis, 3.0), rtol=0, atol=0.15)


def test_shuffled_coordinates_have_their_values_and_no_correlations() -> None:
    x, shuffled = drawn("none"), drawn("shuffled")
    first = x[: truth.BATCH_SIZE].sort(0).values
    assert torch.equal(first, shuffled[: truth.BATCH_SIZE].sort(0).values)
    off_diagonal = shuffled.T.corrcoef().fill_diagonal_(0).abs()
    assert float(off_diagonal.max()) < 0.04
    assert float(x.T.corrcoef().fill_diagonal_(0).abs().max()) > 0.1


def test_rows_are_added_and_read_as_a_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    searched: list[tuple[str, str]] = []

    def answer(
        world: LargeWorld, architecture: str, control: str, options: Any
    ) -> L0Recommendation:
        assert (options.architecture, options.fine_steps) == (architecture, truth.STEPS)
        searched.append((world.name, control))
        found = recommend_l0(evidence.sweep())
        return replace(found, l0=10.0 if control == "none" else None, interval=(7.0, 15.0))

    monkeypatch.setattr(search, "search", answer)
    monkeypatch.setattr(LargeWorld, "l0", (15.0, 12.0))  # else the world is made, in two minutes
    monkeypatch.setattr(search, "SHARED", tmp_path / "searches")
    table = tmp_path / "search.csv"
    run = CliRunner()
    for control in ("none", "noise", "none"):
        arguments = ["tune-narrow", "--control", control, "--table", str(table)]
        assert run.invoke(search.main, arguments, catch_exceptions=False).exit_code == 0
    assert searched == [("tune-narrow", "none"), ("tune-narrow", "noise")]
    monkeypatch.setattr(regret, "SEARCHES", table)
    found = regret.regrets("tune").query("world == 'tune-narrow' and architecture == 'batchtopk'")
    found = found.set_index("rule")
    assert found.loc["find_l0", "l0"] == 10.0
    assert found.loc["find_l0", "half_width"] == pytest.approx(0.4)
    # Of that grid the mean best cosine is largest at 5.9, and MCC at 7.4, where it is 0.881; at 9.2
    # it is 0.879, and at 11.6 0.860.
    assert found.loc["find_l0", ["holds_best_cosine", "holds_mcc"]].tolist() == [0.0, 1.0]
    assert np.isnan(found.loc["argmin of c_dec", "holds_mcc"])
    assert float(found.loc["find_l0", "regret_mcc"]) == pytest.approx(0.006, abs=0.002)
    assert pd.read_csv(table)["l0"].isna().tolist() == [False, True]
    # What their SAEs share.
    kept = pd.read_csv(tmp_path / "searches/tune-narrow_batchtopk_none.csv")
    assert kept["l0"].tolist() == evidence.sweep().table["l0"].tolist()
