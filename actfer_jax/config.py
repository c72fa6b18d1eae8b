"""Reads sections of an `ml_collections` config into the frozen dataclasses of the package.

Nothing in a config file is ignored. An unknown key, a missing value, a value of another type or one outside its field's
domain ends the run with the key's full name. A field's type states its domain, as in
`b1: Annotated[float, at_least(0), below(1)]`. Its class calls `check_fields`, so that the same rules hold for sections
made in Python.

A section whose class has a `FOLDER`, such as "data.datasets", configures an extension. Its `name` selects a module of
that folder (`plugins.load`), and the section is read as this module's `Config`.
"""

import dataclasses
import difflib
import json
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, Union

import ml_collections
import numpy as np

from actfer_jax import plugins
from actfer_jax.errors import ConfigError as ConfigError
from actfer_jax.errors import FieldError as FieldError

Section = TypeVar("Section")

_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_KINDS = {int: numbers.Integral, float: numbers.Real}  # These include numpy's numbers.


class Domain(NamedTuple):
    """The allowed values of a field: words that follow "it must be", and a function that checks a value."""

    words: str
    holds: Callable[[Any], bool]


def at_least(least: float) -> Domain:
    return Domain(f"at least {least}", lambda value: value >= least)


def above(limit: float) -> Domain:
    return Domain(f"above {limit}", lambda value: value > limit)


def below(limit: float) -> Domain:
    return Domain(f"below {limit}", lambda value: value < limit)


def between(low: float, high: float) -> Domain:
    """Both ends are allowed."""
    return Domain(f"from {low} to {high}", lambda value: low <= value <= high)


def one_of(*choices: str) -> Domain:
    return Domain(f"one of {', '.join(choices)}", lambda value: value in choices)


Count = Annotated[int, at_least(1)]
Share = Annotated[float, between(0, 1)]
Seed = Annotated[int, between(0, 2**32 - 1)]
"""Not all generators use more than 32 bits: two larger seeds could draw the same."""
FloatType = Annotated[str, one_of("float32", "bfloat16")]


RENAMED = {"ucgrpo": "estimator", "batch.shorter_lengths": "batch.length_buckets"}
"""Old names of a training config's sections and keys, with their new names. Old names can still be read."""
_REPLACED = {"traces.readings_subtle": ("traces.readings_stratum", {False: "", True: "subtle"})}
"""Keys whose values have changed too: the new key, and the new values by the old ones."""


def new_name(key: str) -> tuple[str, str]:
    """The part of a dotted key that is an old name, and the whole key under its new name."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return old, new + key[len(old) :]
    return key, key


def with_new_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A training config with its sections and keys under their new names.

    Raises:
      ConfigError: it has a key under both names.
    """
    changes = {old: (new, None) for old, new in RENAMED.items()} | _REPLACED
    for old, (new, values) in changes.items():
        section, _, name = old.rpartition(".")
        node = config.get(section) if section else config
        if isinstance(node, ml_collections.ConfigDict | Mapping) and name in node:
            changed = {key: node[key] for key in node}
            value = changed.pop(name)
            target = new.rpartition(".")[2]
            if target in changed:
                raise ConfigError(f"config has both {old} and {new}, which is its name today: leave out {old}")
            changed[target] = value if values is None else values.get(value, value)
            config = {**{key: config[key] for key in config}, section: changed} if section else changed
    return config


