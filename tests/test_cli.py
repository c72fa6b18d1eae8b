"""What a person sees who mistypes a flag, a key, a path or a setting: one line that says what is meant."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from absl import flags
from etils import epath
from ml_collections import config_flags

from actfer_jax import cli, evaluate
from actfer_jax.__main__ import COMMANDS
from actfer_jax.config import ConfigError
from actfer_jax.errors import UserError
from actfer_jax.files import as_path
from actfer_jax.training.config import read_train_config
from configs import ucgrpo
from configs.eval import synth_faces

ROOT = Path(__file__).parents[1]
DEMO = "--config=configs/ucgrpo.py:demo"
BROKEN = {
    "syntax.py": "def get_config(:",
    "fails.py": "def get_config():\n    return 1 / 0",
    "other.py": "def get_config():\n    return {}",
    "empty.py": "",
    "variant.py": "def get_config(variant): ...",
}


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parses a command line as `train` does, in the root of the checkout; returns the flags."""
    for name, source in BROKEN.items():
        (tmp_path / name).write_text(source)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def parsed(*arguments: str) -> flags.FlagValues:
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, flag_values=values)
        flags.DEFINE(cli.PathFlag(), "workdir", None, "", flag_values=values, required=True)
        flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "", flag_values=values)
        flags.mark_flag_as_required("config", values)
        argv = ["train", *arguments]
        monkeypatch.setattr(flags, "FLAGS", values)
        monkeypatch.setattr(sys, "argv", argv)
        cli._parse_flags(argv, config="training.config.TrainConfig")
        return values

    return parsed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DEMO, "--wrokdir=runs/x"], "no flag --wrokdir; did you mean --workdir?"),
        ([DEMO, "--config.optimiser.learning_rate=1"], "did you mean --config.optimizer.learning_rate?"),
        ([DEMO, "--config.learning_rate=1"], "did you mean --config.optimizer.learning_rate?"),
        ([DEMO, "--config.optimizer.lerning_rate", "1"], "did you mean --config.optimizer.learning_rate?"),
        ([DEMO, "--learning_rate=1"], "did you mean --config.optimizer.learning_rate?"),
        ([DEMO, "--num_generations=8"], "did you mean --config.batch.rollouts?"),
        ([DEMO, "--actor_rollout_ref.actor.kl_loss_coef=0.1"], "did you mean --config.loss.kl?"),
        ([DEMO, "--output_dir=x"], "did you mean --workdir?"),
        ([DEMO, "--config.zzz=1"], "it has alarms, algorithm, batch, checkpoint, data"),
        ([DEMO, "--config.optimizer.learning_rate=fast"], "--config.optimizer.learning_rate=fast: could not convert"),
        ([DEMO, "--config.optimizer=3"], "--config.optimizer=3"),
        ([DEMO, "--dtype=float16"], "--dtype=float16: value should be one of <float32|bfloat16>"),
        ([DEMO, "--workdir="], "--workdir=: is empty"),
        ([DEMO], "--workdir is missing"),
        (["--workdir=x", "--config.steps=3"], "--config is missing"),
        (["--config=configs/ucgrpo.py:foo"], "there is no variant 'foo'; there are: demo, demo_2, disfa"),
        (["--config", "configs/eval/synth_faces.py:demo"], "has no variants; leave out :demo"),
        (["--config=configs/ucgrp.py"], "no file configs/ucgrp.py; did you mean configs/ucgrpo.py?"),
        (["--config=ugrpo:demo"], "no file ugrpo; did you mean ucgrpo?"),
        (["--config=~/nowhere.py"], "{home}/nowhere.py"),
        (["--config="], "--config is empty"),
        (["--config=README.md"], "README.md fails: SyntaxError"),
        (["--config=~/syntax.py"], "syntax.py fails: SyntaxError"),
        (["--config=~/fails.py"], "ZeroDivisionError: division by zero ({home}/fails.py, line 2)"),
        (["--config=~/other.py"], "returns dict; it must return a ConfigDict"),
        (["--config=~/empty.py"], "has no 'get_config'"),
        (["--config=~/variant.py"], "wants a variant: {home}/variant.py:NAME"),
        ([DEMO, "--config.evaluation=None", "--config.evaluation.queries=3"], "leaves no --config.evaluation.queries"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(parse, tmp_path, arguments, words):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    message = str(ended.value)
    assert message.startswith("error: ") and "\n" not in message
    assert words.format(home=tmp_path) in message


def test_a_file_of_the_working_directory_comes_before_what_ships(parse, tmp_path, monkeypatch):
    assert parse("--config=grpo:demo", "--workdir=x", "--config.seed=3").config.estimator.gain == 1.0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grpo").write_text(
        "import ml_collections\nget_config = lambda: ml_collections.ConfigDict({'steps': 5})"
    )
    assert parse("--config=grpo", "--workdir=x").config.to_dict() == {"steps": 5}


