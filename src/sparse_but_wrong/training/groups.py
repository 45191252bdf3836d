"""Which SAEs of a run are stepped together, and what cannot be trained at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training.architectures import ARCHITECTURES
from sparse_but_wrong.training.architectures.base import Architecture
from sparse_but_wrong.training.controls import (
    Control,
    KTransition,
    TargetL0,
    own_transition,
    why_not_controlled,
)
from sparse_but_wrong.training.group import Group, SAELensGroup, StackedGroup
from sparse_but_wrong.training.memory import SHARD_IT, check_room
from sparse_but_wrong.training.options import TrainOptions

if TYPE_CHECKING:
    import sae_lens

logger = logging.getLogger(__name__)


def make_groups(
    saes: Sequence[sae_lens.TrainingSAE[Any]],
    options: TrainOptions,
    controls: Sequence[Control | None],
    names: Sequence[str],
) -> list[Group]:
    """Stacks of SAEs that can be stepped as one, and the others one by one.

    Raises:
        TypeError: something that is no SAE or no control.
        ValueError: SAEs that cannot share a run, or one that cannot be trained as given.
    """
    _check_saes(saes)
    _check_controls(controls, len(saes))
    _check_room(saes, options)
    stacks: dict[tuple[Any, ...], list[int]] = {}
    alone: list[int] = []
    remarks: Counter[str] = Counter()
    moves: list[Control | None] = []
    for place, (sae, control) in enumerate(zip(saes, controls, strict=True)):
        cfg, kind = sae.cfg, type(sae).__name__
        architecture, reason = architecture_of(sae)
        refusal = _why_refused(sae, architecture, control, options)
        if refusal is None and architecture is None and options.reinit_dead_every is not None:
            refusal = (
                f"is trained by sae_lens' own trainer ({reason}), which does not re-initialise "
                "dead latents; leave reinit_dead_every out"
            )
        if refusal is not None:
            raise ValueError(f"{names[place]}, a {kind}, {refusal}.")
        own, last = own_transition(cfg), options.n_steps - 1
        moves.append(own or control)
        if own is not None and own.end_step > last:
            remarks[
                f"SAEs ({kind}) reach k = {cfg.k:g} only at step {own.end_step}, but the run ends "
                f"at step {last}, where k is {own.k_at(last, cfg.k):.4g}; shorten "
                "transition_k_duration_steps, or train on more samples"
            ] += 1
        if architecture is None:
            alone.append(place)
            remarks[f"SAEs trained by sae_lens' own trainer, one by one ({kind}: {reason})"] += 1
            continue
        shared = (cfg.d_in, cfg.d_sae, cfg.apply_b_dec_to_input, cfg.normalize_activations)
        is_trained = sae.W_dec.requires_grad
        key = (architecture, *shared, is_trained, *architecture.stack_key(cfg))
        stacks.setdefault(key, []).append(place)
    for remark, count in remarks.items():
        logger.warning("%d %s.", count, remark)
    groups: list[Group] = []
    for (architecture, *_), places in stacks.items():
        chosen, controlled = [saes[place] for place in places], [moves[place] for place in places]
        groups.append(StackedGroup(chosen, places, options, architecture, controlled))
    return [*groups, *(SAELensGroup([saes[place]], [place], options) for place in alone)]


def architecture_of(
    sae: sae_lens.TrainingSAE[Any],
) -> tuple[type[Architecture] | None, str | None]:
    """What steps an SAE; or None, and why it is left to sae_lens' trainer."""
    for architecture in ARCHITECTURES:
        if architecture.handles(sae):
            reason = _why_not_stackable(sae) or architecture.why_not(sae.cfg)
            return None if reason else architecture, reason
    return None, f"the engine does not know {type(sae).__name__}"


def _why_not_stackable(sae: sae_lens.TrainingSAE[Any]) -> str | None:
    if sae.cfg.normalize_activations not in ("none", "expected_average_only_in"):
        return f"it does not do normalize_activations={sae.cfg.normalize_activations!r}"
    # The threshold is float32 whatever the SAE's dtype, and an SAE's dtype may be out of date.
    dtypes = {sae.dtype, *(p.dtype for p in sae.parameters())} - {torch.float32}
    if dtypes:
        return f"it trains float32 only, not {str(dtypes.pop()).removeprefix('torch.')}"
    if sae.mse_loss_fn is not sae_lens_compat.mse_loss:
        return "a custom mse_loss_fn is set"
    if type(sae.activation_fn) is not type(sae.get_activation_fn()):
        return "its activation_fn was replaced"
    frozen = {name for name, p in sae.named_parameters() if not p.requires_grad} - {"W_dec"}
    if frozen:
        return f"its {', '.join(sorted(frozen))} is frozen"
    if any(point.fwd_hooks or point.bwd_hooks for point in sae.hook_dict.values()):
        return "hooks are attached to it"
    return None


