"""Which way of reaching a target L0 is best for JumpReLU SAEs?

    python -m benchmarks.controllers                 the reported worlds, six minutes on one core
    python -m benchmarks.controllers --split tune    the settings that each way was chosen from

All ways start from the same weights and read the same stream; their SAEs are those of the paper's
notebook, trained for a third of its steps at three times its learning rate.

- `TargetL0`: this package's controller, which moves the coefficient of the tanh penalty.
- `quadratic`: sae_lens' penalty 2/T·(L0 − T)² of each sample around a target T, with a coefficient
  in units of d_in, which is the mean square norm of the activations.
- `dual ascent` on the coefficient of the tanh penalty, every 50 steps, from where `TargetL0` begins
  and within its bounds: log c += η·log(L0/T).

(sae_lens 6.54 has no tuner of coefficients to compare with.)

Rule, written down before the worlds were run. A target is hit if the L0 on fresh samples is within
3 % or 0.25 of it. A way is better than `TargetL0` if it hits more targets over all reported worlds,
its median relative error is no larger, and its mean MCC with the true features is lower by at most
0.01 on each world. Ties go to the fewer steps until L0 stays within the band, then to less code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import numpy as np
import torch

from benchmarks.l0.large import LargeWorld
from benchmarks.l0.worlds import ToyRecipe
from sparse_but_wrong import atomic
from sparse_but_wrong.l0.options import training_config
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.runs.spec import CorrelationSpec
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.controls import TargetL0
from sparse_but_wrong.training.group import StackedGroup
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.sparsity import HIGHEST, INTERVAL, LOWEST, L0Controller

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

HERE = Path(__file__).parent
N_SAMPLES = 24_576
AVERAGED = 4
"""Rows of the log over which L0 is averaged where it is asked when it settled."""


@dataclass(frozen=True)
class Way:
    """One way of reaching a target."""

    name: Literal["TargetL0", "quadratic", "dual ascent"]
    strength: float = math.nan
    """The quadratic penalty's coefficient in units of d_in, or η."""

    def config(self, target: float, world: LargeWorld) -> sae_lens.TrainingSAEConfig:
        """The SAE's, like those of the notebook."""
        own: dict[str, Any] = {"decoder_init_norm": 0.1, "jumprelu_init_threshold": 0.1}
        if self.name == "quadratic":
            own["jumprelu_sparsity_loss_mode"] = "quadratic"
            own["l0_coefficient"] = self.strength * world.d_in
        cfg = training_config("jumprelu", target, world.d_in, world.d_sae, **own)
        return replace(cfg, target_l0=target)


TUNED = (
    Way("TargetL0"),
    *(Way("quadratic", strength) for strength in (0.03, 0.1, 0.3)),
    *(Way("dual ascent", rate) for rate in (0.03, 0.1, 0.3)),
)
WAYS = (Way("TargetL0"), Way("quadratic", 0.03), Way("dual ascent", 0.1))


@dataclass(frozen=True)
class Task:
    """A world, and what is trained on it."""

    world: LargeWorld
    targets: tuple[float, ...]
    n_seeds: int = 1
    """SAEs for each target."""

    n_steps: int = 5_000


def _correlated(name: str, split: Literal["tune", "report"], seed: int) -> LargeWorld:
    """Noiseless; like the 50 features of the notebook."""
    correlation = CorrelationSpec(seed=seed, correlation_strength_range=(0.3, 0.9))
    return LargeWorld(name, split, 50, toy=ToyRecipe(50, 100, 10.96, correlation=correlation))


_SUPERPOSED = LargeWorld("superposition", "report", 80, toy=ToyRecipe(80, 40, 10.0))
_MID_SIZE = LargeWorld("mid-size", "report", 256, toy=ToyRecipe(256, 96, 12.0, "zipf"), noise=0.05)
TASKS = (
    Task(_correlated("tune-correlated", "tune", 7), (8.0, 11.0, 13.0, 15.0)),
    Task(_correlated("correlated", "report", 42), (6.0, 8.0, 10.0, 11.0, 12.0, 14.0, 18.0), 3),
    Task(_SUPERPOSED, (6.0, 8.0, 10.0, 12.0, 14.0, 18.0)),
    Task(_MID_SIZE, (8.0, 12.0, 18.0), n_steps=4_000),
)


