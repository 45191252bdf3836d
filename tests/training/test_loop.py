"""The loop itself: resuming, interruption, bad sources, what falls through to sae_lens."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TrainingSAE,
)
from torch import Tensor

from sparse_but_wrong.training import batches as batches_module, compiled_step, memory
from sparse_but_wrong.training.interrupt import Terminated, terminate
from sparse_but_wrong.training.loop import Training, TrainingState, train_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.workers import PendingBlock
from tests.training import oracle


class RandomSource(Iterator[Tensor]):
    """A source with a place in its stream."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> Tensor:
        return torch.rand(oracle.BATCH, oracle.D_IN, generator=self.generator)

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def make_saes() -> list[JumpReLUTrainingSAE]:
    return [
        oracle.make_sae(0),
        oracle.make_sae(1, normalize_activations="expected_average_only_in"),
        oracle.make_sae(2, d_sae=5, l0_warm_up_steps=30),
    ]


def assert_taken_up_it_ends_as_if_never_stopped(stopped: Training) -> None:
    """For a run of `make_saes` on a `RandomSource`."""
    straight, resumed = make_saes(), make_saes()
    train_saes(straight, RandomSource(), stopped.options)
    second = Training(resumed, RandomSource(seed=99), stopped.options)
    second.load_state(stopped.state())
    second.run()
    for a, b in zip(straight, resumed, strict=True):
        for name, value in oracle.parameters(a).items():
            assert torch.equal(value, oracle.parameters(b)[name]), name


