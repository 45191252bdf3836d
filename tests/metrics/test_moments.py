from __future__ import annotations

import math

import torch

from sparse_but_wrong.metrics.moments import BatchMoments


def test_batches_of_one_size_have_the_usual_standard_error():
    values = [3.0, 4.0, 8.0, 5.0]
    moments = BatchMoments()
    for value in values:
        moments.add(torch.tensor(value), 32)
    found = moments
    assert float(found.mean) == 5.0
    # Squares off the mean: 4 + 1 + 9 + 0 = 14; variance 14/3; standard error √(14/3/4).
    assert math.isclose(float(found.standard_error), math.sqrt(14 / 3 / 4), rel_tol=1e-12)


def test_a_short_last_batch_counts_for_less():
    moments = BatchMoments()
    for value, weight in ((1.0, 10), (3.0, 10), (100.0, 0.001)):
        moments.add(torch.tensor(value), weight)
    found = moments
    assert abs(float(found.mean) - 2.0) < 0.01
    assert float(found.standard_error) < 1.3  # 100 apart, but hardly anything


def test_large_numbers_keep_their_digits():
    moments = BatchMoments()
    for value in (1e9 + 1, 1e9 + 2, 1e9 + 3):
        moments.add(torch.tensor(value, dtype=torch.float64), 1)
    assert float(moments.mean) == 1e9 + 2
    assert math.isclose(float(moments.standard_error), 1 / math.sqrt(3), rel_tol=1e-9)


def test_vectors_are_taken_entry_by_entry():
    moments = BatchMoments()
    moments.add(torch.tensor([1.0, 10.0]), 5)
    moments.add(torch.tensor([3.0, 10.0]), 5)
    assert moments.mean.tolist() == [2.0, 10.0]
    assert moments.standard_error.tolist() == [1.0, 0.0]


def test_one_batch_has_no_standard_error():
    moments = BatchMoments()
    moments.add(torch.tensor(2.0), 5)
    assert float(moments.mean) == 2.0
    assert math.isnan(float(moments.standard_error))


def test_the_standard_error_covers_what_it_should():
    # Of 400 runs of 12 batches, about 93 % of the means lie within two standard errors of the
    # truth (Student's t with 11 degrees of freedom); 0.88 to 0.98 are 4 standard deviations.
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        moments = BatchMoments()
        for _ in range(12):
            moments.add(torch.randn((), generator=generator, dtype=torch.float64) + 7, 1)
        found = moments
        covered += abs(float(found.mean) - 7) < 2 * float(found.standard_error)
    assert 0.88 < covered / 400 < 0.98
