"""Checks a data set's files before anything is trained or measured on them.

    python -m actfer_jax.data.check raf_db --data_dir=DIR [--set=pictures=original] [--json=report.json]

Opens every picture of every split. Prints how many records, classes and unreadable pictures there are, the official
counts of a published data set that differ, and every problem with file and line: rows that cannot be used, pictures in
two splits or under two labels, subjects in two splits, pictures without a row. Changes no file of the data set.
"""

import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from actfer_jax import cli, facs, plugins
from actfer_jax.config import ConfigError, named_config, read_config
from actfer_jax.data.annotations import coverage
from actfer_jax.data.inventory import ALL, Inventory, Problem, Record, annotated, relative
from actfer_jax.data.sources import DataConfig
from actfer_jax.faces.images import ImageError, decode_image
from actfer_jax.files import reason
from actfer_jax.outputs import check_file, write_file
from actfer_jax.progress import ProgressLine

_SHOWN = 20
_AHEAD = 256


def check(
    inventory: Inventory, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Opens every picture of a data set.

    Args:
      inventory: the data set.
      folder: its directory; files are named from there.
      progress: called with (pictures opened, pictures).

    Returns:
      As JSON: `records`; `splits` and `classes`, each with its count; `unreadable` pictures; `official`, by what is
      counted the numbers `expected` and `found`; `problems`, a list of `file`, `line` (or None) and `what`. Where there
      are action units, `aus`: `records` by who gave them, and `rates`, of each how often it is `known` and `present`.
    """
    records, by_digest, unreadable = inventory.records, defaultdict[str, list[Record]](list), list[Problem]()
    for done, (record, opened) in enumerate(_open_all(records), 1):
        if opened.problem:
            unreadable.append(record.problem(folder, opened.problem))
        else:
            by_digest[opened.digest].append(record)
        progress(done, len(records))
    splits = Counter(record.split or ALL for record in records)
    emotions = Counter(facs.normalise_emotion(record.reference.emotion or "") for record in records)
    parts = [(part, record) for record in records for part in (ALL, record.split, *record.reference.strata)]
    found = Counter(part for part, _ in parts) + Counter(f"{part}/{record.reference.emotion}" for part, record in parts)
    problems = [
        *inventory.problems,
        *unreadable,
        *_repeated(by_digest.values(), folder),
        *_subjects(records),
        *_without_record(inventory, folder),
    ]
    aus = coverage(record.reference for record in records)
    return {
        "records": len(records),
        "splits": dict(sorted(splits.items())),
        "classes": {label: emotions[facs.normalise_emotion(label)] for label in inventory.labels},
        "unreadable": len(unreadable),
        **({"aus": aus} if aus["records"] else {}),
        "official": {
            what: {"expected": expected, "found": found[what]} for what, expected in inventory.official.items()
        },
        "problems": [problem._asdict() for problem in problems],
    }


def show(report: dict[str, Any]) -> str:
    """The report in words, with the first problems."""
    counts = {key: ", ".join(f"{name} {count}" for name, count in report[key].items()) for key in ("splits", "classes")}
    lines = [
        f"records     {report['records']} ({counts['splits']})",
        f"classes     {counts['classes'] or 'none'}",
        f"unreadable  {report['unreadable']}",
    ]
    if aus := report.get("aus"):
        given = ", ".join(f"{count} by {name}" for name, count in aus["records"].items())
        rates = (f"{name} {one['present']}/{one['known']}" for name, one in aus["rates"].items() if one["present"])
        lines.append(f"AUs         {given} ({', '.join(rates)})")
    other = {what: count for what, count in report["official"].items() if count["expected"] != count["found"]}
    if report["official"]:
        lines.append(f"official    {len(report['official']) - len(other)} of {len(report['official'])} counts agree")
    lines += [f"  {what}: {count['found']}, officially {count['expected']}" for what, count in other.items()]
    problems = [Problem(**problem) for problem in report["problems"]]
    lines.append(f"problems    {len(problems)}")
    lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more (all are in the file of --json)")
    return "\n".join(lines)


class _Opened(NamedTuple):
    """The digest of a picture's bytes, or why the file is not a picture."""

    digest: str = ""
    problem: str = ""


def _open(record: Record) -> _Opened:
    try:
        data = record.picture.read_bytes()
        decode_image(data, "")
    except OSError as error:
        return _Opened(problem=f"cannot be read ({reason(error)})")
    except ImageError as error:
        return _Opened(problem=str(error).removeprefix(": "))
    return _Opened(hashlib.sha256(data).hexdigest())


def _open_all(records: list[Record]) -> Iterator[tuple[Record, _Opened]]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(records), _AHEAD):
            part = records[start : start + _AHEAD]
            yield from zip(part, pool.map(_open, part), strict=True)


def _repeated(groups: Iterable[list[Record]], folder: Path) -> Iterator[Problem]:
    """Pictures with the same bytes in two splits, or under two labels."""
    for first, *others in groups:
        for other in others:
            here, there = (other.split, other.reference.emotion), (first.split, first.reference.emotion)
            if here != there:
                split, emotion = there
                same = str(first.problem(folder, "")).removesuffix(": ")
                what = f"the same picture as {same}, which is of the class {emotion}"
                yield other.problem(folder, what + (f" and the split {split}" if split else ""))


def _subjects(records: list[Record]) -> Iterator[Problem]:
    """Subjects in more than one split."""
    splits = defaultdict[str, dict[str, Record]](dict)
    for record in records:
        if subject := record.reference.extra.get("subject"):
            splits[subject].setdefault(record.split, record)
    for subject, there in splits.items():
        if len(there) > 1:
            name = list(there.values())[1].name
            yield Problem(name, None, f"the subject {subject} is in the splits {', '.join(sorted(there))}")


def _without_record(inventory: Inventory, folder: Path) -> Iterator[Problem]:
    """Files in the data set's own folders that no record names."""
    known = {record.picture for record in inventory.records}
    for directory in inventory.folders:
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path not in known and not path.name.startswith("."):
                yield Problem(relative(path, folder), None, "no row names it; not used")


def _section(name: str, settings: list[str]) -> dict[str, Any]:
    """Settings `KEY=VALUE` as keys of a data set's config."""
    kinds = {field.name: field.type for field in dataclasses.fields(named_config(DataConfig, name, "NAME"))}
    section = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set={setting} is not KEY=VALUE")
        section[key] = cli.literal(value, kinds.get(key))
    return section


def main(argv: list[str]) -> None:
    given = flags.FLAGS
    if len(argv) != 2:
        raise ConfigError("give the name of one data set: python -m actfer_jax.data.check raf_db --data_dir=DIR")
    name = argv[1]
    module = plugins.load(DataConfig.FOLDER, name)
    if not hasattr(module, "inventory"):
        raise ConfigError(f"{name} has no `inventory(config)`, which is what is checked (docs/extending.md)")
    section = {"name": name, "directory": str(given.data_dir)} | _section(name, given.set)
    config = read_config(section, DataConfig, "data")
    if given.json:
        check_file(given.json, "JSON")
    report = check(annotated(module.inventory(config), config), Path(given.data_dir), ProgressLine("pictures"))
    print(cli.printable(show(report)))
    if given.json:
        write_file(given.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "data_dir", None, "The folder of the data set's files.", required=True)
    flags.DEFINE(cli.PathFlag(), "json", None, "A file for the whole report.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE: another key of the data set's config, as pictures=original.")
    cli.run(main, arguments=True)
