"""The command line, as a process sees it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_but_wrong.cli import main as cli_main
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
