from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import SecretStr

from llm_expert.call_store import FORMAT, CallStore, Spent, Stored
from llm_expert.calls import Answer, Caller, Counts, Tag, Usage, call_key, prompt_hash
from llm_expert.chat_models import ChatModel, Price
from llm_expert.errors import (
    AuthenticationError,
    BadResponseError,
    CallError,
    CallTimeoutError,
    ConnectionLostError,
    PromptTooLongError,
    RateLimitError,
    ReplayMissError,
    RequestError,
    ServerError,
    StopAsked,
    StorageError,
)
from llm_expert.failures import failure_of, redact, secrets_of, wait_before
from llm_expert.testing import ChatServer
from llm_expert.tokens import make_counter
from recsim_env.errors import DataError

ACTOR = Tag("actor", session=3, step=5)


class Scripted(BaseChatModel):
    """Answers with what `reply` gives for the last message: a text, a message or an exception."""

    reply: Callable[[str], Any]
    delays: Callable[[str], float] | None = None
    asked: list[str] = []  # noqa: RUF012 - pydantic copies it
    in_flight: int = 0
    most: int = 0
    key: SecretStr | None = None

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise AssertionError("asked outside the event loop")

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        text = str(messages[-1].content)
        self.asked.append(text)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if self.delays is not None:
                await asyncio.sleep(self.delays(text))
            said = self.reply(text)
        finally:
            self.in_flight -= 1
        if isinstance(said, BaseException):
            raise said
        message = said if isinstance(said, AIMessage) else AIMessage(said)
        return ChatResult(generations=[ChatGeneration(message=message)])


def chat(model: BaseChatModel, **changes: Any) -> ChatModel:
    given: dict[str, Any] = {
        "model": model,
        "spec": "test:scripted",
        "settings": {"temperature": 0.5, "max_tokens": 256},
        "window": 8192,
        "max_tokens": 256,
        "counter": make_counter(None),
        "price": Price(prompt=1.0, completion=3.0),
    }
    return ChatModel(**{**given, **changes})


def scripted(reply: Callable[[str], Any] = str.upper, **fields: Any) -> Scripted:
    return Scripted(reply=reply, **fields)


def prompt(text: str) -> list[BaseMessage]:
    return [SystemMessage("Answer."), HumanMessage(text)]


class Waits(list[float]):
    """A `sleep` that takes no time and keeps what it was asked for."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


def ask(caller: Caller, *texts: str, tag: Tag = ACTOR) -> list[Answer]:
    async def all_of_them() -> list[Answer]:
        return list(await asyncio.gather(*(caller(prompt(text), tag=tag) for text in texts)))

    return asyncio.run(all_of_them())


def in_turn(*outcomes: Any) -> Callable[[str], Any]:
    left = list(outcomes)
    return lambda _: left.pop(0)


def row(**changes: Any) -> Stored:
    given: dict[str, Any] = {
        "key": "k",
        "prompt_hash": "h",
        "spec": "test:scripted",
        "settings": "{}",
        "messages": '[["human","hello"]]',
        "sample": 0,
        "role": "actor",
        "session": 1,
        "step": 2,
        "attempt": 0,
        "text": "text",
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "latency": 0.25,
    }
    return Stored(**{**given, **changes})


# --- keys -----------------------------------------------------------------------------------------


def test_prompt_hash_by_hand() -> None:
    text = '[["system","Be brief."],["human","\\u00e9"]]'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert prompt_hash([SystemMessage("Be brief."), HumanMessage("é")]) == expected


def test_prompt_hash_sees_roles_and_borders() -> None:
    hashes = {
        prompt_hash([HumanMessage("ab")]),
        prompt_hash([AIMessage("ab")]),
        prompt_hash([HumanMessage("a"), HumanMessage("b")]),
        prompt_hash([HumanMessage("a\n"), HumanMessage("b")]),
    }
    assert len(hashes) == 4


def test_half_of_a_surrogate_pair_can_be_hashed() -> None:
    assert prompt_hash([HumanMessage("\ud800")]) != prompt_hash([HumanMessage("?")])


def test_call_key_sees_model_settings_prompt_and_sample() -> None:
    model = scripted()
    first = call_key(chat(model), prompt("a"))
    others = [
        call_key(chat(model, spec="test:other"), prompt("a")),
        call_key(chat(model, settings={"temperature": 0.7, "max_tokens": 256}), prompt("a")),
        call_key(chat(model), prompt("b")),
        call_key(chat(model), prompt("a"), sample=1),
    ]
    assert len({first, *others}) == 5


def test_call_key_does_not_see_order_or_kind_of_number() -> None:
    model = scripted()
    one = chat(model, settings={"temperature": 1.0, "seed": None, "on": True})
    other = chat(model, settings={"on": True, "temperature": 1, "seed": None}, window=99)
    assert call_key(one, prompt("a")) == call_key(other, prompt("a"))


# --- the record -----------------------------------------------------------------------------------


def test_store_gives_back_what_was_put(tmp_path: Path) -> None:
    call = row(text="line\nNUL \x00 and \u2028 and \U0001f600", latency=0.1)
    with CallStore(tmp_path / "new" / "calls.sqlite") as store:
        assert store.get("k") is None
        store.put(call)
        assert store.get("k") == call
    with CallStore(tmp_path / "new" / "calls.sqlite") as store:
        assert store.get("k") == call
        assert len(store) == 1


def test_store_keeps_the_first_answer_and_the_order(tmp_path: Path) -> None:
    with CallStore(tmp_path / "calls.sqlite") as store:
        store.put(row(key="b"))
        store.put(row(key="a"))
        store.put(row(key="b", text="another"))
        assert [(call.key, call.text) for call in store] == [("b", "text"), ("a", "text")]


def test_store_is_one_file_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        store.put(row())
        assert (tmp_path / "calls.sqlite-wal").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["calls.sqlite"]
    with CallStore(path, read_only=True) as store:
        assert store.get("k") == row()
    assert [file.name for file in tmp_path.iterdir()] == ["calls.sqlite"]
    store.close()  # a second time does nothing


def test_store_commits_before_put_returns(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store, CallStore(path, read_only=True) as reader:
        store.put(row())
        assert reader.get("k") == row()


def test_read_only_store_makes_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with pytest.raises(StorageError, match="no record of calls at"):
        CallStore(path, read_only=True)
    assert not path.exists()
    with CallStore(path) as store:
        store.put(row())
    before = path.read_bytes()
    with CallStore(path, read_only=True) as store, pytest.raises(StorageError, match="read-only"):
        store.put(row(key="other"))
    assert path.read_bytes() == before


def test_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        store.put(row(key="first"))
        assert store._connection is not None
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match="disk is full; free some space"):
            store.put(row(key="second", text="x" * 100_000))
        assert store.get("first") is not None
        assert store.get("second") is None
    with CallStore(path) as store:
        store.put(row(key="second"))
        assert len(store) == 2


def test_files_that_are_no_record(tmp_path: Path) -> None:
    text, other, folder = tmp_path / "text", tmp_path / "other", tmp_path / "folder"
    text.write_text("This is no database, and it is long enough to be read as one." * 20)
    folder.mkdir()
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE things (x)")
    connection.close()
    before = other.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StorageError, match="damaged or no SQLite file"):
            CallStore(text, read_only=read_only)
        with pytest.raises(StorageError, match="no record of calls"):
            CallStore(other, read_only=read_only)
        with pytest.raises(StorageError):
            CallStore(folder, read_only=read_only)
    assert other.read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        CallStore(tmp_path / "file" / "calls.sqlite")


def test_damaged_record(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        for number in range(50):
            store.put(row(key=str(number), text="x" * 2000))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with CallStore(path) as store, pytest.raises(StorageError, match=r"damaged.*move it away"):
        store.get("7")


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_record_that_is_removed_or_moved_stops_the_run(tmp_path: Path, how: str) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        store.put(row(key="first"))
        if how == "removed":
            path.unlink()
        elif how == "moved":
            path.rename(tmp_path / "elsewhere")
        else:
            (tmp_path / "other").write_text("")
            (tmp_path / "other").replace(path)
        with pytest.raises(StorageError, match="was removed or moved while the run wrote to it"):
            store.put(row(key="second"))
        with pytest.raises(StorageError, match="was removed or moved"):
            store.spend("third", Spent(1, 2, 3))


def test_a_relative_path_outlives_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    with CallStore("calls.sqlite") as store:
        monkeypatch.chdir(tmp_path / "else")
        store.put(row())
        assert len(store) == 1


LIMITED = """
import resource, sys
from test_llm_calls import CallStore, StorageError, row
with CallStore(sys.argv[1]) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        for number in range(1000):
            store.put(row(key=str(number), text="x" * 2000))
    except StorageError as error:
        sys.exit(str(error))
