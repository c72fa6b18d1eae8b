"""What the page of some runs is made of: every address with its content, for a server or as files.

    index.html                               the page, with its style and its program
    data/index.js                            the runs, and the columns of all episodes (`columns`)
    data/0/metrics.js                        the metrics of the first run
    data/0/step-00000010-host0/3.js          the records of the fourth eight episodes of a shard
    data/0/step-00000010-host0/3.tokens.js   and the tokens that the policy wrote in them
    pictures/0/images/ab/abcdef0123.png      a view

A page that is opened as a file may not read other files, but may load scripts. So data are scripts, which hand
themselves to the page: `receive("data/index.js", "JSON")`. The JSON is a string that is parsed, so that no text of a
policy is ever read as a program.
"""

import base64
import hashlib
import html
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from typing import Any

from etils import epath

from actfer_jax.agent.parser import parse_turn
from actfer_jax.episodes.store import PICTURES, RecordError, read_index, read_record, shards
from actfer_jax.errors import UserError
from actfer_jax.runs.metrics import METRICS, read_metrics
from actfer_jax.viewer.columns import columns
from actfer_jax.viewer.tokens import Decode, find_decoder, written_tokens

PAGE, INDEX = "index.html", "data/index.js"
_CHUNK = 8  # Episodes of a file: often those of a group.
_METRICS = r"data/(\d{1,4})/metrics\.js"
_RECORDS = r"data/(\d{1,4})/([a-z][a-z_]{0,39}-\d{1,12}-host\d{1,6})/(\d{1,7})(\.tokens)?\.js"
_PICTURE = rf"pictures/(\d{{1,4}})/({PICTURES})"
ADDRESSES = re.compile("|".join((re.escape(PAGE), re.escape(INDEX), _METRICS, _RECORDS, _PICTURE)))
"""Matches every address that may have content."""
_TOKENS = ("token_ids", "loss_mask", "logprobs", "raw_logprobs")
_CURVE_DIGITS = 6
_Stamp = tuple[tuple[str, int, float], ...]
_NONE: tuple[tuple[str, int], list[dict[str, Any]]] = (("", 0), [])


@dataclass
class Run:
    """A workdir on the page.

    Attributes:
      name: what the page calls it.
      workdir: where it lies.
      places: for each shard, by the stem of its name, offset and bytes of each record.
    """

    name: str
    workdir: epath.Path
    places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _last: tuple[tuple[str, int], list[dict[str, Any]]] = _NONE

    @cached_property
    def decode(self) -> Decode | None:
        """The text of a token; found when tokens are first asked for, since a tokenizer takes seconds to load."""
        return find_decoder(self.workdir)

    def records(self, shard: str, chunk: int) -> list[dict[str, Any]]:
        """The records of a part of a shard; none where it has no such part. Those read last are remembered."""
        if self._last[0] != (shard, chunk):
            places = self.places.get(shard, [])[chunk * _CHUNK : (chunk + 1) * _CHUNK]
            lines = [{"shard": f"episodes/{shard}.jsonl", "offset": offset, "bytes": size} for offset, size in places]
            self._last = (shard, chunk), [read_record(self.workdir, line) for line in lines]
        return self._last[1]

    def chunks(self) -> Iterator[tuple[str, int]]:
        """All parts of all shards."""
        for shard, places in self.places.items():
            yield from ((shard, chunk) for chunk in range(math.ceil(len(places) / _CHUNK)))

    def has_metrics(self) -> bool:
        return (self.workdir / METRICS).exists()

    def read_lines(self) -> Iterator[dict[str, Any]]:
        """The lines of its index, anew; `places` is filled on the way."""
        self.places, self._last = {}, _NONE
        for line in read_index(self.workdir):
            shard = line["shard"].removeprefix("episodes/").removesuffix(".jsonl")
            self.places.setdefault(shard, []).append((line["offset"], line["bytes"]))
            yield line


