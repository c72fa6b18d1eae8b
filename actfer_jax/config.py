"""Reads sections of an `ml_collections` config into the frozen dataclasses that the rest of the package takes.

A config file is read top to bottom and may be edited by anyone, so nothing in it is ignored: a key that no field
has, a field without a value, or a value of another type stops the run with the key's full name.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union

import ml_collections

from actfer_jax.errors import UserError

Section = TypeVar("Section")


class ConfigError(UserError, ValueError):
    """Something in the config is wrong; the message names the key."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of some dotted names that was probably meant by another: it looks alike, or at least its end does."""
    names = list(names)
    whole = {known: known for known in names}
    ends = {known.rpartition(".")[2]: known for known in reversed(names)}
    for asked, known in ((name, whole), (name.rpartition(".")[2], ends)):
        if found := difflib.get_close_matches(asked, known, n=1, cutoff=0.75):
            return known[found[0]]
    return None


def read_config(node: ml_collections.ConfigDict | Mapping[str, Any], cls: type[Section], prefix: str) -> Section:
    """An instance of a dataclass from a section of a config.

    Fields may be bool, int, float, str, Any, tuples (a list will do), dictionaries, dataclasses (a nested section), or
    one of these or None. An int is taken for a float; a bool is never taken for a number.

    Args:
      node: the section.
      cls: a dataclass; fields without a default must be in the section.
      prefix: the dotted name of the section, for messages: `config.loss`.

    Raises:
      ConfigError: unknown or missing keys, a value of the wrong type, or a value that `cls` itself refuses.
    """
    if not isinstance(node, ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping):
        raise ConfigError(f"{prefix} must be a section with keys, got {node!r}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in node:
        if key not in fields:
            near = nearest(str(key), fields)
            hint = f"did you mean {prefix}.{near}?" if near else f"{prefix} has {', '.join(fields) or 'no keys'}"
            raise ConfigError(f"{prefix}.{key} is not a setting; {hint}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        key = f"{prefix}.{name}"
        if name in node:
            try:
                value = node[name]
            except ml_collections.config_dict.RequiredValueError:
                raise ConfigError(f"{key} has no value; set it with --{key}=...") from None
            values[name] = _read(value, hints[name], key)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{key} is missing")
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        # By custom such messages begin with the field: "clip_low must be between 0 and 1, got 3", "batch.length is 3".
        message = str(error)
        separator = "." if message.split(" ", 1)[0].split(".")[0] in fields else ": "
        raise ConfigError(f"{prefix}{separator}{message}") from error


def _read(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _read(value, inner, key)
    if dataclasses.is_dataclass(hint):
        return read_config(value, typing.cast(type, hint), key)
    if origin is tuple:
        return _read_tuple(value, arguments, key)
    if origin is dict:
        if not isinstance(value, ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping):
            raise ConfigError(f"{key} must be a section with keys, got {value!r}")
        return {name: _read(value[name], arguments[1], f"{key}.{name}") for name in value}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{key} must be {hint.__name__}, got {value!r} ({type(value).__name__})")
    return value


def _read_tuple(value: Any, items: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} must be a tuple, got {value!r} ({type(value).__name__})")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise ConfigError(f"{key} must have {len(items)} values, got {len(value)}: {value!r}")
    return tuple(_read(item, hint, f"{key}[{i}]") for i, (item, hint) in enumerate(zip(value, items, strict=True)))
