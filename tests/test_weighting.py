"""Equations 15 to 19 against hand-computed numbers and float64 references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_sb3.ilrec.weighting import (
    advantage,
    combine,
    discounted_returns,
    effective_sample_size,
    fit_value,
    log_env_weight,
    log_irl_weight,
    normalise,
    weight_statistics,
)


def test_eq_15_by_hand() -> None:
    rewards = th.tensor([1.0, 2.0, 4.0], dtype=th.float64)
    np.testing.assert_allclose(discounted_returns(rewards, 0.5), [3.0, 4.0, 4.0])
    np.testing.assert_allclose(discounted_returns(rewards, 0.5, bootstrap=8.0), [4.0, 6.0, 8.0])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_eq_15_is_its_sum(rewards: list[float], gamma: float) -> None:
    got = discounted_returns(th.tensor(rewards, dtype=th.float64), gamma)
    for t in range(len(rewards)):
        expected = sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards)))
        assert got[t].item() == pytest.approx(expected, abs=1e-9)


def test_eq_16_to_18_by_hand() -> None:
    a = advantage(th.tensor([5.0, 1.0]), th.tensor([3.0, 3.0]))
    np.testing.assert_allclose(a, [2.0, -2.0])
    np.testing.assert_allclose(log_env_weight(a, 0.5).exp(), [math.exp(4), math.exp(-4)], rtol=1e-5)
    # D = 1/4 of being the policy's: (1/D - 1)^2 = 9
    logit = -math.log(0.25 / 0.75)
    w_irl = log_irl_weight(th.tensor([logit]), 2.0).exp()
    np.testing.assert_allclose(w_irl, [9.0], rtol=1e-5)


def test_eq_18_agrees_with_the_discriminators_sign() -> None:
    logits = th.linspace(-4, 4, 9, dtype=th.float64)
    d = th.sigmoid(-logits)
    th.testing.assert_close(log_irl_weight(logits, 1.7).exp(), (1 / d - 1) ** 1.7)


def test_eq_19_by_hand() -> None:
    log_w = combine(th.tensor([math.log(16.0)]), th.tensor([math.log(81.0)]), 0.25)
    assert log_w.exp().item() == pytest.approx(2.0 * 27.0, rel=1e-5)
    with pytest.raises(ValueError, match="0 to 1"):
        combine(log_w, log_w, 1.5)
    with pytest.raises(ValueError, match="positive temperature"):
        log_env_weight(log_w, 0.0)


def test_normalised_weights_have_mean_one() -> None:
    weights = normalise(th.tensor([0.0, math.log(3.0)], dtype=th.float64))
    np.testing.assert_allclose(weights, [0.5, 1.5])


def test_weights_far_beyond_floats_stay_finite() -> None:
    weights = normalise(th.tensor([5000.0, 5000.0, -5000.0, 0.0]), 0.01, 10.0)
    np.testing.assert_allclose(weights, [2.0, 2.0, 0.01, 0.01], rtol=1e-5)
    with pytest.raises(ValueError, match="low <= 1 <= high"):
        normalise(weights, 2.0, 10.0)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=40), st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_normalising_keeps_order_and_ignores_the_scale(values: list[float], shift: float) -> None:
    log_w = th.tensor(values, dtype=th.float64)
    weights = normalise(log_w)
    assert weights.min() >= 0.01
    assert weights.max() <= 10.0
    assert (weights[log_w.argsort()].diff() >= -1e-12).all()
    th.testing.assert_close(weights, normalise(log_w + shift))


def test_effective_sample_size() -> None:
    assert effective_sample_size(th.ones(7)) == pytest.approx(7.0)
    assert effective_sample_size(th.tensor([1.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_sample_size(th.tensor([3.0, 1.0])) == pytest.approx(1.6)
    statistics = weight_statistics(th.tensor([0.01, 10.0, 1.0, 1.0]))
    assert statistics.clipped_share == pytest.approx(0.5)
    assert statistics.effective_share == pytest.approx(12.01**2 / 102.0001 / 4)


def _sessions(count: int, length: int, noise: float) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """States tell the steps that are left; each session also has a luck that no state tells."""
    rng = np.random.default_rng(3)
    left = np.tile(np.arange(length, 0, -1.0), count)
    luck = np.repeat(rng.normal(scale=noise, size=count), length)
    observations = np.c_[left / length, np.repeat(rng.normal(size=(count, 8)), length, axis=0)]
    sessions = np.repeat(np.arange(count), length)
    return th.tensor(observations).float(), th.tensor(left + luck).float(), th.tensor(sessions)


def test_v_demo_learns_what_states_tell() -> None:
    observations, returns, sessions = _sessions(60, 10, noise=0.2)
    fit = fit_value(observations, returns, sessions, max_epochs=60)
    assert fit.error < 0.15 * fit.constant_error
    assert fit.values.shape == returns.shape


def test_v_demo_does_not_memorise_a_sessions_luck() -> None:
    """Advantages must keep the luck of a session, which its own value network never saw."""
    observations, returns, sessions = _sessions(30, 10, noise=3.0)
    luck = returns - observations[:, 0] * 10
    advantages = advantage(returns, fit_value(observations, returns, sessions).values)
    assert advantages.std() > 0.8 * luck.std()
    assert np.corrcoef(advantages, luck)[0, 1] > 0.8


def test_v_demo_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    data = _sessions(8, 5, noise=1.0)
    before = th.get_rng_state()
    first = fit_value(*data, seed=1, max_epochs=3).values
    assert th.equal(before, th.get_rng_state())
    assert th.equal(first, fit_value(*data, seed=1, max_epochs=3).values)


def test_v_demo_of_one_session_is_its_mean() -> None:
    observations, returns, sessions = _sessions(1, 4, noise=0.0)
    np.testing.assert_allclose(fit_value(observations, returns, sessions).values, [2.5] * 4)
    with pytest.raises(ValueError, match="as many of each"):
        fit_value(observations, returns[:2], sessions)
