"""The end of a run says whether L0 is where the coefficient puts it."""

from __future__ import annotations

import logging

import pytest
import torch

from sparse_but_wrong.training.architectures.penalty import JumpReLU
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.saturation import ThresholdState, threshold_state
from sparse_but_wrong.training.stack import Stack
from tests.training import oracle


def notes(n_steps: int, lr: float) -> list[str | None]:
    saes = [oracle.make_sae(i, l0_coefficient=c) for i, c in enumerate((0.05, 0.3, 1000.0))]
    options = oracle.options_for(n_steps, lr=lr)
    return [log.note for log in train_saes(saes, oracle.Batches(100), options).saes]


def test_runs_that_end_well_end_early_and_are_past_their_reach(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Thresholds climb by about 1 here before they are where they belong.
    assert notes(900, lr=1e-4) == [None] * 3, "too early to tell"
    early, late = notes(1100, lr=2e-4), notes(2000, lr=1e-3)
    assert early[0] is not None
    assert "Train longer, raise lr" in early[0]
    assert late[:2] == [None, None]
    for note in (early[2], late[2]):
        assert note is not None
        assert "Lower the coefficient, or set a TargetL0." in note
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any(line.startswith("saes[0] (Jump") and line.endswith(early[0]) for line in said)
    assert len(said) == sum(note is not None for note in early + late)


@pytest.mark.parametrize(
    ("drift", "share", "word"),
    [
        (0.2, 0.45, None),
        (-0.2, 3.0, None),
        (0.8, 0.5, "stopped early: the thresholds were still rising at 0.8 lr"),
        (-0.9, 0.5, "stopped early: the thresholds were still falling at 0.9 lr"),
        (1.3, 0.1, "saturated: at the coefficient 7 on the thresholds its gradient is 10 times"),
    ],
)
def test_what_is_said(drift: float, share: float, word: str | None) -> None:
    note = ThresholdState(drift=drift, reconstruction_share=share, l0=8.6).note(7.0)
    assert note is None if word is None else note is not None and note.startswith(word)


def test_drift_and_share_are_what_they_are_called() -> None:
    """Against autograd's gradients, and the motion of the thresholds under Adam itself."""
    sae = oracle.make_sae(l0_coefficient=0.7)
    x = oracle.recorded_batches(1)[0]
    stack = Stack.of([sae], JumpReLU.parameters)
    threshold = stack.views(stack.params)["threshold"][0].requires_grad_()
    adam = torch.optim.Adam([threshold], lr=1e-3)
    lr, n_steps = 1e-3, 50
    g = torch.Generator().manual_seed(0)
    before = torch.empty(0)
    for _ in range(n_steps):
        before = threshold.detach().clone()
        threshold.grad = torch.randn(threshold.shape, generator=g) - 0.5
        adam.step()
    moved = (threshold.detach() - before).mean() / lr
    for memory, name in ((stack.exp_avg, "exp_avg"), (stack.exp_avg_sq, "exp_avg_sq")):
        stack.views(memory)["threshold"][0] = adam.state[threshold][name]
    sae.threshold.data.copy_(threshold.detach())

    state = threshold_state(sae.cfg, stack, x, 0.7, oracle.options_for(n_steps), n_steps)

    def gradient(coefficient: float) -> torch.Tensor:
        sae.zero_grad()
        oracle.loss_of(sae, x, coefficient)
        assert sae.threshold.grad is not None
        return sae.threshold.grad.clone()

    reconstruction = gradient(0.0)
    share = reconstruction.norm() / (gradient(0.7) - reconstruction).norm()
    assert state.drift == pytest.approx(float(moved), rel=1e-3)
    assert state.reconstruction_share == pytest.approx(float(share), rel=1e-3)
