"""Small SAEs of every architecture, and stacks of them whose options differ."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, TrainingSAE
from sae_lens.registry import get_sae_training_class
from torch import Tensor

import sparse_but_wrong.training.enhanced_batchtopk_sae  # noqa: F401  (registers it)
from tests.training import oracle

DEFAULTS: dict[str, dict[str, Any]] = {
    "jumprelu": {
        "l0_coefficient": 0.3,
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.1,
        "jumprelu_sparsity_loss_mode": "tanh",
    },
    "standard": {"l1_coefficient": 0.3},
    "gated": {"l1_coefficient": 0.3},
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka_batchtopk": {"k": 3, "matryoshka_widths": [3, 6, oracle.D_SAE]},
    "enhanced_batchtopk": {"k": 3},
}
TOPK = ("topk", "batchtopk", "matryoshka_batchtopk")
COMPILED = ("jumprelu", "topk", "batchtopk", "enhanced_batchtopk")


def steps_of(architecture: str) -> tuple[str, ...]:
    """What can take the steps of its SAEs; parameters of the fixture `step`."""
    return ("compiled", "pytorch") if architecture in COMPILED else ("pytorch",)


def make_sae(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """An SAE whose parameters, biases included, follow from a seed; no norm is special.

    A JumpReLU SAE's threshold is what its config says.
    """
    sae_class, config_class = get_sae_training_class(architecture)
    sizes = {"d_in": oracle.D_IN, "d_sae": oracle.D_SAE}
    sae = sae_class(config_class(**{**sizes, **DEFAULTS[architecture], **changes}))
    if architecture not in ("standard", "gated"):
        return oracle.seeded(sae, seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return sae


def sparsity_field(architecture: str) -> str:
    """What sets an SAE's sparsity, by its name in the config."""
    return next(f for f in ("k", "l0_coefficient", "l1_coefficient") if f in DEFAULTS[architecture])


def unlike_saes(architecture: str, n: int = 2, **options: Any) -> list[Any]:
    """SAEs of one stack that differ in sparsity; some of their latents are dead at first."""
    options = {**DEFAULTS[architecture], **options}
    field = sparsity_field(architecture)
    saes = []
    for i in range(n):
        if field == "k":
            value = max(1, options["k"] - i) + (0 if architecture == "topk" else 0.3)
        else:
            value = (0.2, 3.0, 1.0)[i % 3] * options[field]
        sae = make_sae(architecture, i, **{**options, field: value})
        bias = sae.get_parameter("b_gate" if architecture == "gated" else "b_enc")
        with torch.no_grad():
            if field != "k":
                bias[0] = -3.0 if architecture == "jumprelu" else -9.0
            elif i == 0:
                bias[2:4] = -4.0
            elif i == 1:
                bias[:7] = -4.0  # more than the d_in // 2 = 6 that the auxiliary loss takes
        saes.append(sae)
    return saes


def trained_values(sae: TrainingSAE[Any]) -> dict[str, Tensor]:
    """All that training moves."""
    values = oracle.parameters(sae)
    if isinstance(sae, BatchTopKTrainingSAE):
        values["topk_threshold"] = sae.topk_threshold.clone()
    return values


def assert_identical(a: TrainingSAE[Any], b: TrainingSAE[Any]) -> None:
    """Bit for bit."""
    for name, value in trained_values(a).items():
        assert torch.equal(value, trained_values(b)[name]), name


def assert_close(a: TrainingSAE[Any], b: TrainingSAE[Any]) -> None:
    """To a tenth of one step of Adam at lr = 1e-3.

    It divides by the gradient's own size, so rounding (1e-7 a step) is not damped but carried
    along.
    """
    for name, value in trained_values(a).items():
        torch.testing.assert_close(value, trained_values(b)[name], atol=1e-4, rtol=1e-4)
