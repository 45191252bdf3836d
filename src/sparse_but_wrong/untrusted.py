"""Reading files that somebody else may have written, or that are damaged.

What is wrong with one is said in one line that names it; nothing that a file says is executed, and
no name in it leads out of its folder.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST = 400
_MOST_LEVELS = 100
_COPY_AGAIN = "copy it again from its source"


def one_line(error: BaseException) -> str:
    """What an error says, in one line; torch's and the Hub's errors run over many."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep in what libraries warn of while they load: what matters of it is checked afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than anything of ours and of the
            libraries that write such files: what is done with it later would not go as deep as the
            parser does.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level = [content]
    for _ in range(_MOST_LEVELS):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return content
    raise ValueError("it is nested too deep")


def read_json(file: Path, remedy: str = _COPY_AGAIN) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        remedy: what to do about a damaged file, for the message.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else than an object.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; {remedy}.")
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({one_line(error)}); {remedy}.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds a {type(content).__name__} where a JSON object is needed; {remedy}."
        )
    return content


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file holds, by name, on the CPU.

    Raises:
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({one_line(error)}); {_COPY_AGAIN}.") from error


def plain_name(name: object) -> str:
    """A name of a file or folder that leads nowhere else, or an error.

    Raises:
        ValueError: something else than a string, or one that names another place.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(character in name for character in "/\\\0")
    ):
        raise ValueError(f"{name!r} is not the plain name of a file or folder")
    return name


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
