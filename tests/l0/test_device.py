"""Directions are learned and counted where the samples are, with the results of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparse_but_wrong.l0 import codes
from sparse_but_wrong.l0.corrections import drop_constants, keep_one_side, turn_round, unmix
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import cost_on_noise, count_present, featureless
from sparse_but_wrong.l0.refine import most_worth, refine_directions
from tests.l0.elsewhere import GPU, ElsewhereMode, OnGPU, moved
from tests.l0.worlds import known, random_rows


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, and the CPU without the compiled descent, which would end at other last bits."""
    monkeypatch.setattr(codes, "kernels", lambda: None)
    with ElsewhereMode():
        yield


def learned(start: Directions, x: Tensor) -> Iterator[Tensor | float]:
    """All that is done with directions, one after the other."""
    batches, held_out = x[2_048:].split(256), x[:2_048]
    refined, presence = refine_directions(start, batches, held_out, seed=0, n_extra=2, n_cycles=1)
    yield from (refined.rows, refined.bias, presence.l0, presence.cost)
    yield cost_on_noise(start, held_out, seed=0)
    yield next(featureless(held_out, 64, seed=0))
    yield most_worth(start, held_out, 12).rows
    yield unmix(start, count_present(start, held_out), held_out).rows
    for correct in (keep_one_side, turn_round, drop_constants):
        corrected = correct(start, held_out)
        assert corrected is not start
        yield from (corrected.rows, corrected.bias)


def test_nothing_of_it_is_left_on_the_cpu(gpu: None) -> None:  # noqa: ARG001
    true, x, _ = known()
    # One feature from the other side, one from both, and one direction that is in all samples.
    rows = torch.cat([-true.rows[:1], true.rows[1:], -true.rows[1:2], random_rows(1, 30)])
    bias = true.bias + true.rows[0] - 2 * rows[-1]
    start = replace(true, rows=rows, bias=bias)
    on_cpu = list(learned(start, x))
    there = replace(start, rows=moved(rows), bias=moved(bias))
    for here, found in zip(on_cpu, learned(there, moved(x)), strict=True):
        if isinstance(here, Tensor):
            assert isinstance(found, OnGPU)
            assert torch.equal(found.cpu(), here)
        else:
            assert found == here


@pytest.mark.parametrize(
    "forgets",
    [
        lambda x: x + torch.zeros(3),
        lambda x: torch.cat([x, torch.zeros(3)]),
        lambda x: torch.zeros(3)[x > 0],
        lambda x: torch.multinomial(x, 1, generator=torch.Generator()),
        lambda x: x.numpy(),
    ],
)
def test_the_test_would_notice(forgets: Callable[[Tensor], object], gpu: None) -> None:  # noqa: ARG001
    x = moved(torch.ones(3))
    assert x.device == GPU
    assert isinstance(x + torch.zeros(3, device=x.device) + torch.zeros(()), OnGPU)
    assert not isinstance(x[torch.ones(3, dtype=torch.bool)].cpu(), OnGPU)
    with pytest.raises((RuntimeError, TypeError)):
        forgets(x)
