"""Tables of SAEs: scalars and s_n apart in memory, s_n as columns s_0, s_1, … in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def join_projections(table: pd.DataFrame, projections: pd.DataFrame) -> pd.DataFrame:
    """The form for files: s_n as columns `s_0`, `s_1`, … of the table of the same rows."""
    return table.join(projections.add_prefix("s_"))


def split_projections(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scalars of a table, and its columns s_0, s_1, … as a table of the same rows by n."""
    found = table.filter(regex=r"^s_\d+$")
    projections = found.astype(float).rename(columns=lambda name: int(name[2:]))
    return table.drop(columns=found.columns), projections.sort_index(axis=1)
