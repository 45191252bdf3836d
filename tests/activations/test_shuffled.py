"""Stored activations as training batches: shuffled, read ahead, resumable."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import StandardTrainingSAEConfig
from safetensors.torch import save_file
from torch import Tensor

from sparse_but_wrong.activations.parts import tensor_part
from sparse_but_wrong.activations.shuffled import RUN, ShuffledActivations
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.training.batches import ResumableSource
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from tests.activations.test_stored import Recorder, of

N, D_IN = 1_000, 3
# Numbers that tell the sample, and that float32 and bfloat16 (by the first two columns) hold.
X = torch.stack([torch.arange(N) // 256, torch.arange(N) % 256, torch.zeros(N)], dim=1)
BYTES = 2 * D_IN
RUN_BYTES = RUN * 2 * 4
"""Of a run of a `Recorder`."""


def places(batches: list[Tensor]) -> list[int]:
    x = torch.cat(batches)
    return (x[:, 0] * 256 + x[:, 1]).int().tolist()


def shuffled(buffer_samples: int, batch_size: int = 50, seed: int = 0) -> ShuffledActivations:
    """Over seven parts."""
    parts = [tensor_part(f"part {i}", x) for i, x in enumerate(X.bfloat16().tensor_split(7))]
    return ShuffledActivations(of(*parts), batch_size, seed, buffer_bytes=buffer_samples * BYTES)


def take(source: ShuffledActivations, n: int) -> list[Tensor]:
    return [next(source) for _ in range(n)]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read activations"]


def wait_for_readers() -> None:
    end = time.monotonic() + 5
    while readers():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_for_readers()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("buffer_bytes", [256 * D_IN * 4, 2**20])
def test_what_is_not_finite_is_named_by_file_and_row(
    tmp_path: Path, value: float, buffer_bytes: int
) -> None:
    x = np.ones((300, D_IN), dtype=np.float32)
    np.save(tmp_path / "a.npy", x)
    x[120, 2] = value
    np.save(tmp_path / "b.npy", x)
    stored = open_activations(tmp_path)
    train, held_out = stored.hold_out(100)
    source = ShuffledActivations(train, batch_size=50, seed=0, buffer_bytes=buffer_bytes)
    config = StandardTrainingSAEConfig(d_in=D_IN, d_sae=4)
    options = TrainOptions(total_training_samples=2000, train_batch_size_samples=50, progress=False)
    where = rf"b.npy holds {value} at sample 120, dimension 2"
    with pytest.raises(ValueError, match=where):
        train_saes(make_saes([config], [0]), source, options)
    with pytest.raises(ValueError, match=where):
        list(stored.batches(64))
    assert len(list(held_out.batches(64))) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_large_but_finite_is_read(dtype: torch.dtype) -> None:
    x = torch.full((200, D_IN), torch.finfo(dtype).max, dtype=dtype)  # the sum overflows
    source = ShuffledActivations(StoredActivations.of(x), batch_size=50, seed=0)
    assert torch.equal(next(source), x[:50].float())


@pytest.mark.parametrize("buffer_samples", [N, N // 2, 300, RUN])
def test_every_pass_has_every_sample_once_in_another_order(buffer_samples: int) -> None:
    source = shuffled(buffer_samples)
    assert source.d_in == D_IN
    first, second = (places(take(source, N // 50)) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    assert places(take(shuffled(buffer_samples), N // 50)) == first
    for seed in (1, -1):
        assert places(take(shuffled(buffer_samples, seed=seed), N // 50)) != first


@pytest.mark.parametrize("buffer_samples", [N, 400, 192])
def test_what_does_not_fill_a_batch_is_left_out(buffer_samples: int) -> None:
    source = shuffled(buffer_samples, batch_size=130)
    for _ in range(4):
        batches = take(source, 7)
        assert len(set(places(batches))) == 7 * 130
        assert all(len(batch) == 130 and batch.dtype == torch.float32 for batch in batches)


def test_stored_numbers_come_exactly() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    for buffer_bytes in (2**20, 128 * 8):
        seen = torch.cat(
            take(ShuffledActivations(StoredActivations.of(x), 100, 0, buffer_bytes), 2)
        )
        assert torch.equal(seen.sort(dim=0).values, x.float().sort(dim=0).values)


def test_batches_mix_samples_from_all_files() -> None:
    """In a buffer of a third: far from their neighbours, and from every part."""
    stored = StoredActivations.of(torch.arange(30_000.0).view(-1, 1))
    source = ShuffledActivations(stored, 500, 0, buffer_bytes=4 * 10_048)
    for batch in take(source, 60):
        place = batch[:, 0]
        # A fifth of all samples would give 100 of 500; a buffer has 157 of 469 runs, so that its
        # share of a fifth is 31 ± 4.2 runs (hypergeometric), and that of a batch 100 ± 16; 4.5 sd.
        counts = torch.histc(place, bins=5, min=0, max=30_000)
        assert counts.min() > 100 - 4.5 * 16
        assert counts.max() < 100 + 4.5 * 16
        # The order itself knows nothing of the place: correlation of neighbours 0 ± 1/√500.
        neighbours = torch.corrcoef(torch.stack([place[1:], place[:-1]]))[0, 1]
        assert abs(neighbours) < 4.5 / 500**0.5


def test_one_buffer_is_read_once() -> None:
    part = Recorder(n_samples=N)
    take(ShuffledActivations(of(part), 50, 0), 3 * N // 50)
    assert sum(stop - start for start, stop in part.asked) == N
    assert max(stop - start for start, stop in part.asked) <= RUN


def test_buffers_are_read_from_front_to_back_and_one_ahead() -> None:
    part = Recorder(n_samples=10 * RUN)
    source = ShuffledActivations(of(part), RUN, 0, buffer_bytes=5 * RUN_BYTES)
    next(source)
    wait_for_readers()
    assert len(part.asked) == 10
    assert part.asked[:5] == sorted(part.asked[:5])
    assert part.asked[5:] == sorted(part.asked[5:])
    assert part.asked != sorted(part.asked)
    take(source, 4)
    assert len(part.asked) == 10
    # Also behind a place that is gone on from, before which nothing is read.
    take(source, 93)
    wait_for_readers()
    part.asked.clear()
    later = ShuffledActivations(of(part), RUN, 0, buffer_bytes=5 * RUN_BYTES)
    later.load_state(source.state())
    assert part.asked == []
    next(later)
    wait_for_readers()
    assert len(part.asked) == 10


@pytest.mark.parametrize("buffer_samples", [N, 300, RUN])
@pytest.mark.parametrize("given", [0, 1, 5, 19, 20, 33])
def test_goes_on_from_a_state(buffer_samples: int, given: int) -> None:
    source = shuffled(buffer_samples, batch_size=48)
    assert isinstance(source, ResumableSource)
    take(source, given)
    state = source.state()
    expected = take(source, 45)
    # In another object, and back in the same one.
    for later in (shuffled(buffer_samples, batch_size=48), source):
        later.load_state(state)
        assert all(map(torch.equal, expected, take(later, 45)))


def test_what_does_not_fit_is_refused() -> None:
    state = shuffled(300).state()
    for other in (shuffled(N), shuffled(300, batch_size=51), shuffled(300, seed=1)):
        with pytest.raises(ValueError, match="same activations and arguments"):
            other.load_state(state)
    for buffer_samples, batch_size, message in (
        (N, 1001, r"1 to 1000.* 1001"),
        (N, 0, r"batch_size .* 0"),
        (150, 150, r"900 bytes is too small .* at least 1152"),
    ):
        with pytest.raises(ValueError, match=message):
            shuffled(buffer_samples, batch_size=batch_size)
    assert len(next(shuffled(192, batch_size=150))) == 150


def test_an_error_while_reading_ahead_reaches_the_consumer() -> None:
    bad = Recorder("shard-2", 4 * RUN, fails_from=3 * RUN)
    stored = of(Recorder("shard-1", 4 * RUN), bad)
    source = ShuffledActivations(stored, RUN, 3, buffer_bytes=RUN_BYTES)
    n_given = 0
    with suppress(OSError):
        for n_given, _ in enumerate(source, start=1):  # noqa: B007
            pass
    assert 0 < n_given < 8
    for _ in range(2):
        # Tried again, and failing again, at the same place.
        with pytest.raises(OSError, match=r"shard-2 cannot be read .*the disk is gone"):
            next(source)
    assert source.state()["n_given"] == n_given
    object.__setattr__(bad, "fails_from", float("inf"))
    take(source, 8)


SLOW = """
import time
from tests.activations.test_stored import Recorder, of
from sparse_but_wrong.activations.shuffled import ShuffledActivations

