"""Sequences of items with words for each item: what next-item recommenders learn from.

Raw data become a `SequenceData`; its `examples` are what a model is given and must predict.
Sequences are int64 item indices, oldest first; histories are padded on the left with ``n_items``,
as in `recsim_env.encoders`.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from recsim_env import artefacts
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.registry import load
from recsim_env.datasets.sources import find_root, first_existing
from recsim_env.datasets.splits import k_core
from recsim_env.datasets.tables import (
    identifiers,
    is_text,
    lists_of_text,
    numbers,
    read_table,
    texts,
)
from recsim_env.errors import DataError, near_miss

__all__ = [
    "Examples",
    "IntArray",
    "SequenceData",
    "SequenceSplit",
    "load_sequences",
    "sequence_names",
    "sequences_of",
]

IntArray = NDArray[np.int64]
SequenceSplit = Literal["train", "valid", "test"]

_SPLITS: tuple[SequenceSplit, ...] = get_args(SequenceSplit)
_ONLY_HISTORY = -1
_LEAST_EVENTS = 3
_DESCRIPTION_WORDS = 60
_SHARES = (0.8, 0.1)  # of the users: train, valid; the rest is test
_ARTICLE_AT_END = re.compile(r"^(.+?), (The|A|An|Les|Le|La|Das|Der|Die|Il|El)( \(.*\))?$")


class _Events(NamedTuple):
    """All events one after another, each (n,): item, user, split code, where the user starts."""

    items: IntArray
    users: IntArray
    codes: IntArray
    starts: IntArray


@dataclass(frozen=True, eq=False, repr=False)
class SequenceData:
    """Items with words, and what each user took of them, oldest first.

    Args:
        name: Short name, such as "industrial".
        item_ids: External ids, all different; an item's index is its position.
        titles: What a person reads, one per item.
        texts: A clause that describes the item, to stand after its token: "product is titled ...,
            its brand is ..., its description is ...".
        noun: What an item is called: "product", "game", "film".
        sequences: Item indices of each user, 3 or more in [0, n_items).
        splits: For each event the part to which the example belongs whose target it is: 0 train,
            1 valid, 2 test; -1 where it is only ever history, as the first event always is.

    Raises:
        DataError: The parts do not fit together, a sequence is too short or has an unknown item.
    """

    name: str
    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    noun: str
    sequences: tuple[IntArray, ...]
    splits: tuple[NDArray[np.int8], ...]

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("item_ids", "titles", "texts"):
            put(self, name, tuple(str(value) for value in getattr(self, name)))
        self._check_items()
        if not self.sequences or len(self.sequences) != len(self.splits):
            raise DataError(
                f"{len(self.sequences)} sequences came with {len(self.splits)} arrays of split "
                "codes, expected at least one sequence and one array for each: give both per user."
            )
        put(self, "sequences", tuple(_whole(s, np.int64, "sequence") for s in self.sequences))
        put(self, "splits", tuple(_whole(s, np.int8, "split codes") for s in self.splits))
        for user, (sequence, codes) in enumerate(zip(self.sequences, self.splits, strict=True)):
            problem = _problem_of(sequence, codes, self.n_items)
            if problem:
                raise DataError(f"The sequence of user {user} {problem}.")

    def _check_items(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("item_ids", "titles", "texts")}
        if len(set(lengths.values())) != 1 or not self.item_ids:
            raise DataError(
                f"{lengths} entries came, expected the same number of each and at least one: give "
                "one id, title and text per item."
            )
        if len(set(self.item_ids)) != len(self.item_ids):
            raise DataError(
                f"{len(self.item_ids) - len(set(self.item_ids))} item ids came more than once, "
                "expected every id once: combine or drop the repeated items."
            )
        wordless = next((i for i, text in enumerate(self.texts) if not text.strip()), None)
        if wordless is not None or not self.noun.strip():
            raise DataError(
                "A noun and a text for every item are needed, but "
                + ("the noun" if wordless is None else f"the text of item {wordless}")
                + " is empty: give at least its title."
            )

    @property
    def n_items(self) -> int:
        """The number of items; as an index, padding."""
        return len(self.item_ids)

    @property
    def n_users(self) -> int:
        """The number of sequences."""
        return len(self.sequences)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        counts = np.bincount(self._events.codes + 1, minlength=len(_SPLITS) + 1)[1:]
        sizes = ", ".join(f"{name}={n}" for name, n in zip(_SPLITS, counts, strict=True))
        return (
            f"SequenceData({self.name!r}, n_users={self.n_users}, n_items={self.n_items}, "
            f"n_events={len(self._events.items)}, examples: {sizes})"
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of everything in it."""
        words = [self.name, self.noun, self.item_ids, self.titles, self.texts]
        lengths = np.array([len(sequence) for sequence in self.sequences], np.int64)
        return artefacts.fingerprint_bytes(
            json.dumps(words).encode(),
            *(_bytes(a) for a in (lengths, self._events.items, self._events.codes)),
        )

    @cached_property
    def _events(self) -> _Events:
        lengths = np.array([len(sequence) for sequence in self.sequences], np.int64)
        return _Events(
            np.concatenate(self.sequences),
            np.repeat(np.arange(self.n_users), lengths),
            np.concatenate(self.splits).astype(np.int64),
            np.repeat(np.cumsum(lengths) - lengths, lengths),
        )

    def examples(self, split: SequenceSplit, length: int = 10) -> Examples:
        """Returns the examples of a part, in order of (user, time).

        Args:
            split: "train", "valid" or "test".
            length: Most items of a history, 1 or more; older ones are cut off. Usual: 10 to 50.

        Raises:
            DataError: There is no such part, or the length is below 1.
        """
        if split not in _SPLITS:
            raise DataError(f"The split {split!r} is not known: {near_miss(split, _SPLITS)}.")
        if length < 1:
            raise DataError(f"length={length} came, expected 1 or more: give for example 10.")
        events = self._events
        target_m = np.flatnonzero(events.codes == _SPLITS.index(split))
        user_m = events.users[target_m]
        # Places of x_{1:t+1}, its oldest first: (m, length + 1), the target in the last column.
        place_ml = target_m[:, None] + np.arange(-length, 1)
        there_ml = place_ml >= events.starts[target_m, None]
        window_ml = np.where(there_ml, events.items[np.maximum(place_ml, 0)], self.n_items)
        return Examples(
            histories=window_ml[:, :-1].copy(),
            targets=window_ml[:, -1].copy(),
            next_histories=window_ml[:, 1:].copy(),
            users=user_m,
            ends=np.append(user_m[1:] != user_m[:-1], True)[: len(user_m)],
            n_items=self.n_items,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """What to predict from what: m rows. The arrays are kept as they are given.

    Args:
        histories: (m, length) int64, the items x_{1:t}, the last `length` of them, one or more,
            padded on the left with `n_items`.
        targets: (m,) int64, the next item x_{t+1}, which is the positive action.
        next_histories: (m, length) int64, x_{1:t+1}: a history without its oldest place, and the
            target.
        users: (m,) int64, to whose sequence a row belongs.
        ends: (m,) bool, whether the target is the last of that user's within the part: no value
            follows.
        n_items: Number of items.

    Raises:
        DataError: The arrays do not fit together, an item is not known, or a history is empty.
    """

    histories: IntArray
    targets: IntArray
    next_histories: IntArray
    users: IntArray
    ends: NDArray[np.bool_]
    n_items: int

    def __post_init__(self) -> None:
        for name in ("histories", "targets", "next_histories", "users", "ends"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        self._check_shapes()
        pad = self.n_items
        checks = (
            (
                ((self.targets < 0) | (self.targets >= pad)),
                f"has a target that is no item from 0 to {pad - 1}",
            ),
            (
                ((self.histories < 0) | (self.histories > pad)).any(axis=1),
                f"has a history with something that is neither an item from 0 to {pad - 1} nor "
                f"the padding {pad}",
            ),
            (self.histories[:, -1] == pad, "has a history of padding only or padding on its right"),
            (
                ((self.histories[:, 1:] == pad) & (self.histories[:, :-1] != pad)).any(axis=1),
                "has a history with padding between items",
            ),
            (
                (self.next_histories[:, :-1] != self.histories[:, 1:]).any(axis=1)
                | (self.next_histories[:, -1] != self.targets),
                "has a next history that is not the history followed by the target",
            ),
        )
        for bad_m, what in checks:
            if bad_m.any():
                raise DataError(
                    f"Row {int(bad_m.argmax())} {what} (as do {int(bad_m.sum())} of "
                    f"{len(self)} rows), expected known items, oldest first and padded on the "
                    "left: take the rows from SequenceData.examples, or mend them."
                )

    def _check_shapes(self) -> None:
        m = self.targets.size
        length = self.histories.shape[-1] if self.histories.ndim == 2 else 0
        wanted = {
            "histories": (m, length),
            "targets": (m,),
            "next_histories": (m, length),
            "users": (m,),
            "ends": (m,),
        }
        for name, shape in wanted.items():
            array, kind = getattr(self, name), np.bool_ if name == "ends" else np.int64
            if array.shape != shape or array.dtype != kind or not length:
                raise DataError(
                    f"{name} of shape {array.shape} and type {array.dtype} came for {m} targets; "
                    f"expected {kind.__name__} of shape {shape} and a length of 1 or more: convert "
                    "it."
                )

    def __len__(self) -> int:
        """Returns the number of rows m."""
        return len(self.targets)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return (
            f"Examples(m={len(self)}, length={self.histories.shape[1]}, n_items={self.n_items}, "
            f"users={np.unique(self.users).size})"
        )

    def take(self, rows: ArrayLike | slice) -> Examples:
        """Returns some rows.

        Args:
            rows: Row numbers (k,) in the wanted order, a mask (m,) bool, or a slice.
        """
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.size else rows.astype(np.int64)
        return Examples(
            self.histories[rows],
            self.targets[rows],
            self.next_histories[rows],
            self.users[rows],
            self.ends[rows],
            self.n_items,
        )

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the number of items and all arrays."""
        arrays = (self.histories, self.targets, self.next_histories, self.users, self.ends)
        shape = json.dumps([self.n_items, self.histories.shape])
        return artefacts.fingerprint_bytes(shape.encode(), *map(_bytes, arrays))


def sequence_names() -> list[str]:
    """Returns the names that `load_sequences` knows, sorted."""
    return sorted(_LOADERS)


def load_sequences(name: str, root: str | Path | None = None, **options: Any) -> SequenceData:
    """Reads sequences by name.

    In all of them sequences with fewer than `min_user` events and items with fewer than `min_item`
    events go out until nothing changes (LEA, 4.2; both 3). "industrial" keeps the chronological
    split of its source; the others split whole users 8:1:1 into train, valid and test, drawn by
    `seed`, as SNQN does.

    - "industrial": Amazon Industrial and Scientific; options `min_user`, `min_item`.
    - "steam": games; options `form`, `seed`, `min_user`, `min_item`. Form "reviews" (of UCSD, the
      default) is in order of the dates of the reviews. Form "plays" (Steam-200k) has no order in
      time: a user's games come as in the file, from the most to the least played.
    - "movielens": MovieLens-100k in order of its time stamps (equal ones as in the file); options
      `min_rating` (lower ratings go out; 1 keeps all), `seed`, `min_user`, `min_item`.
    - "synthetic": made up; options `n_users`, `n_items`, `length`, `follow`, `seed`. See there
      how the best possible HR@1 is known.

    Args:
        name: One of `sequence_names()`.
        root: The data folder. None: the environment variable `ILREC_DATA`, and without that the
            folder "data" in the user's cache directory.
        **options: As above.

    Raises:
        MissingDataError: The data are not there.
        DataError: The name or an option is not known, or nothing is left after the filters.
    """
    loader = _LOADERS.get(name)
    if loader is None:
        raise DataError(
            f"The sequences {name!r} are not known: {near_miss(name, _LOADERS)}; for data of your "
            "own see recsim_env.sequences.sequences_of."
        )
    known = {
        option: parameter.default
        for option, parameter in inspect.signature(loader).parameters.items()
        if option != "root"
    }
    for option, value in options.items():
        if option not in known:
            raise DataError(
                f"The sequences {name!r} have no option {option!r}: {near_miss(option, known)}."
            )
        kind = type(known[option])
        if type(value) not in ((float, int) if kind is float else (kind,)):
            raise DataError(
                f"The option {option}={value!r} of {name!r} came, expected {kind.__name__}: "
                "change it."
            )
    return loader(root, **options)


def sequences_of(
    dataset: Dataset,
    *,
    noun: str = "item",
    texts: Sequence[str] | None = None,
    min_rating: float = 1.0,
    min_user: int = 3,
    min_item: int = 3,
    seed: int = 0,
) -> SequenceData:
    """Returns the sequences of any dataset whose interactions have an order in time.

    Rows of a negative order (the drawn negatives of implicit feedback) are no events and go out,
    as do ratings below `min_rating`; then the filters and the split of `load_sequences`.

    Args:
        dataset: The data.
        noun: What an item is called in the texts.
        texts: A clause for every item of the catalogue, (n_items,); None: made of title,
            categories and text.
        min_rating: Least rating of an event, 1 to 5.
        min_user: Events that a sequence must have, 3 or more.
        min_item: Events that an item must have.
        seed: Of the split of the users.

    Raises:
        DataError: There is no order in time, or nothing is left.
    """
    rows, catalogue = dataset.interactions, dataset.catalogue
    if rows.order is None:
        raise DataError(
            f"The dataset {dataset.name!r} came without an order in time, expected one: sequences "
            "need to know what came first, so give the interactions a column of time."
        )
    clauses = _dataset_texts(dataset, noun) if texts is None else tuple(texts)
    if len(clauses) != dataset.n_items:
        raise DataError(
            f"{len(clauses)} texts came for {dataset.n_items} items, expected one for each: give "
            "them in the order of the catalogue."
        )
    kept = np.flatnonzero((rows.order >= 0) & (rows.ratings >= min_rating))
    kept = kept[np.lexsort((rows.order[kept], rows.users[kept]))]
    return _build(
        dataset.name,
        noun,
        np.asarray(dataset.user_ids)[rows.users[kept]],
        np.asarray(catalogue.item_ids)[rows.items[kept]],
        {
            item_id: _Words(title, clause)
            for item_id, title, clause in zip(
                catalogue.item_ids, catalogue.titles, clauses, strict=True
            )
        },
        min_user=min_user,
        min_item=min_item,
        seed=seed,
    )


class _Words(NamedTuple):
    """What is known of an item in words."""

    title: str
    text: str


def _industrial(
    root: str | Path | None = None, *, min_user: int = 3, min_item: int = 3
) -> SequenceData:
    """Reads `amazon_industrial/items.parquet` and `sequences.parquet`.

    The source cut all events at two points in time: what comes before is train. An event whose
    history the source does not give (the first, or the oldest known of a long sequence) is no
    target.
    """
    wanted = {"tables": ("items.parquet", "sequences.parquet")}
    _, folder = first_existing(find_root(root), ("amazon_industrial",), wanted, "industrial")
    items = read_table(folder / "items.parquet", ("item_id", "title", "description", "brand"))
    table = read_table(folder / "sequences.parquet", ("user_id", "order", "item_id", "split"))
    codes = {"first_event": _ONLY_HISTORY, "before_valid": 0, "valid": 1, "test": 2}
    parts = texts(table["split"])
    unknown = sorted(set(parts) - set(codes))
    if unknown:
        raise DataError(
            f"{folder / 'sequences.parquet'} has the split {unknown[0]!r}: "
            f"{near_miss(unknown[0], codes)}."
        )
    users = identifiers(table["user_id"], "user_id")
    rows = np.lexsort((numbers(table["order"], "order"), users))
    return _build(
        "industrial",
        "product",
        users[rows],
        identifiers(table["item_id"], "item_id")[rows],
        {
            item_id: _Words(_clean(title), _product_text(title, brand, description))
            for item_id, title, brand, description in zip(
                identifiers(items["item_id"], "item_id").tolist(),
                texts(items["title"]),
                texts(items["brand"]),
                texts(items["description"]),
                strict=True,
            )
        },
        codes=np.array([codes[part] for part in parts], np.int8)[rows],
        min_user=min_user,
        min_item=min_item,
    )


def _steam(
    root: str | Path | None = None,
    *,
    form: str = "reviews",
    seed: int = 0,
    min_user: int = 3,
    min_item: int = 3,
) -> SequenceData:
    """Reads plays of Steam-200k in the order of the file, or dated reviews; see `load_sequences`.

    A game that a user has twice counts once, at its first place; so do repeated reviews, which are
    copies in the source. Games without a title and reviews without a date go out.
    """
    forms = {
        "plays": ("steam200k_events.parquet", "steam200k_items.parquet"),
        "reviews": ("ucsd_reviews_interactions.parquet", "ucsd_reviews_items.parquet"),
    }
    if form not in forms:
        raise DataError(f"The form {form!r} of steam is not known: {near_miss(form, forms)}.")
    _, folder = first_existing(find_root(root), ("steam",), {form: forms[form]}, "steam")
    rows_file, items_file = (folder / file for file in forms[form])
    games = read_table(items_file, ("item_id", "title", "genres"))
    words = {
        item_id: _Words(_clean(title), _game_text(title, genres))
        for item_id, title, genres in zip(
            identifiers(games["item_id"], "item_id").tolist(),
            texts(games["title"]),
            lists_of_text(games["genres"]),
            strict=True,
        )
        if _clean(title)
    }
    if form == "plays":
        table = read_table(rows_file, ("user_id", "item_id", "behavior", "source_row"))
        table = table.filter(pa.array([what == "play" for what in texts(table["behavior"])]))
        time = numbers(table["source_row"], "source_row")
    else:
        table = read_table(rows_file, ("user_id", "item_id", "posted"))
        table = table.filter(table["posted"].is_valid())
        time = _days(table["posted"])
    users = identifiers(table["user_id"], "user_id")
    items = identifiers(table["item_id"], "item_id")
    rows = np.lexsort((time, users))
    rows = rows[_first_of_pairs(users[rows], items[rows])]
    rows = rows[[item in words for item in items[rows].tolist()]]
    return _build(
        "steam",
        "game",
        users[rows],
        items[rows],
        words,
        min_user=min_user,
        min_item=min_item,
        seed=seed,
    )


def _movielens(
    root: str | Path | None = None,
    *,
    min_rating: float = 1.0,
    seed: int = 0,
    min_user: int = 3,
    min_item: int = 3,
) -> SequenceData:
    """Reads MovieLens-100k, every rating of `min_rating` or more being an event."""
    dataset = load("movielens", root, min_user=1, min_item=1)
    films = zip(dataset.catalogue.titles, dataset.catalogue.categories, strict=True)
    return sequences_of(
        dataset,
        noun="film",
        texts=[_film_text(title, genres) for title, genres in films],
        min_rating=min_rating,
        min_user=min_user,
        min_item=min_item,
        seed=seed,
    )


def _synthetic(
    root: str | Path | None = None,
    *,
    n_users: int = 300,
    n_items: int = 60,
    length: int = 12,
    follow: float = 0.7,
    seed: int = 0,
) -> SequenceData:
    """Makes up lines of products whose parts follow each other; `root` is not read.

    Each product is one of six parts of a line, and its words say which. After part p a user takes
    part p + 1 of the line (the first after the sixth) with the probability `follow`, and any
    product with equal probability otherwise. So no model has an HR@1 above
    ``follow + (1 - follow) / n_items`` but by chance, and one that knows the next part reaches it.
    """
    del root
    parts = ("first", "second", "third", "fourth", "fifth", "sixth")
    lines = n_items // len(parts)
    colours = ("Amber", "Cobalt", "Crimson", "Ivory", "Jade", "Scarlet", "Silver", "Violet")
    things = ("Clock", "Kettle", "Lamp", "Loom", "Radio", "Sledge", "Tent", "Wagon")
    most = len(colours) * len(things)
    if (
        n_items % len(parts)
        or not 1 <= lines <= most
        or n_users < 10
        or length < _LEAST_EVENTS
        or not 0.0 <= follow <= 1.0
    ):
        raise DataError(
            f"n_users={n_users}, n_items={n_items}, length={length}, follow={follow} came, "
            f"expected at least 10 users, a multiple of {len(parts)} items up to "
            f"{most * len(parts)}, a length of {_LEAST_EVENTS} or more and a share from 0 to 1: "
            "change these."
        )
    rng = np.random.default_rng(seed)
    taken_UL = rng.integers(n_items, size=(n_users, length))
    follows_UL = rng.random((n_users, length)) < follow
    for t in range(1, length):
        line_U, part_U = np.divmod(taken_UL[:, t - 1], len(parts))
        next_U = line_U * len(parts) + (part_U + 1) % len(parts)
        taken_UL[:, t] = np.where(follows_UL[:, t], next_U, taken_UL[:, t])
    words = {}
    for item in range(n_items):
        line, part = divmod(item, len(parts))
        thing = f"{colours[line % len(colours)]} {things[(line + line // 8) % len(things)]}"
        title = f"{thing}, {parts[part]} part"
        words[str(item)] = _Words(
            title,
            f"product is titled {title}, its brand is {thing.split()[0]}, its description is the "
            f"{parts[part]} of the {len(parts)} parts of a {thing.lower()}",
        )
    return _build(
        "synthetic",
        "product",
        np.repeat(np.arange(n_users), length).astype(str),
        taken_UL.ravel().astype(str),
        words,
        seed=seed,
    )


_LOADERS: Mapping[str, Callable[..., SequenceData]] = {
    "industrial": _industrial,
    "movielens": _movielens,
    "steam": _steam,
    "synthetic": _synthetic,
}


def _build(
    name: str,
    noun: str,
    users: NDArray[np.str_],
    items: NDArray[np.str_],
    words: Mapping[str, _Words],
    *,
    codes: NDArray[np.int8] | None = None,
    min_user: int = 3,
    min_item: int = 3,
    seed: int = 0,
) -> SequenceData:
    """Filters events, numbers users and items and splits.

    Args:
        name: Of the data.
        noun: What an item is called.
        users: External id per event, (n,); each user's events come oldest first.
        items: External id per event, (n,).
        words: Of every item, by external id.
        codes: Split code per event, (n,); None: whole users are split by the seed.
        min_user: Events that a user must have.
        min_item: Events that an item must have.
        seed: Of the split.
    """
    if min_user < _LEAST_EVENTS:
        raise DataError(
            f"min_user={min_user} came, expected {_LEAST_EVENTS} or more: a sequence needs a "
            "history, a target and what follows."
        )
    kept = k_core(users, items, min_user, min_item)
    if not kept.any():
        raise DataError(
            f"Of {users.size} events of {name!r} none is left after filtering (min_user="
            f"{min_user}, min_item={min_item}), expected at least one sequence: give more events, "
            "or lower min_item."
        )
    missing = sorted(set(items[kept].tolist()) - set(words))
    if missing:
        raise DataError(
            f"{len(missing)} items of {name!r} are in the sequences but not in the table of items "
            f"(such as {missing[0]!r}), expected words for every item: check which column is the "
            "item's id."
        )
    user_of, _ = _numbered(users[kept])
    item_of, item_ids = _numbered(items[kept])
    by_user = np.argsort(user_of, kind="stable")  # the order in time stays within the user
    ends = np.cumsum(np.bincount(user_of))[:-1]
    sequences = np.split(item_of[by_user], ends)
    if codes is None:
        code_of = _user_codes(len(sequences), seed)
        splits = [np.full(len(s), c, np.int8) for s, c in zip(sequences, code_of, strict=True)]
    else:
        splits = np.split(codes[kept][by_user], ends)
    for split in splits:
        split[0] = _ONLY_HISTORY
    return SequenceData(
        name,
        item_ids,
        tuple(words[item].title for item in item_ids),
        tuple(words[item].text for item in item_ids),
        noun,
        tuple(sequences),
        tuple(splits),
    )


def _numbered(ids: NDArray[np.str_]) -> tuple[IntArray, tuple[str, ...]]:
    """Returns an index per row and the ids by index, sorted by number where all are numbers."""
    unique, inverse = np.unique(ids, return_inverse=True)
    if all(one.isdecimal() and len(one) < 19 for one in unique.tolist()):
        rank = np.argsort(unique.astype(np.int64), kind="stable")
        return np.argsort(rank)[inverse], tuple(unique[rank].tolist())
    return inverse.astype(np.int64), tuple(unique.tolist())


def _user_codes(n_users: int, seed: int) -> NDArray[np.int8]:
    """Returns which part each user's sequence belongs to, (n_users,), 8:1:1."""
    until_train, until_valid = (round(n_users * share) for share in np.cumsum(_SHARES))
    codes = np.full(n_users, 2, np.int8)
    order = np.random.default_rng(seed).permutation(n_users)
    codes[order[:until_valid]] = 1
    codes[order[:until_train]] = 0
    return codes


def _first_of_pairs(users: NDArray[np.str_], items: NDArray[np.str_]) -> IntArray:
    """Returns the rows where a user has an item for the first time, in order."""
    user_of = np.unique(users, return_inverse=True)[1].astype(np.int64)
    unique_items, item_of = np.unique(items, return_inverse=True)
    return np.sort(np.unique(user_of * unique_items.size + item_of, return_index=True)[1])


def _days(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns a column of dates, or of text such as 2014-05-31, as days since 1970."""
    try:
        dates = column.cast(pa.date32()) if is_text(column) else column
        return np.asarray(dates.to_numpy().astype("datetime64[D]").astype(np.float64))
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"The column 'posted' holds something that is no date ({error}), expected dates such "
            "as 2014-05-31: mend or drop those rows."
        ) from error


def _dataset_texts(dataset: Dataset, noun: str) -> tuple[str, ...]:
    catalogue = dataset.catalogue
    rows = zip(catalogue.titles, catalogue.categories, catalogue.texts, strict=True)
    return tuple(
        _clause(
            noun,
            title,
            ("its categories are", _listed(categories)),
            ("its description is", _cut(text)),
        )
        for title, categories, text in rows
    )


def _product_text(title: str, brand: str, description: str) -> str:
    described = _cut(description)
    told = "" if described == _cut(title) else described
    return _clause("product", title, ("its brand is", brand), ("its description is", told))


def _game_text(title: str, genres: Sequence[str]) -> str:
    said = "its genre is" if len(genres) == 1 else "its genres are"
    return _clause("game", title, (said, _listed(genres)))


def _film_text(title: str, genres: Sequence[str]) -> str:
    named = re.fullmatch(r"(.*) \((\d{4})\)", title)
    bare, year = (named[1], named[2]) if named else (title, "")
    said = "its genre is" if len(genres) == 1 else "its genres are"
    # "Deer Hunter, The" reads as "The Deer Hunter".
    return _clause(
        "film",
        _ARTICLE_AT_END.sub(r"\2 \1\3", bare),
        ("it was released in", year),
        (said, _listed(genres)),
    )


def _clause(noun: str, title: str, *said: tuple[str, str]) -> str:
    """Returns "noun is titled ..., its x is ...", leaving out what is not known."""
    named = _clean(title)
    parts = [f"{noun} is titled {named}"] if named else []
    parts += [f"{verb} {_clean(value)}" for verb, value in said if _clean(value)]
    return ", ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _clean(text: str) -> str:
    """Returns text in one line, without HTML entities and tags."""
    return " ".join(re.sub(r"</?[a-zA-Z][^<>]*>", " ", html.unescape(text)).split())


def _cut(text: str) -> str:
    """Returns the first words of a text without a stop at the end."""
    return " ".join(_clean(text).split()[:_DESCRIPTION_WORDS]).rstrip(" .,;:")


def _whole(values: ArrayLike, dtype: type[np.signedinteger[Any]], what: str) -> NDArray[Any]:
    """Returns a read-only copy of whole numbers."""
    given = np.asarray(values)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise DataError(
            f"A {what} of shape {given.shape} and type {given.dtype} came, expected a flat array "
            "of whole numbers: map external ids to indices first."
        )
    copy = given.astype(dtype)
    copy.setflags(write=False)
    return copy


def _problem_of(sequence: IntArray, codes: NDArray[np.int8], n_items: int) -> str | None:
    """Returns what is wrong with a sequence, or None."""
    if len(sequence) < _LEAST_EVENTS:
        return (
            f"has {len(sequence)} events, expected {_LEAST_EVENTS} or more: leave that user out "
            "(load_sequences and sequences_of do)"
        )
    if sequence.min() < 0 or sequence.max() >= n_items:
        bad = int(sequence[(sequence < 0) | (sequence >= n_items)][0])
        return (
            f"has the unknown item {bad}, expected indices from 0 to {n_items - 1}: the sequences "
            "and the list of items must belong together"
        )
    if len(codes) != len(sequence):
        return f"has {len(sequence)} events but {len(codes)} split codes, expected one per event"
    if codes[0] != _ONLY_HISTORY or codes.min() < _ONLY_HISTORY or codes.max() >= len(_SPLITS):
        return (
            f"has split codes from {codes.min()} to {codes.max()} and {codes[0]} at the first "
            f"event, expected {_ONLY_HISTORY} to {len(_SPLITS) - 1} and {_ONLY_HISTORY} at the "
            "first, which has no history: correct these"
        )
    return None


def _bytes(array: NDArray[Any]) -> bytes:
    """Returns an array's bytes, the same on every machine."""
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