"""


def test_the_limit_of_a_files_size_is_said(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "calls.sqlite")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "file size limit of this process" in done.stderr


def test_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    with pytest.raises(StorageError, match=f"format {FORMAT + 1} .* up to {FORMAT}"):
        CallStore(path)


def test_what_empty_answers_cost_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        assert store.spent("k") == Spent()
        store.spend("k", Spent(1, 10, 2))
        store.spend("k", Spent(2, 5, 3))
        store.spend("other", Spent(1, 1, 1))
    with CallStore(path, read_only=True) as store:
        assert store.spent("k") == Spent(3, 15, 5)
        with pytest.raises(StorageError, match="read-only"):
            store.spend("k", Spent(1, 1, 1))
        assert len(store) == 0


def test_a_record_of_format_1_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        store.put(row())
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE spent")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = path.read_bytes()
    with CallStore(path, read_only=True) as store:
        assert (store.get("k"), store.spent("k")) == (row(), Spent())
    assert path.read_bytes() == before
    with CallStore(path) as store:
        store.spend("k", Spent(1, 2, 3))
        assert (store.get("k"), store.spent("k")) == (row(), Spent(1, 2, 3))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)
    connection.close()


def test_rows_are_synced_before_put_returns(tmp_path: Path) -> None:
    with CallStore(tmp_path / "calls.sqlite") as store:
        assert store._connection is not None
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_errors_of_the_system_are_errors_of_the_record(tmp_path: Path) -> None:
    class Broken:
        def execute(self, *_: Any) -> Any:
            raise OSError(errno.ENOSPC if self.full else errno.EIO, "no")

        def close(self) -> None: ...

        full = False

    with CallStore(tmp_path / "calls.sqlite") as store:
        connection, broken = store._connection, Broken()
        store._connection = broken  # type: ignore[assignment]
        for use in (lambda: store.get("k"), lambda: store.put(row()), lambda: len(store)):
            with pytest.raises(StorageError, match="see that its folder is there"):
                use()
        broken.full = True
        with pytest.raises(StorageError, match="the disk is full"):
            store.put(row())
        store._connection = connection


def test_empty_file_becomes_a_record(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"  # what a process killed at its very start leaves
    path.touch()
    with CallStore(path) as store:
        store.put(row())
        assert len(store) == 1


def test_log_of_a_killed_process_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as store:
        store.put(row())
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{tmp_path / 'copy.sqlite'}{suffix}")
    with CallStore(tmp_path / "copy.sqlite", read_only=True) as store:
        assert store.get("k") == row()
    with CallStore(tmp_path / "copy.sqlite") as store:
        assert store.get("k") == row()


def test_store_is_used_by_many_threads(tmp_path: Path) -> None:
    def work(thread: int) -> None:
        for number in range(25):
            store.put(row(key=f"{thread} {number}"))
            store.put(row(key=f"shared {number}"))

    with CallStore(tmp_path / "calls.sqlite") as store:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store) == 4 * 25 + 25


def test_two_processes_may_share_a_record(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with CallStore(path) as one:
        with CallStore(path) as other:
            one.put(row(key="a"))
            other.put(row(key="b"))
            other.put(row(key="a", text="another"))
            assert one.get("b") is not None
        one.put(row(key="c"))
    with CallStore(path, read_only=True) as store:
        assert [(call.key, call.text) for call in store] == [(key, "text") for key in "abc"]


def test_closed_store_says_so(tmp_path: Path) -> None:
    store = CallStore(tmp_path / "calls.sqlite")
    store.close()
    with pytest.raises(StorageError, match="is closed"):
        store.get("k")


# --- what a failure means -------------------------------------------------------------------------


class Refused(Exception):
    """Stands for any provider's error with a status."""

    def __init__(self, status: int, text: str = "no", **headers: str) -> None:
        super().__init__(text)
        self.status_code = status
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.response = httpx.Response(status, headers=named)


