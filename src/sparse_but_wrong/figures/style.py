"""How every figure looks, the NeurIPS 2021 style, and how it is written to a file."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.style
import tueplots.axes
from matplotlib import font_manager
from matplotlib.backend_bases import FigureCanvasBase
from tueplots import bundles

from sparse_but_wrong.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Number = float | int

# What matplotlib and the NeurIPS bundle load to set text with LaTeX. A LaTeX without one of these
# is found by `which` and then fails on the first label.
_LATEX_FILES = (
    *("article.cls", "fix-cm.sty", "geometry.sty", "inputenc.sty", "textcomp.sty", "type1cm.sty"),
    *("ot1phv.fd", "ot1ptm.fd", "ptmr7t.tfm", "type1ec.sty", "underscore.sty"),
)
_LATEX_PROGRAMS = (("latex",), ("dvipng",), ("kpsewhich",), ("gs", "gswin64c", "gswin32c"))
# Matplotlib brings them: the first looks like Times, the second has the glyphs the first lacks.
_BUNDLED_SERIFS, _BUNDLED_SANS = ("STIXGeneral", "DejaVu Serif"), ("DejaVu Sans",)
_FONT_SIZES = (
    *("font.size", "axes.labelsize", "axes.titlesize"),
    *("legend.fontsize", "xtick.labelsize", "ytick.labelsize"),
)
_SAVED_AS = ("pdf", "png")
# A date would make the same figure a different file on every run.
_UNDATED: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

# Okabe and Ito's colours, told apart under the common colour-vision deficiencies.
BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
GREY = "#666666"
RED = "red"


def latex_works() -> bool:
    """Whether LaTeX, its converters and every file that the figures' text needs are installed.

    Looks files up and never typesets.
    """
    if not all(any(map(shutil.which, names)) for names in _LATEX_PROGRAMS):
        return False
    command = ["kpsewhich", *_LATEX_FILES]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    # kpsewhich prints one line for each file that it finds, and nothing for the others.
    return len(found.stdout.splitlines()) == len(_LATEX_FILES)


def seaborn_rc_context() -> dict[Any, Any]:
    """The NeurIPS 2021 style of tueplots, its thin lines included, for `matplotlib.rc_context`.

    Text is set by LaTeX where that works. Elsewhere the font family is a list of serif fonts that
    are installed here, Times first: a generic "serif" would be looked up when the figure is drawn,
    perhaps outside the context, and would log a warning for lack of Times.
    """
    works = latex_works()
    context = {**bundles.neurips2021(usetex=works), **tueplots.axes.lines()}
    if not works:
        installed = set(font_manager.fontManager.get_font_names())
        for kind, bundled in (("serif", _BUNDLED_SERIFS), ("sans-serif", _BUNDLED_SANS)):
            there = [name for name in context[f"font.{kind}"] if name in installed]
            context[f"font.{kind}"] = [*there, *bundled]
        context["font.family"] = context["font.serif"]
    return context


# Not dict[str, …]: type checkers know matplotlib to take a dict of its own parameter names.
SEABORN_RC_CONTEXT: dict[Any, Any] = seaborn_rc_context()


@contextmanager
def paper_style(font_scale: Number = 1) -> Iterator[None]:
    """Draw in the paper's style, whatever the caller's is; `@paper_style()` decorates a function.

    It starts from matplotlib's defaults, so that a figure is the same after `seaborn.set_theme()`
    or under a matplotlibrc. Only `figure.dpi`, the size on the screen, stays the caller's.

    Args:
        font_scale: multiplies the paper's font sizes, for figures larger than a page.
    """
    sizes = {name: SEABORN_RC_CONTEXT[name] * font_scale for name in _FONT_SIZES}
    screen = {"figure.dpi": matplotlib.rcParams["figure.dpi"]}
    with matplotlib.style.context(["default", SEABORN_RC_CONTEXT, sizes, screen]):
        yield


def save_figure(fig: Figure, path_without_suffix: str | Path) -> tuple[Path, Path]:
    """Write "folder/name.pdf" and "folder/name.png" as `write_figure` does, and close the figure.

    Raises:
        ValueError: the path ends in .pdf or .png already.
    """
    import matplotlib.pyplot as plt

    base = Path(path_without_suffix)
    if base.suffix.lower() in (".pdf", ".png"):
        raise ValueError(
            f"save_figure writes a PDF and a PNG and adds both suffixes; leave {base.suffix} off "
            f"{str(base)!r}."
        )
    try:
        # Not with_suffix: in "dp_0.5" it would take ".5" for a suffix.
        pdf, png = (write_figure(fig, base.parent / f"{base.name}.{kind}") for kind in _SAVED_AS)
    finally:
        plt.close(fig)
    return pdf, png


def write_figure(fig: Figure, path: str | Path, dpi: Number = 200) -> Path:
    """Write a figure in the format of the path's suffix; the figure stays open.

    Missing folders are made. The file appears whole or not at all, and is the same for the same
    figure.

    Raises:
        ValueError: a suffix that matplotlib has no format for.
    """
    path = Path(path)
    check_suffix(path)
    write_bytes(path, _rendered(fig, path.suffix[1:].lower(), dpi))
    return path


def as_html(fig: Figure) -> str:
    """A figure as an HTML image that holds all of itself."""
    png = _rendered(fig, "png", dpi=110)
    return f'<img src="{png_address(png)}" style="max-width: 100%; background: white">'


def png_address(png: bytes) -> str:
    """A PNG as an address, for pages that load nothing."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _rendered(fig: Figure, kind: str, dpi: Number) -> bytes:
    buffer = io.BytesIO()
    # The style again: what LaTeX needs and the names of math fonts are read when text is drawn.
    # The salt: without one, an SVG's element names are random.
    with paper_style(), matplotlib.rc_context({"svg.hashsalt": "sparse_but_wrong"}):
        fig.savefig(buffer, format=kind, dpi=dpi, metadata=_UNDATED.get(kind))
    return buffer.getvalue()


def check_suffix(path: str | Path, *others: str) -> None:
    """Refuse a path in no format of matplotlib's, nor of `others`, before anything is drawn."""
    known = {*FigureCanvasBase.get_supported_filetypes(), *others}
    if Path(path).suffix[1:].lower() not in known:
        raise ValueError(
            f"{str(path)!r} does not end in a format that can be written: "
            f"use one of {', '.join(f'.{kind}' for kind in sorted(known))}."
        )
