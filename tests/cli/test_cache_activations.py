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
from safetensors.numpy import load_file

from sparse_but_wrong.activations import cache, shards
from sparse_but_wrong.activations.stored import is_activations, open_activations
from tests.activations.tiny_model import make_tiny_model, write_text
from tests.cli.conftest import Sbw

CACHE = "cache-activations --hook model.layers.0 --context-size 16 --batch-size 4"
TEXTS = f"{CACHE} --model model --text texts"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_tiny_model(folder / "model")
    write_text(folder / "texts")
    return folder


@pytest.fixture(autouse=True)
def _here(made: Path, sbw: Sbw) -> None:
    del sbw
    for path in made.iterdir():
        Path(path.name).symlink_to(path)


def test_from_text_to_shards(sbw: Sbw) -> None:
    level = logging.root.manager.disable
    out = sbw(f"{TEXTS} --out cache --tokens 500 --dtype float32 --threads 1").out
    first, run, last = out.splitlines()
    assert first == "model at model.layers.0, d_in 32: 500 samples as float32, 66 kB → cache"
    assert re.fullmatch(r"576 tokens run in \d+ s, [\d,]+ per second", run)
    manifest = json.loads(Path("cache/manifest.json").read_text())
    stored = load_file("cache/shard-00000.safetensors")
    n = len(stored["activations"])
    norm = np.linalg.norm(stored["activations"], axis=1).mean()
    size = Path("cache/shard-00000.safetensors").stat().st_size / 1000
    assert last == f"{n} samples, d_in 32, mean norm {norm:.4g}, {size:.1f} kB: cache"
    assert stored["activations"].shape == (n, 32)
    assert (stored["token_ids"] > 2).all()
    assert manifest["provenance"]["versions"]["torch"]
    # Everything as it was for whoever goes on in this process.
    assert logging.root.manager.disable == level
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert not datasets.are_progress_bars_disabled()


def test_the_options_arrive(sbw: Sbw) -> None:
    line = (
        f"{CACHE} --model model --text texts/0.txt --text texts/1.txt --out other --tokens 99999 "
        "--keep-special-tokens --skip-positions 3 --no-bos --model-dtype bfloat16"
    )
    assert "The text ended before 99,999 samples" in sbw(line).out
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
    assert "Nothing was left to do." in sbw(f"{line} --resume").out


def test_stopped_and_resumed(sbw: Sbw, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    line = f"{TEXTS} --out stopped --tokens 300"
    with monkeypatch.context() as patched:
        patched.setattr(shards, "save_shard", stop)
        assert "Stopped. The finished shards are kept" in sbw(line, 130).err
    sbw.refuses(line, "stopped is not empty.*--resume")
    sbw(f"{line} --resume")
    Path("stopped/shard-00000.safetensors").unlink()
    assert "made again: 1" in sbw(f"{line} --resume").out


def test_large_norms_are_said(sbw: Sbw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LARGE", 1)
    out = sbw(f"{TEXTS} --out large --tokens 100").out
    assert re.search(r"The largest norm is \d\S+, \d times the mean.* larger --skip-positions", out)


def test_the_home_folder(sbw: Sbw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    sbw(f"{CACHE} --model ~/model --text ~/texts --out ~/at-home --tokens 50")
    assert not list(Path().iterdir())
    assert open_activations("~/at-home").n_samples >= 50
    assert is_activations("~/at-home")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{TEXTS} --dataset x --out n", "text .* dataset"),
        (f"{CACHE} --model model --out n", "text .* dataset"),
        (f"{TEXTS} --dataset-config en --out n", "dataset_config"),
        (f"{TEXTS} --out texts", "texts is not empty"),
        (f"{TEXTS} --out n --resume", "no cache to resume"),
        (f"{CACHE} --model model --text nowhere --out n", "there is no file or folder nowhere"),
        (f"{TEXTS} --out n --skip-positions 16", "below context_size"),
        (f"{TEXTS} --out n --context-size 128", "64 tokens at once"),
        # What cannot be written to is refused before the model is loaded.
        (f"{CACHE} --model none --text none --out link", "link"),
        (f"{CACHE} --model none --text none --out model/config.json/below", "config.json"),
        (f"{CACHE} --model none --text none --out n --resume", "no cache to resume"),
    ],
)
def test_bad_input(line: str, message: str, sbw: Sbw) -> None:
    Path("link").symlink_to("nowhere/at/all")
    sbw.refuses(line, message)
