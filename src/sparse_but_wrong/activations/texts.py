"""Text as the sequences of token ids that a language model runs over: from files or a dataset."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Int64
from torch import Tensor

from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.parts import files_in, load_dataset
from sparse_but_wrong.sae_lens_compat import concat_and_batch_sequences
from sparse_but_wrong.untrusted import damaged, one_line, parse_json, read_json, user_path

TOKEN_COLUMNS = ("tokens", "input_ids")
"""Columns of a dataset that hold ids of tokens."""

MASK = "attention_mask"
"""The column beside them with a one for every token and a zero for padding."""

PIECE_SIZE = 2**16
"""Characters after which a document is cut before it is tokenized. A tokenizer needs more than a
hundred times the memory of its text, and gives nothing before it is done."""

IDLE = 10_000
"""Sequences, or texts, in a row without anything to keep before a text is given up."""

_COLUMNS = (*TOKEN_COLUMNS, "text", "problem")
_END, _CHUNK = 2**20, 2**16

# Tokenizers begin a new token here: with a word's space, or after the end of a line. Not after a
# blank line: byte-level BPE makes two tokens of "\n\n" before a word, and one at the end of a text.
_BOUNDARY = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Text:
    """Documents in a fixed order; made by `read_text` or `open_text_dataset`."""

    name: str
    """What messages call it."""

    description: dict[str, Any]
    """What it is, ready for JSON; the same for the same text, wherever it lies."""

    rows: Iterable[Mapping[str, Any]]
    """A document each, in `column`; can be iterated over again and again."""

    column: str
    """One of those that sae_lens takes: "text" or "problem" with strings, `LongText` or None;
    "tokens" or "input_ids" with ids of tokens, perhaps with an `attention_mask` beside them."""


@dataclass(frozen=True)
class LongText:
    """The text in a .txt file, in chunks that are read when they are needed."""

    file: Path

    def __iter__(self) -> Iterator[str]:
        with _utf8(self.file) as content:
            while chunk := content.read(_CHUNK):
                yield chunk


def read_text(paths: Sequence[Path]) -> Text:
    """The text in files or folders of them.

    These are .txt files, UTF-8, a document each, and .jsonl or .parquet files with a column "text".
    FileNotFoundError or ValueError where there is none; a damaged file is named when it is reached.
    """
    files: list[Path] = []
    for path in map(user_path, paths):
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}.")
        found = files_in(path, _READERS) if path.is_dir() else [path]
        if not found or found[0].suffix not in _READERS:
            raise ValueError(f"{path} is or holds no file of text ({', '.join(_READERS)}).")
        files += found
    name = ", ".join(map(str, paths))
    rows = _Documents(tuple(files))
    if all(row["text"] is None for row in rows):
        raise ValueError(f"{name} holds no text.")
    description = {
        "kind": "files",
        "n_files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "fingerprint": _fingerprint(files),
    }
    return Text(name, description, rows, "text")


def open_text_dataset(name: str, config: str | None = None) -> Text:
    """The text in a Hugging Face dataset, or its token ids.

    Args:
        name: id on the Hub, whose split "train" is streamed, or a folder that `save_to_disk` wrote.
            The first of the columns "tokens", "input_ids", "text" and "problem" is taken.
        config: for a dataset on the Hub that has several.
    Raises:
        OSError: a path is not there, or the dataset cannot be loaded.
        ValueError: no dataset, or one without such a column, or without rows.
    """
    path = user_path(name)
    if path.exists():
        rows = load_dataset(path)
        states = (path / "state.json", path / "train" / "state.json")
        state = read_json(next(filter(Path.is_file, states)))
        facts = {"kind": "folder", "n_rows": len(rows), "fingerprint": state.get("_fingerprint")}
    else:
        rows = load_dataset(name, config, streaming=True)
        facts = {"kind": "hub", "id": name, "config": config, "split": "train"}
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{name} holds no text.")
    column = next((column for column in _COLUMNS if column in first), None)
    if column is None:
        there = ", ".join(first)
        raise ValueError(f"{name} has none of the columns {', '.join(_COLUMNS)}, but {there}.")
    return Text(name, {**facts, "column": column}, rows, column)


@dataclass(frozen=True)
class _Documents:
    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[dict[str, str | LongText | None]]:
        for file in self.files:
            for text in _READERS[file.suffix](file):
                if text is not None and not isinstance(text, str | LongText):
                    raise ValueError(f"{file} holds {text!r:.100} as a text; texts are strings.")
                has_content = text is not None and any(map(str.strip, text))
                yield {"text": text if has_content else None}


@contextmanager
def _utf8(file: Path) -> Iterator[TextIO]:
    try:
        with file.open(encoding="utf-8-sig") as content:
            yield content
    except UnicodeDecodeError as error:
        says = f"{file} is not UTF-8 ({error.reason}); convert it, with iconv for example."
        raise ValueError(says) from error


def _jsonl(file: Path) -> Iterator[Any]:
    with _utf8(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise damaged(file, f"line {number} is not JSON: {one_line(error)}") from error
            if not isinstance(row, dict) or "text" not in row:
                raise ValueError(f"{file}, line {number}: no field 'text' in {row!r:.100}.")
            yield row["text"]


def _parquet(file: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            if "text" not in names:
                raise ValueError(f"{file} has no column 'text', but {', '.join(names)}.")
            for batch in opened.iter_batches(batch_size=256, columns=["text"]):
                yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise damaged(file, error) from error


_READERS = {".txt": lambda file: [LongText(file)], ".jsonl": _jsonl, ".parquet": _parquet}


def _fingerprint(files: Sequence[Path]) -> str:
    """What changes with the text; to read all of it could take longer than its use."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(_END))
            content.seek(max(0, size - _END))
            digest.update(content.read(_END))
    return digest.hexdigest()


