"""Coat: self-selected and random ratings of coats, with features of users and coats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recsim_env.datasets.assemble import Features, Item, Rows, assemble, combine_pairs
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.ratings import rescale
from recsim_env.datasets.sources import Source, find_root, first_existing
from recsim_env.datasets.tables import identifiers, numbers, read_json, read_table, texts
from recsim_env.errors import DataError, near_miss

__all__ = ["CoatSource", "pseudo_ground_truth"]

_RATINGS, _USERS, _ITEMS = "ratings.parquet", "users.parquet", "items.parquet"
_FEATURES, _COMPLETE = "feature_names.json", "pseudo_ground_truth.parquet"
_ITEM_COLUMNS = ("gender", "jackettype", "color", "onfrontpage")


@dataclass(frozen=True)
class CoatSource(Source):
    """Reads Coat (Schnabel et al. 2016): 290 users, 300 coats, ratings 1 to 5.

    Both the 24 self-selected and the 16 random ratings of each user are read; a pair that is in
    both counts once, with the mean. The published features of a user are the user features. Coats
    have no names, so the titles are made of their features. There is no order in time.

    Args:
        category_features: Features whose values are a coat's categories, of "gender",
            "jackettype", "color" and "onfrontpage". The default leaves gender out: with two values
            only, a rule that forbids a few repeats of a category would end every session.
        splits: Which ratings: "train" (self-selected), "test" (random) or both.
        min_user: Ratings that a user must have.
        min_item: Ratings that a coat must have.
    """

    name: ClassVar[str] = "coat"
    category_features: tuple[str, ...] = ("jackettype", "color")
    splits: tuple[str, ...] = ("train", "test")
    min_user: int = 1
    min_item: int = 1

    def load(self, root: str | Path | None = None) -> Dataset:
        """Reads the data; see the class."""
        for given, known in (
            (self.category_features, _ITEM_COLUMNS),
            (self.splits, ("train", "test")),
        ):
            for wanted_name in given:
                if wanted_name not in known:
                    raise DataError(
                        f"{wanted_name!r} is not known for coat: {near_miss(wanted_name, known)}."
                    )
        wanted = {"tables": (_RATINGS, _USERS, _ITEMS, _FEATURES)}
        _, folder = first_existing(find_root(root), ("coat",), wanted, self.name)
        table = read_table(folder / _RATINGS, ("user_id", "item_id", "rating", "split"))
        chosen = np.isin(np.asarray(texts(table["split"])), self.splits)
        users = identifiers(table["user_id"], "user_id")[chosen]
        items = identifiers(table["item_id"], "item_id")[chosen]
        ratings = numbers(table["rating"], "rating")[chosen]
        rows, ratings, _, merged = combine_pairs(users, items, ratings, "mean")
        return assemble(
            self.name,
            Rows(users[rows], items[rows], rescale(ratings, (1.0, 5.0))),
            self._items(folder),
            self.min_user,
            self.min_item,
            {
                "source": "Coat",
                "splits": list(self.splits),
                "pairs_in_both_splits_averaged": merged,
                "category_features": list(self.category_features),
            },
            _user_features(folder),
        )

    def _items(self, folder: Path) -> dict[str, Item]:
        table = read_table(folder / _ITEMS, ("item_id", *_ITEM_COLUMNS))
        ids = identifiers(table["item_id"], "item_id").tolist()
        columns = {name: texts(table[name]) for name in _ITEM_COLUMNS}
        items = {}
        for row, item_id in enumerate(ids):
            values = {name: columns[name][row] for name in _ITEM_COLUMNS}
            items[item_id] = Item(
                _title(values, item_id),
                tuple(_category(name, values[name]) for name in self.category_features),
                f"A coat for {values['gender']}; type: {values['jackettype']}; colour: "
                f"{values['color']}; on the front page: {values['onfrontpage']}.",
            )
        return items


def pseudo_ground_truth(dataset: Dataset, root: str | Path | None = None) -> NDArray[np.float32]:
    """Reads the published completion of Coat's ratings, which simulators take for the truth.

    Args:
        dataset: Coat, whose users and items the rows and columns shall be.
        root: The data folder; None: see `find_root`.

    Returns:
        (n_users, n_items) float32 in [1, 5], in the dataset's order.

    Raises:
        MissingDataError: The file is not there.
        DataError: A user or an item of the dataset is not in it, or a rating is out of range.
    """
    place = find_root(root)
    _, folder = first_existing(place, ("coat",), {"completion": (_COMPLETE,)}, "coat")
    table = read_table(folder / _COMPLETE)
    columns = {name: k for k, name in enumerate(table.column_names)}
    ratings = np.stack([numbers(table[name], name) for name in table.column_names], axis=1)
    known = {str(k) for k in range(len(ratings))}
    lost = next((i for i in dataset.catalogue.item_ids if i not in columns), None)
    lost = lost or next((u for u in dataset.user_ids if u not in known), None)
    if lost is not None:
        raise DataError(
            f"{folder / _COMPLETE} has {len(ratings)} rows and {len(columns)} columns, among them "
            f"none for {lost!r}, expected one row for each user 0, 1, ... and one column for each "
            "item of Coat: give the dataset 'coat'."
        )
    users = np.array([int(user) for user in dataset.user_ids])
    items = np.array([columns[item] for item in dataset.catalogue.item_ids])
    chosen: NDArray[np.float32] = ratings[np.ix_(users, items)].astype(np.float32)
    if not ((chosen >= 1.0) & (chosen <= 5.0)).all():
        raise DataError(
            f"{folder / _COMPLETE} has ratings from {chosen.min()} to {chosen.max()}, expected 1 "
            "to 5: fetch the file again."
        )
    return chosen


def _title(values: dict[str, str], item_id: str) -> str:
    colour = "" if values["color"] == "other" else f"{values['color'].capitalize()} "
    kind = "" if values["jackettype"] == "other" else f"{values['jackettype']} "
    phrase = f"{colour}{kind}coat"
    return f"{phrase[0].upper()}{phrase[1:]} for {values['gender']} (no. {item_id})"


def _category(feature: str, value: str) -> str:
    """Returns a value's name, with its feature where the value alone would not be understood."""
    return f"{feature}: {value}" if value in ("other", "multi", "yes", "no") else value


def _user_features(folder: Path) -> Features:
    names = read_json(folder / _FEATURES).get("user_features", [])
    table = read_table(folder / _USERS, ("user_id", "multi_hot"))
    matrix = [np.asarray(row, dtype=np.float32) for row in table["multi_hot"].to_pylist()]
    if any(row.shape != (len(names),) for row in matrix):
        raise DataError(
            f"{folder / _USERS} has user features of other lengths than the {len(names)} names in "
            f"{_FEATURES}, expected one value per name: the files must belong together."
        )
    ids = identifiers(table["user_id"], "user_id").tolist()
    return Features(tuple(names), dict(zip(ids, matrix, strict=True)))
