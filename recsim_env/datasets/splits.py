"""Which rows are kept, and which are for learning and which for testing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import Interactions
from recsim_env.errors import DataError

__all__ = ["Split", "k_core", "split_interactions"]


@dataclass(frozen=True)
class Split:
    """Two masks over the rows of the interactions: (n,) bool each, disjoint, together all rows."""

    train: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]


def split_interactions(
    interactions: Interactions, test_fraction: float = 0.5, seed: int = 0
) -> Split:
    """Splits rows at random so that every user is in both parts as evenly as possible.

    The rows are put in random order within users in random order, and every `1 / test_fraction`-th
    row, from a random start, goes to the test part. So each user, and the whole, has its share of
    test rows to within less than one row.

    Args:
        interactions: The rows.
        test_fraction: Share of test rows, in [0, 1); 0 keeps all rows for learning.
        seed: Of the random order.

    Raises:
        DataError: `test_fraction` is out of range.
    """
    if not 0.0 <= test_fraction < 1.0:
        raise DataError(
            f"test_fraction={test_fraction} came, expected a share from 0 to below 1: "
            "give for example 0.5."
        )
    rng = np.random.default_rng(seed)
    n = len(interactions)
    n_users = int(interactions.users.max()) + 1 if n else 0
    rows = np.lexsort((rng.random(n), rng.permutation(n_users)[interactions.users]))
    steps = np.floor(np.arange(n + 1) * test_fraction + rng.random())
    test = np.zeros(n, dtype=bool)
    test[rows] = np.diff(steps) > 0
    return Split(train=~test, test=test)


def k_core(
    users: npt.ArrayLike, items: npt.ArrayLike, min_user: int, min_item: int
) -> npt.NDArray[np.bool_]:
    """Returns the rows of the largest subset in which every user and every item is frequent.

    Args:
        users: User per row, (n,), of any type that can be compared.
        items: Item per row, (n,).
        min_user: Rows that a user must have, 0 or more.
        min_item: Rows that an item must have, 0 or more.

    Returns:
        Mask over the rows, (n,) bool; all False where no such subset exists.

    Raises:
        DataError: A threshold is negative or the columns differ in length.
    """
    user_of = np.unique(np.asarray(users), return_inverse=True)[1]
    item_of = np.unique(np.asarray(items), return_inverse=True)[1]
    if min_user < 0 or min_item < 0 or user_of.shape != item_of.shape:
        raise DataError(
            f"min_user={min_user} and min_item={min_item} for {user_of.shape[0]} users and "
            f"{item_of.shape[0]} items came, expected thresholds of 0 or more and columns of the "
            "same length: correct these."
        )
    keep = np.ones(user_of.shape[0], dtype=bool)
    while True:
        enough = (np.bincount(user_of[keep], minlength=1 + user_of.max(initial=0)) >= min_user)[
            user_of
        ] & (np.bincount(item_of[keep], minlength=1 + item_of.max(initial=0)) >= min_item)[item_of]
        remaining = keep & enough
        if remaining.sum() == keep.sum():
            return keep
        keep = remaining
