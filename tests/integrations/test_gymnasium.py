"""Episodes in Gymnasium: its own checks, and the rewards that the package gives the same episodes."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scripted_episodes import answer, call, play

from actfer_jax.integrations.gymnasium import FaceEpisodes
from actfer_jax.rl import rewards

ROOT = Path(__file__).parents[2]
REWARD = rewards.RewardConfig(zoom_price=0.07)


@pytest.fixture
def episodes(agent, queries) -> FaceEpisodes:
    return FaceEpisodes(queries, agent.rollout, agent.toolbox, REWARD)


def test_gymnasium_accepts_it(episodes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It has no renderer and is not registered, of which the checker warns.
        warnings.filterwarnings("ignore", message=".*(render|spec)")
        check_env(episodes, skip_render_check=True)
    space = episodes.observation_space
    assert all(space.contains(space.sample()) for _ in range(3))
    assert not space["views"].feature_space.contains(np.zeros((8, 8, 4), np.uint8))


SCRIPTS = {
    "answers": [call("align_face"), call("zoom", region="mouth"), answer("fear", "AU1 AU5")],
    "answers at once": [answer("anger", "AU4")],
    "is refused": [call("zoom", region="tail"), answer("neutral")],
    "is malformed": [call("align_face"), "I see a face."],
    "calls to the end": [call("align_face"), *[call("zoom", region="eyes")] * 3],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripted_turns_get_the_reward_and_the_views_of_the_package(script, episodes, queries):
    query, turns = queries[1], SCRIPTS[script]
    rollout = play(query, turns, episodes.environment.toolbox, max_turns=episodes.environment.config.max_turns)
    expected = rewards.score(rollout.episode, query.reference, REWARD)
    observation, info = episodes.reset(options={"sample": 1})
    seen, ends = list(observation["views"]), []
    for turn in turns:
        observation, reward, terminated, truncated, info = episodes.step(turn)
        seen += observation["views"]
        ends.append((terminated, truncated))
        assert reward == (expected["total"] if any(ends[-1]) else 0)
    assert info["levels"] == expected and info["sample"] == 1
    assert ends == [(False, False)] * (len(turns) - 1) + [(script != "calls to the end", script == "calls to the end")]
    assert len(seen) == len(rollout.views)
    assert all(np.array_equal(mine, view.pixels) for mine, view in zip(seen, rollout.views, strict=True))


def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, "-m", "examples.gymnasium_episode"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Read this face." in done.stdout and "'emotion': 1.0" in done.stdout
