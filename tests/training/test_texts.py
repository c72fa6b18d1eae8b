"""The texts of a data set as traces of one turn: which are taken, and that they are what a training replays."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from absl import flags
from data_fixtures import UNIFER_QUESTION, config_of, put, write_fea_20k, write_unifer
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.data.datasets.unifer import FILES
from actfer_jax.data.sources import DataError, open_source
from actfer_jax.training import texts as door
from actfer_jax.training.recorded import TracedSamples, read_traces
from actfer_jax.training.texts import traces_of_texts
from actfer_jax.training.traces import TraceConfig, TraceMaker

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> None:
    """`python -m actfer_jax.training.texts ARGUMENTS`, in this process."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    argv = ["texts", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(sys, "argv", argv)
        patch.chdir(ROOT)
        cli._parse_flags(argv, config="training.config.TrainConfig")
        door.main(argv)


def test_texts_of_unifer_are_replayed_as_they_are(agent, tmp_path, capsys):
    given = write_unifer(tmp_path)
    file = tmp_path / "texts" / FILES["cot"]
    question = UNIFER_QUESTION.format("fear, anger")
    item = {"image_path": "/RAF-DB/aligned/test_1_aligned.jpg", "question": question}
    odd = ["<answer>fear</answer>", f"<think>{'fear ' * 300}</think><answer>fear</answer>"]
    put(file, json.dumps([*json.loads(file.read_text()), *(item | {"response": text} for text in odd)]))
    out = tmp_path / "traces.jsonl"
    command(
        *("--config=configs/sft.py:demo", "--config.data.name=unifer", f"--config.data.directory={tmp_path}"),
        *(f"--config.data.texts={given['texts']}", "--config.data.size=None", "--config.rollout.ask_aus=False"),
        *("--config.rollout.format=passive", "--config.rollout.max_turns=1", "--config.rollout.turn_tokens=128"),
        f"--config.traces.file={out}",
    )
    printed = capsys.readouterr().out
    assert printed.startswith("8 traces of 10 samples are in ")
    assert "left out: 1 with no right answer in the form that is asked for" in printed
    assert "left out: 1 with more tokens than rollout.turn_tokens, or a special one" in printed
    traces = read_traces(str(out))
    samples = TracedSamples(open_source(config_of("unifer", **given)), traces)
    rules = replace(agent.rollout, format="passive", ask_aus=False, max_turns=1, prompt_tokens=96, turn_tokens=128)
    maker = TraceMaker(TraceConfig(file=str(out)), agent.chat, agent.encoder, agent.toolbox, rules)
    for index, trace in enumerate(traces):
        sample = samples[index]
        assert trace.turns == (sample.reference.extra["description"],)
        sequence = maker.recorded(sample)
        learnt = [id for id, loss in zip(sequence.tokens, sequence.loss_mask, strict=True) if loss]
        assert agent.chat.tokenizer.decode(learnt, skip_special_tokens=True) == trace.turns[0]


def test_texts_of_fea_20k_answer_with_what_is_asked_for(agent, tmp_path):
    source = open_source(config_of("fea_20k", split="all", **write_fea_20k(tmp_path)))
    rules = replace(agent.rollout, format="passive", ask_aus=False, max_turns=1, turn_tokens=128)
    traces, left_out = traces_of_texts(source, agent.chat, rules)
    # Of BP4D's three items no label is known, so that only action units are asked for.
    assert len(traces) == 6 and left_out == {"no right answer in the form that is asked for": 3}
    with pytest.raises(DataError, match="9 with no right answer .* need config.rollout.ask_aus=False"):
        traces_of_texts(source, agent.chat, replace(rules, ask_aus=True))
