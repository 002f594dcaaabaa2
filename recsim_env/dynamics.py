"""The session dynamics: batched, written once.

`RecEnv` is the view of one session, `RecVectorEnv` of many; planners, replays and collectors use
`Dynamics` itself.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsim_env.errors import DataError
from recsim_env.feedback import Feedback, updated_beliefs
from recsim_env.prepare import Prepared, Session, user_vector_for
from recsim_env.termination import CategoryDiversity, Rule, RuleContext
from recsim_env.trajectories import Trajectory

__all__ = [
    "Dynamics",
    "ItemContext",
    "ObservationLayout",
    "RewardModel",
    "Split",
    "State",
    "StepResult",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Split = Literal["train", "test"]

_STATE_ARRAYS = ("users", "user_vectors", "beliefs", "shown", "steps", "counts", "mask")
_DRAWS = 64  # users drawn at a time, so that many sessions do not each pay for a generator call


@dataclass(frozen=True)
class ObservationLayout:
    """Where the parts of a flat observation lie.

    Attributes:
        tracker: Slice of the state tracker's output.
        user: Slice of the user vector (coordinates in ``ItemContext.user_basis``).
        categories: Slice of the category counts in the rule's window, divided by ``count_scale``.
        step: Slice (one number) of the items shown so far over the limit.
        recent: Slice of the last items shown, the newest first, as ``(index + 1) / n_items``, and 0
            where there is none; empty unless a rule compares an item with the last ones.
        count_scale: What the counts were divided by.
        limit: The length limit, in items.
    """

    tracker: slice
    user: slice
    categories: slice
    step: slice
    recent: slice
    count_scale: float
    limit: int

    @property
    def size(self) -> int:
        """Length of the flat observation."""
        return int(self.recent.stop)

    @property
    def n_recent(self) -> int:
        """How many of the last items are told."""
        return int(self.recent.stop - self.recent.start)

    def parts(self) -> dict[str, slice]:
        """Returns the slices by name, in order; those that are empty are left out."""
        parts = {
            "tracker": self.tracker,
            "user": self.user,
            "categories": self.categories,
            "step": self.step,
            "recent": self.recent,
        }
        return {name: part for name, part in parts.items() if part.stop > part.start}


@dataclass(frozen=True)
class ItemContext:
    """What an environment tells about its items, so that any algorithm can use the same heads.

    It says nothing of the session-end rule. Predicted rewards of the *train* world model follow
    from it: ``user_offset + observation[user] @ user_basis.T``, (n, n_items), up to the rank of the
    basis.

    Attributes:
        layout: The parts of the observation.
        categories: (n_items, n_categories) multi-hot.
        text: (n_items, d) text embeddings, rows of norm 1.
        user_basis: (n_items, K) principal item directions of the train model's predicted rewards.
        user_offset: (n_items,) the items' mean predicted rewards.
        user_scale: (K,) standard deviation of the known users' vectors.
        support: (n_items,) how many ratings of each item the train model was fitted on.
        rating_spread: Standard deviation of the ratings of one and the same item, in stars, pooled.
        history_matters: Whether what follows may depend on the items of the session in a way that
            the counts of categories and the step do not tell, so that the tracker has to.
    """

    layout: ObservationLayout
    categories: FloatArray
    text: FloatArray
    user_basis: FloatArray
    user_offset: FloatArray
    user_scale: FloatArray
    support: FloatArray
    rating_spread: float = 1.0
    history_matters: bool = True

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.categories)


@dataclass
class State:
    """n sessions; arrays are changed in place.

    Attributes:
        users: (n,) user index, -1 for an unknown user.
        user_vectors: (n, K) user vector.
        beliefs: (n, K, K) covariance of what is not known about it; (n, 0, 0) without `Feedback`.
        shown: (n, limit) items shown in the session, oldest first.
        steps: (n,) items shown so far.
        counts: (n, n_categories) category counts over the last ``window - 1`` items.
        mask: (n, n_items) True where the item was not shown in this session.
        tracker: State of the state tracker.
        reward_rows: Per session the rewards of all items where the user is unknown or has another
            history.
        histories: Items before the session.
    """

    users: IntArray
    user_vectors: FloatArray
    beliefs: FloatArray
    shown: IntArray
    steps: IntArray
    counts: FloatArray
    mask: BoolArray
    tracker: dict[str, NDArray[Any]]
    reward_rows: dict[int, FloatArray] = field(default_factory=dict)
    histories: list[IntArray | None] = field(default_factory=list)


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step of n sessions.

    Attributes:
        rewards: (n,) float32 in [1, 5], or what the reward model says.
        terminated: (n,) a rule ended the session.
        truncated: (n,) the length limit cut the session (and no rule ended it).
        ended_by: (n,) 0 while it goes on, k for rule number k (from 1), one more than the rules for
            the limit.
    """

    rewards: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    ended_by: NDArray[np.int8]


