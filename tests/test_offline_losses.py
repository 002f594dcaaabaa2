"""The losses of the offline algorithms: hand-computed numbers, and what they must never do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_sb3.common.masking import masked_log_softmax
from ilrec_sb3.offline.losses import (
    bcq_loss,
    bcq_scores,
    cloning_loss,
    conservative_loss,
    cql_loss,
    crr_loss,
    crr_weights,
    sqn_loss,
)

LOG_PROBS = th.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
ACTIONS = th.tensor([[0], [1]])
CROSS_ENTROPY = -(math.log(0.5) + math.log(0.8)) / 2
Q_TAKEN = th.tensor([1.0, 4.0])
TARGET = th.tensor([1.5, 2.0])
HUBER = (0.5 * 0.5**2 + (2.0 - 0.5)) / 2
"""Errors 0.5 (squared and halved) and 2 (linear)."""


def test_cloning_is_the_mean_negative_log_probability() -> None:
    assert cloning_loss(LOG_PROBS, ACTIONS).item() == pytest.approx(CROSS_ENTROPY)


def test_sqn_adds_both_heads_losses() -> None:
    losses = sqn_loss(LOG_PROBS, ACTIONS, Q_TAKEN, TARGET)
    assert losses.cross_entropy.item() == pytest.approx(CROSS_ENTROPY)
    assert losses.td.item() == pytest.approx(HUBER)
    assert losses.total.item() == pytest.approx(CROSS_ENTROPY + HUBER)


def test_crr_weights() -> None:
    advantages = th.tensor([-1.0, 0.0, 1.0, 100.0])
    np.testing.assert_array_equal(crr_weights(advantages, "binary"), [0.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(
        crr_weights(advantages, "exp", beta=2.0, max_weight=20.0),
        [math.exp(-0.5), 1.0, math.exp(0.5), 20.0],
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match="expected 'exp' or 'binary'"):
        crr_weights(advantages, "linear")  # type: ignore[arg-type]


def test_crr_weights_pass_no_gradient() -> None:
    advantages = th.zeros(2, requires_grad=True)
    assert not crr_weights(advantages, "exp").requires_grad


def test_crr_weighs_the_logged_actions_and_sums_the_critics() -> None:
    weights = th.tensor([2.0, 0.0])
    losses = crr_loss(LOG_PROBS, ACTIONS, weights, [Q_TAKEN, TARGET], TARGET)
    assert losses.actor.item() == pytest.approx(-math.log(0.5))  # 2 log 0.5 over 2 rows
    assert losses.td.item() == pytest.approx(HUBER)  # the second critic is right
    assert losses.total.item() == pytest.approx(HUBER - math.log(0.5))


def test_bcq_keeps_what_is_likely_enough() -> None:
    q_values = th.tensor([[1.0, 9.0, 5.0]])
    log_probs = th.tensor([[0.6, 0.1, 0.3]]).log()  # ratios 1, 1/6, 1/2
    assert bcq_scores(q_values, log_probs, 0.4).tolist() == [[1.0, -1e8, 5.0]]
    assert bcq_scores(q_values, log_probs, 0.0).tolist() == q_values.tolist()
    assert bcq_scores(q_values, log_probs, 0.99).tolist() == [[1.0, -1e8, -1e8]]


def test_bcq_loss() -> None:
    logits = th.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, 0.0]])
    losses = bcq_loss(Q_TAKEN, TARGET, logits, LOG_PROBS, ACTIONS, logit_coefficient=0.1)
    assert losses.regularisation.item() == pytest.approx(0.1)  # mean square 1
    assert losses.total.item() == pytest.approx(HUBER + CROSS_ENTROPY + 0.1)


def test_conservative_loss() -> None:
    q_values = th.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    actions = th.tensor([[1], [0]])
    # log(1 + 3) - log 3 and log(2 e) - 1
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert conservative_loss(q_values, actions).item() == pytest.approx(expected)
    masks = th.tensor([[False, True], [True, True]])
    assert conservative_loss(q_values, actions, masks).item() == pytest.approx(math.log(2) / 2)


def test_cql_adds_the_regulariser_by_its_factor() -> None:
    q_values = th.tensor([[1.0, 0.0], [0.0, 4.0]])
    losses = cql_loss(q_values, ACTIONS, TARGET, alpha=0.5)
    conservative = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-4))) / 2
    assert losses.conservative.item() == pytest.approx(conservative)
    assert losses.td.item() == pytest.approx(HUBER)
    assert losses.total.item() == pytest.approx(HUBER + 0.5 * conservative)


@given(
    logits=st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    q_values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
    masks=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    threshold=st.floats(0, 0.999),
)
@settings(max_examples=50, deadline=None)
def test_bcq_chooses_an_allowed_action_and_stays_finite(
    logits: list[float], q_values: list[float], masks: list[bool], threshold: float
) -> None:
    allowed = th.tensor([masks])
    log_probs = masked_log_softmax(th.tensor([logits]), allowed)
    scores = bcq_scores(th.tensor([q_values]), log_probs, threshold)
    assert th.isfinite(scores).all()
    assert allowed[0, scores.argmax()]
    favourite = int(log_probs.argmax())
    assert scores[0, favourite] == th.tensor(q_values)[favourite], "always in play"


@given(
    q_values=st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    action=st.integers(0, 2),
)
@settings(max_examples=50, deadline=None)
def test_the_regulariser_is_not_negative(q_values: list[float], action: int) -> None:
    assert conservative_loss(th.tensor([q_values]), th.tensor([[action]])).item() >= -1e-5
