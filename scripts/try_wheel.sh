#!/bin/sh
# Install the wheel in dist/ into an empty environment, with nothing of this clone on the path, and
# run the Quickstart there: `scripts/try_wheel.sh PYTHON`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$1" -m venv "$place/venv"
"$place/venv/bin/pip" install -q -c "$root/constraints.txt" "$root"/dist/*.whl
awk '/^```python/ {inside = 1; next} /^```/ {inside = 0} inside' "$root/docs/index.md" > "$place/quickstart.py"
cd "$place"
venv/bin/sbw --version
venv/bin/python -I quickstart.py
test -s l0.png
test -s l0_of_world/report.html
