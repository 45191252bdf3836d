"""Texts as sequences: documents strung together, rows of ids with and without padding."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaForCausalLM

from sparse_but_wrong.activations import texts
from sparse_but_wrong.activations.language_model import LanguageModel, open_language_model
from sparse_but_wrong.activations.texts import (
    LongText,
    Sequences,
    Text,
    cut,
    open_text_dataset,
    read_text,
)
from sparse_but_wrong.activations.writing import CacheOptions, CacheResult, write_cache
from tests.activations.tiny_model import BOS, EOS, WORDS

OPTIONS = CacheOptions(
    n_tokens=10_000, context_size=16, batch_size=4, dtype="float32", skip_positions=1
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return open_language_model(str(tiny_model), "model.layers.0")


def text_of(*contents: Any, column: str = "text", **beside: Any) -> Text:
    rows = [{column: content, **beside} for content in contents]
    return Text("mine", {"kind": "list"}, rows, column)


def masked(*rows: tuple[list[int], Any], column: str = "input_ids") -> Text:
    return Text(
        "mine",
        {"kind": "list"},
        [{column: ids, "attention_mask": mask} for ids, mask in rows],
        column,
    )


def words(n: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(4, 64, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(
    model: LanguageModel, text: Text, folder: Path, options: CacheOptions = OPTIONS, **more: Any
) -> tuple[CacheResult, Tensor, list[int]]:
    """The result, the activations and the ids of tokens."""
    result = write_cache(model, text, folder, options, **more)
    shards = [load_file(folder / shard.file) for shard in result.cache.shards]
    return (
        result,
        torch.cat([tensors["activations"] for tensors in shards]),
        torch.cat([tensors["token_ids"] for tensors in shards]).tolist(),
    )


@torch.no_grad()
def by_itself(folder: Path, row: list[int]) -> Tensor:
    """What transformers gives for a row after the first layer, but for its first position."""
    hf_model = LlamaForCausalLM.from_pretrained(str(folder))
    return hf_model(torch.tensor([row]), output_hidden_states=True).hidden_states[1][0, 1:]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [2, 40])
def test_padded_rows_are_as_unpadded_ones(
    tiny_model: Path, model: LanguageModel, tmp_path: Path, side: str, padding: int
) -> None:
    """Also where the padding is not the tokenizer's, whose id is 2."""
    ten, pad = ids(10), [padding] * 6
    row = (pad + ten, [0] * 6 + [1] * 10) if side == "left" else (ten + pad, [1] * 10 + [0] * 6)
    full = ids(16, seed=1)
    result, found, tokens = run(model, masked(row, (full, [1] * 16)), tmp_path / "cache")
    assert tokens == ten[1:] + full[1:]
    wanted = torch.cat([by_itself(tiny_model, ten), by_itself(tiny_model, full)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert result.n_tokens_run == result.cache.n_tokens == 26


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([5] * 16, [1] * 5 + [0] + [1] * 10), "row 1 .* zeros between its ones"),
        (([5] * 16, [1] * 15), "row 1 .* 16 zeros and ones.* 15"),
        (([5] * 16, [1] * 8 + [2] * 8), r"row 1 .* 16 numbers: \[1, 2\]"),
        (([5] * 16, [1.0] * 16), "row 1 .*, attention_mask .*float32"),
        (([5] * 16, "1111"), "row 1 .*, attention_mask is no list of whole numbers"),
        (([5.5] * 16, [1] * 16), "row 1 .*, input_ids .*float32"),
        (([[5] * 16], [1] * 16), r"row 1 .*, input_ids .*\[1, 16\]"),
        (([5, None], [1] * 2), "row 1 .*, input_ids is no list of whole numbers"),
        (([2**70] * 2, [1] * 2), "row 1 .*, input_ids is no list of whole numbers"),
        (([5] * 9, None), "row 1 .* has 9 tokens"),
    ],
)
def test_rows_that_are_refused(
    model: LanguageModel, tmp_path: Path, row: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, masked(([5] * 16, [1] * 16), row), tmp_path / "cache")


def test_long_rows_are_cut_into_several_sequences(
    tiny_model: Path, model: LanguageModel, tmp_path: Path
) -> None:
    rows = [ids(32, seed=i) for i in range(20)]
    options = replace(OPTIONS, skip_positions=2, n_tokens=560)
    result, _, tokens = run(model, text_of(*rows, column="tokens"), tmp_path / "long", options)
    assert len(tokens) == 560
    assert tokens == [token for row in rows for half in (row[2:16], row[18:]) for token in half]
    assert not result.cache.text_ended
    # What is left of a row is a sequence of its own, where it is more than the positions skipped.
    ragged = text_of(ids(35), ids(33), ids(16), column="tokens")
    result, found, tokens = run(model, ragged, tmp_path / "ragged")
    assert len(tokens) == (15 + 15 + 2) + (15 + 15) + 15
    torch.testing.assert_close(
        found[30:32], by_itself(tiny_model, ids(35)[32:]), rtol=1e-5, atol=1e-5
    )
    assert result.n_tokens_run == 35 + 32 + 16
    assert result.cache.n_sequences == 7
    assert result.cache.text_ended


