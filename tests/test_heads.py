"""The item scorer: its shortcuts give what the plain definition gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from torch import nn

from ilrec_sb3.ilrec.heads import N_COUNTS, CrossNet, ItemScorer
from recsim_env import Dynamics, RecVectorEnv
from recsim_env.planners import known_rewards


@pytest.fixture
def seen(dynamics: Dynamics) -> tuple[RecVectorEnv, th.Tensor]:
    """Sessions of different lengths and their observations."""
    env = RecVectorEnv(32, dynamics=dynamics)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        observation, *_ = env.step(rng.integers(dynamics.n_items, size=32))
    return env, th.from_numpy(observation)


def test_counts_are_the_largest_count_among_an_items_categories(
    dynamics: Dynamics, seen: tuple[RecVectorEnv, th.Tensor]
) -> None:
    env, flat = seen
    cross = CrossNet(dynamics.item_context)
    got = cross(flat).numpy()
    counts = env._state.counts
    expected = (counts[:, None, :] * dynamics.categories[None]).max(axis=2)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got)) > 1
    actions = th.from_numpy(np.arange(32) % dynamics.n_items)[:, None]
    np.testing.assert_array_equal(cross.pairs(flat, actions), cross(flat).gather(1, actions))


@pytest.mark.parametrize("high", [0, 1, 3, 6, 7, 30])
def test_counts_up_to_the_table_are_told_apart(dynamics: Dynamics, high: int) -> None:
    cross = CrossNet(dynamics.item_context)
    layout = dynamics.layout
    flat = th.zeros(1, layout.size)
    flat[:, layout.categories] = high / layout.count_scale
    tagged = dynamics.categories.any(axis=1)
    expected = np.where(tagged, min(high, N_COUNTS - 1), 0)
    np.testing.assert_array_equal(cross(flat)[0], expected)


def test_reward_columns_give_the_predicted_rewards(
    dynamics: Dynamics, seen: tuple[RecVectorEnv, th.Tensor]
) -> None:
    env, flat = seen
    cross = CrossNet(dynamics.item_context)
    got = (cross.user(flat) @ cross.reward_items.T).numpy()
    expected = known_rewards(dynamics, env._state)
    centre = dynamics.prepared.user_offset.mean()
    np.testing.assert_allclose(got, expected - centre, atol=1e-4)


def test_pairs_and_expectations_agree_with_the_matrix_of_scores(
    dynamics: Dynamics, seen: tuple[RecVectorEnv, th.Tensor]
) -> None:
    _, flat = seen
    th.manual_seed(0)
    cross = CrossNet(dynamics.item_context)
    scorer = ItemScorer(flat.shape[1], cross, 2, (16,), 8, nn.ReLU, 10.0)
    counts = cross(flat)
    heads = scorer.coefficients(cross.scaled(flat), flat, cross)
    matrices = [scorer.scores(head, counts, cross) for head in heads]
    assert not th.allclose(matrices[0], matrices[1])
    actions = th.arange(32)[:, None] % dynamics.n_items
    pairs = scorer.pairs(heads, cross.pairs(flat, actions), actions, cross)
    probs = th.softmax(th.randn(32, dynamics.n_items), 1)
    expected = scorer.expected(heads, probs, counts, cross)
    for k, matrix in enumerate(matrices):
        th.testing.assert_close(pairs[k], matrix.gather(1, actions)[:, 0], atol=1e-4, rtol=1e-4)
        th.testing.assert_close(expected[k], (probs * matrix).sum(1), atol=1e-4, rtol=1e-4)


def test_the_score_is_the_formula_of_the_module(
    dynamics: Dynamics, seen: tuple[RecVectorEnv, th.Tensor]
) -> None:
    _, flat = seen
    th.manual_seed(1)
    cross = CrossNet(dynamics.item_context)
    scorer = ItemScorer(flat.shape[1], cross, 1, (16,), 8, nn.ReLU, 3.0)
    counts = cross(flat)
    head = scorer.coefficients(cross.scaled(flat), flat, cross)[0]
    raw = scorer.heads[0](cross.scaled(flat))
    state, item = 5, 7
    f, slope, table = raw[state, :8], raw[state, 8], raw[state, 9:]
    g_and_b = scorer.item(cross.features[item])
    reward = cross.user(flat)[state] @ cross.reward_items[item]
    expected = f @ g_and_b[:8] + g_and_b[8] + slope * reward + table[counts[state, item]]
    got = scorer.scores(head, counts, cross)[state, item]
    th.testing.assert_close(got, 3.0 * expected, atol=1e-4, rtol=1e-4)
