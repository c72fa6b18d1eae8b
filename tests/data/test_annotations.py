"""Action units from annotators: each program's CSV as it writes it, labels reckoned by hand, coverage and marks."""

import json
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from data_fixtures import picture, put
from hypothesis import given
from hypothesis import strategies as st

from actfer_jax import cli, facs
from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.config import ConfigError, read_config
from actfer_jax.data import check as door
from actfer_jax.data.annotations import agreed, picture_key, pseudo_mark, read_annotations
from actfer_jax.data.annotators import AnnotationsConfig
from actfer_jax.data.sources import DataConfig, DataError, open_source
from actfer_jax.evaluation.metrics import label_notes, outcome
from actfer_jax.runs.provenance import heading, provenance


def labels_of(folder: Path, name: str, **keys: Any) -> dict[str, str]:
    """By picture: "+" and the present action units, "-" and the absent ones."""
    config = read_config({"name": name, "file": "out"} | keys, AnnotationsConfig, "data.annotations")
    read = read_annotations(config, folder)
    return {
        key: " ".join(f"{'+' if present else '-'}{au}" for au, present in labels.items())
        for key, labels in read.labels.items()
    }


# The surest face of a.jpg has AU12 at the threshold; another column order than in older versions, and a NaN. On c.jpg
# no face was found. Of the video, frames are rows.
PY_FEAT = """\
frame,FaceScore,FaceRectX,AU01,AU04,AU12,AU43,anger,input
0,0.71,5,0.9,0.9,0.1,0.2,0.1,C:\\faces\\a.jpg
0,0.99,9,0.1,0.51,0.5,,0.1,C:\\faces\\a.jpg
1,0.98,7,0.2,NaN,0.49,1,0.1,C:\\faces\\b.jpg
2,,,,,,,,C:\\faces\\c.jpg
0,0.9,1,0.6,0.1,0.1,0,0,/v/talk.mp4
24,0.9,1,0.1,0.1,0.7,0,0,/v/talk.mp4
"""


def test_py_feat(tmp_path):
    put(tmp_path / "out", PY_FEAT)
    assert labels_of(tmp_path, "py_feat") == {
        "a": "-1 +4 +12",
        "b": "-1 -12 +43",
        "0": "+1 -4 -12 -43",
        "24": "-1 -4 +12 -43",
    }
    found = labels_of(tmp_path, "py_feat", threshold=0.6, confidence=0.985, path_parts=2)
    assert found == {"faces/a": "-1 -4 -12"}
    assert set(labels_of(tmp_path, "py_feat", path_parts=2)) == {"faces/a", "faces/b", "talk/0", "talk/24"}


# Cells begin with a blank, lines end with CR LF, and there is no face_id in old versions. AU4: the models differ. AU28
# has no intensity, AU45 is none of ours.
OPENFACE_2 = (
    "frame, timestamp, confidence, success, AU01_r, AU04_r, AU12_r, AU45_r, AU01_c, AU04_c, AU12_c, AU28_c, AU45_c\r\n"
    "{frame}, 0.000, {confidence}, {success}, 0.00, 0.99, 1.00, 3.10, 0.00, 1.00, 1.00, 0.00, 1.00\r\n"
)


def test_openface_2(tmp_path):
    for name, row in {
        "a": {"confidence": 0.98, "success": 1},
        "more/0007": {"confidence": 0.8, "success": 1},
        "unsure": {"confidence": 0.79, "success": 1},
        "lost": {"confidence": 0.98, "success": 0},
    }.items():
        put(tmp_path / f"out/{name}.csv", OPENFACE_2.format(frame=1, **row))
    put(tmp_path / "out/notes.txt", "not read")
    assert labels_of(tmp_path, "openface2") == {"a": "-1 +12 -28", "7": "-1 +12 -28"}
    assert labels_of(tmp_path, "openface2", intensity=0.5)["a"] == "-1 +4 +12 -28"
    video = OPENFACE_2.format(frame=1, confidence=0.9, success=1)
    video += OPENFACE_2.format(frame=2, confidence=0.1, success=1).partition("\n")[2]
    video += OPENFACE_2.format(frame=3, confidence=0.9, success=1).partition("\n")[2]
    put(tmp_path / "out/unsure.csv", video)
    put(tmp_path / "out/once.csv", "\n".join(video.split("\n")[:3]))
    assert set(labels_of(tmp_path, "openface2", path_parts=2)) == {"out/a", "more/7", "once/1", "unsure/1", "unsure/3"}


