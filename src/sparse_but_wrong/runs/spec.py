"""An experiment as data: the worlds, the SAEs, the budget. Everything else follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sparse_but_wrong.training.controls import KTransition, TargetL0
from sparse_but_wrong.training.options import TrainOptions

USER_ANALYSES = ("sweep", "activations")
"""What the `analysis` of a user's spec may be; those of the built-in specs fit only these."""

ONLY_WORLD = "world"
"""The name of a world that is the only one."""

_STRICT = ConfigDict(extra="forbid", strict=True)
_UNION_MEMBERS = (
    *("CorrelationSpec", "CorrelatedPairs", "KTransition", "TargetL0"),
    *("WorldSpec", "SyntheticSpec", "ActivationsSpec"),
)


def _folder_name(name: str) -> str:
    allowed = "_.+=-"
    fits = 0 < len(name) <= 100 and name[0] != "." and name.isascii()
    if not (fits and all(letter.isalnum() or letter in allowed for letter in name)):
        raise ValueError(
            f"{name!r} names a folder; use letters, digits and {' '.join(allowed)} only, at most "
            "100 of them, and no point at the start."
        )
    return name


_Name = Annotated[str, AfterValidator(_folder_name)]


@dataclass(frozen=True, config=_STRICT)
class CorrelationSpec:
    """A random latent correlation matrix (`generate_random_correlation_matrix`)."""

    seed: int
    """Of the matrix; part of the world, so independent of the run's seed."""
    correlation_strength_range: tuple[float, float] = (0.3, 0.8)
    """Range of |correlation| drawn for each pair that is kept."""
    positive_ratio: float = 0.5
    """Share of the kept pairs that are positive."""
    sparsity: float = 0.3
    """Share of pairs left at 0."""


@dataclass(frozen=True, config=_STRICT)
class CorrelatedPairs:
    """Latent correlations of named pairs of features; all others are 0."""

    pairs: tuple[tuple[int, int, float], ...]
    """Feature, feature, correlation."""


@dataclass(frozen=True, config=_STRICT)
class WorldSpec:
    """A toy world with known features.

    Raises:
        ValueError: lengths that disagree.
    """

    d_in: Annotated[int, Field(ge=1)]
    """Width of the activations."""
    firing_probabilities: Annotated[tuple[float, ...], Field(min_length=1)]
    """One per feature."""
    std_firing_magnitudes: tuple[float, ...]
    """One per feature."""
    mean_firing_magnitudes: tuple[float, ...]
    """One per feature."""
    correlation: CorrelationSpec | CorrelatedPairs | None = None
    """Latent correlations of the firings; independent if left out."""
    ortho_num_steps: Annotated[int, Field(ge=0)] = 1000
    """Steps that make the directions near-orthogonal; few of them leave superposition noise."""

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, config=_STRICT)
class SyntheticSpec:
    """A world of sae_lens.synthetic. Its features follow from the seed of its own config."""

    synthetic: str | dict[str, Any]
    """A folder or Hub id of a `SyntheticModel`, or the config of one."""


@dataclass(frozen=True, config=_STRICT)
class ActivationsSpec:
    """Stored activations, whose features nobody knows."""

    activations: str
    """What `sbw find-l0 --activations` takes: a cache, a folder of shards, a file, a dataset."""
    column: str | None = None
    """Dataset column that holds the activations; the only one that can, if left out."""


@dataclass(frozen=True, config=_STRICT)
class SAESpec:
    """One SAE of an experiment."""

    sae_id: _Name
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
    init: Literal["random", "mean", "true_features"] = "random"
    """Where its weights start: from its seed; from its seed with `b_dec` at the mean of the
    activations; or latent i at true feature i."""
    frozen_decoder: bool = False
    """Whether `W_dec` stays as it starts: with random weights a baseline for what is measured."""
    control: KTransition | TargetL0 | None = None
    """What moves its sparsity during training."""


