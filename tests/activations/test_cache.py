"""Caches of activations: what is in them, and what becomes of them when something happens."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.activations import manifest as manifests, shards as writing
from sparse_but_wrong.activations.cache import cache_activations, write_part
from sparse_but_wrong.activations.language_model import LanguageModel, open_language_model
from sparse_but_wrong.activations.shards import human_bytes, shards_of_parts, split_into_parts
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.activations.texts import Sequences, Text, read_text
from tests.activations.caches import Written, write_cache
from tests.activations.conftest import SMALL, Make
from tests.activations.tiny_model import BOS, D_IN, WORDS, after_first_layer, write_text


@pytest.fixture(scope="module")
def finished(model: LanguageModel, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("finished") / "cache"
    options: Any = SMALL
    cache_activations(model, text=text, out=folder, provenance={"command": "sbw"}, **options)
    return Written(folder)


@pytest.fixture
def cached(finished: Written, tmp_path: Path) -> Path:
    """The folder of a finished cache, at the place where `make` makes its own."""
    return shutil.copytree(finished.folder, tmp_path / "cache")


def expected(
    tiny_model: Path, model: LanguageModel, text: Text, n: int, *, skip: int, lowest: int
) -> tuple[Tensor, Tensor]:
    """The activations of the first n sequences of 16, and the ids of their tokens from `lowest`."""
    tokens = torch.stack(list(islice(Sequences(model, text, 16, prepend_bos=True), n)))
    kept = tokens >= lowest
    kept[:, :skip] = False
    return after_first_layer(tiny_model, tokens)[kept], tokens[kept]


def test_it_holds_the_residual_stream(
    tiny_model: Path, model: LanguageModel, text: Text, finished: Written
) -> None:
    manifest = finished.manifest
    activations, token_ids = expected(tiny_model, model, text, 42, skip=1, lowest=3)
    assert torch.equal(finished.token_ids.long(), token_ids)
    # The same sums in batches of another size.
    torch.testing.assert_close(finished.activations, activations, rtol=1e-5, atol=1e-5)
    norms = activations.double().norm(dim=1)
    assert manifest["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-6)
    assert manifest["max_norm"] == pytest.approx(float(norms.max()), rel=1e-6)
    # The batch that reaches 600 is whole; a document starts with BOS, which is not kept.
    assert 600 <= manifest["n_samples"] == len(token_ids) < 600 + 45
    assert [shard["n_sequences"] for shard in finished.shards] == [9, 9, 9, 9, 6]
    assert [shard["first_sequence"] for shard in finished.shards] == [0, 9, 18, 27, 36]
    about = {
        "format": "sparse_but_wrong activations",
        "format_version": 2,
        "n_tokens_run": 42 * 16,
        "complete": True,
        "text_ended": False,
        "d_in": D_IN,
        "dtype": "float32",
        "excluded_token_ids": [0, 1, 2],
        "provenance": {"command": "sbw"},
        "resumed": [],
    }
    assert about.items() <= manifest.items()
    sums = [sha256(content).hexdigest() for content in finished.files.values()]
    assert [shard["sha256"] for shard in finished.shards] == sums
    # What reads caches takes it.
    stored = open_activations(finished.folder)
    assert (stored.n_samples, stored.d_in) == (manifest["n_samples"], D_IN)
    assert stored.mean_norm == manifest["mean_norm"]
    assert torch.equal(stored.read(0, stored.n_samples), finished.activations)


def test_special_tokens_and_positions(
    tiny_model: Path, model: LanguageModel, text: Text, make: Make
) -> None:
    all_ = make("all", n_tokens=100, exclude_special_tokens=False, skip_positions=0)
    n = all_.manifest["n_tokens_run"] // 16
    activations, token_ids = expected(tiny_model, model, text, n, skip=0, lowest=0)
    assert torch.equal(all_.token_ids.long(), token_ids)
    torch.testing.assert_close(all_.activations, activations, rtol=1e-5, atol=1e-5)
    assert all_.manifest["excluded_token_ids"] == []
    few = make("few", n_tokens=100, skip_positions=3, prepend_bos=False)
    # The first three sequences, of words alone.
    words = token_ids[token_ids != BOS][:48].view(-1, 16)
    assert torch.equal(few.token_ids[:39].long(), words[:, 3:].flatten())


def test_one_call_from_a_model_and_a_folder_of_text(
    tiny_model: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    rounded = make("acts", model=str(tiny_model), hook="model.layers.0", text="text",
                   dtype="bfloat16")  # fmt: skip
    stored = open_activations("acts")
    n = stored.n_samples
    assert (stored.d_in, stored.dtype) == (D_IN, torch.bfloat16)
    assert "d_in 32: 600 samples as bfloat16" in rounded.said
    assert rounded.said.splitlines()[-1].startswith(f"{n} samples")
    assert f"mean norm {stored.mean_norm:.4g}" in repr(stored)
    norms = rounded.activations.double().norm(dim=1)
    assert stored.mean_norm == pytest.approx(float(norms.mean()), rel=1e-12)
    exact = make("exact", text=["text"])
    assert torch.equal(rounded.activations, exact.activations.bfloat16())
    Dataset.from_dict({"tokens": [[5] * 16] * 9 + [None]}).save_to_disk("data")
    ids = make("ids", text=(), dataset="data")
    assert len(ids.token_ids) == 9 * 15
    assert "null or empty: 1" in ids.said
    assert "The text ended before 600" in ids.said
    again = make("ids", text=(), dataset="data", n_tokens=700, resume=True)
    assert "Nothing was left to do" in again.said
    assert again.files == ids.files
    with pytest.raises(ValueError, match="hook"):
        make("none", model=str(tiny_model), text="text")
    with pytest.raises(TypeError, match="nonsense"):
        make("none", nonsense=1)


def stop_after(n: int, error: BaseException) -> Any:
    """Writes n shards, and then raises."""
    left, save = iter(range(n)), writing.save_shard

    def save_or_stop(*arguments: Any) -> tuple[int, str]:
        if next(left, None) is None:
            raise error
        return save(*arguments)

    return save_or_stop


def test_resumed_is_as_uninterrupted(
    finished: Written, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (0, 2):
        with monkeypatch.context() as patched:
            patched.setattr(writing, "save_shard", stop_after(n, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                make(resume=n > 0, provenance={"command": "sbw"})
        manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
        assert (len(manifest["shards"]), manifest["complete"]) == (n, False)
    result = make(resume=True, provenance={"command": "again"})
    assert result.files == finished.files
    assert f"{(42 - 18) * 16} tokens run" in result.said
    resumed = [{"command": "sbw"}, {"command": "again"}]
    assert result.manifest == finished.manifest | {"resumed": resumed}


@pytest.mark.parametrize("n_tokens", [600, 540, 100_000])
def test_parts_that_others_wrote_take_their_places(
    n_tokens: int, tiny_model: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the last shard is cut or whole, or the text ends; and whoever was stopped."""
    texts = tmp_path / "texts"
    write_text(texts)
    source = {"model": str(tiny_model), "hook": "model.layers.0", "text": [texts]}
    alone = make("alone", n_tokens=n_tokens, **source)
    named: Any = {
        **source,
        **dict.fromkeys(("dataset", "dataset_config", "model_class")),
        **{"model_dtype": "float32", "device": "cpu"},
    }
    planned: list[dict[Path, list[int]]] = []

    def in_parts(folder: Path, cache: manifests.Cache) -> None:
        planned.append(split_into_parts(folder, cache, 2))
        for part, firsts in planned[-1].items():
            with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
                patched.setattr(writing, "save_shard", stop_after(1, KeyboardInterrupt()))
                write_part(part, firsts, cache, **named)
            if part.name == "00000":  # as if its worker had died, and another took it up
                write_part(part, firsts, cache, **named)
        if len(planned) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(n_tokens=n_tokens, write_parts=in_parts, **source)
    left = shards_of_parts(tmp_path / "cache")
    first_of_all, *_ = (firsts for firsts in planned[0].values())
    assert set(left) >= {first for first in first_of_all if first < 54}
    result = make(n_tokens=n_tokens, resume=True, write_parts=in_parts, **source)
    assert not {first for firsts in planned[1].values() for first in firsts} & set(left)
    assert result.files == alone.files
    assert result.manifest == alone.manifest | {"resumed": [{}]}
    assert not (tmp_path / "cache/.parts").exists()