OPENFACE_3 = """\
timestamp,image_path,face_id,face_detection,landmarks,emotion,gaze_yaw,gaze_pitch,action_units
t,/x/a.png,0,"[1, 2]",[],4,0.1,0.1,"[[0.9, 0.1, 0.5, 0.49, -0.3, 1.7, NaN, 0]]"
t,/x/a.png,1,"[3, 4]",[],4,0.1,0.1,"[[0.9, 0.1, 0.5, 0.49, -0.3, 1.7, NaN, 0]]"
t,/x/b.png,0,"[1, 2]",[],4,0.1,0.1,{cell}
"""


def test_openface_3(tmp_path):
    put(tmp_path / "out/face_analysis_a.csv", OPENFACE_3.format(cell=""))
    assert labels_of(tmp_path, "openface3") == {"a": "+1 -2 +4 -6 -9 +12 -26"}
    order = (26, 25, 12, 9, 6, 4, 2, 1)
    assert labels_of(tmp_path, "openface3", aus=order) == {"a": "-1 +4 -6 -9 +12 -25 +26"}


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        (
            "\"__import__('os').mkdir('evaluated')\"",
            "mkdir('evaluated')\", no list of numbers",
        ),
        ("[[[1]]]", "action_units is '[[[1]]]', no list of numbers"),
        (f'"{"[" * 100_000}"', "no list of numbers"),
        (f'"[{"1" * 5000}]"', "no list of numbers"),
        ('"[true, 1, 1, 1, 1, 1, 1, 1]"', "no list of numbers"),
        ('"[1, 2]"', "action_units has 2 numbers, and annotations.aus names 8"),
    ],
)
def test_a_text_in_the_place_of_numbers_is_named_and_never_evaluated(tmp_path, monkeypatch, cell, what):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "out", OPENFACE_3.format(cell=cell))
    config = read_config({"name": "openface3", "file": "out"}, AnnotationsConfig, "data.annotations")
    (problem,) = read_annotations(config, tmp_path).problems
    assert (problem.file, problem.line) == ("out", 4) and what in problem.what
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# AU1: both say so. AU2: detected without an intensity to speak of. AU5, AU7: known to one of the two models only.
LIBREFACE = """\
,facial_expression,gaze_yaw,lm_mp_0_x,au_1,au_2,au_7,au_12,AU_1_intensity,au_2_intensity,au_5_intensity,au_12_intensity
0,Happiness,0.1,0.5,1,1,0,0,2.0,1.99,2.5,0.3
"""
# What `pd.DataFrame(get_facial_attributes_image(...)).to_csv()` writes: a row for each action unit.
LIBREFACE_LONG = """\
,input_image_path,aligned_image_path,detected_aus,au_intensities,facial_expression
au_1,/x/b.jpg,/t/b_aligned.jpg,1.0,,Happiness
au_1_intensity,/x/b.jpg,/t/b_aligned.jpg,,2.0,Happiness
au_12,/x/b.jpg,/t/b_aligned.jpg,0.0,,Happiness
au_12_intensity,/x/b.jpg,/t/b_aligned.jpg,,4.1,Happiness
au_5_intensity,/x/b.jpg,/t/b_aligned.jpg,,0.2,Happiness
"""
LIBREFACE_VIDEO = """\
frame_idx,frame_time_in_ms,au_1,au_1_intensity
0,0.0,1,3.0
1,33.3,0,0.0
"""


