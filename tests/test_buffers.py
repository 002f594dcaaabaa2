"""Replay and demonstration buffers: masks, ends of episodes, n-step sums, weights, saving."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec_sb3.common.buffers import DemonstrationBuffer, MaskedReplayBuffer
from recsim_env.trajectories import Trajectory

N = 11
BOX = spaces.Box(-np.inf, np.inf, (1,), np.float64)
ITEMS = spaces.Discrete(N)


def _buffer(size: int = 8, n_envs: int = 1, **kwargs: Any) -> MaskedReplayBuffer:
    return MaskedReplayBuffer(size, BOX, ITEMS, device="cpu", n_envs=n_envs, seed=0, **kwargs)


def _fill(buffer: MaskedReplayBuffer, rewards: list[float], ends: dict[int, str]) -> None:
    """One environment whose observation at step t is t and after it t + 0.5."""
    for t, reward in enumerate(rewards):
        end = ends.get(t)
        buffer.add(
            np.array([[float(t)]]),
            np.array([[t + 0.5]]),
            np.array([t % N]),
            np.array([reward]),
            np.array([end is not None]),
            [{"TimeLimit.truncated": end == "truncated"}],
        )


def _all_samples(buffer: MaskedReplayBuffer) -> dict[float, tuple[float, float, float, float]]:
    """Returns observation -> (reward, next observation, done, discount)."""
    batch = buffer.sample(400)
    discounts = th.full_like(batch.rewards, -1) if batch.discounts is None else batch.discounts
    columns = (batch.rewards, batch.next_observations, batch.dones, discounts)
    return {
        batch.observations[i].item(): tuple(c[i].item() for c in columns)  # type: ignore[misc]
        for i in range(400)
    }


def test_one_step_samples() -> None:
    buffer = _buffer()
    _fill(buffer, [1.0, 2.0, 4.0], {1: "terminated", 2: "truncated"})
    assert _all_samples(buffer) == {
        0.0: (1.0, 0.5, 0.0, -1.0),
        1.0: (2.0, 1.5, 1.0, -1.0),
        2.0: (4.0, 2.5, 0.0, -1.0),
    }
    batch = buffer.sample(4)
    assert batch.observations.dtype == th.float32
    assert batch.actions.dtype == th.int64
    assert batch.action_masks is None
    assert batch.discounts is None


def test_n_step_samples_by_hand() -> None:
    """Three steps, gamma 1/2: stops at a termination, at a truncation and at the newest entry."""
    buffer = _buffer(n_steps=3, gamma=0.5)
    _fill(buffer, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], {2: "terminated", 4: "truncated"})
    assert _all_samples(buffer) == {
        0.0: (1 + 1 + 1, 2.5, 1.0, 0.125),
        1.0: (2 + 2, 2.5, 1.0, 0.25),
        2.0: (4.0, 2.5, 1.0, 0.5),
        3.0: (8 + 8, 4.5, 0.0, 0.25),
        4.0: (16.0, 4.5, 0.0, 0.5),
        5.0: (32 + 32, 6.5, 0.0, 0.25),
        6.0: (64.0, 6.5, 0.0, 0.5),
    }


def test_n_step_samples_do_not_cross_the_head_of_a_full_buffer() -> None:
    buffer = _buffer(size=4, n_steps=3, gamma=0.5)
    _fill(buffer, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], {})
    assert _all_samples(buffer) == {
        2.0: (4 + 4 + 4, 4.5, 0.0, 0.125),
        3.0: (8 + 8 + 8, 5.5, 0.0, 0.125),
        4.0: (16 + 16, 5.5, 0.0, 0.25),
        5.0: (32.0, 5.5, 0.0, 0.5),
    }


@given(
    n_steps=st.integers(2, 5),
    size=st.integers(2, 9),
    ends=st.lists(st.sampled_from([None, "terminated", "truncated"]), min_size=1, max_size=14),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_n_step_samples_against_a_slow_reference(
    n_steps: int, size: int, ends: list[str | None], seed: int
) -> None:
    rewards = np.random.default_rng(seed).normal(size=len(ends)).tolist()
    buffer = _buffer(size=size, n_steps=n_steps, gamma=0.9)
    _fill(buffer, rewards, {t: end for t, end in enumerate(ends) if end})
    for start, got in _all_samples(buffer).items():
        total, t = 0.0, int(start)
        for k in range(n_steps):
            t = int(start) + k
            total += 0.9**k * rewards[t]
            if ends[t] or t == len(ends) - 1:
                break
        steps = t - int(start) + 1
        expected = (total, t + 0.5, float(ends[t] == "terminated"), 0.9**steps)
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def _masked_steps(buffer: MaskedReplayBuffer, steps: int, seed: int) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    kept = []
    for t in range(steps):
        masks = rng.random((buffer.n_envs, N)) < 0.5
        after = rng.random((buffer.n_envs, N)) < 0.5
        last = np.arange(N) < 3
        done = np.arange(buffer.n_envs) == t % (buffer.n_envs + 1)
        infos: list[dict[str, Any]] = [{} for _ in range(buffer.n_envs)]
        for row in np.flatnonzero(done):
            infos[row]["terminal_action_mask"] = last
        obs = (t * 100.0 + np.arange(buffer.n_envs))[:, None]
        zeros = np.zeros(buffer.n_envs)
        buffer.add(obs, obs, zeros.astype(int), zeros, done, infos, masks, after)
        after[done] = last
        kept.append((masks, after))
    return kept


def test_masks_come_back_with_their_transition() -> None:
    buffer = _buffer(size=30, n_envs=5)
    kept = _masked_steps(buffer, 4, seed=0)
    batch = buffer.sample(100)
    assert buffer.masks is not None
    assert buffer.masks.shape == (6, 5, 2)
    for i in range(100):
        t, row = divmod(int(batch.observations[i].item()), 100)
        np.testing.assert_array_equal(batch.action_masks[i], kept[t][0][row])
        np.testing.assert_array_equal(batch.next_action_masks[i], kept[t][1][row])


def test_a_last_mask_that_allows_nothing_counts_as_everything() -> None:
    buffer = _buffer()
    nothing = {"terminal_action_mask": np.zeros(N, bool)}
    some = np.arange(N)[None] == 1
    obs = np.zeros((1, 1))
    buffer.add(obs, obs, np.zeros(1), np.zeros(1), np.ones(1, bool), [nothing], some, some)
    batch = buffer.sample(1)
    assert batch.next_action_masks.all()
    assert batch.action_masks.sum() == 1


def test_masks_for_part_of_the_steps_are_refused() -> None:
    buffer = _buffer()
    _fill(buffer, [1.0], {})
    obs, masks = np.zeros((1, 1)), np.ones((1, N), bool)
    rest = (np.zeros(1), np.zeros(1), np.zeros(1, bool), [{}])
    with pytest.raises(ValueError, match="at every step or at none"):
        buffer.add(obs, obs, *rest, masks, masks)
    with pytest.raises(ValueError, match="at every step or at none"):
        _buffer().add(obs, obs, *rest, masks)


@pytest.mark.parametrize("steps", [3, 9])
def test_saved_and_loaded_it_samples_the_same(steps: int) -> None:
    buffer = _buffer(size=12, n_envs=2, n_steps=2)
    _masked_steps(buffer, steps, seed=1)
    state = {name: np.ascontiguousarray(a) for name, a in buffer.state_dict().items()}
    assert all(array.dtype != object for array in state.values())
    assert len(state["rewards"]) == min(steps, 6)
    other = _buffer(size=12, n_envs=2, n_steps=2)
    other.load_state_dict(state)
    _masked_steps(buffer, 2, seed=2)
    _masked_steps(other, 2, seed=2)
    for mine, theirs in zip(buffer.sample(50), other.sample(50), strict=True):
        assert th.equal(mine, theirs)
    with pytest.raises(ValueError, match="same sizes"):
        _buffer(size=12, n_envs=3).load_state_dict(state)


def test_samples_depend_on_the_seed_alone() -> None:
    def draw(seed: int) -> th.Tensor:
        buffer = MaskedReplayBuffer(50, BOX, ITEMS, device="cpu", seed=seed)
        _fill(buffer, [1.0] * 40, {})
        return buffer.sample(30).observations

    assert th.equal(draw(1), draw(1))
    assert not th.equal(draw(1), draw(2))


def test_observations_of_more_axes_and_integer_ones_keep_their_form() -> None:
    space = spaces.Box(0, 50, (2, 3), np.int64)
    buffer = MaskedReplayBuffer(8, space, ITEMS, device="cpu", n_envs=2, seed=0)
    obs = np.arange(12).reshape(2, 2, 3)
    buffer.add(obs, obs + 12, np.zeros(2), np.zeros(2), np.zeros(2, bool), [{}, {}])
    batch = buffer.sample(20)
    assert batch.observations.dtype == th.int64
    assert {tuple(row.flatten().tolist()) for row in batch.observations} == {
        tuple(range(6)),
        tuple(range(6, 12)),
    }
    assert th.equal(batch.next_observations, batch.observations + 12)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="Discrete"):
        MaskedReplayBuffer(8, BOX, BOX)
    with pytest.raises(ValueError, match="n_steps = 0"):
        _buffer(n_steps=0)
    with pytest.raises(ValueError, match="leave it False"):
        _buffer(optimize_memory_usage=True)
    with pytest.raises(ValueError, match="empty replay buffer"):
        _buffer().sample(1)


def _session(rewards: list[float], start: float = 0.0, **changes: Any) -> Trajectory:
    steps = len(rewards)
    fields: dict[str, Any] = {
        "observations": start + np.arange(steps + 1.0)[:, None],
        "actions": np.arange(steps),
        "rewards": rewards,
        "terminated": True,
        "n_actions": N,
    }
    return Trajectory(**{**fields, **changes})


def test_demonstrations_are_laid_out_by_hand() -> None:
    sessions = [_session([1.0, 2.0, 4.0]), _session([8.0], 10.0, terminated=False, truncated=True)]
    buffer = DemonstrationBuffer(sessions, gamma=0.5)
    np.testing.assert_array_equal(buffer.observations[:, 0], [0, 1, 2, 10])
    np.testing.assert_array_equal(buffer.next_observations[:, 0], [1, 2, 3, 11])
    np.testing.assert_array_equal(buffer.dones, [0, 0, 1, 0])
    np.testing.assert_array_equal(buffer.returns, [3, 4, 4, 8])
    np.testing.assert_array_equal(buffer.sessions, [0, 0, 0, 1])
    np.testing.assert_array_equal(buffer.steps, [0, 1, 2, 0])
    assert (len(buffer), buffer.dropped, buffer.n_actions) == (4, 0, N)
    assert buffer.at(np.array([0])).discounts is None


def test_demonstrations_n_steps_by_hand() -> None:
    cut = _session([1.0, 2.0, 4.0], terminated=False, truncated=True)
    buffer = DemonstrationBuffer([_session([1.0, 2.0, 4.0]), cut], gamma=0.5, n_steps=2)
    batch = buffer.at(np.arange(6))
    np.testing.assert_array_equal(batch.rewards[:, 0], [2, 4, 4, 2, 4, 4])
    np.testing.assert_array_equal(batch.next_observations[:, 0], [2, 3, 3, 2, 3, 3])
    np.testing.assert_array_equal(batch.dones[:, 0], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batch.discounts[:, 0], [0.25, 0.25, 0.5, 0.25, 0.25, 0.5])


def test_demonstrations_are_drawn_in_proportion_to_w() -> None:
    buffer = DemonstrationBuffer([_session([1.0, 2.0, 3.0, 4.0])], gamma=0.9)
    buffer.set_weights(np.array([0.0, 3.0, 1.0, 0.0]))
    batch = buffer.sample(4000, np.random.default_rng(0))
    counts = np.bincount(batch.indices, minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.0, 0.75, 0.25, 0.0], atol=0.03)
    np.testing.assert_array_equal(batch.weights, buffer.weights[batch.indices])
    np.testing.assert_array_equal(batch.returns, buffer.returns[batch.indices])
    uniform = buffer.sample(4000, np.random.default_rng(0), weighted=False)
    np.testing.assert_allclose(np.bincount(uniform.indices) / 4000, [0.25] * 4, atol=0.03)


@pytest.mark.parametrize("weights", [[1.0], [1, 1, 1, -1], [0, 0, 0, 0], [1, 1, np.nan, 1]])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    buffer = DemonstrationBuffer([_session([1.0, 2.0, 3.0, 4.0])], gamma=0.9)
    with pytest.raises(ValueError, match=r"expected"):
        buffer.set_weights(np.array(weights))


def test_demonstrated_actions_that_masks_disallow_are_left_out() -> None:
    masks = np.ones((4, N), bool)
    masks[1, 1] = False  # the second action of the session
    masks[3] = False  # nothing is left at the end
    session = _session([1.0, 2.0, 4.0], action_masks=np.packbits(masks, axis=-1))
    buffer = DemonstrationBuffer([session, _session([8.0], 10.0)], gamma=1.0)
    assert buffer.dropped == 1
    np.testing.assert_array_equal(buffer.actions, [0, 2, 0])
    np.testing.assert_array_equal(buffer.returns, [7, 4, 8])
    batch = buffer.at(np.arange(3))
    assert batch.action_masks.shape == (3, N)
    assert batch.action_masks.all()
    np.testing.assert_array_equal(batch.next_action_masks.sum(1), [N - 1, N, N])


def test_last_observations_are_the_sessions_own_where_its_last_step_is_left_out() -> None:
    masks = np.ones((4, N), bool)
    masks[2, 2] = False  # the last action of the first session
    session = _session([1.0, 2.0, 4.0], action_masks=np.packbits(masks, axis=-1))
    buffer = DemonstrationBuffer([session, _session([8.0], 10.0)], gamma=1.0)
    assert buffer.dropped == 1
    np.testing.assert_array_equal(buffer.last_observations()[:, 0], [3, 3, 11])
    again = DemonstrationBuffer.from_state_dict(buffer.state_dict())
    np.testing.assert_array_equal(again.last_observations()[:, 0], [3, 3, 11])


def test_demonstrations_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="No trajectories came"):
        DemonstrationBuffer([], gamma=0.9)
    wide = _session([1.0], observations=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="observation sizes"):
        DemonstrationBuffer([_session([1.0]), wide], gamma=0.9)
    with pytest.raises(ValueError, match="numbers of actions"):
        DemonstrationBuffer([_session([1.0]), _session([1.0], n_actions=99)], gamma=0.9)


def test_demonstrations_saved_and_loaded_are_the_same() -> None:
    masks = np.packbits(np.ones((4, N), bool), axis=-1)
    buffer = DemonstrationBuffer([_session([1, 2, 4], action_masks=masks)], gamma=0.9, n_steps=2)
    buffer.set_weights(np.array([1.0, 2.0, 0.5]))
    state = {name: np.ascontiguousarray(a) for name, a in buffer.state_dict().items()}
    assert all(array.dtype != object for array in state.values())
    other = DemonstrationBuffer.from_state_dict(state)
    first = buffer.sample(20, np.random.default_rng(0))
    second = other.sample(20, np.random.default_rng(0))
    for mine, theirs in zip(first, second, strict=True):
        assert th.equal(mine, theirs)
    assert (other.gamma, other.n_steps, other.n_actions) == (0.9, 2, N)
