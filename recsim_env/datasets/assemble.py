"""From rows with external ids to a checked dataset: the steps that all sources share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import Catalogue, Dataset, Interactions
from recsim_env.datasets.splits import k_core
from recsim_env.errors import DataError

__all__ = ["Features", "Item", "Rows", "assemble", "combine_pairs", "time_order"]


@dataclass(frozen=True)
class Item:
    """What is known of an item."""

    title: str
    categories: tuple[str, ...]
    text: str = ""


@dataclass(frozen=True)
class Rows:
    """Interactions by external ids: users, items (n,) of text; ratings (n,); order (n,) or None."""

    users: npt.NDArray[np.str_]
    items: npt.NDArray[np.str_]
    ratings: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64] | None = None

    def where(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """Returns the rows that a mask (n,) keeps."""
        order = None if self.order is None else self.order[mask]
        return Rows(self.users[mask], self.items[mask], self.ratings[mask], order)


@dataclass(frozen=True)
class Features:
    """Features per external user id; every user has the same number of them."""

    names: tuple[str, ...] = ()
    values: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


def assemble(
    name: str,
    rows: Rows,
    items: Mapping[str, Item],
    min_user: int = 1,
    min_item: int = 1,
    statistics: Mapping[str, Any] | None = None,
    features: Features | None = None,
    is_synthetic: bool = False,
) -> Dataset:
    """Keeps what is usable, numbers users and items, and builds the dataset.

    Rows whose item is not in `items`, or has no category, are dropped and counted; then the k-core
    is taken. Items that no row is left of are not in the catalogue.

    Args:
        name: Of the dataset.
        rows: The interactions, each pair once.
        items: Item by external id.
        min_user: Rows a user must have.
        min_item: Rows an item must have.
        statistics: What the source has counted so far.
        features: Of the users, or None.
        is_synthetic: Whether the data were made up.

    Raises:
        DataError: No row is left.
    """
    unique, inverse = np.unique(rows.items, return_inverse=True)
    is_known = np.array([str(i) in items for i in unique], dtype=bool)
    has_category = np.array(
        [str(i) in items and bool(items[str(i)].categories) for i in unique], dtype=bool
    )
    known, usable = is_known[inverse], has_category[inverse]
    counted = {
        **(statistics or {}),
        "items_without_category": int((is_known & ~has_category).sum()),
        "rows_dropped_no_category": int((known & ~usable).sum()),
        "items_not_in_catalogue": int((~is_known).sum()),
        "rows_dropped_not_in_catalogue": int((~known).sum()),
    }
    if rows.users.size and not known.any():
        raise DataError(
            f"None of the {unique.size} items in the interactions of {name!r} is in the table of "
            f"items (such as {str(unique[0])!r} against {next(iter(items), '')!r}), expected the "
            "same ids in both: check which column is the item's id."
        )
    usable_rows = rows.where(usable)
    core = k_core(usable_rows.users, usable_rows.items, min_user, min_item)
    kept = usable_rows.where(core)
    if not core.any():
        raise DataError(
            f"Of {rows.users.size} interactions of {name!r} none is left after filtering "
            f"({int(usable.sum())} have an item with a category; then min_user={min_user}, "
            f"min_item={min_item}), expected at least one: lower the thresholds or give categories."
        )
    counted |= {
        "min_user": min_user,
        "min_item": min_item,
        "rows_dropped_by_k_core": int((~core).sum()),
    }
    user_ids, users = np.unique(kept.users, return_inverse=True)
    item_ids, item_index = np.unique(kept.items, return_inverse=True)
    user_rank, item_rank = _natural(user_ids), _natural(item_ids)
    user_ids, users = user_ids[user_rank], np.argsort(user_rank)[users]
    item_ids, item_index = item_ids[item_rank], np.argsort(item_rank)[item_index]
    chosen = [items[str(i)] for i in item_ids]
    feature_matrix = None
    if features is not None:
        feature_matrix = np.stack([features.values[str(u)] for u in user_ids])
    return Dataset(
        name=name,
        catalogue=Catalogue(
            item_ids=tuple(map(str, item_ids)),
            titles=tuple(item.title for item in chosen),
            categories=tuple(item.categories for item in chosen),
            texts=tuple(item.text for item in chosen),
        ),
        interactions=Interactions(
            users.astype(np.int32), item_index.astype(np.int32), kept.ratings, kept.order
        ),
        user_ids=tuple(map(str, user_ids)),
        user_features=feature_matrix,
        user_feature_names=() if features is None else features.names,
        statistics=counted,
        is_synthetic=is_synthetic,
    )


def combine_pairs(
    users: npt.NDArray[np.str_],
    items: npt.NDArray[np.str_],
    values: npt.NDArray[np.float64],
    how: str,
    time: npt.NDArray[np.float64] | None = None,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64] | None, int]:
    """Combines the rows that tell of the same user and item.

    Args:
        users: (n,) of text.
        items: (n,) of text.
        values: (n,) ratings or amounts.
        how: "max", "mean" or "sum" of the values.
        time: (n,), the latest of a pair is kept; or None.

    Returns:
        A row of each pair in order of its first appearance, its value, its time (or None), and
        how many rows were merged into others.
    """
    user_of = np.unique(users, return_inverse=True)[1].astype(np.int64)
    unique_items, item_of = np.unique(items, return_inverse=True)
    codes = user_of * max(unique_items.size, 1) + item_of
    _, first, pair = np.unique(codes, return_index=True, return_inverse=True)
    if how == "max":
        combined = np.full(first.size, -np.inf)
        np.maximum.at(combined, pair, values)
    else:
        combined = np.bincount(pair, weights=values, minlength=first.size)
        if how == "mean":
            combined = combined / np.bincount(pair, minlength=first.size)
    latest = None
    if time is not None:
        latest = np.full(first.size, -np.inf)
        np.maximum.at(latest, pair, time)
    rank = np.argsort(first)
    return (
        first[rank],
        combined[rank],
        None if latest is None else latest[rank],
        int(values.size - first.size),
    )


def time_order(users: npt.NDArray[np.str_], time: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Returns each row's position in time within its user, from 0; ties stay as they came.

    Args:
        users: (n,) of text.
        time: (n,), any scale on which later is larger.
    """
    user_of = np.unique(users, return_inverse=True)[1]
    rows = np.lexsort((time, user_of))
    counts = np.bincount(user_of)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    order = np.empty(users.size, dtype=np.int64)
    order[rows] = np.arange(users.size) - starts
    return order


def _natural(ids: npt.NDArray[np.str_]) -> npt.NDArray[np.intp]:
    """Returns the order of ids: by number where all are numbers, by text otherwise."""
    if all(str(i).isdecimal() and len(str(i)) < 19 for i in ids):
        return np.argsort(ids.astype(np.int64), kind="stable")
    return np.arange(ids.size)
