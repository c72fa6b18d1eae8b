"""Rollouts against things that share none of their machinery: the trainer, other schedules, a plain loop, PyTorch."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from replay import replayed

from actfer_jax.agent import prompts
from actfer_jax.agent.episode import Reply
from actfer_jax.agent.parser import parse_turn
from actfer_jax.episodes.record import to_record
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.models import demo_checkpoint, logits, save_pretrained
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.batch import Sequence, episode_log_probs, longest_row, make_batch
from actfer_jax.rollout.encoder import ViewEncoder
from actfer_jax.rollout.engine import Query, Rollout, RolloutConfig, RolloutEngine, RolloutResult
from actfer_jax.training.canary import after_crops

GROUP = 3
SEED = 5


def make_engine(
    agent: Agent, *, queries: int, group_size: int = GROUP, greedy: bool = False, **changes: int
) -> RolloutEngine:
    return dataclasses.replace(agent, rollout=dataclasses.replace(agent.rollout, **changes)).engine(
        queries=queries, group_size=group_size, greedy=greedy
    )


@pytest.fixture(scope="module")
def engine(agent) -> RolloutEngine:
    return make_engine(agent, queries=4)


@pytest.fixture(scope="module")
def greedy(agent) -> RolloutEngine:
    return make_engine(agent, queries=4, group_size=1, greedy=True)


@pytest.fixture(scope="module")
def result(agent, engine, queries) -> RolloutResult:
    return engine.run(agent.params, queries[:4], seed=SEED, step=1)


def tokens_of(result: RolloutResult) -> list[list[list[int]]]:
    return [[rollout.sequence.tokens for rollout in group] for group in result.rollouts]


@pytest.mark.slow
def test_episodes_are_what_they_are_meant_to_be(agent, result):
    """Several turns with pictures: every turn stands in the ids as read, every picture has its placeholders."""
    flat = [rollout for group in result.rollouts for rollout in group]
    assert max(len(rollout.episode.turns) for rollout in flat) >= 3
    assert any(len(rollout.views) >= 3 for rollout in flat)
    for rollout in flat:
        prompt = prompts.make_prompt(agent.rollout.prompt_style, rollout.query.reference.labels)
        opening = agent.chat.prompt_ids(prompt, [agent.encoder.tokens(rollout.views[0])])
        assert rollout.sequence.tokens[: len(opening)] == opening
        text = agent.chat.tokenizer.decode(rollout.sequence.tokens)
        for turn in rollout.episode.turns:
            assert turn.text + ("" if turn.truncated else "<|im_end|>") in text
        # One placeholder a picture token, in the order of the views.
        patches = sum(grid[0] * grid[1] * grid[2] for _, grid in rollout.sequence.views)
        assert rollout.sequence.tokens.count(agent.chat.image_pad_id) == patches // 4


def test_told_tokens_are_taken_and_grey_crops_change_only_what_follows_them(agent, engine, queries, result):
    """The same episodes once more, then with grey views: as the trainer sees them with grey pictures of its own."""
    flat = [rollout for group in result.rollouts for rollout in group]
    told = {"seed": SEED + 1, "step": 9, "tokens": tokens_of(result)}
    again = engine.run(agent.params, queries[:4], **told)
    for rollout, expected in zip((r for group in again.rollouts for r in group), flat, strict=True):
        assert rollout.sequence.tokens == expected.sequence.tokens
        np.testing.assert_array_equal(rollout.log_probs, expected.log_probs)
    grey = [
        r for group in engine.run(agent.params, queries[:4], **told, treatment="blank_views").rollouts for r in group
    ]
    assert engine.programs.decode._cache_size() == engine.programs.fill._cache_size() == 1

    def all_grey(sequence: Sequence) -> Sequence:
        crops = [
            agent.encoder(np.full((rows * 16, columns * 16, 3), 128, np.uint8))
            for _, (_, rows, columns) in sequence.views[1:]
        ]
        return dataclasses.replace(sequence, views=[sequence.views[0], *crops])

    @jax.jit
    def log_probs(params, batch):
        model = nnx.merge(agent.graphdef, params)
        banned = engine.programs.banned_V
        return episode_log_probs(model, batch, temperature=agent.rollout.temperature, banned_V=banned, chunk=256)[0]

    sequences = [all_grey(rollout.sequence) for rollout in flat]
    batch = make_batch(sequences, GROUP, agent.rollout.max_length, engine.slots, agent.model_config)
    changed = 0
    for rollout, before, trained in zip(grey, flat, np.asarray(log_probs(agent.params, batch)), strict=True):
        assert rollout.sequence.tokens == before.sequence.tokens
        policy = np.array(rollout.sequence.loss_mask)
        np.testing.assert_allclose(rollout.log_probs[policy], trained[: policy.size][policy], atol=1e-4)
        after = after_crops(before.sequence, agent.model_config)
        # The turns after the first whose reply has a view: spans of sampled tokens, as the episode tells them.
        spans = np.cumsum(np.diff(np.concatenate([[0], policy])) == 1) * policy
        first = next((n for n, turn in enumerate(before.episode.turns, 1) if turn.reply and turn.reply.view), 99)
        np.testing.assert_array_equal(after, spans > first)
        np.testing.assert_array_equal(rollout.log_probs[policy & ~after], before.log_probs[policy & ~after])
        changed += np.any(rollout.log_probs[after] != before.log_probs[after])
    assert changed > 3


def test_only_sampled_tokens_are_trained_on(agent, result):
    for group in result.rollouts:
        for rollout in group:
            policy = np.array(rollout.sequence.loss_mask)
            written = [token for token, chosen in zip(rollout.sequence.tokens, policy, strict=True) if chosen]
            turns = "".join(turn.text + ("" if turn.truncated else "<|im_end|>") for turn in rollout.episode.turns)
            assert agent.chat.tokenizer.decode(written) == turns
            assert (rollout.log_probs[~policy] == 0).all() and (rollout.log_probs[policy] < 0).any()


def test_a_tool_that_fails_ends_its_rollout_alone(agent, engine, queries, result, monkeypatch):
    execute = agent.toolbox.execute

    def broken(*arguments, key, **options):
        if key == queries[1].key:
            raise OSError("the disk is gone")
        return execute(*arguments, key=key, **options)

    monkeypatch.setattr(agent.toolbox, "execute", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        engine.run(agent.params, queries[:4], seed=SEED, step=1)
    rollouts = engine.run(agent.params, queries[:4], seed=SEED, step=1, keep_failed=True).rollouts
    for q, (group, before) in enumerate(zip(rollouts, result.rollouts, strict=True)):
        for rollout, whole in zip(group, before, strict=True):
            called = whole.episode.turns[0].parsed.calls and q == 1
            assert rollout.failure == called * "synth_faces/validation/1: OSError: the disk is gone"
            count = len(rollout.sequence.tokens)
            assert rollout.sequence.tokens == whole.sequence.tokens[:count]
            assert (count < len(whole.sequence.tokens)) == called
    assert any(rollout.failure for rollout in rollouts[1])


def test_the_sampler_and_the_trainer_agree(agent, engine, result):
    """Log-probabilities of one full forward pass over the finished episodes, against those of cached decoding."""
    flat = [rollout for group in result.rollouts for rollout in group]
    rows, prefix = [rollout.sequence for rollout in flat], agent.rollout.prompt_tokens
    length = longest_row(rows, GROUP, prefix)
    batch = make_batch(rows, GROUP, length, engine.slots, agent.model_config, prefix=prefix)
    assert (batch.suffix_index[:, 0] > 10).all()  # tokens of the prompt are computed once for a group

    @jax.jit
    def log_probs(params, batch, banned):
        model = nnx.merge(agent.graphdef, params)
        return episode_log_probs(model, batch, temperature=agent.rollout.temperature, banned_V=banned, chunk=256)[0]

    banned = engine.programs.banned_V
    sampled, raw = (np.asarray(log_probs(agent.params, batch, mask)) for mask in (banned, jnp.zeros_like(banned)))
    for row, rollout in enumerate(flat):
        policy = np.array(rollout.sequence.loss_mask)
        np.testing.assert_allclose(sampled[row, : policy.size][policy], rollout.log_probs[policy], atol=1e-4)
        np.testing.assert_allclose(raw[row, : policy.size][policy], rollout.raw_log_probs[policy], atol=1e-4)


@pytest.mark.parametrize("changes", [{"chunk": 5, "fill_rows": 2}, {"chunk": 32, "fill_rows": 12, "tool_threads": 1}])
@pytest.mark.slow
def test_the_schedule_does_not_change_the_tokens(agent, queries, result, changes):
    other = make_engine(agent, queries=4, **changes).run(agent.params, queries[:4], seed=SEED, step=1)
    assert tokens_of(other) == tokens_of(result)


def test_company_does_not_change_the_tokens(agent, queries, result):
    """The same queries in another order, in a larger batch, among others."""
    mixed = [queries[7], queries[2], queries[5], queries[0], queries[3], queries[1]]
    other = make_engine(agent, queries=8).run(agent.params, mixed, seed=SEED, step=1)
    expected = tokens_of(result)
    for query, tokens in zip(mixed, tokens_of(other), strict=True):
        if query.index < 4:
            assert tokens == expected[query.index]


def test_a_step_or_a_seed_of_its_own_gives_other_episodes(agent, engine, queries, result):
    assert tokens_of(engine.run(agent.params, queries[:4], seed=SEED, step=2)) != tokens_of(result)
    assert tokens_of(engine.run(agent.params, queries[:4], seed=SEED + 1, step=1)) != tokens_of(result)
    assert tokens_of(engine.run(agent.params, queries[:4], seed=SEED, step=1)) == tokens_of(result)


def test_equal_views_are_encoded_once(agent, result):
    """The rollouts of a group look at the same face: what they hold of a view is one array, and its own."""
    arrays: dict[tuple, set[int]] = {}
    crops = 0
    for rollout in (rollout for group in result.rollouts for rollout in group):
        for view, patches in zip(rollout.views, rollout.sequence.views, strict=True):
            np.testing.assert_array_equal(patches.values, agent.encoder(view.pixels).values)
            arrays.setdefault((view.pixels.shape, view.pixels.tobytes()), set()).add(id(patches.values))
        crops += len(rollout.views) - 1
    assert all(len(ids) == 1 for ids in arrays.values())
    assert len(arrays) - len(result.rollouts) < crops


def test_threads_encode_each_view_once_and_tell_what_fails(agent, engine, queries, result, monkeypatch):
    """However many threads meet the same view; and scenes that were made ahead are not made again."""
    shown = {view.digest for group in result.rollouts for rollout in group for view in rollout.views}
    encoded, encode = [], ViewEncoder.__call__

    def counted(self, pixels):
        encoded.append(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(ViewEncoder, "__call__", counted)
    ahead = [dataclasses.replace(query, scenes=engine.scenes(query)) for query in queries[:4]]
    again = engine.run(agent.params, ahead, seed=SEED, step=1)
    assert tokens_of(again) == tokens_of(result) and len(encoded) == len(shown)

    def broken(self, pixels):
        if pixels.shape[:2] == (agent.toolbox.view_config.aligned_side,) * 2:
            raise ValueError("the processor is not ours")
        return encode(self, pixels)

    # It is no tool that fails: this ends a run, whatever becomes of failed rollouts.
    monkeypatch.setattr(ViewEncoder, "__call__", broken)
    with pytest.raises(ValueError, match="the processor is not ours"):
        engine.run(agent.params, queries[:4], seed=SEED, step=1, keep_failed=True)


def disturbed(params: nnx.State, amount: float, seed: int) -> nnx.State:
    """Parameters with normal noise of `amount` times their own deviation."""
    rng = np.random.default_rng(seed)

    def add_noise(x: jax.Array) -> jax.Array:
        noise = amount * float(np.std(np.asarray(x))) * rng.standard_normal(x.shape)
        return jax.device_put(np.asarray(x) + noise.astype(x.dtype))

    return jax.tree.map(add_noise, params)


@pytest.mark.slow
def test_nothing_compiles_after_the_first_step(agent, engine, queries, result):
    """Fifty steps of different pictures, arms and batch fills, with a policy whose behaviour is made to vary."""
    compiled = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for step in range(50):
            count = 1 + step % 4
            forced = [[("", "zoom", "answer")[(step + g) % 3] for g in range(GROUP)] for _ in range(count)]
            batch = [queries[(step + i) % 8] for i in range(count)]
            # Noise on the parameters makes malformed, truncated and endless episodes too.
            params = disturbed(agent.params, 0.1 * (step % 5), step)
            before = len(compiled)
            engine.run(params, batch, seed=step, step=step, forced=forced)
            assert step == 0 or len(compiled) == before, f"step {step} compiled a program"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def plain_episode(agent: Agent, query: Query, rollout: int, *, step: int, arm: str) -> list[int]:
    """One episode, each token by an eager forward pass over everything so far: no jit, no cache, no batch, no slots."""
    config, chat = agent.rollout, agent.chat
    model = nnx.merge(agent.graphdef, agent.params)
    key = jax.random.key(SEED, impl="threefry2x32")
    for number in (step, query.index, rollout):
        key = jax.random.fold_in(key, number)
    views = [agent.toolbox.scene(query.images[0])]
    pictures = [agent.encoder(views[0].pixels)]
    prompt = prompts.make_prompt(config.prompt_style, query.reference.labels)
    tokens = chat.prompt_ids(prompt, [agent.encoder.tokens(views[0])])
    banned = chat.banned(agent.model_config.text.vocab_size)
    final, turns = False, 0
    while True:
        start = len(tokens)
        while True:
            # Padded, since for every new shape every operation is compiled.
            ids = np.zeros((1, config.max_length), np.int32)
            ids[0, : len(tokens)] = tokens
            mask = (np.arange(config.max_length) < len(tokens))[None].astype(np.int32)
            pixels = np.concatenate([patches for patches, _ in pictures])
            grids = np.array([grid for _, grid in pictures])
            with jax.disable_jit():
                row = np.asarray(logits(model, ids, mask, pixels, grids))[0, len(tokens) - 1]
                gumbel = np.asarray(jax.random.gumbel(jax.random.fold_in(key, len(tokens)), row.shape))
            tokens.append(int(np.argmax(np.where(banned, -np.inf, row / config.temperature) + gumbel)))
            if tokens[-1] == chat.turn_end_id or len(tokens) - start == config.turn_tokens:
                break
        turns += 1
        turn = parse_turn(chat.turn_text(tokens[start:]))
        if not turn.calls or final:
            return tokens
        reply = agent.toolbox.execute(turn.call, turn.error, images=[query.images[0]], key=query.key, views=views)
        told = arm if reply.ok and reply.tool == "align_face" else ""
        if tokens[-1] != chat.turn_end_id:
            tokens.append(chat.turn_end_id)
        picture_tokens = None
        if reply.view is not None:
            views.append(reply.view)
            pictures.append(agent.encoder(reply.view.pixels))
            picture_tokens = agent.encoder.tokens(views[-1])
        instruction = {"zoom": prompts.ZOOM_FIRST, "answer": prompts.ANSWER_NOW, "": ""}[told]
        ids = chat.reply_ids(f"{reply.text} {instruction}".rstrip(), picture_tokens)
        room = config.max_length - len(tokens) - len(ids)
        if turns + 1 >= config.max_turns or room < 2 * config.turn_tokens + 1 + config.reply_tokens:
            final, ids = True, chat.reply_ids(f"{reply.text} {prompts.ANSWER_NOW}", picture_tokens)
        final = final or told == "answer"
        tokens += ids


ARMS = ("zoom", "answer", "")


@pytest.fixture(scope="module")
def instructed(agent, engine, queries) -> RolloutResult:
    return engine.run(agent.params, queries[:4], seed=SEED, step=3, forced=[list(ARMS)] * 4)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.slow
def test_a_plain_loop_plays_the_same_episodes(agent, queries, instructed, arm):
    """One episode of each arm in which the face was aligned, so that the arm is told, and zoomed into if it may be."""
    number = ARMS.index(arm)
    rollouts = [group[number] for group in instructed.rollouts]
    chosen = next(r for r in rollouts if aligned_reply(r) and bool(r.episode.zooms) == (arm != "answer"))
    assert plain_episode(agent, chosen.query, number, step=3, arm=arm) == chosen.sequence.tokens


def aligned_reply(rollout: Rollout) -> Reply | None:
    """The first reply that shows the aligned face."""
    replies = (reply for reply in rollout.episode.replies if reply.ok and reply.tool == "align_face")
    return next(replies, None)


def test_instructed_arms_are_told_in_the_reply_with_the_aligned_face(agent, instructed):
    seen = dict.fromkeys(ARMS, 0)
    for group in instructed.rollouts:
        for rollout, arm in zip(group, ARMS, strict=True):
            assert rollout.episode.forced == (arm if aligned_reply(rollout) else "")
            text = agent.chat.tokenizer.decode(rollout.sequence.tokens)
            if reply := aligned_reply(rollout):
                told = text.split(reply.text, 1)[1].split("<|vision_start|>", 1)[0].strip()
                assert told == {"zoom": prompts.ZOOM_FIRST, "answer": prompts.ANSWER_NOW, "": ""}[arm]
                seen[arm] += 1
                if arm == "answer":
                    assert not rollout.episode.inspected
    assert all(seen.values())


def test_an_episode_always_has_room_for_an_answer(agent, queries):
    """With the shortest rows allowed, no turn is cut for want of room."""
    config: RolloutConfig = agent.rollout
    shortest = config.prompt_tokens + 2 * config.turn_tokens + 1 + config.reply_tokens
    tight = make_engine(agent, queries=4, max_length=shortest)
    for group in tight.run(agent.params, queries[:4], seed=SEED, step=1).rollouts:
        for rollout in group:
            assert len(rollout.sequence.tokens) <= shortest
            spans = np.diff(np.flatnonzero(np.diff(np.array([0, *rollout.sequence.loss_mask, 0]))))[::2]
            for turn, span in zip(rollout.episode.turns, spans, strict=True):
                assert (
                    turn.truncated == (span == config.turn_tokens and not turn.text.endswith("<|im_end|>"))
                    or span < config.turn_tokens
                )


@pytest.mark.slow
def test_greedy_episodes_do_not_depend_on_the_seed(agent, greedy, queries):
    first, second = (greedy.run(agent.params, queries[:4], seed=seed, step=seed) for seed in (1, 2))
    assert tokens_of(first) == tokens_of(second)


@pytest.mark.slow
def test_the_loop_of_the_benchmark_plays_the_same_episodes(agent, greedy, queries, monkeypatch):
    """Greedy episodes by transformers' PyTorch model, in the batched loop that benchmarks/peers.py compares with."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    peer = importlib.import_module("transformers_peer").Peer(demo_checkpoint(), agent)
    expected = [rollout for (rollout,) in greedy.run(agent.params, queries[:4], seed=SEED, step=1).rollouts]
    assert max(len(rollout.views) for rollout in expected) >= 3
    assert peer.play(queries[:4]) == [rollout.sequence.tokens for rollout in expected]


