"""Sequences: who is cut, what is a target, what a model is shown, and in which words."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsim_env.datasets import load
from recsim_env.datasets.dataset import Catalogue, Dataset, Interactions
from recsim_env.errors import DataError, MissingDataError
from recsim_env.sequences import (
    Examples,
    SequenceData,
    load_sequences,
    sequence_names,
    sequences_of,
)

PAD = 5


def made(sequences: list[list[int]], splits: list[list[int]], n_items: int = PAD) -> SequenceData:
    return SequenceData(
        name="made",
        item_ids=tuple(f"i{i}" for i in range(n_items)),
        titles=tuple(f"Thing {i}" for i in range(n_items)),
        texts=tuple(f"thing is titled Thing {i}" for i in range(n_items)),
        noun="thing",
        sequences=tuple(np.array(s) for s in sequences),
        splits=tuple(np.array(s, np.int8) for s in splits),
    )


def two_users() -> SequenceData:
    return made([[3, 1, 4, 1], [0, 2, 4]], [[-1, 0, 0, 1], [-1, 0, 2]])


def write(folder: Path, name: str, columns: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


def test_examples_by_hand() -> None:
    train = two_users().examples("train", length=2)
    assert train.histories.tolist() == [[PAD, 3], [3, 1], [PAD, 0]]
    assert train.targets.tolist() == [1, 4, 2]
    assert train.next_histories.tolist() == [[3, 1], [1, 4], [0, 2]]
    assert train.users.tolist() == [0, 0, 1]
    # The last train target of a user ends, also where a later event belongs to another part.
    assert train.ends.tolist() == [False, True, True]
    valid = two_users().examples("valid", length=2)
    assert (valid.histories.tolist(), valid.targets.tolist()) == ([[1, 4]], [1])
    assert valid.ends.tolist() == [True]
    test = two_users().examples("test", length=4)
    assert test.histories.tolist() == [[PAD, PAD, 0, 2]]
    assert test.next_histories.tolist() == [[PAD, 0, 2, 4]]


@st.composite
def some_data(draw: st.DrawFn) -> SequenceData:
    sequences = draw(
        st.lists(st.lists(st.integers(0, PAD - 1), min_size=3, max_size=9), min_size=1, max_size=5)
    )
    codes = [
        [-1, *draw(st.lists(st.integers(-1, 2), min_size=len(s) - 1, max_size=len(s) - 1))]
        for s in sequences
    ]
    return made(sequences, codes)


@settings(max_examples=60, deadline=None)
@given(some_data(), st.integers(1, 12))
def test_examples_are_those_of_a_plain_loop(data: SequenceData, length: int) -> None:
    for code, split in enumerate(("train", "valid", "test")):
        rows = [
            (u, t)
            for u, codes in enumerate(data.splits)
            for t in range(len(codes))
            if codes[t] == code
        ]
        examples = data.examples(split, length)  # type: ignore[arg-type]
        assert len(examples) == len(rows)
        for row, (u, t) in enumerate(rows):
            items = data.sequences[u]
            shown = items[max(0, t - length) : t].tolist()
            following = items[max(0, t + 1 - length) : t + 1].tolist()
            assert examples.histories[row].tolist() == [PAD] * (length - len(shown)) + shown
            assert examples.next_histories[row].tolist() == (
                [PAD] * (length - len(following)) + following
            )
            assert (examples.users[row], examples.targets[row]) == (u, items[t])
            assert examples.ends[row] == ((u, t) == max(r for r in rows if r[0] == u))


def test_a_part_without_targets_is_empty() -> None:
    empty = made([[0, 1, 2]], [[-1, 0, 0]]).examples("test")
    assert len(empty) == 0
    assert empty.histories.shape == (0, 10)
    assert len(empty.take([])) == 0


def test_take_and_fingerprints() -> None:
    train = two_users().examples("train", 2)
    assert train.take([2, 0]).targets.tolist() == [2, 1]
    assert train.take(np.array([False, True, True])).users.tolist() == [0, 1]
    assert train.take(slice(0, 1)).histories.tolist() == [[PAD, 3]]
    assert train.fingerprint == two_users().examples("train", 2).fingerprint
    others = [
        train.take([0, 2, 1]),
        two_users().examples("train", 3),
        replace(train, ends=~train.ends),
        replace(train, users=train.users + 1),
    ]
    assert train.fingerprint not in {other.fingerprint for other in others}

    data = two_users()
    assert data.fingerprint == two_users().fingerprint
    changed = [
        replace(data, noun="object"),
        replace(data, texts=("other", *data.texts[1:])),
        replace(data, sequences=(data.sequences[0], np.array([0, 2, 3]))),
        replace(data, splits=(data.splits[0], np.array([-1, 0, 1]))),
        made([[3, 1, 4], [1, 0, 2, 4]], [[-1, 0, 0], [-1, 0, 0, 1]]),
    ]
    assert data.fingerprint not in {other.fingerprint for other in changed}


def test_reprs_show_sizes() -> None:
    assert repr(two_users()) == (
        "SequenceData('made', n_users=2, n_items=5, n_events=7, examples: train=3, valid=1, test=1)"
    )
    assert repr(two_users().examples("train", 2)) == "Examples(m=3, length=2, n_items=5, users=2)"


@pytest.mark.parametrize(
    ("sequence", "codes", "message"),
    [
        ([], [], "user 1 has 0 events"),
        ([1, 2], [-1, 0], "user 1 has 2 events"),
        ([1, 2, 5], [-1, 0, 0], "user 1 has the unknown item 5"),
        ([1, -1, 2], [-1, 0, 0], "user 1 has the unknown item -1"),
        ([1, 2, 3], [-1, 0], "3 events but 2 split codes"),
        ([1, 2, 3], [0, 0, 0], "0 at the first event"),
        ([1, 2, 3], [-1, 0, 3], "split codes from -1 to 3"),
        ([0.5, 2.0, 3.0], [-1, 0, 0], "whole numbers"),
    ],
)
def test_bad_sequences_are_refused(sequence: list[float], codes: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made([[0, 1, 2], sequence], [[-1, 0, 0], codes])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titles": ("a",)}, "'titles': 1"),
        ({"item_ids": ("a", "a", "b", "c", "d")}, "1 item ids came more than once"),
        ({"texts": ("a", "b", " ", "c", "d")}, "the text of item 2 is empty"),
        ({"noun": ""}, "the noun is empty"),
        ({"sequences": ()}, "0 sequences came with 2"),
    ],
)
def test_bad_items_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(two_users(), **changes)


def test_sequences_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        two_users().sequences[0][0] = 2


def test_bad_questions_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'train'"):
        two_users().examples("tran")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="length=0"):
        two_users().examples("train", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.array([1, PAD, 2])}, "Row 1 has a target that is no item"),
        (
            {"histories": np.array([[PAD, PAD], [3, 1], [PAD, 0]])},
            "Row 0 has a history of padding only",
        ),
        (
            {"histories": np.array([[PAD, 3], [3, PAD], [PAD, 0]])},
            "Row 1 has a history of padding only or padding on its right",
        ),
        ({"histories": np.array([[PAD, 3], [6, 1], [PAD, 0]])}, "Row 1 .* neither an item"),
        ({"next_histories": np.array([[3, 1], [1, 4], [0, 1]])}, "Row 2 .* followed by the target"),
        ({"histories": np.array([[PAD, 3], [3, 1]])}, r"histories of shape \(2, 2\)"),
        ({"targets": np.array([1.0, 4.0, 2.0])}, "targets of shape .* float64"),
        ({"ends": np.array([0, 1, 1])}, "ends of shape .* int64 .* expected bool"),
    ],
)
def test_bad_examples_are_refused(changes: dict[str, Any], message: str) -> None:
    train = two_users().examples("train", 2)
    with pytest.raises(DataError, match=message):
        replace(train, **changes)


def test_padding_between_items_is_refused() -> None:
    with pytest.raises(DataError, match="padding between items"):
        Examples(
            histories=np.array([[1, PAD, 2]]),
            targets=np.array([3]),
            next_histories=np.array([[PAD, 2, 3]]),
            users=np.array([0]),
            ends=np.array([True]),
            n_items=PAD,
        )


def table(order: bool = True) -> Dataset:
    """Forty users who took items u, u + 1, ... of ten, given in shuffled rows."""
    users = np.repeat(np.arange(40), 4)
    place = np.tile(np.arange(4), 40)
    rows = np.random.default_rng(0).permutation(users.size)
    return Dataset(
        name="table",
        catalogue=Catalogue(
            item_ids=tuple(f"n{i}" for i in range(12)),
            titles=tuple(f"Title {i}" for i in range(12)),
            categories=(("red", "round"),) * 12,
            texts=("It  rolls.",) + ("",) * 11,
        ),
        interactions=Interactions(
            users=users[rows],
            items=((users + place) % 10)[rows],
            ratings=np.where(place == 3, 2.0, 4.0)[rows],
            order=np.where(users == 1, -1, place)[rows] if order else None,
        ),
        user_ids=tuple(map(str, range(40))),
    )


def test_sequences_of_a_dataset() -> None:
    data = sequences_of(table(), noun="ball")
    assert data.n_users == 39  # the rows of user 1 are no events
    assert data.item_ids == tuple(f"n{i}" for i in range(10))
    assert data.sequences[0].tolist() == [0, 1, 2, 3]
    assert data.texts[0] == (
        "ball is titled Title 0, its categories are red and round, its description is It rolls"
    )
    assert data.texts[1] == "ball is titled Title 1, its categories are red and round"
    liked = sequences_of(table(), min_rating=3.0, texts=[f"text {i}" for i in range(12)])
    assert liked.sequences[0].tolist() == [0, 1, 2]
    assert liked.texts[1] == "text 1"


def test_users_are_split_whole_8_to_1_to_1() -> None:
    data = sequences_of(table(), seed=3)
    codes = np.array([set(split[1:].tolist()) for split in data.splits])
    assert all(len(code) == 1 for code in codes)
    counts = [sum(code == {c} for code in codes) for c in range(3)]
    assert counts == [31, 4, 4]  # of 39
    assert sequences_of(table(), seed=3).fingerprint == data.fingerprint
    assert sequences_of(table(), seed=4).fingerprint != data.fingerprint


def test_filters_repeat_until_nothing_changes() -> None:
    # Item 8 goes (2 events), then user 2 (2 left), then item 7, which only he made frequent.
    rows = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2)]
    rows += [(0, 7), (1, 7), (2, 7), (2, 8), (2, 8), (2, 0)]
    users, items = (np.array(column) for column in zip(*rows, strict=True))
    dataset = Dataset(
        name="chain",
        catalogue=Catalogue(
            tuple(map(str, range(9))), tuple("abcdefghi"), (("x",),) * 9, ("",) * 9
        ),
        interactions=Interactions(users, items, np.full(users.size, 3.0), np.arange(users.size)),
        user_ids=("a", "b", "c", "d"),
    )
    data = sequences_of(dataset)
    assert data.item_ids == ("0", "1", "2")
    assert [s.tolist() for s in data.sequences] == [[0, 1, 2]] * 3


def test_bad_datasets_are_refused() -> None:
    with pytest.raises(DataError, match="without an order in time"):
        sequences_of(table(order=False))
    with pytest.raises(DataError, match="2 texts came for 12 items"):
        sequences_of(table(), texts=["a", "b"])
    with pytest.raises(DataError, match=r"Of 156 events of 'table' none is left .*min_item=99"):
        sequences_of(table(), min_item=99)
    with pytest.raises(DataError, match="min_user=2 came, expected 3 or more"):
        sequences_of(table(), min_user=2)


def test_names_and_options() -> None:
    assert sequence_names() == ["industrial", "movielens", "steam", "synthetic"]
    with pytest.raises(DataError, match="did you mean 'synthetic'"):
        load_sequences("syntetic")
    with pytest.raises(DataError, match="did you mean 'n_users'"):
        load_sequences("synthetic", n_user=3)
    with pytest.raises(DataError, match="seed='1' of 'synthetic' came, expected int"):
        load_sequences("synthetic", seed="1")
    with pytest.raises(DataError, match="a multiple of 6 items"):
        load_sequences("synthetic", n_items=50)
    with pytest.raises(DataError, match="'reviews'"):
        load_sequences("steam", form="review")


def test_synthetic_can_be_learned_and_its_best_is_known() -> None:
    data = load_sequences("synthetic", n_users=600, follow=0.6, seed=1)
    assert (data.n_users, data.n_items) == (600, 60)
    assert len(set(data.titles)) == len(set(data.texts)) == 60
    test = data.examples("test")
    last = test.histories[:, -1]
    following = last // 6 * 6 + (last % 6 + 1) % 6
    expected = 0.6 + 0.4 / 60
    assert abs((following == test.targets).mean() - expected) < 4 * np.sqrt(0.24 / len(test))
    word = {"first": "second", "sixth": "first"}
    for item in (0, 5):
        here, there = (data.titles[i].split(", ") for i in (item, item // 6 * 6 + (item + 1) % 6))
        assert here[0] == there[0]
        assert there[1].split()[0] == word[here[1].split()[0]]
    assert (
        load_sequences("synthetic", seed=2).fingerprint != load_sequences("synthetic").fingerprint
    )
    most = load_sequences("synthetic", n_items=384, n_users=400)
    assert len(set(most.titles)) == most.n_items


@pytest.fixture
def industrial(tmp_path: Path) -> Path:
    folder = tmp_path / "amazon_industrial"
    write(
        folder,
        "items.parquet",
        {
            "item_id": [10, 9, 11, 12],
            "title": ["Bolts &amp; Nuts", "Glue", "Tape", "Rarely taken"],
            "description": ["<p>Steel\nbolts.</p> " + "word " * 70, "Glue", "", ""],
            "brand": ["Acme", "", "Sticky", "None"],
        },
    )
    splits = ["first_event", "before_valid", "valid", "test"]
    # User 2 is given newest first; 10's oldest known event had a history that the source cut off.
    write(
        folder,
        "sequences.parquet",
        {
            "user_id": ["2"] * 4 + ["10"] * 5 + ["3"] * 3,
            "order": [3, 2, 1, 0, 0, 1, 2, 3, 4, 0, 1, 2],
            "item_id": [9, 10, 10, 11, 9, 10, 12, 11, 9, 11, 10, 9],
            "split": [*reversed(splits), "before_valid", "before_valid", *splits[1:], *splits[:3]],
        },
    )
    return tmp_path


def test_industrial(industrial: Path) -> None:
    data = load_sequences("industrial", industrial)
    assert data.item_ids == ("9", "10", "11")
    # Users by their number; item 12, which only one took, is gone.
    assert [s.tolist() for s in data.sequences] == [[2, 1, 1, 0], [2, 1, 0], [0, 1, 2, 0]]
    assert [s.tolist() for s in data.splits] == [[-1, 0, 1, 2], [-1, 0, 1], [-1, 0, 1, 2]]
    assert data.titles[1] == "Bolts & Nuts"
    glue, bolts, tape = data.texts
    assert glue == "product is titled Glue"
    assert bolts == (
        "product is titled Bolts & Nuts, its brand is Acme, its description is Steel bolts. "
        + " ".join(["word"] * 58)
    )
    assert tape == "product is titled Tape, its brand is Sticky"
    assert data.noun == "product"


def test_industrial_refuses_what_does_not_fit(industrial: Path, tmp_path: Path) -> None:
    folder = industrial / "amazon_industrial"
    rows = pq.read_table(folder / "sequences.parquet").to_pydict()
    write(folder, "sequences.parquet", {**rows, "split": ["before_vali", *rows["split"][1:]]})
    with pytest.raises(DataError, match="did you mean 'before_valid'"):
        load_sequences("industrial", industrial)
    write(
        folder,
        "sequences.parquet",
        {**rows, "item_id": [7 if i == 9 else i for i in rows["item_id"]]},
    )
    with pytest.raises(DataError, match=r"1 items of 'industrial' .*such as '7'"):
        load_sequences("industrial", industrial)
    (folder / "items.parquet").unlink()
    with pytest.raises(MissingDataError, match=r"items\.parquet and sequences\.parquet"):
        load_sequences("industrial", tmp_path)


@pytest.fixture
def steam(tmp_path: Path) -> Path:
    folder = tmp_path / "steam"
    # Each user has the games 1, 2, 3 with the times 5, 4, 6 (row or day) and once more game 3 at 9.
    games, when = [1, 2, 3, 3], [5, 4, 6, 9]
    write(
        folder,
        "steam200k_events.parquet",
        {
            "user_id": [7, 8, 9] + [7] * 4 + [8] * 4 + [9] * 4,
            "item_id": [3, 3, 3, *games * 3],
            "behavior": ["purchase"] * 3 + ["play"] * 12,
            "source_row": [0, 1, 2, *when * 3],
        },
    )
    words = {
        "item_id": [1, 2, 3, 4],
        "title": ["Zeno Clash", "Half-Life", "Portal 2", "Spore"],
        "genres": pa.array(
            [["Action"], [], ["Puzzle", "Indie", "Co-op"], []], pa.list_(pa.string())
        ),
    }
    write(folder, "steam200k_items.parquet", words)
    dates = [dt.date(2014, 1, day) for day in when]
    write(
        folder,
        "ucsd_reviews_interactions.parquet",
        {
            "user_id": [7] * 5 + [8] * 4 + [9] * 4,
            "item_id": [4, *games * 3],
            "posted": [None, *dates * 3],
        },
    )
    write(folder, "ucsd_reviews_items.parquet", words)
    return tmp_path


@pytest.mark.parametrize("form", ["plays", "reviews"])
def test_steam(steam: Path, form: str) -> None:
    data = load_sequences("steam", steam, form=form)
    assert data.item_ids == ("1", "2", "3")
    assert [s.tolist() for s in data.sequences] == [[1, 0, 2]] * 3
    assert data.texts == (
        "game is titled Zeno Clash, its genre is Action",
        "game is titled Half-Life",
        "game is titled Portal 2, its genres are Puzzle, Indie and Co-op",
    )


def test_steam_reviews_without_title_go_out_and_bad_dates_are_refused(steam: Path) -> None:
    folder = steam / "steam"
    rows = pq.read_table(folder / "ucsd_reviews_interactions.parquet").to_pydict()
    words = pq.read_table(folder / "ucsd_reviews_items.parquet").to_pydict()
    write(folder, "ucsd_reviews_items.parquet", {**words, "title": [None, *words["title"][1:]]})
    with pytest.raises(DataError, match="Of 6 events of 'steam' none is left"):
        load_sequences("steam", steam, form="reviews")
    write(folder, "ucsd_reviews_items.parquet", words)
    spelled = [None if day is None else day.isoformat() for day in rows["posted"]]
    write(folder, "ucsd_reviews_interactions.parquet", {**rows, "posted": spelled})
    assert load_sequences("steam", steam, form="reviews").n_users == 3
    write(folder, "ucsd_reviews_interactions.parquet", {**rows, "posted": ["May"] * 13})
    with pytest.raises(DataError, match="no date"):
        load_sequences("steam", steam, form="reviews")


def test_movielens(tmp_path: Path) -> None:
    folder = tmp_path / "movielens"
    users, items = np.repeat([1, 2, 3], 4), np.tile([1, 2, 3, 4], 3)
    write(
        folder,
        "ml100k_ratings.parquet",
        {
            "user_id": users,
            "item_id": items,
            "rating": np.tile([5, 4, 3, 1], 3),
            "timestamp": np.tile([30, 10, 30, 20], 3),
        },
    )
    write(
        folder,
        "ml100k_items.parquet",
        {
            "item_id": [1, 2, 3, 4],
            "title": ["Deer Hunter, The", "Big Blue, The (Grand bleu, Le)", "Hi, Mom", "Alien"],
            "year": [1978, 1988, None, 1979],
            "genres": [["Drama", "War"], ["Drama"], ["Comedy"], ["Horror"]],
        },
    )
    write(
        folder,
        "ml100k_users.parquet",
        {"user_id": [1, 2, 3], "age": [20, 30, 40], "gender": ["F"] * 3, "occupation": ["x"] * 3},
    )
    data = load_sequences("movielens", tmp_path)
    assert data.sequences[0].tolist() == [1, 3, 0, 2]  # equal times as in the file
    assert data.texts == (
        "film is titled The Deer Hunter, it was released in 1978, its genres are Drama and War",
        "film is titled The Big Blue (Grand bleu, Le), it was released in 1988, its genre is Drama",
        "film is titled Hi, Mom, its genre is Comedy",
        "film is titled Alien, it was released in 1979, its genre is Horror",
    )
    liked = load_sequences("movielens", tmp_path, min_rating=3)
    assert liked.sequences[0].tolist() == [1, 0, 2]


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "options", "items", "users", "events", "train", "valid", "test"),
    [
        ("industrial", {}, 2635, 3278, 21273, 9371, 4295, 4329),
        ("steam", {"form": "plays"}, 2070, 3443, 59252, 44824, 5479, 5506),
        ("steam", {}, 831, 4945, 21262, 13094, 1619, 1604),
        ("movielens", {}, 1472, 943, 99714, 77471, 10506, 10794),
    ],
)
def test_real_sizes(
    real_data: Path,
    name: str,
    options: dict[str, Any],
    items: int,
    users: int,
    events: int,
    train: int,
    valid: int,
    test: int,
) -> None:
    data = load_sequences(name, real_data, **options)
    assert (data.n_items, data.n_users) == (items, users)
    assert sum(map(len, data.sequences)) == events
    sizes = [len(data.examples(split)) for split in ("train", "valid", "test")]
    assert sizes == [train, valid, test]
    assert np.bincount(np.concatenate(data.sequences)).min() >= 3
    longest = max(len(text.split()) for text in data.texts)
    assert longest < 120
    assert all(text.startswith(f"{data.noun} is titled ") for text in data.texts)


@pytest.mark.realdata
def test_industrial_windows_are_those_of_the_source(real_data: Path) -> None:
    """Unfiltered rows of the source's own windows come back, but for the items filtered out."""
    data = load_sequences("industrial", real_data)
    place = {item_id: index for index, item_id in enumerate(data.item_ids)}
    windows = pq.read_table(
        real_data / "amazon_industrial" / "windows_valid_test.parquet"
    ).to_pylist()
    theirs: dict[str, list[tuple[tuple[int, ...], int]]] = {"valid": [], "test": []}
    for row in windows:
        items = [place.get(str(i), -1) for i in [*row["history_item_ids"], row["next_item_id"]]]
        if min(items) >= 0:
            theirs[row["split"]].append((tuple(items[:-1]), items[-1]))
    for split in ("valid", "test"):
        examples = data.examples(split)  # type: ignore[arg-type]
        ours = {
            (tuple(h[h < data.n_items].tolist()), int(target))
            for h, target in zip(examples.histories, examples.targets, strict=True)
        }
        found = [window in ours for window in theirs[split]]
        # A full window of ten can be longer here, and users who went out are missing.
        assert np.mean(found) > 0.98
        assert len(found) > 2000


@pytest.mark.realdata
def test_datasets_by_name_have_sequences_too(real_data: Path) -> None:
    books = sequences_of(load("amazon", real_data), noun="book", min_rating=5.0)
    assert books.n_users > 900
    assert books.texts[0].startswith("book is titled ")
