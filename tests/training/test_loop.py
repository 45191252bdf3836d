"""The loop itself: resuming, interruption, bad sources, what falls through to sae_lens."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, StandardTrainingSAE, TrainingSAE
from torch import Tensor

from sparse_but_wrong.training import compiled_step, memory
from sparse_but_wrong.training.architectures.penalty import JumpReLU
from sparse_but_wrong.training.batches import Block
from sparse_but_wrong.training.interrupt import Terminated, terminate
from sparse_but_wrong.training.loop import Training, train_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.state import TrainingState
from tests.training import oracle
from tests.training.oracle import (
    NORMALISED,
    Batches,
    assert_close,
    assert_identical,
    left_to_sae_lens,
    make_sae,
)


def make_saes() -> list[TrainingSAE[Any]]:
    return [make_sae(0), make_sae(1, **NORMALISED), make_sae(2, d_sae=5, l0_warm_up_steps=30)]


def assert_taken_up_it_ends_as_if_never_stopped(
    state: TrainingState, options: TrainOptions
) -> None:
    """For a run of `make_saes` on `Batches`."""
    straight, resumed = make_saes(), make_saes()
    full_log = train_saes(straight, Batches(), options)
    second = Training(resumed, Batches(), options)
    second.load_state(state)
    assert 0 < second.n_samples < options.total_training_samples
    second.run()
    for a, b in zip(straight, resumed, strict=True):
        assert_identical(a, b)
        assert a.cfg.metadata.l0 == b.cfg.metadata.l0
    assert second.log.to_frame().equals(full_log.to_frame())


def test_a_run_taken_up_from_a_checkpoint_ends_bit_for_bit_the_same() -> None:
    options = oracle.options_for(70, dead_feature_window=10, feature_sampling_window=25)
    kept: list[TrainingState] = []

    def keep(training: Training) -> None:
        if training.can_checkpoint and training.n_samples < options.total_training_samples:
            kept.append(training.state())

    Training(make_saes(), Batches(), options).run(on_rest=keep)
    assert len(kept) >= 3
    for state in (kept[0], kept[len(kept) // 2], kept[-1]):
        assert_taken_up_it_ends_as_if_never_stopped(state, options)


def test_a_checkpoint_of_other_saes_is_refused() -> None:
    options = oracle.options_for(40)
    states: list[TrainingState] = []
    Training([make_sae(0)], Batches(), options).run(
        lambda training: states.append(training.state())
    )
    narrow = make_sae(0, d_sae=4)
    with pytest.raises(ValueError, match="resume with the SAEs the run was started with"):
        Training([narrow], Batches(), options).load_state(states[0])
    with pytest.raises(ValueError, match="holds 1 groups of SAEs, this run has 2"):
        Training([make_sae(0), narrow], Batches(), options).load_state(states[0])


def test_a_source_without_a_place_cannot_be_checkpointed() -> None:
    training = Training([make_sae()], iter([]), oracle.options_for(2))
    with pytest.raises(TypeError, match="cannot be resumed"):
        training.state()


def test_ctrl_c_in_a_source_leaves_the_saes_at_the_last_finished_step() -> None:
    def source() -> Iterator[Tensor]:
        yield from oracle.recorded_batches(200)[:100]
        raise KeyboardInterrupt

    saes = [make_sae(seed=i) for i in range(3)]
    reference = copy.deepcopy(saes)
    training = Training(saes, source(), oracle.options_for(200))
    with pytest.raises(KeyboardInterrupt):
        training.run()
    n_steps = training.n_samples // oracle.BATCH
    assert 0 < n_steps <= 100
    train_saes(reference, Batches(200), oracle.options_for(n_steps))
    for sae, expected in zip(saes, reference, strict=True):
        assert_identical(sae, expected)


@pytest.fixture
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM as the command line takes it."""
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_terminated_by_sigterm")
@pytest.mark.parametrize(
    ("signum", "n_signals", "where"),
    [
        (signal.SIGINT, 1, "source"),
        (signal.SIGTERM, 1, "source"),
        (signal.SIGINT, 2, "source"),  # it hangs, and the user means it
        (signal.SIGINT, 3, "step"),  # however many: or SAEs would be left at different steps
    ],
)
def test_signals_wait_for_the_step_and_the_run_can_be_taken_up(
    signum: signal.Signals, n_signals: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signum)
    count = itertools.count(1)

    def signal_at(n: int) -> None:
        if next(count) == n:
            for _ in range(n_signals):
                signal.raise_signal(signum)
            if (where, n_signals) == ("source", 2):
                pytest.fail("the second signal did not interrupt")

    class Signalling(Batches):
        def __next__(self) -> Tensor:
            if where == "source":
                signal_at(60)
            return super().__next__()

    wait = Block.wait
    options = oracle.options_for(200)
    training = Training(make_saes(), Signalling(), options)
    with monkeypatch.context() as patch:
        if where == "step":
            patch.setattr(Block, "wait", lambda block: (signal_at(5), wait(block)))
        with pytest.raises(KeyboardInterrupt) as stopped:
            training.run()
    assert (stopped.type is Terminated) == (signum == signal.SIGTERM)
    assert signal.getsignal(signum) is handler
    assert_taken_up_it_ends_as_if_never_stopped(training.state(), options)


