"""Reading the files of strangers: what is wrong with one is said in one line that names it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST = 400


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


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else than an object.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; copy it from where the SAE was saved, the weights alone do not "
            "say how they are used."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again from its source.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds a {type(content).__name__} where a JSON object with the settings of an "
            "SAE is needed; copy it again from its source."
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
        raise ValueError(
            f"{file} is damaged ({one_line(error)}); copy it again from its source."
        ) from error
