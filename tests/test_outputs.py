"""Places that people name for results: which are refused, and what a replacement leaves alone."""

import json
import os
import re
from pathlib import Path

import pytest

from actfer_jax import outputs
from actfer_jax.outputs import MARKER, Output, OutputError, check_apart, check_directory, check_file, publish, staged
from tests.runs.test_checkpoints import contents

REPORT = Output(
    "a report",
    re.compile(r"report\.json|pages/\d+\.txt"),
    last="report.json",
    signs=("report.json", "pages"),
    folders=("pages",),
)
OTHER = Output("a letter", re.compile(r"letter\.txt"), last="letter.txt", signs=("letter.txt",))


def write_report(directory: Path, **pages: str) -> None:
    with staged(directory, REPORT) as staging:
        (staging / "pages").mkdir()
        for name, text in pages.items():
            (staging / "pages" / f"{name[1:]}.txt").write_text(text)
        (staging / "report.json").write_text(json.dumps(sorted(pages)))
        publish(staging, directory, REPORT)


def files(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.name != MARKER
    }


def letter(path: Path) -> None:
    with staged(path, OTHER) as staging:
        (staging / "letter.txt").touch()
        publish(staging, path, OTHER)


def directory_in_the_way(path: Path) -> None:
    write_report(path)
    (path / "report.json").unlink()
    (path / "report.json").mkdir()


def link_in_the_way(path: Path) -> None:
    write_report(path)
    (path / "pages").rmdir()
    (path / "pages").symlink_to(path.parent)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("mine"), "out is a file, not a directory"),
        (lambda path: path.symlink_to("nowhere"), "out is a link to nowhere, which is not there"),
        (
            lambda path: (path.mkdir(), (path / "thesis.tex").touch()),
            r"out holds files that are not of a report.*thesis",
        ),
        (lambda path: (path.mkdir(), (path / "report.json").touch()), r"out holds files that are not of a report"),
        (lambda path: (path.mkdir(), (path / "manifest.json").touch()), "out holds a training run"),
        (letter, "out holds a letter, not a report"),
        (lambda path: (path.mkdir(), (path / MARKER).write_text("{")), f"out/{MARKER} is damaged"),
        (directory_in_the_way, "out/report.json is a directory, but a file of that name is to be written"),
        (link_in_the_way, "out/pages is a file or a link, but a directory is to be written there"),
        (lambda path: path.symlink_to("/proc"), "out holds files that are not of a report"),
    ],
)
def test_a_directory_of_somebody_else_is_refused_and_left_alone(tmp_path, make, words):
    make(tmp_path / "out")
    before = contents(tmp_path) if not (tmp_path / "out").is_symlink() else None
    for use in (check_directory, lambda path, output: staged(path, output).__enter__()):
        with pytest.raises(OutputError, match=words):
            use(tmp_path / "out", REPORT)
    assert before is None or contents(tmp_path) == before


def test_what_cannot_be_written_is_named():
    with pytest.raises(OutputError, match="/proc/nowhere/out cannot be written"):
        check_directory("/proc/nowhere/out", REPORT)


def test_a_check_leaves_nothing_behind(tmp_path):
    check_directory(tmp_path / "some" / "new" / "out", REPORT)
    assert list(tmp_path.iterdir()) == []


