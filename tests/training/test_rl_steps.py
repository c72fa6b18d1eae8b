"""A step of reinforcement learning piece by piece: who decided where, what failed, and what reinforces which row."""

import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import models_fixtures as fixtures
import numpy as np
import optax
import pytest
from flax import nnx

from actfer_jax.agent.chat import Chat
from actfer_jax.agent.episode import Episode, Reference, Reply, Sample
from actfer_jax.data.sources import Unreadable
from actfer_jax.errors import HostFailure
from actfer_jax.faces.images import ImageError
from actfer_jax.models import Qwen3VLConfig, demo_checkpoint
from actfer_jax.parallel import hosts
from actfer_jax.parallel.sharding import ONE_DEVICE
from actfer_jax.rl.estimators import ucgrpo
from actfer_jax.rl.loss import LossConfig
from actfer_jax.rollout import exchange as exchanging
from actfer_jax.rollout.batch import Patches, ViewSlots
from actfer_jax.rollout.batch import Sequence as TokenSequence
from actfer_jax.rollout.engine import Query, Rollout, RolloutConfig
from actfer_jax.rollout.exchange import Failure, exchange
from actfer_jax.training import rl_steps, update
from actfer_jax.training.canary import make_canary
from actfer_jax.training.config import BatchConfig, read_train_config
from actfer_jax.training.metrics import forced_metrics
from configs import ucgrpo as ucgrpo_run

IMAGE = np.zeros((8, 8, 3), np.uint8)
LABELS = ("Angry", "fear")
THOUGHT = "<think>the <aus> will be AU4</think>"
ANSWER = "<aus>AU4</aus><answer>anger</answer>"
ZOOM = '<think></think><tool_call>{"name": "zoom", "arguments": {"region": "mouth"}}</tool_call>'
LOOKED = Reply("mouth of face 0", ok=True, tool="zoom", region="mouth", inspects=True)
MISSED = replace(LOOKED, inspects=False)
REFUSED = Reply("no face found", ok=False, tool="zoom")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.from_pretrained(demo_checkpoint())


def played(
    chat: Chat,
    *texts: str,
    replies: tuple[Reply, ...] = (),
    emotion: str = "anger",
    forced: str = "",
    failure: str = "",
) -> Rollout:
    """An episode with its tokens: a prompt, the turns, and after each but the last a reply."""
    episode = Episode.from_texts(*texts, replies=replies)
    episode.forced = forced
    tokens, loss_mask = [1, 2, 3], [False] * 3
    for number, text in enumerate(texts):
        turn = [*chat.tokenizer.encode(text, add_special_tokens=False), chat.turn_end_id]
        reply = [4, 5] if number + 1 < len(texts) else []
        tokens += turn + reply
        loss_mask += [True] * len(turn) + [False] * len(reply)
    query = Query("faces", "one", (IMAGE,), Reference(LABELS, emotion, frozenset({4})))
    log_probs = np.zeros(len(tokens), np.float32)
    return Rollout(query, episode, [], TokenSequence(tokens, loss_mask, []), log_probs, log_probs, failure=failure)


@pytest.mark.parametrize(
    ("turns", "replies", "field"),
    [
        ((THOUGHT + ANSWER,), (), "<aus>"),
        ((THOUGHT + "<aus>AU4",), (), "<aus>"),  # cut
        ((THOUGHT + "<answer>anger</answer>",), (), "<answer>"),
        ((THOUGHT + "so: " + ANSWER + "<answer>fear</answer>",), (), "<aus>"),
        ((ANSWER,), (), "<aus>"),
        ((ZOOM, THOUGHT + ANSWER), (MISSED,), "<aus>"),
        ((ZOOM, THOUGHT + ANSWER), (REFUSED,), "<aus>"),
    ],
)
def test_a_rollout_that_does_not_look_decides_with_the_first_token_of_its_answer(chat, turns, replies, field):
    rollout = played(chat, *turns, replies=replies)
    end = rl_steps._decision_end(chat, rollout)
    loss_mask = rollout.sequence.loss_mask
    start = max(i for i in range(1, len(loss_mask)) if loss_mask[i] and not loss_mask[i - 1])  # of the last turn
    before, through = (chat.turn_text(rollout.sequence.tokens[start : end + more]) for more in (0, 1))
    place = turns[-1].index(field, turns[-1].find("</think>") + 1)
    assert len(before) <= place < len(through)


def test_a_rollout_that_looks_decides_with_the_end_of_that_call(chat):
    rollout = played(chat, ZOOM, ZOOM, ZOOM, THOUGHT + ANSWER, replies=(MISSED, LOOKED, LOOKED))
    end = rl_steps._decision_end(chat, rollout)
    turn_ends = [i for i, token in enumerate(rollout.sequence.tokens) if token == chat.turn_end_id]
    assert end == turn_ends[1]


