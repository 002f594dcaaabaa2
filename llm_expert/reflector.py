"""Reflector: what a finished session teaches (IL-Rec, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

from llm_expert.asking import Asked, Asker, labelled_text
from llm_expert.calls import Call, Tag
from llm_expert.errors import FormatError
from llm_expert.prompting import PromptBook, View
from llm_expert.scratchpad import Scratchpad
from llm_expert.tokens import TokenCounter

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
        book: Prompts of the domain.
        call: Asks the model.
        counter: Counts tokens.
        budget: The most tokens of a prompt.
        categories: Of the catalogue, most frequent first.
        reasks: How often to ask again for the format.
    """

    def __init__(
        self,
        book: PromptBook,
        call: Call,
        counter: TokenCounter,
        budget: int,
        categories: Sequence[str],
        reasks: int = 2,
    ) -> None:
        self._categories = tuple(categories)
        self._ask = Asker(book.script("reflector"), parse_reflection, call, counter, budget, reasks)

    async def __call__(self, pad: Scratchpad, *, tag: Tag, sample: int = 0) -> Asked[str]:
        """Asks for a reflection.

        Args:
            pad: The whole session.
            tag: Where in the run the question belongs.
            sample: Number of the draw.
        """
        return await self._ask(View(pad, categories=self._categories), tag=tag, sample=sample)
