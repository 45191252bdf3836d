"""Templates, style and scripts to one self-contained page."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Script:
    """A script to stand in a page as it is."""

    text: Markup
    digest: str
    """What the page's security policy knows it by."""


def render(template: str, scripts: Sequence[Script], **values: Any) -> bytes:
    """A page that loads nothing and runs no script but those given.

    Args:
        template: the name of a file beside this one.
        scripts: run in this order, at the end of the page.
        values: what the template names; all of it is escaped.
    """
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(script.digest for script in scripts)}",
            # Plots set styles as they are drawn.
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    page = (
        _environment()
        .get_template(template)
        .render(scripts=scripts, policy=policy, style=Markup(_asset("page.css")), **values)
    )
    return page.encode()


def own_script(name: str) -> Script:
    """One of the scripts beside this file."""
    return _script(_asset(name))


@functools.cache
def plotly_script() -> Script:
    """plotly.js, as the plotly package brings it."""
    from plotly.offline import get_plotlyjs

    return _script(get_plotlyjs())


def _script(text: str) -> Script:
    # A browser reads line ends as \n before it takes the digest.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # In a string or a regular expression this says the same, and nowhere else can it stand.
    text = text.replace("</script", "<\\/script").replace("<!--", "\\x3c!--")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return Script(Markup(text), f"'sha256-{digest}'")


def _asset(name: str) -> str:
    return resources.files("sparse_but_wrong.report").joinpath(name).read_text(encoding="utf-8")


def with_symbols(text: str) -> Markup:
    """A sentence with s_n^dec, s_12, c_dec and c_enc set as symbols; all else is escaped."""
    safe = str(escape(text))
    safe = re.sub(r"\bs_(n|\d+)\^dec\b", r"s<sub>\1</sub><sup>dec</sup>", safe)
    safe = re.sub(r"\bs_(n|\d+)\b", r"s<sub>\1</sub>", safe)
    return Markup(re.sub(r"\bc_(dec|enc)\b", r"c<sub>\1</sub>", safe))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["symbols"] = with_symbols
    return environment
