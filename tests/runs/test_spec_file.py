"""Specs as YAML: built-in ones survive the way there and back, and what is wrong is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sparse_but_wrong.experiments.registry import EXPERIMENTS
from sparse_but_wrong.runs.spec import ONLY_WORLD
from sparse_but_wrong.runs.spec_file import is_spec_file, read_spec, to_yaml
from tests.experiments.tiny import TINY, WORLD


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_shown_spec_is_the_spec_with_an_analysis_for_users(name: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(to_yaml(EXPERIMENTS[name]), encoding="utf-8")
    assert read_spec(file) == replace(EXPERIMENTS[name], analysis="sweep")


@pytest.mark.parametrize("analysis", ["jumprelu", "small", "no_such"])
def test_only_analyses_that_fit_any_spec_are_for_users(analysis: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(to_yaml(TINY).replace("analysis: sweep", f"analysis: {analysis}"))
    with pytest.raises(ValueError, match=f"spec.yaml: .*'{analysis}'.*sweep.*activations"):
        read_spec(file)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "spec.yml"
    text = to_yaml(TINY).replace("l0_coefficient: 0.05", "l0_coefficient: 5e-2")
    assert "5e-2" in text
    file.write_text(text, encoding="utf-8")
    assert read_spec(file) == replace(TINY, analysis="sweep")


LAUGHS = "a0: &a0 [x, y]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"spec\.yaml .*YAML: .*line 1"),
        ("3", "a spec is a mapping of fields"),
        ("", "a spec is a mapping of fields"),
        ("!!python/object/apply:os.system ['echo']", "YAML: could not determine a constr"),
        ("name: x\ntitle: y", "claim is missing"),
        ("name: " + "[" * 100_000, "nested too deep"),
        ("name: " + "[" * 60 + "]" * 60, "nested too deep"),
        (LAUGHS, "aliases .* over 1,000,000"),
        (LAUGHS.replace("[", "{<<: [").replace("]", "]}"), "YAML"),
        ("a: &a [*a]", "nested too deep"),
        ("a: !!bool maybe", "YAML"),
        ("a: 2020-13-01", "YAML: month"),
        ("a: " + "9" * 5000, "YAML"),
        ("name: 2020-01-01", "date"),
    ],
)
def test_what_is_no_spec_is_named_with_its_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        read_spec(file)


def test_anchors_spare_repetition(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    text = to_yaml(replace(TINY, worlds={ONLY_WORLD: TINY.worlds[ONLY_WORLD], "b": WORLD}))
    data = yaml.safe_load(text)
    data["worlds"]["b"] = data["worlds"][ONLY_WORLD]
    written = yaml.safe_dump(data, sort_keys=False)
    assert "*id001" in written
    file.write_text(written, encoding="utf-8")
    assert read_spec(file).worlds["b"] == WORLD


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert is_spec_file("my.yaml")
    assert not is_spec_file("jumprelu")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*sbw show NAME"):
        read_spec(tmp_path / "no.yaml")
