"""Makes a valid value of any message, so that one test can look at all of them."""

from __future__ import annotations

import enum
import types
import typing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, Union, cast

from pydantic import BaseModel, SecretStr

M = TypeVar("M", bound=BaseModel)

_PLAIN: dict[Any, Any] = {
    str: "text",
    int: 7,
    float: 1.5,
    bool: True,
    bytes: b"bytes",
    Any: {"any": [1, None, "x"]},
    datetime: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    timedelta: timedelta(seconds=3),
    Path: Path("a/b"),
    SecretStr: SecretStr("secret"),
    type(None): None,
}


def sample(model: type[M]) -> M:
    """Return an instance of *model* with every field given, optional ones too."""
    hints = typing.get_type_hints(model)
    values = {
        name: value(hints[name]) if field.default is None or field.is_required() else field.default
        for name, field in model.model_fields.items()
        if field.default_factory is None
    }
    return model.model_validate(values)


def value(annotation: Any) -> Any:
    """Return a value that fits *annotation*; of a union, one of its first member."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return value(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return value(arguments[0])
    if origin in (list, set, frozenset):
        return origin([value(arguments[0])])
    if origin is tuple:
        return tuple(value(a) for a in arguments if a is not Ellipsis)
    if origin is dict:
        return {value(arguments[0]): value(arguments[1])}
    if annotation in (dict, list, tuple, set):
        return annotation()
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return next(iter(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sample(annotation)
    raise TypeError(f"no sample value for {cast(object, annotation)!r}")
