"""Whether the values of an SAE's config are of the kinds that its architecture declares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

_WHOLE = (int, int | None)


def typed(config_class: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose values are what its class declares, as a person may write them in YAML.

    A whole number may be written 1e4 or 12.0. Texts and truth values are no numbers.

    Args:
        config_class: of sae_lens; a dataclass.
        config: values by the names of its fields, of kinds that JSON has.
    Raises:
        ValueError: a value of another kind; the message names the field.
    """
    hints = get_type_hints(config_class)
    values = dict(config)
    for name, value in config.items():
        if isinstance(value, float) and value.is_integer() and hints[name] in _WHOLE:
            values[name] = int(value)
        problem = _problem(hints[name], values[name])
        if problem:
            raise ValueError(f"{name} is {value!r}, but {problem}.")
    return values


def _problem(kind: Any, value: object) -> str | None:
    """Why a value is not of a kind; it is only looked at, because 8 for a float is to stay 8."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except PydanticUserError:  # a class of sae_lens' own
        return "it cannot be given in a spec; leave it out"
    except ValidationError as error:
        problem = error.errors()[0]
        return f"it {problem['msg'][:1].lower()}{problem['msg'][1:]}".replace("it input ", "it ")
    return None
