"""Caches of activations: what is in them, and what becomes of them when something happens."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator
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
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoTokenizer, LlamaForCausalLM

from sparse_but_wrong import atomic
from sparse_but_wrong.activations import cache, language_model, texts
from sparse_but_wrong.activations.cache import CacheOptions, cache_activations, human_bytes
from sparse_but_wrong.activations.language_model import LanguageModel, open_language_model
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.activations.texts import Text, open_text_dataset, read_text
from tests.activations.tiny_model import BOS, D_IN, EOS, WORDS, write_text

# Three batches of 3 sequences in a shard: 9 × (16 − 1) samples.
SMALL = CacheOptions(
    tokens=600,
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
    result = cache_activations(
        model, read_text([where]), tmp_path / "cache", SMALL, provenance=made
    )
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


def test_special_tokens_and_positions(
    tiny_model: Path, model: LanguageModel, tmp_path: Path
) -> None:
    where = write_text(tmp_path / "text")
    options = replace(SMALL, tokens=100, exclude_special_tokens=False, skip_positions=0)
    cache_activations(model, read_text([where]), tmp_path / "all", options)
    manifest, found = read(tmp_path / "all")
    n = manifest["n_tokens_run"] // 16
    wanted = expected(tiny_model, sequences_of(tiny_model, where)[:n], skip=0, masked=False)
    assert torch.equal(found.token_ids.long(), wanted.token_ids)
    torch.testing.assert_close(found.activations, wanted.activations, rtol=1e-5, atol=1e-5)
    assert found.token_ids[::16].tolist() == [BOS] * n
    assert manifest["excluded_token_ids"] == []
    options = replace(SMALL, tokens=100, skip_positions=3, prepend_bos=False)
    cache_activations(model, read_text([where]), tmp_path / "few", options)
    manifest, found = read(tmp_path / "few")
    words = AutoTokenizer.from_pretrained(str(tiny_model))((where / "0.txt").read_text())
    first = torch.tensor(words["input_ids"][:144]).view(-1, 16)
    assert torch.equal(found.token_ids[:39].long(), first[:3, 3:].flatten())


def test_bfloat16_is_the_default(model: LanguageModel, text: Text, tmp_path: Path) -> None:
    cache_activations(model, text, tmp_path / "exact", SMALL)
    cache_activations(model, text, tmp_path / "rounded", replace(SMALL, dtype="bfloat16"))
    assert CacheOptions().dtype == "bfloat16"
    _, exact = read(tmp_path / "exact")
    manifest, rounded = read(tmp_path / "rounded")
    assert rounded.activations.dtype == torch.bfloat16
    assert torch.equal(rounded.activations, exact.activations.bfloat16())
    norms = rounded.activations.double().norm(dim=1)
    assert manifest["mean_norm"] == pytest.approx(float(norms.mean()), rel=1e-12)


def test_the_text_ends_early(model: LanguageModel, text: Text, tmp_path: Path) -> None:
    result = cache_activations(model, text, tmp_path / "cache", replace(SMALL, tokens=10_000))
    manifest, _ = read(tmp_path / "cache")
    assert result.cache.text_ended
    assert manifest["complete"]
    # 5 × 200 words and 4 BOS between them, in sequences of 15 and BOS; the rest is no sequence.
    assert manifest["n_tokens_run"] == 16 * (1004 // 15)
    again = cache_activations(
        model, text, tmp_path / "cache", replace(SMALL, tokens=20_000), resume=True
    )
    assert again.n_tokens_run == 0
    assert again.cache.n_samples == result.cache.n_samples


class _StopAfter:
    """Let the writing of shards succeed so many times, and then raise."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.left, self.error, self.write = n, error, cache.write_shard

    def __call__(self, file: Path, activations: Tensor, token_ids: Tensor) -> tuple[int, str]:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.write(file, activations, token_ids)


