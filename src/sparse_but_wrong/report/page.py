"""The one page of runs, evaluations, recommendations and verdicts: optional sections, one template.

A page stands alone: it loads nothing, shows whatever it is given as text, and runs only the scripts
that its security policy knows by their digests.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from sparse_but_wrong import atomic

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

OUTCOMES = {
    "holds": ("✓", "holds"),
    "fails": ("✗", "does not hold"),
    "not judged": ("?", "not judged"),
}
"""The sign and the words of each: colour alone would not reach everybody."""

_MOST_ROWS, _MOST_COLUMNS = 2000, 60


@dataclass(frozen=True)
class Image:
    """A figure as a PNG, or None where it is missing, and the address of its PDF."""

    png: bytes | None
    caption: str
    pdf: str

    @property
    def address(self) -> str:
        from sparse_but_wrong.figures.style import png_address

        return png_address(self.png or b"")


@dataclass(frozen=True)
class Section:
    """A part of a page. What is left out is not shown."""

    id: str
    title: str
    link: str = ""
    """Where the title leads."""
    outcome: str = ""
    """A key of `OUTCOMES`, written beside the title."""
    lead: str = ""
    """A sentence in larger letters."""
    checks: Sequence[Mapping[str, Any]] = ()
    """Parts of a claim: `claim`, what was `measured`, if it `holds`; None where nothing tells."""
    points: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Lists of sentences by their headings, of which one may be empty."""
    images: Sequence[Image] = ()
    plot: go.Figure | None = None
    table: pd.DataFrame | None = None
    csv: str = ""
    """The address of the whole table."""
    facts: Mapping[str, object] = field(default_factory=dict)
    parts: Mapping[str, Markup] = field(default_factory=dict)
    """HTML by headings, each of which opens and closes; the first is open."""
    source: str = ""
    """The whole spec."""
    notes: Sequence[str] = ()

    @property
    def plot_json(self) -> Markup:
        # Plotly escapes what could end the script element that holds it.
        return Markup("" if self.plot is None else self.plot.to_json())  # pyright: ignore[reportArgumentType]

    @property
    def table_html(self) -> Markup:
        import pandas as pd

        if self.table is None:
            return Markup()
        shown = _filled(self.table).iloc[:_MOST_ROWS, :_MOST_COLUMNS].astype(object)
        with pd.option_context("display.max_colwidth", None):
            return Markup(shown.map(_cell).to_html(index=False, border=0, classes="sortable"))

    @property
    def every_note(self) -> list[str]:
        notes = list(self.notes)
        if self.table is not None:
            n_rows, n_columns = _filled(self.table).shape
            empty = [str(name) for name in self.table if name not in _filled(self.table)]
            if empty:
                notes.append(f"Not shown, because they have no entry: {', '.join(empty)}.")
            for kind, count, most in (
                ("rows", n_rows, _MOST_ROWS),
                ("columns", n_columns, _MOST_COLUMNS),
            ):
                if count > most:
                    notes.append(f"These are the first {most:,} of {count:,} {kind}.")
        return notes


def write_page(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    above: str = "",
    notices: Sequence[str] = (),
) -> Path:
    """Write a page to `path`; it appears whole or not at all, and replaces an older one.

    Args:
        above: what stands above the title.
        notices: what must not be overlooked.
    """
    scripts = [_script(_asset("page.js"))]
    if any(section.plot is not None for section in sections):
        scripts.insert(0, _plotly())
    policy = (
        f"default-src 'none'; script-src {' '.join(digest for _, digest in scripts)}; "
        # Plots set styles as they are drawn.
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    page = _template().render(
        title=title,
        above=above,
        notices=notices,
        sections=sections,
        outcomes=OUTCOMES,
        policy=policy,
        style=Markup(_asset("page.css")),
        scripts=[text for text, _ in scripts],
    )
    atomic.write_bytes(path, page.encode())
    return path


def save_image(figure: Figure, folder: Path, name: str, caption: str) -> Image:
    """Write a figure into the `plots` of a folder, for a page in that folder."""
    from sparse_but_wrong.figures.style import save_figure

    _, png = save_figure(figure, folder / "plots" / name)
    return Image(png.read_bytes(), caption, f"plots/{name}.pdf")


def format_number(value: float | int) -> str:
    """A number for people: four significant digits, whole numbers in full."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}"


def shown_time(iso: object) -> str:
    """A point in time for people; what is none stays as it is."""
    try:
        time = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{time.day} {time:%b %Y, %H:%M} {time.tzname() or ''}".rstrip()


def shown_seconds(seconds: float | int) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def made_section(facts: Mapping[str, Any], source: str = "") -> Section:
    """How something was made, by name."""
    shown = {k: shown_time(v) if k == "Started" else str(v) for k, v in facts.items()}
    return Section("made", "How it was made", facts=shown, source=source)


def with_symbols(text: object) -> Markup:
    """A sentence with s_n^dec, s_12, c_dec and c_enc set as symbols; all else is escaped."""
    safe = str(escape(text))
    safe = re.sub(r"\bs_(n|\d+)\^dec\b", r"s<sub>\1</sub><sup>dec</sup>", safe)
    safe = re.sub(r"\bs_(n|\d+)\b", r"s<sub>\1</sub>", safe)
    return Markup(re.sub(r"\bc_(dec|enc)\b", r"c<sub>\1</sub>", safe))


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    return table.dropna(axis="columns", how="all") if len(table) else table


def _cell(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_number(value) if isinstance(value, int | float) else str(value)


def _asset(name: str) -> str:
    return resources.files("sparse_but_wrong.report").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> tuple[Markup, str]:
    from plotly.offline import get_plotlyjs

    return _script(get_plotlyjs())


def _script(text: str) -> tuple[Markup, str]:
    """A script to stand in a page as it is, and what the policy knows it by."""
    # A browser reads line ends as \n before it takes the digest.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # In a string or a regular expression this says the same, and nowhere else can it stand.
    text = text.replace("</script", "<\\/script").replace("<!--", "\\x3c!--")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Markup(text), f"'sha256-{digest}'"


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["symbols"] = with_symbols
    return environment.from_string(_asset("page.html.jinja"))
