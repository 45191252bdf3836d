"""`sbw show`, specs in files, `sbw report` and `sbw paper`, as a user calls them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sparse_but_wrong.experiments import registry
from sparse_but_wrong.runs.spec_file import to_yaml
from tests.cli.test_cli import sbw
from tests.experiments import tiny

Patch = pytest.MonkeyPatch
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.register(monkeypatch)


def test_a_shown_spec_can_be_changed_and_run(monkeypatch: Patch, capsys: Output) -> None:
    code, shown, _ = sbw(["show", "tiny"], monkeypatch, capsys)
    assert code == 0
    data = yaml.safe_load(shown)
    data["name"] = "mine"
    data["analysis"] = "sweep"
    data["projection_n"] = [1]
    Path("my.yaml").write_text(yaml.safe_dump(data))
    code, out, err = sbw(["run", "my.yaml"], monkeypatch, capsys)
    assert code == 0, err
    assert out.rstrip().endswith("Report: runs/mine/report.html")
    manifest = json.loads(Path("runs/mine/manifest.json").read_text())
    assert manifest["spec"]["projection_n"] == [1]
    assert [figure["name"] for figure in manifest["shown_figures"]] == ["overview"]
    assert Path("runs/mine/plots/projections/s_1.png").is_file()
    assert "s_n^dec is smallest" in out

    data["claim"] = "another"
    Path("my.yaml").write_text(yaml.safe_dump(data))
    code, _, err = sbw(["run", "my.yaml", "--resume", "--out", "runs/mine"], monkeypatch, capsys)
    assert code == 2
    assert "the spec of 'mine' has changed since the run in runs/mine was started" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.yaml"], "there is no file no.yaml"),
        (["run", "bad.yaml"], "bad.yaml: claim is missing; worlds is not a field."),
        (["show", "nonsense"], "'nonsense'"),
        (["report", "nowhere"], "there is no run in nowhere"),
        (["paper", "nonsense"], "'nonsense'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], message: str, monkeypatch: Patch, capsys: Output
) -> None:
    Path("bad.yaml").write_text("name: x\ntitle: y\nworldz: 3\n")
    message = message.replace("worlds is", "worldz is")
    code, _, err = sbw(arguments, monkeypatch, capsys)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_report_is_rebuilt_from_its_folder(monkeypatch: Patch, capsys: Output) -> None:
    assert sbw(["run", "tiny"], monkeypatch, capsys)[0] == 0
    report = Path("runs/tiny/report.html")
    before = report.read_bytes()
    report.unlink()
    code, out, _ = sbw(["report", "runs/tiny"], monkeypatch, capsys)
    assert code == 0
    assert out == "Report: runs/tiny/report.html\n"
    assert report.read_bytes() == before

    manifest = json.loads(Path("runs/tiny/manifest.json").read_text())
    Path("runs/tiny/manifest.json").write_text(json.dumps({**manifest, "status": "unfinished"}))
    assert sbw(["report", "runs/tiny"], monkeypatch, capsys)[0] == 0
    assert report.read_bytes() != before, "the page says that the run is not finished"


def test_paper_runs_what_is_left_and_writes_an_index(monkeypatch: Patch, capsys: Output) -> None:
    for name in list(registry.EXPERIMENTS):
        if name != "tiny":
            monkeypatch.delitem(registry.EXPERIMENTS, name)
    tiny.register(monkeypatch, "tiny_too")
    code, _, err = sbw(["paper", "tiny"], monkeypatch, capsys)
    assert code == 0, err
    first = Path("runs/paper/tiny/manifest.json").read_text()
    code, out, _ = sbw(["paper"], monkeypatch, capsys)
    assert code == 0
    assert Path("runs/paper/tiny/manifest.json").read_text() == first, "finished runs are kept"
    lines = out.splitlines()
    assert lines[-1] == "Index: runs/paper/index.html"
    assert [line.split()[-1] for line in lines[-3:-1]] == ["tiny", "tiny_too"]
    index = Path("runs/paper/index.html").read_text()
    for name in ("tiny", "tiny_too"):
        assert f'href="{name}/report.html"' in index
    # What is not finished is taken up, and an experiment that changed is not taken for the old one.
    unfinished = Path("runs/paper/tiny/manifest.json")
    unfinished.write_text(first.replace('"status": "finished"', '"status": "unfinished"'))
    assert sbw(["paper"], monkeypatch, capsys)[0] == 0
    assert '"status": "finished"' in unfinished.read_text()
    with monkeypatch.context() as patch:
        patch.setitem(registry.EXPERIMENTS, "tiny", replace(tiny.TINY, evaluation_samples=999))
        code, _, err = sbw(["paper"], monkeypatch, capsys)
    assert code == 2
    assert "the spec of 'tiny' has changed since" in err
    code, _, err = sbw(["paper", "--seed", "1"], monkeypatch, capsys)
    assert code == 2
    assert "seed 0, not 1" in err


def test_a_spec_of_ones_own_may_stop_and_go_on(monkeypatch: Patch, capsys: Output) -> None:
    Path("my.yaml").write_text(to_yaml(tiny.TINY))
    assert sbw(["run", "my.yaml", "--out", "here"], monkeypatch, capsys)[0] == 0
    code, out, err = sbw(["run", "my.yaml", "--out", "here", "--resume"], monkeypatch, capsys)
    assert code == 0, err
    assert out.rstrip().endswith("here/report.html")
