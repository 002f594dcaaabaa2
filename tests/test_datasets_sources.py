"""Each source reads its forms, drops and counts what it must, and refuses what is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsim_env.datasets import Dataset, load
from recsim_env.errors import DataError, MissingDataError

TINY = {"min_user": 1, "min_item": 1}


def write(folder: Path, name: str, columns: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def ratings_by_title(data: Dataset) -> dict[tuple[str, str], float]:
    rows = data.interactions
    return {
        (data.user_ids[u], data.catalogue.titles[i]): float(r)
        for u, i, r in zip(rows.users, rows.items, rows.ratings, strict=True)
    }


@pytest.fixture
def steam(tmp_path: Path) -> Path:
    folder = tmp_path / "steam"
    write(
        folder,
        "steam200k_interactions.parquet",
        {
            "user_id": [7, 7, 7, 8, 8],
            "item_id": [1, 2, 3, 1, 2],
            "hours": [1.0, 10.0, 5.0, 100.0, None],
        },
    )
    write(
        folder,
        "steam200k_items.parquet",
        {
            "item_id": [1, 2, 3],
            "title": ["Zeno Clash", "Sam and Max 101", "Nobody Knows"],
            "genres": pa.array([["Action"], [], []], pa.list_(pa.string())),
        },
    )
    write(
        folder,
        "ucsd_games.parquet",
        {
            "title": ["Sam &amp; Max 101", "Zeno Clash®"],
            "genres": [["Adventure", "Indie"], ["Indie"]],
            "tags": [["Comedy"], ["Surreal"]],
            "developer": ["Telltale", None],
        },
    )
    return tmp_path


def test_steam_tables(steam: Path) -> None:
    data = load("steam", steam, **TINY)
    # Quantiles over all four plays [1, 5, 10, 100]: 1/8, 3/8, 5/8, 7/8; the 5 hours are dropped.
    assert ratings_by_title(data) == {
        ("7", "Zeno Clash"): 1.5,
        ("7", "Sam and Max 101"): 3.5,
        ("8", "Zeno Clash"): 4.5,
    }
    assert data.catalogue.categories == (("Action",), ("Adventure", "Indie"))
    assert data.catalogue.texts[1] == "Tags: Comedy. Developer: Telltale."
    stats = data.statistics
    assert stats["purchases_without_hours"] == 1
    assert stats["games_given_genres_by_title"] == 1
    assert stats["items_without_category"] == stats["rows_dropped_no_category"] == 1
    assert data.interactions.order is None
    assert set(load("steam", steam, levels=5, **TINY).interactions.ratings) <= {1, 2, 3, 4, 5}


def test_steam_kaggle_csv(tmp_path: Path, steam: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    (root / "steam-200k.csv").write_text(
        '7,"Zeno Clash",purchase,1.0,0\n'
        '7,"Zeno Clash",play,1.0,0\n'
        '7,"Sam and Max 101",play,10.0,0\n'
        "7,Nobody Knows,play,5.0,0\n"
        "8,Zeno Clash,play,100,0\n"
        "8,Zeno Clash,play,3,0\n"
    )
    with pytest.raises(MissingDataError, match="without genres beside it"):
        load("steam", root, **TINY)
    shutil.copy(steam / "steam" / "ucsd_games.parquet", root)
    data = load("steam", root, **TINY)
    assert ratings_by_title(data) == {
        ("7", "Zeno Clash"): 1.5,
        ("7", "Sam and Max 101"): 3.5,
        ("8", "Zeno Clash"): 4.5,
    }
    assert data.statistics["repeated_plays_merged"] == 1
    (root / "steam-200k.csv").write_text("7,Zeno Clash\n")
    with pytest.raises(DataError, match="five columns"):
        load("steam", root, **TINY)


@pytest.fixture
def billp(tmp_path: Path) -> Path:
    titles = ["Alpha", "Beta", "Gamma"]
    maps = {
        "id2item_dict": {str(i): title for i, title in enumerate(titles)},
        "item2id_dict": {title: i for i, title in enumerate(titles)},
    }
    (tmp_path / "datamaps.json").write_text(json.dumps(maps))
    genres = {"Alpha": "['Action', 'Free to Play']", "Beta": ["RPG"], "Else": "['Indie']"}
    (tmp_path / "list_genre.json").write_text(json.dumps(genres))
    np.save(tmp_path / "steam_train.npy", np.array([[0.5, 2.0, 3.0], [4.0, 6.0, 1.0]]))
    return tmp_path


def test_billp_simulator(billp: Path) -> None:
    data = load("steam", billp, **TINY)
    assert ratings_by_title(data) == {
        ("0", "Alpha"): 1.0,
        ("0", "Beta"): 2.0,
        ("1", "Alpha"): 4.0,
        ("1", "Beta"): 5.0,
    }
    assert data.catalogue.categories == (("Action", "Free to Play"), ("RPG",))
    assert data.statistics["ratings_clipped"] == 2
    drawn = [load("steam", billp, cells_per_user=2, seed=s, **TINY).fingerprint for s in range(6)]
    assert drawn[0] == load("steam", billp, cells_per_user=2, **TINY).fingerprint
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("datamaps.json", b"{", "no JSON"),
        ("datamaps.json", b'{"id2items": {}}', "'id2item_dict'"),
        ("datamaps.json", b'{"id2item_dict": {"5": "Far"}}', "up to index 5"),
        ("list_genre.json", b"[]", "expected an object"),
        ("steam_train.npy", b"\x93NUMPY", "no numpy array"),
    ],
)
def test_broken_billp_files(billp: Path, file: str, content: bytes, message: str) -> None:
    (billp / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load("steam", billp, **TINY)
    assert "\n" not in str(caught.value)


def test_nan_rewards_are_refused(billp: Path) -> None:
    np.save(billp / "steam_train.npy", np.full((2, 3), np.nan))
    with pytest.raises(DataError, match="NaN or infinite"):
        load("steam", billp, **TINY)


def test_pickled_matrix_is_never_read(billp: Path) -> None:
    np.save(billp / "steam_train.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="no numpy array"):
        load("steam", billp, **TINY)


def test_steam_faults_give_one_sentence(steam: Path, tmp_path: Path) -> None:
    folder = steam / "steam"
    with pytest.raises(MissingDataError, match=r"No data for 'steam'.*steam-200k\.csv"):
        load("steam", tmp_path, form="kaggle")
    with pytest.raises(DataError, match="did you mean 'kaggle'"):
        load("steam", steam, form="kagle")
    with pytest.raises(DataError, match=r"none is left after filtering.*min_user=50"):
        load("steam", steam, min_user=50)
    table = write(folder, "steam200k_interactions.parquet", {"user_id": [1], "item": [1]})
    with pytest.raises(DataError, match=r"no column 'item_id'.*did you mean 'item'"):
        load("steam", steam, **TINY)
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(DataError, match="cut short"):
        load("steam", steam, **TINY)


@pytest.fixture
def amazon(tmp_path: Path) -> Path:
    folder = tmp_path / "amazon_book"
    write(
        folder,
        "billp_catalogue.parquet",
        {
            "item_id": list(range(8)),
            "title": [f"Book {i}" for i in range(8)],
            "genres": [["Fiction", "Crime"]] * 8,
        },
    )
    write(
        folder,
        "billp_test_interactions.parquet",
        {
            "user_id": [1] * 5 + [2] * 4,
            "item_id": [0, 1, 2, 3, 0, 4, 5, 6, 7],
            "order": [0, 1, 2, 3, 4, 0, 1, 2, 3],
        },
    )
    return tmp_path


def test_amazon_contrasts_liked_with_drawn_books(amazon: Path) -> None:
    data = load("amazon", amazon, **TINY)
    rows = data.interactions
    assert rows.order is not None
    liked = rows.ratings == 5
    assert (rows.ratings[~liked] == 1).all()
    assert (rows.order[~liked] == -1).all()
    assert liked.sum() == (~liked).sum() == 8
    for user in range(2):
        own = rows.users == user
        assert not set(rows.items[own & liked]) & set(rows.items[own & ~liked])
    # Book 0 was read first and again at the end: it counts once, at its last place.
    first = liked & (rows.users == 0)
    sequence = rows.items[first][np.argsort(rows.order[first])]
    assert [data.catalogue.item_ids[i] for i in sequence] == ["1", "2", "3", "0"]
    assert data.statistics["repeated_rows_merged"] == 1


def test_amazon_parameters(amazon: Path) -> None:
    few = load("amazon", amazon, negatives_per_positive=0.5, **TINY).interactions
    assert (few.ratings == 1).sum() == 4
    assert load("amazon", amazon, max_items=6, **TINY).n_items == 6
    seeds = {
        load("amazon", amazon, negatives_per_positive=0.5, seed=s, **TINY).fingerprint
        for s in range(5)
    }
    assert len(seeds) > 1
    with pytest.raises(DataError, match="negatives_per_positive=0"):
        load("amazon", amazon, negatives_per_positive=0)
    with pytest.raises(DataError, match=r"none is left"):
        load("amazon", amazon, min_item=3)


@pytest.fixture
def coat(tmp_path: Path) -> Path:
    folder = tmp_path / "coat"
    write(
        folder,
        "ratings.parquet",
        {
            "user_id": [0, 0, 0, 1],
            "item_id": [0, 1, 0, 1],
            "rating": [2, 5, 3, 1],
            "split": ["train", "train", "test", "test"],
        },
    )
    write(folder, "users.parquet", {"user_id": [0, 1], "multi_hot": [[1, 0], [0, 1]]})
    write(
        folder,
        "items.parquet",
        {
            "item_id": [0, 1],
            "gender": ["men", "women"],
            "jackettype": ["bomber", "other"],
            "color": ["other", "navy"],
            "onfrontpage": ["yes", "no"],
        },
    )
    names = {"user_features": ["gender:men", "gender:women"]}
    (folder / "feature_names.json").write_text(json.dumps(names))
    return tmp_path


def test_coat(coat: Path) -> None:
    data = load("coat", coat)
    assert data.catalogue.titles == (
        "Bomber coat for men (no. 0)",
        "Navy coat for women (no. 1)",
    )
    assert data.catalogue.categories == (("bomber", "color: other"), ("jackettype: other", "navy"))
    assert ratings_by_title(data)["0", "Bomber coat for men (no. 0)"] == 2.5
    assert data.user_features is not None
    assert data.user_features.tolist() == [[1, 0], [0, 1]]
    with_gender = load("coat", coat, category_features=("gender",), splits=("train",))
    assert with_gender.catalogue.categories == (("men",), ("women",))
    assert with_gender.n_users == 1
    with pytest.raises(DataError, match="did you mean 'color'"):
        load("coat", coat, category_features=("colour",))
    names = {"user_features": ["gender:men"]}
    (coat / "coat" / "feature_names.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match="must belong together"):
        load("coat", coat)


def test_movielens(tmp_path: Path) -> None:
    folder = tmp_path / "movielens"
    write(
        folder,
        "ml100k_ratings.parquet",
        {
            "user_id": [10, 10, 9],
            "item_id": [2, 1, 1],
            "rating": [4, 2, 5],
            "timestamp": [20, 10, 5],
        },
    )
    write(
        folder,
        "ml100k_items.parquet",
        {
            "item_id": [1, 2],
            "title": ["Toy Story", "Heat"],
            "year": [1995, None],
            "genres": [["Comedy", "unknown"], ["Crime"]],
        },
    )
    write(
        folder,
        "ml100k_users.parquet",
        {"user_id": [9, 10], "age": [17, 56], "gender": ["F", "M"], "occupation": ["a", "b"]},
    )
    data = load("movielens", tmp_path, **TINY)
    assert data.user_ids == ("9", "10")
    assert data.catalogue.titles == ("Toy Story (1995)", "Heat")
    assert data.catalogue.categories == (("Comedy",), ("Crime",))
    rows = data.interactions
    assert rows.order is not None
    placed = dict(
        zip(zip(rows.users.tolist(), rows.items.tolist(), strict=True), rows.order, strict=True)
    )
    assert placed == {(1, 1): 1, (1, 0): 0, (0, 0): 0}
    assert data.user_features is not None
    own = {data.user_feature_names[j] for j in np.flatnonzero(data.user_features[0])}
    assert own == {"age:under 18", "gender:F", "occupation:a"}


@pytest.mark.parametrize("name", ["amazon", "coat", "movielens", "steam"])
def test_no_data_says_where_it_looked_and_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"were found in.*put the files there.*ILREC_DATA"):
        load(name, tmp_path)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "users", "items", "rows"),
    [
        ("steam", 2020, 1539, 41578),
        ("amazon", 1036, 3180, 146770),
        ("coat", 290, 300, 11234),
        ("movielens", 943, 1348, 99278),
    ],
)
def test_real_sizes(real_data: Path, name: str, users: int, items: int, rows: int) -> None:
    data = load(name, real_data)
    assert (data.n_users, data.n_items, len(data.interactions)) == (users, items, rows)
    assert data.fingerprint == load(name, real_data).fingerprint
    assert 1.0 <= data.interactions.ratings.min() < data.interactions.ratings.max() <= 5.0
