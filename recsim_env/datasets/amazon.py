"""Amazon-Book in BiLLP's selection: books that users liked, in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.assemble import Item, Rows, assemble, combine_pairs, time_order
from recsim_env.datasets.dataset import RATING_RANGE, Dataset
from recsim_env.datasets.implicit import draw_untouched
from recsim_env.datasets.sources import Source, find_root, first_existing
from recsim_env.datasets.splits import k_core
from recsim_env.datasets.tables import identifiers, lists_of_text, numbers, read_table, texts
from recsim_env.errors import DataError

__all__ = ["AmazonSource"]

_CATALOGUE = "billp_catalogue.parquet"
_INTERACTIONS = "billp_test_interactions.parquet"


@dataclass(frozen=True)
class AmazonSource(Source):
    """Reads BiLLP's Amazon-Book catalogue and the sequences of its 1,049 users.

    The sequences are implicit feedback: they hold books that a user liked, and nothing of what the
    user would not like. They become ratings by contrast: a book of the sequence is rated 5; for
    each, `negatives_per_positive` books that the user did not touch are drawn and rated 1. A model
    of the mean rating then fits 1 + 4 p, with p the probability that a book was chosen rather than
    drawn: a rating says how much likelier this user is to take the book than a book drawn at
    random. With an even draw popular books get a higher p, as they do when users choose; with
    `popularity_power=1` books are drawn as often as they are liked, and p measures taste alone.
    A drawn book can be one that the user would like; that lowers all p alike, not their order.

    Drawn rows have the order -1: they are no events, and come before the sequence where rows are
    sorted by order. A book that a sequence repeats counts once, at its last place.

    Args:
        min_user: Liked books that a user must have.
        min_item: Users that must like a book. Raising it cuts the catalogue: 5 leaves about 5,900
            books, 10 about 3,200, 20 about 1,300.
        max_items: Keep only the most liked books; None: no limit.
        negatives_per_positive: Drawn books per liked book, above 0; 1 balances the two.
        popularity_power: Exponent of a book's number of users in the draw; 0: even draw.
        seed: Of the draw.
    """

    name: ClassVar[str] = "amazon"
    min_user: int = 5
    min_item: int = 10
    max_items: int | None = None
    negatives_per_positive: float = 1.0
    popularity_power: float = 0.0
    seed: int = 0

    def load(self, root: str | Path | None = None) -> Dataset:
        """Reads the data; see the class."""
        wanted = {"tables": (_CATALOGUE, _INTERACTIONS)}
        _, folder = first_existing(find_root(root), ("amazon_book", "amazon"), wanted, self.name)
        if not self.negatives_per_positive > 0 or (
            self.max_items is not None and self.max_items < 1
        ):
            raise DataError(
                f"negatives_per_positive={self.negatives_per_positive} and max_items="
                f"{self.max_items} came, expected numbers above 0 (or None for the second)."
            )
        books = read_table(folder / _CATALOGUE, ("item_id", "title", "genres"))
        items = {
            item_id: Item(title, genres)
            for item_id, title, genres in zip(
                identifiers(books["item_id"], "item_id").tolist(),
                texts(books["title"]),
                lists_of_text(books["genres"]),
                strict=True,
            )
        }
        table = read_table(folder / _INTERACTIONS, ("user_id", "item_id", "order"))
        users = identifiers(table["user_id"], "user_id")
        books_read = identifiers(table["item_id"], "item_id")
        chosen, _, time, merged = combine_pairs(
            users, books_read, np.ones(users.size), "max", numbers(table["order"], "order")
        )
        users, books_read = users[chosen], books_read[chosen]
        time = np.zeros(users.size) if time is None else time
        known = np.array([i in items and bool(items[i].categories) for i in books_read.tolist()])
        kept = self._kept(users, books_read, known)
        if not kept.any():
            raise DataError(
                f"Of {users.size} liked books none is left after filtering (min_user="
                f"{self.min_user}, min_item={self.min_item}), expected at least one: lower these."
            )
        users, books_read, time = users[kept], books_read[kept], time[kept]
        drawn_users, drawn_books = self._draw(users, books_read)
        low, high = RATING_RANGE
        rows = Rows(
            np.concatenate([users, drawn_users]),
            np.concatenate([books_read, drawn_books]),
            np.repeat([high, low], [users.size, drawn_users.size]).astype(np.float32),
            np.concatenate([time_order(users, time), np.full(drawn_users.size, -1)]),
        )
        statistics = {
            "source": "Amazon-Book (BiLLP)",
            "rating_mapping": f"liked = {high:g}, drawn and not touched = {low:g}",
            "liked": int(users.size),
            "drawn": int(drawn_users.size),
            "repeated_rows_merged": merged,
            "liked_dropped_by_filters": int((~kept).sum()),
            "items_seen_in_source": len(items),
            "liked_min_user": self.min_user,
            "liked_min_item": self.min_item,
            "popularity_power": self.popularity_power,
            "seed": self.seed,
        }
        return assemble(self.name, rows, items, 1, 1, statistics)

    def _kept(
        self,
        users: npt.NDArray[np.str_],
        items: npt.NDArray[np.str_],
        known: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.bool_]:
        """Returns the mask of the liked books that stay: k-core, most liked, and k-core again."""
        kept = known.copy()
        kept[known] = k_core(users[known], items[known], self.min_user, self.min_item)
        if self.max_items is not None and kept.any():
            names, counts = np.unique(items[kept], return_counts=True)
            most = names[np.argsort(-counts, kind="stable")[: self.max_items]]
            kept &= np.isin(items, most)
            kept[kept] = k_core(users[kept], items[kept], self.min_user, 1)
        return kept

    def _draw(
        self, users: npt.NDArray[np.str_], items: npt.NDArray[np.str_]
    ) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.str_]]:
        """Returns users and books of the drawn rows."""
        people, user_of = np.unique(users, return_inverse=True)
        names, item_of = np.unique(items, return_inverse=True)
        drawn_users, drawn_items = draw_untouched(
            user_of,
            item_of,
            self.negatives_per_positive,
            self.popularity_power,
            np.random.default_rng(self.seed),
        )
        return people[drawn_users], names[drawn_items]
