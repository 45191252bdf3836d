"""The command line as a process sees it; `sbw run`, `show`, `report` and `paper`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparse_but_wrong.cli import main as cli_main
from sparse_but_wrong.experiments import registry, runner
from sparse_but_wrong.experiments.registry import JUMPRELU
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.spec_file import to_yaml
from tests.cli.conftest import Sbw
from tests.experiments import tiny


@pytest.mark.parametrize(
    ("line", "code", "pattern"),
    [
        ("--help", 0, r"(?s)^Usage: .*\n  list .*\n  run "),
        ("", 2, r"(?s)^Usage: .*\n  list .*\n  run "),
        ("--version", 0, r"^sbw, version \d+\.\d+\.\d+\n$"),
        ("list", 0, r"\njumprelu: .*\n +claim: "),
    ],
)
def test_what_there_is(line: str, code: int, pattern: str, sbw: Sbw) -> None:
    assert re.search(pattern, "".join(sbw(line, code)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fly", "No such command 'fly'"),
        ("run", "Missing argument 'NAME'"),
        ("run nonsense", "'nonsense'"),
        ("run tiny --seed x", "'x' is not a valid integer"),
        ("run tiny --threads 0", "0 is not in the range"),
        ("run tiny --device abacus", "device 'abacus' cannot be used"),
        ("run tiny --resume", "no unfinished run of 'tiny'"),
        ("run tiny --resume --out nowhere", "nowhere"),
        ("run tiny --out used", "used is not empty"),
        ("run tiny --out used/file", "file is a file"),
        ("run no.yaml", "there is no file no.yaml"),
        ("run used/file.yaml", "file.yaml: claim is missing; worldz is not a field"),
        ("show nonsense", "'nonsense'"),
        ("report nowhere", "there is no run in nowhere"),
        ("paper nonsense", "'nonsense'"),
    ],
)
def test_bad_input(line: str, message: str, sbw: Sbw) -> None:
    Path("used").mkdir()
    Path("used/file").write_text("mine")
    Path("used/file.yaml").write_text("name: x\ntitle: y\nworldz: 3\n")
    sbw.refuses(line, message)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, sbw: Sbw) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli_main.cli, "main", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        sbw("list")


@pytest.mark.parametrize(
    "ask",
    [lambda: torch.empty(2**55), lambda: np.empty(2**55), lambda: bytearray(2**62)],
    ids=["torch", "numpy", "python"],
)
def test_what_no_memory_holds(
    ask: Callable[[], object], sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_but_wrong.cli.find_l0.find.callback", lambda **_: ask())
    sbw.refuses("find-l0 jumprelu", "Not enough memory")


@pytest.mark.parametrize(
    ("line", "command", "names"),
    [
        ("find-l0 ~/a.yaml --out '~/b'", "find_l0.find", ["source", "out"]),
        ("find-l0 --activations ~/a.npy", "find_l0.find", ["activations"]),
        ("run '~/a.yaml' --out ~/b", "run.run", ["name", "out"]),
        ("diagnose ~/sae --activations ~/a.npy", "diagnose.diagnose", ["saes", "activations"]),
    ],
)
def test_the_home_folder_may_be_written_short(
    line: str, command: str, names: list[str], sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("HOME", "/home/of/mine")
    monkeypatch.setattr(f"sparse_but_wrong.cli.{command}.callback", given.update)
    sbw(line)
    for name in names:
        (path,) = given[name] if isinstance(given[name], tuple) else (given[name],)
        assert Path(path).parent == Path("/home/of/mine")


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGINT, 130, "sbw: interrupted"), (signal.SIGTERM, 143, "sbw: terminated")],
)
def test_a_real_process_stops_with_a_checkpoint(
    sent: signal.Signals, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    training = replace(tiny.TINY.training, total_training_samples=200_000 * 64)
    spec = replace(tiny.TINY, analysis="sweep", training=training)
    Path("spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
    program = "from sparse_but_wrong.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", "spec.yaml", "--out", "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen, deadline = "", time.monotonic() + 120
    while not re.search(r" [1-9]\d?%", seen) and time.monotonic() < deadline:
        seen += process.stderr.read(1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "sbw run spec.yaml --out run --resume" in err
    assert err.strip().splitlines()[-1] == said
    assert "Traceback" not in err
    checkpoint = Checkpoint.read(Path("run/checkpoint.safetensors"))
    assert checkpoint.sae_ids == [sae.sae_id for sae in spec.saes]
    assert checkpoint.state.n_steps[0] > 1000


def test_a_run_ends_with_a_table_and_its_report_can_be_rebuilt(
    sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out, err = sbw("run tiny --seed 3 --threads 1 --device auto")
    assert "Device: cpu\n" in out
    assert "seed 3, cpu →" in out
    assert "True L0: 1." in out
    assert re.search(r"^ +0\.05 +\d\.\d\d +\d +0\.\d{3} ", out, re.MULTILINE)
    assert re.search(r"^\s+2\* ", out, re.MULTILINE)
    assert "* added to the published grid" in out
    assert out.endswith("Report: runs/tiny/report.html\n")
    assert Path("runs/tiny/results.csv").is_file()
    assert "25.6k" in err  # live progress, up to the last sample

    for other, said in (("--seed 4", "seed 3"), ("--device cuda", "device"), ("--quick", "quick")):
        sbw.refuses(f"run tiny --resume --out runs/tiny {other}", f"started with {said}")
    assert "True L0: 1." in sbw("run tiny --resume --out runs/tiny").out

    report, manifest = Path("runs/tiny/report.html"), Path("runs/tiny/manifest.json")
    before = report.read_bytes()
    report.unlink()
    assert sbw("report runs/tiny").out == "Report: runs/tiny/report.html\n"
    assert report.read_bytes() == before
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "status": "unfinished"}))
    sbw("report runs/tiny")
    assert report.read_bytes() != before, "the page says that the run is not finished"


def test_curves_go_where_they_are_asked_to(sbw: Sbw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_draw", lambda _: None)  # which takes longest
    sbw("run tiny --log-to tensorboard --out run")
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    curves = pd.read_csv("run/training_curves.csv").set_index("sae_id").loc["c_0.5"]
    assert [event.step for event in events.Scalars("c_0.5/l0")] == curves["step"].tolist()

    rows: list[dict[str, float]] = []

    @contextmanager
    def init(**settings: Any) -> Iterator[Any]:
        assert settings["dir"] == Path("other")
        assert settings["config"]["name"] == "tiny"
        yield SimpleNamespace(log=lambda data, step: rows.append({**data, "step": step}))

    monkeypatch.setattr("wandb.init", init)
    sbw("run tiny --out other --log-to wandb")
    assert [row["c_0.5/l0"] for row in rows] == curves["l0"].tolist()

    monkeypatch.setattr("sparse_but_wrong.cli.run.find_spec", lambda _: None)
    sbw.refuses("run tiny --log-to tensorboard", r"sparse_but_wrong\[tensorboard\]")
    two = replace(tiny.TINY, worlds={"a": tiny.WORLD, "b": tiny.WORLD}, saes=())
    monkeypatch.setitem(registry.EXPERIMENTS, "tiny", two)
    sbw.refuses("run tiny --log-to wandb", "2 worlds")


def test_resume_finds_the_run_that_is_meant(sbw: Sbw) -> None:
    tiny.started(tiny.TINY, Path("runs/tiny"))
    Path("runs/tiny-2").mkdir()
    Path("runs/tiny-2/manifest.json").write_text("{")  # damaged: not this one
    assert sbw("run tiny --resume").out.endswith("Report: runs/tiny/report.html\n")


def test_a_shown_spec_can_be_changed_and_run(sbw: Sbw) -> None:
    data = yaml.safe_load(sbw("show tiny").out)
    data |= {"name": "mine", "analysis": "sweep", "projection_n": [1]}
    Path("my.yaml").write_text(yaml.safe_dump(data))
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/file").write_text("in the way")
    out = sbw("run my.yaml").out
    assert out.endswith("Report: runs/mine-2/report.html\n"), "a run gets a folder of its own"
    manifest = json.loads(Path("runs/mine-2/manifest.json").read_text())
    assert manifest["spec"]["projection_n"] == [1]
    assert [figure["name"] for figure in manifest["shown_figures"]] == ["overview"]
    assert Path("runs/mine-2/plots/projections/s_1.png").is_file()
    assert "s_n^dec is smallest" in out
    assert sbw("run my.yaml --resume --out runs/mine-2").out.endswith("mine-2/report.html\n")
    Path("my.yaml").write_text(yaml.safe_dump(data | {"claim": "another"}))
    sbw.refuses("run my.yaml --resume --out runs/mine-2", "'mine' has changed since .*mine-2 was")


def test_the_published_figures_keep_their_names(sbw: Sbw, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(JUMPRELU, training=tiny.TINY.training, evaluation_samples=500)
    monkeypatch.setitem(registry.EXPERIMENTS, "jumprelu", small)
    saved: list[str] = []

    def save(_: object, path: Path) -> None:
        saved.append(path.relative_to("runs/jumprelu/plots").as_posix())

    monkeypatch.setattr(runner, "save_figure", save)
    monkeypatch.setattr(runner, "write_report", lambda _: None)
    sbw("run jumprelu")
    assert set(saved) >= {
        "toy_setup_jumprelu/toy_model_feature_firing_probabilities",
        "toy_setup_jumprelu/toy_model_correlation_matrix",
        *(f"dpn_jumprelu/dp_{n}" for n in range(12, 26)),
        "toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu",
        "training_curves",
        "overview",
    }


def test_paper_runs_what_is_left_and_writes_an_index(
    sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "EXPERIMENTS", {})
    for name in ("tiny", "tiny_too"):
        tiny.register(monkeypatch, name)
    sbw("paper tiny")
    manifest = Path("runs/paper/tiny/manifest.json")
    first = manifest.read_text()
    lines = sbw("paper").out.splitlines()
    assert manifest.read_text() == first, "finished runs are kept"
    assert lines[-1] == "Index: runs/paper/index.html"
    assert [line.split()[-1] for line in lines[-3:-1]] == ["tiny", "tiny_too"]
    index = Path("runs/paper/index.html").read_text()
    assert all(f'href="{name}/report.html"' in index for name in ("tiny", "tiny_too"))
    # What is not finished is taken up, and an experiment that changed is not taken for the old one.
    manifest.write_text(first.replace('"status": "finished"', '"status": "unfinished"'))
    sbw("paper")
    assert '"status": "finished"' in manifest.read_text()
    sbw.refuses("paper --seed 1", "seed 0, not 1")
    monkeypatch.setitem(registry.EXPERIMENTS, "tiny", replace(tiny.TINY, evaluation_samples=999))
    sbw.refuses("paper", "the spec of 'tiny' has changed since")
