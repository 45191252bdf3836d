"""Dead latents get a new start where that is asked for, and nowhere else."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, TrainingSAE

from sparse_but_wrong.training.architectures.penalty import JumpReLU
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.reinitialize import is_due, reinitialize_dead
from sparse_but_wrong.training.stack import Stack
from tests.training import oracle
from tests.training.oracle import assert_identical, make

N_STEPS = 60
OPTIONS = replace(oracle.options_for(N_STEPS), reinit_dead_every=10)
DEAD = [2, 5]


def with_dead_latents(architecture: str, **config: Any) -> Any:
    """An SAE two of whose latents never fire."""
    sae = make(architecture, **config)
    with torch.no_grad():
        sae.W_enc[:, DEAD] = 0.0
        sae.b_enc[DEAD] = -100.0
    return sae


def stack_of(sae: TrainingSAE[Any], last_fired: int, of_dead: int) -> Stack:
    stack = Stack.of([sae], JumpReLU.parameters)
    stack.exp_avg.fill_(1.0)
    stack.exp_avg_sq.fill_(1.0)
    stack.last_fired.fill_(last_fired)
    stack.last_fired[0, DEAD] = of_dead
    return stack


def test_a_frozen_decoder_keeps_its_rows_and_encoders_start_along_them() -> None:
    sae = with_dead_latents("jumprelu")
    sae.W_dec.requires_grad_(False)
    stack = stack_of(sae, last_fired=19, of_dead=9)
    x = torch.randn(4, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))

    reinitialize_dead(sae, stack, x, 20, OPTIONS)

    after = {k: v[0] for k, v in stack.views(stack.params).items()}
    assert torch.equal(after["W_dec"], sae.W_dec)
    cosines = torch.nn.functional.cosine_similarity(after["W_enc"].T[DEAD], sae.W_dec[DEAD])
    torch.testing.assert_close(cosines, torch.ones(2))


def test_only_what_is_dead_changes_and_points_at_what_is_left_over() -> None:
    sae = with_dead_latents("jumprelu")
    # Ten steps before the last: longer ago than `reinit_dead_every` steps.
    stack = stack_of(sae, last_fired=19, of_dead=9)
    # One sample: what is left over of it is the only direction there is.
    x = torch.randn(1, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    before = {k: v[0].clone() for k, v in stack.views(stack.params).items()}
    reinitialize_dead(sae, stack, x, 20, OPTIONS)
    after = {k: v[0] for k, v in stack.views(stack.params).items()}

    alive = [i for i in range(sae.cfg.d_sae) if i not in DEAD]
    with torch.no_grad():
        residual = x[0] - sae.decode(sae.encode(x))[0]
    direction = residual / residual.norm()
    length = before["W_dec"][alive].norm(dim=1).mean()
    torch.testing.assert_close(after["W_dec"][DEAD], (direction * length).expand(2, -1))
    length = before["W_enc"][:, alive].norm(dim=0).mean()
    torch.testing.assert_close(after["W_enc"][:, DEAD].T, (direction * length).expand(2, -1))
    for name in ("b_enc", "threshold"):
        torch.testing.assert_close(after[name][DEAD], before[name][alive].mean().expand(2))
        assert torch.equal(after[name][alive], before[name][alive])
    assert torch.equal(after["W_dec"][alive], before["W_dec"][alive])
    assert torch.equal(after["W_enc"][:, alive], before["W_enc"][:, alive])
    assert torch.equal(after["b_dec"], before["b_dec"])
    for memory in (stack.exp_avg, stack.exp_avg_sq):
        views = {k: v[0] for k, v in stack.views(memory).items()}
        for of_latents in (views["W_dec"], views["W_enc"].T, views["b_enc"], views["threshold"]):
            assert of_latents[DEAD].abs().sum() == 0
            assert bool((of_latents[alive] == 1).all())
        assert bool((views["b_dec"] == 1).all())
    assert stack.last_fired[0, DEAD].tolist() == [19, 19]


def test_saes_with_other_dead_latents_start_again_on_other_samples() -> None:
    sae = with_dead_latents("jumprelu")
    x = torch.randn(64, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))

    def first_start(dead: list[int]) -> torch.Tensor:
        stack = stack_of(sae, last_fired=19, of_dead=19)
        stack.last_fired[0, dead] = 9
        reinitialize_dead(sae, stack, x, 20, OPTIONS)
        row = stack.views(stack.params)["W_dec"][0][dead[0]]
        return row / row.norm()

    starts = torch.stack([first_start([2, 5]), first_start([2, 5]), first_start([2, 6])])
    cosines = starts @ starts.T
    assert float(cosines[0, 1]) == pytest.approx(1)
    assert float(cosines[0, 2]) < 0.9


@pytest.mark.parametrize(
    ("last_fired", "of_dead", "diverged"), [(19, 19, -1), (3, 3, -1), (19, 3, 7)]
)
def test_nothing_happens_where_all_fire_or_none_or_the_sae_diverged(
    last_fired: int, of_dead: int, diverged: int
) -> None:
    sae = with_dead_latents("jumprelu")
    stack = stack_of(sae, last_fired, of_dead)
    stack.diverged_at[0] = diverged
    before = stack.params.clone()
    reinitialize_dead(sae, stack, torch.randn(8, sae.cfg.d_in), 20, OPTIONS)
    assert torch.equal(stack.params, before)


def test_when_it_is_due() -> None:
    due = [step for step in range(1, N_STEPS + 1) if is_due(step, OPTIONS)]
    assert due == [10, 20, 30, 40]  # two thirds of 60 steps
    assert not any(is_due(step, oracle.options_for(N_STEPS)) for step in range(1, N_STEPS + 1))
    assert TrainOptions().reinit_dead_every is None


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "batchtopk", "k": 3.5},
        {"architecture": "topk", "k": 3},
        {"architecture": "jumprelu", "jumprelu_init_threshold": 0.01, "l0_coefficient": 0.01},
        {"architecture": "standard", "l1_coefficient": 0.001},
    ],
)
def test_dead_latents_come_alive(config: dict[str, Any]) -> None:
    sae = with_dead_latents(**config)
    plain = copy.deepcopy(sae)
    train_saes([sae], oracle.Batches(70), OPTIONS)
    train_saes([plain], oracle.Batches(70), oracle.options_for(N_STEPS))
    x = torch.cat(oracle.recorded_batches(70)[-5:])
    with torch.no_grad():
        fires = [(s.encode(x).to_dense() > 0).any(0)[DEAD].tolist() for s in (sae, plain)]
    assert fires[1] == [False, False], "the latents are not dead without it"
    assert fires[0] == [True, True]


@pytest.mark.usefixtures("step")
def test_an_sae_does_not_depend_on_its_neighbours_or_on_how_the_stream_is_cut() -> None:
    def trained(saes: list[Any], **options: Any) -> list[Any]:
        copies = copy.deepcopy(saes)
        train_saes(copies, oracle.Batches(N_STEPS), replace(OPTIONS, **options))
        return copies

    mine, other = with_dead_latents("batchtopk", k=3), make("batchtopk", seed=1, k=5)
    alone = trained([mine])[0]
    assert_identical(trained([other, mine], threads=2)[1], alone)
    assert_identical(trained([mine, other], log_every=7)[0], alone)


def test_it_reads_the_k_of_a_transition(monkeypatch: pytest.MonkeyPatch) -> None:
    # With the config's own k of 1 the residual would be another one.
    sae = with_dead_latents("batchtopk", k=1)
    seen: set[float] = set()
    encode = BatchTopKTrainingSAE.encode

    def spying(self: BatchTopKTrainingSAE, x: torch.Tensor) -> torch.Tensor:
        seen.add(float(self.cfg.k))
        return encode(self, x)

    monkeypatch.setattr(BatchTopKTrainingSAE, "encode", spying)
    transition = KTransition(initial_k=8.0, start_step=50, duration_steps=5)
    train_saes([sae], oracle.Batches(N_STEPS), OPTIONS, [transition])
    assert seen == {8.0}
    assert sae.cfg.k == 1


def test_refused_where_it_cannot_be_done() -> None:
    with pytest.raises(ValueError, match="reinit_dead_every must be at least 1"):
        TrainOptions(reinit_dead_every=0)
    with pytest.raises(ValueError, match=r"saes\[0\].*does not re-initialise dead latents"):
        train_saes([oracle.left_to_sae_lens()], oracle.Batches(), OPTIONS)
