"""One step's gradient, losses and threshold of TopK, BatchTopK and Matryoshka against autograd."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from sparse_but_wrong.training import products
from sparse_but_wrong.training.stack import ParameterLayout, stack_parameters
from tests.training import oracle, topk_family

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(params=["one by one", "batched, as on a GPU"], autouse=True)
def _method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one by one":
        monkeypatch.setattr(products, "one_by_one", lambda _: False)


def step(
    name: str, saes: list[TopKTrainingSAE], x: Tensor, ks: list[float], dead: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Latents fired, losses, gradients and moved thresholds of the engine's step."""
    kind = topk_family.ARCHITECTURES[name]
    layout = ParameterLayout(kind.parameter_shapes(oracle.D_IN, oracle.D_SAE))
    params = layout.views(stack_parameters(saes, layout))
    grads = layout.views(torch.full((len(saes), layout.size), torch.nan))
    architecture = kind([sae.cfg for sae in saes], torch.device("cpu"))
    workspace = architecture.workspace(x.shape[0])
    for buffer in vars(workspace).values():
        if isinstance(buffer, Tensor):
            buffer.fill_(torch.nan)  # whatever a buffer held before must not matter
    knob = torch.tensor(ks, dtype=torch.float64).unsqueeze(1)
    threshold = torch.full((len(saes),), 0.4, dtype=torch.float64)
    fired = architecture.step(
        x, params, {"topk_threshold": threshold}, grads, knob, dead, workspace
    )
    return fired, architecture.losses(x, params, knob, dead, workspace), grads, threshold


def assert_as_autograd(
    name: str, saes: list[TopKTrainingSAE], dead: Tensor, encoder_trains: bool = True
) -> None:
    x = oracle.recorded_batches(1)[0]
    ks = [float(sae.cfg.k) for sae in saes]
    fired, losses, grads, threshold = step(name, saes, x, ks, dead)
    for i, sae in enumerate(saes):
        if isinstance(sae, BatchTopKTrainingSAE):
            sae.topk_threshold.fill_(0.4)
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={},
                dead_neuron_mask=dead[i],
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        output.loss.backward()
        assert fired[i].tolist() == output.feature_acts.to_dense().bool().sum(0).tolist()
        assert set(losses) == set(output.losses)
        for loss, value in output.losses.items():
            torch.testing.assert_close(losses[loss][i], value.detach(), rtol=1e-5, atol=1e-6)
        for parameter_name, parameter in sae.named_parameters():
            assert parameter.grad is not None
            gradient = grads[parameter_name][i] * (2 / x.shape[0])
            scale = parameter.grad.abs().max()
            if encoder_trains or parameter_name == "b_dec":
                assert scale > 0, f"{parameter_name} has no gradient, so this compares nothing"
            torch.testing.assert_close(
                gradient, parameter.grad, rtol=1e-4, atol=2e-6 * max(1.0, scale.item())
            )
        if isinstance(sae, BatchTopKTrainingSAE):
            # The smallest activation is a float32; the mean of it and what was is not.
            assert threshold[i].item() == pytest.approx(sae.topk_threshold.item(), rel=1e-6)


OPTIONS = [
    ("topk", {}),
    ("batchtopk", {"topk_threshold_lr": 0.3}),
    ("matryoshka", {}),
    ("matryoshka", {"use_matryoshka_aux_loss": True}),
    ("matryoshka", {"use_matryoshka_aux_loss": True, "matryoshka_widths": [8, 9]}),
    ("matryoshka", {"use_matryoshka_aux_loss": True, "matryoshka_widths": [1, 2, 5, 9]}),
]


