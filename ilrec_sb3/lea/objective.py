"""The loss of one batch: which equations a variant uses, and on which network."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch as th

from ilrec_sb3.lea.batches import Batch
from ilrec_sb3.lea.losses import (
    advantage,
    augmented_td_loss,
    combined_loss,
    log_probabilities,
    supervised_loss,
    td_loss,
    td_target,
    total_loss,
)
from ilrec_sb3.lea.networks import RecommenderNetwork
from ilrec_sb3.lea.variants import Variant

__all__ = ["Objective", "objective_losses"]


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        variant: Which equations are part of it.
        gamma: Discount factor.
        supervised_weight: w_ah of eq. 15.
        td_weight: w_aq of eq. 15.
        minimum_advantage: Smallest weight of eq. 11; None clips nothing.
    """

    variant: Variant
    gamma: float
    supervised_weight: float
    td_weight: float
    minimum_advantage: float | None


def objective_losses(
    objective: Objective,
    main: RecommenderNetwork,
    other: RecommenderNetwork,
    batch: Batch,
    weigh: bool,
) -> dict[str, th.Tensor]:
    """Lines 5 to 16 of algorithm 1 for the network that was drawn.

    Args:
        objective: What is minimised.
        main: The network that is trained and that chooses the best items; comes and is left in
            evaluation mode.
        other: The one that says what they are worth, in evaluation mode; not used without a Q head.
        batch: The examples.
        weigh: Whether SA2C weighs its supervised loss already.

    Returns:
        Scalars for the log; "loss", with gradients, is eq. 15.
    """
    variant = objective.variant
    main.train()
    hidden = main.hidden(batch.histories)
    main.eval()
    log_probs = log_probabilities(main.logits(hidden))
    supervised = supervised_loss(log_probs, batch.targets)
    scalars = {"supervised": supervised.mean()}
    q_losses = _QLosses()
    if variant.learns_q:
        q_losses = _q_losses(objective, main, other, batch, hidden)
        scalars |= q_losses.scalars
    augmented_supervised = None
    if variant.augmented_supervised:
        assert batch.augmented is not None
        augmented_supervised = supervised_loss(log_probs, batch.augmented)
        scalars["augmented_supervised"] = augmented_supervised.mean()
    weights = q_losses.advantage if variant.framework == "SA2C" and weigh else None
    total = total_loss(
        combined_loss(supervised, q_losses.td, weights),
        augmented_supervised,
        q_losses.augmented_td,
        objective.supervised_weight,
        objective.td_weight,
    )
    return {"loss": total, **scalars}


@dataclass(frozen=True, eq=False)
class _QLosses:
    """What the Q head adds: scalars, and (B,) advantages; nothing where there is none."""

    td: th.Tensor | None = None
    augmented_td: th.Tensor | None = None
    advantage: th.Tensor | None = None
    scalars: dict[str, th.Tensor] = field(default_factory=dict)


def _q_losses(
    objective: Objective,
    main: RecommenderNetwork,
    other: RecommenderNetwork,
    batch: Batch,
    hidden: th.Tensor,
) -> _QLosses:
    variant, gamma = objective.variant, objective.gamma
    state = main.q_state(hidden, batch.states)
    actions = [batch.targets, batch.negatives]
    if variant.augmented_q:
        assert batch.augmented is not None
        actions.append(batch.augmented)
    q = main.q_of(state, th.stack(actions, dim=1))
    values, next_values = _values(main, other, batch, state.detach())
    td = td_loss(
        q[:, 0],
        td_target(batch.rewards, gamma, next_values, batch.ends),
        q[:, 1],
        td_target(batch.negative_rewards, gamma, values),
    )
    weights = advantage(q[:, 0], q[:, 1], objective.minimum_advantage)
    scalars = {
        "td_positive": td.positive,
        "td_negative": td.negative,
        "q_positive": q[:, 0].mean(),
        "q_negative": q[:, 1].mean(),
        "advantage_below_0": (q[:, 0] < q[:, 1]).float().mean(),  # before any is clipped
    }
    augmented_td = None
    if variant.augmented_q:
        assert batch.augmented_rewards is not None
        target = td_target(batch.augmented_rewards, gamma, next_values, batch.ends)
        augmented_td = scalars["augmented_td"] = augmented_td_loss(q[:, 2], target)
    return _QLosses(td.total, augmented_td, weights, scalars)


@th.no_grad()
def _values(
    main: RecommenderNetwork, other: RecommenderNetwork, batch: Batch, state: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Values of this state and of the next: ``main`` chooses the item, ``other`` values it.

    At t it chooses by the pass that is trained, with its dropout, which spares a further one.

    Args:
        main: Chooses.
        other: Values.
        batch: The examples.
        state: (B, d) of ``main`` at t.

    Returns:
        (B,) at t and (B,) at t + 1.
    """
    next_state = main.q_state_of(batch.next_histories, batch.next_states)
    histories = th.cat([batch.histories, batch.next_histories])
    states = None
    if batch.states is not None and batch.next_states is not None:
        states = th.cat([batch.states, batch.next_states])
    best = _best(main.q_values(th.cat([state, next_state])))
    values, next_values = other.q_of(other.q_state_of(histories, states), best)[:, 0].chunk(2)
    return values, next_values


def _best(q: th.Tensor) -> th.Tensor:
    """Returns the first of the largest of each row, (B, 1) of (B, n)."""
    if q.device.type == "cpu":  # several times as fast as torch's
        return th.from_numpy(q.numpy().argmax(axis=1, keepdims=True))
    return q.argmax(dim=1, keepdim=True)
