"""Policies that need no learning: floor and ceiling of every result table, and an explorer.

Each looks at the batched state and gives one item per session. Which reward table a planner sees
decides what it is: the train model's is what a recommender may know; the test model's makes it an
oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from recsim_env.dynamics import Dynamics, State
from recsim_env.prepare import Prepared, Session
from recsim_env.termination import CategoryDiversity, Repeat, Rule, window_counts

__all__ = [
    "Episodes",
    "Planner",
    "Played",
    "draw_users",
    "explore",
    "explorer",
    "greedy",
    "oracle",
    "popularity",
    "random_policy",
    "rule_aware",
    "run_episodes",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Planner = Callable[[Dynamics, State, np.random.Generator], IntArray]
"""Gives (n,) items for the n sessions of a state."""


@dataclass(frozen=True)
class Episodes:
    """Finished sessions, one entry each.

    Attributes:
        users: (m,) user index.
        lengths: (m,) items shown.
        returns: (m,) undiscounted sum of rewards.
        ended_by: (m,) names of what ended them.
        actions: The items shown, in order.
    """

    users: IntArray
    lengths: IntArray
    returns: FloatArray
    ended_by: tuple[str, ...]
    actions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Played:
    """What somebody played, and what a table of results has to say about it.

    Attributes:
        name: Of the player, as the table names it.
        episodes: Its sessions.
        seconds: Wall time of playing them.
        columns: Further columns of the table, by their heads, as text: ``{"cost": "$0.12"}``.
    """

    name: str
    episodes: Episodes
    seconds: float
    columns: Mapping[str, str] = field(default_factory=dict)


def draw_users(dynamics: Dynamics, n_episodes: int, seed: int | np.random.Generator) -> IntArray:
    """Returns (n_episodes,) the users whose sessions `run_episodes` plays under a seed.

    Args:
        dynamics: Whose users.
        n_episodes: How many sessions.
        seed: Of the draw; a generator is drawn from where it stands.
    """
    return np.random.default_rng(seed).integers(dynamics.n_users, size=n_episodes)


def random_policy(dynamics: Dynamics, state: State, generator: np.random.Generator) -> IntArray:
    """Any item, shown before or not: what an agent without any knowledge does."""
    return generator.integers(dynamics.n_items, size=len(state.steps))


_TRAIN_COUNTS: WeakKeyDictionary[Prepared, IntArray] = WeakKeyDictionary()


def popularity(dynamics: Dynamics, state: State, generator: np.random.Generator) -> IntArray:
    """The item with the most train interactions that was not yet shown; the same for everyone."""
    del generator
    prepared = dynamics.prepared
    if prepared not in _TRAIN_COUNTS:
        items = prepared.dataset.interactions.items[prepared.train_rows]
        _TRAIN_COUNTS[prepared] = np.bincount(items, minlength=dynamics.n_items)
    return np.asarray(np.where(state.mask, _TRAIN_COUNTS[prepared], -1).argmax(axis=1))


def known_rewards(dynamics: Dynamics, state: State) -> FloatArray:
    """Returns (n, n_items) the train model's rewards, as far as the observation tells them."""
    prepared = dynamics.prepared
    return prepared.user_offset + state.user_vectors @ prepared.user_basis.T


def greedy(dynamics: Dynamics, state: State, generator: np.random.Generator) -> IntArray:
    """The item of the highest predicted reward that was not yet shown."""
    del generator
    scores = np.where(state.mask, known_rewards(dynamics, state), -np.inf)
    return np.asarray(scores.argmax(axis=1))


def _avoid_ending(
    dynamics: Dynamics, state: State, rewards: FloatArray, price: FloatArray
) -> IntArray:
    """Returns (n,) the best item that ends no session; the best reward where each would.

    Args:
        dynamics: Whose rules.
        state: n sessions.
        rewards: (n, n_items) what the planner thinks the rewards are.
        price: (n_items,) what is taken off them while the session can go on.
    """
    ends = ending_items(dynamics, state, rewards)
    new = np.where(state.mask, rewards, -np.inf)
    safe = np.where(ends, -np.inf, new - price)
    stuck = np.isneginf(safe).all(axis=1, keepdims=True)
    return np.asarray(np.where(stuck, new, safe).argmax(axis=1))


def ending_items(dynamics: Dynamics, state: State, rewards: FloatArray | None = None) -> BoolArray:
    """Returns (n, n_items) True where showing the item would end the session by a rule.

    The category rule is a matrix product, and a rule with a method ``ends`` (see
    `recsim_env.termination.Rule`) answers for all items at once. Any other rule is asked item by
    item.

    Args:
        dynamics: Whose rules.
        state: n sessions.
        rewards: (n, n_items) what the asker thinks the rewards are; None takes those that the
            environment will give.
    """
    if rewards is None:
        rewards = dynamics.reward_table(state)
    ends = np.zeros(rewards.shape, bool)
    for rule in dynamics.rules:
        ends |= _rule_ends(rule, dynamics, state, rewards)
    return ends


