"""How every command starts and how it fails: with a message and a status, and a traceback only for our own mistakes."""

import inspect
import io
import logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from etils import epath

from actfer_jax.config import ConfigError, nearest
from actfer_jax.errors import ToolTimeout, UserError
from actfer_jax.files import FILE_ERRORS, as_path, disk_is_full

USER_ERRORS = (UserError, *FILE_ERRORS)

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_MISSING = re.compile(r"flag --(\S+)=None: Flag --\1 must have a value other than None\.")
# Values of jax's settings under which it computes something else, or refuses what is right here.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "jax_enable_x64": (True,),
    "jax_numpy_rank_promotion": ("raise",),
    "jax_numpy_dtype_promotion": ("strict",),
    "jax_transfer_guard": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_host_to_device": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_device": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_host": ("disallow", "disallow_explicit"),
}


class PathFlag(flags.ArgumentParser[epath.Path]):
    """Reads the path that a flag gives, as `files.as_path` does: `flags.DEFINE(PathFlag(), name, default, help)`."""

    def parse(self, argument: epath.PathLike) -> epath.Path:
        return as_path(argument)

    def flag_type(self) -> str:
        return "path"


def run(main: Callable[[list[str]], None], *, arguments: bool = False) -> None:
    """Parses the flags, sets up the log and runs a command.

    Exits with status 1 and one line on standard error where the person who started it can put it right.

    Args:
      main: gets the program's name and, with `arguments`, what stands on the command line beside the flags.
      arguments: whether anything may stand there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows ASCII only shows "?" for what it lacks, as it does on standard error.
        sys.stdout.reconfigure(errors="replace")
    sys.unraisablehook = _show_unraisable
    app.run(lambda argv: _guarded(main, argv, arguments), flags_parser=_parse_flags)


def printable(text: str) -> str:
    """The text without characters that could move a terminal's cursor, reorder a line or fail to be written."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        unset = _check_config(argv) if "config" in flags.FLAGS else set()
        rest: list[str] = flags.FLAGS(argv)
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")
    except flags.UnrecognizedFlagError as error:
        sys.exit(f"error: {_unknown_flag(error.flagname)}")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # The last four from ml_collections, for an override that fits no key.
        message = " ".join(str(error).split())
        if missing := _MISSING.fullmatch(message):
            message = f"--{missing[1]} is missing; give it a value (--help lists the flags)"
        sys.exit(f"error: {printable(message.removeprefix('flag '))}")
    for key in unset:
        *sections, name = key.split(".")
        node = flags.FLAGS.config
        with node.unlocked():
            for section in sections:
                node = node[section]
            node[name] = None
    return rest


def _unknown_flag(name: str) -> str:
    if name.startswith("config.") and "config" in flags.FLAGS:
        return f"--config is missing; give it before --{name}"
    near = nearest(name, (known for known in flags.FLAGS if known not in ("helpxml", "helpfull")))
    return f"there is no flag --{name}; {f'did you mean --{near}?' if near else '--help lists the flags'}"


def _check_config(argv: list[str]) -> set[str]:
    """Makes sure of `--config=FILE:VARIANT` and of the keys of its overrides, of which ml_collections would show how it
    tried them, and takes `--config.KEY=None` out of the arguments, which ml_collections does not know.

    Args:
      argv: the command line; changed in place.

    Returns:
      The keys that are to be None.

    Raises:
      ConfigError: there is no such file, variant or key, or the file fails.
    """
    joined = argv[:1]
    for argument in argv[1:]:
        before = joined[-1]
        if before in ("--config", "-config") or (argument == "None" and "=" not in before and _OVERRIDE.match(before)):
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    config: ml_collections.ConfigDict | None = None
    kept, unset = list[str](), set[str]()
    for argument in joined:
        name, _, value = argument.partition("=")
        override = _OVERRIDE.fullmatch(argument)
        if name in ("--config", "-config"):
            argument, config = _load_config(value)
        elif override and config is not None:
            key = override[1]
            _check_key(key, config)
            if override[2] == "None":
                unset.add(key)
                continue
            if above := next((none for none in unset if key.startswith(f"{none}.")), None):
                raise ConfigError(f"--config.{above}=None leaves no --config.{key}; give only one of them")
            unset.discard(key)
        kept.append(argument)
    argv[:] = kept
    return unset


def _load_config(given: str) -> tuple[str, ml_collections.ConfigDict]:
    """The flag and what the config file in it holds, `FILE` or `FILE:VARIANT`."""
    try:
        path, colon, variant = os.fspath(as_path(given)).partition(":")
    except ValueError as error:
        raise ConfigError(f"--config {error}") from error
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        there = [name for name in os.listdir(folder) if name.endswith(".py")] if os.path.isdir(folder) else []
        near = nearest(os.path.basename(path), there)
        hint = f"; did you mean {os.path.join(os.path.dirname(path), near)}?" if near else ""
        raise ConfigError(f"--config: there is no file {path}{hint}")
    variants = [variant] if colon else []
    try:
        get_config = runpy.run_path(path)["get_config"]
        inspect.signature(get_config).bind(*variants)
    except KeyError as error:
        raise ConfigError(f"--config: {path} has no {error}; a config is a Python file with that function") from error
    except TypeError as error:
        hint = f"has no variants; leave out :{variant}" if colon else f"wants a variant: {path}:NAME"
        raise ConfigError(f"--config: {path} {hint}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config: {path} fails: {_last_line(error)}") from error
    try:
        config = get_config(*variants)
    except ValueError as error:
        raise ConfigError(f"--config={given}: {error}") from error
    except Exception as error:
        raise ConfigError(f"--config={given} fails: {_last_line(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"--config: get_config of {path} returns {type(config).__name__}; it must return a ConfigDict"
        )
    return f"--config={path}{colon}{variant}", config


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


def _check_key(key: str, config: ml_collections.ConfigDict) -> None:
    name, known = key.partition("[")[0], list(_keys(config))
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean --config.{near}?" if near else f"it has {', '.join(config)}"
        raise ConfigError(f"the config has no key for --config.{key}; {hint}")


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys and sections."""
    for key, value in config.items(preserve_field_references=True):
        yield prefix + key
        if isinstance(value, ml_collections.ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def _check_jax() -> None:
    for name, refused in _REFUSED.items():
        value = getattr(jax.config, name)
        if (value := getattr(value, "value", value)) in refused:
            raise UserError(
                f"{name.upper()} is set to {value}, under which this program fails or computes something else: "
                "unset it in the environment"
            )


def _show_unraisable(unraisable: Any) -> None:
    # TensorStore says this for every write that fails after the first, when Orbax waits for them no more.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _guarded(main: Callable[[list[str]], None], argv: list[str], arguments: bool) -> None:
    # Our own words at the level of information; of the libraries' only the warnings.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for ours in ("actfer_jax", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)
    # What Orbax logs with a traceback, of the same error a dozen times, it also raises.
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    try:
        if len(argv) > 1 and not arguments:
            raise UserError(f"unexpected argument {argv[1]!r}; flags begin with -- and have no space before =")
        _check_jax()
        main(argv)
    except ToolTimeout as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Python would wait for that thread.
        os._exit(1)
    except USER_ERRORS as error:
        logging.debug("", exc_info=True)
        # A checkpoint says it itself, with the step that the run goes on from.
        full = disk_is_full(error) and "the disk is full" not in str(error)
        remedy = "; the disk is full: free some space, and give the same command again" if full else ""
        sys.exit(f"error: {printable(str(error))}{remedy}")
