"""A chat server for tests: the API of OpenAI on the loopback interface, with faults at will."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, convert_to_messages

from llm_expert.calls import prompt_hash
from recsim_env.errors import DataError, near_miss

__all__ = ["FAULTS", "ChatServer"]

FAULTS = {
    "429": "status 429 with Retry-After: 0",
    "500": "status 500",
    "slow": "no answer for `slow` seconds, then the connection is closed",
    "cut": "the connection is closed in the middle of the body",
    "invalid_json": "status 200 with a body that is no JSON",
    "empty": "a completion without text",
    "no_choices": "a completion without choices",
    "html": "status 200 with a page of HTML",
    "disconnect": "the connection is closed without a word",
    "wrong_format": "a complete answer that is not in the format that was asked for",
    "refusal": "a complete answer that refuses",
}
"""The faults by name. The last two are complete answers."""

_OF_THE_ANSWER = ("wrong_format", "refusal")
_OF_THE_WIRE = tuple(name for name in FAULTS if name not in _OF_THE_ANSWER)
_HTML = b"<html><body><h1>Welcome</h1><p>Please log in.</p></body></html>"
_WRONG_FORMAT = "There is so much that one could say about this, and none of it fits in two lines."
_REFUSAL = "I am sorry, but I cannot help with that."
_JSON = "application/json"

_LOG = logging.getLogger(__name__)


class ChatServer:
    """An OpenAI-compatible server on 127.0.0.1; a context manager that serves while inside.

    It speaks `POST /v1/chat/completions` (without streaming) and `GET /v1/models`, over connections
    that are kept alive. Faults do not depend on the order in which requests come: those of the wire
    are drawn for every request from the seed, its prompt and how often that prompt has come; those
    of the answer from the seed and the prompt, so that a prompt asked again gets the same text.

    Args:
        answer: Gives the text for a list of messages as OpenAI writes them, or a chat model, which
            is given the seed of the request too.
        faults: From names of `FAULTS` to the share of requests (of the wire) or of prompts (of the
            answer) that get them, in [0, 1] and at most 1 in all.
        seed: Of the draws.
        delay: Seconds before every answer.
        slow: Seconds of the fault "slow", longer than the client's patience.
        model: Name of the model that `GET /v1/models` tells.
        key: Where given, a request with another one gets status 401 and is told its own key.

    Attributes:
        requests: How many completions were asked for.
        completed: From `prompt_hash` of a prompt to how many complete answers were sent for it.
        served: From the name of a fault to how often it was served.
        most_in_flight: The most requests that were served at the same time.
    """

    def __init__(
        self,
        answer: Callable[[list[dict[str, Any]]], str] | BaseChatModel,
        faults: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        delay: float = 0.0,
        slow: float = 2.0,
        model: str = "test-model",
        key: str | None = None,
    ) -> None:
        self.seed = seed
        self.delay = delay
        self.slow = slow
        self.model = model
        self.key = key
        self.requests = 0
        self.completed: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.most_in_flight = 0
        self._answer = answer
        self._faults: dict[str, float] = {}
        self._asked: Counter[str] = Counter()
        self._in_flight = 0
        self._port = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self.set_faults(faults or {})

    @property
    def url(self) -> str:
        """The address for clients, for example "http://127.0.0.1:40123/v1"."""
        return f"http://127.0.0.1:{self._port}/v1"

    def set_faults(self, faults: Mapping[str, float]) -> None:
        """Takes other faults from now on.

        Args:
            faults: As in the constructor.

        Raises:
            DataError: A name is not known, or the shares are not in [0, 1].
        """
        for name in faults:
            if name not in FAULTS:
                raise DataError(f"There is no fault {name!r}; {near_miss(name, FAULTS)}.")
        shares = list(faults.values())
        if any(share < 0 for share in shares) or sum(shares) > 1 + 1e-9:
            raise DataError(
                f"The faults {dict(faults)} came where shares of at least 0 and of at most 1 in "
                "all were expected; lower them."
            )
        with self._lock:
            self._faults = dict(faults)

    def up(self) -> None:
        """Starts to serve, on the same port as before if there was one."""
        if self._listener is not None:
            return
        self._stopping.clear()
        self._listener = _Listener(self, self._port)
        self._port = self._listener.server_address[1]
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, name="chat server"
        )
        self._thread.start()

    def down(self) -> None:
        """Stops to serve, and breaks off every connection."""
        listener, thread = self._listener, self._thread
        if listener is None or thread is None:
            return
        self._listener = self._thread = None
        self._stopping.set()
        listener.shutdown()
        listener.break_off()
        listener.server_close()
        thread.join()

    def __enter__(self) -> ChatServer:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    def wait(self, seconds: float) -> bool:
        """Waits, and tells whether the server still serves after it."""
        if seconds <= 0:
            return not self._stopping.is_set()
        return not self._stopping.wait(seconds)

    def begin(self, prompt: str) -> str | None:
        """Takes note of a request and returns the fault that it gets, or None.

        Args:
            prompt: Hash of its messages.
        """
        with self._lock:
            self.requests += 1
            self._asked[prompt] += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            fault = self._draw(_OF_THE_WIRE, f"{prompt} {self._asked[prompt]}") or self._draw(
                _OF_THE_ANSWER, prompt
            )
            if fault is not None:
                self.served[fault] += 1
            return fault

    def _draw(self, names: Sequence[str], about: str) -> str | None:
        """Returns one of some faults or None, drawn by the seed and `about`."""
        digest = hashlib.sha256(f"{self.seed} {about}".encode()).digest()
        left = int.from_bytes(digest[:8], "big") / 2**64
        for name in names:
            left -= self._faults.get(name, 0.0)
            if left < 0:
                return name
        return None

    def end(self) -> None:
        """Takes note that a request is over."""
        with self._lock:
            self._in_flight -= 1

    def count(self, prompt: str, number: int) -> None:
        """Adds to the complete answers of a prompt."""
        with self._lock:
            self.completed[prompt] += number
            if not self.completed[prompt]:
                del self.completed[prompt]

    def text(self, asked: Mapping[str, Any], fault: str | None) -> str:
        """Returns the text of a completion.

        Args:
            asked: The body of the request.
            fault: One of the faults of the answer, "empty", or None.
        """
        if fault == "wrong_format":
            return _WRONG_FORMAT
        if fault in ("empty", "refusal"):
            return ""
        if isinstance(self._answer, BaseChatModel):
            seed = asked.get("seed")
            given = {} if seed is None else {"seed": seed}
            return str(self._answer.invoke(convert_to_messages(asked["messages"]), **given).text)
        messages: list[dict[str, Any]] = asked["messages"]
        return self._answer(messages)


class _Listener(ThreadingHTTPServer):
    """The sockets of a `ChatServer`."""

    daemon_threads = False  # so that closing waits for them
    request_queue_size = 256

    def __init__(self, owner: ChatServer, port: int) -> None:
        self.owner = owner
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def break_off(self) -> None:
        """Ends every open connection, which ends its thread."""
        with self._connections_lock:
            for connection in self._connections:
                _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Takes no notice of clients that have gone."""
        _LOG.debug("a connection broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug(format, *args)

    def do_GET(self) -> None:
        """Tells the models."""
        if self.path.rstrip("/") != "/v1/models":
            self._refuse(404, "There is nothing here; see /v1/models.")
            return
        model = {"id": self.server.owner.model, "object": "model", "owned_by": "tests"}
        self._send_json(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        """Completes a chat."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        problem = self._problem(body)
        if problem is not None:
            self._refuse(*problem)
            return
        asked = json.loads(body)
        prompt = _hash_of(asked["messages"])
        owner = self.server.owner
        fault = owner.begin(prompt)
        try:
            if owner.wait(owner.slow if fault == "slow" else owner.delay):
                self._complete(asked, prompt, fault)
            else:
                self.close_connection = True
        finally:
            owner.end()

    def _problem(self, body: bytes) -> tuple[int, str] | None:
        """Returns the status and the text with which a request is refused, or None."""
        if self.path.rstrip("/") != "/v1/chat/completions":
            return 404, "There is nothing here; see /v1/chat/completions."
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.server.owner.key not in (None, given):
            return 401, f"Incorrect API key provided: {given}."
        try:
            asked = json.loads(body)
            _hash_of(asked["messages"])
        except (ValueError, LookupError, TypeError) as error:
            return 400, f"The body is no request for a completion ({type(error).__name__})."
        return (400, "There is no streaming here.") if asked.get("stream") else None

    def _complete(self, asked: dict[str, Any], prompt: str, fault: str | None) -> None:
        """Answers with a completion, or with a fault of the wire."""
        if fault in ("slow", "disconnect"):
            self.close_connection = True
            _hang_up(self.connection)
        elif fault == "429":
            self._refuse(429, "Too many requests.", {"Retry-After": "0"})
        elif fault == "500":
            self._refuse(500, "Something is broken.")
        elif fault == "html":
            self._send(200, _HTML, "text/html")
        elif fault == "invalid_json":
            self._send(200, b'{"id": "chatcmpl-1", "choices": [{"mess', _JSON)
        else:
            self._send_completion(asked, prompt, fault)

    def _send_completion(self, asked: dict[str, Any], prompt: str, fault: str | None) -> None:
        text = self.server.owner.text(asked, fault)
        body = _completion(asked, text, fault)
        if fault == "cut":
            self._send(200, body[: len(body) // 2], _JSON, length=len(body))
            self.close_connection = True
            _hang_up(self.connection)
            return
        if fault in ("empty", "no_choices"):
            self._send(200, body, _JSON)
            return
        # Counted before the client can know of it, and taken back if it never will.
        self.server.owner.count(prompt, 1)
        try:
            self._send(200, body, _JSON)
        except OSError:
            self.server.owner.count(prompt, -1)
            raise

    def _refuse(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        error = {"message": text, "type": "error", "param": None, "code": None}
        self._send_json(status, {"error": error}, headers)

    def _send_json(
        self, status: int, value: object, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(status, json.dumps(value).encode(), _JSON, headers=headers)

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str,
        *,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def _completion(asked: dict[str, Any], text: str, fault: str | None) -> bytes:
    """Returns the body of a completion, with the bytes of the texts as its tokens."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if fault == "refusal":
        message |= {"content": None, "refusal": _REFUSAL}
    prompt_tokens = sum(
        len(str(m["content"]).encode("utf-8", "replace")) for m in asked["messages"]
    )
    completion_tokens = len(text.encode("utf-8", "replace"))
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    completion = {
        "id": f"chatcmpl-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked.get("model"),
        "choices": [] if fault == "no_choices" else [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    return json.dumps(completion).encode()


def _hash_of(messages: list[dict[str, Any]]) -> str:
    """Returns `prompt_hash` of messages as OpenAI writes them."""
    converted: list[BaseMessage] = convert_to_messages(messages)
    return prompt_hash(converted)


def _hang_up(connection: socket.socket) -> None:
    """Ends a connection for both sides."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        _LOG.debug("the connection was closed already")
