"""User vectors that follow the rewards of a session."""

from __future__ import annotations

import numpy as np
import pytest

from recsim_env import DataError, Dynamics, Prepared, RecVectorEnv
from recsim_env.feedback import Feedback, updated_beliefs
from recsim_env.termination import Repeat


def test_updates_by_hand() -> None:
    """Variance 1 and noise 1 share a surprise of 2 equally; the other number is not touched."""
    vectors, covariances = updated_beliefs(
        np.zeros((1, 2), np.float32),
        np.eye(2, dtype=np.float32)[None],
        np.array([[1.0, 0.0]], np.float32),
        np.array([2.0], np.float32),
        1.0,
    )
    np.testing.assert_allclose(vectors, [[1.0, 0.0]])
    np.testing.assert_allclose(covariances, [[[0.5, 0.0], [0.0, 1.0]]])
    assert vectors.dtype == covariances.dtype == np.float32


def test_one_at_a_time_is_as_all_at_once() -> None:
    generator = np.random.default_rng(0)
    n, noise = 6, 0.3
    columns, surprises = generator.normal(size=(n, 3)), generator.normal(size=n)
    root = generator.normal(size=(3, 3))
    prior = root @ root.T
    gain = prior @ columns.T @ np.linalg.inv(columns @ prior @ columns.T + noise * np.eye(n))
    vector, covariance = np.zeros((1, 3), np.float32), prior[None].astype(np.float32)
    for column, reward in zip(columns.astype(np.float32), surprises, strict=True):
        surprise = np.array([reward - column @ vector[0]], np.float32)
        vector, covariance = updated_beliefs(vector, covariance, column[None], surprise, noise)
    np.testing.assert_allclose(vector[0], gain @ surprises, atol=1e-4)
    np.testing.assert_allclose(covariance[0], prior - gain @ columns @ prior, atol=1e-4)


@pytest.fixture
def feedback(prepared: Prepared) -> Feedback:
    return Feedback(np.eye(prepared.user_basis.shape[1], dtype=np.float32), 1e-4)


def test_a_session_of_another_user_is_found_out(prepared: Prepared, feedback: Feedback) -> None:
    """Where the rewards are those of other users, observations come to predict them."""
    n = prepared.dataset.n_users
    told = prepared.user_offset + prepared.user_vectors @ prepared.user_basis.T
    others = np.roll(told, 1, axis=0).astype(np.float32)
    dynamics = Dynamics(
        prepared, split="test", rules=(Repeat(),), limit=30, table=others, feedback=feedback
    )
    state = dynamics.allocate(n)
    dynamics.initial(state, np.arange(n), np.arange(n))
    user = dynamics.layout.user
    start = dynamics.observe(state)[:, user]
    np.testing.assert_array_equal(start, prepared.user_vectors)
    for item in range(25):
        dynamics.step(state, np.full(n, item))
    guess = prepared.user_offset + dynamics.observe(state)[:, user] @ prepared.user_basis.T
    assert np.abs(guess - others).mean() < 0.1 * np.abs(told - others).mean()

    dynamics.initial(state, np.array([3]), np.array([5]))  # the next session knows nothing of it
    np.testing.assert_array_equal(dynamics.observe(state)[3, user], prepared.user_vectors[5])
    np.testing.assert_array_equal(state.beliefs[3], feedback.covariance)
    assert (state.beliefs[4] != feedback.covariance).any()


def test_foreseen_rewards_change_nothing(prepared: Prepared, feedback: Feedback) -> None:
    told = prepared.user_offset + prepared.user_vectors @ prepared.user_basis.T
    dynamics = Dynamics(
        prepared, split="train", rules=(Repeat(),), table=told.astype(np.float32), feedback=feedback
    )
    state = dynamics.allocate(4)
    dynamics.initial(state, np.arange(4), np.arange(4))
    for item in range(5):
        dynamics.step(state, np.full(4, item))
    np.testing.assert_allclose(state.user_vectors, prepared.user_vectors[:4], atol=1e-3)


def test_saved_sessions_keep_their_beliefs(prepared: Prepared, feedback: Feedback) -> None:
    dynamics = Dynamics(prepared, split="test", rules=(Repeat(),), feedback=feedback)
    state = dynamics.allocate(3)
    dynamics.initial(state, np.arange(3), np.arange(3))
    dynamics.step(state, np.arange(3))
    again = dynamics.state_from_arrays(dynamics.state_arrays(state))
    dynamics.step(state, np.arange(3, 6))
    dynamics.step(again, np.arange(3, 6))
    np.testing.assert_array_equal(dynamics.observe(again), dynamics.observe(state))


def test_it_is_part_of_the_fingerprint_and_of_no_other(
    prepared: Prepared, feedback: Feedback
) -> None:
    def fingerprint(given: Feedback | None) -> str:
        return Dynamics(prepared, split="test", rules=(Repeat(),), feedback=given).fingerprint

    other = Feedback(feedback.covariance, 0.5)
    assert len({fingerprint(None), fingerprint(feedback), fingerprint(other)}) == 3
    plain = Dynamics(prepared, split="test", rules=(Repeat(),))
    assert plain.allocate(2).beliefs.shape == (2, 0, 0)


def test_vector_environments_take_it(prepared: Prepared, feedback: Feedback) -> None:
    dynamics = Dynamics(prepared, split="test", rules=(Repeat(),), limit=4, feedback=feedback)
    env = RecVectorEnv(5, dynamics=dynamics)
    first, _ = env.reset(seed=0)
    for step in range(6):
        observations, *_ = env.step(np.arange(5) + step)
    assert np.isfinite(observations).all()
    assert observations.shape == first.shape


@pytest.mark.parametrize(
    ("covariance", "noise", "message"),
    [
        (np.ones(3), 1.0, "shape"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), 1.0, "eigenvalues"),
        (np.eye(2), 0.0, "above 0"),
    ],
)
def test_bad_settings_are_explained(covariance: np.ndarray, noise: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Feedback(covariance, noise)


def test_it_must_fit_the_user_vectors(prepared: Prepared) -> None:
    with pytest.raises(DataError, match=r"\(2, 2\), expected \(16, 16\)"):
        Dynamics(
            prepared, split="test", rules=(), feedback=Feedback(np.eye(2, dtype=np.float32), 1.0)
        )
