"""Kernel regression on ids and features: what a rating model can learn from few ratings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg

from recsim_env.errors import DataError

__all__ = ["Kernel", "kernel_table", "taste_covariance"]

logger = logging.getLogger(__name__)

_MOST = 20_000  # users or items: their similarities are square matrices
_MOST_STEPS = 500
_TOLERANCE = 1e-6
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Kernel:
    """Prior variances of what a rating is the sum of, in squared stars.

    Attributes:
        user: Of a user's own level.
        user_features: Of a level that users of like features share.
        item: Of an item's own level.
        item_features: Of a level that items of like features share.
        taste: Of a user's own liking for features of items.
        group_taste: Of a liking for features of items that users of like features share.
        noise: Of the rest; raising it pulls all predictions to the mean rating.
        width: Squared distance of features at which similarity has fallen to 1/e; two differing
            values of one categorical feature are 2 apart.
    """

    user: float = 0.3
    user_features: float = 0.05
    item: float = 0.15
    item_features: float = 0.15
    taste: float = 0.3
    group_taste: float = 0.1
    noise: float = 1.0
    width: float = 4.0


def similarity(features: NDArray[np.float32], width: float) -> Doubles:
    """Gaussian similarity of the rows, exp(-squared distance / width).

    Args:
        features: (n, k).
        width: Squared distance at which it has fallen to 1/e.

    Returns:
        (n, n) in (0, 1].
    """
    rows = features.astype(np.float64)
    squares = np.square(rows).sum(axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * rows @ rows.T
    like: Doubles = np.exp(-np.maximum(distances, 0.0) / width)
    return like


def kernel_table(
    users: NDArray[np.int32],
    items: NDArray[np.int32],
    ratings: NDArray[np.float32],
    user_features: NDArray[np.float32],
    item_features: NDArray[np.float32],
    kernel: Kernel | None = None,
) -> NDArray[np.float32]:
    """Predicts every user's rating of every item, as a Gaussian process's posterior mean.

    Rasmussen and Williams (2006), eq. 2.25, with the mean rating m as prior mean:
    m + K(all, given) (K(given, given) + noise I)^-1 (r - m), and the kernel

        k((u, i), (v, j)) = user [u = v] + user_features S(u, v) + item [i = j]
            + (item_features + taste [u = v] + group_taste S(u, v)) S(i, j)

    where S is `similarity`. K is never written out: its products are those of users x items
    matrices, and the equations are solved by conjugate gradients.

    Args:
        users: (n,) indices.
        items: (n,) indices; a pair may come more than once.
        ratings: (n,) in [1, 5].
        user_features: (n_users, k), may have no column.
        item_features: (n_items, l).
        kernel: The prior; None: the default.

    Returns:
        (n_users, n_items) float32, not clipped.

    Raises:
        DataError: There are more than 20,000 users or items.
    """
    kernel = kernel or Kernel()
    shape = len(user_features), len(item_features)
    if max(shape) > _MOST:
        raise DataError(
            f"A kernel regression got {shape[0]} users and {shape[1]} items, expected at most "
            f"{_MOST} of each: set WorldModelConfig.kernel_share to None."
        )
    like_users = similarity(user_features, kernel.width)
    like_items = similarity(item_features, kernel.width)
    mean = float(ratings.mean(dtype=np.float64))

    def spread(weights: Doubles) -> Doubles:
        """K(all, given) times the weights of the given ratings, as a users x items matrix."""
        given = np.bincount(users * shape[1] + items, weights, shape[0] * shape[1]).reshape(shape)
        of_user, of_item = given.sum(axis=1), given.sum(axis=0)
        tastes = kernel.taste * given + kernel.group_taste * like_users @ given
        levels = kernel.user * of_user + kernel.user_features * like_users @ of_user
        shared = kernel.item * of_item + kernel.item_features * of_item @ like_items
        table: Doubles = tastes @ like_items + levels[:, None] + shared
        return table

    operator = LinearOperator(
        (len(ratings), len(ratings)),
        matvec=lambda w: spread(w)[users, items] + kernel.noise * w,
        dtype=np.float64,
    )
    target = ratings.astype(np.float64) - mean
    weights, stopped = cg(operator, target, rtol=_TOLERANCE, maxiter=_MOST_STEPS)
    if stopped > 0:
        left = np.linalg.norm(operator.matvec(weights) - target) / np.linalg.norm(target)
        logger.warning(
            "The kernel regression stopped after %d steps with a relative error of %.1e, expected "
            "%.0e, so its predictions are inexact; raise Kernel.noise, which is %g.",
            stopped,
            left,
            _TOLERANCE,
            kernel.noise,
        )
    return (mean + spread(weights)).astype(np.float32)


def taste_covariance(
    rated: Sequence[NDArray[np.int64]],
    item_features: NDArray[np.float32],
    kernel: Kernel | None = None,
) -> Doubles:
    """How far a user's own level and tastes may lie from the prediction, averaged over users.

    The covariance of the personal part of `kernel_table`'s process, user + taste S(i, j), after the
    user's own ratings (Rasmussen and Williams, 2006, eq. 2.26). What users share is taken for
    known, as everybody's ratings tell it.

    Args:
        rated: Per user the indices of the items rated.
        item_features: (n_items, l).
        kernel: The prior; None: the default.

    Returns:
        (n_items, n_items), in squared stars.
    """
    kernel = kernel or Kernel()
    prior = kernel.user + kernel.taste * similarity(item_features, kernel.width)
    total = np.zeros_like(prior)
    for items in rated:
        given = prior[:, items]
        noisy = prior[np.ix_(items, items)] + kernel.noise * np.eye(len(items))
        total += prior - given @ np.linalg.solve(noisy, given.T)
    mean: Doubles = total / len(rated)
    return mean
