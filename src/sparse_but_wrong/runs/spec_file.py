"""Specs as YAML files, to read and to start from."""

from __future__ import annotations

import re
from itertools import chain, islice
from pathlib import Path
from typing import Any

import yaml

from sparse_but_wrong.runs.spec import USER_ANALYSES, ExperimentSpec
from sparse_but_wrong.untrusted import one_line

_SUFFIXES = (".yaml", ".yml")
_MOST_LEVELS, _MOST_NODES = 50, 1_000_000


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
        ValueError: it is not YAML, not a spec, or asks for the analysis of a built-in spec; the
            message names the line or the field.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; `sbw show NAME > {path}` writes one to start from."
        )
    try:
        data = _parse(path.read_bytes())
    except Exception as error:
        # PyYAML's own, and whatever its constructors meet: a month 13, "maybe" for a boolean.
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from error
    try:
        spec = ExperimentSpec.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if spec.analysis not in USER_ANALYSES:
        raise ValueError(
            f"{path}: the analysis {spec.analysis!r} is not available for specs of your own; write "
            "analysis: sweep for a toy world, or analysis: activations for stored activations."
        )
    return spec


def to_yaml(spec: ExperimentSpec) -> str:
    """A spec as YAML to start from: `read_spec` reads it, with an analysis that users may have."""
    analysis = spec.analysis if spec.analysis in USER_ANALYSES else USER_ANALYSES[0]
    return yaml.safe_dump(
        {**spec.to_dict(), "analysis": analysis},
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )


def _parse(text: bytes) -> Any:
    loader = _Loader(text)  # a SafeLoader
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Refuse what a few lines of aliases can blow up to: too deep, too large, or endless."""
    level, n_nodes = [root], 0
    for _ in range(_MOST_LEVELS):
        children = chain.from_iterable(
            chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
            for node in level
            if isinstance(node, yaml.CollectionNode)
        )
        level = list(islice(children, _MOST_NODES - n_nodes + 1))
        n_nodes += len(level)
        if n_nodes > _MOST_NODES:
            raise ValueError(f"with its aliases written out it has over {_MOST_NODES:,} entries")
        if not level:
            return
    raise ValueError("it is nested too deep")
