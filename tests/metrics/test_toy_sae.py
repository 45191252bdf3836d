from __future__ import annotations

import math
from types import SimpleNamespace

import jaxtyping
import pytest
import sae_lens
import torch
from torch import Tensor, nn

from sparse_but_wrong import ToyModel
from sparse_but_wrong.metrics.toy_sae import EvalResult, eval_sae
from tests.metrics.evaluated import make_sae


def world() -> ToyModel:
    """Three features along the axes of a space of four."""
    model = ToyModel(num_feats=3, hidden_dim=4, ortho_num_steps=0)
    model.embed.weight.data.copy_(torch.eye(4)[:, :3])
    return model


def behind() -> ToyModel:
    """What an embedding in front of something else gives is not what the SAE was trained on."""
    model = world()
    model.forward = lambda features: 2 * model.embed(features)
    return model


# Two features, one, none, one: true L0 1.
BATCH = torch.tensor([[2.0, 2.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def batch_of(num_samples: int) -> Tensor:
    return BATCH.repeat(num_samples // 4, 1)


@pytest.fixture
def sae():
    """Latent i finds feature i and halves it, with decoder rows of norm 1, 2, 4, 8.

    Latent 2 does not fire on the small feature it is for, and latent 3 has no feature.
    """
    norms = torch.tensor([1.0, 2.0, 4.0, 8.0])
    # In units of the reconstruction: the latent is on above 0.75.
    return make_sae(norms.diag(), W_enc=(0.5 / norms).diag(), threshold=0.75 / norms)


# Active: {0, 1}, {1}, {}, {} (0.5 is below 0.75). Norm ratios 1/2, 1/2, 0; the empty sample does
# not count. Of twice the features: 2, 2 | 4 | none | 1, halved; all but none are above 0.75.
@pytest.mark.parametrize(
    ("toy_model", "scores", "shrinkage"),
    [
        (world(), (1.0, 0.75, 2), 1 / 3),
        (SimpleNamespace(embed=world().embed), (1.0, 0.75, 2), 1 / 3),
        (nn.ConstantPad1d((0, 1), 0.0), (1.0, 0.75, 2), 1 / 3),  # any module that embeds features
        (behind(), (1.0, 1.0, 1), 1 / 2),
    ],
)
def test_worked_examples(sae, toy_model, scores, shrinkage):
    result = eval_sae(sae, toy_model, lambda n: batch_of(n).double())
    assert isinstance(result, EvalResult)
    assert (result.true_l0, result.sae_l0, result.dead_features) == scores
    assert result.shrinkage == pytest.approx(shrinkage)
    assert [type(value) for value in vars(result).values()] == [float, float, int, float]


def test_active_means_above_zero():
    """As published; a latent that is only ever negative is dead."""
    sae = sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(d_in=4, d_sae=4))
    sae.activation_fn = nn.Identity()
    sae.W_dec.data.copy_(torch.eye(4))
    sae.W_enc.data.copy_(torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0])))
    result = eval_sae(sae, world(), batch_of)
    # Active: {0}, {}, {}, {2}; latent 1 is −2 and −4 where its feature fires, latent 3 has none.
    assert (result.sae_l0, result.dead_features) == (0.5, 2)


def test_folds_the_decoder_norm_in_place_and_keeps_the_function(sae):
    x = world().embed(BATCH).detach()
    before, W_dec = sae(x), sae.W_dec
    eval_sae(sae, world(), batch_of)
    assert sae.W_dec is W_dec
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(4))
    assert sae.encode(x).any()
    torch.testing.assert_close(sae(x), before)
    assert sae.W_dec.requires_grad


def test_draws_a_hundred_thousand_samples_once_unless_told_otherwise(sae):
    asked: list[int] = []

    def generate_batch(num_samples: int) -> Tensor:
        asked.append(num_samples)
        return torch.zeros(num_samples, 3)

    result = eval_sae(sae, world(), generate_batch)
    assert (result.true_l0, result.sae_l0, result.dead_features) == (0.0, 0.0, 4)
    assert math.isnan(result.shrinkage)
    eval_sae(sae, world(), generate_batch, num_samples=8)
    assert asked == [100_000, 8]


@pytest.mark.parametrize(
    ("toy_model", "returned", "num_samples", "message"),
    [
        (world(), torch.ones(8, 2), 8, r"returned shape \[8, 2\].*\[8, 3\]"),
        (world(), BATCH, 8, r"returned shape \[4, 3\].*\[8, 3\]"),
        (world(), BATCH, 0, "num_samples is 0"),
        (nn.Linear(3, 5), BATCH, 4, r"\b4\b.*\b5\b"),
    ],
)
def test_refuses_what_does_not_fit_before_it_folds(
    sae, toy_model, returned, num_samples, message, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    norms = sae.W_dec.norm(dim=1).detach()
    with pytest.raises(ValueError, match=message):
        eval_sae(sae, toy_model, lambda _: returned, num_samples)
    assert torch.equal(sae.W_dec.norm(dim=1), norms)


def test_an_sae_that_ranks_without_decoder_norms_is_left_as_it_is():
    """Folding would change which latents it keeps, so sae_lens refuses to."""
    sae = sae_lens.BatchTopKTrainingSAE(
        sae_lens.BatchTopKTrainingSAEConfig(
            d_in=4, d_sae=4, k=1, rescale_acts_by_decoder_norm=False
        )
    )
    sae.W_dec.data.copy_(3 * torch.eye(4))
    sae.W_enc.data.copy_(torch.eye(4))
    result = eval_sae(sae, world(), batch_of)
    assert torch.equal(sae.W_dec, 3 * torch.eye(4))
    # Four positive values in four samples, all of which k = 1 leaves.
    assert result.sae_l0 == 1.0
