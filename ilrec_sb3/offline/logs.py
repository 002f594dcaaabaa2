"""The users' logged interactions as sessions that an offline algorithm can learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsim_env.dynamics import Dynamics
from recsim_env.encoders import user_sequences
from recsim_env.errors import DataError, near_miss
from recsim_env.trajectories import Trajectory

__all__ = ["Ends", "logged_trajectories"]

Ends = Literal["rule", "record"]
_ENDS = ("rule", "record")
_CHUNK = 128  # users replayed at a time


def logged_trajectories(dynamics: Dynamics, *, ends: Ends = "rule") -> list[Trajectory]:
    """Returns the users' train interactions as sessions, in the order in which they were made.

    A session begins with nothing shown, and counts and mask move along with the log as they do in
    the environment. The tracker knows the items logged before, in this session and in those before
    it, and none that are still to come: a learner that saw the whole record at once would find the
    next item in it. The rest of an observation is what the environment shows. Rewards are the
    logged ratings, never the world model's. At the length limit a session is cut and the next one
    begins.

    Args:
        dynamics: Whose users, rules and limit. Only train interactions are read, whatever its
            split.
        ends: ``"rule"`` ends a session, as terminated, wherever the rules would have ended it, and
            begins the next one after: the log then tells where users leave. Rules that look at
            rewards are shown those of ``dynamics``, as always. ``"record"`` asks no rules.

    Returns:
        Sessions sorted by user, those of a user in their order. The last one of a user, whose
        record runs out, is truncated.

    Raises:
        DataError: For another value of ``ends``.
    """
    if ends not in _ENDS:
        raise DataError(f"ends={ends!r} came for the logs; {near_miss(ends, _ENDS)}.")
    prepared = dynamics.prepared
    generator = np.random.default_rng(prepared.config.seed)  # as `Prepared.histories`
    items, ratings = user_sequences(prepared.dataset, prepared.train_rows, generator)
    lengths = np.array([len(record) for record in items])
    # users with records of like length are replayed together
    users = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]
    result: list[Trajectory] = []
    for start in range(0, len(users), _CHUNK):
        chunk = users[start : start + _CHUNK]
        result.extend(
            _replay(dynamics, chunk, [items[u] for u in chunk], [ratings[u] for u in chunk], ends)
        )
    return sorted(result, key=lambda trajectory: trajectory.user)


def _replay(
    dynamics: Dynamics,
    users: NDArray[np.int64],
    items: Sequence[NDArray[np.int64]],
    ratings: Sequence[NDArray[np.float32]],
    ends: Ends,
) -> list[Trajectory]:
    """Returns the sessions of some users, whose records come longest first."""
    n, longest = len(users), len(items[0])
    shape = (longest, n)
    state = dynamics.allocate(n)
    dynamics.initial(state, np.arange(n), users)
    state.tracker = dynamics.prepared.tracker.initial([np.empty(0, np.int64)] * n)
    # what is seen before and after each item; they differ from the neighbours' at a restart
    before = np.zeros((*shape, dynamics.layout.size), np.float32)
    after = np.zeros_like(before)
    masks = np.zeros((*shape, (dynamics.n_items + 7) // 8), np.uint8)
    next_masks = np.zeros_like(masks)
    left, cut = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for t in range(longest):
        shown = np.array([record[min(t, len(record) - 1)] for record in items], np.int64)
        before[t], masks[t] = dynamics.observe(state), np.packbits(state.mask, axis=1)
        if ends == "rule":
            left[t] = dynamics.terminal(state, shown, dynamics.reward(state, shown)) > 0
        dynamics.transition(state, shown)
        after[t], next_masks[t] = dynamics.observe(state), np.packbits(state.mask, axis=1)
        cut[t] = ~left[t] & (state.steps >= dynamics.limit)
        again = np.flatnonzero(left[t] | cut[t])
        if len(again):
            past = {name: values[again] for name, values in state.tracker.items()}
            dynamics.initial(state, again, users[again])
            for name, values in past.items():
                state.tracker[name][again] = values
    result = []
    for k, record in enumerate(items):
        stops = np.flatnonzero((left | cut)[: len(record) - 1, k]) + 1
        for start, stop in zip([0, *stops], [*stops, len(record)], strict=True):
            terminated = bool(left[stop - 1, k])
            result.append(
                Trajectory(
                    observations=np.concatenate([before[start:stop, k], after[stop - 1 : stop, k]]),
                    actions=record[start:stop],
                    rewards=ratings[k][start:stop],
                    terminated=terminated,
                    truncated=not terminated,
                    user=int(users[k]),
                    history=tuple(record[:start]),
                    source="log",
                    action_masks=np.concatenate(
                        [masks[start:stop, k], next_masks[stop - 1 : stop, k]]
                    ),
                    n_actions=dynamics.n_items,
                )
            )
    return result