def test_damaged_shards_are_made_again(finished: Written, cached: Path, make: Make) -> None:
    zero, one, two, _, four = (cached / name for name in finished.files)
    zero.write_bytes(zero.read_bytes()[:-1])
    flipped = bytearray(one.read_bytes())
    flipped[-1000] ^= 1
    one.write_bytes(flipped)
    # Links are replaced and not followed.
    precious, manifest = cached.parent / "precious.txt", cached.parent / "manifest.json"
    precious.write_text("mine")
    two.unlink()
    two.symlink_to(precious)
    (cached / "manifest.json").rename(manifest)
    (cached / "manifest.json").symlink_to(manifest)
    before = manifest.read_bytes()
    four.write_bytes(b"x" * four.stat().st_size)
    (cached / ".unfinished-1.safetensors").write_bytes(b"left over")
    result = make(resume=True)
    assert result.files == finished.files
    assert "made again: 4" in result.said
    assert f"{(9 + 9 + 9 + 6) * 16} tokens run" in result.said
    assert result.manifest == finished.manifest | {"resumed": [{}]}
    assert precious.read_text() == "mine"
    assert manifest.read_bytes() == before
    assert {file.name for file in cached.iterdir()} - {".lock"} == {*result.files, "manifest.json"}


def test_a_cache_is_extended(finished: Written, make: Make) -> None:
    short = make(n_tokens=200)
    assert len(short.files) == 2
    long = make(resume=True)
    assert short.files.items() <= long.files.items()
    assert long.manifest["tokens"] == 600
    n = len(finished.activations)
    assert torch.equal(long.activations[:n], finished.activations)


