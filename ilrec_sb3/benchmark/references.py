"""Published figures of others, to be shown beside our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CAVEATS", "PLANNED", "REFERENCES", "Published", "published_name"]

PLANNED = "greedy that avoids quitting"
"""Published name of the planner that knows the rule."""


@dataclass(frozen=True)
class Published:
    """A published figure.

    Attributes:
        mean_return: Return of a session.
        per_step: Reward of an item, where it was published.
        length: Length of a session, where it was published.
        note: What the reader should know of it.
    """

    mean_return: float
    per_step: float | None = None
    length: float | None = None
    note: str = ""


_BCQ = "The public BCQ implementation returns NaN scores, so its figure is no bar."

_COAT: Mapping[str, Mapping[str, Published]] = {
    "FB": {
        "random": Published(28.3, 2.25, 12.6),
        "BCQ": Published(9.56, 2.36, 4.06, _BCQ),
        "CQL": Published(23.35, 2.27, 10.28),
        "SQN": Published(26.60, 2.31, 11.51),
        "CRR": Published(28.96, 2.23, 13.00),
        "DQN": Published(54.35, 2.47, 22.02),
        "C51": Published(41.08, 2.59, 15.83),
        "PPO": Published(73.03, 2.53, 28.86),
        "DORL": Published(76.99, 2.60, 29.58),
        "PG": Published(79.34, 2.66, 29.84),
        "A2C": Published(81.80, 2.73, 29.92),
        PLANNED: Published(79.4, 2.65, 30.0),
        "oracle": Published(93.7, 3.12, 30.0),
    },
    "NX_0": {
        "random": Published(31.4, None, 14.0),
        "BCQ": Published(12.08, None, 4.83, _BCQ),
        "CQL": Published(30.56, None, 13.41),
        "SQN": Published(32.46, None, 14.02),
        "CRR": Published(28.26, None, 12.68),
        "DQN": Published(65.59, None, 27.28),
        "C51": Published(60.02, None, 24.59),
        "PPO": Published(74.61, None, 30.00),
        "DORL": Published(73.29, None, 29.99),
        "PG": Published(75.54, None, 29.73),
        "A2C": Published(75.65, None, 29.94),
        PLANNED: Published(76.2, None, 30.0),
        "oracle": Published(88.3, None, 30.0),
    },
    "NX_10": {
        "random": Published(22.3, None, 10.0),
        "BCQ": Published(25.97, None, 10.0, _BCQ),
        "CQL": Published(22.82, None, 10.0),
        "SQN": Published(23.23, None, 10.0),
        "CRR": Published(22.45, None, 10.0),
        "DQN": Published(24.34, None, 10.0),
        "C51": Published(25.60, None, 10.0),
        "PPO": Published(25.31, None, 10.0),
        "DORL": Published(25.69, None, 10.0),
        "PG": Published(26.35, None, 10.0),
        "A2C": Published(27.09, None, 10.0),
        PLANNED: Published(26.4, None, 10.0),
        "oracle": Published(30.8, None, 10.0),
    },
}

REFERENCES: Mapping[str, Mapping[str, Mapping[str, Published]]] = {
    "coat-easyrl4rec": _COAT,
    "coat-short-window": _COAT,
}
"""Published figures by environment, mode and name: EasyRL4Rec's on Coat.

Of what learns, the mean over the last quarter of the epochs of its public logs (one seed, 100
sessions a mode); random, greedy and oracle were measured with its public code.
"""

CAVEATS: Mapping[str, str] = {
    "coat-easyrl4rec": (
        "The published figures come from code whose session-end rule compares fewer items early in "
        "a session (the short window), so users stayed a little longer there than here; whether a "
        "row is below its published figure is told by the environment coat-short-window."
    )
}
"""Environments whose rules differ from those of the published figures, and how."""


def published_name(algorithm: str) -> str:
    """Returns the name under which a policy's figures are published.

    Args:
        algorithm: Such as "sb3:A2C+items@dorl", which is published as DORL, or "offline:CQL".
    """
    base, _, reward = algorithm.partition("@")
    if reward:
        return {"roler": "ROLeR"}.get(reward, reward.upper())
    if algorithm in ("rule-aware greedy", "rule-aware planner"):
        return PLANNED
    return base.rpartition(":")[2].removesuffix("+items")
