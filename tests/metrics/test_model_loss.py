"""Cross entropy and KL with reconstructions in the model, against sae_lens and plain sums."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import sae_lens
import torch
from sae_lens.evals import get_recons_loss
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sparse_but_wrong.activations.language_model import open_language_model
from sparse_but_wrong.metrics.model_loss import model_loss
from tests.activations.tiny_model import D_IN, make_tiny_model
from tests.metrics.evaluated import make_sae

HOOK = "model.layers.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_model(tmp_path_factory.mktemp("model"))
    return open_language_model(str(folder), HOOK).model


@pytest.fixture(scope="module")
def tokens(model: Any) -> torch.Tensor:
    """What the model says itself, so that it is good at it."""
    said = torch.arange(10, 16)[:, None]
    with torch.no_grad():
        while said.shape[1] < 12:
            said = torch.cat([said, model(said)[:, -1:].argmax(-1)], dim=1)
    return said


def sae(d_in: int = D_IN, seed: int = 0) -> sae_lens.JumpReLUSAE:
    generator = torch.Generator().manual_seed(seed)
    return make_sae(torch.nn.functional.normalize(torch.randn(48, d_in, generator=generator)))


def everywhere(tokens: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(tokens, dtype=torch.bool)


def transformer_lens() -> HookedTransformer:
    """Whose heads lie in a dimension of their own."""
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=16, d_head=4, n_heads=2, d_vocab=64, act_fn="relu"
    )
    # It says that it is going to be replaced.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        return HookedTransformer(config).eval()


@pytest.mark.parametrize(
    ("hook", "d_in"), [(HOOK, D_IN), ("blocks.0.hook_resid_post", 8), ("blocks.1.attn.hook_z", 8)]
)
def test_sae_lens_finds_the_same_where_nothing_is_left_out(
    hook: str, d_in: int, model: Any, tokens: torch.Tensor
) -> None:
    runs = model if hook == HOOK else transformer_lens()
    one = sae(d_in)
    found = model_loss({"one": one}, runs, hook, tokens, everywhere(tokens), torch.ones(d_in))
    with torch.no_grad():
        theirs = get_recons_loss(one, runs, ActivationScaler(), tokens, True, True, hook_name=hook)
    assert found.baselines["cross_entropy"]["model"].value == pytest.approx(
        theirs["ce_loss_without_sae"].mean().item(), abs=1e-5
    )
    row = found.table.loc["one"]
    assert row["cross_entropy"] == pytest.approx(theirs["ce_loss_with_sae"].mean().item(), abs=1e-5)
    zeros = found.baselines["cross_entropy"]["zeros"].value
    assert zeros == pytest.approx(theirs["ce_loss_with_ablation"].mean().item(), abs=1e-5)
    # At the last position there is no next token, so it is left out of both here.
    for name, ours in (("sae", row["kl"]), ("ablation", found.baselines["kl"]["zeros"].value)):
        kl = theirs[f"kl_div_with_{name}"][:, :-1].mean().item()
        assert ours == pytest.approx(kl, abs=1e-5)


def test_only_where_it_is_asked_for(model: Any, tokens: torch.Tensor) -> None:
    """Against a forward pass with the replacement written out."""
    replaced = everywhere(tokens)
    replaced[:, :2] = False
    replaced[2, 5:8] = False
    replaced[4] = False
    one, mean = sae(), torch.linspace(-1, 1, D_IN)
    found = model_loss({"one": one}, model, HOOK, tokens, replaced, mean, batch_size=4)

    def cross_entropy(value: Any) -> torch.Tensor:
        def put(activations: torch.Tensor, hook: Any) -> torch.Tensor:
            del hook
            return torch.where(replaced[..., None], value(activations), activations)

        logits = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, put)])[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        ).view(6, 11)

    at = replaced[:, :-1]
    with torch.no_grad():
        ways = (lambda x: x, torch.zeros_like, mean.expand_as, lambda x: one.decode(one.encode(x)))
        clean, zeros, of_mean, ours = (cross_entropy(way) for way in ways)
    assert found.table.loc["one", "cross_entropy"] == pytest.approx(ours[at].mean().item())
    assert found.baselines["cross_entropy"]["mean"].value == pytest.approx(
        of_mean[at].mean().item()
    )
    rise = (zeros - clean)[at].mean().item()
    assert rise > 0
    recovered = (zeros - ours)[at].mean().item() / rise
    assert found.table.loc["one", "loss_recovered"] == pytest.approx(recovered, abs=1e-5)
    # Standard errors: of a mean over the five sequences that count, weighted by their tokens.
    weights = at.sum(1).double()
    increase = torch.where(at, ours - clean, 0).sum(1).double() / weights.clamp_min(1)
    off = weights * (increase - (weights * increase).sum() / weights.sum())
    error = (off.square().sum() * 5 / 4).sqrt() / weights.sum()
    assert found.table.loc["one", "cross_entropy_increase_standard_error"] == pytest.approx(
        error.item(), rel=1e-4
    )
    assert f"{int(at.sum())} tokens of 5 sequences" in found.notes[0]


def test_a_perfect_sae_loses_nothing_and_one_that_is_mute_gives_its_bias(
    model: Any, tokens: torch.Tensor
) -> None:
    eye = torch.eye(D_IN)
    perfect, mute = make_sae(torch.cat([eye, -eye])), make_sae(eye)
    mute.W_enc.data.zero_()
    mute.b_dec.data.copy_(mean := torch.linspace(-1, 1, D_IN))
    training = sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(D_IN, 48))
    saes = {"perfect": perfect, "mute": mute, "training": training}
    found = model_loss(saes, model, HOOK, tokens, everywhere(tokens), mean)
    table = found.table
    assert table.loc["perfect", "cross_entropy_increase"] == pytest.approx(0, abs=1e-6)
    assert table.loc["perfect", "kl"] == pytest.approx(0, abs=1e-6)
    assert table.loc["perfect", ["loss_recovered", "loss_recovered_from_mean"]].tolist() == (
        pytest.approx([1, 1], abs=1e-5)
    )
    assert table.loc["mute", "loss_recovered_from_mean"] == pytest.approx(0, abs=1e-6)
    assert table.loc["mute", "kl"] == pytest.approx(found.baselines["kl"]["mean"].value)
    assert table.notna().all(axis=None)
    # Paired: sequences differ far more from each other than in what is added to them.
    errors = table.filter(like="standard_error").loc["perfect"]
    assert errors["cross_entropy_increase_standard_error"] < 1e-6
    assert errors["cross_entropy_standard_error"] > 0.01


def test_where_an_ablation_does_no_harm_nothing_is_recovered(model: Any) -> None:
    # Of these a random model is confidently wrong, and with zeros every token is equally likely.
    tokens = torch.randint(4, 64, (6, 12), generator=torch.Generator().manual_seed(0))
    mean = torch.zeros(D_IN)
    found = model_loss({"one": sae()}, model, HOOK, tokens, everywhere(tokens), mean)
    baselines = found.baselines["cross_entropy_increase"]
    assert baselines["mean"] == baselines["zeros"]
    assert baselines["zeros"].value < 0
    assert math.isnan(found.table.loc["one", "loss_recovered"])
    assert [note for note in found.notes if "nothing to recover" in note] == list(found.notes[-2:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replaced": torch.ones(6, 11, dtype=torch.bool)}, r"\[6, 12\] and \[6, 11\]"),
        ({"replaced": torch.arange(12).expand(6, 12) == 11}, "next token"),
        ({"mean": torch.ones(3)}, "d_in 32, but the mean 3"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], message: str, model: Any, tokens: torch.Tensor
) -> None:
    given = {"tokens": tokens, "replaced": everywhere(tokens), "mean": torch.ones(D_IN), **change}
    with pytest.raises(ValueError, match=message):
        model_loss({"one": sae()}, model, HOOK, **given)