def test_what_cannot_be_resumed(make: Make, cached: Path, tmp_path: Path, tiny_model: Path) -> None:
    other_hook = open_language_model(str(tiny_model), "model.layers.1")
    other_text = read_text([write_text(tmp_path / "other", seed=1)])
    for changed, message in (
        ({"context_size": 32}, "context_size 16, not 32"),
        ({"dtype": "bfloat16"}, 'dtype "float32", not "bfloat16"'),
        ({"skip_positions": 2}, "skip_positions 1, not 2"),
        ({"exclude_special_tokens": False}, r"excluded_token_ids \[0, 1, 2\], not \[\]"),
        ({"batch_size": 4}, "batch_size 3, not 4"),
        ({"n_tokens": 500}, "600, not 500"),
        ({"model": other_hook}, r'hook "model.layers.0", not "model.layers.1"'),
        ({"text": other_text}, r'made with text \{"kind": "files"'),
    ):
        with pytest.raises(ValueError, match=message):
            make(resume=True, **changed)
    with atomic.locked(cached), pytest.raises(ValueError, match="another process"):
        make(resume=True)
    with pytest.raises(FileNotFoundError, match="no cache to resume"):
        make("none", resume=True)
    with pytest.raises(FileExistsError, match="is not empty"):
        make()


