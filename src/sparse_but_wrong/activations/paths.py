"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(where: str | Path) -> Path:
    """A path in which a leading `~` is the home folder; what is nobody's home stays as it is.

    Shells do not expand it in `--out=~/cache`, and nothing does in Python. Raises nothing.
    """
    # Path.expanduser raises a RuntimeError for users that do not exist.
    return Path(os.path.expanduser(where))  # noqa: PTH111
