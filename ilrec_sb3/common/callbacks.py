"""What callbacks that do something now and then have in common."""

from __future__ import annotations

from abc import abstractmethod

from stable_baselines3.common.callbacks import BaseCallback

__all__ = ["BetweenRollouts"]


class BetweenRollouts(BaseCallback):
    """Does something now and then between two rollouts.

    Where an algorithm has no rollouts, as offline ones, it does so between two steps.

    Attributes:
        next_at: The step from which on it is due.
    """

    def __init__(self) -> None:
        super().__init__()
        self.next_at = 0
        self._has_rollouts = False

    @abstractmethod
    def act(self) -> None:
        """Does what is due, and sets ``next_at``."""

    def _on_training_start(self) -> None:
        self._act_if_due()

    def _on_step(self) -> bool:
        if not self._has_rollouts:
            self._act_if_due()
        return True

    def _on_rollout_start(self) -> None:
        self._has_rollouts = True
        self._act_if_due()

    def _act_if_due(self) -> None:
        if self.num_timesteps >= self.next_at:
            self.act()
