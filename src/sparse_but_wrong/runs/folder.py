"""The folder of a run: everything that made it and everything it made.

manifest.json          spec, seed, versions, device, timings, verdict
worlds/<name>/         the toy worlds
saes/<sae_id>/         each SAE, as sae_lens saves it
logs/<sae_id>.json     what was measured while it trained
results.csv, .parquet  a row per SAE
training_curves.csv, .parquet
plots/                 figures, each as PDF and PNG
report.html            all of it on one page
checkpoint*.safetensors only while SAEs are in training: one for each process that trains
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, FiniteFloat

from sparse_but_wrong import atomic
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.untrusted import checked, damaged, plain_name, read_json, sha256

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

_MANIFEST = "manifest.json"
_FORMAT_VERSION = 2
_REMEDY = "the run cannot be resumed. Start a new one in another folder"

_Name = Annotated[str, AfterValidator(plain_name)]


@dataclass(frozen=True)
class _SAE:
    sae_id: _Name
    world: _Name
    factors: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Spec:
    name: str
    title: str
    claim: str
    worlds: dict[_Name, dict[str, Any]]
    saes: list[_SAE]
    projection_n: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Provenance:
    command: str | None = None
    created: str | None = None
    versions: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Check:
    claim: str
    measured: str
    holds: bool | None


@dataclass(frozen=True)
class _Verdict:
    outcome: str
    checks: list[_Check]
    remarks: list[str]


@dataclass(frozen=True)
class _Figure:
    name: str
    caption: str


@dataclass(frozen=True)
class _Manifest:
    """What readers of a manifest rely on; it may say more. Most comes once SAEs are evaluated."""

    experiment: str
    status: Literal["unfinished", "finished"]
    quick: bool
    seed: int
    device: str
    spec: _Spec
    provenance: _Provenance
    timings: dict[str, FiniteFloat]
    true_l0: dict[str, FiniteFloat] = field(default_factory=dict)
    verdict: _Verdict | None = None
    tables: dict[str, str] = field(default_factory=dict)
    shown_figures: list[_Figure] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)


class RunFolder:
    """A run on disk. Whatever is written appears whole or not at all."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.plots_path = path / "plots"
        self.report_path = path / "report.html"
        self.checkpoint_path = path / "checkpoint.safetensors"
        """It lies there while one process trains SAEs."""

    @classmethod
    @contextmanager
    def create(cls, path: Path, manifest: Mapping[str, Any]) -> Iterator[RunFolder]:
        """A new run folder with its manifest, which no other process gets while the block runs.

        Raises:
            OSError: the folder holds something (FileExistsError) or cannot be written to.
            ValueError: another process is at work in it.
        """
        folder = cls(path, {"format_version": _FORMAT_VERSION, **manifest})
        _make_free(path)
        with atomic.locked(path):
            _make_free(path)  # another process may have been here before the lock
            folder.write_manifest()
            yield folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: its manifest is damaged or of another format.
        """
        _check_is_run(path)
        file = path / _MANIFEST
        manifest = read_json(file, _REMEDY)
        if manifest.get("format_version") != _FORMAT_VERSION:
            raise ValueError(
                f"{file} is not a manifest of format {_FORMAT_VERSION}; use the version of "
                "sparse_but_wrong that wrote it, or start a new run in another folder."
            )
        checked(_Manifest, manifest, file, _REMEDY)
        return cls(path, manifest)

    @classmethod
    @contextmanager
    def open_locked(cls, path: Path) -> Iterator[RunFolder]:
        """As `open`, and no other process gets the folder while the block runs (ValueError)."""
        _check_is_run(path)
        with atomic.locked(path):  # before the manifest is read, which the other may be changing
            yield cls.open(path)

    def checkpoint_path_of(self, sae_id: str) -> Path:
        """The checkpoint of one of several processes, named after the first SAE it trains."""
        return self.checkpoint_path.with_stem(f"checkpoint-{plain_name(sae_id)}")

    def checkpoints(self) -> list[Path]:
        """Every checkpoint that is there."""
        return sorted(self.path.glob("checkpoint*.safetensors"))

    def write_manifest(self) -> None:
        """Write the manifest as it is now."""
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        atomic.write_bytes(self.path / _MANIFEST, text.encode())

    def seal(self, *places: Path) -> None:
        """Take the SHA-256 of files, or of all files of folders, into the manifest.

        It is not written yet. From then on `check` tells what has changed.
        """
        sums = self.manifest.setdefault("sha256", {})
        for place in places:
            sums.update({self._name(file): sha256(file) for file in _files(place)})

    def forget(self, *places: Path) -> None:
        """Strike files that are gone, to be made again, from the manifest."""
        for place in places:
            for name in self.sums_of(place):
                del self.manifest["sha256"][name]

    def check(self, place: Path, remedy: str) -> None:
        """Refuse files that are not what they were when they were written.

        Args:
            place: a file or a folder. What was never sealed is not looked at.
            remedy: what to do, for the message.
        Raises:
            ValueError: a file has changed or is gone; the message names it.
            OSError: it cannot be read.
        """
        sums = self.sums_of(place)
        # Only what lies there is read, and no place that a manifest names.
        for file in _files(place):
            expected = sums.pop(self._name(file), None)
            if expected is not None and sha256(file) != expected:
                raise damaged(file, "its content has changed", remedy)
        for name in sums:
            raise damaged(place, f"{name} is missing", remedy)

    def sums_of(self, place: Path) -> dict[str, str]:
        """What was sealed of a file or a folder: SHA-256 by name."""
        name, sums = self._name(place), self.manifest.get("sha256", {})
        return {key: sums[key] for key in sums if key == name or key.startswith(f"{name}/")}

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def world_path(self, name: str) -> Path:
        """Where a world lies."""
        return self.path / "worlds" / plain_name(name)

    def checked_world_path(self, name: str) -> Path:
        """Where a world lies, once its files are what they were (ValueError) when written."""
        path = self.world_path(name)
        self.check(path, f"delete {path} and --resume to make the world again")
        return path

    def sae_path(self, sae_id: str) -> Path:
        """Where an SAE lies."""
        return self.path / "saes" / plain_name(sae_id)

    def checked_sae_path(self, sae_id: str) -> Path:
        """Where a finished SAE lies, once its files are there and what they were (ValueError)."""
        path = self.sae_path(sae_id)
        if not path.is_dir():
            raise ValueError(f"{path} is missing; put it back, or --resume to train the SAE again.")
        self.check(path, self._train_again(sae_id))
        return path

    def _train_again(self, sae_id: str) -> str:
        return f"delete {self.sae_path(sae_id)} and --resume to train the SAE again"

    def has_sae(self, sae_id: str) -> bool:
        """Whether an SAE is finished and saved."""
        return self.sae_path(sae_id).is_dir()

    def finished_saes(self, world: str | None = None) -> list[str]:
        """The SAEs that are there, of one world or of all, in the order of the spec.

        Raises:
            ValueError: the run is finished, and some are not there any more.
        """
        saes = self.manifest["spec"]["saes"]
        ids = [sae["sae_id"] for sae in saes if world in (None, sae["world"])]
        there = [sae_id for sae_id in ids if self.has_sae(sae_id)]
        if self.manifest["status"] == "finished" and len(there) < len(ids):
            lost = ", ".join(sae_id for sae_id in ids if sae_id not in there)
            raise ValueError(
                f"the run in {self.path} is finished, but {lost} of its {len(ids)} SAEs are "
                f"missing; put their folders back into {self.path / 'saes'}, or train them again "
                f"with `sbw run`, --out {self.path} and --resume."
            )
        return there

    def save_sae(self, sae_id: str, sae: sae_lens.TrainingSAE[Any]) -> None:
        """Save a finished SAE as a sae_lens folder."""
        with atomic.new_folder(self.sae_path(sae_id)) as unfinished:
            sae.save_model(unfinished)
        self.seal(self.sae_path(sae_id))

    def load_sae(self, sae_id: str, device: str = "cpu") -> sae_lens.TrainingSAE[Any]:
        """Load a finished SAE; ValueError where its folder is damaged."""
        from sae_lens import TrainingSAE

        path = self.checked_sae_path(sae_id)
        try:
            return TrainingSAE.load_from_disk(path, device=device)
        except Exception as error:
            # What sae_lens raises depends on which of its files is damaged, and how.
            raise damaged(path, error, self._train_again(sae_id)) from error

    def log_path(self, sae_id: str) -> Path:
        """Where the training log of an SAE lies."""
        return self.path / "logs" / f"{plain_name(sae_id)}.json"

    def write_log(self, sae_id: str, log: SAELog) -> None:
        """Write the training log of an SAE."""
        path = self.log_path(sae_id)
        atomic.write_bytes(path, json.dumps(asdict(log)).encode())
        self.seal(path)

    def read_log(self, sae_id: str) -> SAELog:
        """Read the training log of an SAE; FileNotFoundError or ValueError where it is missing or
        damaged."""
        path, remedy = self.log_path(sae_id), self._train_again(sae_id)
        self.check(path, remedy)
        content = read_json(path, remedy)
        # Only checked: in the log that this gives, whole numbers would not stay so.
        checked(SAELog, content, path, remedy)
        if unknown := content.keys() - vars(SAELog("")):
            raise damaged(path, f"it has a field {min(unknown)}", remedy)
        log = SAELog(**content)
        for is_wrong, why in (
            (any(len(log.steps) != len(c) for c in log.columns.values()), "columns of two lengths"),
            ("l0" not in log.columns, "no column l0"),
            (any(abs(step) >= 2**63 for step in (*log.steps, log.diverged_at or 0)), "huge steps"),
        ):
            if is_wrong:
                raise damaged(path, f"it has {why}", remedy)
        return log

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as CSV and as parquet."""
        buffer, path = io.BytesIO(), self.path / f"{name}.parquet"
        table.to_parquet(buffer, index=False)
        atomic.write_bytes(path, buffer.getvalue())
        atomic.write_bytes(path.with_suffix(".csv"), table.to_csv(index=False).encode())
        self.seal(path)

    def read_table(self, name: str) -> pd.DataFrame:
        """A table that `write_table` wrote; ValueError where it is missing or damaged."""
        import pandas as pd

        path = self.path / f"{name}.parquet"
        remedy = "delete it and --resume the run to write it again"
        self.check(path, remedy)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise damaged(path, error, remedy) from error


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / _MANIFEST).is_file()


def fresh_path(parent: Path, name: str) -> Path:
    """The first of name, name-2, name-3, … in a folder that is not taken."""
    path, number = parent / name, 1
    while _is_taken(path):
        number += 1
        path = parent / f"{name}-{number}"
    return path


def _is_taken(path: Path) -> bool:
    if not atomic.is_free(path):
        return True
    if not (path / atomic.LOCK).is_file():
        return False
    try:
        with atomic.locked(path):
            return False
    except ValueError:  # another process holds it, for results that are not there yet
        return True


def _check_is_run(path: Path) -> None:
    if not is_run(path):
        raise FileNotFoundError(
            f"there is no run in {path} ({_MANIFEST} is missing); leave --resume out to start "
            "one, or name the folder of a run."
        )


def _make_free(path: Path) -> None:
    try:
        atomic.make_free_folder(path)
    except FileExistsError as error:
        if is_run(path):
            raise FileExistsError(f"{error} To resume the run in it, add --resume.") from error
        raise


def _files(place: Path) -> list[Path]:
    """A file, or the files in a folder at any depth."""
    return [file for file in (place, *sorted(place.rglob("*"))) if file.is_file()]