class DualAscent(L0Controller):
    """`TargetL0`'s controller, but SAEs with a rate η get dual ascent."""

    def __init__(self, like: L0Controller, rates: Sequence[float]) -> None:
        super().__init__(like.target.tolist(), like.n_steps, like.target.device)
        self.rate = torch.tensor(rates, dtype=torch.float64)
        """NaN where there is none."""

    def observe(self, rows: slice, n_steps: int, *seen: Any, **named: Any) -> None:
        """As the base class, whose move is replaced."""
        moving, unit = (self._moving[name][rows] for name in ("log_coefficient", "log_unit"))
        before = moving.clone()
        super().observe(rows, n_steps, *seen, **named)
        if n_steps % INTERVAL == 0:
            ratio = self._moving["l0"][rows] / self.target[rows]
            ascended = before + self.rate[rows] * ratio.clamp_min(1e-3).log()
            ascended = ascended.clamp(unit + math.log(LOWEST), unit + math.log(HIGHEST))
            moving.copy_(torch.where(ascended.isnan(), moving, ascended))


def is_hit(l0: np.ndarray, target: float) -> np.ndarray:
    """Whether each L0 lies in the target's band, that of the controller's own note."""
    return np.abs(l0 - target) <= max(0.03 * target, 0.25)


def settled_at(l0: Sequence[float], target: float) -> float:
    """The share of a run after which its L0, as averaged, stays within the band; NaN if never."""
    averaged = np.convolve(l0, np.ones(AVERAGED) / AVERAGED, "valid")
    outside = np.flatnonzero(~is_hit(averaged, target))
    first = 0 if len(outside) == 0 else int(outside[-1]) + 1
    return math.nan if first == len(averaged) else (first + AVERAGED) / len(l0)


def run_task(task: Task, ways: Sequence[Way], batch_size: int = 512) -> Iterator[dict[str, object]]:
    """A row per SAE; all of them are trained at once."""
    world = task.world
    plan = [(w, t, seed) for w in ways for t in task.targets for seed in range(task.n_seeds)]
    # The seed says nothing of the way: all begin alike.
    seeds = [derive_seed(seed, "controllers", world.name, str(target)) for _, target, seed in plan]
    training = Training(
        make_saes([way.config(target, world) for way, target, _ in plan], seeds),
        world.stream(batch_size, "controllers"),
        TrainOptions(
            total_training_samples=task.n_steps * batch_size,
            train_batch_size_samples=batch_size,
            lr=1e-3,
            n_batches_for_norm_estimate=100,
            log_every=INTERVAL,
            progress=False,
        ),
        [None if way.name == "quadratic" else TargetL0(target) for way, target, _ in plan],
    )
    for group in training.groups:
        assert isinstance(group, StackedGroup)
        if (controller := group.schedule.l0_controller) is not None:
            of_group = [plan[place][0] for place in group.places]
            rates = [w.strength if w.name == "dual ascent" else math.nan for w in of_group]
            group.schedule.l0_controller = DualAscent(controller, rates)
    training.run()
    activations, features = world.samples(N_SAMPLES, "evaluation")
    found = evaluate(training.saes, activations, world.world.directions, features)
    for (way, target, seed), log, one in zip(plan, training.log.saes, found, strict=True):
        yield {
            "world": world.name,
            "true_l0": world.l0[0],
            "way": way.name,
            "strength": way.strength,
            "target": target,
            "seed": seed,
            "l0": one.l0,
            "error": one.l0 / target - 1,
            "hit": bool(is_hit(np.array(one.l0), target)),
            "settled": settled_at(log.columns["l0"], target),
            "mcc": one.mcc,
            "mean_max_cosine": one.mean_max_cosine,
            "f1": one.f1,
            "variance_explained": one.variance_explained,
        }


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """A row per world and way."""
    table = table.assign(off=table["error"].abs())
    return table.groupby(["world", "way", "strength"], sort=False, dropna=False).agg(
        hits=("hit", "sum"),
        of=("hit", "size"),
        median_error=("off", "median"),
        worst_error=("off", "max"),
        settled=("settled", "median"),
        mcc=("mcc", "mean"),
        mean_max_cosine=("mean_max_cosine", "mean"),
        f1=("f1", "mean"),
    )


@click.command()
@click.option("--split", type=click.Choice(["tune", "report"]), default="report", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Table of a row per SAE.")
def main(split: str, out: Path | None) -> None:
    """Run every way on the worlds of a split, and print the summary.

    The table is written to --out; of the reported worlds to controllers.csv if that is left out.
    """
    import pandas as pd

    ways = TUNED if split == "tune" else WAYS
    tasks = [task for task in TASKS if task.world.split == split]
    table = pd.DataFrame([row for task in tasks for row in run_task(task, ways)])
    if out is not None or split == "report":
        atomic.write_bytes(out or HERE / "controllers.csv", table.to_csv(index=False).encode())
    click.echo(summarize(table).round(3).to_string())


if __name__ == "__main__":
    main()
