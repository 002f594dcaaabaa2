"""Equations 20 to 23 against hand-computed numbers and float64 references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th

from ilrec_sb3.common.masking import masked_entropy, masked_log_softmax
from ilrec_sb3.ilrec.losses import (
    actor_loss,
    critic_loss,
    critic_target,
    entropy_temperature_loss,
    imitation_loss,
    outcome_loss,
    policy_loss,
    soft_value,
    spread_penalty,
    target_entropy,
    worth_imitating,
)

HALF = math.log(0.5)


def test_eq_20_by_hand() -> None:
    log_probs = th.tensor([math.log(0.5), math.log(0.25)], dtype=th.float64)
    loss = imitation_loss(log_probs, th.tensor([2.0, 1.0], dtype=th.float64))
    # -(2 log 1/2 + log 1/4) / 2 = 2 log 2
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert imitation_loss(log_probs).item() == pytest.approx(1.5 * math.log(2))


def test_eq_20_raises_the_probability_of_heavy_transitions_more() -> None:
    logits = th.zeros(2, 3, requires_grad=True)
    log_probs = th.log_softmax(logits, -1)[:, 0]
    imitation_loss(log_probs, th.tensor([3.0, 1.0])).backward()
    assert logits.grad[0, 0] == pytest.approx(3 * logits.grad[1, 0].item())
    assert logits.grad[0, 0] < 0


def test_what_is_worth_imitating_by_hand() -> None:
    # both critics find it better, the first alone, neither, neither but what followed was better,
    # all level
    values = th.tensor([[2.0, 2.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.5, 0.5, 1.0]], requires_grad=True)
    returns = th.tensor([0.0, 0.0, 0.9, 1.1, 1.0])
    worth = worth_imitating(values, th.ones(2, 5), returns)
    assert worth.tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert not worth.requires_grad
    with pytest.raises(ValueError, match="flatten both"):
        worth_imitating(values, th.ones(2), returns)


def test_eq_21_by_hand() -> None:
    log_probs = th.tensor([[HALF, HALF]], dtype=th.float64)
    result = actor_loss(log_probs, th.tensor([[1.0, 3.0]], dtype=th.float64), 0.5)
    assert result.expected_q.item() == pytest.approx(2.0)
    assert result.entropy.item() == pytest.approx(math.log(2))
    assert result.loss.item() == pytest.approx(-(2.0 + 0.5 * math.log(2)))


def test_eq_21_rewards_entropy() -> None:
    """With equal Q-values a descent step must flatten the policy, not sharpen it."""
    logits = th.tensor([[2.0, 0.0]], requires_grad=True)
    result = actor_loss(th.log_softmax(logits, -1), th.ones(1, 2), 1.0)
    result.loss.backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


def test_eq_21_gradient_does_not_reach_the_critic_or_the_temperature() -> None:
    logits, q = th.zeros(1, 2, requires_grad=True), th.ones(1, 2, requires_grad=True)
    coefficient = th.tensor(0.3, requires_grad=True)
    actor_loss(th.log_softmax(logits, -1), q, coefficient).loss.backward()
    assert q.grad is None
    assert coefficient.grad is None


def test_eq_22_by_hand() -> None:
    loss = policy_loss(th.tensor(2.0), th.tensor(-3.0), 0.5)
    assert loss.total.item() == pytest.approx(-2.0)
    assert (loss.imitation.item(), loss.actor.item()) == (2.0, -3.0)


def test_eq_23_by_hand() -> None:
    log_probs = th.tensor([[HALF, HALF], [0.0, -1e9]], dtype=th.float64)
    q = th.tensor([[1.0, 3.0], [4.0, 1e6]], dtype=th.float64)
    expected = (log_probs.exp() * q).sum(-1)
    value = soft_value(expected, masked_entropy(log_probs), 0.5)
    np.testing.assert_allclose(value, [2.0 + 0.5 * math.log(2), 4.0])
    rewards, dones = th.tensor([[1.0], [2.0]]), th.tensor([[0.0], [1.0]])
    target = critic_target(rewards, dones, value.float(), 0.9)
    np.testing.assert_allclose(target, [1.0 + 0.9 * (2.0 + 0.5 * math.log(2)), 2.0], rtol=1e-6)
    stepped = critic_target(rewards, th.zeros(2, 1), value.float(), th.tensor([[0.9], [0.81]]))
    assert stepped[1].item() == pytest.approx(2.0 + 0.81 * 4.0)


def test_eq_23_against_a_float64_reference() -> None:
    rng = np.random.default_rng(0)
    logits, q = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    masks = rng.random((7, 5)) < 0.6
    masks[:, 0] = True
    expected = []
    for row in range(7):
        allowed = np.flatnonzero(masks[row])
        p = np.exp(logits[row, allowed]) / np.exp(logits[row, allowed]).sum()
        expected.append((p * (q[row, allowed] - 0.3 * np.log(p))).sum())
    log_probs = masked_log_softmax(th.tensor(logits).float(), th.tensor(masks))
    mean_q = (log_probs.exp() * th.tensor(q).float()).sum(-1)
    got = soft_value(mean_q, masked_entropy(log_probs), 0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_critic_loss_by_hand() -> None:
    target = th.tensor([0.0, 0.0])
    q = [th.tensor([1.0, 3.0], requires_grad=True), th.tensor([0.0, 2.0])]
    loss = critic_loss(q, target)
    assert loss.loss.item() == pytest.approx(0.5 * 5.0 + 0.5 * 2.0)
    assert loss.mean_q.item() == pytest.approx(1.5)
    assert loss.mean_error.item() == pytest.approx(1.5)
    huber = critic_loss([th.tensor([0.5, 3.0])], target, kind="huber")
    assert huber.loss.item() == pytest.approx((0.5 * 0.25 + 2.5) / 2)
    with pytest.raises(ValueError, match="'mse' or 'huber'"):
        critic_loss(q, target, kind="mae")  # type: ignore[arg-type]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="flatten both"):
        critic_loss([th.zeros(4, 1)], th.zeros(4))
    with pytest.raises(ValueError, match="flatten both"):
        imitation_loss(th.zeros(4), th.ones(4, 1))


def test_the_temperature_rises_when_the_policy_is_too_sure() -> None:
    log_coefficient = th.zeros(1, requires_grad=True)
    entropy = th.tensor([0.1, 0.3])
    entropy_temperature_loss(log_coefficient, entropy, 0.5).backward()
    assert log_coefficient.grad.item() == pytest.approx(0.2 - 0.5)


def test_target_entropy_counts_allowed_actions() -> None:
    assert target_entropy(0.5, 16).item() == pytest.approx(0.5 * math.log(16))
    masks = th.tensor([[True, True, False, False], [True, False, False, False]])
    np.testing.assert_allclose(target_entropy(0.5, 4, masks), [0.5 * math.log(2), 0.0], rtol=1e-6)


def test_outcome_loss_by_hand() -> None:
    rewards, seen = th.tensor([3.0, 1.0]), th.tensor([3.5, 4.0])
    logits, ended = th.tensor([0.0, math.log(3.0)]), th.tensor([0.0, 1.0])
    found = outcome_loss(rewards, logits, seen, ended)
    # Huber: 0.5 * 0.5^2 and 3 - 0.5; ends: -log 0.5 and -log 0.75
    ends = (math.log(2.0) - math.log(0.75)) / 2
    assert float(found.loss) == pytest.approx((0.125 + 2.5) / 2 + ends, abs=1e-5)
    assert float(found.reward_error) == pytest.approx(1.75)
    assert float(found.end_loss) == pytest.approx(ends, abs=1e-5)
    with pytest.raises(ValueError, match="end_logits"):
        outcome_loss(rewards, logits[:1], seen, ended)


def test_spread_penalty_by_hand() -> None:
    values = [th.tensor([1.0, 2.0]), th.tensor([0.0, 0.0])]
    others = [th.tensor([1.0, 4.0]), th.tensor([1.0, 3.0])]
    assert spread_penalty(values, others).item() == pytest.approx(4.0 / 2 + 10.0 / 2)
    with pytest.raises(ValueError, match="flatten both"):
        spread_penalty([th.zeros(4)], [th.zeros(4, 1)])