@pytest.mark.parametrize(
    ("error", "kind", "again"),
    [
        (Refused(400), RequestError, False),
        (Refused(401), AuthenticationError, False),
        (Refused(403), AuthenticationError, False),
        (Refused(404), RequestError, False),
        (Refused(405), RequestError, False),
        (Refused(408), CallTimeoutError, True),
        (Refused(409), ServerError, True),
        (Refused(422), RequestError, False),
        (Refused(429), RateLimitError, True),
        (Refused(429, "insufficient_quota"), RateLimitError, False),
        (Refused(400, "context_length_exceeded"), PromptTooLongError, False),
        (Refused(500), ServerError, True),
        (Refused(501), RequestError, False),
        (Refused(503), ServerError, True),
        (Refused(505), RequestError, False),
        (Refused(529), ServerError, True),
        (TimeoutError(), CallTimeoutError, True),
        (httpx.ReadTimeout("slow"), CallTimeoutError, True),
        (httpx.ConnectError("no"), ConnectionLostError, True),
        (httpx.RemoteProtocolError("cut"), ConnectionLostError, True),
        (ConnectionResetError(), ConnectionLostError, True),
        (json.JSONDecodeError("no", "{", 1), BadResponseError, True),
        (IndexError("list index out of range"), BadResponseError, True),
        (KeyError("choices"), BadResponseError, True),
        (TypeError("null choices"), BadResponseError, True),
        ("x\ud800".encode, RequestError, False),
        (RuntimeError("out of memory"), CallError, False),
    ],
)
def test_what_a_failure_means(error: Any, kind: type[CallError], again: bool) -> None:
    if callable(error):
        with pytest.raises(UnicodeEncodeError) as caught:
            error("utf-8")
        error = caught.value
    failure = failure_of(error)
    assert failure.kind is kind
    assert failure.again is again
    assert failure.cause is error


def test_a_200_that_cannot_be_read_is_no_status() -> None:
    error = json.JSONDecodeError("no", "{", 1)
    error.response = httpx.Response(200)  # type: ignore[attr-defined]
    assert failure_of(error).kind is BadResponseError


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "3"}, 3.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after_ms": "250", "retry_after": "3"}, 0.25),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-3"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert failure_of(Refused(429, **headers)).wait == seconds


def test_wait_before_by_hand() -> None:
    draw = int.from_bytes(hashlib.sha256(b"key 3").digest()[:4], "big") / 2**32
    assert wait_before("key", 3, None, 1.0, 60.0) == pytest.approx(4.0 * (0.5 + draw / 2))
    assert wait_before("key", 3, 17.0, 1.0, 60.0) == 17.0
    assert wait_before("key", 3, 1e9, 1.0, 60.0) == 60.0
    assert 30.0 <= wait_before("key", 10**9, None, 1.0, 60.0) <= 60.0
    assert wait_before("key", 2, None, 1.0, 60.0) != wait_before("other", 2, None, 1.0, 60.0)


def test_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "plain-looking-value")
    text = redact(
        "Incorrect API key: sk-proj-abc***wxyz, plain-looking-value, Bearer abc.def-ghi, "
        "http://host/v1?key=AIzaSyD-12345678901&x=1 http://user:pass@host/ hidden-one",
        ["hidden-one"],
    )
    for secret in ("sk-proj", "wxyz", "plain-looking", "abc.def", "AIza", "pass", "hidden-one"):
        assert secret not in text
    assert text.startswith("Incorrect API key: [redacted], [redacted], Bearer [redacted], http://")


def test_short_secrets_are_redacted_as_words_and_placeholders_are_none() -> None:
    held = secrets_of(scripted(key=SecretStr("short7")))
    assert held == ("short7",)
    assert secrets_of(scripted(key=SecretStr("none"))) == ()
    said = redact("Incorrect API key provided: short7. See shortly, short78", held)
    assert said == "Incorrect API key provided: [redacted]. See shortly, short78"
    assert redact("a redacted ed, a", ["ed", "a"]) == "[redacted] redacted [redacted], [redacted]"


def test_secrets_are_redacted_as_json_repr_and_url_have_them() -> None:
    secret = 'quoted"and\\back é'
    forms = (json.dumps(secret), repr(secret), quote(secret), secret)
    assert redact(" ".join(forms), [secret]).count("[redacted]") == 4
    assert "bWU6eW91" not in redact("Authorization: Basic bWU6eW91")
    assert redact("Basic auth is wanted") == "Basic auth is wanted"


