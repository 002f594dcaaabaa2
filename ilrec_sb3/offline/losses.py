r"""The losses of the offline algorithms as pure functions.

B is the batch, n the number of actions. Values are in whatever unit the caller chooses, the same
for predictions and targets; the algorithms here divide both by the policy's ``value_scale``.
Temporal-difference losses are Huber's, as in the public implementations of DQN; the target
:math:`r + \gamma (1 - d) V(s')` is `ilrec_sb3.ilrec.losses.critic_target`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch as th

from ilrec_sb3.common.masking import masked_logits
from ilrec_sb3.ilrec.losses import critic_loss

__all__ = [
    "BCQLoss",
    "CQLLoss",
    "CRRLoss",
    "SQNLoss",
    "Weighting",
    "bcq_loss",
    "bcq_scores",
    "cloning_loss",
    "conservative_loss",
    "cql_loss",
    "crr_loss",
    "crr_weights",
    "sqn_loss",
]

Weighting = Literal["exp", "binary"]
_LOWEST = -1e8  # finite: minus infinity times zero is not a number


class SQNLoss(NamedTuple):
    """SQN's loss and its terms, all scalars.

    Attributes:
        total: To be minimised.
        cross_entropy: Of the supervised head.
        td: Of the Q head.
    """

    total: th.Tensor
    cross_entropy: th.Tensor
    td: th.Tensor


class CRRLoss(NamedTuple):
    """CRR's loss and its terms, all scalars.

    Attributes:
        total: To be minimised.
        actor: Weighted regression onto the logged actions.
        td: Of all critics.
    """

    total: th.Tensor
    actor: th.Tensor
    td: th.Tensor


class BCQLoss(NamedTuple):
    """Discrete BCQ's loss and its terms, all scalars.

    Attributes:
        total: To be minimised.
        td: Of the Q network.
        imitation: Cross-entropy of the imitator.
        regularisation: Of the imitator's logits, with its factor.
    """

    total: th.Tensor
    td: th.Tensor
    imitation: th.Tensor
    regularisation: th.Tensor


class CQLLoss(NamedTuple):
    """Discrete CQL's loss and its terms, all scalars.

    Attributes:
        total: To be minimised.
        td: Of the Q network.
        conservative: The regulariser, before its factor.
    """

    total: th.Tensor
    td: th.Tensor
    conservative: th.Tensor


def cloning_loss(log_probs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    r"""Behavioural cloning, :math:`-E[\log\pi(a|s)]` (Bain and Sammut, 1995).

    Args:
        log_probs: (B, n), masked.
        actions: (B, 1) int64, the logged ones.

    Returns:
        Scalar.
    """
    return -log_probs.gather(1, actions).mean()


def sqn_loss(
    log_probs: th.Tensor, actions: th.Tensor, q_taken: th.Tensor, target: th.Tensor
) -> SQNLoss:
    r"""Self-supervised Q-learning, :math:`L_s + L_q` (Xin et al., arXiv 2006.05779, Algorithm 1).

    The cross-entropy of the supervised head and the temporal-difference loss of the Q head are
    added without a factor; both heads stand on one encoder. The paper squares the error.

    Args:
        log_probs: (B, n) of the supervised head, masked.
        actions: (B, 1) int64, the logged ones.
        q_taken: (B,) the Q head's value of the logged actions.
        target: (B,) from `critic_target`.

    Returns:
        The total and its terms.
    """
    cross_entropy = cloning_loss(log_probs, actions)
    td = critic_loss([q_taken], target, kind="huber").loss
    return SQNLoss(cross_entropy + td, cross_entropy, td)


def crr_weights(
    advantages: th.Tensor, kind: Weighting, beta: float = 1.0, max_weight: float = 20.0
) -> th.Tensor:
    r"""How much each logged action is regressed onto (Wang et al., arXiv 2006.15134, eq. 3, 4).

    ``"binary"`` is :math:`1[A > 0]`; ``"exp"`` is :math:`\exp(A / \beta)`, held to a largest value.

    Args:
        advantages: (B,) :math:`A = Q(s, a) - \sum_b \pi(b|s) Q(s, b)`; no gradient flows.
        kind: Which of the two.
        beta: Temperature of "exp" in the unit of the advantages, above 0. Raising it comes nearer
            to cloning.
        max_weight: Bound of "exp".

    Returns:
        (B,), at least 0.
    """
    if kind == "binary":
        return (advantages.detach() > 0).to(advantages.dtype)
    if kind == "exp":
        return (advantages.detach() / beta).exp().clamp(max=max_weight)
    raise ValueError(f"kind = {kind!r} came for the weights of CRR; expected 'exp' or 'binary'.")


def crr_loss(
    log_probs: th.Tensor,
    actions: th.Tensor,
    weights: th.Tensor,
    q_taken: list[th.Tensor],
    target: th.Tensor,
) -> CRRLoss:
    r"""Critic-regularised regression (Wang et al., arXiv 2006.15134, eq. 1, 2).

    The actor's term is :math:`-E[f \log\pi(a|s)]`. The paper's critic is one distributional
    network; here there are several scalar ones, of which the target takes the smallest.

    Args:
        log_probs: (B, n) of the actor, masked.
        actions: (B, 1) int64, the logged ones.
        weights: (B,) f, from `crr_weights`.
        q_taken: For each critic (B,) its value of the logged actions.
        target: (B,) from `critic_target`.

    Returns:
        The total and its terms.
    """
    actor = -(weights * log_probs.gather(1, actions)[:, 0]).mean()
    td = critic_loss(q_taken, target, kind="huber").loss
    return CRRLoss(actor + td, actor, td)


def bcq_scores(q_values: th.Tensor, log_probs: th.Tensor, threshold: float) -> th.Tensor:
    r"""Values of what the log makes likely (Fujimoto et al., arXiv 1910.01708, Algorithm 1).

    An action stays in play where :math:`G(a|s) / \max_b G(b|s) > \tau`, with G the imitator.

    Args:
        q_values: (B, n).
        log_probs: (B, n) of the imitator, masked; what is masked is never in play.
        threshold: tau in [0, 1). 0 leaves all that is allowed, as Q-learning does; near 1 only the
            imitator's favourite. Usual: 0.3 for few actions, far less for a catalogue.

    Returns:
        (B, n), a large negative number where an action is out of play.
    """
    ratio = (log_probs - log_probs.amax(dim=1, keepdim=True)).exp()
    return th.where(ratio > threshold, q_values, _LOWEST)


def bcq_loss(
    q_taken: th.Tensor,
    target: th.Tensor,
    logits: th.Tensor,
    log_probs: th.Tensor,
    actions: th.Tensor,
    logit_coefficient: float,
) -> BCQLoss:
    r"""Discrete BCQ (Fujimoto et al., arXiv 1910.01708, Algorithm 1).

    The regulariser of the logits, :math:`c\,E[i(a|s)^2]` over all actions, is the public
    implementation's.

    Args:
        q_taken: (B,) values of the logged actions.
        target: (B,) from `critic_target`.
        logits: (B, n) of the imitator, before the mask.
        log_probs: (B, n) of the imitator, masked.
        actions: (B, 1) int64, the logged ones.
        logit_coefficient: c, at least 0; 0.01 is usual.

    Returns:
        The total and its terms.
    """
    td = critic_loss([q_taken], target, kind="huber").loss
    imitation = cloning_loss(log_probs, actions)
    regularisation = logit_coefficient * logits.square().mean()
    return BCQLoss(td + imitation + regularisation, td, imitation, regularisation)


def conservative_loss(
    q_values: th.Tensor, actions: th.Tensor, masks: th.Tensor | None = None
) -> th.Tensor:
    r"""CQL(H)'s regulariser (Kumar et al., arXiv 2006.04779, eq. 4).

    It is :math:`E[\log\sum_b \exp Q(s, b) - Q(s, a)]`: values of what the log does not show are
    pushed down, those of what it shows up.

    Args:
        q_values: (B, n).
        actions: (B, 1) int64, the logged ones.
        masks: (B, n) bool, True where allowed; the sum runs over these. None: over all.

    Returns:
        Scalar.
    """
    allowed = masked_logits(q_values, masks, check=False)
    return (allowed.logsumexp(dim=1) - q_values.gather(1, actions)[:, 0]).mean()


def cql_loss(
    q_values: th.Tensor,
    actions: th.Tensor,
    target: th.Tensor,
    alpha: float,
    masks: th.Tensor | None = None,
) -> CQLLoss:
    r"""Discrete CQL, :math:`L_{TD} + \alpha L_{conservative}` (Kumar et al., 2020, eq. 4).

    Args:
        q_values: (B, n).
        actions: (B, 1) int64, the logged ones.
        target: (B,) from `critic_target`.
        alpha: At least 0. Raising it comes nearer to cloning.
        masks: As in `conservative_loss`.

    Returns:
        The total and its terms.
    """
    td = critic_loss([q_values.gather(1, actions)[:, 0]], target, kind="huber").loss
    conservative = conservative_loss(q_values, actions, masks)
    return CQLLoss(td + alpha * conservative, td, conservative)
