"""An experiment as data: the world, the SAEs, the budget. Everything else follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from sparse_but_wrong.training.options import TrainOptions


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class WorldSpec:
    """A toy world with known features.

    Raises:
        ValueError: lengths that disagree.
    """

    d_in: int
    """Width of the activations."""

    firing_probabilities: tuple[float, ...]
    """One per feature."""

    std_firing_magnitudes: tuple[float, ...]
    """One per feature."""

    mean_firing_magnitudes: tuple[float, ...]
    """One per feature."""

    correlation: CorrelationSpec | None = None
    """Latent correlations of the firings; independent if left out."""

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


@dataclass(frozen=True)
class SAESpec:
    """One SAE of a sweep."""

    sae_id: str
    """Its name within the run: its row, its folder, and what its seed is derived from."""

    architecture: str
    """As registered with sae_lens, for example ``jumprelu``."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the architecture's sae_lens training config, except d_in and device."""

    added: bool = False
    """Not part of the published grid."""


@dataclass(frozen=True)
class ExperimentSpec:
    """A whole experiment.

    Raises:
        ValueError: no SAEs, or two with the same id.
    """

    name: str
    """What `sbw run` calls it."""

    title: str
    """A line for people."""

    claim: str
    """What the paper says should be seen."""

    world: WorldSpec
    saes: tuple[SAESpec, ...]
    training: TrainOptions = field(default_factory=TrainOptions)
    evaluation_samples: int = 100_000
    """Samples on which every SAE is scored, the same for all."""

    projection_n: tuple[int, ...] = ()
    """The n whose s_n^dec is drawn against L0."""

    def __post_init__(self) -> None:
        ids = [sae.sae_id for sae in self.saes]
        if not ids:
            raise ValueError(f"ExperimentSpec {self.name!r} has no SAEs.")
        for sae_id in ids:
            if ids.count(sae_id) > 1:
                raise ValueError(f"ExperimentSpec {self.name!r} has two SAEs with id {sae_id!r}.")
        for sae in self.saes:
            d_sae = sae.config.get("d_sae", 0)
            for n in self.projection_n:
                if not 0 <= n < d_sae:
                    raise ValueError(
                        f"ExperimentSpec {self.name!r}: projection_n has {n}, but SAE "
                        f"{sae.sae_id!r} has d_sae = {d_sae}; n must be below it."
                    )

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values."""
        return {
            **asdict(self),
            "saes": [{**asdict(sae), "config": dict(sae.config)} for sae in self.saes],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExperimentSpec:
        """The spec that `to_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown or of the wrong kind; the message names it.
        """
        _fields_of(cls, data, "the spec")
        world = dict(_fields_of(WorldSpec, data["world"], "world"))
        if world.get("correlation") is not None:
            correlation = dict(
                _fields_of(CorrelationSpec, world["correlation"], "world.correlation")
            )
            correlation["correlation_strength_range"] = tuple(
                correlation["correlation_strength_range"]
            )
            world["correlation"] = CorrelationSpec(**correlation)
        for name in ("firing_probabilities", "std_firing_magnitudes", "mean_firing_magnitudes"):
            world[name] = tuple(world[name])
        own = dict(data)
        training = dict(_fields_of(TrainOptions, own.get("training", {}), "training"))
        training["snapshot_steps"] = tuple(training.get("snapshot_steps", ()))
        if not isinstance(own["saes"], list | tuple):
            raise ValueError("saes must be a list.")
        for i, sae in enumerate(own["saes"]):
            if isinstance(sae, Mapping) and not isinstance(sae.get("config", {}), Mapping):
                raise ValueError(f"saes[{i}].config must be a mapping.")
        return cls(
            **{
                **own,
                "world": WorldSpec(**world),
                "saes": tuple(
                    SAESpec(**_fields_of(SAESpec, sae, f"saes[{i}]"))
                    for i, sae in enumerate(own["saes"])
                ),
                "training": TrainOptions(**training),
                "projection_n": tuple(own.get("projection_n", ())),
            }
        )

    def quick(self) -> ExperimentSpec:
        """The same experiment at a fiftieth of the budget: it shows that everything works.

        Warm-ups shrink with it. The figures it gives mean nothing.
        """
        shrink = 50
        training = replace(
            self.training,
            total_training_samples=self.training.total_training_samples // shrink,
            lr_warm_up_steps=self.training.lr_warm_up_steps // shrink,
            lr_decay_steps=self.training.lr_decay_steps // shrink,
            n_batches_for_norm_estimate=max(1, self.training.n_batches_for_norm_estimate // shrink),
            log_every=max(1, self.training.log_every // shrink),
        )
        saes = tuple(
            replace(
                sae,
                config={
                    name: value // shrink if name.endswith("warm_up_steps") else value
                    for name, value in sae.config.items()
                },
            )
            for sae in self.saes
        )
        return replace(
            self,
            training=training,
            saes=saes,
            evaluation_samples=self.evaluation_samples // 10,
        )


def _fields_of(kind: type[Any], data: object, where: str) -> Mapping[str, Any]:
    """Check that a mapping has exactly the fields a dataclass takes, before it is made."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping, not {type(data).__name__}.")
    known = [f.name for f in fields(kind)]
    for name in data:
        if name not in known:
            raise ValueError(f"{where} has an unknown field {name!r}; it knows {', '.join(known)}.")
    for f in fields(kind):
        if f.name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field {f.name!r}.")
    return data
