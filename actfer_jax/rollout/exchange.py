"""What the processes of a run tell each other of the tools' replies, so that all go on in the same way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from actfer_jax.agent.episode import Reply
from actfer_jax.faces.views import View
from actfer_jax.parallel import hosts

Answered = tuple[Reply, float]
"""A reply, and the seconds that it took."""


@dataclass(frozen=True)
class Failure:
    """A tool that raised: the host failed, and not the policy."""

    problem: str


def exchange(
    waiting: Sequence[int],
    done: Mapping[int, Answered | Failure],
    holders: Sequence[frozenset[int]],
    owners: Sequence[int],
) -> tuple[dict[int, Answered], dict[int, Failure]]:
    """The replies that every process which needs them has, in the order of `waiting`, and the rows whose tool failed on
    any of these: the same on all processes.

    Every process must call this at the same point, with the same rows waiting.

    Args:
      waiting: rows that wait for a reply.
      done: the replies that this process has, or what failed here.
      holders: of each row, the processes that need the pixels of its views: each of them runs the tool.
      owners: of each row, the one of them whose reply and seconds all take. A process that does not need the pixels
        gets a view without.

    Raises:
      RuntimeError: the tool of this process has replied otherwise than the owner's.
    """
    if jax.process_count() == 1 or not waiting:
        found = [(row, done[row]) for row in waiting if row in done]
        return (
            {row: answer for row, answer in found if not isinstance(answer, Failure)},
            {row: answer for row, answer in found if isinstance(answer, Failure)},
        )
    here = jax.process_index()
    told = {row: _record(answer) for row, answer in done.items()}
    # Pairs, since JSON has no objects with numbers for keys. Every process hears of a failure.
    words = [(row, told[row] if owners[row] == here or "problem" in told[row] else None) for row in told]
    heard = [dict(pairs) for pairs in hosts.gather(words)]
    ready, failed = {}, {}
    for row in waiting:
        if not all(row in heard[process] for process in holders[row]):
            continue
        problems = [record["problem"] for words in heard if "problem" in (record := words.get(row) or {})]
        if problems:
            failed[row] = Failure(problems[0])
            continue
        record = heard[owners[row]][row]
        reply, seconds = _reply(record), record["seconds"]
        if isinstance(mine := done.get(row), tuple):
            if told[row] | {"seconds": seconds} != record:
                raise RuntimeError(
                    f"a face tool says {told[row]} on process {here}, but {record} on process {owners[row]}: "
                    "install the same versions on every host"
                )
            reply = mine[0]
        ready[row] = reply, seconds
    return ready, failed


def _record(answer: Answered | Failure) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"problem": answer.problem}
    reply, seconds = answer
    view: View | None = reply.view
    geometry = view and {
        "size": [view.height, view.width],
        "to_original": view.to_original.tolist(),
        "name": view.name,
        "image": view.image,
    }
    parts = ("text", "ok", "tool", "region", "inspects")
    return {part: getattr(reply, part) for part in parts} | {"view": geometry, "seconds": seconds}


def _reply(record: Mapping[str, Any]) -> Reply:
    parts = {name: value for name, value in record.items() if name != "seconds"}
    if parts["view"] is not None:
        height, width = parts["view"]["size"]
        to_original = np.array(parts["view"]["to_original"], np.float64)
        parts["view"] = View.without_pixels((height, width), to_original, parts["view"]["name"], parts["view"]["image"])
    return Reply(**parts)
