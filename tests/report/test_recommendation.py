"""The folder and the page of a recommendation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig

from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.training.make import make_saes
from tests.l0.evidence import count, presence, sweep

FACTS = {"Seed": 0, "Command": "sbw find-l0 <x> & y"}
DECLINED = recommend_l0(sweep([count(presence(n_directions=60))]))


def write(recommendation: L0Recommendation, folder: Path, *, with_sae: bool = False) -> str:
    page = write_recommendation(recommendation, folder, "a <b>", FACTS, with_sae=with_sae)
    assert page == folder / "report.html"
    return page.read_text(encoding="utf-8")


def test_a_recommendation(tmp_path: Path) -> None:
    found = recommend_l0(sweep())
    page = write(found, tmp_path / "out")
    assert "L0 10" in page
    assert found.interval is not None
    assert f"between {found.interval[0]:.4g} and {found.interval[1]:.4g}" in page
    assert "a &lt;b&gt;" in page
    assert "sbw find-l0 &lt;x&gt; &amp; y" in page
    assert "<b>" not in page
    assert "s<sub>n</sub><sup>dec</sup> rises for 6 of 6 n" in page
    written = json.loads((tmp_path / "out/recommendation.json").read_text())
    assert written["l0"] == 10.0
    assert written["interval"] == pytest.approx(found.interval)
    assert written["doubts"] == []
    assert [entry["l0"] for entry in written["counts"]] == [10.0, 10.02]
    assert written["curves"][0]["verdict"] == "rises"
    rows = (tmp_path / "out/sweep.csv").read_text().splitlines()
    assert len(rows) == 1 + len(found.sweep.table)
    assert {p.name for p in (tmp_path / "out/plots").iterdir()} == {
        "recommendation.pdf",
        "recommendation.png",
    }
    assert not (tmp_path / "out/sae").exists()


def test_no_recommendation(tmp_path: Path) -> None:
    page = write(DECLINED, tmp_path / "out", with_sae=True)
    assert "No recommendation" in page
    assert "Use d_sae ≥ 60" in page
    written = json.loads((tmp_path / "out/recommendation.json").read_text())
    assert written["l0"] is None
    assert written["counted"] == 10.0
    assert not (tmp_path / "out/sae").exists()


def test_nothing_at_all_to_show(tmp_path: Path) -> None:
    page = write(recommend_l0(sweep([])), tmp_path / "out")
    assert "No recommendation" in page
    assert "What was counted" not in page


def test_the_sae_is_kept_ready_to_use(tmp_path: Path) -> None:
    (sae,) = make_saes([BatchTopKTrainingSAEConfig(d_in=6, d_sae=8, k=2)], seeds=[0])
    write(replace(recommend_l0(sweep()), sae=sae), tmp_path / "out", with_sae=True)
    loaded = SAE.load_from_disk(str(tmp_path / "out/sae"))
    assert loaded.cfg.architecture() == "jumprelu"
    # The export has unit rows.
    lengths = sae.W_dec.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(loaded.W_dec.detach(), sae.W_dec.detach() / lengths)
