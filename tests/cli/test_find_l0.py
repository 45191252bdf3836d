"""`sbw find-l0` as a user types it; the search itself is made small."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock
from safetensors.torch import save_file

from sparse_but_wrong.atomic import LOCK, make_free_folder
from sparse_but_wrong.cli.main import cli
from sparse_but_wrong.l0 import find, sweep as l0_sweep
from sparse_but_wrong.l0.find import FindOptions
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import EvaluatedSweep
from sparse_but_wrong.report import recommendation
from tests.l0.evidence import count, presence, sweep

CLEAR = recommend_l0(sweep())

SPEC = """
name: mine
title: Mine
claim: none
worlds: {acts: {activations: acts.npy}}
saes:
  - {sae_id: k_1, architecture: batchtopk, config: {d_sae: 9, k: 1}, world: acts, factors: {k: 1}}
  - {sae_id: k_2, architecture: batchtopk, config: {d_sae: 9, k: 2}, world: acts, factors: {k: 2}}
training: {total_training_samples: 2048, train_batch_size_samples: 64, log_every: 10}
evaluation_samples: 1200
projection_n: [3, 4]
analysis: activations
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the search was asked for; it answers at once."""
    calls: list[dict[str, Any]] = []

    def answer(
        source: Iterator[torch.Tensor], d_sae: int, options: FindOptions
    ) -> L0Recommendation:
        calls.append({"batch": next(source), "d_sae": d_sae, "options": options})
        return CLEAR

    monkeypatch.setattr(find, "_find", answer)
    return calls


def sbw(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_a_built_in_world(asked: list[dict[str, Any]]) -> None:
    result = sbw("find-l0", "jumprelu", "--architecture", "jumprelu", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "L0 10, between 9.754 and 10.25" in result.output
    assert "rises for 6 of 6" in result.output
    assert "Report: runs/find-l0/report.html" in result.output
    (call,) = asked
    assert call["batch"].shape == (1024, 100)
    assert call["d_sae"] == 50
    assert call["options"].architecture == "jumprelu"
    assert call["options"].seed == 3
    made = json.loads(Path("runs/find-l0/recommendation.json").read_text())["made"]
    assert made["d_sae"] == "50"
    # A second one gets a folder of its own.
    assert "runs/find-l0-2/report.html" in sbw("find-l0", "jumprelu").output


def test_stored_activations(asked: list[dict[str, Any]]) -> None:
    np.save("acts.npy", np.random.default_rng(0).normal(size=(2_000, 7)).astype("float32"))
    refused = sbw("find-l0", "acts.npy")
    assert isinstance(refused.exception, ValueError)
    assert "--d-sae" in str(refused.exception)
    result = sbw("find-l0", "acts.npy", "--d-sae", "12", "--out", "mine")
    assert result.exit_code == 0, result.output
    assert asked[0]["d_sae"] == 12
    # An eighth of the samples a batch, up to 1,024; a quarter of them is held out, and comes first.
    assert asked[0]["batch"].shape == (250, 7)
    assert asked[0]["options"].evaluation_samples == 500
    assert "acts.npy" in Path("mine/report.html").read_text()


def test_what_is_counted_on_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.arange(2_000, dtype="float32")[:, None].repeat(7, axis=1)
    np.save("acts.npy", numbers)
    drawn: list[torch.Tensor] = []

    def answer(
        source: Iterator[torch.Tensor], d_sae: int, options: FindOptions
    ) -> L0Recommendation:
        del d_sae, options
        drawn.extend(next(source) for _ in range(20))
        return CLEAR

    monkeypatch.setattr(find, "_find", answer)
    assert sbw("find-l0", "--activations", "acts.npy", "--d-sae", "12").exit_code == 0
    held_out = torch.cat(drawn[:2])[:, 0]
    trained_on = torch.cat(drawn[2:])[:, 0]
    assert len(held_out.unique()) == 500
    assert not torch.isin(held_out, trained_on).any()
    assert len(trained_on.unique()) == 1_500
    # Not one end of the text only, nor its beginning first, and neighbours side by side.
    assert held_out.min() < 200
    assert held_out.max() > 1_800
    assert ((held_out[1:] - held_out[:-1]) == 1).float().mean() > 0.9


def test_a_run_is_judged_by_what_it_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first column numbers the samples.
    acts = np.random.default_rng(0).normal(size=(2_400, 7)).astype("float32")
    acts[:, 0] = np.arange(2_400) / 1_000
    np.save("acts.npy", acts)
    Path("mine.yaml").write_text(SPEC)
    assert sbw("run", "mine.yaml", "--out", "run").exit_code == 0
    drawn: list[torch.Tensor] = []

    def measure(
        saes: list[Any], source: Iterator[torch.Tensor], *_: Any, **asked: int
    ) -> EvaluatedSweep:
        assert len(saes) == 2
        assert asked["evaluation_samples"] == 1_200
        assert torch.get_num_threads() == 1
        drawn.extend(next(source) for _ in range(18))
        return sweep()

    monkeypatch.setattr(l0_sweep, "evaluate_sweep", measure)
    threads = torch.get_num_threads()
    try:
        result = sbw("find-l0", "run", "--threads", "1")
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    blocks, learned_from = drawn[:16], torch.cat(drawn[16:])[:, 0]
    held_out = torch.cat(blocks)[:, 0]
    assert len(held_out.unique()) == 1_200
    assert not torch.isin(held_out, learned_from).any()
    # The first blocks are not the beginning of the text; within one, neighbours stay together.
    assert torch.cat(blocks[:4])[:, 0].max() > 1.2
    assert all(torch.all(block[1:, 0] > block[:-1, 0]) for block in blocks)
    refused = sbw("find-l0", "run", "--column", "x")
    assert "--column" in str(refused.exception)


def test_either_a_source_or_activations() -> None:
    for arguments in ((), ("jumprelu", "--activations", "acts.npy")):
        refused = sbw("find-l0", *arguments)
        assert "SOURCE" in str(refused.exception)


def test_a_folder_of_activations(asked: list[dict[str, Any]]) -> None:
    """A cache has a manifest.json as a run has, and is no run."""
    Path("cache").mkdir()
    save_file({"activations": torch.randn(600, 7).bfloat16()}, "cache/shard-00000.safetensors")
    shard = Path("cache/shard-00000.safetensors")
    listed = {"file": shard.name, "n_samples": 600, "bytes": shard.stat().st_size}
    manifest = {
        "format": "sparse_but_wrong activations",
        "format_version": 1,
        "d_in": 7,
        "shards": [listed],
    }
    Path("cache/manifest.json").write_text(json.dumps(manifest))
    result = sbw("find-l0", "cache/", "--d-sae", "12")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("cache: batchtopk SAEs, d_in 7, d_sae 12")
    assert asked[0]["batch"].shape == (75, 7)
    refused = sbw("find-l0", "cache", "--d-sae", "12", "--world", "mars")
    assert "--world" in str(refused.exception)


def test_no_recommendation_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    declined = recommend_l0(sweep([count(presence(n_directions=60))]))
    monkeypatch.setattr(find, "_find", lambda *_: declined)
    result = sbw("find-l0", "jumprelu", "--save")
    assert result.exit_code == 0
    assert "No recommendation:\n  - the SAEs are too narrow" in result.output
    assert "a sae_lens folder" not in result.output
    assert "No SAE is kept" in result.output
    assert not Path("runs/find-l0/sae").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing'"),
        (["missing.npy", "--d-sae", "9"], r"missing\.npy"),
        (["full", "--d-sae", "9"], "full holds no activations"),
        (["correlation-strength"], "--world"),
        (["jumprelu", "--world", "mars"], "mars"),
        (["jumprelu", "--out", "full"], "full is not empty"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    result = sbw("find-l0", *arguments)
    assert isinstance(result.exception, ValueError | OSError)
    with pytest.raises(type(result.exception), match=message):
        raise result.exception


def dangling() -> None:
    Path("place").symlink_to("nowhere")


def a_file() -> None:
    Path("place").write_text("mine")


def in_use() -> None:
    make_free_folder(Path("place"))
    lock = FileLock(Path("place") / LOCK)
    lock.acquire()
    HELD.append(lock)


HELD: list[FileLock] = []


@pytest.mark.parametrize("make", [dangling, a_file, in_use])
def test_a_place_that_cannot_be_written_is_refused_before_the_search(
    make: Callable[[], None], asked: list[dict[str, Any]]
) -> None:
    make()
    result = sbw("find-l0", "jumprelu", "--out", "place")
    HELD.clear()
    assert isinstance(result.exception, ValueError | OSError)
    assert "place" in str(result.exception)
    assert not asked


def test_the_place_is_held_during_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[str] = []

    def answer(*_: object) -> L0Recommendation:
        if not outputs:
            outputs.append("")
            # A second search with the default place gets another one.
            outputs[0] = sbw("find-l0", "jumprelu").output
        return CLEAR

    monkeypatch.setattr(find, "_find", answer)
    result = sbw("find-l0", "jumprelu")
    assert "runs/find-l0/report.html" in result.output
    assert "runs/find-l0-2/report.html" in outputs[0]
    assert sorted(p.name for p in Path("runs/find-l0").iterdir()) == [
        *("plots", "recommendation.json", "report.html", "sweep.csv")
    ]


def test_the_answer_is_printed_where_it_cannot_be_written(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recommendation, "write_recommendation", full)
    result = sbw("find-l0", "jumprelu", "--out", "mine")
    assert asked
    assert "L0 10, between 9.754 and 10.25" in result.output
    assert re.search(r"disk of mine is full.* again", str(result.exception))
    assert not Path("mine").exists()


def test_how_many_saes_of_a_run_are_judged_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l0_sweep, "evaluate_sweep", lambda *_, **__: sweep())
    acts = np.random.default_rng(0).normal(size=(2_400, 7)).astype("float32")
    np.save("acts.npy", acts)
    Path("mine.yaml").write_text(SPEC)
    assert sbw("run", "mine.yaml", "--out", "run").exit_code == 0
    assert "2 SAEs: run" in sbw("find-l0", "run").output
    shutil.rmtree("run/saes/k_1")
    refused = sbw("find-l0", "run", "--out", "mine")
    assert re.search(r"finished, but k_1 .*missing.*--resume", str(refused.exception))
    assert not Path("mine").exists()
    manifest = Path("run/manifest.json")
    manifest.write_text(manifest.read_text().replace(': "finished"', ': "unfinished"'))
    assert "1 SAEs of 2; the run is not finished" in sbw("find-l0", "run").output
    assert sbw("run", "mine.yaml", "--out", "run", "--resume").exit_code == 0
    assert "2 SAEs: run" in sbw("find-l0", "run").output