class RewardModel(Protocol):
    """What a learner is told that it earned, in place of the reward itself.

    Model-based methods make their own: the world model's mean less its uncertainty, say.
    """

    @property
    def name(self) -> str:
        """A short name with all settings that matter: it is part of `Dynamics.fingerprint`."""

    def __call__(self, dynamics: Dynamics, state: State, items: IntArray) -> FloatArray:
        """Returns (n,) float32 for showing ``items``; called before the state moves on."""


def spread_within(items: IntArray, ratings: FloatArray) -> float:
    r"""How much ratings of one and the same item differ, :math:`\sqrt{SS_w / (N - n)}`.

    :math:`SS_w` is the sum of squared distances of N ratings to the means of their n items.

    Args:
        items: (N,) items.
        ratings: (N,) their ratings.

    Returns:
        The standard deviation in the unit of the ratings; that of all ratings where no item has
        two.
    """
    values = np.asarray(ratings, np.float64)
    counts = np.bincount(items)
    freedom = len(values) - int((counts > 0).sum())
    if freedom == 0:
        return float(values.std()) if len(values) else 0.0
    means = np.bincount(items, values) / np.maximum(counts, 1)
    return float(np.sqrt(np.sum((values - means[items]) ** 2) / freedom))


class Dynamics:
    """Batched session dynamics over a prepared dataset.

    Observations are built from what a recommender may know (train model, state tracker); rewards
    come from the world model of ``split``, so a policy trained on ``"train"`` is evaluated on a
    model fitted on other interactions.

    Args:
        prepared: The prepared dataset.
        split: Whose rewards: ``"train"`` or ``"test"``.
        rules: Session-end rules, asked in order.
        limit: Length limit in items; reaching it truncates.
        table: (n_users, n_items) rewards in [1, 5] in place of the world model's, such as a
            complete rating matrix; sessions that start from a given history keep the world model's.
        reward_model: What a step says was earned, in place of the reward. Rules and planners go by
            the reward all the same.
        repeats: Whether the masks leave items that were shown in the session; then `Repeat` has no
            place among the rules.
        feedback: Updates the user vectors of the observations with the session's rewards; None
            leaves them as they were at its start.

    Raises:
        DataError: For a split, a limit, a table or a feedback that does not fit.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        split: Split,
        rules: Sequence[Rule],
        limit: int = 100,
        table: FloatArray | None = None,
        reward_model: RewardModel | None = None,
        repeats: bool = False,
        feedback: Feedback | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise DataError(f"split={split!r} is not known; use 'train' or 'test'.")
        if limit < 1:
            raise DataError(f"limit={limit} is too small; a session needs at least 1 item.")
        self.prepared = prepared
        self.split: Split = split
        self.rules = tuple(rules)
        self.limit = limit
        self.reward_model = reward_model
        self.repeats = repeats
        width = prepared.user_basis.shape[1]
        if feedback is not None and len(feedback.covariance) != width:
            raise DataError(
                f"Feedback.covariance has shape {feedback.covariance.shape}, expected "
                f"{(width, width)}: the user vectors of {prepared.dataset.name!r} have {width} "
                "numbers."
            )
        self.feedback = feedback
        self.ending_names = np.array(["", *(rule.name for rule in self.rules), "limit"], object)
        catalogue = prepared.dataset.catalogue
        self.n_items = prepared.dataset.n_items
        self.n_users = prepared.dataset.n_users
        self.categories: FloatArray = np.ascontiguousarray(catalogue.category_matrix, np.float32)
        self.text: FloatArray = np.ascontiguousarray(prepared.text_embeddings, np.float32)
        self.titles = np.array(catalogue.titles, object)
        self.category_names = np.empty(self.n_items, object)
        self.category_names[:] = catalogue.categories
        category_rules = [rule for rule in self.rules if isinstance(rule, CategoryDiversity)]
        self.window = category_rules[0].window if category_rules else limit
        scale = float(category_rules[0].max_repeats) if category_rules else 4.0
        self.n_recent = max((int(getattr(rule, "recent", 0)) for rule in self.rules), default=0)
        widths = (
            prepared.tracker.dim,
            prepared.user_basis.shape[1],
            self.categories.shape[1],
            1,
            self.n_recent,
        )
        tracker, user, counts, step, recent = (
            slice(end - width, end)
            for width, end in zip(widths, itertools.accumulate(widths), strict=True)
        )
        self.layout = ObservationLayout(tracker, user, counts, step, recent, scale, limit)
        self._belief: FloatArray = (
            np.zeros((0, 0), np.float32) if feedback is None else feedback.covariance
        )
        self.has_own_table = table is not None
        self._table = self._checked_table(table) if table is not None else prepared.rows(split)
        self._histories = prepared.histories()
        self._start = prepared.tracker.initial(self._histories)
        self._all_rows = np.arange(0)
        logged = prepared.dataset.interactions
        items, ratings = logged.items[prepared.train_rows], logged.ratings[prepared.train_rows]
        self.support: FloatArray = np.bincount(items, minlength=self.n_items).astype(np.float32)
        self.rating_spread = spread_within(items.astype(np.int64), ratings)

    @property
    def history_matters(self) -> bool:
        """Whether rules or reward model may look at more of a session than counts and step tell.

        Rewards themselves do not depend on what was shown before. Rules and reward models that do
        not deny it (by an attribute ``needs_history``) are taken to look at all of it.
        """
        parts = [*self.rules, *([] if self.reward_model is None else [self.reward_model])]
        return any(bool(getattr(part, "needs_history", True)) for part in parts)

    @property
    def item_context(self) -> ItemContext:
        """What a policy may know about the items."""
        return ItemContext(
            layout=self.layout,
            categories=self.categories,
            text=self.text,
            user_basis=self.prepared.user_basis,
            user_offset=self.prepared.user_offset,
            user_scale=self.prepared.user_vectors.std(axis=0),
            support=self.support,
            rating_spread=self.rating_spread,
            history_matters=self.history_matters,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash (sha256 hex) of all that decides what happens to whom: data, models and rules."""
        table = self._table if self.has_own_table else None
        parts = {
            "prepared": self.prepared.fingerprint,
            "contents": self.prepared.contents,
            "split": self.split,
            "rules": [_describe(rule) for rule in self.rules],
            "limit": self.limit,
            "table": None if table is None else hashlib.sha256(table.tobytes()).hexdigest(),
            "repeats": self.repeats,
            "reward_model": None if self.reward_model is None else self.reward_model.name,
        }
        if self.feedback is not None:
            told = self.feedback
            parts["feedback"] = [
                hashlib.sha256(told.covariance.tobytes()).hexdigest(),
                told.noise,
            ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_reward_model(self, reward_model: RewardModel | None) -> Dynamics:
        """Returns the same dynamics with another reward model; tables and tracker are shared."""
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other.reward_model = reward_model
        return other

    def draw_users(self, generator: np.random.Generator) -> IntArray:
        """Returns the next block of users of one session slot, uniform over the known users."""
        return generator.integers(self.n_users, size=_DRAWS)

    def known_users(self, users: ArrayLike) -> IntArray:
        """Returns the indices as an array, having checked that each is a known user."""
        array = self._checked_users(users)
        if (array < 0).any():
            raise DataError(
                "an unknown user (-1) came without a history; give `history`, which may be empty."
            )
        return array

    def history_of(self, user: int) -> IntArray:
        """Returns the item indices of a known user's train interactions, oldest first."""
        return self._histories[user]

    def allocate(self, n: int) -> State:
        """Returns n sessions that still have to be started with `initial`."""
        tracker = {k: np.zeros((n, *v.shape[1:]), v.dtype) for k, v in self._start.items()}
        return State(
            users=np.zeros(n, np.int64),
            user_vectors=np.zeros((n, self.prepared.user_basis.shape[1]), np.float32),
            beliefs=np.zeros((n, *self._belief.shape), np.float32),
            shown=np.zeros((n, self.limit), np.int64),
            steps=np.zeros(n, np.int64),
            counts=np.zeros((n, self.categories.shape[1]), np.float32),
            mask=np.ones((n, self.n_items), bool),
            tracker=tracker,
            histories=[None] * n,
        )

    def initial(self, state: State, rows: IntArray, users: IntArray) -> None:
        """Starts sessions of known users.

        Args:
            state: Changed in place.
            rows: (m,) which sessions.
            users: (m,) user indices.
        """
        state.users[rows] = users
        state.user_vectors[rows] = self.prepared.user_vectors[users]
        for name, values in self._start.items():
            state.tracker[name][rows] = values[users]
        self._clear(state, rows)
        if state.reward_rows:
            for row in rows.tolist():
                state.reward_rows.pop(row, None)
                state.histories[row] = None

    def initial_from_history(
        self, state: State, rows: IntArray, histories: Sequence[ArrayLike], users: ArrayLike
    ) -> None:
        """Starts sessions from given histories, of known or unknown users.

        Args:
            state: Changed in place.
            rows: (m,) which sessions.
            histories: Per session the item indices before it, oldest first; may be empty.
            users: (m,) user indices, -1 for unknown users.

        Raises:
            DataError: For an item or a user that is not in the dataset.
        """
        known = [self._checked_items(history, "history") for history in histories]
        users_ = self._checked_users(users)
        state.users[rows] = users_
        state.user_vectors[rows] = user_vector_for(self.prepared, known, users=users_)
        for name, values in self.prepared.tracker.initial(known).items():
            state.tracker[name][rows] = values
        rewards = self.prepared.rows(self.split, users=users_, histories=known)
        for k, row in enumerate(rows.tolist()):
            state.reward_rows[row] = rewards[k]
            state.histories[row] = known[k]
        self._clear(state, rows)

    def reward(self, state: State, items: IntArray) -> FloatArray:
        """Returns (n,) rewards of showing ``items``, in [1, 5]."""
        rewards = self._table[state.users, items]
        for row, values in state.reward_rows.items():
            rewards[row] = values[items[row]]
        return rewards

    def reward_table(self, state: State) -> FloatArray:
        """Returns (n, n_items) the rewards of every item for every session."""
        table = self._table[state.users]
        for row, values in state.reward_rows.items():
            table[row] = values
        return table

    def context(self, state: State, items: IntArray, rewards: FloatArray) -> RuleContext:
        """Returns what the rules look at when ``items`` are shown."""
        return RuleContext(
            items=items,
            rewards=rewards,
            shown=state.shown,
            steps=state.steps,
            mask=state.mask,
            categories=self.categories,
            text=self.text,
            counts=state.counts,
            counts_window=self.window,
            rows=self._rows(len(items)),
        )

    def terminal(self, state: State, items: IntArray, rewards: FloatArray) -> NDArray[np.int8]:
        """Returns (n,) the number (from 1) of the first rule that ends a session, 0 where none."""
        ended = np.zeros(len(items), np.int8)
        context = self.context(state, items, rewards)
        for number in range(len(self.rules), 0, -1):
            fires = self.rules[number - 1](context)
            if fires.shape != ended.shape or fires.dtype != np.bool_:
                raise DataError(
                    f"the rule {self.rules[number - 1].name!r} gave {fires.dtype} of shape "
                    f"{fires.shape}; return one bool for each of the {len(items)} sessions."
                )
            ended[fires] = number
        return ended

    def transition(self, state: State, items: IntArray) -> None:
        """Shows ``items``: history, category counts, mask and tracker move on, in place."""
        rows = self._rows(len(items))
        state.shown[rows, state.steps] = items
        state.counts += self.categories[items]
        if self.window <= self.limit:
            leaving = state.steps - (self.window - 1)
            old = (leaving >= 0).nonzero()[0]
            if len(old):
                state.counts[old] -= self.categories[state.shown[old, leaving[old]]]
        if not self.repeats:
            state.mask[rows, items] = False
        state.steps += 1
        state.tracker = self.prepared.tracker.advance(state.tracker, items)

    def step(self, state: State, items: IntArray) -> StepResult:
        """Shows one item in every session: reward, rules, transition.

        Args:
            state: Changed in place. Sessions that end stay as they are until they are started
                again.
            items: (n,) item indices in [0, n_items).
        """
        rewards = self.reward(state, items)
        ended = self.terminal(state, items, rewards)
        learned = rewards
        if self.reward_model is not None:
            rewards = self.reward_model(self, state, items)
        self.transition(state, items)
        if self.feedback is not None:
            self._learn(state, items, learned, self.feedback.noise)
        terminated = ended > 0
        over = state.steps >= self.limit
        if self.n_items < self.limit and state.steps.max() >= self.n_items:
            over |= ~state.mask.any(axis=1)
        truncated = over & ~terminated
        ended[truncated] = len(self.rules) + 1
        return StepResult(rewards, terminated, truncated, ended)

    def _learn(self, state: State, items: IntArray, rewards: FloatArray, noise: float) -> None:
        """Updates what is believed about the users, in place."""
        columns = self.prepared.user_basis[items]
        expected = self.prepared.user_offset[items] + (state.user_vectors * columns).sum(axis=1)
        state.user_vectors, state.beliefs = updated_beliefs(
            state.user_vectors, state.beliefs, columns, rewards - expected, noise
        )

    def observe(self, state: State) -> FloatArray:
        """Returns (n, layout.size) float32 observations."""
        layout = self.layout
        observation = np.empty((len(state.steps), layout.size), np.float32)
        observation[:, layout.tracker] = self.prepared.tracker.output(state.tracker)
        observation[:, layout.user] = state.user_vectors
        np.multiply(
            state.counts,
            np.float32(1.0 / layout.count_scale),
            out=observation[:, layout.categories],
        )
        observation[:, layout.step] = (state.steps / np.float32(self.limit))[:, None]
        if self.n_recent:
            newest = self.recent_items(state, self.n_recent)
            observation[:, layout.recent] = (newest + 1) / np.float32(self.n_items)
        return observation

    def recent_items(self, state: State, n_recent: int) -> IntArray:
        """Returns (n, n_recent) the last items shown, the newest first, -1 where there is none."""
        position = state.steps[:, None] - np.arange(1, n_recent + 1)[None, :]
        shown = state.shown[self._rows(len(state.steps))[:, None], np.maximum(position, 0)]
        return np.where(position >= 0, shown, -1)

    def replay(
        self,
        sessions: Sequence[Session],
        *,
        observe: Callable[[State], FloatArray] | None = None,
        chunk: int = 512,
    ) -> list[Trajectory]:
        """Re-runs recorded sessions under this world model and these rules.

        A session is cut where a rule or the limit ends it here; where its actions run out before
        that, the trajectory is truncated.

        Args:
            sessions: What was shown to whom.
            observe: Gives (n, d) observations of a state; `observe` where None.
            chunk: How many sessions run at a time.

        Returns:
            One trajectory per session that has at least one action, in order.
        """
        useful = [session for session in sessions if len(session.actions)]
        result: list[Trajectory] = []
        for start in range(0, len(useful), chunk):
            result.extend(
                self._replay_chunk(useful[start : start + chunk], observe or self.observe)
            )
        return result

    def _replay_chunk(
        self, sessions: Sequence[Session], observe: Callable[[State], FloatArray]
    ) -> list[Trajectory]:
        n = len(sessions)
        actions = [self._checked_items(session.actions, "actions") for session in sessions]
        state = self.allocate(n)
        self._start_sessions(state, sessions)
        longest = min(self.limit, max(len(a) for a in actions))
        first = observe(state)
        observations = np.zeros((n, longest + 1, first.shape[1]), np.float32)
        masks = np.zeros((n, longest + 1, (self.n_items + 7) // 8), np.uint8)
        rewards = np.zeros((n, longest), np.float32)
        ended_by = np.zeros((n, longest), np.int8)
        observations[:, 0] = first
        masks[:, 0] = np.packbits(state.mask, axis=1)
        for t in range(longest):
            items = np.array([a[t] if t < len(a) else a[-1] for a in actions], np.int64)
            outcome = self.step(state, items)
            rewards[:, t], ended_by[:, t] = outcome.rewards, outcome.ended_by
            observations[:, t + 1] = observe(state)
            masks[:, t + 1] = np.packbits(state.mask, axis=1)
        result = []
        for k, session in enumerate(sessions):
            ends = np.flatnonzero(ended_by[k, : len(actions[k])])
            length = int(ends[0]) + 1 if len(ends) else min(len(actions[k]), longest)
            terminated = bool(len(ends)) and bool(ended_by[k, length - 1] <= len(self.rules))
            result.append(
                Trajectory(
                    observations=observations[k, : length + 1].copy(),
                    actions=actions[k][:length].copy(),
                    rewards=rewards[k, :length].copy(),
                    terminated=terminated,
                    truncated=not terminated,
                    user=int(session.user),
                    history=tuple(int(i) for i in session.history),
                    source=session.source,
                    action_masks=masks[k, : length + 1].copy(),
                    n_actions=self.n_items,
                    extras={
                        name: list(values[:length])
                        for name, values in session.extras.items()
                        if isinstance(values, (list, tuple)) and len(values) >= length
                    },
                )
            )
        return result

    def state_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        """Returns a copy of a state as plain arrays, for `state_from_arrays`."""
        given = np.array(sorted(state.reward_rows), np.int64)
        histories = [state.histories[row] for row in given.tolist()]
        known = [np.empty(0, np.int64) if history is None else history for history in histories]
        arrays = {name: getattr(state, name).copy() for name in _STATE_ARRAYS}
        arrays.update({f"tracker.{name}": a.copy() for name, a in state.tracker.items()})
        arrays["given"] = given
        arrays["given_rewards"] = np.array(
            [state.reward_rows[row] for row in given.tolist()], np.float32
        ).reshape(len(given), self.n_items)
        arrays["given_lengths"] = np.array([len(history) for history in known], np.int64)
        arrays["given_items"] = np.concatenate([np.empty(0, np.int64), *known])
        return arrays

    def state_from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> State:
        """Returns the state that `state_arrays` described."""
        state = self.allocate(len(arrays["steps"]))
        for name in _STATE_ARRAYS:
            setattr(state, name, np.array(arrays[name]))
        prefix = "tracker."
        state.tracker = {
            name[len(prefix) :]: np.array(values)
            for name, values in arrays.items()
            if name.startswith(prefix)
        }
        ends = np.cumsum(arrays["given_lengths"])
        for k, row in enumerate(np.asarray(arrays["given"]).tolist()):
            start = int(ends[k] - arrays["given_lengths"][k])
            state.reward_rows[row] = np.array(arrays["given_rewards"][k])
            state.histories[row] = np.array(arrays["given_items"][start : int(ends[k])])
        return state

    def _start_sessions(self, state: State, sessions: Sequence[Session]) -> None:
        own = [k for k, s in enumerate(sessions) if s.user >= 0 and not len(s.history)]
        given = [k for k, s in enumerate(sessions) if s.user < 0 or len(s.history)]
        if own:
            users = self._checked_users([sessions[k].user for k in own])
            self.initial(state, np.array(own), users)
        if given:
            self.initial_from_history(
                state,
                np.array(given),
                [np.asarray(sessions[k].history, np.int64) for k in given],
                [sessions[k].user for k in given],
            )

    def _clear(self, state: State, rows: IntArray) -> None:
        state.steps[rows] = 0
        state.counts[rows] = 0.0
        state.mask[rows] = True
        state.beliefs[rows] = self._belief

    def _checked_table(self, table: FloatArray) -> FloatArray:
        array = np.ascontiguousarray(table, np.float32)
        shape = (self.prepared.dataset.n_users, self.prepared.dataset.n_items)
        if array.shape != shape or not np.isfinite(array).all():
            raise DataError(
                f"A reward table of shape {array.shape} came, expected finite numbers of shape "
                f"{shape}: one row per user and one column per item of the dataset."
            )
        return array

    def _rows(self, n: int) -> IntArray:
        if len(self._all_rows) != n:
            self._all_rows = np.arange(n)
        return self._all_rows

    def _checked_items(self, items: ArrayLike, what: str) -> IntArray:
        array = np.asarray(items)
        if array.size == 0:
            return np.empty(0, np.int64)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise DataError(
                f"{what} came as {array.dtype} with shape {array.shape}; give a flat list of item "
                "indices."
            )
        if array.min() < 0 or array.max() >= self.n_items:
            bad = array[(array < 0) | (array >= self.n_items)][0]
            raise DataError(
                f"{what} holds the item {bad}, but the catalogue of "
                f"{self.prepared.dataset.name!r} has the indices 0 to {self.n_items - 1}; map your "
                "ids with `catalogue.index(...)`."
            )
        return array.astype(np.int64)

    def _checked_users(self, users: ArrayLike) -> IntArray:
        array = np.atleast_1d(np.asarray(users))
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise DataError(
                f"users came as {array.dtype} with shape {array.shape}; give user indices, such as "
                "`dataset.user_ids.index(...)`."
            )
        if array.size and (array.min() < -1 or array.max() >= self.n_users):
            bad = array[(array < -1) | (array >= self.n_users)][0]
            raise DataError(
                f"user {bad} came, but {self.prepared.dataset.name!r} has the indices 0 to "
                f"{self.n_users - 1}, and -1 for an unknown user; give one of these."
            )
        return array.astype(np.int64)


def _describe(rule: Rule) -> list[str]:
    """Returns the kind of a rule and its plain settings; arrays count by their hash."""
    kind = f"{type(rule).__module__}.{type(rule).__qualname__}"
    values = [kind, rule.name]
    for name, value in sorted(getattr(rule, "__dict__", {}).items()):
        if isinstance(value, np.ndarray):
            value = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        values.append(f"{name}={value}")
    return values
