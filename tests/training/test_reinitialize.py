"""Dead latents get a new start where that is asked for, and nowhere else."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, JumpReLUTrainingSAE, TrainingSAE

from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.training.loop import Training, train_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.reinitialize import is_due, reinitialize_dead
from sparse_but_wrong.training.stack import StackState
from tests.training import oracle
from tests.training.saes import make_sae

N_STEPS = 60
EVERY = 10
OPTIONS = replace(oracle.options_for(N_STEPS), reinit_dead_every=EVERY)
DEAD = (2, 5)


def with_dead_latents(architecture: str, **config: Any) -> TrainingSAE[Any]:
    """An SAE two of whose latents never fire."""
    sae = make_sae(architecture, **config)
    with torch.no_grad():
        sae.W_enc[:, DEAD] = 0.0
        sae.b_enc[list(DEAD)] = -100.0  # pyright: ignore[reportIndexIssue]
    return sae


def state_of(sae: TrainingSAE[Any], last_fired: list[int]) -> StackState:
    shapes = {name: tuple(p.shape) for name, p in sae.named_parameters()}
    state = StackState.of([sae], shapes, {})
    for memory in (state.exp_avg, state.exp_avg_sq):
        memory.fill_(1.0)
    state.last_fired[0] = torch.tensor(last_fired)
    return state


def test_only_what_is_dead_changes_and_points_at_what_is_left_over() -> None:
    sae = with_dead_latents("jumprelu", jumprelu_init_threshold=0.1)
    assert isinstance(sae, JumpReLUTrainingSAE)
    d_sae = sae.cfg.d_sae
    last_fired = [19] * d_sae
    for latent in DEAD:
        last_fired[latent] = 9  # ten steps before the last: longer ago than EVERY steps
    state = state_of(sae, last_fired)
    # One sample: what is left over of it is the only direction there is.
    x = torch.randn(1, sae.cfg.d_in, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in state.layout.views(state.params).items()}
    reinitialize_dead(sae, state, 0, x, 20, OPTIONS)
    after = state.layout.views(state.params)

    alive = torch.tensor([i not in DEAD for i in range(d_sae)])
    with torch.no_grad():
        residual = x[0] - sae.decode(sae.encode(x))[0]
    direction = residual / residual.norm()
    lengths = before["W_dec"][0, alive].norm(dim=1).mean()
    for latent in DEAD:
        torch.testing.assert_close(after["W_dec"][0, latent], direction * lengths)
        torch.testing.assert_close(
            after["W_enc"][0, :, latent],
            direction * before["W_enc"][0][:, alive].norm(dim=0).mean(),
        )
    for name in ("b_enc", "threshold"):
        mean = before[name][0, alive].mean()
        torch.testing.assert_close(after[name][0, list(DEAD)], mean.expand(len(DEAD)))
        assert torch.equal(after[name][0, alive], before[name][0, alive])
    assert torch.equal(after["W_dec"][0, alive], before["W_dec"][0, alive])
    assert torch.equal(after["W_enc"][0][:, alive], before["W_enc"][0][:, alive])
    assert torch.equal(after["b_dec"], before["b_dec"])

    for memory in (state.exp_avg, state.exp_avg_sq):
        views = state.layout.views(memory)
        assert views["W_dec"][0, list(DEAD)].abs().sum() == 0
        assert views["W_enc"][0][:, list(DEAD)].abs().sum() == 0
        assert views["threshold"][0, list(DEAD)].abs().sum() == 0
        assert bool((views["W_dec"][0, alive] == 1).all())
        assert bool((views["b_dec"] == 1).all())
    assert state.last_fired[0, list(DEAD)].tolist() == [19, 19]


def test_nothing_happens_where_all_fire_or_none_or_the_sae_diverged() -> None:
    sae = with_dead_latents("jumprelu")
    x = torch.randn(8, sae.cfg.d_in)
    for last_fired, diverged in ((19, -1), (3, -1), (3, 7)):
        fired = [last_fired] * sae.cfg.d_sae
        if diverged >= 0:
            fired[0] = 19
        state = state_of(sae, fired)
        state.diverged_at[0] = diverged
        before = state.params.clone()
        reinitialize_dead(sae, state, 0, x, 20, OPTIONS)
        assert torch.equal(state.params, before)


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
    batches = oracle.recorded_batches(N_STEPS + 10)
    train_saes([sae], iter(batches), OPTIONS)
    train_saes([plain], iter(batches), oracle.options_for(N_STEPS))
    x = torch.cat(batches[-5:])
    with torch.no_grad():
        fires = [(s.encode(x).to_dense() > 0).any(0)[list(DEAD)].tolist() for s in (sae, plain)]
    assert fires[1] == [False, False], "the latents are not dead without it"
    assert fires[0] == [True, True]


@pytest.mark.usefixtures("step")
def test_an_sae_does_not_depend_on_its_neighbours_or_on_how_the_stream_is_cut() -> None:
    def trained(saes: list[TrainingSAE[Any]], **options: Any) -> list[dict[str, torch.Tensor]]:
        copies = copy.deepcopy(saes)
        batches = iter(oracle.recorded_batches(N_STEPS))
        train_saes(copies, batches, replace(OPTIONS, **options))
        return [oracle.parameters(sae) for sae in copies]

    mine = with_dead_latents("batchtopk", k=3)
    other = make_sae("batchtopk", seed=1, k=5)
    alone = trained([mine])[0]
    for together in (trained([other, mine], threads=2)[1], trained([mine, other], log_every=7)[0]):
        for name, value in alone.items():
            assert torch.equal(together[name], value), name


def test_it_reads_the_k_of_a_transition() -> None:
    # With the config's own k of 1 the residual would be another one.
    sae = with_dead_latents("batchtopk", k=1)
    transition = KTransition(initial_k=8.0, start_step=50, duration_steps=5)
    training = Training(
        [sae], iter(oracle.recorded_batches(N_STEPS)), OPTIONS, controls=[transition]
    )
    seen: list[float] = []
    encode = BatchTopKTrainingSAE.encode

    def spying(self: BatchTopKTrainingSAE, x: torch.Tensor) -> torch.Tensor:
        seen.append(float(self.cfg.k))
        return encode(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchTopKTrainingSAE, "encode", spying)
        training.run()
    assert seen
    assert set(seen) == {8.0}
    assert sae.cfg.k == 1


def test_refused_where_it_cannot_be_done() -> None:
    with pytest.raises(ValueError, match="reinit_dead_every must be at least 1"):
        TrainOptions(reinit_dead_every=0)
    sae = make_sae("batchtopk", k=3)
    sae.mse_loss_fn = lambda preds, target: (
        preds - target
    ).abs()  # only sae_lens' own trainer does this
    with pytest.raises(ValueError, match=r"saes\[0\].*does not re-initialise dead latents"):
        train_saes([sae], iter(oracle.recorded_batches(N_STEPS)), OPTIONS)
