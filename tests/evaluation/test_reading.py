"""`actfer analyze` on a folder, and `load_policy(DIR).look(image)`: the shipped policy, real faces, the command's own
`main`."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage.data
from absl import flags
from etils import epath
from flagship import needs_words, write_narrow_model
from PIL import Image

import actfer_jax
from actfer_jax import analyze as door
from actfer_jax import facs
from actfer_jax.data.datasets import synth_faces
from actfer_jax.evaluation import analysis
from actfer_jax.evaluation.command import read_card
from actfer_jax.evaluation.pictures import find_pictures
from actfer_jax.evaluation.reading import Policy
from actfer_jax.faces.views import cut
from actfer_jax.outputs import MARKER
from actfer_jax.rollout.agent import ModelConfig, load_agent
from tests.evaluation.test_analysis import Page

ODD = '=two & "odd" näme\n.png'


def two_faces() -> np.ndarray:
    """A large face on the left, a smaller one on the right."""
    large, small = (synth_faces.render(synth_faces.face_of("validation", index)).image for index in range(2))
    scene = np.full((512, 896, 3), 128, np.uint8)
    scene[:, :512] = large
    scene[64:448, 512:] = np.asarray(Image.fromarray(small).resize((384, 384)))
    return scene


def run_door(patch: pytest.MonkeyPatch, *arguments: object, out: Path, **given: str) -> None:
    """The command's `main`, as `python -m actfer_jax.analyze ARGUMENTS --out=OUT` calls it."""
    values = {"checkpoint": "demo", "out": epath.Path(out), "dtype": "float32", "landmarks": None, "faces": "largest"}
    patch.setattr(flags, "FLAGS", SimpleNamespace(**values | given))
    door.main(["analyze", *map(str, arguments)])


@pytest.fixture(scope="module")
def policy() -> Policy:
    return actfer_jax.load_policy("demo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    (root / "more" / ".hidden").mkdir(parents=True)
    Image.fromarray(skimage.data.astronaut()).save(root / "a.png")
    Image.fromarray(skimage.data.coffee()[:200, :200]).save(root / "more" / "a.png")
    Image.fromarray(two_faces()).save(root / "more" / ODD)
    (root / "more" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "more" / "notes.txt").write_text("no picture")
    Image.fromarray(skimage.data.coffee()).save(root / "more" / ".hidden" / "b.png")
    return root


@pytest.fixture(scope="module")
def read(policy, folder) -> Path:
    """What `actfer analyze FOLDER --faces=all` leaves, in the folder itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "load_policy", lambda *_: policy)
        with pytest.raises(SystemExit, match="1 of 4 pictures could not be read"):
            run_door(patch, folder, out=folder / "out", faces="all")
    return folder / "out"


def records_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def test_a_folder_gives_a_record_and_a_row_for_each_face(read, folder):
    records = records_of(read)
    files = [str(folder / name) for name in ("a.png", f"more/{ODD}", f"more/{ODD}", "more/a.png")]
    assert [record["image"] for record in records] == files
    assert [(record["face"]["number"], record["face"]["of"]) for record in records] == [
        (1, 1),
        (1, 2),
        (2, 2),
        (None, 0),
    ]
    with (read / "readings.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        face, prediction = record["face"], record["prediction"]
        assert row["file"] == record["image"] and row["emotion"] == prediction["emotion"]
        assert row["face"] == ("" if face["number"] is None else str(face["number"]))
        assert np.allclose([float(side) for side in row["box"].split()], face["box"] or [], atol=0.051)
        assert float(row["probability"]) == pytest.approx(record["confidence"], abs=1e-4)
        aus = {int(column[2:]) for column, cell in row.items() if column.startswith("AU") and cell == "1"}
        assert aus == set(prediction["aus"])
        assert [column for column in row if column.startswith("AU")] == [f"AU{au:02}" for au in facs.AU_NAMES]
    left, right = (record["face"]["box"] for record in records[1:3])
    assert left[2] < 512 < right[0], "the larger face comes first"


def test_a_view_of_one_of_several_faces_maps_to_the_whole_picture(read):
    """The pixels that the record keeps are those that its map finds in the whole picture."""
    picture = two_faces()
    for record in records_of(read)[1:3]:
        views = [turn["view"] for turn in record["turns"] if turn["view"]]
        assert {turn["reply"]["tool"] for turn in record["turns"] if turn["view"]} == {"align_face", "zoom"}
        for view in [record["scene"], *views]:
            width, height = view["size"]
            saved = np.asarray(Image.open(read / view["file"])).astype(int)
            again = cut(picture, np.array(view["to_original"]), (height, width)).pixels
            # Where the policy's part of the picture ends, its view is grey.
            assert np.median(np.abs(saved - again)) <= 1
        centre = np.mean(np.array(record["face"]["box"]).reshape(2, 2), axis=0)
        left, top, right, bottom = record["crop"]
        assert left < centre[0] < right and top < centre[1] < bottom


def test_the_page_says_which_face_and_first_that_there_is_none(read):
    page = Page((read / "index.html").read_text())
    articles = (read / "index.html").read_text().split("<article")[1:]
    assert len(articles) == 4 and "face 2 of 2" in articles[2] and "face 1 of 1" not in articles[0]
    faceless = Page("<article" + articles[3].partition("</article>")[0] + "</article>").words
    said = [word.strip() for word in faceless if word.strip()]
    first = next(index for index, word in enumerate(said) if word == "No face was found in this picture." and index > 1)
    assert "guess" in said[first + 1]
    links = [link["href"] for link in page.all("a")]
    assert links == [f"#reading-{index}" for index in range(4)]
    assert "1 file could not be read" in page.text and "broken.jpg" in page.text
    assert all(image["src"].startswith("data:image/jpeg") and image["loading"] == "lazy" for image in page.all("img"))


def test_what_is_read_again_is_not_what_was_written(read, folder):
    """The results lie in the folder that was read."""
    assert (read / MARKER).exists() and list((read / "images").rglob("*.png"))
    assert len(find_pictures([str(folder)], io.BytesIO())) == 4


def test_look_reads_as_the_command_does(policy, folder, read):
    seen = policy.look(folder / "a.png")
    (record, *_) = records_of(read)
    assert seen.emotion == record["prediction"]["emotion"] and seen.aus == set(record["prediction"]["aus"])
    assert seen.probability == pytest.approx(record["confidence"], abs=1e-4) and 0 < seen.probability <= 1
    assert len(seen.views) == len(record["images"]) and seen.face.box == tuple(record["face"]["box"])
    assert seen.emotion in seen.text and seen.emotion in Page(seen.html).text
    again = policy.look(skimage.data.astronaut(), name="from memory")
    assert (again.emotion, again.aus) == (seen.emotion, seen.aus) and "from memory" in again.html


@needs_words
def test_the_flagship_looks(tmp_path):
    """Qwen3-VL's tokenizer, template and views on a model of random weights, which answers nothing that can be read."""
    model = ModelConfig(path=str(write_narrow_model(tmp_path / "model")), initialise="random", dtype="float32")
    card, views, rollout = read_card(model.directory)
    agent = load_agent(model, views, rollout)
    seen = Policy(agent, card, "narrow").look(skimage.data.astronaut())
    assert seen.views[0].width * seen.views[0].height >= 256 * 256
    assert seen.emotion is None and "no answer" in seen.text and "No answer" in Page(seen.html).text
