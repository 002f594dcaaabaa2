"""Trajectories to and from the data types of the imitation library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from imitation.data.types import DictObs, TrajectoryWithRew
from imitation.data.types import Trajectory as ImitationTrajectory

from recsim_env.errors import DataError
from recsim_env.trajectories import Trajectory

__all__ = ["from_imitation", "to_imitation"]

_SESSION = "ilrec.session"
_STEP = "ilrec.extras"
_EMBEDDINGS = {
    "state_embeddings": "ilrec.state_embedding",
    "action_embeddings": "ilrec.action_embedding",
}
"""Field of a trajectory -> key of its rows in the infos."""
_TRUNCATED = "TimeLimit.truncated"


def to_imitation(trajectories: Sequence[Trajectory]) -> list[TrajectoryWithRew]:
    """Converts trajectories for imitation's algorithms (BC, AIRL, GAIL, ...).

    What imitation has no field for (user, history, masks, embeddings, ...) travels in the infos,
    so that `from_imitation` gives back the same trajectories. The text embeddings of a step are in
    its own info, under ``"ilrec.state_embedding"`` and ``"ilrec.action_embedding"``.

    Args:
        trajectories: The sessions.

    Returns:
        One TrajectoryWithRew for each, in the same order.
    """
    return [_to_imitation(trajectory) for trajectory in trajectories]


def _to_imitation(trajectory: Trajectory) -> TrajectoryWithRew:
    infos: list[dict[str, Any]] = [
        {_STEP: {name: values[step] for name, values in trajectory.extras.items()}}
        for step in range(len(trajectory))
    ]
    for name, key in _EMBEDDINGS.items():
        rows = getattr(trajectory, name)
        if rows is not None:
            for info, row in zip(infos, rows, strict=True):
                info[key] = row
    infos[0][_SESSION] = {
        "terminated": trajectory.terminated,
        "truncated": trajectory.truncated,
        "user": trajectory.user,
        "history": trajectory.history,
        "source": trajectory.source,
        "n_actions": trajectory.n_actions,
        "action_masks": trajectory.action_masks,
    }
    infos[-1][_TRUNCATED] = trajectory.truncated and not trajectory.terminated
    return TrajectoryWithRew(
        obs=trajectory.observations,
        acts=trajectory.actions,
        infos=np.array(infos, dtype=object),
        terminal=trajectory.terminated or trajectory.truncated,
        rews=trajectory.rewards,
    )


def from_imitation(
    trajectories: Sequence[ImitationTrajectory], source: str = "imitation"
) -> list[Trajectory]:
    """Converts trajectories of imitation.

    A terminal trajectory counts as truncated where its last info says "TimeLimit.truncated", else
    as terminated.

    Args:
        trajectories: With rewards, flat observations and discrete actions.
        source: Who acted, where the trajectories do not say.

    Returns:
        The sessions, in the same order.
    """
    return [_from_imitation(trajectory, source) for trajectory in trajectories]


def _from_imitation(trajectory: ImitationTrajectory, source: str) -> Trajectory:
    if not isinstance(trajectory, TrajectoryWithRew):
        raise DataError(
            f"A {type(trajectory).__name__} without rewards came; expected TrajectoryWithRew: "
            "record the rewards, for example by imitation.data.rollout.rollout."
        )
    if isinstance(trajectory.obs, DictObs):
        raise DataError(
            "Dict observations came; a trajectory holds flat vectors: flatten them first "
            "(gymnasium.wrappers.FlattenObservation)."
        )
    infos = [{}] * len(trajectory) if trajectory.infos is None else list(trajectory.infos)
    cut = bool(infos[-1].get(_TRUNCATED, False))
    steps = [info.get(_STEP, {}) for info in infos]
    fields: dict[str, Any] = {
        "terminated": trajectory.terminal and not cut,
        "truncated": trajectory.terminal and cut,
        "source": source,
        **infos[0].get(_SESSION, {}),
    }
    for name, key in _EMBEDDINGS.items():
        if all(key in info for info in infos):
            fields[name] = np.stack([info[key] for info in infos])
    return Trajectory(
        observations=trajectory.obs.reshape(len(trajectory) + 1, -1),
        actions=trajectory.acts,
        rewards=trajectory.rews,
        extras={name: [step.get(name) for step in steps] for name in steps[0]},
        **fields,
    )