def test_a_source_may_fill_the_same_tensor_again_and_again() -> None:
    def one_buffer() -> Iterator[Tensor]:
        buffer = torch.empty(oracle.BATCH, oracle.D_IN)
        for batch in oracle.recorded_batches(60):
            yield buffer.copy_(batch)

    expected, sae = make_sae(), make_sae()
    train_saes([expected], Batches(60), oracle.options_for(60))
    train_saes([sae], one_buffer(), oracle.options_for(60))
    assert_identical(sae, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_batch_is_named_and_touches_nothing(bad: float) -> None:
    batches = oracle.recorded_batches(40)
    reference, sae = make_sae(), make_sae()
    train_saes([reference], iter(batches), oracle.options_for(23))
    batches[23][5, 3] = bad
    with pytest.raises(ValueError, match=rf"batch 23 .* {bad} at sample 5, dimension 3"):
        train_saes([sae], iter(batches), oracle.options_for(40))
    assert_identical(sae, reference)


def test_a_batch_that_is_large_but_finite_is_accepted() -> None:
    batches = oracle.recorded_batches(3)
    batches[1][:2] = 3e38  # its sum overflows
    train_saes([make_sae()], iter(batches), oracle.options_for(3))


def broken() -> Iterator[Tensor]:
    yield from oracle.recorded_batches(5)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: iter(oracle.recorded_batches(7)), ValueError, "ran out before batch 7"),
        (lambda: iter([torch.zeros(4, 5)]), ValueError, r"shape \[4, 5\].*d_in = 12"),
        (lambda: iter([torch.zeros(12)]), ValueError, r"shape \[12\]"),
        (lambda: iter([torch.zeros(0, 12)]), ValueError, r"shape \[0, 12\]"),
        (lambda: iter([[1.0, 2.0]]), TypeError, "batch 0 of the source is a list"),
        (lambda: itertools.repeat(torch.zeros(oracle.BATCH, 12)), ValueError, "all zero"),
        (broken, OSError, "the disk is gone"),
    ],
)
def test_a_source_that_cannot_be_trained_on_and_threads_as_before(
    source: Any, error: type[Exception], message: str
) -> None:
    changes: dict[str, Any] = NORMALISED if message == "all zero" else {}
    sae = make_sae(**changes)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(error, match=message):
            train_saes([sae], source(), oracle.options_for(40))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def with_bad(field: str, value: float, make: Callable[[], TrainingSAE[Any]]) -> TrainingSAE[Any]:
    sae = make()
    setattr(sae.cfg, field, value)
    return sae


