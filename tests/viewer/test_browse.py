"""The page of whole runs: its filters count what the records say, and a policy's text stays text."""

import http.client
import itertools
import json
import random
import re
import shutil
import socket
import subprocess
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from flagship import WORDS, needs_words

from actfer_jax import browse as door
from actfer_jax.agent.chat import Chat
from actfer_jax.episodes.store import EpisodeWriter, index_of, read_episodes, shards
from actfer_jax.errors import UserError
from actfer_jax.faces.views import View
from actfer_jax.viewer import site as site_module
from actfer_jax.viewer.server import LOOPBACK, make_server
from actfer_jax.viewer.site import Site
from actfer_jax.viewer.static import write
from actfer_jax.viewer.tokens import written_tokens

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FILTER = Path(site_module.__file__).parent / "page" / "filter.js"
HOSTILE = (
    """</script><script>document.title='taken'</script><img src=x onerror="document.title='taken'">'"\\ \u2028\u202e"""
)
EMOTIONS = ("fear", "surprise", "anger")


def view_of(seed):
    return View(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8), np.eye(2, 3), "scene")


def turn(text, call=None, **reply):
    view = reply.pop("view", None)
    parts = {"text": "mouth", "ok": True, "tool": "zoom", "region": "mouth", "inspects": True, "found_by": ""}
    return {
        "text": text,
        "truncated": False,
        "call": call,
        "error": "",
        "reply": {**parts, **reply} if call else None,
        "view": view,
        "seconds": 0.0,
    }


def record(name, image="train/1", *, images=1, **changes):
    eye = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    scenes = [{"name": "scene", "of": n, "size": [8, 6], "to_original": eye, "picture": n} for n in range(images)]
    zoom = {"name": "zoom", "arguments": {"region": "mouth", "__proto__": {"x": 1}}}
    view = {
        "name": "mouth",
        "of": images - 1,
        "size": [8, 6],
        "to_original": [[0.5, 0, 2], [0, 0.5, 1]],
        "picture": images,
    }
    return {
        "id": name,
        "dataset": "made",
        "image": image,
        "scene": scenes[0],
        "scenes": scenes,
        "turns": [
            turn("<think>lids</think>\n<tool_call>…</tool_call>", zoom, view=view),
            turn("<think>lips</think>\n<aus>AU1</aus>\n<answer>fear</answer>"),
        ],
        "token_ids": [7, 8, 9, 7],
        "loss_mask": [0, 1, 1, 0],
        "logprobs": [0.0, -0.25, -2.5, 0.0],
        "raw_logprobs": [0.0, -0.5, -2.5, 0.0],
        "prediction": {"aus": [1, 12], "emotion": "fear"},
        "reference": {
            "aus": [1, 4],
            "known_aus": [1, 4],
            "aus_from": "",
            "emotion": "fear",
            "labels": [],
            "strata": [],
        },
        "reward": {"format": 1.0, "total": 0.5},
        "advantage": None,
        "arm": "looked",
        "forced": "",
        "truncated": False,
        "failure": "",
        "confidence": None,
        **changes,
    }


