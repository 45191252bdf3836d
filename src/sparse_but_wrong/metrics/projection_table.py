"""Tables of SAEs: scalars and s_n apart in memory, s_n as columns s_0, s_1, … in a file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_PROJECTION = re.compile(r"s_(\d+)")


def join_projections(table: pd.DataFrame, projections: pd.DataFrame) -> pd.DataFrame:
    """The form for files: s_n as columns `s_0`, `s_1`, … of the table of the same rows."""
    return table.join(projections.add_prefix("s_"))


def split_projections(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scalars of a table, and its columns s_0, s_1, … as a table of the same rows by n."""
    found = {name: _PROJECTION.fullmatch(str(name)) for name in table.columns}
    ns = {name: int(match[1]) for name, match in found.items() if match}
    names = sorted(ns, key=ns.__getitem__)
    projections = table.loc[:, names].astype(float)
    projections.columns = [ns[name] for name in names]
    return table.drop(columns=names), projections
