"""`sbw cache-activations` as a user types it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from sparse_but_wrong.activations import cache
from sparse_but_wrong.activations.stored import is_activations, open_activations
from sparse_but_wrong.cli.main import cli
from tests.activations.tiny_model import make_tiny_model, write_text


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    make_tiny_model(folder / "model")
    write_text(folder / "texts")
    return folder


@pytest.fixture(autouse=True)
def _inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def sbw(*arguments: str, hook: str = "model.layers.0") -> Result:
    common = ["--model", "model", "--hook", hook, "--context-size", "16", "--batch-size", "4"]
    return CliRunner().invoke(cli, ["cache-activations", *common, *arguments])


def test_from_text_to_shards() -> None:
    level = logging.getLogger("transformers").level
    result = sbw(
        "--text", "texts", "--out", "cache", "--tokens", "500", "--dtype", "float32",
        "--threads", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    first, run, last = result.output.splitlines()
    assert first == "model at model.layers.0, d_in 32: 500 samples as float32, 66 kB → cache"
    assert run.startswith("576 tokens run in 0 s, ")
    manifest = json.loads(Path("cache/manifest.json").read_text())
    n, norm = manifest["n_samples"], manifest["mean_norm"]
    size = Path("cache/shard-00000.safetensors").stat().st_size / 1000
    assert last == f"{n} samples, d_in 32, mean norm {norm:.4g}, {size:.1f} kB: cache"
    stored = load_file("cache/shard-00000.safetensors")
    assert stored["activations"].shape == (n, 32)
    assert np.linalg.norm(stored["activations"], axis=1).mean() == pytest.approx(norm, rel=1e-5)
    assert (stored["token_ids"] > 2).all()
    assert manifest["provenance"]["versions"]["torch"]
    # Everything as it was for whoever goes on in this process.
    assert logging.getLogger("transformers").level == level
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()


def test_the_options_arrive() -> None:
    arguments = (
        "--text", "texts/0.txt", "--text", "texts/1.txt", "--out", "other", "--tokens", "99999",
        "--keep-special-tokens", "--skip-positions", "3", "--no-bos", "--model-dtype", "bfloat16",
    )  # fmt: skip
    result = sbw(*arguments)
    assert result.exit_code == 0, result.output
    assert "The text ended before 99,999 samples" in result.output
    manifest = json.loads(Path("other/manifest.json").read_text())
    options = {
        "excluded_token_ids": [],
        "skip_positions": 3,
        "prepend_bos": False,
        "model_dtype": "bfloat16",
        "dtype": "bfloat16",
        "model_class": "AutoModelForCausalLM",
        "text_ended": True,
    }
    assert {name: manifest[name] for name in options} == options
    assert manifest["text"]["n_files"] == 2
    assert "Nothing was left to do." in sbw(*arguments, "--resume").output


def test_stopped_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--text", "texts", "--out", "stopped", "--tokens", "300")

    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "save_shard", stop)
        result = sbw(*arguments)
    assert result.exit_code != 0
    assert "Stopped. The finished shards are kept" in result.output
    refused = sbw(*arguments)
    assert isinstance(refused.exception, FileExistsError)
    result = sbw(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    Path("stopped/shard-00000.safetensors").unlink()
    result = sbw(*arguments, "--resume")
    assert "made again: 1" in result.output


def test_large_norms_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGE", 1)
    result = sbw("--text", "texts", "--out", "large", "--tokens", "100")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"The largest norm is \d\S+, \d times the mean: the model parks", result.output
    )
    assert "A larger --skip-positions" in result.output


def test_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.chdir(tmp_path)
    paths = ["--model", "~/model", "--text", "~/texts", "--out", "~/at-home"]
    rest = ["--hook", "model.layers.0", "--tokens", "50", "--context-size", "16"]
    result = CliRunner().invoke(cli, ["cache-activations", *paths, *rest])
    assert result.exit_code == 0, result.output
    assert not list(tmp_path.iterdir())
    assert open_activations("~/at-home").n_samples >= 50
    assert is_activations("~/at-home")


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model_is_loaded() -> None:
    Path("link").symlink_to("nowhere/at/all")
    for out, resume in (("link", []), ("model/config.json/below", []), ("n", ["--resume"])):
        wrong = ["--model", "none", "--hook", "x", "--text", "none"]
        result = CliRunner().invoke(cli, ["cache-activations", *wrong, "--out", out, *resume])
        assert isinstance(result.exception, OSError)
        assert out.split("/below")[0] in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "texts", "--dataset", "x", "--out", "n"], "text .* dataset"),
        (["--out", "n"], "text .* dataset"),
        (["--text", "texts", "--dataset-config", "en", "--out", "n"], "dataset_config"),
        (["--text", "texts", "--out", "texts"], "texts is not empty"),
        (["--text", "texts", "--out", "n", "--resume"], "no cache to resume"),
        (["--text", "nowhere", "--out", "n"], "there is no file or folder nowhere"),
        (["--text", "texts", "--out", "n", "--skip-positions", "16"], "below context_size"),
        (["--text", "texts", "--out", "n", "--context-size", "128"], "64 tokens at once"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    result = sbw(*arguments)
    assert isinstance(result.exception, ValueError | OSError)
    with pytest.raises(type(result.exception), match=message):
        raise result.exception
    assert not Path("n").exists()