@dataclass(frozen=True, config=_STRICT)
class ExperimentSpec:
    """A whole experiment.

    Raises:
        ValueError: a value of the wrong kind or out of range, a name that no folder can have, two
            SAEs with the same id, an SAE of an unknown world, or an n that an SAE is too narrow
            for; the message names the field.
    """

    name: _Name
    """What `sbw run` calls it, and its run folder."""
    title: str
    """A line for people."""
    claim: str
    """What the paper says should be seen."""
    worlds: Mapping[_Name, WorldSpec | SyntheticSpec | ActivationsSpec] = field(
        default_factory=dict
    )
    """Toy worlds, synthetic ones or stored activations, by name. Directions of a toy world follow
    from the run's seed and its name, and so does the order of the samples of every world."""
    saes: tuple[SAESpec, ...] = ()
    training: TrainOptions = field(default_factory=TrainOptions)
    evaluation_samples: Annotated[int, Field(ge=1)] = 100_000
    """Samples of its world on which every SAE is evaluated, the same for all SAEs of that world.
    Those of stored activations are held out from training."""
    projection_n: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The n whose s_n^dec is drawn against L0."""
    analysis: str = "sweep"
    """What is measured, drawn and judged once the SAEs are trained."""

    def __post_init__(self) -> None:
        where = f"ExperimentSpec {self.name!r}"
        seen: set[str] = set()
        for sae in self.saes:
            if sae.sae_id in seen:
                raise ValueError(f"{where} has two SAEs with id {sae.sae_id!r}.")
            seen.add(sae.sae_id)
            if sae.world not in self.worlds:
                raise ValueError(
                    f"{where}: SAE {sae.sae_id!r} has the unknown world {sae.world!r}. Available: "
                    f"{', '.join(self.worlds) or 'none'}."
                )
            d_sae = sae.config.get("d_sae", 0)
            for n in self.projection_n:
                if isinstance(d_sae, int) and n >= d_sae:
                    raise ValueError(
                        f"{where}: projection_n has {n}, but SAE {sae.sae_id!r} has d_sae = "
                        f"{d_sae}; n must be below it."
                    )

    def toy_world(self, name: str) -> WorldSpec:
        """A toy world by its name; ValueError for another kind of world."""
        world = self.worlds[name]
        if not isinstance(world, WorldSpec):
            raise ValueError(
                f"the analysis {self.analysis!r} needs a toy world, and {name!r} is none."
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
        written 1e4 or 12.0; strings and booleans are no numbers.

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
            # As JSON, where strictness still takes a list for a tuple and a mapping for a record.
            text = json.dumps(_whole_numbers(given))
        except TypeError as error:  # a date, a set or bytes, which YAML has
            raise ValueError(
                f"a spec holds strings, numbers, lists and mappings only: {error}."
            ) from error
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(_in_words(error)) from error

    def quick(self) -> ExperimentSpec:
        """The same experiment at a fiftieth of the budget: it shows that everything works.

        Warm-ups and transitions shrink with it. Its numbers mean nothing.
        """
        saes = (
            replace(
                sae,
                config={**sae.config, **_shrunk(sae.config)},
                control=sae.control and replace(sae.control, **_shrunk(vars(sae.control))),
            )
            for sae in self.saes
        )
        training = replace(self.training, **_shrunk(vars(self.training)))
        n_samples = max(1, self.evaluation_samples // 10)
        return replace(self, training=training, saes=tuple(saes), evaluation_samples=n_samples)


_LEAST = {
    **{"warm_up_steps": 0, "decay_steps": 0, "start_step": 0, "duration_steps": 1},
    **{"total_training_samples": 1, "n_batches_for_norm_estimate": 1, "log_every": 1},
}
"""What shrinks in a quick run, by the ends of names, and how far at most."""


def _shrunk(values: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: max(least, value // 50)
        for name, value in values.items()
        for end, least in _LEAST.items()
        if name.endswith(end) and isinstance(value, int)
    }


def _whole_numbers(value: Any) -> Any:
    """Have 1e4 as the 10000 that it is, but in what sae_lens reads, which stays as written."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_whole_numbers(entry) for entry in value]
    if isinstance(value, dict):
        own = ("config", "factors", "synthetic")
        return {k: v if k in own else _whole_numbers(v) for k, v in value.items()}
    return value


def _in_words(error: ValidationError) -> str:
    """What is wrong with a spec, field by field, each by its path."""
    # Every member of a union is tried; only what keeps the value from the nearest one is told.
    by_union: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for problem in error.errors():
        loc, kind, value = problem["loc"], problem["type"], problem["input"]
        at = next((i for i, part in enumerate(loc) if part in _UNION_MEMBERS), None)
        union, member = (loc, "") if at is None else (loc[:at], str(loc[at]))
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in loc
            if part not in (*_UNION_MEMBERS, "[key]")
        ).removeprefix(".")
        words = {
            "missing": "is missing",
            "unexpected_keyword_argument": "is not a field",
            "dataclass_type": f"must be a mapping of fields, not {_kind(value)}",
        }
        # pydantic's own messages begin with "Input should be …"; ours name what is wrong.
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
        if kind == "value_error":
            line = f"{path}: {message}" if path else message
        else:
            wanted = f"{message[:1].lower()}{message[1:]}, not {value!r}"
            line = f"{path or 'the spec'} {words.get(kind, wanted)}"
        by_union.setdefault(union, {}).setdefault(member, []).append(line)
    lines = [line for members in by_union.values() for line in min(members.values(), key=len)]
    return "; ".join(dict.fromkeys(lines)) + "."


def _kind(value: object) -> str:
    return f"of the type {type(value).__name__}"
