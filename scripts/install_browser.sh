#!/bin/sh
# Make sure that a Chromium or Chrome is there: tests of the report drive one, headless.
#
# Installs Debian's (or Ubuntu's) where that can be done without asking; safe to run twice.
set -eu

NAMES="chromium chromium-browser google-chrome google-chrome-stable"

found() {
    for name in $NAMES; do
        if command -v "$name" >/dev/null 2>&1; then
            return 0
        fi
    done
    return 1
}

give_up() {
    echo "$1 Install Chromium or Google Chrome so that one of these is on PATH: $NAMES." >&2
    exit 1
}

if found; then
    exit 0
fi

command -v apt-get >/dev/null 2>&1 || give_up "There is no browser, and no apt-get to install one."
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    give_up "There is no browser, and installing one needs root: sudo apt-get install chromium."
fi

echo "Installing Chromium for the tests of the report …"
$as_root apt-get update -qq || give_up "apt-get update failed."
$as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends chromium || give_up "Installing chromium failed."
found || give_up "chromium was installed, but is not on PATH."
