"""The types that sae_lens' configs declare, and whether values that were read are of them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError


def field_types(config_class: type) -> dict[str, Any]:
    """The type of every field of a config by its name; Any where it cannot be told."""
    hints: dict[str, Any] = {}
    # Class by class: one that names types that cannot be found from here keeps no secret of what
    # it inherits.
    for part in reversed(config_class.__mro__):
        with suppress(Exception):
            hints |= get_type_hints(part)
    return {field.name: hints.get(field.name, Any) for field in fields(config_class)}


def of_type(value: Any, kind: Any) -> Any:
    """A value that came from JSON or YAML, once it is of a type.

    Texts and truth values are no numbers. Where a whole number is wanted it may be written 12.0 or
    1e4; 8 for a float stays 8.

    Raises:
        ValueError: it is of another type, or not finite; the message says why.
        TypeError: nothing that a file can hold is of the type.
    """
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
        # As JSON, where lists stand for tuples too.
        adapter.validate_json(json.dumps(value), strict=True)
    except PydanticUserError as error:  # a class of sae_lens' own
        raise TypeError("it cannot be given in a file; leave it out") from error
    except ValidationError as error:
        if isinstance(value, float) and value.is_integer():
            return of_type(int(value), kind)
        problem = error.errors()[0]["msg"]
        raise ValueError(
            f"it {problem[:1].lower()}{problem[1:]}".replace("it input ", "it ")
        ) from error
    return value
