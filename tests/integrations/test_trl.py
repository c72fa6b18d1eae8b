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
from actfer_jax.models import demo_checkpoint
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


@pytest.mark.slow
def test_grpo_trainer_shows_the_crops_to_the_policy_and_trains_it(faces, tmp_path):
    """Two steps of the small policy: what its vision tower sees, and whether image positions are counted as such."""
    trl = pytest.importorskip("trl")
    torch = pytest.importorskip("torch")
    from datasets import Dataset
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from trl.chat_template_utils import qwen3_template

    class ImagesOnly(Qwen3VLProcessor):
        """Without videos, which need torchvision."""

        @classmethod
        def get_attributes(cls):
            return ["image_processor", "tokenizer"]

    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint())
    tokenizer.response_template = qwen3_template  # TRL knows the templates of published models only
    # The small policy was trained without the schemas of tools, which TRL hands to every template.
    template = "{%- set tools = none -%}" + tokenizer.chat_template
    processor = ImagesOnly(
        AutoImageProcessor.from_pretrained(demo_checkpoint()), tokenizer, None, chat_template=template
    )
    model = Qwen3VLForConditionalGeneration.from_pretrained(demo_checkpoint(), dtype=torch.float32)
    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=[faces.reward],
        args=trl.GRPOConfig(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=192,
            max_tool_calling_iterations=faces.rules.max_turns - 1,
            learning_rate=1e-5,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(faces.rows()),
        processing_class=processor,
        environment_factory=faces.environment,
    )
    assert {tool.__name__ for tool in trainer.tools} == {"detect_faces", "align_face", "zoom"}
    crops_in_updates = []

    def check(module, arguments, given):
        ids, grids = given["input_ids"], given.get("image_grid_thw")
        if module.training and grids is not None:
            images = ids == model.config.image_token_id
            assert torch.equal(given["mm_token_type_ids"] == 1, images)
            assert int(images.sum()) == int((grids.prod(1) // 4).sum())
            crops_in_updates.append(len(grids) - len(ids))

    model.register_forward_pre_hook(check, with_kwargs=True)
    before = model.lm_head.weight.detach().clone()
    trainer.train()
    assert min(crops_in_updates) >= 4 and not torch.equal(before, model.lm_head.weight)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    for row in logged:
        assert row["tools/call_frequency"] >= 1 and row["level/format"] > 0.5
        assert row["reward"] == pytest.approx(row["level/total"], abs=1e-6)
