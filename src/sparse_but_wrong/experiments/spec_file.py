"""Specs as YAML files, to read and to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sparse_but_wrong.experiments.spec import ExperimentSpec

_SUFFIXES = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, as in YAML 1.2 and unlike in PyYAML's 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def is_spec_file(name: str) -> bool:
    """Whether what a user named is a file rather than a built-in experiment."""
    return name.lower().endswith(_SUFFIXES)


def read_spec(path: Path) -> ExperimentSpec:
    """The spec in a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, or no spec; the message names the line or the field.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; `sbw show NAME > {path}` writes one to start from."
        )
    try:
        data: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    try:
        return ExperimentSpec.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def to_yaml(spec: ExperimentSpec) -> str:
    """A spec as YAML that `read_spec` reads."""
    return yaml.safe_dump(
        spec.to_dict(), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
