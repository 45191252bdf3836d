from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch

from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import DENSE
from sparse_but_wrong.metrics.projections import RELATIVE_ERROR
from sparse_but_wrong.metrics.recovery import decoder_similarity, encoder_similarity, match_latents

D, H, F = 6, 15, 5
SCALES = [1e20, 1e30, 1e-20, 1e-30]


def make(make_sae, scale=1.0):
    """An SAE of a scale; its latents are of scale 1, so that the L0 is the same."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(H, D, generator=generator)
    return make_sae(
        rows * scale,
        W_enc=rows.T / scale,
        b_enc=0.3 * torch.randn(H, generator=generator),
        b_dec=torch.randn(D, generator=generator) * scale,
        threshold=torch.rand(H, generator=generator),
    )


@pytest.fixture
def sae(make_sae):
    return make(make_sae)


def samples(n, seed=1, scale=1.0):
    return (torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5) * scale


def features():
    return torch.randn(D, F, generator=torch.Generator().manual_seed(7))


def too_many():
    """An SAE that keeps more latents than it has."""
    from sae_lens import TopKSAE, TopKSAEConfig

    return TopKSAE(TopKSAEConfig(d_in=D, d_sae=4, k=300))


def test_a_tensor_is_measured_to_the_last_digit(sae):
    x = samples(1000)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    found = evaluate(sae, x, features(), batch_size=300)
    acts = sae.encode(x)
    assert found.l0 == (acts != 0).sum().item() / 1000
    assert np.array_equal(found.densities, ((acts != 0).sum(0) / 1000).numpy())
    assert found.dead_latents == int((found.densities == 0).sum())
    assert found.dense_latents == int((found.densities > DENSE).sum())
    error = (x - sae.decode(acts)).square().sum(1).mean().item()
    variance = x.var(0, correction=0).sum().item()
    assert found.mse == pytest.approx(error, rel=1e-6)
    assert found.variance_explained == pytest.approx(1 - error / variance, rel=1e-6)
    assert found.shrinkage == pytest.approx(
        (sae(x).norm(dim=1) / x.norm(dim=1)).mean().item(), rel=1e-6
    )
    assert (found.c_dec, found.c_enc) == (decoder_similarity(sae), encoder_similarity(sae))
    match = match_latents(sae, features())
    assert (found.mcc, found.mean_max_cosine) == (match.mcc, match.mean_max_cosine)
    unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
    z = ((x - sae.b_dec) @ unit.T).flatten().sort(descending=True).values
    assert found.projections.tolist() == pytest.approx(z[::1000].tolist(), rel=1e-6)
    assert found.projection_relative_error == 0
    assert found.histogram_counts.sum() == 1000 * H
    inner = np.histogram(z.detach().numpy(), found.histogram_edges)[0][1:-1]
    assert np.abs(found.histogram_counts[1:-1] - inner).max() <= 1
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("batch_size", [1000, 128, 999])
def test_a_stream_gives_what_the_tensor_gives(sae, batch_size):
    x = samples(1000)
    exact = evaluate(sae, x, features())
    found = evaluate(sae, iter(x.split(batch_size)), features())
    assert (found.n_samples, found.n_batches) == (1000, -(-1000 // batch_size))
    for name in ("l0", "dead_latents", "dense_latents", "c_dec", "c_enc", "mcc", "l0_median"):
        assert found.to_row()[name] == exact.to_row()[name], name
    for name in ("mse", "variance_explained", "shrinkage"):
        assert found.to_row()[name] == pytest.approx(exact.to_row()[name], rel=1e-5)
    assert np.array_equal(found.densities, exact.densities)
    assert np.array_equal(found.l0_counts, exact.l0_counts)
    assert found.projection_relative_error == RELATIVE_ERROR
    off = np.abs(found.projections.astype(float) - exact.projections)
    assert (off <= (RELATIVE_ERROR + 1e-6) * np.abs(exact.projections)).all()
    assert found.histogram_counts.sum() == 1000 * H


def test_a_large_tensor_is_counted(sae):
    x = samples(400)
    counted = evaluate(sae, x, exact_below=400 * H - 1)
    assert counted.projection_relative_error == RELATIVE_ERROR
    assert evaluate(sae, x, exact_below=400 * H).projection_relative_error == 0


def test_stored_activations_are_read_in_batches(sae):
    x = samples(1600)

    class Stored:
        n_samples = len(x)

        def batches(self, batch_size):
            return x.split(batch_size)

    for batch_size, n_batches in ((None, 16), (400, 4)):
        found = evaluate(sae, Stored(), batch_size=batch_size)
        assert found.n_batches == n_batches
        assert repr(found) == repr(evaluate(sae, x.split(1600 // n_batches)))


def test_the_distribution_of_l0_is_that_of_the_samples(sae):
    x = samples(500)
    per_sample = (sae.encode(x) != 0).sum(1)
    found = evaluate(sae, x.split(64))
    assert found.l0_counts.tolist() == torch.bincount(per_sample, minlength=H + 1).tolist()
    ordered = per_sample.sort().values
    for share in (0.05, 0.5, 0.95):
        assert found.l0_quantile(share) == int(ordered[math.ceil(share * 500) - 1])


@pytest.mark.parametrize("as_stream", [True, False])
def test_standard_errors_are_those_of_the_batches(sae, as_stream):
    x = samples(1200)
    found = evaluate(sae, iter(x.split(100))) if as_stream else evaluate(sae, x, batch_size=100)
    alone = [evaluate(sae, batch) for batch in x.split(100)]

    def expected(values):
        return torch.tensor(values).double().std().item() / math.sqrt(len(values))

    assert found.l0_standard_error == pytest.approx(expected([a.l0 for a in alone]), rel=1e-6)
    assert found.mse_standard_error == pytest.approx(expected([a.mse for a in alone]), rel=1e-4)
    by_batch = np.stack([a.projections for a in alone]).astype(float)
    errors = by_batch.std(0, ddof=1) / math.sqrt(12)
    # Where each batch's s_n is counted, to the bound, so are their differences.
    slack = 2 * found.projection_relative_error * np.abs(by_batch).max() / math.sqrt(12)
    assert np.abs(found.projection_standard_errors - errors).max() < slack + 1e-6
    assert found.projection_standard_errors.max() > 5 * slack


def test_the_standard_error_of_variance_explained_is_how_much_streams_differ(sae):
    # 60 streams of 12 batches: their spread, known to 9 %, against what each says of itself.
    found = [evaluate(sae, samples(720, seed), batch_size=60) for seed in range(60)]
    values = torch.tensor([f.variance_explained for f in found])
    said = sum(f.variance_explained_standard_error for f in found) / len(found)
    assert 0.7 < said / values.std().item() < 1.4


def test_saes_are_evaluated_together_as_alone_and_by_name(sae, make_sae):
    other = make_sae(torch.randn(4, D, generator=torch.Generator().manual_seed(5)))
    batches = samples(300).split(100)
    together = evaluate({"wide": sae, "narrow": other}, batches)
    assert together.names == ("wide", "narrow")
    assert together.projections.shape == (2, H)
    assert together.projections.loc["narrow", 4:].isna().all()
    for found, one in zip(together, (sae, other), strict=True):
        alone = evaluate(one, batches)
        assert [str(v) for v in found.to_row().values()] == [
            str(v) for v in alone.to_row().values()
        ]
        assert np.array_equal(found.projections, alone.projections)
        s = together.projections.loc[found.name].to_numpy()[: found.d_sae]
        assert np.array_equal(s, found.projections)
    table = together.to_frame()
    assert table.loc["narrow", "d_sae"] == 4
    assert table.loc["wide", "l0"] == together["wide"].l0
    assert together[0] is together["wide"]
    assert together[1:].names == ("narrow",)
    for shown in (repr(together), together._repr_html_()):
        assert all(name in shown for name in ("wide", "narrow", f"{together[0].l0:.3f}"))
    assert evaluate([sae, other], batches).names == ("0", "1")


def test_the_row_begins_with_the_columns_of_a_table_of_results(sae):
    row = evaluate(sae, samples(50), features()).to_row()
    assert list(row)[:9] == [
        *("l0", "dead_latents", "shrinkage", "mse", "variance_explained"),
        *("c_dec", "c_enc", "mean_max_cosine", "mcc"),
    ]
    assert {type(value) for value in row.values()} == {float, int}
    without = evaluate(sae, samples(50))
    assert f"l0={row['l0']:.4g}" in repr(without)
    assert without.match is None
    assert math.isnan(without.to_row()["mcc"])


def test_the_true_sae_scores_full_marks(make_sae):
    fires = (torch.rand(400, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    row = evaluate(make_sae(torch.eye(6)), fires, torch.eye(6)).to_row()
    assert row["l0"] == fires.sum().item() / 400
    expected = {
        "dead_latents": 0, "shrinkage": 1, "mse": 0, "variance_explained": 1,
        "c_dec": 0, "c_enc": 0, "mean_max_cosine": 1, "mcc": 1,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_training_saes_are_evaluated_by_their_export():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=4, d_sae=4, k=1.5))
    sae.W_enc.data.copy_(torch.eye(4))
    sae.W_dec.data.copy_(torch.eye(4))
    sae.topk_threshold.data.fill_(0.5)
    x = torch.rand(1000, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert evaluate(sae, x).l0 == (x > 0.5).sum().item() / 1000
    assert evaluate(sae, x, as_trained=True).l0 == 1.5


@pytest.mark.parametrize("as_stream", [True, False])
def test_a_diverged_sae_is_nan_and_leaves_others_alone(sae, make_sae, as_stream):
    broken = make_sae(torch.full((3, D), torch.nan))
    for weights in broken.parameters():
        weights.data.fill_(math.nan)
    x = samples(200)
    found, fine = evaluate([broken, sae], x.split(100) if as_stream else x, features())
    for name in ("l0", "mse", "variance_explained", "shrinkage", "c_dec", "c_enc", "mcc"):
        assert math.isnan(found.to_row()[name]), name
    # The gate of an inference JumpReLU SAE multiplies NaN by 0, so nothing counts as dead.
    assert found.dead_latents == 0
    assert np.isnan(found.projections).all()
    assert math.isfinite(fine.l0)
    assert np.isfinite(fine.projections).all()


def test_samples_that_are_all_the_same_have_no_variance(sae):
    found = evaluate(sae, [torch.ones(4, D), torch.ones(4, D)])
    assert found.variance_explained in (0.0, 1.0)
    assert math.isnan(found.variance_explained_standard_error)


def test_half_precision_batches_are_measured(sae):
    x = samples(200).bfloat16()
    half, full = (
        evaluate(sae, x.split(100), features()),
        evaluate(sae, x.float().split(100), features()),
    )
    assert half.to_row() == full.to_row()


def test_memory_does_not_grow_with_the_batches(sae):
    alive: list[weakref.ref[torch.Tensor]] = []

    def stream():
        for seed in range(20):
            # The loop over the stream still holds the last batch; nothing holds those before.
            assert sum(ref() is not None for ref in alive) <= 1
            batch = samples(50, seed)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    assert evaluate(sae, stream()).n_batches == len(alive) == 20


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        ([], "no batches"),
        ([torch.zeros(3, D + 1)], rf"batch 0: .*\[samples, {D}\]"),
        ([torch.zeros(3, D), torch.full((2, D), torch.nan)], "batch 1: .*not finite"),
        ([torch.zeros(0, D)], "batch 0: .*no samples"),
        (torch.zeros(0, D), "no samples"),
        (torch.zeros(3, D + 1), rf"\[samples, {D}\]"),
        (torch.full((2, D), torch.nan), "not finite"),
    ],
)
@pytest.mark.parametrize("skip_failing", [True, False])
def test_what_cannot_be_measured_is_refused(sae, activations, message, skip_failing):
    with pytest.raises(ValueError, match=message):
        evaluate([sae], activations, skip_failing=skip_failing)


def test_saes_of_different_widths_are_refused(sae, make_sae):
    with pytest.raises(ValueError, match="different widths"):
        evaluate([sae, make_sae(torch.eye(3))], samples(10))
    with pytest.raises(ValueError, match="no SAEs"):
        evaluate([], samples(10))


@pytest.mark.parametrize("as_stream", [True, False])
def test_where_one_sae_cannot_be_evaluated_the_others_are(sae, as_stream):
    x = samples(300).split(100) if as_stream else samples(300)
    saes = {"bad": too_many(), "good": sae}
    found = evaluate(saes, x, features(), skip_failing=True)
    assert list(found.failed) == ["bad"]
    assert found.names == ("good",)
    assert found[0].to_row() == evaluate({"good": sae}, x, features())[0].to_row() or not as_stream
    with pytest.raises(RuntimeError):
        evaluate(saes, x)


def test_the_stream_is_left_once_nothing_can_be_measured():
    batches = iter(samples(300).split(100))
    assert len(evaluate([too_many()], batches, skip_failing=True)) == 0
    assert len(list(batches)) == 1


@pytest.mark.parametrize("as_stream", [True, False])
@pytest.mark.parametrize("scale", SCALES)
def test_evaluations_are_the_same_at_every_scale(make_sae, scale, as_stream):
    def at(one):
        x = samples(400, scale=one)
        return evaluate(make(make_sae, one), x.split(50) if as_stream else x)

    expected, found = at(1.0), at(scale)
    assert found.l0 == pytest.approx(expected.l0, abs=0.02)
    assert found.mse / scale / scale == pytest.approx(expected.mse, rel=1e-2)
    assert found.variance_explained == pytest.approx(expected.variance_explained, abs=2e-3)
    assert found.shrinkage == pytest.approx(expected.shrinkage, rel=1e-3)
    assert (found.c_dec, found.c_enc) == pytest.approx((expected.c_dec, expected.c_enc), rel=1e-5)
    # Where both are counted, each is to the bound.
    rel = 3 * RELATIVE_ERROR if as_stream else 1e-3
    for name in ("projections", "projection_standard_errors", "histogram_edges"):
        loose = name != "projections"
        assert (getattr(found, name).astype(float) / scale).tolist() == pytest.approx(
            getattr(expected, name).tolist(),
            rel=0.1 if loose else rel,
            abs=1e-2 if loose else 1e-5,
            nan_ok=not as_stream,
        )


@pytest.mark.parametrize("as_stream", [True, False])
def test_one_huge_sample_has_its_true_share_of_the_error(make_sae, as_stream):
    sae, x = make(make_sae), samples(400)
    x[17] *= 1e25
    sae.W_enc.data.zero_()
    sae.b_enc.data.zero_()
    found = evaluate(sae, x.split(100) if as_stream else x)
    expected = (x - sae.b_dec).double().square().sum(1).mean().item()
    assert found.mse == pytest.approx(expected, rel=1e-5)
    variance = x.double().var(0, correction=0).sum().item()
    assert found.variance_explained == pytest.approx(1 - expected / variance, abs=1e-3)


@pytest.mark.parametrize("weight", [math.inf, 3e38])
def test_without_a_finite_error_there_is_no_variance_explained(make_sae, weight):
    sae = make(make_sae)
    sae.W_dec.data.fill_(weight)
    for x in (samples(400), samples(400).split(100)):
        found = evaluate(sae, x)
        assert not math.isfinite(found.mse)
        assert math.isnan(found.variance_explained)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_single_rows_of_another_scale_have_their_direction(make_sae, scale):
    rows = torch.randn(H, D, generator=torch.Generator().manual_seed(0))
    expected = decoder_similarity(make_sae(rows)), encoder_similarity(make_sae(rows))
    rows[3] *= scale
    sae = make_sae(rows)
    assert (decoder_similarity(sae), encoder_similarity(sae)) == pytest.approx(expected, rel=1e-5)
