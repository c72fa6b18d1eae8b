"""The rules of an episode, played by hand and by rollouts and traces alike."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
from scripted_episodes import answer, call

from actfer_jax.agent import prompts
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import Environment, check_turn_start
from actfer_jax.agent.episode import Reply
from actfer_jax.config import ConfigError, FieldError
from actfer_jax.rl import rewards
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker


def environment_of(agent, **changes) -> Environment:
    return Environment(replace(agent.rollout, **changes), agent.chat, agent.toolbox, agent.encoder.tokens)


def played(environment: Environment, sample, *texts: str, **options) -> list[int]:
    """The token ids of an episode in which the policy writes these turns, as far as it comes to them."""
    ids, observation = [], environment.reset(sample, **options)
    for text in texts:
        if observation is None:
            break
        turn = environment.chat.tokenizer.encode(text, add_special_tokens=False) + [environment.chat.turn_end_id]
        ids += [*observation.token_ids, *turn]
        assert environment.length == len(ids) - len(turn)
        observation = environment.step(text, len(turn))
    assert environment.done == (observation is None) and environment.length >= len(ids)
    return ids


def test_the_reply_before_the_last_turn_says_to_answer_and_a_call_after_it_is_refused(agent, queries):
    environment = environment_of(agent, max_turns=3, max_length=400)
    ids = played(environment, queries[0], call("align_face"), call("zoom", region="mouth"), call("align_face"))
    text = agent.chat.tokenizer.decode(ids)
    first, second = text.split("</tool_call>")[1:3]
    assert prompts.ANSWER_NOW not in first and prompts.ANSWER_NOW in second
    assert environment.done and len(environment.views) == 3
    assert environment.episode.replies[-1] == Reply(prompts.NO_CALLS_LEFT, ok=False, tool="align_face")


@pytest.mark.parametrize(("arm", "told"), [("zoom", prompts.ZOOM_FIRST), ("answer", prompts.ANSWER_NOW), ("", "")])
def test_an_arm_is_instructed_by_the_reply_with_the_aligned_face(agent, queries, arm, told):
    environment = environment_of(agent, max_turns=5, max_length=600)
    align = call("align_face")
    ids = played(environment, queries[0], call("zoom", region="chin"), align, align, answer("fear"), arm=arm)
    text = agent.chat.tokenizer.decode(ids)
    assert [words in text for words in (prompts.ZOOM_FIRST, prompts.ANSWER_NOW)] == [arm == "zoom", arm == "answer"]
    assert told in text.split("</tool_call>")[2] and environment.done
    assert not told or text.count(told) == 1  # not again by the second


def test_a_row_without_room_for_one_more_call_is_told_to_answer(agent, queries):
    """Room is what the reply leaves: enough for a call, its inserted end, the largest reply and an answer."""
    config = agent.rollout
    needed = config.turn_tokens + 1 + config.reply_tokens + config.turn_tokens
    for truncated in (False, True):
        for spare, told, forced in ((0, prompts.ZOOM_FIRST, "zoom"), (-1, prompts.ANSWER_NOW, "")):
            environment = environment_of(agent, max_turns=9, max_length=400)
            opening = environment.reset(queries[0], arm="zoom")
            reply = agent.chat.reply_ids(f"face 0 aligned, 64x64 {prompts.ZOOM_FIRST}", 4)
            tokens = 400 - len(opening.token_ids) - truncated - len(reply) - needed - spare
            observation = environment.step(call("align_face"), tokens, truncated=truncated)
            text = agent.chat.tokenizer.decode(observation.token_ids)
            assert told in text and (environment.episode.forced, environment.final) == (forced, not forced)


def test_arms_are_given_or_left_out_together_whatever_room_there_is(agent, queries):
    def instructed(arm: str, length: int) -> str:
        environment = environment_of(agent, max_turns=4, max_length=length)
        played(environment, queries[0], call("align_face"), arm=arm)
        return environment.episode.forced

    least = environment_of(agent).config.prompt_tokens + environment_of(agent).config.one_more_call
    given = [(instructed("zoom", length), instructed("answer", length)) for length in range(least, least + 60)]
    assert set(given) == {("", ""), ("zoom", "answer")}


def test_a_policy_with_one_turn_is_asked_to_answer_and_a_call_is_refused(agent, queries):
    config = agent.rollout
    least = config.prompt_tokens + config.turn_tokens
    with pytest.raises(FieldError, match=f"at least {least}, for a prompt and an answer"):
        replace(config, max_turns=1, max_length=least - 1)
    environment = environment_of(agent, max_turns=1, max_length=least)
    opening = environment.reset(queries[0])
    assert prompts.ANSWER_NOW in agent.chat.tokenizer.decode(opening.token_ids)
    assert environment.step(call("align_face"), 20) is None
    assert environment.episode.replies[-1].text == prompts.NO_CALLS_LEFT


def test_words_that_do_not_fit_a_reply_are_cut_off(agent, queries):
    environment = environment_of(agent)
    environment.reset(queries[0])
    environment.end_turn(call("detect_faces"), 10)
    long = "a face at " + "[1, 2, 3, 4] " * 100
    observation = environment.observe(Reply(long, ok=True, tool="detect_faces"), 0.0)
    kept = environment.episode.turns[0].reply.text
    assert long.startswith(kept) and len(kept) > len("a face at")
    assert observation.token_ids == agent.chat.reply_ids(kept, None)
    assert len(observation.token_ids) <= agent.rollout.reply_tokens


def test_a_turn_that_was_cut_is_closed_in_the_reply(agent, queries):
    environment = environment_of(agent)
    environment.reset(queries[0])
    observation = environment.step(call("align_face"), 32, truncated=True)
    assert observation.token_ids[0] == agent.chat.turn_end_id
    assert observation.token_ids[1:] == agent.chat.reply_ids(
        "face 0 aligned, 64x64", agent.encoder.tokens(observation.views[0])
    )


@pytest.fixture
def chat_that_opens(agent):
    """The small tokenizer with a template that opens every turn so."""

    def make(start: str) -> Chat:
        tokenizer = copy.deepcopy(agent.chat.tokenizer)
        before, header, after = tokenizer.chat_template.rpartition("<|im_start|>assistant\n")
        tokenizer.chat_template = before + header + start + after
        return Chat(tokenizer, "a Thinking checkpoint")

    return make


def test_a_template_that_opens_the_thought_is_played(agent, queries, chat_that_opens):
    chat, rules = chat_that_opens("<think>\n"), replace(agent.rollout, max_turns=4, prompt_tokens=40, max_length=400)
    assert agent.chat.turn_start == "" and chat.turn_start == "<think>\n"
    check_turn_start(rules, chat)
    maker = TraceMaker(TraceConfig(), chat, agent.encoder, agent.toolbox, rules)
    plan = Plan(align=True, regions=("mouth",))
    trace = maker.planned(queries[1], plan)
    text = chat.tokenizer.decode(trace.tokens)
    assert text.count("<think>\n") == text.count("<think>") == text.count("</think>") == 3
    policy = chat.tokenizer.decode(np.array(trace.tokens)[trace.loss_mask])
    assert "<think>" not in policy and policy.count("</think>") == 3
    environment = Environment(rules, chat, agent.toolbox, agent.encoder.tokens)
    assert trace.tokens == played(environment, queries[1], *maker.turns(queries[1], plan))
    assert rewards.score(environment.episode, queries[1].reference, rewards.RewardConfig())["format"] == 1
    # What the thought says is no answer.
    words = "the <aus> will be AU4</think>\n<aus>AU4"
    for text, start in ((words, words.rindex("<aus>")), ("the <aus> will be AU4", -1)):
        environment.reset(queries[1])
        environment.end_turn(text, 20)
        assert environment.episode.turns[-1].answer_start == start and environment.episode.decided == (start > 0)


@pytest.mark.parametrize(
    ("start", "format"), [("<think>\n\n</think>\n\n", "actfer"), ("<think>\n", "examples.json_answers")]
)
def test_a_template_that_a_grammar_cannot_follow_is_refused_with_its_tail(agent, chat_that_opens, start, format):
    with pytest.raises(ConfigError, match=f"opens every turn of the policy with {re.escape(repr(start))}"):
        check_turn_start(replace(agent.rollout, format=format), chat_that_opens(start))


def test_episodes_that_were_forked_share_nothing_but_the_prompt(agent, queries):
    first = environment_of(agent)
    first.reset(queries[0])
    other = first.fork("answer")
    other.step(call("align_face"), 20)
    assert (len(first.views), len(other.views)) == (1, 2)
    assert not first.episode.turns and first.episode.forced == "" and other.final and not first.final


def test_a_trace_is_the_episode_that_its_turns_play(agent, queries):
    rules = replace(agent.rollout, max_turns=4, max_length=400)
    maker = TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, rules)
    plan = Plan(align=True, regions=("brows", "mouth"), forced="zoom")
    trace = maker.planned(queries[1], plan)
    environment = Environment(rules, agent.chat, agent.toolbox, agent.encoder.tokens)
    assert trace.tokens == played(environment, queries[1], *maker.turns(queries[1], plan), arm="zoom")
    assert len(trace.views) == 4 == len(environment.views)


def test_a_trace_answers_where_no_room_is_left_for_a_call(agent, queries):
    config = agent.rollout
    least = config.prompt_tokens + 2 * config.turn_tokens + config.reply_tokens + 1
    maker = TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, replace(config, max_length=least))
    trace = maker.planned(queries[1], Plan(align=True, regions=("brows", "mouth")))
    words = agent.chat.tokenizer.decode(np.array(trace.tokens)[trace.loss_mask])
    assert words.count("<tool_call>") == 1 and words.count("<answer>") == 1 and len(trace.tokens) <= least
