"""What a policy's directory says of it to those who did not train it."""

import importlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from flagship import WORDS, needs_words, write_narrow_model
from flax import nnx
from huggingface_hub.repocard import metadata_load
from ml_collections import ConfigDict
from PIL import Image

from actfer_jax.agent.episode import Reference
from actfer_jax.agent.play import begin
from actfer_jax.agent.tools import TOOL_SCHEMAS
from actfer_jax.data.datasets.synth_faces import DEMO_EMOTIONS
from actfer_jax.evaluation.metrics import Outcome, summarise
from actfer_jax.faces.images import load_image
from actfer_jax.models import demo_checkpoint
from actfer_jax.models.lora import add_adapters
from actfer_jax.rollout.engine import Query
from actfer_jax.runs.metrics import EVALUATION
from actfer_jax.training.config import TrainConfig, read_train_config
from actfer_jax.training.loop import save_policy
from actfer_jax.training.model_card import policy_files, update_model_card


def config_of(variant: str, model: Path) -> TrainConfig:
    raw_config: ConfigDict = importlib.import_module("configs.ucgrpo").get_config(variant)
    raw_config.model.path, raw_config.model.initialise = str(model), "pretrained"
    return read_train_config(raw_config)


def write_evaluation(workdir: Path, step: int) -> dict:
    """20 of 24 are right, of the subtle ones 8 of 12."""
    outcomes = [
        Outcome(
            ("fear", "joy"), "fear", "fear" if n >= 4 else "joy", True, None, None, (part,), n < 12, (), (), 1, False
        )
        for n, part in enumerate(["subtle"] * 12 + ["plain"] * 12)
    ]
    results = {"normal": summarise(outcomes), "no_tools": summarise(outcomes[:12])}
    runs = {"after": {"provenance": None, "step": step, "unreadable": [], "results": results}}
    (workdir / EVALUATION).write_text(json.dumps(runs))
    return results


def test_a_card_tells_what_is_known_and_no_more(agent, tmp_path):
    base, policy = tmp_path / "base", epath.Path(tmp_path / "policy")
    shutil.copytree(demo_checkpoint(), base)
    licence = b"Apache License, \xa9"
    (base / "LICENSE").write_bytes(licence)
    (base / "NOTICE.txt").write_bytes(licence)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: somebody/model\n---\nThe base.\n")
    config = config_of("demo", base)
    results = write_evaluation(tmp_path, config.steps)
    save_policy(config, agent.graphdef, agent.params, policy, epath.Path(tmp_path), config.steps)
    assert metadata_load(policy / "README.md") == {
        "license": "apache-2.0",
        "base_model": "somebody/model",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["facial-expression-recognition", "action-units", "actfer_jax"],
    }
    assert (policy / "LICENSE").read_bytes() == (policy / "NOTICE.txt").read_bytes() == licence
    text = (policy / "README.md").read_text()
    half = 50 * (results["normal"]["accuracy"]["high"] - results["normal"]["accuracy"]["low"])
    assert f"| after | normal | 24 | 83.3 ±{half:.1f} |" in text and "| no_tools | 12 | 66.7 ±" in text
    assert "| majority class (fear) | - | 24 | 100.0" in text
    gap = results["normal"]["strata"]["subtle"]["accuracy_gap"]
    assert f"| subtle | 12 | -33.3 ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}) | - | +100.0" in text

    # Figures of another step are not its own, and what somebody else wrote is not replaced.
    (base / "README.md").write_text("---\n[\n---\n")
    files = policy_files(config, epath.Path(tmp_path), 1, policy, is_adapter=True)
    assert "was not evaluated" in files["README.md"] and "83.3" not in files["README.md"]
    assert "license" not in files["README.md"] and "library_name: peft" in files["README.md"]
    (policy / "README.md").write_text("Mine.")
    save_policy(config, agent.graphdef, agent.params, policy, epath.Path(tmp_path), config.steps)
    update_model_card(config, epath.Path(tmp_path), policy)
    assert (policy / "README.md").read_text() == "Mine."


@needs_words
def test_the_flagships_prompt_is_what_its_template_renders(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = write_narrow_model(tmp_path / "base")
    config = config_of("", model)
    files = policy_files(config, epath.Path(tmp_path), 1, epath.Path(tmp_path / "policy"), is_adapter=False)
    prompt = json.loads(files["prompt.json"])
    assert prompt["tools"] == json.loads(json.dumps(TOOL_SCHEMAS)) and prompt["max_turns"] == config.rollout.max_turns
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    Image.fromarray(np.full((512, 384, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    environment, seen = begin(tmp_path, tmp_path / "photo.png", str(model))
    assert environment.config.turn_tokens == config.rollout.turn_tokens == prompt["turn_tokens"]
    messages = [
        {"role": "system", "content": prompt["system"]},
        {
            "role": "user",
            "content": [{"type": "image"}] * prompt["images"] + [{"type": "text", "text": prompt["request"]}],
        },
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(WORDS)
    text = tokenizer.apply_chat_template(messages, tools=prompt["tools"], add_generation_prompt=True, tokenize=False)
    (view,) = seen.views
    pads = "<|image_pad|>" * (view.height * view.width // 32**2)
    assert tokenizer.encode(text.replace("<|image_pad|>", pads), add_special_tokens=False) == seen.token_ids


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["demo", "demo+lora"])
def test_the_example_of_the_card_plays_what_our_own_rollout_plays(variant, agent, queries, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    config = config_of(variant, Path(demo_checkpoint()))
    graphdef, params = agent.graphdef, agent.params
    if config.lora is not None:
        pytest.importorskip("peft")
        model = nnx.merge(graphdef, params)
        add_adapters(model, config.lora, seed=0)
        graphdef, params = nnx.split(model, nnx.Param)
    policy = tmp_path / "policy"
    save_policy(config, graphdef, params, epath.Path(policy), epath.Path(tmp_path), config.steps)
    Image.fromarray(queries[0].images[0]).save(policy / "photo.jpg", quality=95)
    example = re.search(r"```python\n(.*?)```", (policy / "README.md").read_text(), re.DOTALL)[1]
    assert len(example.splitlines()) <= 15 + 2 * (config.lora is not None)
    monkeypatch.chdir(policy)
    names: dict = {}
    exec(example, names)
    query = Query("photographs", "photo.jpg", (load_image("photo.jpg"),), Reference(DEMO_EMOTIONS))
    engine = replace(agent, rollout=config.rollout).engine(queries=1, group_size=1, greedy=True)
    played = engine.run(agent.params, [query], seed=0, step=0)
    ((rollout,),) = played.rollouts
    assert len(rollout.episode.turns) > 1 and names["ids"] == rollout.sequence.tokens