def test_a_lost_connection_says_why_and_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    error = httpx.ConnectError("Connection error.")
    error.__cause__ = OSError("no route for hidden-one to it")
    failure = failure_of(error, ["hidden-one"])
    assert failure.what == (
        "ConnectError (Connection error; OSError: no route for [redacted] to it)"
    )
    assert failure.cause is None
    assert "proxy" not in failure.mend
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "https_proxy names a proxy" in failure_of(error).mend
    assert failure_of(error).cause is error


# --- the caller -----------------------------------------------------------------------------------


def test_an_answer_and_its_row(tmp_path: Path) -> None:
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    model = scripted(lambda _: AIMessage("fine", usage_metadata=usage))
    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = Caller(chat(model), store)
        (answer,) = ask(caller, "a")
        (stored,) = store
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("fine", 11, 7)
    assert answer.prompt_hash == stored.prompt_hash == prompt_hash(prompt("a"))
    assert not answer.cached
    assert stored.key == call_key(chat(model), prompt("a"))
    assert (stored.role, stored.session, stored.step, stored.attempt) == ("actor", 3, 5, 0)
    assert json.loads(stored.messages) == [["system", "Answer."], ["human", "a"]]
    assert json.loads(stored.settings) == {"max_tokens": 256, "temperature": 0.5}
    assert 0 < answer.latency == stored.latency < 5


def test_tokens_are_counted_where_the_model_does_not_tell() -> None:
    (answer,) = ask(Caller(chat(scripted(lambda _: "é"))), "abc")
    assert answer.prompt_tokens == len("Answer.") + len("abc") + 2 * 4 + 3
    assert answer.completion_tokens == 2


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    model = scripted()
    with CallStore(tmp_path / "calls.sqlite") as store:
        first = ask(Caller(chat(model), store), "a", "b")
        again = Caller(chat(model), store)
        second = ask(again, "a", "b", "c")
    assert sorted(model.asked) == ["a", "b", "c"]
    assert [answer.cached for answer in second] == [True, True, False]
    assert [answer.text for answer in second] == ["A", "B", "C"]
    assert second[0].latency == first[0].latency
    assert (again.usage.calls, again.usage.cached) == (1, 2)


def test_nothing_is_asked_twice_without_a_record() -> None:
    model = scripted()
    caller = Caller(chat(model))
    ask(caller, "a")
    (again,) = ask(caller, "a")
    assert again.cached
    assert model.asked == ["a"]


class Drawing(Scripted):
    """Answers with what else it is told."""

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **others: Any) -> ChatResult:
        self.asked.append(str(messages[-1].content))
        message = AIMessage(json.dumps({k: v for k, v in others.items() if k != "stop"}))
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ["{}", "{}", "{}"]),
        ({"draw_argument": "seed"}, ["{}", '{"seed": 1}', '{"seed": 2}']),
        (
            {"draw_argument": "draw", "settings": {"seed": 5}},
            ["{}", '{"draw": 6}', '{"draw": 7}'],
        ),
    ],
)
def test_another_sample_is_another_call_and_another_draw(
    changes: dict[str, Any], told: list[str]
) -> None:
    model = Drawing(reply=str)
    caller = Caller(chat(model, **changes))

    async def draw() -> list[Answer]:
        calls = (caller(prompt("a"), tag=ACTOR, sample=sample) for sample in range(3))
        return list(await asyncio.gather(*calls))

    assert [answer.text for answer in asyncio.run(draw())] == told
    assert model.asked == ["a", "a", "a"]


def test_equal_calls_at_the_same_time_are_paid_once(tmp_path: Path) -> None:
    model = scripted(delays=lambda _: 0.02)
    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = Caller(chat(model), store)
        answers = ask(caller, *"a" * 20)
        assert len(store) == 1
    assert model.asked == ["a"]
    assert [answer.cached for answer in answers] == [False] + [True] * 19
    assert (caller.usage.calls, caller.usage.cached) == (1, 19)
    assert caller.usage.prompt_tokens == caller.usage.total_prompt_tokens > 0
    assert (caller.usage.total_calls, caller.usage.by_role["actor"].total_calls) == (1, 1)


def test_equal_calls_share_an_error() -> None:
    model = scripted(lambda _: Refused(401), delays=lambda _: 0.01)
    caller = Caller(chat(model))

    async def together() -> list[Any]:
        calls = (caller(prompt("a"), tag=ACTOR) for _ in range(3))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(error) for error in asyncio.run(together())] == [AuthenticationError] * 3
    assert model.asked == ["a"]
    model.reply = str.upper
    assert ask(Caller(chat(model)), "a")[0].text == "A"


def test_calls_in_flight_are_bounded() -> None:
    model = scripted(delays=lambda _: 0.005)
    ask(Caller(chat(model), max_in_flight=3), *map(str, range(20)))
    assert model.most == 3
    model = scripted(delays=lambda _: 0.02)
    ask(Caller(chat(model), max_in_flight=64), *map(str, range(20)))
    assert model.most == 20


def test_the_record_answers_while_all_slots_are_taken(tmp_path: Path) -> None:
    model = scripted()
    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = Caller(chat(model), store, max_in_flight=1)
        ask(caller, "known")

        async def run() -> None:
            slow = asyncio.create_task(caller(prompt("slow"), tag=ACTOR))
            await asyncio.sleep(0.01)
            known = await asyncio.wait_for(caller(prompt("known"), tag=ACTOR), 1)
            assert known.cached
            assert not slow.done()
            await slow

        model.delays = lambda _: 0.5
        asyncio.run(run())


