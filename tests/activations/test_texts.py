"""Texts as sequences: documents strung together, rows of ids with and without padding."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, DatasetDict
from sae_lens.training.activations_store import ActivationsStore
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from sparse_but_wrong.activations import texts
from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.texts import (
    LongText,
    Sequences,
    Text,
    cut,
    open_text_dataset,
    read_text,
)
from tests.activations.conftest import Make
from tests.activations.tiny_model import BOS, EOS, WORDS, after_first_layer

ALL: Any = {"n_tokens": 10_000, "batch_size": 4}


def text_of(*contents: Any, column: str = "text") -> Text:
    return Text("mine", {"kind": "list"}, [{column: content} for content in contents], column)


def masked(*rows: tuple[list[int], Any]) -> Text:
    named = [{"input_ids": ids, "attention_mask": mask} for ids, mask in rows]
    return Text("mine", {"kind": "list"}, named, "input_ids")


def endless(**row: Any) -> Text:
    """The same row again and again."""

    class Endless:
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return repeat(row)

    return Text("mine", {}, Endless(), next(iter(row)))


def words(n: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=n))


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(4, 64, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def by_itself(folder: Path, row: list[int]) -> Tensor:
    """What transformers gives for a row after the first layer, but for its first position."""
    return after_first_layer(folder, torch.tensor([row]))[0, 1:]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [2, 40])
def test_padded_rows_are_as_unpadded_ones(
    tiny_model: Path, make: Make, side: str, padding: int
) -> None:
    """Also where the padding is not the tokenizer's, whose id is 2."""
    ten, pad = ids(10), [padding] * 6
    row = (pad + ten, [0] * 6 + [1] * 10) if side == "left" else (ten + pad, [1] * 10 + [0] * 6)
    full = ids(16, seed=1)
    found = make(text=masked(row, (full, [1] * 16)), **ALL)
    assert found.token_ids.tolist() == ten[1:] + full[1:]
    wanted = torch.cat([by_itself(tiny_model, ten), by_itself(tiny_model, full)])
    torch.testing.assert_close(found.activations, wanted, rtol=1e-5, atol=1e-5)
    assert found.manifest["n_tokens_run"] == 26


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([5] * 16, [1] * 5 + [0] + [1] * 10), "one stretch of ones"),
        (([5] * 16, [1] * 15), "16 numbers.* has 15"),
        (([5] * 16, [1] * 17), "16 numbers.* has 17"),
        (([5] * 16, [1] * 8 + [2] * 8), r"one stretch of ones.* 1, 2, 2"),
        (([5] * 16, [1.0] * 16), "attention_mask .*float32"),
        (([5] * 16, "1111"), "attention_mask is no list of whole numbers"),
        (([5.5] * 16, [1] * 16), "input_ids .*float32"),
        (([[5] * 16], [1] * 16), r"input_ids .*\[1, 16\]"),
        (([5, None], [1] * 2), "input_ids is no list of whole numbers"),
        (([2**70] * 2, [1] * 2), "input_ids is no list of whole numbers"),
        (([5] * 9, None), "has 9 tokens"),
    ],
)
def test_rows_that_are_refused(model: LanguageModel, row: Any, message: str) -> None:
    text = masked(([5] * 16, [1] * 16), row)
    with pytest.raises(ValueError, match=rf"row 1 of mine.* {message}"):
        list(Sequences(model, text, 16, prepend_bos=True))


