"""Models on a server, of which a stand-in answers, calls tools, stalls, refuses and lies."""

import io
import json
import re
import shutil
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from chat_server import Body, ChatServer, Response, completion, pictures, refusal, tool_call, turns_before
from etils import epath
from flagship import WORDS, needs_words
from PIL import Image
from scripted_episodes import answer, call

from actfer_jax import evaluate
from actfer_jax.agent.chat import IMAGE_PAD, Chat
from actfer_jax.agent.environment import Environment, EpisodeConfig
from actfer_jax.agent.episode import Sample
from actfer_jax.agent.tools import Toolbox
from actfer_jax.config import ConfigError
from actfer_jax.data.datasets import synth_faces
from actfer_jax.episodes.store import read_episodes, read_index
from actfer_jax.errors import UserError
from actfer_jax.evaluation import served
from actfer_jax.evaluation.chat_client import ChatClient, RequestError, key_from
from actfer_jax.evaluation.controls import Control
from actfer_jax.evaluation.endpoint import EndpointConfig, EndpointPlayer, Played
from actfer_jax.evaluation.served import PLAN
from actfer_jax.faces.detector import FaceDetector
from actfer_jax.faces.views import ViewConfig
from actfer_jax.outputs import MARKER, PARTIAL, OutputError
from actfer_jax.rollout.encoder import ViewEncoder
from configs.eval import folders

KEY = "sk-not-to-be-written-anywhere"
TRUTHS = ("happiness", "sadness", "surprise", "anger")


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """Four rendered faces in folders, one of each emotion."""
    directory = tmp_path_factory.mktemp("faces")
    for index in range(100):
        spec = synth_faces.face_of("validation", index)
        if spec.emotion in TRUTHS and not (directory / spec.emotion).exists():
            (directory / spec.emotion).mkdir()
            Image.fromarray(synth_faces.render(spec).image).save(directory / spec.emotion / "face.png")
    return directory


@pytest.fixture(scope="module")
def command(faces, shared):
    """`python -m actfer_jax.evaluate --endpoint=URL --model=m --out=OUT --config.KEY=VALUE ...`, in this process.

    Returns what `results.json` has, and all that was printed since the last one.
    """
    printed = io.StringIO()

    def run(server: ChatServer, out: str, model: str = "m", pictures: Path = faces, **changes: object) -> dict:
        config = folders.get_config()
        config.data.directory, config.data.cache_directory = str(pictures), str(shared / "data")
        config.controls = ()
        for name, value in changes.items():
            setattr(config if hasattr(config, name) else config.endpoint, name, value)
        given = {"config": config, "endpoint": server.url, "model": model, "out": epath.Path(shared / out)}
        others = dict.fromkeys(("checkpoint", "shard", "merge", "predictions", "benchmark", "protocol", "landmarks"))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
            patch.setattr(flags, "FLAGS", SimpleNamespace(**others | given))
            patch.setenv("ACTFER_API_KEY", KEY)
            evaluate.main([])
        said = printed.getvalue()
        printed.seek(0)
        printed.truncate()
        return json.loads((shared / out / "results.json").read_text()) | {"printed": said}

    return run


SCRIPT = (call("align_face"), call("zoom", "the mouth", region="mouth"), answer("happiness", "AU6 AU12", "seen"))
"""A policy that calls every picture happy."""


def in_text(body: Body) -> Response:
    opening = next(message for message in body["messages"] if message["role"] == "user")
    told = opening["content"][-1]["text"].endswith("Answer now.")
    return completion(SCRIPT[-1 if told else turns_before(body)])


def in_message(body: Body) -> Response:
    turn = SCRIPT[turns_before(body)]
    thought, _, rest = turn.partition("\n<tool_call>")
    if not rest:
        return completion(turn)
    wanted = json.loads(rest.removesuffix("</tool_call>"))
    return completion(thought, tool_calls=[tool_call(wanted["name"], json.dumps(wanted["arguments"]))])


def in_message_without_the_thought(body: Body) -> Response:
    """As a server with a parser of reasoning gives it."""
    response = json.loads(in_message(body).content)["choices"][0]["message"]
    thought, _, rest = response["content"].removeprefix("<think>").partition("</think>")
    return completion(rest.strip() or None, reasoning_content=thought, tool_calls=response.get("tool_calls"))