def test_what_comes_out_does_not_depend_on_who_is_first(tmp_path: Path) -> None:
    texts = [str(number % 7) for number in range(30)]
    outcomes = []
    for name in ("ascending", "descending"):
        sign = 1 if name == "ascending" else -1
        waits = {str(i): 0.01 + sign * 0.001 * i for i in range(7)}
        failing: set[str] = set()

        def reply(text: str, failing: set[str] = failing) -> Any:
            if text in "135" and text not in failing:
                failing.add(text)
                return Refused(503)
            return text * 3

        model = scripted(reply, delays=waits.__getitem__)
        with CallStore(tmp_path / name) as store:
            caller = Caller(chat(model), store, sleep=Waits())
            answers = ask(caller, *texts)
            kept = {call.key: call.text for call in store}
        told = [(a.text, a.prompt_hash, a.prompt_tokens, a.cached) for a in answers]
        caller.usage.total_latency = caller.usage.by_role["actor"].total_latency = 0.0
        outcomes.append((told, kept, caller.usage))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("fault", [Refused(429), Refused(500), TimeoutError(), "", " \n", []])
def test_what_may_pass_is_tried_again(fault: Any) -> None:
    waits = Waits()
    model = scripted(in_turn(fault, fault, "fine"))
    caller = Caller(chat(model), sleep=waits)
    (answer,) = ask(caller, "a")
    assert answer.text == "fine"
    assert caller.usage.retries == 2
    key = call_key(chat(model), prompt("a"))
    assert waits == [wait_before(key, n, None, 1.0, 60.0) for n in (1, 2)]


def test_retry_after_is_honoured() -> None:
    waits = Waits()
    model = scripted(in_turn(Refused(429, retry_after="7"), "fine"))
    ask(Caller(chat(model), sleep=waits), "a")
    assert waits == [7.0]


def test_attempts_are_bounded_and_the_error_says_all() -> None:
    error = Refused(503, "try  later\nplease")
    model = scripted(lambda _: error)
    caller = Caller(chat(model), attempts=4, sleep=Waits())
    with pytest.raises(ServerError) as caught:
        ask(caller, "a")
    assert len(model.asked) == 4
    assert caller.usage.retries == 3
    assert caught.value.__cause__ is error
    assert str(caught.value) == (
        "The actor's call of session 3, step 5 failed after 4 attempts: status 503 (try later "
        "please); try later, and start the same command again: it goes on where it stopped."
    )


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    model = scripted(lambda _: Refused(status))
    with pytest.raises(CallError, match="after 1 attempt:"):
        ask(Caller(chat(model), sleep=Waits()), "a")
    assert len(model.asked) == 1


def test_empty_answers_cost_and_end_in_an_error() -> None:
    usage = {"input_tokens": 10, "output_tokens": 256, "total_tokens": 266}
    metadata = {"finish_reason": "length"}
    model = scripted(lambda _: AIMessage("", usage_metadata=usage, response_metadata=metadata))
    caller = Caller(chat(model), attempts=2, sleep=Waits())
    with pytest.raises(BadResponseError, match=r"tokens are used up; allow more tokens"):
        ask(caller, "a")
    assert (caller.usage.calls, caller.usage.prompt_tokens) == (0, 20)
    assert caller.usage.completion_tokens == 512
    assert (caller.usage.total_calls, caller.usage.total_prompt_tokens) == (0, 20)


def test_a_run_that_goes_on_reports_what_empty_answers_have_cost(tmp_path: Path) -> None:
    usage = {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13}
    empty, fine = (AIMessage(text, usage_metadata=usage) for text in ("", "fine"))
    model = scripted(in_turn(empty, empty, fine, empty, empty, empty))
    price = Price(prompt=1.0, completion=1.0)
    with CallStore(tmp_path / "calls.sqlite") as store:
        first = Caller(chat(model), store, attempts=3, sleep=Waits())
        ask(first, "a", tag=Tag("actor"))
        with pytest.raises(BadResponseError):
            ask(first, "b", tag=Tag("critic"))
        assert first.usage.total_cost(price) == pytest.approx(6 * 13e-6)
        model.reply = lambda _: fine
        second = Caller(chat(model), store)
        ask(second, "a", "a", tag=Tag("actor"))
        ask(second, "b", "a", tag=Tag("critic"))
        third = Caller(chat(model), store, replay=True)
        ask(third, "a", tag=Tag("actor"))
        ask(third, "b", tag=Tag("critic"))
    assert (second.usage.calls, second.usage.cached, second.usage.total_calls) == (1, 3, 2)
    assert second.usage.cost(price) == pytest.approx(13e-6)
    for usage_of in (second.usage, third.usage):
        assert usage_of.total_cost(price) == pytest.approx(7 * 13e-6)
        assert usage_of.by_role["actor"].total_prompt_tokens == 30
        assert usage_of.by_role["critic"].total_prompt_tokens == 40
        assert usage_of.by_role["critic"].total_calls == 1


def test_a_refusal_is_an_answer() -> None:
    message = AIMessage("", additional_kwargs={"refusal": "I will not."})
    model = scripted(lambda _: message)
    (answer,) = ask(Caller(chat(model)), "a")
    assert answer.text == "I will not."


def test_an_answer_in_blocks_is_a_text() -> None:
    message = AIMessage([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}])
    assert ask(Caller(chat(scripted(lambda _: message))), "a")[0].text == "fine"


def test_no_secret_comes_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = "very-secret-value-1234"
    long = "word " * 400
    model = scripted(lambda _: Refused(500, f"key {secret} {long}"), key=SecretStr(secret))
    with CallStore(tmp_path / "calls.sqlite") as store, caplog.at_level("DEBUG"):
        with pytest.raises(ServerError) as caught:
            ask(Caller(chat(model), store, attempts=2, sleep=Waits()), long)
        ask(Caller(chat(scripted(key=SecretStr(secret))), store), "a")
    error = caught.value
    assert "[redacted]" in str(error)
    assert secret not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert len(str(error)) < 600
    logged = [record.getMessage() for record in caplog.records if "llm_expert" in record.name]
    assert logged
    assert not any(secret in line or long in line for line in logged)
    assert secret.encode() not in (tmp_path / "calls.sqlite").read_bytes()


