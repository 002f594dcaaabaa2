"""A user's own data: a table of interactions and a table of items."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsim_env.datasets.assemble import Item, Rows, assemble, combine_pairs, time_order
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.implicit import contrast
from recsim_env.datasets.ratings import guess_scale, quantile_ratings, rescale
from recsim_env.datasets.tables import as_table, identifiers, is_text, lists_of_text, numbers, texts
from recsim_env.errors import DataError, near_miss

__all__ = ["from_tables"]

_ALIASES: dict[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "uid"),
    "item": ("item", "item_id", "iid"),
    "rating": ("rating", "ratings", "score", "stars"),
    "hours": ("hours", "hours_played"),
    "clicks": ("clicks", "count", "plays"),
    "time": ("order", "time", "timestamp", "date"),
    "title": ("title", "name"),
    "categories": ("categories", "category", "genres", "genre", "tags"),
    "text": ("text", "description"),
}
_SIGNALS = {"rating": "mean", "hours": "max", "clicks": "sum"}
_INTERACTION_ROLES = ("user", "item", *_SIGNALS, "time")
_ITEM_ROLES = ("item", "title", "categories", "text")
_SEPARATORS = ("|", ";", ",")


def from_tables(
    interactions: Any,
    items: Any,
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    item_columns: Mapping[str, str] | None = None,
    signal: str | None = None,
    rating_scale: tuple[float, float] | None = None,
    levels: int | None = None,
    separator: str | None = None,
    default_category: str | None = None,
    min_user: int = 1,
    min_item: int = 1,
    negatives_per_positive: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Makes a dataset of your own tables.

    Ids may be of any type, and become text. Columns are found by name, whatever the case: of the
    interactions `user`, `item`, one of `rating`, `hours`, `clicks`, and if there is one `order`
    or `time` (numbers, dates, or text that spells either); of the items `item`, `title`,
    `categories` and if there is one `text`. Usual other names (`user_id`, `genres`, `timestamp`,
    `description` and so on) are understood.

    Ratings on another scale are mapped linearly to 1 to 5; hours and clicks by their quantile (see
    `ratings.quantile_ratings`). Rows of the same user and item become one: the mean of the ratings,
    the maximum of the hours, the sum of the clicks, at the latest time. Where the interactions
    have nothing but `user`, `item` and time, each row counts as a click. Clicks that all count the
    same say what a user took and nothing of what the user would not take: they are rated 5, and
    for each an item that the user did not touch is drawn and rated 1. Rows whose item is not in
    the table of items or has no category are dropped. All of it is said in `dataset.statistics`.

    Args:
        interactions: A data frame, a dictionary of columns, or the path of a parquet or CSV file.
        items: Likewise.
        name: Of the dataset: letters, digits, "-", "_" and ".".
        columns: Names of columns of the interactions by what they are, such as {"user": "client"}.
        item_columns: Likewise of the items.
        signal: "rating", "hours" or "clicks"; None: the first of them that there is. With
            "clicks" and no such column each row counts as one.
        rating_scale: The lowest and the highest rating of your scale; None: guessed (1 to 5, 0 to
            1, -1 to 1, 0.5 to 5, 0 to 5, 1 to 10, 0 to 10 or 0 to 100, the first that fits).
        levels: For hours and clicks: None for continuous ratings, 5 for whole stars.
        separator: What parts categories that are given as text; None: the first of "|", ";" and
            "," that occurs.
        default_category: Given to items without a category, all of them where the table has no such
            column; None: they are left out.
        min_user: Rows that a user must have.
        min_item: Rows that an item must have.
        negatives_per_positive: For clicks that all count the same: items drawn for each.
        seed: Of that draw.

    Returns:
        The dataset, with users and items that have at least one row.

    Raises:
        MissingDataError: A file is not there.
        DataError: Something in the tables is not usable; the message says what and how to mend it.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise DataError(
            f"The name {name!r} came, expected letters, digits, '-', '_' and '.': rename it."
        )
    table = as_table(interactions, "interactions")
    found = _find_columns(table, "interactions", columns or {}, _INTERACTION_ROLES)
    _need(found, ("user", "item"), "interactions", table.column_names)
    chosen = _choose_signal(found, signal, table.column_names)
    if not table.num_rows:
        raise DataError("The table of interactions came empty, expected at least one row: fill it.")
    users = identifiers(table[found["user"]], found["user"])
    item_ids = identifiers(table[found["item"]], found["item"])
    values = (
        numbers(table[found[chosen]], found[chosen]) if chosen in found else np.ones(table.num_rows)
    )
    ratings_before, scale = _checked_values(values, chosen, rating_scale)
    time = _times(table[found["time"]], found["time"]) if "time" in found else None
    rows, combined, latest, merged = combine_pairs(
        users, item_ids, ratings_before, _SIGNALS[chosen], time
    )
    if scale is not None:
        ratings = rescale(combined, scale)
        mapping = (
            "none (1 to 5 already)"
            if scale == (1.0, 5.0)
            else f"linear from {scale[0]:g}..{scale[1]:g} to 1..5"
        )
    else:
        ratings = quantile_ratings(combined, levels)
        mapping = f"quantile of log-{chosen}, " + (
            "continuous" if levels is None else f"{levels} levels"
        )
    catalogue, item_statistics = _read_items(items, item_columns or {}, separator, default_category)
    users, item_ids = users[rows], item_ids[rows]
    statistics = {
        "source": "own tables",
        "signal": found.get(chosen, "rows, each a click"),
        "rating_mapping": mapping,
        "rows_read": table.num_rows,
        "repeated_rows_merged": merged,
        **item_statistics,
    }
    order = None if latest is None else time_order(users, latest)
    kept = Rows(users, item_ids, ratings, order)
    dataset = assemble(name, kept, catalogue, min_user, min_item, statistics)
    if chosen == "clicks" and combined.min() == combined.max():
        return contrast(dataset, negatives_per_positive, seed)
    return dataset


def _read_items(
    items: Any, columns: Mapping[str, str], separator: str | None, default_category: str | None
) -> tuple[dict[str, Item], dict[str, Any]]:
    """Returns item by id, and what was met on the way."""
    table = as_table(items, "items")
    found = _find_columns(table, "items", columns, _ITEM_ROLES)
    needed = ("item", "title") if default_category is not None else ("item", "title", "categories")
    _need(found, needed, "items", table.column_names)
    ids = identifiers(table[found["item"]], found["item"]).tolist()
    cut = None
    categories: list[tuple[str, ...]] = [()] * len(ids)
    if "categories" in found:
        column = table[found["categories"]]
        if is_text(column):
            cut = separator or _guess_separator(column)
        categories = lists_of_text(column, cut or "|")
    titles = texts(table[found["title"]])
    described = texts(table[found["text"]]) if "text" in found else [""] * len(ids)
    fallback = () if default_category is None else (default_category,)
    catalogue: dict[str, Item] = {}
    for item_id, title, names, text in zip(ids, titles, categories, described, strict=True):
        # a title is shown on one line
        plain = " ".join(title.split())
        catalogue.setdefault(item_id, Item(plain or item_id, names or fallback, text))
    statistics: dict[str, Any] = {
        "items_read": len(ids),
        "repeated_items_ignored": len(ids) - len(catalogue),
        "items_given_default_category": sum(not names for names in categories) if fallback else 0,
    }
    if cut is not None:
        statistics["category_separator"] = cut
    return catalogue, statistics


def _find_columns(
    table: pa.Table, what: str, given: Mapping[str, str], roles: Sequence[str]
) -> dict[str, str]:
    """Returns the name of the column of each role that the table has.

    Raises:
        DataError: A role or a column that was named does not exist.
    """
    by_plain = {_plain(name): name for name in reversed(table.column_names)}
    found = {}
    for role in roles:
        for alias in _ALIASES[role]:
            if _plain(alias) in by_plain:
                found[role] = by_plain[_plain(alias)]
                break
    for role, name in given.items():
        if role not in roles:
            raise DataError(
                f"{role!r} is not something that a column of {what} can be: "
                f"{near_miss(role, roles)}."
            )
        if _plain(name) not in by_plain:
            raise DataError(
                f"The table of {what} has no column {name!r} (given as {role!r}): "
                f"{near_miss(name, table.column_names)}."
            )
        found[role] = name if name in table.column_names else by_plain[_plain(name)]
    return found


def _need(
    found: Mapping[str, str], roles: Sequence[str], what: str, present: Sequence[str]
) -> None:
    for role in roles:
        if role not in found:
            argument, option = (
                ("columns", "--column")
                if what == "interactions"
                else ("item_columns", "--item-column")
            )
            raise DataError(
                f"The table of {what} has no column {role!r}, expected {', '.join(roles)}: "
                f"{near_miss(role, present)}; rename it or give {argument}={{{role!r}: ...}} "
                f"({option} {role}=... on the command line)."
            )


def _choose_signal(found: Mapping[str, str], signal: str | None, present: Sequence[str]) -> str:
    """Returns which of rating, hours and clicks is used; clicks may be rows to be counted."""
    if signal is not None and signal not in _SIGNALS:
        raise DataError(f"The signal {signal!r} is not known: {near_miss(signal, _SIGNALS)}.")
    wanted = list(_SIGNALS) if signal is None else [signal]
    for role in wanted:
        if role in found:
            return role
    if signal == "clicks" or (signal is None and set(present) == set(found.values())):
        return "clicks"
    raise DataError(
        f"The table of interactions has no column {' or '.join(map(repr, wanted))}, expected one: "
        f"{near_miss(wanted[0], present)}; rename it or give columns={{{wanted[0]!r}: ...}} "
        f"(--column {wanted[0]}=... on the command line), or signal='clicks' (--signal clicks) to "
        "count rows."
    )


def _checked_values(
    values: npt.NDArray[np.float64], signal: str, scale: tuple[float, float] | None
) -> tuple[npt.NDArray[np.float64], tuple[float, float] | None]:
    """Returns the values and their scale; None for amounts, which have none."""
    if signal != "clicks" and values.size > 1 and values.min() == values.max():
        raise DataError(
            f"All {values.size} values of {signal!r} equal {values[0]:g}, expected different ones "
            "to learn from: add what users did not like, or give signal='clicks' (--signal clicks) "
            "to have each row count as a click."
        )
    if signal != "rating":
        quantile_ratings(values)  # refuses negative amounts while the rows are as they came
        return values, None
    scale = guess_scale(values) if scale is None else (float(scale[0]), float(scale[1]))
    rescale(values, scale)  # refuses ratings that are not on it, likewise
    return values, scale


def _times(column: pa.ChunkedArray, name: str) -> npt.NDArray[np.float64]:
    """Returns times as numbers of which the later is the larger."""
    if pa.types.is_temporal(column.type) or is_text(column):
        try:
            return numbers(column, name)
        except DataError:
            pass
        return numbers(_moments(column, name), name)
    return numbers(column, name)


def _moments(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Returns dates and times, with or without a zone, as whole numbers."""
    plain = pc.utf8_trim_whitespace(column) if is_text(column) else column
    try:
        return plain.cast(pa.timestamp("us")).cast(pa.int64())
    except pa.ArrowException as error:
        problem = error
    try:
        return plain.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    except pa.ArrowException:
        pass
    raise DataError(
        f"The column {name!r} holds something that is neither a number nor a time "
        f"({str(problem).splitlines()[0][:120]}), expected for example 17, 2024-01-31 or "
        "2024-01-31T10:30:00Z in each row: mend them or leave the column out."
    ) from problem


def _guess_separator(column: pa.ChunkedArray) -> str:
    values = [str(value) for value in column.to_pylist() if value is not None]
    return next((s for s in _SEPARATORS if any(s in value for value in values)), _SEPARATORS[0])


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", str(name)).lower()
