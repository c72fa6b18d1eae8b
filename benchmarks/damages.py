"""What can happen to the files of a checkpoint."""

import os
import random
import shutil
from pathlib import Path


def files(step: Path) -> list[Path]:
    """The files of a checkpoint, in order."""
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip_a_bit(chance: random.Random, step: Path) -> None:
    path = chance.choice([path for path in files(step) if path.stat().st_size])
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def truncate(chance: random.Random, step: Path) -> None:
    path = chance.choice([path for path in files(step) if path.stat().st_size])
    os.truncate(path, chance.randrange(path.stat().st_size))


def delete(chance: random.Random, step: Path) -> None:
    chance.choice(files(step)).unlink()


def swap(chance: random.Random, step: Path) -> None:
    """Two files of different contents in each other's places."""
    contents = {path.read_bytes(): path for path in files(step)}
    one, two = chance.sample(sorted(contents.values()), 2)
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)


def stale(chance: random.Random, step: Path) -> None:
    """A file of the step before in place of the same file of this step."""
    before = step.with_name(str(int(step.name) - 1))
    pairs = [(before / path.relative_to(step), path) for path in files(step)]
    old, path = chance.choice([pair for pair in pairs if pair[0].exists() and _differ(*pair)])
    shutil.copyfile(old, path)


def _differ(one: Path, two: Path) -> bool:
    return one.read_bytes() != two.read_bytes()


DAMAGES = (flip_a_bit, truncate, delete, swap, stale)
