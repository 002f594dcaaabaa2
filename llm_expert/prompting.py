"""Prompts: templates from data files, data from a scratchpad, cut to what a model can take.

A prompt is a system message with the instructions, pairs of messages with examples, and a last
human message that shows the state in sections:

```
### History
1. "Portal" (rated 4.5)
### Session
1. "Dota 2" ["Action", "Strategy"] (asked for "Dota 3") -> rating 4.1
2. "Rust" ["Action"] -> rating 2.0, the user left
### Guidance
"one quoted line"
### Encouraged
- "Title"
### Discouraged
- "Title"
### Reflections
- "one quoted line"
### Similar states
- value 6.5: "Title; Title"
### Categories
"Action", "Indie"
### Task
what to do, and the lines in which to answer
```

Titles, categories and whatever a model has said are data. Each is one JSON string on one line, so
that no data can start a section, end one, or look like an instruction of ours. Placeholders are
filled in the templates alone, before any data is there.
"""

from __future__ import annotations

import json
import tomllib
import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from string import Template
from types import MappingProxyType
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from llm_expert.errors import PromptTooLongError
from llm_expert.scratchpad import HistoryItem, Scratchpad, ShownItem
from llm_expert.tokens import TokenCounter, count_messages
from recsim_env.errors import DataError, near_miss
from recsim_env.text import normalise_title

__all__ = ["PromptBook", "Script", "View", "domain_of", "one_line", "quote"]

DOMAINS = ("books", "games", "items", "movies")
FORMATS: Mapping[str, Mapping[str, str]] = {
    "planner": {"plain": "Guidance: ..."},
    "actor": {
        "thought": 'Thought: ...\nAction: recommend["TITLE"]',
        "direct": 'Action: recommend["TITLE"]',
    },
    "critic": {"plain": "Value: NUMBER"},
    "reflector": {"plain": "Reflection: ..."},
}
"""Role -> style -> the lines in which it has to answer."""
LONG_TEXT = 1000
"""Characters of a guidance, a thought or a reflection."""
_KEY = 400
_CATEGORY = 60
_ITEM_CATEGORIES = 8
_ALL_CATEGORIES = 60
_INVISIBLE = 16
"""How many times its limit of a text is looked at: what is beyond only fills memory."""
_ENCODER = json.JSONEncoder(ensure_ascii=False)

_DOMAIN_OF = {"steam": "games", "synthetic": "games", "amazon": "books", "movielens": "movies"}
_JOINERS = "\u200c\u200d"
"""Invisible, yet part of emoji and of words in several scripts."""

_ORDER = (
    "History",
    "Session",
    "Guidance",
    "Encouraged",
    "Discouraged",
    "Reflections",
    "Similar states",
    "Categories",
)
_OLDEST_FIRST = ("History", "Session")
_LAST_FIRST = ("Similar states", "Reflections", "Discouraged", "Encouraged", "Categories")
_TASK = "### Task\n"

_WORDS = ("item", "items", "user", "users", "a_user")
_VIEW_KEYS = ("guidance", "encouraged", "discouraged", "reflections", "categories")
_EXAMPLE_KEYS = ("history", "session", "similar", *_VIEW_KEYS, "answer")
_ANSWER_KEYS: Mapping[str, tuple[str, ...]] = {
    "planner": ("guidance",),
    "actor": ("thought", "title"),
    "critic": ("value",),
    "reflector": ("reflection",),
}


def one_line(text: str, limit: int) -> str:
    """Returns a text as one harmless line.

    Line and paragraph ends, tabs and unusual spaces become spaces; other control characters,
    characters that turn the direction of text and invisible ones go; halves of surrogate pairs
    become U+FFFD.

    Args:
        text: Any text.
        limit: The most characters that are kept, from the first one that can be seen.
    """
    start = next((place for place, letter in enumerate(text) if _seen(letter)), len(text))
    text = text[start : start + _INVISIBLE * limit].rstrip()
    if not text.isprintable():
        text = "".join(map(_harmless, text)).strip()
    return text[:limit].rstrip()


def quote(text: str, limit: int = 120) -> str:
    """Returns a text as one JSON string on one line.

    Args:
        text: Data of any kind.
        limit: The most characters of the text, before escapes; what is beyond them goes.
    """
    return _ENCODER.encode(one_line(text, limit))


