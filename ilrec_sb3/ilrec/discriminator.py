r"""The discriminator of IL-Rec (eq. 13, 14) in the form of adversarial inverse RL.

Sign: logits are HIGH for the expert. With f the reward network,
:math:`logit = f(s, a) - \log\pi(a|s)` (Fu et al., 2018), and D, the chance that a pair is the
policy's, is sigmoid(-logit).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from imitation.rewards.reward_nets import RewardNet
from imitation.util.networks import RunningNorm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from torch import nn
from torch.nn import functional as F

__all__ = [
    "DiscriminatorConfig",
    "DiscriminatorStats",
    "DiscriminatorTrainer",
    "ItemRewardNet",
    "StateActions",
    "airl_logit",
    "discriminator_loss",
    "gradient_penalty",
    "irl_reward",
    "policy_probability",
]

TensorObs = th.Tensor | Mapping[str, th.Tensor]


def airl_logit(reward: th.Tensor, log_probs: th.Tensor) -> th.Tensor:
    r"""Logit, :math:`f(s, a) - \log\pi(a|s)`, high for the expert (Fu et al., 2018).

    Args:
        reward: (B,) f of the reward network.
        log_probs: (B,) of the actions under the current policy.

    Returns:
        (B,).
    """
    return reward - log_probs


def policy_probability(logits: th.Tensor) -> th.Tensor:
    """D, the chance that a pair is the policy's and not the expert's (IL-Rec, eq. 13).

    Args:
        logits: (B,) from `airl_logit`.

    Returns:
        (B,) in [0, 1], sigmoid(-logit).
    """
    return th.sigmoid(-logits)


def discriminator_loss(
    expert_logits: th.Tensor, policy_logits: th.Tensor, label_smoothing: float = 0.0
) -> th.Tensor:
    r"""Cross-entropy, :math:`-E_{expert}[\log(1-D)] - E_{policy}[\log D]` (IL-Rec, eq. 13).

    The first minus is missing in print; without it the loss would be least where experts are
    called policies.

    Args:
        expert_logits: (B,) of demonstrated pairs.
        policy_logits: (B',) of the policy's own pairs.
        label_smoothing: In [0, 0.5): how sure a label is not. Raising it keeps the logits small.

    Returns:
        Scalar.
    """

    def one_side(logits: th.Tensor) -> th.Tensor:
        right, wrong = F.softplus(-logits), F.softplus(logits)
        return ((1.0 - label_smoothing) * right + label_smoothing * wrong).mean()

    return one_side(expert_logits) + one_side(-policy_logits)


def irl_reward(logits: th.Tensor) -> th.Tensor:
    r"""Reward, :math:`r_{IRL} = -\log D`, which is softplus(logit) (IL-Rec, eq. 14).

    Args:
        logits: (B,) from `airl_logit`.

    Returns:
        (B,), at least 0, high for what looks like the expert.
    """
    return F.softplus(logits)


class ItemRewardNet(RewardNet):
    """f(s, a) of imitation's kind that sees an action as its item's features.

    A one-hot action of a catalogue of thousands says nothing of items that the demonstrations
    left out; features do. Without features (other action spaces) actions are one-hot.

    Args:
        observation_space: Box, Discrete or a Dict of such.
        action_space: Discrete.
        item_features: (n_actions, k) floating, or None for one-hot actions.
        hidden: Widths of the hidden layers. Few demonstrations call for a small net.
        normalize_inputs: Whether inputs are scaled by their running mean and variance.
        spectral_norm: Whether every layer's largest singular value is kept at 1.
    """

    item_features: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        item_features: np.ndarray | th.Tensor | None = None,
        hidden: Sequence[int] = (64, 64),
        normalize_inputs: bool = True,
        spectral_norm: bool = False,
    ) -> None:
        """Builds the network; where it starts, a uniform policy gets a logit of about 0."""
        super().__init__(observation_space, action_space)
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(
                f"The action space {action_space} came; expected a Discrete one: the reward "
                "network scores items of a catalogue."
            )
        n_actions = int(action_space.n)
        self.one_hot = item_features is None
        features = th.as_tensor(
            np.zeros((n_actions, 0)) if item_features is None else item_features,
            dtype=th.float32,
        )
        if features.ndim != 2 or len(features) != n_actions:
            raise ValueError(
                f"item_features of shape {tuple(features.shape)} came for {n_actions} actions; "
                f"expected ({n_actions}, k): one row for each item, in the actions' order."
            )
        self.n_actions = n_actions
        # the features belong to the environment: they move with the module and are not saved
        self.register_buffer("item_features", features, persistent=False)
        width = _state_dim(observation_space)
        width += n_actions if self.one_hot else features.shape[1]
        self.normalizer = RunningNorm(width) if normalize_inputs else nn.Identity()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        last = nn.Linear(width, 1)
        nn.init.constant_(last.bias, -math.log(n_actions))
        layers.append(last)
        if spectral_norm:
            layers = [
                nn.utils.parametrizations.spectral_norm(layer)
                if isinstance(layer, nn.Linear)
                else layer
                for layer in layers
            ]
        self.mlp = nn.Sequential(*layers)

    def preprocess(
        self, state: Any, action: Any, next_state: Any, done: Any
    ) -> tuple[Any, th.Tensor, Any, th.Tensor]:
        """Brings arrays to tensors on the network's device; actions stay indices.

        Args:
            state: (B, ...) array or dict of such.
            action: (B,) integers.
            next_state: As the states.
            done: (B,) bool.

        Returns:
            The four as tensors, for `forward`.
        """
        return (
            self._tensor(state),
            th.as_tensor(action, device=self.device).long(),
            self._tensor(next_state),
            th.as_tensor(done, device=self.device).float(),
        )

    def _tensor(self, state: Any) -> Any:
        if isinstance(state, Mapping):
            return {key: th.as_tensor(value, device=self.device) for key, value in state.items()}
        return th.as_tensor(state, device=self.device)

    def forward(
        self,
        state: TensorObs,
        action: th.Tensor,
        next_state: TensorObs | None = None,
        done: th.Tensor | None = None,
    ) -> th.Tensor:
        """Returns f(s, a).

        Args:
            state: (B, ...) raw observations, or a dict of such.
            action: (B,) or (B, 1) indices, or (B, n_actions) one-hot as imitation gives them.
            next_state: Not used; part of imitation's signature.
            done: Not used; part of imitation's signature.

        Returns:
            (B,).
        """
        del next_state, done
        return self.score(self.normalizer(self.inputs(state, action)))

    def inputs(self, state: TensorObs, action: th.Tensor) -> th.Tensor:
        """Returns states and action features side by side, before normalisation.

        Args:
            state: As in `forward`.
            action: As in `forward`.

        Returns:
            (B, width) float32.
        """
        return th.cat([self._flat(state), self._features(action)], dim=-1)

    def score(self, inputs: th.Tensor) -> th.Tensor:
        """Returns f of normalised inputs.

        Args:
            inputs: (B, width).

        Returns:
            (B,).
        """
        return self.mlp(inputs).squeeze(-1)

    def _features(self, action: th.Tensor) -> th.Tensor:
        if action.ndim == 2 and action.shape[1] == self.n_actions > 1:
            return action.float() if self.one_hot else action.float() @ self.item_features
        action = action.long().flatten()
        if self.one_hot:
            return F.one_hot(action, self.n_actions).float()
        return self.item_features[action]

    def _flat(self, state: TensorObs) -> th.Tensor:
        raw = dict(state) if isinstance(state, Mapping) else state
        observed = preprocess_obs(raw, self.observation_space, self.normalize_images)
        if isinstance(observed, Mapping):
            return th.cat([observed[key].flatten(1) for key in sorted(observed)], dim=-1)
        return observed.flatten(1)


def _state_dim(space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Dict):
        return sum(get_flattened_obs_dim(part) for part in space.spaces.values())
    return int(get_flattened_obs_dim(space))


class StateActions(NamedTuple):
    """State-action pairs with what the current policy thinks of them.

    Attributes:
        observations: (B, ...) or a dict of such.
        actions: (B,) or (B, 1) int64.
        log_probs: (B,) log-probability of the actions under the current policy.
    """

    observations: TensorObs
    actions: th.Tensor
    log_probs: th.Tensor


class DiscriminatorStats(NamedTuple):
    """What one update found, as floats for the log.

    Attributes:
        loss: Eq. 13.
        gradient_penalty: Before its factor; 0 where it is switched off.
        expert_accuracy: Share of demonstrated pairs with a positive logit.
        policy_accuracy: Share of the policy's pairs with a negative logit.
        expert_logit: Mean logit of demonstrated pairs.
        policy_logit: Mean logit of the policy's pairs.
    """

    loss: float
    gradient_penalty: float
    expert_accuracy: float
    policy_accuracy: float
    expert_logit: float
    policy_logit: float


@dataclass(frozen=True)
class DiscriminatorConfig:
    """How the discriminator is trained.

    Attributes:
        learning_rate: Of Adam. Too high and it overpowers the policy. Usual: 1e-4 to 1e-3.
        gradient_penalty: Factor of the penalty that keeps the gradient of f near 1, 0 for none.
            Raising it makes f smoother, which matters with few demonstrations. Usual: 1 to 10.
        label_smoothing: See `discriminator_loss`. Usual: 0 to 0.2.
        min_log_prob: Log-probabilities below this count as this; without a floor one demonstrated
            action that the policy rules out dominates. Usual: -20 to -10.
        max_grad_norm: Gradients are scaled down to this norm.
    """

    learning_rate: float = 3e-4
    gradient_penalty: float = 1.0
    label_smoothing: float = 0.0
    min_log_prob: float = -20.0
    max_grad_norm: float = 10.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, fits, expected in (
            ("learning_rate", self.learning_rate > 0, "a positive number"),
            ("gradient_penalty", self.gradient_penalty >= 0, "a number of at least 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 0.5, "a number from 0 to below 0.5"),
            ("min_log_prob", self.min_log_prob < 0, "a negative number"),
            ("max_grad_norm", self.max_grad_norm > 0, "a positive number"),
        ):
            if not fits:
                raise ValueError(f"{name} = {getattr(self, name)} came; expected {expected}.")


def gradient_penalty(
    net: ItemRewardNet, expert: th.Tensor, policy: th.Tensor, generator: th.Generator | None = None
) -> th.Tensor:
    """Mean of (norm of df/dx - 1)^2 between expert and policy inputs (Gulrajani et al., 2017).

    Args:
        net: f.
        expert: (B, width) normalised inputs.
        policy: (B', width) normalised inputs; the first min(B, B') of each are paired.
        generator: Where on the line between the two each point lies; None takes torch's own.

    Returns:
        Scalar, at least 0.
    """
    count = min(len(expert), len(policy))
    share = th.rand((count, 1), generator=generator).to(expert.device)
    between = share * expert[:count] + (1.0 - share) * policy[:count]
    between = between.detach().requires_grad_(True)
    (slope,) = th.autograd.grad(net.score(between).sum(), between, create_graph=True)
    return ((slope.norm(dim=-1) - 1.0) ** 2).mean()


class DiscriminatorTrainer:
    """Trains f by telling demonstrations from the policy's own steps.

    Args:
        net: The reward network f; its device is where the work is done.
        config: How it is trained.
        seed: Of the points at which the gradient penalty is taken.
    """

    def __init__(
        self, net: ItemRewardNet, config: DiscriminatorConfig | None = None, seed: int = 0
    ) -> None:
        """Makes the optimiser."""
        self.net = net
        self.config = config or DiscriminatorConfig()
        self.optimizer = th.optim.Adam(net.parameters(), lr=self.config.learning_rate)
        self.generator = th.Generator().manual_seed(seed)
        self.updates = 0

    def update(self, expert: StateActions, policy: StateActions) -> DiscriminatorStats:
        """Makes one gradient step on eq. 13.

        Args:
            expert: Demonstrated pairs.
            policy: Pairs of the current policy.

        Returns:
            What was found before the step.
        """
        self.net.train()
        expert_raw = self.net.inputs(expert.observations, expert.actions)
        policy_raw = self.net.inputs(policy.observations, policy.actions)
        # one pass, so that the running statistics see both halves alike
        inputs = self.net.normalizer(th.cat([expert_raw, policy_raw]))
        expert_in, policy_in = inputs.split([len(expert_raw), len(policy_raw)])
        logits = airl_logit(
            self.net.score(inputs),
            self._floored(th.cat([expert.log_probs.flatten(), policy.log_probs.flatten()])),
        )
        expert_logits, policy_logits = logits.split([len(expert_raw), len(policy_raw)])
        loss = discriminator_loss(expert_logits, policy_logits, self.config.label_smoothing)
        penalty = th.zeros(())
        total = loss
        if self.config.gradient_penalty > 0:
            penalty = gradient_penalty(self.net, expert_in, policy_in, self.generator)
            total = loss + self.config.gradient_penalty * penalty
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.net.eval()
        self.updates += 1
        return DiscriminatorStats(
            loss=float(loss.detach()),
            gradient_penalty=float(penalty.detach()),
            expert_accuracy=float((expert_logits > 0).float().mean()),
            policy_accuracy=float((policy_logits < 0).float().mean()),
            expert_logit=float(expert_logits.detach().mean()),
            policy_logit=float(policy_logits.detach().mean()),
        )

    def logits(
        self, observations: TensorObs, actions: th.Tensor, log_probs: th.Tensor
    ) -> th.Tensor:
        """Returns the logits of pairs, high for the expert, without gradients.

        Args:
            observations: (B, ...) or a dict of such.
            actions: (B,) or (B, 1).
            log_probs: (B,) of the actions under the current policy.

        Returns:
            (B,).
        """
        self.net.eval()
        with th.no_grad():
            reward = self.net(observations, actions)
            return airl_logit(reward, self._floored(log_probs.flatten()))

    def _floored(self, log_probs: th.Tensor) -> th.Tensor:
        return log_probs.detach().clamp(min=self.config.min_log_prob)

    def state_dict(self) -> dict[str, Any]:
        """Returns network, optimiser, random state and counter, as tensors and plain values."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Takes back what `state_dict` gave.

        Args:
            state: From a trainer of the same network and configuration.
            strict: Whether the network's parameters must match exactly; Stable-Baselines3's
                `set_parameters` passes it.
        """
        self.net.load_state_dict(state["net"], strict=strict)
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.updates = int(state["updates"])
