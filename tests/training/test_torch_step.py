"""Steps by PyTorch's operations: replayed as on a GPU, and where memory runs out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sparse_but_wrong.training import torch_step
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.memory import is_out_of_memory
from tests.training import oracle
from tests.training.saes import assert_close, unlike_saes

N_STEPS = 40


def trained(saes: list[Any]) -> tuple[list[Any], list[Any]]:
    copies = copy.deepcopy(saes)
    options = oracle.options_for(N_STEPS, compiled=False, log_every=7, dead_feature_window=5)
    log = train_saes(copies, iter(oracle.recorded_batches(N_STEPS)), options)
    return copies, [sae_log.columns for sae_log in log.saes]


def test_replayed_steps_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = unlike_saes("jumprelu", 4, pre_act_loss_coefficient=0.05)
    plain, plain_logs = trained(saes)
    taken = []
    replay = torch_step._ReplayedStep.__call__
    monkeypatch.setattr(
        torch_step._ReplayedStep,
        "__call__",
        lambda self, x, inputs: (taken.append(inputs.step), replay(self, x, inputs))[1],
    )
    monkeypatch.setattr(torch_step, "is_gpu", lambda _: True)
    replayed, replayed_logs = trained(saes)

    assert taken == [s for s in range(N_STEPS) if s % 7 and s != N_STEPS - 1]
    for mine, wanted in zip(replayed, plain, strict=True):
        assert_close(mine, wanted)
    for mine, wanted in zip(replayed_logs, plain_logs, strict=True):
        assert mine["l0"] == wanted["l0"]
        assert mine["dead_latents"] == wanted["dead_latents"]
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


def test_an_sae_that_does_not_fit_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(JumpReLU, "forward", hungry)
    saes = unlike_saes("jumprelu")
    before = oracle.parameters(saes[0])
    options = oracle.options_for(5, compiled=False)
    with pytest.raises(MemoryError, match=r"d_in 12 and d_sae 9 .* lower train_batch_size_samples"):
        train_saes(saes, iter(oracle.recorded_batches(5)), options)
    for name, value in oracle.parameters(saes[0]).items():
        assert torch.equal(value, before[name])


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))
