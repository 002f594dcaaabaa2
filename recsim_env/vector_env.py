"""Many sessions at once: the batched view of the dynamics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from recsim_env.datasets import Dataset
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics, ItemContext, Split, StepResult
from recsim_env.errors import DataError, near_miss
from recsim_env.prepare import Prepared, Session
from recsim_env.simulator import ObservationMode, Observer, make_dynamics
from recsim_env.termination import Rule
from recsim_env.trajectories import Trajectory

try:  # gymnasium 1.1 and later say when they reset
    from gymnasium.vector import AutoresetMode

    _METADATA: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
except ImportError:
    _METADATA = {"render_modes": []}

if TYPE_CHECKING:
    _Base = VectorEnv[Any, Any, Any]
else:  # not generic before gymnasium 1.0
    _Base = VectorEnv

__all__ = ["RecVectorEnv"]


class RecVectorEnv(_Base):
    """``num_envs`` sessions in one process, stepped together; the ordinary way to train.

    Session k behaves as a `RecEnv` that was reset with ``seed + k``; see there for observations,
    actions, rewards and session ends. A session that ends starts anew in the same step
    (``AutoresetMode.SAME_STEP``): the returned observation is the first of the new session and the
    last one of the old session is in ``infos``.

    ``infos`` of a step:

    ===================  ===========================================================================
    ``title``            (n,) object: titles of the items shown
    ``categories``       (n,) object: tuples of their category names
    ``ended_by``         (n,) object: name of the rule that ended the session, "limit", or ""
    ``action_mask``      (n, n_items) bool, read-only: what may be shown next (of the new session
                         where one began)
    ``final_obs``        (n, ...) last observations, valid where ``_final_obs``; only if a session
                         ended
    ``final_mask``       (n, n_items) last masks, valid where ``_final_mask``; only if a session
                         ended
    ===================  ===========================================================================

    Args:
        num_envs: Number of sessions.
        dynamics: Ready dynamics; instead of the arguments below.
        obs_mode: Form of the observations, see `RecEnv`.
        sequence_length: Length of the id sequence for ``obs_mode="sequence"``.
        render_mode: Must be None.
        dataset: As in `RecEnv`.
        split: As in `RecEnv`.
        termination: As in `RecEnv`.
        window: As in `RecEnv`.
        max_repeats: As in `RecEnv`.
        repeat: As in `RecEnv`.
        limit: As in `RecEnv`.
        data: As in `RecEnv`.
        cache: As in `RecEnv`.
        fallback: As in `RecEnv`.
        progress: As in `RecEnv`.
        options: As in `RecEnv`.
    """

    metadata = _METADATA

    def __init__(
        self,
        num_envs: int = 1,
        dataset: str | Dataset | Prepared = "synthetic",
        *,
        dynamics: Dynamics | None = None,
        split: Split = "train",
        termination: str | Rule | Sequence[Rule] = "category",
        window: int | None = None,
        max_repeats: int | None = None,
        repeat: bool = True,
        limit: int = 100,
        obs_mode: ObservationMode = "vector",
        sequence_length: int = 50,
        data: str | Path | None = None,
        cache: str | Path | None = None,
        fallback: bool = False,
        progress: bool = True,
        options: dict[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise DataError(f"num_envs={num_envs} came; give 1 or more.")
        if render_mode is not None:
            raise DataError(
                f"render_mode={render_mode!r} came, but many sessions are not rendered; use RecEnv."
            )
        self.dynamics = dynamics or make_dynamics(
            dataset,
            split=split,
            termination=termination,
            window=window,
            max_repeats=max_repeats,
            repeat=repeat,
            limit=limit,
            data=data,
            cache=cache,
            fallback=fallback,
            progress=progress,
            options=options,
        )
        self.num_envs = num_envs
        self.render_mode = None
        self.spec = None
        self.closed = False
        self.viewer = None  # gymnasium before 1.0 closes it
        self.observer = Observer(self.dynamics, obs_mode, sequence_length)
        self.single_observation_space = self.observer.space
        self.single_action_space = spaces.Discrete(self.dynamics.n_items)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state = self.dynamics.allocate(num_envs)
        self._generators: list[np.random.Generator] = []
        self._users = np.zeros((num_envs, 0), np.int64)
        self._drawn = np.zeros(num_envs, np.int64)
        self._mask: NDArray[np.bool_] | None = None  # copy of the state's mask, made once a step

    @property
    def item_context(self) -> ItemContext:
        """What a policy may know about the items and the observation."""
        return self.dynamics.item_context

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Starts every session anew.

        Args:
            seed: Session k draws its users from ``seed + k`` (or ``seed[k]``); None goes on with
                the generators of the last reset.
            options: ``{"histories": [...], "users": [...]}`` starts the sessions from given
                histories; one entry per session. Sessions that begin after those are of drawn users
                again.

        Returns:
            Observations and infos.
        """
        options = {name: value for name, value in (options or {}).items() if value is not None}
        unknown = sorted(set(options) - {"users", "histories"})
        if unknown:
            raise DataError(
                f"reset got the option {unknown[0]!r}; "
                f"{near_miss(unknown[0], ('users', 'histories'))}."
            )
        if seed is not None or not self._generators:
            seeds = self._seeds(seed)
            self._generators = [np.random.default_rng(s) for s in seeds]
            self._users = np.stack([self.dynamics.draw_users(g) for g in self._generators])
            self._drawn = np.zeros(self.num_envs, np.int64)
        everyone = np.arange(self.num_envs)
        if options:
            self._start_from_options(everyone, options)
        else:
            self.dynamics.initial(self._state, everyone, self._next_users(everyone))
        self._mask = None
        return self.observer(self._state), {
            "user": self._state.users.copy(),
            "action_mask": self.action_masks(),
        }

    def step(
        self, actions: ArrayLike
    ) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Shows one item in every session; sessions that end start anew.

        Args:
            actions: (num_envs,) item indices.

        Returns:
            Observations, rewards, terminated, truncated and infos, as described for the class.
        """
        if not self._generators:
            raise DataError("step came before reset; call reset() first.")
        items = np.asarray(actions)
        if items.shape != (self.num_envs,) or items.dtype.kind not in "iu":
            raise DataError(
                f"actions came as {items.dtype} with shape {items.shape}; give one item index for "
                f"each of the {self.num_envs} sessions."
            )
        if items.min() < 0 or items.max() >= self.dynamics.n_items:
            raise DataError(
                f"actions hold {items.min()} to {items.max()}; item indices run from 0 to "
                f"{self.dynamics.n_items - 1}."
            )
        outcome = self.dynamics.step(self._state, items)
        infos: dict[str, Any] = {
            "title": self.dynamics.titles[items],
            "categories": self.dynamics.category_names[items],
            "ended_by": self.dynamics.ending_names[outcome.ended_by],
        }
        if outcome.ended_by.any():
            self._restart(outcome, infos)
        self._mask = None
        infos["action_mask"] = self.action_masks()
        return (
            self.observer(self._state),
            outcome.rewards,
            outcome.terminated,
            outcome.truncated,
            infos,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Returns (num_envs, n_items), read-only: True where an item was not yet shown."""
        if self._mask is None:
            self._mask = self._state.mask.copy()
            self._mask.flags.writeable = False
        return self._mask

    def replay(self, sessions: Sequence[Session]) -> list[Trajectory]:
        """Re-runs recorded sessions and leaves the running ones alone; see `Dynamics.replay`."""
        return self.dynamics.replay(sessions, observe=self.observer.flat)

    def demonstrations(self, n_sessions: int = 200, seed: int = 0) -> list[Trajectory]:
        """Returns the dataset's demonstrations; see `recsim_env.demonstrations`."""
        return demonstrations(self.observer, n_sessions=n_sessions, seed=seed)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Returns the running sessions and random states as arrays, for `load_state_dict`."""
        arrays = self.dynamics.state_arrays(self._state)
        arrays["drawn_users"] = self._users.copy()
        arrays["drawn"] = self._drawn.copy()
        states = [generator.bit_generator.state for generator in self._generators]
        arrays["generators"] = np.frombuffer(json.dumps(states).encode(), np.uint8).copy()
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """Takes back what `state_dict` gave, and returns the observations of the running sessions.

        Args:
            arrays: From an environment of the same dataset, rules and ``num_envs``.

        Raises:
            DataError: For another number of sessions or another catalogue.
        """
        if len(arrays["steps"]) != self.num_envs:
            raise DataError(
                f"{len(arrays['steps'])} stored sessions came for an environment of "
                f"{self.num_envs}; make it with the same num_envs."
            )
        if arrays["mask"].shape[1] != self.dynamics.n_items:
            raise DataError(
                f"stored sessions over {arrays['mask'].shape[1]} items came for a catalogue of "
                f"{self.dynamics.n_items}; make the environment with the same dataset."
            )
        self._state = self.dynamics.state_from_arrays(arrays)
        self._mask = None
        self._users = np.array(arrays["drawn_users"])
        self._drawn = np.array(arrays["drawn"])
        self._generators = []
        for stored in json.loads(np.asarray(arrays["generators"], np.uint8).tobytes()):
            generator = np.random.default_rng()
            generator.bit_generator.state = stored
            self._generators.append(generator)
        return self.observer(self._state)

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is held open."""

    def _restart(self, outcome: StepResult, infos: dict[str, Any]) -> None:
        done = outcome.ended_by > 0
        rows = np.flatnonzero(done)
        infos["final_obs"] = self.observer(self._state)
        infos["final_mask"] = self._state.mask.copy()
        infos["_final_obs"] = infos["_final_mask"] = done
        self.dynamics.initial(self._state, rows, self._next_users(rows))

    def _next_users(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        empty = rows[self._drawn[rows] >= self._users.shape[1]]
        for row in empty.tolist():
            self._users[row] = self.dynamics.draw_users(self._generators[row])
            self._drawn[row] = 0
        users = self._users[rows, self._drawn[rows]]
        self._drawn[rows] += 1
        return users

    def _start_from_options(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        n = len(rows)
        users = np.atleast_1d(np.asarray(options.get("users", np.full(n, -1))))
        histories = options.get("histories")
        if len(users) != n or (histories is not None and len(histories) != n):
            raise DataError(
                f"options came for {len(users)} users and "
                f"{len(histories) if histories is not None else 0} histories; give {n} of each."
            )
        if histories is None:
            self.dynamics.initial(self._state, rows, self.dynamics.known_users(users))
        else:
            self.dynamics.initial_from_history(self._state, rows, histories, users)

    def _seeds(self, seed: int | Sequence[int] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + k for k in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise DataError(f"{len(seed)} seeds came for {self.num_envs} sessions; give one each.")
        return [int(s) for s in seed]
