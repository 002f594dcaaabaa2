"""One session at a time: the Gymnasium view of the dynamics."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from recsim_env.datasets import Dataset
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics, ItemContext, Split
from recsim_env.errors import DataError, near_miss
from recsim_env.prepare import Prepared, Session
from recsim_env.simulator import ObservationMode, Observer, make_dynamics
from recsim_env.termination import Rule
from recsim_env.trajectories import Trajectory

__all__ = ["RecEnv"]

_METADATA: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}


class RecEnv(gym.Env[Any, np.int64]):
    """A user visits, items are recommended one by one, and the user leaves when bored.

    This text is the specification of the environments ``IlRecSteam-v0``, ``IlRecAmazon-v0``,
    ``IlRecCoat-v0``, ``IlRecMovieLens-v0``, ``IlRecSynthetic-v0`` and ``IlRecCustom-v0``; they
    differ in the dataset alone.

    **Observation.** What a recommender may know, as one ``Box`` of float32 (``obs_mode="vector"``);
    its parts by name as a ``Dict`` (``"dict"``); or the ids of the last items (``"sequence"``:
    int64, the user's history and the items of this session, padded on the left with ``n_items``).

    ============== ============ ============ ======================================================
    part           size         range        meaning
    ============== ============ ============ ======================================================
    ``tracker``    H            (-inf, inf)  state tracker (GRU or SASRec) over history and session
    ``user``       K            (-inf, inf)  user vector: the coordinates of the train model's
                                             predicted rewards of this user; a fold-in from the
                                             history if unknown
    ``categories`` n_categories [0, inf)     how often each category occurs among the last N - 1
                                             items of the session, divided by M (N, M: the
                                             category rule)
    ``step``       1            [0, 1]       items shown so far over the length limit
    ``recent``     W            [0, 1]       the last W items, the newest first, as (index + 1) /
                                             n_items, 0 where there is none; only where a rule
                                             compares an item with the last W (``"similarity"``,
                                             ``"billp"``)
    ============== ============ ============ ======================================================

    **Action.** ``Discrete(n_items)``: the item of the catalogue to show.

    **Reward.** The user's predicted rating of the item, in [1, 5], by the world model of ``split``,
    the item that ends a session included. ``"train"`` and ``"test"`` are fitted on disjoint
    interactions; the observation comes from the train model in both.

    **Start.** A user drawn uniformly, with the history of the train interactions.
    ``reset(options={"user": u})`` takes user u; ``reset(options={"history": [...]})`` an unknown
    user with this history (item indices, oldest first); both together a known user with another
    history.

    **Session end.** *Terminated*: one of the rules fires for the item shown. By default the user
    leaves when, with the current item counted, one of its categories occurs M times among the last
    N items of the session (Steam and synthetic: N=50, M=4; the others: N=15, M=4; IL-Rec, section
    V-A3), or when an item is shown a second time. *Truncated*: the session reaches ``limit`` items
    (100), or every item of the catalogue was shown, and no rule fired.

    **Masks.** ``action_masks()`` is False for what this session has already shown. It never
    excludes what a rule would punish: that is for the agent to learn.

    **Info.** ``reset``: ``user``, ``action_mask``. ``step``: ``title``, ``categories``,
    ``ended_by`` (name of the rule that ended the session, ``"limit"``, or ``""``), ``action_mask``.

    **Rendering.** ``render_mode="ansi"``: the session so far as a table.

    **Versions.** v0: first.

    Args:
        dataset: A name (`recsim_env.datasets.names`), a dataset, or a prepared dataset.
        dynamics: Ready dynamics; instead of the other arguments about the simulation.
        split: Whose rewards: ``"train"`` or ``"test"``.
        termination: ``"category"``, ``"billp"``, ``"similarity"``, ``"none"``, a rule or several
            (`recsim_env.termination`).
        window: N of the category rule, instead of the dataset's preset.
        max_repeats: M of the category rule, instead of the dataset's preset.
        repeat: Whether showing an item twice ends the session.
        limit: Length limit, in items.
        obs_mode: ``"vector"``, ``"dict"`` or ``"sequence"``.
        sequence_length: Length of the id sequence for ``obs_mode="sequence"``.
        data: Folder with the raw data; else ``ILREC_DATA``, else the user cache directory.
        cache: Folder for prepared artefacts; else ``ILREC_CACHE``, else the user cache directory.
        fallback: Take the synthetic dataset, with one warning, where the data are not there.
        progress: Show progress bars while a dataset is prepared for the first time.
        options: Options of the dataset, such as ``{"min_user": 10}``.
        render_mode: ``"ansi"`` or None.

    Raises:
        DataError: For names, options, items or users that are not known.
        MissingDataError: Where the data are not there and ``fallback`` is off.
    """

    metadata = _METADATA

    def __init__(
        self,
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
        if render_mode not in (None, "ansi"):
            raise DataError(f"render_mode={render_mode!r} came; use 'ansi' or None.")
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
        self.render_mode = render_mode
        self.observer = Observer(self.dynamics, obs_mode, sequence_length)
        self.observation_space = self.observer.space
        self.action_space = spaces.Discrete(self.dynamics.n_items)
        self._state = self.dynamics.allocate(1)
        self._row = np.zeros(1, np.int64)
        self._item = np.zeros(1, np.int64)
        self._users = np.zeros(0, np.int64)
        self._drawn = 0
        self._running = False
        self._log: list[tuple[int, float, str]] = []

    @property
    def item_context(self) -> ItemContext:
        """What a policy may know about the items and the observation."""
        return self.dynamics.item_context

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts a session; see the class for ``options``."""
        super().reset(seed=seed)
        if seed is not None:
            self._users, self._drawn = self._users[:0], 0
        options = {name: value for name, value in (options or {}).items() if value is not None}
        unknown = sorted(set(options) - {"user", "history"})
        if unknown:
            raise DataError(
                f"reset got the option {unknown[0]!r}; "
                f"{near_miss(unknown[0], ('user', 'history'))}."
            )
        if "history" in options:
            self.dynamics.initial_from_history(
                self._state, self._row, [options["history"]], [options.get("user", -1)]
            )
        elif "user" in options:
            users = self.dynamics.known_users([options["user"]])
            self.dynamics.initial(self._state, self._row, users)
        else:
            self.dynamics.initial(self._state, self._row, self._next_user())
        self._running = True
        self._log.clear()
        return self._first(self.observer(self._state)), {
            "user": int(self._state.users[0]),
            "action_mask": self._state.mask[0].copy(),
        }

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Shows the item ``action``; see the class for what comes back."""
        if not self._running:
            raise DataError(
                "step came before reset or after the session's end; call reset() first."
            )
        try:
            item = operator.index(action)
        except TypeError:
            item = -1
        if not 0 <= item < self.dynamics.n_items:
            raise DataError(
                f"action {action!r} came; give an item index from 0 to {self.dynamics.n_items - 1}."
            )
        self._item[0] = item
        outcome = self.dynamics.step(self._state, self._item)
        code = int(outcome.ended_by[0])
        ended_by = str(self.dynamics.ending_names[code])
        reward = float(outcome.rewards[0])
        self._running = code == 0
        if self.render_mode is not None:
            self._log.append((item, reward, ended_by))
        info = {
            "title": self.dynamics.titles[item],
            "categories": self.dynamics.category_names[item],
            "ended_by": ended_by,
            "action_mask": self._state.mask[0].copy(),
        }
        return (
            self._first(self.observer(self._state)),
            reward,
            bool(outcome.terminated[0]),
            bool(outcome.truncated[0]),
            info,
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Returns (n_items,) True where an item was not yet shown in this session."""
        mask: NDArray[np.bool_] = self._state.mask[0].copy()
        return mask

    def replay(
        self, actions: ArrayLike, *, history: ArrayLike | None = None, user: int | None = None
    ) -> Trajectory:
        """Re-runs a recorded session and gives its observations and rewards under this world model.

        Args:
            actions: Item indices in the order in which they were shown.
            history: Item indices before the session; None takes the known user's own.
            user: User index; None or -1 is an unknown user.

        Returns:
            The trajectory, cut where a rule or the limit ends it. The running session is not
            touched.

        Raises:
            DataError: For unknown items or users, or no action at all.
        """
        items = np.asarray(actions)
        if items.size == 0:
            raise DataError("replay got no action; give at least one item index.")
        session = Session(
            user=-1 if user is None else int(user),
            history=() if history is None else tuple(np.asarray(history).tolist()),
            actions=tuple(items.tolist()),
            source="replay",
        )
        return self.dynamics.replay([session], observe=self.observer.flat)[0]

    def demonstrations(self, n_sessions: int = 200, seed: int = 0) -> list[Trajectory]:
        """Returns the dataset's demonstrations; see `recsim_env.demonstrations`."""
        return demonstrations(self.observer, n_sessions=n_sessions, seed=seed)

    def render(self) -> str | None:
        """Returns the session so far as a table (``render_mode="ansi"``)."""
        if self.render_mode is None:
            return None
        user = int(self._state.users[0])
        lines = [
            f"user {user if user >= 0 else 'unknown'} of {self.dynamics.prepared.dataset.name}",
            f"{'step':>4}  {'reward':>6}  {'title':<40}  categories",
        ]
        total = 0.0
        for step, (item, reward, _) in enumerate(self._log, start=1):
            total += reward
            title = " ".join(str(self.dynamics.titles[item]).split())[:40]
            names = ", ".join(self.dynamics.category_names[item])
            lines.append(f"{step:>4}  {reward:>6.2f}  {title:<40}  {names}")
        ended_by = self._log[-1][2] if self._log else ""
        state = f"ended by {ended_by}" if ended_by else "running"
        lines.append(f"{state}: {len(self._log)} items, return {total:.2f}")
        return "\n".join(lines)

    def _first(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {name: values[0] for name, values in observation.items()}
        return observation[0]

    def _next_user(self) -> NDArray[np.int64]:
        if self._drawn >= len(self._users):
            self._users, self._drawn = self.dynamics.draw_users(self.np_random), 0
        self._drawn += 1
        return self._users[self._drawn - 1 : self._drawn]
