"""Algorithms that learn from logged interactions alone, as Stable-Baselines3 algorithms."""

from __future__ import annotations

from ilrec_sb3.offline.bc import BC
from ilrec_sb3.offline.bcq import DiscreteBCQ
from ilrec_sb3.offline.cql import DiscreteCQL
from ilrec_sb3.offline.crr import CRR
from ilrec_sb3.offline.logs import logged_trajectories
from ilrec_sb3.offline.offline_algorithm import OfflineAlgorithm
from ilrec_sb3.offline.sqn import SQN

__all__ = [
    "BC",
    "CRR",
    "SQN",
    "DiscreteBCQ",
    "DiscreteCQL",
    "OfflineAlgorithm",
    "logged_trajectories",
]
