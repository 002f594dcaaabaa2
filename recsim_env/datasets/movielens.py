"""MovieLens-100k: ratings of films in order of time, with genres and demographics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from recsim_env.datasets.assemble import (
    Features,
    Item,
    Rows,
    assemble,
    combine_pairs,
    time_order,
)
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.ratings import rescale
from recsim_env.datasets.sources import Source, find_root, first_existing
from recsim_env.datasets.tables import identifiers, lists_of_text, numbers, read_table, texts

__all__ = ["MovieLensSource"]

_RATINGS, _ITEMS, _USERS = (
    "ml100k_ratings.parquet",
    "ml100k_items.parquet",
    "ml100k_users.parquet",
)
_AGES = (18, 25, 35, 45, 50, 56)


@dataclass(frozen=True)
class MovieLensSource(Source):
    """Reads MovieLens-100k (Harper and Konstan 2015): 943 users, 1,682 films, ratings 1 to 5.

    Rows are ordered by their time stamps. User features are age (in the bands of MovieLens-1M),
    gender and occupation, each as 0 and 1. The genre "unknown" is no category.

    Args:
        min_user: Ratings that a user must have.
        min_item: Ratings that a film must have.
    """

    name: ClassVar[str] = "movielens"
    min_user: int = 5
    min_item: int = 5

    def load(self, root: str | Path | None = None) -> Dataset:
        """Reads the data; see the class."""
        wanted = {"tables": (_RATINGS, _ITEMS, _USERS)}
        _, folder = first_existing(find_root(root), ("movielens",), wanted, self.name)
        table = read_table(folder / _RATINGS, ("user_id", "item_id", "rating", "timestamp"))
        users = identifiers(table["user_id"], "user_id")
        items = identifiers(table["item_id"], "item_id")
        rows, ratings, time, merged = combine_pairs(
            users,
            items,
            numbers(table["rating"], "rating"),
            "mean",
            numbers(table["timestamp"], "timestamp"),
        )
        users, items = users[rows], items[rows]
        return assemble(
            self.name,
            Rows(
                users,
                items,
                rescale(ratings, (1.0, 5.0)),
                None if time is None else time_order(users, time),
            ),
            _items(folder),
            self.min_user,
            self.min_item,
            {"source": "MovieLens-100k", "repeated_pairs_averaged": merged},
            _user_features(folder),
        )


def _items(folder: Path) -> dict[str, Item]:
    table = read_table(folder / _ITEMS, ("item_id", "title", "year", "genres"))
    columns = zip(
        identifiers(table["item_id"], "item_id").tolist(),
        texts(table["title"]),
        texts(table["year"]),
        lists_of_text(table["genres"]),
        strict=True,
    )
    return {
        item_id: Item(
            f"{title} ({year})" if year else title,
            tuple(genre for genre in genres if genre != "unknown"),
        )
        for item_id, title, year, genres in columns
    }


def _user_features(folder: Path) -> Features:
    table = read_table(folder / _USERS, ("user_id", "age", "gender", "occupation"))
    bands = np.digitize(numbers(table["age"], "age"), _AGES)
    labels = ["under 18", *(f"from {age}" for age in _AGES)]
    described = [
        (f"age:{labels[band]}", f"gender:{gender}", f"occupation:{occupation}")
        for band, gender, occupation in zip(
            bands, texts(table["gender"]), texts(table["occupation"]), strict=True
        )
    ]
    names = tuple(sorted({name for user in described for name in user}))
    column = {name: j for j, name in enumerate(names)}
    matrix = np.zeros((len(described), len(names)), dtype=np.float32)
    for row, user in enumerate(described):
        matrix[row, [column[name] for name in user]] = 1.0
    ids = identifiers(table["user_id"], "user_id").tolist()
    return Features(names, dict(zip(ids, matrix, strict=True)))
