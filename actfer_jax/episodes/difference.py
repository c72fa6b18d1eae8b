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
            return f"data: {key}\n{_show(one, other, key)}"
    if found := _conversation_difference(one, other):
        return found
    for key in ("logprobs", "raw_logprobs"):
        if (place := _common(*_lists(one, other, key))) < max(map(len, _lists(one, other, key))):
            return f"{key}, token {place} of the row: {_both(one, other, key, place)}"
    if rest := [key for key in {*one, *other} - {"turns"} if one.get(key) != other.get(key)]:
        # What follows from another comes after it.
        first = min(rest, key=lambda key: (key == "advantage", key != "reward", key))
        return f"{first}\n{_show(one, other, first)}"
    return ""


def _conversation_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """By prompt, turns and replies in their order."""
    ids = _lists(one, other, "token_ids")
    token = _common(*ids)
    same_tokens = len(ids[0]) == len(ids[1]) == token
    spans = _turn_spans(one)
    if not same_tokens and spans and token < spans[0][0]:
        return f"prompt, token {token}: {_both(one, other, 'token_ids', token)}"
    for number, (mine, its) in enumerate(zip(one["turns"], other["turns"], strict=False)):
        begin, end = spans[number] if number < len(spans) else (0, 0)
        if mine["text"] != its["text"] or (not same_tokens and begin <= token < end):
            at = f", token {token - begin}: {_both(one, other, 'token_ids', token)}" if ids[0] else ""
            at += f", log-probability {_both(one, other, 'logprobs', token)}" if ids[0] else ""
            return f"turn {number + 1}{at}\n{show_both(mine['text'], its['text'])}"
        for part, what in (("truncated", "cut"), ("reply", "tool reply"), ("view", "tool reply, view")):
            if mine.get(part) != its.get(part):
                return f"turn {number + 1}, {what}\n{_show(mine, its, part)}"
    if len(one["turns"]) != len(other["turns"]):
        return f"turns: {len(one['turns'])} | {len(other['turns'])}"
    return "" if same_tokens else f"token {token} of the row: {_both(one, other, 'token_ids', token)}"


def _turn_spans(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where the tokens of each turn begin and end."""
    mask = record["loss_mask"] or []
    begins = [i for i, wrote in enumerate(mask) if wrote and (i == 0 or not mask[i - 1])]
    return [(begin, next((i for i in range(begin, len(mask)) if not mask[i]), len(mask))) for begin in begins]


def _show(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> str:
    return show_both(*(value if isinstance(value := part.get(key), str) else str(value) for part in (one, other)))


def _lists(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> tuple[list[Any], list[Any]]:
    return one[key] or [], other[key] or []


def _both(one: Mapping[str, Any], other: Mapping[str, Any], key: str, index: int) -> str:
    """What two rows have at a place."""
    return " | ".join(str(row[index]) if index < len(row) else "none" for row in _lists(one, other, key))


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