def domain_of(dataset: str) -> str:
    """Returns the domain of a dataset's items, which decides the words of the prompts.

    Args:
        dataset: Name of the dataset, such as "steam"; one that is not known has "items".
    """
    return _DOMAIN_OF.get(dataset, "items")


@dataclass(frozen=True)
class View:
    """What a prompt shows of a state.

    Args:
        pad: History and session.
        guidance: Of the planner.
        encouraged: Titles of actions that turned out well in similar states, most similar first.
        discouraged: Titles of those that turned out badly.
        reflections: On earlier sessions, most similar first.
        similar: Keys and values of similar states, most similar first.
        categories: Of the catalogue, most frequent first; the first 60 are shown.
    """

    pad: Scratchpad
    guidance: str | None = None
    encouraged: Sequence[str] = ()
    discouraged: Sequence[str] = ()
    reflections: Sequence[str] = ()
    similar: Sequence[tuple[str, float]] = ()
    categories: Sequence[str] = ()

    def sections(self) -> dict[str, list[str]]:
        """Returns the lines of each section by its heading, in their order; empty ones too."""
        names = self.categories[:_ALL_CATEGORIES]
        lines = (
            [_history_line(i, item) for i, item in enumerate(self.pad.history, 1)],
            [_session_line(i, step) for i, step in enumerate(self.pad.steps, 1)],
            [quote(self.guidance, LONG_TEXT)] if self.guidance else [],
            [f"- {quote(title)}" for title in self.encouraged],
            [f"- {quote(title)}" for title in self.discouraged],
            [f"- {quote(text, LONG_TEXT)}" for text in self.reflections],
            [f"- value {value:.1f}: {quote(key, _KEY)}" for key, value in self.similar],
            [", ".join(quote(name, _CATEGORY) for name in names)] if names else [],
        )
        return dict(zip(_ORDER, lines, strict=True))


@dataclass(frozen=True)
class Script:
    """The fixed part of a role's prompts.

    Args:
        instructions: Text of the system message.
        task: Text of the last section, without its heading; it ends with `answer_format`.
        answer_format: The lines in which to answer.
        sections: Headings of what the role is shown.
        examples: Pairs of a human message and the answer to it.
    """

    instructions: str
    task: str
    answer_format: str
    sections: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()

    def messages(
        self, view: View, counter: TokenCounter, budget: int, exchange: Sequence[BaseMessage] = ()
    ) -> list[BaseMessage]:
        """Returns the prompt, cut until it fits.

        What goes first: the history from its first item on, then the steps of the session from
        the oldest on, then memories from the least similar on (values, reflections, discouraged
        and encouraged titles), then the categories, the examples and the guidance. Instructions
        and task always stay whole. Lines keep their numbers.

        Args:
            view: What the prompt shows.
            counter: Counts tokens. Counts of lines have to add up to the count of the text, as
                they do where a token does not go beyond the end of a line.
            budget: The most tokens of the prompt, as `count_messages` counts.
            exchange: Messages after the prompt, which are not cut and count too.

        Raises:
            PromptTooLongError: Instructions, task and exchange alone are longer than that.
        """
        shown = view.sections()
        sections = {name: deque(shown[name]) for name in self.sections if shown[name]}
        examples = [(HumanMessage(human), AIMessage(ai)) for human, ai in self.examples]
        fixed = [SystemMessage(self.instructions), HumanMessage(_TASK + self.task), *exchange]
        excess = count_messages(counter, fixed) - budget
        excess += sum(_tokens(counter, pair) for pair in examples)
        for name, lines in sections.items():
            excess += counter.count(_heading(name)) + sum(counter.count(x + "\n") for x in lines)
        excess = _cut(sections, (*_OLDEST_FIRST, *_LAST_FIRST), excess, counter)
        while excess > 0 and examples:
            excess -= _tokens(counter, examples.pop())
        excess = _cut(sections, ("Guidance",), excess, counter)
        if excess > 0:
            raise PromptTooLongError(
                f"Instructions and task alone take {budget + excess} tokens of {counter.name}, "
                f"{budget} is the most that the model's window leaves for a prompt: take a model "
                "with a larger window, or let it answer with fewer tokens."
            )
        last = HumanMessage(self.state(sections) + _TASK + self.task)
        return [fixed[0], *(message for pair in examples for message in pair), last, *exchange]

    def state(self, sections: Mapping[str, Iterable[str]]) -> str:
        """Returns the text of those sections that the role is shown and that have lines.

        Args:
            sections: Heading -> lines.
        """
        shown = ((name, tuple(sections.get(name, ()))) for name in self.sections)
        return "".join(
            _heading(name) + "".join(f"{line}\n" for line in lines)
            for name, lines in shown
            if lines
        )


