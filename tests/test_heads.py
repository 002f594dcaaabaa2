"""The item scorer: its shortcuts give what the plain definition gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from torch import nn

from ilrec_sb3.ilrec import heads as heads_module
from ilrec_sb3.ilrec.heads import N_CLASSES, N_COUNTS, CrossNet, ItemScorer, nearness_classes
from recsim_env import Dynamics, Prepared, RecVectorEnv
from recsim_env.dynamics import State
from recsim_env.planners import known_rewards
from recsim_env.termination import Similarity


@pytest.fixture
def seen(dynamics: Dynamics) -> tuple[RecVectorEnv, th.Tensor]:
    """Sessions of different lengths and their observations."""
    env = RecVectorEnv(32, dynamics=dynamics)
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        observation, *_ = env.step(rng.integers(dynamics.n_items, size=32))
    return env, th.from_numpy(observation)


def test_a_tracker_that_is_not_used_counts_for_nothing(dynamics: Dynamics) -> None:
    context = dynamics.item_context
    flat = th.ones(1, context.layout.size)
    scaled = CrossNet(context, use_tracker=False).scaled(flat)
    kept = CrossNet(context).scaled(flat)
    assert not scaled[:, context.layout.tracker].any()
    assert kept[:, context.layout.tracker].all()
    others = np.setdiff1d(np.arange(context.layout.size), np.r_[context.layout.tracker])
    th.testing.assert_close(scaled[:, others], kept[:, others])


def test_counts_are_the_largest_count_among_an_items_categories(
    dynamics: Dynamics, seen: tuple[RecVectorEnv, th.Tensor]
) -> None:
    env, flat = seen
    cross = CrossNet(dynamics.item_context)
    (found,) = cross(flat)
    got = found.numpy()
    counts = env._state.counts
    expected = (counts[:, None, :] * dynamics.categories[None]).max(axis=2)
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got)) > 1
    actions = th.from_numpy(np.arange(32) % dynamics.n_items)[:, None]
    np.testing.assert_array_equal(cross.pairs(flat, actions)[0], found.gather(1, actions))


@pytest.mark.parametrize("high", [0, 1, 3, 6, 7, 30])
def test_counts_up_to_the_table_are_told_apart(dynamics: Dynamics, high: int) -> None:
    cross = CrossNet(dynamics.item_context)
    layout = dynamics.layout
    flat = th.zeros(1, layout.size)
    flat[:, layout.categories] = high / layout.count_scale
    tagged = dynamics.categories.any(axis=1)
    expected = np.where(tagged, min(high, N_COUNTS - 1), 0)
    np.testing.assert_array_equal(cross(flat)[0][0], expected)


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
    crossed = cross(flat)
    heads = scorer.coefficients(cross.scaled(flat), flat, cross)
    matrices = [scorer.scores(head, crossed, cross) for head in heads]
    assert not th.allclose(matrices[0], matrices[1])
    actions = th.stack([th.arange(32), th.arange(32) + 7], dim=1) % dynamics.n_items
    pairs = scorer.pairs(heads, cross.pairs(flat, actions), actions, cross)
    probs = th.softmax(th.randn(32, dynamics.n_items), 1)
    expected = scorer.expected(heads, probs, crossed, cross)
    for k, matrix in enumerate(matrices):
        th.testing.assert_close(pairs[k], matrix.gather(1, actions), atol=1e-4, rtol=1e-4)
        th.testing.assert_close(expected[k], (probs * matrix).sum(1), atol=1e-4, rtol=1e-4)


def test_the_score_is_the_formula_of_the_module(
    dynamics: Dynamics, seen: tuple[RecVectorEnv, th.Tensor]
) -> None:
    _, flat = seen
    th.manual_seed(1)
    cross = CrossNet(dynamics.item_context)
    scorer = ItemScorer(flat.shape[1], cross, 1, (16,), 8, nn.ReLU, 3.0)
    (counts,) = cross(flat)
    head = scorer.coefficients(cross.scaled(flat), flat, cross)[0]
    raw = scorer.heads[0](cross.scaled(flat))
    state, item = 5, 7
    f, slope, table, level = raw[state, :8], raw[state, 8], raw[state, 9:-1], raw[state, -1]
    g_and_b = scorer.item(cross.features[item])
    reward = cross.user(flat)[state] @ cross.reward_items[item]
    expected = level + f @ g_and_b[:8] + g_and_b[8] + slope * reward + table[counts[state, item]]
    got = scorer.scores(head, (counts,), cross)[state, item]
    th.testing.assert_close(got, 3.0 * expected, atol=1e-4, rtol=1e-4)


def test_classes_of_nearness_are_shares_of_all_pairs() -> None:
    classes = nearness_classes(np.arange(101, dtype=np.float32)[:, None])  # distances 1 to 100
    assert (classes == classes.T).all()
    assert (np.diag(classes) == N_CLASSES - 1).all()
    # of 5,050 pairs 100 are 1 apart and 99 are 2 apart: the nearest 2 % end between the two
    assert classes[0, 1] == 5
    assert classes[0, 2] == 4
    assert classes[0, 100] == 0
    steps = np.diff(classes[0, 1:].astype(int))
    assert (steps <= 0).all()
    off = ~np.eye(101, dtype=bool)
    assert 0.45 < (classes[off] == 0).mean() < 0.55


@pytest.fixture
def near(prepared: Prepared) -> tuple[Dynamics, State]:
    """Sessions of no, two and five items under a rule that looks at the last three."""
    dynamics = Dynamics(prepared, split="train", rules=(Similarity(0.3, window=3),))
    state = dynamics.allocate(3)
    dynamics.initial(state, np.arange(3), np.arange(3))
    state.shown[:, :5] = [[0, 0, 0, 0, 0], [7, 8, 0, 0, 0], [4, 5, 6, 7, 8]]
    state.steps[:] = [0, 2, 5]
    return dynamics, state


def test_the_last_items_are_told_the_newest_first(near: tuple[Dynamics, State]) -> None:
    dynamics, state = near
    observation = dynamics.observe(state)
    told = observation[:, dynamics.layout.recent] * dynamics.n_items - 1
    np.testing.assert_allclose(told, [[-1, -1, -1], [8, 7, -1], [8, 7, 6]], atol=1e-3)


def test_nearness_is_that_of_the_nearest_of_the_last_items(near: tuple[Dynamics, State]) -> None:
    dynamics, state = near
    context = dynamics.item_context
    cross = CrossNet(context)
    flat = th.from_numpy(dynamics.observe(state))
    _, text, rating = cross(flat)
    classes = nearness_classes(context.text)
    assert (text[0] == 0).all()
    assert (rating[0] == 0).all()
    np.testing.assert_array_equal(text[1], classes[[8, 7]].max(0))
    np.testing.assert_array_equal(text[2], classes[[8, 7, 6]].max(0))
    assert text[2, 6] == N_CLASSES - 1
    assert rating[2, 4] < N_CLASSES - 1  # shown, but too long ago
    actions = th.tensor([[1], [8], [20]])
    for whole, pair in zip(cross(flat), cross.pairs(flat, actions), strict=True):
        th.testing.assert_close(whole.gather(1, actions), pair)


@pytest.mark.parametrize("most_paired", [0, 1_000])
def test_scores_with_nearness_agree_with_pairs_and_expectations(
    near: tuple[Dynamics, State], most_paired: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamics, state = near
    monkeypatch.setattr(heads_module, "_MOST_PAIRED", most_paired)
    th.manual_seed(0)
    cross = CrossNet(dynamics.item_context)
    flat = th.from_numpy(dynamics.observe(state))
    scorer = ItemScorer(flat.shape[1], cross, 1, (16,), 8, nn.ReLU, 10.0)
    with th.no_grad():
        scorer.heads[0][-1].weight *= 100.0
        if scorer.pair_table is None:
            scorer.after.normal_()
        else:
            scorer.pair_table.weight[1:].normal_()
    heads = scorer.coefficients(cross.scaled(flat), flat, cross)
    crossed = cross(flat)
    assert heads[0].table.shape == (3, N_COUNTS + 2 * N_CLASSES)
    matrix = scorer.scores(heads[0], crossed, cross)
    plain = scorer.scores(heads[0], crossed[:1], cross)
    assert (heads[0].followed is None) == (most_paired == 0)
    by_hand = plain[2, 6] + heads[0].table[2, N_COUNTS + 7] + heads[0].table[2, N_COUNTS + 15]
    th.testing.assert_close(matrix[2, 6], by_hand)
    # items 8, 7 and 6 came before in session 2, and none in session 0
    with th.no_grad():
        if scorer.pair_table is None:
            learned = 10.0 * scorer.before.weight[[9, 8, 7]].sum(0) @ scorer.after[6]
            scorer.after[6] = 0.0
        else:
            learned = 100.0 * scorer.pair_table.weight[[9, 8, 7], 6].sum()
            scorer.pair_table.weight[:, 6] = 0.0
    heads = scorer.coefficients(cross.scaled(flat), flat, cross)
    unlearned = scorer.scores(heads[0], crossed, cross)
    th.testing.assert_close(matrix[2, 6] - unlearned[2, 6], learned, atol=1e-3, rtol=1e-3)
    th.testing.assert_close(matrix[0, 6], unlearned[0, 6])
    matrix = unlearned
    actions = th.tensor([[1], [8], [20]])
    pairs = scorer.pairs(heads, cross.pairs(flat, actions), actions, cross)
    th.testing.assert_close(pairs[0], matrix.gather(1, actions))
    probs = th.softmax(th.randn(3, dynamics.n_items), 1)
    expected = scorer.expected(heads, probs, crossed, cross)
    th.testing.assert_close(expected[0], (probs * matrix).sum(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("most_paired", [0, 1_000])
def test_only_the_heads_that_are_told_learn_of_pairs(
    near: tuple[Dynamics, State], most_paired: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamics, state = near
    monkeypatch.setattr(heads_module, "_MOST_PAIRED", most_paired)
    th.manual_seed(0)
    cross = CrossNet(dynamics.item_context)
    flat = th.from_numpy(dynamics.observe(state))
    scorer = ItemScorer(flat.shape[1], cross, 2, (16,), 8, nn.ReLU, 1.0, pair_heads=(1,))
    crossed, before = cross(flat), []
    for learned in (False, True):
        if learned:
            with th.no_grad():
                if scorer.pair_table is None:
                    scorer.after += 1.0
                else:
                    scorer.pair_table.weight[1:] += 1.0
        heads = scorer.coefficients(cross.scaled(flat), flat, cross)
        before.append([scorer.scores(head, crossed, cross) for head in heads])
    th.testing.assert_close(before[0][0], before[1][0])
    th.testing.assert_close(before[0][1][0], before[1][1][0])  # nothing was shown yet
    assert (before[0][1][1:] != before[1][1][1:]).any(dim=1).all()
