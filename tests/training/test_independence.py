"""An SAE's result is its own: not its neighbours', not the threads', not the order's."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import JumpReLUTrainingSAE

from sparse_but_wrong.training.loop import train_saes
from tests.training import oracle

pytestmark = pytest.mark.usefixtures("kernels")

N_STEPS = 60
OPTIONS = oracle.options_for(N_STEPS, dead_feature_window=20)


def trained(saes: list[JumpReLUTrainingSAE], **changes: object) -> list[dict[str, torch.Tensor]]:
    copies = copy.deepcopy(saes)
    batches = oracle.recorded_batches(N_STEPS + 10)
    train_saes(copies, iter(batches), oracle.options_for(N_STEPS, **changes))
    return [oracle.parameters(sae) for sae in copies]


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_alone_and_beside_others_one_of_which_diverges() -> None:
    normalised = "expected_average_only_in"
    mine = oracle.make_sae(seed=0, normalize_activations=normalised)
    neighbour = oracle.make_sae(seed=1, normalize_activations=normalised, l0_coefficient=2.0)
    doomed = oracle.make_sae(seed=2, normalize_activations=normalised)
    with torch.no_grad():
        doomed.W_dec.mul_(1e30)  # overflows in the first step
    wider = oracle.make_sae(seed=3, d_sae=21)  # a stack of its own, and not normalised

    alone = trained([mine])[0]
    together = trained([neighbour, doomed, mine, wider])

    assert not bool(torch.isfinite(together[1]["W_dec"]).all()), "the doomed SAE did not diverge"
    assert_identical(together[2], alone)
    assert_identical(together[0], trained([neighbour])[0])
    assert_identical(together[3], trained([wider])[0])


def test_the_log_says_which_diverged_and_when() -> None:
    fine, doomed = oracle.make_sae(seed=0), oracle.make_sae(seed=1)
    with torch.no_grad():
        doomed.W_dec.mul_(1e30)
    log = train_saes([fine, doomed], iter(oracle.recorded_batches(N_STEPS)), OPTIONS)
    assert log.saes[0].diverged_at is None
    assert log.saes[1].diverged_at == 0


def test_order_and_threads_make_no_difference() -> None:
    saes = [oracle.make_sae(seed=i, l0_coefficient=0.1 + 0.2 * i) for i in range(5)]
    forward = trained(saes, threads=1)
    backward = trained(saes[::-1], threads=3)[::-1]
    for a, b in zip(forward, backward, strict=True):
        assert_identical(a, b)


def test_the_same_seed_twice_gives_identical_weights() -> None:
    def run() -> dict[str, torch.Tensor]:
        return trained([oracle.make_sae(seed=7), oracle.make_sae(seed=8)])[0]

    first, second = run(), run()
    assert_identical(first, second)
    assert not torch.equal(first["W_dec"], trained([oracle.make_sae(seed=8)])[0]["W_dec"])


def test_one_task_for_the_whole_stack_as_on_a_gpu(monkeypatch) -> None:
    """The chunking of a GPU, run on the CPU: equal to float32 tolerance, and as independent."""
    from sparse_but_wrong.training import stack_member

    saes = [oracle.make_sae(seed=i, l0_coefficient=0.1 + 0.2 * i) for i in range(4)]
    with torch.no_grad():
        saes[3].W_dec.mul_(1e30)
    one_by_one = trained(saes)
    original = stack_member.StackMember.__init__

    def whole_stack(self, stack, architecture, options, chunk_size) -> None:  # noqa: ARG001
        original(self, stack, architecture, options, len(stack))

    monkeypatch.setattr(stack_member.StackMember, "__init__", whole_stack)
    stacked = trained(saes)
    for a, b in zip(one_by_one[:3], stacked[:3], strict=True):
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, atol=1e-4, rtol=1e-4)
