"""docs/algorithm.md states every constant of the algorithm, with the default that the code has."""

import dataclasses
import re
from pathlib import Path

from actfer_jax.rl.loss import LossConfig
from actfer_jax.rl.rewards import RewardConfig
from actfer_jax.rl.ucgrpo import UCGRPOConfig


def test_the_tables_have_every_constant_and_its_default():
    text = (Path(__file__).parents[2] / "docs" / "algorithm.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([a-z]+\.\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    sections = {"reward": RewardConfig, "estimator": UCGRPOConfig, "loss": LossConfig}
    defaults = {
        f"{section}.{field.name}": str(field.default)
        for section, cls in sections.items()
        for field in dataclasses.fields(cls)
    }
    assert documented == defaults
