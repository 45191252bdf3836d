#!/bin/sh
# Find or install a Chromium for the tests of the report: one that is there; else playwright's own,
# which needs no root; else, only as root, the system's. Without one those tests are left out.
# Usage: install_browser.sh [PYTHON], a Python that has playwright. Safe to run twice.
set -u

PYTHON=${1:-python3}
NAMES="chromium chromium-browser google-chrome google-chrome-stable"

for name in $NAMES; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done

starts() {
    "$PYTHON" - 2>/dev/null <<'END'
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    playwright.chromium.launch(args=["--no-sandbox"]).close()
END
}

if starts; then exit 0; fi
echo "Outside this folder: installing playwright's Chromium into your cache folder, for the tests of the report …"
if "$PYTHON" -m playwright install chromium >/dev/null 2>&1 && starts; then exit 0; fi

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Outside this folder: installing the system's package chromium with apt-get, for the tests of the report …"
    apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium &&
        command -v chromium >/dev/null 2>&1 && exit 0
fi
echo "No browser could be installed, so the report is not tested in one. Install Chromium or Google Chrome to test it." >&2
