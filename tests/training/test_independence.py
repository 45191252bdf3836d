"""An SAE's result is its own: not its neighbours', not the threads', not the order's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.loop import Training, train_saes
from tests.training import oracle
from tests.training.saes import (
    DEFAULTS,
    assert_close,
    assert_identical,
    make_sae,
    steps_of,
    unlike_saes,
)

N_STEPS = 60
DOOMED = 3


def stack(architecture: str, **options: Any) -> list[Any]:
    """Five of one stack, some with dead latents; one overflows in the first step."""
    saes = unlike_saes(architecture, 5, **options)
    with torch.no_grad():
        saes[DOOMED].W_dec.mul_(1e30)
    return saes


def trained(saes: list[Any], batch: int = oracle.BATCH, **changes: Any) -> list[Any]:
    copies = copy.deepcopy(saes)
    batches = [b[:batch] for b in oracle.recorded_batches(N_STEPS + 10)]
    options = oracle.options_for(40, dead_feature_window=5, **changes)
    log = train_saes(copies, iter(batches), options)
    assert {sae_log.trained_by for sae_log in log.saes} == {"engine"}
    return copies


@pytest.mark.parametrize("batch", [64, 37])
@pytest.mark.parametrize(
    ("architecture", "step"),
    [(name, step) for name in DEFAULTS for step in steps_of(name)],
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
    alone = [trained([sae], batch)[0] for sae in saes]
    assert not bool(torch.isfinite(alone[DOOMED].W_dec).all()), "the doomed SAE did not diverge"
    for threads in (1, 3):
        forward = trained(saes, batch, threads=threads)
        backward = trained(saes[::-1], batch, threads=threads)[::-1]
        for i in (0, 1, 2, 4):
            assert_identical(alone[i], forward[i])
            assert_identical(alone[i], backward[i])


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("architecture", DEFAULTS)
def test_as_on_a_gpu(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk, replayed, without a look: equal to float32 tolerance, and as independent."""
    saes = stack(architecture)
    replayed = trained(saes, log_every=7)
    monkeypatch.undo()
    monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    one_by_one = trained(saes, log_every=7)
    for i in (0, 1, 2, 4):
        assert_close(replayed[i], one_by_one[i])


def test_saes_of_several_stacks_and_scales(step: str) -> None:  # noqa: ARG001
    normalised = "expected_average_only_in"
    saes = [
        make_sae("jumprelu", 0, normalize_activations=normalised),
        make_sae("jumprelu", 1, normalize_activations=normalised, l0_coefficient=2.0),
        make_sae("jumprelu", 3, d_sae=21),
        make_sae("gated", 4),
    ]
    for sae, together in zip(saes, trained(saes), strict=True):
        assert_identical(together, trained([sae])[0])


def test_the_log_says_which_diverged_and_when(
    step: str,  # noqa: ARG001
    caplog: pytest.LogCaptureFixture,
) -> None:
    fine, doomed = oracle.make_sae(seed=0), oracle.make_sae(seed=1)
    with torch.no_grad():
        doomed.W_dec.mul_(1e30)
    options = oracle.options_for(N_STEPS)
    log = train_saes([fine, doomed], iter(oracle.recorded_batches(N_STEPS)), options)
    assert [sae_log.diverged_at for sae_log in log.saes] == [None, 0]
    (line,) = caplog.messages
    assert "saes[1] (JumpReLUTrainingSAE, l0_coefficient = 0.3) diverged" in line

    caplog.clear()  # where the SAEs have names
    Training([doomed], iter(oracle.recorded_batches(N_STEPS)), options, names=["SAE 'c_3'"]).run()
    (line,) = caplog.messages
    assert line.startswith("SAE 'c_3' (Jump")


def test_the_same_seed_twice_gives_identical_weights(step: str) -> None:  # noqa: ARG001
    def run() -> Any:
        return trained([make_sae("jumprelu", 7), make_sae("jumprelu", 8)])[0]

    first, second = run(), run()
    assert_identical(first, second)
    assert not torch.equal(first.W_dec, trained([make_sae("jumprelu", 8)])[0].W_dec)
