"""A language model that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from llm_expert.agents import AgentSettings, Kit
from llm_expert.calls import Answer, Tag, prompt_hash
from llm_expert.prompting import PromptBook
from llm_expert.tokens import make_counter
from recsim_env import Prepared

Say = Callable[[Sequence[BaseMessage], Tag, int], str]


class ScriptedCall:
    """Answers by a function, after waits that differ from call to call."""

    def __init__(self, say: Say, jitter: int | None = None) -> None:
        self.say = say
        self.asked: list[tuple[Tag, int, tuple[str, ...]]] = []
        self._waits = None if jitter is None else random.Random(jitter)

    async def __call__(
        self, messages: Sequence[BaseMessage], *, tag: Tag, sample: int = 0
    ) -> Answer:
        if self._waits is not None:
            await asyncio.sleep(self._waits.random() / 500)
        texts = tuple(str(message.content) for message in messages)
        self.asked.append((tag, sample, texts))
        return Answer(self.say(messages, tag, sample), prompt_hash(messages), 10, 2, 0.25, False)

    def of(self, role: str) -> list[tuple[Tag, int, tuple[str, ...]]]:
        """Returns what a role asked, by session and step."""
        found = [asked for asked in self.asked if asked[0].role == role]
        return sorted(found, key=lambda a: (a[0].session, a[0].step, a[0].attempt))


def kit_for(prepared: Prepared, call: Any, embedder: Any, **settings: Any) -> Kit:
    return Kit(
        book=PromptBook.load("items"),
        call=call,
        counter=make_counter(None),
        budget=8_000,
        categories=list(prepared.dataset.catalogue.category_names),
        embedder=embedder,
        settings=AgentSettings(**settings),
    )
