"""Policies for the algorithms of Stable-Baselines3 with the masks and item heads that ILRec uses.

Their observations are those of `ilrec_sb3.common.masked_observations`: a flat observation and its
packed action mask. (MaskablePPO brings its own masks and takes plain flat observations.) Items are
scored by `ilrec_sb3.ilrec.heads.ItemScorer`, with the cross features that ILRec has. The score of
an action that is not allowed is a large negative number, so neither a draw, a maximum nor a target
takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn
from torch.nn import functional as F

from ilrec_sb3.common.masked_observations import MaskedLayout
from ilrec_sb3.common.masking import masked_logits
from ilrec_sb3.ilrec.heads import Coefficients, CrossNet, ItemScorer, mlp
from recsim_env.dynamics import ItemContext

__all__ = [
    "ItemActorCriticPolicy",
    "ItemDQNPolicy",
    "ItemHead",
    "ItemQRDQNPolicy",
    "ItemQuantileHead",
    "MaskableItemPolicy",
]

_HIDDEN = (128, 128)
_DIM = 32


class ItemHead(nn.Module):
    """Scores of all items in a state, from item features and cross features, masked.

    Args:
        cross: The cross features; networks of one policy share them.
        n_heads: Scores of each item.
        hidden: Widths of the layers between state and scores.
        dim: Width of the product of state and item.
        activation: Of these layers.
        scale: Usual size of what the scores stand for.
        masked: Whether observations carry their masks; else nothing is masked here.
    """

    def __init__(
        self,
        cross: CrossNet,
        *,
        n_heads: int = 1,
        hidden: Sequence[int] = _HIDDEN,
        dim: int = _DIM,
        activation: type[nn.Module] = nn.ReLU,
        scale: float = 1.0,
        masked: bool = True,
    ) -> None:
        super().__init__()
        self.masked = masked
        self.layout = MaskedLayout(cross.layout.size, cross.n_items)
        self.cross = cross
        self.scorer = ItemScorer(cross.layout.size, cross, n_heads, hidden, dim, activation, scale)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Returns (B, n_items) masked scores.

        Args:
            observations: (B, d) flat observations, followed by their masks where there are any.
        """
        return self.scores(observations, 1)[0]

    def scores(self, observations: th.Tensor, n_heads: int) -> list[th.Tensor]:
        """Returns (B, n_items) scores by each of the first heads, those of the first one masked."""
        flat, masks = self._split(observations)
        with th.no_grad():
            crossed = self.cross(flat)
        heads = self._coefficients(flat)[:n_heads]
        scores = [self.scorer.scores(head, crossed, self.cross) for head in heads]
        scores[0] = masked_logits(scores[0], masks, check=False)
        return scores

    def pairs(self, observations: th.Tensor, actions: th.Tensor) -> list[th.Tensor]:
        """Returns for each head (B, m) scores of m items a state, unmasked.

        Args:
            observations: As in `forward`.
            actions: (B, m) int64.
        """
        flat, _ = self._split(observations, masks=False)
        crossed = self.cross.pairs(flat, actions)
        return self.scorer.pairs(self._coefficients(flat), crossed, actions, self.cross)

    def _coefficients(self, flat: th.Tensor) -> list[Coefficients]:
        return self.scorer.coefficients(self.cross.scaled(flat), flat, self.cross)

    def _split(
        self, observations: th.Tensor, masks: bool = True
    ) -> tuple[th.Tensor, th.Tensor | None]:
        if not self.masked:
            return observations, None
        if not masks:
            return observations[:, : self.layout.size], None
        return self.layout.split(observations)


