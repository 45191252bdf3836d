"""Tables of a run as rows of text that a browser can sort."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sparse_but_wrong.report.embed import as_json_value

if TYPE_CHECKING:
    import pandas as pd

PROJECTION = re.compile(r"s_(\d+)")

_MOST_ROWS = 2000
_MOST_COLUMNS = 60


@dataclass(frozen=True)
class Cell:
    """An entry of a table."""

    text: str
    """What is shown."""

    sort_by: str
    """What it is sorted by: a number with all its digits, or the text; empty where missing."""

    number: bool
    """Whether it is one, or missing."""


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    name: str
    number: bool
    """Whether its cells are numbers, or missing; those stand to the right."""


@dataclass(frozen=True)
class ShownTable:
    """A table ready to be shown."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    csv: str
    """The address of the whole table, relative to the page."""

    left_out: str
    """What of the whole table is not shown, as a sentence; empty if nothing."""


def shown_results(table: pd.DataFrame, projection_n: Sequence[int]) -> ShownTable:
    """The table of results, with s_n for the spec's n alone.

    Args:
        table: a row per SAE.
        projection_n: the n whose s_n is shown.
    """
    wanted = {f"s_{n}" for n in projection_n}
    names = [str(name) for name in table.columns]
    hidden = [name for name in names if PROJECTION.fullmatch(name) and name not in wanted]
    kept = table.drop(columns=hidden)
    note = "s_n of the other n is not shown." if hidden else ""
    return shown_table("results", "A row per SAE, in the order of the spec.", kept, note)


def shown_table(name: str, caption: str, table: pd.DataFrame, note: str = "") -> ShownTable:
    """A table with its first rows and columns, as many as a page can hold.

    Columns without a single entry are left out.

    Args:
        name: of its files in the run folder, without suffix.
        note: what has been left out already.
    """
    notes = [note] if note else []
    filled = table.dropna(axis="columns", how="all") if len(table) else table
    empty = [column for column in table.columns if column not in filled.columns]
    if empty:
        table = filled
        notes.append(f"Without any entry, and so not shown: {', '.join(map(str, empty))}.")
    n_rows, n_columns = table.shape
    if n_rows > _MOST_ROWS:
        notes.append(f"These are the first {_MOST_ROWS:,} of {n_rows:,} rows.")
    if n_columns > _MOST_COLUMNS:
        notes.append(f"These are the first {_MOST_COLUMNS} of {n_columns:,} columns.")
    shown = table.iloc[:_MOST_ROWS, :_MOST_COLUMNS]
    rows = [tuple(map(_cell, row)) for row in shown.itertuples(index=False, name=None)]
    return ShownTable(
        name=name,
        caption=caption,
        columns=tuple(
            Column(str(column), all(row[i].number for row in rows))
            for i, column in enumerate(shown.columns)
        ),
        rows=tuple(rows),
        csv=f"{quote(name)}.csv",
        left_out=" ".join(notes),
    )


def format_number(value: float | int) -> str:
    """A number for people: four significant digits, whole numbers in full."""
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def _cell(value: Any) -> Cell:
    if isinstance(value, float) and math.isinf(value):
        return Cell(format_number(value), "-Infinity" if value < 0 else "Infinity", number=True)
    plain = as_json_value(value)
    if plain is None:
        return Cell("–", "", number=True)
    if isinstance(plain, bool):
        return Cell("yes" if plain else "no", "yes" if plain else "no", number=False)
    if isinstance(plain, int | float):
        return Cell(format_number(plain), repr(plain), number=True)
    return Cell(plain, plain, number=False)