class Site:
    """The page of some runs.

    Args:
      workdirs: directories with `episodes/`, of trainings or evaluations.

    Raises:
      UserError: one has no episodes, or a damaged index.
    """

    def __init__(self, workdirs: Sequence[epath.Path]):
        self.runs = [Run(name, workdir) for name, workdir in zip(_names(workdirs), workdirs, strict=True)]
        for run in self.runs:
            if not shards(run.workdir):
                raise UserError(
                    f"{run.workdir} has no episodes/*.jsonl: give the workdir of a training or the --out of an "
                    "evaluation (a training records every `logging.records_every`-th step)"
                )
        self._stamp: _Stamp = ()
        self.index()

    def index(self) -> bytes:
        """The script of the index; read anew where a shard has come or gone since."""
        stamp = self._now()
        if stamp != self._stamp:
            table = columns((run.name, line) for run in self.runs for line in run.read_lines())
            runs = [{"name": run.name, "metrics": run.has_metrics()} for run in self.runs]
            parts = [
                [f"{number}/{shard}", len(places)]
                for number, run in enumerate(self.runs)
                for shard, places in run.places.items()
            ]
            data = {"runs": runs, "shards": parts, "chunk": _CHUNK, **table}
            self._index, self._stamp = _script(INDEX, data), stamp
        return self._index

    def content(self, address: str) -> bytes | None:
        """What an address has; None where there is nothing. No address leads to another file than those of the page.

        Raises:
          RecordError, WorkdirError: a file of a run is damaged.
        """
        if address == PAGE:
            return page().encode()
        if address == INDEX:
            return self.index()
        if (match := re.fullmatch(_METRICS, address)) and (run := self._run(match[1])):
            return _script(address, _curves(run.workdir)) if run.has_metrics() else None
        if (match := re.fullmatch(_RECORDS, address)) and (run := self._run(match[1])):
            records = run.records(match[2], int(match[3]))
            if not records:
                return None
            tokens = match[4] is not None
            return _script(address, [written_tokens(r, run.decode) if tokens else _shown(r) for r in records])
        if (match := re.fullmatch(_PICTURE, address)) and (run := self._run(match[1])):
            path = run.workdir / match[2]
            return path.read_bytes() if path.exists() else None
        return None

    def addresses(self) -> list[str]:
        """The page, the index and the metrics."""
        metrics = [f"data/{number}/metrics.js" for number, run in enumerate(self.runs) if run.has_metrics()]
        return [PAGE, INDEX, *metrics]

    def chunks(self) -> Iterator[tuple[list[str], dict[str, epath.Path]]]:
        """For each part of a shard, the addresses of its data, and the file of each address of a picture in it."""
        for number, run in enumerate(self.runs):
            for shard, chunk in run.chunks():
                names = {name for record in run.records(shard, chunk) for name in _shown(record)["images"]}
                pictures = {f"pictures/{number}/{name}": run.workdir / name for name in sorted(names)}
                yield [f"data/{number}/{shard}/{chunk}{kind}.js" for kind in ("", ".tokens")], pictures

    @property
    def chunk_count(self) -> int:
        return sum(1 for run in self.runs for _ in run.chunks())

    def _run(self, number: str) -> Run | None:
        return self.runs[int(number)] if int(number) < len(self.runs) else None

    def _now(self) -> _Stamp:
        paths = itertools.chain.from_iterable(shards(run.workdir) for run in self.runs)
        stats = ((path, path.stat()) for path in paths)
        return tuple((str(path), stat.length, stat.mtime) for path, stat in stats)


def page() -> str:
    """The page itself, the same for all runs: only its own program and what that loads may run (`_POLICY`)."""
    parts = resources.files("actfer_jax.viewer") / "page"
    style = (parts / "browse.css").read_text(encoding="utf-8")
    program = "".join((parts / f"{name}.js").read_text(encoding="utf-8") for name in ("filter", "card", "browse"))
    policy = _POLICY.format(program=_digest(program), style=_digest(style))
    text = (parts / "browse.html").read_text(encoding="utf-8")
    for mark, part in (("POLICY", html.escape(policy)), ("STYLE", style), ("PROGRAM", program)):
        text = text.replace(f"@{mark}@", part)
    return text


# 'strict-dynamic' lets the program of the page load the scripts of its data, from a server as from files.
_POLICY = (
    "default-src 'none'; script-src 'sha256-{program}' 'strict-dynamic'; style-src 'sha256-{style}'; "
    "img-src 'self' file:; base-uri 'none'; form-action 'none'"
)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script(address: str, data: Any) -> bytes:
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"receive('{address}','{quoted}');\n".encode()


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """A record as the page takes it: without tokens, and with the thought of each turn that can be read."""
    for name in record["images"]:
        if not re.fullmatch(PICTURES, name):
            raise RecordError(f"episode {record['id']!r} has the picture {name!r}, which is no file of a view")
    turns = [{**turn, "thought": _thought(turn["text"])} for turn in record["turns"]]
    return {key: value for key, value in record.items() if key not in _TOKENS} | {"turns": turns}


def _thought(text: str) -> str | None:
    turn = parse_turn(text)
    return turn.think if turn.well_formed else None


def _curves(workdir: epath.Path) -> dict[str, list[float | None]]:
    """The metrics of a run by name, a value for each of its steps (`step`)."""
    lines = read_metrics(workdir)
    names = sorted({name for line in lines for name in line} - {"step"})
    curves = {name: [_short(line.get(name)) for line in lines] for name in names}
    return {"step": [line["step"] for line in lines], **curves}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_CURVE_DIGITS}g}")


def _names(workdirs: Sequence[epath.Path]) -> list[str]:
    """For each path, as many of its last parts as tell it from the others."""
    names = [workdir.name for workdir in workdirs]
    for count in range(2, max(len(workdir.parts) for workdir in workdirs) + 1):
        same = {name for name in names if names.count(name) > 1}
        longer = ["/".join(workdir.parts[-count:]) for workdir in workdirs]
        names = [more if name in same else name for name, more in zip(names, longer, strict=True)]
    return names
