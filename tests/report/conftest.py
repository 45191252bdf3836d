"""A browser, and pages opened in it as a reader would, but watched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Dialog, Error, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LOCAL, _FAULTS = ("file:", "data:", "blob:"), ("error", "warning")


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
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file; at the end of the module no page may have complained or asked for anything."""
    pages: list[Page] = []
    complaints: list[str] = []

    def on_dialog(dialog: Dialog) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    def open_file(path: Path, dark: bool = False, width: int = 1280) -> Page:
        scheme: Literal["dark", "light"] = "dark" if dark else "light"
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("dialog", on_dialog)
        page.on("request", lambda r: complaints.extend([r.url] * (not r.url.startswith(_LOCAL))))
        page.on("console", lambda m: complaints.extend([m.text] * (m.type in _FAULTS)))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.resolve().as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()
    assert complaints == []
