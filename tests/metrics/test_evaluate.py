"""What `evaluate` says of SAEs, on tensors and on streams, against sums written out."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sae_lens
import torch
from sae_lens.synthetic import eval_sae_on_synthetic_data

from sparse_but_wrong.activations.stored import StoredActivations
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import DENSE, RECOVERY
from sparse_but_wrong.metrics.projections import RELATIVE_ERROR
from sparse_but_wrong.metrics.recovery import match_latents, pairwise_similarity
from sparse_but_wrong.worlds.synthetic import SyntheticWorld
from tests.metrics.evaluated import make_sae
from tests.worlds.synthetic import CONFIG

D, H, F = 6, 15, 5
as_stream_or_not = pytest.mark.parametrize("as_stream", [True, False])


def make(scale=1.0):
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
def sae():
    return make()


def samples(n, seed=1, scale=1.0):
    return (torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5) * scale


FEATURES = torch.randn(D, F, generator=torch.Generator().manual_seed(7))


def too_many():
    """An SAE that keeps more latents than it has."""
    return sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=D, d_sae=4, k=300))


def test_a_tensor_is_measured_to_the_last_digit(sae):
    x = samples(1000)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    found = evaluate(sae, x, FEATURES, batch_size=300)
    acts = sae.encode(x)
    per_sample = (acts != 0).sum(1)
    assert found.l0 == per_sample.sum().item() / 1000
    assert found.l0_counts.tolist() == torch.bincount(per_sample, minlength=H + 1).tolist()
    ordered = per_sample.sort().values
    for share in (0.05, 0.5, 0.95):
        assert found.l0_quantile(share) == int(ordered[math.ceil(share * 1000) - 1])
    assert np.array_equal(found.densities, ((acts != 0).sum(0) / 1000).numpy())
    assert found.dead_latents == int((found.densities == 0).sum())
    assert found.dense_latents == int((found.densities > DENSE).sum())
    error = (x - sae.decode(acts)).square().sum(1).mean().item()
    variance = x.var(0, correction=0).sum().item()
    shrinkage = (sae(x).norm(dim=1) / x.norm(dim=1)).mean().item()
    assert (found.mse, found.variance_explained, found.shrinkage) == pytest.approx(
        (error, 1 - error / variance, shrinkage), rel=1e-6
    )
    assert found.c_dec == pairwise_similarity(sae.W_dec)
    assert found.c_enc == pairwise_similarity(sae.W_enc.T)
    match = match_latents(sae, FEATURES)
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
    exact = evaluate(sae, x, FEATURES)
    found = evaluate(sae, iter(x.split(batch_size)), FEATURES)
    assert (found.n_samples, found.n_batches) == (1000, -(-1000 // batch_size))
    for name in ("l0", "dead_latents", "dense_latents", "c_dec", "c_enc", "mcc", "l0_median"):
        assert found.to_row()[name] == exact.to_row()[name], name
    for name in ("mse", "variance_explained", "shrinkage"):
        assert found.to_row()[name] == pytest.approx(exact.to_row()[name], rel=1e-5)
    for name in ("densities", "l0_counts"):
        assert np.array_equal(getattr(found, name), getattr(exact, name))
    assert found.projection_relative_error == RELATIVE_ERROR
    off = np.abs(found.projections.astype(float) - exact.projections)
    assert (off <= (RELATIVE_ERROR + 1e-6) * np.abs(exact.projections)).all()
    assert found.histogram_counts.sum() == 1000 * H


def test_large_tensors_are_counted_and_stored_activations_read_in_batches(sae):
    x = samples(1600)
    for exact_below, error in ((1600 * H, 0), (1600 * H - 1, RELATIVE_ERROR)):
        found = evaluate(sae, x, exact_below=exact_below)
        assert found.projection_relative_error == error
    for batch_size, n_batches in ((None, 16), (400, 4)):
        found = evaluate(sae, StoredActivations.of(x), batch_size=batch_size)
        assert found.n_batches == n_batches
        assert repr(found) == repr(evaluate(sae, x.split(1600 // n_batches)))


@as_stream_or_not
def test_standard_errors_are_those_of_the_batches(sae, as_stream):
    x = samples(1200)
    found = evaluate(sae, iter(x.split(100))) if as_stream else evaluate(sae, x, batch_size=100)
    alone = [evaluate(sae, batch) for batch in x.split(100)]

    def expected(values):
        return np.std(np.stack(values).astype(float), axis=0, ddof=1) / math.sqrt(12)

    assert found.l0_standard_error == pytest.approx(expected([a.l0 for a in alone]), rel=1e-6)
    assert found.mse_standard_error == pytest.approx(expected([a.mse for a in alone]), rel=1e-4)
    by_batch = [a.projections for a in alone]
    # Where each batch's s_n is counted, to the bound, so are their differences.
    slack = 2 * found.projection_relative_error * np.abs(by_batch).max() / math.sqrt(12)
    assert np.abs(found.projection_standard_errors - expected(by_batch)).max() < slack + 1e-6
    assert found.projection_standard_errors.max() > 5 * slack


def test_the_standard_error_of_variance_explained_is_how_much_streams_differ(sae):
    # 60 streams of 12 batches: their spread, known to 9 %, against what each says of itself.
    found = [evaluate(sae, samples(720, seed), batch_size=60) for seed in range(60)]
    values = torch.tensor([f.variance_explained for f in found])
    said = sum(f.variance_explained_standard_error for f in found) / len(found)
    assert 0.7 < said / values.std().item() < 1.4


def test_saes_are_evaluated_together_as_alone_and_by_name(sae):
    other = make_sae(torch.randn(4, D, generator=torch.Generator().manual_seed(5)))
    batches = samples(300).split(100)
    together = evaluate({"wide": sae, "narrow": other}, batches)
    assert together.names == ("wide", "narrow")
    assert together.projections.shape == (2, H)
    assert together.projections.loc["narrow", 4:].isna().all()
    for found, one in zip(together, (sae, other), strict=True):
        alone = evaluate(one, batches)
        assert str(found.to_row()) == str(alone.to_row())
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
    row = evaluate(sae, samples(50), FEATURES).to_row()
    first = "l0 dead_latents shrinkage mse variance_explained c_dec c_enc mean_max_cosine mcc"
    assert list(row)[:9] == first.split()
    assert list(row)[9:13] == ["uniqueness", "f1", "precision", "recall"]
    assert {type(value) for value in row.values()} == {float, int}
    without = evaluate(sae, samples(50))
    assert f"l0={row['l0']:.4g}" in repr(without)
    assert without.match is None
    assert all(math.isnan(without.to_row()[name]) for name in RECOVERY)


def test_the_true_sae_scores_full_marks_and_falls_off_at_the_true_l0():
    fires = (torch.rand(400, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    found = evaluate(make_sae(torch.eye(6)), fires, torch.eye(6))
    assert found.l0 == fires.sum().item() / 400
    scores = (found.shrinkage, found.variance_explained, found.mean_max_cosine, found.mcc)
    assert scores == pytest.approx((1, 1, 1, 1))
    assert (found.dead_latents, found.mse, found.c_dec, found.c_enc) == pytest.approx((0, 0, 0, 0))
    # Orthogonal features are their own projections: the share that fires is above zero.
    assert 2 < found.l0 < 3
    assert found.projections.tolist() == [1, 1, 1, 0, 0, 0]


def test_recovery_of_a_world_is_what_sae_lens_says():
    world = SyntheticWorld(CONFIG)
    x, features = world.stream(3_000, seed=0).draw()
    # Features, one of them twice, turned a little; the first two are turned around.
    rows = world.directions.T[[*range(24), 23]]
    rows += 0.2 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(3))
    rows[:2] *= -1
    sae = make_sae(rows, b_dec=world.model.embed.bias, threshold=torch.tensor(0.3))
    parts = iter(features.split(1_000))
    drawn: Any = SimpleNamespace(sample=lambda _: next(parts))
    expected = eval_sae_on_synthetic_data(sae, world.synthetic.feature_dict, drawn, 3_000, 1_000)
    for given in (features, features > 0):
        for activations in (x, x.split(700), StoredActivations.of(x)):
            found = evaluate(sae, activations, world.directions, given)
            assert found.uniqueness == expected.uniqueness < 1
            of_latents = expected.classification
            assert (found.f1, found.precision, found.recall) == pytest.approx(
                (of_latents.f1_score, of_latents.precision, of_latents.recall), rel=1e-6
            )
            assert 0.05 < found.f1 < 0.95
            # Theirs takes |cosine|; two latents are turned around.
            assert found.mcc < expected.mcc
            assert found.l0 == pytest.approx(expected.sae_l0)
    without = evaluate(sae, x, world.directions)
    assert without.uniqueness == found.uniqueness
    assert np.isnan([without.f1, without.precision, without.recall]).all()
    # Everything else is the same, to the last digit.
    rows = (evaluate(sae, x, world.directions, features).to_row(), without.to_row())
    assert [name for name in rows[0] if str(rows[0][name]) != str(rows[1][name])] == [
        *("f1", "precision", "recall")
    ]


def test_f1_of_latents_that_are_worked_out():
    fires = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0.0]])
    # Latents on feature 0, on all of it; on 0 and half of 1, nearest to 0; and on none.
    rows = torch.tensor([[1, 0, 0], [1, 0.5, 0], [0, 0, 1.0]])
    sae = make_sae(rows, b_enc=torch.tensor([0.0, 0.0, -2.0]))
    found = evaluate(sae, fires, torch.eye(3), fires)
    assert found.uniqueness == 2 / 3
    assert found.precision == pytest.approx((1 + 3 / 4 + 0) / 3)
    assert found.recall == pytest.approx((1 + 1 + 0) / 3)
    assert found.f1 == pytest.approx((1 + 6 / 7 + 0) / 3)


@pytest.mark.parametrize("skip_failing", [True, False])
@pytest.mark.parametrize(
    ("features", "acts", "message"),
    [
        (None, torch.ones(300, F), "give true_features"),
        (FEATURES, torch.ones(300, F + 1), rf"\[samples, {F}\].*\[300, {F + 1}\]"),
        (FEATURES, torch.full((300, F), math.nan), "NaN"),
        (FEATURES, torch.ones(299, F), "299 samples.*300"),
        (FEATURES, torch.ones(301, F), "301 samples.*300"),
    ],
)
def test_activations_of_other_features_are_refused(sae, features, acts, message, skip_failing):
    for x in (samples(300), samples(300).split(100)):
        with pytest.raises(ValueError, match=message):
            evaluate([sae], x, features, acts, skip_failing=skip_failing)


def test_training_saes_are_evaluated_by_their_export():
    sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=4, d_sae=4, k=1.5))
    sae.W_enc.data.copy_(torch.eye(4))
    sae.W_dec.data.copy_(torch.eye(4))
    sae.topk_threshold.data.fill_(0.5)
    x = torch.rand(1000, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert evaluate(sae, x).l0 == (x > 0.5).sum().item() / 1000
    assert evaluate(sae, x, as_trained=True).l0 == 1.5


@as_stream_or_not
def test_a_diverged_sae_is_nan_and_leaves_others_alone(sae, as_stream):
    broken = make_sae(torch.full((3, D), torch.nan), b_dec=torch.tensor(torch.nan))
    x = samples(200)
    fires = torch.ones(200, F)
    found, fine = evaluate([broken, sae], x.split(100) if as_stream else x, FEATURES, fires)
    for name in ("l0", "mse", "variance_explained", "shrinkage", "c_dec", "c_enc", *RECOVERY):
        assert math.isnan(found.to_row()[name]), name
    # The gate of an inference JumpReLU SAE multiplies NaN by 0, so nothing counts as dead.
    assert found.dead_latents == 0
    assert np.isnan(found.projections).all()
    assert math.isfinite(fine.l0)
    assert fine.precision == 1  # every feature fires all the time
    assert np.isfinite(fine.projections).all()


def test_half_precision_batches_are_measured(sae):
    x = samples(200).bfloat16()
    half, full = (evaluate(sae, batch.split(100), FEATURES) for batch in (x, x.float()))
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


def with_nan():
    x = torch.ones(4, D)
    x[2, 3] = x[3, 0] = math.nan
    return x


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        ([], "no batches"),
        ([torch.zeros(3, D + 1)], rf"\[samples, {D}\].*sample 0 .*\[3, {D + 1}\]"),
        ([torch.zeros(5, D), with_nan()], r"not finite: 2 value\(s\).*sample 7, dimension 3"),
        ([torch.zeros(3, D), torch.zeros(0, D)], rf"sample 3 .*\[0, {D}\]"),
        (torch.zeros(0, D), "at least one sample"),
        (torch.zeros(3, D + 1), rf"\[samples, {D}\]"),
        (with_nan(), r"not finite: 2 value\(s\).*sample 2, dimension 3"),
        (torch.full((2, D), -math.inf), "not finite"),
    ],
)
@pytest.mark.parametrize("skip_failing", [True, False])
def test_what_cannot_be_measured_is_refused(sae, activations, message, skip_failing):
    with pytest.raises(ValueError, match=message):
        evaluate([sae], activations, skip_failing=skip_failing)


def test_saes_of_different_widths_are_refused(sae):
    with pytest.raises(ValueError, match=r"2 different widths \[3, 6\]"):
        evaluate([sae, make_sae(torch.eye(3))], samples(10))
    with pytest.raises(ValueError, match="at least one SAE"):
        evaluate([], samples(10))


@as_stream_or_not
def test_where_one_sae_cannot_be_evaluated_the_others_are(sae, as_stream):
    x = samples(300).split(100) if as_stream else samples(300)
    saes = {"bad": too_many(), "good": sae}
    found = evaluate(saes, x, FEATURES, skip_failing=True)
    assert list(found.failed) == ["bad"]
    assert found.names == ("good",)
    assert str(found[0].to_row()) == str(evaluate(sae, x, FEATURES).to_row())
    for failing in (saes, too_many()):
        with pytest.raises(RuntimeError):
            evaluate(failing, x, skip_failing=failing is not saes)


def test_the_stream_is_left_once_nothing_can_be_measured():
    batches = iter(samples(300).split(100))
    assert len(evaluate([too_many()], batches, skip_failing=True)) == 0
    assert len(list(batches)) == 1


@as_stream_or_not
@pytest.mark.parametrize("scale", [1e20, 1e30, 1e-20, 1e-30])
def test_evaluations_are_the_same_at_every_scale(scale, as_stream):
    def at(one):
        x = samples(400, scale=one)
        return evaluate(make(one), x.split(50) if as_stream else x)

    expected, found = at(1.0), at(scale)
    assert found.l0 == pytest.approx(expected.l0, abs=0.02)
    assert found.mse / scale / scale == pytest.approx(expected.mse, rel=1e-2)
    assert found.variance_explained == pytest.approx(expected.variance_explained, abs=2e-3)
    assert found.shrinkage == pytest.approx(expected.shrinkage, rel=1e-3)
    assert (found.c_dec, found.c_enc) == pytest.approx((expected.c_dec, expected.c_enc), rel=1e-5)
    # Where both are counted, each is to the bound.
    tolerances = {
        "projections": (3 * RELATIVE_ERROR if as_stream else 1e-3, 1e-5),
        "projection_standard_errors": (0.1, 1e-2),
        "histogram_edges": (0.1, 1e-2),
    }
    for name, (rel, abs_) in tolerances.items():
        values, wanted = getattr(found, name).astype(float) / scale, getattr(expected, name)
        assert np.allclose(values, wanted, rel, abs_, equal_nan=not as_stream), name
