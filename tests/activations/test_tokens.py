"""Stored tokens as text, and which of them are of one sequence."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.activations.tokens import open_decoder, token_texts
from tests.activations.caches import write_cache
from tests.activations.conftest import Make


def test_every_token_has_its_part_of_the_text() -> None:
    """Byte by byte, as byte-level tokenizers do it with rare characters."""
    vocab = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids: Any = fast("a é\n , b")["input_ids"]
    texts = token_texts(fast, ids)
    assert texts == ["a", " ", "", "é", "\n", " ", ",", " ", "b"]
    # Begun or ended in the middle of a character.
    assert token_texts(fast, ids[3:5]) == ["", "\N{REPLACEMENT CHARACTER}\n"]
    assert token_texts(fast, ids[:3])[-1] == "\N{REPLACEMENT CHARACTER}"


def test_only_the_tokenizer_is_loaded(make: Make, tiny_model: Path, tmp_path: Path) -> None:
    acts = open_activations(make().folder)
    ids = acts.read_token_ids(0, 3)
    assert ids is not None
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_model.iterdir():
        if not file.name.endswith(".safetensors"):
            (bare / file.name).write_bytes(file.read_bytes())
    texts = open_decoder(acts, str(bare))(ids.tolist())
    assert open_decoder(acts)(ids.tolist()) == texts
    words = "".join(texts).split()
    assert len(words) == len(texts) == 3
    with pytest.raises(OSError, match="nowhere"):
        open_decoder(acts, "./nowhere")


def test_neighbours_end_where_their_sequence_does(make: Make) -> None:
    """Documents of 200 words are joined with BOS, which is left out wherever it is."""
    found = make()
    acts = open_activations(found.folder)
    lengths = [load_file(found.folder / name)["sequence_lengths"].tolist() for name in found.files]
    assert [sum(of_shard) for of_shard in lengths] == [s["n_samples"] for s in found.shards]
    assert {14, 15} <= {length for of_shard in lengths for length in of_shard}
    first = 0
    for length in chain.from_iterable(lengths):
        for sample in range(first, first + length):
            start, stop = max(first, sample - 4), min(first + length, sample + 5)
            assert acts.neighbours(sample, 4) == (start, stop, True)
        first += length


def test_without_a_record_neighbours_end_where_their_shard_does(tmp_path: Path) -> None:
    shards = [torch.randn(n, 4) for n in (15, 12)]
    acts = open_activations(write_cache(tmp_path / "cache", *shards))
    assert acts.neighbours(14, 3) == (11, 15, False)
    assert acts.neighbours(15, 3) == (15, 19, False)
    # One that cannot be is none.
    for lengths, known in (([10, 5], True), ([10, 6], False), ([20, -5], False), ([], False)):
        file = tmp_path / f"{known}.safetensors"
        lengths = torch.tensor(lengths, dtype=torch.int32)
        save_file({"activations": shards[0], "sequence_lengths": lengths}, file)
        neighbours = open_activations(file).neighbours(11, 3)
        assert neighbours == ((10, 15, True) if known else (8, 15, False))


def test_rows_of_a_dataset_are_sequences(tmp_path: Path) -> None:
    rows = torch.randn(3, 8, 4).tolist()
    datasets.Dataset.from_dict({"acts": rows}).save_to_disk(str(tmp_path / "matrices"))
    assert open_activations(tmp_path / "matrices").neighbours(9, 3) == (8, 13, True)
    datasets.Dataset.from_dict({"acts": rows[0]}).save_to_disk(str(tmp_path / "vectors"))
    assert open_activations(tmp_path / "vectors").neighbours(4, 2) == (2, 7, False)