def test_what_the_command_line_changes_of_its_file(parse):
    parse("--config=ucgrpo:demo", "--workdir=x", "--config.optimizer.learning_rate=1e-3", "--config.seed=0")
    assert cli.changed() == {"config": "ucgrpo.py:demo", "optimizer.learning_rate": 1e-3}
    parse(DEMO, "--workdir=x", "--config.evaluation=None")
    assert cli.changed() == {"config": "ucgrpo.py:demo", "evaluation": None}


def test_none_can_be_given_where_a_field_may_be_none(parse):
    config = parse(
        DEMO,
        "--workdir=x",
        "--config.evaluation.queries=3",
        "--config.evaluation=None",
        "--config.loss.importance_cap",
        "None",
        "--config.loss.dual_clip=None",
        "--config.loss.dual_clip=3",
        "--config.steps=7",
    ).config
    read = read_train_config(config)
    assert read.evaluation is None and read.loss.importance_cap is None
    assert read.loss.dual_clip == 3.0 and read.steps == 7
    with pytest.raises(ConfigError, match=r"config\.steps is None .*it must be int"):
        read_train_config(parse(DEMO, "--workdir=x", "--config.steps=None").config)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~/runs/x", "{home}/runs/x"),
        ("~", "{home}"),
        ("~root/x", os.path.expanduser("~root") + "/x"),
        ("./~/x", "~/x"),
        ("file:///runs/a%20b", "/runs/a b"),
        ("file://localhost/runs", "/runs"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("runs/x", "runs/x"),
        ("", None),
        (" ", None),
        ("~nobody-of-that-name/x", None),
        ("file://runs/x", None),
        ("http://host/x", None),
    ],
)
def test_a_path_is_what_a_person_means(monkeypatch, tmp_path, text, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    if path is None:
        with pytest.raises(ValueError, match="give|write|has three slashes"):
            as_path(text)
    else:
        assert as_path(text) == epath.Path(path.format(home=tmp_path))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_transfer_guard", "disallow"),
        ("jax_transfer_guard_host_to_device", "disallow_explicit"),
    ],
)
def test_settings_of_jax_that_would_fail_later_are_refused_by_name(setting, value):
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        with pytest.raises(SystemExit, match=f"{setting.upper()} is set to {value}.*unset it"):
            cli._guarded(lambda argv: None, ["train"], False)
    finally:
        jax.config.update(setting, before)
    cli._guarded(lambda argv: None, ["train"], False)


def test_a_config_of_another_command_is_sent_there(monkeypatch):
    with pytest.raises(ConfigError, match=r"config for `python -m actfer_jax\.evaluate`"):
        read_train_config(synth_faces.get_config())
    given = {"config": ucgrpo.get_config("demo"), "checkpoint": "demo"}
    others = dict.fromkeys(("endpoint", "model", "predictions", "benchmark", "protocol"))
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(**given, **others))
    with pytest.raises(ConfigError, match=r"config for `python -m actfer_jax\.train`"):
        evaluate.main([])


def test_an_argument_beside_the_flags_is_named():
    with pytest.raises(SystemExit, match="unexpected argument 'demo'"):
        cli._guarded(lambda argv: None, ["train", "demo"], False)


def test_what_a_person_can_put_right_is_said_in_one_line():
    def fail(argv: list[str]) -> None:
        raise UserError("the \x1b[31mfile")

    with pytest.raises(SystemExit) as ended:
        cli._guarded(fail, ["train"], False)
    assert ended.value.code == "error: the \ufffd[31mfile"


