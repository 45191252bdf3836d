"""Stored activations as the world of a run: nobody knows their features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.split import hold_out
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.untrusted import parse_json

_FILE = "activations.json"


class StoredWorld:
    """Activations on disk, some of which are held out to score SAEs on.

    Args:
        where: what `open_activations` opens.
        column: of a dataset.
        n_held_out: samples that are not trained on.
    Raises:
        ValueError, OSError: as `open_activations` and `hold_out`.
    """

    def __init__(self, where: str, column: str | None, n_held_out: int) -> None:
        # Whole, so that a run can be taken up from another folder.
        self.where = str(Path(where).resolve()) if Path(where).exists() else where
        self.column, self.n_held_out = column, n_held_out
        self.stored = open_activations(self.where, column)
        self._training, self._held_out = hold_out(self.stored, n_held_out)

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
        """Write into a new folder where the activations lie and how many there are.

        Raises:
            FileExistsError: the folder holds something.
        """
        with atomic.new_folder(folder) as unfinished:
            content = json.dumps(self._facts(), indent=2, ensure_ascii=False)
            atomic.write_bytes(unfinished / _FILE, content.encode())

    def _facts(self) -> dict[str, object]:
        return {
            "activations": self.where,
            "column": self.column,
            "held_out": self.n_held_out,
            "n_samples": self.stored.n_samples,
            "d_in": self.stored.d_in,
        }

    @classmethod
    def load(cls, folder: Path) -> StoredWorld:
        """The world that `save` wrote.

        Raises:
            ValueError: the file is damaged, or the activations are others than they were.
            OSError: they are not there any more.
        """
        file = folder / _FILE
        try:
            facts = parse_json(file.read_bytes())
            where, column, held_out = (facts[key] for key in ("activations", "column", "held_out"))
            if not (isinstance(where, str) and isinstance(held_out, int)):
                raise TypeError("activations or held_out is of another kind")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}).") from error
        world = cls(where, column, held_out)
        if world._facts() != facts:
            raise ValueError(
                f"{where} has {world.stored.n_samples} samples of width {world.d_in}, but had "
                f"{facts.get('n_samples')} of width {facts.get('d_in')} when the run was started; "
                "put back what was there, or start a new run."
            )
        return world


def is_stored_world(folder: Path) -> bool:
    """Whether a world of a run is one of stored activations."""
    return (folder / _FILE).is_file()
