"""The frozen, checked objects that every other part is built from."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsim_env import artefacts
from recsim_env.errors import ArtefactError, DataError, MissingDataError

__all__ = ["RATING_RANGE", "Catalogue", "Dataset", "Interactions"]

RATING_RANGE = (1.0, 5.0)
"""The lowest and the highest rating of every dataset."""

_FORMAT = 1
_CATALOGUE, _INTERACTIONS, _USERS, _CARD = (
    "catalogue.parquet",
    "interactions.parquet",
    "users.parquet",
    "dataset.json",
)


@dataclass(frozen=True, eq=False, repr=False)
class Catalogue:
    """The items that can be recommended; an item's index is its position.

    Args:
        item_ids: External ids, all different.
        titles: What a person reads, one per item.
        categories: Names of the item's categories, one or more per item, none twice in an item.
        texts: Longer text per item, "" where there is none.

    Raises:
        DataError: The four do not fit together, or an item has no category.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("item_ids", "titles", "texts"):
            object.__setattr__(self, name, tuple(str(value) for value in getattr(self, name)))
        object.__setattr__(
            self, "categories", tuple(tuple(dict.fromkeys(names)) for names in self.categories)
        )
        lengths = {
            name: len(getattr(self, name)) for name in ("item_ids", "titles", "categories", "texts")
        }
        if len(set(lengths.values())) != 1 or not self.item_ids:
            raise DataError(
                f"A catalogue came with {lengths} entries, expected the same number of each and "
                "at least one: give one id, title, list of categories and text per item."
            )
        _check_unique("item id", self.item_ids)
        bare = [i for i, names in enumerate(self.categories) if not names]
        if bare:
            raise DataError(
                f"{len(bare)} items came without a category (the first is "
                f"{self.item_ids[bare[0]]!r}, {self.titles[bare[0]]!r}), expected at least one "
                "for each: give them a category or leave them out."
            )

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.item_ids)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return f"Catalogue(n_items={len(self)}, n_categories={len(self.category_names)})"

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        """The names of all categories, sorted."""
        return tuple(sorted({name for names in self.categories for name in names}))

    @cached_property
    def category_matrix(self) -> npt.NDArray[np.float32]:
        """Which item has which category: (n_items, n_categories) of 0 and 1, read-only."""
        column = {name: j for j, name in enumerate(self.category_names)}
        matrix = np.zeros((len(self), len(column)), dtype=np.float32)
        for row, names in enumerate(self.categories):
            matrix[row, [column[name] for name in names]] = 1.0
        matrix.setflags(write=False)
        return matrix

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.item_ids)}

    def index(self, item_id: object) -> int:
        """Returns the index of an item by its external id.

        Raises:
            DataError: There is no such item.
        """
        return _position(self._positions, item_id, "item")


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """What users did, as parallel columns; the arrays are copied and read-only.

    Args:
        users: User index per row, (n,) int32.
        items: Item index per row, (n,) int32.
        ratings: Rating per row, (n,) float32 in [1, 5].
        order: Position in time within the user, (n,) int64, larger is later; None where the
            source does not tell. Negative where the row is no event in time, as the sampled
            negatives of implicit feedback are.

    Raises:
        DataError: Lengths differ, or a rating is not a number in [1, 5], or an index is negative.
    """

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _freeze(self, "users", np.int32)
        _freeze(self, "items", np.int32)
        _freeze(self, "ratings", np.float32)
        if self.order is not None:
            _freeze(self, "order", np.int64)
        columns = {
            name: getattr(self, name).shape
            for name in ("users", "items", "ratings", "order")
            if getattr(self, name) is not None
        }
        if len(set(columns.values())) != 1 or self.users.ndim != 1:
            raise DataError(
                f"Interactions came with columns of shapes {columns}, expected one-dimensional "
                "columns of the same length: give one entry per row in each."
            )
        low, high = RATING_RANGE
        good = (self.ratings >= low) & (self.ratings <= high)  # NaN is not good
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise DataError(
                f"{int((~good).sum())} ratings are no numbers from {low:g} to {high:g} (row {row} "
                f"has {self.ratings[row]}), expected only such: map the scale or drop those rows."
            )
        for name in ("users", "items"):
            column = getattr(self, name)
            if column.size and column.min() < 0:
                raise DataError(
                    f"The column {name} holds the negative index {int(column.min())}, expected "
                    "indices from 0 up: drop the rows whose id is not known."
                )

    def __len__(self) -> int:
        """Returns the number of rows."""
        return int(self.users.shape[0])

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return f"Interactions(n={len(self)}, ordered={self.order is not None})"


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A catalogue, its users and what they did.

    Args:
        name: Short name, such as "steam".
        catalogue: The items.
        interactions: The rows; their indices point into `user_ids` and the catalogue.
        user_ids: External ids, all different; a user's index is the position.
        user_features: (n_users, k) float32, or None.
        user_feature_names: The k names.
        statistics: JSON values that say what was read, dropped and mapped.
        is_synthetic: Whether the data were made up by this package.

    Raises:
        DataError: The parts do not fit together, or there is no row.
    """

    name: str
    catalogue: Catalogue
    interactions: Interactions
    user_ids: tuple[str, ...]
    user_features: npt.NDArray[np.float32] | None = None
    user_feature_names: tuple[str, ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    is_synthetic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "user_ids", tuple(str(value) for value in self.user_ids))
        object.__setattr__(self, "user_feature_names", tuple(self.user_feature_names))
        _check_unique("user id", self.user_ids)
        if not len(self.interactions):
            raise DataError(
                f"The dataset {self.name!r} came without interactions, expected at least one: "
                "lower the thresholds, or check that users and items match."
            )
        for kind, column, size in (
            ("user", self.interactions.users, self.n_users),
            ("item", self.interactions.items, self.n_items),
        ):
            if int(column.max()) >= size:
                raise DataError(
                    f"Interactions of {self.name!r} hold the unknown {kind} index "
                    f"{int(column.max())}, expected at most {size - 1}: the rows and the list of "
                    f"{kind}s must belong together."
                )
        if self.user_features is None:
            if self.user_feature_names:
                raise DataError("User feature names came without user features: give both.")
            return
        _freeze(self, "user_features", np.float32)
        expected = (self.n_users, len(self.user_feature_names))
        if self.user_features.shape != expected or not np.isfinite(self.user_features).all():
            raise DataError(
                f"User features of shape {self.user_features.shape} came, expected finite numbers "
                f"of shape {expected}: one row per user and one column per name."
            )

    @property
    def n_users(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """The number of items."""
        return len(self.catalogue)

    @property
    def n_categories(self) -> int:
        """The number of different categories."""
        return len(self.catalogue.category_names)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return (
            f"Dataset({self.name!r}, n_users={self.n_users}, n_items={self.n_items}, "
            f"n_interactions={len(self.interactions)}, n_categories={self.n_categories})"
        )

    @cached_property
    def _user_positions(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.user_ids)}

    def user_index(self, user_id: object) -> int:
        """Returns the index of a user by the external id.

        Raises:
            DataError: There is no such user.
        """
        return _position(self._user_positions, user_id, "user")

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of name, catalogue, users and interactions (not of the statistics)."""
        rows, catalogue = self.interactions, self.catalogue
        texts = [
            self.name,
            self.is_synthetic,
            catalogue.item_ids,
            catalogue.titles,
            catalogue.categories,
            catalogue.texts,
            self.user_ids,
            self.user_feature_names,
        ]
        arrays = (rows.users, rows.items, rows.ratings, rows.order, self.user_features)
        return artefacts.fingerprint_bytes(
            json.dumps(texts).encode(),
            *(b"" if a is None else a.astype(a.dtype.newbyteorder("<")).tobytes() for a in arrays),
        )

    def table(self) -> str:
        """Returns sizes and statistics as a table of two columns, for people."""
        rows = self.interactions
        levels = np.percentile(rows.ratings, [0, 25, 50, 75, 100])
        per_user = np.bincount(rows.users, minlength=self.n_users)
        per_item = np.bincount(rows.items, minlength=self.n_items)
        density = len(rows) / (self.n_users * self.n_items)
        common = Counter(name for names in self.catalogue.categories for name in names)
        per_category = sum(common.values()) / self.n_items
        lines: list[tuple[str, str]] = [
            ("dataset", f"{self.name} (synthetic)" if self.is_synthetic else self.name),
            ("users", f"{self.n_users:,}"),
            ("items", f"{self.n_items:,}"),
            ("interactions", f"{len(rows):,}"),
            ("density", f"{density:.4f}"),
            ("ordered in time", "yes" if rows.order is not None else "no"),
            ("interactions per user", _spread(per_user)),
            ("interactions per item", _spread(per_item)),
            (
                "rating",
                f"mean {rows.ratings.mean():.2f}, quartiles "
                + " ".join(f"{level:.2f}" for level in levels),
            ),
            ("categories", f"{self.n_categories}, {per_category:.1f} per item"),
            (
                "most common",
                ", ".join(
                    f"{name} {count / self.n_items:.0%}" for name, count in common.most_common(5)
                ),
            ),
        ]
        lines += [(name.replace("_", " "), _shown(v)) for name, v in self.statistics.items()]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    def save(self, folder: str | Path) -> Path:
        """Writes the dataset as parquet and JSON, whole or not at all.

        Args:
            folder: Where to; a folder that is there is replaced.

        Returns:
            The folder.
        """
        return artefacts.write_folder(folder, self._write)

    def _write(self, folder: Path) -> None:
        catalogue, rows = self.catalogue, self.interactions
        tables: dict[str, dict[str, Any]] = {
            _CATALOGUE: {
                "item_id": pa.array(catalogue.item_ids, pa.string()),
                "title": pa.array(catalogue.titles, pa.string()),
                "categories": pa.array(map(list, catalogue.categories), pa.list_(pa.string())),
                "text": pa.array(catalogue.texts, pa.string()),
            },
            _INTERACTIONS: {"user": rows.users, "item": rows.items, "rating": rows.ratings}
            | ({} if rows.order is None else {"order": rows.order}),
            _USERS: {"user_id": pa.array(self.user_ids, pa.string())}
            | {
                f"feature_{j}": self.user_features[:, j]
                for j in range(len(self.user_feature_names))
                if self.user_features is not None
            },
        }
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), folder / name, compression="zstd")
        card = {
            "format": _FORMAT,
            "name": self.name,
            "is_synthetic": self.is_synthetic,
            "has_user_features": self.user_features is not None,
            "user_feature_names": self.user_feature_names,
            "statistics": dict(self.statistics),
            "fingerprint": self.fingerprint,
        }
        artefacts.write_file(folder / _CARD, json.dumps(card, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> Dataset:
        """Reads a dataset that `save` wrote.

        Raises:
            MissingDataError: The folder is not there.
            ArtefactError: Something in it is missing or broken.
        """
        place = Path(folder)
        if not place.is_dir():
            raise MissingDataError(
                f"{place} is not there, expected the folder of a saved dataset: save it first."
            )
        if not artefacts.check_folder(place):
            raise ArtefactError(
                f"The saved dataset in {place} is broken (a file is missing or differs from the "
                "manifest), expected it whole: delete the folder and save the dataset again."
            )
        card = json.loads((place / _CARD).read_text(encoding="utf-8"))
        if card["format"] != _FORMAT:
            raise ArtefactError(
                f"The saved dataset in {place} has format {card['format']}, expected {_FORMAT}: "
                "delete the folder and save the dataset again."
            )
        items = pq.read_table(place / _CATALOGUE)
        rows = pq.read_table(place / _INTERACTIONS)
        users = pq.read_table(place / _USERS)
        features: npt.NDArray[Any] | None = None
        if card["has_user_features"]:
            columns = [users[f"feature_{j}"].to_numpy() for j in range(users.num_columns - 1)]
            features = np.stack(columns, axis=1) if columns else np.zeros((users.num_rows, 0))
        return cls(
            name=card["name"],
            catalogue=Catalogue(
                item_ids=tuple(items["item_id"].to_pylist()),
                titles=tuple(items["title"].to_pylist()),
                categories=tuple(tuple(names) for names in items["categories"].to_pylist()),
                texts=tuple(items["text"].to_pylist()),
            ),
            interactions=Interactions(
                users=rows["user"].to_numpy(),
                items=rows["item"].to_numpy(),
                ratings=rows["rating"].to_numpy(),
                order=rows["order"].to_numpy() if "order" in rows.column_names else None,
            ),
            user_ids=tuple(users["user_id"].to_pylist()),
            user_features=features,
            user_feature_names=tuple(card["user_feature_names"]),
            statistics=card["statistics"],
            is_synthetic=card["is_synthetic"],
        )


def _freeze(owner: object, name: str, dtype: type[np.generic]) -> None:
    """Replaces a field by a read-only copy of the wanted type."""
    given = np.asarray(getattr(owner, name))
    if not (np.issubdtype(given.dtype, np.number) or given.dtype == bool):
        raise DataError(
            f"The column {name} holds {given.dtype} values, expected numbers: convert it first."
        )
    with np.errstate(invalid="ignore"):
        copy = given.astype(dtype, order="C", copy=True)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(copy, given):
        raise DataError(
            f"The column {name} holds values that are no whole numbers within {dtype.__name__}, "
            "expected indices: convert it first."
        )
    copy.setflags(write=False)
    object.__setattr__(owner, name, copy)


def _check_unique(what: str, values: Sequence[str]) -> None:
    if len(set(values)) != len(values):
        twice, count = Counter(values).most_common(1)[0]
        raise DataError(
            f"The {what} {twice!r} came {count} times, expected every {what} once: "
            "combine or drop the repeated rows."
        )


def _position(positions: Mapping[str, int], wanted: object, kind: str) -> int:
    found = positions.get(str(wanted))
    if found is None:
        near = difflib.get_close_matches(str(wanted), positions, n=3) or list(positions)[:3]
        raise DataError(
            f"The {kind} id {str(wanted)!r} is not in the dataset, expected one of its "
            f"{len(positions):,} ids, such as {', '.join(near)}: check the id."
        )
    return found


def _spread(counts: npt.NDArray[np.int64]) -> str:
    return f"mean {counts.mean():.1f}, median {np.median(counts):.0f}, max {counts.max():,}"


def _shown(value: object) -> str:
    """Returns a statistic as text of one line."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Mapping, list, tuple)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(item)}" for name, item in value.items())
    return ", ".join(_shown(item) for item in value)
