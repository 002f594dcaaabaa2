"""The bound on returns: by hand, above every session that can be played, and near the best."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_prepared

from recsim_env import Dynamics, Prepared
from recsim_env.ceiling import packing_bound, return_bound
from recsim_env.errors import DataError
from recsim_env.planners import oracle, run_episodes
from recsim_env.termination import CategoryDiversity, Repeat, make_rules

TOY = toy_prepared()


def test_packing_bound_by_hand() -> None:
    """Of the first three, which share a category, one fits; then halves, then slots."""
    rewards = np.float32([5, 4, 3, 2])
    one = np.float32([[1], [1], [1], [0]])
    assert packing_bound(rewards, one, 1.0, 9) == pytest.approx(5 + 2)
    assert packing_bound(rewards, one, 2.0, 9) == pytest.approx(5 + 4 + 2)
    assert packing_bound(rewards, one, 2.0, 1) == pytest.approx(5)
    assert packing_bound(rewards, one, math.inf, 3) == pytest.approx(5 + 4 + 3)
    # each two of three items share a category: in halves they are worth more than any one
    ring = np.float32([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    assert packing_bound(np.float32([4, 4, 4]), ring, 1.0, 9) == pytest.approx(6)


def _best_session(dynamics: Dynamics, user: int) -> float:
    """The highest return of any session, by trying all."""
    start = dynamics.allocate(1)
    dynamics.initial(start, np.array([0]), np.array([user]))

    def best_from(arrays: dict[str, np.ndarray]) -> float:
        best = 0.0
        for item in range(dynamics.n_items):
            state = dynamics.state_from_arrays(arrays)
            outcome = dynamics.step(state, np.array([item]))
            value = float(outcome.rewards[0])
            if not outcome.ended_by[0]:
                value += best_from(dynamics.state_arrays(state))
            best = max(best, value)
        return best

    return best_from(dynamics.state_arrays(start))


@given(seed=st.integers(0, 10_000), window=st.integers(2, 5), limit=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_no_session_earns_more(seed: int, window: int, limit: int) -> None:
    table = np.random.default_rng(seed).uniform(1, 5, (3, 6)).astype(np.float32)
    rules = (CategoryDiversity(window, 2), Repeat())
    dynamics = Dynamics(TOY, split="train", rules=rules, limit=limit, table=table)
    assert _best_session(dynamics, 0) <= float(return_bound(dynamics, [0])[0]) + 1e-4


def test_the_bound_is_near_what_can_be_earned(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="test", rules=make_rules(), limit=100)
    episodes = run_episodes(dynamics, oracle(0.5), 60, seed=0)
    bounds = return_bound(dynamics, episodes.users)
    assert (episodes.returns <= bounds + 1e-3).all()
    assert episodes.returns.mean() > 0.9 * bounds.mean()


def test_without_a_category_rule_the_best_items_count() -> None:
    dynamics = Dynamics(TOY, split="train", rules=(Repeat(),), limit=3)
    assert return_bound(dynamics, [0, 1]).tolist() == [5.0 + 5.0 + 4.5, 5.0 + 5.0 + 4.0]


def test_items_that_may_come_again_are_refused() -> None:
    dynamics = Dynamics(TOY, split="train", rules=(), limit=3)
    with pytest.raises(DataError, match="add Repeat"):
        return_bound(dynamics, [0])
