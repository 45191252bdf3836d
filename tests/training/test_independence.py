"""An SAE's result is its own: not its neighbours', not the threads', not the order's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sparse_but_wrong.training import compiled_step, torch_step
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.loop import Training, train_saes
from tests.training import oracle
from tests.training.oracle import DEFAULTS, NORMALISED, assert_close, assert_identical, make

N_STEPS = 40
DOOMED = 3


def stack(architecture: str, **options: Any) -> list[Any]:
    """Five of one stack, some with dead latents; one overflows in the first step."""
    saes = oracle.unlike_saes(architecture, 5, **options)
    with torch.no_grad():
        saes[DOOMED].W_dec.mul_(1e30)
    return saes


def trained(
    saes: list[Any], batch: int = oracle.BATCH, **changes: Any
) -> tuple[list[Any], list[SAELog]]:
    copies = copy.deepcopy(saes)
    batches = [b[:batch] for b in oracle.recorded_batches(N_STEPS + 30)]
    options = oracle.options_for(N_STEPS, dead_feature_window=5, **changes)
    log = train_saes(copies, iter(batches), options)
    assert {sae_log.trained_by for sae_log in log.saes} == {"engine"}
    return copies, log.saes


@pytest.mark.parametrize("batch", [64, 37])
@pytest.mark.parametrize(
    ("architecture", "step"),
    [(name, step) for name in DEFAULTS for step in oracle.steps_of(name)],
    indirect=["step"],
)
def test_company_order_and_threads_make_no_difference(
    architecture: str,
    batch: int,
    step: str,  # noqa: ARG001
) -> None:
    """Odd sizes too: there kernels' vector loops end in scalar ones, which round otherwise."""
    options: dict[str, Any] = {"d_sae": 7} if batch == 37 else {}
    if architecture == "matryoshka_batchtopk":
        options |= {"matryoshka_widths": [3, options.get("d_sae", oracle.D_SAE)]}
        options |= {"use_matryoshka_aux_loss": True}
    elif architecture == "jumprelu" and batch == 37:
        options |= {"pre_act_loss_coefficient": 0.05, "jumprelu_ste_to_input": True}
    elif architecture == "standard" and batch == 37:
        options |= {"lp_norm": 1.7}
    saes = stack(architecture, **options)
    alone = [trained([sae], batch)[0][0] for sae in saes]
    assert not bool(torch.isfinite(alone[DOOMED].W_dec).all()), "the doomed SAE did not diverge"
    for threads in (1, 3):
        forward, _ = trained(saes, batch, threads=threads)
        backward = trained(saes[::-1], batch, threads=threads)[0][::-1]
        for i in (0, 1, 2, 4):
            assert_identical(alone[i], forward[i])
            assert_identical(alone[i], backward[i])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("architecture", DEFAULTS)
def test_as_on_a_gpu(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk, replayed, without a look: equal to float32 tolerance, and as independent."""
    saes = stack(architecture)
    taken = []
    replay = torch_step._ReplayedStep.__call__
    monkeypatch.setattr(
        torch_step._ReplayedStep,
        "__call__",
        lambda self, x, inputs: (taken.append(inputs.step), replay(self, x, inputs))[1],
    )
    replayed, logs = trained(saes, log_every=7)
    assert taken == [s for s in range(N_STEPS) if s % 7 and s != N_STEPS - 1]
    monkeypatch.undo()
    monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    one_by_one, expected = trained(saes, log_every=7)
    for i in (0, 1, 2, 4):
        assert_close(replayed[i], one_by_one[i])
        for name in ("l0", "dead_latents"):
            assert logs[i].columns[name] == expected[i].columns[name]
        assert logs[i].columns["loss"] == pytest.approx(expected[i].columns["loss"], rel=1e-4)


@pytest.mark.usefixtures("step")
def test_saes_of_several_stacks_and_scales() -> None:
    saes = [
        make("jumprelu", 0, **NORMALISED),
        make("jumprelu", 1, **NORMALISED, l0_coefficient=2.0),
        make("jumprelu", 3, d_sae=21),
        make("gated", 4),
    ]
    for sae, together in zip(saes, trained(saes)[0], strict=True):
        assert_identical(together, trained([sae])[0][0])


@pytest.mark.usefixtures("step")
def test_the_log_says_which_diverged_and_when(caplog: pytest.LogCaptureFixture) -> None:
    fine, doomed = oracle.make_sae(seed=0), oracle.make_sae(seed=1)
    with torch.no_grad():
        doomed.W_dec.mul_(1e30)
    _, logs = trained([fine, doomed])
    assert [sae_log.diverged_at for sae_log in logs] == [None, 0]
    (line,) = caplog.messages
    assert "saes[1] (JumpReLUTrainingSAE, l0_coefficient = 0.3) diverged" in line

    caplog.clear()  # where the SAEs have names
    options = oracle.options_for(N_STEPS)
    Training([doomed], oracle.Batches(), options, names=["SAE 'c_3'"]).run()
    (line,) = caplog.messages
    assert line.startswith("SAE 'c_3' (Jump")
