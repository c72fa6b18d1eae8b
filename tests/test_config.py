"""Config sections become dataclasses, and mistakes are named by their key."""

import dataclasses
import errno
import math
import os
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Optional

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_dict

from actfer_jax import cli
from actfer_jax.config import ConfigError, Domain, named_config, read_config
from actfer_jax.evaluation.run import EvaluateConfig
from actfer_jax.rl.loss import LossConfig
from actfer_jax.training.config import TrainConfig, read_train_config
from actfer_jax.training.optimizer import OptimizerConfig
from configs import grpo, sft, ucgrpo
from configs.eval import synth_faces


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
        ({"optimizer": 3}, r"^config\.optimizer is 3; it must be a section with keys"),
        ({"steps": 5.0}, r"^config\.steps is 5\.0 \(float\); it must be int"),
        ({"steps": True}, r"^config\.steps is True \(bool\); it must be int"),
        ({"steps": "5"}, r"^config\.steps is '5' \(str\); it must be int"),
        ({"steps": None}, r"^config\.steps is None \(NoneType\); it must be int"),
        ({"resume": 1}, r"^config\.resume is 1 \(int\); it must be bool"),
        ({"name": 1}, r"^config\.name is 1 \(int\); it must be str"),
        ({"path": 1}, r"^config\.path is 1 \(int\); it must be str"),
        (
            {"optimizer": {"learning_rate": True}},
            r"^config\.optimizer\.learning_rate is True \(bool\); it must be float",
        ),
        (
            {"optimizer": {"learning_rate": 1.0, "betas": (0.9,)}},
            r"^config\.optimizer\.betas is \(0\.9,\); it must have 2 values",
        ),
        (
            {"optimizer": {"learning_rate": 1.0, "betas": (0.9, "x")}},
            r"^config\.optimizer\.betas\[1\] is 'x' \(str\); it must be float",
        ),
        (
            {"optimizer": {"learning_rate": 1.0, "betas": 0.9}},
            r"^config\.optimizer\.betas is 0\.9 \(float\); it must be a tuple",
        ),
        ({"classes": "fear"}, r"^config\.classes is 'fear' \(str\); it must be a tuple"),
        ({"rates": {"joy": "x"}}, r"^config\.rates\.joy is 'x' \(str\); it must be float"),
        ({"rates": [1.0]}, r"^config\.rates is \[1\.0\]; it must be a section with keys"),
        ({"path": config_dict.required_placeholder(str)}, r"^config\.path has no value; set it with --config\.path="),
    ],
)
def test_mistakes_are_named_by_their_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_config(section(**changes), Run, "config")


def test_values_that_the_section_refuses_are_named_too():
    with pytest.raises(ConfigError, match=r"^config\.loss\.clip_low is 3\.0; it must be above 0 and below 1"):
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
    learning_rate=st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_values_come_through_unchanged(learning_rate, betas):
    node = ml_collections.ConfigDict({"learning_rate": learning_rate, "betas": list(betas)})
    read = read_config(node, Optimizer, "config")
    assert read == Optimizer(learning_rate, betas=betas)
    assert math.copysign(1, read.learning_rate) == math.copysign(1, learning_rate)


FREE_TEXTS = (
    *("name", "format", "path", "landmarks", "directory", "cache_directory", "exclude[0]"),
    *("best_metric", "readings_stratum", "file", "adapter", "frozen[0]", "targets[0]"),
    *("api_key_variable", "request"),
)


def leaves(hint: Any, key: str) -> Iterator[tuple[str, type, bool]]:
    """Key, type and whether it has a domain, of everything that a config class holds; of a tuple, its first item."""
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        cls = named_config(hint, None, key)
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            yield from leaves(hints[field.name], f"{key}.{field.name}")
    elif typing.get_origin(hint) is typing.Annotated:
        yield key, arguments[0], any(isinstance(one, Domain) for one in arguments[1:])
    elif typing.get_origin(hint) is tuple:
        yield from leaves(arguments[0], f"{key}[0]")
    elif arguments:
        yield from leaves(next(one for one in arguments if one is not type(None)), key)
    else:
        yield key, hint, False


LEAVES = [*leaves(TrainConfig, "train"), *leaves(EvaluateConfig, "evaluate")]


def read_with(key: str, value: Any) -> None:
    """Reads a config of the repository in which one key has another value."""
    root, *parents, name = key.removesuffix("[0]").split(".")
    if root == "evaluate":
        config, cls = synth_faces.get_config(), EvaluateConfig
    else:
        config, cls = (sft if parents[:1] == ["traces"] else ucgrpo).get_config("demo+lora"), TrainConfig
    section = config
    for part in parents:
        section = section[part]
    with section.ignore_type():
        section[name] = (value, *section[name][1:]) if key.endswith("[0]") else value
    read_config(config, cls, root)


def test_every_number_and_every_choice_of_a_config_has_a_domain():
    assert len(LEAVES) > 90
    bare = [key for key, kind, domain in LEAVES if not domain and kind is not bool]
    assert [key for key in bare if key.rpartition(".")[2] not in FREE_TEXTS] == []


@pytest.mark.parametrize("key", [key for key, _, domain in LEAVES if domain])
def test_what_no_field_may_be_is_refused_in_each(key):
    kind = next(kind for other, kind, _ in LEAVES if other == key)
    values = {float: (math.nan, math.inf, -math.inf, 1e39, -1.0), int: (-(2**63), -2, 2**63), str: ("", "no such")}
    for value in values[kind]:
        with pytest.raises(ConfigError) as error:
            read_with(key, value)
        assert str(error.value).startswith(f"{key} is {value!r}; it must be ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.optimizer.b1", 1.5),
        ("train.optimizer.b1", 1.0),
        ("train.optimizer.b2", 1 - 1e-9),  # 1 in float32
        ("train.optimizer.eps", 0.0),
        ("train.optimizer.eps", 1e-60),  # 0 in float32
        ("train.optimizer.final_fraction", 7.0),
        ("train.optimizer.max_grad_norm", 0.0),
        ("train.seed", -1),
        ("train.seed", 2**32),  # would sample as 0 does
        ("train.loss.clip_low", 1.0),
        ("train.loss.dual_clip", 1.0),
        ("train.estimator.ema_rate", 1.1),
        ("train.estimator.forced_arm_rate", 2.0),
        ("train.batch.queries", 0),
        ("train.batch.length_buckets[0]", 0),
        ("train.batch.length_buckets[0]", 208),
        ("train.mesh.update[0]", 0),
        ("train.traces.no_zoom", 1.5),
        ("train.checkpoint.keep", 0),
        ("train.views.multiple", 0),
        ("evaluate.seed", 2**63),
        ("evaluate.data.size", 0),
    ],
)
def test_a_value_outside_its_domain_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError) as error:
        read_with(key, value)
    assert str(error.value).startswith(f"{key} is {value!r}; it must be ")


def test_a_group_of_one_is_refused_where_rollouts_are_compared():
    with pytest.raises(ConfigError, match=r"^train\.batch\.rollouts is 1; it must be at least 2"):
        read_with("train.batch.rollouts", 1)
    read_config(sft.get_config("demo"), TrainConfig, "config")  # one row of each picture, with nothing to compare


@pytest.mark.parametrize("value", [1.5, math.nan, "x", None])
def test_a_section_made_in_python_has_the_same_domains(value):
    with pytest.raises(ConfigError, match=r"^b1 is .*; it must be "):
        OptimizerConfig(b1=value)
    with pytest.raises(ConfigError, match=r"^b1 is .*; it must be "):
        dataclasses.replace(OptimizerConfig(), b1=value)


def test_the_edges_of_domains_are_allowed():
    for key, value in {
        "train.optimizer.learning_rate": 0,
        "train.optimizer.b1": 0,
        "train.optimizer.final_fraction": 1,
        "train.seed": 2**32 - 1,
        "train.batch.rollouts": 2,
        "train.batch.length_buckets[0]": 207,
        "train.mesh.update[0]": 1,
        "train.loss.dual_clip": None,
        "train.traces.two_zooms": 0,
    }.items():
        read_with(key, value)


@pytest.mark.parametrize("variant", ["", "demo", "lora", "one_device", "demo+lora"])
def test_configs_of_the_repository_are_within_the_domains(variant):
    for module in (ucgrpo, grpo, sft):
        config = module.get_config(variant)
        config.model.path = "demo"
        read_config(config, TrainConfig, "config")
    read_config(sft.get_config("demo_2"), TrainConfig, "config")
    read_config(synth_faces.get_config(), EvaluateConfig, "config")


POD = (
    "model.path",
    "data.size",
    "batch.microbatches",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "mesh.rollout",
)
"""Where a run on a pod wants other values than the dataclasses have."""
RL = ("batch.length_buckets", "estimator.decision_start", "loss.kl")
SFT = ("batch.queries", "batch.rollouts", "batch.length", "optimizer.learning_rate", "optimizer.schedule")


@pytest.mark.parametrize(("module", "others"), [(ucgrpo, {*POD, *RL}), (sft, {*POD, *SFT})])
def test_a_config_file_shows_every_key_of_its_sections_with_the_default_but_where_listed(module, others):
    """A default changed in one of the two places only would be one for Python and another for the commands."""
    raw = module.get_config()
    raw.model.path = "demo"
    assert set(other_than_default(raw, read_config(raw, TrainConfig, "config"))) == others


def other_than_default(raw, section, default=None, prefix="") -> Iterator[str]:
    """The keys whose value in a file is no default; `default` is the section as the one around it makes it."""
    for one in dataclasses.fields(section):
        key, own = prefix + one.name, getattr(section, one.name)
        made = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        expected = made if default is None else getattr(default, one.name)
        if one.name not in raw:
            assert not prefix, f"{key} is not in the file"
        elif dataclasses.is_dataclass(own):
            around = expected if dataclasses.is_dataclass(expected) else None
            yield from other_than_default(raw[one.name], own, around, f"{key}.")
        elif expected is not dataclasses.MISSING and own != expected:
            yield key


def test_a_full_disk_is_said_to_be_full():
    def fill(argv: list[str]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/results.json")

    with pytest.raises(SystemExit) as ended:
        cli._guarded(fill, ["evaluate"], False)
    assert "/out/results.json" in str(ended.value) and "free some space" in str(ended.value)


def test_keys_that_had_another_name_are_read_under_it():
    """Values of before too; under both names at once a key is refused."""
    config = sft.get_config("demo").to_dict()
    del config["batch"]["length_buckets"], config["traces"]["readings_stratum"]
    config["ucgrpo"] = {"kappa": 3.0}
    config["batch"]["shorter_lengths"], config["traces"]["readings_subtle"] = (64,), True
    read = read_train_config(config)
    assert (read.estimator.kappa, read.batch.length_buckets, read.traces.readings_stratum) == (3.0, (64,), "subtle")
    config["batch"]["length_buckets"] = (32,)
    with pytest.raises(
        ConfigError, match=r"both batch\.shorter_lengths and batch\.length_buckets, .*: leave out batch\.s"
    ):
        read_train_config(config)
