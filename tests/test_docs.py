"""The site: it builds without a warning, needs no network, and shows what it is made from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest

import sparse_but_wrong
from docs import hooks
from sparse_but_wrong.cli.main import cli

L0 = hooks.ROOT / "benchmarks" / "l0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, in a folder; links to pages, anchors and files that are not there are warnings."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=hooks.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def page(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 10
    for path in pages:
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]* src=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]* href=\"?([^\s\">]+)", text)
        assert loaded
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], path.name


def test_the_reference_has_every_public_name_and_command(site: Path) -> None:
    api, commands = page(site, "api"), page(site, "cli")
    documented = {anchor.rsplit(".", 1)[-1] for anchor in re.findall(r'<h3 id="?([\w.]+)', api)}
    assert documented == set(sparse_but_wrong.__all__)
    # What follows the arguments of a docstring is set apart, and no text.
    assert ">Returns:<" in api
    assert "Returns: " not in re.sub(r"<[^>]*>", "", api)
    for name in cli.list_commands(click.Context(cli)):
        assert f'id="sbw-{name}"' in commands


@pytest.mark.parametrize("name", ["seed_0.csv", "seed_1.csv"])
def test_the_measured_tables_are_of_the_files(site: Path, name: str) -> None:
    rows = pd.read_csv(L0 / name)
    accuracy = page(site, "accuracy")
    for row in rows.to_dict("records"):
        assert row["world"] in accuracy
        if row["recommended"] == row["recommended"]:
            assert f"{row['recommended']:.4g} ({row['low']:.4g} to {row['high']:.4g})" in accuracy
    assert (site / "benchmarks" / "l0" / name).read_bytes() == (L0 / name).read_bytes()
    for grid in (L0 / "truth").glob("*.csv"):
        assert grid.stem.rsplit("_", 1)[0] in accuracy


def test_failures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    folder = tmp_path / "benchmarks" / "l0"
    folder.mkdir(parents=True)
    table = pd.read_csv(L0 / "seed_0.csv")
    n_features = table["n_features"].to_numpy()
    noise = n_features == 0
    declined, off, outside = np.flatnonzero((table["d_sae"].to_numpy() >= n_features) & ~noise)[:3]
    table.loc[declined, ["recommended", "low", "high", "error", "covered"]] = [None] * 4 + [False]
    table.loc[off, ["error", "covered"]] = 0.07, False
    table.loc[outside, ["error", "covered"]] = -0.03, False
    table.loc[noise, ["recommended", "low", "high"]] = 5.0, 4.0, 6.0
    table.to_csv(folder / "seed_7.csv", index=False)
    said = hooks.small_worlds()
    assert "seed 7" in said
    names = table["world"]
    assert f"`{names[declined]}`, seed 7: declined" in said
    assert f"`{names[off]}`, seed 7: off by 7 %" in said
    assert f"`{names[outside]}`, seed 7: off by 3 %, outside" in said
    for name in names[noise]:
        assert f"`{name}`, seed 7: recommended" in said
