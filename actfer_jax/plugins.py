"""Loads extensions by name. A data set, a reward, an estimator, a grammar or a benchmark is one module.

`load("rl.rewards", "actfer")` is the module `actfer_jax.rl.rewards.actfer`. A name with a dot is a user's module:
`load("rl.rewards", "mylab.rewards")`. The `__init__` of each folder has the Protocol of its members.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import typing
from functools import cache
from typing import Any

from actfer_jax.errors import ConfigError


def names(folder: str) -> list[str]:
    """The package's extensions in a folder, such as "data.datasets"."""
    package = importlib.import_module(f"actfer_jax.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


@cache
def load(folder: str, name: str) -> Any:
    """The module of an extension.

    Args:
      folder: a folder of the package, such as "data.datasets".
      name: the name of a file there, or the dotted name of a user's module.

    Returns:
      The module. The Protocol in the folder's `__init__` describes it.

    Raises:
      ConfigError: the module does not exist, or lacks a member of the folder's Protocol.
    """
    path = name if "." in name else f"actfer_jax.{folder}.{name}"
    if not _exists(path):
        there = names(folder)
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(there)}"
        own = "a name with a dot is a module of your own, which Python must be able to import"
        raise ConfigError(f"{name!r} is none of {folder}; {hint} ({own})")
    module = importlib.import_module(path)
    protocol = _protocol(folder)
    wanted = sorted({*protocol.__annotations__, *(member for member in vars(protocol) if not member.startswith("_"))})
    if missing := [member for member in wanted if not hasattr(module, member)]:
        raise ConfigError(f"{path} has no {', '.join(missing)}; actfer_jax.{folder} says what is needed")
    return module


def _exists(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError as error:
        # Its package does not exist. If the package exists but fails to import something, that error is raised.
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            return False
        raise


def _protocol(folder: str) -> type:
    package = importlib.import_module(f"actfer_jax.{folder}")
    (protocol,) = [
        member
        for _, member in inspect.getmembers(package, inspect.isclass)
        if typing.Protocol in member.__bases__ and member.__module__ == package.__name__
    ]
    return protocol
