"""How every command starts and how it fails: with a message and a status, and a traceback only for our own mistakes."""

import logging
import os
import sys
from collections.abc import Callable

from absl import app
from absl import logging as absl_logging

from actfer_jax.checkpoints import CheckpointError
from actfer_jax.config import ConfigError
from actfer_jax.data.sources import DataError
from actfer_jax.files import FILE_ERRORS, disk_is_full
from actfer_jax.finite import NotFiniteError
from actfer_jax.metrics import WorkdirError
from actfer_jax.outputs import OutputError
from actfer_jax.records import RecordError
from actfer_jax.rollout.engine import ToolTimeout

USER_ERRORS = (
    *(ConfigError, DataError, WorkdirError, CheckpointError, RecordError, OutputError, NotFiniteError),
    *FILE_ERRORS,
)


def run(main: Callable[[list[str]], None], *, arguments: bool = False) -> None:
    """Parses the flags, sets up the log and runs a command.

    Exits with status 1 and one line on standard error where the person who started it can put it right.

    Args:
      main: gets the program's name and, with `arguments`, what stands on the command line beside the flags.
      arguments: whether anything may stand there.
    """
    app.run(lambda argv: _guarded(main, argv, arguments), flags_parser=_parse_flags)


def printable(text: str) -> str:
    """The text without characters that could move a terminal's cursor, reorder a line or fail to be written."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _parse_flags(argv: list[str]) -> list[str]:
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        # "file.py:variant"; ml_collections would show how it tried to import it, or fail later.
        name, equals, value = arg.partition("=")
        path = (value if equals else following).partition(":")[0]
        if name in ("--config", "-config") and not os.path.isfile(path):
            sys.exit(f"error: --config: there is no file {path}")
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections raises these for an override of a key that the config file does not have.
        given = ", ".join(arg.split("=")[0] for arg in argv if arg.startswith("--config."))
        sys.exit(f"error: the config has no key {str(error).strip(chr(34))} (overrides given: {given or 'none'})")
    except (TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def _guarded(main: Callable[[list[str]], None], argv: list[str], arguments: bool) -> None:
    if len(argv) > 1 and not arguments:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    # Our own words at the level of information; of the libraries' only the warnings.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for ours in ("actfer_jax", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        main(argv)
    except USER_ERRORS as error:
        logging.debug("", exc_info=True)
        # A checkpoint says it itself, with the step that the run goes on from.
        full = disk_is_full(error) and not isinstance(error, CheckpointError)
        remedy = "; the disk is full: free some space, and give the same command again" if full else ""
        sys.exit(f"error: {printable(str(error))}{remedy}")
    except ToolTimeout as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Python would wait for that thread.
        os._exit(1)
