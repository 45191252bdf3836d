"""An SAE's result is its own: not its neighbours', not the threads', not the order's."""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import JumpReLUTrainingSAE

from sparse_but_wrong.training import loop, products
from sparse_but_wrong.training.loop import Training, train_saes
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


def test_the_log_says_which_diverged_and_when(caplog: pytest.LogCaptureFixture) -> None:
    fine, doomed = oracle.make_sae(seed=0), oracle.make_sae(seed=1)
    with torch.no_grad():
        doomed.W_dec.mul_(1e30)
    log = train_saes([fine, doomed], iter(oracle.recorded_batches(N_STEPS)), OPTIONS)
    assert log.saes[0].diverged_at is None
    assert log.saes[1].diverged_at == 0
    (line,) = caplog.messages
    assert "saes[1] (JumpReLUTrainingSAE, l0_coefficient = 0.3) diverged" in line

    caplog.clear()  # where the SAEs have names
    Training([doomed], iter(oracle.recorded_batches(N_STEPS)), OPTIONS, names=["SAE 'c_3'"]).run()
    (line,) = caplog.messages
    assert line.startswith("SAE 'c_3' (Jump")


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


def in_chunks(monkeypatch: pytest.MonkeyPatch, n_chunks: int) -> None:
    monkeypatch.setattr(loop, "_count_chunks", lambda *_: n_chunks)


@pytest.mark.parametrize("batch", [64, 37])
def test_how_a_stack_is_cut_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Odd sizes too: there kernels' vector loops end in scalar ones, which round otherwise."""
    options = {"pre_act_loss_coefficient": 0.05, "jumprelu_ste_to_input": True}
    saes = [
        oracle.make_sae(seed=i, l0_coefficient=0.1 + 0.2 * i, d_sae=7, **options) for i in range(5)
    ]
    with torch.no_grad():
        saes[3].W_dec.mul_(1e30)  # one that diverges
    batches = [b[:batch] for b in oracle.recorded_batches(N_STEPS + 10)]
    ends = []
    for n_chunks in (5, 1, 2):
        in_chunks(monkeypatch, n_chunks)
        copies = copy.deepcopy(saes)
        train_saes(copies, iter(batches), oracle.options_for(30, dead_feature_window=5))
        ends.append([oracle.parameters(sae) for sae in copies])
    for other in ends[1:]:
        for i in (0, 1, 2, 4):
            assert_identical(ends[0][i], other[i])
    assert bool(torch.isfinite(ends[0][4]["W_dec"]).all())


def test_batched_calls_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, run on the CPU: equal to float32 tolerance, and as independent."""
    saes = [oracle.make_sae(seed=i, l0_coefficient=0.1 + 0.2 * i) for i in range(4)]
    with torch.no_grad():
        saes[3].W_dec.mul_(1e30)
    one_by_one = trained(saes)
    in_chunks(monkeypatch, 1)
    monkeypatch.setattr(products, "one_by_one", lambda _: False)
    batched = trained(saes)
    for a, b in zip(one_by_one[:3], batched[:3], strict=True):
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, atol=1e-4, rtol=1e-4)
