"""The page of `make real`: every signal of which L0 is right, and what they say together."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparse_but_wrong.figures.signals import Signals, plot_signals
from sparse_but_wrong.report.page import Section, save_image, write_page

ARCHITECTURES = {"batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}
BASELINE = "random_decoder"
LAYERS = (7, 14)
CLOSE = 0.15
"""How far apart the L0s of two architectures may be, as a share."""

CAPTION = (
    "Every signal over the same axis of L0, two standard errors as bars, a line through the means "
    "of two seeds. Grey: a frozen random decoder at the same L0s. Green: the interval of the "
    "recommended L0. Cross entropy is what the model loses when the SAE's reconstruction replaces "
    "the activation."
)


@dataclass(frozen=True)
class Sweep:
    """One architecture on one layer: what was measured, and what `find-l0` says."""

    layer: int
    architecture: str
    table: pd.DataFrame
    baseline: pd.DataFrame
    found: dict[str, Any]
    tasks: pd.DataFrame
    """AUC of 16 latents: a row per SAE, a column per task."""

    @property
    def title(self) -> str:
        """For people."""
        return f"layer {self.layer}, {ARCHITECTURES[self.architecture]}"

    def signals(self) -> Signals:
        """For the figure."""
        interval = self.found["interval"]
        return Signals(self.title, self.table, self.baseline, tuple(interval) if interval else None)

    def points(self) -> list[str]:
        """What each signal says."""
        found = self.found
        said = [found["text"].splitlines()[0]]
        said += found["doubts"] or found["reasons"][:1]
        l0, seeds = self.column("l0"), self.column("seed")
        for metric in ("s_0.25H", "s_0.4H", "c_dec"):
            values = self.column(metric)
            at = [l0[seeds == seed][values[seeds == seed].argmin()] for seed in (0, 1)]
            said.append(f"{metric} is smallest at {at[0]:.3g} and {at[1]:.3g} (two seeds).")
        return [*said, *self.of_probing(), *self.of_loss()]

    def column(self, name: str) -> np.ndarray:
        """A number of each SAE."""
        return self.table[name].to_numpy(float)

    def of_probing(self) -> list[str]:
        """Where probing is best, and whether it bears out what s_n^dec and `find-l0` point to."""
        auc, seeds, targets = self.tasks.to_numpy(float), *map(self.column, ("seed", "target"))
        every = np.unique(targets)
        l0 = np.array([self.column("l0")[targets == target].mean() for target in every])
        of_target = np.array([auc[targets == target].mean(0) for target in every])
        best, random = of_target.mean(1).argmax(), self.baseline["auc_16"].max()
        alone = [self.column("l0")[seeds == s][auc[seeds == s].mean(1).argmax()] for s in (0, 1)]
        said = [
            f"Probing (16 latents, {auc.shape[1]} tasks) is best at an L0 of {l0[best]:.3g}, with "
            f"an AUC of {of_target[best].mean():.3f}; for each seed alone at {alone[0]:.3g} and "
            f"{alone[1]:.3g}."
            + ("" if self.baseline.empty else f" A random decoder reaches {random:.3f}.")
        ]
        s_n = np.array([self.column("s_0.25H")[targets == target].mean() for target in every])
        places = {"s_0.25H is smallest": s_n.argmin()}
        if self.found["l0"] is not None:
            nearest = np.abs(np.log(l0 / self.found["l0"])).argmin()
            places["the L0 is nearest to the recommended one"] = nearest
        for what, at in places.items():
            short = of_target[best] - of_target[at]
            error = short.std(ddof=1) / np.sqrt(len(short))
            verdict = "bears it out" if short.mean() <= error else "does not bear it out"
            said.append(
                f"Where {what}, at {l0[at]:.3g}, the AUC is lower than the best by "
                f"{short.mean():.4f} ± {error:.4f} (one standard error over tasks): probing "
                f"{verdict}."
            )
        return said

    def of_loss(self) -> list[str]:
        """How much the model loses at the lowest and the highest L0."""
        rows = self.table.sort_values("l0")
        ends = [f"{rows['cross_entropy_increase'].iloc[at]:.3f}" for at in (0, -1)]
        return [
            f"Cross entropy rises by {ends[0]} nats at the lowest L0, {ends[1]} at the highest."
        ]


def read(out: Path, layer: int, architecture: str) -> Sweep:
    """What `sbw diagnose` and `sbw find-l0` wrote."""
    folder = out / f"layer_{layer}"
    table = pd.read_csv(folder / "saes.csv", index_col="sae")
    for name in ("agreement", "loss", "probing"):
        table = table.join(pd.read_csv(folder / f"{name}.csv", index_col="sae"))
    parts = table.index.to_series().str.extract(r"^(.*)_(\d+)_seed_(\d+)$")
    table[["kind", "target", "seed"]] = parts.to_numpy()
    tasks = pd.read_csv(folder / "probing_details.csv")
    tasks = tasks[tasks["k"] == 16].pivot_table(index="sae", columns="task", values="auc")
    mine, baseline = (table.query("kind == @kind") for kind in (architecture, BASELINE))
    found = json.loads(
        (out / f"l0_layer_{layer}_{architecture}" / "recommendation.json").read_text()
    )
    return Sweep(layer, architecture, mine, baseline, found, tasks.loc[mine.index])


def together(sweeps: list[Sweep]) -> list[str]:
    """Whether two architectures agree, layer by layer."""
    said = []
    for layer in LAYERS:
        l0s = {s.architecture: s.found["l0"] for s in sweeps if s.layer == layer}
        known = [l0 for l0 in l0s.values() if l0 is not None]
        named = ", ".join(
            f"{ARCHITECTURES[name]} {'declined' if l0 is None else f'{l0:.3g}'}"
            for name, l0 in l0s.items()
        )
        if len(known) < len(l0s):
            verdict = "so there is nothing to compare"
        else:
            agree = max(known) / min(known) - 1 <= CLOSE
            verdict = f"{'within' if agree else 'further apart than'} {CLOSE:.0%}"
        said.append(f"Layer {layer}: {named}, {verdict}.")
    return said


def main(out: Path) -> None:
    """Write report.html, the figure and signals.csv into the folder of the evidence."""
    sweeps = [read(out, layer, name) for layer in LAYERS for name in ARCHITECTURES]
    image = save_image(plot_signals([s.signals() for s in sweeps]), out, "signals", CAPTION)
    tables = {s.title: s.table for s in sweeps} | {
        f"layer {s.layer}, random decoder": s.baseline for s in sweeps[:: len(ARCHITECTURES)]
    }
    joined = pd.concat(tables, names=["sweep"]).reset_index()
    joined.to_csv(out / "signals.csv", index=False)
    sections = [
        Section("together", "Do the architectures agree?", points={"": together(sweeps)}),
        Section("signals", "Every signal", images=[image]),
        *(Section(f"sweep-{i}", s.title, points={"": s.points()}) for i, s in enumerate(sweeps)),
        Section("table", "All SAEs", table=joined, csv="signals.csv"),
    ]
    above = "Which L0 do SAEs on SmolLM2-135M need?"
    print(write_page(out / "report.html", "SmolLM2-135M, two layers", sections, above=above))
    for sweep in sweeps:
        print("\n  - ".join([sweep.title, *sweep.points()]))
    print("\n".join(together(sweeps)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
