"""What moves an SAE's sparsity while it trains: where it is refused, and k that moves."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from sae_lens import TopKTrainingSAE
from sae_lens.registry import get_sae_training_class

from sparse_but_wrong import EnchancedBatchTopKTrainingSAE, Snapshot, make_saes
from sparse_but_wrong.training.controls import Control, KTransition, TargetL0
from sparse_but_wrong.training.loop import Training, train_saes
from tests.training import oracle
from tests.training.oracle import TOPK, assert_close, make

N_STEPS = 120
MOVE = KTransition(initial_k=6.0, start_step=5, duration_steps=10)
OWN_MOVE: dict[str, Any] = {
    **{"k": 2.3, "initial_k": 7.5},
    **{"transition_k_duration_steps": 90, "transition_k_start_step": 20},
}


def k_at(step: int, transition: KTransition, final: float) -> float:
    """The line that k is to follow."""
    moved = min(max((step - transition.start_step) / transition.duration_steps, 0.0), 1.0)
    return transition.initial_k + moved * (final - transition.initial_k)


@pytest.mark.parametrize(
    ("name", "transition", "final"),
    [
        ("batchtopk", KTransition(initial_k=7.5, start_step=20, duration_steps=60), 2.2),
        ("batchtopk", KTransition(initial_k=1.0, start_step=0, duration_steps=N_STEPS - 1), 4),
        ("enhanced_batchtopk", KTransition(initial_k=6.0, start_step=0, duration_steps=100), 2.3),
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
    still, moving = make(name, seed=1, k=4), make(name, seed=0, k=final)
    expected = oracle.train_with_sae_lens(moving, batches, run, before_batch=set_k)
    still_expected = oracle.train_with_sae_lens(still, batches, run)

    log = train_saes([still, moving], iter(batches), run, controls=[None, transition])

    ks = [k_at(step, transition, final) for step in range(N_STEPS)]
    assert log.saes[1].columns["k"] == pytest.approx(ks, rel=1e-12)
    assert log.saes[0].columns["k"] == [4.0] * N_STEPS
    for k, l0 in zip(ks, log.saes[1].columns["l0"], strict=True):
        assert l0 <= k + 1e-9
    assert_close(moving, expected)
    assert_close(still, still_expected)
    assert moving.cfg.k == final


def test_topk_keeps_every_k_between_over_the_batch() -> None:
    transition = KTransition(initial_k=6.0, start_step=0, duration_steps=40)
    sae = make("topk", k=2)
    with torch.no_grad():
        sae.b_enc.fill_(50.0)  # everything is positive, so L0 is what k lets it be
        sae.W_dec.mul_(1e-3)
    options = oracle.options_for(50, log_every=1)
    log = train_saes([sae], oracle.Batches(), options, controls=[transition])
    ks = [k_at(step, transition, 2) for step in range(50)]
    expected = [math.floor(k * oracle.BATCH + 1e-9) / oracle.BATCH for k in ks]
    assert log.saes[0].columns["l0"] == pytest.approx(expected)
    assert len(set(expected)) > 30


@pytest.mark.parametrize(
    ("saes", "controls", "message"),
    [
        (["batchtopk", "topk"], [MOVE], r"1 controls for 2 SAEs; .* saes\[0\] to saes\[1\]"),
        (["batchtopk"], [], r"0 controls for 1 SAEs"),
        (["topk", "jumprelu"], [MOVE, MOVE], r"saes\[1\], a Jump\w+, has no k .* coefficient 'l0'"),
        ([oracle.left_to_sae_lens], [MOVE], r"a MyJumpReLU, .* own trainer.* no KTransition"),
        ([oracle.left_to_sae_lens], [TargetL0(2.0)], r"a MyJumpReLU, .* own trainer.* no TargetL0"),
        (
            ["topk", "batchtopk"],
            [None, TargetL0(2.0)],
            r"saes\[1\], a Batch.* no coefficient",
        ),
        (["matryoshka_batchtopk"], [KTransition(6.0, 5, 15)], r"at step 20, .* last step .* is 19"),
        (["topk"], [KTransition(10.0, 5, 10)], r"a TopK\w+, is to keep k = 10 of 9 latents"),
        ([lambda: make("enhanced_batchtopk", **OWN_MOVE)], [MOVE], r"moves its k by itself"),
    ],
)
def test_a_control_that_cannot_do_its_work_is_refused(
    saes: list[Any], controls: list[Control | None], message: str
) -> None:
    made = [make(s) if isinstance(s, str) else s() for s in saes]
    with pytest.raises(ValueError, match=message):
        train_saes(made, iter([]), oracle.options_for(20), controls)


@pytest.mark.parametrize("n_samples", [19 * oracle.BATCH + 1, 20 * oracle.BATCH])
def test_a_run_whose_last_batch_is_not_full_has_that_step_too(n_samples: int) -> None:
    options = oracle.options_for(20, total_training_samples=n_samples)
    train_saes([make("topk")], oracle.Batches(), options, [KTransition(6.0, 5, 14)])


def test_something_that_is_no_control_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # While tests run, the annotation alone would refuse it.
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"controls\[0\] is a dict; .*saes\[0\] must be a KTrans"):
        train_saes([make("topk")], iter([]), oracle.options_for(20), [{}])  # type: ignore[list-item]


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
    sae = make(name)
    sae.cfg.k = sae.activation_fn.k = k
    with pytest.raises(ValueError, match=message):
        train_saes([sae], iter([]), oracle.options_for(3))


def test_two_different_ks_in_one_sae_are_refused() -> None:
    """sae_lens would train with the one and write down the other."""
    sae = make("batchtopk")
    sae.cfg.k = 5
    with pytest.raises(ValueError, match=r"saes\[0\].* cfg.k 5 but an activation_fn that keeps 3"):
        train_saes([sae], iter([]), oracle.options_for(3))


def test_as_many_as_there_are_can_be_kept() -> None:
    saes = [make(name, k=oracle.D_SAE) for name in TOPK]
    log = train_saes(saes, oracle.Batches(), oracle.options_for(3))
    assert [sae_log.trained_by for sae_log in log.saes] == ["engine"] * 3


# The published BatchTopK variant, whose config moves its k.


def test_without_its_options_it_is_a_batchtopk_that_leaves_decoder_norms_out() -> None:
    mine = make("enhanced_batchtopk", k=2.3)
    plain = make("batchtopk", k=2.3, rescale_acts_by_decoder_norm=False)
    train_saes([mine, plain], oracle.Batches(), oracle.options_for(N_STEPS))
    oracle.assert_identical(mine, plain)


def test_a_snapshot_keeps_the_k_of_its_step_and_says_where_it_leads() -> None:
    kept: list[Snapshot] = []
    options = oracle.options_for(N_STEPS, snapshot_steps=(66,))
    train_saes(
        [make("enhanced_batchtopk", **OWN_MOVE)], oracle.Batches(), options, None, kept.append
    )
    sae: Any = kept[0].sae
    assert sae.activation_fn.k == pytest.approx(7.5 + (65 - 20) / 90 * (2.3 - 7.5))
    assert sae.cfg.k == 2.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trained_twice_its_k_moves_twice_by_either_trainer(dtype: str) -> None:
    sae = make("enhanced_batchtopk", **OWN_MOVE, dtype=dtype)
    for _ in range(2):
        (log,) = train_saes([sae], oracle.Batches(), oracle.options_for(30, log_every=1)).saes
        assert log.trained_by == ("engine" if dtype == "float32" else "sae_lens")
        assert log.columns["k"][0] == 7.5
        assert log.columns["k"][-1] == pytest.approx(7.5 + 9 / 90 * (2.3 - 7.5))


def test_a_transition_that_outlasts_the_run_is_spoken_of_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = {**OWN_MOVE, "transition_k_duration_steps": 25_000}
    made = [make("enhanced_batchtopk", seed, **long) for seed in (0, 1)]
    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        Training(made, iter(()), oracle.options_for(300))
    (line,) = caplog.messages
    for part in ("2 SAEs", "25020", "299", "7.442"):
        assert part in line


def test_make_saes_knows_it() -> None:
    assert get_sae_training_class("enhanced_batchtopk")[0] is EnchancedBatchTopKTrainingSAE
    (sae,) = make_saes([make("enhanced_batchtopk", **OWN_MOVE).cfg], [3])
    assert type(sae) is EnchancedBatchTopKTrainingSAE
    assert sae.cfg.initial_k == 7.5
