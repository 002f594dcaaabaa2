"""The best weights so far, and when to stop looking for better ones."""

from __future__ import annotations

import torch as th
from torch import nn

__all__ = ["BestWeights"]


class BestWeights:
    """Keeps the weights of the best evaluation.

    Args:
        networks: Whose weights; copied at each new best.
        patience: Evaluations without a new best after which it is enough; None: it never is.
    """

    def __init__(self, networks: nn.Module, patience: int | None) -> None:
        self.networks, self.patience = networks, patience
        self.value, self.step, self.waited = -float("inf"), 0, 0
        self._weights: dict[str, th.Tensor] = {}

    def update(self, value: float, step: int, patient: bool = False) -> None:
        """Takes note of an evaluation.

        Args:
            value: Higher is better.
            step: At which gradient step.
            patient: Whether a value that is no new best does not count as waiting.
        """
        if value > self.value:
            self.value, self.step, self.waited = value, step, 0
            self._weights = {n: t.clone() for n, t in self.networks.state_dict().items()}
        elif not patient:
            self.waited += 1

    @property
    def enough(self) -> bool:
        """Whether the patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def restore(self) -> None:
        """Puts the best weights back; without an evaluation all stays as it is."""
        if self._weights:
            self.networks.load_state_dict(self._weights)
