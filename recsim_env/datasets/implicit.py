"""Implicit feedback, which holds no dislikes, becomes ratings by contrast with drawn items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import RATING_RANGE, Dataset, Interactions
from recsim_env.errors import DataError

__all__ = ["contrast", "draw_untouched"]

Indices = npt.NDArray[np.intp]


def draw_untouched(
    users: npt.NDArray[np.integer],
    items: npt.NDArray[np.integer],
    negatives_per_positive: float,
    popularity_power: float,
    rng: np.random.Generator,
) -> tuple[Indices, Indices]:
    """Draws for each user items that the user did not touch.

    Args:
        users: (n,) indices of users, each of 0 to the largest at least once.
        items: (n,) indices of items, likewise.
        negatives_per_positive: Drawn items per touched one; a user who touched nearly everything
            gets fewer.
        popularity_power: Exponent of an item's number of rows in the draw; 0: even draw.
        rng: Where chance comes from.

    Returns:
        Users and items of the drawn rows.
    """
    counts = np.bincount(items)
    weight = counts.astype(np.float64) ** popularity_power
    by_user = np.split(items[np.argsort(users, kind="stable")], np.cumsum(np.bincount(users))[:-1])
    drawn_of = []
    for own in by_user:
        free = weight.copy()
        free[own] = 0.0
        size = min(round(own.size * negatives_per_positive), int((free > 0).sum()))
        drawn_of.append(
            rng.choice(counts.size, size, replace=False, p=free / free.sum())
            if size
            else np.empty(0, dtype=np.int64)
        )
    sizes = [drawn.size for drawn in drawn_of]
    return np.repeat(np.arange(len(by_user)), sizes), np.concatenate(drawn_of)


def contrast(dataset: Dataset, negatives_per_positive: float = 1.0, seed: int = 0) -> Dataset:
    """Rates all interactions 5 and adds drawn items, which the user did not touch, rated 1.

    A model of the mean rating then fits 1 + 4 p, with p the probability that an item was chosen
    rather than drawn; see `recsim_env.datasets.amazon.AmazonSource`. Drawn rows have the order -1.

    Args:
        dataset: One row for each user and item; its ratings do not matter.
        negatives_per_positive: Drawn items per touched one, above 0.
        seed: Of the draw.

    Raises:
        DataError: The number is not above 0, or every user touched every item.
    """
    if not negatives_per_positive > 0:
        raise DataError(
            f"negatives_per_positive={negatives_per_positive} came, expected a number above 0."
        )
    rows = dataset.interactions
    users, items = draw_untouched(
        rows.users, rows.items, negatives_per_positive, 0.0, np.random.default_rng(seed)
    )
    if not users.size:
        raise DataError(
            f"All {len(rows)} clicks of {dataset.name!r} count the same and every user touched "
            "every item, expected differences to learn from: give ratings or hours."
        )
    low, high = RATING_RANGE
    order = rows.order
    return replace(
        dataset,
        interactions=Interactions(
            np.concatenate([rows.users, users.astype(np.int32)]),
            np.concatenate([rows.items, items.astype(np.int32)]),
            np.repeat([high, low], [len(rows), users.size]).astype(np.float32),
            None if order is None else np.concatenate([order, np.full(users.size, -1)]),
        ),
        statistics={
            **dataset.statistics,
            "rating_mapping": f"touched = {high:g}, drawn and not touched = {low:g}",
            "drawn": int(users.size),
            "seed": seed,
        },
    )
