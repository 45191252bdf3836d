"""`sbw run`, `sbw show`, `sbw report` and `sbw paper`."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sparse_but_wrong.experiments import registry, runner
from sparse_but_wrong.experiments.registry import JUMPRELU
from tests.cli.conftest import Sbw
from tests.experiments import tiny


def test_a_run_ends_with_a_table_and_its_report_can_be_rebuilt(sbw: Sbw) -> None:
    out, err = sbw("run tiny --seed 3 --threads 1")
    assert "True L0: 1." in out
    assert re.search(r"^ +0\.05 +\d\.\d\d +\d +0\.\d{3} ", out, re.MULTILINE)
    assert re.search(r"^\s+2\* ", out, re.MULTILINE)
    assert "* added to the published grid" in out
    assert out.endswith("Report: runs/tiny/report.html\n")
    assert Path("runs/tiny/results.csv").is_file()
    assert "25.6k" in err  # live progress, up to the last sample

    for other, said in (("--seed 4", "seed 3"), ("--device cuda", "device"), ("--quick", "quick")):
        sbw.refuses(f"run tiny --resume --out runs/tiny {other}", f"started with {said}")
    assert "True L0: 1." in sbw("run tiny --resume --out runs/tiny").out

    report, manifest = Path("runs/tiny/report.html"), Path("runs/tiny/manifest.json")
    before = report.read_bytes()
    report.unlink()
    assert sbw("report runs/tiny").out == "Report: runs/tiny/report.html\n"
    assert report.read_bytes() == before
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "status": "unfinished"}))
    sbw("report runs/tiny")
    assert report.read_bytes() != before, "the page says that the run is not finished"


def test_resume_finds_the_run_that_is_meant(sbw: Sbw) -> None:
    tiny.started(tiny.TINY, Path("runs/tiny"))
    Path("runs/tiny-2").mkdir()
    Path("runs/tiny-2/manifest.json").write_text("{")  # damaged: not this one
    assert sbw("run tiny --resume").out.endswith("Report: runs/tiny/report.html\n")


def test_a_shown_spec_can_be_changed_and_run(sbw: Sbw) -> None:
    data = yaml.safe_load(sbw("show tiny").out)
    data |= {"name": "mine", "analysis": "sweep", "projection_n": [1]}
    Path("my.yaml").write_text(yaml.safe_dump(data))
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/file").write_text("in the way")
    out = sbw("run my.yaml").out
    assert out.endswith("Report: runs/mine-2/report.html\n"), "a run gets a folder of its own"
    manifest = json.loads(Path("runs/mine-2/manifest.json").read_text())
    assert manifest["spec"]["projection_n"] == [1]
    assert [figure["name"] for figure in manifest["shown_figures"]] == ["overview"]
    assert Path("runs/mine-2/plots/projections/s_1.png").is_file()
    assert "s_n^dec is smallest" in out
    assert sbw("run my.yaml --resume --out runs/mine-2").out.endswith("mine-2/report.html\n")
    Path("my.yaml").write_text(yaml.safe_dump(data | {"claim": "another"}))
    sbw.refuses("run my.yaml --resume --out runs/mine-2", "'mine' has changed since .*mine-2 was")


def test_the_published_figures_keep_their_names(sbw: Sbw, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(JUMPRELU, training=tiny.TINY.training, evaluation_samples=500)
    monkeypatch.setitem(registry.EXPERIMENTS, "jumprelu", small)
    saved: list[str] = []

    def save(_: object, path: Path) -> None:
        saved.append(path.relative_to("runs/jumprelu/plots").as_posix())

    monkeypatch.setattr(runner, "save_figure", save)
    monkeypatch.setattr(runner, "write_report", lambda _: None)
    sbw("run jumprelu")
    assert set(saved) >= {
        "toy_setup_jumprelu/toy_model_feature_firing_probabilities",
        "toy_setup_jumprelu/toy_model_correlation_matrix",
        *(f"dpn_jumprelu/dp_{n}" for n in range(12, 26)),
        "toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu",
        "training_curves",
        "overview",
    }


def test_paper_runs_what_is_left_and_writes_an_index(
    sbw: Sbw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "EXPERIMENTS", {})
    for name in ("tiny", "tiny_too"):
        tiny.register(monkeypatch, name)
    sbw("paper tiny")
    manifest = Path("runs/paper/tiny/manifest.json")
    first = manifest.read_text()
    lines = sbw("paper").out.splitlines()
    assert manifest.read_text() == first, "finished runs are kept"
    assert lines[-1] == "Index: runs/paper/index.html"
    assert [line.split()[-1] for line in lines[-3:-1]] == ["tiny", "tiny_too"]
    index = Path("runs/paper/index.html").read_text()
    assert all(f'href="{name}/report.html"' in index for name in ("tiny", "tiny_too"))
    # What is not finished is taken up, and an experiment that changed is not taken for the old one.
    manifest.write_text(first.replace('"status": "finished"', '"status": "unfinished"'))
    sbw("paper")
    assert '"status": "finished"' in manifest.read_text()
    sbw.refuses("paper --seed 1", "seed 0, not 1")
    monkeypatch.setitem(registry.EXPERIMENTS, "tiny", replace(tiny.TINY, evaluation_samples=999))
    sbw.refuses("paper", "the spec of 'tiny' has changed since")
