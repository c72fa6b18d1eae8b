"""examples/reproduce.sh: every command that it prints is one that the package takes."""

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.evaluation.run import read_evaluate_config
from actfer_jax.training.config import read_train_config

ROOT = Path(__file__).parents[2]
SETS = ("RAF-DB", "FERPlus", "AffectNet", "DISFA", "UniFER")
TRAINING = ("training.config.TrainConfig", read_train_config)
KINDS = {
    "train": TRAINING,
    "rehearse": TRAINING,
    "compile_check": TRAINING,
    "evaluate": ("evaluation.run.EvaluateConfig", read_evaluate_config),
}


def dry_run(data: Path, out: Path, **settings: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "DATA": str(data), "OUT": str(out)} | settings
    command = ["bash", "examples/reproduce.sh", "--dry_run"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def flags_of(module: str) -> set[str]:
    """The flags that the source of a command defines."""
    path = ROOT / "actfer_jax" / module.replace(".", "/")
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    defining = [call for call in calls if "DEFINE" in ast.unparse(call.func)]
    return {arg.value for call in defining for arg in call.args if isinstance(arg, ast.Constant)}


def read(program: str, given: list[str]):
    """The config of a command, by the command's own parser."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    config_class, read_config = KINDS[program]
    argv = [program, *(one for one in given if one.startswith("--config"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(sys, "argv", argv)
        cli._parse_flags(argv, config=config_class)
    return read_config(values.config)


def test_every_command_is_understood_and_reads_what_an_earlier_one_wrote(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for folder in SETS:
        (tmp_path / folder).mkdir()
    lines = dry_run(tmp_path, tmp_path / "out").splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith(sys.executable)]
    programs = [program.removeprefix("actfer_jax.") for program, *_ in commands]
    assert programs == [
        *["data.check"] * 5,
        *["rehearse", "compile_check"] * 2,
        *["train", "train", "evaluate", "evaluate", "table", "table"],
    ]
    made: set[str] = set()
    for program, (_, *given) in zip(programs, commands, strict=True):
        names = {one[2:].partition("=")[0] for one in given if one.startswith("--")}
        assert {name for name in names if not name.startswith("config.")} <= flags_of(program), program
        values = dict(one[2:].split("=", 1) for one in given if one.startswith("--"))
        if program in KINDS:
            config = read(program, given)
            if program == "train":
                parts = config.data.parts
                assert {part.annotations.name for part in parts.values()} == {"libreface"}
        used = {values.get("checkpoint", ""), values.get("config.model.path", "")} | set(
            given[:1] * (program == "table")
        )
        assert all(path in made for path in used if path.startswith(str(tmp_path)))
        made |= {f"{values.get('workdir')}/policy", values.get("out", "")}


def test_estimates_are_those_of_the_reports(tmp_path):
    report = json.loads((ROOT / "docs/compile_check/v5e-4x4.json").read_text())
    hours = report["estimate"]["hours"]
    assert f"# UC-GRPO: {hours:.1f} hours, ${hours * 16 * 2.5:.0f} on v5e:4x4" in dry_run(
        tmp_path, tmp_path, PRICE="2.5"
    )
    # A report of the run's own comes first; one without an estimate says so.
    report["estimate"]["hours"] = None
    (tmp_path / "compile_ucgrpo.json").write_text(json.dumps(report))
    assert "# UC-GRPO: hours unknown: a program of" in dry_run(tmp_path, tmp_path)
