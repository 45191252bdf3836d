"""The notebook's 12 JumpReLU SAEs: sae_lens one by one, sae_lens side by side, and this engine.

    python -m benchmarks.jumprelu_sweep [--steps 200] [--repeats 3] [--threads 2]

All three take the same number of steps on the same world in one process, in turns, so that a busy
machine slows them alike; the medians of the repeats are printed as ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import torch
from sae_lens import JumpReLUTrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.published_data import draw_features_afresh
from sparse_but_wrong.activations.toy import EmbeddedFeatures
from sparse_but_wrong.experiments.jumprelu import JUMPRELU
from sparse_but_wrong.experiments.make import make_saes, make_world
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.options import TrainOptions

BATCH = 1024
FULL_SAMPLES = 15_000_000
FULL_STEPS = -(-FULL_SAMPLES // BATCH)
NORM_BATCHES = 1000  # drawn first, by the notebook once per SAE


class PeakMemory:
    """The largest resident size of this process while it is open, sampled every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self.bytes = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def lens_config(n_steps: int) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=n_steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=3e-4,
        lr_end=3e-4,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1,
    )


def one_by_one(saes: list[JumpReLUTrainingSAE], n_steps: int, draw: Callable[[], Tensor]) -> None:
    """The notebook's way: `SAETrainer.fit` for each SAE, each with a stream of its own."""
    for sae in saes:
        SAETrainer(lens_config(n_steps), sae, iter(draw, None)).fit()


def side_by_side(saes: list[JumpReLUTrainingSAE], n_steps: int, draw: Callable[[], Tensor]) -> None:
    """sae_lens' `MultiSAETrainer`: all SAEs on one stream."""
    names = [str(i) for i in range(len(saes))]

    def provider() -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"toy": draw()}

    MultiSAETrainer(
        lens_config(n_steps),
        dict(zip(names, saes, strict=True)),
        dict.fromkeys(names, "toy"),
        provider(),
    ).fit()


def engine(saes: list[JumpReLUTrainingSAE], n_steps: int, draw: Callable[[], Tensor]) -> None:
    """This package."""
    options = TrainOptions(
        total_training_samples=n_steps * BATCH, n_batches_for_norm_estimate=1, progress=False
    )
    train_saes(saes, iter(draw, None), options)


def seconds_per_batch(draw: Callable[[], Tensor], n: int = 50) -> float:
    draw()
    start = time.perf_counter()
    for _ in range(n):
        draw()
    return (time.perf_counter() - start) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="steps per SAE and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    world = make_world(JUMPRELU.world, seed=0)
    if world.correlation_matrix is None:
        raise ValueError("the benchmark is about a world with correlations.")
    published = partial(
        draw_features_afresh,
        firing_probabilities=world.firing_probabilities,
        std_firing_magnitudes=world.std_firing_magnitudes,
        correlation_matrix=world.correlation_matrix,
    )
    slow = EmbeddedFeatures(world.model, published, BATCH)
    fast = EmbeddedFeatures(world.model, world.sampler.sample, BATCH)
    ways: dict[str, tuple[Callable[..., None], EmbeddedFeatures, int]] = {
        # name: how, data, how often the full run draws the batches for the norm
        "(a) sae_lens, one by one": (one_by_one, slow, 12),
        "(b) MultiSAETrainer": (side_by_side, fast, 1),
        "(c) this engine": (engine, fast, 1),
    }
    settings = [s for s in JUMPRELU.saes if not s.added]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int] = dict.fromkeys(ways, 0)
    data_seconds = {name: seconds_per_batch(data.__next__) for name, (_, data, _) in ways.items()}
    for repeat in range(-1, args.repeats):  # the first turn only warms up
        n_steps = 10 if repeat < 0 else args.steps
        for name, (train, data, _) in ways.items():
            saes = make_saes(settings, JUMPRELU.world.d_in, seed=0)
            with contextlib.redirect_stderr(io.StringIO()), PeakMemory() as peak:
                start = time.perf_counter()
                train(saes, n_steps, data.__next__)
                elapsed = time.perf_counter() - start
            if repeat >= 0:
                seconds[name].append(elapsed)
                peaks[name] = max(peaks[name], peak.bytes)

    n_saes = len(settings)
    print(
        f"\n{n_saes} JumpReLU SAEs, batch {BATCH}, {args.steps} steps, median of {args.repeats}; "
        f"{args.threads} threads, torch {torch.__version__}, {platform.machine()}"
    )
    print(
        f"data per batch: published {data_seconds['(a) sae_lens, one by one'] * 1e3:.2f} ms, "
        f"sampler {data_seconds['(c) this engine'] * 1e3:.2f} ms\n"
    )
    header = ("", "SAE-steps/s", "ms per SAE-step", "full run", "ratio", "peak memory")
    print("{:<26}{:>13}{:>17}{:>12}{:>8}{:>13}".format(*header))
    full: dict[str, float] = {}
    for name, (_, _, estimates) in ways.items():
        median = statistics.median(seconds[name])
        full[name] = (
            median / args.steps * FULL_STEPS + estimates * NORM_BATCHES * data_seconds[name]
        )
        print(
            f"{name:<26}{n_saes * args.steps / median:>13.0f}"
            f"{median / args.steps / n_saes * 1e3:>17.3f}{full[name]:>10.0f} s"
            f"{full['(a) sae_lens, one by one'] / full[name]:>8.1f}"
            f"{peaks[name] / 2**20:>9.0f} MiB"
        )
    print(
        f"\nfull run: the notebook's budget of {FULL_SAMPLES:,} samples per SAE, extrapolated,\n"
        f"with the {NORM_BATCHES} batches drawn to estimate the norm. ratio: against (a)."
    )


if __name__ == "__main__":
    main()
