"""What has to hold of every architecture that the engine steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from sparse_but_wrong.training import loop, products
from sparse_but_wrong.training.architectures.architecture import Architecture
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.stack import ParameterLayout, stack_parameters
from tests.training import oracle

SAEs = Sequence[TrainingSAE[Any]]
N_STEPS = 300


def assert_gradients_are_autograds(
    architecture: type[Architecture], saes: SAEs, coefficients: Sequence[float], n_fired_min: int
) -> None:
    """One step's gradients, losses and firings of a stack are those of sae_lens' autograd."""
    x = oracle.recorded_batches(1)[0]
    cfg, n = saes[0].cfg, len(saes)
    dead = torch.zeros(n, cfg.d_sae, dtype=torch.bool)
    dead[:, ::3] = True
    layout = ParameterLayout(architecture.parameter_shapes(cfg.d_in, cfg.d_sae))
    assert set(layout.shapes) == {name for name, _ in saes[0].named_parameters()}
    params = layout.views(stack_parameters(saes, layout))
    grads = layout.views(torch.full((n, layout.size), torch.nan))
    stepped = architecture([sae.cfg for sae in saes], torch.device("cpu"))
    workspace = stepped.workspace(x.shape[0])
    for buffer in vars(workspace).values():
        if isinstance(buffer, torch.Tensor):
            buffer.fill_(torch.nan)  # whatever a buffer held before must not matter
    knob = torch.tensor(coefficients).unsqueeze(1)
    fired = stepped.step(x, params, {}, grads, knob, dead, workspace)
    losses = stepped.losses(x, params, knob, dead, workspace)

    for i, sae in enumerate(saes):
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={architecture.knob: coefficients[i]},
                dead_neuron_mask=dead[i],
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        output.loss.backward()
        assert fired[i].tolist() == output.feature_acts.bool().sum(0).tolist()
        assert fired[i].sum() >= n_fired_min
        assert set(losses) == set(output.losses)
        for name, value in output.losses.items():
            torch.testing.assert_close(losses[name][i], value.detach(), rtol=1e-5, atol=1e-6)
        for name, parameter in sae.named_parameters():
            assert parameter.grad is not None
            gradient = grads[name][i] * (2 / x.shape[0])
            scale = parameter.grad.abs().max()
            assert scale > 0, f"{name} has no gradient, so this compares nothing"
            torch.testing.assert_close(
                gradient, parameter.grad, rtol=1e-4, atol=2e-6 * max(1.0, scale.item())
            )


def assert_parity(saes: SAEs, n_steps: int = N_STEPS, min_move: float = 1e-2) -> None:
    """The engine brings SAEs to where sae_lens' trainer would, metadata included."""
    run = oracle.options_for(n_steps, dead_feature_window=20, feature_sampling_window=70)
    batches = oracle.recorded_batches(n_steps + 10)
    starts = [oracle.parameters(sae) for sae in saes]
    expected = [oracle.train_with_sae_lens(sae, batches, run) for sae in saes]

    log = train_saes(saes, iter(batches), run)

    for sae, start, want, sae_log in zip(saes, starts, expected, log.saes, strict=True):
        assert sae_log.trained_by == "engine"
        wanted = oracle.parameters(want)
        for name, value in oracle.parameters(sae).items():
            moved = (wanted[name] - start[name]).abs().max()
            assert moved > min_move, f"{name} did not train, so this compares nothing"
            # Adam divides by the gradient's own size, so rounding (1e-7 a step) is not damped but
            # carried along the steps of up to lr = 1e-3 each; 1e-4 is a tenth of one step.
            torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-4)
        assert sae.cfg.normalize_activations == want.cfg.normalize_activations == "none"
        assert sae.cfg.metadata.l0 == pytest.approx(want.cfg.metadata.l0, rel=1e-3)
        assert sae.cfg.metadata.num_dead_features == want.cfg.metadata.num_dead_features


def assert_independent(saes: SAEs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a diverging neighbour, nor how a stack is cut, changes an SAE by one bit.

    Batches of 37 samples and the odd sizes of the SAEs given: there kernels' vector loops end in
    scalar ones, which round otherwise.
    """
    doomed = copy.deepcopy(saes[1])
    with torch.no_grad():
        doomed.W_dec.mul_(1e30)  # overflows in the first step
    batches = [batch[:37] for batch in oracle.recorded_batches(70)]
    stack = [saes[0], doomed, *saes[1:]]

    def trained(some: SAEs, n_chunks: int) -> list[dict[str, torch.Tensor]]:
        monkeypatch.setattr(loop, "_count_chunks", lambda *_: n_chunks)
        copies = [copy.deepcopy(sae) for sae in some]
        log = train_saes(copies, iter(batches), oracle.options_for(30, dead_feature_window=5))
        assert {sae_log.trained_by for sae_log in log.saes} == {"engine"}
        return [oracle.parameters(sae) for sae in copies]

    alone = [trained([sae], 1)[0] for sae in stack]
    assert not bool(torch.isfinite(alone[1]["W_dec"]).all()), "the doomed SAE did not diverge"
    for n_chunks in (1, 2, len(stack)):
        together = trained(stack, n_chunks)
        for i in (0, *range(2, len(stack))):
            for name, value in alone[i].items():
                assert torch.equal(together[i][name], value), (n_chunks, i, name)

    # What a GPU does, run on the CPU: equal to float32 tolerance, and as independent.
    monkeypatch.setattr(products, "one_by_one", lambda _: False)
    batched = trained(stack, 1)
    for i in (0, *range(2, len(stack))):
        for name, value in alone[i].items():
            torch.testing.assert_close(batched[i][name], value, atol=1e-4, rtol=1e-4)
