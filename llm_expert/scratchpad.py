"""What an agent knows of one session: a list of steps, of which every text is a view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["HistoryItem", "Scratchpad", "ShownItem"]


@dataclass(frozen=True)
class HistoryItem:
    """An item that the user knew before the session.

    Args:
        title: As the catalogue has it.
        rating: In [1, 5], or None where it is not known.
    """

    title: str
    rating: float | None = None


@dataclass(frozen=True)
class ShownItem:
    """One finished step of a session.

    Args:
        said: The title that the model named.
        title: Title of the item that was shown for it.
        categories: Of that item.
        rating: The user's feedback in [1, 5].
        left: Whether the user left because of this item.
    """

    said: str
    title: str
    categories: tuple[str, ...]
    rating: float
    left: bool = False


@dataclass
class Scratchpad:
    """One session as its agent knows it.

    Args:
        history: Items before the session, oldest first where their order is known. Prompts do not
            speak of an order, since some datasets have none.
        steps: What was shown in it, oldest first.
    """

    history: Sequence[HistoryItem] = ()
    steps: list[ShownItem] = field(default_factory=list)

    def state_text(self, last: int = 10) -> str:
        """Returns the key under which memories of this state are kept: the last titles.

        Args:
            last: How many of the last titles, history and session taken together; the paper's
                recorded expert uses 10.
        """
        titles = [item.title for item in self.history] + [step.title for step in self.steps]
        return "; ".join(titles[-last:]) if last else ""
