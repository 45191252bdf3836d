"""Specs as YAML files, to read and to start from."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from sparse_but_wrong.runs.spec import ExperimentSpec
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
        ValueError: it is no YAML, or no spec; the message names the line or the field.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; `sbw show NAME > {path}` writes one to start from."
        )
    try:
        data = _parse(path.read_bytes())
    except Exception as error:
        # PyYAML's own, and whatever its constructors meet: a month 13, "maybe" for a truth value.
        raise ValueError(f"{path} is no YAML: {one_line(error)}") from error
    try:
        return ExperimentSpec.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
    """Refuse what a few lines of aliases can blow up to.

    Raises:
        ValueError: too deep, too large once every alias is written out, or endless.
    """
    measured: dict[int, tuple[int, int]] = {}
    """Nodes and levels below a node, by its identity."""

    def measure(node: yaml.Node, above: frozenset[int]) -> tuple[int, int]:
        if id(node) in above:
            raise ValueError("an alias stands within what it stands for")
        if id(node) not in measured:
            size, depth = 1, 0
            if isinstance(node, yaml.CollectionNode):
                is_mapping = isinstance(node, yaml.MappingNode)
                children = chain.from_iterable(node.value) if is_mapping else node.value
                for child in children:
                    more, deeper = measure(child, above | {id(node)})
                    size, depth = size + more, max(depth, deeper + 1)
            if depth > _MOST_LEVELS:
                raise ValueError("it is nested too deep")
            if size > _MOST_NODES:
                raise ValueError(
                    f"with its aliases written out it has over {_MOST_NODES:,} entries"
                )
            measured[id(node)] = size, depth
        return measured[id(node)]

    measure(root, frozenset())


def to_yaml(spec: ExperimentSpec) -> str:
    """A spec as YAML that `read_spec` reads."""
    return yaml.safe_dump(
        spec.to_dict(), sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