def test_libreface_in_all_its_layouts(tmp_path):
    put(tmp_path / "out/a.csv", LIBREFACE)
    put(tmp_path / "out/sample_results.csv", LIBREFACE_LONG)
    put(tmp_path / "out/talk.csv", LIBREFACE_VIDEO)
    assert labels_of(tmp_path, "libreface") == {
        "a": "+1 +5 -7 -12",
        "b": "+1 -5",
        "0": "+1",
        "1": "-1",
    }
    assert labels_of(tmp_path, "libreface", intensity=1.5)["a"] == "+1 +2 +5 -7 -12"


@given(st.lists(st.dictionaries(st.integers(1, 6), st.booleans())))
def test_what_models_do_not_agree_on_is_not_known(labels):
    merged = agreed(labels)
    for au in range(1, 7):
        said = {one[au] for one in labels if au in one}
        assert merged.get(au, "unknown") == (said.pop() if len(said) == 1 else "unknown")


@pytest.mark.parametrize(
    ("path", "parts", "frame", "key"),
    [
        ("C:\\data\\SN001\\00012.png", 1, "", "12"),
        ("/d/SN001/00012.png", 2, "", "SN001/12"),
        ("SN001.avi", 2, "0012", "SN001/12"),
        ("0000.jpg", 1, "", "0"),
        ("/", 2, "7", "7"),
        ("a.tar.png", 3, "", "a.tar"),
    ],
)
def test_pictures_are_known_by_the_end_of_their_path(path, parts, frame, key):
    assert picture_key(path, parts, frame).lstrip("/") == key


