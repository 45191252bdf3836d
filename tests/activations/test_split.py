from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.activations.split import BLOCKS, hold_out
from sparse_but_wrong.activations.stored import StoredActivations


def everything(stored: StoredActivations) -> torch.Tensor:
    return stored.read(0, stored.n_samples)[:, 0]


@pytest.mark.parametrize(("n", "n_held_out"), [(1000, 160), (1000, 500), (1001, 37), (40, 5)])
def test_every_sample_is_on_one_side(n: int, n_held_out: int) -> None:
    stored = StoredActivations.of(torch.arange(float(n))[:, None].repeat(1, 3))
    rest, held_out = hold_out(stored, n_held_out)
    a, b = everything(rest), everything(held_out)
    assert (len(a), len(b)) == (n - n_held_out, n_held_out)
    assert torch.equal(torch.cat([a, b]).sort().values, torch.arange(float(n)))
    assert torch.equal(a, a.sort().values)


def test_what_is_held_out_is_blocks_of_neighbours_spread_evenly() -> None:
    stored = StoredActivations.of(torch.arange(1600.0)[:, None])
    _, held_out = hold_out(stored, 320)
    assert len(held_out.parts) == BLOCKS
    for i, part in enumerate(held_out.parts):
        block = part.read(0, part.n_samples)[:, 0]
        # 20 in the middle of each share of 100.
        assert torch.equal(block, torch.arange(100 * i + 40.0, 100 * i + 60.0))


@pytest.mark.parametrize("n_held_out", [0, 51, 100])
def test_too_many_or_none_are_refused(n_held_out: int) -> None:
    with pytest.raises(ValueError, match=r"of the 100 samples of acts.*ask for 1 to 50"):
        hold_out(StoredActivations.of(torch.zeros(100, 2), "acts"), n_held_out)
