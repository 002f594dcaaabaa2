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
        self.value, self.waited = -float("inf"), 0
        self.step: int | None = None
        self._weights: dict[str, th.Tensor] = {}
        self._warming_up = True

    def update(self, value: float, step: int, warming_up: bool = False) -> None:
        """Takes note of an evaluation.

        Args:
            value: Higher is better.
            step: At which gradient step.
            warming_up: Whether it comes too early to count: the next one takes its place, whatever
                its value, so that it is kept only where it stays the last.
        """
        if warming_up or self._warming_up or value > self.value:
            self.value, self.step, self.waited = value, step, 0
            self._weights = {n: t.clone() for n, t in self.networks.state_dict().items()}
            self._warming_up = warming_up
        else:
            self.waited += 1

    @property
    def enough(self) -> bool:
        """Whether the patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def restore(self) -> None:
        """Puts the best weights back; without an evaluation all stays as it is."""
        if self._weights:
            self.networks.load_state_dict(self._weights)
