from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics.projections import decoder_projection_curve
from sparse_but_wrong.metrics.reconstruction import reconstruction
from sparse_but_wrong.metrics.recovery import match_latents
from sparse_but_wrong.metrics.score import score_sae
from sparse_but_wrong.metrics.similarity import decoder_similarity, encoder_similarity
from sparse_but_wrong.metrics.sparsity import sparsity

COLUMNS = [
    *("l0", "dead_latents", "shrinkage", "mse", "variance_explained"),
    *("c_dec", "c_enc", "mean_max_cosine", "mcc"),
]


@pytest.fixture
def world(make_sae):
    """An imperfect SAE of 6 latents, samples of a world of 5 features, and its directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(8, 5, generator=generator), dim=0)
    fires = torch.rand(9000, 5, generator=generator) < 0.3
    magnitudes = fires * (1 + 0.1 * torch.randn(9000, 5, generator=generator))
    W_dec = torch.cat([directions.T, -directions.T[:1]])
    W_dec = W_dec + 0.1 * torch.randn(6, 8, generator=generator)
    sae = make_sae(W_dec, threshold=torch.tensor([0.3] * 5 + [50.0]))
    return sae, magnitudes @ directions.T, directions


def test_is_made_of_the_single_measurements(world):
    sae, x, directions = world
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    score = score_sae(sae, x, directions)
    alone = sparsity(sae, x)
    assert (score.sparsity.l0, score.sparsity.dead_latents) == (alone.l0, alone.dead_latents)
    assert torch.equal(score.sparsity.densities, alone.densities)
    assert score.reconstruction == reconstruction(sae, x)
    assert (score.c_dec, score.c_enc) == (decoder_similarity(sae), encoder_similarity(sae))
    assert score.match is not None
    assert score.match.mcc == match_latents(sae, directions).mcc
    assert torch.equal(score.projections.values, decoder_projection_curve(sae, x).values)
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_row_has_the_columns_of_the_table_in_their_order(world):
    sae, x, directions = world
    score = score_sae(sae, x, directions)
    row = score.as_row()
    assert list(row) == [*COLUMNS, *(f"s_{n}" for n in range(6))]
    assert {type(value) for name, value in row.items() if name != "dead_latents"} == {float}
    assert row["dead_latents"] == 1
    assert isinstance(row["dead_latents"], int)
    assert row["l0"] == score.sparsity.l0
    assert row["shrinkage"] == score.reconstruction.shrinkage
    assert row["mse"] == score.reconstruction.mse
    assert row["variance_explained"] == score.reconstruction.variance_explained
    assert (row["c_dec"], row["c_enc"]) == (score.c_dec, score.c_enc)
    assert score.match is not None
    assert row["mean_max_cosine"] == score.match.mean_max_cosine
    assert row["mcc"] == score.match.mcc
    assert [row[f"s_{n}"] for n in range(6)] == [score.projections.at(n) for n in range(6)]
    assert not any(math.isnan(value) for value in row.values())


def test_without_the_true_features(world):
    sae, x, directions = world
    score = score_sae(sae, x)
    assert score.match is None
    row, full = score.as_row(), score_sae(sae, x, directions).as_row()
    assert list(row) == list(full)
    for name, value in full.items():
        assert math.isnan(row[name]) if name in ("mcc", "mean_max_cosine") else row[name] == value


def test_samples_are_encoded_once(world, monkeypatch):
    sae, x, _ = world
    seen = []
    encode = type(sae).encode
    monkeypatch.setattr(type(sae), "encode", lambda self, x: seen.append(len(x)) or encode(self, x))
    score_sae(sae, x)
    assert sum(seen) == len(x)
    assert len(seen) == 2


def test_the_true_sae_scores_full_marks(make_sae):
    fires = (torch.rand(400, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    row = score_sae(make_sae(torch.eye(6)), fires, torch.eye(6)).as_row()
    assert row["l0"] == fires.sum().item() / 400
    expected = {
        "dead_latents": 0, "shrinkage": 1, "mse": 0, "variance_explained": 1,
        "c_dec": 0, "c_enc": 0, "mean_max_cosine": 1, "mcc": 1,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_a_diverged_sae_gets_a_row_of_nan(world):
    sae, x, directions = world
    for weights in sae.parameters():
        weights.data.fill_(math.nan)
    row = score_sae(sae, x, directions).as_row()
    # The gate of an inference JumpReLU SAE multiplies NaN by 0, so nothing counts as dead.
    assert row.pop("dead_latents") == 0
    assert all(math.isnan(value) for value in row.values())


def test_training_saes_and_gradients():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=4, d_sae=4, k=1.5))
    sae.W_enc.data.copy_(torch.eye(4))
    x = torch.rand(1000, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    score = score_sae(sae, x)
    assert score.sparsity.l0 == 1.5
    assert not score.projections.values.requires_grad


@pytest.mark.parametrize("bad", [torch.ones(0, 8), torch.ones(4, 7), torch.full((4, 8), math.nan)])
def test_refuses_bad_activations(world, bad):
    with pytest.raises(ValueError, match="activations"):
        score_sae(world[0], bad)
