"""Dynamic sampling: other samples take the place of groups that teach nothing, whenever a step is done the same."""

from types import SimpleNamespace

import numpy as np
import pytest

from actfer_jax.agent.chat import Chat
from actfer_jax.agent.episode import Episode, Reference, Sample
from actfer_jax.faces.images import ImageError
from actfer_jax.models import demo_checkpoint
from actfer_jax.parallel.sharding import ONE_DEVICE
from actfer_jax.rollout.batch import Sequence
from actfer_jax.rollout.engine import Query, Rollout
from actfer_jax.training import rl_steps
from actfer_jax.training.config import read_train_config
from actfer_jax.training.state import RunState
from configs.baselines import dapo

QUERIES, ROLLOUTS, REFILLS = 6, 3, 2
LABELS = ("anger", "fear")
ANSWERS = [f"<think></think><aus>AU4</aus><answer>{label}</answer>" for label in LABELS]


class Faces:
    """60 samples; of every fourth, answers differ; the picture of one in ten cannot be read."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Sample:
        if index % 10 == 9:
            raise ImageError(f"{index}.png: damaged")
        image = np.zeros((8, 8, 3), np.uint8)
        return Sample("faces", str(index), (image,), Reference(LABELS, "fear", frozenset({4})))


def contested(query: Query) -> bool:
    return int(query.name) % 4 == 0


@pytest.fixture
def steps_from(monkeypatch):
    """start -> (the steps of a run that goes on there, the queries of each call of its engine)."""
    chat = Chat.from_pretrained(demo_checkpoint())

    def rollout(query: Query, text: str) -> Rollout:
        tokens = [*chat.tokenizer.encode(text, add_special_tokens=False), chat.turn_end_id]
        zeros = np.zeros(len(tokens) + 1, np.float32)
        sequence = Sequence([1, *tokens], [False] + [True] * len(tokens), [])
        return Rollout(query, Episode.from_texts(text), [], sequence, zeros, zeros)

    for name in ("make_pack", "make_log_probs"):
        monkeypatch.setattr(rl_steps, name, lambda *_, **__: None)
    monkeypatch.setattr(rl_steps, "make_canary", lambda *_: lambda *_: {})
    monkeypatch.setattr(
        rl_steps, "make_update", lambda *_: lambda state, *_: rl_steps.Updated(state, {"perf/host_s": 0.0})
    )

    raw = dapo.get_config("demo")
    raw.batch.queries, raw.batch.rollouts, raw.estimator.refills = QUERIES, ROLLOUTS, REFILLS
    config = read_train_config(raw)

    def steps(start: int):
        calls = []

        def run(weights, queries, *, forced, **_):
            calls.append(queries)
            rollouts = [
                [rollout(query, ANSWERS[g == 0 or not contested(query)]) for g in range(ROLLOUTS)] for query in queries
            ]
            return SimpleNamespace(rollouts=rollouts, seconds={"decode": 1.0, "host": 0.0})

        engine = SimpleNamespace(
            run=run,
            queries=QUERIES,
            sees=lambda place: True,
            scenes=lambda sample: (),
            programs=SimpleNamespace(banned_V=None),
            toolbox=SimpleNamespace(faces=lambda *_: ()),
        )
        agent = SimpleNamespace(
            meshes=ONE_DEVICE, chat=chat, graphdef=None, model_config=None, engine=lambda **_: engine
        )
        step_function = rl_steps.rl_steps(config, agent, Faces(), None, start, SimpleNamespace(check=lambda: None))
        return lambda step: step_function(RunState(SimpleNamespace(weights=None), ()), step), calls

    return steps


def names(calls):
    return [[(query.name, query.index, query.answer_now) for query in queries] for queries in calls]


def test_groups_with_equal_rewards_are_sampled_again_and_the_others_stay(steps_from):
    step, calls = steps_from(0)
    refilled = 0
    for number in (1, 2, 3):
        del calls[:]
        output = step(number)
        groups, advantage = output.episodes.rollouts, output.episodes.advantages
        waiting = set(range(QUERIES))
        for k, queries in enumerate(calls):
            assert {q for q, query in enumerate(queries) if not query.answer_now} == waiting
            for q in sorted(waiting):
                assert queries[q].index == k * QUERIES + q
                if contested(queries[q]) and not groups[q][0].failure:
                    # The first with spread is trained on, and stays in its place, where only its sample is seen again.
                    assert groups[q][0].query is queries[q] and advantage[q].any()
                    assert all(later[q].name == queries[q].name for later in calls[k + 1 :])
                    waiting.remove(q)
        first, metrics = calls[0], output.metrics
        assert len(calls) == 1 + REFILLS or not waiting
        assert metrics["refill/batches"] == len(calls) - 1
        assert metrics["refill/left"] == pytest.approx(len(waiting) / QUERIES)
        assert not advantage[sorted(waiting)].any()
        # What is said of the policy is said of the first sample, which nobody chose.
        right = [1 / ROLLOUTS if contested(query) else 1.0 for query in first if int(query.name) % 10 != 9]
        assert metrics["perf/decode_s"] == len(calls)
        if not any(rollout.failure for group in groups for rollout in group) and len(right) == QUERIES:
            assert metrics["reward/emotion"] == pytest.approx(np.mean(right))
        refilled += len(calls) - 1
    assert refilled > 2


def test_a_step_samples_the_same_whenever_it_is_done(steps_from):
    step, calls = steps_from(0)
    step(1)
    del calls[:]
    step(2)
    again, others = steps_from(1)
    again(2)
    assert names(calls) == names(others) and len(calls) > 1
    # Neither the samples of another step nor those of another refill.
    anew = [[name for name, _, now in queries if not now] for queries in names(calls)]
    assert anew[1] != anew[0] and len(anew) == len({tuple(some) for some in anew})


def test_groups_that_teach_nothing():
    reward = np.array([[1, 1, 1], [0, 1, 1], [0, 1, 1], [1000, 1000, 1000], [0, 1, 0]], np.float32)
    valid = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
    groups = SimpleNamespace(reward_BxG=reward, valid_BxG=valid)
    np.testing.assert_array_equal(rl_steps.equal_rewards(groups), [True, False, True, True, True])
    groups = SimpleNamespace(reward_BxG=reward, valid_BxG=valid & (np.arange(3) == 1))
    assert rl_steps.equal_rewards(groups).all()  # one rollout has nothing to be compared with
