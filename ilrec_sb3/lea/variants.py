"""The variants of LEA by name: a framework, and what of the environment's feedback it uses.

============  =======  ==========================  ==========================
name          rewards  state of the Q head         chosen items
============  =======  ==========================  ==========================
``SNQN``      1 and 0  backbone
``-LER``      LE       backbone
``-LES``      1 and 0  backbone and LE
``-LES'``     1 and 0  LE
``-LEA``      1 and 0  backbone                    supervised loss and Q loss
``-LEAR``     LE       backbone                    supervised loss and Q loss
``-LEAS``     1 and 0  backbone and LE             supervised loss and Q loss
``-LEASR``    LE       backbone and LE             supervised loss and Q loss
``-LEAS'R``   LE       LE                          supervised loss and Q loss
``-sv``       1 and 0  backbone                    supervised loss
``-q``        1 and 0  backbone                    Q loss
``-sv+q``     1 and 0  backbone                    supervised loss and Q loss
============  =======  ==========================  ==========================

Each goes with ``SNQN`` and ``SA2C``; ``Normal`` has no Q head and goes with ``-sv`` alone. LE is
the language-model environment; "chosen items" are those that it picked for each history. Where the
rewards are 1 and 0, a chosen item earns 1 as the item that was taken does. ``-sv+q`` is another
name of ``-LEA``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsim_env.errors import DataError, near_miss

__all__ = ["VARIANTS", "Framework", "Need", "StateSource", "Variant"]

Framework = Literal["Normal", "SNQN", "SA2C"]
StateSource = Literal["backbone", "joined", "environment"]
Need = Literal["states", "rewards", "augmented"]


@dataclass(frozen=True)
class Variant:
    """What a recommender is trained with; see the table at the top of this file.

    Attributes:
        framework: "Normal" (supervised loss alone), "SNQN", or "SA2C" (advantages weigh the
            supervised loss).
        rewards: Whether rewards come from the environment, else 1 for positives and 0 for
            negatives.
        state: What the Q head sees: the backbone's state, the environment's, or both joined.
        augmented_supervised: Whether eq. 13 is part of the loss.
        augmented_q: Whether eq. 14 is part of the loss.
    """

    framework: Framework
    rewards: bool = False
    state: StateSource = "backbone"
    augmented_supervised: bool = False
    augmented_q: bool = False

    def __post_init__(self) -> None:
        """Checks that nothing needs a Q head that is not there."""
        needs_q = self.rewards or self.state != "backbone" or self.augmented_q
        if self.framework == "Normal" and needs_q:
            raise DataError(
                f"{self!r} came, but the Normal framework has no Q head that could use rewards, "
                "states or chosen items; expected SNQN or SA2C, or Normal with the supervised "
                "augmentation alone."
            )

    @classmethod
    def parse(cls, name: str) -> Variant:
        """Reads a name.

        Args:
            name: For example "Normal", "SNQN", "SA2C-LEASR", "SA2C-LEAS'R", "SA2C-sv+q".

        Raises:
            DataError: The name is not known; it says which one may have been meant.
        """
        try:
            return VARIANTS[name]
        except KeyError:
            raise DataError(
                f"There is no variant {name!r}; expected a framework, a dash and a variant: "
                f"{near_miss(name, VARIANTS)}."
            ) from None

    @property
    def name(self) -> str:
        """The first name of these settings, or their fields where they have no name."""
        return next((n for n, known in VARIANTS.items() if known == self), repr(self))

    @property
    def learns_q(self) -> bool:
        """Whether there is a Q head."""
        return self.framework != "Normal"

    @property
    def needs(self) -> frozenset[Need]:
        """Which parts of the environment's feedback it uses; none for the plain frameworks."""
        needs: set[Need] = set()
        if self.rewards:
            needs.add("rewards")
        if self.state != "backbone":
            needs.add("states")
        if self.augmented_supervised or self.augmented_q:
            needs.add("augmented")
        return frozenset(needs)


# What follows the name of SNQN and SA2C: rewards, state, augmented_supervised, augmented_q.
_SUFFIXES: dict[str, tuple[bool, StateSource, bool, bool]] = {
    "": (False, "backbone", False, False),
    "-LER": (True, "backbone", False, False),
    "-LES": (False, "joined", False, False),
    "-LES'": (False, "environment", False, False),
    "-LEA": (False, "backbone", True, True),
    "-LEAR": (True, "backbone", True, True),
    "-LEAS": (False, "joined", True, True),
    "-LEASR": (True, "joined", True, True),
    "-LEAS'R": (True, "environment", True, True),
    "-sv": (False, "backbone", True, False),
    "-q": (False, "backbone", False, True),
    "-sv+q": (False, "backbone", True, True),
}
_Q_FRAMEWORKS: tuple[Framework, ...] = ("SNQN", "SA2C")

VARIANTS: dict[str, Variant] = {
    "Normal": Variant("Normal"),
    "Normal-sv": Variant("Normal", augmented_supervised=True),
} | {
    framework + suffix: Variant(framework, *fields)
    for framework in _Q_FRAMEWORKS
    for suffix, fields in _SUFFIXES.items()
}
"""Every variant by its name."""