def test_a_run_taken_up_from_a_checkpoint_ends_bit_for_bit_the_same() -> None:
    options = oracle.options_for(70, dead_feature_window=10, feature_sampling_window=25)
    straight = make_saes()
    full_log = train_saes(straight, RandomSource(), options)

    kept: list[TrainingState] = []

    def keep(training: Training) -> None:
        if training.can_checkpoint and not training.is_finished:
            kept.append(training.state())

    first = Training(make_saes(), RandomSource(), options)
    first.run(on_rest=keep)
    assert len(kept) >= 3
    for state in (kept[0], kept[len(kept) // 2], kept[-1]):
        resumed = make_saes()
        second = Training(resumed, RandomSource(seed=99), options)
        second.load_state(state)
        assert 0 < second.n_samples < options.total_training_samples
        second.run()
        for a, b in zip(straight, resumed, strict=True):
            for name, value in oracle.parameters(a).items():
                assert torch.equal(value, oracle.parameters(b)[name]), name
            assert a.cfg.metadata.l0 == b.cfg.metadata.l0
        assert second.log.to_frame().equals(full_log.to_frame())


def test_a_checkpoint_of_other_saes_is_refused() -> None:
    options = oracle.options_for(40)
    states: list[TrainingState] = []
    Training([oracle.make_sae(0)], RandomSource(), options).run(
        on_rest=lambda training: states.append(training.state())
    )
    with pytest.raises(ValueError, match="resume with the SAEs the run was started with"):
        Training([oracle.make_sae(0, d_sae=4)], RandomSource(), options).load_state(states[0])
    with pytest.raises(ValueError, match="holds 1 groups of SAEs, this run has 2"):
        Training(
            [oracle.make_sae(0), oracle.make_sae(1, d_sae=4)], RandomSource(), options
        ).load_state(states[0])


def test_a_source_without_a_place_cannot_be_checkpointed() -> None:
    training = Training(
        [oracle.make_sae()], iter(oracle.recorded_batches(2)), oracle.options_for(2)
    )
    with pytest.raises(TypeError, match="cannot be resumed"):
        training.state()


def test_ctrl_c_leaves_the_saes_at_the_last_finished_step() -> None:
    batches = oracle.recorded_batches(200)
    n_seen = 0

    def source() -> Iterator[Tensor]:
        nonlocal n_seen
        for i, batch in enumerate(batches):
            if i == 100:
                raise KeyboardInterrupt
            n_seen = i + 1
            yield batch

    saes = [oracle.make_sae(seed=i) for i in range(3)]
    reference = copy.deepcopy(saes)
    training = Training(saes, source(), oracle.options_for(200))
    with pytest.raises(KeyboardInterrupt):
        training.run()

    n_steps = training.n_samples // oracle.BATCH
    assert 0 < n_steps <= n_seen
    train_saes(reference, iter(batches), oracle.options_for(n_steps))
    for sae, expected in zip(saes, reference, strict=True):
        for name, value in oracle.parameters(sae).items():
            assert torch.equal(value, oracle.parameters(expected)[name]), name


@pytest.fixture
def _terminated_by_sigterm() -> Iterator[None]:
    """SIGTERM as the command line takes it."""
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_terminated_by_sigterm")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_the_run_can_be_taken_up(signum: signal.Signals) -> None:
    handler = signal.getsignal(signum)

    class Signalling(RandomSource):
        n_drawn = 0

        def __next__(self) -> Tensor:
            self.n_drawn += 1
            if self.n_drawn == 60:
                signal.raise_signal(signum)
            return super().__next__()

    options = oracle.options_for(120)
    training = Training(make_saes(), Signalling(), options)
    with pytest.raises(KeyboardInterrupt) as stopped:
        training.run()
    assert (stopped.type is Terminated) == (signum == signal.SIGTERM)
    assert 0 < training.n_samples < options.total_training_samples
    assert signal.getsignal(signum) is handler
    assert_taken_up_it_ends_as_if_never_stopped(training)


def test_two_signals_interrupt_a_source_that_hangs_and_lose_nothing() -> None:
    class Hanging(RandomSource):
        n_drawn = 0

        def __next__(self) -> Tensor:
            self.n_drawn += 1
            if self.n_drawn == 60:
                signal.raise_signal(signal.SIGINT)  # heard, and kept for later
                signal.raise_signal(signal.SIGINT)  # the user means it
                pytest.fail("the second signal did not interrupt")
            return super().__next__()

    options = oracle.options_for(120)
    training = Training(make_saes(), Hanging(), options)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert 0 < training.n_samples < options.total_training_samples
    assert_taken_up_it_ends_as_if_never_stopped(training)


def test_signals_while_the_saes_are_in_a_step_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many: otherwise SAEs would be left at different steps."""
    original = PendingBlock.wait
    n_finished = 0

    def signalling(self: PendingBlock) -> None:
        nonlocal n_finished
        n_finished += 1
        if n_finished == 5:
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
        original(self)

    options = oracle.options_for(200)
    training = Training(make_saes(), RandomSource(), options)
    with monkeypatch.context() as patch:
        patch.setattr(PendingBlock, "wait", signalling)
        with pytest.raises(KeyboardInterrupt):
            training.run()
    assert_taken_up_it_ends_as_if_never_stopped(training)


def test_a_source_may_fill_the_same_tensor_again_and_again() -> None:
    batches = oracle.recorded_batches(60)

    def one_buffer() -> Iterator[Tensor]:
        buffer = torch.empty_like(batches[0])
        for batch in batches:
            buffer.copy_(batch)
            yield buffer

    expected, sae = oracle.make_sae(), oracle.make_sae()
    train_saes([expected], iter(batches), oracle.options_for(60))
    train_saes([sae], one_buffer(), oracle.options_for(60))
    for name, value in oracle.parameters(sae).items():
        assert torch.equal(value, oracle.parameters(expected)[name]), name


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later, as on a GPU"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_batch_is_named_and_touches_nothing(
    monkeypatch: pytest.MonkeyPatch, bad: float, later: bool
) -> None:
    monkeypatch.setattr(batches_module, "checks_later", lambda _: later)
    batches = oracle.recorded_batches(40)
    reference, sae = oracle.make_sae(), oracle.make_sae()
    train_saes([reference], iter(batches), oracle.options_for(23))
    batches[23][5, 3] = bad
    with pytest.raises(ValueError, match=rf"batch 23 .* {bad} at sample 5, dimension 3"):
        train_saes([sae], iter(batches), oracle.options_for(40))
    for name, value in oracle.parameters(sae).items():
        assert torch.equal(value, oracle.parameters(reference)[name]), name


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later, as on a GPU"])
def test_a_batch_that_is_large_but_finite_is_accepted(
    monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    monkeypatch.setattr(batches_module, "checks_later", lambda _: later)
    batches = oracle.recorded_batches(3)
    batches[1][:2] = 3e38  # its sum overflows
    train_saes([oracle.make_sae()], iter(batches), oracle.options_for(3))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: iter(oracle.recorded_batches(7)), ValueError, "ran out after 7 batches"),
        (lambda: iter([torch.zeros(4, 5)]), ValueError, r"shape \[4, 5\].*d_in = 12"),
        (lambda: iter([torch.zeros(12)]), ValueError, r"shape \[12\]"),
        (lambda: iter([torch.zeros(0, 12)]), ValueError, r"shape \[0, 12\]"),
        (lambda: iter([[1.0, 2.0]]), TypeError, "batch 0 of the source is a list"),
    ],
)
def test_a_source_that_cannot_be_trained_on(
    source: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_saes([oracle.make_sae()], source(), oracle.options_for(40))


def test_an_exception_of_the_source_reaches_the_caller() -> None:
    def source() -> Iterator[Tensor]:
        yield from oracle.recorded_batches(5)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_saes([oracle.make_sae()], source(), oracle.options_for(40))


def test_activations_that_are_all_zero_cannot_be_normalised() -> None:
    sae = oracle.make_sae(normalize_activations="expected_average_only_in")
    zeros = itertools.repeat(torch.zeros(oracle.BATCH, oracle.D_IN))
    with pytest.raises(ValueError, match="all zero"):
        train_saes([sae], zeros, oracle.options_for(5))


def test_saes_that_cannot_share_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, options = oracle.recorded_batches(3), oracle.options_for(3)
    sae = oracle.make_sae()
    with pytest.raises(ValueError, match="no SAEs"):
        train_saes([], iter(batches), options)
    with pytest.raises(ValueError, match=r"saes\[1\] and saes\[0\] are the same object"):
        train_saes([sae, sae], iter(batches), options)
    with pytest.raises(ValueError, match=r"saes\[1\] has d_in 7, saes\[0\] has 12"):
        train_saes([sae, oracle.make_sae(d_in=7)], iter(batches), options)
    with pytest.raises(ValueError, match=r"saes\[0\] is on the meta device"):
        train_saes([oracle.make_sae().to("meta")], iter(batches), options)
    with monkeypatch.context() as patch:
        # While tests run, the annotation alone would refuse it.
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        with pytest.raises(TypeError, match=r"source is a list, not an iterator; give iter"):
            train_saes([oracle.make_sae()], batches, options)  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        train_saes([oracle.make_sae()], iter(batches), options)
    with pytest.raises(TypeError, match=r"saes\[0\] is a Linear"):
        train_saes([torch.nn.Linear(2, 2)], iter(batches), options)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("field", "value"), [("l0_coefficient", -1.0), ("jumprelu_bandwidth", math.nan)]
)
@pytest.mark.parametrize("is_stacked", [True, False])
def test_what_nobody_can_train_with_is_refused(field: str, value: float, is_stacked: bool) -> None:
    saes = [oracle.make_sae(), oracle.make_sae()]
    setattr(saes[1].cfg, field, value)
    if not is_stacked:
        saes[1] = MyJumpReLU(saes[1].cfg)
    with pytest.raises(ValueError, match=rf"saes\[1\], a \w+, has {field} = {value}"):
        train_saes(saes, iter([]), oracle.options_for(3))


def test_what_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    options = oracle.options_for(1, train_batch_size_samples=10**12)
    with pytest.raises(ValueError, match="train_batch_size_samples = 1000000000000"):
        train_saes([oracle.make_sae()], iter([]), options)
    monkeypatch.setattr(memory, "_available", lambda _: 5000)
    one, other = oracle.make_sae(), oracle.make_sae()
    Training([one], iter([]), oracle.options_for(1, train_batch_size_samples=2))
    with pytest.raises(ValueError, match=r"2 SAEs .* d_sae = 9"):
        Training([one, other], iter([]), oracle.options_for(1, train_batch_size_samples=2))


def test_what_takes_the_steps_of_each_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(*saes: TrainingSAE[Any], **changes: Any) -> Sequence[str]:
        return Training(saes, iter([]), oracle.options_for(1, **changes)).steps

    built = "pytorch" if compiled_step.kernels() is None else "compiled"
    saes = [MyJumpReLU(oracle.make_sae().cfg), oracle.make_sae(), oracle.make_sae(d_sae=4)]
    assert steps(*saes) == ["sae_lens", built, built]
    assert steps(*reversed(saes), compiled=False) == ["pytorch", "pytorch", "sae_lens"]
    monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    assert steps(*saes) == ["sae_lens", "pytorch", "pytorch"]


class MyBatchTopK(BatchTopKTrainingSAE):
    """A user's own variant, which the engine cannot know."""


def my_batch_top_k() -> MyBatchTopK:
    config = BatchTopKTrainingSAEConfig(d_in=oracle.D_IN, d_sae=oracle.D_SAE, k=3.0)
    return oracle.seeded(MyBatchTopK(config), seed=0)


def another_activation() -> BatchTopKTrainingSAE:
    config = BatchTopKTrainingSAEConfig(d_in=oracle.D_IN, d_sae=oracle.D_SAE, k=3.0)
    sae = oracle.seeded(BatchTopKTrainingSAE(config), seed=0)
    sae.activation_fn = torch.nn.ReLU()
    return sae


class MyJumpReLU(JumpReLUTrainingSAE):
    """A user's own variant, which the engine cannot know."""


class MyStandard(StandardTrainingSAE):
    """Another."""


def my_standard(seed: int, **changes: Any) -> MyStandard:
    torch.manual_seed(seed)
    settings = {"d_in": oracle.D_IN, "d_sae": oracle.D_SAE, "l1_coefficient": 0.1, **changes}
    return MyStandard(StandardTrainingSAEConfig(**settings))


def frozen() -> TrainingSAE[Any]:
    sae = oracle.make_sae()
    sae.b_dec.requires_grad_(False)
    return sae


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (my_batch_top_k, "does not know MyBatchTopK"),
        (another_activation, "its activation_fn was replaced"),
        (
            lambda: my_standard(0, normalize_activations="expected_average_only_in"),
            "does not know MyStandard",
        ),
        (lambda: my_standard(0, normalize_activations="covariance_whitening"), "does not know"),
        (lambda: MyJumpReLU(oracle.make_sae().cfg), "does not know MyJumpReLU"),
        (
            lambda: oracle.make_sae(normalize_activations="layer_norm"),
            "normalize_activations='layer_norm'",
        ),
        (lambda: oracle.make_sae(dtype="bfloat16"), "float32 only, not bfloat16"),
        (lambda: oracle.make_sae().double(), "float32 only, not float64"),
        (frozen, "frozen"),
    ],
)
def test_what_the_engine_does_not_stack_is_trained_by_sae_lens(
    make: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = oracle.options_for(40)
    batches = oracle.recorded_batches(50)
    neighbour, other = oracle.make_sae(seed=5), make()
    expected = oracle.parameters(oracle.train_with_sae_lens(other, batches, options))
    alone = oracle.parameters(oracle.train_with_sae_lens(neighbour, batches, options))

    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        log = train_saes([neighbour, other], iter(batches), options)

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert reason in lines[0]
    assert "sae_lens' own trainer" in lines[0]
    assert [sae_log.trained_by for sae_log in log.saes] == ["engine", "sae_lens"]
    assert log.saes[1].steps == [0, 39]
    for name, value in oracle.parameters(other).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)
    for name, value in oracle.parameters(neighbour).items():
        torch.testing.assert_close(value, alone[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["jumprelu", "batchtopk"])
def test_both_trainers_log_the_same_metrics(kind: str) -> None:
    options = oracle.options_for(41, log_every=10, dead_feature_window=5)
    theirs: TrainingSAE[Any]
    if kind == "batchtopk":
        theirs = my_batch_top_k()
        ours: TrainingSAE[Any] = BatchTopKTrainingSAE(copy.deepcopy(theirs.cfg))
    else:
        theirs = MyJumpReLU(oracle.make_sae(l0_warm_up_steps=20).cfg)
        ours = oracle.make_sae(l0_warm_up_steps=20)
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.get_parameter("b_enc")[:2] = -5.0  # two latents that never fire
    ours.load_state_dict(theirs.state_dict())
    engine, lens = train_saes([ours, theirs], iter(oracle.recorded_batches(41)), options).saes
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
    sae = oracle.make_sae(l0_warm_up_steps=20)
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


def test_pytorchs_threads_are_as_before_whatever_happens() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_saes([oracle.make_sae()], iter(oracle.recorded_batches(3)), oracle.options_for(3))
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="ran out"):
            train_saes([oracle.make_sae()], iter([]), oracle.options_for(3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
