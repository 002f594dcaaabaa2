"""Replay buffers that keep action masks as bits, and the fixed set of demonstrations.

What `sample` returns can stand wherever Stable-Baselines3 expects its own ReplayBufferSamples: the
first five fields are the same, and `discounts` is None unless rewards span several steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from ilrec_sb3.common.masking import pack_masks, unpack_to_torch
from recsim_env.trajectories import Trajectory

__all__ = [
    "DemonstrationBuffer",
    "DemonstrationSamples",
    "MaskedReplayBuffer",
    "MaskedReplayBufferSamples",
]


class MaskedReplayBufferSamples(NamedTuple):
    """A batch of B transitions.

    Attributes:
        observations: (B, ...).
        actions: (B, 1) int64.
        next_observations: Where the target bootstraps from: n steps on, or where the episode ended.
        dones: (B, 1) float32, 1 where the episode terminated (not where it was truncated).
        rewards: (B, 1) float32, discounted sum over the steps that were spanned.
        action_masks: (B, n_actions) bool of the observations, or None.
        next_action_masks: (B, n_actions) bool of the next observations, or None.
        discounts: (B, 1) float32, the factor of the bootstrap value, gamma to the number of steps
            spanned; None where every transition spans one step.
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    action_masks: th.Tensor | None
    next_action_masks: th.Tensor | None
    discounts: th.Tensor | None