@dataclass(eq=False)
class Sequences(Iterator[Tensor]):
    """The sequences of a text, int64 ids [tokens], in order and once.

    Documents are joined with BOS between them and cut into sequences of `context_size`, as sae_lens
    does; an incomplete last one is dropped. Rows of ids are documents of their own: each is cut
    into sequences of `context_size`, the last of which has the rest. Padding that an attention mask
    names is left out, so such a row may be shorter than `context_size`, or empty.

    Args:
        prepend_bos: whether every sequence of a text starts with BOS, where the tokenizer has one.
        piece_size: characters after which a document is cut before it is tokenized, between words
            if possible.
    Raises:
        ValueError: more tokens than the model takes at once, or no room for any but BOS; from
            `next`, a row that is no text or no row of ids, ids that the model does not know, or too
            many rows without content.
        OSError: from `next`, a text that cannot be read to its end.
    """

    model: LanguageModel
    text: Text
    context_size: int
    _: KW_ONLY
    prepend_bos: bool
    piece_size: int = PIECE_SIZE
    n_given: int = 0
    """Sequences so far."""

    n_skipped: int = 0
    """Texts without content so far: null, or empty."""

    def __post_init__(self) -> None:
        n_ctx = self.model.n_ctx
        if n_ctx is not None and self.context_size > n_ctx:
            raise ValueError(f"{self.model.name} takes {n_ctx} tokens at once; lower context_size.")
        self._bos: int | None = self.model.tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        if self.text.column in TOKEN_COLUMNS:
            self._sequences = self._of_rows()
            return
        bos = self._bos if self.prepend_bos else None
        if self.context_size == 1 and bos is not None:
            raise ValueError(
                "context_size 1 has room for BOS alone; choose 2 or more, or --no-bos."
            )
        # Separators are in the pieces already: sae_lens would put one before each.
        self._sequences = concat_and_batch_sequences(
            self._pieces(), self.context_size, begin_batch_token_id=bos
        )

    def __next__(self) -> Int64[Tensor, " tokens"]:
        try:
            sequence = next(self._sequences)
        except (StopIteration, ValueError, OSError):
            raise
        except Exception as error:  # what streams a dataset over a network has errors of its own
            raise OSError(
                f"{self.text.name} cannot be read after {self.n_given} sequences "
                f"({type(error).__name__}: {one_line(error)}); continue with --resume."
            ) from error
        n_vocab = self.model.n_vocab or math.inf
        if len(sequence) and not 0 <= int(sequence.min()) <= int(sequence.max()) < n_vocab:
            raise ValueError(
                f"sequence {self.n_given} of {self.text.name} has token ids outside of the "
                f"{n_vocab} of {self.model.name}: it is for another tokenizer."
            )
        self.n_given += 1
        return sequence

    def skip_to(self, sequence: int) -> None:
        """Leave out those before a sequence; ValueError if the text ends before."""
        while self.n_given < sequence:
            if next(self, None) is None:
                raise ValueError(
                    f"{self.text.name} ends after {self.n_given} sequences, but the cache has "
                    f"{sequence}; use its own text, or make the cache again."
                )

    def _of_rows(self) -> Iterator[Tensor]:
        for number, row in enumerate(self.text.rows):
            name = f"row {number} of {self.text.name}"
            ids, mask = row[self.text.column], row.get(MASK)
            self.n_skipped += ids is None
            tokens = _integers([] if ids is None else ids, f"{name}, {self.text.column}")
            if mask is not None and ids is not None:
                tokens = _unpadded(tokens, _integers(mask, f"{name}, {MASK}"), name)
            elif ids is not None and len(tokens) < self.context_size:
                raise ValueError(f"{name} has {len(tokens)} tokens; lower context_size to that.")
            yield from tokens.split(self.context_size)

    def _pieces(self) -> Iterator[Tensor]:
        at = idle = 0
        for number, row in enumerate(self.text.rows):
            document = row[self.text.column]
            if not isinstance(document, str | LongText | None):
                says = f"holds a {type(document).__name__}; texts are strings."
                raise ValueError(f"row {number} of {self.text.name} {says}")
            if not document:
                self.n_skipped += 1
                idle += 1
                if idle == IDLE:
                    raise ValueError(f"{self.text.name}: nothing is in {IDLE:,} texts in a row.")
                continue
            idle = 0
            for i, ids in enumerate(filter(None, self._tokenized(document))):
                # Where a sequence begins with the document, sae_lens puts BOS only if it is to
                # begin with one.
                begins = i == 0 and self._bos is not None and (self.prepend_bos or at)
                if begins and ids[0] != self._bos:
                    ids = [self._bos, *ids]
                at = (at + len(ids)) % self.context_size
                yield torch.tensor(ids)

    def _tokenized(self, document: str | LongText) -> Iterator[list[int]]:
        """The ids of a document, piece by piece.

        Special tokens go only before the first piece and behind the last.
        """
        pieces = cut(document, self.piece_size)
        first = next(pieces, "")
        tokens: Any = self.model.model.to_tokens(  # pyright: ignore[reportCallIssue]
            first, prepend_bos=False, move_to_device=False, truncate=False
        )
        ids, second = tokens[0].long().tolist(), next(pieces, None)
        if second is None:
            yield ids
            return
        bare, special = (self._ids(first, with_special) for with_special in (False, True))
        n_special = len(special) - len(bare)
        before = (i for i in range(n_special + 1) if special[i : i + len(bare)] == bare)
        closing = special[next(before, n_special) + len(bare) :]
        yield ids[: len(ids) - len(closing)]
        for piece in chain([second], pieces):
            yield self._ids(piece, False)
        yield closing

    def _ids(self, piece: str, with_special: bool) -> list[int]:
        return self.model.tokenizer(piece, add_special_tokens=with_special)["input_ids"]  # pyright: ignore[reportReturnType]


