"""Text to run a language model over: files, or a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_but_wrong.activations.paths import user_path
from sparse_but_wrong.untrusted import one_line, parse_json, read_json

SUFFIXES = (".txt", ".jsonl", ".parquet")
TOKEN_COLUMNS = ("tokens", "input_ids")
"""Columns of a data set that hold ids of tokens."""

MASK = "attention_mask"
"""The column beside them with a one for every token and a zero for padding."""

_COLUMNS = (*TOKEN_COLUMNS, "text", "problem")
_END = 2**20
_CHUNK = 2**16


@dataclass(frozen=True)
class Text:
    """Documents in a fixed order; made by `read_text` or `open_text_dataset`."""

    name: str
    """What messages call it."""

    description: dict[str, Any]
    """What it is, ready for JSON; the same for the same text, wherever it lies."""

    rows: Iterable[Mapping[str, Any]]
    """A document each, in the column `column`; can be gone through again and again."""

    column: str
    """One of those that sae_lens takes: "text" or "problem", with strings or `LongText` or null; or
    "tokens" or "input_ids", with ids of tokens, beside which may be their `MASK`."""


@dataclass(frozen=True)
class LongText:
    """The text in a .txt file, of which only what is asked for is read."""

    file: Path

    def __iter__(self) -> Iterator[str]:
        """The text, in chunks that follow each other.

        Raises:
            ValueError: it is not UTF-8.
        """
        try:
            with self.file.open(encoding="utf-8-sig") as content:
                while chunk := content.read(_CHUNK):
                    yield chunk
        except UnicodeDecodeError as error:
            raise _not_utf8(self.file, error) from error


def read_text(paths: Sequence[Path]) -> Text:
    """The text in files.

    Args:
        paths: .txt files, UTF-8, a document each; .jsonl or .parquet files with the column
            "text"; and folders, of which all such files are taken, by name.
    Raises:
        FileNotFoundError: a path is not there.
        ValueError: a file of another kind, a folder with none, or no text at all. That a file
            cannot be read as what it should be shows when it is its turn; the message names it.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ValueError("no text was named; name a file or a folder.")
    name = ", ".join(map(str, paths))
    rows = _Documents(tuple(files))
    _check_content(rows, name)
    description = {
        "kind": "files",
        "n_files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "fingerprint": _fingerprint(files),
    }
    return Text(name, description, rows, "text")


def open_text_dataset(name: str, config: str | None = None) -> Text:
    """The text in a Hugging Face data set, or its token ids.

    Args:
        name: id on the Hub, of which the split "train" is streamed, or a folder that
            `save_to_disk` wrote. The first of the columns "tokens", "input_ids", "text" and
            "problem" that is there is taken.
        config: of a data set on the Hub that has several.
    Raises:
        FileNotFoundError: a path is not there.
        OSError: the data set cannot be had.
        ValueError: no data set, one without such a column, or without rows.
    """
    import datasets

    path = user_path(name)
    is_folder = path.is_dir()
    if path.exists():
        rows = _from_disk(path)
        facts: dict[str, Any] = {"n_rows": len(rows), "fingerprint": _state(path)}
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"there is no folder {name}.")
    else:
        try:
            rows = datasets.load_dataset(name, config, split="train", streaming=True)
        except OSError as error:
            raise OSError(
                f"the data set {name} could not be had from the Hugging Face Hub "
                f"({one_line(error)}); check its name and the network; a folder that "
                "`save_to_disk` wrote, or files of text, work without one."
            ) from error
        facts = {"id": name, "config": config, "split": "train"}
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{name} holds no text.")
    column = next((column for column in _COLUMNS if column in first), None)
    if column is None:
        raise ValueError(
            f"{name} has none of the columns {', '.join(_COLUMNS)}, but {', '.join(first)}; rename "
            "the one with the text."
        )
    kind = "folder" if is_folder else "hub"
    return Text(name, {"kind": kind, **facts, "column": column}, rows, column)


@dataclass(frozen=True)
class _Documents:
    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[dict[str, str | LongText | None]]:
        for file in self.files:
            for text in _READERS[file.suffix](file):
                if text is not None and not isinstance(text, str | LongText):
                    raise ValueError(
                        f"{file} holds {repr(text)[:100]} as a text; texts are strings."
                    )
                has_content = text is not None and any(map(str.strip, text))
                yield {"text": text if has_content else None}


def _txt(file: Path) -> Iterator[Any]:
    yield LongText(file)


def _jsonl(file: Path) -> Iterator[Any]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise ValueError(
                        f"{file}, line {number} is no JSON ({one_line(error)})."
                    ) from error
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
        raise ValueError(f"{file} cannot be read as parquet ({one_line(error)}).") from error


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}


def _not_utf8(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{file} is not UTF-8 ({error.reason}); convert it, with iconv for example.")


def _files(path: Path) -> list[Path]:
    path = user_path(path)
    if path.is_dir():
        found = sorted(
            file for file in path.iterdir() if file.suffix in SUFFIXES and file.name[0] != "."
        )
        if not found:
            raise ValueError(f"the folder {path} holds no {', '.join(SUFFIXES)} file.")
        return found
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is none of the kinds of text known: {', '.join(SUFFIXES)}.")
    return [path]


def _fingerprint(files: Sequence[Path]) -> str:
    """What changes with the text; not all of it is read, which can take longer than its use."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(_END))
            content.seek(max(0, size - _END))
            digest.update(content.read(_END))
    return digest.hexdigest()


def _check_content(rows: Iterable[Mapping[str, Any]], name: str) -> None:
    if all(row["text"] is None for row in rows):
        raise ValueError(f"{name} holds no text.")


def _from_disk(path: Path) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"{path} is no data set that `save_to_disk` wrote; name files of text as such "
            "(--text on the command line)."
        ) from error
    except Exception as error:
        # A damaged one, or one without a row: it stumbles over those in many ways.
        raise ValueError(
            f"{path} cannot be read as a data set ({type(error).__name__}: "
            f"{one_line(error)}); it may be empty or damaged."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            there = ", ".join(f"{path}/{split}" for split in loaded)
            raise ValueError(f"{path} holds several data sets, none 'train'; name one: {there}.")
        return loaded["train"]
    return loaded


def _state(path: Path) -> str | None:
    """The fingerprint that a data set on disk carries."""
    for file in (path / "state.json", path / "train" / "state.json"):
        if file.is_file():
            return read_json(file).get("_fingerprint")
    return None