def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    model = scripted()
    with CallStore(tmp_path / "calls.sqlite") as store:
        assert store._connection is not None
        store._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(StorageError, match="disk is full"):
            ask(Caller(chat(model), store, sleep=Waits()), "a" * 10_000)
    assert len(model.asked) == 1


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(DataError, match="replay came without a record"):
        Caller(chat(scripted()), replay=True)
    with pytest.raises(DataError, match="at least 1"):
        Caller(chat(scripted()), max_in_flight=0)
    with pytest.raises(DataError, match="at least 1"):
        Caller(chat(scripted()), attempts=0)


def test_who_is_told_and_what_is_counted() -> None:
    told: list[tuple[str, str, bool]] = []
    usage = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
    model = scripted(lambda _: AIMessage("fine", usage_metadata=usage))
    caller = Caller(
        chat(model),
        on_answer=lambda answer, tag: told.append((tag.role, answer.text, answer.cached)),
    )
    answers = ask(caller, "a", tag=Tag("critic")) + ask(caller, "a", "b", tag=Tag("actor"))
    assert told == [("critic", "fine", False), ("actor", "fine", True), ("actor", "fine", False)]
    price = Price(prompt=2.0, completion=10.0)
    assert caller.usage.cost(price) == pytest.approx(2 * (1000 * 2 + 100 * 10) / 1e6)
    assert caller.usage.total_cost(price) == pytest.approx(2 * 0.003)
    assert caller.usage.cost(None) is None
    assert caller.usage.total_calls == 2
    assert caller.usage.total_latency == pytest.approx(answers[0].latency + answers[2].latency)
    assert caller.usage.by_role["actor"].cached == 1
    assert caller.usage.table(price).splitlines() == [
        "| role | calls | from record | retries | tokens in | tokens out | USD |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| actor | 1 | 1 | 0 | 1000 | 100 | 0.0030 |",
        "| critic | 1 | 0 | 0 | 1000 | 100 | 0.0030 |",
        "| all | 2 | 1 | 0 | 2000 | 200 | 0.0060 |",
    ]
    assert Usage().table().endswith("| all | 0 | 0 | 0 | 0 | 0 | - |")
    assert Counts().total_cost(Price(0, 0)) == 0


# --- cancellation ---------------------------------------------------------------------------------


def test_who_is_cancelled_takes_nobody_along(tmp_path: Path) -> None:
    model = scripted(delays=lambda _: 0.3)

    async def run(caller: Caller) -> Answer:
        one = asyncio.create_task(caller(prompt("a"), tag=ACTOR))
        other = asyncio.create_task(caller(prompt("a"), tag=ACTOR))
        await asyncio.sleep(0.01)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        return await other

    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = Caller(chat(model), store)
        assert asyncio.run(run(caller)).text == "A"
        assert len(store) == 1
    assert caller.usage.calls == 1


def outcomes(caller: Caller, *texts: str, meanwhile: Callable[[], Any] | None = None) -> list[Any]:
    """Returns the texts of the answers and the errors of calls at the same time."""

    async def run() -> list[Any]:
        tasks = [asyncio.create_task(caller(prompt(text), tag=ACTOR)) for text in texts]
        await asyncio.sleep(0.02)
        if meanwhile is not None:
            meanwhile()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return [said.text if isinstance(said, Answer) else said for said in asyncio.run(run())]


def test_after_a_fatal_error_no_further_call_is_made(tmp_path: Path) -> None:
    model = scripted(
        lambda text: Refused(401) if text == "2" else text,
        delays=lambda text: {"1": 0.0, "2": 0.15}.get(text, 0.3),
    )
    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = Caller(chat(model), store, max_in_flight=5)
        said = outcomes(caller, *map(str, range(1, 61)))
        # 1 is answered and 6 goes; then 2 fails while 3, 4, 5 and 6 are on their way.
        assert sorted(model.asked) == ["1", "2", "3", "4", "5", "6"]
        assert [call.text for call in store] == ["1", "3", "4", "5", "6"]
        assert ask(caller, "3")[0].cached
        with pytest.raises(StopAsked):
            ask(caller, "new")
    assert type(said[1]) is AuthenticationError
    assert said[:1] + said[2:6] == ["1", "3", "4", "5", "6"]
    assert {type(error) for error in said[6:]} == {StopAsked}
    assert "since another call failed for good; start the same command again" in str(said[-1])
    assert said[-1].__cause__ is said[1]
    assert caller.usage.calls == 5


def test_a_dead_server_is_said_after_the_attempts_of_one_call() -> None:
    model = scripted(lambda _: ConnectionResetError("gone"), delays=lambda _: 0.002)
    caller = Caller(chat(model), max_in_flight=4, attempts=3, first_wait=0.01)
    said = outcomes(caller, *map(str, range(50)))
    assert {type(error) for error in said} == {ConnectionLostError, StopAsked}
    assert len(model.asked) <= 4 * 3


def test_a_full_disk_loses_what_is_on_its_way_and_no_more(tmp_path: Path) -> None:
    class Full(CallStore):
        def put(self, call: Stored) -> None:
            if len(self) == 3:
                raise StorageError("The disk is full.")
            super().put(call)

    model = scripted(delays=lambda text: 0.001 * int(text))
    with Full(tmp_path / "calls.sqlite") as store:
        said = outcomes(Caller(chat(model), store, max_in_flight=4), *map(str, range(1, 100)))
        assert len(store) == 3
    assert len(model.asked) <= 3 + 4
    assert StorageError in map(type, said)
    assert type(said[-1]) is StopAsked


