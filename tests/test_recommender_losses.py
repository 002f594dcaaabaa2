from __future__ import annotations

import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_sb3.lea.losses import (
    advantage,
    augmented_td_loss,
    combined_loss,
    item_scores,
    log_probabilities,
    scores_of,
    supervised_loss,
    td_loss,
    td_target,
    total_loss,
)

WEIGHTS = th.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
BIAS = th.tensor([0.5, 0.0, -0.5])


def test_scores_by_hand() -> None:
    # W s + b: 3 + 0.5, 2 * 1, -3 + 1 - 0.5
    scores = item_scores(th.tensor([[3.0, 1.0]]), WEIGHTS, BIAS)
    assert scores.tolist() == [[3.5, 2.0, -2.5]]


def test_scores_of_a_few_items_are_those_of_all() -> None:
    states = th.tensor([[3.0, 1.0], [-2.0, 0.25]])
    actions = th.tensor([[2, 0], [1, 1]])
    few = scores_of(states, WEIGHTS, BIAS, actions)
    assert few.tolist() == [[-2.5, 3.5], [0.5, 0.5]]
    assert th.equal(few, item_scores(states, WEIGHTS, BIAS).gather(1, actions))


def test_probabilities_and_cross_entropy_by_hand() -> None:
    # e^0, e^ln 3: a quarter and three quarters
    log_probs = log_probabilities(th.tensor([[0.0, math.log(3.0)]] * 2))
    assert log_probs.exp().flatten().tolist() == pytest.approx([0.25, 0.75] * 2)
    loss = supervised_loss(log_probs, th.tensor([0, 1]))
    assert loss.tolist() == pytest.approx([math.log(4.0), math.log(4.0 / 3.0)])


def test_target_by_hand_and_without_gradients() -> None:
    values = th.tensor([2.0, 4.0], requires_grad=True)
    rewards = th.tensor([1.0, -1.0])
    target = td_target(rewards, 0.5, values, th.tensor([False, True]))
    assert target.tolist() == [2.0, -1.0]  # 1 + 0.5 * 2; at an end the reward alone
    assert td_target(rewards, 0.5, values).tolist() == [2.0, 1.0]
    assert not target.requires_grad


def test_td_loss_by_hand() -> None:
    q_positive = th.tensor([1.0, 0.0], requires_grad=True)
    q_negative = th.tensor([0.5, 0.5], requires_grad=True)
    loss = td_loss(q_positive, th.tensor([3.0, 0.0]), q_negative, th.tensor([0.5, 1.5]))
    # means of the squared errors 4, 0 and 0, 1; not halved
    assert loss.positive.item() == 2.0
    assert loss.negative.item() == 0.5
    assert loss.total.item() == 2.5
    loss.total.backward()
    assert q_positive.grad is not None
    assert q_positive.grad.tolist() == [-2.0, 0.0]


def test_advantage_by_hand_clipped_and_without_gradients() -> None:
    q_positive = th.tensor([2.0, 0.0], requires_grad=True)
    q_negative = th.tensor([1.0, 3.0], requires_grad=True)
    assert advantage(q_positive, q_negative).tolist() == [0.5, -1.5]
    assert advantage(q_positive, q_negative, minimum=0.0).tolist() == [0.5, 0.0]
    assert advantage(q_positive, q_negative, minimum=1.0).tolist() == [1.0, 1.0]
    assert not advantage(q_positive, q_negative).requires_grad


def test_a_negative_advantage_pushes_the_next_item_down() -> None:
    logits = th.zeros(1, 2, requires_grad=True)
    supervised = supervised_loss(log_probabilities(logits), th.tensor([0]))
    combined_loss(supervised, weights=th.tensor([-1.0])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.5, -0.5]]  # descent lowers the logit of item 0


def test_combined_loss_by_hand() -> None:
    supervised, td = th.tensor([1.0, 3.0]), th.tensor(10.0)
    assert combined_loss(supervised).item() == 2.0
    assert combined_loss(supervised, td).item() == 12.0
    # the mean of 0.5 and -3
    assert combined_loss(supervised, td, th.tensor([0.5, -1.0])).item() == 8.75


def test_augmented_and_total_loss_by_hand() -> None:
    augmented = augmented_td_loss(th.tensor([1.0, 2.0]), th.tensor([3.0, 2.0]))
    assert augmented.item() == 2.0
    supervised = th.tensor([2.0, 6.0])
    total = total_loss(th.tensor(10.0), supervised, augmented)
    assert total.item() == pytest.approx(10.0 + 0.1 * 4.0 + 0.01 * 2.0)
    assert total_loss(th.tensor(10.0)).item() == 10.0
    other = total_loss(th.tensor(10.0), supervised, augmented, 0.5, 2.0)
    assert other.item() == pytest.approx(10.0 + 0.5 * 4.0 + 2.0 * 2.0)


def test_shapes_that_would_broadcast_are_refused() -> None:
    row, column = th.zeros(3), th.zeros(3, 1)
    with pytest.raises(ValueError, match="flatten both"):
        td_target(row, 0.5, column)
    with pytest.raises(ValueError, match="flatten both"):
        augmented_td_loss(row, column)
    with pytest.raises(ValueError, match="flatten both"):
        advantage(row, column)
    with pytest.raises(ValueError, match="flatten both"):
        combined_loss(row, weights=column)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(2, 7), st.integers(0, 2**16))
def test_supervised_loss_is_the_cross_entropy(batch: int, items: int, seed: int) -> None:
    generator = th.Generator().manual_seed(seed)
    logits = th.randn(batch, items, generator=generator, dtype=th.float64)
    targets = th.randint(items, (batch,), generator=generator)
    log_probs = log_probabilities(logits)
    th.testing.assert_close(log_probs.exp().sum(1), th.ones(batch, dtype=th.float64))
    expected = th.nn.functional.cross_entropy(logits, targets)
    th.testing.assert_close(supervised_loss(log_probs, targets).mean(), expected)