def check_fields(section: Any) -> None:
    """Checks each field of a dataclass against its annotation. Call it in `__post_init__`.

    Raises:
      ConfigError: a value has the wrong type or is outside its domain; the message begins with the field.
    """
    for name, hint in _hints(type(section)).items():
        _read(getattr(section, name), hint, name)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The dotted name that was probably meant by a misspelt one: it is similar as a whole, or else in its last part."""
    names = list(names)
    whole = {known: known for known in names}
    ends = {known.rpartition(".")[2]: known for known in reversed(names)}
    for asked, known in ((name, whole), (name.rpartition(".")[2], ends)):
        if found := difflib.get_close_matches(asked, known, n=1, cutoff=0.75):
            return known[found[0]]
    return None


def read_config(node: ml_collections.ConfigDict | Mapping[str, Any], cls: type[Section], prefix: str) -> Section:
    """An instance of a dataclass from a section of a config.

    Fields may be bool, int, float, str, Any, tuples (or lists), dictionaries, dataclasses (nested sections), or one of
    these or None. Each may be `Annotated` with domains. An int counts as a float, a bool never as a number. A float
    must be finite, and an int must fit into 32 bits.

    Args:
      node: the section.
      cls: a dataclass; fields without a default must be in the section.
      prefix: the dotted name of the section, for messages: `config.loss`; "" for none.

    Raises:
      ConfigError: a key is unknown or missing, or a value has the wrong type, is outside its domain, or is refused by
        `cls`.
    """
    if not isinstance(node, ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping):
        raise ConfigError(f"{prefix} is {node!r}; it must be a section with keys")
    cls = named_config(cls, node.get("name"), f"{prefix}.name")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    begin = f"{prefix}." if prefix else ""
    for key in node:
        if key not in fields:
            near = nearest(str(key), fields)
            hint = f"did you mean {begin}{near}?" if near else f"{prefix} has {', '.join(fields) or 'no keys'}"
            raise ConfigError(f"{begin}{key} is not a setting; {hint}")
    hints = _hints(cls)
    values = {}
    for name, field in fields.items():
        key = f"{begin}{name}"
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
    except FieldError as error:
        raise FieldError(f"{begin}{error.field}", error.problem) from error
    except ValueError as error:
        raise ConfigError(f"{prefix}: {error}" if prefix else str(error)) from error


def named_config(cls: type[Section], name: Any, key: str) -> type[Section]:
    """The class of a section. For an extension it is the `Config` of the module `name`, by default of the module that
    `cls` names; else `cls` itself.

    Raises:
      ConfigError: the module does not exist, or its `Config` does not extend `cls`; the message begins with the key.
    """
    folder: str | None = getattr(cls, "FOLDER", None)
    if folder is None:
        return cls
    if name is None:
        name = cls.__dataclass_fields__["name"].default  # type: ignore[attr-defined]
    if not isinstance(name, str):
        raise ConfigError(f"{key} is {name!r} ({type(name).__name__}); it must be str")
    try:
        config = plugins.load(folder, name).Config
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if not issubclass(config, cls):
        raise ConfigError(f"{key}: {name}.Config must extend {cls.__module__}.{cls.__qualname__}")
    return typing.cast(type[Section], config)


def section_class(cls: type, section: str) -> type | None:
    """The dataclass of a section, such as "evaluation.data"; None if the section does not exist."""
    found: type | None = cls
    for name in section.split("."):
        hint = _hints(found).get(name) if found is not None else None
        candidates = (hint, *typing.get_args(hint))
        found = next((hint for hint in candidates if isinstance(hint, type) and dataclasses.is_dataclass(hint)), None)
    return found


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _read(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _read(value, arguments[0], key)
        _check_domains(value, arguments[1:], key)
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _read(value, inner, key)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, typing.cast(type, hint)) else read_config(value, typing.cast(type, hint), key)
    if origin is tuple:
        return _read_tuple(value, arguments, key)
    if origin is dict:
        if not isinstance(value, ml_collections.ConfigDict | ml_collections.FrozenConfigDict | Mapping):
            raise ConfigError(f"{key} is {value!r}; it must be a section with keys")
        return {name: _read(value[name], arguments[1], f"{key}.{name}") for name in value}
    if not isinstance(value, _KINDS.get(hint, hint)) or (type(value) is bool and hint is not bool):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}); it must be {hint.__name__}")
    if hint is float and not abs(value) <= _LARGEST_FLOAT:
        raise ConfigError(f"{key} is {value!r}; it must be a finite number, of at most {_LARGEST_FLOAT:.2g}")
    if hint is int and not -(2**31) <= value < 2**32:
        raise ConfigError(f"{key} is {value!r}; it must be a number of 32 bits")
    return hint(value)


def _check_domains(value: Any, domains: tuple[Domain, ...], key: str) -> None:
    # Computations use float32, in which a number just below 1 is 1.
    rounded = float(np.float32(value)) if type(value) is float else value
    for domain in domains:
        if not (domain.holds(value) and domain.holds(rounded)):
            words = " and ".join(domain.words for domain in domains)
            raise ConfigError(
                f"{key} is {value!r}; it must be {words}" + (", in float32" if domain.holds(value) else "")
            )


def _read_tuple(value: Any, items: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}); it must be a tuple")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise ConfigError(f"{key} is {value!r}; it must have {len(items)} values")
    return tuple(_read(item, hint, f"{key}[{i}]") for i, (item, hint) in enumerate(zip(value, items, strict=True)))


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in JSON's types: nested dicts, lists, numbers, strings."""
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    return dict(with_new_names(json.loads(json.dumps(nested))))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