@pytest.mark.parametrize(
    ("turns", "replies"),
    [
        ((THOUGHT,), ()),
        (("<think>never closed " + ANSWER,), ()),
        (("nonsense",), ()),
        ((ZOOM, "<think></think>"), (MISSED,)),
        ((ZOOM,), (REFUSED,)),
        (("<think></think><tool_call>no JSON</tool_call>",), ()),
    ],
)
def test_a_rollout_that_fails_before_it_looks_or_answers_has_not_decided(chat, turns, replies):
    assert rl_steps._decision_end(chat, played(chat, *turns, replies=replies)) is None


def test_what_an_estimator_reads_of_a_step(chat):
    rollouts = [
        [
            played(chat, ZOOM, ZOOM, THOUGHT + ANSWER, replies=(LOOKED, LOOKED), forced="zoom"),
            played(chat, THOUGHT + ANSWER, forced="answer"),
            played(chat, THOUGHT + "<aus>AU4"),
        ],
        [
            played(chat, ZOOM, THOUGHT + ANSWER, replies=(LOOKED,), emotion="joy"),
            played(chat, THOUGHT, emotion="joy"),
            played(chat, *[ZOOM] * 7, replies=(LOOKED,) * 7, emotion="joy", failure="the disk"),
        ],
    ]
    asked = [["zoom", "answer", "zoom"], ["", "", ""]]
    sampled = rl_steps.Sampled(rollouts, asked, {})
    scores = [
        [
            {"total": 10 * q + g, "task": 5.0, "format": float(g < 2 and q + g < 2), "emotion": float(g != 1)}
            for g in range(3)
        ]
        for q in (0, 1)
    ]
    groups = rl_steps.make_groups(sampled, scores, LABELS, chat, zoom_price=0.1)
    expected = {
        "reward_BxG": [[0, 1, 2], [10, 11, 12]],
        "valid_BxG": [[1, 1, 1], [1, 1, 0]],
        "formatted_BxG": [[1, 1, 0], [1, 0, 0]],
        "right_BxG": [[1, 0, 0], [1, 0, 0]],
        "decided_BxG": [[1, 1, 1], [1, 0, 1]],
        "inspected_BxG": [[1, 0, 0], [1, 0, 1]],
        "calls_BxG": [[2, 0, 0], [1, 0, 7]],
        "emotion_B": [0, -1],  # in the data set's spelling, and none of its labels
        "assigned_BxG": [[1, -1, 0], [0, 0, 0]],  # what was instructed, not what was to be
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(groups, name), values, err_msg=name)
    assert groups.decision_end_BxG[1, 1] == len(rollouts[1][1].sequence.tokens) - 1
    assert groups.look_cost == pytest.approx(0.1 * (2 + 1) / 2)  # the one that failed is left out
    assert forced_metrics(sampled.rows, asked) == {"uc/forced_dropped": pytest.approx(1 / 3)}
    assert forced_metrics(sampled.rows, [[""] * 3] * 2) == {}


def test_arms_are_assigned_in_a_share_of_the_groups_two_rollouts_to_each():
    size = BatchConfig(queries=2000, rollouts=6)
    arms = rl_steps.assign_arms(size, 0.25, seed=3, step=7)
    forced = ["zoom", "zoom", "answer", "answer", "", ""]
    assert all(group in (forced, [""] * 6) for group in arms)
    assert arms.count(forced) == pytest.approx(500, abs=4 * 20)
    assert arms == rl_steps.assign_arms(size, 0.25, seed=3, step=7) != rl_steps.assign_arms(size, 0.25, seed=3, step=8)
    assert rl_steps.assign_arms(size, 1.0, 0, 1) == [forced] * 2000
    assert rl_steps.assign_arms(size, 0.0, 0, 1) == [[""] * 6] * 2000


def sample(name: str) -> Sample:
    return Sample("faces", name, (IMAGE,), Reference(LABELS, "fear"))


def test_a_picture_that_one_process_cannot_read_is_left_out_by_all(monkeypatch):
    here = [sample("0"), Unreadable("b.png: damaged"), sample("2"), sample("3")]
    assert rl_steps.readable(here) == ([here[0], here[0], *here[2:]], ["", "b.png: damaged", "", ""])
    elsewhere = ["a.png: no such file", "", "", ""]
    monkeypatch.setattr(hosts, "gather", lambda mine: [mine, elsewhere])
    assert rl_steps.readable(here) == ([here[2]] * 2 + here[2:], [elsewhere[0], "b.png: damaged", "", ""])
    with pytest.raises(ImageError, match="no picture of this step can be read; the first: a.png"):
        rl_steps.readable([sample("0"), *here[1:2] * 3])


