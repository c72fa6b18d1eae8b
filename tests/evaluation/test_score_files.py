"""Score files of other programs: what is written is read by other code, and read back to the same figures."""

import csv
import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from absl import flags
from etils import epath
from huggingface_hub import parse_eval_result_entries

from actfer_jax import plugins, table
from actfer_jax.agent.chat import Chat
from actfer_jax.agent.episode import Episode
from actfer_jax.episodes.store import EpisodeWriter
from actfer_jax.errors import UserError
from actfer_jax.evaluation.confidence import confidence
from actfer_jax.evaluation.ferbench import Item, summarise
from actfer_jax.evaluation.metrics import Outcome
from actfer_jax.evaluation.metrics import summarise as summarise_episodes
from actfer_jax.evaluation.predictions import read_predictions, score_predictions
from actfer_jax.evaluation.share import share
from actfer_jax.models import demo_checkpoint
from actfer_jax.runs.provenance import provenance
from tests.evaluation.test_ferbench import LABELS, macro_f1, merged

FORMATS = plugins.names("evaluation.formats")
READ_BACK = [name for name in FORMATS if hasattr(plugins.load("evaluation.formats", name), "prediction")]
CONTROLS = {"normal": 0.8, "no_tools": 0.4}
ENDED = (False, (), (), 1, False)  # inspected, regions, calls, turns, truncated


def played(seed: int, right: float) -> list[tuple[str, str, str, str]]:
    """The subset, name, truth and answer ("" for none) of each item."""
    draw, items = random.Random(seed), []
    for subset, labels in LABELS.items():
        for index in range(25):
            truth = random.Random(f"{subset}{index}").choice(labels)
            answer = truth if draw.random() < right else draw.choice([*labels, ""])
            items.append((subset, f"{subset}/{index}.jpg", truth, answer))
    return items


def response(answer: str) -> str:
    ending = f"<aus>AU4 AU27</aus>\n<answer>{answer}</answer>" if answer else "<answer>"
    return f'<think>a "word"\tand\n| another</think>\n{ending}'


def record(control: str, item: tuple[str, str, str, str], subject: str) -> dict:
    subset, name, truth, answer = item
    return {
        **dict.fromkeys(("token_ids", "loss_mask", "logprobs", "raw_logprobs"), []),
        "id": f"{control}/ferbench/{name}",
        "dataset": "ferbench",
        "image": name,
        "turns": [{"text": response(answer), "reply": None}],
        "prediction": {"aus": [4, 27] if answer else None, "emotion": merged([answer])[0] or None},
        "reference": {
            "aus": [4, 12],
            "known_aus": [4, 12],
            "emotion": truth,
            "labels": LABELS[subset],
            "strata": [subset, "female"],
            "extra": {"subject": subject} if subject else {},
        },
        "reward": None,
        "advantage": None,
        "confidence": 0.75 if answer else None,
    }


def write_evaluation(directory: Path, *, subjects: int = 0) -> dict[str, list[tuple[str, str, str, str]]]:
    """An evaluation as `evaluate` leaves it: records and results, without pictures."""
    directory.mkdir()
    writer, summaries, items_of = EpisodeWriter(directory), {}, {}
    for number, (control, right) in enumerate(CONTROLS.items()):
        items_of[control] = items = played(number, right)
        people = [f"s{n % subjects}" if subjects else "" for n in range(len(items))]
        writer.write(number, [(record(control, *one), []) for one in zip(items, people, strict=True)])
        counted = [Item(subset, truth, answer or "unknown") for subset, _, truth, answer in items]
        summaries[control] = summarise(counted, "strict", seed=0)
    config = {"benchmark": {"name": "ferbench", "protocol": "strict"}, "faces": {"steps": ["hog"]}}
    made = provenance("ferbench", "test", len(items), "runs/my policy")
    (directory / "results.json").write_text(json.dumps({"provenance": made, "config": config, "results": summaries}))
    return items_of


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scores")
    items = write_evaluation(directory / "run")
    share(epath.Path(directory / "run"), FORMATS, epath.Path(directory / "shared"))
    return SimpleNamespace(run=directory / "run", shared=directory / "shared", items=items)


