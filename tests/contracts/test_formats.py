"""Every answer grammar is what `agent.formats.Format` asks for, and an episode plays in it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actfer_jax import facs, plugins
from actfer_jax.agent import prompts
from actfer_jax.agent.environment import Environment
from actfer_jax.agent.parser import ToolCall
from actfer_jax.config import ConfigError, read_config
from actfer_jax.rl.rewards import RewardConfig, score
from actfer_jax.rollout.engine import RolloutConfig
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker

MEMBERS = [*plugins.names("agent.formats"), "examples.json_answers"]
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=40).map(str.strip)
CALLS = st.builds(ToolCall, WORDS, st.dictionaries(WORDS, st.integers() | WORDS | st.lists(st.integers()), max_size=3))
AUS = st.frozensets(st.sampled_from(sorted(facs.AU_NAMES)))
ANSWERS = st.tuples(AUS | st.none(), WORDS | st.none()).filter(lambda parts: parts != (None, None))


@pytest.fixture(params=MEMBERS)
def grammar(request):
    return plugins.load("agent.formats", request.param)


@pytest.mark.parametrize("name", MEMBERS)
@given(think=WORDS, call=CALLS, answered=ANSWERS)
def test_what_is_written_reads_back(name, think, call, answered):
    grammar = plugins.load("agent.formats", name)
    calling = grammar.parse_turn(grammar.thought_text(think) + grammar.call_text(call))
    assert calling.calls and (calling.think, calling.call) == (think, call)
    thought, answer = grammar.thought_text(think), grammar.answer_text(*answered)
    answering = grammar.parse_turn(thought + answer)
    assert answering.answers and (answering.think, answering.aus, answering.answer) == (think, *answered)
    # An answer begins after the thought, even one that is cut, and not at an answer that is only thought of.
    assert grammar.answer_start(thought + answer) == grammar.answer_start((thought + answer)[:-1]) == len(thought)
    assert grammar.answer_start(grammar.thought_text(think + answer)) == -1


@pytest.mark.parametrize("name", MEMBERS)
@given(text=st.text(max_size=60) | WORDS.map(lambda words: f'{{"think": "{words}", "aus": [4]}}'))
def test_a_turn_of_any_kind_is_read_without_an_error(name, text):
    parsed = plugins.load("agent.formats", name).parse_turn(text)
    assert parsed.well_formed or parsed.error


def test_prompts_name_every_label_and_say_when_to_answer(grammar):
    for style in prompts.STYLES:
        asked, told = (grammar.make_prompt(style, facs.EMOTIONS, answer_now=now) for now in (False, True))
        assert prompts.ANSWER_NOW in told.request and prompts.ANSWER_NOW not in asked.request
        assert told.system == asked.system
    full = grammar.make_prompt("full", facs.EMOTIONS)
    assert all(label in full.request for label in facs.EMOTIONS)


def test_prompts_ask_for_what_they_are_told_to(grammar):
    for style in prompts.STYLES:
        asked = [
            grammar.make_prompt(style, labels, ask_aus=ask_aus)
            for labels, ask_aus in ((facs.EMOTIONS, True), (facs.EMOTIONS, False), ((), True), ((), False))
        ]
        assert len({prompt.request + prompt.system for prompt in asked}) == 3 and asked[2] == asked[3]
        assert "action units" not in asked[1].request
        assert "emotion" not in asked[2].request


@pytest.mark.parametrize("name", MEMBERS)
def test_a_trace_in_a_grammar_plays_as_an_episode_and_is_rewarded(agent, queries, name):
    sizes = {"max_turns": 3, "prompt_tokens": 400, "turn_tokens": 200, "reply_tokens": 100, "max_length": 1400}
    rules = replace(agent.rollout, format=name, **sizes)
    maker = TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, rules)
    plan = Plan(align=True, regions=("mouth",))
    trace = maker.planned(queries[0], plan)
    environment = Environment(rules, agent.chat, agent.toolbox, agent.encoder.tokens)
    environment.reset(queries[0])
    for text in maker.turns(queries[0], plan):
        assert not environment.done
        environment.step(text, len(agent.chat.tokenizer.encode(text, add_special_tokens=False)) + 1)
    assert environment.done and environment.length == len(trace.tokens) and len(trace.views) == 3
    reward = score(environment.episode, queries[0].reference, RewardConfig())
    assert (reward["format"], reward["tool"], reward["au"], reward["emotion"]) == (1, 1, 1, 1)


def test_a_grammar_that_is_not_there_is_named_by_its_key():
    with pytest.raises(
        ConfigError, match=r"^config\.rollout\.format cannot be used: 'actfr' is none of .*did you mean actfer\?"
    ):
        read_config({"format": "actfr"}, RolloutConfig, "config.rollout")
