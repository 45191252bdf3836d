"""A sweep of SAEs in a few lines: from configs and activations to their metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.loggers import Logger
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import Evaluations
from sparse_but_wrong.runs.stored_world import StoredWorld
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.shown import with_figure
from sparse_but_wrong.training.controls import Control
from sparse_but_wrong.training.log import TrainingLog
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import sae_lens

_SETS_SPARSITY = ("k", "l0_coefficient", "l1_coefficient")


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """SAEs that were trained together on the same activations."""

    saes: dict[str, sae_lens.TrainingSAE[Any]]
    """By name, in the order of the configs."""
    log: TrainingLog
    source: ToyWorld | StoredWorld | Iterator[Tensor]
    seed: int
    batch_size: int

    def __repr__(self) -> str:
        logs = zip(self.saes, self.log.saes, strict=True)
        ends = (f"  {name}: L0 {log.columns['l0'][-1]:.2f}" for name, log in logs)
        return "\n".join((f"Sweep of {len(self.saes)} SAEs on {self.source!r}, at the end:", *ends))

    def _repr_html_(self) -> str:
        return with_figure(f"<pre>{escape(repr(self))}</pre>", "training:sweep_curves", self)

    def evaluate(self, n_samples: int = 100_000) -> Evaluations:
        """The metrics of all SAEs on the same samples, which none of them was trained on.

        The samples are fresh ones of a toy world, whose features count as true; those held out of
        stored activations, or as many of them; or the next ones of an iterator.
        """
        true_features = true_feature_acts = None
        n_batches = -(-n_samples // self.batch_size)
        if isinstance(self.source, ToyWorld):
            true_features = self.source.directions
            fresh = self.source.stream(self.batch_size, derive_seed(self.seed, "evaluation"))
            drawn = [(x, acts > 0) for x, acts in (fresh.draw() for _ in range(n_batches))]
            batches = torch.cat([x for x, _ in drawn])[:n_samples]
            true_feature_acts = torch.cat([fires for _, fires in drawn])[:n_samples]
        elif isinstance(self.source, StoredWorld):
            batches = self.source.held_out(n_samples)
        else:
            batches = islice(self.source, n_batches)
        return evaluate(self.saes, batches, true_features, true_feature_acts)

    def save(self, folder: str | Path) -> None:
        """Write into a new folder: each SAE as a sae_lens folder, curves, and the toy world.

        Raises:
            FileExistsError: the folder holds something.
        """
        with atomic.new_folder(Path(folder)) as unfinished:
            for name, sae in self.saes.items():
                sae.save_model(unfinished / "saes" / name)
            curves = self.log.to_frame().to_csv(index=False)
            atomic.write_bytes(unfinished / "training_curves.csv", curves.encode())
            if isinstance(self.source, ToyWorld | StoredWorld):
                self.source.save(unfinished / "world")


def train_sweep(
    cfgs: Sequence[sae_lens.TrainingSAEConfig],
    source: ToyWorld | str | Path | Iterator[Tensor],
    *,
    n_samples: int = 15_000_000,
    lr: float = 3e-4,
    batch_size: int = 1024,
    seed: int = 0,
    controls: Sequence[Control | None] | None = None,
    logger: Logger | None = None,
    **options: Any,
) -> Sweep:
    """Make SAEs and train them all at once on the same activations.

    Args:
        cfgs: sae_lens training configs, of any architectures; all of one d_in.
        source: a toy world, the place of stored activations (a tenth of them, at most 100,000
            samples, is held out), or an iterator over batches [batch, d_in].
        n_samples: samples that each SAE is trained on.
        lr: Adam's learning rate.
        batch_size: samples per step.
        seed: of the initial weights and of the order of samples; each SAE gets its own from it.
        controls: for each SAE what moves its sparsity: a `KTransition`, a `TargetL0`, or None.
        logger: as of `train_saes`; SAEs have their names there.
        options: further fields of `TrainOptions`.
    Returns:
        the trained SAEs, named by what sets their sparsity, with their log.
    Raises:
        ValueError, TypeError, OSError: as `make_saes`, `train_saes` and `open_activations`.
    """
    opened = StoredWorld(str(source)) if isinstance(source, str | Path) else source
    named = [_name(cfg) for cfg in cfgs]
    counts = Counter(named)
    names = [f"{n}_{named[:i].count(n) + 1}" if counts[n] > 1 else n for i, n in enumerate(named)]
    saes = make_saes(cfgs, [derive_seed(seed, "sae", name) for name in names])
    if isinstance(opened, StoredWorld):
        opened.describe_in(saes)
    stream = (
        opened.stream(batch_size, derive_seed(seed, "stream"))
        if isinstance(opened, ToyWorld | StoredWorld)
        else opened
    )
    of_run = TrainOptions(
        total_training_samples=n_samples, lr=lr, train_batch_size_samples=batch_size, **options
    )
    training = Training(saes, stream, of_run, controls, names=names)
    if logger is not None:
        training.report_to(logger, names)
    training.run()
    return Sweep(dict(zip(names, saes, strict=True)), training.log, opened, seed, batch_size)


def _name(cfg: sae_lens.TrainingSAEConfig) -> str:
    values = {name: getattr(cfg, name) for name in _SETS_SPARSITY if hasattr(cfg, name)}
    return "_".join((cfg.architecture(), *(f"{name}_{value:g}" for name, value in values.items())))
