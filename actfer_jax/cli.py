"""Starts every command. Errors end it with a message and a status; only our own mistakes show a traceback."""

import ast
import dataclasses
import importlib
import inspect
import io
import logging
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from actfer_jax.config import flatten, named_config, nearest, new_name, plain_config, section_class
from actfer_jax.config_help import help_text
from actfer_jax.errors import ConfigError, ToolTimeout, UserError
from actfer_jax.files import as_path, disk_is_full, file_errors

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_MISSING = re.compile(r"flag --(\S+)=None: Flag --\1 must have a value other than None\.")
# Values of jax's settings under which it computes something else, or refuses correct code.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "jax_enable_x64": (True,),
    "jax_numpy_dtype_promotion": ("strict",),
    "jax_transfer_guard": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_host_to_device": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_device": ("disallow", "disallow_explicit"),
    "jax_transfer_guard_device_to_host": ("disallow", "disallow_explicit"),
}

ELSEWHERE = {
    "num_generations": "batch.rollouts",
    "n": "batch.rollouts",
    "per_device_train_batch_size": "batch.queries",
    "train_batch_size": "batch.queries",
    "gradient_accumulation_steps": "batch.microbatches",
    "ppo_epochs": "batch.updates",
    "num_iterations": "batch.updates",
    "max_completion_length": "rollout.turn_tokens",
    "max_prompt_length": "rollout.prompt_tokens",
    "max_tool_calling_iterations": "rollout.max_turns",
    "lr": "optimizer.learning_rate",
    "max_steps": "steps",
    "total_training_steps": "steps",
    "beta": "loss.kl",
    "kl_loss_coef": "loss.kl",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "clip_ratio_low": "loss.clip_low",
    "clip_ratio_high": "loss.clip_high",
    "loss_type": "loss.aggregation",
    "loss_agg_mode": "loss.aggregation",
    "entropy_coeff": "loss.entropy_bonus",
    "model_name_or_path": "model.path",
    "output_dir": "workdir",
}
"""Names of TRL's and verl's settings (the last part of verl's), with our config key for the same."""


class PathFlag(flags.ArgumentParser[epath.Path]):
    """A flag that is a path, read by `files.as_path`: `flags.DEFINE(PathFlag(), name, default, help)`."""

    def parse(self, argument: epath.PathLike) -> epath.Path:
        return as_path(argument)

    def flag_type(self) -> str:
        return "path"


def run(main: Callable[[list[str]], None], *, config: str | None = None, arguments: bool = False) -> None:
    """Parses the flags, sets up the log and runs a command.

    Exits with status 1 and one line on standard error if the user can fix the error.

    Args:
      main: gets the program's name and, with `arguments`, the command line's arguments that are not flags. It imports
        what it needs itself, so that `--help` comes at once.
      config: the dataclass that `--config` is read into, such as "training.config.TrainConfig" in this package. With
        it, `--config.data.name=NAME` selects another extension, and overrides of its keys may follow. Keys of the
        config file that it does not have are dropped.
      arguments: whether arguments that are not flags are allowed.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An ASCII terminal shows "?" for other characters, as on standard error.
        sys.stdout.reconfigure(errors="replace")
    sys.unraisablehook = _show_unraisable
    app.run(lambda argv: _guarded(main, argv, arguments), flags_parser=partial(_parse_flags, config=config))


def printable(text: str) -> str:
    """The text, with characters replaced that could move a terminal's cursor, reorder a line or fail to be written."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _parse_flags(argv: list[str], *, config: str | None) -> list[str]:
    if {"-h", "-help", "--help"} & {*argv}:
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    late = _Late()
    try:
        if "config" in flags.FLAGS:
            _check_config(argv, config, late)
        rest: list[str] = flags.FLAGS(argv)
    except UserError as error:
        sys.exit(f"error: {printable(str(error))}")
    except flags.UnrecognizedFlagError as error:
        sys.exit(f"error: {_unknown_flag(error.flagname, late.keys)}")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections raises the last four for an override that fits no key.
        message = " ".join(str(error).split())
        if missing := _MISSING.fullmatch(message):
            message = f"--{missing[1]} is missing; give it a value (--help lists the flags)"
        sys.exit(f"error: {printable(message.removeprefix('flag '))}")
    for section, fields in late.sections.items():
        node = _node(flags.FLAGS.config, section)
        with node.unlocked():
            for key in [key for key in node if key not in fields]:
                del node[key]
    for key, value in late.values.items():
        section, _, name = key.rpartition(".")
        node = _node(flags.FLAGS.config, section)
        with node.ignore_type(), node.unlocked():
            node[name] = value
    return rest