def told(out: Path) -> list[dict]:
    """What the records say, without times, by sample."""
    records = sorted(read_episodes(out), key=lambda record: record["id"])
    for record in records:
        for turn in record["turns"]:
            del turn["seconds"]
    return records


def load(out: Path, record: dict, index: int) -> np.ndarray:
    return np.asarray(Image.open(out / record["images"][index]))


@pytest.fixture(scope="module")
def evaluated(command, shared) -> tuple[ChatServer, Path, dict]:
    """An evaluation of calls in texts, with the control "no_tools"."""
    all_there = threading.Barrier(3)

    def respond(body: Body) -> Response:
        if len(server.bodies) <= 3:
            all_there.wait(60)
        return in_text(body)

    with ChatServer(respond) as server:
        found = command(server, "whole", parallel=3, controls=("no_tools",), prompt_price=2.0, completion_price=8.0)
    return server, shared / "whole", found


def test_a_model_on_a_server_is_evaluated_like_one_of_ours(evaluated):
    server, out, found = evaluated
    normal = found["results"]["normal"]
    assert (normal["accuracy"]["value"], normal["episodes"]) == (1 / 4, 4)
    assert normal["tools"]["zoom"] == {"calls": 4, "success": 1.0} and found["results"]["no_tools"]["turns"] == 1
    assert found["checkpoint"] == found["provenance"]["policy"] == "m"
    spent = found["endpoint"]
    assert (spent["requests"], spent["prompt_tokens"], spent["completion_tokens"]) == (16, 1600, 160)
    assert spent["cost"] == pytest.approx((1600 * 2 + 160 * 8) / 1e6) and spent["failed"] == {}
    assert server.most == 3  # as many as allowed, and no more
    assert {headers["path"] for headers in server.headers} == {"/v1/chat/completions"}
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    record = next(record for record in read_episodes(out) if record["id"].startswith("normal/"))
    assert record["usage"] == {"requests": 3, "prompt_tokens": 300, "completion_tokens": 30, "unreported": 0}
    # What the server did not say is not made up.
    assert [record[key] for key in ("token_ids", "loss_mask", "logprobs", "raw_logprobs")] == [None] * 4


def test_the_key_is_sent_and_written_nowhere(evaluated):
    _, out, found = evaluated
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"results.json", "confusion.png", "aus.png", "zoom.png", MARKER}
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in found["printed"] and "16 responses of http://127.0.0.1" in found["printed"]
    assert "8/8 episodes" in found["printed"]


def test_pictures_are_sent_with_the_pixels_of_the_record(evaluated):
    server, out, _ = evaluated
    last = [pictures(body) for body in server.bodies if turns_before(body) == 2]
    records = [record for record in read_episodes(out) if record["id"].startswith("normal/")]
    assert len(last) == len(records) == 4
    for record in records:
        views = [load(out, record, index) for index in range(3)]
        assert any(all(map(np.array_equal, views, sent)) for sent in last)


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return Toolbox(FaceDetector(), ViewConfig())


def play(server: ChatServer, sample: Sample, toolbox: Toolbox, **config: object) -> Played:
    client = ChatClient(server.url, "", 30.0, 2, pause=lambda seconds: None)
    return EndpointPlayer(EndpointConfig(**config), client, "m", toolbox, {}).play(sample, Control())


@pytest.mark.parametrize("respond", [in_message, in_message_without_the_thought])
def test_calls_in_messages_make_the_episodes_of_calls_in_texts(queries, toolbox, respond):
    with ChatServer(in_text) as server:
        expected = play(server, queries[0], toolbox)
    with ChatServer(respond) as server:
        found = play(server, queries[0], toolbox)
    assert [turn.text for turn in expected.episode.turns] == list(SCRIPT)
    for one, other in zip(found.episode.turns, expected.episode.turns, strict=True):
        assert (one.text, one.parsed, one.reply and one.reply.text) == (
            other.text,
            other.parsed,
            other.reply and other.reply.text,
        )
    # Every call has its reply, and its view comes from the user.
    roles = [message["role"] for message in server.bodies[-1]["messages"]]
    assert roles == ["system", "user", *["assistant", "tool", "user"] * 2]
    calls = [message["tool_calls"][0]["id"] for message in server.bodies[-1]["messages"] if "tool_calls" in message]
    assert calls == [message["tool_call_id"] for message in server.bodies[-1]["messages"] if message["role"] == "tool"]


