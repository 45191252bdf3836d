"""TopK, BatchTopK and Matryoshka: an SAE's result is its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE
from torch import Tensor

from sparse_but_wrong.training import loop, products
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.training.loop import Training, TrainingState, train_saes
from tests.training import oracle, topk_family
from tests.training.test_loop import RandomSource

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.parametrize("name", topk_family.ARCHITECTURES),
]

N_STEPS = 60


def all_that_is_trained(sae: TopKTrainingSAE) -> dict[str, Tensor]:
    trained = oracle.parameters(sae)
    if isinstance(sae, BatchTopKTrainingSAE):
        trained["topk_threshold"] = sae.topk_threshold.clone()
    return trained


def trained(
    saes: list[TopKTrainingSAE], batch: int = oracle.BATCH, **changes: Any
) -> list[dict[str, Tensor]]:
    copies = copy.deepcopy(saes)
    batches = [b[:batch] for b in oracle.recorded_batches(N_STEPS + 10)]
    options = oracle.options_for(40, dead_feature_window=5, **changes)
    train_saes(copies, iter(batches), options)
    return [all_that_is_trained(sae) for sae in copies]


def unlike_saes(name: str, d_sae: int = oracle.D_SAE) -> list[TopKTrainingSAE]:
    """Five of one stack, two with dead latents; the fourth overflows in the first step."""
    options: dict[str, Any] = {"d_sae": d_sae}
    if name == "matryoshka":
        options |= {"matryoshka_widths": [3, d_sae], "use_matryoshka_aux_loss": True}
    saes = [topk_family.make_sae(name, seed=i, k=1 + i, **options) for i in range(5)]
    with torch.no_grad():
        saes[0].b_enc[:2] = -4.0
        saes[4].b_enc[1:] = -4.0
        saes[3].W_dec.mul_(1e30)
    return saes


def assert_identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for parameter, value in a.items():
        assert torch.equal(value, b[parameter]), parameter


def test_alone_and_beside_others_one_of_which_diverges(name: str) -> None:
    saes = unlike_saes(name)
    together = trained(saes)
    assert not bool(torch.isfinite(together[3]["W_dec"]).all()), "the doomed SAE did not diverge"
    for i in (0, 1, 2, 4):
        assert_identical(together[i], trained([saes[i]])[0])


@pytest.mark.parametrize("batch", [64, 37])
def test_how_a_stack_is_cut_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch, name: str, batch: int
) -> None:
    """Odd sizes too: there kernels' vector loops end in scalar ones, which round otherwise."""
    saes = unlike_saes(name, d_sae=7)
    ends = []
    for n_chunks in (5, 1, 2):
        monkeypatch.setattr(loop, "_count_chunks", lambda *_, n=n_chunks: n)
        ends.append(trained(saes, batch))
    for other in ends[1:]:
        for i in (0, 1, 2, 4):
            assert_identical(ends[0][i], other[i])
    assert bool(torch.isfinite(ends[0][4]["W_dec"]).all())


def test_batched_calls_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What a GPU does, run on the CPU: equal to float32 tolerance, and as independent."""
    saes = unlike_saes(name)
    one_by_one = trained(saes)
    monkeypatch.setattr(loop, "_count_chunks", lambda *_: 1)
    monkeypatch.setattr(products, "one_by_one", lambda _: False)
    batched = trained(saes)
    for i in (0, 1, 2, 4):
        for parameter, value in one_by_one[i].items():
            torch.testing.assert_close(batched[i][parameter], value, atol=1e-4, rtol=1e-4)


def test_a_run_taken_up_from_a_checkpoint_ends_bit_for_bit_the_same(name: str) -> None:
    """The threshold goes along, and k is where it was on its way."""
    options = oracle.options_for(50, dead_feature_window=5)
    controls = [KTransition(initial_k=6.0, start_step=10, duration_steps=39), None]

    def make() -> list[TopKTrainingSAE]:
        return [topk_family.make_sae(name, seed=i, k=2) for i in range(2)]

    kept: list[TrainingState] = []

    def keep(training: Training) -> None:
        if not training.is_finished:
            kept.append(training.state())

    straight, resumed = make(), make()
    Training(straight, RandomSource(), options, controls).run(on_rest=keep)
    second = Training(resumed, RandomSource(seed=99), options, controls)
    second.load_state(kept[len(kept) // 2])
    assert 0 < second.n_samples < options.total_training_samples
    second.run()
    for a, b in zip(straight, resumed, strict=True):
        assert_identical(all_that_is_trained(a), all_that_is_trained(b))
