from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_expert.calls import Answer, Caller, CallStore, Tag, prompt_hash
from llm_expert.chat_models import ChatModel, make_chat_model
from llm_expert.errors import (
    AuthenticationError,
    BadResponseError,
    CallError,
    CallTimeoutError,
    ConnectionLostError,
    RateLimitError,
    RequestError,
    ServerError,
)
from llm_expert.testing import FAULTS, ChatServer
from llm_expert.tokens import make_counter
from recsim_env import Prepared
from recsim_env.errors import DataError

KEY = "sk-test-0123456789abcdef"
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), trust_env=False)


def echo(messages: list[dict[str, Any]]) -> str:
    return f"You said: {messages[-1]['content']}"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(echo, slow=0.6) as serving:
        yield serving


def chat(server: ChatServer, timeout: float = 5.0, key: str = KEY) -> ChatModel:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="test-model",
        base_url=server.url,
        api_key=key,  # type: ignore[arg-type]
        max_retries=0,
        timeout=timeout,
        default_headers={"Connection": "close"},
    )
    return ChatModel(model, f"{server.url}#test-model", {}, 8192, 256, make_counter(None), None)


def ask(caller: Caller, *texts: str) -> list[Answer]:
    async def all_of_them() -> list[Answer]:
        calls = (caller([HumanMessage(text)], tag=Tag("actor", i)) for i, text in enumerate(texts))
        return list(await asyncio.gather(*calls))

    return asyncio.run(all_of_them())


def post(server: ChatServer, **body: Any) -> httpx.Response:
    content = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **body}
    return CLIENT.post(f"{server.url}/chat/completions", json=content)


def test_a_completion_for_any_client(server: ChatServer) -> None:
    answer = post(server)
    assert answer.status_code == 200
    body = answer.json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "You said: hello"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 15, "total_tokens": 20}
    assert server.requests == 1
    assert server.completed == {prompt_hash([HumanMessage("hello")]): 1}


def test_its_model_is_told(server: ChatServer) -> None:
    assert CLIENT.get(f"{server.url}/models").json()["data"][0]["id"] == "test-model"


