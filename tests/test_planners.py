"""Policies without learning: what they know and avoid, and how whole sessions are counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import REWARDS, toy_prepared

from recsim_env import Dynamics, Prepared, RecEnv, Session, demonstrations
from recsim_env.planners import (
    draw_users,
    ending_items,
    explore,
    explorer,
    greedy,
    known_rewards,
    oracle,
    popularity,
    random_policy,
    rule_aware,
    run_episodes,
)
from recsim_env.simulator import Observer
from recsim_env.termination import CategoryDiversity, Repeat, RuleContext, Similarity, make_rules

TOY = toy_prepared()
NOBODY = np.random.default_rng(0)


class EndsOnLowRewards:
    """A rule that planners do not know by name."""

    name = "low"

    def __call__(self, context: RuleContext) -> Any:
        return context.rewards < 2.5


def _started(dynamics: Dynamics, users: list[int], shown: list[list[int]]) -> Any:
    state = dynamics.allocate(len(users))
    dynamics.initial(state, np.arange(len(users)), np.array(users))
    for items in shown:
        dynamics.step(state, np.array(items))
    return state


class EndsAboveTheLast:
    """A rule that answers for all items at once: a higher index than the last item's ends it."""

    name = "above"

    def __call__(self, context: RuleContext) -> Any:
        return context.items > self._last(context)

    def ends(self, context: RuleContext) -> Any:
        return np.arange(context.mask.shape[1])[None, :] > self._last(context)[:, None]

    def _last(self, context: RuleContext) -> Any:
        last = context.shown[context.rows, np.maximum(context.steps - 1, 0)]
        return np.where(context.steps > 0, last, 99)


RULES = (
    CategoryDiversity(3, 2),
    CategoryDiversity(4, 2, name="longer"),
    Repeat(),
    Similarity(threshold=0.6, window=2, min_reward=1.5),
    EndsOnLowRewards(),
    EndsAboveTheLast(),
)


