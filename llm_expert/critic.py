"""Critic: the value of a state, and the advantage of an action (IL-Rec, eq. 10 and 11)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from llm_expert.asking import Asked, Asking, labelled_lines
from llm_expert.calls import Tag
from llm_expert.errors import FormatError
from llm_expert.prompting import View
from llm_expert.scratchpad import Scratchpad
from recsim_env.datasets.dataset import RATING_RANGE
from recsim_env.errors import DataError

__all__ = ["Critic", "advantage", "highest_value", "parse_value"]

_DIGITS = re.compile(r"[-−]?[.\d][\d.,]{0,30}")
_NUMBER = re.compile(r"[-−]?\d*(?:\.\d+|,\d{1,2})?")
_ROUNDING = 1e-3
"""A prompt names the range in six digits."""


def advantage(reward: float, value: float, next_value: float, gamma: float) -> float:
    """Returns A = r + γ V(s') - V(s) (IL-Rec, eq. 11); high is good.

    Args:
        reward: r of the action, in [1, 5].
        value: V(s) of the state before it, in [0, 5 / (1 - γ)].
        next_value: V(s') of the state after it; 0 where the session has ended.
        gamma: γ, in [0, 1).
    """
    return reward + gamma * next_value - value


def highest_value(gamma: float) -> float:
    """Returns 5 / (1 - γ), the discounted sum of the best ratings without an end.

    Args:
        gamma: γ, in [0, 1).

    Raises:
        DataError: γ is outside.
    """
    if not 0.0 <= gamma < 1.0:
        raise DataError(f"gamma={gamma} came, expected at least 0 and less than 1.")
    return RATING_RANGE[1] / (1.0 - gamma)


def parse_value(text: str, top: float) -> float:
    """Returns the value in an answer.

    Args:
        text: The answer.
        top: The highest value.

    Raises:
        FormatError: There is no number after the label, or it is outside of [0, top].
    """
    alone = text.strip(" \t\r\n*_`")  # a number and nothing else will do
    said = [alone] if len(alone) < 40 and _DIGITS.fullmatch(alone) else []
    for rest, following in labelled_lines(text, "value"):
        said.append(rest if rest.strip() else next((x for x in following if x.strip()), ""))
    for line in reversed(said):
        digits = _DIGITS.search(line)
        if digits:
            return _checked(_number(digits[0]), top)
    raise FormatError("The answer has no number after 'Value:'.")


def _number(digits: str) -> float:
    """Returns the number that some digits, points and commas stand for."""
    digits = digits.rstrip(".,")
    if not digits.strip("-−") or not _NUMBER.fullmatch(digits):
        raise FormatError("The answer has no plain number after 'Value:'.")
    return float(digits.replace(",", ".").replace("−", "-"))


def _checked(value: float, top: float) -> float:
    if not -_ROUNDING <= value <= top + _ROUNDING:
        raise FormatError(f"The value has to lie between 0 and {top:g}.")
    return min(max(0.0, value), top)


class Critic:
    """V_LLM(s_t) = f_cri(s_t, M_c, I_C): the discounted sum of ratings still to come.

    Args:
        asking: Prompts, model and limits.
        gamma: Discount γ in [0, 1). Raising it looks further ahead and makes the values larger;
            BiLLP's published code has 0.5.
    """

    def __init__(self, asking: Asking, gamma: float = 0.5) -> None:
        self._categories = tuple(asking.categories)
        self.gamma = gamma
        self.top = highest_value(gamma)
        script = asking.book.script("critic", gamma=gamma, top=self.top)
        parse = partial(parse_value, top=self.top)
        self._ask = asking.asker(script, parse)

    async def __call__(
        self,
        pad: Scratchpad,
        similar: Sequence[tuple[str, float]],
        *,
        tag: Tag,
        sample: int = 0,
    ) -> Asked[float]:
        """Asks for the value of a state, in [0, 5 / (1 - γ)].

        Args:
            pad: The session so far.
            similar: Keys and values of similar states (M_c of eq. 9), most similar first.
            tag: Where in the run the question belongs.
            sample: Number of the draw.
        """
        view = View(pad, similar=similar, categories=self._categories)
        return await self._ask(view, tag=tag, sample=sample)