def test_stop_ends_waits_and_keeps_what_is_on_its_way(tmp_path: Path) -> None:
    model = scripted(
        lambda text: Refused(500) if text == "fails" else text,
        delays=lambda text: 0.2 * (text == "slow"),
    )
    with CallStore(tmp_path / "calls.sqlite") as store:
        waiting = asyncio.Event()

        async def forever(_: float) -> None:
            waiting.set()
            await asyncio.sleep(3600)

        caller = Caller(chat(model), store, max_in_flight=2, sleep=forever)

        async def run() -> list[Any]:
            fails = asyncio.create_task(caller(prompt("fails"), tag=ACTOR))
            await waiting.wait()
            others = [asyncio.create_task(caller(prompt(t), tag=ACTOR)) for t in ("slow", "never")]
            await asyncio.sleep(0.003)
            for _ in range(2):
                thread = threading.Thread(target=caller.stop)
                thread.start()
                thread.join()
            return await asyncio.gather(fails, *others, return_exceptions=True)

        fails, slow, never = asyncio.run(asyncio.wait_for(run(), 10))
        assert [call.text for call in store] == ["slow"]
    assert slow.text == "slow"
    assert type(fails) is type(never) is StopAsked
    assert "since the run was asked to stop" in str(never)
    assert never.__cause__ is None
    assert model.asked == ["fails", "slow"]
    assert caller.usage.retries == 1


def test_an_attempt_that_fails_after_stop_is_not_followed_by_another() -> None:
    model = scripted(lambda _: Refused(500), delays=lambda _: 0.2)
    caller = Caller(chat(model))
    (error,) = outcomes(caller, "a", meanwhile=caller.stop)
    assert type(error) is StopAsked
    assert (model.asked, caller.usage.retries) == (["a"], 0)