def test_resumed_is_as_uninterrupted(
    model: LanguageModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cache_activations(model, text, whole, SMALL)
    for n in (0, 2):
        with monkeypatch.context() as patched:
            patched.setattr(cache, "write_shard", _StopAfter(n, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                cache_activations(model, text, cut, SMALL, resume=n > 0)
        manifest = json.loads((cut / "manifest.json").read_text())
        assert len(manifest["shards"]) == n
        assert not manifest["complete"]
    result = cache_activations(
        model, text, cut, SMALL, resume=True, provenance={"command": "again"}
    )
    assert contents(cut) == contents(whole)
    assert result.n_tokens_run == (42 - 18) * 16
    first, second = (json.loads((folder / "manifest.json").read_text()) for folder in (whole, cut))
    assert second.pop("resumed") == [{}, {"command": "again"}]
    assert first.pop("resumed") == []
    assert first == second


def test_damaged_shards_are_made_anew(model: LanguageModel, text: Text, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache_activations(model, text, folder, SMALL)
    before, manifest = contents(folder), (folder / "manifest.json").read_text()
    (folder / "shard-00000.safetensors").write_bytes(before["shard-00000.safetensors"][:-1])
    (folder / "shard-00002.safetensors").unlink()
    size = len(before["shard-00004.safetensors"])
    (folder / "shard-00004.safetensors").write_bytes(b"x" * size)
    (folder / ".unfinished-1.safetensors").write_bytes(b"left over")
    result = cache_activations(model, text, folder, SMALL, resume=True)
    assert contents(folder) == before
    assert result.n_remade == 3
    assert result.n_tokens_run == (9 + 9 + 6) * 16
    after = json.loads((folder / "manifest.json").read_text())
    assert after | {"resumed": []} == json.loads(manifest)


def test_a_cache_is_extended(model: LanguageModel, text: Text, tmp_path: Path) -> None:
    cache_activations(model, text, tmp_path / "long", SMALL)
    cache_activations(model, text, tmp_path / "short", replace(SMALL, tokens=200))
    kept = contents(tmp_path / "short")
    assert len(kept) == 2
    cache_activations(model, text, tmp_path / "short", SMALL, resume=True)
    extended, long = contents(tmp_path / "short"), read(tmp_path / "long")[1]
    assert {name: extended[name] for name in kept} == kept
    manifest, found = read(tmp_path / "short")
    assert manifest["tokens"] == 600
    n = len(long.activations)
    assert torch.equal(found.activations[:n], long.activations)
    with pytest.raises(ValueError, match="made with tokens 600, not 500; it can be extended"):
        cache_activations(model, text, tmp_path / "short", replace(SMALL, tokens=500), resume=True)


def test_what_cannot_be_resumed(
    model: LanguageModel, text: Text, tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match="no cache to go on with; leave out --resume"):
        cache_activations(model, text, folder, SMALL, resume=True)
    cache_activations(model, text, folder, SMALL)
    with pytest.raises(FileExistsError, match="is not empty"):
        cache_activations(model, text, folder, SMALL)
    for changed, message in (
        ({"context_size": 32}, "context_size 16, not 32"),
        ({"dtype": "bfloat16"}, 'dtype "float32", not "bfloat16"'),
        ({"skip_positions": 2}, "skip_positions 1, not 2"),
        ({"exclude_special_tokens": False}, r"excluded_token_ids \[0, 1, 2\], not \[\]"),
        ({"batch_size": 4}, "batch_size 3, not 4"),
    ):
        with pytest.raises(ValueError, match=message):
            cache_activations(model, text, folder, replace(SMALL, **changed), resume=True)
    other = open_language_model(str(tiny_model), "model.layers.1")
    with pytest.raises(ValueError, match=r'hook "model.layers.0", not "model.layers.1"'):
        cache_activations(other, text, folder, SMALL, resume=True)
    other_text = read_text([write_text(tmp_path / "other", seed=1)])
    with pytest.raises(ValueError, match=r'made with text \{"kind": "files"'):
        cache_activations(model, other_text, folder, SMALL, resume=True)
    with (
        atomic.locked(folder),
        pytest.raises(ValueError, match="another process is working in"),
    ):
        cache_activations(model, text, folder, SMALL, resume=True)
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())
    for content, message in (
        ("{", "is damaged"),
        (json.dumps({"format": "another"}), "not the manifest of a cache"),
        (json.dumps(good | {"format_version": 3}), "format version 3"),
        (json.dumps(good | {"shards": [{"file": "x"}]}), "is damaged"),
    ):
        manifest.write_text(content)
        with pytest.raises(ValueError, match=message):
            cache_activations(model, text, folder, SMALL, resume=True)


def test_other_text_behind_the_same_description(
    model: LanguageModel, text: Text, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    cache_activations(model, text, folder, SMALL)
    shorter = replace(text, rows=[{"text": " ".join(WORDS)}])
    with pytest.raises(ValueError, match=r"ends after 4 sequences, but the cache has more \(42\)"):
        cache_activations(model, shorter, folder, replace(SMALL, tokens=700), resume=True)
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"had 135 samples of 9 sequences.*now gives 60 of 4"):
        cache_activations(model, shorter, folder, replace(SMALL, tokens=700), resume=True)


def test_flipped_bits_are_found(model: LanguageModel, text: Text, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache_activations(model, text, folder, SMALL)
    before = contents(folder)
    for name, content in before.items():
        assert sha256(content).hexdigest() in (folder / "manifest.json").read_text(), name
    flipped = bytearray(before["shard-00001.safetensors"])
    flipped[-1000] ^= 1
    (folder / "shard-00001.safetensors").write_bytes(flipped)
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is damaged .*SHA-256"):
        open_activations(folder)
    result = cache_activations(model, text, folder, SMALL, resume=True)
    assert result.n_remade == 1
    assert contents(folder) == before
    open_activations(folder)


def as_format_1(folder: Path) -> None:
    """Take out of a manifest what the first format did not have."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["piece_size"]
    for shard in manifest["shards"]:
        del shard["sha256"], shard["n_tokens"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))


def test_a_cache_of_the_first_format_is_gone_on_with(
    model: LanguageModel, text: Text, tmp_path: Path
) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    cache_activations(model, text, whole, SMALL)
    cache_activations(model, text, old, replace(SMALL, tokens=200))
    as_format_1(old)
    assert open_activations(old).n_samples == 224
    (old / "shard-00000.safetensors").unlink()
    result = cache_activations(model, text, old, SMALL, resume=True)
    assert result.n_remade == 1
    manifest = json.loads((old / "manifest.json").read_text())
    assert manifest["format_version"] == 2
    assert manifest["piece_size"] is None
    assert [shard["sha256"] for shard in manifest["shards"]] == [
        sha256(content).hexdigest() for _, content in sorted(contents(old).items())
    ]
    n = len(read(whole)[1].activations)
    assert torch.equal(read(old)[1].activations[:n], read(whole)[1].activations)


@pytest.mark.parametrize(
    ("changes", "of_shard"),
    [
        ({}, {"file": "../precious.txt"}),
        ({}, {"file": "precious.txt"}),
        ({}, {"file": "manifest.json"}),
        ({}, {"file": "shard-00001.safetensors"}),
        ({}, {"file": 3}),
        ({}, {"n_samples": -135}),
        ({}, {"n_samples": 135.0}),
        ({}, {"n_samples": True}),
        ({}, {"n_samples": 10**9}),
        ({}, {"n_sequences": 10**12}),
        ({}, {"n_sequences": 0}),
        ({}, {"first_sequence": -1}),
        ({}, {"first_sequence": 10**400}),
        ({}, {"bytes": "1"}),
        ({}, {"mean_norm": float("nan")}),
        ({}, {"max_norm": 10**400}),
        ({}, {"sha256": "0"}),
        ({}, {"n_tokens": -3}),
        ({"shards": {}}, {}),
        ({"shards": [3]}, {}),
        ({"tokens": 600.5}, {}),
        ({"text_ended": "no"}, {}),
        ({"provenance": []}, {}),
        ({"resumed": 1}, {}),
        ({"piece_size": 0}, {}),
        ({"format_version": True}, {}),
    ],
)
def test_a_manifest_that_lies_is_refused_and_nothing_written(
    finished: Path, model: LanguageModel, text: Text, changes: Any, of_shard: Any, tmp_path: Path
) -> None:
    folder, precious = shutil.copytree(finished, tmp_path / "cache"), tmp_path / "precious.txt"
    precious.write_text("mine")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= of_shard
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=r"manifest\.json"):
        cache_activations(model, text, folder, SMALL, resume=True)
    assert precious.read_text() == "mine"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.fixture(scope="module")
def finished(model: LanguageModel, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "cache"
    cache_activations(model, text, folder, SMALL)
    return folder


def test_links_are_replaced_and_not_followed(
    finished: Path, model: LanguageModel, text: Text, tmp_path: Path
) -> None:
    folder, precious = shutil.copytree(finished, tmp_path / "cache"), tmp_path / "precious.txt"
    precious.write_text("mine")
    manifest = tmp_path / "manifest.json"
    (folder / "manifest.json").rename(manifest)
    (folder / "manifest.json").symlink_to(manifest)
    before = manifest.read_bytes()
    shard = folder / "shard-00002.safetensors"
    shard.unlink()
    shard.symlink_to(precious)
    assert cache_activations(model, text, folder, SMALL, resume=True).n_remade == 1
    assert precious.read_text() == "mine"
    assert manifest.read_bytes() == before
    assert contents(folder) == contents(finished)
    assert not shard.is_symlink()


def test_the_manifest_is_read_under_the_lock(
    finished: Path,
    model: LanguageModel,
    text: Text,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(finished, tmp_path / "cache")
    seen: list[Path] = []

    def read_locked(where: Path, settings: Any) -> Any:
        with pytest.raises(ValueError, match="another process"), atomic.locked(where):
            pass
        seen.append(where)
        return read_cache(where, settings)

    read_cache = cache.read_cache
    monkeypatch.setattr(cache, "read_cache", read_locked)
    cache_activations(model, text, folder, SMALL, resume=True)
    assert seen == [folder]


def test_a_cache_that_somebody_else_begins_meanwhile_is_left_alone(
    model: LanguageModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the folder and the lock."""
    folder = tmp_path / "cache"
    folder.mkdir()
    other = atomic.locked(folder)

    def at_work(where: Path) -> Any:
        with other:
            (where / "manifest.json").write_text("theirs")
            return locked(where).__enter__()

    locked = cache.locked
    with monkeypatch.context() as patched:
        patched.setattr(cache, "locked", at_work)
        with pytest.raises(ValueError, match="another process is working"):
            cache_activations(model, text, folder, SMALL)
    assert (folder / "manifest.json").read_text() == "theirs"

    @contextmanager
    def done(where: Path) -> Iterator[None]:
        with locked(where):
            (where / "manifest.json").write_text("theirs")
            yield

    (folder / "manifest.json").unlink()
    monkeypatch.setattr(cache, "locked", done)
    with pytest.raises(FileExistsError, match="is not empty"):
        cache_activations(model, text, folder, SMALL)
    assert (folder / "manifest.json").read_text() == "theirs"


def test_folders_that_cannot_be_written_to(
    model: LanguageModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="link is no folder"):
        cache_activations(model, text, tmp_path / "link", SMALL)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        cache_activations(model, text, tmp_path / "file/below", SMALL)
    monkeypatch.setattr(cache.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written to"):
        cache_activations(model, text, tmp_path / "a/b", SMALL)
    assert not (tmp_path / "a").exists()


def test_a_full_disk(
    model: LanguageModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(cache, "write_shard", _StopAfter(2, full))
        with pytest.raises(OSError, match=r"is full.*\(samples: \d+ of 600\).* --resume"):
            cache_activations(model, text, folder, SMALL)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        needs = r"needs \d\S* kB more, but .*cache has only 1 kB free"
        with pytest.raises(OSError, match=needs):
            cache_activations(model, text, folder, SMALL, resume=True)
        with pytest.raises(OSError, match=r"needs 79\.2 kB more, but .* has only 1 kB free"):
            cache_activations(model, text, tmp_path / "a/b", SMALL)
    assert not (tmp_path / "a").exists()
    cache_activations(model, text, folder, SMALL, resume=True)
    assert len(contents(folder)) == 5


def test_a_shard_that_could_not_be_written_leaves_nothing(
    model: LanguageModel, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        cache_activations(model, text, tmp_path / "cache", SMALL)
    assert {file.name for file in (tmp_path / "cache").iterdir()} <= {"manifest.json", ".lock"}


def test_what_is_not_finite(tiny_model: Path, text: Text, tmp_path: Path) -> None:
    broken = open_language_model(str(tiny_model), "model.layers.0")
    weights: Any = broken.model
    with torch.no_grad():
        weights.model.get_input_embeddings().weight[10] = torch.inf
    message = (
        r"shard-00000\.safetensors: .*model\.layers\.0 are not all finite in the sequences 0 to 2"
    )
    with pytest.raises(ValueError, match=message):
        cache_activations(broken, text, tmp_path / "cache", SMALL)
    half = replace(broken, dtype="float16")
    with pytest.raises(ValueError, match="float16 overflows; run the model with --model-dtype"):
        cache_activations(half, text, tmp_path / "half", SMALL)


def test_nothing_to_keep(model: LanguageModel, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("ba be bi")
    with pytest.raises(ValueError, match="no full sequence of 16 tokens"):
        cache_activations(model, read_text([short]), tmp_path / "cache", SMALL)
    # Nothing is in the way of another try.
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="takes 64 tokens at once, but context_size is 128"):
        cache_activations(model, read_text([short]), tmp_path / "other", CacheOptions())


def test_a_data_set_of_tokens(tiny_model: Path, model: LanguageModel, tmp_path: Path) -> None:
    ids = torch.randint(4, 64, (20, 20), generator=torch.Generator().manual_seed(0))
    ids[:, 5] = EOS
    Dataset.from_dict({"tokens": ids.tolist()}).save_to_disk(str(tmp_path / "data"))
    read_ = open_text_dataset(str(tmp_path / "data"))
    assert read_.column == "tokens"
    cache_activations(model, read_, tmp_path / "cache", replace(SMALL, tokens=10_000))
    _, found = read(tmp_path / "cache")
    # A row is cut in two: its first 16 ids, and the 4 that are left.
    wanted = by_row(expected(tiny_model, ids[i : i + 1, part]) for i in range(20) for part in CUTS)
    assert torch.equal(found.token_ids.long(), wanted.token_ids)
    torch.testing.assert_close(found.activations, wanted.activations, rtol=1e-5, atol=1e-5)
    ragged = replace(read_, rows=[{"tokens": [5] * 16}, {"tokens": [5] * 9}])
    with pytest.raises(ValueError, match=r"row 1 of .* has 9 tokens"):
        cache_activations(model, ragged, tmp_path / "ragged", SMALL)
    foreign = replace(read_, rows=[{"tokens": [64] * 16}])
    with pytest.raises(ValueError, match=r"token ids outside of the 64 of .* another tokenizer"):
        cache_activations(model, foreign, tmp_path / "foreign", SMALL)


def test_a_stream_that_breaks_off(model: LanguageModel, text: Text, tmp_path: Path) -> None:
    class Broken:
        def __init__(self) -> None:
            self.n = 0

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield from repeat({"text": " ".join(WORDS)}, 20)
            raise RuntimeError("connection reset")

    broken = replace(text, rows=Broken(), name="stream")
    options = replace(SMALL, tokens=10_000)
    with pytest.raises(OSError, match=r"stream cannot be read after \d+ sequences .*reset"):
        cache_activations(model, broken, tmp_path / "cache", options)
    assert len(read(tmp_path / "cache")[0]["shards"]) == 8


def test_transformer_lens(
    tiny_model: Path, text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=16, d_head=4, n_heads=2, d_vocab=64, act_fn="relu", seed=0
    )
    made: list[HookedTransformer] = []

    def load(*_: object) -> HookedTransformer:
        made.append(HookedTransformer(config, tokenizer=tokenizer))
        return made[-1]

    monkeypatch.setattr(language_model, "load_model", load)
    monkeypatch.setattr(language_model, "get_pretrained_model_config", lambda _: config)
    opened = open_language_model("gpt2", "blocks.0.hook_resid_post")
    cache_activations(opened, text, tmp_path / "cache", replace(SMALL, tokens=100))
    manifest, found = read(tmp_path / "cache")
    assert (manifest["model_class"], manifest["d_in"]) == ("HookedTransformer", 8)
    assert found.token_ids.min() > 2
    # The first sequence is all of one document.
    first = torch.cat([torch.tensor([BOS]), found.token_ids[:15].long()])[None]
    _, states = made[0].run_with_cache(first)
    wanted = states["blocks.0.hook_resid_post"][0, 1:]
    torch.testing.assert_close(found.activations[:15], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"context_size": 1}, "skip_positions must be 0 or more and below context_size"),
        ({"skip_positions": -1}, "skip_positions must be 0 or more"),
    ],
)
def test_options_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheOptions(**changed)


def test_sizes() -> None:
    assert CacheOptions(tokens=1000).n_bytes(576) == 1000 * (576 * 2 + 4)
    assert CacheOptions(tokens=1000, dtype="float32").n_bytes(576, 10) == 10 * (576 * 4 + 4)
    # 17 batches of 32 × 127 are the first that reach 65,536.
    assert CacheOptions().sequences_per_shard == 17 * 32
    assert [human_bytes(n) for n in (0, 999, 1500, 23_123_000, 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "23.1 MB",
        "1e+03 TB",
    ]


def test_texts_in_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "b.txt").write_text("\ufeffsecond", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": null}\n{"text": "fourth"}\n')
    table = pyarrow.table({"text": ["fifth", None, "  "], "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "notes.md").write_text("no text")
    read_ = read_text([tmp_path])
    there = [row["text"] for row in read_.rows]
    texts = ["".join(text) for text in there if text is not None]
    assert texts == ["first", "second", "third", "fourth", "fifth"]
    assert len(there) - len(texts) == 3
    assert read_.description["n_files"] == 4
    both = read_text([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert ["".join(row["text"]) for row in both.rows] == ["second", "first"]
    # What it is does not depend on where it lies.
    copied = shutil.copytree(tmp_path, tmp_path.parent / "copied")
    assert read_text([copied]).description == read_.description
    (copied / "a.txt").write_text("First")
    assert read_text([copied]).description != read_.description


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"  \n", "holds no text"),
        ("a.txt", b"caf\xe9 au lait", r"a\.txt is not UTF-8 .* iconv"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"a\.jsonl is not UTF-8"),
        ("a.jsonl", b'{"text": 3}', "holds 3 as a text"),
        ("a.jsonl", b'\n{"body": "x"}', "line 2: no field 'text', but body"),
        ("a.jsonl", b"{", "line 1 is no JSON"),
        ("a.parquet", b"nothing", "cannot be read as parquet"),
        ("a.md", b"text", "none of the kinds of text known"),
    ],
)
def test_bad_text(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text([tmp_path / name])


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder nothing"):
        read_text([Path("nothing")])
    with pytest.raises(ValueError, match=r"holds no \.txt"):
        read_text([tmp_path])
    with pytest.raises(ValueError, match="no text was named"):
        read_text([])
    with pytest.raises(FileNotFoundError, match="there is no folder /no/such/data"):
        open_text_dataset("/no/such/data")
    with pytest.raises(ValueError, match="no data set that `save_to_disk` wrote"):
        open_text_dataset(str(tmp_path))
    Dataset.from_dict({"body": ["x"]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"none of the columns tokens, .* but body"):
        open_text_dataset(str(tmp_path / "other"))
    Dataset.from_dict({"text": []}).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="it may be empty or damaged"):
        open_text_dataset(str(tmp_path / "empty"))


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    read_ = open_text_dataset("user/name", "en")
    assert asked == [(("user/name", "en"), {"split": "train", "streaming": True})]
    assert read_.column == "text"
    assert read_.description == {
        "kind": "hub",
        "id": "user/name",
        "config": "en",
        "split": "train",
        "column": "text",
    }

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(OSError, match=r"user/name could not be had .*\(offline\)"):
        texts.open_text_dataset("user/name")
