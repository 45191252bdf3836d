from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.metrics.row_norms import NormTally, WithoutOutliers

D = 4


def samples(scale=1.0):
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(0)) * scale
    x[[3, 120, 121]] = 0
    x[150] *= 400
    x[7] *= 100
    return x


def tally(x, batch=50):
    norms = NormTally()
    assert torch.cat(list(norms.watch(x.split(batch)))).equal(x)
    return norms


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-30])
@pytest.mark.parametrize("batch", [7, 50, 200])
def test_zeros_and_outliers_are_counted_at_every_scale(scale, batch):
    x = samples(scale)
    found = tally(x, batch)
    norms = x.double().norm(dim=1)
    assert (found.n_samples, found.n_zero, found.n_outliers) == (200, 3, 2)
    assert found.median == pytest.approx(norms[norms > 0].median().item(), rel=0.02)
    assert (found.largest, found.largest_at) == (pytest.approx(norms.max().item()), 150)
    said = " ".join(found.in_words())
    assert all(part in said for part in ("3 of 200", "2 of 200", "sample 150"))


def test_samples_like_each_other_need_no_word():
    assert tally(torch.ones(30, D)).in_words() == []
    nothing = tally(torch.zeros(30, D))
    assert (nothing.n_zero, nothing.n_outliers, nothing.median) == (30, 0, 0)


def test_they_are_left_out_and_counted():
    x = samples()
    x[50:100] = 0  # a whole batch
    found = tally(x)
    assert (found.n_zero, found.n_outliers) == (53, 2)
    rest = WithoutOutliers(found)
    kept = torch.cat([batch[rest(batch)] for batch in x.split(50)])
    ordinary = [i for i in range(200) if i not in {3, 7, 120, 121, 150, *range(50, 100)}]
    assert kept.equal(x[ordinary])
    assert (rest.n_zero, rest.n_outliers) == (53, 2)


def test_norms_that_are_not_finite_are_no_part_of_the_median():
    norms = NormTally()
    norms.add(torch.tensor([[2.0], *[[torch.nan]] * 4]))
    assert norms.median == pytest.approx(2.0, rel=1e-3)
