"""Splits are disjoint and even; the k-core is the largest set that meets both thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsim_env.datasets import Interactions, k_core, split_interactions
from recsim_env.errors import DataError


def rows(users: list[int]) -> Interactions:
    n = len(users)
    return Interactions(np.array(users), np.arange(n), np.full(n, 3.0))


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(st.integers(0, 6), min_size=1, max_size=80),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_split_is_a_partition_and_even_for_every_user(
    users: list[int], fraction: float, seed: int
) -> None:
    split = split_interactions(rows(users), fraction, seed)
    assert (split.train ^ split.test).all()
    assert abs(split.test.sum() - fraction * len(users)) < 1 + 1e-6
    for user in set(users):
        own = np.array(users) == user
        assert abs(split.test[own].sum() - fraction * own.sum()) < 1 + 1e-6


def test_half_of_even_users_is_exact_and_the_seed_decides() -> None:
    users = [u for u in range(20) for _ in range(6)]
    one, same, other = (split_interactions(rows(users), 0.5, seed) for seed in (0, 0, 1))
    assert np.array_equal(np.bincount(users, weights=one.test), np.full(20, 3))
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)


def test_split_shares_single_rows_out_between_users() -> None:
    split = split_interactions(rows(list(range(100))), 0.5, 0)
    assert split.test.sum() == 50


@pytest.mark.parametrize("fraction", [1.0, -0.5, float("nan")])
def test_split_refuses_a_share_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match=r"test_fraction.*from 0 to below 1"):
        split_interactions(rows([0, 0]), fraction)


def test_k_core_by_hand() -> None:
    # User c has one row, so it goes; then item 3 has one user left and goes; a and b keep 1, 2.
    users = ["a", "a", "a", "b", "b", "c"]
    items = [1, 2, 3, 1, 2, 3]
    assert k_core(users, items, 2, 2).tolist() == [True, True, False, True, True, False]


def slow_k_core(pairs: list[tuple[int, int]], min_user: int, min_item: int) -> list[bool]:
    kept = set(range(len(pairs)))
    changed = True
    while changed:
        changed = False
        for row in sorted(kept):
            user, item = pairs[row]
            n_user = sum(pairs[r][0] == user for r in kept)
            n_item = sum(pairs[r][1] == item for r in kept)
            if n_user < min_user or n_item < min_item:
                kept.remove(row)
                changed = True
    return [row in kept for row in range(len(pairs))]


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30),
    min_user=st.integers(0, 4),
    min_item=st.integers(0, 4),
)
def test_k_core_equals_slow_reference(
    pairs: list[tuple[int, int]], min_user: int, min_item: int
) -> None:
    mask = k_core([p[0] for p in pairs], [p[1] for p in pairs], min_user, min_item)
    assert mask.tolist() == slow_k_core(pairs, min_user, min_item)


def test_k_core_refuses_bad_thresholds() -> None:
    with pytest.raises(DataError, match="thresholds of 0 or more"):
        k_core([1], [1], -1, 0)
