"""What moves an SAE's sparsity while it trains: where it is refused, and k that moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sae_lens import (
    JumpReLUTrainingSAE,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
)

from sparse_but_wrong.training.controls import Control, KTransition, TargetL0
from sparse_but_wrong.training.loop import train_saes
from tests.training import oracle
from tests.training.saes import TOPK, make_sae

N_STEPS = 120


def k_at(step: int, transition: KTransition, final: float) -> float:
    """The line that k is to follow."""
    moved = min(max((step - transition.start_step) / transition.duration_steps, 0.0), 1.0)
    return transition.initial_k + moved * (final - transition.initial_k)


@pytest.mark.parametrize(
    ("name", "transition", "final"),
    [
        ("batchtopk", KTransition(initial_k=7.5, start_step=20, duration_steps=60), 2.2),
        ("batchtopk", KTransition(initial_k=1.0, start_step=0, duration_steps=N_STEPS - 1), 4),
        ("matryoshka_batchtopk", KTransition(initial_k=8.0, start_step=10, duration_steps=33), 2.6),
        # A whole k at every step, because sae_lens' TopK knows no other.
        ("topk", KTransition(initial_k=8.0, start_step=50, duration_steps=5), 3),
    ],
    ids=str,
)
def test_an_sae_ends_where_sae_lens_would_bring_it_with_k_set_before_every_step(
    name: str, transition: KTransition, final: float
) -> None:
    def set_k(sae: TopKTrainingSAE, step: int) -> None:
        k = k_at(step, transition, final)
        k = round(k) if name == "topk" else k
        sae.cfg.k = k  # type: ignore[assignment]
        sae.activation_fn.k = k  # type: ignore[union-attr]

    run = oracle.options_for(N_STEPS, dead_feature_window=10, log_every=1)
    batches = oracle.recorded_batches(N_STEPS)
    still = make_sae(name, seed=1, k=4)
    moving = make_sae(name, seed=0, k=final)
    expected = oracle.train_with_sae_lens(moving, batches, run, before_batch=set_k)
    still_expected = oracle.train_with_sae_lens(still, batches, run)

    log = train_saes([still, moving], iter(batches), run, controls=[None, transition])

    ks = [k_at(step, transition, final) for step in range(N_STEPS)]
    assert log.saes[1].columns["k"] == pytest.approx(ks, rel=1e-12)
    assert log.saes[0].columns["k"] == [4.0] * N_STEPS
    for k, l0 in zip(ks, log.saes[1].columns["l0"], strict=True):
        assert l0 <= k + 1e-9
    for sae, want in ((moving, expected), (still, still_expected)):
        for parameter, value in oracle.parameters(sae).items():
            torch.testing.assert_close(
                value, oracle.parameters(want)[parameter], atol=1e-4, rtol=1e-4
            )
    assert moving.cfg.k == final


def test_topk_keeps_every_k_between_over_the_batch() -> None:
    transition = KTransition(initial_k=6.0, start_step=0, duration_steps=40)
    sae = make_sae("topk", k=2)
    with torch.no_grad():
        sae.b_enc.fill_(50.0)  # everything is positive, so L0 is what k lets it be
        sae.W_dec.mul_(1e-3)
    log = train_saes(
        [sae],
        iter(oracle.recorded_batches(50)),
        oracle.options_for(50, log_every=1),
        controls=[transition],
    )
    ks = [k_at(step, transition, 2) for step in range(50)]
    expected = [math.floor(k * oracle.BATCH + 1e-9) / oracle.BATCH for k in ks]
    assert log.saes[0].columns["l0"] == pytest.approx(expected)
    assert len(set(expected)) > 30


def standard() -> StandardTrainingSAE:
    config = StandardTrainingSAEConfig(
        d_in=oracle.D_IN, d_sae=oracle.D_SAE, normalize_activations="layer_norm"
    )
    return StandardTrainingSAE(config)


class MyJumpReLU(JumpReLUTrainingSAE):
    """A user's own variant, which goes to sae_lens' trainer."""


MOVE = KTransition(initial_k=6.0, start_step=5, duration_steps=10)


@pytest.mark.parametrize(
    ("saes", "controls", "message"),
    [
        (["batchtopk", "topk"], [MOVE], r"1 controls for 2 SAEs; .* saes\[0\] to saes\[1\]"),
        (["batchtopk"], [], r"0 controls for 1 SAEs"),
        (
            ["batchtopk", oracle.make_sae],
            [MOVE, MOVE],
            r"saes\[1\], a JumpReLUTrainingSAE, has no k .* coefficient 'l0'; give it None or a",
        ),
        (
            ["batchtopk", lambda: MyJumpReLU(oracle.make_sae().cfg)],
            [MOVE, MOVE],
            r"saes\[1\], a MyJumpReLU, is trained by sae_lens' own trainer.*KTransition.*None",
        ),
        (
            [standard],
            [TargetL0(2.0)],
            r"saes\[0\], a StandardTrainingSAE, is trained by sae_lens' own trainer.*TargetL0",
        ),
        (
            ["topk", "batchtopk"],
            [None, TargetL0(2.0)],
            r"saes\[1\], a BatchTopKTrainingSAE, has a k and no coefficient .* as its k",
        ),
        (
            ["topk", "matryoshka_batchtopk"],
            [KTransition(6.0, 5, 14), KTransition(6.0, 5, 15)],
            r"saes\[1\], a Matryoshka.*its k at step 20, but the last step of the run is 19; shor",
        ),
        (
            ["topk"],
            [KTransition(10.0, 5, 10)],
            r"saes\[0\], a TopKTrainingSAE, is to keep k = 10 of 9 latents",
        ),
    ],
)
def test_a_control_that_cannot_do_its_work_is_refused(
    saes: list[Any], controls: list[Control | None], message: str
) -> None:
    made = [make_sae(s) if isinstance(s, str) else s() for s in saes]
    with pytest.raises(ValueError, match=message):
        train_saes(made, iter([]), oracle.options_for(20), controls)


def test_a_run_whose_last_batch_is_not_full_has_that_step_too() -> None:
    options = oracle.options_for(20, total_training_samples=19 * oracle.BATCH + 1)
    batches = oracle.recorded_batches(20)
    transition = KTransition(6.0, 5, 14)
    train_saes([make_sae("topk")], iter(batches), options, [transition])


def test_something_that_is_no_control_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # While tests run, the annotation alone would refuse it.
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"controls\[0\] is a dict; .*saes\[0\] must be a KTrans"):
        train_saes([make_sae("topk")], iter([]), oracle.options_for(20), [{}])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "k", "message"),
    [
        ("topk", 10, r"saes\[0\], a TopKTrainingSAE, is to keep k = 10 of 9 latents"),
        ("topk", 2.5, r"saes\[0\], a TopKTrainingSAE, has cfg.k 2.5, .* give an int"),
        ("topk", -1, r"k = -1 of 9"),
        ("topk", 0, r"k = 0 of 9"),
        ("batchtopk", 0.001, r"k = 0.001 of 9"),
        ("batchtopk", 9.1, r"saes\[0\], a BatchTopKTrainingSAE, is to keep k = 9.1 of 9 latents"),
        ("batchtopk", math.nan, r"k = nan of 9"),
        ("matryoshka_batchtopk", 12.0, r"saes\[0\], a Matryoshka.*k = 12 of 9"),
    ],
)
def test_a_k_that_cannot_be_kept_is_refused_before_training(
    name: str, k: float, message: str
) -> None:
    sae = make_sae(name)
    sae.cfg.k = sae.activation_fn.k = k  # type: ignore[assignment, union-attr]
    with pytest.raises(ValueError, match=message):
        train_saes([sae], iter([]), oracle.options_for(3))


def test_two_different_ks_in_one_sae_are_refused() -> None:
    """sae_lens would train with the one and write down the other."""
    sae = make_sae("batchtopk")
    sae.cfg.k = 5
    with pytest.raises(ValueError, match=r"saes\[0\].* cfg.k 5 but an activation_fn that keeps 3"):
        train_saes([sae], iter([]), oracle.options_for(3))


def test_as_many_as_there_are_can_be_kept() -> None:
    saes = [make_sae(name, k=oracle.D_SAE) for name in TOPK]
    log = train_saes(saes, iter(oracle.recorded_batches(3)), oracle.options_for(3))
    assert [sae_log.trained_by for sae_log in log.saes] == ["engine"] * 3