def accuracy(items: list[tuple[str, str, str, str]]) -> float:
    return sum(truth == answer for _, _, truth, answer in items) / len(items)


def rows(text: str, **kind: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), **kind))


@pytest.mark.parametrize("control", CONTROLS)
def test_others_read_what_was_answered(evaluation, control):
    """Each file by its own program's rules, written anew here."""
    items = evaluation.items[control]
    for subset, labels in LABELS.items():
        mine = [one for one in items if one[0] == subset]
        answered = [answer for *_, answer in mine]
        (unifer,) = (evaluation.shared / "unifer" / control).glob(f"ferbench_{subset}_my_policy_results.json")
        found = json.loads(unifer.read_text())
        assert [one["model_response"] for one in found] == [response(answer) for answer in answered]
        assert [(one["image_path"], one["true_label"]) for one in found] == [
            (name, truth) for _, name, truth, _ in mine
        ]
        assert all(one["candidate_labels"] == labels and not one.get("error") for one in found)

        (samples,) = (evaluation.shared / "lmms_eval" / control).glob(f"*_samples_ferbench_{subset}.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        assert [line["doc_id"] for line in lines] == list(range(25))
        assert [line["filtered_resps"] for line in lines] == answered
        equal = [line["filtered_resps"].strip().upper() == line["target"].strip().upper() for line in lines]
        assert [line["score"] for line in lines] == equal
        results = json.loads(Path(re.sub("_samples_.*", "_results.json", str(samples))).read_text())
        assert results["results"][f"ferbench_{subset}"]["score,none"] == pytest.approx(accuracy(mine))

        tsv = (evaluation.shared / "vlmevalkit" / control / f"my_policy_ferbench_{subset}.tsv").read_text()
        for row, (_, name, truth, answer) in zip(rows(tsv, delimiter="\t"), mine, strict=True):
            options = {letter: row[letter] for letter in "ABCDEFGH"[: len(labels)]}
            assert list(options.values()) == labels and options[row["answer"]] == truth and row["image_path"] == name
            assert options.get(row["prediction"], "") == answer and (answer or row["prediction"] == "Z")

    fex = rows((evaluation.shared / "pyfeat" / control / "my_policy_fex.csv").read_text())
    emotions = "anger disgust fear happiness sadness surprise neutral contempt".split()
    for row, (_, name, truth, answer) in zip(fex, items, strict=True):
        assert (row["input"], row["true_label"]) == (name, truth) and row["true_aus"] == "4 12"
        expected = {emotion: str(float(emotion == merged([answer])[0])) if answer else "" for emotion in emotions}
        assert {emotion: row[emotion] for emotion in emotions} == expected
        assert (row["AU04"], row["AU12"], row["x_67"]) == (("1.0", "0.0", "") if answer else ("", "", ""))
        assert "AU27" not in row  # It is not among the known ones.

    name = {"normal": "ferbench.yaml", "no_tools": "ferbench-no_tools.yaml"}[control]
    path = evaluation.shared / "hub" / ".eval_results" / name
    entries = {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(path.read_text()))}
    assert entries["accuracy"].value == pytest.approx(100 * accuracy(items), abs=0.006)
    assert {entry.dataset_id for entry in entries.values()} == {"Karl28/UniFER"}
    assert entries["rafdb_accuracy"].notes == {"normal": "tools", "no_tools": "no-tools"}[control]