class ItemQuantileHead(ItemHead):
    """Quantiles of the return of every item, q_j = m(s, a) + w(s, a) (z_j(s) - mean z(s)).

    The mean m and the width w (through a softplus) of an item are scores of two heads; the shape z
    of the distribution is the state's. A head for each quantile would be n_quantiles times as dear
    as DQN's, and this one can still tell a safe item from a risky one.

    Args:
        cross: As in `ItemHead`.
        n_quantiles: Number of quantiles.
        hidden: As in `ItemHead`.
        dim: As in `ItemHead`.
        activation: As in `ItemHead`.
        scale: As in `ItemHead`.
    """

    def __init__(
        self,
        cross: CrossNet,
        n_quantiles: int,
        *,
        hidden: Sequence[int] = _HIDDEN,
        dim: int = _DIM,
        activation: type[nn.Module] = nn.ReLU,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            cross, n_heads=2, hidden=hidden, dim=dim, activation=activation, scale=scale
        )
        size = cross.layout.size
        width = hidden[-1] if hidden else size
        self.shape_net = nn.Sequential(mlp(size, hidden, activation), nn.Linear(width, n_quantiles))
        self.shape_scale = scale

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Returns (B, n_quantiles, n_items); items that are not allowed have very low ones."""
        mean, spread = self.scores(observations, 2)
        return self._combined(mean, spread, observations)

    def means(self, observations: th.Tensor) -> th.Tensor:
        """Returns (B, n_items) means of the quantiles, masked."""
        return self.scores(observations, 1)[0]

    def quantiles(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Returns (B, n_quantiles) of the (B, 1) actions, unmasked."""
        mean, spread = self.pairs(observations, actions)
        return self._combined(mean, spread, observations)[:, :, 0]

    def _combined(self, mean: th.Tensor, spread: th.Tensor, observations: th.Tensor) -> th.Tensor:
        """Returns (B, n_quantiles, m) of (B, m) means and spreads."""
        flat, _ = self._split(observations, masks=False)
        shape = self.shape_scale * self.shape_net(self.cross.scaled(flat))
        shape = shape - shape.mean(dim=1, keepdim=True)
        width = F.softplus(spread / self.shape_scale)
        return th.addcmul(mean[:, None, :], width[:, None, :], shape[:, :, None])


# -- values ----------------------------------------------------------------------------------------


class _ItemPolicy:
    """Arguments that the policies below share; see `ItemDQNPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        item_context: ItemContext,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        item_dim: int = _DIM,
        value_scale: float = 10.0,
        **kwargs: Any,
    ) -> None:
        self.item_context = item_context
        self.item_dim = item_dim
        self.value_scale = value_scale
        super().__init__(
            observation_space,  # type: ignore[call-arg]
            action_space,
            lr_schedule,
            net_arch=list(_HIDDEN) if net_arch is None else net_arch,
            activation_fn=activation_fn,
            **kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),  # type: ignore[misc]
            "item_context": self.item_context,
            "item_dim": self.item_dim,
            "value_scale": self.value_scale,
        }


class _ItemQNetwork(QNetwork):
    """DQN's network with an item head in place of its perceptron."""

    def __init__(self, head: ItemHead, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "net_arch": [1]})
        self.q_net = head  # type: ignore[assignment]

    def pairs(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Returns (B, 1) values of the (B, 1) actions."""
        assert isinstance(self.q_net, ItemHead)
        return self.q_net.pairs(self.extract_features(obs, self.features_extractor), actions)[0]


class ItemDQNPolicy(_ItemPolicy, DQNPolicy):
    """DQN's policy with masks and item heads.

    Args:
        observation_space: Of `ilrec_sb3.common.masked_observations.MaskedObservations`.
        action_space: The items.
        lr_schedule: Learning rate.
        item_context: What the environment says about its items.
        net_arch: Widths of the layers between state and scores.
        activation_fn: Of these layers.
        item_dim: Width of the product of state and item.
        value_scale: Usual size of a return, in units of reward.
        **kwargs: As in Stable-Baselines3.
    """

    def make_q_net(self) -> QNetwork:
        """Returns a network of values with an item head."""
        made = getattr(self, "q_net", None)
        head = ItemHead(
            CrossNet(self.item_context) if made is None else made.q_net.cross,
            hidden=self.net_arch,
            dim=self.item_dim,
            activation=self.activation_fn,
            scale=self.value_scale,
        )
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return _ItemQNetwork(head, **net_args).to(self.device)


class _ItemQuantileNetwork(QuantileNetwork):
    """QR-DQN's network with an item head in place of its perceptron."""

    def __init__(self, head: ItemQuantileHead, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "net_arch": [1]})
        self.quantile_net = head  # type: ignore[assignment]


