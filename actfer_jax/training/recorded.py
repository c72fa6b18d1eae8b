"""Traces in a file: what somebody wrote, or a policy, turn by turn, about samples of a data set.

JSON lines, one a trace:

    {"dataset": "table", "sample": "p/1.png", "index": 17, "turns": ["<think>...", "..."], "trained_on": ["table"]}

`index` is that of the sample in the data set as the config opens it; `trained_on` has the data sets behind whoever
wrote the turns, and may be left out. A turn has no end token, and not what the chat template opens it with.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from etils import epath

from actfer_jax.agent.episode import Sample
from actfer_jax.config import at_least, read_config
from actfer_jax.data.errors import DataError
from actfer_jax.data.sources import Source
from actfer_jax.files import as_path, file_errors, reason


@dataclass(frozen=True)
class Trace:
    """The turns of an episode about a sample."""

    dataset: str
    sample: str
    index: Annotated[int, at_least(0)]
    turns: tuple[str, ...]
    trained_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class TracedSample(Sample):
    """A sample with the turns that are to be learnt from."""

    turns: tuple[str, ...] = ()


@lru_cache(maxsize=2)
def read_traces(file: str) -> tuple[Trace, ...]:
    """The traces of a file.

    Raises:
      DataError: it cannot be read, or a line is no trace; the message has its number.
    """
    try:
        text = epath.Path(as_path(file)).read_text()
    except file_errors(ValueError) as error:
        raise DataError(f"traces.file: {file} cannot be read ({reason(error)})") from error
    traces = parse_traces(text, f"traces.file: {file}")
    if not traces:
        raise DataError(f"traces.file: {file} has no traces")
    return traces


def parse_traces(text: str, name: str) -> tuple[Trace, ...]:
    """The traces of a text.

    Args:
      name: of the text, for messages.

    Raises:
      DataError: a line is no trace; the message has its number.
    """
    traces = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            trace = read_config(_object(line), Trace, "")
            if not trace.turns:
                raise ValueError("turns is empty")
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number} is no trace: {error}") from error
        traces.append(trace)
    return tuple(traces)


def _object(line: str) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("it must be a JSON object")
    return value


def to_line(trace: Trace) -> str:
    return json.dumps(vars(trace)) + "\n"


class TracedSamples:
    """The samples of a source that have traces, one for each trace (`data.sources.Source`).

    Raises:
      DataError: the source has no sample of a trace's index; or, on access, one of another name.
    """

    def __init__(self, source: Source, traces: Sequence[Trace]):
        self.source, self.traces = source, traces
        last = max(traces, key=lambda trace: trace.index)
        if last.index >= len(source):
            raise DataError(f"{_of(last)} is about sample {last.index}, and the data have {len(source)} {_REMEDY}")

    def __len__(self) -> int:
        return len(self.traces)

    def strata(self, index: int) -> tuple[str, ...]:
        return self.source.strata(self.traces[index].index)

    def __getitem__(self, index: int) -> TracedSample:
        trace = self.traces[index]
        sample = self.source[trace.index]
        if (sample.dataset, sample.name) != (trace.dataset, trace.sample):
            raise DataError(
                f"{_of(trace)} is about sample {trace.index}, which is {sample.dataset}/{sample.name} here {_REMEDY}"
            )
        return TracedSample(**vars(sample), turns=trace.turns)


_REMEDY = "(traces.file): give the section `data` with which the traces were made"


def _of(trace: Trace) -> str:
    return f"a trace of {trace.dataset}/{trace.sample}"
