"""Caches of activations: what is in them, and what becomes of them when something happens."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from sparse_but_wrong import atomic
from sparse_but_wrong.activations import writing
from sparse_but_wrong.activations.cache import cache_activations
from sparse_but_wrong.activations.language_model import LanguageModel, open_language_model
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.activations.texts import Text, open_text_dataset, read_text
from sparse_but_wrong.activations.writing import CacheOptions, CacheResult, human_bytes, write_cache
from tests.activations.tiny_model import BOS, D_IN, EOS, WORDS, write_text

# Three batches of 3 sequences in a shard: 9 × (16 − 1) samples.
SMALL = CacheOptions(
    n_tokens=600,
    context_size=16,
    batch_size=3,
    samples_per_shard=130,
    dtype="float32",
    skip_positions=1,
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return open_language_model(str(tiny_model), "model.layers.0")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return read_text([write_text(tmp_path_factory.mktemp("text"))])


@pytest.fixture(scope="module")
def finished(model: LanguageModel, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "cache"
    write_cache(model, text, folder, SMALL)
    return folder


@pytest.fixture
def cached(finished: Path, tmp_path: Path) -> Path:
    """A finished cache, at the place where `make` makes its own."""
    return shutil.copytree(finished, tmp_path / "cache")


Make = Callable[..., CacheResult]


@pytest.fixture
def make(model: LanguageModel, text: Text, tmp_path: Path) -> Make:
    """Writes a cache; other options than those of `SMALL` are given by name."""
    whole = text

    def make_(name: str = "cache", text: Text = whole, **options: Any) -> CacheResult:
        of_writing = {n: options.pop(n) for n in ("resume", "provenance") if n in options}
        used = options.pop("model", model)
        return write_cache(used, text, tmp_path / name, replace(SMALL, **options), **of_writing)

    return make_


class Expected(NamedTuple):
    activations: Tensor
    token_ids: Tensor


def expected(
    folder: Path, sequences: Tensor, *, skip: int = 1, layer: int = 0, masked: bool = True
) -> Expected:
    """What transformers gives for sequences [n, context], in order."""
    hf_model = LlamaForCausalLM.from_pretrained(str(folder))
    with torch.no_grad():
        states = hf_model(sequences, output_hidden_states=True).hidden_states
    # The first is the embedding.
    activations, tokens = states[layer + 1][:, skip:], sequences[:, skip:]
    keep = (tokens > 2) if masked else torch.ones_like(tokens, dtype=torch.bool)
    return Expected(activations[keep], tokens[keep])


def sequences_of(folder: Path, where: Path, context: int = 16) -> Tensor:
    """BOS and the words of all files, strung together with BOS between them, [n, context]."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows: list[list[int]] = [[BOS]]
    for i, file in enumerate(sorted(where.glob("*.txt"))):
        words = tokenizer(file.read_text(), add_special_tokens=False)["input_ids"]
        for token in chain([BOS] if i and len(rows[-1]) > 1 else [], words):
            if len(rows[-1]) == context:
                rows.append([BOS])
            if token != BOS or len(rows[-1]) > 1:
                rows[-1].append(token)
    return torch.tensor([row for row in rows if len(row) == context])


def read(folder: Path) -> tuple[dict[str, Any], Expected]:
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [load_file(folder / shard["file"]) for shard in manifest["shards"]]
    for tensors, shard in zip(shards, manifest["shards"], strict=True):
        assert tensors["activations"].shape == (shard["n_samples"], manifest["d_in"])
        assert tensors["token_ids"].dtype == torch.int32
        assert (folder / shard["file"]).stat().st_size == shard["bytes"]
    return manifest, Expected(
        torch.cat([tensors["activations"] for tensors in shards]),
        torch.cat([tensors["token_ids"] for tensors in shards]),
    )


CUTS = (slice(0, 16), slice(16, 20))


