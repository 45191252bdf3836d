"""Steps by PyTorch's operations: replayed as on a GPU, and in halves where memory runs out."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUTrainingSAE
from torch import Tensor

from sparse_but_wrong.training import loop, products, torch_stepper
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.memory import is_out_of_memory
from tests.training import oracle

N_STEPS = 40


def four_saes() -> list[JumpReLUTrainingSAE]:
    options = {"pre_act_loss_coefficient": 0.05}
    return [oracle.make_sae(seed=i, l0_coefficient=0.1 + 0.2 * i, **options) for i in range(4)]


def trained(saes: list[JumpReLUTrainingSAE]) -> tuple[list[dict[str, Tensor]], list[Any]]:
    copies = copy.deepcopy(saes)
    options = oracle.options_for(N_STEPS, compiled=False, log_every=7, dead_feature_window=5)
    log = train_saes(copies, iter(oracle.recorded_batches(N_STEPS)), options)
    return [oracle.parameters(sae) for sae in copies], [sae_log.columns for sae_log in log.saes]


def test_replayed_steps_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the launching is done as on a GPU: fixed places, batched calls, one chunk."""
    monkeypatch.setattr(loop, "_count_chunks", lambda *_: 1)
    monkeypatch.setattr(products, "one_by_one", lambda _: False)
    plain, plain_logs = trained(four_saes())
    taken = []
    replay = torch_stepper.StaticStep.__call__
    monkeypatch.setattr(
        torch_stepper.StaticStep,
        "__call__",
        lambda self, x, inputs: (taken.append(inputs.step), replay(self, x, inputs))[1],
    )
    monkeypatch.setattr(torch_stepper, "replays", lambda _: True)
    replayed, replayed_logs = trained(four_saes())

    assert taken == [s for s in range(N_STEPS) if s % 7 and s != N_STEPS - 1]
    for mine, wanted in zip(replayed, plain, strict=True):
        for name, value in mine.items():
            # Adam's step size is a float32 tensor there, a Python number here.
            torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-5)
    for mine, wanted in zip(replayed_logs, plain_logs, strict=True):
        assert mine["l0"] == wanted["l0"]
        assert mine["dead_latents"] == wanted["dead_latents"]
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


@pytest.mark.parametrize("fits", [1, 2])
def test_out_of_memory_halves_the_chunk_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fits: int
) -> None:
    monkeypatch.setattr(loop, "_count_chunks", lambda *_: 1)
    plain, plain_logs = trained(four_saes())
    step, calls = JumpReLU.step, []

    def hungry(self: JumpReLU, *args: Any) -> Tensor:
        calls.append(self.n_saes)
        if len(calls) > 10 and self.n_saes > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *args)

    monkeypatch.setattr(JumpReLU, "step", hungry)
    with caplog.at_level(logging.WARNING):
        halved, halved_logs = trained(four_saes())

    assert calls[:11] == [4] * 11
    assert calls[-1] == fits
    for mine, wanted in zip(halved, plain, strict=True):
        for name, value in mine.items():
            assert torch.equal(value, wanted[name]), name
    assert halved_logs == plain_logs
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("4 SAEs at once do not fit in the memory of cpu; going on with 2 and")
    assert len(said) == {2: 1, 1: 3}[fits]


def test_one_sae_that_does_not_fit_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hungry(*_: Any) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(JumpReLU, "step", hungry)
    saes = four_saes()
    before = oracle.parameters(saes[0])
    options = oracle.options_for(5, compiled=False)
    with pytest.raises(MemoryError, match=r"train even one SAE with d_in 12 and d_sae 9"):
        train_saes(saes, iter(oracle.recorded_batches(5)), options)
    for name, value in oracle.parameters(saes[0]).items():
        assert torch.equal(value, before[name])


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