def test_an_old_python_is_told_so_before_anything_is_imported():
    source = ROOT / "actfer_jax" / "__init__.py"
    ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 7))
    old = "import sys; sys.version_info, sys.version = (3, 10, 13), '3.10.13 (main)'; import actfer_jax"
    done = subprocess.run([sys.executable, "-S", "-c", old], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: actfer_jax needs Python 3.11 to 3.13, but this is 3.10.13")
    assert done.stderr.count("\n") == 1


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_a_real_command_says_one_line_and_no_library_another(tmp_path):
    """Paths in the home directory, a platform that is not there, and all that is imported."""
    (tmp_path / "file").write_text("")
    command = ["-m", "actfer_jax.analyze", "~/a.jpg", "--checkpoint=demo"]
    done = run(*command, "--out=~/file", HOME=str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/file is a file, not a directory") and done.stderr.count("\n") == 1
    done = run(*command, "--out=~/out", HOME=str(tmp_path), JAX_PLATFORMS="foo")
    assert done.returncode == 1 and done.stdout == ""
    assert "JAX_PLATFORMS=foo" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_terminal_that_knows_ascii_only_gets_the_table(tmp_path):
    done = run("-c", "from actfer_jax import cli; cli.run(lambda argv: print('0.9 ±0.1'))", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "0.9 ?0.1\n"), done.stderr


HELP = """
import contextlib, io, runpy, sys
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
    runpy.run_module("actfer_jax", run_name="__main__", alter_sys=True)
heavy = {"jax", "tensorflow", "transformers", "orbax"} & sys.modules.keys()
print(out.getvalue(), "heavy:", sorted(heavy))
"""
LIGHT = [name for name in COMMANDS if name not in ("check-data", "texts")]


@pytest.mark.parametrize("command", LIGHT)
def test_help_comes_at_once(command):
    """With examples and flags, and with nothing imported that takes seconds."""
    done = run("-c", HELP, command, "--help")
    assert done.stdout.endswith("heavy: []\n") and done.stderr == ""
    assert f"python -m actfer_jax.{COMMANDS[command]}" in done.stdout
    assert ("\nflags:\n" in done.stdout) == (command != "diff")  # which has none


def test_every_command_has_one_name():
    done = run("-m", "actfer_jax", "--help")
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(COMMANDS)
    asked = run("-m", "actfer_jax", "export", "--help")
    assert asked.returncode == 0 and asked.stdout == run("-m", "actfer_jax.export", "--help").stdout != ""
    wrong = run("-m", "actfer_jax", "evalute")
    assert (wrong.returncode, wrong.stderr) == (1, "error: there is no command 'evalute'; did you mean evaluate?\n")


def test_an_override_without_its_dashes_is_understood(parse):
    parse(DEMO, "--workdir=x")
    for given, meant in (
        ("learning_rate=1e-5", "--config.optimizer.learning_rate=1e-5"),
        ("config.steps=3", "--config.steps=3"),
        ("trainer.total_training_steps=7", "--config.steps=7"),
        ("workdir=y", "--workdir=y"),
    ):
        with pytest.raises(SystemExit, match=f"unexpected argument '{given}'; did you mean {meant}?"):
            cli._guarded(lambda argv: None, ["train", given], False)


def test_config_help_has_every_key_with_its_value_and_what_it_means(parse, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(DEMO, "--config.help")
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    keys = {line.partition("=")[0]: index for index, line in enumerate(lines) if line.startswith("--config.")}
    assert keys.keys() == {f"--config.{key}" for key in leaves(ucgrpo.get_config("demo").to_dict())}
    assert lines[keys["--config.reward.zoom_price"]] == "--config.reward.zoom_price=0.09"
    assert all(lines[index + 1].startswith("    ") and lines[index + 1].strip() for index in keys.values())


def leaves(section: dict[str, Any]) -> Iterator[str]:
    for key, value in section.items():
        yield from (f"{key}.{leaf}" for leaf in leaves(value)) if isinstance(value, dict) else (key,)


def test_the_page_of_config_keys_is_that_of_the_dataclasses():
    done = run("docs/config_page.py")
    assert done.returncode == 0 and done.stdout == (ROOT / "docs" / "config.md").read_text()
    assert "|  |\n" not in done.stdout  # every key has a meaning
