"""The prompts of the environment, as rows of codes.

A code below V, the number of rows of the language model's token embeddings, is a token; code V + i
is the vector of item i. So a prompt is a list of integers whether items are vectors or titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from recsim_env.errors import DataError

if TYPE_CHECKING:
    from llm_expert.environment.language_model import LanguageModel

__all__ = ["POSITIONS", "SEPARATOR", "PromptWriter", "Prompts"]

POSITIONS = ("first", "second", "third", "fourth", "fifth")
"""What the language model answers when it is asked for one of five."""
SEPARATOR = ";"
"""Between titles. Vectors of items stand beside each other: each is one token."""


@dataclass(frozen=True)
class Prompts:
    """Templates; ``{noun}`` is what an item is called, and items go where the other name stands.

    The three share their beginning: the reward prompt and the choice prompt each go on after the
    user prompt. No space may precede an item's place.

    Attributes:
        user: p_t, with ``{history}``.
        reward: p_a, with ``{item}``.
        choice: p_l, with ``{candidates}``; a position word is to come next.
    """

    user: str = "One person has chosen these {noun}s, the oldest first:{history}."
    reward: str = " How likely is it that the {noun} chosen next is{item}?"
    choice: str = (
        " The next choice is one of five {noun}s:{candidates}. The one that suits this person best "
        "is the"
    )

    def __post_init__(self) -> None:
        """Checks that every template has its place for items once."""
        for item, place in zip(fields(self), ("{history}", "{item}", "{candidates}"), strict=True):
            template = getattr(self, item.name)
            if template.count(place) != 1 or f" {place}" in template:
                raise DataError(
                    f"Prompts.{item.name} is {template!r}, expected a text with one {place} and no "
                    "space before it: add it or take the others out."
                )

    def parts(self, name: str, noun: str) -> tuple[str, str]:
        """Returns what stands before and after the items of a template.

        Args:
            name: "user", "reward" or "choice".
            noun: What an item is called.
        """
        places = {"user": "{history}", "reward": "{item}", "choice": "{candidates}"}
        before, _, after = str(getattr(self, name)).partition(places[name])
        return before.replace("{noun}", noun), after.replace("{noun}", noun)


class PromptWriter:
    """Writes prompts about the items of one catalogue for one language model.

    Args:
        lm: The language model.
        titles: Of the items.
        noun: What an item is called.
        prompts: The templates; None takes the default.
        item_tokens: Whether an item is its vector or its title.
        title_tokens: Tokens of a title that are kept.

    Attributes:
        position_tokens: The first token of each position word, as it goes on after the choice
            prompt.

    Raises:
        DataError: The tokenizer cannot tell the position words apart by their first tokens.
    """

    def __init__(
        self,
        lm: LanguageModel,
        titles: Sequence[str],
        noun: str,
        prompts: Prompts | None = None,
        *,
        item_tokens: bool = True,
        title_tokens: int = 16,
    ) -> None:
        prompts = prompts or Prompts()
        parts = {name: prompts.parts(name, noun) for name in ("user", "reward", "choice")}
        self._frames = {
            name: (lm.continuation(before), lm.continuation(after))
            for name, (before, after) in parts.items()
        }
        opening = lm.start + lm.token_ids(parts["user"][0])
        self._frames["user"] = (opening, self._frames["user"][1])
        self._items = [[lm.vocabulary + number] for number in range(len(titles))]
        self._between: list[int] = []
        if not item_tokens:
            self._items = [lm.continuation(f" {title}", title_tokens) for title in titles]
            self._between = lm.continuation(SEPARATOR)
        self._labels = [lm.continuation(f" {word}") for word in POSITIONS]
        self.position_tokens = _position_tokens(lm, parts["choice"][1])

    def user(self, history: Sequence[int]) -> list[int]:
        """Returns p_t.

        Args:
            history: Items, the oldest first.
        """
        return self._fill("user", history)

    def reward(self, item: int) -> list[int]:
        """Returns p_a, to go on after p_t."""
        return self._fill("reward", [item])

    def choice(self, candidates: Sequence[int]) -> list[int]:
        """Returns p_l, to go on after p_t; each item stands after its position word."""
        return self._fill("choice", candidates, self._labels)

    def _fill(
        self, name: str, items: Sequence[int], labels: Sequence[list[int]] | None = None
    ) -> list[int]:
        before, after = self._frames[name]
        codes = list(before)
        for place, item in enumerate(items):
            if place:
                codes += self._between
            if labels is not None:
                codes += labels[place]
            codes += self._items[item]
        return codes + after


def _position_tokens(lm: LanguageModel, end: str) -> tuple[int, ...]:
    """Returns the token with which each position word goes on after a prompt's end."""
    stem = lm.continuation(end)
    found = []
    for word in POSITIONS:
        longer = lm.continuation(f"{end} {word}")
        same = 0
        while same < len(stem) and longer[same] == stem[same]:
            same += 1
        found.append(longer[same])
    if len(set(found)) < len(found):
        raise DataError(
            f"The words {', '.join(POSITIONS)} begin with the tokens {found} in the language "
            f"model {lm.name}, expected five different ones: take a larger vocabulary."
        )
    return tuple(found)
