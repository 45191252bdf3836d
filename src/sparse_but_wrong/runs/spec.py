"""An experiment as data: the worlds, the SAEs, the budget. Everything else follows from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sparse_but_wrong.training.controls import KTransition, TargetL0
from sparse_but_wrong.training.options import TrainOptions

_STRICT = ConfigDict(extra="forbid")

_FOLDER_NAME = re.compile(r"[\w+=-][\w.+=-]{0,99}", re.ASCII)

_COLUMNS = (
    *("sae_id", "world", "architecture", "added", "diverged_at_step", "l0_change_at_end"),
    *("l0", "dead_latents", "shrinkage", "mse", "variance_explained", "c_dec", "c_enc"),
    *("mean_max_cosine", "mcc"),
    *("l0_standard_error", "l0_p05", "l0_median", "l0_p95", "dense_latents", "d_sae"),
    *("mse_standard_error", "variance_explained_standard_error", "n_samples", "n_batches"),
)
"""What a row of the table of results may have, whatever the spec."""

ONLY_WORLD = "world"
"""The name of a world that is the only one."""


@dataclass(frozen=True)
class CorrelationSpec:
    """A random latent correlation matrix (`generate_random_correlation_matrix`)."""

    __pydantic_config__ = _STRICT

    seed: int
    """Of the matrix; part of the world, so independent of the run's seed."""

    correlation_strength_range: tuple[float, float] = (0.3, 0.8)
    """Range of |correlation| drawn for each pair that is kept."""

    positive_ratio: float = 0.5
    """Share of the kept pairs that are positive."""

    sparsity: float = 0.3
    """Share of pairs left at 0."""


@dataclass(frozen=True)
class CorrelatedPairs:
    """Latent correlations of named pairs of features; all others are 0."""

    __pydantic_config__ = _STRICT

    pairs: tuple[tuple[int, int, float], ...]
    """Feature, feature, correlation."""


@dataclass(frozen=True)
class WorldSpec:
    """A toy world with known features.

    Raises:
        ValueError: lengths that disagree.
    """

    __pydantic_config__ = _STRICT

    d_in: int
    """Width of the activations."""

    firing_probabilities: tuple[float, ...]
    """One per feature."""

    std_firing_magnitudes: tuple[float, ...]
    """One per feature."""

    mean_firing_magnitudes: tuple[float, ...]
    """One per feature."""

    correlation: CorrelationSpec | CorrelatedPairs | None = None
    """Latent correlations of the firings; independent if left out."""

    ortho_num_steps: int = 1000
    """Steps that make the directions near-orthogonal; few of them leave superposition noise."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("d_in", self.d_in, 1),
            ("firing_probabilities", self.n_features, 1),
            ("ortho_num_steps", self.ortho_num_steps, 0),
        ):
            if value < least:
                has = "has no entries" if name == "firing_probabilities" else f"is {value}"
                raise ValueError(f"WorldSpec.{name} {has}; it must be {least} or more.")
        for name in ("std_firing_magnitudes", "mean_firing_magnitudes"):
            if len(getattr(self, name)) != self.n_features:
                raise ValueError(
                    f"WorldSpec.{name} has {len(getattr(self, name))} entries, but "
                    f"firing_probabilities has {self.n_features}; give one per feature."
                )

    @property
    def n_features(self) -> int:
        """Number of true features."""
        return len(self.firing_probabilities)


@dataclass(frozen=True)
class ActivationsSpec:
    """Stored activations, of which nobody knows the features."""

    __pydantic_config__ = _STRICT

    activations: str
    """What `sbw find-l0 --activations` takes: a cache, a folder of shards, a file, a dataset."""

    column: str | None = None
    """Of a dataset, which holds the activations; the only one that can, if left out."""


@dataclass(frozen=True)
class SAESpec:
    """One SAE of an experiment."""

    __pydantic_config__ = _STRICT

    sae_id: str
    """Its name within the run: its row, its folder, and what its seed is derived from."""

    architecture: str
    """As registered with sae_lens, for example ``jumprelu``."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the architecture's sae_lens training config, except d_in and device."""

    added: bool = False
    """Not part of the published grid."""

    world: str = ONLY_WORLD
    """The name of the world whose activations it is trained on."""

    factors: Mapping[str, int | float | str] = field(default_factory=dict)
    """What sets it apart from the others: columns of its row in the table of results."""

    init: Literal["random", "true_features"] = "random"
    """Where its weights start: from its seed, or latent i at true feature i."""

    control: KTransition | TargetL0 | None = None
    """What moves its sparsity during training."""