class Slow(Recorder):
    def record(self, start, stop):
        if len(self.asked) == 102:
            print("reading ahead", flush=True)
        time.sleep(0.0 if len(self.asked) < 100 else 1.0)
        return super().record(start, stop)

part = Slow(n_samples=10_000 * 64)
source = ShuffledActivations(of(part), 64, 0, buffer_bytes=100 * 64 * 8)
"""


def test_the_thread_ends_with_the_object() -> None:
    slow: dict[str, ShuffledActivations] = {}
    exec(SLOW, slow)
    next(slow["source"])
    assert len(readers()) == 1
    # Left alone, it would read for 100 s.
    del slow["source"]
    wait_for_readers()


def program(ending: str) -> subprocess.Popen[str]:
    command, here = [sys.executable, "-c", SLOW + ending], Path(__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=here)


def test_the_program_ends_quietly_while_a_buffer_is_being_read() -> None:
    with program("next(source); print('end')") as process:
        started = time.monotonic()
        said, errors = process.communicate(timeout=90)
    assert (process.returncode, errors) == (0, "")
    assert said.startswith("end\n")
    # What is left of the second buffer would take 100 s.
    assert time.monotonic() - started < 80


def test_waiting_can_be_interrupted() -> None:
    # A shell's background jobs ignore the signal, and so would this one among the tests there.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with program(
        f"{heeds}print(len(next(source)), flush=True)\nwhile True: next(source)"
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["64\n", "reading ahead\n"]
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=90)
        # What is left of the buffer would take 98 s.
        assert time.monotonic() - started < 60
    assert errors.strip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT


def test_the_same_samples_in_other_parts_give_the_same_batches(tmp_path: Path) -> None:
    for i, x in enumerate(X.bfloat16().tensor_split(4)):
        save_file({"activations": x.clone()}, tmp_path / f"{i}.safetensors")
    stored = open_activations(tmp_path)
    source = ShuffledActivations(stored, 50, 0, buffer_bytes=300 * BYTES)
    assert all(map(torch.equal, take(source, 30), take(shuffled(300), 30)))