def by_row(rows: Iterable[Expected]) -> Expected:
    activations, token_ids = zip(*rows, strict=True)
    return Expected(torch.cat(activations), torch.cat(token_ids))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def test_it_holds_the_residual_stream(
    tiny_model: Path, model: LanguageModel, tmp_path: Path
) -> None:
    where = write_text(tmp_path / "text")
    made = {"command": "sbw"}
    result = write_cache(model, read_text([where]), tmp_path / "cache", SMALL, provenance=made)
    manifest, found = read(tmp_path / "cache")
    sequences = sequences_of(tiny_model, where)
    wanted = expected(tiny_model, sequences[: manifest["n_tokens_run"] // 16])
    assert torch.equal(found.token_ids.long(), wanted.token_ids)
    # The same sums in batches of another size.
    torch.testing.assert_close(found.activations, wanted.activations, rtol=1e-5, atol=1e-5)
    norms = wanted.activations.double().norm(dim=1)
    assert manifest["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-6)
    assert manifest["max_norm"] == pytest.approx(float(norms.max()), rel=1e-6)
    # The batch that reaches 600 is whole; a document starts with BOS, which is not kept.
    assert 600 <= manifest["n_samples"] < 600 + 45
    assert manifest["n_samples"] == len(found.token_ids) == result.cache.n_samples
    assert [shard["n_sequences"] for shard in manifest["shards"]] == [9, 9, 9, 9, 6]
    assert [shard["first_sequence"] for shard in manifest["shards"]] == [0, 9, 18, 27, 36]
    assert result.n_tokens_run == manifest["n_tokens_run"] == 42 * 16
    assert manifest["complete"]
    assert not manifest["text_ended"]
    assert (manifest["d_in"], manifest["dtype"]) == (D_IN, "float32")
    assert manifest["excluded_token_ids"] == [0, 1, 2]
    assert manifest["provenance"] == made
    # What reads caches takes it.
    stored = open_activations(tmp_path / "cache")
    assert (stored.n_samples, stored.d_in) == (manifest["n_samples"], D_IN)
    assert stored.mean_norm == manifest["mean_norm"]
    assert torch.equal(stored.read(0, stored.n_samples), found.activations)


def test_special_tokens_and_positions(tiny_model: Path, make: Make, tmp_path: Path) -> None:
    where = write_text(tmp_path / "text")
    everything: Any = {"exclude_special_tokens": False, "skip_positions": 0}
    make("all", read_text([where]), n_tokens=100, **everything)
    manifest, found = read(tmp_path / "all")
    n = manifest["n_tokens_run"] // 16
    wanted = expected(tiny_model, sequences_of(tiny_model, where)[:n], skip=0, masked=False)
    assert torch.equal(found.token_ids.long(), wanted.token_ids)
    torch.testing.assert_close(found.activations, wanted.activations, rtol=1e-5, atol=1e-5)
    assert manifest["excluded_token_ids"] == []
    make("few", read_text([where]), n_tokens=100, skip_positions=3, prepend_bos=False)
    words = AutoTokenizer.from_pretrained(str(tiny_model))((where / "0.txt").read_text())
    first = torch.tensor(words["input_ids"][:48]).view(-1, 16)
    assert torch.equal(read(tmp_path / "few")[1].token_ids[:39].long(), first[:, 3:].flatten())


def test_one_call_from_a_model_and_a_folder_of_text(
    tiny_model: Path, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    options: Any = {"n_tokens": 600, "context_size": 16, "batch_size": 3}
    said: list[str] = []
    hook = "model.layers.0"
    stored = cache_activations(
        str(tiny_model), hook, text="text", out="acts", log=said.append, **options
    )
    n = stored.n_samples
    assert 600 <= n < 600 + 42
    assert (stored.d_in, stored.dtype) == (D_IN, torch.bfloat16)
    assert sum(len(batch) for batch in stored) == n
    assert "d_in 32: 600 samples as bfloat16" in said[0]
    assert f"{n} samples" in said[-1]
    assert f"mean norm {stored.mean_norm:.4g}" in repr(stored)
    exact = cache_activations(model, text=["text"], out="exact", dtype="float32", **options)
    assert torch.equal(stored.read(0, n), exact.read(0, n).bfloat16())
    manifest, rounded = read(tmp_path / "acts")
    norms = rounded.activations.double().norm(dim=1)
    assert manifest["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-12)
    Dataset.from_dict({"tokens": [[5] * 16] * 9 + [None]}).save_to_disk("data")
    ids = cache_activations(model, dataset="data", out="ids", log=said.append, **options)
    assert ids.n_samples == 9 * 14
    assert any(re.search("null or empty: 1", line) for line in said)
    more: Any = options | {"n_tokens": 700, "dtype": "float32", "resume": True}
    again = cache_activations(model, text="text", out="exact", **more)
    assert 700 <= again.n_samples < 742
    bad: list[Any] = [{"dataset": "data"}, {"text": ()}, {"dataset_config": "x"}]
    for wrong in bad:
        with pytest.raises(ValueError, match="dataset"):
            cache_activations(model, out="none", **({"text": "text"} | wrong))
    with pytest.raises(ValueError, match="hook"):
        cache_activations(str(tiny_model), text="text", out="none")
    with pytest.raises(TypeError, match="nonsense"):
        cache_activations(model, text="text", out="none", nonsense=1)


def test_the_text_ends_early(make: Make, tmp_path: Path) -> None:
    result = make(n_tokens=10_000)
    manifest, _ = read(tmp_path / "cache")
    assert result.cache.text_ended
    assert manifest["complete"]
    # 5 × 200 words and 4 BOS between them, in sequences of 15 and BOS; the rest is no sequence.
    assert manifest["n_tokens_run"] == 16 * (1004 // 15)
    again = make(n_tokens=20_000, resume=True)
    assert again.n_tokens_run == 0
    assert again.cache.n_samples == result.cache.n_samples


class _StopAfter:
    """Let the writing of shards succeed so many times, and then raise."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.left, self.error, self.write = n, error, writing.save_shard

    def __call__(self, file: Path, activations: Tensor, token_ids: Tensor) -> tuple[int, str]:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.write(file, activations, token_ids)


def test_resumed_is_as_uninterrupted(
    finished: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = finished, tmp_path / "cut"
    for n in (0, 2):
        with monkeypatch.context() as patched:
            patched.setattr(writing, "save_shard", _StopAfter(n, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                make("cut", resume=n > 0)
        manifest = json.loads((cut / "manifest.json").read_text())
        assert len(manifest["shards"]) == n
        assert not manifest["complete"]
    result = make("cut", resume=True, provenance={"command": "again"})
    assert contents(cut) == contents(whole)
    assert result.n_tokens_run == (42 - 18) * 16
    first, second = (json.loads((folder / "manifest.json").read_text()) for folder in (whole, cut))
    assert second.pop("resumed") == [{}, {"command": "again"}]
    assert first.pop("resumed") == []
    assert first == second


def test_damaged_shards_are_made_again(make: Make, cached: Path) -> None:
    folder = cached
    before, manifest = contents(folder), (folder / "manifest.json").read_text()
    (folder / "shard-00000.safetensors").write_bytes(before["shard-00000.safetensors"][:-1])
    (folder / "shard-00002.safetensors").unlink()
    size = len(before["shard-00004.safetensors"])
    (folder / "shard-00004.safetensors").write_bytes(b"x" * size)
    (folder / ".unfinished-1.safetensors").write_bytes(b"left over")
    flipped = bytearray(before["shard-00001.safetensors"])
    flipped[-1000] ^= 1
    (folder / "shard-00001.safetensors").write_bytes(flipped)
    result = make(resume=True)
    assert contents(folder) == before
    assert result.n_remade == 4
    assert result.n_tokens_run == (9 + 9 + 9 + 6) * 16
    after = json.loads((folder / "manifest.json").read_text())
    assert after | {"resumed": []} == json.loads(manifest)
    assert [shard["sha256"] for shard in after["shards"]] == [
        sha256(content).hexdigest() for _, content in sorted(before.items())
    ]


def test_a_cache_is_extended(make: Make, finished: Path, tmp_path: Path) -> None:
    make("short", n_tokens=200)
    kept = contents(tmp_path / "short")
    assert len(kept) == 2
    make("short", resume=True)
    extended, long = contents(tmp_path / "short"), read(finished)[1]
    assert {name: extended[name] for name in kept} == kept
    manifest, found = read(tmp_path / "short")
    assert manifest["tokens"] == 600
    n = len(long.activations)
    assert torch.equal(found.activations[:n], long.activations)
    with pytest.raises(ValueError, match="600, not 500"):
        make("short", n_tokens=500, resume=True)


def test_what_cannot_be_resumed(make: Make, cached: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no cache to resume"):
        make("none", resume=True)
    with pytest.raises(FileExistsError, match="is not empty"):
        make()
    for changed, message in (
        ({"context_size": 32}, "context_size 16, not 32"),
        ({"dtype": "bfloat16"}, 'dtype "float32", not "bfloat16"'),
        ({"skip_positions": 2}, "skip_positions 1, not 2"),
        ({"exclude_special_tokens": False}, r"excluded_token_ids \[0, 1, 2\], not \[\]"),
        ({"batch_size": 4}, "batch_size 3, not 4"),
    ):
        with pytest.raises(ValueError, match=message):
            make(resume=True, **changed)
    other = open_language_model(str(tiny_model), "model.layers.1")
    with pytest.raises(ValueError, match=r'hook "model.layers.0", not "model.layers.1"'):
        make(model=other, resume=True)
    other_text = read_text([write_text(tmp_path / "other", seed=1)])
    with pytest.raises(ValueError, match=r'made with text \{"kind": "files"'):
        make(text=other_text, resume=True)
    with atomic.locked(cached), pytest.raises(ValueError, match="another process"):
        make(resume=True)


def test_other_text_behind_the_same_description(make: Make, cached: Path, text: Text) -> None:
    shorter = replace(text, rows=[{"text": " ".join(WORDS)}])
    with pytest.raises(ValueError, match=r"4 sequences, .* 42"):
        make(text=shorter, n_tokens=700, resume=True)
    (cached / "shard-00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"135 samples of 9 .*60 of 4"):
        make(text=shorter, n_tokens=700, resume=True)


def test_a_cache_of_the_first_format_is_resumed(make: Make, finished: Path, tmp_path: Path) -> None:
    old = tmp_path / "cache"
    make(n_tokens=200)
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["piece_size"]
    for shard in manifest["shards"]:
        del shard["sha256"], shard["n_tokens"]
    (old / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    assert open_activations(old).n_samples == 224
    (old / "shard-00000.safetensors").unlink()
    assert make(resume=True).n_remade == 1
    manifest, found = read(old)
    assert (manifest["format_version"], manifest["piece_size"]) == (2, None)
    assert [shard["sha256"] for shard in manifest["shards"]] == [
        sha256(content).hexdigest() for _, content in sorted(contents(old).items())
    ]
    wanted = read(finished)[1].activations
    assert torch.equal(found.activations[: len(wanted)], wanted)


WRONG_SHARDS = {
    "file": ["../precious.txt", "precious.txt", "manifest.json", "shard-00001.safetensors", 3],
    "n_samples": [-135, 135.0, True, 10**9],
    "n_sequences": [10**12, 0],
    "first_sequence": [-1, 10**400],
    "bytes": ["1"],
    "mean_norm": [float("nan"), None],
    "max_norm": [10**400],
    "sha256": ["0"],
    "n_tokens": [-3],
}
WRONG = {
    "shards": [{}, [3]],
    "tokens": [600.5],
    "text_ended": ["no"],
    "provenance": [[]],
    "resumed": [1],
    "piece_size": [0],
    "format_version": [True, 3],
    "format": ["another"],
}


@pytest.mark.parametrize(
    ("change", "of_shard"),
    [({name: value}, {}) for name, values in WRONG.items() for value in values]
    + [({}, {name: value}) for name, values in WRONG_SHARDS.items() for value in values],
)
def test_a_manifest_that_lies_is_refused_and_nothing_written(
    cached: Path, make: Make, change: Any, of_shard: Any, tmp_path: Path
) -> None:
    precious, file = tmp_path / "precious.txt", cached / "manifest.json"
    precious.write_text("mine")
    manifest = json.loads(file.read_text())
    manifest["shards"][0] |= of_shard
    file.write_text(json.dumps(manifest | change))
    before = {file.name: file.read_bytes() for file in cached.iterdir()}
    with pytest.raises(ValueError, match=r"manifest\.json"):
        make(resume=True)
    assert precious.read_text() == "mine"
    assert {file.name: file.read_bytes() for file in cached.iterdir()} == before


def test_links_are_replaced_and_not_followed(
    finished: Path, cached: Path, make: Make, tmp_path: Path
) -> None:
    folder, precious = cached, tmp_path / "precious.txt"
    precious.write_text("mine")
    manifest = tmp_path / "manifest.json"
    (folder / "manifest.json").rename(manifest)
    (folder / "manifest.json").symlink_to(manifest)
    before = manifest.read_bytes()
    shard = folder / "shard-00002.safetensors"
    shard.unlink()
    shard.symlink_to(precious)
    assert make(resume=True).n_remade == 1
    assert precious.read_text() == "mine"
    assert manifest.read_bytes() == before
    assert contents(folder) == contents(finished)
    assert not shard.is_symlink()


def test_the_manifest_is_read_under_the_lock(
    cached: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def read_locked(where: Path, settings: Any) -> Any:
        with pytest.raises(ValueError, match="another process"), atomic.locked(where):
            pass
        seen.append(where)
        return read_cache(where, settings)

    read_cache = writing.read_cache
    monkeypatch.setattr(writing, "read_cache", read_locked)
    make(resume=True)
    assert seen == [cached]


def test_a_cache_that_somebody_else_begins_meanwhile_is_left_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the folder and the lock."""
    folder = tmp_path / "cache"
    folder.mkdir()
    other = atomic.locked(folder)

    def at_work(where: Path) -> Any:
        with other:
            (where / "manifest.json").write_text("theirs")
            return locked(where).__enter__()

    locked = writing.locked
    with monkeypatch.context() as patched:
        patched.setattr(writing, "locked", at_work)
        with pytest.raises(ValueError, match="another process is working"):
            make()
    assert (folder / "manifest.json").read_text() == "theirs"

    @contextmanager
    def done(where: Path) -> Iterator[None]:
        with locked(where):
            (where / "manifest.json").write_text("theirs")
            yield

    (folder / "manifest.json").unlink()
    monkeypatch.setattr(writing, "locked", done)
    with pytest.raises(FileExistsError, match="is not empty"):
        make()
    assert (folder / "manifest.json").read_text() == "theirs"


def test_folders_that_cannot_be_written_to(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="link is"):
        make("link")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is"):
        make("file/below")
    monkeypatch.setattr(atomic.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written to"):
        make("a/b")
    assert not (tmp_path / "a").exists()


def test_a_full_disk(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(writing, "save_shard", _StopAfter(2, full))
        with pytest.raises(OSError, match=r"is full.*\(samples: \d+ of 600\).* --resume"):
            make()
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(writing.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        needs = r"needs \d\S* kB more, but .*cache has only 1 kB free"
        with pytest.raises(OSError, match=needs):
            make(resume=True)
        with pytest.raises(OSError, match=r"needs 79\.2 kB more, but .* has only 1 kB free"):
            make("a/b")
    assert not (tmp_path / "a").exists()
    make(resume=True)
    assert len(contents(folder)) == 5


def test_a_shard_that_could_not_be_written_leaves_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    write = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda p, c: (fail if p.suffix == ".safetensors" else write)(p, c)
    )
    with pytest.raises(OSError, match=r"samples: 0 of 600"):
        make()
    assert {file.name for file in (tmp_path / "cache").iterdir()} <= {"manifest.json", ".lock"}


def test_what_is_not_finite(tiny_model: Path, make: Make) -> None:
    broken = open_language_model(str(tiny_model), "model.layers.0")
    weights: Any = broken.model
    with torch.no_grad():
        weights.model.get_input_embeddings().weight[10] = torch.inf
    message = (
        r"shard-00000\.safetensors: .*model\.layers\.0 are not all finite in the sequences 0 to 2"
    )
    with pytest.raises(ValueError, match=message):
        make(model=broken)
    with pytest.raises(ValueError, match=r"float16 overflows.* --model-dtype"):
        make("half", model=replace(broken, dtype="float16"))


def test_nothing_to_keep(make: Make, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("ba be bi")
    with pytest.raises(ValueError, match="no full sequence of 16"):
        make(text=read_text([short]))
    # Nothing is in the way of another try.
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="64 tokens at once"):
        make("other", context_size=128)


def test_a_dataset_of_tokens(tiny_model: Path, make: Make, tmp_path: Path) -> None:
    ids = torch.randint(4, 64, (20, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 5] = EOS
    Dataset.from_dict({"tokens": ids.tolist()}).save_to_disk(str(tmp_path / "data"))
    read_ = open_text_dataset(str(tmp_path / "data"))
    assert read_.column == "tokens"
    make(text=read_, n_tokens=10_000)
    _, found = read(tmp_path / "cache")
    # A row is cut in two: its first 16 ids, and the 4 that are left.
    wanted = by_row(expected(tiny_model, ids[i : i + 1, part]) for i in range(20) for part in CUTS)
    assert torch.equal(found.token_ids.long(), wanted.token_ids)
    torch.testing.assert_close(found.activations, wanted.activations, rtol=1e-5, atol=1e-5)
    ragged = replace(read_, rows=[{"tokens": [5] * 16}, {"tokens": [5] * 9}])
    with pytest.raises(ValueError, match=r"row 1 of .* has 9 tokens"):
        make("ragged", ragged)
    foreign = replace(read_, rows=[{"tokens": [64] * 16}])
    with pytest.raises(ValueError, match=r"token ids outside of the 64 of .* another tokenizer"):
        make("foreign", foreign)


class Broken:
    def __iter__(self) -> Iterator[dict[str, str]]:
        yield from repeat({"text": " ".join(WORDS)}, 20)
        raise RuntimeError("connection reset")


def test_a_stream_that_breaks_off(make: Make, text: Text, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"stream cannot be read after \d+ sequences .*reset"):
        make(text=replace(text, rows=Broken(), name="stream"), n_tokens=10_000)
    assert len(read(tmp_path / "cache")[0]["shards"]) == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_tokens": 0}, "n_tokens .* 1"),
        ({"context_size": 1}, "skip_positions"),
        ({"skip_positions": -1}, "skip_positions"),
    ],
)
def test_options_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheOptions(**changed)


def test_sizes() -> None:
    assert CacheOptions(n_tokens=1000).n_bytes(576) == 1000 * (576 * 2 + 4)
    assert CacheOptions(n_tokens=1000, dtype="float32").n_bytes(576, 10) == 10 * (576 * 4 + 4)
    # 17 batches of 32 × 127 are the first that reach 65,536.
    assert CacheOptions().sequences_per_shard == 17 * 32
    assert [human_bytes(n) for n in (0, 999, 1500, 23_123_000, 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "23.1 MB",
        "1e+03 TB",
    ]
