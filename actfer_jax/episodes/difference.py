"""Where the episodes of two runs first differ."""

from collections.abc import Mapping, Sequence
from typing import Any

_AROUND = 60  # Characters that are shown on either side of the first that differs.


def episodes_difference(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> str:
    """The first difference between the episode records of a step of two runs, in words; "" if there is none.

    Within an episode: the sample ("data"), then turn by turn what was written ("token") and what the tool replied
    ("tool reply"), then log-probabilities, reward and advantage. Seconds do not count.
    """
    ours, theirs = ({record["id"]: record for record in records} for records in (one, other))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs:
            return f"episode {name}: only in the {'first' if name in ours else 'second'} run"
        if found := _episode_difference(ours[name], theirs[name]):
            return f"episode {name}, {found}"
    return ""


def show_both(one: str, other: str) -> str:
    """Two texts around the first character in which they differ, a line each."""
    common = _common(one, other)
    begin = max(common - _AROUND, 0)
    lines = []
    for label, text in (("first", one), ("second", other)):
        cut = text[begin : common + _AROUND]
        before, after = "…" * (begin > 0), "…" * (len(text) > common + _AROUND)
        lines.append(f"  {label + ':':8}{before}{cut!r}{after}")
    return "\n".join(lines)


def _episode_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    for key in ("dataset", "image", "scenes", "reference"):
        if one.get(key) != other.get(key):
            return f"data: {key}\n{show_both(_text(one.get(key)), _text(other.get(key)))}"
    ours, theirs = one["token_ids"] or [], other["token_ids"] or []
    token = _common(ours, theirs)
    same_tokens = len(ours) == len(theirs) == token
    ends = _turn_ends(one)
    if not same_tokens and ends and token < ends[0][0]:
        return f"prompt, token {token}: {_at(ours, token)} in the first run, {_at(theirs, token)} in the second"
    for number, (mine, its) in enumerate(zip(one["turns"], other["turns"], strict=False)):
        where = f"turn {number + 1}"
        begin, end = ends[number] if number < len(ends) else (0, len(ours))
        if mine["text"] != its["text"] or begin <= token < min(end, len(ours), len(theirs)):
            ids = "" if same_tokens else f", token {token - begin}: {_at(ours, token)} | {_at(theirs, token)}"
            return f"{where}{ids}\n{show_both(mine['text'], its['text'])}"
        for part in ("truncated", "reply", "view"):
            if mine.get(part) != its.get(part):
                what = "tool reply" if part == "reply" else f"tool reply, {part}" if part == "view" else part
                return f"{where}, {what}\n{show_both(_text(mine.get(part)), _text(its.get(part)))}"
    if len(one["turns"]) != len(other["turns"]):
        return f"{len(one['turns'])} turns in the first run, {len(other['turns'])} in the second"
    if not same_tokens:
        return f"token {token} of the row: {_at(ours, token)} in the first run, {_at(theirs, token)} in the second"
    for key in ("logprobs", "raw_logprobs"):
        values = one[key] or [], other[key] or []
        if (place := _common(*values)) < max(map(len, values)):
            return f"{key}, token {place} of the row: {_at(values[0], place)} | {_at(values[1], place)}"
    rest = [key for key in {*one, *other} - {"turns"} if one.get(key) != other.get(key)]
    # What follows from another comes after it.
    for key in sorted(rest, key=lambda key: (key == "advantage", key != "reward", key)):
        return f"{key}\n{show_both(_text(one.get(key)), _text(other.get(key)))}"
    return ""


def _turn_ends(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where the tokens of each turn begin and end."""
    mask = record["loss_mask"] or []
    begins = [i for i, wrote in enumerate(mask) if wrote and (i == 0 or not mask[i - 1])]
    return [(begin, next((i for i in range(begin, len(mask)) if not mask[i]), len(mask))) for begin in begins]


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else "none"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
