from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics.projection_counts import RELATIVE_ERROR
from sparse_but_wrong.metrics.score import score_sae
from sparse_but_wrong.metrics.stream import (
    DENSE,
    StreamScore,
    measure_each,
    measure_stream,
)

D, H = 6, 15


@pytest.fixture
def sae(make_sae):
    generator = torch.Generator().manual_seed(0)
    return make_sae(
        torch.randn(H, D, generator=generator),
        b_enc=0.3 * torch.randn(H, generator=generator),
        b_dec=torch.randn(D, generator=generator),
        threshold=torch.rand(H, generator=generator),
    )


def samples(n, seed=1):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


@pytest.mark.parametrize("batch_size", [1000, 128, 999])
def test_a_pass_gives_what_measuring_everything_at_once_gives(sae, batch_size):
    x = samples(1000)
    exact = score_sae(sae, x)
    (found,) = measure_stream([sae], x.split(batch_size))
    assert (found.n_samples, found.n_batches) == (1000, -(-1000 // batch_size))
    assert math.isclose(found.l0.value, exact.sparsity.l0, rel_tol=1e-9)
    assert torch.equal(found.densities, exact.sparsity.densities)
    assert found.dead_latents == exact.sparsity.dead_latents
    assert found.dense_latents == int((exact.sparsity.densities > DENSE).sum())
    assert math.isclose(found.mse.value, exact.reconstruction.mse, rel_tol=1e-5)
    assert math.isclose(
        found.variance_explained.value, exact.reconstruction.variance_explained, rel_tol=1e-5
    )
    assert (found.c_dec, found.c_enc) == (exact.c_dec, exact.c_enc)
    s = exact.projections.values.double()
    off = (found.projections.values.double() - s).abs()
    assert (off <= (RELATIVE_ERROR + 1e-6) * s.abs()).all()
    assert int(found.projections.counts.sum()) == 1000 * H


def test_the_distribution_of_l0_is_that_of_the_samples(sae):
    x = samples(500)
    per_sample = (sae.encode(x) != 0).sum(1)
    (found,) = measure_stream([sae], x.split(64))
    assert torch.equal(found.l0_counts, torch.bincount(per_sample, minlength=H + 1))
    ordered = per_sample.sort().values
    for share in (0.05, 0.5, 0.95):
        assert found.l0_quantile(share) == int(ordered[math.ceil(share * 500) - 1])


def test_standard_errors_are_those_of_the_batches(sae):
    batches = samples(1200).split(100)
    (found,) = measure_stream([sae], batches)
    alone = [score_sae(sae, batch) for batch in batches]

    def expected(values):
        return torch.tensor(values).double().std().item() / math.sqrt(len(values))

    assert math.isclose(
        found.l0.standard_error, expected([a.sparsity.l0 for a in alone]), rel_tol=1e-6
    )
    assert math.isclose(
        found.mse.standard_error, expected([a.reconstruction.mse for a in alone]), rel_tol=1e-4
    )
    by_batch = torch.stack([a.projections.values for a in alone]).double()
    errors = (by_batch.std(0) / math.sqrt(12)).float()
    # Each batch's s_n is counted, to the bound, and so are their differences.
    slack = 2 * RELATIVE_ERROR * by_batch.abs().max() / math.sqrt(12)
    assert (found.projections.standard_errors - errors).abs().max() < slack
    assert found.projections.standard_errors.max() > 5 * slack


def test_the_standard_error_of_variance_explained_is_how_much_streams_differ(sae):
    # 60 streams of 12 batches: their spread, known to 9 %, against what each says of itself.
    found = [measure_stream([sae], samples(720, seed).split(60))[0] for seed in range(60)]
    values = torch.tensor([f.variance_explained.value for f in found])
    said = sum(f.variance_explained.standard_error for f in found) / len(found)
    assert 0.7 < said / values.std().item() < 1.4


def test_saes_are_measured_together_as_alone(sae, make_sae):
    other = make_sae(torch.randn(4, D, generator=torch.Generator().manual_seed(5)))
    batches = samples(300).split(100)
    together = measure_stream([sae, other], batches)
    assert [score.d_sae for score in together] == [H, 4]
    for score, one in zip(together, (sae, other), strict=True):
        (alone,) = measure_stream([one], batches)
        assert score.as_row() == alone.as_row()
        assert torch.equal(score.projections.values, alone.projections.values)


def test_a_diverged_sae_is_nan_and_leaves_others_alone(sae, make_sae):
    broken = make_sae(torch.full((3, D), torch.nan))
    score, fine = measure_stream([broken, sae], samples(200).split(100))
    assert math.isnan(score.l0.value)
    assert math.isnan(score.mse.value)
    assert math.isnan(score.variance_explained.value)
    assert score.projections.values.isnan().all()
    assert math.isfinite(fine.l0.value)
    assert fine.projections.values.isfinite().all()


def test_samples_that_are_all_the_same_have_no_variance(sae):
    (score,) = measure_stream([sae], [torch.ones(4, D), torch.ones(4, D)])
    assert score.variance_explained.value in (0.0, 1.0)
    assert math.isnan(score.variance_explained.standard_error)


def test_half_precision_batches_are_measured(sae):
    x = samples(200).bfloat16()
    (half,) = measure_stream([sae], x.split(100))
    (full,) = measure_stream([sae], x.float().split(100))
    assert half.as_row() == full.as_row()


def test_memory_does_not_grow_with_the_batches(sae):
    """Batches are drawn one at a time, and none is kept."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []

    def stream():
        for seed in range(20):
            # The loop over the stream still holds the last batch; nothing holds those before.
            assert sum(ref() is not None for ref in alive) <= 1
            batch = samples(50, seed)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    (score,) = measure_stream([sae], stream())
    assert score.n_batches == len(alive) == 20


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        ([torch.zeros(3, D + 1)], rf"batch 0: .*\[samples, {D}\]"),
        ([torch.zeros(3, D), torch.full((2, D), torch.nan)], "batch 1: .*not finite"),
        ([torch.zeros(0, D)], "batch 0: .*no samples"),
    ],
    ids=["none", "width", "nan", "empty"],
)
def test_what_cannot_be_measured_is_refused(sae, batches, message):
    with pytest.raises(ValueError, match=message):
        measure_stream([sae], batches)


def test_saes_of_different_widths_are_refused(sae, make_sae):
    with pytest.raises(ValueError, match="different widths"):
        measure_stream([sae, make_sae(torch.eye(3))], samples(10).split(5))
    with pytest.raises(ValueError, match="no SAEs"):
        measure_stream([], samples(10).split(5))


def test_where_one_sae_cannot_be_measured_the_others_are(sae):
    from sae_lens import TopKSAE, TopKSAEConfig

    too_many = TopKSAE(TopKSAEConfig(d_in=D, d_sae=4, k=300))
    batches = samples(300).split(100)
    error, score = measure_each([too_many, sae], batches)
    assert isinstance(error, Exception)
    (alone,) = measure_stream([sae], batches)
    assert isinstance(score, StreamScore)
    assert score.as_row() == alone.as_row()
    with pytest.raises(RuntimeError):
        measure_stream([sae, too_many], batches)


def test_the_stream_is_left_once_nothing_can_be_measured():
    from sae_lens import TopKSAE, TopKSAEConfig

    too_many = TopKSAE(TopKSAEConfig(d_in=D, d_sae=4, k=300))
    batches = iter(samples(300).split(100))
    (error,) = measure_each([too_many], batches)
    assert isinstance(error, Exception)
    assert len(list(batches)) == 1


def test_activations_that_nothing_can_read_are_nobodys_fault(sae):
    with pytest.raises(ValueError, match=r"batch 0: .*not finite"):
        measure_each([sae], [torch.full((2, D), torch.nan)])
