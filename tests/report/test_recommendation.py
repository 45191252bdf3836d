"""The folder and the page of a recommendation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAEConfig

from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.training.make import make_saes
from tests.l0.evidence import count, presence, sweep

FACTS = {"Seed": 0, "Command": "sbw find-l0 <x> & y"}


def write(found: L0Recommendation, folder: Path, *, with_sae: bool = True) -> tuple[str, Any]:
    """The text of the page, and what the JSON holds."""
    page = write_recommendation(found, folder, "a <b>", FACTS, with_sae=with_sae)
    assert page == folder / "report.html"
    written = json.loads((folder / "recommendation.json").read_text(encoding="utf-8"))
    return page.read_text(encoding="utf-8"), written


def test_a_recommendation_whose_sae_is_kept_ready_to_use(tmp_path: Path) -> None:
    (sae,) = make_saes([BatchTopKTrainingSAEConfig(d_in=6, d_sae=8, k=2)], seeds=[0])
    found, out = replace(recommend_l0(sweep()), sae=sae), tmp_path / "out"
    page, written = write(found, out)
    assert found.interval is not None
    low, high = found.interval
    for text in (
        *("L0 10", f"between {low:.4g} and {high:.4g}", "a &lt;b&gt;"),
        "sbw find-l0 &lt;x&gt; &amp; y",
        "s<sub>n</sub><sup>dec</sup> rises for 6 of 6 n",
    ):
        assert text in page
    assert "<b>" not in page
    assert written["l0"] == 10.0
    assert written["interval"] == pytest.approx(found.interval)
    assert written["doubts"] == []
    assert [entry["l0"] for entry in written["counts"]] == [10.0, 10.02]
    assert written["curves"][0]["verdict"] == "rises"
    rows = (out / "sweep.csv").read_text().splitlines()
    assert len(rows) == 1 + len(found.sweep.table)
    plots = {path.name for path in (out / "plots").iterdir()}
    assert plots == {"recommendation.pdf", "recommendation.png"}
    loaded = SAE.load_from_disk(str(out / "sae"))
    assert loaded.cfg.architecture() == "jumprelu"
    # The export has unit rows.
    lengths = sae.W_dec.detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(loaded.W_dec.detach(), sae.W_dec.detach() / lengths)
    write(found, tmp_path / "without", with_sae=False)
    assert not (tmp_path / "without/sae").exists()


def test_no_recommendation_and_nothing_at_all_to_show(tmp_path: Path) -> None:
    declined = recommend_l0(sweep([count(presence(n_directions=60))]))
    page, written = write(declined, tmp_path / "out")
    assert "No recommendation" in page
    assert "d_sae ≥ 60" in page
    assert written["l0"] is None
    assert written["counted"] == 10.0
    assert not (tmp_path / "out/sae").exists()
    page, _ = write(recommend_l0(sweep([])), tmp_path / "nothing")
    assert "No recommendation" in page
    assert "What was counted" not in page
