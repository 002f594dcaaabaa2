"""Planner: guidance for the next recommendation (IL-Rec, eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence

from llm_expert.asking import Asked, Asking, labelled_text
from llm_expert.calls import Tag
from llm_expert.errors import FormatError
from llm_expert.prompting import View
from llm_expert.scratchpad import Scratchpad

__all__ = ["Planner", "parse_guidance"]


def parse_guidance(text: str) -> str:
    """Returns the guidance in an answer: one line of at most 1,000 characters.

    Args:
        text: The answer.

    Raises:
        FormatError: There is none.
    """
    guidance = labelled_text(text, "guidance")
    if not guidance:
        raise FormatError("The answer has no text after 'Guidance:'.")
    return guidance


class Planner:
    """g_t = f_plan(s_t, M_p, I_P): what to recommend next, in a sentence.

    Args:
        asking: Prompts, model and limits.
    """

    def __init__(self, asking: Asking) -> None:
        self._categories = tuple(asking.categories)
        self._ask = asking.asker(asking.book.script("planner"), parse_guidance)

    async def __call__(
        self, pad: Scratchpad, reflections: Sequence[str], *, tag: Tag, sample: int = 0
    ) -> Asked[str]:
        """Asks for guidance.

        Args:
            pad: The session so far.
            reflections: Retrieved ones (M_p of eq. 4), most similar first.
            tag: Where in the run the question belongs.
            sample: Number of the draw.
        """
        view = View(pad, reflections=reflections, categories=self._categories)
        return await self._ask(view, tag=tag, sample=sample)