def test_pytorch_computes_the_log_probabilities_of_a_record(agent, result, tmp_path):
    """From what training leaves alone: records, PNG files and an exported checkpoint, read by transformers."""
    pytest.importorskip("torch")
    model = nnx.merge(agent.graphdef, agent.params)
    model.source = demo_checkpoint()
    save_pretrained(model, tmp_path / "export")
    flat = [rollout for group in result.rollouts for rollout in group]
    EpisodeWriter(tmp_path).write(
        1,
        [
            to_record(rollout, id=str(row), reward=None, advantage=None, trained_on=["synth_faces"])
            for row, rollout in enumerate(flat)
        ],
    )

    records = list(replayed(tmp_path, tmp_path / "export"))
    assert len(records) == len(flat)
    assert max(len(record["turns"]) for record, *_ in records) >= 3
    assert max(len(record["images"]) for record, *_ in records) >= 3
    for record, chosen, expected in records:
        np.testing.assert_allclose(np.array(record["raw_logprobs"])[chosen], expected, atol=1e-3)


HANGS = """
import threading
from actfer_jax import cli
from actfer_jax.evaluation.command import load_policy
from actfer_jax.agent.episode import Reference
from actfer_jax.agent.tools import Toolbox
from actfer_jax.rollout import engine, threads
import numpy as np
threads.TOOL_SECONDS = 0.1
Toolbox.execute = lambda *args, **options: threading.Event().wait()
def main(argv):
    agent, card = load_policy("demo", "float32")
    query = engine.Query("pictures", "grey", (np.full((96, 96, 3), 99, np.uint8),), Reference(labels=card.labels))
    agent.engine(queries=1, group_size=1, greedy=True).run(agent.params, [query], seed=0, step=0)
cli.run(main)
"""


@pytest.mark.slow
def test_a_tool_that_hangs_ends_the_process_with_a_message():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "error: no face tool has returned" in done.stderr, done.stderr[-3000:]