@dataclass(frozen=True)
class PromptBook:
    """The prompts of all roles, in the words of one domain.

    Args:
        domain: "games", "books", "movies" or "items".
        words: Placeholder -> word, for the templates.
        roles: Role -> its file.
        examples: Role -> its examples in this domain.
    """

    domain: str
    words: Mapping[str, str]
    roles: Mapping[str, Mapping[str, Any]]
    examples: Mapping[str, Sequence[Mapping[str, Any]]]

    @classmethod
    def load(cls, domain: str) -> PromptBook:
        """Reads and checks the prompts of a domain.

        Args:
            domain: "games", "books", "movies" or "items".

        Raises:
            DataError: There is no such domain, or a file of prompts is not as it should be.
        """
        if domain not in DOMAINS:
            raise DataError(f"There are no prompts for {domain!r}: {near_miss(domain, DOMAINS)}.")
        return _load(domain)

    def script(
        self, role: str, style: str = "plain", *, gamma: float = 0.0, top: float = 5.0
    ) -> Script:
        """Returns the fixed part of a role's prompts.

        Args:
            role: "planner", "actor", "critic" or "reflector".
            style: "plain"; of the actor "thought" or "direct".
            gamma: Discount of the critic's values.
            top: The highest of them.

        Raises:
            DataError: A placeholder or an example of the file is not as it should be.
        """
        file, name = self.roles[role], f"{role}.toml"
        words = {**self.words, "gamma": f"{gamma:g}", "top": f"{top:g}"}
        sections = tuple(file["sections"])
        shared = self.roles["common"]
        explained = [
            f"- {heading}: {_fill(shared['sections'][heading], words, 'common.toml')}"
            for heading in sections
        ]
        words |= {
            key: _fill(shared[key], words, "common.toml").strip() for key in ("aim", "data", "know")
        }
        words["sections"] = "\n".join(explained)
        instructions = _fill(file[style]["instructions"], words, name).strip()
        answer_format = FORMATS[role][style]
        task = f"{_fill(file[style]['task'], words, name).strip()}\n{answer_format}"
        script = Script(instructions, task, answer_format, sections)
        examples = (
            (
                _example_text(script, example, top),
                _example_answer(role, style, example["answer"], top),
            )
            for example in self.examples[role]
        )
        return replace(script, examples=tuple(examples))


def _harmless(character: str) -> str:
    """Returns what is left of a character on a harmless line."""
    category = unicodedata.category(character)
    if character.isspace() or category[0] == "Z":
        return " "
    if category == "Cs":
        return "\ufffd"
    return "" if category in ("Cc", "Cf") and character not in _JOINERS else character


def _seen(character: str) -> bool:
    """Whether a character shows by itself."""
    return character not in _JOINERS and bool(_harmless(character).strip())


def _history_line(number: int, item: HistoryItem) -> str:
    rated = "" if item.rating is None else f" (rated {item.rating:.1f})"
    return f"{number}. {quote(item.title)}{rated}"


def _session_line(number: int, step: ShownItem) -> str:
    names = ", ".join(quote(name, _CATEGORY) for name in step.categories[:_ITEM_CATEGORIES])
    asked = f" (asked for {quote(step.said)})" if _another(step.said, step.title) else ""
    left = ", the user left" if step.left else ""
    return f"{number}. {quote(step.title)} [{names}]{asked} -> rating {step.rating:.1f}{left}"


@lru_cache(maxsize=16_384)
def _another(said: str, title: str) -> bool:
    """Whether a title that was said is not the one that was shown."""
    return said != title and normalise_title(said) != normalise_title(title)