@dataclasses.dataclass
class _Late:
    """Overrides that ml_collections cannot make, set after it.

    Attributes:
      values: by key.
      sections: for each extension named on the command line, its keys with their types.
      keys: all keys of the config.
    """

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    keys: list[str] = dataclasses.field(default_factory=list)


def _node(config: ml_collections.ConfigDict, section: str) -> ml_collections.ConfigDict:
    for name in filter(None, section.split(".")):
        config = config[name]
    return config


def _unknown_flag(name: str, keys: list[str]) -> str:
    if name.startswith("config.") and "config" in flags.FLAGS:
        return f"--config is missing; give it before --{name}"
    near = _meant(name, [known for known in flags.FLAGS if known not in ("helpxml", "helpfull")], keys)
    return f"there is no flag --{name}; {f'did you mean --{near}?' if near else '--help lists the flags'}"


def _meant(name: str, known: list[str], keys: list[str]) -> str | None:
    """The flag or config key that was probably meant by a name: one of ours, or TRL's or verl's for the same."""
    known = [*known, *(f"config.{key}" for key in keys)]
    same = ELSEWHERE.get(name.rpartition(".")[2])
    return next((ours for ours in (same, f"config.{same}") if ours in known), None) or nearest(name, known)


def _check_config(argv: list[str], config_class: str | None, late: _Late) -> None:
    """Checks `--config=FILE:VARIANT` and the keys of its overrides, since ml_collections' own errors are hard to read.

    Overrides that ml_collections cannot make are moved from the arguments to `late`: values of None, and the keys of an
    extension named on the command line. `--config.help` prints the keys and ends the program.

    Args:
      argv: the command line; changed in place.
      config_class: as `config` of `run`.
      late: is filled.

    Raises:
      ConfigError: the file, variant, extension or key does not exist, or the file fails.
    """
    joined = _joined(argv)
    names = {
        override[1].removesuffix(".name"): override[2]
        for override in map(_OVERRIDE.fullmatch, joined)
        if override and override[1].endswith(".name") and override[2]
    }
    config: ml_collections.ConfigDict | None = None
    cls: type | None = None
    kept = list[str]()
    for argument in joined:
        flag, _, value = argument.partition("=")
        override = _OVERRIDE.fullmatch(argument)
        if flag in ("--config", "-config"):
            argument, config = _load_config(value)
            cls = _imported(config_class) if config_class else None
            late.keys[:] = _keys(config)
            late.sections.update(_named_sections(names, config, cls))
        elif override and override[1] == "help" and config is not None and cls is not None:
            print(help_text(config.to_dict(), cls))
            sys.exit()
        elif override and config is not None:
            key, value = _today(override[1], config), override[2]
            argument = argument.replace(f"config.{override[1]}", f"config.{key}", 1)
            section, _, name = key.rpartition(".")
            if fields := late.sections.get(section):
                if name not in fields:
                    raise _unknown_key(key, [f"{section}.{field}" for field in fields], list(fields))
                late.values[key] = literal(value, fields[name])
                continue
            _check_key(key, config)
            if value == "None":
                late.values[key] = None
                continue
            if above := next((none for none in late.values if key.startswith(f"{none}.")), None):
                raise ConfigError(f"--config.{above}=None leaves no --config.{key}; give only one of them")
            late.values.pop(key, None)
        kept.append(argument)
    argv[:] = kept


def _imported(name: str) -> type:
    module, _, cls = name.rpartition(".")
    found: type = getattr(importlib.import_module(f"actfer_jax.{module}"), cls)
    return found


def _joined(argv: list[str]) -> list[str]:
    """The arguments, with `--config VALUE` and `--config.KEY VALUE` joined, as in `--config=VALUE`."""
    joined = argv[:1]
    for argument in argv[1:]:
        before = joined[-1]
        waits = before in ("--config", "-config") or ("=" not in before and _OVERRIDE.match(before) is not None)
        if waits and len(joined) > 1 and not argument.startswith("--"):
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    return joined


def _named_sections(
    names: dict[str, str], config: ml_collections.ConfigDict, cls: type | None
) -> dict[str, dict[str, Any]]:
    """The extensions' sections whose `name` the command line gives, each with the extension's keys and their types."""
    sections = {}
    for section, name in names.items():
        base = None if cls is None or section not in set(_keys(config)) else section_class(cls, section)
        if base is not None and hasattr(base, "FOLDER"):
            named: type = named_config(base, name, f"--config.{section}.name")
            sections[section] = {field.name: field.type for field in dataclasses.fields(named) if field.init}
    return sections


def literal(value: str | None, field_type: Any) -> Any:
    """The value of a key from the command line: `None`, a number, a tuple, a section, or text."""
    if field_type is str or value is None:
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def load_config(given: str) -> ml_collections.ConfigDict:
    """The config of `FILE`, `FILE:VARIANT`, or a name that ships.

    Raises:
      ConfigError: it does not exist, or fails.
    """
    return _load_config(given)[1]


