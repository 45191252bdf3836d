"""Stored activations as the world of a run: nobody knows their features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.activations.manifest import MANIFEST
from sparse_but_wrong.activations.parts import DatasetPart, FilePart
from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.untrusted import read_json

_FILE = "activations.json"
_HELD_OUT = 100_000
_LOOKS, _LOOK_BYTES = 1024, 4096


class StoredWorld:
    """Activations on disk, some of which are held out to evaluate SAEs on.

    Args:
        where: what `open_activations` opens; "~" is the user's home.
        column: of a dataset.
        n_held_out: samples that are not trained on; a tenth, at most 100,000, if left out.
    Raises:
        ValueError, OSError: as `open_activations` and `hold_out`.
    """

    def __init__(
        self, where: str, column: str | None = None, n_held_out: int | None = None
    ) -> None:
        # Absolute, so that a run can be resumed from another folder.
        path = Path(where).expanduser() if where.startswith("~/") else Path(where)
        self.where = str(path.resolve()) if path.exists() else where
        self.column = column
        self.stored = open_activations(self.where, column)
        if n_held_out is None:
            n_held_out = min(_HELD_OUT, max(1, self.stored.n_samples // 10))
        self.n_held_out = n_held_out
        self._training, self._held_out = self.stored.hold_out(n_held_out)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.stored.d_in

    def stream(self, batch_size: int, seed: int) -> ShuffledActivations:
        """What is trained on, without end.

        Raises:
            ValueError: fewer samples than a batch.
        """
        return ShuffledActivations(self._training, batch_size, seed)

    def held_out(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """What is held out, a batch per block of neighbours."""
        return (part.read(0, part.n_samples).float() for part in self._held_out.parts)

    def save(self, folder: Path) -> None:
        """Write into a new folder where the activations lie, and what tells them from others.

        Raises:
            FileExistsError: the folder holds something.
        """
        with atomic.new_folder(folder) as unfinished:
            facts = {**self._facts(), **self._fingerprints()}
            content = json.dumps(facts, indent=2, ensure_ascii=False)
            atomic.write_bytes(unfinished / _FILE, content.encode())

    def _facts(self) -> dict[str, object]:
        return {
            "activations": self.where,
            "column": self.column,
            "held_out": self.n_held_out,
            "n_samples": self.stored.n_samples,
            "d_in": self.stored.d_in,
        }

    def _fingerprints(self) -> dict[str, str | None]:
        return {
            "fingerprint": fingerprint(self.stored),
            "listed_sha256": _listed_sha256(Path(self.where)),
        }

    @classmethod
    def load(cls, folder: Path) -> StoredWorld:
        """The world that `save` wrote.

        Raises:
            ValueError: the file is damaged, or the activations have changed, as far as
                `fingerprint` tells; worlds of earlier versions have none.
            OSError: the file or the activations are missing.
        """
        file = folder / _FILE
        saved = read_json(file, "delete the folder it is in and --resume to make the world again")
        where, column, held_out = (saved.get(key) for key in ("activations", "column", "held_out"))
        if not (isinstance(where, str) and isinstance(column, str | None)) or (
            type(held_out) is not int
        ):
            raise ValueError(f"{file} is damaged (a field is missing or of another type).")
        world = cls(where, column, held_out)
        remedy = "put back what was there, or start a new run"
        if any(saved.get(key) != value for key, value in world._facts().items()):
            raise ValueError(
                f"{where} has {world.stored.n_samples} samples of width {world.d_in}, but had "
                f"{saved.get('n_samples')} of width {saved.get('d_in')} when the run was started; "
                f"{remedy}."
            )
        if saved.get("fingerprint") is None:
            return world
        for key, value in world._fingerprints().items():
            # A cache that got its checksums since the run was started is still the same.
            if None not in (value, saved.get(key)) and value != saved[key]:
                raise ValueError(
                    f"the activations in {where} have changed since the run was started, though "
                    f"there are as many; {remedy}."
                )
        return world


def fingerprint(stored: StoredActivations) -> str:
    """A SHA-256 that tells activations from others of the same shape without reading all of them.

    It covers the name and the size of every file and about a thousand pieces of 4 KiB: the start
    and the end of each file, and some evenly between. Activations of another model, layer, text or
    order differ everywhere, and so in them. A change of single samples between the pieces goes
    unnoticed.
    """
    files: list[Path] = []
    digest = hashlib.sha256()
    for part in stored.parts:
        if isinstance(part, FilePart):
            files.append(part.path)
        elif isinstance(part, DatasetPart):
            files += [Path(cached["filename"]) for cached in part.rows.cache_files]
            if not part.rows.cache_files:  # one that is held in memory
                digest.update(part.rows._fingerprint.encode())
    n_looks = max(3, _LOOKS // max(1, len(files)))
    for file in files:
        n_bytes = file.stat().st_size
        digest.update(f"{file.name} {n_bytes}\n".encode())
        with file.open("rb", buffering=0) as content:
            last = max(0, n_bytes - _LOOK_BYTES)
            for at in sorted({last * i // (n_looks - 1) for i in range(n_looks)}):
                content.seek(at)
                digest.update(content.read(_LOOK_BYTES))
    return digest.hexdigest()


def _listed_sha256(folder: Path) -> str | None:
    """What a cache says of the content of all its shards, where it does."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    shards = read_json(file).get("shards", ())
    sums = [str(shard.get("sha256")) for shard in shards]
    return None if "None" in sums else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def is_stored_world(folder: Path) -> bool:
    """Whether a world of a run is one of stored activations."""
    return (folder / _FILE).is_file()