def test_a_data_set_with_a_damaged_picture_trains_on_the_others():
    class Faces:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Sample:
            if index == 2:
                raise ImageError("2.png: damaged")
            return sample(str(index))

    def run(weights: object, queries: Sequence[Query], **options: object) -> SimpleNamespace:
        assert options["keep_failed"]
        return SimpleNamespace(rollouts=[[SimpleNamespace(query=q, failure="")] * 1 for q in queries], seconds={})

    # A detector that fails must not end the run either, nor scenes that cannot be made ahead.
    toolbox = SimpleNamespace(faces=lambda *_: 1 / 0)
    engine = SimpleNamespace(toolbox=toolbox, queries=4, sees=lambda place: True, scenes=lambda _: 1 / 0, run=run)
    stop = SimpleNamespace(check=lambda: None)
    draw = rl_steps.make_sample(engine, Faces(), BatchConfig(queries=4, rollouts=1), 0.0, seed=0, start=0, stop=stop)
    for step in (1, 2):
        rows = draw(SimpleNamespace(weights=None), step).rows
        failed = [row for row in rows if row.failure]
        assert [row.failure for row in failed] == ["2.png: damaged"]
        assert {row.query.name for row in rows if not row.failure} == {"0", "1", "3"}


def test_a_failure_is_told_once_and_a_step_of_failures_ends_the_run(caplog):
    check = rl_steps.make_check()
    rows = [
        SimpleNamespace(failure=failure) for failure in ("", "faces/7: OSError: disk", "", "faces/7: OSError: disk")
    ]
    check(rows, 3)
    check(rows, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "step 3: nothing is learned from rollouts that failed: faces/7: OSError: disk"
    ]
    with pytest.raises(HostFailure, match="step 5: 3 of 4 rollouts failed on the host, such as faces/7.*goes on"):
        check([*rows[1:], SimpleNamespace(failure="faces/8: OSError: disk")], 5)


def test_a_tool_that_fails_on_one_process_fails_its_row_on_all(monkeypatch):
    """Rows 0, 1 and 2 belong to process 0, and process 1 needs the pixels of 1 and 2; process 2 needs none."""
    holders, owners = [frozenset({0}), frozenset({0, 1}), frozenset({0, 1})], [0, 0, 0]
    reply = Reply("done", ok=True)
    done = [
        {0: Failure("faces/0: OSError"), 1: (reply, 0.5), 2: (reply, 0.25)},
        {1: Failure("faces/1: OSError"), 2: (reply, 9.0)},
        {},
    ]
    local, barrier, words, found = threading.local(), threading.Barrier(3), [None] * 3, [None] * 3

    def gather(mine: object) -> list[object]:
        words[local.index] = mine
        barrier.wait(timeout=60)
        return list(words)

    def run(index: int) -> None:
        local.index = index
        found[index] = exchange([2, 0, 1], done[index], holders, owners)

    monkeypatch.setattr(exchanging.jax, "process_count", lambda: 3)
    monkeypatch.setattr(exchanging.jax, "process_index", lambda: local.index)
    monkeypatch.setattr(hosts, "gather", gather)
    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [({2: (reply, 0.25)}, {0: done[0][0], 1: done[1][1]})] * 3


class Bigram(nnx.Module):
    """The smallest language model: a token depends on the one before it."""

    def __init__(self, table: np.ndarray):
        self.table = nnx.Param(jnp.asarray(table))