@pytest.mark.parametrize(
    ("option", "rescale", "apply_b_dec", "aux"),
    list(itertools.product(OPTIONS, (True, False), (True, False), (True, False))),
    ids=str,
)
def test_gradient_losses_and_threshold_are_autograds(
    option: tuple[str, dict[str, Any]], rescale: bool, apply_b_dec: bool, aux: bool
) -> None:
    name, changes = option
    options = {**changes, "apply_b_dec_to_input": apply_b_dec}
    assert_unlike_saes_are_as_autograd(
        name, aux, {**options, "rescale_acts_by_decoder_norm": rescale}
    )


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("aux", [False, True])
def test_sparse_activations_change_nothing(aux: bool) -> None:
    """Without rescaling, with which sae_lens' own sparse backward pass fails."""
    options = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
    assert_unlike_saes_are_as_autograd("topk", aux, options)


def assert_unlike_saes_are_as_autograd(name: str, aux: bool, options: dict[str, Any]) -> None:
    fraction = 0 if name == "topk" else 0.37
    # Unlike each other in everything that may differ within a stack.
    saes = [
        topk_family.make_sae(
            name, seed=i, k=k + fraction, aux_loss_coefficient=coefficient * aux, **options
        )
        for i, (k, coefficient) in enumerate([(3, 1.0), (1, 0.3), (8, 2.0), (2, 1 / 32)])
    ]
    dead = torch.zeros(4, oracle.D_SAE, dtype=torch.bool)
    dead[0, ::3] = True
    dead[1, :7] = True  # more than the d_in // 2 = 6 that the auxiliary loss takes
    dead[3, 4] = True
    assert_as_autograd(name, saes, dead)


@pytest.mark.parametrize("name", topk_family.ARCHITECTURES)
def test_a_batch_on_which_nothing_is_positive(name: str) -> None:
    sae = topk_family.make_sae(name)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    assert_as_autograd(
        name, [sae], torch.zeros(1, oracle.D_SAE, dtype=torch.bool), encoder_trains=False
    )
    x = oracle.recorded_batches(1)[0]
    *_, threshold = step(name, [sae], x, [3.0], torch.ones(1, oracle.D_SAE, dtype=torch.bool))
    assert threshold.tolist() == [0.4]


@pytest.mark.parametrize("k", [2.0, 2.3, 2.999, 0.5, 0.0, 8.99])
def test_a_fractional_k_of_topk_keeps_as_many_over_the_batch_as_batchtopk(k: float) -> None:
    sae = topk_family.make_sae("topk")
    with torch.no_grad():
        sae.b_enc.fill_(100.0)  # so that everything is positive
    x = oracle.recorded_batches(1)[0]
    nothing = torch.zeros(1, oracle.D_SAE, dtype=torch.bool)
    fired, *_ = step("topk", [sae], x, [k], nothing)
    of_batch, *_ = step("batchtopk", [topk_family.make_sae("batchtopk")], x, [k], nothing)
    assert fired.sum() == int(k * oracle.BATCH)
    assert of_batch.sum() <= int(k * oracle.BATCH)


def test_a_fractional_k_of_topk_gives_the_first_samples_one_more() -> None:
    architecture = topk_family.ARCHITECTURES["topk"](
        [topk_family.make_sae("topk").cfg], torch.device("cpu")
    )
    ranked = torch.rand(1, 8, oracle.D_SAE, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(ranked)
    architecture._mark_active(ranked, torch.tensor([[2.4]], dtype=torch.float64), out=out)
    assert out.sum(2).tolist() == [[3, 3, 3, 2, 2, 2, 2, 2]]  # int(2.4 · 8) = 19


def test_a_zero_decoder_row_only_silences_its_latent() -> None:
    sae = topk_family.make_sae("batchtopk")
    with torch.no_grad():
        sae.W_dec[2] = 0.0
    dead = torch.zeros(1, oracle.D_SAE, dtype=torch.bool)
    dead[0, 2] = True
    fired, losses, grads, _ = step("batchtopk", [sae], oracle.recorded_batches(1)[0], [3.0], dead)
    assert fired[0, 2] == 0
    for values in (*losses.values(), *grads.values()):
        assert bool(torch.isfinite(values).all())