def test_other_text_behind_the_same_description(make: Make, cached: Path, text: Text) -> None:
    shorter = replace(text, rows=[{"text": " ".join(WORDS)}])
    with pytest.raises(ValueError, match=r"4 sequences, .* 42"):
        make(text=shorter, n_tokens=700, resume=True)
    (cached / "shard-00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"135 samples of 9 .*60 of 4"):
        make(text=shorter, n_tokens=700, resume=True)


MISSING = object()
WRONG = {
    "shards": [{}, [3], MISSING],
    "tokens": [600.5],
    "d_in": [2.5],
    "text_ended": ["no", MISSING],
    "provenance": [[]],
    "resumed": [1],
    "piece_size": [0, None],
    "skip_positions": [16],
    "format_version": [True, 1, 3],
    "format": ["another"],
}
WRONG_SHARDS = {
    "file": ["../precious.txt", "precious.txt", "manifest.json", "shard-00001.safetensors", 3],
    "n_samples": [-135, 135.0, True, 10**9],
    "n_sequences": [10**12, 0],
    "first_sequence": [-1, 10, 10**400],
    "bytes": ["1"],
    "mean_norm": [float("nan"), None],
    "max_norm": [10**400],
    "sha256": ["0", None],
    "n_tokens": [-3, MISSING],
}


@pytest.mark.parametrize(
    ("name", "value", "of_shard"),
    [(name, value, False) for name, values in WRONG.items() for value in values]
    + [(name, value, True) for name, values in WRONG_SHARDS.items() for value in values],
)
def test_a_manifest_that_lies_is_refused_and_nothing_written(
    cached: Path, make: Make, name: str, value: object, of_shard: bool
) -> None:
    precious, file = cached.parent / "precious.txt", cached / "manifest.json"
    precious.write_text("mine")
    manifest = json.loads(file.read_text())
    changed = manifest["shards"][0] if of_shard else manifest
    changed[name] = value
    if value is MISSING:
        del changed[name]
    file.write_text(json.dumps(manifest))
    before = {file.name: file.read_bytes() for file in cached.iterdir()}
    with pytest.raises(ValueError, match=rf"manifest\.json .*({name[:6]}|shard).* move that"):
        make(resume=True)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        open_activations(cached)
    assert precious.read_text() == "mine"
    assert {file.name: file.read_bytes() for file in cached.iterdir()} == before


def test_a_cache_is_what_its_manifest_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.arange(20.0).view(10, 2).bfloat16()
    write_cache(tmp_path, *x.split([5, 3, 2]))
    # Not listed: perhaps of a cache that is being written.
    (tmp_path / "shard-00003.safetensors").write_bytes(b"half")
    stored = open_activations(tmp_path)
    assert [part.n_samples for part in stored.parts] == [5, 3, 2]
    assert stored.mean_norm == pytest.approx(float(x.double().norm(dim=1).mean()), rel=1e-12)
    assert torch.equal(stored.read(0, 10), x)
    second = tmp_path / "shard-00001.safetensors"
    whole = second.read_bytes()

    def refuse(message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=rf"{second.name}.*{message}.*`sbw cache-activations --res"):
            open_activations(tmp_path)

    second.write_bytes(whole[:-2])
    refuse("is damaged")
    second.write_bytes(b"\xff" * len(whole))
    refuse("is damaged")
    second.unlink()
    refuse("", FileNotFoundError)
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuse("SHA-256")
    # Only where that takes no time.
    monkeypatch.setattr(manifests, "_CHECKSUMS_UP_TO", 3 * len(whole))
    assert open_activations(tmp_path).n_samples == 10
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"][1]["n_samples"] = 4
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    refuse(r"\[3, 2\].* \[4, 2\]")
    manifest["shards"] = []
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="no activations yet"):
        open_activations(tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_what_somebody_else_wrote_before_the_lock_counts(
    make: Make, cached: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    theirs, locked = cached / "manifest.json", atomic.locked
    if not resume:
        shutil.rmtree(cached)

    @contextmanager
    def after_somebody_else(folder: Path) -> Iterator[None]:
        theirs.write_text("theirs")
        with locked(folder):
            yield

    monkeypatch.setattr(atomic, "locked", after_somebody_else)
    message = r"manifest\.json is damaged" if resume else "is not empty"
    with pytest.raises((ValueError, FileExistsError), match=message):
        make(resume=resume)
    assert theirs.read_text() == "theirs"


def test_a_full_disk(
    finished: Written, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        full = OSError(errno.ENOSPC, "No space left on device")
        patched.setattr(writing, "save_shard", stop_after(2, full))
        with pytest.raises(OSError, match=r"is full.*\(samples: \d+ of 600\).* --resume"):
            make()
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(writing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"needs \d\S* kB more, but .*cache has only 1 kB free"):
            make(resume=True)
        with pytest.raises(OSError, match=r"needs 79\.2 kB more, but .* has only 1 kB free"):
            make("a/b")
    assert not (tmp_path / "a").exists()
    assert make(resume=True).files == finished.files


def test_what_is_not_finite(tiny_model: Path, make: Make) -> None:
    broken = open_language_model(str(tiny_model), "model.layers.0")
    weights: Any = broken.model
    with torch.no_grad():
        weights.model.get_input_embeddings().weight[10] = torch.inf
    where = r"model\.layers\.0 are not all finite in the sequences 0 to 2"
    for dtype, remedy in (("float32", "weights may be damaged"), ("float16", "--model-dtype")):
        with pytest.raises(ValueError, match=f"{where}; .*{remedy}"):
            make(model=replace(broken, dtype=dtype))


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"text": "ba be bi"}], {}, "no full sequence of 16"),
        ([{"text": "ba be bi"}], {"context_size": 128}, "64 tokens at once"),
        ([{"tokens": [64] * 16}], {}, r"token ids outside of the 64 of .* another tokenizer"),
        ([{"tokens": [-1] * 16}], {}, r"token ids outside of the 64 of .* another tokenizer"),
        ([], {"n_tokens": 0}, "n_tokens .* 1"),
        ([], {"context_size": 1}, "skip_positions"),
        ([], {"skip_positions": -1}, "skip_positions"),
        ([], {"dtype": "float16"}, "(?s)bfloat16.*float16"),
    ],
)
def test_a_refusal_leaves_nothing_in_the_way_of_another_try(
    make: Make, tmp_path: Path, rows: Any, changes: Any, message: str
) -> None:
    column = "tokens" if rows and "tokens" in rows[0] else "text"
    # With types checked while the tests run, a value of another type is refused before.
    with pytest.raises((ValueError, TypeError), match=message):
        make(text=Text("mine", {}, rows, column), **changes)
    assert not (tmp_path / "cache").exists()


def test_a_stream_that_breaks_off(make: Make, text: Text, tmp_path: Path) -> None:
    class Broken:
        def __iter__(self) -> Iterator[dict[str, str]]:
            yield from repeat({"text": " ".join(WORDS)}, 20)
            raise RuntimeError("connection reset")

    with pytest.raises(OSError, match=r"stream cannot be read after \d+ sequences .*reset"):
        make(text=replace(text, rows=Broken(), name="stream"), n_tokens=10_000)
    assert len(Written(tmp_path / "cache").shards) == 8


def test_sizes(finished: Written) -> None:
    cache = manifests.read_cache(finished.folder)
    assert cache.n_bytes(10) == 10 * (D_IN * 4 + 4)
    assert replace(cache, dtype="bfloat16").n_bytes(1000) == 1000 * (D_IN * 2 + 4)
    # 17 batches of 32 × 127 are the first that reach 65,536.
    large: Any = {"context_size": 128, "batch_size": 32, "samples_per_shard": 65_536}
    assert replace(cache, **large, shards=()).sequences_per_shard == 17 * 32
    sizes = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 23_123_000: "23.1 MB", 10**15: "1e+03 TB"}
    assert {n: human_bytes(n) for n in sizes} == sizes
