"""A study from its grid to its report. Its cells are real processes of a stand-in for training and evaluation."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats
from stand_in_cells import SAMPLES, truth
from study_config import RATES, SEEDS, get_config

from actfer_jax.config import ConfigError
from actfer_jax.errors import UserError
from actfer_jax.parallel.hosts import termination
from actfer_jax.studies.cell import locked
from actfer_jax.studies.config import read_study_config
from actfer_jax.studies.grid import Command, cells_of, named, needed_by
from actfer_jax.studies.page import write_report
from actfer_jax.studies.plan import plan_text
from actfer_jax.studies.report import COSTS, make_report
from actfer_jax.studies.run import Study, run_cells
from actfer_jax.studies.verify import verify

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "stand_in_cells.py"


def study_of(workdir: Path, **changes) -> Study:
    return Study(read_study_config(get_config(**changes)), workdir)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(Command, "argv", property(lambda self: [sys.executable, str(STAND_IN), *self.arguments]))


def run(study: Study, names: list[str] | None = None) -> dict[str, str]:
    wanted = named(study.cells, names or [])
    return run_cells(study, wanted, 2, SimpleNamespace(noticed=0))


def report_of(study: Study) -> dict:
    """The report without what differs from run to run."""
    report = json.loads(json.dumps(make_report(study, {})))
    return {key: value for key, value in report.items() if key not in COSTS}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Study:
    study = study_of(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Command, "argv", property(lambda self: [sys.executable, str(STAND_IN), *self.arguments]))
        assert run(study) == {}
        write_report(make_report(study, {}), study.workdir / "report")
    return study


def test_a_cell_follows_what_it_needs_and_a_search_has_seeds_of_its_own():
    cells = cells_of(read_study_config(get_config()))
    assert len(cells) == 3 + 3 + 3 + 2
    for place, cell in enumerate(cells):
        assert all(needed in cells[:place] for needed in needed_by(cell, cells))
    assert {cell.seed for cell in cells if cell.value is not None} == {100}
    later = next(cell for cell in cells if cell.name == "later/seed-2")
    assert later.start is not None and later.start.name == "weak/seed-2"


def test_the_plan_shows_every_command_and_what_the_design_can_see(tmp_path):
    said = plan_text(study_of(tmp_path))
    assert said.count("actfer_jax.train") == said.count("actfer_jax.evaluate") == 11
    assert f"--config.model.path={tmp_path}/cells/weak/seed-2/run/policy" in said
    assert said.count("--config.optimizer.learning_rate=CHOSEN") == 3
    assert said.count("--config.data.split=validation") == 3
    assert re.search(r"Strong − weak +3 +3\.26 SD", said)


def test_the_report_says_what_the_policies_did(finished):
    report = json.loads((finished.workdir / "report" / "report.json").read_text())
    weak, strong, later = report["methods"]
    by_rate = {rate: np.mean(truth("strong", 100, "validation", rate)) for rate in RATES}
    best = max(by_rate, key=by_rate.get)
    assert strong["search"]["value"] == best and strong["search"]["means"] == pytest.approx(
        {f"{rate:g}": mean for rate, mean in by_rate.items()}
    )
    right = {"strong": np.array([truth("strong", seed, rate=best) for seed in SEEDS], float)}
    right["weak"] = np.array([truth("weak", seed) for seed in SEEDS], float)
    figure = strong["figures"]["accuracy"]
    assert figure["value"] == pytest.approx(right["strong"].mean()) and figure["over"] == "seeds and samples"
    assert list(figure["by_seed"].values()) == pytest.approx(list(right["strong"].mean(1)))
    expected = stats.ttest_rel(right["strong"].mean(1), right["weak"].mean(1))
    first, second = report["contrasts"]
    assert (first["t"], first["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert min(first["holm"], second["holm"]) == pytest.approx(2 * min(first["p"], second["p"]))
    assert second["seeds"] == [1, 2] and later["seeds"] == [1, 2]
    assert weak["zoom"]["fear"] == {"all": 0.5, "subtle": 1.0, "plain": 0.0}
    assert weak["curves"]["reward/total"]["mean"] == pytest.approx([step / 6 for step in range(1, 7)])
    # Grey crops spoil all subtle faces: they lose what they had, 0.85 for each that was right.
    subtle = np.array([n % 4 < 2 and n % 2 == 0 for n in range(SAMPLES)])
    assert weak["utility"]["anger"]["measured"] == pytest.approx(list(0.85 * right["weak"][:, subtle].mean(1)))
    assert report["cost"]["weak"]["policy_tokens"] == 6 * 8 * 30


def test_the_report_is_one_page_markdown_and_latex(finished):
    directory = finished.workdir / "report"
    page = (directory / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page.replace("http-equiv", "")
    for text in (page, (directory / "report.md").read_text(), (directory / "report.tex").read_text()):
        assert "Strong" in text and "Holm" in text
    assert r"\begin{tabular}" in (directory / "report.tex").read_text()
    assert {path.stem for path in directory.glob("*.png")} == {"primary", "curves", "zoom", "utility"}


def test_a_finished_study_runs_nothing_again(finished, monkeypatch):
    monkeypatch.setattr(Command, "argv", property(lambda self: ["false"]))
    assert run(finished) == {}


def test_a_cell_that_fails_is_named_with_the_end_of_its_log_and_the_rest_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("STAND_IN_FAILS", "weak")
    study = study_of(tmp_path)
    problems = run(study)
    assert problems["weak/seed-1"] == "train ended with status 1"
    assert problems["later/seed-1"] == "it needs weak/seed-1, which is not done"
    assert {name.partition("/")[0] for name in problems} == {"weak", "later"}
    assert "weak/seed-1 failed: train ended with status 1" in caplog.text and "weak was told to fail" in caplog.text
    report = make_report(study, problems)
    assert report["methods"][0]["figures"]["accuracy"]["value"] is None and report["contrasts"][0]["p"] is None
    write_report(report, tmp_path / "report")
    assert "weak/seed-1" in (tmp_path / "report" / "report.md").read_text()
    monkeypatch.delenv("STAND_IN_FAILS")
    assert run(study) == {}


def test_parts_that_others_run_make_the_same_report(tmp_path, finished):
    study = study_of(tmp_path)
    assert run(study, ["strong/seed-1"]) == {"strong/seed-1": "it needs strong/search/1/seed-100, which is not done"}
    for part in (["strong/*"], ["*/seed-1"], ["*/seed-2", "*/seed-3"]):
        assert run(study, part) == {}
    assert report_of(study) == report_of(finished)
    with pytest.raises(UserError, match=r"--cells=gpro/\* matches no cell"):
        run(study, ["gpro/*"])


def test_a_changed_config_is_refused_by_the_cells_that_are_there(finished):
    config = get_config(settings=("steps=7",))
    changed = Study(read_study_config(config), finished.workdir)
    problems = run(changed, ["weak/seed-1"])
    assert "--config.steps=6, and the config asks for --config.steps=7" in problems["weak/seed-1"]


def test_a_cell_that_another_process_runs_is_waited_for_even_if_that_was_orphaned(tmp_path, monkeypatch):
    """The lock stays with a child that a killed study leaves behind."""
    study = study_of(tmp_path)
    cell = next(one for one in study.cells if one.name == "weak/seed-1")
    directory = study.directory(cell)
    with locked(directory) as lock:
        orphan = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with locked(directory) as lock:
        assert lock is None
    orphan.communicate(b"\n")
    with locked(directory) as lock:
        assert lock is not None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_was_killed_or_told_to_stop_ends_with_the_same_report(tmp_path, finished, number, monkeypatch):
    study = study_of(tmp_path)
    monkeypatch.setenv("STAND_IN_STEP", "0.02")
    if (process := os.fork()) == 0:
        with termination() as stop:
            run_cells(study, study.cells, 2, stop)
        os._exit(3 if stop.noticed else 0)
    wanted = random.Random(int(number)).randrange(1, 9)
    while len(list(tmp_path.rglob("cell.json"))) < wanted:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(process, number)
    ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert ended == (3 if number == signal.SIGTERM else -number)
    assert not all(map(study.is_done, study.cells))
    assert run(study) == {}
    assert report_of(study) == report_of(finished)


def test_verify_finds_what_does_not_repeat(tmp_path):
    study, stop = study_of(tmp_path), SimpleNamespace(noticed=0)
    assert run(study, ["weak/*"]) == {}
    assert verify(study, 9, 2, stop) == {}
    assert len(list((tmp_path / "verify").rglob("results.json"))) == 3
    first, second = (study.directory(cell) for cell in named(study.cells, ["weak/seed-1", "weak/seed-2"]))
    metrics = first / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"reward/total": 0.5,', '"reward/total": 0.5000001,'))
    shard = next(second.glob("*/episodes/*.jsonl"))
    shard.write_text(shard.read_text().replace('"right"', '"wrong"', 1))
    told = verify(study, 3, 2, stop)
    assert told == {
        "weak/seed-1": "step 3, metric reward/total: 0.5000001 in the first run, 0.5 in the second",
        "weak/seed-2": "greedy: episode normal/faces/0, turn 1\n  first:  'wrong'\n  second: 'right'",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": "acuracy"}, r"^config\.primary names 'acuracy'; did you mean accuracy\?"),
        ({"contrasts": (("strong", "week"),)}, r"^config\.contrasts\[0\] names 'week'; did you mean weak\?"),
        ({"selection": ConfigDict({"seeds": (3,)})}, r"^config\.selection\.seeds has 3, which is a seed of the study"),
        ({"settings": ("steps",)}, r"^config\.settings\[0\] is 'steps'; it must be KEY=VALUE"),
        ({"seeds": ()}, r"^config\.seeds is empty"),
    ],
)
def test_mistakes_in_a_study_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_study_config(get_config(**changes))
