"""Observations that carry their action mask, so that any algorithm can learn with masks.

Algorithms of Stable-Baselines3 know nothing of action masks: their buffers store observations, and
their targets are computed from next observations. Here the mask is a part of the observation. Then
a network that reads it masks rollouts, updates and targets alike, and no algorithm is changed.

The mask's bits are packed, 24 to a number, since float32 holds every integer below 2^24 exactly:
1,539 items take 65 numbers, a fifth of a kilobyte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from ilrec_sb3.common.masking import pack_masks, unpack_to_torch
from ilrec_sb3.common.observations import FlatObservations

__all__ = ["MaskedLayout", "MaskedObservations"]

_BITS = 24
_BYTES = _BITS // 8


class MaskedLayout:
    """How an observation and its mask share one vector: the observation, then the packed bits.

    Args:
        size: Numbers of the flat observation.
        n_actions: Number of actions.
    """

    def __init__(self, size: int, n_actions: int) -> None:
        self.size = size
        self.n_actions = n_actions
        self.n_words = -(-n_actions // _BITS)
        self.space = spaces.Box(-np.inf, np.inf, (size + self.n_words,), np.float32)
        self.plain_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def join(self, flat: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """Returns (B, size + words) float32.

        Args:
            flat: (B, size) observations.
            masks: (B, n_actions) bool, True where allowed; None allows everything.
        """
        if masks is None:
            masks = np.ones((len(flat), self.n_actions), bool)
        packed = pack_masks(masks)
        whole = np.zeros((len(flat), self.n_words * _BYTES), np.uint8)
        whole[:, : packed.shape[1]] = packed
        powers = 256 ** np.arange(_BYTES - 1, -1, -1, dtype=np.int32)
        words = whole.reshape(len(flat), self.n_words, _BYTES) @ powers
        return np.concatenate([flat, words], axis=1, dtype=np.float32, casting="unsafe")

    def split(self, joined: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Takes apart what `join` made.

        Args:
            joined: (B, size + words).

        Returns:
            (B, size) observations and (B, n_actions) bool masks. Where nothing at all is allowed,
            as after the last item of a catalogue, the mask allows everything: the session is over,
            and a maximum over no action has no value.
        """
        flat, words = joined[:, : self.size], joined[:, self.size :].to(th.int32)
        places = [(words >> shift) & 255 for shift in range(_BITS - 8, -1, -8)]
        packed = th.stack(places, dim=2).flatten(1).to(th.uint8)
        packed = packed[:, : (self.n_actions + 7) // 8]
        nothing = packed.amax(dim=1, keepdim=True) == 0
        packed = th.where(nothing, th.full_like(packed, 255), packed)
        bits: Any = packed.numpy() if packed.device.type == "cpu" else packed
        return flat, unpack_to_torch(bits, self.n_actions, joined.device)


class MaskedObservations(VecEnvWrapper):
    """Adds the action masks of an environment to its observations, as `MaskedLayout` packs them.

    Args:
        venv: Has ``action_masks`` and discrete actions.
        order: Order of a Dict observation's keys; see `FlatObservations`.
    """

    def __init__(self, venv: VecEnv, order: tuple[str, ...] | None = None) -> None:
        self.flat = FlatObservations(venv.observation_space, order)
        self.layout = MaskedLayout(
            self.flat.size,
            int(venv.action_space.n),  # type: ignore[attr-defined]
        )
        super().__init__(venv, observation_space=self.layout.space)

    def reset(self) -> np.ndarray:
        """Starts every session anew; returns observations with their masks."""
        return self._joined(self.venv.reset())

    def step_wait(self) -> VecEnvStepReturn:
        """Makes the step; last observations of finished sessions carry their masks as well."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for row in np.flatnonzero(dones):
            info = infos[row]
            if "terminal_observation" in info:
                mask = info.get("terminal_action_mask")
                last = self.flat.flatten(_batch_of_one(info["terminal_observation"]))
                masks = None if mask is None else np.asarray(mask, bool)[None]
                info["terminal_observation"] = self.layout.join(last, masks)[0]
        return self._joined(observations), rewards, dones, infos

    def _joined(self, observations: Any) -> np.ndarray:
        batched = getattr(self.venv, "action_masks", None)
        masks = batched() if callable(batched) else get_action_masks(self.venv)
        return self.layout.join(self.flat.flatten(observations), np.asarray(masks, bool))


def _batch_of_one(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {name: np.asarray(value)[None] for name, value in observation.items()}
    return np.asarray(observation)[None]