def test_a_section_without_an_annotator_or_its_file_is_refused():
    for section, what in (
        ({"file": "out"}, r"^data\.annotations\.name: '' is none of data\.annotators; there are: libreface"),
        ({"name": "libreface"}, r"^data\.annotations\.file is ''; give the CSV file"),
        ({"name": "libreface", "file": "x", "threshold": 0.5}, r"annotations\.threshold is not a setting"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_config(section, AnnotationsConfig, "data.annotations")


TABLE = """\
image,emotion,aus,split
p/a.jpg,happiness,,train
p/b.jpg,happiness,,train
p/c.jpg,fear,AU1,train
q/a.jpg,,,test
"""
OWN = ",input,FaceScore,AU06,AU12,AU25\n0,/m/p/a.jpg,1,1,1,0\n1,p/b.jpg,1,0,1,0\n2,p/c.jpg,1,1,1,0\n3,p/z.jpg,1,1,1,0\n"


@pytest.fixture
def table(tmp_path) -> dict[str, Any]:
    put(tmp_path / "labels.csv", TABLE)
    put(tmp_path / "faces.csv", OWN)
    for number, name in enumerate(("p/a.jpg", "p/b.jpg", "p/c.jpg", "q/a.jpg")):
        put(tmp_path / name, picture(number))
    annotations = {"name": "py_feat", "file": "faces.csv", "path_parts": 2}
    return {"name": "table", "directory": str(tmp_path), "annotations": annotations}


def references_of(**keys: Any) -> dict[str, Reference]:
    source = open_source(read_config(keys, DataConfig, "data"))
    return {sample.name: sample.reference for sample in map(source.__getitem__, range(len(source)))}


def test_only_what_people_did_not_code_is_taken_from_an_annotator(table):
    found = references_of(**table)
    known = {name: (one.aus, one.known_aus, one.aus_from) for name, one in found.items()}
    assert known == {
        "p/a.jpg": ({6, 12}, {6, 12, 25}, "py-feat"),
        "p/b.jpg": ({12}, {6, 12, 25}, "py-feat"),
        "p/c.jpg": ({1}, None, ""),
    }
    with pytest.raises(DataError, match=r"faces.csv: 'a' is p/a.jpg and q/a.jpg; raise data.annotations.path_parts"):
        references_of(**table | {"annotations": table["annotations"] | {"path_parts": 1}})


def test_samples_whose_action_units_do_not_fit_are_left_out(table):
    assert set(references_of(**table, min_fit=1.0)) == {"p/a.jpg"}
    assert set(references_of(**table, min_fit=0.6)) == {"p/a.jpg", "p/b.jpg"}
    without = {key: value for key, value in table.items() if key != "annotations"}
    assert set(references_of(**without, min_fit=0)) == {"p/c.jpg"}
    put(Path(table["directory"]) / "labels.csv", TABLE.replace("fear", "fearfully surprised"))
    assert len(references_of(**table, min_fit=0)) == 3
    with pytest.raises(DataError, match="p/c.jpg is 'fearfully surprised', of which no prototype is known"):
        references_of(**table, min_fit=0.5)


@pytest.mark.parametrize(
    ("emotion", "aus", "known", "fit"),
    [
        ("happy", {6, 12, 25}, None, 1),
        ("happiness", {12}, None, 2 / 3),
        ("happiness", {12, 4}, None, 2 / 4),
        ("surprise", {1, 2, 25}, None, 2 * 2 / (2 + 4)),
        ("surprise", {1, 2, 25}, {1, 2, 12, 25}, 1),
        ("disgust", {12}, {12}, 0),
        ("neutral", set(), None, 1),
        ("neutral", {4}, None, 0),
    ],
)
def test_fit_is_the_f1_against_the_prototype(emotion, aus, known, fit):
    given = None if known is None else frozenset(known)
    assert facs.fit(emotion, frozenset(aus), given) == pytest.approx(fit)


def test_check_tells_how_much_is_covered(table, tmp_path, monkeypatch, capsys):
    values = flags.FlagValues()
    for name in ("data_dir", "json", "sheet"):
        flags.DEFINE(cli.PathFlag(), name, None, "", flag_values=values)
    for name in ("set", "against"):
        flags.DEFINE_multi_string(name, [], "", flag_values=values)
    argv = ["check", "table", f"--data_dir={tmp_path}", f"--json={tmp_path / 'report.json'}"]
    argv.append(f"--set=annotations={table['annotations']}")
    monkeypatch.setattr(flags, "FLAGS", values)
    door.main(values(argv))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["records"] == 3 and report["aus"]["records"] == {"people": 1, "py-feat": 2}
    assert report["aus"]["rates"]["AU12"] == {"known": 3, "present": 2}
    assert report["aus"]["rates"]["AU25"] == {"known": 3, "present": 0}
    assert [(one["file"], one["what"]) for one in report["problems"]] == [
        ("q/a.jpg", "has no emotion and no action units by py-feat; left out"),
        ("faces.csv", "1 of 4 pictures are none of the data set, the first 'p/z'; not used"),
    ]
    assert "AUs         2 by py-feat, 1 by people (AU1 1/1, AU6 1/3, AU12 2/3)" in capsys.readouterr().out


def test_results_on_such_labels_and_after_them_say_so(table):
    references = references_of(**table)
    answer = Episode.from_texts("<think>x</think><aus>AU6</aus><answer>fear</answer>")
    outcomes = [outcome(answer, reference) for reference in references.values()]
    mark = pseudo_mark(read_config(table["annotations"], AnnotationsConfig, "a"))
    notes = label_notes(outcomes, ["disfa", mark])
    assert notes == [
        "AU labels: 2 of 3 by py-feat, not people",
        "policy trained on AU labels by py-feat (itself trained on DISFA, BP4D)",
    ]
    assert label_notes([one for one in outcomes if one.aus_from], []) == ["AU labels: by py-feat, not people"]
    assert label_notes([one for one in outcomes if not one.aus_from], ["disfa"]) == []
    assert heading(provenance("disfa", "all", 3, "p", notes)).endswith(" | ".join(notes))
    config = read_config(table, DataConfig, "data")
    assert config.lineage == ("table", mark)
