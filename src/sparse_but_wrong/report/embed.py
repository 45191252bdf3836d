"""How data gets into a page: as JSON, packed numbers and images, none of which can break out."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

QUANTUM = 1 / 127
"""The step between two cosines that `pack_cosines` tells apart."""

_MISSING = -128


def json_for_script(value: object) -> str:
    """JSON to stand inside ``<script type="application/json">``.

    NaN and infinities, which are not JSON, become null. What could end the script element, or
    begin a comment in it, is written as an escape.

    Raises:
        TypeError: a value of a kind that JSON does not have.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def pack_cosines(matrix: Float[np.ndarray, "rows columns"]) -> str:
    """Cosines in steps of 1/127, a byte each, row by row, as base64; NaN is −128.

    What lies outside −1 … 1 is clipped.
    """
    steps = np.round(np.clip(matrix, -1, 1) / QUANTUM)
    return _base64(np.where(np.isnan(matrix), _MISSING, steps).astype("<i1"))


def pack_floats(values: Float[np.ndarray, ...]) -> str:
    """Numbers as little-endian float32, row by row, as base64; NaN stays NaN."""
    # A number too large for float32 becomes infinite, which is not drawn either way.
    with np.errstate(over="ignore"):
        return _base64(values.astype("<f4"))


def data_uri(content: bytes, kind: str) -> str:
    """A file as a ``data:`` address, for example of the kind ``image/png``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def as_json_value(value: Any) -> str | int | float | bool | None:
    """A table's entry as JSON has it: missing ones and those that are not finite as None."""
    import pandas as pd

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else str(value)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
