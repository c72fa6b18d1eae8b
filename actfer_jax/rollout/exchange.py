"""What the processes of a run tell each other of the tools' replies, so that all go on in the same way."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from actfer_jax.agent.episode import Reply
from actfer_jax.faces.views import View
from actfer_jax.parallel import hosts

Answered = tuple[Reply, float]
"""A reply, and the seconds that it took."""


def exchange(
    waiting: Sequence[int], done: Mapping[int, Answered], holders: Sequence[frozenset[int]], owners: Sequence[int]
) -> dict[int, Answered]:
    """The replies that every process which needs them has, in the order of `waiting`: the same on all processes.

    Every process must call this at the same point, with the same rows waiting.

    Args:
      waiting: rows that wait for a reply.
      done: the replies that this process has.
      holders: of each row, the processes that need the pixels of its views: each of them runs the tool.
      owners: of each row, the one of them whose reply and seconds all take. A process that does not need the pixels
        gets a view without.

    Raises:
      RuntimeError: the tool of this process has replied otherwise than the owner's.
    """
    if jax.process_count() == 1 or not waiting:
        return {row: done[row] for row in waiting if row in done}
    here = jax.process_index()
    told = {row: _record(reply) | {"seconds": seconds} for row, (reply, seconds) in done.items()}
    # Pairs, since JSON has no objects with numbers for keys.
    heard = [dict(pairs) for pairs in hosts.gather([(row, told[row] if owners[row] == here else None) for row in told])]
    ready = {}
    for row in waiting:
        if all(row in heard[process] for process in holders[row]):
            record = heard[owners[row]][row]
            reply, seconds = _reply(record), record["seconds"]
            if here in holders[row]:
                if told[row] | {"seconds": seconds} != record:
                    raise RuntimeError(
                        f"a face tool says {told[row]} on process {here}, but {record} on process {owners[row]}: "
                        "install the same versions on every host"
                    )
                reply = done[row][0]
            ready[row] = reply, seconds
    return ready


def _record(reply: Reply) -> dict[str, Any]:
    view: View | None = reply.view
    geometry = view and {
        "size": [view.height, view.width],
        "to_original": view.to_original.tolist(),
        "name": view.name,
        "image": view.image,
    }
    parts = ("text", "ok", "tool", "region", "inspects")
    return {part: getattr(reply, part) for part in parts} | {"view": geometry}


def _reply(record: Mapping[str, Any]) -> Reply:
    parts = {name: value for name, value in record.items() if name != "seconds"}
    if parts["view"] is not None:
        height, width = parts["view"]["size"]
        to_original = np.array(parts["view"]["to_original"], np.float64)
        parts["view"] = View.without_pixels((height, width), to_original, parts["view"]["name"], parts["view"]["image"])
    return Reply(**parts)
