"""Reading files that somebody else may have written, or that are damaged.

What is wrong with one is said in one line that names it; nothing that a file says is executed, and
no name in it leads out of its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LONGEST = 400
_MOST_LEVELS = 100
_COPY_AGAIN = "copy it again from its source"


def user_path(where: str | Path) -> Path:
    """A path in which a leading `~` is the home folder; nobody's home stays as it is."""
    # Path.expanduser raises a RuntimeError for users that do not exist.
    return Path(os.path.expanduser(where))  # noqa: PTH111


def one_line(error: BaseException) -> str:
    """What an error says, in one line; torch's and the Hub's errors run over many."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def damaged(file: Path, error: BaseException | str, remedy: str = _COPY_AGAIN) -> ValueError:
    """The error for a damaged file: its name, what is wrong, and what to do about it."""
    if isinstance(error, BaseException):
        is_plain = isinstance(error, ValueError)
        error = one_line(error) if is_plain else f"{type(error).__name__}: {one_line(error)}"
    return ValueError(f"{file} is damaged ({error}); {remedy}.")


def quiet() -> warnings.catch_warnings[None]:
    """Hide warnings of libraries while they load; what matters of them is checked afterwards."""
    return warnings.catch_warnings(action="ignore")


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables for a while, or unset them with None."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set_environment(variables)
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def usable_device(device: str, *, meta: bool = False) -> torch.device:
    """A device of this machine; ValueError for any other.

    Args:
        device: as PyTorch names it, or "auto": the first GPU that CUDA offers, else the CPU. GPUs
            of Apple are left out; they have no float64, in which schedules and sums are kept.
        meta: whether it may be the one on which tensors have no numbers.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter without CUDA
        raise ValueError(
            f"the device {device!r} cannot be used ({one_line(error)}); choose 'cpu', 'auto' "
            "or one that this machine has."
        ) from error
    usable = torch.device(device)
    if usable.type == "meta" and not meta:
        raise ValueError("the device 'meta' cannot be used, it holds no numbers; choose 'cpu'.")
    return usable


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    ValueError if it is not JSON, not UTF-8, or nested deeper than any file of ours: later code
    would not go as deep as the parser does.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(_MOST_LEVELS):
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [child for values in inside for child in values if isinstance(child, dict | list)]
        if not level:
            return content
    raise ValueError("it is nested too deep")


def read_json(file: Path, remedy: str = _COPY_AGAIN) -> dict[str, Any]:
    """The object that a JSON file holds; FileNotFoundError, or ValueError if it is damaged.

    Args:
        remedy: what to do about a damaged file, for the message.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; {remedy}.")
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise damaged(file, error, remedy) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{file} holds a {kind} where a JSON object is needed; {remedy}.")
    return content


def checked(kind: Any, content: Any, file: Path, remedy: str = _COPY_AGAIN) -> Any:
    """What a JSON file holds, as a value of a type that pydantic knows, say a dataclass.

    ValueError if something is missing or of another type; the message names file and field.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        # As JSON, where strictness still takes a list for a tuple and a mapping for a record.
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        says = problem["msg"].removeprefix("Value error, ")
        raise damaged(file, f"{where}: {says}" if where else says, remedy) from error


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file holds, by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; {_COPY_AGAIN}.")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise damaged(file, error) from error


def plain_name(name: object) -> str:
    """A name of a file or folder that leads nowhere else; ValueError for anything other."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(character in name for character in "/\\\0")
    ):
        raise ValueError(f"{name!r} is not the plain name of a file or folder")
    return name


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
