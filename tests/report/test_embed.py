from __future__ import annotations

import base64
import json
import math

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.report.embed import (
    QUANTUM,
    as_json_value,
    data_uri,
    json_for_script,
    pack_cosines,
    pack_floats,
)


def test_json_cannot_leave_its_script() -> None:
    hostile = {"</script><script>alert(1)</script>": "<!-- & \u2028 'x' \"y\""}
    text = json_for_script(hostile)
    assert not set("<>&\u2028") & set(text)
    assert "\\u003c/script\\u003e" in text
    assert json.loads(text) == hostile


def test_what_json_lacks_becomes_null() -> None:
    value = {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": {"c": math.nan}, "d": True}
    assert json.loads(json_for_script(value)) == {
        "a": [None, 1.5, [None, None]],
        "b": {"c": None},
        "d": True,
    }


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError):
        json_for_script({"a": object()})


def test_cosines_come_back_within_half_a_step() -> None:
    cosines = np.linspace(-1, 1, 1001).reshape(7, 143)
    steps = np.frombuffer(base64.b64decode(pack_cosines(cosines)), dtype=np.int8)
    assert np.abs(steps.reshape(7, 143) * QUANTUM - cosines).max() <= QUANTUM / 2 + 1e-12
    assert steps[0] == -127
    assert steps[-1] == 127


def test_a_cosine_that_is_no_number_has_a_sign_of_its_own() -> None:
    packed = pack_cosines(np.array([[np.nan, -1.2, 1.0000001, np.inf]]))
    assert np.frombuffer(base64.b64decode(packed), dtype=np.int8).tolist() == [-128, -127, 127, 127]


def test_floats_keep_nan() -> None:
    packed = pack_floats(np.array([[1.5, np.nan], [1e300, -2.0]]))
    values = np.frombuffer(base64.b64decode(packed), dtype="<f4")
    np.testing.assert_array_equal(values, np.array([1.5, np.nan, np.inf, -2.0], dtype=np.float32))


def test_a_file_becomes_an_address() -> None:
    assert data_uri(b"abc", "image/png") == "data:image/png;base64,YWJj"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (math.nan, None),
        (math.inf, None),
        (pd.NA, None),
        (pd.NaT, None),
        (None, None),
        ("text", "text"),
        ((1, 2), "(1, 2)"),
    ],
)
def test_entries_of_tables(value: object, plain: object) -> None:
    assert as_json_value(value) == plain
    assert type(as_json_value(value)) is type(plain)