def _why_refused(
    sae: sae_lens.TrainingSAE[Any],
    architecture: type[Architecture] | None,
    control: Control | None,
    options: TrainOptions,
) -> str | None:
    """Why an SAE cannot be trained as given; `architecture` is None if sae_lens trains it."""
    own = own_transition(sae.cfg)
    if architecture is not None and own is not None and control is not None:
        return (
            f"moves its k by itself (initial_k = {own.initial_k:g}); give it None, or leave its "
            "config's initial_k out"
        )
    refusal = why_not_controlled(control, architecture and architecture.sparsity, options)
    if refusal is None and architecture is not None:
        moved = [c.initial_k for c in (own, control) if isinstance(c, KTransition)]
        values = [sae_lens_compat.sparsity(sae, architecture.sparsity)[0], *moved]
        refusal = architecture.why_impossible(sae, values, options.train_batch_size_samples)
    return refusal or sae_lens_compat.why_not_config(sae.cfg)


def _check_saes(saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
    import sae_lens

    if not saes:
        raise ValueError("There are no SAEs to train; give at least one.")
    first_place: dict[int, int] = {}
    for i, sae in enumerate(saes):
        if not isinstance(sae, sae_lens.TrainingSAE):
            raise TypeError(
                f"saes[{i}] is a {type(sae).__name__}; the engine trains sae_lens training SAEs "
                "(JumpReLUTrainingSAE and the like)."
            )
        if (first := first_place.setdefault(id(sae), i)) != i:
            raise ValueError(
                f"saes[{i}] and saes[{first}] are the same object; make one SAE for each place."
            )
        if sae.W_dec.device.type == "meta":
            raise ValueError(
                f"saes[{i}] is on the meta device, where there are no numbers; move it with "
                "sae.to_empty(…) and initialise it first."
            )
        d_ins, devices = (sae.cfg.d_in, saes[0].cfg.d_in), (sae.W_dec.device, saes[0].W_dec.device)
        for what, (mine, wanted) in (("d_in", d_ins), ("device", devices)):
            if mine != wanted:
                raise ValueError(
                    f"saes[{i}] has {what} {mine}, saes[0] has {wanted}; "
                    "SAEs that share a stream must agree."
                )


def _check_controls(controls: Sequence[Control | None], n_saes: int) -> None:
    if len(controls) != n_saes:
        raise ValueError(
            f"There are {len(controls)} controls for {n_saes} SAEs; give one for each of saes[0] "
            f"to saes[{n_saes - 1}], None where nothing is to move the sparsity."
        )
    for i, control in enumerate(controls):
        if control is not None and not isinstance(control, KTransition | TargetL0):
            raise TypeError(
                f"controls[{i}] is a {type(control).__name__}; what moves the sparsity of "
                f"saes[{i}] must be a KTransition, a TargetL0 or None."
            )


def _check_room(saes: Sequence[sae_lens.TrainingSAE[Any]], options: TrainOptions) -> None:
    """Refuse a run that cannot fit in memory, before any of it is taken."""
    cfg, device = saes[0].cfg, saes[0].W_dec.device
    sizes = [sum(p.numel() for p in sae.parameters()) for sae in saes]
    # A copy of the parameters, Adam's two means of each, and, of the SAEs that are stepped, the
    # gradient: all float32.
    largest = saes[sizes.index(max(sizes))].cfg
    what = f"one SAE in training with d_in = {cfg.d_in} and d_sae = {largest.d_sae} would"
    check_room(16 * max(sizes), device, what, f"lower d_sae, or {SHARD_IT}")
    what = f"the parameters of {len(saes)} SAEs in training, the first with d_sae = {cfg.d_sae},"
    check_room(12 * sum(sizes), device, what, "train fewer at a time, or narrower ones")
    batch_size = options.train_batch_size_samples
    what = f"batches of train_batch_size_samples = {batch_size}"
    check_room(4 * batch_size * (cfg.d_in + cfg.d_sae), device, what, "lower it")