def cut(document: Iterable[str], size: int) -> Iterator[str]:
    """A document, given whole or in chunks, in pieces of up to `size` characters.

    It is cut between words where that is possible.
    """
    if isinstance(document, str):
        whole = document
        document = (whole[start : start + size] for start in range(0, len(whole), size))
    held = ""
    for chunk in document:
        held += chunk
        # One more, to see what follows a boundary.
        while len(held) > size:
            boundaries = [match.start() for match in _BOUNDARY.finditer(held, 0, size + 1)]
            stop = boundaries[-1] if boundaries else size
            yield held[:stop]
            held = held[stop:]
    if held:
        yield held


def _integers(values: Any, name: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
        if tensor.ndim != 1 or (
            len(tensor) and (tensor.is_floating_point() or tensor.is_complex())
        ):
            raise TypeError(f"shape {list(tensor.shape)}, {tensor.dtype}")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} is no list of whole numbers ({one_line(error)}).") from error
    return tensor.long()


def _unpadded(ids: Tensor, mask: Tensor, name: str) -> Tensor:
    """The ids where the mask is one: run by themselves they get the right positions."""
    places = mask.nonzero().flatten().tolist()
    stretch = slice(places[0], places[-1] + 1) if places else slice(0)
    wanted = torch.zeros_like(ids)
    wanted[stretch] = 1
    if not torch.equal(mask, wanted):
        raise ValueError(
            f"{name}: the attention_mask must have {len(ids)} numbers, one stretch of ones and "
            f"zeros around it, but has {len(mask)}: {mask.tolist()[:20]}."
        )
    return ids[stretch]
