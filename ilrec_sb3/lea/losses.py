"""The equations of LEA's recommenders as pure functions.

B is the batch, n the number of items, d the size of a state, A the number of actions a state is
asked about. The activation that eq. 7 and eq. 9 write around their linear layers is the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from torch.nn import functional as F

__all__ = [
    "TDLoss",
    "advantage",
    "augmented_td_loss",
    "combined_loss",
    "item_scores",
    "log_probabilities",
    "scores_of",
    "supervised_loss",
    "td_loss",
    "td_target",
    "total_loss",
]


class TDLoss(NamedTuple):
    """Eq. 10 and its two terms, all scalars.

    Attributes:
        total: To be minimised.
        positive: Mean squared error of the items that were taken.
        negative: Mean squared error of the sampled ones.
    """

    total: th.Tensor
    positive: th.Tensor
    negative: th.Tensor


def item_scores(states: th.Tensor, weights: th.Tensor, bias: th.Tensor) -> th.Tensor:
    r"""All items' scores, :math:`W s + b` (LEA, eq. 7 before its softmax, and eq. 9).

    Args:
        states: (B, d) hidden states h_t (eq. 7) or states :math:`s^e_t` (eq. 9).
        weights: (n, d).
        bias: (n,).

    Returns:
        (B, n) logits of the supervised head, or Q-values.
    """
    return F.linear(states, weights, bias)


def scores_of(
    states: th.Tensor, weights: th.Tensor, bias: th.Tensor, actions: th.Tensor
) -> th.Tensor:
    """The scores of a few items only: `item_scores` at ``actions``, without the work for the rest.

    Args:
        states: (B, d).
        weights: (n, d).
        bias: (n,).
        actions: (B, A) item indices.

    Returns:
        (B, A).
    """
    # (B, A, d) @ (B, d, 1) -> (B, A, 1)
    return (F.embedding(actions, weights) @ states[:, :, None]).squeeze(-1) + bias[actions]


def log_probabilities(logits: th.Tensor) -> th.Tensor:
    r"""Log of the softmax over the items, :math:`\log \hat Y_t` (LEA, eq. 7).

    Args:
        logits: (B, n) from `item_scores`.

    Returns:
        (B, n) in nats.
    """
    return logits.log_softmax(dim=-1)


def supervised_loss(log_probs: th.Tensor, targets: th.Tensor) -> th.Tensor:
    r"""Cross-entropy of each row, :math:`-\log \hat y_{target}` (LEA, eq. 8 and eq. 13).

    Args:
        log_probs: (B, n) from `log_probabilities`.
        targets: (B,) the next item (eq. 8) or the item that the environment chose (eq. 13).

    Returns:
        (B,) in nats.
    """
    return F.nll_loss(log_probs, targets, reduction="none")


def td_target(
    rewards: th.Tensor, gamma: float, values: th.Tensor, ends: th.Tensor | None = None
) -> th.Tensor:
    r"""One-step target, :math:`r + \gamma \max_{a'} Q(s', a')` (LEA, eq. 10 and eq. 14).

    Args:
        rewards: (B,).
        gamma: Discount factor, in [0, 1].
        values: (B,) value of the best action: of the next state for an item that the user takes,
            of the same state for a negative item, which changes nothing.
        ends: (B,) bool, True where no state follows; None where one always does.

    Returns:
        (B,) without gradients.
    """
    _same_shape("values", values, "rewards", rewards)
    if ends is not None:
        _same_shape("ends", ends, "rewards", rewards)
        values = values.masked_fill(ends, 0.0)
    return (rewards + gamma * values).detach()


def td_loss(
    q_positive: th.Tensor,
    target_positive: th.Tensor,
    q_negative: th.Tensor,
    target_negative: th.Tensor,
) -> TDLoss:
    """Squared errors of the positive and the negative action (LEA, eq. 10).

    Args:
        q_positive: (B,) Q of the item that was taken.
        target_positive: (B,) its `td_target`, from the next state.
        q_negative: (B,) Q of the sampled item.
        target_negative: (B,) its `td_target`, from the same state.

    Returns:
        The sum and its two terms, means over the batch.
    """
    positive = augmented_td_loss(q_positive, target_positive)
    negative = augmented_td_loss(q_negative, target_negative)
    return TDLoss(positive + negative, positive, negative)


def advantage(
    q_positive: th.Tensor, q_negative: th.Tensor, minimum: float | None = None
) -> th.Tensor:
    r"""Weight of the supervised loss, :math:`(Q(s, a^+) - Q(s, a^-)) / 2` (LEA, eq. 11).

    It is negative where Q prefers the sampled item. The loss then pushes the next item's
    probability down, and since a cross-entropy has no upper bound nothing stops it but Q; the paper
    says nothing about it and neither clips nor scales.

    Args:
        q_positive: (B,) Q of the item that was taken.
        q_negative: (B,) Q of the sampled item.
        minimum: Smallest weight; 0 leaves such rows out. None clips nothing, as in the paper.

    Returns:
        (B,) without gradients: the supervised loss does not train Q.
    """
    _same_shape("q_negative", q_negative, "q_positive", q_positive)
    weight = (q_positive - q_negative).detach() / 2.0
    return weight if minimum is None else weight.clamp(min=minimum)


def combined_loss(
    supervised: th.Tensor, td: th.Tensor | None = None, weights: th.Tensor | None = None
) -> th.Tensor:
    r"""Supervised and TD loss, :math:`L_h + L_q` (LEA, eq. 12).

    Args:
        supervised: (B,) from `supervised_loss`.
        td: Scalar of eq. 10; None leaves the supervised loss alone.
        weights: (B,) from `advantage` for SA2C; None weighs all rows alike, as SNQN does.

    Returns:
        Scalar, the supervised part a mean over the batch.
    """
    if weights is not None:
        _same_shape("weights", weights, "supervised", supervised)
        supervised = weights * supervised
    return supervised.mean() if td is None else supervised.mean() + td


def augmented_td_loss(q_augmented: th.Tensor, target: th.Tensor) -> th.Tensor:
    """Mean squared error of the item that the environment chose (LEA, eq. 14).

    Args:
        q_augmented: (B,) its Q.
        target: (B,) its `td_target`, from the next state: a positive action moves the user on.

    Returns:
        Scalar.
    """
    _same_shape("q_augmented", q_augmented, "target", target)
    return F.mse_loss(q_augmented, target)


def total_loss(
    combined: th.Tensor,
    augmented_supervised: th.Tensor | None = None,
    augmented_td: th.Tensor | None = None,
    supervised_weight: float = 0.1,
    td_weight: float = 0.01,
) -> th.Tensor:
    r"""Everything, :math:`L_c + w_{ah} L_{ah} + w_{aq} L_{aq}` (LEA, eq. 15).

    Args:
        combined: Scalar of eq. 12.
        augmented_supervised: (B,) of eq. 13, averaged here; None leaves it out.
        augmented_td: Scalar of eq. 14; None leaves it out.
        supervised_weight: w_ah, at least 0. Raising it trusts the chosen items more and the seen
            ones less; 0.01 to 0.5.
        td_weight: w_aq, at least 0; 0.001 to 0.1.

    Returns:
        Scalar, to be minimised.
    """
    total = combined
    if augmented_supervised is not None:
        total = total + supervised_weight * augmented_supervised.mean()
    if augmented_td is not None:
        total = total + td_weight * augmented_td
    return total


def _same_shape(name: str, value: th.Tensor, other_name: str, other: th.Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} came with {other_name} of shape "
            f"{tuple(other.shape)}; expected the same, lest they broadcast: flatten both."
        )
