"""Where the demonstrations of an environment come from when nobody gives any."""

from __future__ import annotations

import logging

from recsim_env.planners import explore
from recsim_env.simulator import Observer
from recsim_env.trajectories import Trajectory

__all__ = ["demonstrations"]

logger = logging.getLogger(__name__)


def demonstrations(observer: Observer, *, n_sessions: int = 200, seed: int = 0) -> list[Trajectory]:
    """Returns demonstrations with the observations and rewards of an environment.

    They are the sessions that the prepared dataset carries (recorded sessions of a language model),
    and where it carries none those of the package's scripted explorer.

    Args:
        observer: Of the environment; its dynamics give rewards and session ends.
        n_sessions: How many sessions the explorer plays.
        seed: Of the explorer.
    """
    dynamics = observer.dynamics
    sessions = list(dynamics.prepared.sessions)
    if not sessions:
        logger.info(
            "%s carries no recorded sessions: the scripted explorer demonstrates.",
            dynamics.prepared.dataset.name,
        )
        sessions = explore(dynamics, n_sessions, seed)
    return dynamics.replay(sessions, observe=observer.flat)
