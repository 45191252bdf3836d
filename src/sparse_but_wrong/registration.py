"""Tell sae_lens of our architecture once it is there, without importing it before.

``import sparse_but_wrong`` has to stay fast, so it cannot import sae_lens; and a folder has to load
with `sae_lens.TrainingSAE.load_from_disk` though its reader has named nothing of ours. So where
sae_lens is there already, the architecture is registered at once; elsewhere a finder waits for the
import of sae_lens, leaves it to the finders that would have served it, and registers right after.
Everything of ours that needs the architecture comes after one or the other.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader

_REGISTERS = "sparse_but_wrong.training.enhanced_batchtopk_sae"


def register_with_sae_lens() -> None:
    """Register the architecture ``enhanced_batchtopk``, now or when sae_lens is imported."""
    if sys.modules.get("sae_lens") is not None:
        importlib.import_module(_REGISTERS)
    else:
        sys.meta_path.insert(0, _AfterSaeLens())


class _AfterSaeLens:
    """A finder that only adds to what importing sae_lens does."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How sae_lens is found by the others, and what follows its import."""
        if name != "sae_lens":
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                _register_after(spec.loader)
                return spec
        return None


def _register_after(loader: Loader) -> None:
    execute = loader.exec_module

    def execute_and_register(module: ModuleType) -> None:
        execute(module)
        importlib.import_module(_REGISTERS)

    loader.exec_module = execute_and_register
