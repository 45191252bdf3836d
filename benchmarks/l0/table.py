"""The benchmark's table on disk: a row per world, written whole after every one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.l0.run import Row
from sparse_but_wrong import atomic
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    import pandas as pd


def append_row(path: Path, row: Row) -> None:
    """Add a row to a table, which is made if it is not there."""
    import pandas as pd

    new = pd.DataFrame([row.as_dict()])
    table = pd.concat([read_table(path), new]) if path.is_file() else new
    atomic.write_bytes(path, table.to_csv(index=False).encode())


def read_table(path: Path) -> pd.DataFrame:
    """A table that `append_row` wrote.

    Raises:
        ValueError: it is no such table; the message names the file.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}).") from error
    missing = [f.name for f in fields(Row) if f.name not in table.columns]
    if missing:
        raise ValueError(f"{path} is no table of the benchmark: it lacks {', '.join(missing)}.")
    return table
