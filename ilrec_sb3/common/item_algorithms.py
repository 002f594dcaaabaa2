"""Any algorithm of Stable-Baselines3 with the masks and item heads that ILRec uses.

`with_items` makes the class: its environments get `MaskedObservations`, its policy one of
`ilrec_sb3.common.item_policies`. The algorithm itself stays as it is. What changes is what it draws
at random (among the allowed only) and its ``predict``, which takes plain observations and masks as
sb3-contrib's MaskablePPO does.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, is_vecenv_wrapped
from stable_baselines3.dqn.policies import DQNPolicy

from ilrec_sb3.common.item_policies import (
    ItemActorCriticPolicy,
    ItemDQNPolicy,
    ItemQRDQNPolicy,
    MaskableItemPolicy,
)
from ilrec_sb3.common.make_env import as_vec_env
from ilrec_sb3.common.masked_observations import MaskedLayout, MaskedObservations
from ilrec_sb3.common.masking import sample_actions
from ilrec_sb3.item_qrdqn import ItemQRDQN
from recsim_env.dynamics import ItemContext

__all__ = ["with_items"]


def _item_context(env: VecEnv) -> ItemContext:
    try:
        context: ItemContext = env.get_attr("item_context", 0)[0]
    except AttributeError as error:
        raise ValueError(
            "An environment without `item_context` came, and item heads need to know the items: "
            "train on a recommender environment, or take the algorithm without '+items'."
        ) from error
    return context


class _KnowsItems(BaseAlgorithm):
    """Hands what the environment says about its items to the policy."""

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return BaseAlgorithm._wrap_env(as_vec_env(env), verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if self.policy_kwargs.get("item_context") is None:
            assert self.env is not None
            context = _item_context(self.env)
            self.policy_kwargs = {**self.policy_kwargs, "item_context": context}
        super()._setup_model()  # type: ignore[safe-super]


class _Masked(_KnowsItems):
    """Learns on observations that carry their masks, and predicts with masks given."""

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        made = _KnowsItems._wrap_env(env, verbose, monitor_wrapper)
        if is_vecenv_wrapped(made, MaskedObservations):
            return made
        return MaskedObservations(made, tuple(_item_context(made).layout.parts()))

    @property
    def masked_layout(self) -> MaskedLayout:
        """How observations and masks share one vector."""
        context: ItemContext = self.policy_kwargs["item_context"]
        return MaskedLayout(context.layout.size, context.n_items)

    @property
    def plain_observation_space(self) -> spaces.Box:
        """The observations that ``predict`` takes beside masks."""
        return self.masked_layout.plain_space

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Returns actions for observations.

        Args:
            observation: One observation or a batch of them: flat, as a dict of its parts, or flat
                with its mask.
            state: Passed through.
            episode_start: Not used.
            deterministic: Whether to take the best action; else algorithms that draw do so, and
                algorithms that explore do so at their present rate.
            action_masks: (n,) or (B, n) bool, True where allowed, for plain observations; None
                allows everything.

        Returns:
            An action or a batch of them, and ``state``.
        """
        del episode_start
        if isinstance(observation, dict):
            names = self.policy_kwargs["item_context"].layout.parts()
            observation = np.concatenate([observation[name] for name in names], axis=-1)
        array = np.asarray(observation, np.float32)
        layout = self.masked_layout
        batch = np.atleast_2d(array)
        if batch.shape[1] == layout.size:
            masks = None
            if action_masks is not None:
                masks = np.asarray(action_masks, bool).reshape(len(batch), layout.n_actions)
            batch = layout.join(batch, masks)
        actions = self._act(batch, deterministic)
        return (actions if array.ndim > 1 else actions[0]), state

    def _act(self, batch: np.ndarray, deterministic: bool) -> np.ndarray:
        """Returns (B,) actions for (B, d) observations with their masks."""
        return self.policy.predict(batch, deterministic=deterministic)[0]


class _MaskedExplorer(_Masked):
    """Draws among the allowed actions where DQN and its kin draw among all."""

    exploration_rate: float

    def _act(self, batch: np.ndarray, deterministic: bool) -> np.ndarray:
        actions, _ = self.policy.predict(batch, deterministic=True)
        if not deterministic and self.exploration_rate > 0:
            drawn = self._draw(batch)
            explores = th.rand(len(batch)).numpy() < self.exploration_rate
            actions = np.where(explores, drawn, actions)
        return actions

    def _draw(self, batch: np.ndarray) -> np.ndarray:
        _, masks = self.masked_layout.split(th.as_tensor(batch))
        return sample_actions(masks.float()).numpy()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        del action_noise, n_envs
        assert isinstance(self._last_obs, np.ndarray)
        if self.num_timesteps < learning_starts:
            actions = self._draw(self._last_obs)
        else:
            actions = self._act(self._last_obs, deterministic=False)
        return actions, actions


_FAMILIES: tuple[tuple[type[BasePolicy], type[Any], type[BasePolicy]], ...] = (
    (DQNPolicy, _MaskedExplorer, ItemDQNPolicy),
    (ActorCriticPolicy, _Masked, ItemActorCriticPolicy),
)


@functools.cache
def with_items(kind: type[BaseAlgorithm]) -> type[BaseAlgorithm] | None:
    """Returns the algorithm with masks and item heads, or None where it has no such policy.

    Args:
        kind: A class of Stable-Baselines3 or sb3-contrib, or one derived from such.
    """
    aliases = getattr(kind, "policy_aliases", {})
    plain = aliases.get("MlpPolicy")
    if plain is None or issubclass(plain, RecurrentActorCriticPolicy):
        return None
    if kind is QRDQN:
        return _made(ItemQRDQN, _MaskedExplorer, ItemQRDQNPolicy)
    if issubclass(kind, MaskablePPO):
        return _made(kind, _KnowsItems, MaskableItemPolicy)
    for family, mixin, policy in _FAMILIES:
        if issubclass(plain, family):
            return _made(kind, mixin, policy)
    return None


def _made(
    kind: type[BaseAlgorithm], mixin: type[Any], policy: type[BasePolicy]
) -> type[BaseAlgorithm]:
    members: dict[str, Any] = {
        "__doc__": f"{kind.__name__} with action masks and item heads; see `with_items`.",
        "policy_aliases": {"MlpPolicy": policy},
    }
    return type(f"{kind.__name__}WithItems", (mixin, kind), members)
