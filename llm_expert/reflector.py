"""Reflector: what a finished session teaches (IL-Rec, eq. 2)."""

from __future__ import annotations

from llm_expert.asking import Asked, Asking, labelled_text
from llm_expert.calls import Tag
from llm_expert.errors import FormatError
from llm_expert.prompting import View
from llm_expert.scratchpad import Scratchpad

__all__ = ["Reflector", "parse_reflection"]


def parse_reflection(text: str) -> str:
    """Returns the reflection in an answer: one line of at most 1,000 characters.

    Args:
        text: The answer.

    Raises:
        FormatError: There is none.
    """
    reflection = labelled_text(text, "reflection")
    if not reflection:
        raise FormatError("The answer has no text after 'Reflection:'.")
    return reflection


class Reflector:
    """m_k = f_ref(E, I_r): a sentence or two on a session that is over.

    Args:
        asking: Prompts, model and limits.
    """

    def __init__(self, asking: Asking) -> None:
        self._categories = tuple(asking.categories)
        self._ask = asking.asker(asking.book.script("reflector"), parse_reflection)

    async def __call__(self, pad: Scratchpad, *, tag: Tag, sample: int = 0) -> Asked[str]:
        """Asks for a reflection.

        Args:
            pad: The whole session.
            tag: Where in the run the question belongs.
            sample: Number of the draw.
        """
        return await self._ask(View(pad, categories=self._categories), tag=tag, sample=sample)
