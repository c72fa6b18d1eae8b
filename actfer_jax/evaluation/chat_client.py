"""A client of chat-completions servers, as OpenAI's and those of vLLM, SGLang, llama.cpp, Ollama and others are."""

import email.utils
import http.client
import json
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from actfer_jax.config import ConfigError
from actfer_jax.errors import UserError

_PATH = "/chat/completions"
_MOST_BYTES = 2**24  # A response is a few kilobytes.
_SHOWN_CHARACTERS = 300
_LONGEST_PAUSE = 60.0  # Seconds, unless the server asks for more.
_LONGEST_RETRY_AFTER = 3600.0
_SHORTEST_SECRET = 8  # Shorter keys ("EMPTY", "x") are no secrets, and may be parts of words.
_RETRIED = {408, 409, 425, 429, *range(500, 600)}
_HOPELESS = {*range(300, 400), 401, 402, 404, 405}  # For every request alike.


class Usage(NamedTuple):
    """What requests took, as far as the server reported it.

    Attributes:
      requests: how many responses there were.
      prompt_tokens, completion_tokens: of those that were reported.
      unreported: responses that came without these counts.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0


def total(usages: Iterable[Usage]) -> Usage:
    return Usage(*map(sum, zip(Usage(), *usages, strict=True)))


class Completion(NamedTuple):
    """A response: the assistant's message as the server gave it, whether its length was cut, and what it took."""

    message: dict[str, Any]
    truncated: bool
    usage: Usage


class RequestError(Exception):
    """A request that failed for good; others may succeed. The message says why, and has no secret."""


class _Retriable(Exception):
    """A request that may succeed later.

    Attributes:
      after: the seconds to wait, where the server said so.
    """

    def __init__(self, problem: str, after: float | None = None):
        super().__init__(problem)
        self.after = after


class _Unreachable(_Retriable):
    """There was no connection."""


@dataclass(frozen=True)
class ChatClient:
    """Asks one model of a server. Threads may share it.

    Attributes:
      url: the server's base, such as "http://localhost:8000/v1".
      key: sent as a bearer token; "" for none. It goes to no other host, and is in no message of an error.
      timeout: seconds that a response may take.
      attempts: how often a request is sent before it has failed.
      pause: waits for some seconds.
    """

    url: str
    key: str
    timeout: float
    attempts: int
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", self.url):
            raise ConfigError(f"--endpoint is {self.url!r}; give the server's base, such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError("--endpoint may have no user, query or fragment; a key goes into the environment")

    def complete(self, body: Mapping[str, Any]) -> Completion:
        """The response to a request, which is sent again where the server is busy, fails, stalls, or answers nonsense.

        Raises:
          RequestError: it failed for good.
          UserError: no request can succeed: the key, the model or the address is wrong, or nobody answers there.
        """
        for attempt in range(self.attempts):
            try:
                return _read(self._send(body))
            except _Retriable as error:
                last = error
            if attempt + 1 < self.attempts:
                backoff = min(2.0**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
                self.pause(backoff if last.after is None else last.after)
        problem = f"{last} (sent {self.attempts} times)"
        if isinstance(last, _Unreachable):
            raise UserError(f"the endpoint {self.url} cannot be reached: {problem}")
        raise RequestError(problem)

    def _send(self, body: Mapping[str, Any]) -> Any:
        """The JSON of the response."""
        url = self.url.rstrip("/").removesuffix(_PATH) + _PATH
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with _OPENER.open(request, timeout=self.timeout) as response:
                text = self._text(response)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except TimeoutError as error:
            raise _Retriable(f"no response within {self.timeout:g} s") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _Retriable(f"no response within {self.timeout:g} s") from error
            raise _Unreachable(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Retriable(f"the connection broke ({type(error).__name__})") from error
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Retriable(f"the response is no JSON: {_shown(text)}") from error

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            said = _shown(self._text(error))
        except (OSError, http.client.HTTPException, _Retriable):
            said = ""
        problem = f"status {error.code} {error.reason}: {said}"
        if error.code in _RETRIED:
            return _Retriable(problem, _retry_after(error.headers.get("Retry-After")))
        if error.code in _HOPELESS:
            return UserError(f"the endpoint {self.url} refuses all requests ({problem})")
        return RequestError(problem)

    def _text(self, response: http.client.HTTPResponse | urllib.error.HTTPError) -> str:
        """The text of a response, without the key, which an answer might repeat."""
        deadline, read = time.monotonic() + self.timeout, b""
        while chunk := response.read1(2**16):
            read += chunk
            if len(read) > _MOST_BYTES:
                raise _Retriable("the response has no end")
            if time.monotonic() > deadline:
                raise TimeoutError
        text = read.decode("utf-8", "replace")
        return text.replace(self.key, "[key]") if len(self.key) >= _SHORTEST_SECRET else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirected, a request would lose its body, and might go to another host."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def key_from(variable: str) -> str:
    """The API key in an environment variable; "" where it is not set.

    Raises:
      ConfigError: it cannot be sent in a header; the message does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {variable} holds no API key: it has characters that no key has")
    return key


def _read(response: Any) -> Completion:
    """A response's parts. Nothing about it is taken for granted."""
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise _Retriable(f"the response has no message: {_shown(json.dumps(response))}")
    return Completion(message, choice.get("finish_reason") == "length", _usage(response.get("usage")))


def _usage(reported: Any) -> Usage:
    counts = reported if isinstance(reported, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int) and min(prompt, completion) >= 0:
        return Usage(1, prompt, completion)
    return Usage(1, unreported=1)


def _retry_after(value: str | None) -> float | None:
    """The seconds that a header `Retry-After` asks for, as a number or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
