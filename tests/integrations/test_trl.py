"""The face tools as TRL takes them: their schemas, their replies, and the reward of what was written.

TRL itself runs where it is installed.
"""

import importlib
import inspect
import json
import sys

import numpy as np
import pytest
from scripted_episodes import answer
from transformers.utils import get_json_schema

from actfer_jax.agent import prompts
from actfer_jax.agent.chat import Uncounted
from actfer_jax.agent.environment import Environment
from actfer_jax.agent.tools import tool_schemas
from actfer_jax.integrations.trl import Faces
from actfer_jax.rl import rewards

REWARD = rewards.RewardConfig(zoom_price=0.07)


@pytest.fixture
def faces(agent, queries) -> Faces:
    return Faces(queries, agent.rollout, agent.toolbox, REWARD)


def public_methods(environment) -> dict[str, object]:
    """As GRPOTrainer finds the tools of an environment."""
    found = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return {name: getattr(environment, name) for name, _ in found if not name.startswith("_") and name != "reset"}


def said(think: str, name: str, **arguments: object) -> dict[str, object]:
    """A turn with a call, as GRPOTrainer's parser of Qwen3 reads it."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "reasoning_content": think,
        "tool_calls": [{"type": "function", "function": function}],
    }


def test_docstrings_say_what_the_schemas_of_the_package_say(faces):
    ours = {schema["function"]["name"]: schema["function"] for schema in tool_schemas(images=1)}
    tools = public_methods(faces.environment())
    assert tools.keys() == ours.keys()
    for name, tool in tools.items():
        theirs = get_json_schema(tool)["function"]
        assert theirs["description"] == ours[name]["description"]
        properties = ours[name]["parameters"]["properties"]
        assert theirs["parameters"]["properties"].keys() == properties.keys()
        for argument, schema in theirs["parameters"]["properties"].items():
            assert schema["type"] == properties[argument]["type"]
            assert schema.get("enum") == properties[argument].get("enum")
            assert schema["description"] == properties[argument].get("description", schema["description"])


def test_tools_reply_what_the_package_shows_and_the_reward_is_the_packages(faces, agent, queries):
    arguments = [("align_face", {}), ("zoom", {"region": "mouth"}), ("zoom", {"bbox": [100, 100, 600, 600]})]
    own = Environment(agent.rollout, Uncounted(), agent.toolbox, lambda view: 0)
    own.reset(queries[1])
    environment = faces.environment()
    environment.reset(**faces.rows()[1])
    completion = []
    for name, given in arguments:
        text, *images = getattr(environment, name)(**given)
        observation = own.step(f"<think>a</think>\n{call_text(name, given)}", 0)
        assert text == {"type": "text", "text": own.reply_text}
        (view,) = observation.views
        assert np.array_equal(np.asarray(images[0]["image"]), view.pixels)
        completion += [said("a", name, **given), {"role": "tool", "name": name, "content": [text, *images]}]
    assert prompts.ANSWER_NOW in text["text"]
    assert environment.zoom(region="nose") == [{"type": "text", "text": prompts.NO_CALLS_LEFT}]
    own.step(answer("fear", "AU1 AU5", think="b"), 0)
    last = {"role": "assistant", "content": "<aus>AU1 AU5</aus>\n<answer>fear</answer>", "reasoning_content": "b"}
    metrics = {}
    total, malformed = faces.reward(
        [[*completion, last], [*completion, last | {"content": "fear"}]], sample=[1, 1], log_metric=metrics.__setitem__
    )
    expected = rewards.score(own.episode, queries[1].reference, REWARD)
    assert total == expected["total"] and expected["format"] == 1 and metrics["level/format"] == 0.5
    assert malformed < total


def call_text(name: str, arguments: dict[str, object]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def test_the_example_needs_trl_only_to_train(monkeypatch):
    for name in ("trl", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    example = importlib.import_module("examples.trl_tools")
    rows = example.faces.rows()
    assert len(rows) == 8 and rows[3]["sample"] == 3 and len(rows[3]["images"]) == 1
    assert [message["role"] for message in rows[0]["prompt"]] == ["system", "user"]
    alone = [{"role": "assistant", "content": answer(example.samples[0].reference.emotion)}]
    assert example.faces.reward([alone], sample=[0]) > [0.0]