def _heading(name: str) -> str:
    return f"### {name}\n"


def _tokens(counter: TokenCounter, pair: tuple[BaseMessage, BaseMessage]) -> int:
    """Returns what two messages add to a prompt."""
    return count_messages(counter, pair) - count_messages(counter, ())


def _cut(
    sections: Mapping[str, deque[str]], names: Sequence[str], excess: int, counter: TokenCounter
) -> int:
    """Takes lines out of the named sections, one by one, until nothing is in excess.

    Returns:
        The tokens that still are in excess.
    """
    for name in names:
        lines: deque[str] = sections.get(name, deque())
        while excess > 0 and lines:
            line = lines.popleft() if name in _OLDEST_FIRST else lines.pop()
            excess -= counter.count(line + "\n")
            if not lines:
                excess -= counter.count(_heading(name))
    return excess


@lru_cache(maxsize=len(DOMAINS))
def _load(domain: str) -> PromptBook:
    file = _read(domain)
    words = file.get("words", {})
    if set(words) != set(_WORDS):
        raise _broken(f"{domain}.toml", f"the words {sorted(words)}", f"{sorted(_WORDS)}")
    roles = {name: MappingProxyType(_read(name)) for name in ("common", *FORMATS)}
    examples = {role: _checked_examples(file, domain, role) for role in FORMATS}
    for role, styles in FORMATS.items():
        keys = {"sections", *styles}
        if set(roles[role]) != keys:
            raise _broken(f"{role}.toml", f"the keys {sorted(roles[role])}", f"{sorted(keys)}")
    book = PromptBook(domain, words, roles, examples)
    for role, styles in FORMATS.items():
        for style in styles:
            book.script(role, style)
    return book


def _read(name: str) -> dict[str, Any]:
    file = resources.files("llm_expert").joinpath("prompts", f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _checked_examples(file: Mapping[str, Any], domain: str, role: str) -> list[Mapping[str, Any]]:
    examples: list[Mapping[str, Any]] = file.get(role, [])
    if len(examples) != 2:
        raise _broken(f"{domain}.toml", f"{len(examples)} examples for the {role}", "2")
    for example in examples:
        unknown = set(example) - set(_EXAMPLE_KEYS)
        if unknown or set(example.get("answer", {})) != set(_ANSWER_KEYS[role]):
            raise _broken(
                f"{domain}.toml",
                f"an example for the {role} with the keys {sorted(example)}",
                f"keys among {', '.join(_EXAMPLE_KEYS)}, and in its answer "
                f"{', '.join(_ANSWER_KEYS[role])}",
            )
    return examples


def _broken(file: str, came: str, expected: str) -> DataError:
    return DataError(
        f"The file of prompts {file} came with {came}, expected {expected}: restore the file."
    )


def _fill(template: str, words: Mapping[str, str], file: str) -> str:
    try:
        return Template(template).substitute(words)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${word}" for word in sorted(words))
        raise _broken(file, f"a placeholder that has no word ({error})", f"some of {known}") from (
            error
        )


def _example_text(script: Script, example: Mapping[str, Any], top: float) -> str:
    """Returns the human message of an example, by the renderer of every other one."""
    pad = Scratchpad(
        [HistoryItem(**item) for item in example.get("history", ())],
        [ShownItem(**{"said": step["title"], **step}) for step in example.get("session", ())],
    )
    memories = {key: example[key] for key in _VIEW_KEYS if key in example}
    similar = [(state["key"], state["value"] * top) for state in example.get("similar", ())]
    return script.state(View(pad, similar=similar, **memories).sections()) + _TASK + script.task


def _example_answer(role: str, style: str, answer: Mapping[str, Any], top: float) -> str:
    """Returns the answer of an example in the format of its role."""
    if role == "actor":
        action = f"Action: recommend[{quote(answer['title'])}]"
        return f"Thought: {answer['thought']}\n{action}" if style == "thought" else action
    if role == "critic":
        return f"Value: {answer['value'] * top:.1f}"
    (name,) = _ANSWER_KEYS[role]
    return f"{name.capitalize()}: {answer[name]}"
