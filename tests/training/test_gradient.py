"""One step's losses, gradient, firings and buffers of a stack, against sae_lens and autograd."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE
from torch import Tensor

from sparse_but_wrong.training.architectures import ARCHITECTURES
from sparse_but_wrong.training.architectures.base import Forward, Inputs
from sparse_but_wrong.training.stack import Stack
from tests.training import oracle
from tests.training.oracle import DEFAULTS, TOPK, make

START = 0.4  # of the running threshold


def stacked(
    saes: Sequence[Any], values: Sequence[float], dead: Tensor
) -> tuple[Forward, dict[str, Tensor]]:
    """The forward pass of the engine, and its gradients."""
    kind = next(a for a in ARCHITECTURES if a.handles(saes[0]))
    assert set(kind.parameters) == {name for name, _ in saes[0].named_parameters()}
    stack = Stack.of(saes, kind.parameters, kind.buffers)
    views = stack.views(stack.params)
    leaves = {name: view.detach().requires_grad_() for name, view in views.items()}
    architecture = kind([sae.cfg for sae in saes], torch.device("cpu"))
    dtype = torch.float64 if kind.sparsity == "k" else None
    inputs = Inputs(
        x=oracle.recorded_batches(1)[0],
        sparsity=torch.tensor(values, dtype=dtype).unsqueeze(1),
        dead=dead if architecture.uses_dead_latents else None,
        buffers={"topk_threshold": torch.full((len(saes),), START, dtype=torch.float64)},
    )
    forward = architecture.forward(inputs, leaves)
    total = torch.stack(list(forward.losses.values())).sum()
    grads = torch.autograd.grad(total, list(leaves.values()))
    return forward, dict(zip(leaves, grads, strict=True))


def assert_as_sae_lens(
    saes: Sequence[Any],
    values: Sequence[float],
    dead: Tensor | None = None,
    n_fired_min: int = 1,
    encoder_trains: bool = True,
) -> None:
    if dead is None:
        dead = torch.zeros(len(saes), saes[0].cfg.d_sae, dtype=torch.bool)
        dead[:, ::3] = True
    forward, grads = stacked(saes, values, dead)
    for i, sae in enumerate(saes):
        if isinstance(sae, BatchTopKTrainingSAE):
            sae.topk_threshold.fill_(START)
        output = oracle.loss_of(sae, oracle.recorded_batches(1)[0], values[i], dead[i])
        fired = (forward.acts[i] > 0).sum(0)
        assert fired.tolist() == output.feature_acts.to_dense().bool().sum(0).tolist()
        assert fired.sum() >= n_fired_min
        assert set(forward.losses) == set(output.losses)
        for name, value in output.losses.items():
            found = forward.losses[name][i].detach()
            torch.testing.assert_close(found, value.detach(), rtol=1e-5, atol=1e-6)
        for name, parameter in sae.named_parameters():
            assert parameter.grad is not None
            scale = parameter.grad.abs().max()
            if encoder_trains or name == "b_dec":
                assert scale > 0, f"{name} has no gradient, so this compares nothing"
            torch.testing.assert_close(
                grads[name][i], parameter.grad, rtol=1e-4, atol=2e-6 * max(1.0, scale.item())
            )
        if isinstance(sae, BatchTopKTrainingSAE):
            # The smallest activation is a float32; the mean of it and what was is not.
            moved = forward.buffers["topk_threshold"][i].item()
            assert moved == pytest.approx(sae.topk_threshold.item(), rel=1e-6)


BOTH = (False, True)


@pytest.mark.parametrize("mode", ["tanh", "step", "quadratic"])
@pytest.mark.parametrize(
    ("ste", "pre_act", "apply_b_dec"), [*itertools.product(BOTH, (None, 0.3), BOTH)]
)
def test_jumprelu(mode: str, ste: bool, pre_act: float | None, apply_b_dec: bool) -> None:
    options: dict[str, Any] = {
        "jumprelu_sparsity_loss_mode": mode,
        "jumprelu_ste_to_input": ste,
        "pre_act_loss_coefficient": pre_act,
        "apply_b_dec_to_input": apply_b_dec,
        "target_l0": 2.5,
    }
    # Unlike each other in everything that may differ within a stack.
    unlike = ({}, {"jumprelu_bandwidth": 0.7, "target_l0": 4.0}, {"jumprelu_tanh_scale": 1.3})
    saes = [make("jumprelu", i, **{**options, **changes}) for i, changes in enumerate(unlike)]
    assert_as_sae_lens(saes, [0.3, 1.1, 0.05])


NORMS = (1.0, 0.5, 1.5, 2.0, 3.0)


@pytest.mark.parametrize("apply_b_dec", BOTH)
@pytest.mark.parametrize("p", NORMS)
def test_standard(p: float, apply_b_dec: bool) -> None:
    saes = [
        make("standard", seed, lp_norm=p, apply_b_dec_to_input=apply_b_dec) for seed in (21, 31, 57)
    ]
    # Below p = 1 the gradient grows without bound towards an activation of 0, and with it the
    # rounding errors of both sides: at an activation of 3e-5 autograd's own float32 gradient is
    # off by 1e-3. These seeds have none so small.
    with torch.no_grad():
        acts = [sae.encode(oracle.recorded_batches(1)[0]) for sae in saes]
    assert all(a[a > 0].min() > 2e-3 for a in acts)
    assert_as_sae_lens(saes, [0.3, 1.1, 0.0], n_fired_min=100)


@pytest.mark.parametrize("p", NORMS)
def test_standard_with_a_zero_decoder_row_and_samples_without_an_active_latent(p: float) -> None:
    saes = [make("standard", seed=i, lp_norm=p) for i in range(2)]
    with torch.no_grad():
        saes[0].W_dec[2] = 0.0
        saes[1].b_enc.sub_(0.6)
        x = oracle.recorded_batches(1)[0]
        acts = saes[1].encode(x)
        assert 0 < (acts.sum(1) == 0).sum() < len(x), "no sample, or every one, is without"
        assert bool((saes[0].encode(x)[:, 2] > 0).any())
    assert_as_sae_lens(saes, [0.3, 0.3])


@pytest.mark.parametrize("apply_b_dec", BOTH)
def test_gated(apply_b_dec: bool) -> None:
    saes = [make("gated", seed=i, apply_b_dec_to_input=apply_b_dec) for i in range(3)]
    assert_as_sae_lens(saes, [0.3, 1.1, 0.0], n_fired_min=100)


def test_open_gates_without_a_magnitude_and_magnitudes_behind_closed_gates() -> None:
    sae = make("gated", seed=1)
    with torch.no_grad():
        sae.b_mag[:5] -= 1.0
        sae.b_gate[5:] -= 1.0
        z = (oracle.recorded_batches(1)[0] - sae.b_dec) @ sae.W_enc
        is_open, has_size = z + sae.b_gate > 0, z * sae.r_mag.exp() + sae.b_mag > 0
    for which in (is_open & ~has_size, ~is_open & has_size, is_open & has_size):
        assert which.sum() > 20
    assert_as_sae_lens([sae], [0.4], n_fired_min=20)


@pytest.mark.parametrize("architecture", ["gated", "jumprelu", "batchtopk"])
def test_a_zero_decoder_row_gives_no_nan(architecture: str) -> None:
    sae = make(architecture)
    with torch.no_grad():
        sae.W_dec[2] = 0.0
    dead = torch.zeros(1, oracle.D_SAE, dtype=torch.bool)
    dead[0, 2] = True
    forward, grads = stacked([sae], [3.0], dead)
    for values in (*forward.losses.values(), *grads.values()):
        assert bool(torch.isfinite(values).all())
    if architecture == "batchtopk":  # sae_lens divides 0 by 0
        assert not forward.acts[0, :, 2].any()
    else:
        assert_as_sae_lens([sae], [3.0])


TOPK_OPTIONS = [
    ("topk", {}),
    ("batchtopk", {"topk_threshold_lr": 0.3}),
    ("matryoshka_batchtopk", {}),
    ("matryoshka_batchtopk", {"use_matryoshka_aux_loss": True}),
    ("matryoshka_batchtopk", {"use_matryoshka_aux_loss": True, "matryoshka_widths": [8, 9]}),
    ("matryoshka_batchtopk", {"use_matryoshka_aux_loss": True, "matryoshka_widths": [1, 2, 5, 9]}),
]


# Without rescaling, with which sae_lens' own sparse backward pass fails.
SPARSE = [(("topk", {"use_sparse_activations": True}), False, True, aux) for aux in BOTH]


@pytest.mark.usefixtures("method")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("option", "rescale", "apply_b_dec", "aux"),
    [*itertools.product(TOPK_OPTIONS, BOTH, BOTH, BOTH), *SPARSE],
    ids=str,
)
def test_topk(
    option: tuple[str, dict[str, Any]], rescale: bool, apply_b_dec: bool, aux: bool
) -> None:
    name, changes = option
    changes = {
        **changes,
        "apply_b_dec_to_input": apply_b_dec,
        "rescale_acts_by_decoder_norm": rescale,
    }
    fraction = 0 if name == "topk" else 0.37
    dead = torch.zeros(4, oracle.D_SAE, dtype=torch.bool)
    dead[0, ::3] = True
    dead[1, :7] = True  # more than the d_in // 2 = 6 that the auxiliary loss takes
    dead[3, 4] = True
    # Unlike each other in everything that may differ within a stack.
    saes = [
        make(name, i, k=k + fraction, aux_loss_coefficient=coefficient * aux, **changes)
        for i, (k, coefficient) in enumerate([(3, 1.0), (1, 0.3), (8, 2.0), (2, 1 / 32)])
    ]
    assert_as_sae_lens(saes, [float(sae.cfg.k) for sae in saes], dead)
    for i, sae in enumerate(saes):  # alone only the dead are worked on
        sae.zero_grad()
        assert_as_sae_lens([sae], [float(sae.cfg.k)], dead[i : i + 1])


@pytest.mark.parametrize("name", TOPK)
def test_a_batch_on_which_nothing_is_positive(name: str) -> None:
    sae = make(name)
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
    nothing = torch.zeros(1, oracle.D_SAE, dtype=torch.bool)
    assert_as_sae_lens([sae], [3.0], nothing, n_fired_min=0, encoder_trains=False)
    forward, _ = stacked([sae], [3.0], ~nothing)
    if name != "topk":
        assert forward.buffers["topk_threshold"].tolist() == [START]


@pytest.mark.parametrize("k", [2.0, 2.3, 2.999, 0.5, 0.0, 8.99])
def test_a_fractional_k_of_topk_keeps_as_many_over_the_batch_as_batchtopk(k: float) -> None:
    sae, of_batch = make("topk"), make("batchtopk")
    with torch.no_grad():
        sae.b_enc.fill_(100.0)  # so that everything is positive
    nothing = torch.zeros(1, oracle.D_SAE, dtype=torch.bool)
    kept = (stacked([sae], [k], nothing)[0].acts > 0).sum(2).squeeze(0)
    assert kept.sum() == int(k * oracle.BATCH)
    n_with_one_more = int(k * oracle.BATCH) - int(k) * oracle.BATCH
    assert (kept == int(k) + (torch.arange(oracle.BATCH) < n_with_one_more)).all()  # the first
    assert (stacked([of_batch], [k], nothing)[0].acts > 0).sum() <= int(k * oracle.BATCH)


def test_every_architecture_of_sae_lens_is_known_or_left_to_it() -> None:
    known = {next(a for a in ARCHITECTURES if a.handles(make(name))) for name in DEFAULTS}
    assert known == set(ARCHITECTURES)