def test_long_rows_are_cut_into_several_sequences(tiny_model: Path, make: Make) -> None:
    rows = [ids(32, seed=i) for i in range(20)]
    long = text_of(*rows, column="tokens")
    found = make("long", text=long, skip_positions=2, n_tokens=560, batch_size=4)
    wanted = [token for row in rows for half in (row[2:16], row[18:]) for token in half]
    assert found.token_ids.tolist() == wanted
    assert not found.manifest["text_ended"]
    # What is left of a row is a sequence of its own, where it is more than the positions skipped.
    with_eos = [*ids(5), EOS, *ids(10)]
    found = make("ragged", text=text_of(ids(35), ids(33), with_eos, column="tokens"), **ALL)
    assert len(found.token_ids) == (15 + 15 + 2) + (15 + 15) + 14
    last = by_itself(tiny_model, ids(35)[32:])
    torch.testing.assert_close(found.activations[30:32], last, rtol=1e-5, atol=1e-5)
    last = by_itself(tiny_model, with_eos)[[*range(4), *range(5, 15)]]
    torch.testing.assert_close(found.activations[-14:], last, rtol=1e-5, atol=1e-5)
    assert found.manifest["n_tokens_run"] == 35 + 32 + 16
    assert sum(shard["n_sequences"] for shard in found.shards) == 7
    assert found.manifest["text_ended"]


