"""Steam-200k: hours that users played games, with the genres of the games."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from recsim_env.datasets import billp
from recsim_env.datasets.assemble import Item, Rows, assemble, combine_pairs
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.ratings import quantile_ratings
from recsim_env.datasets.sources import Source, find_root, first_existing
from recsim_env.datasets.tables import identifiers, lists_of_text, numbers, read_table, texts
from recsim_env.datasets.titles import normalise_title
from recsim_env.errors import DataError, MissingDataError, near_miss

__all__ = ["SteamSource"]

_INTERACTIONS = "steam200k_interactions.parquet"
_ITEMS = "steam200k_items.parquet"
_METADATA = "ucsd_games.parquet"
_KAGGLE = "steam-200k.csv"
_KAGGLE_COLUMNS = ("user", "title", "behaviour", "value", "zero")


@dataclass(frozen=True)
class SteamSource(Source):
    """Reads Steam-200k, or the simulator of BiLLP, from one of these forms in the data folder.

    - "tables": `steam/steam200k_interactions.parquet` (user_id, item_id, hours),
      `steam/steam200k_items.parquet` (item_id, title, genres), and for genres and texts
      `steam/ucsd_games.parquet` (title, genres, tags) where it is there;
    - "kaggle": `steam-200k.csv` as Kaggle has it (no header; user, title, behaviour, value, 0)
      beside `ucsd_games.parquet` or BiLLP's `list_genre.json` for the genres;
    - "billp": `datamaps.json`, `list_genre.json` and a reward matrix, see `billp.load_simulator`.

    Only plays count: a purchase without hours tells no rating. Hours become ratings by
    `ratings.quantile_ratings` over all plays, before any filtering, so that thresholds do not
    change a rating. Games without genres get those of the metadata with the same normalised title;
    those that have none then are left out and counted. There is no order in time.

    Args:
        min_user: Plays that a user must have. Raising it keeps fewer, better known users.
        min_item: Plays that a game must have.
        levels: None: continuous ratings; 5: whole stars.
        form: Which form to read; None: the first that is there, in the order above.
        matrix: Form "billp": the file of the reward matrix.
        cells_per_user: Form "billp": rewards that are drawn per user.
        seed: Form "billp": of that draw.
    """

    name: ClassVar[str] = "steam"
    min_user: int = 5
    min_item: int = 3
    levels: int | None = None
    form: str | None = None
    matrix: str = "steam_train.npy"
    cells_per_user: int = 50
    seed: int = 0

    def load(self, root: str | Path | None = None) -> Dataset:
        """Reads the data; see the class."""
        wanted = {
            "tables": (_INTERACTIONS, _ITEMS),
            "kaggle": (_KAGGLE,),
            "billp": (billp.DATAMAPS, billp.GENRES, self.matrix),
        }
        if self.form is not None:
            if self.form not in wanted:
                raise DataError(
                    f"The form {self.form!r} of steam is not known: {near_miss(self.form, wanted)}."
                )
            wanted = {self.form: wanted[self.form]}
        form, folder = first_existing(find_root(root), ("steam", "env/steam"), wanted, self.name)
        readers: dict[str, Callable[[Path], Dataset]] = {
            "tables": self._load_tables,
            "kaggle": self._load_kaggle,
            "billp": self._load_billp,
        }
        return readers[form](folder)

    def _load_billp(self, folder: Path) -> Dataset:
        return billp.load_simulator(
            self.name,
            folder,
            self.matrix,
            self.cells_per_user,
            self.min_user,
            self.min_item,
            self.seed,
        )

    def _load_tables(self, folder: Path) -> Dataset:
        table = read_table(folder / _INTERACTIONS, ("user_id", "item_id", "hours"))
        played = table.filter(table["hours"].is_valid())
        games = read_table(folder / _ITEMS, ("item_id", "title", "genres"))
        items = {
            item_id: Item(title, genres)
            for item_id, title, genres in zip(
                identifiers(games["item_id"], "item_id").tolist(),
                texts(games["title"]),
                lists_of_text(games["genres"]),
                strict=True,
            )
        }
        return self._from_plays(
            identifiers(played["user_id"], "user_id"),
            identifiers(played["item_id"], "item_id"),
            numbers(played["hours"], "hours"),
            items,
            _read_metadata(folder),
            {
                "source": "Steam-200k (tables)",
                "purchases_without_hours": table.num_rows - played.num_rows,
            },
        )

    def _load_kaggle(self, folder: Path) -> Dataset:
        metadata = _read_metadata(folder)
        if not metadata:
            raise MissingDataError(
                f"{folder / _KAGGLE} came without genres beside it, expected {_METADATA} or "
                f"{billp.GENRES} in {folder}: put one there."
            )
        table = _read_kaggle(folder / _KAGGLE)
        behaviour = np.asarray(texts(table["behaviour"]))
        played = table.filter(pa.array(behaviour == "play"))
        titles = identifiers(played["title"], "title")
        return self._from_plays(
            identifiers(played["user"], "user"),
            titles,
            numbers(played["value"], "value"),
            {str(title): Item(str(title), ()) for title in np.unique(titles)},
            metadata,
            {
                "source": "Steam-200k (Kaggle)",
                "purchase_rows_unused": int((behaviour == "purchase").sum()),
            },
        )

    def _from_plays(
        self,
        users: npt.NDArray[np.str_],
        items: npt.NDArray[np.str_],
        hours: npt.NDArray[np.float64],
        catalogue: dict[str, Item],
        metadata: dict[str, Item],
        statistics: dict[str, Any],
    ) -> Dataset:
        if not hours.size:
            raise DataError(
                "The Steam data came without a single play, expected hours played: fetch the "
                "complete file."
            )
        rows, hours, _, merged = combine_pairs(users, items, hours, "max")
        completed = {i: _completed(item, metadata) for i, item in catalogue.items()}
        given = sum(
            not catalogue[i].categories and bool(completed[i].categories) for i in completed
        )
        mapping = "continuous" if self.levels is None else f"{self.levels} levels"
        return assemble(
            self.name,
            Rows(users[rows], items[rows], quantile_ratings(hours, self.levels)),
            completed,
            self.min_user,
            self.min_item,
            {
                **statistics,
                "plays": int(hours.size),
                "repeated_plays_merged": merged,
                "rating_mapping": f"quantile of log-hours over all plays, {mapping}",
                "hours_quartiles": np.percentile(hours, [25, 50, 75]).round(2).tolist(),
                "games_given_genres_by_title": given,
            },
        )


def _completed(item: Item, metadata: dict[str, Item]) -> Item:
    """Returns an item with the genres it lacks, and the text, of the metadata of that title."""
    found = metadata.get(normalise_title(item.title))
    if found is None:
        return item
    return Item(item.title, item.categories or found.categories, item.text or found.text)


def _read_metadata(folder: Path) -> dict[str, Item]:
    """Returns genres and texts by normalised title; empty where there is no such file."""
    if (folder / _METADATA).is_file():
        table = read_table(folder / _METADATA, ("title", "genres", "tags", "developer"))
        items = [
            Item(title, genres, _describe(tags, developer))
            for title, genres, tags, developer in zip(
                texts(table["title"]),
                lists_of_text(table["genres"]),
                lists_of_text(table["tags"]),
                texts(table["developer"]),
                strict=True,
            )
        ]
    elif (folder / billp.GENRES).is_file():
        genres_of = billp.read_genres(folder / billp.GENRES)
        items = [Item(title, genres) for title, genres in genres_of.items()]
    else:
        items = []
    metadata: dict[str, Item] = {}
    for item in items:
        name = normalise_title(item.title)
        if name and (name not in metadata or not metadata[name].categories):
            metadata[name] = item
    return metadata


def _describe(tags: tuple[str, ...], developer: str) -> str:
    parts = []
    if tags:
        parts.append(f"Tags: {', '.join(tags)}.")
    if developer:
        parts.append(f"Developer: {developer}.")
    return " ".join(parts)


def _read_kaggle(file: Path) -> pa.Table:
    """Reads Kaggle's file, which has no header, as text columns."""
    try:
        return pa_csv.read_csv(
            file,
            read_options=pa_csv.ReadOptions(column_names=list(_KAGGLE_COLUMNS)),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(_KAGGLE_COLUMNS, pa.string())
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read ({str(error).splitlines()[0]}), expected the five columns of "
            "Kaggle's file (user, title, behaviour, value, 0) without a header: fetch it again."
        ) from error
