"""Regularised user and item biases: the baseline that a rating model has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Biases"]

_DAMPINGS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Biases:
    """Ratings as mean + user bias + item bias.

    Attributes:
        mean: Mean rating.
        users: (n_users,) float64, 0 for a user without ratings.
        items: (n_items,) float64, 0 for an item without ratings.
        user_damping: Ratings that pull a user's bias to 0.
        item_damping: The same for an item.
    """

    mean: float
    users: NDArray[np.float64]
    items: NDArray[np.float64]
    user_damping: float
    item_damping: float

    @classmethod
    def fit(
        cls,
        users: NDArray[np.int32],
        items: NDArray[np.int32],
        ratings: NDArray[np.float32],
        shape: tuple[int, int],
        damping: tuple[float, float] = (8.0, 8.0),
        sweeps: int = 15,
    ) -> Biases:
        """Ridge regression on the two biases, by alternating exact steps.

        Args:
            users: (n,) indices.
            items: (n,) indices.
            ratings: (n,) in [1, 5].
            shape: n_users, n_items.
            damping: Ridge weight of a user's and of an item's bias; raising it shrinks the biases
                of those with few ratings.
            sweeps: Alternating steps.

        Returns:
            The biases.
        """
        mean = float(ratings.mean(dtype=np.float64))
        residual = ratings.astype(np.float64) - mean
        user_count = np.bincount(users, minlength=shape[0]) + damping[0]
        item_count = np.bincount(items, minlength=shape[1]) + damping[1]
        user_bias, item_bias = np.zeros(shape[0]), np.zeros(shape[1])
        for _ in range(sweeps):
            rest = residual - user_bias[users]
            item_bias = np.bincount(items, rest, minlength=shape[1]) / item_count
            rest = residual - item_bias[items]
            user_bias = np.bincount(users, rest, minlength=shape[0]) / user_count
        return cls(mean, user_bias, item_bias, *damping)

    @classmethod
    def tune(
        cls,
        fit: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]],
        validation: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]],
        shape: tuple[int, int],
    ) -> Biases:
        """Fits with every pair of dampings of a small grid and keeps the best on validation.

        Args:
            fit: Users, items, ratings to fit on.
            validation: Users, items, ratings to choose the dampings by; may be empty.
            shape: n_users, n_items.

        Returns:
            The best biases.
        """
        if not len(validation[2]):
            return cls.fit(*fit, shape)
        tried = [
            cls.fit(*fit, shape, (user_damping, item_damping))
            for user_damping in _DAMPINGS
            for item_damping in _DAMPINGS
        ]
        users, items, ratings = validation
        return min(tried, key=lambda b: float(np.mean((b.predict(users, items) - ratings) ** 2)))

    def predict(self, users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.float64]:
        """Predicts ratings, clipped to [1, 5].

        Args:
            users: (n,) indices.
            items: (n,) indices.

        Returns:
            (n,) ratings.
        """
        return np.clip(self.mean + self.users[users] + self.items[items], 1.0, 5.0)

    def own_share(
        self,
        users: NDArray[np.int32],
        items: NDArray[np.int32],
        ratings: NDArray[np.float32],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Says how far each rating that was fitted on pulls its own two biases.

        Less these shares, a bias is what it would be without the rating (the other bias kept), so
        that a model trained on top of the biases sees residuals like those of unseen ratings.

        Args:
            users: (n,) indices, the rows that the biases were fitted on.
            items: (n,) indices.
            ratings: (n,) in [1, 5].

        Returns:
            The share in the user bias and in the item bias, both (n,).
        """
        rest = ratings - self.mean
        user_weight = np.bincount(users, minlength=len(self.users))[users] + self.user_damping
        item_weight = np.bincount(items, minlength=len(self.items))[items] + self.item_damping
        user_own = rest - self.items[items] - self.users[users]
        item_own = rest - self.users[users] - self.items[items]
        return user_own / (user_weight - 1), item_own / (item_weight - 1)