LIES = {
    "broken arguments": ({"tool_calls": [tool_call("zoom", '{"region": ')]}, "the tool call is not valid JSON"),
    "arguments that are a list": (
        {"tool_calls": [tool_call("zoom", "[]")]},
        '"name" is a string and "arguments" an object',
    ),
    "an unknown tool": ({"tool_calls": [tool_call("zoom_in<|im_end|>", "{}")]}, "unknown tool; the tools are"),
    "unknown arguments": ({"tool_calls": [tool_call("zoom", '{"side": 1}')]}, "zoom takes region, face, bbox, image"),
    "no arguments": ({"tool_calls": [tool_call("detect_faces", "")]}, "1 face: 0"),
    "a call that is none": ({"tool_calls": [{"function": None}]}, "unknown tool; the tools are"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_call_that_cannot_be_carried_out_is_told_so(queries, toolbox, name):
    message, reply = LIES[name]
    with ChatServer(lambda body: completion(SCRIPT[-1]) if turns_before(body) else completion(**message)) as server:
        played = play(server, queries[0], toolbox)
    assert played.failure == "" and played.episode.turns[0].reply.text.startswith(reply)
    assert played.episode.answer.answer == "happiness"
    assert server.bodies[1]["messages"][-1]["content"].startswith(reply)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""),
        ({"content": [{"type": "text", "text": SCRIPT[-1]}]}, SCRIPT[-1]),
        ({"content": None, "refusal": "I cannot read faces."}, "I cannot read faces."),
        ({"content": "\ud800 well"}, "? well"),
        ({"content": 7, "tool_calls": "none", "usage": {"prompt_tokens": "many"}}, ""),
        # Two calls at once are no turn in any grammar.
        ({"tool_calls": [tool_call("detect_faces", "{}")] * 2}, None),
    ],
)
def test_a_message_of_any_kind_is_a_turn(queries, toolbox, message, text):
    with ChatServer(lambda body: completion(**message)) as server:
        played = play(server, queries[0], toolbox)
    (turn,) = played.episode.turns
    assert text is None or turn.text == text
    assert played.failure == "" and turn.parsed.answers == (text == SCRIPT[-1])
    assert played.usage.unreported == ("usage" in message)


def test_a_turn_is_as_long_as_the_config_says_and_keys_are_ones_own(queries, toolbox):
    asked = {"turn_tokens": 50, "request": '{"max_tokens": null, "max_completion_tokens": 50, "top_p": 0.9}'}
    with ChatServer(lambda body: completion("<think>I think", finish="length")) as server:
        played = play(server, queries[0], toolbox, **asked)
    (body,) = server.bodies
    assert played.episode.turns[0].truncated and "max_tokens" not in body
    assert (body["max_completion_tokens"], body["top_p"], body["tool_choice"]) == (50, 0.9, "auto")
    with pytest.raises(ConfigError, match="request is '.top_p.'; it must be a JSON object"):
        EndpointConfig(request='"top_p"')


def test_a_passive_model_sees_the_picture_and_the_data_sets_own_prompt(queries, toolbox):
    own = "What is the emotion? Think in <think></think> and answer in <answer></answer>."
    asked = replace(queries[0], reference=replace(queries[0].reference, extra={"prompt": own}))
    said = "<think>a smile</think><answer>happiness</answer>"
    with ChatServer(lambda body: completion(said)) as server:
        with_own, without = (play(server, sample, toolbox, passive=True) for sample in (asked, queries[0]))
    first, second = server.bodies
    assert "tools" not in first and "tools" not in second and [m["role"] for m in first["messages"]] == ["user"]
    assert first["messages"][0]["content"][1:] == [{"type": "text", "text": own}]
    assert all(label in second["messages"][0]["content"][1]["text"] for label in queries[0].reference.labels)
    np.testing.assert_array_equal(pictures(first)[0], with_own.views[0].pixels)
    assert with_own.episode.answer.answer == "happiness" and not with_own.episode.ask_aus and without.episode.ask_aus


