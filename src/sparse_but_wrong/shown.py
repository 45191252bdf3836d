"""How results show themselves in notebooks: their words or table, and their figure."""

from __future__ import annotations

import pkgutil
from html import escape


def with_figure(html: str, drawn_by: str, result: object) -> str:
    """HTML of a result with its figure below, or with why there is none.

    Args:
        drawn_by: what draws the result, as ``module:function`` in `figures`. It is named, because
            results stand below that room, and imported only here, because it takes a second.
    """
    draw, as_html = map(
        pkgutil.resolve_name,
        (f"sparse_but_wrong.figures.{drawn_by}", "sparse_but_wrong.figures.style:as_html"),
    )
    try:
        return html + as_html(draw(result))
    except ValueError as error:  # nothing is finite, for example
        return f"{html}<p>No figure: {escape(str(error))}</p>"
