from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.report.tables import format_number, shown_results, shown_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (-2.5, "−2.5"),
        (10.94654, "10.95"),
        (1e-7, "1e−07"),
        (12, "12"),
        (15_000_000.0, "15,000,000"),
        (np.inf, "∞"),
        (-np.inf, "−∞"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert format_number(value) == text


def test_cells_are_sorted_by_all_their_digits() -> None:
    table = pd.DataFrame(
        {
            "x": [0.123456789, np.nan, -np.inf],
            "name": ["b", None, "a"],
            "flag": [True, False, True],
            "at": pd.array([3, None, 4], dtype="Int64"),
        }
    )
    shown = shown_table("t", "A caption.", table)
    assert [cell.text for cell in shown.rows[0]] == ["0.1235", "b", "yes", "3"]
    assert [cell.sort_by for cell in shown.rows[0]] == ["0.123456789", "b", "yes", "3"]
    assert [cell.text for cell in shown.rows[1]] == ["–", "–", "no", "–"]
    assert [cell.sort_by for cell in shown.rows[1]] == ["", "", "no", ""]
    assert shown.rows[2][0].sort_by == "-Infinity"
    assert [(column.name, column.number) for column in shown.columns] == [
        ("x", True),
        ("name", False),
        ("flag", False),
        ("at", True),
    ]


def test_results_have_the_projections_of_the_spec_alone() -> None:
    table = pd.DataFrame({"sae_id": ["a"], "s_0": [1.0], "s_1": [0.5], "s_12": [0.1]})
    shown = shown_results(table, (1, 12))
    assert [column.name for column in shown.columns] == ["sae_id", "s_1", "s_12"]
    assert shown.left_out == "s_n of the other n is not shown."
    assert shown_results(table, (0, 1, 12)).left_out == ""


def test_columns_without_entries_are_left_out_and_named() -> None:
    table = pd.DataFrame({"a": [1.0], "empty": [np.nan], "none": [None]})
    shown = shown_table("t", "", table)
    assert [column.name for column in shown.columns] == ["a"]
    assert shown.left_out == "Without any entry, and so not shown: empty, none."


def test_a_large_table_is_cut_and_says_so() -> None:
    table = pd.DataFrame(np.ones((2001, 61)), columns=[f"c{i}" for i in range(61)])
    shown = shown_table("big", "", table)
    assert (len(shown.rows), len(shown.columns)) == (2000, 60)
    assert shown.left_out == (
        "These are the first 2,000 of 2,001 rows. These are the first 60 of 61 columns."
    )


def test_an_empty_table_keeps_its_columns() -> None:
    shown = shown_table("t", "", pd.DataFrame({"a": pd.Series([], dtype=float)}))
    assert [column.name for column in shown.columns] == ["a"]
    assert shown.rows == ()


def test_the_address_of_the_csv_is_quoted() -> None:
    assert shown_table('a"b c', "", pd.DataFrame({"a": [1]})).csv == "a%22b%20c.csv"
