"""`sbw find-l0` as a user types it; the search itself is made small."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from sparse_but_wrong.atomic import locked, make_free_folder
from sparse_but_wrong.cli import options
from sparse_but_wrong.cli.find_l0 import _on_noise
from sparse_but_wrong.l0 import find, sweep as l0_sweep
from sparse_but_wrong.l0.find import FindOptions
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import EvaluatedSweep
from sparse_but_wrong.report import recommendation
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.worlds.synthetic import SyntheticWorld
from tests.activations.caches import write_cache
from tests.cli.conftest import Sbw
from tests.l0.evidence import count, presence, sweep
from tests.worlds.synthetic import CONFIG

pytestmark = pytest.mark.usefixtures("no_figures")

SPEC = """
name: mine
title: Mine
claim: none
worlds: {acts: {activations: acts.npy}}
saes:
  - {sae_id: k_1, architecture: batchtopk, config: {d_sae: 9, k: 1}, world: acts, factors: {k: 1},
     init: mean}
  - {sae_id: k_2, architecture: batchtopk, config: {d_sae: 9, k: 2}, world: acts, factors: {k: 2}}
training: {total_training_samples: 2048, train_batch_size_samples: 64, log_every: 10}
evaluation_samples: 1200
projection_n: [3, 4]
analysis: activations
"""


class Search:
    """In place of a search: keeps what it was asked for, and answers at once."""

    def __init__(self) -> None:
        self.answer = recommend_l0(sweep())
        self.drawn: list[torch.Tensor] = []
        self.d_sae, self.options = 0, FindOptions()
        self.meanwhile: Callable[[], object] = list

    def __call__(
        self, source: Iterator[torch.Tensor], d_sae: int, options: FindOptions
    ) -> L0Recommendation:
        self.drawn = [next(source) for _ in range(20)]
        self.d_sae, self.options = d_sae, options
        self.meanwhile()
        return self.answer


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    made = Search()
    monkeypatch.setattr(find, "_find", made)
    return made


def write_activations(n: int) -> None:
    """Of width 7; the first column numbers the samples, in thousands."""
    acts = np.random.default_rng(0).normal(size=(n, 7)).astype("float32")
    acts[:, 0] = np.arange(n) / 1_000
    np.save("acts.npy", acts)


def test_a_folder_of_sae_lens_synthetic(sbw: Sbw, search: Search) -> None:
    SyntheticWorld(CONFIG).synthetic.save("large")
    assert "large: batchtopk SAEs, d_in 16, d_sae 40" in sbw("find-l0 large --out mine").out
    assert search.drawn[0].shape == (1_024, 16)
    sbw.refuses("find-l0 large --world x", "leave out --world")


def test_a_built_in_world(sbw: Sbw, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    # When it started is not asked any more once it has.
    search.meanwhile = lambda: monkeypatch.delattr(options, "provenance")
    out = sbw("find-l0 jumprelu --architecture jumprelu --seed 3").out
    assert "L0 10, between 9.754 and 10.25" in out
    assert "rises for 6 of 6" in out
    assert out.endswith("Report: runs/find-l0/report.html\n")
    assert search.drawn[0].shape == (1024, 100)
    assert search.d_sae == 50
    assert search.options.architecture == "jumprelu"
    assert search.options.seed == 3
    made = json.loads(Path("runs/find-l0/recommendation.json").read_text())["made"]
    assert made["d_sae"] == "50"


@pytest.mark.parametrize("option", ["", "--activations"])
def test_what_is_counted_on_is_not_trained_on(option: str, sbw: Sbw, search: Search) -> None:
    write_activations(2_000)
    sbw.refuses(f"find-l0 {option} acts.npy", "--d-sae")
    sbw.refuses(f"find-l0 {option} acts.npy --d-sae 12 --device abacus", "'abacus' cannot be used")
    out = sbw(f"find-l0 {option} acts.npy --d-sae 12 --out mine --device cpu").out
    assert out.startswith("acts.npy: batchtopk SAEs, d_in 7, d_sae 12")
    assert "acts.npy" in Path("mine/report.html").read_text()
    assert search.d_sae == 12
    assert search.options.evaluation_samples == 500
    # An eighth of the samples a batch, up to 1,024; a quarter of them is held out, and comes first.
    numbers = [batch[:, 0] * 1_000 for batch in search.drawn]
    assert len(numbers[0]) == 250
    held_out, trained_on = torch.cat(numbers[:2]), torch.cat(numbers[2:])
    assert len(held_out.unique()) == 500
    assert not torch.isin(held_out, trained_on).any()
    assert len(trained_on.unique()) == 1_500
    # Not one end of the text only, nor its beginning first, and neighbours side by side.
    assert held_out.min() < 200
    assert held_out.max() > 1_800
    assert ((held_out[1:] - held_out[:-1]).round() == 1).float().mean() > 0.9


def test_a_run_is_judged_by_what_it_held_out(sbw: Sbw, monkeypatch: pytest.MonkeyPatch) -> None:
    write_activations(2_400)
    Path("mine.yaml").write_text(SPEC)
    sbw("run mine.yaml --out run")
    drawn: list[torch.Tensor] = []

    def evaluate(
        saes: list[Any], source: Iterator[torch.Tensor], *_: Any, **asked: int
    ) -> EvaluatedSweep:
        assert len(saes) == 2 or drawn
        assert asked["evaluation_samples"] == 1_200
        assert torch.get_num_threads() == 2
        drawn.extend([*next(source).split(75), *(next(source) for _ in range(2))])
        return sweep()

    monkeypatch.setattr(l0_sweep, "evaluate_sweep", evaluate)
    assert "2 SAEs: run" in sbw("find-l0 run --threads 2").out
    blocks, learned_from = drawn[:16], torch.cat(drawn[16:])[:, 0]
    held_out = torch.cat(blocks)[:, 0]
    assert len(held_out.unique()) == 1_200
    assert not torch.isin(held_out, learned_from).any()
    # The first blocks are not the beginning of the text; within one, neighbours stay together.
    assert torch.cat(blocks[:4])[:, 0].max() > 1.2
    assert all(torch.all(block[1:, 0] > block[:-1, 0]) for block in blocks)
    for option in ("--column x", "--d-sae 9", "--architecture topk", "--save"):
        sbw.refuses(f"find-l0 run {option}", option.split()[0])
    # Some of its SAEs are gone: of a finished run that is damage, of another one it is said.
    shutil.rmtree("run/saes/k_1")
    sbw.refuses("find-l0 run --out mine", "finished, but k_1 .*missing.*--resume")
    manifest = Path("run/manifest.json")
    manifest.write_text(manifest.read_text().replace(': "finished"', ': "unfinished"'))
    assert "1 SAEs of 2; the run is not finished" in sbw("find-l0 run --threads 2").out
    shutil.rmtree("run/saes/k_2")
    sbw.refuses("find-l0 run", "no finished SAE of the world 'acts'")


def test_a_control_is_trained_as_the_run_was(sbw: Sbw) -> None:
    write_activations(2_400)
    Path("mine.yaml").write_text(SPEC)
    sbw("run mine.yaml --out run")
    folder = RunFolder.open(Path("run"))
    d_in = folder.load_sae("k_1").cfg.d_in
    samples = 5 + torch.randn(600, d_in, generator=torch.Generator().manual_seed(0))
    table = pd.DataFrame({"sae_id": ["k_2", "k_1"], "l0": [2.0, 1.0]})
    found = SimpleNamespace(agreement=SimpleNamespace(l0=1.1), sweep=SimpleNamespace(table=table))

    control = _on_noise(folder, cast(L0Recommendation, found), samples, seed=0)

    # Evaluated on noise too, around the same mean, and not on the samples of the run.
    assert control["sae_id"].tolist() == ["k_1", "k_2"]
    assert control["l0"].to_numpy(float).min() > 0.5
    assert control["shared_latents"].to_numpy(float).max() < 0.5 * 9


def test_a_folder_of_activations_is_no_run(sbw: Sbw, search: Search) -> None:
    write_cache(Path("cache"), torch.randn(600, 7))
    out = sbw("find-l0 cache/ --d-sae 12").out
    assert out.startswith("cache: batchtopk SAEs, d_in 7, d_sae 12")
    assert search.drawn[0].shape == (75, 7)
    sbw.refuses("find-l0 cache --d-sae 12 --world mars", "--world")


def test_no_recommendation_is_said(sbw: Sbw, search: Search) -> None:
    search.answer = recommend_l0(sweep([count(presence(n_directions=60))]))
    out = sbw("find-l0 jumprelu --save").out
    assert "latents:\n  - the SAEs are too narrow" in out
    assert "a sae_lens folder" not in out
    assert "No SAE is kept" in out
    assert not Path("runs/find-l0/sae").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "SOURCE"),
        ("jumprelu --activations acts.npy", "SOURCE"),
        ("nothing", "'nothing'"),
        ("missing.npy --d-sae 9", r"missing\.npy"),
        ("full --d-sae 9", "full holds no activations"),
        ("--activations jumprelu --d-sae 9", "no file or folder jumprelu"),
        ("correlation-strength", "--world"),
        ("jumprelu --world mars", "mars"),
        ("jumprelu --column x", "--column"),
        ("jumprelu --out full", "full is not empty"),
        ("jumprelu --out full/mine.txt", "mine.txt is a file"),
        ("jumprelu --out link", "link leads nowhere|link that leads nowhere"),
        ("jumprelu --out used", "another process is working in used"),
    ],
)
def test_bad_input_is_refused_before_the_search(
    line: str, message: str, sbw: Sbw, search: Search
) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("link").symlink_to("nowhere")
    make_free_folder(Path("used"))
    with locked(Path("used")):
        sbw.refuses(f"find-l0 {line}", message)
    assert not search.drawn


def test_the_place_is_held_during_the_search(sbw: Sbw, search: Search) -> None:
    others: list[str] = []

    def another() -> None:
        search.meanwhile = list
        others.append(sbw("find-l0 jumprelu").out)

    search.meanwhile = another
    assert "runs/find-l0/report.html" in sbw("find-l0 jumprelu").out
    assert "runs/find-l0-2/report.html" in others[0]
    assert sorted(path.name for path in Path("runs/find-l0").iterdir()) == [
        *("plots", "recommendation.json", "report.html", "sweep.csv")
    ]


def test_the_answer_is_printed_where_it_cannot_be_written(
    sbw: Sbw, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recommendation, "write_recommendation", full)
    done = sbw("find-l0 jumprelu --out mine", code=2)
    assert search.drawn
    assert "L0 10, between 9.754 and 10.25" in done.out
    assert "disk of mine is full" in done.err
    assert "again" in done.err
    assert not Path("mine").exists()
