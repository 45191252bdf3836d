from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import pytest
import tueplots.axes
from matplotlib import font_manager
from matplotlib.figure import Figure
from tueplots import bundles

from sparse_but_wrong.figures import style


@pytest.fixture
def programs_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style.shutil, "which", lambda name: f"/usr/bin/{name}")


def let_kpsewhich_print(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    output = "".join(f"{line}\n" for line in lines)
    monkeypatch.setattr(
        style.subprocess, "run", lambda *_args, **_kwargs: SimpleNamespace(stdout=output)
    )


def refuse_to_run(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("started a program although LaTeX is not installed")


@pytest.mark.parametrize("absent", ["latex", "dvipng", "kpsewhich", "gs"])
def test_latex_needs_every_program_and_asks_none_where_one_is_absent(
    monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    present = {"latex", "dvipng", "kpsewhich", "gs"} - {absent}
    monkeypatch.setattr(style.shutil, "which", lambda name: name if name in present else None)
    monkeypatch.setattr(style.subprocess, "run", refuse_to_run)
    assert not style.latex_works()


@pytest.mark.usefixtures("programs_found")
def test_latex_works_where_every_file_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kpsewhich_print(monkeypatch, [f"/texmf/{name}" for name in style._LATEX_FILES])
    assert style.latex_works()


@pytest.mark.usefixtures("programs_found")
def test_latex_does_not_work_without_one_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kpsewhich_print(monkeypatch, [f"/texmf/{name}" for name in style._LATEX_FILES[1:]])
    assert not style.latex_works()


@pytest.mark.usefixtures("programs_found")
@pytest.mark.parametrize(
    "failure", [FileNotFoundError("kpsewhich"), subprocess.TimeoutExpired("kpsewhich", 10)]
)
def test_latex_does_not_work_where_kpsewhich_fails(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise failure

    monkeypatch.setattr(style.subprocess, "run", fail)
    assert not style.latex_works()


def test_with_latex_the_style_is_the_neurips_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "latex_works", lambda: True)
    context = style.seaborn_rc_context()
    assert context == {**bundles.neurips2021(), **tueplots.axes.lines()}
    with plt.rc_context(context):
        assert matplotlib.rcParams["text.usetex"] is True


def test_without_latex_only_the_fonts_differ_from_the_bundle_and_all_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(style, "latex_works", lambda: False)
    context = style.seaborn_rc_context()
    bundle = {**bundles.neurips2021(usetex=False), **tueplots.axes.lines()}
    assert context.keys() == bundle.keys()
    changed = {name for name in context if context[name] != bundle[name]}
    assert changed <= {"font.family", "font.serif", "font.sans-serif"}
    assert context["text.usetex"] is False
    installed = set(font_manager.fontManager.get_font_names())
    assert set(context["font.family"]) <= installed
    assert set(context["font.sans-serif"]) <= installed
    with plt.rc_context(context):
        assert matplotlib.rcParams["axes.titlesize"] == 9


def test_lines_are_as_thin_as_in_the_published_figures() -> None:
    with plt.rc_context(style.SEABORN_RC_CONTEXT):
        assert matplotlib.rcParams["axes.linewidth"] == 0.5
        assert matplotlib.rcParams["lines.linewidth"] == 1.0
        assert matplotlib.rcParams["xtick.major.width"] == 0.5


def test_paper_style_starts_from_the_defaults_and_keeps_the_screen() -> None:
    with plt.rc_context({"axes.facecolor": "pink", "axes.grid": True, "figure.dpi": 150}):
        with style.paper_style():
            assert matplotlib.rcParams["axes.facecolor"] == "white"
            assert matplotlib.rcParams["axes.grid"] is False
            assert matplotlib.rcParams["figure.dpi"] == 150
            assert matplotlib.rcParams["axes.labelsize"] == 9
        assert matplotlib.rcParams["axes.facecolor"] == "pink"


def test_paper_style_scales_fonts() -> None:
    with style.paper_style(font_scale=2):
        assert matplotlib.rcParams["axes.titlesize"] == 18
        assert matplotlib.rcParams["xtick.labelsize"] == 14


def test_fonts_are_fixed_when_text_is_made_not_when_it_is_drawn(
    render: Callable[[Figure], bytes],
) -> None:
    with style.paper_style():
        figure = Figure(figsize=(2, 1))
        text = figure.text(0.5, 0.5, "$s_n$ of an SAE – 10⁻³")
    assert text.get_fontfamily() == style.SEABORN_RC_CONTEXT["font.family"]
    assert render(figure)
