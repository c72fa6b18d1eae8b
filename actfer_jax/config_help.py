"""What each key of a config means, from the docstrings of the dataclasses that it is read into."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from actfer_jax.config import named_config, section_class


class Key(NamedTuple):
    """A key of a config.

    Attributes:
      name: its dotted name.
      value: as the config has it.
      meaning: what its dataclass says of it.
    """

    name: str
    value: Any
    meaning: str


def keys(config: Mapping[str, Any], cls: type, prefix: str = "") -> Iterator[Key]:
    """The keys of a config, those of a section after the section's own.

    Args:
      config: the config, or a section of it.
      cls: the dataclass that it is read into.
      prefix: the dotted name of the section, with a dot at its end.
    """
    cls = named_config(cls, config.get("name"), f"{prefix}name")
    meanings = attribute_docs(cls)
    sections: dict[str, tuple[Mapping[str, Any], type]] = {}
    for field in (field for field in dataclasses.fields(cls) if field.name in config):
        value, section = config[field.name], section_class(cls, field.name)
        if isinstance(value, Mapping) and section is not None:
            sections[field.name] = value, section
        else:
            yield Key(prefix + field.name, value, meanings.get(field.name, ""))
    for name, (value, section) in sections.items():
        yield from keys(value, section, f"{prefix}{name}.")


def attribute_docs(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass, and of those that it extends, say of each field under "Attributes:"."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docstring = inspect.cleandoc(base.__doc__ or "")
        _, _, attributes = docstring.partition("Attributes:\n")
        block = textwrap.dedent(re.split(r"\n(?=\S)", attributes, maxsplit=1)[0])
        fields = {field.name for field in dataclasses.fields(base)} if dataclasses.is_dataclass(base) else set()
        for entry in re.split(r"\n(?=\S)", block):
            found |= _entry(" ".join(entry.split()), fields)
    return found


def _entry(entry: str, fields: set[str]) -> dict[str, str]:
    """`a, b: text` and `a: text; b: text` as the text of each field."""
    names = "|".join(fields)
    found: dict[str, str] = {}
    for part in re.split(rf"; (?=(?:{names})(?:, (?:{names}))*: )", entry):
        named, _, text = part.partition(": ")
        found |= {name: text for name in named.split(", ") if name in fields}
    return found


def help_text(config: Mapping[str, Any], cls: type) -> str:
    """All keys of a config, with their values and meanings, for a terminal."""
    lines = ["Keys of this config, as --config.KEY=VALUE. None leaves a key without a value.", ""]
    for key in keys(config, cls):
        lines.append(f"--config.{key.name}={key.value!r}")
        lines += textwrap.wrap(key.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