def changed() -> dict[str, Any]:
    """The name of the `--config` file, with its variant, as "config"; and every key whose value is not the file's."""
    flag = flags.FLAGS["config"]
    given = config_flags.get_config_filename(flag)
    now, before = (flatten(plain_config(config)) for config in (flags.FLAGS.config, load_config(given)))
    changes = {key: value for key, value in now.items() if key not in before or before[key] != value}
    return {"config": os.path.basename(given)} | changes


def _load_config(given: str) -> tuple[str, ml_collections.ConfigDict]:
    """The normalised flag of `FILE` or `FILE:VARIANT`, and the file's config."""
    try:
        path, colon, variant = os.fspath(as_path(given)).partition(":")
    except ValueError as error:
        raise ConfigError(f"--config {error}") from error
    shipped = _shipped_configs()
    if not os.path.isfile(path):
        names = {config.relative_to(shipped).with_suffix("").as_posix(): config for config in shipped.rglob("[!_]*.py")}
        if path not in names:
            folder = os.path.dirname(path) or "."
            there = [name for name in os.listdir(folder) if name.endswith(".py")] if os.path.isdir(folder) else []
            near = nearest(path, [*(os.path.join(os.path.dirname(path), name) for name in there), *names])
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"--config: there is no file {path}{hint}")
        path = os.fspath(names[path])
    _extend_configs(shipped)
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


def _shipped_configs() -> Path:
    """The package's folder `configs/`: inside an installed package, next to the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _extend_configs(shipped: Path) -> None:
    """Makes `from configs import common` work in any working directory, with the shipped configs as a fallback."""
    try:
        configs = importlib.import_module("configs")
    except ModuleNotFoundError:
        configs = sys.modules["configs"] = ModuleType("configs")
        configs.__path__ = []
    if os.fspath(shipped) not in configs.__path__:
        configs.__path__ = [*configs.__path__, os.fspath(shipped)]


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"


def _today(key: str, config: ml_collections.ConfigDict) -> str:
    """The key under its name in this config: the present one, or an older one."""
    old, today = new_name(key)
    return key if old in _keys(config) else today


def _check_key(key: str, config: ml_collections.ConfigDict) -> None:
    name, known = key.partition("[")[0], list(_keys(config))
    if name not in known:
        raise _unknown_key(key, known, list(config))


def _unknown_key(key: str, known: list[str], shown: list[str]) -> ConfigError:
    near = nearest(key.partition("[")[0], known)
    hint = f"did you mean --config.{near}?" if near else f"it has {', '.join(shown)}"
    return ConfigError(f"the config has no key for --config.{key}; {hint}")


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys and sections."""
    for key, value in config.items(preserve_field_references=True):
        yield prefix + key
        if isinstance(value, ml_collections.ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")


def _check_jax() -> None:
    import jax  # Not above: whoever asks for help need not wait for it.

    for name, refused in _REFUSED.items():
        value = getattr(jax.config, name)
        if (value := getattr(value, "value", value)) in refused:
            raise UserError(
                f"{name.upper()} is set to {value}, under which this program fails or computes something else: "
                "unset it in the environment"
            )


def _hint(argument: str) -> str:
    """What was probably meant by an argument that is no flag, such as an override without its dashes."""
    name, _, value = argument.partition("=")
    config = flags.FLAGS.config if "config" in flags.FLAGS else None
    near = _meant(name, [*flags.FLAGS], list(_keys(config)) if config else []) if value else None
    return f"did you mean --{near}={value}?" if near else "flags begin with -- and have no space before ="


def _show_unraisable(unraisable: Any) -> None:
    # TensorStore reports this for every later failed write, when Orbax no longer waits for it.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _guarded(main: Callable[[list[str]], None], argv: list[str], arguments: bool) -> None:
    # Our own messages from level INFO on, those of libraries from WARNING on.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for ours in ("actfer_jax", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax logs the same error with a traceback a dozen times, and also raises it.
    logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
    # And asyncio repeats it when the garbage collector comes to a task that Orbax left behind.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        if len(argv) > 1 and not arguments:
            raise UserError(f"unexpected argument {argv[1]!r}; {_hint(argv[1])}")
        _check_jax()
        main(argv)
    except ToolTimeout as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Python would wait for the tool's thread.
        os._exit(1)
    except file_errors(UserError) as error:
        logging.debug("", exc_info=True)
        # A checkpoint's message already says it, with the step to resume from.
        full = disk_is_full(error) and "the disk is full" not in str(error)
        remedy = "; the disk is full: free some space, and give the same command again" if full else ""
        sys.exit(f"error: {printable(str(error))}{remedy}")
