"""The pages in docs/ speak of what is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_about_files_has_its_test():
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    rows = [row.strip("| ").rsplit(" | ", 1) for table in tables for row in table.splitlines()]
    assert len(tables) == 3 and len(rows) > 20
    for promise, tests in rows:
        named = re.findall(r"`([\w/]+\.py)?::(\w+)`", tests)
        assert named, f"no test is named for: {promise}"
        file = ""
        for path, test in named:
            file = path or file
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}, named for: {promise}"
