"""Checks a data set's files before anything is trained or measured on them.

    python -m actfer_jax.data.check raf_db --data_dir=DIR [--set=pictures=original] [--json=report.json]
        [--against=raf_au:DIR] [--sheet=faces.png]

Opens every picture of every split. Prints how many records, classes and unreadable pictures there are, the official
counts of a published data set that differ, and every problem with file and line: rows that cannot be used, pictures in
two splits or under two labels, subjects in two splits, pictures without a row, pictures that are in another data set.
Copies are found by their bytes, and where they were resized, recompressed or slightly cropped. Changes no file of the
data set.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from actfer_jax import cli, facs, plugins
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data.annotations import coverage
from actfer_jax.data.duplicates import Signature
from actfer_jax.data.inventory import ALL, Inventory, Problem, Record, annotated, relative
from actfer_jax.data.leaks import OtherSet, Progress, between_splits, read_signatures
from actfer_jax.data.sheet import contact_sheet
from actfer_jax.data.sources import DataConfig, read_named_set, read_settings
from actfer_jax.outputs import check_file, write_file
from actfer_jax.progress import ProgressLine

_SHOWN = 20


def check(
    inventory: Inventory,
    folder: Path,
    progress: Progress = lambda done, total: None,
    against: Sequence[OtherSet] = (),
) -> dict[str, Any]:
    """Opens every picture of a data set.

    Args:
      inventory: the data set.
      folder: its directory; files are named from there.
      progress: called with (pictures opened, pictures).
      against: other data sets that should have none of its pictures.

    Returns:
      As JSON: `records`; `splits` and `classes`, each with its count; `unreadable` pictures; `official`, by what is
      counted the numbers `expected` and `found`; `copies`, how many pictures are the `same` as one elsewhere, byte by
      byte, or `similar`, in "other splits" and in each other data set; `problems`, a list of `file`, `line` (or None)
      and `what`. Where there are action units, `aus`: `records` by who gave them, and `rates`, of each how often it is
      `known` and `present`.
    """
    records, unreadable, pictures = inventory.records, list[Problem](), list[tuple[Record, Signature]]()
    for record, looks in read_signatures(records, progress):
        if isinstance(looks, str):
            unreadable.append(record.problem(folder, looks))
        else:
            pictures.append((record, looks))
    copies, leaks = _copies(pictures, folder, against)
    splits = Counter(record.split or ALL for record in records)
    emotions = Counter(facs.normalise_emotion(record.reference.emotion or "") for record in records)
    parts = [(part, record) for record in records for part in (ALL, record.split, *record.reference.strata)]
    found = Counter(part for part, _ in parts) + Counter(f"{part}/{record.reference.emotion}" for part, record in parts)
    problems = [
        *inventory.problems,
        *unreadable,
        *_repeated(pictures, folder),
        *leaks,
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
        "copies": copies,
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
    copies = (
        f"{sum(counts.values())} in {where} ({counts['same']} the same)" for where, counts in report["copies"].items()
    )
    lines.append(f"copies      {', '.join(copies)}")
    problems = [Problem(**problem) for problem in report["problems"]]
    lines.append(f"problems    {len(problems)}")
    lines += [f"  {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more (all are in the file of --json)")
    return "\n".join(lines)


def _repeated(pictures: Iterable[tuple[Record, Signature]], folder: Path) -> Iterator[Problem]:
    """Pictures with the same bytes in two splits, or under two labels."""
    by_digest = defaultdict[bytes, list[Record]](list)
    for record, looks in pictures:
        by_digest[looks.digest].append(record)
    for first, *others in by_digest.values():
        for other in others:
            here, there = (other.split, other.reference.emotion), (first.split, first.reference.emotion)
            if here != there:
                yield other.problem(folder, f"the same picture as {_described(first, folder)}")


def _copies(
    pictures: Sequence[tuple[Record, Signature]], folder: Path, against: Sequence[OtherSet]
) -> tuple[dict[str, dict[str, int]], list[Problem]]:
    """How many copies there are in other splits and other data sets, and each that `_repeated` does not name."""
    problems, counts = list[Problem](), defaultdict[str, Counter[str]](lambda: Counter(same=0, similar=0))
    counts["other splits"].update(())
    for record, first, kind in between_splits(pictures):
        counts["other splits"][kind] += 1
        if kind == "similar":
            problems.append(record.problem(folder, f"nearly the same picture as {_described(first, folder)}"))
    for other in against:
        counts[other.text].update(())
        if other.unreadable:
            what = f"{len(other.unreadable)} pictures cannot be read, and were not compared; the first: "
            problems.append(Problem(other.text, None, what + other.unreadable[0]))
        for record, looks in pictures:
            if (found := other.find(looks)) is not None:
                counts[other.text][found[1]] += 1
                same = "the same picture as" if found[1] == "same" else "nearly the same picture as"
                problems.append(record.problem(folder, f"{same} {found[0].name} of {other.text}"))
    return {where: dict(count) for where, count in counts.items()}, problems


def _described(record: Record, folder: Path) -> str:
    where = str(record.problem(folder, "")).removesuffix(": ")
    split = f" and the split {record.split}" if record.split else ""
    return f"{where}, which is of the class {record.reference.emotion}{split}"


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
    known = {picture for record in inventory.records for picture in record.pictures}
    for directory in inventory.folders:
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path not in known and not path.name.startswith("."):
                yield Problem(relative(path, folder), None, "no row names it; not used")


def main(argv: list[str]) -> None:
    given = flags.FLAGS
    if len(argv) != 2:
        raise ConfigError("give the name of one data set: python -m actfer_jax.data.check raf_db --data_dir=DIR")
    name = argv[1]
    module = plugins.load(DataConfig.FOLDER, name)
    if not hasattr(module, "inventory"):
        raise ConfigError(f"{name} has no `inventory(config)`, which is what is checked (docs/extending.md)")
    section = {"name": name, "directory": str(given.data_dir)} | read_settings(name, given.set)
    config = read_config(section, DataConfig, "data")
    try:
        named = [read_named_set(text) for text in given.against]
    except ConfigError as error:
        raise ConfigError(f"--against: {error}") from error
    for path, kind in ((given.json, "JSON"), (given.sheet, "PNG")):
        if path:
            check_file(path, kind)
    inventory = annotated(module.inventory(config), config)
    against = [OtherSet(other) for other in named]
    report = check(inventory, Path(given.data_dir), ProgressLine("pictures"), against)
    print(cli.printable(show(report)))
    if given.sheet:
        write_file(given.sheet, contact_sheet(inventory))
    if given.json:
        write_file(given.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    flags.DEFINE(cli.PathFlag(), "data_dir", None, "The folder of the data set's files.", required=True)
    flags.DEFINE(cli.PathFlag(), "json", None, "A file for the whole report.")
    flags.DEFINE_multi_string("against", [], "NAME:DIR: another data set that should have none of the pictures.")
    flags.DEFINE(cli.PathFlag(), "sheet", None, "A PNG file for a sheet of some pictures of each class.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE: another key of the data set's config, as pictures=original.")
    cli.run(main, arguments=True)
