from __future__ import annotations

import logging
import threading
import time

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from llm_expert.errors import ModelSpecError
from llm_expert.tokens import TokenCounter, count_messages, encoding_for, make_counter

SINGLE_BYTES = {bytes([byte]): byte for byte in range(256)}
PATTERN = r"\w+|[^\w\s]+|\s+"


def encoding(*merges: bytes) -> tiktoken.Encoding:
    """A small byte-level encoding."""
    ranks = SINGLE_BYTES | {merge: 256 + rank for rank, merge in enumerate(merges)}
    return tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


BYTE_LEVEL = encoding()
MERGING = encoding(b"th", b"the", "é".encode(), b"  ")


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_bytes_are_what_a_byte_level_encoding_counts_and_never_fewer_than_merges(text: str) -> None:
    count = make_counter("bytes").count(text)
    assert count == len(BYTE_LEVEL.encode_ordinary(text))
    assert count >= len(MERGING.encode_ordinary(text))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_bytes_bound_texts_with_broken_characters_too(text: str) -> None:
    assert make_counter(None).count(text) >= len(BYTE_LEVEL.encode_ordinary(text))


def test_bytes_ask_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_encoding(_name: str) -> None:
        raise AssertionError("asked for a vocabulary")

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    for name in (None, "bytes"):
        counter = make_counter(name)
        assert (counter.name, counter.exact, counter.count("né")) == ("bytes", False, 3)


def test_an_encoding_counts_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: MERGING)
    counter = make_counter("o200k_base")
    assert (counter.name, counter.exact) == ("o200k_base", True)
    assert counter.count("the them") == 3 + 1  # the | space | the, m
    assert counter.count("") == 0


def test_special_tokens_in_a_text_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    special = tiktoken.Encoding(
        "small",
        pat_str=PATTERN,
        mergeable_ranks=SINGLE_BYTES,
        special_tokens={"<|endoftext|>": 256},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: special)
    assert make_counter("cl100k_base").count("<|endoftext|>") == 13


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("hash mismatch")])
def test_a_vocabulary_that_cannot_be_had_leaves_bytes_and_one_warning(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get_encoding(_name: str) -> None:
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    with caplog.at_level(logging.WARNING):
        counter = make_counter("o200k_base")
    assert (counter.name, counter.exact) == ("bytes", False)
    assert len(caplog.records) == 1
    assert "upper bound" in caplog.text
    assert "o200k_base" in caplog.text


def test_a_vocabulary_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: released.wait(30))
    start = time.perf_counter()
    counter = make_counter("o200k_base", timeout=0.05)
    released.set()
    assert time.perf_counter() - start < 5
    assert counter.name == "bytes"
    assert "TimeoutError" in caplog.text


def test_an_unknown_encoding_gets_the_near_miss() -> None:
    with pytest.raises(ModelSpecError, match="did you mean 'o200k_base'"):
        make_counter("o200k_bas")


def test_counts_are_remembered() -> None:
    asked: list[str] = []

    def count_anew(text: str) -> int:
        asked.append(text)
        return len(text)

    counter = TokenCounter("letters", exact=True, count_anew=count_anew)
    assert [counter.count("abc"), counter.count("abc"), counter.count("ab")] == [3, 3, 2]
    assert asked == ["abc", "ab"]
    assert repr(counter) == "TokenCounter(name='letters', exact=True)"


def test_a_prompt_has_4_tokens_more_a_message_and_3_more() -> None:
    counter = make_counter(None)
    messages = [SystemMessage("abc"), HumanMessage([{"type": "text", "text": "de"}]), AIMessage("")]
    assert count_messages(counter, messages) == (3 + 4) + (2 + 4) + (0 + 4) + 3
    assert count_messages(counter, []) == 3


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-4-32k", "cl100k_base"),
        ("gpt-3.5-turbo-0613", "cl100k_base"),
        ("claude-sonnet-4-5", None),
        ("llama3.1:8b", None),
    ],
)
def test_encoding_for(model: str, expected: str | None) -> None:
    assert encoding_for(model) == expected