def test_connections_are_kept_alive_and_quick(server: ChatServer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    with httpx.Client() as client:
        seconds = []
        for _ in range(50):
            url = f"{server.url}/chat/completions"
            started = time.perf_counter()
            client.post(url, json={"messages": messages}).raise_for_status()
            seconds.append(time.perf_counter() - started)
    # With Nagle's algorithm and delayed acknowledgements every answer takes 40 ms or more.
    assert min(seconds) < 0.03


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/chat/completions", b"{", 400),
        ("/chat/completions", b"[]", 400),
        ("/chat/completions", b'{"messages": [{"role": "nobody", "content": ""}]}', 400),
        ("/chat/completions", b'{"messages": [], "stream": true}', 400),
        ("/completions", b"{}", 404),
    ],
)
def test_requests_that_are_none(server: ChatServer, path: str, body: bytes, status: int) -> None:
    answer = CLIENT.post(f"{server.url}{path}", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert CLIENT.get(f"{server.url}/nothing").status_code == 404
    assert server.requests == 0


def test_a_chat_model_answers() -> None:
    with ChatServer(FakeListChatModel(responses=["one", "two"])) as server:
        texts = [post(server).json()["choices"][0]["message"]["content"] for _ in range(2)]
    assert texts == ["one", "two"]


def test_another_draw_of_a_prompt_gets_another_answer_through_a_server(
    prepared: Prepared, tmp_path: Path
) -> None:
    offline = make_chat_model("offline:invent=0,break=0", prepared=prepared, seed=3)
    prompt = HumanMessage('### Task\nRecommend one.\nAction: recommend["TITLE"]')

    def draw(caller: Caller) -> list[str]:
        async def calls() -> list[Answer]:
            several = (caller([prompt], tag=Tag("actor"), sample=k) for k in range(8))
            return list(await asyncio.gather(*several))

        return [answer.text for answer in asyncio.run(calls())]

    with ChatServer(offline.model) as server:
        over_http = make_chat_model(f"{server.url}#test-model", seed=3, encoding=None, window=8192)
        with CallStore(tmp_path / "calls.sqlite") as store:
            texts = draw(Caller(over_http, store))
            assert draw(Caller(over_http, store)) == texts
    assert len(set(texts)) > 3
    assert texts == draw(Caller(offline))
    assert texts[0] == offline.model.invoke([prompt]).text


def test_roles_and_prompts_arrive(server: ChatServer) -> None:
    messages = [
        SystemMessage("s"),
        HumanMessage("é\u2028\U0001f600"),
        AIMessage("a"),
        HumanMessage("b"),
    ]

    async def call() -> Answer:
        return await Caller(chat(server))(messages, tag=Tag("actor"))

    answer = asyncio.run(call())
    assert answer.text == "You said: b"
    assert server.completed == {answer.prompt_hash: 1}


OF_THE_WIRE = {
    "429": RateLimitError,
    "500": ServerError,
    "slow": CallTimeoutError,
    "cut": ConnectionLostError,
    "invalid_json": BadResponseError,
    "empty": BadResponseError,
    "no_choices": BadResponseError,
    "html": BadResponseError,
    "disconnect": ConnectionLostError,
}


def test_every_fault_is_tested() -> None:
    assert set(OF_THE_WIRE) | {"wrong_format", "refusal"} == set(FAULTS)


@pytest.mark.parametrize(("fault", "kind"), OF_THE_WIRE.items())
def test_faults_of_the_wire_end_in_their_error(
    server: ChatServer, fault: str, kind: type[CallError]
) -> None:
    server.set_faults({fault: 1.0})
    caller = Caller(chat(server, timeout=0.2), attempts=2, first_wait=0.01)
    with pytest.raises(kind, match="after 2 attempts") as caught:
        ask(caller, "hello")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert ("no chat completion: " in str(caught.value)) == (
        kind is BadResponseError and fault != "empty"
    )
    assert (server.requests, server.served) == (2, {fault: 2})
    assert not server.completed
    server.set_faults({})
    assert ask(Caller(chat(server)), "hello")[0].text == "You said: hello"


@pytest.mark.parametrize("fault", OF_THE_WIRE)
def test_faults_of_the_wire_are_got_over(server: ChatServer, fault: str, tmp_path: Path) -> None:
    server.set_faults({fault: 0.3})
    texts = [f"text {number}" for number in range(12)]
    with CallStore(tmp_path / "calls.sqlite") as store:
        timeout = 0.5 if fault == "slow" else 5.0
        caller = Caller(chat(server, timeout=timeout), store, attempts=12, first_wait=0.001)
        answers = ask(caller, *texts)
        assert len(store) == 12
    assert [answer.text for answer in answers] == [f"You said: {text}" for text in texts]
    assert server.served[fault] == caller.usage.retries > 0
    assert set(server.completed.values()) == {1}  # nothing is paid twice
    assert len(server.completed) == 12


def test_faults_of_the_answer_are_answers(server: ChatServer) -> None:
    server.set_faults({"wrong_format": 1.0})
    (answer,) = ask(Caller(chat(server)), "hello")
    assert answer.text.startswith("There is so much")
    server.set_faults({"refusal": 1.0})
    (answer,) = ask(Caller(chat(server)), "hello")
    assert answer.text == "I am sorry, but I cannot help with that."
    assert server.completed.total() == 2


def test_all_faults_at_once(tmp_path: Path) -> None:
    faults = dict.fromkeys(FAULTS, 0.2 / len(FAULTS))
    texts = [f"text {number}" for number in range(150)]
    with (
        ChatServer(echo, faults, slow=1.3) as server,
        CallStore(tmp_path / "calls.sqlite") as store,
    ):
        caller = Caller(chat(server, timeout=1.0), store, attempts=10, first_wait=0.001)
        answers = ask(caller, *texts)
        again = Caller(chat(server), store, replay=True)
        assert [a.text for a in ask(again, *texts)] == [a.text for a in answers]
    assert len(server.completed) == 150
    # A machine that is too slow for the client's patience may cost an answer or two.
    assert 150 <= server.completed.total() <= 153
    assert 15 <= server.served.total() <= 70
    right = sum(
        answer.text == f"You said: {text}" for answer, text in zip(answers, texts, strict=True)
    )
    assert right + server.served["wrong_format"] + server.served["refusal"] >= 150


def test_faults_do_not_depend_on_the_order() -> None:
    def served(texts: list[str]) -> dict[str, tuple[int, ...]]:
        with ChatServer(echo, {"500": 0.3, "429": 0.3}, seed=4) as server:
            bodies = {text: [{"role": "user", "content": text}] for text in texts}
            return {
                text: tuple(post(server, messages=bodies[text]).status_code for _ in range(3))
                for text in texts
            }

    texts = [str(number) for number in range(20)]
    first = served(texts)
    assert served(texts[::-1]) == first
    assert {status for statuses in first.values() for status in statuses} == {200, 429, 500}


def test_a_prompt_gets_the_same_text_each_time() -> None:
    with ChatServer(echo, {"wrong_format": 0.5, "500": 0.3}, seed=1) as server:
        for number in range(10):
            said = [
                post(server, messages=[{"role": "user", "content": str(number)}]) for _ in "abcd"
            ]
            assert len({answer.json()["choices"][0]["message"]["content"] for answer in said
                        if answer.status_code == 200}) <= 1  # fmt: skip
        assert server.served["wrong_format"] > 0


def test_shares_of_faults() -> None:
    server = ChatServer(echo, {"500": 0.1, "refusal": 0.1})
    drawn = [server.begin(f"prompt {number}") for number in range(4000)]
    assert drawn.count("500") / 4000 == pytest.approx(0.1, abs=0.02)
    # Of the prompts whose request got through.
    assert drawn.count("refusal") / drawn.count(None) == pytest.approx(1 / 9, abs=0.02)


def test_faults_that_are_none() -> None:
    with pytest.raises(DataError, match="did you mean 'empty'"):
        ChatServer(echo, {"empti": 0.1})
    with pytest.raises(DataError, match="at most 1 in all"):
        ChatServer(echo, {"429": 0.6, "500": 0.6})
    with pytest.raises(DataError, match="at least 0"):
        ChatServer(echo, {"429": -0.1})


def test_a_key_that_is_refused_is_not_shown() -> None:
    with ChatServer(echo, key="the-right-key") as server:
        caller = Caller(chat(server), first_wait=0.001)
        with pytest.raises(AuthenticationError, match="give a key that is valid") as caught:
            ask(caller, "hello")
        assert KEY not in str(caught.value)
        assert caught.value.__cause__ is None
        assert ask(Caller(chat(server, key="the-right-key")), "hello")[0].text == "You said: hello"


def test_an_address_where_nothing_is(server: ChatServer) -> None:
    model = chat(server)
    model.model.root_async_client.base_url = httpx.URL(f"{server.url}/else/")  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match=r"status 404.*address"):
        ask(Caller(model, first_wait=0.001), "hello")


