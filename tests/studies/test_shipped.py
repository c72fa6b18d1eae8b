"""The studies that ship: every command that they would give is one that training or evaluation takes."""

import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.cli import load_config
from actfer_jax.evaluation.run import read_evaluate_config
from actfer_jax.studies.config import read_study_config
from actfer_jax.studies.grid import cells_of, commands
from actfer_jax.studies.report import design
from actfer_jax.training.config import read_train_config

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "configs" / "studies").glob("*.py") if path.stem != "common")
KINDS = {
    "actfer_jax.train": ("training.config.TrainConfig", read_train_config),
    "actfer_jax.evaluate": ("evaluation.run.EvaluateConfig", read_evaluate_config),
}


def read(arguments: tuple[str, ...]):
    """The config that a command of a cell reads, by the command's own parser."""
    program, *given = arguments
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    config_class, read_config = KINDS[program]
    argv = [program, *(one for one in given if one.startswith("--config"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(sys, "argv", argv)
        cli._parse_flags(argv, config=config_class)
    return read_config(values.config)


@pytest.mark.parametrize("name", STUDIES)
def test_every_command_of_a_study_is_understood(name, tmp_path):
    for folder in ("RAF-DB", "FERPlus", "AffectNet", "DISFA", "UniFER"):
        (tmp_path / folder).mkdir()
    config = read_study_config(load_config(f"studies/{name}" + (f":{tmp_path}" if name == "actfer" else "")))
    read_already = set()
    for cell in cells_of(config):
        if (kind := (cell.method.name, cell.value is None)) in read_already:
            continue
        read_already.add(kind)
        for command in commands(config, cell, Path("CELL"), Path("START"), {cell.method.name: 1e-4}):
            found = read(command.arguments)
            assert found.seed == cell.seed
            if command.name == "train":
                assert found.evaluation is None  # Its evaluations are commands of their own.
                assert not cell.method.start or found.model.path == "START/run/policy"
            elif cell.value is not None and "eval/" in command.arguments[1]:
                assert found.data.split == "validation"
    assert all(one["pairs"] >= 2 for one in design(config))


def test_the_ablation_adds_one_part_at_a_time():
    """Each row differs from the one above by the keys of its part, and UC-GRPO from what it builds on by beta alone."""
    config = read_study_config(load_config("studies/ablation"))
    trained = {}
    for cell in cells_of(config):
        if cell.method.train and cell.value is None:
            (command, *_) = commands(config, cell, Path("CELL"), None, {cell.method.name: 1e-4})
            trained[cell.method.name] = read(command.arguments)

    def differs(first: str, second: str) -> set[str]:
        one, other = trained[first], trained[second]
        sections = ("reward", "estimator", "loss", "optimizer", "batch", "rollout", "data")
        return {
            f"{section}.{key}"
            for section in sections
            for key, value in vars(getattr(one, section)).items()
            if value != getattr(getattr(other, section), key)
        }

    assert differs("grpo", "gain") == {"estimator.gain", "estimator.decision_start"}
    assert differs("gain", "levels") == {"reward.w_au", "reward.w_region", "reward.w_emotion"}
    assert differs("levels", "ucgrpo") == {"estimator.beta"}
    assert differs("ucgrpo", "forced") == {"estimator.forced_arm_rate"}
