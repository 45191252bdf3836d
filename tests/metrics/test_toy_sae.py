from __future__ import annotations

import math
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from sparse_but_wrong.metrics.toy_sae import EvalResult, eval_sae


class World(nn.Module):
    """Stands in for a toy model: three features along the axes of a space of four."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.embed.weight.data.copy_(torch.eye(4)[:, :3])

    def forward(self, features: Tensor) -> Tensor:
        return self.embed(features)


# Two features, one, none, one: true L0 1.
BATCH = torch.tensor([[2.0, 2.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def batch_of(num_samples: int) -> Tensor:
    return BATCH.repeat(num_samples // 4, 1)


@pytest.fixture
def sae():
    """Latent i finds feature i and halves it, with decoder rows of norm 1, 2, 4, 8.

    Latent 2 does not fire on the small feature it is for, and latent 3 has no feature.
    """
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=4, d_sae=4))
    norms = torch.tensor([1.0, 2.0, 4.0, 8.0])
    sae.W_dec.data.copy_(torch.diag(norms))
    sae.W_enc.data.copy_(torch.diag(0.5 / norms))
    # In units of the reconstruction: the latent is on above 0.75.
    sae.threshold.data.copy_(0.75 / norms)
    return sae


def test_worked_example(sae):
    result = eval_sae(sae, World(), batch_of)
    # Active: {0, 1}, {1}, {}, {} (0.5 is below 0.75). Norm ratios 1/2, 1/2, 0; the empty
    # sample does not count.
    assert isinstance(result, EvalResult)
    assert (result.true_l0, result.sae_l0, result.dead_features) == (1.0, 0.75, 2)
    assert result.shrinkage == pytest.approx(1 / 3)
    assert [type(value) for value in vars(result).values()] == [float, float, int, float]


def test_any_module_that_embeds_features(sae):
    class Stretched(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return nn.functional.pad(2 * features, (0, 1))

    # Latents see twice the features: 2, 2 | 4 | none | 1, halved; all but none are above 0.75.
    result = eval_sae(sae, Stretched(), lambda n: BATCH.double().repeat(n // 4, 1))
    assert (result.true_l0, result.sae_l0, result.dead_features) == (1.0, 1.0, 1)
    # What an embedding in front of something else gives is not what the SAE was trained on.
    behind = World()
    behind.forward = lambda features: 2 * behind.embed(features)
    assert eval_sae(sae, behind, batch_of).sae_l0 == 1.0


def test_an_object_with_an_embedding_will_do(sae):
    @dataclass
    class Plain:
        embed: nn.Module

    assert eval_sae(sae, Plain(World().embed), batch_of).sae_l0 == 0.75


def test_active_means_above_zero():
    """As published; a latent that is only ever negative is dead."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig

    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=4, d_sae=4))
    sae.activation_fn = nn.Identity()
    sae.W_dec.data.copy_(torch.eye(4))
    sae.W_enc.data.copy_(torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0])))
    result = eval_sae(sae, World(), batch_of)
    # Active: {0}, {}, {}, {2}; latent 1 is −2 and −4 where its feature fires, latent 3 has none.
    assert (result.sae_l0, result.dead_features) == (0.5, 2)


def test_refuses_before_it_folds(sae, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    norms = sae.W_dec.norm(dim=1).detach()
    with pytest.raises(ValueError, match=r"\b4\b.*\b5\b"):
        eval_sae(sae, nn.Linear(3, 5), batch_of, num_samples=8)
    assert torch.equal(sae.W_dec.norm(dim=1), norms)


def test_folds_the_decoder_norm_in_place_and_keeps_the_function(sae):
    x = World().embed(BATCH).detach()
    before = sae(x)
    W_dec = sae.W_dec
    eval_sae(sae, World(), batch_of)
    assert sae.W_dec is W_dec
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(4))
    assert not torch.allclose(sae.encode(x), torch.zeros(()))
    torch.testing.assert_close(sae(x), before)
    assert sae.W_dec.requires_grad


def test_draws_a_hundred_thousand_samples_once_unless_told_otherwise(sae):
    asked: list[int] = []

    def generate_batch(num_samples: int) -> Tensor:
        asked.append(num_samples)
        return batch_of(num_samples)

    eval_sae(sae, World(), generate_batch)
    eval_sae(sae, World(), generate_batch, num_samples=8)
    assert asked == [100_000, 8]


def test_only_empty_samples(sae):
    result = eval_sae(sae, World(), lambda n: torch.zeros(n, 3), num_samples=10)
    assert (result.true_l0, result.sae_l0, result.dead_features) == (0.0, 0.0, 4)
    assert math.isnan(result.shrinkage)


def test_refuses_a_batch_of_another_shape(sae):
    with pytest.raises(ValueError, match=r"returned shape \[8, 2\].*\[8, 3\]"):
        eval_sae(sae, World(), lambda n: torch.ones(n, 2), num_samples=8)
    with pytest.raises(ValueError, match=r"returned shape \[4, 3\].*\[8, 3\]"):
        eval_sae(sae, World(), lambda _: BATCH, num_samples=8)
    with pytest.raises(ValueError, match="num_samples is 0"):
        eval_sae(sae, World(), batch_of, num_samples=0)


def test_an_sae_that_ranks_without_decoder_norms_is_left_as_it_is():
    """Folding would change which latents it keeps, so sae_lens refuses to."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=4, d_sae=4, k=1, rescale_acts_by_decoder_norm=False)
    )
    sae.W_dec.data.copy_(3 * torch.eye(4))
    sae.W_enc.data.copy_(torch.eye(4))
    result = eval_sae(sae, World(), batch_of)
    assert torch.equal(sae.W_dec, 3 * torch.eye(4))
    # Four positive values in four samples, all of which k = 1 leaves.
    assert result.sae_l0 == 1.0