SAME = make_sae()
REFUSED: list[tuple[list[Any], type[Exception], str]] = [
    ([], ValueError, "no SAEs"),
    ([SAME, SAME], ValueError, r"saes\[1\] and saes\[0\] are the same object"),
    ([SAME, make_sae(d_in=7)], ValueError, r"saes\[1\] has d_in 7, saes\[0\] has 12"),
    ([make_sae().to("meta")], ValueError, r"saes\[0\] is on the meta device"),
    ([torch.nn.Linear(2, 2)], TypeError, r"saes\[0\] is a Linear"),
    *(
        ([SAME, with_bad(*bad, make)], ValueError, r"saes\[1\], a \w+, has {} = {}".format(*bad))
        for bad in (("l0_coefficient", -1.0), ("jumprelu_bandwidth", math.nan))
        for make in (make_sae, left_to_sae_lens)
    ),
]


@pytest.mark.parametrize(("saes", "error", "message"), REFUSED)
def test_saes_that_cannot_share_a_run_or_be_trained_by_anybody(
    saes: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_saes(saes, iter([]), oracle.options_for(3))


def test_where_and_on_what_nobody_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    # While tests run, the annotation alone would refuse it.
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"source is a list, not an iterator; give iter"):
        train_saes([make_sae()], [], oracle.options_for(3))  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        train_saes([make_sae()], iter([]), oracle.options_for(3))


def test_what_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    options = oracle.options_for(1, train_batch_size_samples=10**12)
    with pytest.raises(ValueError, match="train_batch_size_samples = 1000000000000"):
        train_saes([make_sae()], iter([]), options)
    monkeypatch.setattr(memory, "_available", lambda _: 5000)
    options = oracle.options_for(1, train_batch_size_samples=2)
    Training([make_sae()], iter([]), options)
    with pytest.raises(ValueError, match=r"2 SAEs .* d_sae = 9"):
        Training([make_sae(), make_sae()], iter([]), options)


def test_an_sae_that_does_not_fit_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(JumpReLU, "forward", hungry)
    sae = make_sae()
    with pytest.raises(MemoryError, match=r"d_in 12 and d_sae 9 .* lower train_batch_size_samples"):
        train_saes([sae], Batches(), oracle.options_for(5, compiled=False))
    assert_identical(sae, make_sae())
    assert memory.is_out_of_memory(MemoryError())
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not memory.is_out_of_memory(ValueError("DefaultCPUAllocator"))


def test_what_takes_the_steps_of_each_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(*saes: TrainingSAE[Any], **changes: Any) -> Sequence[str]:
        return Training(saes, iter([]), oracle.options_for(1, **changes)).steps

    built = "pytorch" if compiled_step.kernels() is None else "compiled"
    saes = [left_to_sae_lens(), make_sae(), make_sae(d_sae=4)]
    assert steps(*saes) == ["sae_lens", built, built]
    assert steps(*reversed(saes), compiled=False) == ["pytorch", "pytorch", "sae_lens"]
    monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    assert steps(*saes) == ["sae_lens", "pytorch", "pytorch"]


class MyBatchTopK(BatchTopKTrainingSAE):
    """A user's own variant, which the engine cannot know."""


class MyStandard(StandardTrainingSAE):
    """Another."""


def changed(change: Callable[[Any], object]) -> Callable[[], TrainingSAE[Any]]:
    def make() -> TrainingSAE[Any]:
        sae = make_sae()
        change(sae)
        return sae

    return make


def my_standard(**config: Any) -> MyStandard:
    return oracle.seeded(MyStandard(oracle.make("standard", l1_coefficient=0.1, **config).cfg), 0)


