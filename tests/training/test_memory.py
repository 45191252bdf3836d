"""What is done where memory is short; how much there is, is made up."""

from __future__ import annotations

import copy

import pytest
import torch

from sparse_but_wrong.training import memory, torch_step
from sparse_but_wrong.training.loop import Training, train_saes
from sparse_but_wrong.training.torch_step import TorchStepper
from tests.training import oracle

N_STEPS = 20
BATCHES = oracle.recorded_batches(N_STEPS)


@pytest.mark.parametrize(
    ("n_saes", "n_bytes", "messages"),
    [
        # 2 · 12 · 900 weights, and 900 + 900 + 12 biases and thresholds: 16 bytes of each for one
        # SAE with its gradient, 12 of each for two.
        (1, 16 * 23_412, ["one SAE", "d_sae = 900", "shards one SAE", "llamascopium"]),
        (2, 24 * 23_412, ["2 SAEs", "train fewer"]),
    ],
)
def test_what_cannot_fit_is_refused(
    n_saes: int, n_bytes: int, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = [oracle.make_sae(seed, d_sae=900) for seed in range(n_saes)]
    options = oracle.options_for(N_STEPS)
    monkeypatch.setattr(memory, "_available", lambda _: n_bytes - 1)
    with pytest.raises(ValueError, match="GiB") as error:
        Training(saes, iter(BATCHES), options)
    assert all(message in str(error.value) for message in messages), error.value
    monkeypatch.setattr(memory, "_available", lambda _: n_bytes)
    Training(saes, iter(BATCHES), options)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("free", "n_chunks"), [(10_000, 1), (999, 2), (400, 3), (1, 5)])
def test_as_many_are_stepped_in_one_go_as_fit(
    free: int, n_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = oracle.unlike_saes("batchtopk", 5)
    whole, parts = copy.deepcopy(saes), copy.deepcopy(saes)
    train_saes(whole, iter(BATCHES), oracle.options_for(N_STEPS))
    monkeypatch.setattr(TorchStepper, "_taken_by", lambda *_: 100)
    monkeypatch.setattr(torch_step, "free_memory", lambda _: free)
    training = Training(parts, iter(BATCHES), oracle.options_for(N_STEPS))
    (group,) = training.groups
    assert group.n_chunks == n_chunks
    training.run()
    for a, b in zip(whole, parts, strict=True):
        oracle.assert_close(a, b)


def test_a_fifth_of_a_gpu_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (600, 1_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    assert memory.free_memory(torch.device("cuda", 0)) == 800  # of 600 free and 400 held unused