def test_own_files_are_replaced_and_others_stay(tmp_path):
    """New, empty but for what a system puts there, and, through a link, written before."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_text("macOS")
    write_report(out, p1="one", p2="two")
    (out / "notes.md").write_text("mine")
    (out / "pages" / ".DS_Store").write_text("macOS")
    (out / "pages" / "7a.txt").write_text("mine")
    (tmp_path / "link").symlink_to(out)
    write_report(tmp_path / "link", p2="zwei", p3="drei")
    assert files(out) == {
        ".DS_Store": "macOS",
        "notes.md": "mine",
        "pages/.DS_Store": "macOS",
        "pages/7a.txt": "mine",
        "pages/2.txt": "zwei",
        "pages/3.txt": "drei",
        "report.json": '["p2", "p3"]',
    }
    marker = json.loads((out / MARKER).read_text())
    assert marker["files"] == ["pages/2.txt", "pages/3.txt", "report.json"] and "python" in marker["command"]


def test_what_was_written_before_there_were_markers_is_known(tmp_path):
    write_report(tmp_path, p1="one", p2="two")
    (tmp_path / MARKER).unlink()
    (tmp_path / "notes.md").write_text("mine")
    write_report(tmp_path, p1="eins")
    assert files(tmp_path) == {"pages/1.txt": "eins", "report.json": '["p1"]', "notes.md": "mine"}


def test_a_marker_leads_to_no_file_outside(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    write_report(tmp_path / "out")
    marker = {"holds": "a report", "command": "", "files": ["../mine.txt", str(tmp_path / "mine.txt"), "notes.md"]}
    (tmp_path / "out" / MARKER).write_text(json.dumps(marker))
    (tmp_path / "out" / "notes.md").write_text("mine")
    write_report(tmp_path / "out", p1="one")
    assert files(tmp_path).items() >= {"mine.txt": "mine", "out/notes.md": "mine"}.items()


def test_work_that_fails_costs_no_earlier_results(tmp_path):
    write_report(tmp_path / "out", p1="one")
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "out", REPORT) as staging:
        (staging / "report.json").write_text("[]")
        raise KeyboardInterrupt
    assert files(tmp_path) == before


def test_results_take_nothing_from_a_run(tmp_path):
    run = tmp_path / "runs" / "one"
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "link").symlink_to(run)
    (run / "aside").symlink_to(tmp_path / "elsewhere")
    for allowed in ("runs/two", "runs/one-policy", "runs/one/policy-100", "link/policy-100", "runs/one/aside"):
        check_apart(tmp_path / allowed, run)
    for refused, words in {
        "runs/one": "is the workdir of the run",
        "link": "is the workdir of the run",
        "runs/one/x/..": "is the workdir of the run",
        "runs": "holds",
        "": "holds",
        "runs/one/checkpoints": "lies among the files of the run",
        "runs/one/episodes": "lies among the files of the run",
        "link/checkpoints/3": "lies among the files of the run",
        "runs/one/policy/more": "lies among the files of the run",
    }.items():
        with pytest.raises(OutputError, match=words):
            check_apart(tmp_path / refused, run)
        with pytest.raises(OutputError, match=words):
            check_apart(os.path.relpath(tmp_path / refused), tmp_path / "link")
    check_apart("gs://bucket/runs/one-policy", "gs://bucket/runs/one")
    check_apart("gs://bucket/runs/one/policy-100", "gs://bucket/runs/one/")
    check_apart(tmp_path, "gs://bucket/runs/one")
    for refused in ("gs://bucket/runs/one/", "gs://bucket", "gs://bucket/runs", "gs://bucket/runs/one/checkpoints/3"):
        with pytest.raises(OutputError):
            check_apart(refused, "gs://bucket/runs/one")


def test_a_file_for_figures_is_a_file_of_figures(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "figures.json").write_text("{}")
    (tmp_path / "empty").touch()
    for allowed in ("figures.json", "empty", "new.json", "some/new.json"):
        check_file(tmp_path / allowed, "JSON")
    for refused, kind, words in (
        ("", "JSON", "is not a file"),
        ("thesis.tex", "JSON", "is there and is no JSON file"),
        ("figures.json", "PNG", "is there and is no PNG file"),
        ("thesis.tex/figures.json", "JSON", "cannot be written"),
    ):
        with pytest.raises(OutputError, match=words):
            check_file(tmp_path / refused, kind)
    with pytest.raises(OutputError, match="/dev/null is not a file"):
        check_file("/dev/null", "PNG")
    assert sorted(os.listdir(tmp_path)) == ["empty", "figures.json", "thesis.tex"]
    outputs.write_file(tmp_path / "some" / "new.json", "{}")
    assert (tmp_path / "some" / "new.json").read_text() == "{}"
