"""The files in which BiLLP keeps a simulator: titles, genres and a matrix of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recsim_env.datasets.assemble import Item, Rows, assemble
from recsim_env.datasets.dataset import RATING_RANGE, Dataset
from recsim_env.datasets.tables import names_of, read_json, read_matrix
from recsim_env.errors import DataError, near_miss

__all__ = ["DATAMAPS", "GENRES", "load_simulator", "read_genres"]

DATAMAPS = "datamaps.json"
"""Titles by index under "id2item_dict", indices by title under "item2id_dict"."""
GENRES = "list_genre.json"
"""Genres by title: a list, or a list printed as text."""


def read_genres(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads genres by title.

    Raises:
        MissingDataError: The file is not there.
        DataError: It is no JSON object.
    """
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise DataError(
            f"{path} holds a {type(content).__name__}, expected an object of title and list of "
            "genres: fetch the right file."
        )
    return {str(title): names_of(genres, ",") for title, genres in content.items()}


def load_simulator(
    name: str,
    folder: Path,
    matrix_file: str,
    cells_per_user: int,
    min_user: int,
    min_item: int,
    seed: int,
) -> Dataset:
    """Reads BiLLP's three files as a dataset.

    The matrix holds a reward for every user and item, so it is no record of what users did: each
    user "rates" `cells_per_user` items drawn evenly, with the matrix's rewards, clipped to [1, 5],
    as ratings. There is no order in time.

    Args:
        name: Of the dataset.
        folder: Where the files are.
        matrix_file: The matrix, (users, items), as .npy.
        cells_per_user: Items that are drawn per user, 1 or more.
        min_user: Rows a user must have.
        min_item: Rows an item must have.
        seed: Of the draw.
    """
    maps = read_json(folder / DATAMAPS)
    if not isinstance(maps, Mapping) or "id2item_dict" not in maps:
        known = maps if isinstance(maps, Mapping) else ()
        raise DataError(
            f"{folder / DATAMAPS} has no 'id2item_dict', expected titles by index there: "
            f"{near_miss('id2item_dict', known)}."
        )
    titles = {int(index): str(title) for index, title in maps["id2item_dict"].items()}
    genres = read_genres(folder / GENRES)
    matrix = read_matrix(folder / matrix_file)
    n_users, n_items = matrix.shape
    if titles and max(titles) >= n_items:
        raise DataError(
            f"{folder / matrix_file} has {n_items} columns, expected one per item, which go up to "
            f"index {max(titles)} in {DATAMAPS}: the files must belong together."
        )
    if cells_per_user < 1:
        raise DataError(f"cells_per_user={cells_per_user} came, expected 1 or more.")
    rng = np.random.default_rng(seed)
    drawn = np.array(sorted(titles))
    size = min(cells_per_user, drawn.size)
    items = np.stack([rng.choice(drawn, size, replace=False) for _ in range(n_users)])
    rewards = np.asarray(matrix[np.arange(n_users)[:, None], items], dtype=np.float64).ravel()
    if not np.isfinite(rewards).all():
        raise DataError(
            f"{folder / matrix_file} holds NaN or infinite rewards, expected finite ones: fetch "
            "the file again."
        )
    ratings = np.clip(rewards, *RATING_RANGE).astype(np.float32)
    statistics: dict[str, Any] = {
        "source": f"BiLLP simulator ({matrix_file})",
        "rating_mapping": "reward of the simulator, clipped to 1..5",
        "ratings_clipped": int((ratings != rewards.astype(np.float32)).sum()),
        "cells_per_user": size,
        "seed": seed,
    }
    return assemble(
        name,
        Rows(np.repeat(np.arange(n_users), size).astype(str), items.ravel().astype(str), ratings),
        {str(i): Item(title, genres.get(title, ())) for i, title in titles.items()},
        min_user,
        min_item,
        statistics,
    )
