"""The slow truth, sae_lens' own trainer on recorded batches, and small SAEs to hold it to."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from sae_lens import BatchTopKTrainingSAE, JumpReLUTrainingSAE, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

import sparse_but_wrong.training.enhanced_batchtopk_sae  # noqa: F401  (registers it)
from sparse_but_wrong.training.options import TrainOptions

D_IN, D_SAE, BATCH = 12, 9, 64
NORMALISED = {"normalize_activations": "expected_average_only_in"}

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
    "matryoshka_batchtopk": {"k": 3, "matryoshka_widths": [3, 6, D_SAE]},
    "enhanced_batchtopk": {"k": 3},
}
TOPK = ("topk", "batchtopk", "matryoshka_batchtopk")
COMPILED = ("jumprelu", *TOPK, "enhanced_batchtopk")

AnySAE = TypeVar("AnySAE", bound=TrainingSAE[Any])


def recorded_batches(n: int, seed: int = 0, batch: int = BATCH, d_in: int = D_IN) -> list[Tensor]:
    """Sparse non-negative combinations of random directions, off-centre, of no special scale."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, d_in, generator=g), dim=1)
    batches = []
    for _ in range(n):
        fires = (torch.rand(batch, D_SAE, generator=g) < 0.3).float()
        size = (1 + 0.3 * torch.randn(batch, D_SAE, generator=g)).relu()
        batches.append(1.7 * (fires * size) @ directions + 0.2)
    return batches


class Batches(Iterator[Tensor]):
    """Recorded batches over and over, as a source that knows its place."""

    def __init__(self, n: int = 50) -> None:
        self.batches = recorded_batches(n)
        self.at = 0

    def __next__(self) -> Tensor:
        self.at += 1
        return self.batches[(self.at - 1) % len(self.batches)]

    def state(self) -> dict[str, Tensor]:
        return {"at": torch.tensor(self.at)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.at = int(state["at"])


def steps_of(architecture: str) -> tuple[str, ...]:
    """What can take the steps of its SAEs; parameters of the fixture `step`."""
    return ("compiled", "pytorch") if architecture in COMPILED else ("pytorch",)


def make_sae(seed: int = 0, **changes: Any) -> JumpReLUTrainingSAE:
    """A JumpReLU SAE; see `make`."""
    return make("jumprelu", seed, **changes)


def make(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """An SAE whose parameters, biases included, follow from a seed; no norm is special.

    A JumpReLU SAE's threshold is what its config says.
    """
    sae_class, config_class = get_sae_training_class(architecture)
    settings = {"d_in": D_IN, "d_sae": D_SAE, **DEFAULTS[architecture], **changes}
    sae = sae_class(config_class(**settings))
    names = [name for name, _ in sae.named_parameters()]
    return seeded(sae, seed, *([names] if architecture in ("standard", "gated") else ()))


def seeded(
    sae: AnySAE, seed: int, names: Sequence[str] = ("W_enc", "W_dec", "b_enc", "b_dec")
) -> AnySAE:
    """The SAE, with weights and biases that follow from a seed."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            parameter = sae.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return sae


class MyJumpReLU(JumpReLUTrainingSAE):
    """A user's own variant, which the engine leaves to sae_lens' trainer."""


def left_to_sae_lens(seed: int = 0, **changes: Any) -> MyJumpReLU:
    """Of a subclass, with the weights of `make_sae`."""
    made = make_sae(seed, **changes)
    sae = MyJumpReLU(made.cfg)
    sae.load_state_dict(made.state_dict())
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
        sae = make(architecture, i, **{**options, field: value})
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


def train_with_sae_lens(
    sae: AnySAE,
    batches: Sequence[Tensor],
    options: TrainOptions,
    before_batch: Callable[[AnySAE, int], None] | None = None,
) -> AnySAE:
    """A copy of an SAE, trained by sae_lens' `SAETrainer.fit`.

    Args:
        before_batch: called with the copy and the number of each batch before it is drawn.
    """
    sae = copy.deepcopy(sae)

    def drawn() -> Iterator[Tensor]:
        for i, batch in enumerate(batches):
            if before_batch is not None:
                before_batch(sae, i)
            yield batch

    shared = {f.name for f in fields(SAETrainerConfig)} & {f.name for f in fields(options)}
    settings = {name: getattr(options, name) for name in shared}
    if options.lr_end is None:
        settings["lr_end"] = options.lr / 10
    device = str(sae.W_dec.device)
    config = SAETrainerConfig(**settings, device=device, logger=LoggingConfig(log_to_wandb=False))
    with contextlib.redirect_stderr(io.StringIO()):
        SAETrainer(config, sae, drawn()).fit()
    return sae


def loss_of(sae: TrainingSAE[Any], x: Tensor, value: float, dead: Tensor | None = None) -> Any:
    """sae_lens' forward pass on a batch, at a coefficient; its gradients are left in the SAE."""
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients=dict.fromkeys(sae.get_coefficients(), value),
            dead_neuron_mask=dead,
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    output.loss.backward()
    return output


def options_for(n_steps: int, **changes: Any) -> TrainOptions:
    """Options of a short run without a progress bar."""
    settings: dict[str, Any] = {
        "total_training_samples": n_steps * BATCH,
        "train_batch_size_samples": BATCH,
        "lr": 1e-3,
        "n_batches_for_norm_estimate": 10,
        "progress": False,
        "threads": 2,
    }
    return TrainOptions(**{**settings, **changes})


def trained_values(sae: TrainingSAE[Any]) -> dict[str, Tensor]:
    """Detached copies of all that training moves."""
    values = {name: p.detach().clone() for name, p in sae.named_parameters()}
    if isinstance(sae, BatchTopKTrainingSAE):
        values["topk_threshold"] = sae.topk_threshold.clone()
    return values


def assert_identical(a: TrainingSAE[Any], b: TrainingSAE[Any]) -> None:
    """Bit for bit."""
    for name, value in trained_values(a).items():
        assert torch.equal(value, trained_values(b)[name]), name


def assert_close(
    a: TrainingSAE[Any], b: TrainingSAE[Any], atol: float = 1e-4, rtol: float = 1e-4
) -> None:
    """To a tenth of one step of Adam at lr = 1e-3.

    It divides by the gradient's own size, so rounding (1e-7 a step) is not damped but carried
    along.
    """
    for name, value in trained_values(a).items():
        torch.testing.assert_close(value, trained_values(b)[name], atol=atol, rtol=rtol)
