"""What `evaluate` says of reconstructions and of active latents, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_but_wrong.metrics.evaluate import evaluate


def test_worked_example(make_sae):
    # The SAE sees x_0 only, and halves it.
    sae = make_sae(torch.tensor([[0.5, 0.0]]), W_enc=torch.tensor([[1.0], [0.0]]))
    x = torch.tensor([[4.0, 0.0], [0.0, 3.0], [8.0, 6.0]])
    # Reconstructions (2, 0), (0, 0), (4, 0); squared errors 4, 9, 52.
    # The mean is (4, 3), squared distances from it 9, 16, 25.
    measured = evaluate(sae, x)
    assert measured.mse == pytest.approx(65 / 3)
    assert measured.variance_explained == pytest.approx(1 - 65 / 50)
    assert measured.shrinkage == pytest.approx((2 / 4 + 0 / 3 + 4 / 10) / 3)


def test_empty_samples_do_not_enter_the_shrinkage(make_sae):
    # The decoder bias makes something of nothing: a norm ratio of an empty sample is infinite.
    sae = make_sae(0.5 * torch.eye(2), W_enc=torch.eye(2), b_dec=torch.tensor([0.0, 1.0]))
    x = torch.tensor([[0.0, 0.0], [4.0, 1.0], [0.0, 0.0]])
    # x − b_dec = (4, 0), so the reconstruction is (2, 1).
    assert evaluate(sae, x).shrinkage == pytest.approx(math.sqrt(5 / 17))


def test_the_share_of_empty_samples_does_not_matter(make_sae):
    generator = torch.Generator().manual_seed(0)
    sae = make_sae(torch.eye(4), b_enc=torch.full((4,), -0.1))
    x = torch.rand(500, 4, generator=generator)
    padded = torch.cat([torch.zeros(50, 4), x])
    expected = evaluate(sae, x).shrinkage
    assert 0.5 < expected < 0.95
    assert evaluate(sae, padded).shrinkage == pytest.approx(expected, rel=1e-6)


def test_only_empty_samples(make_sae):
    measured = evaluate(make_sae(torch.eye(2)), torch.zeros(5, 2))
    assert math.isnan(measured.shrinkage)
    assert (measured.mse, measured.variance_explained) == (0.0, 1.0)


def test_no_variance_to_explain(make_sae):
    # Thirds and sevenths are not exact in binary, so the computed mean is off by rounding.
    x = torch.tensor([[1 / 3, 100 / 7, 1e-3]]).repeat(10_001, 1)
    assert evaluate(make_sae(torch.eye(3)), x).variance_explained == 1.0
    half = make_sae(0.5 * torch.eye(3), W_enc=torch.eye(3))
    assert evaluate(half, x).variance_explained == 0.0


def test_a_single_sample_has_no_variance(make_sae):
    measured = evaluate(make_sae(torch.eye(2)), torch.tensor([[1.0, 2.0]]))
    assert measured.variance_explained == 1.0


def test_a_small_variance_far_from_the_origin_is_still_measured(make_sae):
    # Spread 1 around 1000: a one-pass sum of squares in float32 would lose most of it.
    generator = torch.Generator().manual_seed(1)
    centre = torch.full((3,), 1000.0)
    x = centre + torch.randn(20_000, 3, generator=generator)
    sae = make_sae(torch.zeros(1, 3), b_dec=centre)
    expected = (
        1
        - ((x - centre).double() ** 2).sum().item()
        / ((x.double() - x.double().mean(0)) ** 2).sum().item()
    )
    measured = evaluate(sae, x)
    assert measured.variance_explained == pytest.approx(expected, abs=1e-6)
    assert measured.mse == pytest.approx(3, rel=0.05)


def test_samples_sorted_by_size_give_the_same_figures(make_sae):
    # The first chunk, whose mean serves as origin, is then far from the mean of all.
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20_000, 3, generator=generator)
    sae = make_sae(torch.eye(3), b_enc=torch.full((3,), 0.1))
    mixed, in_order = evaluate(sae, x), evaluate(sae, x[x.norm(dim=1).argsort()])
    in_order_by_value = evaluate(sae, x[x[:, 0].argsort()])
    for measured in (in_order, in_order_by_value):
        assert measured.mse == pytest.approx(mixed.mse, rel=1e-5)
        assert measured.variance_explained == pytest.approx(mixed.variance_explained, abs=1e-5)
        assert measured.shrinkage == pytest.approx(mixed.shrinkage, rel=1e-5)


def test_mse_is_the_loss_sae_lens_trains():
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=6, d_sae=4))
    generator = torch.Generator().manual_seed(3)
    for weights in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
        weights.data.copy_(torch.randn(weights.shape, generator=generator))
    x = torch.randn(128, 6, generator=generator)
    step = sae.training_forward_pass(TrainStepInput(x, {"l0": 0.0}, None, 0, False))
    assert evaluate(sae, x).mse == pytest.approx(step.losses["mse_loss"].item(), rel=1e-5)


def test_a_diverged_sae_is_nan(make_sae):
    sae = make_sae(torch.eye(2), b_dec=torch.tensor([math.nan, 0.0]))
    for x in (torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.ones(2, 2)):
        measured = evaluate(sae, x)
        assert math.isnan(measured.mse)
        assert math.isnan(measured.variance_explained)
        assert math.isnan(measured.shrinkage)


def test_refuses_a_transcoder():
    from sae_lens import Transcoder, TranscoderConfig

    transcoder = Transcoder(TranscoderConfig(d_in=3, d_sae=4, d_out=2, apply_b_dec_to_input=False))
    with pytest.raises(ValueError, match="a transcoder is not"):
        evaluate(transcoder, torch.ones(2, 3))


def test_active_latents_of_a_worked_example(make_sae):
    # Latent i reads x_i where it is above 1; latent 3 has a threshold nothing reaches.
    sae = make_sae(torch.eye(4), threshold=torch.tensor([1.0, 1.0, 1.0, 99.0]))
    x = torch.tensor(
        [[2.0, 2.0, 0.0, 5.0], [1.0, 3.0, 0.5, 5.0], [0.0, 0.0, -9.0, 5.0], [1.5, 1.5, 1.5, 5.0]]
    )
    # Active: {0, 1}, {1} (a value at its threshold is off), {}, {0, 1, 2}.
    measured = evaluate(sae, x)
    assert measured.l0 == 6 / 4
    assert measured.dead_latents == 1
    assert measured.densities.tolist() == [0.5, 0.75, 0.25, 0.0]


def test_latents_that_are_active_when_negative_count():
    from sae_lens import AbsTopKSAE
    from sae_lens.saes.abstopk_sae import AbsTopKSAEConfig

    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=3, d_sae=3, k=1))
    sae.W_enc.data.copy_(torch.eye(3))
    measured = evaluate(sae, torch.tensor([[-5.0, 1.0, 2.0], [0.0, 4.0, 1.0]]))
    assert measured.l0 == 1
    assert measured.densities.tolist() == [0.5, 0.5, 0.0]


# torch says so once, when sae_lens makes the first sparse tensor.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_sparse_tensors_are_counted():
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    cfg = TopKTrainingSAEConfig(
        d_in=3, d_sae=3, k=2, use_sparse_activations=True, decoder_init_norm=1.0
    )
    sae = TopKTrainingSAE(cfg)
    sae.W_enc.data.copy_(torch.eye(3))
    x = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    assert sae.encode(x).is_sparse
    measured = evaluate(sae, x, as_trained=True)
    assert measured.l0 == 2
    assert measured.densities.tolist() == [1.0, 0.5, 0.5]


def test_a_diverged_latent_is_neither_dead_nor_measurable(make_sae):
    sae = make_sae(torch.eye(3), b_enc=torch.tensor([math.nan, 0.0, 0.0]))
    measured = evaluate(sae, torch.tensor([[1.0, 1.0, -1.0]]))
    assert math.isnan(measured.l0)
    assert np.isnan(measured.densities).tolist() == [True, False, False]
    assert measured.dead_latents == 1