def drawn(rng, name, image):
    """An episode of any kind: data without emotions, evaluations without advantage, calls that were refused."""
    emotion = rng.choice([*EMOTIONS, None])
    answered = rng.random() < 0.8
    zooms = [rng.choice(["mouth", "brows", "bbox"]) for _ in range(rng.randrange(4))]
    turns = [
        turn("<think></think>", {"name": "zoom", "arguments": {}}, region=region, ok=rng.random() < 0.7)
        for region in zooms
    ]
    looked = any(t["reply"]["ok"] for t in turns)
    return record(
        name,
        image,
        turns=[*turns, turn("the end")],
        prediction={
            "aus": [1] if answered else None,
            "emotion": rng.choice(EMOTIONS) if answered and emotion else None,
        },
        reference={"aus": [1], "emotion": emotion, "strata": rng.sample(["subtle", "plain", "male"], rng.randrange(3))},
        reward=None if rng.random() < 0.1 else {"format": 1.0, "total": rng.choice([0.0, 0.25, rng.random()])},
        advantage=rng.choice([None, 0.0, rng.gauss(0, 1)]),
        arm="looked" if looked else rng.choice(["direct", "undecided"]),
        forced=rng.choice(["", "", "zoom", "answer"]),
        truncated=rng.random() < 0.1,
        failure="the server is gone" if rng.random() < 0.05 else "",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A training with two hosts, and an evaluation with controls."""
    rng, top = random.Random(3), tmp_path_factory.mktemp("runs")
    for step, host in itertools.product((10, 20, 150), (0, 1)):
        (top / "training").mkdir(exist_ok=True)
        made = [drawn(rng, f"{step}-{host}-{n}", f"train/{host}{n // 4}") for n in range(20)]
        EpisodeWriter(top / "training", host).write(step, [(one, [view_of(n)]) for n, one in enumerate(made)])
    (top / "evaluation").mkdir()
    for step, control in enumerate(("normal", "no_tools")):
        made = [drawn(rng, f"{control}/made/train/{n}", f"train/{n}") for n in range(12)]
        EpisodeWriter(top / "evaluation").write(step, [(one, [view_of(n)]) for n, one in enumerate(made)])
    return [top / "training", top / "evaluation"]


def in_node(site, question):
    """What a function of the index says in the page's own program."""
    program = f"""
    const fs = require("fs"), vm = require("vm");
    vm.runInThisContext(fs.readFileSync({json.dumps(str(FILTER))}, "utf8"));
    globalThis.receive = (address, text) => {{ globalThis.index = JSON.parse(text); }};
    vm.runInThisContext(fs.readFileSync(0, "utf8"));
    console.log(JSON.stringify(({question})(index)));
    """
    done = subprocess.run([NODE, "-e", program], input=site.content("data/index.js"), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def unpacked(script):
    """The data of a script, as JavaScript reads its string."""
    quoted = script.decode().partition(",'")[2].removesuffix("');\n")
    return json.loads(quoted.replace("\\'", "'").replace("\\\\", "\\"))


def said(run, step, one):
    """The options of a record, by the words of the page: as a person would read the record."""
    calls = [t["reply"] for t in one["turns"] if t["reply"]]
    true, named = one["reference"]["emotion"], one["prediction"]["emotion"]
    outcome = "not judged" if true is None else "right" if true == named else "wrong"
    if one["prediction"]["aus"] is None:
        outcome = "no answer"
    return {
        "run": {run},
        "step": {str(step)},
        "control": {one["id"].split("/")[0]} if "/" in one["id"] else set(),
        "class": {true or "not known"},
        "stratum": set(one["reference"]["strata"]),
        "answer": {named or "none"},
        "outcome": {"failed" if one["failure"] else outcome},
        "arm": {one["arm"]},
        "looked": {"looked" if any(reply["ok"] for reply in calls) else "did not look"},
        "region": {reply["region"] for reply in calls if reply["ok"]},
        "calls": {"refused" if any(not reply["ok"] for reply in calls) else "none refused"},
        "instructed": {{"": "free", "zoom": "forced to zoom", "answer": "forced to answer"}[one["forced"]]},
        "length": {"truncated" if one["truncated"] else "whole"},
        "advantage": {
            "none"
            if one["advantage"] is None
            else {1: "positive", -1: "negative", 0: "zero"}[np.sign(one["advantage"])]
        },
        "image": {f"made/{one['image']}"},
        "dataset": {"made"},
    }


@pytest.mark.skipif(NODE is None, reason="there is no Node.js")
def test_every_filter_counts_what_the_records_say(runs):
    having, inside, count = defaultdict(set), set(), 0
    for run in runs:
        for shard in shards(run):
            for one in map(json.loads, shard.open()):
                for name, options in said(run.name, int(shard.name.split("-")[1]), one).items():
                    for option in options:
                        having[name, option].add(count)
                if one["reward"] and 0.25 <= one["reward"]["total"] <= 0.75:
                    inside.add(count)
                count += 1
    options, rng = sorted(having), random.Random(5)
    states = [{}, *({name: option} for name, option in options), *(dict(rng.sample(options, 3)) for _ in range(60))]
    states += [state | {"least": "0.25", "most": "0.75"} for state in rng.sample(states, 20)]

    def passing(state):
        rows = inside if "least" in state else set(range(count))
        return rows.intersection(*(having[item] for item in state.items() if item in having))

    found = in_node(
        Site(runs),
        f"""index => {json.dumps(states)}.map(state => {{
        const {{ rows, counts }} = select(index, state);
        return [rows, Object.fromEntries(Object.entries(counts).map(([name, map]) => [name, Object.fromEntries(map)]))];
    }})""",
    )
    assert len(found) == len(states) > 100
    for state, (rows, counts) in zip(states, found, strict=True):
        assert rows == sorted(passing(state)), state
        for name, option in options:
            assert counts[name][option] == len(passing(state | {name: option})), (state, name, option)
        assert {(name, option) for name in counts for option in counts[name]} == set(options)


@pytest.mark.skipif(NODE is None, reason="there is no Node.js")
def test_rows_lead_to_their_records_and_the_wrong_ones_come_first(runs):
    site, records = Site(runs), [one for run in runs for one in read_episodes(run)]
    places, order, group, elsewhere = in_node(
        site,
        """index => [index.reward.map((_, row) => placeOf(index, row)),
        sorted(index, index.reward.map((_, row) => row), "wrong first"), groupOf(index, 0),
        firstOfGroups(index, select(index, {image: "made/train/1"}).rows)]""",
    )
    for place, one in zip(places, records, strict=True):
        assert unpacked(site.content(f"{place['file']}.js"))[place["at"]]["id"] == one["id"]

    def badness(one):
        said_of = said("", 0, one)["outcome"].pop()
        advantage = np.inf if one["advantage"] is None else one["advantage"]
        return ["wrong", "no answer", "failed", "not judged", "right"].index(said_of), advantage

    assert [badness(records[row]) for row in order] == sorted(badness(one) for one in records)
    assert [records[row]["id"] for row in group] == ["10-0-0", "10-0-1", "10-0-2", "10-0-3"]
    assert [records[row]["id"] for row in elsewhere] == ["normal/made/train/1", "no_tools/made/train/1"]


@pytest.fixture
def hostile(tmp_path):
    """A run of two episodes whose policy writes markup, one of them with two pictures and no emotions."""
    (tmp_path / "run").mkdir()
    one = record("1-0-0", HOSTILE)
    one["turns"][0] |= {"text": HOSTILE, "error": HOSTILE}
    one["turns"][0]["reply"]["text"] = HOSTILE
    one["prediction"]["emotion"] = HOSTILE
    pair = record("1-1-0", images=2, prediction={"aus": [1, 12], "emotion": None})
    pair["reference"]["emotion"] = None
    (tmp_path / "run" / "metrics.jsonl").write_text(
        f'{{"step": 1, "reward/total": 0.5, {json.dumps(HOSTILE)}: null}}\n'
    )
    EpisodeWriter(tmp_path / "run").write(1, [(one, [view_of(1), view_of(2)]), (pair, [view_of(n) for n in (1, 2, 3)])])
    return tmp_path / "run"


def test_a_written_page_has_what_a_server_would_say(hostile, tmp_path):
    site = Site([hostile])
    for _ in range(2):  # The second call replaces the first.
        write(site, tmp_path / "page")
    files = {path.relative_to(tmp_path / "page").as_posix(): path for path in (tmp_path / "page").rglob("*.*")}
    files = {name: path for name, path in files.items() if path.is_file() and not name.startswith(".")}
    pictures = {f"pictures/0/{path.relative_to(hostile).as_posix()}" for path in hostile.rglob("*.png")}
    assert files.keys() == pictures | {
        *("index.html", "data/index.js", "data/0/metrics.js"),
        *("data/0/step-00000001-host0/0.js", "data/0/step-00000001-host0/0.tokens.js"),
    }
    for name, path in files.items():
        assert path.read_bytes() == site.content(name), name
    assert all(files[name].stat().st_nlink > 1 for name in pictures)
    shown, written = unpacked(files["data/0/step-00000001-host0/0.js"].read_bytes())[0], next(read_episodes(hostile))
    assert {key: shown[key] for key in ("image", "prediction", "reward")} == {
        key: written[key] for key in ("image", "prediction", "reward")
    }
    assert [t["thought"] for t in shown["turns"]] == [None, "lips"] and shown["turns"][0]["text"] == HOSTILE
    assert unpacked(files["data/0/step-00000001-host0/0.tokens.js"].read_bytes())[0] == [
        [[None, 8, -0.25], [None, 9, -2.5]]
    ]


def test_the_server_answers_this_machine_and_knows_no_other_files(hostile):
    (hostile / "secret.png").write_bytes(b"secret")
    server = make_server(Site([hostile]), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def get(path, host=LOOPBACK):
        connection = http.client.HTTPConnection(*server.server_address)
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", f"{host}:{server.server_port}")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers

    try:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(UserError, match=rf"--port is {server.server_port}, which cannot be used"):
            make_server(Site([hostile]), server.server_port)
        status, page, headers = get("/")
        assert status == 200 and page.startswith(b"<!DOCTYPE html>")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        (picture, *_) = sorted(hostile.glob("images/*/*.png"))
        name = f"/pictures/0/{picture.relative_to(hostile).as_posix()}"
        assert get(name)[1] == picture.read_bytes()
        assert get(name.replace("/0/", "/1/"))[0] == get(name.replace("/0/", "/00000/"))[0] == 404
        for way in ("..", "%2e%2e", ".", "/", ""):
            for file in ("secret.png", "metrics.jsonl", f"images/{way}/secret.png"):
                for start in ("", "/pictures/0", "/pictures/0/images", "/data/0", "/data/0/step-00000001-host0"):
                    assert get(f"{start}/{way}/{file}")[0] == 404
        assert get("/data/0/step-00000001-host0/99.js")[0] == get("/data/0/step-00000002-host0/0.js")[0] == 404
        assert get("/", "evil.example")[0] == 403
        with socket.socket() as elsewhere:  # Not on the machine's other addresses, of which 127.0.0.2 is one.
            elsewhere.settimeout(5)
            assert elsewhere.connect_ex(("127.0.0.2", server.server_port)) != 0
        # An index that is damaged while it is served is named, and the server goes on.
        index_of(shards(hostile)[0]).write_text("{")
        (hostile / "episodes" / "step-00000002-host0.jsonl").write_text("{\n")
        status, text, _ = get("/data/index.js")
        assert status == 500 and b"step-00000001-host0.index, line 1" in text
        assert get("/")[0] == 200
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_command_refuses_what_has_no_episodes(tmp_path):
    with pytest.raises(UserError, match=r"give at least one workdir"):
        door.main(["browse"])
    with pytest.raises(UserError, match=rf"{tmp_path} has no episodes"):
        flags.FLAGS.mark_as_parsed() if not flags.FLAGS.is_parsed() else None
        door.main(["browse", str(tmp_path)])


@needs_words
def test_shaded_tokens_are_what_the_policy_wrote():
    chat = Chat.from_pretrained(WORDS)
    texts = [
        "<think>brows: AU4, lids tense</think>\n<tool_call>\n{}\n</tool_call>",
        "<think>é 表情 😀</think>\n<aus>AU4</aus>",
    ]
    ids, mask = [5, 6], [0, 0]
    for text in texts:
        turn_ids = [*chat.tokenizer.encode(text, add_special_tokens=False), chat.turn_end_id]
        ids, mask = [*ids, *turn_ids, 5], [*mask, *[1] * len(turn_ids), 0]
    made = {"token_ids": ids, "loss_mask": mask, "logprobs": [-float(n) for n in range(len(ids))]}
    turns = written_tokens(made, chat.tokenizer.decode)
    assert ["".join(text for text, _, _ in turn) for turn in turns] == [f"{text}<|im_end|>" for text in texts]
    assert all(ids[int(-logprob)] == token for turn in turns for _, token, logprob in turn)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_policys_text_is_no_markup_in_a_browser(hostile, tmp_path):
    write(Site([hostile]), tmp_path / "page")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(
            f"--user-data-dir={tmp_path / 'browser'}",
            "--window-size=400,900",
            "--virtual-time-budget=4000",
            "--dump-dom",
        ),
        (tmp_path / "page" / "index.html").as_uri() + "#outcome=not+judged",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "<title>run · all steps</title>" in dom and "1 episodes, 0 wrong" in dom
    assert dom.count("<article") == 1 and dom.count('<figure class="frame">') == 2 and "AU12" in dom
    command[-1] = (tmp_path / "page" / "index.html").as_uri()
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert dom.count("<article") == 2 and "<title>run · all steps</title>" in dom
    assert dom.count("<img ") == 5 and "&lt;img src=x" in dom
    # Values of attributes are not seen.
    assert "\u202e" not in re.sub(r'="[^"]*"', "", dom)
