"""Text as the sequences of token ids that a language model runs over: from files or a dataset."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from sparse_but_wrong.activations.language_model import LanguageModel
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
        try:
            with self.file.open(encoding="utf-8-sig") as content:
                while chunk := content.read(_CHUNK):
                    yield chunk
        except UnicodeDecodeError as error:
            raise _not_utf8(self.file, error) from error


def read_text(paths: Sequence[Path]) -> Text:
    """The text in files or folders of them.

    These are .txt files, UTF-8, a document each, and .jsonl or .parquet files with a column "text".
    FileNotFoundError or ValueError where there is none; a damaged file is named when it is reached.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ValueError("no text was named; name a file or a folder.")
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
    import datasets

    path = user_path(name)
    if path.exists():
        rows = _from_disk(path)
        states = (path / "state.json", path / "train" / "state.json")
        state = next((read_json(file) for file in states if file.is_file()), {})
        fingerprint = state.get("_fingerprint")
        facts = {"kind": "folder", "n_rows": len(rows), "fingerprint": fingerprint}
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"there is no folder {name}.")
    else:
        try:
            rows = datasets.load_dataset(name, config, split="train", streaming=True)
        except OSError as error:
            raise OSError(
                f"the dataset {name} could not be loaded from the Hugging Face Hub "
                f"({one_line(error)}); check its name and the network."
            ) from error
        facts = {"kind": "hub", "id": name, "config": config, "split": "train"}
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{name} holds no text.")
    column = next((column for column in _COLUMNS if column in first), None)
    if column is None:
        there = ", ".join(first)
        raise ValueError(f"{name} has none of the columns {', '.join(_COLUMNS)}, but {there}.")
    return Text(name, {**facts, "column": column}, rows, column)


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # also for a damaged one or one without rows, of many kinds
        raise ValueError(
            f"{path} cannot be read as a dataset that `save_to_disk` wrote ({one_line(error)}); it "
            "may be empty or damaged. Give files of text as text (--text)."
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if "train" not in loaded:
        there = ", ".join(f"{path}/{split}" for split in loaded)
        raise ValueError(f"{path} holds several datasets, none 'train'; name one: {there}.")
    return loaded["train"]


@dataclass(frozen=True)
class _Documents:
    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[dict[str, str | LongText | None]]:
        for file in self.files:
            for text in _READERS[file.suffix](file):
                if text is not None and not isinstance(text, str | LongText):
                    shown = repr(text)[:100]
                    raise ValueError(f"{file} holds {shown} as a text; texts are strings.")
                has_content = text is not None and any(map(str.strip, text))
                yield {"text": text if has_content else None}


def _jsonl(file: Path) -> Iterator[Any]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = parse_json(line)
                except ValueError as error:
                    says = f"line {number} is not JSON: {one_line(error)}"
                    raise damaged(file, says) from error
                if not isinstance(row, dict) or "text" not in row:
                    there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                    raise ValueError(f"{file}, line {number}: no field 'text', but {there}.")
                yield row["text"]
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from error


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


def _not_utf8(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{file} is not UTF-8 ({error.reason}); convert it, with iconv for example.")


def _files(path: Path) -> list[Path]:
    path = user_path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    files = (
        sorted(file for file in path.iterdir() if file.name[0] != ".") if path.is_dir() else [path]
    )
    files = [file for file in files if file.suffix in _READERS]
    if not files:
        raise ValueError(f"{path} is or holds no file of text ({', '.join(_READERS)}).")
    return files


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


class Sequences(Iterator[Tensor]):
    """The sequences of a text, int64 ids [tokens], in order and once.

    Documents are joined with BOS between them and cut into sequences of `context_size`, as sae_lens
    does; an incomplete last one is dropped. Rows of ids are documents of their own: each is cut
    into sequences of `context_size`, the last of which has the rest. Padding that an attention mask
    names is left out, so such a row may be shorter than `context_size`, or empty.

    Args:
        prepend_bos: whether every sequence of a text starts with BOS, where the tokenizer has one.
        piece_size: characters after which a document is cut before it is tokenized, between words
            if possible. With None, documents are tokenized whole, and rows longer than
            `context_size` or masked are refused.
    Raises:
        ValueError: from `next`, a row that is no text or no row of ids, or too many rows without
            content.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: Text,
        context_size: int,
        *,
        prepend_bos: bool,
        piece_size: int | None = PIECE_SIZE,
    ) -> None:
        self.n_skipped = 0
        """Texts without content so far: null, or empty."""

        self._model, self._text, self._context_size = model, text, context_size
        self._prepend_bos, self._piece_size = prepend_bos, piece_size
        self._bos: int | None = model.tokenizer.bos_token_id  # pyright: ignore[reportAttributeAccessIssue]
        # Separators are in the pieces already: sae_lens would put one before each.
        self._sequences = (
            self._of_rows()
            if text.column in TOKEN_COLUMNS
            else concat_and_batch_sequences(
                self._pieces(),
                context_size,
                begin_batch_token_id=self._bos if prepend_bos else None,
            )
        )

    def __next__(self) -> Int64[Tensor, " tokens"]:
        return next(self._sequences)

    def _of_rows(self) -> Iterator[Tensor]:
        for number, row in enumerate(self._text.rows):
            name = f"row {number} of {self._text.name}"
            ids, mask = row[self._text.column], row.get(MASK)
            self.n_skipped += ids is None
            tokens = _integers([] if ids is None else ids, f"{name}, {self._text.column}")
            n_all = len(tokens)
            if mask is not None and ids is not None:
                tokens = _unpadded(tokens, _integers(mask, f"{name}, {MASK}"), name)
            elif ids is not None and n_all < self._context_size:
                raise ValueError(f"{name} has {n_all} tokens; lower context_size to that.")
            if self._piece_size is None and (len(tokens), n_all) != (self._context_size,) * 2:
                raise ValueError(f"{name} was read otherwise in format 1; make the cache again.")
            yield from tokens.split(self._context_size)

    def _pieces(self) -> Iterator[Tensor]:
        at = 0
        for document in self._documents():
            is_start = True
            for ids in self._tokenized(document):
                # Where a sequence begins with the document, sae_lens puts BOS only if it is to
                # begin with one.
                if is_start and self._bos is not None and (self._prepend_bos or at):
                    ids = ids if ids[:1] == [self._bos] else [self._bos, *ids]
                is_start = False
                at = (at + len(ids)) % self._context_size
                yield torch.tensor(ids)

    def _documents(self) -> Iterator[str | LongText]:
        idle = 0
        for number, row in enumerate(self._text.rows):
            content = row[self._text.column]
            if content is None or content == "":
                self.n_skipped += 1
                idle += 1
                if idle == IDLE:
                    raise ValueError(f"{self._text.name}: nothing is in {IDLE:,} texts in a row.")
                continue
            if not isinstance(content, str | LongText):
                kind = type(content).__name__
                raise ValueError(
                    f"row {number} of {self._text.name} holds a {kind}; texts are strings."
                )
            idle = 0
            yield content

    def _tokenized(self, document: str | LongText) -> Iterator[list[int]]:
        """The ids of a document, piece by piece, without empty pieces.

        Special tokens go only before the first piece and behind the last.
        """
        pieces = cut(document, self._piece_size)
        piece, closing = next(pieces, None), None
        while piece is not None:
            following = next(pieces, None)
            if closing is None:
                closing = [] if following is None else self._closing(piece)
                ids = self._whole(piece)
                ids = ids[: len(ids) - len(closing)]
            else:
                ids = self._bare(piece) + (closing if following is None else [])
            if ids:
                yield ids
            piece = following

    def _whole(self, document: str) -> list[int]:
        ids: Any = self._model.model.to_tokens(  # pyright: ignore[reportCallIssue]
            document, prepend_bos=False, move_to_device=False, truncate=False
        )
        return ids[0].long().tolist()

    def _bare(self, piece: str) -> list[int]:
        return self._model.tokenizer(piece, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def _closing(self, piece: str) -> list[int]:
        """What the tokenizer puts behind a document."""
        bare: list[int] = self._bare(piece)
        with_special: Any = self._model.tokenizer(piece)["input_ids"]
        n_special = len(with_special) - len(bare)
        before = (i for i in range(n_special + 1) if with_special[i : i + len(bare)] == bare)
        return with_special[next(before, n_special) + len(bare) :]


def cut(document: Iterable[str], size: int | None) -> Iterator[str]:
    """A document, given whole or in chunks, in pieces of up to `size` characters.

    It is cut between words where that is possible, and not at all for a size of None.
    """
    if size is None:
        yield "".join(document)
        return
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
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} is no list of whole numbers ({one_line(error)}).") from error
    is_integer = not (tensor.is_floating_point() or tensor.is_complex())
    if tensor.ndim != 1 or (len(tensor) and not is_integer):
        raise ValueError(
            f"{name} needs a list of whole numbers, but has shape {list(tensor.shape)} and type "
            f"{str(tensor.dtype).removeprefix('torch.')}."
        )
    return tensor.long()


def _unpadded(ids: Tensor, mask: Tensor, name: str) -> Tensor:
    """The ids where the mask is one: run by themselves they get the right positions."""
    if len(mask) != len(ids) or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"{name}: the attention_mask must have {len(ids)} zeros and ones, one per token, but "
            f"has {len(mask)} numbers: {mask.unique().tolist()[:5]}."
        )
    places = mask.nonzero().flatten()
    if len(places) and int(places[-1] - places[0]) + 1 != len(places):
        raise ValueError(f"{name}: the attention_mask has zeros between its ones.")
    return ids[places]