@dataclass(frozen=True)
class ExperimentSpec:
    """A whole experiment.

    Raises:
        ValueError: a name that no folder should have, two SAEs with the same id, an SAE in a world
            that is not there, a factor named as a column of the results, no evaluation samples, or
            an n that an SAE's width does not allow.
    """

    __pydantic_config__ = _STRICT

    name: str
    """What `sbw run` calls it, and its run folder."""

    title: str
    """A line for people."""

    claim: str
    """What the paper says should be seen."""

    worlds: Mapping[str, WorldSpec | ActivationsSpec] = field(default_factory=dict)
    """Toy worlds, or stored activations, by name. Directions and data of a toy world follow from
    the run's seed and its name; the order in which stored activations are read likewise."""

    saes: tuple[SAESpec, ...] = ()
    training: TrainOptions = field(default_factory=TrainOptions)
    evaluation_samples: int = 100_000
    """Samples of its world on which every SAE is scored, the same for all of that world. Of stored
    activations they are held out from training."""

    projection_n: tuple[int, ...] = ()
    """The n whose s_n^dec is drawn against L0."""

    analysis: str = "sweep"
    """What is measured, drawn and judged once the SAEs are trained."""

    def __post_init__(self) -> None:
        where = f"ExperimentSpec {self.name!r}"
        if self.evaluation_samples < 1:
            raise ValueError(
                f"{where}: evaluation_samples is {self.evaluation_samples}; it must be 1 or more."
            )
        for name in (self.name, *self.worlds, *(sae.sae_id for sae in self.saes)):
            if not _FOLDER_NAME.fullmatch(name):
                raise ValueError(
                    f"{where}: {name!r} names a folder; use letters, digits and _ . + = - only, "
                    "at most 100 of them, the first no point."
                )
        seen: set[str] = set()
        for sae in self.saes:
            if sae.sae_id in seen:
                raise ValueError(f"{where} has two SAEs with id {sae.sae_id!r}.")
            seen.add(sae.sae_id)
            if sae.world not in self.worlds:
                raise ValueError(
                    f"{where}: SAE {sae.sae_id!r} is of the world {sae.world!r}, which is not "
                    f"there; there is: {', '.join(self.worlds) or 'none'}."
                )
            for name, value in sae.factors.items():
                if isinstance(value, int) and abs(value) >= 2**63:
                    raise ValueError(
                        f"{where}: SAE {sae.sae_id!r} has {value} as {name!r}, more than a table "
                        "can hold."
                    )
                if name in _COLUMNS or re.fullmatch(r"s_\d+", name):
                    raise ValueError(
                        f"{where}: SAE {sae.sae_id!r} has a factor {name!r}, which is a column of "
                        "the results already; give it another name."
                    )
            d_sae = sae.config.get("d_sae", 0)
            if not isinstance(d_sae, int):
                raise ValueError(
                    f"{where}: SAE {sae.sae_id!r} has d_sae = {d_sae!r}; it must be a whole number."
                )
            for n in self.projection_n:
                if not 0 <= n < d_sae:
                    raise ValueError(
                        f"{where}: projection_n has {n}, but SAE {sae.sae_id!r} has d_sae = "
                        f"{d_sae}; n must be below it."
                    )

    def toy_world(self, name: str) -> WorldSpec:
        """A toy world by its name.

        Raises:
            ValueError: it is one of stored activations.
        """
        world = self.worlds[name]
        if not isinstance(world, WorldSpec):
            raise ValueError(
                f"the analysis {self.analysis!r} needs a toy world, whose features are known, but "
                f"{name!r} is one of stored activations; for those write analysis: activations."
            )
        return world

    def of_world(self, name: str) -> tuple[SAESpec, ...]:
        """The SAEs that are trained on a world."""
        return tuple(sae for sae in self.saes if sae.world == name)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values."""
        return json.loads(json.dumps(asdict(self), default=dict))

    @classmethod
    def from_dict(cls, data: object) -> ExperimentSpec:
        """The spec that `to_dict` wrote, or a person in a YAML file.

        A single world may stand under ``world`` in place of ``worlds``, and a whole number may be
        written 1e4 or 12.0; texts and truth values are no numbers.

        Raises:
            ValueError: a field is missing, unknown or of the wrong kind; the message names it.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a spec is a mapping of fields, not {_kind(data)}.")
        given = dict(data)
        if "world" in given:
            if "worlds" in given:
                raise ValueError("a spec has either world or worlds, not both.")
            given["worlds"] = {ONLY_WORLD: given.pop("world")}
        try:
            return _validated(cls, given)
        except ValidationError as error:
            raise ValueError(_in_words(error)) from error

    def quick(self) -> ExperimentSpec:
        """The same experiment at a fiftieth of the budget: it shows that everything works.

        Warm-ups and transitions shrink with it. The figures it gives mean nothing.
        """
        shrink = 50
        training = replace(
            self.training,
            total_training_samples=max(1, self.training.total_training_samples // shrink),
            lr_warm_up_steps=self.training.lr_warm_up_steps // shrink,
            lr_decay_steps=self.training.lr_decay_steps // shrink,
            n_batches_for_norm_estimate=max(1, self.training.n_batches_for_norm_estimate // shrink),
            log_every=max(1, self.training.log_every // shrink),
        )
        return replace(
            self,
            training=training,
            saes=tuple(_quick_sae(sae, shrink) for sae in self.saes),
            evaluation_samples=max(1, self.evaluation_samples // 10),
        )


def _validated(cls: type[ExperimentSpec], given: dict[str, Any]) -> ExperimentSpec:
    """A spec of fields that are of the kinds they should be.

    Raises:
        ValidationError: one is not.
    """
    adapter = TypeAdapter(cls)
    # As JSON, where strictness still takes a list for a tuple and a mapping for a record.
    try:
        text = json.dumps(given)
    except TypeError as error:  # a date, a set or bytes, which YAML has
        raise ValueError(
            f"a spec holds texts, numbers, lists and mappings only: {error}."
        ) from error
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        given = json.loads(text)
        for problem in error.errors():
            if problem["type"] == "int_type" and isinstance(problem["input"], float):
                _make_whole(given, [part for part in problem["loc"] if part not in _MEMBERS])
        return adapter.validate_json(json.dumps(given), strict=True)


def _make_whole(given: Any, path: Sequence[Any]) -> None:
    """Have 1e4, somewhere in a spec, as the 10000 that it is."""
    *parents, last = path
    for part in parents:
        given = given[part]
    if given[last].is_integer():
        given[last] = int(given[last])


def _quick_sae(sae: SAESpec, shrink: int) -> SAESpec:
    control = sae.control
    if isinstance(control, KTransition):
        control = replace(
            control,
            start_step=control.start_step // shrink,
            duration_steps=max(1, control.duration_steps // shrink),
        )
    config = dict(sae.config)
    for name, value in config.items():
        if not isinstance(value, int):
            continue
        if name.endswith("warm_up_steps") or name == "transition_k_start_step":
            config[name] = value // shrink
        elif name == "transition_k_duration_steps":
            config[name] = max(1, value // shrink)
    return replace(sae, config=config, control=control)


_MEMBERS = (
    *("CorrelationSpec", "CorrelatedPairs", "KTransition", "TargetL0"),
    *("WorldSpec", "ActivationsSpec"),
)
"""Of unions: their names stand in the paths of pydantic's errors, and are no fields of a user's."""


def _in_words(error: ValidationError) -> str:
    """What is wrong with a spec, field by field, each by its path."""
    # Of a union every member is tried. What is said is what keeps the value from the nearest one.
    by_union: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for problem in error.errors():
        loc = problem["loc"]
        at = next((i for i, part in enumerate(loc) if part in _MEMBERS), None)
        union, member = (loc, "") if at is None else (loc[:at], str(loc[at]))
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in loc
            if part not in _MEMBERS
        )
        line = _said_of(path.removeprefix("."), problem["type"], problem["msg"], problem["input"])
        by_union.setdefault(union, {}).setdefault(member, []).append(line)
    lines = [line for members in by_union.values() for line in min(members.values(), key=len)]
    return "; ".join(dict.fromkeys(lines)) + "."


def _said_of(path: str, kind: str, message: str, value: object) -> str:
    if kind == "value_error":  # one of our own, which names what is wrong
        message = message.removeprefix("Value error, ").rstrip(".")
        return f"{path}: {message}" if path else message
    named = {
        "missing": "is missing",
        "unexpected_keyword_argument": "is not a field",
        "dataclass_type": f"must be a mapping of fields, not {_kind(value)}",
    }
    # pydantic's own messages begin with "Input should be …"; here the field is the subject.
    said = named.get(kind, message[:1].lower() + message[1:]).replace("input should", "should", 1)
    if kind in ("int_type", "float_type", "bool_type"):
        said += f", not {value!r}"
    return f"{path or 'the spec'} {said}"


def _kind(value: object) -> str:
    return f"of the type {type(value).__name__}"
