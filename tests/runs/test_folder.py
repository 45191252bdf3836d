"""The run folder: what a stranger's files or a damaged disk may hold, and how it is met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_but_wrong import atomic
from sparse_but_wrong.cli.run import report
from sparse_but_wrong.report.run import write_index
from sparse_but_wrong.runs.folder import RunFolder, fresh_path
from tests.report.folders import write_bare_run


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "/etc", "a\\b"])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {})
    for look in (folder.world_path, folder.sae_path, folder.has_sae, folder.read_log):
        with pytest.raises(ValueError, match="is not the plain name"):
            look(name)
    assert folder.world_path("c_+0.4") == tmp_path / "worlds" / "c_+0.4"
    assert folder.sae_path("k_1.8") == tmp_path / "saes" / "k_1.8"


MISSING = object()
DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("spec",), MISSING, "spec"),
        (("spec",), 3, "spec"),
        (("spec", "saes"), 3, r"spec\.saes"),
        (("spec", "saes"), [{}], r"spec\.saes\.0\.sae_id"),
        (("spec", "saes"), [{"sae_id": 3, "world": "a"}], r"spec\.saes\.0\.sae_id"),
        (("spec", "worlds"), ["world"], r"spec\.worlds"),
        (("spec", "title"), None, r"spec\.title"),
        (("spec", "projection_n"), ["1"], r"spec\.projection_n\.0"),
        (("spec", "training"), DEEP, "nested too deep"),
        (("status",), MISSING, "status"),
        (("status",), "x", "status"),
        (("seed",), "0", "seed"),
        (("seed",), True, "seed"),
        (("device",), 0, "device"),
        (("quick",), 0, "quick"),
        (("timings",), [], "timings"),
        (("timings",), {"training_seconds": "long"}, r"timings\.training_seconds"),
        (("timings",), {"training_seconds": float("nan")}, r"timings\.training_seconds"),
        (("true_l0",), {"world": float("inf")}, r"true_l0\.world"),
        (("verdict",), "holds", "verdict"),
        (("verdict",), {"outcome": "holds", "checks": [3], "remarks": []}, r"verdict\.checks\.0"),
        (("tables",), {"a": 3}, r"tables\.a"),
        (("shown_figures",), [3], r"shown_figures\.0"),
        (("provenance",), [], "provenance"),
        (("provenance", "versions"), "1", r"provenance\.versions"),
        (("sha256",), {"a": None}, r"sha256\.a"),
        (("format_version",), 9, "not a manifest of format"),
        ((), [], "holds a list"),
    ],
)
def test_a_manifest_with_something_of_another_kind_is_named(
    path: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    write_bare_run(tmp_path / "run")
    file = tmp_path / "run/manifest.json"
    manifest: Any = json.loads(file.read_text())
    place = manifest
    for name in path[:-1]:
        place = place[name]
    if not path:
        manifest = value
    elif value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    file.write_text(json.dumps(manifest))
    for read in (
        RunFolder.open,
        report.callback or str,
        lambda run: write_index([run], run / "x.html"),
    ):
        with pytest.raises(ValueError, match=rf"manifest\.json .*{message}"):
            read(tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list"),
        ('{"trained_by": "engine"}', "l0"),
        ('{"trained_by": "engine", "steps": "ab", "columns": {"l0": [1]}}', "steps"),
        ('{"trained_by": "engine", "steps": [0, 1], "columns": {"l0": [1.0]}}', "two lengths"),
        ('{"trained_by": "engine", "steps": [0], "columns": {"l0": ["x"]}}', "columns"),
        ('{"trained_by": "engine", "steps": [0], "columns": {"l0": [1.0]}, "x": 1}', "x"),
        ('{"trained_by": "engine", "steps": [1e400], "columns": {"l0": [1.0]}}', "steps"),
        (f'{{"trained_by": "engine", "steps": [{10**30}], "columns": {{"l0": [1.0]}}}}', "step"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_log_of_another_kind_is_named(content: str, message: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.json").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.json .*{message}.*saes/a and --resume"):
        folder.read_log("a")


def test_nothing_outside_a_run_is_read_because_its_checksums_name_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    folder = RunFolder(tmp_path / "run", {"sha256": {"saes/a/../../../secret": "0"}})
    folder.sae_path("a").mkdir(parents=True)
    with pytest.raises(ValueError, match="is missing"):
        folder.check(folder.sae_path("a"), "copy it again")


def test_a_fresh_folder_is_not_one_that_is_held(tmp_path: Path) -> None:
    first = fresh_path(tmp_path, "find-l0")
    with atomic.claimed(first):
        assert fresh_path(tmp_path, "find-l0") == tmp_path / "find-l0-2"
    assert fresh_path(tmp_path, "find-l0") == first
