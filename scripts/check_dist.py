"""What a release holds, looked at before anybody gets it: `python scripts/check_dist.py dist`.

Checks that there is one wheel and one sdist of the version that the package says, that both hold
every file of the package and nothing of the tests. `twine check` looks at their metadata.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version() -> str:
    """The version in the one place that has it."""
    text = (ROOT / "src/sparse_but_wrong/__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)[0]


def package_files() -> set[str]:
    """Files of the package, as a wheel names them."""
    files = (ROOT / "src/sparse_but_wrong").rglob("*")
    kept = {".py", ".cpp", ".jinja", ".css", ".js", ".typed"}
    return {f.relative_to(ROOT / "src").as_posix() for f in files if {f.suffix, f.name} & kept} | {
        "sparse_but_wrong/py.typed"
    }


def problems(dist: Path) -> list[str]:
    """What is wrong with the files in a folder, a line each."""
    stem = f"sparse_but_wrong-{version()}"
    wheel, sdist = dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"
    found = {file.name for file in dist.iterdir()}
    if found != {wheel.name, sdist.name}:
        return [f"{dist} holds {sorted(found)}, but {[wheel.name, sdist.name]} are to be there"]
    with zipfile.ZipFile(wheel) as zipped, tarfile.open(sdist) as tarred:
        names = {
            wheel.name: set(zipped.namelist()),
            sdist.name: {
                name.removeprefix(f"{stem}/").removeprefix("src/") for name in tarred.getnames()
            },
        }
    said = []
    for archive, inside in names.items():
        said += [f"{archive} lacks {name}" for name in sorted(package_files() - inside)]
        said += [f"{archive} holds {name}" for name in sorted(inside) if name.startswith("tests")]
    return said


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{sys.argv[1]} holds all of {version()}.")
    sys.exit(bool(wrong))
