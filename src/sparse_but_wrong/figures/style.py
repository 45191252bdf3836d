"""How every figure looks: the NeurIPS 2021 style, with LaTeX text only where LaTeX works."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import matplotlib.style
import tueplots.axes
from matplotlib import font_manager
from tueplots import bundles

# What matplotlib and the NeurIPS bundle load when they set text with LaTeX. A LaTeX without one of
# these is found by `which` and then fails on the first label.
_LATEX_FILES = (
    "article.cls",
    "fix-cm.sty",
    "geometry.sty",
    "inputenc.sty",
    "ot1phv.fd",
    "ot1ptm.fd",
    "ptmr7t.tfm",
    "textcomp.sty",
    "type1cm.sty",
    "type1ec.sty",
    "underscore.sty",
)
_LATEX_PROGRAMS = (
    ("latex",),
    ("dvipng",),
    ("kpsewhich",),
    ("gs", "gswin64c", "gswin32c"),
)

# Matplotlib brings both: the first looks like Times, the second has the glyphs the first lacks.
_BUNDLED_SERIFS = ("STIXGeneral", "DejaVu Serif")

_FONT_SIZES = (
    "font.size",
    "axes.labelsize",
    "axes.titlesize",
    "legend.fontsize",
    "xtick.labelsize",
    "ytick.labelsize",
)

# Okabe and Ito's colours, told apart under the common colour-vision deficiencies.
BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
GREY = "#666666"
RED = "red"


def latex_works() -> bool:
    """Whether LaTeX, its converters and every file that the figures' text needs are installed.

    Looks files up, never typesets: where LaTeX is absent it costs a search of PATH, where it is
    present one call of kpsewhich.
    """
    if not all(any(map(shutil.which, names)) for names in _LATEX_PROGRAMS):
        return False
    try:
        found = subprocess.run(
            ["kpsewhich", *_LATEX_FILES],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    # kpsewhich prints one line for each file that it finds, and nothing for the others.
    return len(found.stdout.splitlines()) == len(_LATEX_FILES)


def seaborn_rc_context() -> dict[Any, Any]:
    """The NeurIPS 2021 style of tueplots, its thin lines included, for `matplotlib.rc_context`.

    Where LaTeX works, text is set by LaTeX. Elsewhere the font family is a list of serif fonts
    that are installed here, Times first: a generic "serif" would be looked up when the figure is
    drawn, by which time the context may be gone, and would log a warning for lack of Times.
    """
    if latex_works():
        return {**bundles.neurips2021(usetex=True), **tueplots.axes.lines()}
    context = {**bundles.neurips2021(usetex=False), **tueplots.axes.lines()}
    installed = set(font_manager.fontManager.get_font_names())
    families = [name for name in context["font.serif"] if name in installed]
    families += _BUNDLED_SERIFS
    sans = [name for name in context["font.sans-serif"] if name in installed]
    return {
        **context,
        "font.family": families,
        "font.serif": families,
        "font.sans-serif": [*sans, "DejaVu Sans"],
    }


# Not dict[str, …]: type checkers know matplotlib to take a dict of its own parameter names.
SEABORN_RC_CONTEXT: dict[Any, Any] = seaborn_rc_context()


@contextmanager
def paper_style(font_scale: float | int = 1) -> Iterator[None]:
    """Draw in the paper's style, whatever style the caller has set, and leave the latter as it was.

    Starts from matplotlib's defaults, so that a figure comes out the same after
    `seaborn.set_theme()` or under a matplotlibrc of the user's. Only `figure.dpi` stays the
    caller's: it sets how large figures appear on the screen, and files do not depend on it.

    Args:
        font_scale: multiplies the paper's font sizes, for figures larger than a page.
    """
    sizes = {name: SEABORN_RC_CONTEXT[name] * font_scale for name in _FONT_SIZES}
    screen = {"figure.dpi": matplotlib.rcParams["figure.dpi"]}
    with matplotlib.style.context(["default", SEABORN_RC_CONTEXT, sizes, screen]):
        yield