def square(preds: Tensor, target: Tensor) -> Tensor:
    return (preds - target).square() * 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: oracle.seeded(MyBatchTopK(oracle.make("batchtopk").cfg), 0),
            "does not know MyBatchTopK",
        ),
        (lambda: my_standard(**NORMALISED), "does not know MyStandard"),
        (lambda: my_standard(normalize_activations="covariance_whitening"), "does not know"),
        (left_to_sae_lens, "does not know MyJumpReLU"),
        (lambda: make_sae(normalize_activations="layer_norm"), "activations='layer_norm'"),
        (lambda: make_sae(dtype="bfloat16"), "float32 only, not bfloat16"),
        (lambda: make_sae().double(), "float32 only, not float64"),
        (changed(lambda sae: setattr(sae, "activation_fn", torch.nn.Tanh())), "activation_fn was"),
        (changed(lambda sae: setattr(sae, "mse_loss_fn", square)), "custom mse_loss_fn"),
        (changed(lambda sae: sae.b_dec.requires_grad_(False)), "frozen"),
        (changed(lambda sae: sae.hook_sae_input.add_hook(lambda x, **_: x)), "hooks"),
    ],
)
def test_what_the_engine_does_not_stack_is_trained_by_sae_lens(
    make: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = oracle.options_for(40)
    batches = oracle.recorded_batches(50)
    neighbour, other = make_sae(seed=5), make()
    expected = oracle.train_with_sae_lens(other, batches, options)
    alone = oracle.train_with_sae_lens(neighbour, batches, options)

    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        log = train_saes([neighbour, other], iter(batches), options)

    (line,) = caplog.messages
    assert reason in line
    assert "sae_lens' own trainer" in line
    assert [sae_log.trained_by for sae_log in log.saes] == ["engine", "sae_lens"]
    assert log.saes[1].steps == [0, 39]
    assert_close(other, expected, atol=1e-6, rtol=1e-5)
    assert_close(neighbour, alone)


@pytest.mark.parametrize("kind", ["jumprelu", "batchtopk"])
def test_both_trainers_log_the_same_metrics(kind: str) -> None:
    options = oracle.options_for(41, log_every=10, dead_feature_window=5)
    theirs: TrainingSAE[Any]
    ours: TrainingSAE[Any]
    if kind == "batchtopk":
        ours = oracle.make("batchtopk")
        theirs = MyBatchTopK(copy.deepcopy(ours.cfg))
    else:
        ours, theirs = make_sae(l0_warm_up_steps=20), left_to_sae_lens(l0_warm_up_steps=20)
    with torch.no_grad():
        ours.get_parameter("b_enc")[:2] = -5.0  # two latents that never fire
    theirs.load_state_dict(ours.state_dict())
    engine, lens = train_saes([ours, theirs], Batches(), options).saes
    assert (engine.trained_by, lens.trained_by) == ("engine", "sae_lens")
    assert engine.steps == lens.steps
    assert engine.columns["dead_latents"][-1] >= 2 or kind == "batchtopk"
    if kind == "batchtopk":
        assert max(engine.columns["auxiliary_reconstruction_loss"]) > 0
    for name, values in lens.columns.items():
        assert engine.columns[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert set(engine.columns) - set(lens.columns) == {"grad_norm"}


def test_the_log_has_the_metrics_of_the_step() -> None:
    options = oracle.options_for(25, log_every=10)
    batches = oracle.recorded_batches(25)
    sae = make_sae(l0_warm_up_steps=20)
    with torch.no_grad():
        acts = sae.encode(batches[0])
        error = sae.decode(acts) - batches[0]
    frame = train_saes([sae], iter(batches), options).to_frame()
    assert frame["step"].tolist() == [0, 10, 20, 24]
    assert frame["sae"].tolist() == [0] * 4
    first = frame.iloc[0]
    assert first["l0"] == pytest.approx((acts > 0).sum(1).float().mean().item())
    assert first["mse_loss"] == pytest.approx(error.square().sum(1).mean().item(), rel=1e-5)
    assert first["l0_loss"] == 0.0  # the warm-up starts at a coefficient of 0
    assert first["loss"] == pytest.approx(first["mse_loss"])
    assert frame["coefficient"].tolist() == pytest.approx([0.0, 0.15, 0.3, 0.3])
    assert frame["lr"].tolist() == [options.lr] * 4
    assert min(frame["grad_norm"]) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_training_samples": 0}, "total_training_samples must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"adam_beta1": 1.0}, "adam_beta1"),
        ({"threads": 0}, "threads"),
        ({"lr_scheduler_name": "linear"}, "one of constant"),
        ({"lr_warm_up_steps": -1}, "lr_warm_up_steps"),
        ({"lr_warm_up_steps": 20_000}, "do not fit"),
        ({"lr_end": 1.0}, "lr_end"),
    ],
)
def test_options_are_checked_when_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**changes)
