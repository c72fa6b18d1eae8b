"""Trains and plays a small model on meshes of eight devices and on one; run by test_sharding in a process of its own.

Prints one JSON object: by layout, the losses, gradient norms and norms of every weight after each update, the sampled
tokens, and how the state lies on the devices.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from actfer_jax.agent.episode import Reference
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.agent_loader import Agent, ModelConfig, load_agent
from actfer_jax.data import synth_faces
from actfer_jax.faces.views import ViewConfig
from actfer_jax.models import demo_checkpoint
from actfer_jax.optimizer import OptimizerConfig, make_optimizer
from actfer_jax.rl import ucgrpo
from actfer_jax.rl.loss import LossConfig
from actfer_jax.rollout.batch import make_batch
from actfer_jax.rollout.engine import Query, RolloutConfig, RolloutResult
from actfer_jax.sharding import ONE_DEVICE, MeshConfig, Meshes, make_meshes, shared_rows
from actfer_jax.train_step import PolicyBatch, init_train_state, make_log_probs, make_policy_update, make_sft_update

QUERIES, GROUP, MICROBATCHES, UPDATES = 8, 2, 2, 2


def shallow(directory: Path) -> Path:
    """The shipped model without weights and with half of its layers: on few cores, eight devices are slow."""
    shutil.copytree(demo_checkpoint(), directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = config["vision_config"]["depth"] = 2
    config["vision_config"]["deepstack_visual_indexes"] = [0, 1]
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def load(initialise: str, meshes: Meshes, path: Path | str = "demo") -> Agent:
    card = PolicyCard.load(demo_checkpoint())
    model = ModelConfig(path=str(path), initialise=initialise, dtype="float32", remat="full")
    return load_agent(model, ViewConfig(**card.views), RolloutConfig(**card.rollout), seed=1, meshes=meshes)


def play(agent: Agent) -> RolloutResult:
    queries = []
    for index in range(QUERIES):
        face = synth_faces.face_of("validation", index)
        reference = Reference(labels=synth_faces.DEMO_EMOTIONS, emotion=face.emotion, aus=frozenset(face.aus))
        queries.append(Query(index, "synth_faces", f"validation/{index}", synth_faces.render(face).image, reference))
    return agent.engine(queries=QUERIES, group=GROUP).run(agent.params, queries, seed=5, step=1)


def norms(params: nnx.State) -> dict[str, float]:
    return {
        ".".join(map(str, path)): float(np.linalg.norm(np.asarray(leaf[...], np.float64)))
        for path, leaf in nnx.to_flat_state(params)
    }


def held(tree: Any) -> int:
    """Bytes on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def updates(agent: Agent, result: RolloutResult) -> dict[str, Any]:
    """Supervised and policy updates of freshly initialised weights on the episodes that were played."""
    mesh, config = agent.meshes.update, agent.model_config
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), UPDATES)
    rows = [rollout for group in result.rollouts for rollout in group]
    slots = agent.engine(queries=QUERIES, group=1).slots
    shared = shared_rows(GROUP, len(rows) // MICROBATCHES, mesh)
    episodes = make_batch([row.sequence for row in rows], shared, agent.rollout.max_length, slots, config)
    rng = np.random.default_rng(0)
    reward = rng.random((QUERIES, GROUP)).astype(np.float32)
    inspected = np.array([[rollout.episode.inspected for rollout in group] for group in result.rollouts])
    emotion = np.arange(QUERIES) % 7
    options = {"microbatches": MICROBATCHES, "chunk": 512, "mesh": mesh}
    sampling: dict[str, Any] = {"temperature": 1.0, "banned_V": agent.chat.banned(config.text.vocab_size)}
    outcome: dict[str, Any] = {}

    state = init_train_state(agent.params, optimizer, mesh)
    outcome["held"] = {"params": held(state.params), "optimizer": held(state.opt_state)}
    outcome["whole"] = {"params": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))}
    log_probs = make_log_probs(agent.graphdef, **sampling, **options)
    old = log_probs(state.params, episodes)
    advantage, _ = ucgrpo.advantages(
        reward,
        reward,
        inspected,
        emotion,
        ucgrpo.init_calibration(7),
        config=ucgrpo.UCGRPOConfig(),
        step=1,
    )
    outcome["advantages"] = np.asarray(advantage.advantage).ravel().tolist()
    outcome["log_probs"] = np.asarray(old)[np.asarray(episodes.policy)][:200].tolist()
    token_advantages = ucgrpo.token_advantages(
        advantage, np.full((QUERIES, GROUP), agent.rollout.max_length), episodes.policy, credit="trajectory"
    )
    batch = PolicyBatch(episodes, old, old, token_advantages, old)
    update_policy = make_policy_update(
        agent.graphdef, optimizer, LossConfig(kl=0.1, entropy_bonus=0.01), **sampling, **options
    )
    update_sft = make_sft_update(agent.graphdef, optimizer, **options)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for name, update, data in (("sft", update_sft, episodes), ("rl", update_policy, batch)):
        state = init_train_state(jax.tree.map(lambda x: x.copy(), agent.params), optimizer, mesh)
        steps = []
        for step in range(UPDATES):
            before = len(compiled)
            state, metrics = update(state, data)
            if step == UPDATES - 1:
                outcome[f"{name}_compiled_again"] = len(compiled) > before
            steps.append({key: float(value) for key, value in metrics.items()})
        outcome[name] = {"steps": steps, "norms": norms(state.params)}
        outcome["held"][f"{name}_after"] = held(state.params)
    return outcome


def main() -> None:
    # By layout: the update mesh, the rollout mesh (None: not played), and the order of the devices.
    layouts: dict[str, Any] = json.loads(sys.argv[1])
    alone = load("pretrained", ONE_DEVICE)
    result = play(alone)

    def tokens(result: RolloutResult) -> list[list[int]]:
        return [rollout.sequence.tokens for group in result.rollouts for rollout in group]

    with tempfile.TemporaryDirectory() as directory:
        small = shallow(Path(directory) / "model")
        outcomes = {"one": updates(load("random", ONE_DEVICE, small), result) | {"tokens": tokens(result)}}
        for name, (update, rollout, order) in layouts.items():
            config = MeshConfig(update=tuple(update), rollout=tuple(rollout or update))
            meshes = make_meshes(config, [jax.devices()[index] for index in order])
            outcomes[name] = updates(load("random", meshes, small), result)
            if rollout:
                outcomes[name]["tokens"] = tokens(play(load("pretrained", meshes)))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
