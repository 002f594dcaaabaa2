"""Counting tokens."""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_expert.errors import ModelSpecError
from recsim_env.errors import near_miss

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["TokenCounter", "count_messages", "encoding_for", "make_counter"]

_BYTES = "bytes"
_REMEMBERED = 2**14
_PER_MESSAGE = 4
_PER_PROMPT = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of a text; what was counted before is remembered.

    Args:
        name: Of the encoding: "o200k_base", "cl100k_base", or "bytes" for one token a byte.
        exact: Whether it is a model's own encoding; False for "bytes", which never counts less
            than an encoding that merges bytes.
        count_anew: Counts a text without the memory.
    """

    name: str
    exact: bool
    count_anew: Callable[[str], int] = field(repr=False, compare=False)
    _remembering: Callable[[str], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Sets up the memory."""
        remembering = functools.lru_cache(maxsize=_REMEMBERED)(self.count_anew)
        object.__setattr__(self, "_remembering", remembering)

    def count(self, text: str) -> int:
        """Returns the number of tokens; 0 for an empty text."""
        return self._remembering(text)


def make_counter(name: str | None, *, timeout: float = 10.0) -> TokenCounter:
    """Returns the counter of an encoding, or of bytes where its vocabulary cannot be had.

    tiktoken fetches a vocabulary from the network once and keeps it (environment variable
    TIKTOKEN_CACHE_DIR). Where that fails, or takes longer than `timeout`, bytes are counted and a
    warning says so.

    Args:
        name: A tiktoken encoding; None or "bytes" counts bytes and asks no network.
        timeout: Seconds to wait for the vocabulary.

    Raises:
        ModelSpecError: tiktoken knows no such encoding.
    """
    if name is None or name == _BYTES:
        return TokenCounter(_BYTES, exact=False, count_anew=_count_bytes)
    import tiktoken

    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ModelSpecError(
            f"There is no token encoding {name!r}; {near_miss(name, [*known, _BYTES])}."
        )
    loaded: queue.Queue[tiktoken.Encoding | Exception] = queue.Queue()

    def load() -> None:
        try:
            loaded.put(tiktoken.get_encoding(name))
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            loaded.put(error)

    threading.Thread(target=load, name=f"vocabulary {name}", daemon=True).start()
    try:
        encoding = loaded.get(timeout=timeout)
    except queue.Empty:
        encoding = TimeoutError(f"nothing came within {timeout:g} s")
    if isinstance(encoding, Exception):
        _log.warning(
            "The vocabulary of %s cannot be had (%s): tokens are counted as bytes, so every count "
            "and every cost is an upper bound.",
            name,
            type(encoding).__name__,
        )
        return make_counter(_BYTES)
    found = encoding
    return TokenCounter(name, exact=True, count_anew=lambda text: len(found.encode_ordinary(text)))


def encoding_for(model: str) -> str | None:
    """Returns the name of a model's tiktoken encoding, or None where tiktoken knows none.

    Args:
        model: For example "gpt-4o-mini".
    """
    from tiktoken.model import encoding_name_for_model

    try:
        return encoding_name_for_model(model)
    except KeyError:
        return None


def count_messages(counter: TokenCounter, messages: Sequence[BaseMessage]) -> int:
    """Returns the tokens of a prompt: of its texts, 4 more a message and 3 more in all.

    Args:
        counter: Counts the texts.
        messages: The rendered prompt.
    """
    # `text` costs more than all the rest where the content is plain
    texts = (
        message.content if isinstance(message.content, str) else str(message.text)
        for message in messages
    )
    return sum(counter.count(text) + _PER_MESSAGE for text in texts) + _PER_PROMPT


def _count_bytes(text: str) -> int:
    """Returns the bytes of a text; a half of a surrogate pair counts as 3."""
    return len(text.encode("utf-8", "surrogatepass"))
