"""What else can be measured of SAEs, beyond their activations: a table each, with its noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

STANDARD_ERROR = "_standard_error"
"""Ends the name of the column that holds the standard errors of another."""


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """One kind of evidence, for each of some SAEs."""

    name: str
    """Names its file and its place on the page, for example ``loss``."""

    title: str
    """For people, for example ``Cross entropy``."""

    table: pd.DataFrame
    """A row per SAE, by its name (the index `sae`); numbers, and beside a column `x` its standard
    errors as `x_standard_error`."""

    baselines: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    """What there is to compare a column with, by column and by what it is: the model without an
    SAE, zeros in place of activations."""

    notes: tuple[str, ...] = ()
    """How it was measured, in words."""

    details: pd.DataFrame | None = None
    """What the table sums up, for example a row per SAE and task."""