def test_a_cache_of_long_and_padded_rows_is_resumed(model: LanguageModel, tmp_path: Path) -> None:
    rows = [(ids(n, seed=n), [0] * (n // 3) + [1] * (n - n // 3)) for n in range(1, 60)]
    options = replace(OPTIONS, samples_per_shard=100)
    run(model, masked(*rows), tmp_path / "whole", options)
    run(model, masked(*rows), tmp_path / "cut", replace(options, n_tokens=250))
    (tmp_path / "cut/shard-00001.safetensors").unlink()
    _, found, tokens = run(model, masked(*rows), tmp_path / "cut", options, resume=True)
    kept = [row[n // 3 :] for n, (row, _) in enumerate(rows, start=1)]
    wanted = [
        token for row in kept for at in range(0, len(row), 16) for token in row[at + 1 : at + 16]
    ]
    assert tokens == wanted
    again = run(model, masked(*rows), tmp_path / "whole", options, resume=True)
    assert again[2] == wanted
    torch.testing.assert_close(found, again[1], rtol=1e-5, atol=1e-5)


def test_a_cache_whose_rows_were_read_otherwise_is_not_gone_on_with(model: LanguageModel) -> None:
    """Format 1 took the first ids of a row, padding or not."""
    as_before = text_of(ids(16), column="tokens", attention_mask=[1] * 16)
    (row,) = Sequences(model, as_before, 16, prepend_bos=True, piece_size=None)
    assert row.tolist() == ids(16)
    padded = masked((ids(16), [0] + [1] * 15))
    for text in (text_of(ids(17), column="tokens"), padded):
        with pytest.raises(ValueError, match=r"row 0 .* format 1"):
            list(Sequences(model, text, 16, prepend_bos=True, piece_size=None))


@pytest.mark.parametrize("context_size", [2, 3, 16])
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_documents_are_strung_together_as_sae_lens_does(
    model: LanguageModel, prepend_bos: bool, context_size: int
) -> None:
    draw = random.Random(0)
    contents = [words(draw.randint(1, 40), seed=i) for i in range(60)]
    contents[3], contents[5] = "<s> " + contents[3], "  "
    with pytest.warns(UserWarning, match="not tokenized"):
        store = ActivationsStore(
            model=model.model,
            dataset=Dataset.from_dict({"text": contents}),
            streaming=True,
            hook_name=model.hook,
            hook_head_index=None,
            context_size=context_size,
            d_in=model.d_in,
            n_batches_in_buffer=1,
            total_training_tokens=0,
            store_batch_size_prompts=4,
            train_batch_size_tokens=4,
            prepend_bos=prepend_bos,
            normalize_activations="none",
            device=model.device,
            dtype="float32",
        )
    wanted = [sequence.tolist() for sequence in store.iterable_sequences]
    for piece_size in (None, 50, texts.PIECE_SIZE):
        made = Sequences(
            model,
            text_of(*contents),
            context_size,
            prepend_bos=prepend_bos,
            piece_size=piece_size,
        )
        assert [sequence.tolist() for sequence in made] == wanted


def test_a_document_in_pieces_gets_special_tokens_only_at_its_ends(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = model.tokenizer
    around = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    monkeypatch.setattr(tokenizer.backend_tokenizer, "post_processor", around)
    contents = [words(100), words(3, seed=1)]
    flat = [
        [
            int(token)
            for token in Sequences(
                model, text_of(*contents), 1, prepend_bos=False, piece_size=piece_size
            )
        ]
        for piece_size in (None, 30)
    ]
    assert flat[0] == flat[1]
    assert len(flat[1]) == 102 + 5
    assert [i for i, token in enumerate(flat[1]) if token == BOS] == [0, 102]
    assert [i for i, token in enumerate(flat[1]) if token == EOS] == [101, 106]


def test_where_documents_are_cut() -> None:
    assert list(cut("one two three", 8)) == ["one two", " three"]
    assert list(cut("one\ntwo three", 6)) == ["one\n", "two", " three"]
    # Where tokens are not known to end, only where there is no other place.
    assert list(cut("a  b\n\n  c", 20)) == ["a  b\n\n  c"]
    assert list(cut("abcdefghij", 4)) == ["abcd", "efgh", "ij"]
    assert list(cut("", 4)) == []
    draw = random.Random(0)
    text = "".join(draw.choices("ab \n", k=3000))
    pieces = list(cut(text, 50))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) == 50
    # Whatever the chunks in which it comes.
    for size in (1, 7, 49, 51, 1000):
        chunks = (text[at : at + size] for at in range(0, len(text), size))
        assert list(cut(chunks, 50)) == pieces
    assert list(cut(["one ", "two"], None)) == ["one two"]


def test_byte_level_tokens_are_the_same_in_pieces() -> None:
    """As GPT-2, Llama 3 and SmolLM split text; "\\n\\n" before a word is two tokens, else one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    draw = random.Random(0)
    text = "".join(
        draw.choice(["thou", "art", "COUNTESS.", "12", "it's"])
        + draw.choice([" ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\n\n\n", ".\n", "\t"])
        for _ in range(3000)
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    whole = tokenizer.encode(text).ids
    assert tokenizer.token_to_id("ĊĊ") in tokenizer.encode("x\n\n").ids
    for size in (200, 500, 5000):
        assert [i for piece in cut(text, size) for i in tokenizer.encode(piece).ids] == whole


def test_no_more_of_a_file_is_read_than_is_needed(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 20 MB was tokenized to its end before the first 500 samples came."""
    line = (words(12) + "\n").encode()
    (tmp_path / "long.txt").write_bytes(line * (20_000_000 // len(line)) + b"\xff no UTF-8")
    n_read: list[int] = []

    class Counting(LongText):
        def __iter__(self) -> Iterator[str]:
            for chunk in super().__iter__():
                n_read.append(len(chunk))
                yield chunk

    monkeypatch.setattr(texts, "LongText", Counting)
    options = replace(OPTIONS, n_tokens=500)
    _, _, tokens = run(model, read_text([tmp_path / "long.txt"]), tmp_path / "cache", options)
    assert len(tokens) == 540
    assert sum(n_read) <= 5 * 2**16
    with pytest.raises(ValueError, match=r"long\.txt is not UTF-8"):
        list(LongText(tmp_path / "long.txt"))


def test_texts_without_content_are_skipped_and_counted(
    model: LanguageModel, tmp_path: Path
) -> None:
    Dataset.from_dict({"text": [words(40), None, "", words(40, seed=1)]}).save_to_disk(
        str(tmp_path / "data")
    )
    result, _, tokens = run(model, open_text_dataset(str(tmp_path / "data")), tmp_path / "a")
    assert result.n_skipped == 2
    _, _, without = run(model, text_of(words(40), words(40, seed=1)), tmp_path / "b")
    assert tokens == without
    rows = text_of(ids(16), None, column="input_ids")
    assert run(model, rows, tmp_path / "c")[0].n_skipped == 1
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in (None, words(40)))
    )
    assert run(model, read_text([tmp_path / "x.jsonl"]), tmp_path / "d")[0].n_skipped == 1
    with pytest.raises(ValueError, match="row 1 of mine holds a dict"):
        run(model, text_of(words(40), {"role": "user"}), tmp_path / "e")


class Endless:
    """A text without an end that has the same row again and again."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return repeat(self.row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [EOS] * 16}, "nothing is kept"),
        ({"input_ids": [5] * 16, "attention_mask": [0] * 16}, "nothing is kept"),
        ({"input_ids": [5] * 16, "attention_mask": [1] + [0] * 15}, "nothing is kept"),
        ({"input_ids": None}, "nothing is kept"),
        ({"text": None}, "nothing is in"),
        ({"text": "</s>"}, "nothing is kept"),
    ],
)
def test_a_text_of_which_nothing_is_kept_comes_to_an_end(
    model: LanguageModel, tmp_path: Path, row: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sparse_but_wrong.activations.writing.IDLE", 200)
    text = Text("mine", {}, Endless(row), next(iter(row)))
    with pytest.raises(ValueError, match=message):
        run(model, text, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_sequences_have_room_for_more_than_bos(model: LanguageModel, tmp_path: Path) -> None:
    one = replace(OPTIONS, context_size=1, skip_positions=0, n_tokens=10)
    endless = Text("mine", {}, Endless({"text": words(40)}), "text")
    with pytest.raises(ValueError, match="context_size 1 has room for BOS alone"):
        run(model, endless, tmp_path / "cache", one)
    _, _, tokens = run(model, endless, tmp_path / "none", replace(one, prepend_bos=False))
    assert len(tokens) == 12
    _, _, tokens = run(model, endless, tmp_path / "two", replace(one, context_size=2))
    assert len(tokens) == 12


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
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.parquet", b"nothing", r"a\.parquet is damaged"),
        ("a.md", b"text", "no file of text"),
    ],
)
def test_bad_text(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text([tmp_path / name])


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder nothing"):
        read_text([Path("nothing")])
    with pytest.raises(ValueError, match=r"no file of text \(\.txt"):
        read_text([tmp_path])
    with pytest.raises(ValueError, match="no text was named"):
        read_text([])
    with pytest.raises(FileNotFoundError, match="there is no folder /no/such/data"):
        open_text_dataset("/no/such/data")
    with pytest.raises(ValueError, match="cannot be read as a dataset"):
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
    with pytest.raises(OSError, match=r"user/name .*\(offline\)"):
        open_text_dataset("user/name")
