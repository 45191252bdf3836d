from __future__ import annotations

from functools import partial

import pytest
import torch
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from torch import Tensor, nn

from sparse_but_wrong.training.toy_sae import train_toy_sae
from sparse_but_wrong.worlds.features import get_training_batch
from sparse_but_wrong.worlds.toy_model import ToyModel

features = partial(get_training_batch, firing_probabilities=torch.full((5,), 0.3), device="cpu")


class Directions(nn.Module):
    """Embeds features, and has no part called `embed`."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.get_buffer("directions")


def jumprelu(d_in: int = 8) -> JumpReLUTrainingSAE:
    return JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=d_in, d_sae=5))


def trained(toy_model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    sae = jumprelu()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    train_toy_sae(sae, toy_model, features, 1e-2, 5 * 64, device="cpu", train_batch_size_tokens=64)
    after = sae.state_dict()
    assert not torch.equal(after["W_dec"], before["W_dec"])
    return after


def test_any_module_that_embeds_features() -> None:
    world = ToyModel(5, 8, ortho_num_steps=10)
    expected = trained(world)
    for name, value in trained(Directions(world.embed.weight.T)).items():
        # One product may be rounded in another order than the other.
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("toy_model", [ToyModel(5, 8), Directions(torch.eye(5, 8))])
def test_an_sae_of_another_width_is_refused(toy_model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\b8\b.*\b7\b"):
        train_toy_sae(jumprelu(d_in=7), toy_model, features, device="cpu")
