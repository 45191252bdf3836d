"""What each rule for an L0 loses in recovery, on the grids of the large worlds.

    python -m benchmarks.l0.regret --split tune

Every rule reads the same SAEs, those of a grid of `truth.py`; none sees the true features. Its
regret is the best recovery of the grid less that at the L0 it says, both read off between the SAEs.
An interval holds if the best L0 lies in it. `find_l0` trained SAEs of its own (`search.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click
import numpy as np
from scipy.interpolate import PchipInterpolator

from benchmarks.l0.large import read_large_worlds
from benchmarks.l0.search import TABLE as SEARCHES
from benchmarks.l0.truth import HERE, TRUTHS
from sparse_but_wrong.l0.agreement import read_agreement
from sparse_but_wrong.l0.curves import RISE

if TYPE_CHECKING:
    import pandas as pd

Rows = Mapping[str, np.ndarray]
"""Columns of a table of `truth.py`: an entry per SAE."""

Answer = tuple[float, float, float]
"""An L0 and the ends of its interval; NaN where a rule declines or has none."""

_DECLINED: Answer = (math.nan, math.nan, math.nan)

GOOD = 0.02
"""Regret in mean best cosine, and in MCC, up to which an L0 counts as good."""

_BITS = 8
"""Of a code, where descriptions are compared."""


def _by_target(rows: Rows, *values: np.ndarray) -> np.ndarray:
    """L0 and other columns, as means over the seeds of every target, by L0: a row for each."""
    _, which = np.unique(rows["target"], return_inverse=True)
    columns = (rows["l0"], *values)
    means = np.stack([np.bincount(which, column) / np.bincount(which) for column in columns])
    return means[:, means[0].argsort()]  # targets that SAEs miss may change places


def _at_smallest(metric: Callable[[Rows, int], np.ndarray]) -> Callable[..., float]:
    def rule(rows: Rows, d_sae: int) -> float:
        l0, values = _by_target(rows, metric(rows, d_sae))
        return float(l0[values.argmin()])

    return rule


def _elbow_of_s_n(rows: Rows, _: int) -> float:
    """The lowest L0 that can be reached from the smallest s_n before it has risen."""
    l0, s_n = _by_target(rows, rows["s_0.4"])
    at = int(s_n.argmin())
    low = RISE * abs(s_n[at])
    while at > 0 and s_n[at - 1] <= low:
        at -= 1
    return float(l0[at])


def _elbow_of_explained(rows: Rows, _: int) -> float:
    """Where the explained variance over log L0 is furthest above its chord."""
    l0, explained = _by_target(rows, rows["variance_explained"])
    x, y = ((v - v[0]) / (v[-1] - v[0]) for v in (np.log(l0), explained))
    return float(l0[(y - x).argmax()])


def _description(rows: Rows, d_sae: int) -> np.ndarray:
    """Bits of a sample: which latents, their codes, and what they leave, up to a constant."""
    l0 = rows["l0"]
    return l0 * (np.log2(math.e * d_sae / l0) + _BITS) + rows["d_in"] / 2 * np.log2(rows["mse"])


RULES: dict[str, Callable[[Rows, int], float]] = {
    "argmax of PW-MCC": _at_smallest(lambda rows, _: -rows["pw_mcc"]),
    "argmin of c_dec": _at_smallest(lambda rows, _: rows["c_dec"]),
    "argmin of s_n, n = 0.4 d_sae": _at_smallest(lambda rows, _: rows["s_0.4"]),
    "elbow of s_n, n = 0.4 d_sae": _elbow_of_s_n,
    "elbow of explained variance": _elbow_of_explained,
    "description length": _at_smallest(_description),
    "norm of codes = norm of inputs": _at_smallest(
        lambda rows, _: np.abs(np.log(rows["code_norm"] / rows["input_norm"]))
    ),
    "d_sae / 32": lambda _, d_sae: d_sae / 32,
    "20": lambda *_: 20.0,
}


def _searched() -> dict[tuple[str, str], Answer]:
    """What `find_l0` said, by world and architecture."""
    import pandas as pd

    table = pd.read_csv(SEARCHES).query("control == 'none'")
    said = table[["l0", "low", "high"]].to_numpy(float).tolist()
    names = zip(table["world"], table["architecture"], strict=True)
    return {name: (l0, low, high) for name, (l0, low, high) in zip(names, said, strict=True)}


def _answers(rows: Rows, d_sae: int) -> dict[str, Answer]:
    """What every rule says."""
    import pandas as pd

    agreed = read_agreement(pd.DataFrame(rows), d_sae)
    answers = {"agreement": _DECLINED}
    # As `find_l0` has it where the count does not decide.
    if agreed is not None and not agreed.at_end:
        answers["agreement"] = (agreed.l0, *agreed.interval)
    return answers | {name: (rule(rows, d_sae), math.nan, math.nan) for name, rule in RULES.items()}


def regrets(split: str | None = None) -> pd.DataFrame:
    """A row per table and rule: the L0 it says, and its regret in each measure of recovery."""
    import pandas as pd

    found = []
    searched = _searched()
    for world in read_large_worlds().values():
        for path in sorted(HERE.glob(f"{world.name}_*.csv")):
            if split not in (None, world.split):
                continue
            architecture = path.stem.removeprefix(f"{world.name}_")
            read = pd.read_csv(path).assign(d_in=world.d_in)
            died = read["target"].isin(read.loc[read["l0"] == 0, "target"]).to_numpy()
            rows: Rows = {name: read[name].to_numpy(float)[~died] for name in read}
            l0s, *recovery = _by_target(rows, *(rows[truth] for truth in TRUTHS))
            log_l0 = np.log(l0s)
            fine = np.linspace(log_l0[0], log_l0[-1], 400)
            curves = {
                t: PchipInterpolator(log_l0, v) for t, v in zip(TRUTHS, recovery, strict=True)
            }
            is_good = [curves[t](fine) >= curves[t](fine).max() - GOOD for t in TRUTHS[:2]]
            good = np.exp(fine[np.logical_and(*is_good)])
            answers = _answers(rows, world.d_sae)
            if (key := (world.name, architecture)) in searched:
                answers = {"find_l0": searched[key]} | answers
            for name, (l0, low, high) in answers.items():
                row: dict[str, object] = {"world": world.name, "architecture": architecture}
                row |= {"true_l0": rows["true_l0"][0], "rule": name, "l0": l0}
                row["half_width"] = (high - low) / (2 * l0)
                if len(good):
                    row |= {"good_low": good[0], "good_high": good[-1]}
                for truth, curve in curves.items():
                    best = math.exp(fine[int(curve(fine).argmax())])
                    row[f"best_l0_{truth}"] = best
                    row[f"holds_{truth}"] = float(low <= best <= high) if low < high else math.nan
                    at = np.clip(math.log(l0), fine[0], fine[-1]) if math.isfinite(l0) else math.nan
                    row[f"regret_{truth}"] = float(curve(fine).max() - curve(at))
                found.append(row)
    return pd.DataFrame(found)


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """A row per rule: in how many of its cells it is good, and what it loses where it says one."""
    columns = [f"regret_{truth}" for truth in TRUTHS]
    is_good = (table[columns[:2]] <= GOOD).all(axis=1)
    return (
        table.assign(is_good=is_good)
        .groupby("rule", sort=False)
        .agg(
            cells=("is_good", "size"),
            declined=("l0", lambda l0: int(l0.isna().sum())),
            good=("is_good", "sum"),
            half_width=("half_width", "median"),
            **{f"holds_{truth}": (f"holds_{truth}", "mean") for truth in TRUTHS[:2]},
            **{f"median_{c}": (c, "median") for c in columns},
            **{f"worst_{c}": (c, "max") for c in columns},
        )
    )


@click.command()
@click.option("--split", type=click.Choice(["tune", "report"]), help="Only the worlds of one.")
def main(split: str | None) -> None:
    """Compare the rules over all grids that have a table."""
    table = regrets(split)
    columns = [f"regret_{truth}" for truth in TRUTHS]
    shown = ["world", "architecture", "rule", "l0", *(f"best_l0_{truth}" for truth in TRUTHS)]
    click.echo(table[[*shown, *columns]].round(3).to_string(index=False))
    click.echo(summarize(table).round(3).to_string())


if __name__ == "__main__":
    main()