@needs_words
@pytest.mark.parametrize(("respond", "images_in"), [(in_text, "user"), (in_message, "tool")])
def test_the_messages_render_to_the_row_of_our_own_rollout(queries, toolbox, respond, images_in):
    chat, encoder = Chat.from_pretrained(WORDS), ViewEncoder(WORDS, toolbox.view_config)
    environment = Environment(EpisodeConfig(), chat, toolbox, encoder.tokens)
    observation, row, turns = environment.reset(queries[0]), [], iter(SCRIPT)
    while observation is not None:
        row += observation.token_ids
        turn = chat.tokenizer.encode(next(turns), add_special_tokens=False) + [chat.turn_end_id]
        before, row = len(row), row + turn
        observation = environment.step(SCRIPT[len(environment.episode.turns)], len(turn))
    with ChatServer(respond) as server:
        played = play(server, queries[0], toolbox, images_in=images_in)
    body = server.bodies[-1]
    text = chat.tokenizer.apply_chat_template(
        body["messages"], tools=body["tools"], add_generation_prompt=True, tokenize=False
    )
    sizes = iter([encoder.tokens(view) for view in environment.views])
    text = re.sub(re.escape(IMAGE_PAD), lambda pad: pad.group() * next(sizes), text)
    assert chat.tokenizer.encode(text, add_special_tokens=False) == row[:before]
    assert next(sizes, None) is None
    for sent, ours, view in zip(pictures(body), environment.views, played.views, strict=True):
        np.testing.assert_array_equal(sent, ours.pixels)
        np.testing.assert_array_equal(encoder(sent).values, encoder(view.pixels).values)


HTML = Response(200, b"<html>Bad gateway</html>", {"Content-Type": "text/html"})
BUSY = refusal(429, "slow down", Retry_After="0")
NO_CHOICES = Response(200, json.dumps({"choices": []}).encode(), {})
CUT = Response(200, b'{"choices": [{"message"', {"Content-Length": "9999"})


def client_of(server: ChatServer, pauses: list[float], **changes: object) -> ChatClient:
    return ChatClient(server.url, **{"key": KEY, "timeout": 30.0, "attempts": 3, "pause": pauses.append} | changes)


@pytest.mark.parametrize(
    ("bad", "after"),
    [
        (BUSY, 0.0),
        (refusal(429, Retry_After="7"), 7.0),
        (refusal(503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), 0.0),
        (refusal(500), None),
        (HTML, None),
        (NO_CHOICES, None),
        (CUT, None),
        (Response(200, b'{"choices": [{"message"', {}), None),
        (Response(200, b"[]", {}), None),
        (Response(200, b'{"error": {"message": "overloaded"}}', {}), None),
    ],
)
def test_a_request_is_sent_again_after_what_the_server_asks_for(bad, after):
    pauses: list[float] = []
    with ChatServer(lambda body: bad if len(server.bodies) < 3 else completion("said")) as server:
        found = client_of(server, pauses).complete({"model": "m"})
    assert found.message["content"] == "said" and len(server.bodies) == 3
    if after is None:
        assert 0.5 <= pauses[0] <= 1 and 1 <= pauses[1] <= 2
    else:
        assert pauses == [after, after]


def test_a_request_that_stalls_is_given_up():
    pauses: list[float] = []
    end = threading.Event()

    def respond(body: Body) -> Response:
        end.wait(60)
        return completion("too late")

    with (
        ChatServer(respond) as server,
        pytest.raises(RequestError, match=r"no response within 0\.1 s \(sent 2 times\)"),
    ):
        try:
            client_of(server, pauses, timeout=0.1, attempts=2).complete({})
        finally:
            end.set()
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("response", "error", "words"),
    [
        (refusal(400, "At most 1 image(s) may be provided"), RequestError, "status 400 .*At most 1 image"),
        (BUSY, RequestError, r"status 429 .*slow down.*\(sent 3 times\)"),
        (refusal(401, f"Incorrect API key: {KEY}"), UserError, r"refuses all requests .*Incorrect API key: \[key\]"),
        (refusal(404, "no such model"), UserError, "refuses all requests .*no such model"),
        (refusal(302, Location="http://127.0.0.1:9/v1"), UserError, "refuses all requests .status 302"),
    ],
)
def test_what_fails_for_good_says_what_the_server_said(response, error, words):
    with ChatServer(lambda body: response) as server, pytest.raises(error, match=words) as raised:
        client_of(server, []).complete({})
    assert KEY not in str(raised.value)


