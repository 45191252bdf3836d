from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics.sparsity import SparsityTotals, sparsity


def test_worked_example(make_sae):
    # Latent i reads x_i where it is above 1; latent 3 has a threshold nothing reaches.
    sae = make_sae(torch.eye(4), threshold=torch.tensor([1.0, 1.0, 1.0, 99.0]))
    x = torch.tensor(
        [[2.0, 2.0, 0.0, 5.0], [1.0, 3.0, 0.5, 5.0], [0.0, 0.0, -9.0, 5.0], [1.5, 1.5, 1.5, 5.0]]
    )
    # Active: {0, 1}, {1} (a value at its threshold is off), {}, {0, 1, 2}.
    measured = sparsity(sae, x)
    assert measured.l0 == 6 / 4
    assert measured.dead_latents == 1
    assert measured.densities.tolist() == [0.5, 0.75, 0.25, 0.0]


def test_more_samples_than_a_chunk(make_sae):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_001, 5, generator=generator)
    measured = sparsity(make_sae(torch.eye(5)), x)
    assert measured.l0 == (x > 0).sum().item() / 20_001
    torch.testing.assert_close(measured.densities, (x > 0).float().mean(0))
    assert measured.dead_latents == 0


def test_latents_that_are_active_when_negative_count():
    from sae_lens import AbsTopKSAE
    from sae_lens.saes.abstopk_sae import AbsTopKSAEConfig

    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=3, d_sae=3, k=1))
    sae.W_enc.data.copy_(torch.eye(3))
    measured = sparsity(sae, torch.tensor([[-5.0, 1.0, 2.0], [0.0, 4.0, 1.0]]))
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
    measured = sparsity(sae, x)
    assert measured.l0 == 2
    assert measured.densities.tolist() == [1.0, 0.5, 0.5]


def test_a_diverged_latent_is_neither_dead_nor_measurable(make_sae):
    sae = make_sae(torch.eye(3), b_enc=torch.tensor([math.nan, 0.0, 0.0]))
    measured = sparsity(sae, torch.tensor([[1.0, 1.0, -1.0]]))
    assert math.isnan(measured.l0)
    assert measured.densities.isnan().tolist() == [True, False, False]
    assert measured.dead_latents == 1


def test_refuses_what_it_cannot_measure(make_sae):
    sae = make_sae(torch.eye(3))
    with pytest.raises(ValueError, match="no samples"):
        sparsity(sae, torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"shape \[samples, 3\]"):
        sparsity(sae, torch.ones(2, 4))
    with pytest.raises(ValueError, match="first at sample 1, dimension 2"):
        sparsity(sae, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, math.inf]]))
    with pytest.raises(ValueError, match="no chunk"):
        SparsityTotals().result()
