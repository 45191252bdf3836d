"""The style of figures with and without LaTeX, and figures as files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import matplotlib
import matplotlib.pyplot as plt
import pytest
import tueplots.axes
from matplotlib import font_manager
from matplotlib.figure import Figure
from tueplots import bundles

from sparse_but_wrong.figures import style
from sparse_but_wrong.figures.style import save_figure, write_figure
from tests.figures.conftest import rendered

PROGRAMS = {"latex", "dvipng", "kpsewhich", "gs"}


@pytest.mark.parametrize(
    ("absent", "answer", "works"),
    [
        *((name, AssertionError("started a program"), False) for name in sorted(PROGRAMS)),
        ("", style._LATEX_FILES, True),
        ("", style._LATEX_FILES[1:], False),
        ("", FileNotFoundError("kpsewhich"), False),
        ("", subprocess.TimeoutExpired("kpsewhich", 10), False),
    ],
)
def test_latex_works_where_every_program_and_file_is_there(
    monkeypatch: pytest.MonkeyPatch, absent: str, answer: Any, works: bool
) -> None:
    present = PROGRAMS - {absent}
    done = answer if isinstance(answer, Exception) else [Mock(stdout="\n".join(answer))]
    monkeypatch.setattr(style.shutil, "which", lambda name: name if name in present else None)
    monkeypatch.setattr(style.subprocess, "run", Mock(side_effect=done))
    assert style.latex_works() is works


@pytest.mark.parametrize("works", [True, False])
def test_the_style_is_the_neurips_bundle_with_fonts_that_are_installed(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setattr(style, "latex_works", lambda: works)
    context = style.seaborn_rc_context()
    bundle = {**bundles.neurips2021(usetex=works), **tueplots.axes.lines()}
    changed = {name for name in context if context[name] != bundle[name]}
    assert context.keys() == bundle.keys()
    assert changed <= (set() if works else {"font.family", "font.serif", "font.sans-serif"})
    installed = set(font_manager.fontManager.get_font_names())
    assert works or {*context["font.family"], *context["font.sans-serif"]} <= installed
    with plt.rc_context(context):
        rc = matplotlib.rcParams
        assert (rc["text.usetex"], rc["axes.titlesize"]) == (works, 9)
        # As thin as in the published figures.
        widths = [rc[k] for k in ("axes.linewidth", "lines.linewidth", "xtick.major.width")]
        assert widths == [0.5, 1.0, 0.5]


def test_paper_style_starts_from_the_defaults_keeps_the_screen_and_scales_fonts() -> None:
    rc = matplotlib.rcParams
    with plt.rc_context({"axes.facecolor": "pink", "axes.grid": True, "figure.dpi": 150}):
        with style.paper_style():
            assert (rc["axes.facecolor"], rc["axes.grid"]) == ("white", False)
            assert (rc["figure.dpi"], rc["axes.labelsize"]) == (150, 9)
        assert rc["axes.facecolor"] == "pink"
    with style.paper_style(font_scale=2):
        assert (rc["axes.titlesize"], rc["xtick.labelsize"]) == (18, 14)
        figure = Figure(figsize=(2, 1))
        text = figure.text(0.5, 0.5, "$s_n$ of an SAE – 10⁻³")
    # Fonts are fixed when text is made, not when it is drawn.
    assert text.get_fontfamily() == style.SEABORN_RC_CONTEXT["font.family"]
    assert rendered(figure)


def a_figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2], [3, 4])
    return figure


def test_a_figure_is_saved_as_pdf_and_png_and_the_same_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    pdf, png = save_figure(a_figure(), folder / "dp_0.5")
    assert sorted(folder.iterdir()) == [pdf, png] == [folder / "dp_0.5.pdf", folder / "dp_0.5.png"]
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"CreationDate" not in pdf.read_bytes()
    assert plt.imread(png).shape[:2] == (200, 400)
    again = save_figure(a_figure(), tmp_path / "again")
    assert [path.read_bytes() for path in again] == [pdf.read_bytes(), png.read_bytes()]
    save_figure(plt.figure(figsize=(1, 1)), tmp_path / "open")
    assert plt.get_fignums() == []
    svg, other = (write_figure(a_figure(), tmp_path / f"{i}.svg") for i in range(2))
    assert svg.read_bytes() == other.read_bytes()
    assert write_figure(a_figure(), tmp_path / "figure.eps").read_bytes().startswith(b"%!PS")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (save_figure, "figure.pdf"),
        (save_figure, "figure.PNG"),
        (write_figure, "figure"),
        (write_figure, "figure.docx"),
    ],
)
def test_a_path_in_no_format_is_refused(
    tmp_path: Path, write: Callable[[Figure, Path], object], name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        write(a_figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