class DemonstrationSamples(NamedTuple):
    """A batch of B demonstrated transitions: MaskedReplayBufferSamples and three fields more.

    Attributes:
        observations: As in MaskedReplayBufferSamples.
        actions: As there.
        next_observations: As there.
        dones: As there.
        rewards: As there.
        action_masks: As there.
        next_action_masks: As there.
        discounts: As there.
        weights: (B,) float32, w of each transition (IL-Rec, eq. 19).
        returns: (B,) float32, discounted return that followed (IL-Rec, eq. 15).
        indices: (B,) int64 positions in the buffer.
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    action_masks: th.Tensor | None
    next_action_masks: th.Tensor | None
    discounts: th.Tensor | None
    weights: th.Tensor
    returns: th.Tensor
    indices: th.Tensor


def _n_actions(action_space: spaces.Space[Any]) -> int:
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(
            f"The action space {action_space} came; masks and this buffer need a Discrete one: "
            "use an environment with discrete actions."
        )
    return int(action_space.n)


def _check_n_steps(n_steps: int) -> int:
    if n_steps < 1:
        raise ValueError(f"n_steps = {n_steps} came; expected at least 1: pass a positive number.")
    return n_steps


class MaskedReplayBuffer(ReplayBuffer):
    """Replay buffer with packed action masks and n-step sums.

    Floating observations are stored as float32 whatever the space says.

    Args:
        buffer_size: Transitions kept, over all environments.
        observation_space: Of one environment; arrays, not dictionaries.
        action_space: Discrete.
        device: Where samples go.
        n_envs: Environments that step together.
        optimize_memory_usage: Must be False; next observations are stored.
        handle_timeout_termination: Whether a truncated episode bootstraps.
        n_steps: Rewards summed before the target bootstraps. Raising it speeds up credit over long
            sessions and makes the target depend on the policy that acted. Usual: 1 to 5.
        gamma: Discount factor of that sum; of no effect with one step.
        seed: Of the generator that draws samples; None draws one from the operating system.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        seed: int | None = None,
    ) -> None:
        self.n_actions = _n_actions(action_space)
        self.n_steps = _check_n_steps(n_steps)
        self.gamma = gamma
        self.rng = np.random.default_rng(seed)
        if optimize_memory_usage:
            raise ValueError(
                "optimize_memory_usage=True came; this buffer stores next observations, which "
                "n-step sums and masks need: leave it False."
            )
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device=device,
            n_envs=n_envs,
            handle_timeout_termination=handle_timeout_termination,
        )
        if self.observations.dtype == np.float64:
            self.observations = self.observations.astype(np.float32)
            self.next_observations = self.next_observations.astype(np.float32)
        self.masks: np.ndarray | None = None  # (size, n_envs, bytes) uint8, made when masks come
        self.next_masks: np.ndarray | None = None

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        action_masks: np.ndarray | None = None,
        next_action_masks: np.ndarray | None = None,
    ) -> None:
        """Stores one step of every environment.

        Args:
            obs: (n_envs, ...) observations before the step.
            next_obs: The same after it; of finished episodes the terminal observation.
            action: (n_envs,) or (n_envs, 1) integers.
            reward: (n_envs,).
            done: (n_envs,) bool.
            infos: One dict for each environment, with "TimeLimit.truncated" where an episode was
                cut and "terminal_action_mask" (n_actions,) bool where it ended.
            action_masks: (n_envs, n_actions) bool before the step.
            next_action_masks: (n_envs, n_actions) bool after it. Rows of finished episodes may be
                those of the next one: the infos' "terminal_action_mask" takes their place, and
                without it everything counts as allowed there.

        Raises:
            ValueError: Masks came for some steps and not for others, or only one of the two.
        """
        self._store_masks(action_masks, next_action_masks, np.asarray(done, np.bool_), infos)
        position = self.pos
        for store, values in ((self.observations, obs), (self.next_observations, next_obs)):
            store[position] = np.reshape(values, store[position].shape)
        self.actions[position] = np.asarray(action).reshape(self.n_envs, self.action_dim)
        self.rewards[position] = reward
        self.dones[position] = done
        self.timeouts[position] = 0.0
        if self.handle_timeout_termination:
            for row in np.flatnonzero(done):
                self.timeouts[position, row] = infos[row].get("TimeLimit.truncated", False)
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def _store_masks(
        self,
        masks: np.ndarray | None,
        next_masks: np.ndarray | None,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        if masks is None and next_masks is None and self.masks is None:
            return
        late = self.masks is None and self.size() > 0
        if masks is None or next_masks is None or late:
            raise ValueError(
                "Action masks came for part of the transitions; expected action_masks and "
                "next_action_masks at every step or at none: pass both to each add()."
            )
        if self.masks is None or self.next_masks is None:
            shape = (self.buffer_size, self.n_envs, (self.n_actions + 7) // 8)
            self.masks = np.zeros(shape, dtype=np.uint8)
            self.next_masks = np.zeros(shape, dtype=np.uint8)
        packed_next = pack_masks(next_masks)
        for row in np.flatnonzero(done):
            last = infos[row].get("terminal_action_mask")
            packed_next[row] = 255 if last is None or not np.any(last) else pack_masks(last)
        self.masks[self.pos] = pack_masks(masks)
        self.next_masks[self.pos] = packed_next

    def cut(self) -> None:
        """Marks the newest transitions as truncated: what is stored next follows from a reset."""
        if self.size():
            newest = (self.pos - 1) % self.buffer_size
            running = self.dones[newest] == 0
            self.dones[newest][running] = 1.0
            self.timeouts[newest][running] = 1.0

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> MaskedReplayBufferSamples:
        """Draws transitions uniformly, with replacement.

        Args:
            batch_size: B.
            env: Normalises observations and rewards where it is given.

        Returns:
            The batch; its rewards and targets span `n_steps` steps, less where an episode or the
            newest entry of the buffer comes first.
        """
        if self.size() == 0:
            raise ValueError(
                "A sample was asked of an empty replay buffer; expected at least one transition: "
                "collect some steps first (learning_starts)."
            )
        rows = self.rng.integers(0, self.size(), size=batch_size)
        return self._get_samples(rows, env)

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> MaskedReplayBufferSamples:
        envs = self.rng.integers(0, self.n_envs, size=len(batch_inds))
        last, rewards, discounts = self._span(batch_inds, envs, env)
        dones = self.dones[last, envs] * (1.0 - self.timeouts[last, envs])
        masks = self._unpack(self.masks, batch_inds, envs)
        next_masks = self._unpack(self.next_masks, last, envs)
        return MaskedReplayBufferSamples(
            observations=self._gather(self.observations, batch_inds, envs, env),
            actions=self.to_torch(self.actions[batch_inds, envs]).long(),
            next_observations=self._gather(self.next_observations, last, envs, env),
            dones=self.to_torch(dones.astype(np.float32)[:, None]),
            rewards=self.to_torch(rewards.astype(np.float32)[:, None]),
            action_masks=masks,
            next_action_masks=next_masks,
            discounts=None if discounts is None else self.to_torch(discounts[:, None]),
        )

    def _span(
        self, rows: np.ndarray, envs: np.ndarray, env: VecNormalize | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns the last row of each span, its reward sum and its discount, all (B,)."""
        if self.n_steps == 1:
            return rows, self._normalize_reward(self.rewards[rows, envs], env), None
        newest = (self.pos - 1) % self.buffer_size
        # steps_BN: rows of the span; going_BN: whether the span still runs at that step
        steps_BN = (rows[:, None] + np.arange(self.n_steps)) % self.buffer_size
        stops_BN = (self.dones[steps_BN, envs[:, None]] > 0) | (steps_BN == newest)
        going_BN = np.ones_like(stops_BN)
        going_BN[:, 1:] = ~np.logical_or.accumulate(stops_BN, axis=1)[:, :-1]
        length = going_BN.sum(axis=1)
        rewards_BN = self._normalize_reward(self.rewards[steps_BN, envs[:, None]], env)
        powers = self.gamma ** np.arange(self.n_steps)
        total = (rewards_BN * powers * going_BN).sum(axis=1)
        last = steps_BN[np.arange(len(rows)), length - 1]
        return last, total, (self.gamma**length).astype(np.float32)

    def _gather(
        self, store: np.ndarray, rows: np.ndarray, envs: np.ndarray, env: VecNormalize | None
    ) -> th.Tensor:
        picked: Any = self._normalize_obs(store[rows, envs], env)
        return self.to_torch(picked, copy=False)

    def _unpack(
        self, packed: np.ndarray | None, rows: np.ndarray, envs: np.ndarray
    ) -> th.Tensor | None:
        if packed is None:
            return None
        return unpack_to_torch(packed[rows, envs], self.n_actions, self.device)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns all that is stored as plain arrays, with the position and the random state."""
        size = self.size()
        state = {name: getattr(self, name)[:size] for name in _STORED}
        if self.masks is not None and self.next_masks is not None:
            state["masks"], state["next_masks"] = self.masks[:size], self.next_masks[:size]
        state["pos"] = np.array(self.pos)
        state["full"] = np.array(self.full)
        state["rng"] = _pack_rng(self.rng)
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state_dict` gave; the sizes must be the same.

        Args:
            state: From `state_dict` of a buffer made with the same arguments.

        Raises:
            ValueError: The buffer has another size or another number of environments.
        """
        size = len(state["rewards"])
        fits = state["rewards"].shape[1:] == (self.n_envs,) and (
            size == self.buffer_size if bool(_number(state["full"])) else size <= self.buffer_size
        )
        if not fits:
            raise ValueError(
                f"A stored buffer of {state['rewards'].shape} steps and environments came for one "
                f"of {(self.buffer_size, self.n_envs)}: make the buffer with the same sizes."
            )
        for name in _STORED:
            getattr(self, name)[:size] = state[name]
        self.masks = self.next_masks = None
        if "masks" in state:
            shape = (self.buffer_size, self.n_envs, (self.n_actions + 7) // 8)
            self.masks, self.next_masks = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
            self.masks[:size], self.next_masks[:size] = state["masks"], state["next_masks"]
        self.pos, self.full = int(_number(state["pos"])), bool(_number(state["full"]))
        self.rng = _unpack_rng(state["rng"])


_STORED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def _number(stored: np.ndarray) -> Any:
    """Returns the one number of an array, of no axes or of one as some formats store it."""
    return np.asarray(stored).item()


def _pack_rng(rng: np.random.Generator) -> np.ndarray:
    return np.frombuffer(json.dumps(rng.bit_generator.state).encode(), dtype=np.uint8).copy()


def _unpack_rng(packed: np.ndarray) -> np.random.Generator:
    rng = np.random.default_rng()
    rng.bit_generator.state = json.loads(np.asarray(packed, np.uint8).tobytes())
    return rng


class DemonstrationBuffer:
    """The demonstrated transitions, fixed, with a weight each.

    Transitions whose own action their mask disallows cannot be learned by a policy that keeps to
    the masks; they are left out and counted in `dropped` (their rewards stay in the returns).

    Attributes:
        observations: (N, d) float32; next_observations: (N, d) float32.
        actions: (N,) int64; rewards: (N,) float32; dones: (N,) float32, 1 where it terminated.
        returns: (N,) float32, discounted return from each transition on (IL-Rec, eq. 15).
        sessions: (N,) int64, the trajectory of each transition; steps: (N,) int64, the place in it.
        complete: (N,) bool, whether the session went on until the user left; else the record or the
            limit cut it, and `returns` lack what would have followed.
        to_end: (N,) float32, discount from each transition to the end of its session.
        session_ends: (K, d) float32, the last observation of each of the K trajectories.
        weights: (N,) float32, w of each transition, 1 until `set_weights`.
        dropped: Transitions left out.
        n_actions: Number of actions, or None where no trajectory tells.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        gamma: float,
        device: th.device | str = "cpu",
        n_steps: int = 1,
    ) -> None:
        """Lays the trajectories out as flat arrays.

        Args:
            trajectories: At least one, all with the same observation size.
            gamma: Discount factor of returns and n-step sums, in [0, 1].
            device: Where samples go.
            n_steps: Rewards summed before the target bootstraps, as in MaskedReplayBuffer.
        """
        self._check(trajectories)
        self.session_ends = np.stack([t.observations[-1] for t in trajectories])
        self.gamma = gamma
        self.device = th.device(device)
        self.n_steps = _check_n_steps(n_steps)
        known = [t.n_actions for t in trajectories if t.n_actions is not None]
        self.n_actions = known[0] if known else None
        parts = [
            self._lay_out(number, trajectory) for number, trajectory in enumerate(trajectories)
        ]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        with_masks = any(t.action_masks is not None for t in trajectories)
        keep = columns.pop("allowed")
        self.dropped = int((~keep).sum())
        if self.dropped == len(keep):
            raise ValueError(
                f"All {self.dropped} demonstrated actions are disallowed by their own masks; "
                "expected masks of the state before each action: check how they were recorded."
            )
        self.observations = columns["observations"][keep]
        self.next_observations = columns["next_observations"][keep]
        self.actions = columns["actions"][keep]
        self.rewards = columns["rewards"][keep]
        self.dones = columns["dones"][keep]
        self.returns = columns["returns"][keep]
        self.sessions = columns["sessions"][keep]
        self.steps = columns["steps"][keep]
        self.discounts = columns["discounts"][keep]
        self.complete = columns["complete"][keep]
        self.to_end = columns["to_end"][keep]
        self.masks = columns["masks"][keep] if with_masks else None
        self.next_masks = columns["next_masks"][keep] if with_masks else None
        self.set_weights(np.ones(len(self.actions), dtype=np.float32))

    @staticmethod
    def _check(trajectories: Sequence[Trajectory]) -> None:
        if not trajectories:
            raise ValueError(
                "No trajectories came; a DemonstrationBuffer needs at least one: pass some, or "
                "learn without demonstrations."
            )
        for what, values in (
            ("observation sizes", {t.observations.shape[1] for t in trajectories}),
            ("numbers of actions", {t.n_actions for t in trajectories} - {None}),
        ):
            if len(values) > 1:
                raise ValueError(
                    f"Trajectories with the {what} {sorted(values)} came; expected one: replay "
                    "them all in the same environment."
                )

    def _lay_out(self, number: int, trajectory: Trajectory) -> dict[str, np.ndarray]:
        total = len(trajectory)
        steps = np.arange(total)
        length = np.minimum(self.n_steps, total - steps)
        last = steps + length  # row of the observation to bootstrap from
        rewards = np.zeros(total, dtype=np.float64)
        for ahead in range(self.n_steps):
            inside = steps + ahead < total
            rewards[inside] += self.gamma**ahead * trajectory.rewards[steps[inside] + ahead]
        masks = trajectory.action_masks
        allowed = np.ones(total, dtype=np.bool_)
        if masks is None:
            masks = np.full((total + 1, ((self.n_actions or 0) + 7) // 8), 255, dtype=np.uint8)
        else:
            bits = masks[steps, trajectory.actions // 8] >> (7 - trajectory.actions % 8)
            allowed = (bits & 1).astype(np.bool_)
            masks = np.where(masks.any(axis=1, keepdims=True), masks, np.uint8(255))
        return {
            "observations": trajectory.observations[:-1],
            "next_observations": trajectory.observations[last],
            "actions": trajectory.actions,
            "rewards": rewards.astype(np.float32),
            "dones": ((last == total) & trajectory.terminated).astype(np.float32),
            "returns": trajectory.returns(self.gamma).astype(np.float32),
            "sessions": np.full(total, number, dtype=np.int64),
            "steps": steps.astype(np.int64),
            "discounts": (self.gamma**length).astype(np.float32),
            "complete": np.full(total, trajectory.terminated),
            "to_end": (self.gamma ** (total - steps)).astype(np.float32),
            "masks": masks[:-1],
            "next_masks": masks[last],
            "allowed": allowed,
        }

    def __len__(self) -> int:
        """Returns the number of transitions N."""
        return len(self.actions)

    def last_observations(self) -> np.ndarray:
        """Returns (N, d), for each transition the last observation of its session.

        It is that after the session's last step, also where that step's own transition was left
        out.
        """
        return self.session_ends[self.sessions]

    def set_weights(self, weights: np.ndarray) -> None:
        """Sets w, to which the chance of being drawn is proportional.

        Args:
            weights: (N,), finite, at least 0, not all 0.
        """
        weights = np.array(weights, dtype=np.float32)
        if weights.shape != self.actions.shape:
            raise ValueError(
                f"weights of shape {weights.shape} came for {len(self)} transitions; expected "
                f"({len(self)},): one for each."
            )
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.max() <= 0:
            raise ValueError(
                "Weights that are negative, not finite or all zero came; expected numbers of at "
                "least 0 of which one is positive: clip them first."
            )
        self.weights = weights
        self._cumulative = np.cumsum(weights, dtype=np.float64)

    def sample(
        self, batch_size: int, rng: np.random.Generator, weighted: bool = True
    ) -> DemonstrationSamples:
        """Draws transitions with replacement.

        Args:
            batch_size: B.
            rng: Where the randomness comes from.
            weighted: Whether the chance is proportional to w (else it is uniform).

        Returns:
            The batch.
        """
        if weighted:
            drawn = rng.random(batch_size) * self._cumulative[-1]
            indices = np.searchsorted(self._cumulative, drawn, side="right")
            # rounding can put a draw on the total itself, and the last weights may be 0
            indices = np.minimum(indices, np.flatnonzero(self.weights)[-1])
        else:
            indices = rng.integers(0, len(self), size=batch_size)
        return self.at(indices)

    def at(self, indices: np.ndarray) -> DemonstrationSamples:
        """Returns given transitions as a batch.

        Args:
            indices: (B,) positions in the buffer.

        Returns:
            The batch.
        """

        def tensor(array: np.ndarray) -> th.Tensor:
            return th.from_numpy(array[indices]).to(self.device)

        spans = self.n_steps > 1
        return DemonstrationSamples(
            observations=tensor(self.observations),
            actions=tensor(self.actions)[:, None],
            next_observations=tensor(self.next_observations),
            dones=tensor(self.dones)[:, None],
            rewards=tensor(self.rewards)[:, None],
            action_masks=self._unpack(self.masks, indices),
            next_action_masks=self._unpack(self.next_masks, indices),
            discounts=tensor(self.discounts)[:, None] if spans else None,
            weights=tensor(self.weights),
            returns=tensor(self.returns),
            indices=th.from_numpy(np.asarray(indices, dtype=np.int64)),
        )

    def _unpack(self, packed: np.ndarray | None, indices: np.ndarray) -> th.Tensor | None:
        if packed is None or self.n_actions is None:
            return None
        return unpack_to_torch(packed[indices], self.n_actions, self.device)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns everything as plain arrays."""
        state = {name: getattr(self, name) for name in _DEMONSTRATED}
        if self.masks is not None and self.next_masks is not None:
            state["masks"], state["next_masks"] = self.masks, self.next_masks
        state["gamma"] = np.array(self.gamma)
        state["n_steps"] = np.array(self.n_steps)
        state["dropped"] = np.array(self.dropped)
        state["n_actions"] = np.array(-1 if self.n_actions is None else self.n_actions)
        return state

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, np.ndarray], device: th.device | str = "cpu"
    ) -> DemonstrationBuffer:
        """Makes a buffer of what `state_dict` gave, without the trajectories.

        Args:
            state: From `state_dict`.
            device: Where samples go.

        Returns:
            A buffer that gives the same samples.
        """
        buffer = cls.__new__(cls)
        buffer.device = th.device(device)
        buffer.load_state_dict(state)
        return buffer

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state_dict` gave; all that was here is replaced.

        Args:
            state: From `state_dict`.
        """
        for name in _DEMONSTRATED:
            setattr(self, name, np.array(state[name]))
        self.masks = np.array(state["masks"]) if "masks" in state else None
        self.next_masks = np.array(state["next_masks"]) if "next_masks" in state else None
        self.gamma = float(_number(state["gamma"]))
        self.n_steps = int(_number(state["n_steps"]))
        self.dropped = int(_number(state["dropped"]))
        n_actions = int(_number(state["n_actions"]))
        self.n_actions = None if n_actions < 0 else n_actions
        self.set_weights(np.asarray(state["weights"]))


_DEMONSTRATED = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "dones",
    "returns",
    "sessions",
    "steps",
    "discounts",
    "complete",
    "to_end",
    "session_ends",
    "weights",
)
