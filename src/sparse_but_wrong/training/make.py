"""From sae_lens configs, seeds and starting points to SAEs that can be trained."""

from __future__ import annotations

import copy
import logging
import math
import operator
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training.memory import check_room

if TYPE_CHECKING:
    import sae_lens

logger = logging.getLogger(__name__)

_SEED_END = 2**64  # where PyTorch's generators end


def make_saes(
    cfgs: Sequence[sae_lens.TrainingSAEConfig],
    seeds: Sequence[int],
    initial_weights: sae_lens.SAE[Any] | Sequence[sae_lens.SAE[Any] | None] | None = None,
    device: torch.device | str | None = None,
) -> list[sae_lens.TrainingSAE[Any]]:
    """Untrained SAEs of any architectures registered with sae_lens, one per config.

    Each SAE gets a copy of its config. Its initial weights follow from its config and its own seed
    alone, on every device. PyTorch's global generator is left as it was.

    From an SAE to start from, everything is copied that both have by name, thresholds and buffers
    included, whatever the seed and fields like `decoder_init_norm` say. Between architectures, what
    only the new one has starts as its config says, and what only the other has is left out; a
    warning says what.

    Args:
        cfgs: training configs; `decoder_init_norm` is each config's own.
        seeds: one per config.
        initial_weights: SAEs to start from, one per config (None where an SAE is to start from
            its seed) or one for all; for training or inference, of any architecture.
        device: where the SAEs are to be; where each config says if left out.
    Raises:
        TypeError: a config of no training SAE, or a starting point that is no SAE.
        ValueError: lists of unequal lengths, an architecture that is not registered with sae_lens,
            a value in a config that nothing can be trained with, weights that do not fit in memory,
            a seed that no generator takes, or a starting point of other shapes. The message names
            the place in the list.
    """
    for what, given in (("seeds", seeds), ("initial_weights", initial_weights)):
        if isinstance(given, Sequence) and len(given) != len(cfgs):
            raise ValueError(
                f"there are {len(cfgs)} cfgs but {len(given)} {what}; give one for each."
            )
    one_each = isinstance(initial_weights, Sequence)
    starts = initial_weights if one_each else [initial_weights] * len(cfgs)
    saes = []
    remarks: Counter[str] = Counter()
    for i, (cfg, seed, start) in enumerate(zip(cfgs, seeds, starts, strict=True)):
        try:
            sae = make_sae(cfg, seed)
            if start is not None:
                remarks.update(_copy_weights(sae, start))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"SAE {i}: {error}") from error
        saes.append(sae.to(cfg.device if device is None else device))
    for remark, count in remarks.items():
        logger.warning("%d SAE%s: %s.", count, "" if count == 1 else "s", remark)
    return saes


def make_sae(cfg: sae_lens.TrainingSAEConfig, seed: int) -> sae_lens.TrainingSAE[Any]:
    """One untrained SAE, on the CPU; see `make_saes`, also for errors.

    On the CPU, because its generator gives the same weights whatever device they move to.
    """
    sae_class = sae_lens_compat.training_class(cfg)
    if (why := sae_lens_compat.why_not_config(cfg)) is not None:
        raise ValueError(f"it {why}.")
    # The encoder's weights and the decoder's; the rest does not count beside them.
    n_bytes = 8 * int(cfg.d_in) * int(cfg.d_sae)
    weights = f"its weights, with d_in = {cfg.d_in} and d_sae = {cfg.d_sae},"
    check_room(n_bytes, torch.device("cpu"), weights, "lower d_sae")
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"the seed {seed!r} is no whole number.") from None
    if not 0 <= seed < _SEED_END:
        raise ValueError(f"the seed {seed} does not lie in [0, 2**64).")
    cfg = copy.deepcopy(cfg)
    cfg.device = "cpu"
    # sae_lens draws initial weights from the global generator; what it held is put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return sae_class(cfg)


def _copy_weights(sae: sae_lens.TrainingSAE[Any], start: sae_lens.SAE[Any]) -> list[str]:
    """Copy into an SAE what another has under the same names; returns what to warn of."""
    import sae_lens

    if not isinstance(start, sae_lens.SAE):
        raise TypeError(
            f"initial weights are copied from a sae_lens SAE, not from a {type(start).__name__}."
        )
    mine, given = sae.state_dict(), start.state_dict()
    for name, target in mine.items():
        if name not in given:
            continue
        if given[name].shape != target.shape:
            raise ValueError(
                f"its {name} has shape {list(target.shape)}, but in its initial weights "
                f"{list(given[name].shape)}; start from an SAE with d_in={sae.cfg.d_in} and "
                f"d_sae={sae.cfg.d_sae}."
            )
        target.copy_(given[name])

    remarks = []
    if left_out := sorted(given.keys() - mine.keys()):
        remarks.append(f"leaves out its {', '.join(left_out)}")
    if own := sorted(mine.keys() - given.keys()):
        remarks.append(f"begins with its config's own {', '.join(own)}")
    wanted, used = sae.cfg.normalize_activations, start.cfg.normalize_activations
    if wanted != used:
        remarks.append(
            "uses weights made for activations of another scale, with normalize_activations="
            f"{used!r}, not {wanted!r} (sae_lens folds the scale into the weights when training "
            "ends)"
        )
    pair = f"a {type(sae).__name__} that starts from a {type(start).__name__}"
    return [f"{pair} {remark}" for remark in remarks]


@torch.no_grad()
def init_b_dec_to_mean(
    sae: sae_lens.TrainingSAE[Any], activations: Float[Tensor, "samples d_in"]
) -> None:
    """Set `b_dec` of an untrained SAE to the mean of activations, in place.

    From 0 it is learned over many hundreds of steps. Where the mean is much of an activation, as in
    language models, the latents nearest to it are active on every sample meanwhile, and others die.

    Args:
        activations: some thousands of those to train on, from all of them and not scaled.
    Raises:
        TypeError: something else than a training SAE.
        ValueError: activations of another width, none, all zero or not finite; an SAE that does not
            subtract `b_dec` from its input, or that normalises it by more than a constant.
    """
    import sae_lens

    if not isinstance(sae, sae_lens.TrainingSAE):
        raise TypeError(f"b_dec is set of one training SAE, not of a {type(sae).__name__}.")
    cfg, shape = sae.cfg, list(activations.shape)
    if activations.ndim != 2 or shape[0] == 0 or shape[1] != cfg.d_in:
        raise ValueError(f"it takes activations of shape [samples, {cfg.d_in}], got {shape}.")
    if not cfg.apply_b_dec_to_input:
        raise ValueError("it does not subtract b_dec; give it apply_b_dec_to_input=True.")
    if cfg.normalize_activations not in ("none", "expected_average_only_in"):
        raise ValueError(
            f"with normalize_activations={cfg.normalize_activations!r} b_dec does not follow from "
            "the mean; use 'expected_average_only_in' or 'none'."
        )
    # In float64, whose sums are the same to float32 however many threads there are.
    samples = activations.to(sae.b_dec.device, torch.float64)
    mean, norm = samples.mean(0), float(samples.norm(dim=1).mean())
    if not 0 < norm < math.inf:
        raise ValueError(
            f"the activations have a mean norm of {norm}, so they are all zero or not finite; fix "
            "what they come from."
        )
    if cfg.normalize_activations != "none":
        mean *= math.sqrt(cfg.d_in) / norm
    sae.b_dec.copy_(mean)