@given(
    chosen=st.sets(st.integers(0, len(RULES) - 1)),
    steps=st.integers(0, 5),
    seed=st.integers(0, 1000),
    unknown=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_ending_items_are_those_at_which_stepping_ends(
    chosen: set[int], steps: int, seed: int, unknown: bool
) -> None:
    dynamics = Dynamics(TOY, split="test", rules=[RULES[k] for k in sorted(chosen)], limit=9)
    rng = np.random.default_rng(seed)
    state = _started(dynamics, [0, 1, 2], [])
    if unknown:
        dynamics.initial_from_history(state, np.array([1]), [[3, 3]], [-1])
    for _ in range(steps):
        dynamics.step(state, rng.integers(6, size=3))
    answer = ending_items(dynamics, state)
    kept = dynamics.state_arrays(state)
    for item in range(6):
        out = dynamics.step(dynamics.state_from_arrays(kept), np.full(3, item))
        np.testing.assert_array_equal(answer[:, item], out.terminated)


def test_known_rewards_are_those_of_the_observation(prepared: Prepared) -> None:
    toy = Dynamics(TOY, split="test", rules=())
    np.testing.assert_allclose(known_rewards(toy, _started(toy, [0, 1, 2], [])), REWARDS, rtol=1e-6)
    dynamics = Dynamics(prepared, split="test", rules=())
    state = _started(dynamics, [0, 9], [])
    known = known_rewards(dynamics, state)
    table = prepared.rows("train", users=np.array([0, 9]))
    assert np.abs(known - table).mean() < 0.1


def test_choices_by_hand() -> None:
    """User 0 likes 0 5 1 2 3 4 in this order; 0, 5 and 2 share a category."""
    dynamics = Dynamics(TOY, split="train", rules=(CategoryDiversity(3, 2), Repeat()), limit=9)
    fresh = _started(dynamics, [0], [])
    after = _started(dynamics, [0], [[0]])
    assert greedy(dynamics, fresh, NOBODY).tolist() == [0]
    assert greedy(dynamics, after, NOBODY).tolist() == [5]
    assert rule_aware()(dynamics, after, NOBODY).tolist() == [1]
    assert rule_aware()(dynamics, _started(dynamics, [0], [[0], [1]]), NOBODY).tolist() == [3]
    assert rule_aware(tag_price=3.0)(dynamics, fresh, NOBODY).tolist() == [0]
    # 2 and 5 share a category with 0, and 4 with 3: everything ends, so the best new item is taken.
    stuck = _started(dynamics, [0], [[1], [3], [0]])
    assert ending_items(dynamics, stuck)[0].tolist() == [True] * 6
    assert rule_aware()(dynamics, stuck, NOBODY).tolist() == [5]


def test_popularity_by_hand() -> None:
    """Train interactions: 0 three times, 3 twice, 5 once."""
    toy = toy_prepared()
    train = np.zeros(18, bool)
    train[[0, 6, 12, 3, 9, 17]] = True
    prepared = dataclasses.replace(toy, train_rows=train, test_rows=~train)
    dynamics = Dynamics(prepared, split="train", rules=(), limit=9)
    state = _started(dynamics, [0, 1], [])
    chosen = []
    for _ in range(6):
        chosen.append(popularity(dynamics, state, NOBODY))
        dynamics.step(state, chosen[-1])
    assert np.array(chosen).T.tolist() == [[0, 3, 5, 1, 2, 4]] * 2


def test_popularity_shows_the_same_again_where_that_is_allowed() -> None:
    dynamics = Dynamics(TOY, split="train", rules=(), limit=4, repeats=True)
    episodes = run_episodes(dynamics, popularity, 3, seed=0)
    assert all(len(set(actions)) == 1 and len(actions) == 4 for actions in episodes.actions)


def test_the_price_does_not_count_for_the_last_item() -> None:
    """User 0 after 1, 3 and 0: everything ends; 5 is liked most, 2 has two categories."""
    dynamics = Dynamics(TOY, split="train", rules=(CategoryDiversity(3, 2), Repeat()), limit=9)
    table = REWARDS.copy()
    table[0, 2] = 4.8  # with a price of 1 for each category it would lose to item 5 at 4.5
    richer = Dynamics(TOY, split="train", rules=dynamics.rules, limit=9, table=table)
    stuck = _started(richer, [0], [[1], [3], [0]])
    assert ending_items(richer, stuck).all()
    assert oracle(tag_price=1.0)(richer, stuck, NOBODY).tolist() == [2]


def test_a_price_on_categories_prefers_items_with_few() -> None:
    dynamics = Dynamics(TOY, split="train", rules=(), limit=9)
    state = _started(dynamics, [0], [[0], [5], [1]])
    assert rule_aware()(dynamics, state, NOBODY).tolist() == [2]
    assert rule_aware(tag_price=2.0)(dynamics, state, NOBODY).tolist() == [3]
    assert oracle(tag_price=2.0)(dynamics, state, NOBODY).tolist() == [3]


def test_the_oracle_sees_the_rewards_that_are_given() -> None:
    dynamics = Dynamics(TOY, split="test", rules=(Repeat(),), limit=9)
    state = _started(dynamics, [0, 1], [])
    assert rule_aware()(dynamics, state, NOBODY).tolist() == [0, 4]
    assert oracle()(dynamics, state, NOBODY).tolist() == [4, 0]


def test_whole_sessions_are_those_of_the_single_environment(prepared: Prepared) -> None:
    """Also where a batch holds sessions that ended long ago, up to the limit."""
    rules = make_rules(window=8, max_repeats=4)
    dynamics = Dynamics(prepared, split="test", rules=rules, limit=9)
    for planner in (random_policy, rule_aware()):
        episodes = run_episodes(dynamics, planner, 37, seed=2, batch=16)
        env = RecEnv(dynamics=dynamics)
        for k in range(37):
            env.reset(options={"user": int(episodes.users[k])})
            total, done = 0.0, False
            for item in episodes.actions[k]:
                assert not done
                _, reward, terminated, truncated, info = env.step(item)
                total, done = total + reward, terminated or truncated
            assert done
            assert episodes.lengths[k] == len(episodes.actions[k])
            assert episodes.ended_by[k] == info["ended_by"]
            np.testing.assert_allclose(episodes.returns[k], total, rtol=1e-5)


def test_whole_sessions_by_hand() -> None:
    """Greedy shows user 0 items 0 and 5, user 1 items 4 and 3, user 2 items 0, 1 and 2."""
    dynamics = Dynamics(TOY, split="train", rules=(CategoryDiversity(3, 2), Repeat()), limit=9)
    episodes = run_episodes(dynamics, greedy, 30, seed=0)
    expected = {0: ((0, 5), 9.5), 1: ((4, 3), 9.0), 2: ((0, 1, 2), 9.0)}
    assert set(episodes.users.tolist()) == {0, 1, 2}
    for k, user in enumerate(episodes.users.tolist()):
        assert (episodes.actions[k], float(episodes.returns[k])) == expected[user]
        assert episodes.ended_by[k] == "category"
    assert run_episodes(dynamics, greedy, 0, seed=0).actions == ()


@pytest.mark.parametrize("planner", [greedy, popularity, rule_aware(), oracle(), explorer()])
def test_planners_never_show_an_item_twice(prepared: Prepared, planner: Any) -> None:
    dynamics = Dynamics(prepared, split="test", rules=(), limit=40)
    episodes = run_episodes(dynamics, planner, 20, seed=1)
    assert all(sorted(actions) == list(range(40)) for actions in episodes.actions)
    assert set(episodes.ended_by) == {"limit"}


def test_more_knowledge_gives_longer_and_better_sessions(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="test", rules=make_rules(), limit=100)

    def mean_return(planner: Any) -> float:
        return float(run_episodes(dynamics, planner, 300, seed=0).returns.mean())

    random, selfish = mean_return(random_policy), mean_return(greedy)
    aware, best = mean_return(rule_aware()), mean_return(oracle())
    assert random < selfish * 1.1
    assert selfish < aware
    assert random < aware <= best * 1.02


def test_sessions_depend_on_the_seed_alone(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=20)
    first, again = explore(dynamics, 12, seed=4), explore(dynamics, 12, seed=4)
    assert first == again
    assert first != explore(dynamics, 12, seed=5)
    assert all(isinstance(session, Session) and session.actions for session in first)
    assert {session.source for session in first} == {"scripted explorer"}


def test_the_explorer_is_better_than_chance_and_varies(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=(Repeat(),), limit=10)
    chance = run_episodes(dynamics, random_policy, 100, seed=0)
    scripted = run_episodes(dynamics, explorer(), 100, seed=0)
    per_step = [float((e.returns / e.lengths).mean()) for e in (chance, scripted)]
    assert per_step[1] > per_step[0]
    state = _started(dynamics, [3] * 50, [])
    assert len(set(explorer()(dynamics, state, np.random.default_rng(0)).tolist())) > 3


def test_the_explorer_turns_from_the_categories_just_shown() -> None:
    dynamics = Dynamics(TOY, split="train", rules=(), limit=9)
    state = _started(dynamics, [0] * 200, [[0] * 200])
    near = explorer(temperature=0.01, memory=1)(dynamics, state, np.random.default_rng(0))
    assert set(near.tolist()) == {1}  # 5 is liked more and shares a category with 0
    state = _started(dynamics, [0] * 200, [[0] * 200, [3] * 200])
    far = explorer(temperature=0.01, memory=1)(dynamics, state, np.random.default_rng(0))
    assert set(far.tolist()) == {5}  # with a memory of one, item 0 is forgotten


def test_recorded_sessions_come_before_the_explorer(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=20)
    observer = Observer(dynamics)
    scripted = demonstrations(observer, n_sessions=4, seed=0)
    assert [t.source for t in scripted] == ["scripted explorer"] * 4
    recorded = toy_prepared()
    object.__setattr__(recorded, "sessions", (Session(0, (), (1, 2), "somebody"),))
    toy = Observer(Dynamics(recorded, split="train", rules=(), limit=9))
    (trajectory,) = demonstrations(toy, n_sessions=4, seed=0)
    assert (trajectory.source, trajectory.actions.tolist()) == ("somebody", [1, 2])


def test_users_can_be_drawn_beforehand(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="test", rules=(Repeat(),), limit=3)
    users = draw_users(dynamics, 40, seed=6)
    np.testing.assert_array_equal(users, run_episodes(dynamics, greedy, 40, seed=6).users)
    assert users.tolist() != draw_users(dynamics, 40, seed=7).tolist()
    assert set(users.tolist()) <= set(range(dynamics.n_users))