def test_a_cache_of_long_and_padded_rows_is_resumed(make: Make, tmp_path: Path) -> None:
    rows = [(ids(n, seed=n), [0] * (n // 3) + [1] * (n - n // 3)) for n in range(1, 60)]
    options: Any = ALL | {"text": masked(*rows), "samples_per_shard": 100}
    kept = [row[n // 3 :] for n, (row, _) in enumerate(rows, start=1)]
    wanted = [
        token for row in kept for at in range(0, len(row), 16) for token in row[at + 1 : at + 16]
    ]
    whole = make("whole", **options)
    assert whole.token_ids.tolist() == wanted
    make("cut", **options | {"n_tokens": 250})
    (tmp_path / "cut/shard-00001.safetensors").unlink()
    resumed = make("cut", resume=True, **options)
    assert resumed.token_ids.tolist() == wanted
    torch.testing.assert_close(resumed.activations, whole.activations, rtol=1e-5, atol=1e-5)


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
    text, options = text_of(*contents), {"prepend_bos": prepend_bos}
    for piece_size in (50, texts.PIECE_SIZE):
        made = Sequences(model, text, context_size, piece_size=piece_size, **options)
        assert [sequence.tolist() for sequence in made] == wanted


def test_a_document_in_pieces_gets_special_tokens_only_at_its_ends(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = model.tokenizer
    around = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    monkeypatch.setattr(tokenizer.backend_tokenizer, "post_processor", around)
    text = text_of(words(100), words(3, seed=1))
    whole, flat = (
        torch.cat(list(Sequences(model, text, 1, prepend_bos=False, piece_size=size))).tolist()
        for size in (1000, 30)
    )
    assert whole == flat
    assert len(flat) == 102 + 5
    assert [i for i, token in enumerate(flat) if token == BOS] == [0, 102]
    assert [i for i, token in enumerate(flat) if token == EOS] == [101, 106]


def test_where_documents_are_cut() -> None:
    for document, size, pieces in (
        ("one two three", 8, ["one two", " three"]),
        ("one\ntwo three", 6, ["one\n", "two", " three"]),
        # Where tokens are not known to end, only where there is no other place.
        ("a  b\n\n  c", 20, ["a  b\n\n  c"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("", 4, []),
    ):
        assert list(cut(document, size)) == pieces
    text = "".join(random.Random(0).choices("ab \n", k=3000))
    pieces = list(cut(text, 50))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) == 50
    # Whatever the chunks in which it comes.
    for size in (1, 7, 49, 51, 1000):
        chunks = (text[at : at + size] for at in range(0, len(text), size))
        assert list(cut(chunks, 50)) == pieces


def test_byte_level_tokens_are_the_same_in_pieces() -> None:
    """As GPT-2, Llama 3 and SmolLM split text; "\\n\\n" before a word is two tokens, else one."""
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
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    found = make(text=read_text([tmp_path / "long.txt"]), n_tokens=500, batch_size=4)
    assert len(found.token_ids) == 540
    assert sum(n_read) <= 5 * 2**16
    with pytest.raises(ValueError, match=r"long\.txt is not UTF-8"):
        list(LongText(tmp_path / "long.txt"))


def test_texts_without_content_are_skipped_and_counted(
    model: LanguageModel, tmp_path: Path
) -> None:
    def sequences(text: Text, n_skipped: int) -> list[list[int]]:
        made = Sequences(model, text, 16, prepend_bos=True)
        rows = [sequence.tolist() for sequence in made]
        assert made.n_skipped == n_skipped
        return rows

    rows = [words(40), None, "", words(40, seed=1)]
    Dataset.from_dict({"text": rows}).save_to_disk(str(tmp_path / "data"))
    found = sequences(open_text_dataset(str(tmp_path / "data")), 2)
    assert found == sequences(text_of(words(40), words(40, seed=1)), 0)
    assert sequences(text_of(ids(16), None, column="input_ids"), 1) == [ids(16), []]
    with pytest.raises(ValueError, match="row 1 of mine holds a dict"):
        sequences(text_of(words(40), {"role": "user"}), 0)


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
    make: Make, tmp_path: Path, row: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "IDLE", 200)
    with pytest.raises(ValueError, match=message):
        make(text=endless(**row), **ALL)
    assert not (tmp_path / "cache").exists()


def test_sequences_have_room_for_more_than_bos(make: Make) -> None:
    one: Any = {"context_size": 1, "skip_positions": 0, "n_tokens": 10, "batch_size": 4}
    text = endless(text=words(40))
    with pytest.raises(ValueError, match="context_size 1 has room for BOS alone"):
        make(text=text, **one)
    for name, changes in (("none", {"prepend_bos": False}), ("two", {"context_size": 2})):
        assert len(make(name, text=text, **one | changes).token_ids) == 12


def test_texts_in_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("\ufeffsecond", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": null}\n{"text": "fourth"}\n')
    table = pyarrow.table({"text": ["fifth", None, "  "], "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "notes.md").write_text("no text")
    read_ = read_text([tmp_path])
    there = [None if row["text"] is None else "".join(row["text"]) for row in read_.rows]
    assert there == ["first", "second", "third", None, "fourth", "fifth", None, None]
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
        ("a.jsonl", b'\n{"body": "x"}', "line 2: no field 'text' in .*body"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.parquet", b"nothing", r"a\.parquet is damaged"),
        ("a.md", b"text", r"no file of text \(\.txt"),
        (".a.txt", b"hidden", None),
    ],
)
def test_bad_text(tmp_path: Path, name: str, content: bytes, message: str | None) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message or "no file of text"):
        read_text([tmp_path / name if message else tmp_path])


def test_text_that_is_not_there(tmp_path: Path) -> None:
    for name, columns in (("other", {"body": ["x"]}), ("empty", {"text": []})):
        Dataset.from_dict(columns).save_to_disk(str(tmp_path / name))
    DatasetDict({"test": Dataset.from_dict({"text": ["x"]})}).save_to_disk(str(tmp_path / "split"))
    for where, message in (
        ("/no/such/data", "no file or folder /no/such/data"),
        (str(tmp_path), "no dataset that `save_to_disk` wrote"),
        (str(tmp_path / "other"), r"none of the columns tokens, .* but body"),
        (str(tmp_path / "empty"), "empty or damaged"),
        (str(tmp_path / "split"), r"splits \(test\); name the folder of one"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            open_text_dataset(where)
    with pytest.raises(FileNotFoundError, match="no file or folder nothing"):
        read_text([Path("nothing")])


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        if arguments[0] == "user/other":
            raise ConnectionError("offline")
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    read_ = open_text_dataset("user/name", "en")
    assert asked == [(("user/name", "en"), {"split": "train", "streaming": True})]
    facts = {"kind": "hub", "id": "user/name", "config": "en", "split": "train", "column": "text"}
    assert (read_.column, read_.description) == ("text", facts)
    with pytest.raises(OSError, match=r"user/other.*offline"):
        open_text_dataset("user/other")
