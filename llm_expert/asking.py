"""One question to a model: prompt, call, parser, and asking again where the format is missed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from llm_expert.calls import Answer, Call, Tag
from llm_expert.errors import FormatError, PromptTooLongError
from llm_expert.prompting import LONG_TEXT, PromptBook, Script, View, one_line
from llm_expert.tokens import TokenCounter
from recsim_env.errors import DataError

__all__ = ["Asked", "Asker", "Asking", "labelled_lines", "labelled_text", "tidy"]

T = TypeVar("T")

_WRONG_ANSWER = 500
"""Characters of an answer in the wrong format that are sent back."""
_MARKS = " \t*_`"
"""What models put around labels and texts for emphasis."""
_BEFORE_LABEL = re.compile(r"[^\w\n]{0,40}(?:\d{1,3}[.)][^\w\n]{0,40})?")
_AFTER_LABEL = re.compile(r"[ \t*_`\"']{0,20}[:\uff1a=][ \t*_`]{0,20}")
_LABELS = ("guidance", "thought", "action", "value", "reflection")
_EMPTY = ("", "...", "…", "TITLE", "NUMBER")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What came of a question.

    Attributes:
        value: What was asked for; None where no answer was in the format.
        answers: Of every call that it took, first to last.
        raw: Text of the last answer.
    """

    value: T | None
    answers: tuple[Answer, ...]
    raw: str


@dataclass(frozen=True)
class Asker(Generic[T]):
    """Asks a model until the answer is in the format.

    Args:
        script: The fixed part of the prompt.
        parse: Reads an answer; raises FormatError.
        call: Asks the model.
        counter: Counts tokens.
        budget: The most tokens of a prompt: the model's window less the longest answer.
        reasks: How often to ask again, 0 or more. Raising it wins sessions of models that miss
            the format, and costs calls; 1 to 3 are usual.

    Raises:
        DataError: `reasks` is negative.
    """

    script: Script
    parse: Callable[[str], T]
    call: Call
    counter: TokenCounter
    budget: int
    reasks: int

    def __post_init__(self) -> None:
        """Checks the number of times."""
        if self.reasks < 0:
            raise DataError(f"reasks={self.reasks} came, expected 0 or more.")

    async def __call__(self, view: View, *, tag: Tag, sample: int = 0) -> Asked[T]:
        """Asks, and where the format is missed asks again, with the wrong answer in view.

        Args:
            view: What the prompt shows.
            tag: Where in the run the question belongs.
            sample: Number of the draw.

        Raises:
            PromptTooLongError: The instructions do not fit.
            CallError: A call has failed for good.
        """
        exchange: list[BaseMessage] = []
        answers: list[Answer] = []
        for attempt in range(self.reasks + 1):
            try:
                messages = self.script.messages(view, self.counter, self.budget, exchange)
            except PromptTooLongError:
                if not answers:
                    raise
                break  # there is no room left to ask again
            answer = await self.call(
                messages, tag=replace(tag, attempt=tag.attempt + attempt), sample=sample
            )
            answers.append(answer)
            try:
                return Asked(self.parse(answer.text), tuple(answers), answer.text)
            except FormatError as error:
                _log.debug("%s, attempt %d: %s", tag.role, attempt, error)
                exchange += self._correction(answer.text, error)
        return Asked(None, tuple(answers), answers[-1].text)

    def _correction(self, text: str, error: FormatError) -> Sequence[BaseMessage]:
        """Returns the wrong answer and what to do about it."""
        return (
            AIMessage(one_line(text, _WRONG_ANSWER) or "(nothing)"),
            HumanMessage(
                f"{error} Answer the task again, in this format and with nothing else:\n"
                f"{self.script.answer_format}"
            ),
        )


@dataclass(frozen=True)
class Asking:
    """What the roles of an agent are made with.

    Attributes:
        book: Prompts of the domain.
        call: Asks the model.
        counter: Counts tokens of prompts.
        budget: The most tokens of a prompt.
        categories: Of the catalogue, most frequent first.
        reasks: How often to ask again for the format.
    """

    book: PromptBook
    call: Call
    counter: TokenCounter
    budget: int
    categories: Sequence[str]
    reasks: int = 2

    def asker(self, script: Script, parse: Callable[[str], T]) -> Asker[T]:
        """Returns what asks a role's question.

        Args:
            script: The fixed part of the prompt.
            parse: Reads an answer; raises FormatError.
        """
        return Asker(script, parse, self.call, self.counter, self.budget, self.reasks)


def labelled_lines(text: str, label: str) -> list[tuple[str, list[str]]]:
    """Returns what follows a label wherever it begins a line, in order.

    Case does not matter, nor do signs of emphasis around the label. Thinking that a model shows
    before its answer (`<think>`) is left out.

    Args:
        text: An answer.
        label: In lower case, for example "action".

    Returns:
        For each time: the rest of its line, and the lines after it up to the next label.
    """
    found: list[tuple[str, list[str]]] = []
    following: list[str] | None = None
    for line in _said(text).splitlines():
        here = _label_of(line)
        if here is None:
            if following is not None:
                following.append(line)
        elif here[0] == label:
            following = []
            found.append((here[1], following))
        else:
            following = None
    return found


def labelled_text(text: str, label: str) -> str:
    """Returns the paragraph after the last use of a label that has one, as one line.

    Args:
        text: An answer.
        label: In lower case.

    Returns:
        At most 1,000 characters; "" where there is no such paragraph.
    """
    for rest, following in reversed(labelled_lines(text, label)):
        lines = [rest] if rest.strip(_MARKS) else []
        for line in following:
            if line.strip():
                lines.append(line)
            elif lines:
                break
        paragraph = tidy(_bare(" ".join(lines)), LONG_TEXT)
        if paragraph:
            return paragraph
    return ""


def tidy(text: str, limit: int) -> str:
    """Returns a part of an answer as one line; nothing for a placeholder of the format.

    Args:
        text: A part of an answer.
        limit: The most characters.
    """
    line = " ".join(one_line(text, 4 * limit).split())[:limit].rstrip()
    return "" if line in _EMPTY else line


def _bare(text: str) -> str:
    """Returns a text without emphasis around it, and without quotes around all of it."""
    text = text.strip(_MARKS)
    for mark in "\"'":
        if text.startswith(mark) and text.find(mark, 1) == len(text) - 1:
            return text[1:-1]
    return text


def _said(text: str) -> str:
    """Returns an answer without the thinking before it."""
    if text.lstrip().startswith("<think>") and "</think>" in text:
        return text.rpartition("</think>")[2]
    return text


def _label_of(line: str) -> tuple[str, str] | None:
    """Returns the label that a line begins with, and what comes after it."""
    start = _BEFORE_LABEL.match(line)
    at = start.end() if start else 0
    for label in _LABELS:
        if line[at : at + len(label)].casefold() == label:
            colon = _AFTER_LABEL.match(line, at + len(label))
            if colon:
                return label, line[colon.end() :]
    return None
