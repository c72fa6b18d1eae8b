"""The agent on anyone's pictures: terminal, records and page."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scripted_episodes import ScriptedAgent, answer, call, play, small_toolbox

from actfer_jax.agent.episode import Episode, Reference
from actfer_jax.agent.policy_card import PolicyCard
from actfer_jax.episodes import page as analysis_page
from actfer_jax.errors import UserError
from actfer_jax.evaluation import analysis as analyze
from actfer_jax.evaluation.reading import RENDERED_ONLY, Policy
from actfer_jax.faces.choice import largest_first, most_faces, surroundings
from actfer_jax.faces.detector import Face
from actfer_jax.outputs import MARKER
from actfer_jax.rollout.engine import Query
from tests.runs.test_checkpoints import contents

LABELS = ("neutral", "happiness")
HOSTILE = '</p><script>document.title = "owned"</script><img src=x onerror="document.title=\'owned\'">\x1b[2J\u202e'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, and what could load or run something is kept."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def toolbox():
    return small_toolbox()


@pytest.fixture
def run(toolbox, tmp_path, monkeypatch):
    """Analyses pictures with a scripted policy; returns how many could not be read, and the output directory."""

    def run(paths, script, trained_on=("synth_faces",)):
        card = PolicyCard(LABELS, trained_on, {}, {})
        monkeypatch.setattr(analyze, "load_policy", lambda *_: Policy(ScriptedAgent(toolbox, script), card, "a/policy"))
        return analyze.analyze([str(path) for path in paths], "a/policy", tmp_path / "out", "float32"), tmp_path / "out"

    return run


@pytest.fixture(scope="module")
def astronaut():
    return skimage.data.astronaut()


@pytest.fixture
def portrait(tmp_path, astronaut):
    path = tmp_path / "portrait.png"
    Image.fromarray(astronaut).save(path)
    return path


def looks_twice(query, treatment):
    del query, treatment
    return [
        call("align_face", "Find the face."),
        call("zoom", "A smile?", region="mouth"),
        answer("happiness", "AU6 AU12", "Lip corners up."),
    ]


def test_portrait_gives_terminal_records_and_page(run, portrait, astronaut, toolbox, capsys):
    unread, out = run([portrait], looks_twice)
    assert unread == 0
    printed = capsys.readouterr().out
    assert RENDERED_ONLY in printed
    order = [
        "Find the face.",
        "align_face()",
        "face 0 aligned, 64x64",
        "A smile?",
        "zoom(region='mouth')",
        "mouth of face 0",
    ]
    places = [printed.index(part) for part in [*order, "happiness (", "AU6 cheek raiser, AU12 lip corner puller"]]
    assert places == sorted(places)

    (record,) = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert record["prediction"] == {"aus": [6, 12], "emotion": "happiness"}
    assert record["reference"]["emotion"] is None and record["reference"]["labels"] == list(LABELS)
    assert record["trained_on"] == ["synth_faces"]
    assert record["image"] == str(portrait)
    assert sorted(path.name for path in out.iterdir()) == [
        MARKER,
        "episodes.jsonl",
        "images",
        "index.html",
        "readings.csv",
    ]
    saved = [np.asarray(Image.open(out / name)) for name in record["images"]]

    page = Page((out / "index.html").read_text())
    assert RENDERED_ONLY in page.text
    for word in (
        "happiness",
        "AU6",
        "cheek raiser",
        "AU12",
        "lip corner puller",
        "Lip corners up.",
        "mouth of face 0, 64x32",
    ):
        assert word in page.text
    original, *views = (decode(image["src"]) for image in page.all("img"))
    for shown, kept in zip([original, *views], [astronaut, *saved], strict=True):
        assert shown.shape == kept.shape and np.abs(shown.astype(int) - kept).mean() < 4
    # Every view's outline is where its pixels came from, in the colour of its frame on the page.
    query = Query("", str(portrait), (astronaut,), Reference(LABELS))
    footprints = [view.footprint for view in play(query, looks_twice(query, ""), toolbox).views[1:]]
    colours = [re.search(r"#\w+", image["style"])[0] for image in page.all("img")[2:]]
    outlines = [polygon for polygon in page.all("polygon") if polygon["stroke"] != "#fff"]
    assert [outline["stroke"] for outline in outlines] == colours and len(set(colours)) == 2
    for outline, footprint in zip(outlines, footprints, strict=True):
        corners = [[float(x) for x in corner.split(",")] for corner in outline["points"].split()]
        assert np.allclose(corners, footprint, atol=0.06)


def decode(source: str) -> np.ndarray:
    assert source.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))))


def test_large_pictures_are_shrunk_on_the_page_and_outlined_in_their_own_pixels(run, tmp_path, astronaut):
    path = tmp_path / "large.png"
    Image.fromarray(np.kron(astronaut, np.ones((4, 4, 1), np.uint8))).save(path)
    _, out = run([path], looks_twice)
    page = Page((out / "index.html").read_text())
    assert max(decode(page.all("img")[0]["src"]).shape) == 576
    assert page.all("svg")[0]["viewbox"] == "0 0 2048 2048"
    x, y = (np.array([c.split(",") for c in page.all("polygon")[0]["points"].split()], float).mean(0) / 2048).tolist()
    assert 0.35 < x < 0.55 and 0.15 < y < 0.35


def test_nothing_a_policy_or_a_file_name_says_becomes_markup_or_a_control_code(run, tmp_path, astronaut, capsys):
    path = tmp_path / "<b>&amp;\x1b[31m.png"
    Image.fromarray(astronaut).save(path)
    texts = [
        call("zoom", "<i>" + HOSTILE, region=HOSTILE.replace('"', "'").replace("\x1b", "")),
        '<think>x</think><tool_call>{"name": "<svg onload=x>", "arguments": {"<a>": "<b>"}}</tool_call>',
        answer(HOSTILE, "AU6"),
    ]
    for script in (texts, [HOSTILE]):
        _, out = run([path], lambda query, treatment, script=script: script)
        page = Page((out / "index.html").read_text())
        assert not {tag for tag, _ in page.elements} & {"script", "i", "a", "link", "iframe", "object", "base", "form"}
        assert len(page.all("img")) == 2  # The picture, and how the policy sees it.
        for tag, attributes in page.elements:
            assert not [name for name in attributes if name.startswith("on")]
            assert all(attributes[name].startswith("data:") for name in ("src", "href") if name in attributes), tag
        assert "document.title" in page.text and "<b>&amp;" in page.text
        shown = capsys.readouterr()
        for text in (page.text, shown.out, shown.err):
            assert "\x1b" not in text and "\u202e" not in text
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy


def test_pictures_that_cannot_be_read_are_named_and_the_others_go_on(run, portrait, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not a picture")
    unread, out = run([tmp_path / "text.png", portrait, tmp_path / "absent.jpg"], looks_twice)
    assert unread == 2
    said = capsys.readouterr()
    page = Page((out / "index.html").read_text())
    for name in ("text.png", "absent.jpg"):
        assert name in said.err and name in page.text
    assert "1 of 3 pictures analysed" in said.out
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 1


def test_who_interrupts_a_long_list_keeps_what_was_read(run, portrait, tmp_path):
    second = tmp_path / "second.png"
    shutil.copy(portrait, second)

    def script(query, treatment):
        if query.name == str(second):
            raise KeyboardInterrupt
        return looks_twice(query, treatment)

    with pytest.raises(KeyboardInterrupt):
        run([portrait, second], script)
    (record,) = (json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines())
    assert record["id"] == "picture-0"
    assert "Lip corners up." in (tmp_path / "out" / "index.html").read_text()

    # Not at the cost of an earlier analysis.
    run([portrait, second, portrait], looks_twice)
    before = contents(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run([portrait, second, portrait], script)
        now = contents(tmp_path / "out")
        assert now.items() >= before.items()
        assert b"1 picture of 3 so far, read by" in now["interrupted/index.html"]


def test_each_action_unit_has_the_number_of_the_view_after_which_it_was_named(run, portrait):
    def script(query, treatment):
        return [
            call("align_face", "A face; AU10?"),
            call("zoom", "AU12 perhaps, and AU 6.", region="mouth"),
            call("zoom", "Lip Corner Puller, sure.", region="nowhere"),
            answer("happiness", "AU1 AU6 AU10 AU12 AU25", "AU25, after all."),
        ]

    _, out = run([portrait], script)
    page = (out / "index.html").read_text()
    items = re.search(r'<ul class="aus">(.*?)</ul>', page)[1].split("</li>")[:-1]
    numbers = {item.partition("</b>")[0].rpartition(">")[2]: re.findall(r">(\d+)</span>", item) for item in items}
    # AU10 was named in the scene, which has no number, and AU1 nowhere; the refused call brought no view.
    assert numbers == {"AU1": [], "AU6": ["1"], "AU10": [], "AU12": ["1"], "AU25": ["2"]}


def test_a_picture_with_a_typo_costs_no_earlier_analysis(run, portrait, tmp_path):
    _, out = run([portrait], looks_twice)
    before = contents(out)
    unread, _ = run([tmp_path / "potrait.png"], looks_twice)
    assert unread == 1 and contents(out) == before


def test_the_page_grows_and_a_killed_call_leaves_it_to_be_read(run, portrait, tmp_path, monkeypatch):
    monkeypatch.setattr(analyze, "PER_PAGE", 2)
    monkeypatch.setattr(analyze, "_GROWS_EVERY", 1)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths[:4]:
        shutil.copy(portrait, path)
    killed = tmp_path / "killed"

    def script(query, treatment):
        if query.name == str(paths[3]) and not killed.exists():
            shutil.copytree(tmp_path / "out", killed)  # What a kill would leave now.
        return looks_twice(query, treatment)

    unread, out = run(paths, script)
    assert unread == 1
    pages = [Page((killed / name).read_text()) for name in ("index.html", "page-2.html")]
    assert "Pictures 1 to 2 of 5, read" in pages[0].text and "Pictures 3 to 4 of 5, 3 of them done" in pages[1].text
    assert [len(page.all("article")) for page in pages] == [2, 1]
    assert len((killed / "readings.csv").read_text().splitlines()) == 1 + 3
    assert not (killed / "episodes.jsonl").exists()

    assert sorted(path.name for path in out.glob("*.html")) == ["index.html", "page-2.html", "page-3.html"]
    last = Page((out / "page-3.html").read_text())
    assert "1 file could not be read" in last.text and not last.all("article")
    for page in map(Page, (path.read_text() for path in out.glob("*.html"))):
        assert all((out / link["href"]).exists() for link in page.all("a") if link["href"][0] != "#")

    # The same command starts anew, and fewer pictures leave no page of before.
    (tmp_path / "out").rename(tmp_path / "whole")
    killed.rename(tmp_path / "out")
    run(paths[:1], looks_twice)
    assert not (out / "page-2.html").exists() and len((out / "episodes.jsonl").read_text().splitlines()) == 1
    assert "1 picture, read by" in (out / "index.html").read_text()


def test_an_earlier_analysis_is_complete_until_the_next_is(run, portrait):
    _, out = run([portrait], looks_twice)
    before = contents(out)

    def script(query, treatment):
        assert {name: data for name, data in contents(out).items() if name in before} == before
        return [answer("neutral")]

    run([portrait, portrait], script)
    assert "neutral" in (out / "readings.csv").read_text()


def test_files_beside_an_analysis_stay(run, portrait, tmp_path):
    """Also beside one that was made before there were markers, with what a system puts into directories."""
    _, out = run([portrait], lambda query, treatment: [answer("neutral")])
    (out / MARKER).unlink()
    (out / "episodes").mkdir()
    others = [out / "notes.md", *(out / folder / ".DS_Store" for folder in (".", "episodes", "images"))]
    for path in others:
        path.write_text("mine")
    unread, _ = run([portrait], looks_twice)
    assert unread == 0 and "Lip corners up." in (out / "index.html").read_text()
    assert all(path.read_text() == "mine" for path in others)


def test_picture_without_a_face(run, tmp_path, capsys):
    path = tmp_path / "cup.png"
    Image.fromarray(skimage.data.coffee()).save(path)
    unread, out = run([path], lambda query, treatment: [call("align_face", "Find the face."), answer("neutral")])
    assert unread == 0
    page = Page((out / "index.html").read_text())
    for text in (capsys.readouterr().out, page.text):
        assert "no face was found in this picture" in text.lower()
    assert "guess" in page.text and "No action units." in page.text


@pytest.mark.parametrize("trained_on", [("synth_faces",), ("synth_faces", "photographs"), ("photographs",)])
def test_only_a_policy_of_rendered_faces_is_called_so(run, portrait, trained_on, capsys):
    _, out = run([portrait], looks_twice, trained_on)
    expected = trained_on == ("synth_faces",)
    assert (RENDERED_ONLY in Page((out / "index.html").read_text()).text) == expected
    assert (RENDERED_ONLY in capsys.readouterr().out) == expected


def test_which_faces_are_read():
    def face(left: float, side: float, score: float = 1.0) -> Face:
        return Face((left, 10.0, left + side, 10.0 + side), score, np.full((68, 2), left))

    large, small, doubtful = face(20, 30), face(60, 20), face(0, 90, 0.1)
    assert largest_first([small, doubtful, large]) == (large, small)
    assert largest_first([doubtful]) == (doubtful,)
    assert [most_faces(word) for word in ("whole", "largest", "3")] == [0, 1, 3] and most_faces("all") > 10**6
    for word in ("0", "-1", "both", ""):
        with pytest.raises(UserError, match="largest, all, whole"):
            most_faces(word)
    # With a margin, but never outside of the picture, even for a face that is.
    assert surroundings(np.zeros((60, 100, 3), np.uint8), large) == (0, 0, 73, 60)
    assert surroundings(np.zeros((60, 100, 3), np.uint8), face(200, 8)) == (99, 4, 100, 24)


def test_why_there_is_no_answer():
    def why(*texts: str) -> str:
        return analysis_page.why_no_answer(Episode.from_texts(*texts))

    assert why(answer("fear")) == ""
    assert "malformed" not in why("hm") and "thought" in why("hm")
    assert "no" in why(call("align_face"))
    cut = Episode.from_texts("<think>and so on and so")
    cut.turns[0].truncated = True
    assert "length limit" in analysis_page.why_no_answer(cut)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_page_in_a_browser(run, portrait, tmp_path):
    def script(query, treatment):
        return [*looks_twice(query, treatment)[:2], answer("happiness", "AU12", HOSTILE)]

    _, out = run([portrait], script)
    shot = tmp_path / "page.png"
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'browser'}",
        "--window-size=1280,1400",
        "--hide-scrollbars",
        f"--screenshot={shot}",
        "--dump-dom",
        (out / "index.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert seen.shape == (1400, 1280, 3)
    # Both outlines lie over the portrait on the left, both frames around the crops on the right.
    for colour in ((0xD9, 0x48, 0x0F), (0x0B, 0x72, 0x85)):
        near = np.abs(seen - colour).max(-1) < 40
        assert near[250:900, 80:620].sum() > 100
        assert near[250:, 640:].sum() > 300
    assert "<title>Faces, read step by step</title>" in done.stdout
