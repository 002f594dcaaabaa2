"""Policies of the offline algorithms: the networks of `ILRecPolicy` that each of them needs."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from ilrec_sb3.common.masking import masked_log_softmax, masked_logits
from ilrec_sb3.ilrec.heads import PlainScorer, mlp
from ilrec_sb3.ilrec.policies import ILRecPolicy
from ilrec_sb3.offline.losses import bcq_scores

__all__ = ["BCPolicy", "BCQPolicy", "CQLPolicy", "CRRPolicy", "OfflinePolicy", "SQNPolicy"]

Crossed = tuple[th.Tensor, ...]


class OfflinePolicy(ILRecPolicy):
    """An actor and a critic with its target, trained by one optimizer.

    Args:
        observation_space: As in `ILRecPolicy`.
        action_space: Discrete.
        lr_schedule: Learning rate of the algorithm.
        n_critics: Number of critics; their smallest value counts.
        features_extractor_class: None takes what suits the observations.
        kwargs: The other arguments of `ILRecPolicy`.
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        n_critics: int = 1,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        **kwargs: Any,
    ) -> None:
        if features_extractor_class is None:
            is_dict = isinstance(observation_space, spaces.Dict)
            features_extractor_class = CombinedExtractor if is_dict else FlattenExtractor
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            n_critics=n_critics,
            decomposed=False,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        del self.actor_optimizer, self.critic_optimizer, self.actor_average
        self._shape_networks()
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.optimizer_class(
            trained,
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _shape_networks(self) -> None:
        """Removes, adds or joins networks, before the optimizer takes their parameters."""

    def logits(self, flat: th.Tensor, crossed: Crossed | None = None) -> th.Tensor:
        """Returns (B, n) scores of all actions by the actor, before any mask."""
        return self._logits(self.actor, flat, crossed)

    def log_probs(
        self,
        flat: th.Tensor,
        masks: th.Tensor | None = None,
        crossed: Crossed | None = None,
        average: bool = False,
    ) -> th.Tensor:
        """Returns (B, n) log-probabilities of all actions; no average of the actor is kept."""
        del average
        return super().log_probs(flat, masks, crossed)

    def values(
        self, flat: th.Tensor, crossed: Crossed | None = None, target: bool = False
    ) -> list[th.Tensor]:
        """Returns for each critic the (B, n) values of all actions.

        Args:
            flat: (B, d) flat observations.
            crossed: Of these observations, where they were computed already.
            target: Whether the target critics are asked.
        """
        network = self.critic_target if target else self.critic
        scorer = network.scorer
        if isinstance(scorer, PlainScorer) or self.cross is None:
            plain: list[th.Tensor] = scorer(network.features(flat))
            return plain
        if crossed is None:
            crossed = self.cross(flat)
        heads = self._heads(network, flat)
        return [scorer.scores(head, crossed, self.cross) for head in heads]

    def target_pairs(self, flat: th.Tensor, actions: th.Tensor) -> list[th.Tensor]:
        """Returns each target critic's (B, m) values of the (B, m) actions."""
        return self._pairs(self.critic_target, flat, actions)

    def set_training_mode(self, mode: bool) -> None:
        """Sets the trained networks to training or evaluation; targets stay in evaluation."""
        for name in ("actor", "critic"):
            if hasattr(self, name):
                getattr(self, name).train(mode)
        self.training = mode


class BCPolicy(OfflinePolicy):
    """An actor alone; arguments as those of `OfflinePolicy`."""

    def _shape_networks(self) -> None:
        del self.critic, self.critic_target


class CRRPolicy(OfflinePolicy):
    """Actor and critics, each with a target; arguments as those of `OfflinePolicy`."""

    def _shape_networks(self) -> None:
        self.actor_target = copy.deepcopy(self.actor)
        self.actor_target.train(False)
        for parameter in self.actor_target.parameters():
            parameter.requires_grad_(False)

    def target_log_probs(
        self, flat: th.Tensor, masks: th.Tensor | None, crossed: Crossed | None
    ) -> th.Tensor:
        """Returns (B, n) log-probabilities of the target actor; arguments as of `log_probs`."""
        return masked_log_softmax(
            self._logits(self.actor_target, flat, crossed), masks, check=False
        )


class _GreedyPolicy(OfflinePolicy):
    """Takes the action of the highest score: values are no logits, and are not drawn from."""

    @abstractmethod
    def greedy_scores(
        self, flat: th.Tensor, masks: th.Tensor | None, crossed: Crossed | None = None
    ) -> th.Tensor:
        """Returns (B, n) what the greedy action maximises."""

    def _predict(
        self,
        observation: PyTorchObs,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> th.Tensor:
        del deterministic
        flat = self.flat.flatten_tensor(observation)
        return self.greedy_scores(flat, action_masks).argmax(dim=1)


class CQLPolicy(_GreedyPolicy):
    """A critic and its target, played greedily; arguments as those of `OfflinePolicy`."""

    def _shape_networks(self) -> None:
        del self.actor

    def greedy_scores(
        self, flat: th.Tensor, masks: th.Tensor | None, crossed: Crossed | None = None
    ) -> th.Tensor:
        """Returns (B, n) values, a large negative number where the mask disallows."""
        return masked_logits(self.values(flat, crossed)[0], masks, check=False)


class BCQPolicy(_GreedyPolicy):
    """A critic, played greedily among what the actor, an imitator of the log, finds likely.

    Args:
        args: As those of `OfflinePolicy`.
        threshold: See `ilrec_sb3.offline.losses.bcq_scores`.
        kwargs: As those of `OfflinePolicy`.
    """

    def __init__(self, *args: Any, threshold: float = 1e-4, **kwargs: Any) -> None:
        self.threshold = threshold
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "threshold": self.threshold}

    def greedy_scores(
        self, flat: th.Tensor, masks: th.Tensor | None, crossed: Crossed | None = None
    ) -> th.Tensor:
        """Returns (B, n) values, a large negative number where an action is out of play."""
        if crossed is None:
            crossed = self.crossed(flat)
        log_probs = self.log_probs(flat, masks, crossed)
        return bcq_scores(self.values(flat, crossed)[0], log_probs, self.threshold)


class _Encoder(BaseFeaturesExtractor):
    """A features extractor with hidden layers on top, to be shared by several heads."""

    def __init__(
        self,
        extractor: BaseFeaturesExtractor,
        hidden: list[int],
        activation: type[nn.Module],
    ) -> None:
        width = hidden[-1] if hidden else extractor.features_dim
        super().__init__(extractor._observation_space, width)
        self.extractor = extractor
        self.hidden = mlp(extractor.features_dim, hidden, activation)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """Returns (B, features_dim)."""
        encoded: th.Tensor = self.hidden(self.extractor(observations))
        return encoded


class SQNPolicy(OfflinePolicy):
    """A supervised head (the actor) and a Q head (the critic) on one encoder.

    ``net_arch`` are the encoder's layers; the heads are linear in what it gives. The target has an
    encoder of its own. Arguments as those of `OfflinePolicy`.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        self._encoder_arch, self.net_arch = self.net_arch, []
        super()._build(lr_schedule)
        self.net_arch = self._encoder_arch

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Returns the encoder."""
        return _Encoder(super().make_features_extractor(), self._encoder_arch, self.activation_fn)

    def _shape_networks(self) -> None:
        self.critic.extractor = self.actor.extractor
        self.critic_target.load_state_dict(self.critic.state_dict())
