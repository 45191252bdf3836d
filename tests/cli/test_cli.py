"""The command line, as a process sees it."""

from __future__ import annotations

import os
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
from sparse_but_wrong.cli.main import main
from sparse_but_wrong.experiments.registry import JUMPRELU
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.spec_file import to_yaml
from tests.experiments import tiny
from tests.experiments.tiny import started

SBW = [sys.executable, "-c", "from sparse_but_wrong.cli.main import main; main()"]


def sbw(
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:
    """Run the command in this process: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["sbw", *arguments])
    code = 0
    try:
        main()
    except SystemExit as finished:
        code = int(finished.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_and_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = sbw(["--help"], monkeypatch, capsys)
    assert code == 0
    assert "run" in out
    assert "list" in out
    code, out, _ = sbw(["list"], monkeypatch, capsys)
    assert code == 0
    assert "\njumprelu: " in out
    code, out, _ = sbw(["--version"], monkeypatch, capsys)
    assert re.fullmatch(r"sbw, version \d+\.\d+\.\d+\n", out)


def test_a_run_ends_with_a_table_and_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    code, out, err = sbw(["run", "tiny", "--device", "cpu"], monkeypatch, capsys)
    assert code == 0, err
    assert "True L0: 1." in out
    assert re.search(r"^ +0\.05 +\d\.\d\d +\d +0\.\d{3} ", out, re.MULTILINE)
    assert re.search(r"^\s+2\* ", out, re.MULTILINE)
    assert "* added to the published grid" in out
    assert out.rstrip().endswith("Report: runs/tiny/report.html")
    assert (tmp_path / "runs" / "tiny" / "results.csv").is_file()
    assert "25.6k" in err  # live progress, up to the last sample

    code, out, _ = sbw(["run", "tiny", "--device", "cpu"], monkeypatch, capsys)
    assert code == 0
    assert out.rstrip().endswith("runs/tiny-2/report.html"), "a second run gets a folder of its own"

    code, out, _ = sbw(["run", "tiny", "--resume", "--out", "runs/tiny"], monkeypatch, capsys)
    assert code == 0
    assert "True L0: 1." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nonsense"], "'nonsense'"),
        (["run"], "Missing argument 'NAME'"),
        (["run", "tiny", "--seed", "x"], "'x' is not a valid integer"),
        (["run", "tiny", "--threads", "0"], "0 is not in the range"),
        (["run", "tiny", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["run", "tiny", "--resume"], "no unfinished run of 'tiny'"),
        (["run", "tiny", "--resume", "--out", "nowhere"], "nowhere"),
        (["run", "tiny", "--out", "used"], "used is not empty"),
        (["run", "tiny", "--out", "used/file"], "file is a file"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny.register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    code, _, err = sbw(arguments, monkeypatch, capsys)
    assert code == 2
    assert err.startswith("sbw: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "used"]


def test_no_arguments_print_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = sbw([], monkeypatch, capsys)
    assert code == 2
    assert err.startswith("Usage: ")
    assert len(err.splitlines()) > 5


def test_resume_finds_the_run_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    started(tiny.TINY, Path("runs/tiny"))
    (tmp_path / "runs" / "tiny-2").mkdir()
    (tmp_path / "runs" / "tiny-2" / "manifest.json").write_text("{")  # damaged: not this one
    code, out, err = sbw(["run", "tiny", "--resume"], monkeypatch, capsys)
    assert code == 0, err
    assert out.rstrip().endswith("Report: runs/tiny/report.html")


def test_resuming_with_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.register(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert sbw(["run", "tiny", "--seed", "3", "--out", "run"], monkeypatch, capsys)[0] == 0
    for option, value in (("--seed", "4"), ("--device", "cuda"), ("--quick", None)):
        extra = [option] if value is None else [option, value]
        arguments = ["run", "tiny", "--resume", "--out", "run", *extra]
        code, _, err = sbw(arguments, monkeypatch, capsys)
        assert code == 2
        assert f"started with {option.removeprefix('--')}" in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli_main.cli, "main", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main()


def test_sigterm_ends_a_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr("sparse_but_wrong.cli.find_l0.find.callback", ended)
    code, _, err = sbw(["find-l0", "jumprelu"], monkeypatch, capsys)
    assert code == 143
    assert err.strip().splitlines()[-1] == "sbw: terminated"


def test_sigterm_in_a_real_process_leaves_a_checkpoint(tmp_path: Path) -> None:
    options = replace(tiny.TINY.training, total_training_samples=200_000 * 64)
    spec = replace(tiny.TINY, analysis="sweep", training=options)
    (tmp_path / "spec.yaml").write_text(to_yaml(spec), encoding="utf-8")
    process = subprocess.Popen(
        [*SBW, "run", "spec.yaml", "--out", "run"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = ""
    deadline = time.monotonic() + 120
    while not re.search(r" [1-9]\d?%", seen) and time.monotonic() < deadline:
        seen += process.stderr.read(1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "sbw run spec.yaml --out run --resume" in err
    assert "Traceback" not in err
    checkpoint = Checkpoint.read(tmp_path / "run/checkpoint.safetensors")
    assert checkpoint.sae_ids == [sae.sae_id for sae in spec.saes]
    assert checkpoint.state.n_steps[0] > 1000


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(2**55),
        lambda: np.empty(2**55),
        lambda: bytearray(2**62),
    ],
    ids=["torch", "numpy", "python"],
)
def test_what_no_memory_holds_is_one_line(
    ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sparse_but_wrong.cli.find_l0.find.callback", lambda **_: ask())
    code, _, err = sbw(["find-l0", "jumprelu"], monkeypatch, capsys)
    assert code == 2
    assert err.startswith("sbw: error: Not enough memory")
    assert err.count("\n") == 1


def test_the_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it reaches us as it is, as in --out '~/x'."""
    given: dict[str, Any] = {}

    def keep(**options: object) -> None:
        given.update(options)

    monkeypatch.setenv("HOME", str(tmp_path))
    for target in ("find_l0.find", "run.run", "diagnose.diagnose"):
        monkeypatch.setattr(f"sparse_but_wrong.cli.{target}.callback", keep)
    for arguments, names in (
        (["find-l0", "~/a.yaml", "--out", "~/b"], ["source", "out"]),
        (["find-l0", "--activations", "~/a.npy"], ["activations"]),
        (["run", "~/a.yaml", "--out", "~/b"], ["name", "out"]),
        (["diagnose", "~/sae", "--activations", "~/a.npy"], ["saes", "activations"]),
    ):
        given.clear()
        assert sbw(arguments, monkeypatch, capsys)[0] == 0
        for name in names:
            value = given[name][0] if isinstance(given[name], tuple) else given[name]
            assert Path(str(value)).parent == tmp_path, (arguments, name)


def test_ctrl_c_in_a_real_process_and_resume(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [*SBW, "run", "jumprelu", "--quick", "--device", "cpu", "--out", "run"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = ""
    deadline = time.monotonic() + 120
    while not re.search(r" [1-9]\d?%", seen) and time.monotonic() < deadline:
        seen += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "sbw run jumprelu --out run --resume" in err
    assert "Traceback" not in err
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()

    resumed = subprocess.run(
        [*SBW, "run", "jumprelu", "--resume", "--out", "run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "mean nothing" in resumed.stdout
    assert len(list((tmp_path / "run" / "saes").iterdir())) == len(JUMPRELU.saes)
    for name in (
        "toy_setup_jumprelu/toy_model_feature_firing_probabilities",
        "toy_setup_jumprelu/toy_model_correlation_matrix",
        *(f"dpn_jumprelu/dp_{n}" for n in range(12, 26)),
        "toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu",
        "training_curves",
        "overview",
    ):
        for suffix in ("pdf", "png"):
            assert (tmp_path / "run" / "plots" / f"{name}.{suffix}").stat().st_size > 2000, name
