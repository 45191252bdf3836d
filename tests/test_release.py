"""One version everywhere, and a look at what is released."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import sparse_but_wrong
from scripts import check_dist

ROOT = Path(__file__).resolve().parents[1]
STEM = f"sparse_but_wrong-{sparse_but_wrong.__version__}"


def test_citation_and_changelog_are_of_the_same_version() -> None:
    assert check_dist.version() == sparse_but_wrong.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sparse_but_wrong.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d\S*)", changelog, re.MULTILINE)[0] == sparse_but_wrong.__version__


def archives(dist: Path, names: set[str]) -> None:
    dist.mkdir(exist_ok=True)
    with zipfile.ZipFile(dist / f"{STEM}-py3-none-any.whl", "w") as wheel:
        for name in names:
            wheel.writestr(name, "")
    with tarfile.open(dist / f"{STEM}.tar.gz", "w:gz") as sdist:
        for name in names:
            sdist.addfile(tarfile.TarInfo(f"{STEM}/src/{name}"))


def test_what_is_built_is_whole(tmp_path: Path) -> None:
    clone, dist = tmp_path / "clone", tmp_path / "dist"  # building leaves files in its folder
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=ignored)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, clone)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(clone)]
    subprocess.run(build, check=True, capture_output=True)
    assert check_dist.problems(dist) == []


def test_what_a_release_lacks_is_named(tmp_path: Path) -> None:
    files = check_dist.package_files()
    kernels = "sparse_but_wrong/training/native/kernels.cpp"
    assert {kernels, "sparse_but_wrong/py.typed", "sparse_but_wrong/report/page.css"} <= files
    archives(tmp_path, files - {kernels} | {"tests/test_api.py"})
    said = "\n".join(check_dist.problems(tmp_path))
    assert said.count(f"lacks {kernels}") == said.count("holds tests/test_api.py") == 2
    (tmp_path / "sparse_but_wrong-0.0.1.tar.gz").touch()
    assert "0.0.1" in check_dist.problems(tmp_path)[0]


@pytest.mark.parametrize("workflow", ["test", "package", "release"])
def test_workflows_run_what_is_there(workflow: str) -> None:
    text = (ROOT / f".github/workflows/{workflow}.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["jobs"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"run: make (\w+)", text):
        assert f"\n{target}:" in makefile
    for script in re.findall(r"run: (scripts/\S+)", text):
        assert (ROOT / script).stat().st_mode & 0o111
