"""The losses that tune a language model to be an environment, one function for each equation.

B is the batch, h the hidden size of the language model.
"""

from __future__ import annotations

import torch as th
from torch.nn import functional as F

__all__ = ["choice_loss", "reward_loss", "state_loss"]


def reward_loss(positive: th.Tensor, negative: th.Tensor) -> th.Tensor:
    r"""Reward model, :math:`-\log\sigma(r(p_t, a^+) - r(p_t, a^-))` (LEA, eq. 1).

    Only differences count: a constant added to all rewards leaves the loss as it is.

    Args:
        positive: (B,) rewards of the items that were chosen.
        negative: (B,) rewards of the sampled items.

    Returns:
        Scalar, the mean over the batch.
    """
    if positive.shape != negative.shape:
        raise ValueError(
            f"positive of shape {tuple(positive.shape)} came with negative of shape "
            f"{tuple(negative.shape)}; expected the same: give one sampled item for each chosen."
        )
    return -F.logsigmoid(positive - negative).mean()


def state_loss(states_Bh: th.Tensor, actions_Bh: th.Tensor) -> th.Tensor:
    r"""State model, :math:`-\frac1B\sum_j\log\sigma(s_t a_t^+ - s_t a_j)` (LEA, eq. 2).

    The other actions of the batch are the negatives. The sum runs over the whole batch, as in
    print: an action that is the row's own adds log 2 and no gradient.

    Args:
        states_Bh: (B, h) states.
        actions_Bh: (B, h) vectors of the items that were chosen, in the space of the language
            model's token embeddings.

    Returns:
        Scalar, the mean over the batch.
    """
    if states_Bh.shape != actions_Bh.shape:
        raise ValueError(
            f"states of shape {tuple(states_Bh.shape)} came with actions of shape "
            f"{tuple(actions_Bh.shape)}; expected the same: give the item chosen in each state."
        )
    scores_BB = states_Bh @ actions_Bh.T
    return -F.logsigmoid(scores_BB.diagonal()[:, None] - scores_BB).mean()


def choice_loss(logits_BC: th.Tensor, positions: th.Tensor) -> th.Tensor:
    """Cross-entropy of the position words, for language models that do not follow the prompt.

    It is not in the paper, whose language model chooses untrained.

    Args:
        logits_BC: (B, C) of the words "first", "second", ...
        positions: (B,) int64, where in the list the item stands that was chosen.

    Returns:
        Scalar, the mean over the batch.
    """
    return F.cross_entropy(logits_BC, positions)
