"""Policies of ILRec and DiscreteSAC: an actor, critics and their targets over discrete actions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from ilrec_sb3.common.masking import masked_log_softmax, sample_actions
from ilrec_sb3.common.observations import FlatObservations
from ilrec_sb3.ilrec.heads import Coefficients, CrossNet, ItemScorer, PlainScorer
from recsim_env.dynamics import ItemContext

__all__ = ["ILRecPolicy", "MlpPolicy", "MultiInputPolicy"]


class _Network(nn.Module):
    """A features extractor and a scorer on it: the actor, or all critics.

    Args:
        n_heads: How many scores each action gets.
        policy: Whose spaces, extractor and layer sizes to use.
        scale: See the scorers.
        pair_heads: See `ItemScorer`.
    """

    def __init__(
        self,
        n_heads: int,
        policy: ILRecPolicy,
        scale: float,
        pair_heads: Collection[int] | None = None,
    ) -> None:
        super().__init__()
        self.flat = policy.flat
        self.space = policy.observation_space
        self.normalize_images = policy.normalize_images
        self.extractor = policy.make_features_extractor()
        self.n_heads = n_heads
        width = self.extractor.features_dim
        arch, activation = policy.net_arch, policy.activation_fn
        self.scorer: ItemScorer | PlainScorer
        if policy.cross is not None:
            self.scorer = ItemScorer(
                width, policy.cross, n_heads, arch, policy.item_dim, activation, scale, pair_heads
            )
        else:
            n_actions = int(policy.action_space.n)  # type: ignore[attr-defined]
            self.scorer = PlainScorer(width, n_actions, n_heads, arch, activation, scale)

    def features(self, flat: th.Tensor) -> th.Tensor:
        """Returns (B, features_dim) of (B, d) flat observations."""
        observed = preprocess_obs(
            self.flat.unflatten(flat),
            self.space,
            normalize_images=self.normalize_images,
        )
        features: th.Tensor = self.extractor(observed)
        return features


_LEAST_GOES_ON = 1e-6
"""Where all that may be shown goes on with less than this chance, caution has nothing to choose."""


class Outcomes(NamedTuple):
    """What is thought to follow at once from each action, for B states and n actions.

    Attributes:
        rewards: (B, n) in units of reward.
        goes_on: (B, n) chance that the session goes on, in (0, 1).
    """

    rewards: th.Tensor
    goes_on: th.Tensor


class ILRecPolicy(BasePolicy):
    """Actor, critics and target critics over discrete actions, and a slow average of the actor.

    With ``decomposed`` a value is put together from what can be learned apart: with d the chance
    that the item ends the session,

        Q(s, a) = r(s, a) + (1 - d(s, a)) U(s, a)

    r and d are plain regressions of what was seen, so neither the reward nor where the session ends
    has to be found through values of values; critics learn U alone, the value of going on.

    The average of the actor's parameters along its training gives the best action; draws, the
    exploration among them, are the actor's own. With ``caution`` they are not quite: an action that
    ends the session with chance d is drawn (1 - d)^caution times as often, and the critics learn
    the values of such draws. Over thousands of items the small chances of bad ones add up, and the
    critics would learn how sessions go on that now and then end by accident.

    Where the environment says what its items are (``item_context``), scores come from item features
    and state-item cross features (see `ilrec_sb3.ilrec.heads`); elsewhere from plain heads with one
    output for each action.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of such.
        action_space: Discrete.
        lr_schedule: Learning rate of the algorithm.
        net_arch: Widths of the hidden layers, of actor and critics alike.
        activation_fn: Of the hidden layers.
        n_critics: Number of critics; their smallest value counts.
        item_context: What the environment says about its items; the algorithm fills it in.
        use_item_heads: False takes plain heads even where the items are known.
        use_tracker: Whether item heads look at the state tracker; None: where the history matters
            (`ItemContext.history_matters`). Where rules look at counts of categories and the step
            only, it tells nothing new, and what values made of it was noise of the size of the
            differences between good items.
        item_dim: Width of the product of state and item.
        value_scale: Usual size of a return, in units of reward; the critics' outputs are multiplied
            by it.
        decomposed: Whether rewards and ends of sessions are learned apart from values.
        caution: How much draws avoid what is thought to end the session; 0 takes the actor's own.
            Of no effect unless ``decomposed``.
        features_extractor_class: As in Stable-Baselines3.
        features_extractor_kwargs: As in Stable-Baselines3.
        normalize_images: As in Stable-Baselines3.
        optimizer_class: As in Stable-Baselines3.
        optimizer_kwargs: As in Stable-Baselines3.
    """

    actor: _Network
    actor_average: _Network
    outcome: _Network
    critic: _Network
    critic_target: _Network

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: Sequence[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        n_critics: int = 2,
        item_context: ItemContext | None = None,
        use_item_heads: bool = True,
        use_tracker: bool | None = None,
        item_dim: int = 32,
        value_scale: float = 10.0,
        decomposed: bool = True,
        caution: float = 1.0,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            normalize_images=normalize_images,
        )
        self.net_arch = list(net_arch) if net_arch is not None else [128, 128]
        self.activation_fn = activation_fn
        self.n_critics = n_critics
        self.item_context = item_context
        self.use_item_heads = use_item_heads
        self.use_tracker = use_tracker
        self.item_dim = item_dim
        self.value_scale = value_scale
        self.decomposed = decomposed
        if caution < 0:
            raise ValueError(f"caution={caution} came; expected 0 or more: 1 is usual.")
        self.caution = caution
        order = None if item_context is None else list(item_context.layout.parts())
        self.flat = FlatObservations(observation_space, order)
        usable = (
            item_context is not None
            and use_item_heads
            and item_context.n_items == int(action_space.n)
            and self.flat.size == item_context.layout.size
        )
        self.cross: CrossNet | None = None
        if usable and item_context is not None:
            tracked = item_context.history_matters if use_tracker is None else use_tracker
            self.cross = CrossNet(item_context, tracked)
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = _Network(1, self, 1.0)
        self.actor_average = _Network(1, self, 1.0)
        self.critic = _Network(self.n_critics, self, self.value_scale)
        self.critic_target = _Network(self.n_critics, self, self.value_scale)
        for slow, fast in (
            (self.actor_average, self.actor),
            (self.critic_target, self.critic),
        ):
            slow.load_state_dict(fast.state_dict())
            slow.train(False)
            for parameter in slow.parameters():
                parameter.requires_grad_(False)
        options = self.optimizer_kwargs
        rate = lr_schedule(1)
        if self.decomposed:
            # what goes after what decides about ends, not about rewards
            self.outcome = _Network(2, self, 1.0, pair_heads=(1,))
            self.outcome_optimizer = self.optimizer_class(
                self.outcome.parameters(),
                lr=rate,  # type: ignore[call-arg]
                **options,
            )
        self.actor_optimizer = self.optimizer_class(
            self.actor.parameters(),
            lr=rate,  # type: ignore[call-arg]
            **options,
        )
        self.critic_optimizer = self.optimizer_class(
            self.critic.parameters(),
            lr=rate,  # type: ignore[call-arg]
            **options,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            n_critics=self.n_critics,
            item_context=self.item_context,
            use_item_heads=self.use_item_heads,
            use_tracker=self.use_tracker,
            item_dim=self.item_dim,
            value_scale=self.value_scale,
            decomposed=self.decomposed,
            caution=self.caution,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data

    def crossed(self, flat: th.Tensor) -> tuple[th.Tensor, ...] | None:
        """Returns the cross features of (B, d) flat observations, to be shared by all networks.

        They are those of `CrossNet`, or None with plain heads.
        """
        if self.cross is None:
            return None
        with th.no_grad():
            found: tuple[th.Tensor, ...] = self.cross(flat)
            return found

    def log_probs(
        self,
        flat: th.Tensor,
        masks: th.Tensor | None = None,
        crossed: tuple[th.Tensor, ...] | None = None,
        average: bool = False,
    ) -> th.Tensor:
        """Returns (B, n) log-probabilities of all actions.

        Args:
            flat: (B, d) flat observations.
            masks: (B, n) bool, True where allowed; None allows everything.
            crossed: Of these observations, where they were computed already.
            average: Whether the averaged actor is asked.
        """
        network = self.actor_average if average else self.actor
        return masked_log_softmax(self._logits(network, flat, crossed), masks, check=False)

    def _logits(
        self, network: _Network, flat: th.Tensor, crossed: tuple[th.Tensor, ...] | None
    ) -> th.Tensor:
        scorer = network.scorer
        if isinstance(scorer, PlainScorer) or self.cross is None:
            logits: th.Tensor = scorer(network.features(flat))[0]
            return logits
        if crossed is None:
            crossed = self.cross(flat)
        heads = self._heads(network, flat)
        return scorer.scores(heads[0], crossed, self.cross)

    def _heads(self, network: _Network, flat: th.Tensor) -> list[Coefficients]:
        assert self.cross is not None
        assert isinstance(network.scorer, ItemScorer)
        features = network.features(self.cross.scaled(flat))
        return network.scorer.coefficients(features, flat, self.cross)

    def outcomes(
        self, flat: th.Tensor, crossed: tuple[th.Tensor, ...] | None = None
    ) -> Outcomes | None:
        """Returns what is thought to follow at once from every action; None where not decomposed.

        Args:
            flat: (B, d) flat observations.
            crossed: Of these observations, where they were computed already.
        """
        if not self.decomposed:
            return None
        rewards, ends = self._scores(self.outcome, flat, crossed)
        return Outcomes(rewards, th.sigmoid(-ends))

    def careful(self, probs: th.Tensor, outcomes: Outcomes | None) -> th.Tensor:
        """Returns (B, n) probabilities of draws: less often what ends the session.

        States where everything is thought to end it keep their probabilities.

        Args:
            probs: (B, n) the actor's.
            outcomes: Of the same states; None where not decomposed.
        """
        if outcomes is None or self.caution == 0:
            return probs
        weighted = probs * outcomes.goes_on**self.caution
        total = weighted.sum(1, keepdim=True)
        return th.where(total > _LEAST_GOES_ON, weighted / total.clamp_min(_LEAST_GOES_ON), probs)

    def outcome_pairs(self, flat: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Returns (B,) rewards and (B,) logits of an end, of the (B, 1) actions."""
        rewards, ends = self._pairs(self.outcome, flat, actions)
        return rewards[:, 0], ends[:, 0]

    def expected_q(
        self,
        flat: th.Tensor,
        probs: th.Tensor,
        crossed: tuple[th.Tensor, ...] | None = None,
        target: bool = False,
        outcomes: Outcomes | None = None,
    ) -> th.Tensor:
        """Returns (n_critics, B), each critic's expected value under a policy.

        Args:
            flat: (B, d) flat observations.
            probs: (B, n) probabilities of the actions.
            crossed: Of these observations, where they were computed already.
            target: Whether the target critics are asked.
            outcomes: Of these observations, where values are decomposed.
        """
        network = self.critic_target if target else self.critic
        base: th.Tensor | float = 0.0
        if outcomes is not None:
            base = (probs * outcomes.rewards).sum(1)
            probs = probs * outcomes.goes_on
        scorer = network.scorer
        if isinstance(scorer, PlainScorer) or self.cross is None:
            return base + th.stack([(probs * q).sum(1) for q in scorer(network.features(flat))])
        if crossed is None:
            crossed = self.cross(flat)
        return base + scorer.expected(self._heads(network, flat), probs, crossed, self.cross)

    def q_values(
        self,
        flat: th.Tensor,
        probs: th.Tensor,
        crossed: tuple[th.Tensor, ...] | None = None,
        outcomes: Outcomes | None = None,
    ) -> th.Tensor:
        """Returns (B, n) values of all actions by the most pessimistic critic of each state.

        Args:
            flat: (B, d) flat observations.
            probs: (B, n) probabilities of the actions, which choose the critic.
            crossed: Of these observations, where they were computed already.
            outcomes: Of these observations, where values are decomposed.
        """
        if outcomes is not None:
            # what comes at once is the same for all critics and chooses none
            probs = probs * outcomes.goes_on
        rows = th.arange(len(flat), device=flat.device)
        scorer = self.critic.scorer
        if isinstance(scorer, PlainScorer) or self.cross is None:
            plain = th.stack(scorer(self.critic.features(flat)))
            values = plain[(probs * plain).sum(2).argmin(0), rows]
        else:
            crossed = self.cross(flat) if crossed is None else crossed
            heads = self._heads(self.critic, flat)
            least = scorer.expected(heads, probs, crossed, self.cross).argmin(0)
            chosen = Coefficients(
                th.stack([head.weights for head in heads])[least, rows],
                th.stack([head.table for head in heads])[least, rows],
                heads[0].followed,
            )
            values = scorer.scores(chosen, crossed, self.cross)
        if outcomes is None:
            return values
        return outcomes.rewards + outcomes.goes_on * values

    def values_of(
        self, flat: th.Tensor, actions: th.Tensor, outcomes: Outcomes | None = None
    ) -> th.Tensor:
        """Returns (n_critics, B), each critic's value of one action in each state.

        Args:
            flat: (B, d) flat observations.
            actions: (B, 1) int64.
            outcomes: Of these observations, where values are decomposed.
        """
        values = th.stack([pair[:, 0] for pair in self.q_pairs(flat, actions)])
        if outcomes is None:
            return values
        rewards = outcomes.rewards.gather(1, actions)[:, 0]
        return rewards + outcomes.goes_on.gather(1, actions)[:, 0] * values

    def q_pairs(self, flat: th.Tensor, actions: th.Tensor) -> list[th.Tensor]:
        """Returns each critic's (B, m) values of the (B, m) actions; U of them where decomposed.

        Args:
            flat: (B, d) flat observations.
            actions: (B, m) int64, m actions in each state.
        """
        return self._pairs(self.critic, flat, actions)

    def _scores(
        self, network: _Network, flat: th.Tensor, crossed: tuple[th.Tensor, ...] | None
    ) -> list[th.Tensor]:
        scorer = network.scorer
        if isinstance(scorer, PlainScorer) or self.cross is None:
            plain: list[th.Tensor] = scorer(network.features(flat))
            return plain
        crossed = self.cross(flat) if crossed is None else crossed
        return [scorer.scores(h, crossed, self.cross) for h in self._heads(network, flat)]

    def _pairs(self, network: _Network, flat: th.Tensor, actions: th.Tensor) -> list[th.Tensor]:
        scorer = network.scorer
        if isinstance(scorer, PlainScorer) or self.cross is None:
            return [q.gather(1, actions) for q in scorer(network.features(flat))]
        crossed = self.cross.pairs(flat, actions)
        return scorer.pairs(self._heads(network, flat), crossed, actions, self.cross)

    def forward(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> th.Tensor:
        """Returns (B,) actions; as `_predict`."""
        return self._predict(obs, deterministic, action_masks)

    def _predict(
        self,
        observation: PyTorchObs,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> th.Tensor:
        flat = self.flat.flatten_tensor(observation)
        crossed = self.crossed(flat)
        log_probs = self.log_probs(flat, action_masks, crossed, average=deterministic)
        if deterministic:
            return log_probs.argmax(dim=1)
        outcomes = self.outcomes(flat, crossed) if self.caution > 0 else None
        return sample_actions(self.careful(log_probs.exp(), outcomes))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Returns actions for observations; the signature is that of sb3-contrib's MaskablePPO.

        Args:
            observation: One observation or a batch of them.
            state: Passed through.
            episode_start: Not used.
            deterministic: Whether to take the averaged actor's most likely action instead of a draw
                from the actor.
            action_masks: (n,) or (B, n) bool, True where allowed.

        Returns:
            An action or a batch of them, and ``state``.
        """
        del episode_start
        self.set_training_mode(False)
        tensor, vectorized = self.obs_to_tensor(observation)
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        with th.no_grad():
            masks = None
            if action_masks is not None:
                array = np.asarray(action_masks, dtype=bool).reshape(-1, n_actions)
                if not array.any(axis=1).all():
                    raise ValueError(
                        "action_masks came with a row that allows nothing; expected at least one "
                        "True in each: reset the session that has nothing left to show."
                    )
                masks = th.as_tensor(array, device=self.device)
            actions = self._predict(tensor, deterministic, masks).cpu().numpy()
        return (actions if vectorized else actions.squeeze(axis=0)), state

    def set_training_mode(self, mode: bool) -> None:
        """Sets actor and critics to training or evaluation; the targets stay in evaluation."""
        if mode != self.training:
            self.actor.train(mode)
            self.critic.train(mode)
            if self.decomposed:
                self.outcome.train(mode)
            self.training = mode


MlpPolicy = ILRecPolicy


class MultiInputPolicy(ILRecPolicy):
    """`ILRecPolicy` for Dict observations; arguments as there."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )
