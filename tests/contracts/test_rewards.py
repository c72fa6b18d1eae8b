"""Every reward is what `rl.rewards.Reward` asks for: finite, deterministic, priced, and higher for what is right."""

import math
from dataclasses import replace

import pytest

from actfer_jax import plugins
from actfer_jax.agent.episode import Episode, Reference, Reply, Turn
from actfer_jax.agent.parser import parse_turn
from actfer_jax.config import ConfigError, read_config
from actfer_jax.rl.levels import LEVELS
from actfer_jax.rl.rewards import BaseRewardConfig, score

LABELS = ("anger", "disgust", "fear", "happiness")
KNOWN = Reference(LABELS, "fear", frozenset({1, 2, 5}))
REFERENCES = [
    KNOWN,
    replace(KNOWN, aus=None),
    replace(KNOWN, emotion=None),
    replace(KNOWN, known_aus=frozenset({1, 9})),
]
ZOOM = '<tool_call>{"name": "zoom", "arguments": {"region": "brows"}}</tool_call>'
MEMBERS = [*plugins.names("rl.rewards"), "examples.brief_reward"]


def turn(text: str, reply: Reply | None = None) -> Turn:
    return Turn(text, parse_turn(text), reply=reply)


def answered(aus: str, label: str, zooms: int = 0) -> Episode:
    looks = [turn(f"<think>AU1 AU2</think>{ZOOM}", Reply("brows", ok=True, tool="zoom")) for _ in range(zooms)]
    answer = turn(f"<think>{aus.replace('+', ' ')}</think><aus>{aus}</aus><answer>{label}</answer>")
    return Episode(turns=[*looks, answer])


RIGHT, WRONG = answered("AU1 AU2 AU5", "fear"), answered("AU4 AU9", "anger")
ODD = [None, Episode(), Episode(turns=[turn("")]), answered("none", "joy?"), answered("AU1", "fear", zooms=3)]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_reward_keeps_the_contract(name):
    config = read_config({"name": name}, BaseRewardConfig, "reward")
    assert config.name == name
    for reference in REFERENCES:
        for episode in (RIGHT, WRONG, *ODD):
            parts = score(episode, reference, config)
            assert set(parts) == {*LEVELS, "task", "total"}
            assert all(math.isfinite(value) for value in parts.values())
            assert parts == score(episode, reference, config)
            assert all(0 <= parts[level] <= 1 for level in LEVELS)
    right, wrong = (score(episode, KNOWN, config) for episode in (RIGHT, WRONG))
    assert right["task"] > wrong["task"] and right["total"] > wrong["total"]


@pytest.mark.parametrize("name", MEMBERS)
def test_every_executed_zoom_costs_its_price(name):
    free = read_config({"name": name, "zoom_price": 0.0}, BaseRewardConfig, "reward")
    priced = read_config({"name": name, "zoom_price": 0.25}, BaseRewardConfig, "reward")
    episode = answered("AU1 AU2 AU5", "fear", zooms=2)
    paid = score(episode, KNOWN, free)["total"] - score(episode, KNOWN, priced)["total"]
    assert paid == pytest.approx(0.5)


def test_a_reward_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"^config\.reward\.name: 'actfr' is none of rl\.rewards; did you mean actfer\?"
    ):
        read_config({"name": "actfr"}, BaseRewardConfig, "config.reward")
    with pytest.raises(ConfigError, match=r"^config\.reward\.name: 'mylab\.reward' is none of rl\.rewards"):
        read_config({"name": "mylab.reward"}, BaseRewardConfig, "config.reward")
