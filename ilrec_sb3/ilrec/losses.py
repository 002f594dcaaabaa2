"""The losses of IL-Rec as pure functions, one for each equation.

B is the batch, n the number of actions. Policies are discrete, so every expectation over actions is
an exact sum. Log-probabilities come from `masked_log_softmax`: the sum needs no mask of its own,
since a disallowed action has probability exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch as th
from torch.nn import functional as F

__all__ = [
    "ActorLoss",
    "CriticLoss",
    "PolicyLoss",
    "actor_loss",
    "critic_loss",
    "critic_target",
    "entropy_temperature_loss",
    "imitation_loss",
    "policy_loss",
    "soft_value",
    "spread_penalty",
    "target_entropy",
    "worth_imitating",
]


class ActorLoss(NamedTuple):
    """Eq. 21 and what it is made of.

    Attributes:
        loss: Scalar, to be minimised.
        entropy: (B,) entropy of the policy in nats, with gradients.
        expected_q: (B,) expected Q of the policy, with gradients.
    """

    loss: th.Tensor
    entropy: th.Tensor
    expected_q: th.Tensor


class PolicyLoss(NamedTuple):
    """Eq. 22 and its two terms, all scalars.

    Attributes:
        total: To be minimised.
        imitation: Eq. 20, before its factor.
        actor: Eq. 21.
    """

    total: th.Tensor
    imitation: th.Tensor
    actor: th.Tensor


class CriticLoss(NamedTuple):
    """Eq. 23 summed over the critics.

    Attributes:
        loss: Scalar, to be minimised.
        mean_q: Scalar, mean of all predictions, without gradients.
        mean_error: Scalar, mean absolute error, without gradients.
    """

    loss: th.Tensor
    mean_q: th.Tensor
    mean_error: th.Tensor


def imitation_loss(log_probs: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    r"""Weighted imitation, :math:`-E[w \log\pi(a|s)]` (IL-Rec, eq. 20).

    Args:
        log_probs: (B,) log-probability of the demonstrated actions.
        weights: (B,) w, at least 0; None where the batch was drawn in proportion to w already.

    Returns:
        Scalar.
    """
    if weights is None:
        return -log_probs.mean()
    _same_shape("weights", weights, "log_probs", log_probs)
    return -(weights * log_probs).mean()


def worth_imitating(values: th.Tensor, expected: th.Tensor, returns: th.Tensor) -> th.Tensor:
    r"""Which demonstrated actions to imitate, :math:`1[\exists i: \max(Q_i(s, a), G) > V_i(s)]`.

    Nair et al., Overcoming Exploration in Reinforcement Learning with Demonstrations (2018), arXiv
    1709.10089, imitate an action only where their critic finds it better than what the policy
    plays; Oh et al., Self-Imitation Learning (2018), arXiv 1806.05635, where what followed was
    better than the critic expects. Here either will do, for any critic: Q may be wrong about an
    action that the policy no longer plays, and G of a poor session says little about its best
    action. V is the mean of Q over what the policy plays.

    Args:
        values: (n_critics, B), Q of the demonstrated actions.
        expected: (n_critics, B), V of the policy.
        returns: (B,), G from the demonstrated action on, discounted.

    Returns:
        (B,) 1 where the action is to be imitated and else 0, without gradients.
    """
    _same_shape("expected", expected, "values", values)
    return (th.maximum(values, returns) > expected).any(dim=0).to(values.dtype)


def actor_loss(
    log_probs: th.Tensor, q_values: th.Tensor, entropy_coefficient: th.Tensor | float
) -> ActorLoss:
    r"""Actor, :math:`-E_s[\sum_a \pi Q + \alpha_{ent} H(\pi)]` (IL-Rec, eq. 21).

    The print subtracts the entropy inside the bracket, which would reward a collapsed policy. It is
    added here, as in soft actor-critic (Haarnoja et al., 2018) and its discrete form
    (Christodoulou, 2019).

    Args:
        log_probs: (B, n) of the policy, masked.
        q_values: (B, n), the smaller of the two critics; no gradient flows into it.
        entropy_coefficient: alpha_ent in units of reward per nat, at least 0.

    Returns:
        The loss, the entropy and the expected Q.
    """
    _same_shape("q_values", q_values, "log_probs", log_probs)
    probs = log_probs.exp()
    expected_q = (probs * q_values.detach()).sum(dim=-1)
    entropy = -(probs * log_probs).sum(dim=-1)
    loss = -(expected_q + _constant(entropy_coefficient) * entropy).mean()
    return ActorLoss(loss, entropy, expected_q)


def policy_loss(imitation: th.Tensor, actor: th.Tensor, imitation_coefficient: float) -> PolicyLoss:
    r"""Total of the policy, :math:`\lambda_{imit} L_{imit} + L_{RL}` (IL-Rec, eq. 22).

    Args:
        imitation: Scalar of eq. 20.
        actor: Scalar of eq. 21.
        imitation_coefficient: lambda_imit, at least 0. Raising it holds the policy to the
            demonstrations, which helps early and hurts once it is better than they are.

    Returns:
        The total and its terms.
    """
    return PolicyLoss(imitation_coefficient * imitation + actor, imitation, actor)


def soft_value(
    expected_q: th.Tensor, entropy: th.Tensor, entropy_coefficient: th.Tensor | float
) -> th.Tensor:
    r"""Value of a state, :math:`V = \sum_a \pi (Q - \alpha_{ent} \log\pi)` (IL-Rec, eq. 23).

    The sum over actions is split: :math:`\sum_a \pi Q` is the expectation of Q and
    :math:`-\sum_a \pi \log\pi` the entropy.

    Args:
        expected_q: (B,) expectation of Q under the policy, the smaller of the two target critics.
        entropy: (B,) entropy of the policy in nats.
        entropy_coefficient: alpha_ent, at least 0.

    Returns:
        (B,).
    """
    _same_shape("entropy", entropy, "expected_q", expected_q)
    return expected_q + _constant(entropy_coefficient) * entropy


def critic_target(
    rewards: th.Tensor, dones: th.Tensor, next_values: th.Tensor, discounts: th.Tensor | float
) -> th.Tensor:
    r"""Target of the critic, :math:`y = r + \gamma (1 - d) V(s')` (IL-Rec, eq. 23).

    Args:
        rewards: (B,) or (B, 1).
        dones: The same shape or flattened, 1 where the episode terminated.
        next_values: (B,) from `soft_value`.
        discounts: gamma, or (B,) or (B, 1) of its powers where rewards span several steps.

    Returns:
        (B,) without gradients.
    """
    if isinstance(discounts, th.Tensor):
        discounts = discounts.flatten()
    rewards, dones, next_values = rewards.flatten(), dones.flatten(), next_values.flatten()
    _same_shape("next_values", next_values, "rewards", rewards)
    _same_shape("dones", dones, "rewards", rewards)
    return (rewards + discounts * (1.0 - dones) * next_values).detach()


def critic_loss(
    q_values: Sequence[th.Tensor],
    target: th.Tensor,
    kind: Literal["mse", "huber"] = "mse",
    delta: float = 1.0,
) -> CriticLoss:
    r"""Temporal-difference loss, :math:`E[(Q(s, a) - y)^2]` (IL-Rec, eq. 23).

    Args:
        q_values: One (B,) tensor for each critic, of the actions taken.
        target: (B,) from `critic_target`.
        kind: "mse" as printed, halved as soft actor-critic does, or "huber", whose gradient is
            bounded by `delta`.
        delta: Where "huber" turns linear, in units of the return.

    Returns:
        The sum over the critics and two means to be logged.
    """
    losses, errors = [], []
    for q in q_values:
        _same_shape("q_values", q, "target", target)
        if kind == "mse":
            losses.append(0.5 * F.mse_loss(q, target))
        elif kind == "huber":
            losses.append(F.huber_loss(q, target, delta=delta))
        else:
            raise ValueError(
                f"kind = {kind!r} came for the critic's loss; expected 'mse' or 'huber'."
            )
        errors.append((q.detach() - target).abs().mean())
    mean_q = th.stack([q.detach().mean() for q in q_values]).mean()
    return CriticLoss(th.stack(losses).sum(), mean_q, th.stack(errors).mean())


class OutcomeLoss(NamedTuple):
    """Loss of what follows at once from an action.

    Attributes:
        loss: Scalar to descend.
        reward_error: Mean absolute error of the rewards.
        end_loss: Binary cross-entropy of the ends, in nats.
    """

    loss: th.Tensor
    reward_error: th.Tensor
    end_loss: th.Tensor


def outcome_loss(
    rewards: th.Tensor, end_logits: th.Tensor, seen: th.Tensor, ended: th.Tensor
) -> OutcomeLoss:
    """Huber loss of predicted rewards plus binary cross-entropy of predicted ends.

    Args:
        rewards: (B,) predicted.
        end_logits: (B,) of the chance that the action ends the episode.
        seen: (B,) the rewards that came.
        ended: (B,) 1 where the episode ended.
    """
    _same_shape("rewards", rewards, "seen", seen)
    _same_shape("end_logits", end_logits, "ended", ended)
    ends = F.binary_cross_entropy_with_logits(end_logits, ended)
    error = (rewards.detach() - seen).abs().mean()
    return OutcomeLoss(F.huber_loss(rewards, seen) + ends, error, ends.detach())


def spread_penalty(values: Sequence[th.Tensor], others: Sequence[th.Tensor]) -> th.Tensor:
    """Mean squared difference between the values of two actions in the same states.

    With actions that are drawn alike it is twice the variance of the values over the actions.

    Args:
        values: One (B,) tensor for each critic.
        others: The same of other actions in the same states.

    Returns:
        Scalar, the sum over the critics.
    """
    for value, other in zip(values, others, strict=True):
        _same_shape("values", value, "others", other)
    return th.stack([F.mse_loss(v, o) for v, o in zip(values, others, strict=True)]).sum()


def target_entropy(share: float, n_actions: int, masks: th.Tensor | None = None) -> th.Tensor:
    """Entropy that the temperature aims at: a share of what the allowed actions make possible.

    Args:
        share: In (0, 1); 0.98 is usual for few actions and far less for a catalogue, since 0.5 of
            6,012 items is as random as 78 equally likely ones.
        n_actions: n.
        masks: (B, n) bool, True where allowed; None allows everything.

    Returns:
        Scalar without masks, else (B,), in nats.
    """
    if masks is None:
        return th.tensor(share * math.log(n_actions))
    return share * masks.sum(dim=-1).clamp(min=1).float().log()


def entropy_temperature_loss(
    log_coefficient: th.Tensor, entropy: th.Tensor, target: th.Tensor | float
) -> th.Tensor:
    """Loss of the learned temperature ("auto"), after soft actor-critic (Haarnoja et al., 2018).

    Its gradient is the mean entropy less the target: a policy that is too sure of itself raises
    alpha_ent.

    Args:
        log_coefficient: log alpha_ent, a parameter of one element.
        entropy: (B,) entropy of the policy; no gradient flows into it.
        target: Scalar or (B,), from `target_entropy`.

    Returns:
        Scalar.
    """
    excess = entropy.detach() - _constant(target)
    return (log_coefficient * excess.mean()).sum()


def _constant(value: th.Tensor | float) -> th.Tensor | float:
    return value.detach() if isinstance(value, th.Tensor) else value


def _same_shape(name: str, value: th.Tensor, other_name: str, other: th.Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} came with {other_name} of shape "
            f"{tuple(other.shape)}; expected the same, lest they broadcast: flatten both."
        )
