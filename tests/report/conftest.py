"""A browser, and pages opened in it as a reader would, but watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Scheme = Literal["light", "dark"]


@dataclass
class Watched:
    """A page, and everything it did that a page that stands alone should not."""

    page: Page
    complaints: list[str] = field(default_factory=list)


# Not of the session: while it is there, nothing else in this thread can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, _NAMES)), None)  # else playwright's own
    with sync_playwright() as playwright:
        try:
            # Chromium's sandbox needs rights that root and containers lack; the pages are ours.
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        except Error:
            if executable is not None:
                raise
            pytest.skip("not tested in a browser: there is none; scripts/install_browser.sh")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens a file; at the end of the module no page may have complained or asked for anything."""
    opened: list[Watched] = []

    def open_file(path: Path, scheme: Scheme = "light", width: int = 1280) -> Watched:
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        watched = Watched(page)
        opened.append(watched)
        _watch(page, watched.complaints)
        page.goto(path.resolve().as_uri())
        return watched

    yield open_file
    for watched in opened:
        watched.page.close()
    assert [watched.complaints for watched in opened] == [[] for _ in opened]


def _watch(page: Page, complaints: list[str]) -> None:
    def on_dialog(dialog: Any) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def on_request(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            complaints.append(f"request: {request.url}")

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"console: {message.text}")

    page.on("dialog", on_dialog)
    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
