"""Options of a search for an L0, checked once when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from scipy.stats import norm

if TYPE_CHECKING:
    import sae_lens

ARCHITECTURES = ("batchtopk", "gated", "jumprelu", "matryoshka_batchtopk", "standard", "topk")
"""Those whose L0 can be set: they have a k, or a coefficient that a `TargetL0` can move."""

SCALED = "expected_average_only_in"
_NORMALISATIONS = ("none", SCALED)
"""In the others SAEs see activations of which those in the stream are no multiple."""

_SET_BY_THE_SEARCH = (
    "d_in",
    "d_sae",
    "device",
    "k",
    "l0_coefficient",
    "l0_warm_up_steps",
    "l1_coefficient",
    "l1_warm_up_steps",
)

_JUMPRELU: dict[str, Any] = {
    "jumprelu_bandwidth": 2.0,
    "jumprelu_sparsity_loss_mode": "tanh",
    "decoder_init_norm": 1.0,
}
"""As in the published toy models, but for the decoder's rows, whose norm is 0.1 there."""

_LOWEST_START = 0.1
"""Threshold that JumpReLU SAEs start at, at least, for rows of norm 1: half of the latents or more
may be wanted."""


@dataclass(frozen=True)
class FindOptions:
    """How much work goes into a recommendation.

    Raises:
        ValueError: a value that cannot be worked with; the message names the field.
    """

    architecture: str = "batchtopk"
    """Of the SAEs, as registered with sae_lens; one of `ARCHITECTURES`."""

    sae_config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the sae_lens training config besides d_in, d_sae, device and what sets the L0: k or
    a coefficient, and its warm-up. Matryoshka SAEs have widths of a quarter, half and all of d_sae
    unless it says otherwise; `normalize_activations` is one of "none" and
    "expected_average_only_in", the latter if left out."""

    seed: int = 0
    """Of initial weights; the stream is the caller's."""

    coarse_steps: int = 2000
    """Of the SAEs that look for the region; a step is a batch of the source."""

    n_coarse: int = 8
    """L0s of the coarse sweep, in equal ratios from 1.5 to 0.45 d_sae."""

    fine_steps: int = 3000
    """Of the SAEs around it."""

    fine_factors: tuple[float, ...] = (0.6, 0.75, 0.87, 1.0, 1.15, 1.33, 1.6)
    """L0s of the fine sweep, in units of what was counted; 1 must be among them."""

    n_seeds: int = 2
    """SAEs with initial weights of their own at every L0."""

    lr: float = 1e-3
    """Learning rate; the last fifth of each run decays to 0."""

    reinit_dead_every: int = 200
    """As in `TrainOptions`."""

    evaluation_samples: int = 24_576
    """Drawn first, to measure and count on."""

    learning_batches: int = 200
    """Batches from which directions are learned."""

    device: str = "cpu"
    """Where SAEs are trained and directions learned and counted, and where both are returned;
    "auto" for a CUDA GPU if there is one, else the CPU. Every draw is made on the CPU, so that a
    seed draws the same on every device."""

    autocast: bool = False
    """As in `TrainOptions`: for GPUs, whose matrix products in bfloat16 are faster."""

    threads: int | None = None
    """CPU threads to train and to count on; PyTorch's own number if left out."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"FindOptions.architecture: the L0 of {self.architecture!r} SAEs cannot be set; "
                f"use one of {', '.join(ARCHITECTURES)}."
            )
        for name, value in vars(self).items():
            if type(value) is int and name != "seed" and value < 1:
                raise ValueError(f"FindOptions.{name} must be at least 1, got {value}.")
        if 1.0 not in self.fine_factors or min(self.fine_factors) <= 0:
            raise ValueError(
                "FindOptions.fine_factors must be positive, with 1.0 among them, got "
                f"{self.fine_factors}."
            )
        if not self.sae_config:  # which spares the import of sae_lens
            return
        known = {f.name for f in fields(config_class(self.architecture))}
        for name in self.sae_config:
            if name in _SET_BY_THE_SEARCH:
                raise ValueError(
                    f"FindOptions.sae_config: {name!r} is set by the search; leave it out "
                    "(d_sae is an argument of find_l0, device a field of FindOptions)."
                )
            if name not in known:
                raise ValueError(
                    f"FindOptions.sae_config: {self.architecture} SAEs have no field {name!r}; "
                    f"they have {', '.join(sorted(known.difference(_SET_BY_THE_SEARCH)))}."
                )
        normalisation = self.sae_config.get("normalize_activations", SCALED)
        if normalisation not in _NORMALISATIONS:
            raise ValueError(
                "FindOptions.sae_config: with normalize_activations="
                f"{normalisation!r} SAEs do not see multiples of the activations whose directions "
                f"are counted; use one of {', '.join(_NORMALISATIONS)}."
            )


def config_class(architecture: str) -> type[Any]:
    """The sae_lens training config of an architecture."""
    from sparse_but_wrong.sae_lens_compat import SAE_TRAINING_CLASS_REGISTRY

    return SAE_TRAINING_CLASS_REGISTRY[architecture][1]


def has_k(architecture: str) -> bool:
    """Whether a k sets the L0 of an architecture, and not a coefficient that a `TargetL0` moves."""
    return any(f.name == "k" for f in fields(config_class(architecture)))


def training_config(
    architecture: str, target_l0: float, d_in: int, d_sae: int, spread: float = 1.0, **others: Any
) -> sae_lens.TrainingSAEConfig:
    """The sae_lens config by which SAEs are trained for an L0, where there is no k by a `TargetL0`.

    JumpReLU SAEs start near their L0: at the threshold above which so many projections on random
    directions lie, which are normal with the standard deviation `spread`. From far more they learn
    mixtures of features first. On a world of 4,096 features SAEs of 512 latents and an L0 of 14
    then reach an MCC of 0.91 after 3,000 steps; from the published 0.1, where 80 are active, 0.69.

    Args:
        spread: of the activations as the SAE reads them, their norm over √d_in.
        others: fields of the config, in place of those that are set here.
    """
    own: dict[str, Any] = {"normalize_activations": SCALED}
    if architecture == "jumprelu":
        length = others.get("decoder_init_norm") or _JUMPRELU["decoder_init_norm"]
        above = spread * length * float(norm.isf(min(0.5, target_l0 / d_sae)))
        own |= _JUMPRELU | {"jumprelu_init_threshold": max(_LOWEST_START * length, above)}
    elif architecture == "matryoshka_batchtopk":
        own["matryoshka_widths"] = sorted({-(-d_sae // part) for part in (4, 2, 1)})
    if has_k(architecture):
        own["k"] = max(1, round(target_l0)) if architecture == "topk" else target_l0
    return config_class(architecture)(d_in=d_in, d_sae=d_sae, **own | others)
