"""How every command starts and how it fails: with a message and a status, and a traceback only for our own mistakes."""

import logging
import sys
from collections.abc import Callable

from absl import app

from actfer_jax.agent.chat import ChatError
from actfer_jax.checkpoints import CheckpointError
from actfer_jax.config import ConfigError
from actfer_jax.metrics import WorkdirError

USER_ERRORS = (ConfigError, WorkdirError, CheckpointError, ChatError, OSError)


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags, sets up the log and runs a command.

    Exits with status 1 and one line on standard error where the person who started it can put it right.
    """
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # ml_collections raises these for an override of a key that the config file does not have.
        given = ", ".join(arg.split("=")[0] for arg in argv if arg.startswith("--config."))
        sys.exit(f"error: the config has no key {str(error).strip(chr(34))} (overrides given: {given or 'none'})")
    except (TypeError, ValueError) as error:
        sys.exit(f"error: {error}")


def _guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    # Our own words at the level of information; of the libraries' only the warnings.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("actfer_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        main(argv)
    except USER_ERRORS as error:
        logging.debug("", exc_info=True)
        sys.exit(f"error: {error}")
