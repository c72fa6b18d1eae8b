"""A stand-in for a chat-completions server, on loopback: it answers as a test says, and remembers what it was asked."""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Body = dict[str, Any]


class Response(NamedTuple):
    status: int
    content: bytes
    headers: dict[str, str]


class ChatServer:
    """Answers requests by `respond`, each in a thread of its own. Use it as a context manager.

    Attributes:
      bodies, headers: of the requests in the order in which they came.
      most: the most requests that were under way at a time.
    """

    def __init__(self, respond: Callable[[Body], Response]):
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.most = self._now = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with lock:
                    self.bodies.append(body)
                    self.headers.append(dict(handler.headers) | {"path": handler.path})
                    self._now += 1
                    self.most = max(self.most, self._now)
                response = respond(body)
                with lock:
                    self._now -= 1
                handler.send_response(response.status)
                for name, value in {"Content-Length": str(len(response.content)), **response.headers}.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(response.content)

            def log_message(handler, *parts: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.socket.close()  # Requests that stall are not waited for.


def completion(content: Any = None, *, finish: str = "stop", usage: Any = (100, 10), **message: Any) -> Response:
    """A response with a message; its usage is (prompt tokens, completion tokens), or anything else."""
    if isinstance(usage, tuple):
        usage = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return Response(200, json.dumps({"choices": [choice], "usage": usage}).encode(), {})


def refusal(status: int, words: str = "", **headers: str) -> Response:
    """A response with an error; headers as in `Retry_After="0"`."""
    content = json.dumps({"error": {"message": words}}).encode()
    return Response(status, content, {name.replace("_", "-"): value for name, value in headers.items()})


def tool_call(name: str, arguments: str, id: str = "call_7") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def turns_before(body: Body) -> int:
    return sum(message["role"] == "assistant" for message in body["messages"])


def pictures(body: Body) -> list[np.ndarray]:
    """The pixels of all pictures in the messages, in their order."""
    found = []
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                kind, _, data = part["image_url"]["url"].partition(";base64,")
                assert kind == "data:image/png"
                found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
    return found
