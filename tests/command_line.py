"""A command as a person gives it, run in this process: a test need not wait for its imports once more."""

import logging
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax import train as door


def training_refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line that `python -m actfer_jax.train ARGUMENTS` ends with, by its own parser and `main`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    flags.DEFINE(cli.PathFlag(), "workdir", None, "", flag_values=values, required=True)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_list("allow_changes", [], "", flag_values=values)
    for name in ("processes", "process"):
        flags.DEFINE_integer(name, None, "", flag_values=values)
    flags.mark_flag_as_required("config", values)
    argv = ["train", *arguments]
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(
        logging, "basicConfig", lambda **options: None
    )  # else the log goes to this test's stream for good
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # else train() sets one for the whole process
    with pytest.raises(SystemExit) as ended:
        cli._guarded(door.main, cli._parse_flags(argv, config="training.config.TrainConfig"), False)
    message = str(ended.value)
    assert message.startswith("error: ") and "\n" not in message
    return message
