"""Traces in a file: replayed to the token, refused by name where they do not fit, and sampled from a policy."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from scripted_episodes import answer, call, play

from actfer_jax import cli, facs
from actfer_jax import traces as door
from actfer_jax.agent.chat import IMAGE_PAD
from actfer_jax.agent.episode import Episode, Reference, Reply, Sample
from actfer_jax.config import read_config
from actfer_jax.data.sources import DataError, open_source
from actfer_jax.outputs import OutputError
from actfer_jax.rollout.agent import Agent
from actfer_jax.rollout.engine import Query, RolloutResult
from actfer_jax.training import rejection
from actfer_jax.training.config import TrainConfig, read_train_config
from actfer_jax.training.recorded import Trace, TracedSample, TracedSamples, read_traces, to_line
from actfer_jax.training.rejection import SamplingConfig, is_kept
from actfer_jax.training.sft_steps import _trace_rows
from actfer_jax.training.traces import Plan, TraceConfig, TraceMaker
from configs import sft

ROOT = Path(__file__).parents[2]
LOOK = '<think>Find the face.</think>\n<tool_call>\n{"name": "align_face", "arguments": {}}\n</tool_call>'
ZOOM = '<think>x</think>\n<tool_call>\n{"name": "zoom", "arguments": {"region": "mouth"}}\n</tool_call>'
ANSWER = "<think>mouth: none</think>\n<aus>none</aus>\n<answer>neutral</answer>"


@pytest.fixture(scope="module")
def maker(agent) -> TraceMaker:
    rules = replace(agent.rollout, max_turns=4, max_length=224)
    return TraceMaker(TraceConfig(), agent.chat, agent.encoder, agent.toolbox, rules)


def made_with(maker: TraceMaker, **changes: Any) -> TraceMaker:
    return TraceMaker(replace(maker.config, **changes), maker.chat, maker.encoder, maker.toolbox, maker.rules)


def told(sample: Sample, *turns: str) -> TracedSample:
    return TracedSample(sample.dataset, sample.name, sample.images, sample.reference, turns)


@pytest.mark.parametrize("regions", [(), ("mouth",), ("brows", "chin")])
def test_recorded_turns_are_the_episode_that_they_were(maker, queries, regions):
    plan = Plan(align=True, regions=regions)
    first, again = maker.planned(queries[4], plan), maker.recorded(told(queries[4], *maker.turns(queries[4], plan)))
    assert first.tokens == again.tokens and first.loss_mask == again.loss_mask
    for one, other in zip(first.views, again.views, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([LOOK, ZOOM], "its 2 turns do not end in an answer"),
        ([LOOK, ANSWER, ANSWER], "it has 3 turns, of which 2 are played"),
        ([LOOK, ZOOM.replace("mouth", "ear"), ANSWER], "a call fails ("),
        ([LOOK, ZOOM, ZOOM, ZOOM, ANSWER], "a call fails ("),
        ([LOOK, ANSWER.replace("neutral", "awe")], "it does not end as was asked for, but with "),
        ([LOOK, "no form at all"], "it does not end as was asked for, but with 'no form at all'"),
        ([LOOK, f"<think>{IMAGE_PAD}</think>{ANSWER}"], "turn 2 has the token <|image_pad|>"),
        ([LOOK, ANSWER.replace("mouth", "mouth " * 40)], "turn 2 has "),
    ],
)
def test_turns_that_no_longer_fit_are_refused(maker, queries, turns, problem):
    with pytest.raises(DataError) as raised:
        maker.recorded(told(queries[0], *turns))
    assert f"a trace of synth_faces/validation/0 in traces.file does not fit: {problem}" in str(raised.value)


def test_a_loss_on_the_prompt_is_on_all_words_and_no_image(maker, queries):
    plan = Plan(align=True, regions=("nose",))
    alone = maker.planned(queries[1], plan)
    with_prompt = made_with(maker, loss_on_prompt=True).planned(queries[1], plan)
    tokens = np.array(alone.tokens)
    assert with_prompt.tokens == alone.tokens and sum(alone.loss_mask) < len(tokens) / 2
    words = tokens != maker.chat.image_pad_id
    words[0] = False  # nothing comes before it that could tell it
    np.testing.assert_array_equal(with_prompt.loss_mask, words)


def test_zooms_may_go_where_an_action_unit_is(maker, queries):
    here = made_with(maker, no_zoom=0.0, answer_now=0.0, instructed_answer=0.0, zoom_regions="aus")

    def looked_at(aus: set[int]) -> set[frozenset[str]]:
        sample = replace(queries[2], reference=Reference(("fear",), "fear", frozenset(aus)))
        found = set()
        for seed in range(16):
            views = here.episode(sample, np.random.default_rng(seed)).tokens
            text = maker.chat.tokenizer.decode(views)
            found.add(frozenset(region for region in facs.REGIONS if f'"region": "{region}"' in text))
        return found

    assert looked_at({12}) == {frozenset({"mouth"})}
    assert set().union(*looked_at({1, 17})) == {"brows", "chin"}
    assert set().union(*looked_at(set())) == set(facs.REGIONS)


class Pictures:
    def __init__(self, samples: Sequence[Sample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def strata(self, index: int) -> tuple[str, ...]:
        return self.samples[index].reference.strata

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def test_a_trace_belongs_to_its_sample(queries):
    pictures = Pictures([Sample(query.dataset, query.name, query.images, query.reference) for query in queries])
    trace = Trace("synth_faces", "validation/2", 2, (LOOK, ANSWER))
    sample = TracedSamples(pictures, [trace])[0]
    assert sample.turns == (LOOK, ANSWER) and sample.reference == queries[2].reference
    with pytest.raises(
        DataError, match="trace of synth_faces/validation/2 is about sample 9, and the data have 8 .*data"
    ):
        TracedSamples(pictures, [trace, replace(trace, index=9)])
    source = TracedSamples(pictures, [replace(trace, index=3)])
    with pytest.raises(DataError, match="is about sample 3, which is synth_faces/validation/3 here .*give the section"):
        source[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 is no trace: Expecting"),
        ("[1]", "line 2 is no trace: it must be a JSON object"),
        ('{"dataset": "a", "sample": "b", "index": 0, "turns": []}', "line 2 is no trace: turns is empty"),
        (
            '{"dataset": "a", "sample": "b", "index": 0, "turns": "x"}',
            r"line 2 is no trace: turns is 'x' \(str\); it must",
        ),
        ('{"dataset": "a", "sample": "b", "turns": ["x"]}', "line 2 is no trace: index is missing"),
        ('{"dataset": "a", "sample": "b", "index": -1, "turns": ["x"]}', "line 2 is no trace: index is -1; it must be"),
        ("[" * 100_000, "line 2 is no trace"),
    ],
)
def test_a_line_that_is_no_trace_is_named(tmp_path, line, problem):
    trace = Trace("a", "b", 0, ("x\u2028y",), ("raf_db",))
    (tmp_path / "traces.jsonl").write_text(to_line(trace) + f"{line}\n")
    with pytest.raises(DataError, match=f"traces.jsonl, {problem}"):
        read_traces(str(tmp_path / "traces.jsonl"))
    (tmp_path / "good.jsonl").write_text(f"\n{to_line(trace)}")
    assert read_traces(str(tmp_path / "good.jsonl")) == (trace,)
    with pytest.raises(DataError, match=r"traces.file: .*none.jsonl cannot be read \(No such file"):
        read_traces(str(tmp_path / "none.jsonl"))


def test_a_policy_has_behind_it_what_its_traces_have(tmp_path):
    lines = [to_line(Trace("a", "b", 0, ("x",), names)) for names in (("qwen", "raf_db"), ("raf_db",))]
    (tmp_path / "traces.jsonl").write_text("".join(lines))
    config = sft.get_config("demo")
    config.traces.file, config.rollout.max_turns = str(tmp_path / "traces.jsonl"), 2
    assert read_config(config, TrainConfig, "config").trained_on == ("qwen", "raf_db", "synth_faces")


RIGHT = "<think>x</think>\n<aus>AU6 AU12</aus>\n<answer>happy</answer>"
HAPPY = Reference(("fear", "happiness"), "happiness", frozenset({6, 12}), frozenset({6, 12, 25}))


@pytest.mark.parametrize(
    ("turns", "reference", "kept"),
    [
        ([LOOK, RIGHT], HAPPY, True),
        ([LOOK, RIGHT.replace("happy", "fear")], HAPPY, False),
        ([LOOK, RIGHT.replace("AU6", "AU4 AU6")], HAPPY, True),  # AU4 is not known.
        ([LOOK, RIGHT.replace("AU6 ", "")], HAPPY, True),  # F1 2/3
        ([LOOK, RIGHT.replace("AU6 AU12", "AU25")], HAPPY, False),
        ([LOOK, RIGHT.replace("AU6 AU12", "AU25")], replace(HAPPY, aus=None), True),
        ([LOOK, RIGHT], replace(HAPPY, emotion=None), True),
        ([LOOK, RIGHT + " Yes."], HAPPY, False),
        ([LOOK, ZOOM], HAPPY, False),
    ],
)
def test_what_is_right_is_kept(turns, reference, kept):
    assert is_kept(Episode.from_texts(*turns), reference, SamplingConfig("p", au_f1=0.6)) == kept


def test_what_is_spoilt_is_not_kept():
    failed = Episode.from_texts(LOOK, RIGHT, replies=(Reply("no face", ok=False, tool="align_face"),))
    cut = Episode.from_texts(LOOK, RIGHT)
    cut.turns[0].truncated = True
    wrong = Episode.from_texts(RIGHT.replace("happy", "fear"))
    for keep, right in (("correct", False), ("formatted", True)):
        sampling = SamplingConfig("p", keep)
        assert not is_kept(failed, HAPPY, sampling) and not is_kept(cut, HAPPY, sampling)
        assert is_kept(wrong, HAPPY, sampling) == right


def sampled(*arguments: str) -> None:
    """`python -m actfer_jax.traces ARGUMENTS`, in this process."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    flags.DEFINE_string("from", None, "", flag_values=values)
    flags.DEFINE_enum("keep", "correct", ["correct", "formatted"], "", flag_values=values)
    for name, default in (("tries", 4), ("most", 1)):
        flags.DEFINE_integer(name, default, "", flag_values=values)
    flags.DEFINE_float("au_f1", 0.5, "", flag_values=values)
    flags.DEFINE(cli.PathFlag(), "out", None, "", flag_values=values)
    argv = ["traces", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(sys, "argv", argv)
        patch.chdir(ROOT)
        cli._parse_flags(argv, config="training.config.TrainConfig")
        door.main(argv)


class Parrot:
    """An agent that says of each sample, in its first try, that it is neutral, and the truth in its others."""

    def __init__(self, agent: Agent):
        self.chat, self.rollout, self.toolbox = agent.chat, agent.rollout, agent.toolbox
        self.params, self.played = None, list[int]()

    def check_prompt(self, labels: tuple[str, ...]) -> None: ...

    def engine(self, *, queries: int, group_size: int) -> "Parrot":
        self.tries = group_size
        return self

    def run(self, params: None, queries: list[Query], *, seed: int, step: int, keep_failed: bool) -> RolloutResult:
        assert keep_failed
        self.played += [query.index for query in queries]
        groups = []
        for query in queries:
            truth = query.reference
            right = answer(truth.emotion, facs.format_aus(truth.aus))
            tries = [
                answer("neutral"),
                *([call("align_face"), call("zoom", region="mouth"), right],) * (self.tries - 1),
            ]
            groups.append([play(query, [one] if isinstance(one, str) else one, self.toolbox) for one in tries])
        return RolloutResult(groups)


def test_what_was_done_when_it_was_stopped_is_not_done_again(agent, tmp_path, monkeypatch, capsys):
    parrot, out = Parrot(agent), tmp_path / "out"
    monkeypatch.setattr(rejection, "load_agent", lambda *given, **options: parrot)
    given = [
        *("--config=configs/sft.py:demo", "--config.data.size=5", "--config.batch.queries=2"),
        *("--config.batch.microbatches=1", f"--config.data.cache_directory={tmp_path / 'cache'}"),
    ]
    arguments = ("--from=demo", *given, "--tries=3", f"--out={out}")

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(rejection, "ProgressLine", lambda unit: stop)
        with pytest.raises(KeyboardInterrupt):
            sampled(*arguments)
    assert parrot.played == [0, 1, 2, 3] and not (out / "traces.jsonl").exists()
    with pytest.raises(OutputError, match="sampled with other settings"):
        sampled("--from=demo", *given, "--tries=2", f"--out={out}")
    sampled(*arguments)
    assert parrot.played == list(range(5)) and not (out / "parts").exists()
    traces = read_traces(str(out / "traces.jsonl"))
    assert [(trace.index, len(trace.turns)) for trace in traces] == [(0, 1), *((index, 3) for index in range(1, 5))]
    assert traces[0].trained_on == ("synth_faces",)
    report = json.loads((out / "report.json").read_text())
    assert (report["traces"], report["samples"], report["zooms"]) == (5, 5, {"0": 1, "1": 4})
    assert report["classes"] == dict.fromkeys(sorted(report["classes"]), 1)
    assert "5 traces of 5 of 5 samples are in" in capsys.readouterr().out
    # Another setting begins anew; two different traces of the neutral face are right.
    sampled(*arguments, "--most=2")
    assert parrot.played == [*range(5), *range(5)]
    assert len((out / "traces.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_what_a_policy_got_right_is_learnt_from(agent, tmp_path):
    given = [
        *("--config=configs/sft.py:demo", "--config.data.size=4", "--config.batch.queries=4"),
        f"--config.data.cache_directory={tmp_path / 'cache'}",
    ]
    sampled("--from=demo", *given, "--tries=2", "--au_f1=0", f"--out={tmp_path / 'out'}")
    config = sft.get_config("demo")
    config.data.size, config.data.cache_directory, config.batch.queries = 4, str(tmp_path / "cache"), 2
    config.traces.readings_steps, config.traces.file = 0, str(tmp_path / "out/traces.jsonl")
    training, traces = read_train_config(config), read_traces(str(tmp_path / "out/traces.jsonl"))
    maker = TraceMaker(training.traces, agent.chat, agent.encoder, agent.toolbox, training.rollout)
    rows = _trace_rows(training, maker, TracedSamples(open_source(training.data), traces), 0, [True, True])
    learnt = [
        agent.chat.tokenizer.decode([id for id, policy in zip(row.tokens, row.loss_mask, strict=True) if policy])
        for row in itertools.chain.from_iterable(itertools.islice(rows, len(traces)))
    ]
    written = ["".join(f"{turn}<|im_end|>" for turn in trace.turns) for trace in traces]
    assert len(written) > 1 and Counter(learnt) == Counter(written * 2)
