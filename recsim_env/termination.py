"""Session-end rules: small batched functions that compose.

A rule looks at every session of a batch at once and says where the user leaves because of the item
that was just shown. Rules terminate a session; the length limit of the environment truncates it. A
rule of your own is any object with a ``name`` and a ``__call__`` like those below (see
``examples/custom_rule.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recsim_env.errors import DataError, near_miss

__all__ = [
    "BILLP",
    "PRESETS",
    "CategoryDiversity",
    "Repeat",
    "Rule",
    "RuleContext",
    "Similarity",
    "make_rules",
    "window_counts",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass
class RuleContext:
    """What a rule may look at when ``items`` are shown; n sessions at once.

    Attributes:
        items: (n,) the item shown now, as catalogue index.
        rewards: (n,) its reward, in [1, 5].
        shown: (n, limit) the items shown before, oldest first; only the first ``steps`` of a row
            are valid.
        steps: (n,) how many items were shown before this one.
        mask: (n, n_items) True where an item had not been shown before.
        categories: (n_items, n_categories) multi-hot float32.
        text: (n_items, d) text embeddings with rows of norm 1.
        counts: (n, n_categories) category counts over the last ``counts_window - 1`` items shown
            before.
        counts_window: The window that ``counts`` belongs to, in items with the current one counted.
    """

    items: IntArray
    rewards: FloatArray
    shown: IntArray
    steps: IntArray
    mask: BoolArray
    categories: FloatArray
    text: FloatArray
    counts: FloatArray
    counts_window: int
    rows: IntArray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        """Fills in the row numbers where the caller has none at hand."""
        if len(self.rows) != len(self.items):
            self.rows = np.arange(len(self.items))


@runtime_checkable
class Rule(Protocol):
    """Decides where the user leaves.

    A rule may have three things more. An attribute ``recent``, the number of last items that it
    compares an item with: observations then tell so many of them. An attribute ``needs_history``:
    False says that the counts of categories and the step tell all of the session that it looks at,
    so that item heads can do without the tracker. And a method ``ends(context)``,
    (n, n_items) bool, that answers for every item of the catalogue at once where
    ``context.rewards`` is the (n, n_items) table: planners that know the rules are faster with it.
    """

    @property
    def name(self) -> str:
        """A short name: it is what ``info["ended_by"]`` says."""

    def __call__(self, context: RuleContext) -> BoolArray:
        """Returns (n,) True where the session ends with the item shown now."""


def window_counts(
    shown: IntArray, steps: IntArray, window: int, categories: FloatArray
) -> FloatArray:
    """Counts categories over the last ``window`` items shown, from scratch.

    Args:
        shown: (n, limit) items shown, oldest first; the first ``steps`` of a row are valid.
        steps: (n,) number of items shown.
        window: How many of the last items count; 0 gives zeros.
        categories: (n_items, n_categories) multi-hot.

    Returns:
        (n, n_categories) counts.
    """
    position = np.arange(shown.shape[1])[None, :]
    start = np.maximum(0, steps - window)[:, None]
    valid = (position >= start) & (position < steps[:, None])
    items = np.where(valid, shown, 0)
    return np.asarray(np.einsum("nl,nlc->nc", valid.astype(np.float32), categories[items]))


@dataclass(frozen=True)
class CategoryDiversity:
    """Ends a session when one category comes too often (IL-Rec, section V-A3).

    With the current item counted, the session ends when any one of the item's categories occurs
    ``max_repeats`` times or more among the last ``window`` items shown.

    Attributes:
        window: N, in items, the current one included; 50 for Steam and 15 for Amazon in the paper.
        max_repeats: M, the count that ends the session, at most ``window``; 4 in the paper.
    """

    window: int = 50
    max_repeats: int = 4
    name: str = "category"
    needs_history: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.window < 1 or self.max_repeats < 1:
            raise DataError(
                f"CategoryDiversity got window={self.window} and max_repeats={self.max_repeats}; "
                "both must be 1 or more."
            )
        if self.max_repeats > self.window:
            raise DataError(
                f"CategoryDiversity got window={self.window} and max_repeats={self.max_repeats}, a "
                "count that no category reaches in so few items, so that the rule would never end "
                f'a session: give max_repeats of at most {self.window}, or termination="none".'
            )

    def __call__(self, context: RuleContext) -> BoolArray:
        """Returns (n,) True where a category of the item reaches ``max_repeats``."""
        if context.counts_window == self.window:
            counts = context.counts
        else:
            counts = window_counts(
                context.shown, context.steps, self.window - 1, context.categories
            )
        with_current = (counts + 1.0) * context.categories[context.items]
        return np.asarray(with_current.max(axis=1) >= self.max_repeats)


@dataclass(frozen=True)
class Repeat:
    """Ends a session when an item is shown a second time in it."""

    name: str = "repeat"
    needs_history: ClassVar[bool] = False

    def __call__(self, context: RuleContext) -> BoolArray:
        """Returns (n,) True where the item had been shown before in the session."""
        return np.asarray(~context.mask[context.rows, context.items])


@dataclass(frozen=True)
class Similarity:
    """Ends a session when the item is too much like a recent one, or too little liked.

    The form of BiLLP's published environment: the user leaves when the item's text embedding lies
    within ``threshold`` (Euclidean) of that of any of the last ``window`` items, or when its reward
    is below ``min_reward``. BiLLP measures distance in LLaMA space (thresholds 50 and 15 there);
    here rows have norm 1, so distances lie in [0, 2].

    Attributes:
        threshold: Distance below which two items count as alike.
        window: How many items before the current one are compared.
        min_reward: Rewards below it end the session.
        free_steps: How many steps at the start of a session the rule lets pass, whatever is shown.
    """

    threshold: float = 0.5
    window: int = 4
    min_reward: float = 2.0
    name: str = "similarity"
    free_steps: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.window < 1 or not self.threshold >= 0 or self.free_steps < 0:
            raise DataError(
                f"Similarity got window={self.window}, threshold={self.threshold} and "
                f"free_steps={self.free_steps}; the window must be 1 or more, the threshold and "
                "the free steps not negative."
            )

    @property
    def recent(self) -> int:
        """How many of the last items it looks at."""
        return self.window

    def ends(self, context: RuleContext) -> BoolArray:
        """Returns (n, n_items) the same for every item; ``context.rewards`` is (n, n_items)."""
        alike = np.zeros(context.mask.shape, bool)
        for back in range(1, self.window + 1):
            position = context.steps - back
            recent = context.shown[context.rows, np.maximum(position, 0)]
            # rows have norm 1: |a - b|^2 = 2 - 2 a.b
            square = 2.0 - 2.0 * context.text[recent] @ context.text.T
            alike |= (position >= 0)[:, None] & (square < self.threshold**2)
        ends = alike | (context.rewards < self.min_reward)
        return np.asarray(ends & (context.steps >= self.free_steps)[:, None])

    def __call__(self, context: RuleContext) -> BoolArray:
        """Returns (n,) True where the item is too near to a recent one or its reward too low."""
        back = np.arange(1, self.window + 1)
        position = context.steps[:, None] - back[None, :]  # (n, window)
        valid = position >= 0
        recent = context.shown[context.rows[:, None], np.maximum(position, 0)]
        recent = np.where(valid, recent, 0)
        difference = context.text[recent] - context.text[context.items][:, None, :]
        distance = np.sqrt(np.square(difference).sum(-1))
        alike = np.asarray((valid & (distance < self.threshold)).any(axis=1))
        ends = alike | np.asarray(context.rewards < self.min_reward)
        return np.asarray(ends & (context.steps >= self.free_steps))


BILLP: dict[str, float] = {"steam": 0.44, "amazon": 0.32}
"""Thresholds of ``termination="billp"`` per dataset, for text embeddings of 64 numbers (the default
``text_dim``): those that best separate the recorded steps at which users left from those at which
they stayed, chosen on one half of the users; see ``benchmarks/similarity_rule.py``."""
_BILLP_OTHERS = 0.44
"""For datasets without recorded sessions: uncalibrated, that of Steam."""

PRESETS: dict[str, tuple[int, int]] = {
    "steam": (50, 4),
    "amazon": (15, 4),
    "movielens": (15, 4),
    "coat": (15, 4),
    "synthetic": (50, 4),
}
"""Window and count of the category rule per dataset: the paper's for Steam and Amazon, ours for the
others."""


def make_rules(
    termination: str | Rule | Sequence[Rule] = "category",
    *,
    dataset: str = "synthetic",
    window: int | None = None,
    max_repeats: int | None = None,
    repeat: bool = True,
) -> tuple[Rule, ...]:
    """Builds the rules of an environment.

    Args:
        termination: ``"category"`` (the paper's rule with the dataset's preset), ``"similarity"``
            (`Similarity` with its defaults), ``"billp"``, ``"none"``, a rule, or several.
            ``"billp"`` is `Similarity` as BiLLP's simulator has it (the last 4 items, rewards of at
            least 2, nothing ends at the first step) with the dataset's threshold of `BILLP`, or
            Steam's, uncalibrated, for a dataset that is not in it. It matches the recorded users in
            parts: items shown again and low rewards end a session here as there; beyond that,
            nearness in this space says nothing of where they left.
        dataset: Whose preset to take; unknown names get 50/4.
        window: Overrides the preset's window.
        max_repeats: Overrides the preset's count.
        repeat: Adds `Repeat`.

    Returns:
        The rules in the order in which they are asked; the first that fires is named.

    Raises:
        DataError: For an unknown name or an object that is not a rule.
    """
    named: tuple[Rule, ...]
    if isinstance(termination, str):
        n, m = PRESETS.get(dataset, (50, 4))
        category = CategoryDiversity(
            n if window is None else window, m if max_repeats is None else max_repeats
        )
        choices: dict[str, tuple[Rule, ...]] = {
            "category": (category,),
            "similarity": (Similarity(),),
            "billp": (Similarity(BILLP.get(dataset, _BILLP_OTHERS), free_steps=1),),
            "none": (),
        }
        if termination not in choices:
            raise DataError(
                f"termination={termination!r} is not known; {near_miss(termination, choices)}."
            )
        named = choices[termination]
    else:
        given: Any = termination  # whatever came; each is checked below
        named = tuple(given) if isinstance(given, Sequence) else (given,)
    for rule in named:
        if not isinstance(rule, Rule):
            raise DataError(
                f"termination holds {type(rule).__name__!r}, which is not a rule; give it a `name` "
                "and a `__call__(context)` that returns one bool per session."
            )
    return (*named, Repeat()) if repeat else named