def test_a_server_that_is_not_there_is_named():
    with ChatServer(in_text) as server:
        pass
    with pytest.raises(UserError, match="http://127.0.0.1:.* cannot be reached: .*refused.*sent 3 times"):
        client_of(server, []).complete({})


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://[::1/v1",
        "http://a host/v1",
        "http://me:secret@host/v1",
        "https://host/v1?key=secret",
    ],
)
def test_an_address_that_is_none_or_has_a_secret_is_refused(url):
    with pytest.raises(ConfigError, match="--endpoint"):
        ChatClient(url, KEY, 1.0, 1)


def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret\nInjected: yes")
    with pytest.raises(ConfigError, match="MY_KEY holds no API key") as raised:
        key_from("MY_KEY")
    assert "secret" not in str(raised.value)


def test_an_episode_that_fails_is_an_error_and_no_wrong_answer(command, evaluated, shared):
    _, whole, _ = evaluated
    happy = next(record for record in read_episodes(whole) if record["id"] == "normal/folders/happiness/face.png")
    scene = load(whole, happy, 0)

    def refuses_one(body: Body) -> Response:
        """Fails at the second turn about one picture."""
        if turns_before(body) == 1 and np.array_equal(pictures(body)[0], scene):
            return refusal(400, "At most 1 image(s) may be provided")
        return in_text(body)

    with ChatServer(refuses_one) as server:
        found = command(server, "failed")
    normal = found["results"]["normal"]
    assert (normal["episodes"], normal["accuracy"]["value"]) == (3, 0)
    ((why, count),) = found["endpoint"]["failed"].items()
    assert count == 1 and "At most 1 image" in why
    assert "1 failed, and are no wrong answers: status 400" in found["printed"]
    (failed,) = (record for record in read_episodes(shared / "failed") if record["failure"])
    assert failed["id"] == happy["id"] and failed["reward"] is None
    assert len(failed["turns"]) == 1 and failed["usage"]["requests"] == 1
    assert [line["outcome"] for line in read_index(shared / "failed")].count("failed") == 1


def test_a_picture_that_cannot_be_read_is_in_no_figure(command, faces, shared):
    shutil.copytree(faces, shared / "faces")
    (shared / "faces" / "anger" / "face.png").write_bytes(b"\x89PNG")
    with ChatServer(in_text) as server:
        found = command(server, "unreadable", pictures=shared / "faces")
    assert found["results"]["normal"]["episodes"] == 3 and len(server.bodies) == 9
    assert len(found["unreadable"]) == 1 and "anger/face.png" in found["unreadable"][0]


def test_an_evaluation_that_stops_goes_on_without_asking_again(command, evaluated, shared):
    _, whole, expected = evaluated
    controls, out = ("no_tools",), shared / "stopped"

    def runs_out(body: Body) -> Response:
        return refusal(402, "no credit left") if len(server.bodies) > 9 else in_text(body)

    with ChatServer(runs_out) as server, pytest.raises(UserError, match="no credit left"):
        command(server, "stopped", parallel=1, controls=controls)
    assert len(list(read_episodes(out / PARTIAL))) == 4 and not (out / "results.json").exists()
    with ChatServer(in_text) as server:
        with pytest.raises(OutputError, match="was another .*delete"):
            command(server, "stopped", model="another", controls=controls)
        assert not server.bodies
        found = command(server, "stopped", controls=controls, parallel=4, prompt_price=1.0)
    assert len(server.bodies) == 16 - 8
    assert found["results"] == expected["results"] and found["endpoint"]["requests"] == 16
    assert "4 of 8 episodes are kept" in found["printed"]
    assert told(out) == told(whole)
    assert not {PLAN, PARTIAL} & {path.name for path in out.iterdir()}


def test_a_server_that_fails_every_time_is_not_asked_for_ever(command, shared, monkeypatch):
    with ChatServer(lambda body: refusal(400, "no pictures")) as server:
        with pytest.raises(UserError, match="all 4 episodes .normal. failed: .*no pictures"):
            command(server, "nothing")
        monkeypatch.setattr(served, "_FAILURES_IN_A_ROW", 2)
        with pytest.raises(UserError, match="2 episodes have failed in a row, the last by: .*no pictures"):
            command(server, "nothing", parallel=1)
    # What failed is asked again, until it is seen that all fails.
    assert 4 + 2 <= len(server.bodies) <= 4 + 3
    assert not (shared / "nothing" / "results.json").exists()
