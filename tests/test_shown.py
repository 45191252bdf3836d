"""What notebooks show of results: their words or table, and one figure that loads nothing."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sae_lens import BatchTopKTrainingSAEConfig

import sparse_but_wrong as sbw
from sparse_but_wrong.metrics.evaluation import Evaluations
from tests.experiments import tiny
from tests.l0.evidence import count, presence, sweep


def words_and_picture(result: Any) -> tuple[str, tuple[int, int]]:
    """The HTML without its figure, and the size of that."""
    html = result._repr_html_()
    (png,) = re.findall(r'<img src="data:image/png;base64,([^"]+)"', html)
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    assert len(np.unique(np.asarray(image.convert("L")))) > 20, "something is drawn"
    return html.replace(png, ""), image.size


@pytest.fixture(scope="module")
def trained() -> sbw.Sweep:
    world = sbw.ToyWorld(n_features=6, d_in=12, firing_probability=0.3, seed=0)
    cfgs = [BatchTopKTrainingSAEConfig(d_in=12, d_sae=6, k=k) for k in (1, 2)]
    return sbw.train_sweep(cfgs, world, n_samples=2_560, batch_size=128, log_every=5)


def test_a_sweep_shows_its_curves(trained: sbw.Sweep) -> None:
    words, (width, height) = words_and_picture(trained)
    assert "batchtopk_k_2: L0 2.00" in words
    assert width > 2 * height


def test_evaluations_show_their_table_and_figure(trained: sbw.Sweep) -> None:
    table = trained.evaluate(500)
    words, size = words_and_picture(table)
    assert words.count("<tr") == 2 + len(table)
    assert f"{table[1].c_dec:.4f}" in words
    assert "<th>mcc</th>" in words
    one, same = words_and_picture(table[1])
    assert one.count("<tr") == 2 + 1
    assert size == same


def test_what_cannot_be_drawn_is_said() -> None:
    html = Evaluations([])._repr_html_()
    assert "No figure: there are no evaluations" in html
    assert "<img" not in html


def test_a_diverged_sae_is_shown() -> None:
    sae: Any = sbw.make_saes([BatchTopKTrainingSAEConfig(d_in=12, d_sae=6, k=1)], seeds=[0])[0]
    torch.nn.init.constant_(sae.W_dec, np.nan)
    words, _ = words_and_picture(sbw.evaluate([sae], torch.ones(500, 12)))
    assert "NaN" in words
    assert "mcc" not in words  # nobody knows the features


@pytest.mark.parametrize("counts", [None, [count(presence(residual=0.3))]])
def test_a_recommendation_shows_its_evidence(counts: Any) -> None:
    found = sbw.recommend_l0(sweep(counts))
    words, _ = words_and_picture(found)
    assert words.count("<li>") == len(found.reasons) + len(found.doubts) + len(found.active.doubts)


def test_a_run_shows_its_verdict_table_and_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register(monkeypatch, name="jumprelu")
    run = sbw.run_experiment("jumprelu", out=tmp_path / "run", progress=False)
    words, _ = words_and_picture(run)
    assert "Claim: " in words
    assert words.count("<tr") == len(run.table) + 1
    first = run.folder.manifest["shown_figures"][0]["name"]
    png = (run.folder.plots_path / f"{first}.png").read_bytes()
    assert base64.b64encode(png).decode() in run._repr_html_()
