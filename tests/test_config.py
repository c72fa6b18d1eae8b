"""Config sections become dataclasses, and mistakes are named by their key."""

import errno
import math
import os
from dataclasses import dataclass, field
from typing import Any, Optional

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_dict

from actfer_jax import cli
from actfer_jax.config import ConfigError, read_config
from actfer_jax.rl.loss import LossConfig


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Run:
    steps: int
    optimizer: Optimizer
    name: str = "run"
    resume: bool = True
    path: str | None = None
    limit: Optional[int] = None  # noqa: UP045 (the older spelling is read too)
    classes: tuple[str, ...] = ()
    reference: Optimizer | None = None
    rates: dict[str, float] = field(default_factory=dict)
    extra: Any = None


def section(**changes: Any) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"steps": 5, "optimizer": {"learning_rate": 1e-3}} | changes)


def test_a_whole_config_is_read():
    config = section(
        name="a",
        resume=False,
        path="/x",
        limit=3,
        classes=["fear", "anger"],
        reference={"learning_rate": 1, "betas": [0, 1.0]},
        rates={"joy": 1},
        extra="anything",
    )
    expected = Run(
        steps=5,
        optimizer=Optimizer(1e-3),
        name="a",
        resume=False,
        path="/x",
        limit=3,
        classes=("fear", "anger"),
        reference=Optimizer(1.0, betas=(0.0, 1.0)),
        rates={"joy": 1.0},
        extra="anything",
    )
    for node in (config, config.copy_and_resolve_references(), ml_collections.FrozenConfigDict(config)):
        run = read_config(node, Run, "config")
        assert run == expected
        assert isinstance(run.reference, Optimizer)
        assert all(type(beta) is float for beta in run.reference.betas)


def test_what_is_not_given_has_its_default():
    assert read_config(section(), Run, "config") == Run(5, Optimizer(1e-3))


def test_references_between_keys_are_followed():
    config = section()
    config.limit = config.get_ref("steps") * 2
    config.steps = 7
    assert read_config(config, Run, "config").limit == 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stpes": 3}, r"^config\.stpes is not a setting; did you mean config\.steps\?"),
        ({"zzz": 3}, r"^config\.zzz is not a setting; config has steps, optimizer, name"),
        ({"optimizer": {}}, r"^config\.optimizer\.learning_rate is missing"),
        (
            {"optimizer": {"learning_rate": 1.0, "weight_decy": 0.1}},
            r"^config\.optimizer\.weight_decy is not a setting; did you mean config\.optimizer\.weight_decay\?",
        ),
        ({"optimizer": 3}, r"^config\.optimizer must be a section with keys, got 3"),
        ({"steps": 5.0}, r"^config\.steps must be int, got 5\.0 \(float\)"),
        ({"steps": True}, r"^config\.steps must be int, got True \(bool\)"),
        ({"steps": "5"}, r"^config\.steps must be int, got '5' \(str\)"),
        ({"steps": None}, r"^config\.steps must be int, got None"),
        ({"resume": 1}, r"^config\.resume must be bool, got 1 \(int\)"),
        ({"name": 1}, r"^config\.name must be str"),
        ({"path": 1}, r"^config\.path must be str"),
        ({"optimizer": {"learning_rate": True}}, r"^config\.optimizer\.learning_rate must be float, got True"),
        (
            {"optimizer": {"learning_rate": 1.0, "betas": (0.9,)}},
            r"^config\.optimizer\.betas must have 2 values, got 1",
        ),
        ({"optimizer": {"learning_rate": 1.0, "betas": (0.9, "x")}}, r"^config\.optimizer\.betas\[1\] must be float"),
        ({"optimizer": {"learning_rate": 1.0, "betas": 0.9}}, r"^config\.optimizer\.betas must be a tuple"),
        ({"classes": "fear"}, r"^config\.classes must be a tuple, got 'fear'"),
        ({"rates": {"joy": "x"}}, r"^config\.rates\.joy must be float"),
        ({"rates": [1.0]}, r"^config\.rates must be a section with keys"),
        ({"path": config_dict.required_placeholder(str)}, r"^config\.path has no value; set it with --config\.path="),
    ],
)
def test_mistakes_are_named_by_their_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_config(section(**changes), Run, "config")


def test_values_that_the_section_refuses_are_named_too():
    with pytest.raises(ConfigError, match=r"^config\.loss\.clip_low must be between 0 and 1, got 3\.0"):
        read_config(ml_collections.ConfigDict({"clip_low": 3}), LossConfig, "config.loss")

    @dataclass(frozen=True)
    class Pair:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("the range is empty")

    with pytest.raises(ConfigError, match=r"^config\.pair: the range is empty"):
        read_config(ml_collections.ConfigDict({"low": 2, "high": 1}), Pair, "config.pair")


@given(
    learning_rate=st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_values_come_through_unchanged(learning_rate, betas):
    node = ml_collections.ConfigDict({"learning_rate": learning_rate, "betas": list(betas)})
    read = read_config(node, Optimizer, "config")
    assert read == Optimizer(learning_rate, betas=betas)
    assert math.copysign(1, read.learning_rate) == math.copysign(1, learning_rate)


def test_a_full_disk_is_said_to_be_full():
    def fill(argv: list[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/results.json")

    with pytest.raises(SystemExit) as ended:
        cli._guarded(fill, ["evaluate"], False)
    assert "/out/results.json" in str(ended.value) and "free some space" in str(ended.value)
