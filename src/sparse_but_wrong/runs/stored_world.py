"""Stored activations as the world of a run: nobody knows their features."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.untrusted import checked, read_json, user_path

if TYPE_CHECKING:
    import sae_lens

_FILE = "activations.json"
_HELD_OUT = 100_000
_LOOKS, _LOOK_BYTES = 1024, 4096


@dataclass(frozen=True)
class _Saved:
    """Where activations lie, and what tells them from others."""

    activations: str
    column: str | None
    held_out: int
    n_samples: int
    d_in: int
    fingerprint: str
    listed_sha256: str | None
    from_here: str | None = None
    """Where they lie as seen from the world's folder, so that both can be moved."""


class StoredWorld:
    """Activations on disk, some of which are held out to evaluate SAEs on.

    Args:
        where: what `open_activations` opens.
        column: of a dataset.
        n_held_out: samples that are not trained on; a tenth, at most 100,000, if left out.
    Raises:
        ValueError, OSError: as `open_activations` and `hold_out`.
    """

    def __init__(
        self, where: str, column: str | None = None, n_held_out: int | None = None
    ) -> None:
        # Absolute, so that a run can be resumed from another folder.
        path = user_path(where)
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
        """What is trained on, without end; ValueError for fewer samples than a batch."""
        return ShuffledActivations(self._training, batch_size, seed)

    def held_out(self, at_most: int | None = None) -> Iterator[Float[Tensor, "batch d_in"]]:
        """What is held out, or an even share of each of its blocks of neighbours: a batch each."""
        blocks = self._held_out.parts
        n_samples = self.n_held_out if at_most is None else min(at_most, self.n_held_out)
        shares = pairwise(n_samples * i // len(blocks) for i in range(len(blocks) + 1))
        for block, (start, stop) in zip(blocks, shares, strict=True):
            if start < stop:
                yield block.read(0, stop - start).float()

    def describe_in(self, saes: Iterable[sae_lens.SAE[Any]]) -> None:
        """Write into the metadata of SAEs what they are trained on, as far as it is on record."""
        model, hook = self.stored.origin
        facts = {"model_name": model, "hook_name": hook}
        if self.stored.cache is not None:
            facts |= self.stored.cache.sae_metadata
        for sae in saes:
            vars(sae.cfg.metadata).update(facts)

    def save(self, folder: Path) -> None:
        """Write into a new folder where the activations lie, and what tells them from others."""
        with atomic.new_folder(folder) as unfinished:
            saved = asdict(self._saved())
            if Path(self.where).exists():
                saved["from_here"] = os.path.relpath(self.where, folder.resolve())
            content = json.dumps(saved, indent=2, ensure_ascii=False)
            atomic.write_bytes(unfinished / _FILE, content.encode())

    def _saved(self) -> _Saved:
        listed = None
        if self.stored.cache is not None:  # the content of all its shards
            sums = "\n".join(shard.sha256 for shard in self.stored.cache.shards)
            listed = hashlib.sha256(sums.encode()).hexdigest()
        facts = (self.where, self.column, self.n_held_out, self.stored.n_samples, self.d_in)
        return _Saved(*facts, fingerprint(self.stored), listed)

    @classmethod
    def load(cls, folder: Path) -> StoredWorld:
        """The world that `save` wrote.

        Raises:
            ValueError: the file is damaged, or the activations have changed, as far as
                `fingerprint` tells.
            OSError: the file or the activations are missing.
        """
        file, remedy = folder / _FILE, f"delete {folder} and --resume to make the world again"
        then: _Saved = checked(_Saved, read_json(file, remedy), file, remedy)
        beside = None if then.from_here is None else folder / then.from_here
        where = str(beside) if beside is not None and beside.exists() else then.activations
        world = cls(where, then.column, then.held_out)
        remedy = "put back what was there, or start a new run"
        shape = (world.stored.n_samples, world.d_in)
        if shape != (then.n_samples, then.d_in):
            raise ValueError(
                f"{world.where} has {shape[0]} samples of width {shape[1]}, but had "
                f"{then.n_samples} of width {then.d_in} when the run was started; {remedy}."
            )
        now = world._saved()
        if (now.fingerprint, now.listed_sha256) != (then.fingerprint, then.listed_sha256):
            raise ValueError(
                f"the activations in {world.where} have changed since the run was started, though "
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
    files = [file for part in stored.parts for file in part.files]
    digest = hashlib.sha256()
    if not files:  # all of it is in memory
        digest.update(stored.read(0, min(stored.n_samples, _LOOKS)).float().numpy().tobytes())
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
