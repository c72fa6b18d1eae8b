"""Episodes at the flagship's sizes: its words, views and lengths, with a model of small width, against PyTorch."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from etils import epath
from flagship import needs_words, write_narrow_model
from flax import nnx
from PIL import Image
from replay import replayed

from actfer_jax import facs
from actfer_jax.agent.episode import Reference
from actfer_jax.config import read_config
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.models import save_pretrained
from actfer_jax.parallel.hosts import Termination
from actfer_jax.rl.loss import LossConfig
from actfer_jax.rollout.agent import Agent, load_agent
from actfer_jax.rollout.engine import Query, RolloutEngine
from actfer_jax.runs.metrics import read_evaluations
from actfer_jax.training.config import TrainConfig
from actfer_jax.training.evaluations import Evaluations
from actfer_jax.training.optimizer import OptimizerConfig, make_optimizer
from actfer_jax.training.rl_steps import make_pack
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker
from actfer_jax.training.update import PolicyBatch, init_train_state, make_log_probs, make_policy_update, split_batch
from configs import ucgrpo

SIZES = {"48x48": (48, 48), "100x100": (100, 100), "640x480": (640, 480), "4000x3000": (4000, 3000)}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    raw = ucgrpo.get_config()
    raw.model.path = str(write_narrow_model(tmp_path_factory.mktemp("narrow")))
    raw.model.initialise, raw.model.dtype = "random", "float32"
    raw.batch.queries, raw.batch.rollouts, raw.batch.microbatches = 5, 2, 5
    return read_config(raw, TrainConfig, "config")


@pytest.fixture(scope="module")
def agent(config) -> Agent:
    return load_agent(config.model, config.views, config.rollout)


@pytest.fixture(scope="module")
def pictures() -> list[Query]:
    """A face at several sizes, of which the small ones show little else, and a cup of coffee."""
    photograph = Image.fromarray(skimage.data.astronaut())
    images = []
    for name, size in SIZES.items():
        whole = photograph.crop((150, 30, 310, 190)) if max(size) <= 100 else photograph
        images.append((name, np.asarray(whole.resize(size, Image.Resampling.LANCZOS))))
    images.append(("coffee", skimage.data.coffee()))
    known = Reference(facs.EMOTIONS, "happiness", frozenset({6, 12, 25}))
    return [Query("photographs", name, (image,), known, index) for index, (name, image) in enumerate(images)]


def play_by_script(engine: RolloutEngine, scripts: list[list[int]]) -> None:
    """Makes the sampler choose given tokens. All else is its own: programs, caches, log-probabilities."""
    length = max(map(len, scripts))
    script_RxT = jnp.array([row + [0] * (length - len(row)) for row in scripts], jnp.int32)

    def chosen(logits_RxV, keys, length_R, told_R):
        rows = jnp.arange(len(scripts))
        token = script_RxT[rows, jnp.minimum(length_R, length - 1)]

        def log_prob(logits):
            return jax.nn.log_softmax(logits)[rows, token]

        banned_1xV = engine.programs.banned_V[None]
        return token, log_prob(jnp.where(banned_1xV, -jnp.inf, logits_RxV)), log_prob(logits_RxV)

    engine.programs.sample = chosen


@needs_words
@pytest.mark.slow
def test_all_turns_are_played_trained_on_and_replayed_by_pytorch(config, agent, pictures, tmp_path):
    pytest.importorskip("torch")
    maker = TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, agent.rollout)
    plan = Plan(align=True, regions=("mouth", "brows"))
    traces = [maker.planned(query, plan) for query in pictures]
    engine = agent.engine(queries=len(pictures), group_size=1)
    play_by_script(engine, [trace.tokens for trace in traces])
    rollouts = [rollout for (rollout,) in engine.run(agent.params, pictures, seed=0, step=1).rollouts]

    # Four turns where a face is found, and the views as large as Qwen3-VL-4B sees them.
    turns = {rollout.query.name: len(rollout.episode.turns) for rollout in rollouts}
    assert turns["640x480"] == turns["4000x3000"] == 4 and turns["coffee"] == 2
    assert rollouts[3].views[0].height * rollouts[3].views[0].width > 450 * 32 * 32
    for rollout, trace in zip(rollouts, traces, strict=True):
        assert rollout.sequence.tokens == trace.tokens and rollout.sequence.loss_mask == trace.loss_mask

    # Each row twice: the two share their prompt.
    played = [rollout for rollout in rollouts for _ in range(config.batch.rollouts)]
    rows = [rollout.sequence for rollout in played]
    pack = make_pack(config.batch, engine, None, agent.model_config)
    episodes = pack(rows)
    length = episodes.tokens.shape[1]
    assert length < config.batch.length and episodes.prefix == config.rollout.prompt_tokens
    assert episodes.policy_index.shape[1] == min(4 * 192, length - episodes.prefix - 1)
    sampled = np.zeros((len(rows), length), np.float32)
    for r, rollout in enumerate(played):
        sampled[r, : len(rollout.log_probs)] = rollout.log_probs
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 10)
    as_sampled = {
        "temperature": config.rollout.temperature,
        "banned_V": engine.programs.banned_V,
        "chunk": config.batch.chunk,
    }
    update = make_policy_update(agent.graphdef, optimizer, LossConfig(), **as_sampled)
    advantages = np.where(episodes.loss_mask, 1.0, 0.0).astype(np.float32)
    batch = PolicyBatch(episodes, sampled, sampled, advantages, None)
    microbatches = split_batch(batch, config.batch.microbatches)
    params = jax.tree.map(jnp.copy, agent.params)
    state, metrics = update(init_train_state(params, optimizer), microbatches)
    assert metrics["mismatch/logp_abs_diff_max"] < 1e-3 and metrics["policy/grad_norm"] > 0

    model = nnx.merge(agent.graphdef, agent.params)
    model.source = config.model.path
    save_pretrained(model, tmp_path / "export")
    EpisodeWriter(tmp_path).write(
        1, [to_record(r, id=str(n), reward=None, advantage=None, trained_on=()) for n, r in enumerate(rollouts)]
    )
    for row, (record, chosen, expected) in enumerate(replayed(tmp_path, tmp_path / "export")):
        assert record["image"] == pictures[row].name and len(record["images"]) == len(rollouts[row].views)
        np.testing.assert_allclose(np.array(record["raw_logprobs"])[chosen], expected, atol=1e-3)
    assert row == len(rollouts) - 1
    # An update with advantage 1 makes what was written likelier.
    log_probs = make_log_probs(agent.graphdef, **as_sampled)
    after = np.asarray(log_probs(state.weights, jax.tree.map(lambda x: x[:1], microbatches.episodes)))[0]
    written = episodes.loss_mask[:2]
    assert after[written].mean() > sampled[:2][written].mean()


@needs_words
@pytest.mark.slow
def test_an_evaluation_while_training_is_made_once_over_all_starts(config, agent, shared, tmp_path, monkeypatch):
    data = replace(config.evaluation.data, size=2, cache_directory=f"{shared}/data")
    often = replace(config.evaluation, data=data, every=20, size=1, queries=1, controls=())
    config, lease = replace(config, evaluation=often), SimpleNamespace(check=lambda: None)

    def begin() -> Evaluations:
        return Evaluations(config, agent, epath.Path(tmp_path), Termination(), lease)

    evaluations = begin()
    for step in (0, 19, 20, 21):
        evaluations.while_training(step, agent.params)
    runs = read_evaluations(tmp_path)
    assert {name: (run["step"], run["results"]["normal"]["episodes"]) for name, run in runs.items()} == {
        "step 20": (20, 1)
    }
    monkeypatch.setattr(RolloutEngine, "run", None)  # is not called again
    begin().while_training(20, agent.params)
    assert read_evaluations(tmp_path) == runs