def _rule_ends(rule: Rule, dynamics: Dynamics, state: State, rewards: FloatArray) -> BoolArray:
    """Returns (n, n_items) True where the item would end the session by this rule."""
    if isinstance(rule, Repeat):
        return ~state.mask
    if isinstance(rule, CategoryDiversity):
        counts = state.counts
        if rule.window != dynamics.window:
            counts = window_counts(state.shown, state.steps, rule.window - 1, dynamics.categories)
        full = (counts + 1.0 >= rule.max_repeats).astype(np.float32)
        return np.asarray(full @ dynamics.categories.T > 0)
    n = len(state.steps)
    batched = getattr(rule, "ends", None)
    if batched is not None:
        return np.asarray(batched(dynamics.context(state, np.zeros(n, np.int64), rewards)))
    ends = np.zeros(rewards.shape, bool)
    for item in range(dynamics.n_items):
        context = dynamics.context(state, np.full(n, item), rewards[:, item])
        ends[:, item] = rule(context)
    return ends


def rule_aware(tag_price: float = 0.0) -> Planner:
    """A greedy planner that knows the session-end rules.

    Args:
        tag_price: Reward units that each category of an item costs; above 0 it prefers items with
            few categories, which keep a session under the category rule alive for longer.
    """

    def act(dynamics: Dynamics, state: State, generator: np.random.Generator) -> IntArray:
        del generator
        price = tag_price * dynamics.categories.sum(axis=1)
        rewards = known_rewards(dynamics, state)
        return _avoid_ending(dynamics, state, rewards, price)

    return act


def oracle(tag_price: float = 0.0) -> Planner:
    """The rule-aware planner on the very rewards that the environment will give.

    Args:
        tag_price: As in `rule_aware`.
    """

    def act(dynamics: Dynamics, state: State, generator: np.random.Generator) -> IntArray:
        del generator
        price = tag_price * dynamics.categories.sum(axis=1)
        return _avoid_ending(dynamics, state, dynamics.reward_table(state), price)

    return act


def explorer(temperature: float = 0.3, memory: int = 3) -> Planner:
    """A scripted demonstrator: good, not optimal, as a language model is.

    It likes what the train model predicts to be liked and what shares no category with the last
    items, and knows nothing of the session-end rule.

    Args:
        temperature: Softness of the choice, in reward units; raising it makes the demonstrations
            worse.
        memory: How many of the last items the next one should differ from.
    """

    def act(dynamics: Dynamics, state: State, generator: np.random.Generator) -> IntArray:
        scores = known_rewards(dynamics, state).copy()
        n = len(scores)
        position = state.steps[:, None] - np.arange(1, memory + 1)[None, :]
        recent = state.shown[np.arange(n)[:, None], np.maximum(position, 0)]
        seen = (dynamics.categories[recent] * (position >= 0)[:, :, None]).sum(axis=1)
        scores -= seen @ dynamics.categories.T
        scores = np.where(state.mask, scores, -np.inf)
        noise = generator.gumbel(size=scores.shape).astype(np.float32)
        return np.asarray((scores / np.float32(temperature) + noise).argmax(axis=1))

    return act


def run_episodes(
    dynamics: Dynamics, planner: Planner, n_episodes: int, seed: int, batch: int = 256
) -> Episodes:
    """Plays whole sessions of drawn users.

    Every slot plays one session at a time and each user is drawn before play, so long and short
    sessions are counted alike.

    Args:
        dynamics: Where to play.
        planner: Who recommends.
        n_episodes: How many sessions.
        seed: Of users and planner.
        batch: Sessions at a time.
    """
    generator = np.random.default_rng(seed)
    users = draw_users(dynamics, n_episodes, generator)
    lengths = np.zeros(n_episodes, np.int64)
    returns = np.zeros(n_episodes, np.float32)
    ended = np.zeros(n_episodes, np.int8)
    actions: list[tuple[int, ...]] = [()] * n_episodes
    for start in range(0, n_episodes, batch):
        part = slice(start, min(start + batch, n_episodes))
        n = part.stop - part.start
        state = dynamics.allocate(n)
        dynamics.initial(state, np.arange(n), users[part])
        alive = np.ones(n, bool)
        while alive.any():
            items = planner(dynamics, state, generator)
            outcome = dynamics.step(state, items)
            lengths[part] += alive
            returns[part] += outcome.rewards * alive
            over = alive & (outcome.ended_by > 0)
            for k in np.flatnonzero(over).tolist():
                ended[start + k] = outcome.ended_by[k]
                actions[start + k] = tuple(state.shown[k, : state.steps[k]].tolist())
            alive &= ~over
            idle = np.flatnonzero(~alive & (state.steps >= dynamics.limit))
            state.steps[idle] = dynamics.limit - 1  # finished slots idle in place
    return Episodes(
        users=users,
        lengths=lengths,
        returns=returns,
        ended_by=tuple(str(dynamics.ending_names[code]) for code in ended),
        actions=tuple(actions),
    )


def explore(dynamics: Dynamics, n_sessions: int = 200, seed: int = 0) -> list[Session]:
    """Lets the scripted explorer play: the demonstrations of datasets that carry none.

    Args:
        dynamics: Where to play.
        n_sessions: How many sessions.
        seed: Of users and choices.
    """
    episodes = run_episodes(dynamics, explorer(), n_sessions, seed)
    return [
        Session(user=int(user), history=(), actions=actions, source="scripted explorer")
        for user, actions in zip(episodes.users, episodes.actions, strict=True)
    ]