def test_stop_in_a_handler_of_a_signal() -> None:
    model = scripted(delays=lambda _: 0.2)
    caller = Caller(chat(model), max_in_flight=2)
    before = signal.signal(signal.SIGINT, lambda *_: caller.stop())
    try:
        said = outcomes(
            caller, *map(str, range(50)), meanwhile=lambda: signal.raise_signal(signal.SIGINT)
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert said[:2] == ["0", "1"]
    assert {type(error) for error in said[2:]} == {StopAsked}
    assert model.asked == ["0", "1"]


def test_stop_before_and_after_a_loop() -> None:
    model = scripted()
    caller = Caller(chat(model))
    ask(caller, "a")
    caller.stop()  # the loop of that call is closed
    with pytest.raises(StopAsked):
        ask(caller, "b")
    assert ask(caller, "a")[0].cached
    fresh = Caller(chat(model))
    fresh.stop()
    with pytest.raises(StopAsked):
        ask(fresh, "b")
    assert model.asked == ["a"]


# --- rates and seconds ----------------------------------------------------------------------------


class Gate:
    """A limiter that lets a call through after some seconds, and counts."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed = seconds, 0

    async def aacquire(self) -> bool:
        await asyncio.sleep(self.seconds)
        self.passed += 1
        return True


def test_the_wait_for_a_limiter_is_no_latency_and_every_attempt_waits() -> None:
    gate = Gate(0.25)
    model = scripted(in_turn(Refused(500), "fine"))
    (answer,) = ask(Caller(chat(model, limiter=gate), sleep=Waits()), "a")
    assert gate.passed == 2
    assert 0 < answer.latency < 0.2


def test_stop_ends_the_wait_for_a_limiter() -> None:
    model = scripted()
    caller = Caller(chat(model, limiter=Gate(3600.0)))
    (error,) = outcomes(caller, "a", meanwhile=caller.stop)
    assert type(error) is StopAsked
    assert not model.asked


def test_a_limiter_that_fails_is_said() -> None:
    class Broken:
        async def aacquire(self) -> bool:
            raise RuntimeError("no clock")

    with pytest.raises(RuntimeError, match="no clock"):
        ask(Caller(chat(scripted(), limiter=Broken())), "a")


def test_the_seconds_that_a_model_tells_come_first() -> None:
    model = scripted(lambda _: AIMessage("a", response_metadata={"seconds": 12.5}))
    assert ask(Caller(chat(model)), "a")[0].latency == 12.5


def test_one_caller_in_several_event_loops() -> None:
    model = scripted(delays=lambda _: 0.002)
    caller = Caller(chat(model), max_in_flight=2)
    for turn in range(3):
        assert len(ask(caller, *(f"{turn} {i}" for i in range(5)))) == 5

    async def broken_off() -> None:
        asyncio.create_task(caller(prompt("x"), tag=ACTOR))  # noqa: RUF006 - it is to be lost
        await asyncio.sleep(0.001)

    asyncio.run(broken_off())
    assert ask(caller, "x")[0].text == "X"


# --- replay ---------------------------------------------------------------------------------------


def recorded(path: Path, *texts: str, tag: Tag = ACTOR) -> list[Answer]:
    with CallStore(path) as store:
        return ask(Caller(chat(scripted()), store), *texts, tag=tag)


def replayed(path: Path, text: str, tag: Tag = ACTOR, **changes: Any) -> str:
    model = scripted(lambda _: AssertionError("asked"))
    with CallStore(path, read_only=True) as store:
        caller = Caller(chat(model, **changes), store, replay=True)
        with pytest.raises(ReplayMissError) as caught:
            ask(caller, text, tag=tag)
    assert not model.asked
    return str(caught.value)


def test_replay_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    texts = ["a", "b\n\u2028c", "\U0001f600"]
    first = recorded(path, *texts)
    before = path.read_bytes()
    with CallStore(path, read_only=True) as store:
        caller = Caller(chat(scripted(lambda _: AssertionError())), store, replay=True)
        second = ask(caller, *texts)
    assert [vars(a) | {"cached": True} for a in first] == [vars(a) for a in second]
    assert path.read_bytes() == before
    assert caller.usage.calls == 0
    assert caller.usage.cost(Price(5, 5)) == 0


def test_replay_miss_of_another_prompt(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    recorded(path, "first line\nsecond line!\nthird")  # of a run before
    recorded(path, "first line\nsecond line\nthird line")
    recorded(path, "first line\nsecond line\nelse", tag=Tag("actor", 9, 9))
    said = replayed(path, "first line\nsecond line!\nthird line")
    assert "has no answer to the actor's call of session 3, step 5 (" in said
    assert "nearest that it has is the actor's call of session 3, step 5, which differs: " in said
    assert said.endswith(
        "the prompt, from here on:\n--- recorded\n+++ asked\n@@ -4,3 +4,3 @@\n first line\n"
        "-second line\n+second line!\n third line"
    )


def test_replay_miss_shows_the_first_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    recorded(path, "\n".join(str(i) for i in range(100)))
    said = replayed(path, "\n".join("x" * 1000 + str(i) for i in range(100)))
    assert said.count("\n") < 12
    assert len(said) < 2500
    assert said.endswith("...")


def test_replay_miss_of_the_same_role(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    recorded(path, "apples\npears", tag=Tag("actor", 0, 1))
    recorded(path, "apples\nplums\ncherries", tag=Tag("actor", 0, 2, 1))
    recorded(path, "apples\nplums\nnuts!", tag=Tag("critic", 0, 3))
    said = replayed(path, "apples\nplums\nnuts")
    assert "nearest that it has is the actor's call of session 0, step 2, question 2, which" in said


def test_replay_miss_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    recorded(path, "a", "b")
    said = replayed(path, "a", Tag("actor"), settings={"temperature": 0.7, "top_p": 1})
    assert said.endswith(
        "differs: max_tokens 256 recorded, None asked; temperature 0.5 recorded, 0.7 asked; "
        "top_p None recorded, 1 asked"
    )
    said = replayed(path, "a", spec="test:other")
    assert said.endswith("model 'test:scripted' recorded, 'test:other' asked")


def test_replay_miss_where_there_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    CallStore(path).close()
    assert "it is empty" in replayed(path, "a")
    recorded(path, "a")
    assert "no calls of the critic" in replayed(path, "b", Tag("critic"))


# --- properties -----------------------------------------------------------------------------------


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.text(st.characters(exclude_categories=()), max_size=40),
    said=st.text(st.characters(exclude_categories=()), min_size=1, max_size=40).filter(str.strip),
)
def test_any_text_is_recorded_and_replayed(tmp_path: Path, asked: str, said: str) -> None:
    path = tmp_path / "calls.sqlite"
    path.unlink(missing_ok=True)
    with CallStore(path) as store:
        (first,) = ask(Caller(chat(scripted(lambda _: said)), store), asked)
        (second,) = ask(Caller(chat(scripted()), store, replay=True), asked)
    # Halves of surrogate pairs, which no file holds, are question marks from the start.
    assert first.text == second.text == said.encode("utf-8", "replace").decode()


@given(st.text(max_size=200))
def test_redaction_takes_any_text(text: str) -> None:
    assert isinstance(redact(text), str)


# --- kill -9 --------------------------------------------------------------------------------------

CHILD = textwrap.dedent("""
    import asyncio, os, sys
    sys.path.insert(0, sys.argv[3])
    import test_llm_calls as tests
    from llm_expert.calls import Caller, CallStore, Tag

    async def run():
        def told(answer, tag):
            os.write(1, f"{answer.prompt_hash}\\n".encode())

        with CallStore(sys.argv[2]) as store:
            caller = Caller(tests.posting(sys.argv[1]), store, max_in_flight=4,
                            first_wait=0.001, on_answer=told)
            await asyncio.gather(*(caller(p, tag=tests.ACTOR) for p in tests.PROMPTS))

    asyncio.run(run())
""")
PROMPTS = [prompt(f"prompt {number}") for number in range(60)]


class Posting(Scripted):
    """Asks a server, without what the packages of the providers take to be imported."""

    url: str

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        asked = [{"role": m.type, "content": m.content} for m in messages]
        async with httpx.AsyncClient(verify=False) as client:
            answer = await client.post(f"{self.url}/chat/completions", json={"messages": asked})
        answer.raise_for_status()
        message = AIMessage(answer.json()["choices"][0]["message"]["content"])
        return ChatResult(generations=[ChatGeneration(message=message)])


def posting(url: str) -> ChatModel:
    return chat(Posting(url=url, reply=str), spec="test:server")


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    with ChatServer(lambda messages: f"to {messages[-1]['content']}", {"500": 0.2}) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(path), str(Path(__file__).parent)]
        told: set[str] = set()
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                told.add(line.decode().strip())
                if len(told) == 25:
                    process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert 25 <= len(told) < 60
        with CallStore(path, read_only=True) as store:
            assert told <= {call.prompt_hash for call in store}

        async def go_on(caller: Caller) -> list[Answer]:
            return await asyncio.gather(*(caller(asked, tag=ACTOR) for asked in PROMPTS))

        with CallStore(path) as store:
            answers = asyncio.run(go_on(Caller(posting(server.url), store, first_wait=0.001)))
    assert [answer.text for answer in answers] == [f"to prompt {number}" for number in range(60)]
    assert {answer.prompt_hash for answer in answers if answer.cached} >= told
    # At most what was on its way when the process died was asked again.
    assert 60 <= server.completed.total() <= 60 + 4
    assert all(server.completed[name] == 1 for name in told)