class ItemQRDQNPolicy(_ItemPolicy, QRDQNPolicy):
    """QR-DQN's policy with masks and item heads; see `ItemQuantileHead` for its quantiles.

    Args:
        observation_space: As in `ItemDQNPolicy`.
        action_space: As in `ItemDQNPolicy`.
        lr_schedule: As in `ItemDQNPolicy`.
        item_context: As in `ItemDQNPolicy`.
        n_quantiles: Number of quantiles.
        net_arch: As in `ItemDQNPolicy`.
        activation_fn: As in `ItemDQNPolicy`.
        item_dim: As in `ItemDQNPolicy`.
        value_scale: As in `ItemDQNPolicy`.
        **kwargs: As in sb3-contrib.
    """

    def __init__(self, *args: Any, n_quantiles: int = 25, **kwargs: Any) -> None:
        super().__init__(*args, n_quantiles=n_quantiles, **kwargs)

    def make_quantile_net(self) -> QuantileNetwork:
        """Returns a network of quantiles with an item head."""
        made = getattr(self, "quantile_net", None)
        head = ItemQuantileHead(
            CrossNet(self.item_context) if made is None else made.quantile_net.cross,
            self.n_quantiles,
            hidden=self.net_arch,
            dim=self.item_dim,
            activation=self.activation_fn,
            scale=self.value_scale,
        )
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return _ItemQuantileNetwork(head, **net_args).to(self.device)


# -- actors and critics ----------------------------------------------------------------------------


class _StateNets(nn.Module):
    """What lies before the heads: nothing for the actor, a perceptron for the value.

    Parameters of the value have "value" in their names, by which TRPO tells them from the actor's.
    """

    def __init__(
        self, cross: CrossNet, size: int, hidden: Sequence[int], activation: type[nn.Module]
    ) -> None:
        super().__init__()
        self.size = size
        self.value_layers = mlp(size, hidden, activation)
        self._cross = (cross,)  # the actor's: a tuple, so that it counts once among the modules

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Returns what the actor's head and the value's head take, of (B, d) observations."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        """Returns the observations themselves."""
        return features

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        """Returns (B, hidden[-1])."""
        latent: th.Tensor = self.value_layers(self._cross[0].scaled(features[:, : self.size]))
        return latent


class _Scaled(nn.Module):
    """A linear layer whose output is multiplied by the usual size of what it stands for."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.scale = scale

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """Returns (B, 1)."""
        return self.scale * self.linear(latent)


class _ItemHeads(_ItemPolicy):
    """The part that `ItemActorCriticPolicy` and `MaskableItemPolicy` share.

    Logits come from an item head, the value from a perceptron on the state; the two share nothing.
    """

    masked: bool
    mlp_extractor: Any
    action_net: Any
    value_net: Any

    def _build(self, lr_schedule: Schedule) -> None:
        hidden: Sequence[int] = self.net_arch  # type: ignore[attr-defined]
        activation: type[nn.Module] = self.activation_fn  # type: ignore[attr-defined]
        head = ItemHead(
            CrossNet(self.item_context),
            hidden=hidden,
            dim=self.item_dim,
            activation=activation,
            masked=self.masked,
        )
        size = self.item_context.layout.size
        self.mlp_extractor = _StateNets(head.cross, size, hidden, activation)
        self.action_net = head
        self.value_net = _Scaled(hidden[-1] if hidden else size, self.value_scale)
        self.optimizer = self.optimizer_class(  # type: ignore[attr-defined]
            self.parameters(),  # type: ignore[attr-defined]
            lr=lr_schedule(1),
            **self.optimizer_kwargs,  # type: ignore[attr-defined]
        )


class ItemActorCriticPolicy(_ItemHeads, ActorCriticPolicy):
    """The policy of A2C, PPO and TRPO with masks and item heads.

    Arguments as `ItemDQNPolicy`'s; ``value_scale`` is that of the value.
    """

    masked = True


class MaskableItemPolicy(_ItemHeads, MaskableActorCriticPolicy):
    """MaskablePPO's policy with item heads; the algorithm brings the masks.

    Arguments as `ItemDQNPolicy`'s; ``value_scale`` is that of the value.
    """

    masked = False
