"""The texts of a data set as traces of one turn, for a policy that looks at the picture as it is and answers.

    python -m actfer_jax.training.texts --config=configs/sft.py --config.traces.file=traces.jsonl \
        --config.data.name=unifer --config.data.directory=DIR --config.data.size=None --config.model.path=DIR \
        --config.rollout.format=passive --config.rollout.max_turns=1 --config.rollout.ask_aus=False

writes `traces.file`, from which `python -m actfer_jax.train` learns with the same arguments (docs/cold_start.md).

A text is the "description" in `reference.extra`, as UniFER's (`unifer`) and FEA-20K's (`fea_20k`) items have: a thought
in <think> and an answer in <answer>. Those that no policy could write, or that do not answer as is asked for and
rightly, are left out and counted.
"""

from collections import Counter

from absl import flags
from ml_collections import config_flags

from actfer_jax import cli
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.environment import load_format
from actfer_jax.agent.episode import Episode, Turn
from actfer_jax.config import ConfigError
from actfer_jax.data.errors import DataError
from actfer_jax.data.inventory import Pictures
from actfer_jax.data.sources import Source, open_source
from actfer_jax.models import words_directory
from actfer_jax.outputs import check_file, write_file
from actfer_jax.rollout.engine import RolloutConfig
from actfer_jax.training.config import read_train_config
from actfer_jax.training.recorded import Trace, to_line
from actfer_jax.training.rejection import SamplingConfig, is_kept
from actfer_jax.training.traces import unspeakable

_RIGHT = SamplingConfig(policy="", keep="correct")


def traces_of_texts(source: Source, chat: Chat, rules: RolloutConfig) -> tuple[list[Trace], Counter[str]]:
    """The traces, and how many samples have none, by reason.

    Args:
      rules: whether action units are asked for, the grammar, and how long a turn may be.

    Raises:
      DataError: the data set has no texts, or none that fits.
    """
    if not isinstance(source, Pictures):
        raise DataError("the data set (data.name) has no texts; unifer and fea_20k have")
    traces, left_out, grammar = list[Trace](), Counter[str](), load_format(rules)
    for index, record in enumerate(source.records):
        reference = source.reference(index)
        text = str(reference.extra.get("description", "")).strip().removeprefix(chat.turn_start.strip())
        parsed = grammar.parse_turn(chat.turn_start + text)
        episode = Episode([Turn(text, parsed)], ask_aus=rules.ask_aus or not reference.labels)
        if not text:
            left_out["no text"] += 1
        elif unspeakable([text], chat, rules.turn_tokens):
            left_out["more tokens than rollout.turn_tokens, or a special one"] += 1
        elif not is_kept(episode, reference, _RIGHT):
            left_out["no right answer in the form that is asked for"] += 1
        else:
            traces.append(Trace(source.name, record.name, index, (text,)))
    if not traces:
        why = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
        raise DataError(
            f"no sample has a text that fits ({why}); texts without action units in <aus> need "
            "config.rollout.ask_aus=False, and long ones config.rollout.turn_tokens"
        )
    return traces, left_out


def main(argv: list[str]) -> None:
    del argv
    config = read_train_config(flags.FLAGS.config)
    if not (file := config.traces.file):
        raise ConfigError("config.traces.file is empty; give the file that is to be written")
    check_file(file, "JSON")
    path = config.model.path
    try:
        chat = Chat.from_pretrained(words_directory(config.model.base))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"model {path!r} cannot be used: {error}") from error
    source = open_source(config.data)
    traces, left_out = traces_of_texts(source, chat, config.rollout)
    write_file(file, "".join(map(to_line, traces)))
    print(f"{len(traces)} traces of {len(source)} samples are in {file}")
    for reason, count in left_out.items():
        print(f"left out: {count} with {reason}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A config of training.")
    flags.mark_flags_as_required(["config"])
    cli.run(main, config="training.config.TrainConfig")
