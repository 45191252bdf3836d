"""Which SAEs of a run are stepped together, and what cannot be trained at all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
from sparse_but_wrong.training.group import Group, SAELensGroup
from sparse_but_wrong.training.memory import check_room
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import why_not_stackable
from sparse_but_wrong.training.stacked_group import StackedGroup

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
    for place, sae in enumerate(saes):
        name = type(sae).__name__
        architecture = next((a for a in ARCHITECTURES if a.handles(sae)), None)
        reason = f"the engine does not know {name}"
        if architecture is not None:
            reason = why_not_stackable(sae) or architecture.why_not(sae.cfg)
            architecture = None if reason is not None else architecture
        refusal = _why_refused(sae, architecture, controls[place], options)
        if refusal is None and architecture is None and options.reinit_dead_every is not None:
            refusal = (
                f"is trained by sae_lens' own trainer ({reason}), which does not re-initialise "
                "dead latents; leave reinit_dead_every out"
            )
        if refusal is not None:
            raise ValueError(f"{names[place]}, a {name}, {refusal}.")
        own = own_transition(sae.cfg)
        moves.append(own or controls[place])
        if own is not None and own.end_step >= options.n_steps:
            last = options.n_steps - 1
            remarks[
                f"SAEs ({name}) reach k = {sae.cfg.k:g} only at step {own.end_step}, but the run "
                f"ends at step {last}, where k is {own.k_at(last, sae.cfg.k):.4g}; shorten "
                "transition_k_duration_steps, or train on more samples"
            ] += 1
        if architecture is None:
            alone.append(place)
            remarks[f"SAEs trained by sae_lens' own trainer, one by one ({name}: {reason})"] += 1
            continue
        cfg = sae.cfg
        shared = (cfg.d_in, cfg.d_sae, cfg.apply_b_dec_to_input, cfg.normalize_activations)
        key = (architecture, *shared, *architecture.stack_key(cfg))
        stacks.setdefault(key, []).append(place)
    for remark, count in remarks.items():
        logger.warning("%d %s.", count, remark)
    return [
        *(
            StackedGroup(
                [saes[p] for p in places], places, key[0], options, [moves[p] for p in places]
            )
            for key, places in stacks.items()
        ),
        *(SAELensGroup(saes[place], place, options) for place in alone),
    ]


def _why_refused(
    sae: sae_lens.TrainingSAE[Any],
    architecture: type[Architecture] | None,
    control: Control | None,
    options: TrainOptions,
) -> str | None:
    """Why an SAE cannot be trained as given; `architecture` is None if sae_lens trains it."""
    if architecture is None:
        return why_not_controlled(control, None, options) or sae_lens_compat.why_not_config(sae.cfg)
    own = own_transition(sae.cfg)
    if own is not None and control is not None:
        return (
            f"moves its k by itself (initial_k = {own.initial_k:g}); give it None, or leave its "
            "config's initial_k out"
        )
    moved = [c.initial_k for c in (own, control) if isinstance(c, KTransition)]
    values = [sae_lens_compat.sparsity(sae, architecture.sparsity)[0], *moved]
    return (
        why_not_controlled(control, architecture.sparsity, options)
        or architecture.why_impossible(sae, values, options.train_batch_size_samples)
        or sae_lens_compat.why_not_config(sae.cfg)
    )


def _check_saes(saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
    if not saes:
        raise ValueError("There are no SAEs to train; give at least one.")
    first_place: dict[int, int] = {}
    for i, sae in enumerate(saes):
        if not sae_lens_compat.is_training_sae(sae):
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
        for what, mine, wanted in (
            ("d_in", sae.cfg.d_in, saes[0].cfg.d_in),
            ("device", sae.W_dec.device, saes[0].W_dec.device),
        ):
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
    n_parameters = sum(p.numel() for sae in saes for p in sae.parameters())
    check_room(
        12 * n_parameters,
        device,
        f"the parameters of {len(saes)} SAEs in training, the first with d_sae = {cfg.d_sae},",
        "train fewer at a time, or narrower ones",
    )
    batch_size = options.train_batch_size_samples
    check_room(
        4 * batch_size * (cfg.d_in + cfg.d_sae),
        device,
        f"batches of train_batch_size_samples = {batch_size}",
        "lower it",
    )
