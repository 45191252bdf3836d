"""From a language model's text to an answer, as a user goes: a tiny model, made on the spot."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.cli.main import cli
from sparse_but_wrong.l0 import sweep
from tests.activations.tiny_model import D_IN, make_tiny_model, write_text

SPEC = """
name: tiny-model
title: A sweep on a tiny language model
claim: none
world: {activations: acts}
analysis: activations
saes:
- {sae_id: k_2, architecture: batchtopk, factors: {k: 2},
   config: {d_sae: 64, k: 2, normalize_activations: expected_average_only_in}}
- {sae_id: k_8, architecture: batchtopk, factors: {k: 8},
   config: {d_sae: 64, k: 8, normalize_activations: expected_average_only_in}}
- {sae_id: k_24, architecture: batchtopk, factors: {k: 24},
   config: {d_sae: 64, k: 24, normalize_activations: expected_average_only_in}}
training: {total_training_samples: 64_000, train_batch_size_samples: 128, lr: 1e-3,
           n_batches_for_norm_estimate: 20, reinit_dead_every: 100}
evaluation_samples: 2_000
projection_n: [16, 24]
"""


def sbw(line: str) -> str:
    result = CliRunner().invoke(cli, line.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_from_text_to_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_model(tmp_path / "model")
    write_text(tmp_path / "texts", n_words=2_500)
    said = sbw(
        "cache-activations --model model --hook model.layers.0 --text texts --tokens 10000 "
        "--context-size 64 --out acts"
    )
    assert "acts" in said
    stored = open_activations("acts")
    assert stored.d_in == D_IN
    assert stored.n_samples >= 10_000
    assert stored.dtype == torch.bfloat16

    (tmp_path / "sweep.yaml").write_text(SPEC)
    said = sbw("run sweep.yaml --out sweep --threads 1")
    assert "nothing is judged" in said
    table = pd.read_parquet("sweep/results.parquet").set_index("sae_id")
    # SAEs that were given more latents use more, and explain more.
    assert table["l0"].is_monotonic_increasing
    assert table["variance_explained"].is_monotonic_increasing
    assert table.loc["k_24", "variance_explained"] > 0.5

    said = sbw("diagnose sweep --activations acts --out diagnosis --batch-size 1000 --threads 1")
    assert "3 SAEs on" in said
    measured = pd.read_csv("diagnosis/saes.csv").set_index("sae")
    # On all samples rather than on those held out: about the same.
    assert measured["l0"].tolist() == pytest.approx(table["l0"].tolist(), rel=0.1)
    assert len(pd.read_csv("diagnosis/projections.csv")) == 3 * 64

    monkeypatch.setattr(
        sweep,
        "evaluate_sweep",
        functools.partial(sweep.evaluate_sweep, learning_batches=10),
    )
    said = sbw("find-l0 sweep --out answer")
    answer = json.loads(Path("answer/recommendation.json").read_text())
    # A random model has no features of a usual magnitude; whatever is said has its reasons.
    assert (answer["l0"] is None) == bool(answer["doubts"])
    assert ("No recommendation" in said) == (answer["l0"] is None)
    for page in ("sweep", "diagnosis", "answer"):
        assert "sparse_but_wrong" in Path(page, "report.html").read_text(encoding="utf-8")
