"""Figures to files: whole or not at all, and the same bytes for the same figure (PDF, PNG, SVG)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backend_bases import FigureCanvasBase

from sparse_but_wrong.atomic import write_bytes
from sparse_but_wrong.figures.style import paper_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 200
# A date would make the same figure a different file on every run.
_UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save_figure(fig: Figure, path_without_suffix: str | Path) -> tuple[Path, Path]:
    """Write a figure as a PDF and as a PNG, then close it.

    Args:
        path_without_suffix: "folder/name" writes folder/name.pdf and folder/name.png. A missing
            folder is created. Each file appears whole or not at all.
    Returns:
        The paths of the PDF and of the PNG.
    Raises:
        ValueError: the path ends in .pdf or .png already.
    """
    import matplotlib.pyplot as plt

    base = Path(path_without_suffix)
    if base.suffix.lower() in (".pdf", ".png"):
        raise ValueError(
            f"save_figure writes a PDF and a PNG and adds both suffixes itself: "
            f"leave {base.suffix} off {str(base)!r}."
        )
    try:
        # Not with_suffix: in "dp_0.5" it would take ".5" for a suffix.
        pdf = write_figure(fig, base.parent / f"{base.name}.pdf")
        png = write_figure(fig, base.parent / f"{base.name}.png")
    finally:
        plt.close(fig)
    return pdf, png


def write_figure(fig: Figure, path: str | Path, dpi: float | int = _DPI) -> Path:
    """Write a figure in the format that the path's suffix names; the figure stays open.

    Args:
        path: a missing folder is created. The file appears whole or not at all.
        dpi: pixels to the inch, of what is made of pixels.
    Raises:
        ValueError: a suffix that matplotlib has no format for.
    """
    path = Path(path)
    check_suffix(path)
    kind = path.suffix[1:].lower()
    buffer = io.BytesIO()
    # The style again: what LaTeX needs and the names of math fonts are read when text is drawn.
    # The salt: without one, an SVG's element names are random.
    with paper_style(), matplotlib.rc_context({"svg.hashsalt": "sparse_but_wrong"}):
        fig.savefig(buffer, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))
    write_bytes(path, buffer.getvalue())
    return path


def check_suffix(path: str | Path, *others: str) -> None:
    """Reject a path whose suffix names no format of matplotlib's, before anything is drawn.

    Args:
        others: formats, without a dot, that somebody else writes.
    Raises:
        ValueError: the suffix is missing or unknown.
    """
    path = Path(path)
    known = {*FigureCanvasBase.get_supported_filetypes(), *others}
    if path.suffix[1:].lower() not in known:
        raise ValueError(
            f"{str(path)!r} does not end in a format that can be written: "
            f"use one of {', '.join(f'.{kind}' for kind in sorted(known))}."
        )
