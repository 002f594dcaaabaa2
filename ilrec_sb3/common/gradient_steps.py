"""The gradient steps of algorithms that learn values from a replay buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

__all__ = ["make_gradient_steps"]


def make_gradient_steps(
    model: OffPolicyAlgorithm,
    loss_of: Callable[[Any, th.Tensor | float], th.Tensor],
    gradient_steps: int,
    batch_size: int,
    max_grad_norm: float | None,
) -> None:
    """Minimises a loss on batches of the replay buffer, and logs it.

    Args:
        model: Whose policy learns.
        loss_of: Returns the loss of a batch, given also what the next value is discounted by: gamma
            or, where transitions span several steps, (B, 1) its powers.
        gradient_steps: How many.
        batch_size: Transitions in each.
        max_grad_norm: Gradients are scaled down to this norm; None: they are not.
    """
    policy = model.policy
    policy.set_training_mode(True)
    model._update_learning_rate(policy.optimizer)
    assert model.replay_buffer is not None
    losses = []
    for _ in range(gradient_steps):
        batch = model.replay_buffer.sample(batch_size, env=model._vec_normalize_env)
        discounts = getattr(batch, "discounts", None)
        loss = loss_of(batch, model.gamma if discounts is None else discounts)
        losses.append(float(loss.detach()))
        policy.optimizer.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
        policy.optimizer.step()
    model._n_updates += gradient_steps
    model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
    model.logger.record("train/loss", float(np.mean(losses)))
