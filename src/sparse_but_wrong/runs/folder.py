"""The folder of a run: everything that made it and everything it made.

manifest.json          spec, seed, versions, device, timings, what was found
worlds/<name>/         the toy worlds
saes/<sae_id>/         each SAE, as sae_lens saves it
logs/<sae_id>.json     what was measured while it trained
results.csv, .parquet  a row per SAE
training_curves.csv, .parquet
plots/                 figures, each as PDF and PNG
report.html            all of it on one page
checkpoint.safetensors only while SAEs are in training
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong import atomic
from sparse_but_wrong.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.untrusted import parse_json, plain_name, read_json

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

_MANIFEST = "manifest.json"
_FORMAT_VERSION = 2


class RunFolder:
    """A run on disk. Whatever is written appears whole or not at all."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any]) -> RunFolder:
        """A new run folder, with its manifest.

        Raises:
            FileExistsError: the folder holds something.
            NotADirectoryError: a file stands where the folder, or one above it, should be.
            PermissionError: it cannot be written to.
        """
        for place in (path, *path.parents):
            if place.exists():
                if not place.is_dir():
                    raise NotADirectoryError(
                        f"{place} is a file, so {path} cannot be a run folder; choose another."
                    )
                if not os.access(place, os.W_OK | os.X_OK):
                    raise PermissionError(
                        f"{place} cannot be written to; choose another folder for the run."
                    )
                break
        if not atomic.is_free(path):
            hint = " To go on with the run in it, add --resume." if is_run(path) else ""
            raise FileExistsError(
                f"{path} is not empty, and nothing is overwritten; choose a new folder.{hint}"
            )
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path, {"format_version": _FORMAT_VERSION, **manifest})
        folder.write_manifest()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: its manifest is damaged or of another format.
        """
        if not is_run(path):
            raise FileNotFoundError(
                f"there is no run in {path} ({_MANIFEST} is missing); leave --resume out to start "
                "one, or name the folder of a run."
            )
        file = path / _MANIFEST
        manifest = read_json(file, "the run cannot be taken up. Start a new one in another folder")
        if manifest.get("format_version") != _FORMAT_VERSION:
            raise ValueError(
                f"{file} is not a manifest of format {_FORMAT_VERSION}; use the version of "
                "sparse_but_wrong that wrote it, or start a new run in another folder."
            )
        return cls(path, manifest)

    def locked(self) -> AbstractContextManager[None]:
        """As `atomic.locked`, for this folder."""
        return atomic.locked(self.path)

    def write_manifest(self) -> None:
        """Write the manifest as it is now."""
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        atomic.write_bytes(self.path / _MANIFEST, text.encode())

    def world_path(self, name: str) -> Path:
        """Where a world lies."""
        return self.path / "worlds" / plain_name(name)

    @property
    def plots_path(self) -> Path:
        """Where the figures lie."""
        return self.path / "plots"

    @property
    def report_path(self) -> Path:
        """Where the report lies."""
        return self.path / "report.html"

    def sae_path(self, sae_id: str) -> Path:
        """Where an SAE lies."""
        return self.path / "saes" / plain_name(sae_id)

    def has_sae(self, sae_id: str) -> bool:
        """Whether an SAE is finished and saved."""
        return self.sae_path(sae_id).is_dir()

    def save_sae(self, sae_id: str, sae: sae_lens.TrainingSAE[Any]) -> None:
        """Save a finished SAE as a sae_lens folder."""
        with atomic.new_folder(self.sae_path(sae_id)) as unfinished:
            sae.save_model(unfinished)

    def load_sae(self, sae_id: str, device: str = "cpu") -> sae_lens.TrainingSAE[Any]:
        """Load a finished SAE.

        Raises:
            ValueError: its folder is damaged; the message says what to do.
        """
        from sae_lens import TrainingSAE
        from safetensors import SafetensorError

        path = self.sae_path(sae_id)
        try:
            return TrainingSAE.load_from_disk(path, device=device)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete that folder and --resume to train the SAE "
                "again."
            ) from error

    def write_log(self, sae_id: str, log: SAELog) -> None:
        """Write the training log of an SAE."""
        atomic.write_bytes(self._log_path(sae_id), json.dumps(asdict(log)).encode())

    def read_log(self, sae_id: str) -> SAELog:
        """Read the training log of an SAE.

        Raises:
            ValueError: it is missing or damaged; the message says what to do.
        """
        path = self._log_path(sae_id)
        try:
            return SAELog(**parse_json(path.read_bytes()))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete {self.sae_path(sae_id)} and --resume to "
                "train the SAE again."
            ) from error

    def _log_path(self, sae_id: str) -> Path:
        return self.path / "logs" / f"{plain_name(sae_id)}.json"

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint lies while SAEs are in training."""
        return self.path / "checkpoint.safetensors"

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        write_checkpoint(self.checkpoint_path, checkpoint)

    def read_checkpoint(self) -> Checkpoint | None:
        """The checkpoint, if there is one.

        Raises:
            ValueError: it is damaged.
        """
        return read_checkpoint(self.checkpoint_path) if self.checkpoint_path.exists() else None

    def remove_checkpoint(self) -> None:
        """Forget the checkpoint, once its SAEs are saved."""
        self.checkpoint_path.unlink(missing_ok=True)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as CSV and as parquet."""
        import io

        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        atomic.write_bytes(self.path / f"{name}.parquet", buffer.getvalue())
        atomic.write_bytes(self.path / f"{name}.csv", table.to_csv(index=False).encode())

    def read_table(self, name: str) -> pd.DataFrame:
        """A table that `write_table` wrote.

        Raises:
            ValueError: it is missing or damaged.
        """
        import pandas as pd

        path = self.path / f"{name}.parquet"
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it and --resume the run to write it again."
            ) from error


def is_run(path: Path) -> bool:
    """Whether a folder holds a run."""
    return (path / _MANIFEST).is_file()


def fresh_path(parent: Path, name: str) -> Path:
    """The first of name, name-2, name-3, … in a folder that is not taken."""
    path, number = parent / name, 1
    while not atomic.is_free(path):
        number += 1
        path = parent / f"{name}-{number}"
    return path
