"""Logs go to wandb and TensorBoard as they grow, and to whatever can do the like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb
from sae_lens import JumpReLUTrainingSAEConfig, TopKTrainingSAEConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import sparse_but_wrong as sbw
from sparse_but_wrong.training.loop import Training
from tests.training import oracle


class Notes:
    """A logger of one's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, data: dict[str, Any], step: int) -> None:
        self.rows.append((step, data))

    def column(self, name: str) -> list[float]:
        return [row[name] for _, row in self.rows if name in row]


def saes() -> list[Any]:
    """Of two groups, of which one begins after its activations' norms are known."""
    return [oracle.make_sae(), oracle.make("topk", 1), oracle.make_sae(1, **oracle.NORMALISED)]


def options(n_steps: int = 40) -> Any:
    return oracle.options_for(n_steps, log_every=5, n_batches_for_norm_estimate=20)


def test_every_row_is_reported_once_and_in_order() -> None:
    notes = Notes()
    log = sbw.train_saes(saes(), oracle.Batches(100), options(), logger=notes)
    steps = [step for step, _ in notes.rows]
    assert steps == sorted(set(steps)) == [*range(0, 40, 5), 39]
    for i, of_sae in enumerate(log.saes):
        for metric, values in of_sae.columns.items():
            assert notes.column(f"sae_{i}/{metric}") == values


def test_rows_are_reported_while_it_trains() -> None:
    notes, seen = Notes(), []

    def watched() -> Any:
        for batch in oracle.recorded_batches(400):
            seen.append(len(notes.rows))
            yield batch

    sbw.train_saes([oracle.make_sae()], watched(), options(400), logger=notes)
    assert 0 < seen[300] < len(notes.rows)


def test_a_resumed_run_reports_what_is_new() -> None:
    source = oracle.Batches(100)
    half = Training([oracle.make_sae()], source, options(20))
    half.run()
    whole, notes = Training([oracle.make_sae()], oracle.Batches(100), options()), Notes()
    whole.load_state(half.state())
    whole.report_to(notes, ["a"])
    whole.run()
    assert whole.log.saes[0].steps[:2] == [0, 5]
    assert [step for step, _ in notes.rows] == [20, 25, 30, 35, 39]


def test_what_is_no_logger_is_refused_before_anything_is_trained() -> None:
    sae: Any = oracle.make_sae()
    before = sae.W_dec.clone()
    with pytest.raises(TypeError, match="list"):
        sbw.train_saes([sae], oracle.Batches(100), options(), logger=[])  # pyright: ignore[reportArgumentType]
    assert (sae.W_dec == before).all()


@pytest.fixture
def activations() -> Any:
    return iter(oracle.Batches(1000))


CFGS = [
    JumpReLUTrainingSAEConfig(d_in=oracle.D_IN, d_sae=oracle.D_SAE, l0_coefficient=0.3),
    TopKTrainingSAEConfig(d_in=oracle.D_IN, d_sae=oracle.D_SAE, k=2),
]
BUDGET: Any = {"n_samples": 40 * oracle.BATCH, "batch_size": oracle.BATCH, "log_every": 5}


def last_row(frame: pd.DataFrame, sae: int) -> dict[Any, float]:
    return frame[frame["sae"] == sae].iloc[-1].dropna().to_dict()


def test_wandb_takes_curves_and_metrics(
    activations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="saes", mode="offline", dir=tmp_path) as run:
        sweep = sbw.train_sweep(CFGS, activations, logger=run, **BUDGET)
        table = sweep.evaluate(640)
        table.log_to(run, step=40)
        run.log({}, step=41)  # wandb takes a step in when the next begins
        summary = dict(run.summary)
    wandb.teardown()  # the process that writes the file outlives the run
    last = last_row(sweep.log.to_frame(), 1)
    for metric in ("l0", "mse_loss", "dead_latents", "lr"):
        assert summary[f"topk_k_2/{metric}"] == pytest.approx(last[metric])
    found = table["topk_k_2"]
    assert summary["topk_k_2/evaluation/c_dec"] == pytest.approx(found.c_dec)
    assert summary["topk_k_2/evaluation/s_2"] == pytest.approx(float(found.projections[2]))
    assert "topk_k_2/evaluation/mcc" not in summary  # nobody knows the true features
    assert next(tmp_path.rglob("*.wandb")).stat().st_size > 1000


def test_tensorboard_takes_curves_and_metrics(activations: Any, tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        sweep = sbw.train_sweep(CFGS, activations, logger=writer, **BUDGET)
        sweep.evaluate(640).log_to(writer, step=40)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    written = events.Scalars("topk_k_2/l0")
    log = sweep.log.saes[1]
    assert [event.step for event in written] == log.steps == [*range(0, 40, 5), 39]
    np.testing.assert_allclose([event.value for event in written], log.columns["l0"], rtol=1e-6)
    assert len(events.Scalars("jumprelu_l0_coefficient_0.3/evaluation/l0")) == 1
