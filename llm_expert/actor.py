"""Actor: the title to recommend (IL-Rec, eq. 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_expert.asking import Asked, Asking, labelled_lines, labelled_text, tidy
from llm_expert.calls import Tag
from llm_expert.errors import FormatError
from llm_expert.prompting import View
from llm_expert.scratchpad import Scratchpad

__all__ = ["Action", "Actor", "parse_action"]

_TITLE = 200
_LOOKED_AT = 2000
"""Characters of a line that are looked at: a title of 200 may be written in escapes."""
_RECOMMEND = re.compile(r"\brecommend[ \t*_`]{0,10}[\[(]", re.IGNORECASE)
_SPOKEN = re.compile(r"(?:I (?:would )?)?recommend\b[ \t:]{0,5}", re.IGNORECASE)
_CLOSING = {"[": "]", "(": ")"}
_AROUND = " \t*_`\\\"'“”„\u2018\u2019«»"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Action:
    """What an actor wants to do.

    Args:
        thought: Why, one line of at most 1,000 characters; "" where nothing was said.
        title: What to recommend, one line of 1 to 200 characters.
    """

    thought: str
    title: str


def parse_action(text: str) -> Action:
    """Returns the thought and the title in an answer.

    Args:
        text: The answer.

    Raises:
        FormatError: There is no title.
    """
    actions = labelled_lines(text, "action")
    lines = [rest if rest.strip() else _first(following) for rest, following in actions]
    for line in reversed(lines):
        title = _title(line)
        if title:
            return Action(labelled_text(text, "thought"), title)
    title = _in_json(text) or _recommended(text)
    if title:
        return Action(labelled_text(text, "thought"), title)
    raise FormatError("The answer has no title in 'Action: recommend[\"TITLE\"]'.")


class Actor:
    """â_t = f_act(s_t, g_t, M_a, I_A): a title, which need not be one of the catalogue's.

    Args:
        asking: Prompts, model and limits.
        think: Whether to ask for a thought before the title.
    """

    def __init__(self, asking: Asking, think: bool = True) -> None:
        self._categories = tuple(asking.categories)
        script = asking.book.script("actor", "thought" if think else "direct")
        self._ask = asking.asker(script, parse_action)

    async def __call__(
        self,
        pad: Scratchpad,
        *,
        guidance: str | None = None,
        encouraged: Sequence[str] = (),
        discouraged: Sequence[str] = (),
        reflections: Sequence[str] = (),
        tag: Tag,
        sample: int = 0,
    ) -> Asked[Action]:
        """Asks for a title.

        Args:
            pad: The session so far.
            guidance: The planner's g_t.
            encouraged: Titles of remembered actions with a positive advantage (M_a of eq. 6), most
                similar state first.
            discouraged: Those with a negative one.
            reflections: On earlier sessions, for agents without a planner.
            tag: Where in the run the question belongs.
            sample: Number of the draw.
        """
        view = View(
            pad,
            guidance=guidance,
            encouraged=encouraged,
            discouraged=discouraged,
            reflections=reflections,
            categories=self._categories,
        )
        return await self._ask(view, tag=tag, sample=sample)


def _first(lines: Sequence[str]) -> str:
    """Returns the first line that is not blank, or nothing."""
    return next((line for line in lines if line.strip()), "")


def _title(line: str) -> str:
    """Returns the title in what follows "Action:", or nothing."""
    rest = line.strip(" \t*_`")
    asked_for = _RECOMMEND.match(rest)
    if asked_for:  # what is inside, even another "recommend[...]", is the title
        title = _bracketed(rest[asked_for.end() :], _CLOSING[asked_for[0][-1]])
        if title:
            return title
    if _RECOMMEND.search(line):
        return _recommended(line)
    spoken = _SPOKEN.match(rest)
    rest = rest[spoken.end() :] if spoken else rest
    return _bracketed(rest[1:], "]") if rest.startswith("[") else _bracketed(rest, "")


def _in_json(text: str) -> str:
    """Returns the title in the "action" of an answer that is a JSON object, or nothing."""
    if not text.lstrip().startswith("{"):
        return ""
    try:
        action = json.loads(text).get("action")
    except (ValueError, RecursionError):
        return ""
    return _title(action[:_LOOKED_AT]) if isinstance(action, str) else ""


def _recommended(text: str) -> str:
    """Returns the title in the last "recommend[...]" that has one, or nothing.

    What stands between quotes on the same line is somebody's title, whatever it says.
    """
    for match in reversed(list(_RECOMMEND.finditer(text))):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if (line.count('"') - line.count('\\"')) % 2:
            continue
        rest = text[match.end() : match.end() + _LOOKED_AT].partition("\n")[0]
        title = _bracketed(rest, _CLOSING[match[0][-1]])
        if title:
            return title
    return ""


def _bracketed(rest: str, closing: str) -> str:
    """Returns the title that begins a text, up to its quote or the last closing bracket.

    Args:
        rest: What follows the opening bracket.
        closing: The bracket that ends it; "" where there is none.
    """
    rest = rest[:_LOOKED_AT].strip(" \t*_`")
    if rest.startswith('"'):
        try:
            decoded, end = _DECODER.raw_decode(rest)
        except ValueError:
            end = -1
        if end > 0 and (not closing or rest[end:].lstrip()[:1] in (closing, ",", "")):
            return tidy(decoded, _TITLE)
    end = rest.rfind(closing) if closing else -1
    return tidy((rest[:end] if end >= 0 else rest).strip(_AROUND), _TITLE)