@pytest.mark.parametrize("name", READ_BACK)
def test_what_was_written_is_scored_as_it_was_played(evaluation, tmp_path, name):
    items = evaluation.items["normal"]
    files = [
        path for path in (evaluation.shared / name / "normal").iterdir() if name == "unifer" or "_res" not in path.name
    ]
    score_predictions([epath.Path(file) for file in files], "ferbench", "strict", epath.Path(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for subset in LABELS:
        part = [one for one in items if one[0] == subset]
        assert found["subsets"][subset]["n"] == 25
        assert found["subsets"][subset]["accuracy"] == pytest.approx(accuracy(part))
    truths, answers = zip(*((truth, answer or "unknown") for *_, truth, answer in items), strict=True)
    expected = macro_f1(merged(truths), merged(answers), without="unknown")
    assert found["overall"]["macro_f1"] == pytest.approx(expected)
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert {(one["name"], one["predicted"]) for one in lines} == {
        (path, answer or None) for _, path, _, answer in items
    }


FOREIGN = {
    "20250101_1200_samples_ferbench_sfew_2.0.jsonl": "\n".join(
        json.dumps({"doc_id": n, "input": "?", "target": "fear", **responses})
        for n, responses in enumerate(
            [
                {"resps": [["<answer>fear</answer>"]], "filtered_resps": ["x"]},
                {"filtered_resps": ["<answer>sad</answer>"]},
            ]
        )
    ),
    "model_rafdb.tsv": "index\tquestion\tA\tB\tC\tanswer\tcategory\tprediction\n"
    "0\t?\tfear\tanger\t\tA\trafdb\t(A).\n1\t?\tfear\tanger\tsurprise\tB\trafdb\tC\n",
    "fex.csv": "fear,anger,input,true_label,candidate_labels\n0.7,0.2,RAF-DB/1.jpg,fear,fear;anger\n"
    "0.9,0.1,RAF-DB/2.jpg,anger,fear;anger\n,,RAF-DB/3.jpg,anger,fear;anger\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_programs_are_scored(tmp_path, name):
    (tmp_path / name).write_text(FOREIGN[name])
    score_predictions([epath.Path(tmp_path / name)], "ferbench", "strict", epath.Path(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    subset = "sfew_2.0" if name.endswith("jsonl") else "rafdb"
    count = FOREIGN[name].strip().count("\n") + name.endswith("jsonl")
    assert found["subsets"][subset]["n"] == count and found["overall"]["accuracy"] == pytest.approx(1 / count)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "index\tA\tanswer\tprediction\n0\tfear\tB\tA\n", "line 2: answer is 'B'; it must be the letter"),
        ("a.tsv", "index\tA\tanswer\n0\tfear\tA\n", "line 2: prediction is missing"),
        ("a.csv", "fear,input\n0.5,1.jpg\n", "line 2: add the columns true_label and candidate_labels"),
        (
            "a.csv",
            "fear,input,true_label,candidate_labels\nx,1.jpg,fear,fear\n",
            "line 2: fear is 'x'; it must be a num",
        ),
        ("a.jsonl", '{"filtered_resps": [], "target": "fear"}', "line 1: resps is .*; it must have a text"),
        ("a.jsonl", '{"filtered_resps": "fear"}', "line 1: target is missing"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}, {words}"):
        read_predictions(epath.Path(tmp_path / name))


def test_labels_that_are_not_the_subsets_are_named(tmp_path):
    file = tmp_path / "1_samples_rafdb.jsonl"
    file.write_text('{"doc_id": 0, "filtered_resps": "fear", "target": "contempt"}')
    with pytest.raises(UserError, match="line 1: the true label is 'contempt', none of rafdb's"):
        score_predictions([epath.Path(file)], "ferbench", "strict", epath.Path(tmp_path / "out"))


def show(monkeypatch, capsys, *runs: Path, **given: object) -> str:
    chosen = {"format": "csv", "strata": False, "compare": False, "pool": False, "metrics": []} | given
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(**chosen))
    table.main(["table", *map(str, runs)])
    return capsys.readouterr().out


def test_a_table_shows_measured_rows_and_published_ones(evaluation, monkeypatch, capsys):
    normal, no_tools, actfer, unifer = rows(show(monkeypatch, capsys, evaluation.run))
    for row, control in ((normal, "normal"), (no_tools, "no_tools")):
        items = evaluation.items[control]
        assert (row["control"], row["n"], row["tools"], row["source"]) == (control, "100", "dlib", "measured")
        assert row["accuracy"].split(" ±")[0] == f"{100 * accuracy(items):.2f}"
        error = abs(0.75 - np.mean([truth == answer for *_, truth, answer in items if answer]))
        assert row["ECE"] == f"{100 * error:.2f}"
    assert (actfer["accuracy"], actfer["macro F1"], actfer["tools"]) == ("73.89", "67.45", "InsightFace")
    assert actfer["source"] == "published, arXiv 2604.08990" and actfer["rafdb accuracy"] == "-"
    assert unifer["run"] == "UniFER-7B" and unifer["macro F1"] == "-"


def test_the_same_table_as_markdown_and_latex(evaluation, monkeypatch, capsys):
    cells = [list(row.values()) for row in rows(show(monkeypatch, capsys, evaluation.run))]
    markdown = show(monkeypatch, capsys, evaluation.run, format="md").splitlines()
    *body, blank, note = [line.replace("**", "") for line in markdown[2:]]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in body] == cells
    assert not blank and "± is half" in note and "bold is the best" in note
    latex = show(monkeypatch, capsys, evaluation.run, format="latex")
    lines = [line.removesuffix(r" \\").split(" & ") for line in latex.splitlines() if line.endswith(r" \\")]
    # Of each column the best of the two measured rows, and no published one, is bold.
    best = [[cell.startswith(r"\textbf{") for cell in line[5:-1]] for line in lines[1:]]
    figures = [[float(cell.split()[0]) if cell != "-" else np.nan for cell in row[5:-1]] for row in cells[:2]]
    is_error = np.array([name == "ECE" for name in lines[0][5:-1]])
    sign = np.where(is_error, -1, 1)
    assert np.array_equal(best[:2], np.array(figures) * sign == np.max(np.array(figures) * sign, 0))
    assert not np.any(best[2:])
    latex = re.sub(r"\\textbf{([^}]*)}", r"\1", latex).partition("% In percent")[0]
    lines = [line.removesuffix(r" \\").split(" & ") for line in latex.splitlines() if line.endswith(r" \\")]
    plain = [[cell.replace(r"\_", "_").replace(r"$\pm$", "±") for cell in line] for line in lines]
    assert plain[1:] == cells and "_" not in latex.replace(r"\_", "")
    assert re.search(r"\\begin{tabular}{([lr]+)}", latex)[1].count("") - 1 == len(cells[0])


def test_the_figures_of_a_table_are_chosen_by_name(evaluation, monkeypatch, capsys):
    (heading, *_) = show(monkeypatch, capsys, evaluation.run, metrics=["ece", "accuracy"]).splitlines()
    assert heading == "run,control,data,n,tools,ECE,accuracy,source"
    with pytest.raises(UserError, match="--metrics names acuracy; there are: accuracy, macro_f1"):
        show(monkeypatch, capsys, evaluation.run, metrics=["acuracy"])


def test_runs_are_tested_against_each_other_and_against_their_controls(evaluation, tmp_path, monkeypatch, capsys):
    first, second = evaluation.items["normal"], evaluation.items["no_tools"]
    only = Counter((one[2] == one[3], two[2] == two[3]) for one, two in zip(first, second, strict=True))
    found = rows(show(monkeypatch, capsys, evaluation.run, compare=True))
    assert [row["figure"] for row in found] == ["accuracy", "macro F1", "AU F1"]
    assert found[0]["test"] == f"McNemar, exact ({only[True, False]} against {only[False, True]})"
    assert float(found[0]["difference"]) == pytest.approx(100 * (accuracy(first) - accuracy(second)), abs=0.006)

    # A run against the scores of a file, and one whose samples show people.
    file = next((evaluation.shared / "unifer" / "no_tools").glob("*rafdb*"))
    score_predictions([epath.Path(file)], "ferbench", "strict", epath.Path(tmp_path / "file"))
    other = rows(show(monkeypatch, capsys, evaluation.run, tmp_path / "file", compare=True))
    assert [(row["figure"], row["n"]) for row in other] == [("accuracy", "25"), ("macro F1", "25")]
    write_evaluation(tmp_path / "people", subjects=7)
    people = rows(show(monkeypatch, capsys, tmp_path / "people", compare=True))
    assert {row["test"] for row in people} == {"sign flips of 7 subjects"}


def test_strata_have_rows_of_their_own(tmp_path, monkeypatch, capsys):
    played = [("a",), ("a", "b"), ("b",), ()]
    outcomes = [
        Outcome(("fear", "joy"), "fear", "fear" if "a" in strata else "joy", True, None, None, strata, *ENDED)
        for strata in played
    ]
    config = {"benchmark": {"name": "recognition"}, "faces": {"steps": ["imported"]}}
    results = {"provenance": provenance("mine", "all", 4, "demo"), "config": config}
    results["results"] = {"normal": summarise_episodes(outcomes)}
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = rows(show(monkeypatch, capsys, tmp_path, strata=True))
    assert [(row["stratum"], row["n"], row["accuracy"].split()[0]) for row in found] == [
        ("a", "2", "100.00"),
        ("b", "2", "50.00"),
    ]


def test_score_files_replace_only_score_files(evaluation, tmp_path):
    run, out = epath.Path(evaluation.run), epath.Path(tmp_path / "out")
    share(run, ["unifer", "hub"], out)
    (out / "notes.txt").write_text("mine")
    assert share(run, ["hub"], out) == [f"hub/.eval_results/ferbench{name}.yaml" for name in ("-no_tools", "")]
    assert not list(out.glob("unifer/*/*")) and (out / "notes.txt").read_text() == "mine"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="files that are not of score files"):
        share(run, ["hub"], epath.Path(tmp_path))


def test_what_cannot_be_shown_is_said(evaluation, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="has no results.json"):
        show(monkeypatch, capsys, tmp_path)
    with pytest.raises(UserError, match="no figures by strata"):
        show(monkeypatch, capsys, evaluation.run, strata=True)
    results = json.loads((evaluation.run / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="neither episodes nor answers.jsonl"):
        show(monkeypatch, capsys, tmp_path)
    results["config"]["benchmark"] = {"name": "recognition"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match="several benchmarks"):
        show(monkeypatch, capsys, evaluation.run, tmp_path)


def test_confidence_is_the_probability_of_the_labels_tokens():
    chat = Chat.from_pretrained(demo_checkpoint())
    text = "<think>happiness? mouth: AU12</think>\n<aus>AU6 AU12</aus>\n<answer>happiness</answer>"
    before = chat.tokenizer("<|im_start|>user\nhappiness", add_special_tokens=False).input_ids
    turn = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = [*before, *turn.input_ids, chat.turn_end_id]
    log_probs = -np.random.default_rng(0).random(len(tokens)).astype(np.float32)
    start = text.rindex("happiness")
    overlapping = [n for n, (low, high) in enumerate(turn.offset_mapping) if high > start and low < start + 9]
    rollout = SimpleNamespace(
        episode=Episode.from_texts(text),
        sequence=SimpleNamespace(tokens=tokens, loss_mask=[0] * len(before) + [1] * (len(turn.input_ids) + 1)),
        raw_log_probs=log_probs,
    )
    expected = np.exp(sum(float(log_probs[len(before) + n]) for n in overlapping))
    assert confidence(chat, rollout) == pytest.approx(expected, rel=1e-6) and 0 < expected < 1
    rollout.episode = Episode.from_texts("<think>x</think><aus>AU4</aus>")
    assert confidence(chat, rollout) is None