def test_each_row_is_reinforced_by_its_own_advantage(monkeypatch, tmp_path):
    """Rewards to gradient: packing, microbatches and the loss against a loop over rows and tokens, without padding."""
    random = np.random.default_rng(0)
    size = BatchConfig(queries=4, rollouts=3, microbatches=2, length=32, length_buckets=(24,))
    fixtures.write_checkpoint(tmp_path / "model")
    model_config = Qwen3VLConfig.from_json(tmp_path / "model" / "config.json")
    scene = Patches(random.normal(size=(4, fixtures.PATCH_DIM)).astype(np.float32), (1, 2, 2))
    table = random.normal(size=(fixtures.TEXT_TOKENS + 4,) * 2).astype(np.float32)
    log_softmax = table - np.log(np.exp(table).sum(axis=1, keepdims=True))

    def bigram_log_probs(model, batch, **_):
        log_prob = jax.nn.log_softmax(model.table[...])[batch.tokens[:, :-1], batch.tokens[:, 1:]]
        return jnp.pad(log_prob, ((0, 0), (1, 0))), jnp.zeros(batch.tokens.shape)

    monkeypatch.setattr(update, "episode_log_probs", bigram_log_probs)

    def rollout(failure: str = "") -> Rollout:
        length = int(random.integers(8, 23))
        tokens = [
            fixtures.VISION_START,
            fixtures.IMAGE,
            fixtures.VISION_END,
            *random.integers(0, 150, length - 3).tolist(),
        ]
        loss_mask = [False] * 4 + (random.random(length - 4) < 0.6).tolist()
        sampled = np.array([0, *log_softmax[tokens[:-1], tokens[1:]]], np.float32) * loss_mask
        return Rollout(None, None, [], TokenSequence(tokens, loss_mask, [scene]), sampled, sampled, failure=failure)

    rollouts = [[rollout("the disk" if (q, g) == (1, 2) else "") for g in range(3)] for q in range(4)]
    sampled = rl_steps.Sampled(rollouts, [[""] * 3] * 4, {})
    shape = (4, 3)
    reward = random.normal(size=shape).astype(np.float32)
    groups = rl_steps.Groups(
        reward_BxG=reward,
        task_reward_BxG=reward,
        valid_BxG=np.array([[not r.failure for r in group] for group in rollouts]),
        formatted_BxG=np.ones(shape, bool),
        right_BxG=np.ones(shape, bool),
        decided_BxG=random.random(shape) < 0.8,
        inspected_BxG=random.random(shape) < 0.5,
        calls_BxG=np.zeros(shape, np.int32),
        emotion_B=np.zeros(4, np.int32),
        assigned_BxG=np.zeros(shape, np.int32),
        decision_end_BxG=random.integers(4, 12, shape).astype(np.int32),
        look_cost=0.03,
    )
    estimator_config = ucgrpo.Config(credit="decision")
    result, _ = ucgrpo.advantages(groups, ucgrpo.init_state(1), config=estimator_config, step=1)
    assert np.asarray(result.between).any(axis=1).sum() > 1

    graphdef, params = nnx.split(Bigram(table), nnx.Param)
    # With a rate of 1, the parameters move by the gradient of the loss.
    optimizer = optax.sgd(1.0)
    agent = SimpleNamespace(meshes=ONE_DEVICE, model_config=model_config, graphdef=graphdef, params=params)
    limits = RolloutConfig(prompt_tokens=4, max_turns=2, turn_tokens=12, reply_tokens=4, max_length=33)
    engine = SimpleNamespace(
        programs=SimpleNamespace(banned_V=None), slots=ViewSlots(scene=8, view=4, views=1), config=limits
    )
    config = SimpleNamespace(
        batch=size,
        rollout=SimpleNamespace(temperature=1.0),
        loss=LossConfig(),
        estimator=estimator_config,
        dropout_seed=None,
    )
    pack = rl_steps.make_pack(size, engine, agent.meshes.update, agent.model_config)
    update_step = rl_steps.make_update(config, agent, engine, optimizer, ucgrpo, pack, None)
    after = update_step(update.init_train_state(params, optimizer), sampled, groups, result)
    moved = np.asarray(after.state.params["table"][...]) - table

    expected, total = np.zeros_like(table, np.float64), 0
    for q, group in enumerate(rollouts):
        for g, one in enumerate(group):
            for t in range(len(one.sequence.tokens)):
                if one.failure or not one.sequence.loss_mask[t]:
                    continue
                before, token = one.sequence.tokens[t - 1], one.sequence.tokens[t]
                advantage = float(result.within[q, g])
                if t <= groups.decision_end_BxG[q, g]:
                    advantage += float(result.between[q, g])
                expected[before] -= advantage * np.exp(log_softmax[before])
                expected[before, token] += advantage
                total += 1
    np.testing.assert_allclose(moved, expected / total, atol=2e-6)
    assert np.abs(expected / total).max() > 0.01
    assert float(after.metrics["mismatch/logp_abs_diff_max"]) < 1e-5


def test_the_canary_replays_episodes_with_the_arms_that_they_were_to_have(agent):
    """Whether an arm is instructed depends on the room: where it was left out, the replay must leave it out again."""

    class Replayed(Exception):
        pass

    def run(params, queries, *, forced, **options):
        raise Replayed(forced)

    config = read_train_config(ucgrpo_run.get_config("demo"))
    left_out = SimpleNamespace(sequence=TokenSequence([], [], []), query=None, episode=Episode(forced=""))
    canary = make_canary(config, agent, SimpleNamespace(run=run), None, None, SimpleNamespace(check=None))
    with pytest.raises(Replayed, match=re.escape("[['zoom', 'answer']]")):
        canary(1, agent.params, [[left_out, left_out]], [["zoom", "answer"]])