def test_a_server_that_is_down_and_comes_back(server: ChatServer, tmp_path: Path) -> None:
    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = Caller(chat(server), store, attempts=2, first_wait=0.001)
        ask(caller, "one", "two")
        url = server.url
        server.down()
        server.down()
        with pytest.raises(ConnectionLostError, match="see that the server runs"):
            ask(caller, "one", "three")
        server.up()
        server.up()
        assert server.url == url
        answers = ask(Caller(chat(server), store), "one", "two", "three")
    assert [answer.cached for answer in answers] == [True, True, False]
    assert set(server.completed.values()) == {1}


def test_going_down_breaks_off_what_is_in_flight() -> None:
    with ChatServer(echo, delay=30.0) as server, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(post, server) for _ in range(4)]
        while server.requests < 4:
            time.sleep(0.005)
        started = time.perf_counter()
        server.down()
        for answer in answers:
            assert isinstance(answer.exception(timeout=5), httpx.TransportError)
        assert time.perf_counter() - started < 5
    assert not server.completed


def test_going_down_ends_idle_connections(server: ChatServer) -> None:
    with httpx.Client() as client:
        url = f"{server.url}/models"
        client.get(url).raise_for_status()
        started = time.perf_counter()
        server.down()
        assert time.perf_counter() - started < 5
        with pytest.raises(httpx.TransportError):
            client.get(url)


def test_what_is_in_flight_is_seen() -> None:
    with ChatServer(echo, delay=0.1) as server:
        ask(Caller(chat(server), max_in_flight=5), *map(str, range(15)))
        assert server.most_in_flight == 5


def test_concurrent_calls_with_delay_take_the_time_of_one() -> None:
    with ChatServer(echo, delay=0.5) as server:
        caller = Caller(chat(server))
        ask(caller, "warm")
        started = time.perf_counter()
        ask(caller, *map(str, range(32)))
        assert time.perf_counter() - started < 32 * 0.5 / 4


def test_answers_may_hold_anything(tmp_path: Path) -> None:
    nasty = '"}]}\x00\u2028\ud800 {braces} \U0001f600'
    with (
        ChatServer(lambda _: nasty) as server,
        CallStore(tmp_path / "calls.sqlite") as store,
    ):
        (answer,) = ask(Caller(chat(server), store), "hello")
        (again,) = ask(Caller(chat(server), store, replay=True), "hello")
    assert answer.text == again.text == nasty.replace("\ud800", "?")
    assert json.dumps(answer.text)
