"""The frozen objects check themselves, and come back from disk as they went."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsim_env.datasets import (
    Catalogue,
    Dataset,
    Interactions,
    find_root,
    load,
    names,
    normalise_title,
    quantile_ratings,
)
from recsim_env.datasets.ratings import guess_scale, rescale
from recsim_env.errors import ArtefactError, DataError, MissingDataError


def small(**changes: Any) -> Dataset:
    parts: dict[str, Any] = {
        "name": "small",
        "catalogue": Catalogue(
            ("a", "b", "c"), ("A", "Bé", "C|C"), (("x",), ("y", "x"), ("z",)), ("", "text", "")
        ),
        "interactions": Interactions(
            np.array([0, 0, 1]),
            np.array([0, 1, 2]),
            np.array([1.0, 2.5, 5.0]),
            np.array([0, 1, 0]),
        ),
        "user_ids": ("u", "v"),
        "user_features": np.array([[0.0, 1.0], [1.0, 0.0]]),
        "user_feature_names": ("f", "g"),
        "statistics": {"rows_dropped": 2, "nested": {"a": [1, 2.5]}},
    }
    return Dataset(**{**parts, **changes})


def test_shapes_types_and_category_matrix() -> None:
    data = small()
    assert (data.n_users, data.n_items, data.n_categories) == (2, 3, 3)
    assert data.catalogue.category_names == ("x", "y", "z")
    assert data.catalogue.category_matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert data.catalogue.category_matrix.dtype == np.float32
    rows = data.interactions
    assert (rows.users.dtype, rows.ratings.dtype) == (np.int32, np.float32)
    assert rows.order is not None
    assert rows.order.dtype == np.int64
    assert data.catalogue.index("b") == 1
    assert data.user_index("v") == 1
    assert repr(data) == (
        "Dataset('small', n_users=2, n_items=3, n_interactions=3, n_categories=3)"
    )


def test_everything_is_frozen_and_copied() -> None:
    ratings = np.array([1.0, 2.0])
    rows = Interactions(np.array([0, 1]), np.array([0, 0]), ratings)
    ratings[0] = 4.0
    assert rows.ratings[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        rows.ratings[0] = 2.0
    with pytest.raises(ValueError, match="read-only"):
        small().catalogue.category_matrix[0, 0] = 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([1.0, float("nan")], r"1 ratings are no numbers from 1 to 5 \(row 1 has nan\)"),
        ([0.5, 3.0], r"row 0 has 0.5"),
        ([3.0, 6.0], r"row 1 has 6"),
        ([3.0], r"same length"),
        (["3", "4"], r"expected numbers"),
    ],
)
def test_bad_ratings(ratings: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Interactions(np.array([0, 1]), np.array([0, 1]), np.array(ratings))


@pytest.mark.parametrize(
    ("users", "message"),
    [([-1, 0], "negative index -1"), ([0.5, 1.0], "no whole numbers"), ([[0], [1]], "shapes")],
)
def test_bad_indices(users: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Interactions(np.array(users), np.array([0, 1]), np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("a", "a"), ("A", "B"), (("x",), ("x",)), ("", "")), "'a' came 2 times"),
        ((("a", "b"), ("A", "B"), (("x",), ()), ("", "")), "without a category"),
        ((("a", "b"), ("A",), (("x",), ("y",)), ("", "")), "'titles': 1"),
        (((), (), (), ()), "at least one"),
    ],
)
def test_bad_catalogue(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Catalogue(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_ids": ("u",)}, "unknown user index 1"),
        ({"catalogue": Catalogue(("a",), ("A",), (("x",),), ("",))}, "unknown item index 2"),
        ({"user_ids": ("u", "u")}, "user id 'u' came 2 times"),
        ({"user_features": np.zeros((2, 1))}, r"expected finite numbers of shape \(2, 2\)"),
        ({"user_features": np.full((2, 2), np.nan)}, "finite"),
        ({"user_features": None}, "without user features"),
        ({"interactions": Interactions(np.array([]), np.array([]), np.array([]))}, "without inter"),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        small(**changes)


def test_unknown_ids_suggest_near_ones() -> None:
    with pytest.raises(DataError, match=r"item id 'q' is not in the dataset.*3 ids, such as a, b"):
        small().catalogue.index("q")
    with pytest.raises(DataError, match="user id 'w'"):
        small().user_index("w")


def test_fingerprint_follows_content_and_not_statistics() -> None:
    one = small().fingerprint
    assert one == small(statistics={}).fingerprint
    rows = small().interactions
    other = Interactions(rows.users, rows.items, rows.ratings + np.array([0, 0, -1]), rows.order)
    unordered = Interactions(rows.users, rows.items, rows.ratings)
    shown = {
        one,
        small(interactions=other).fingerprint,
        small(interactions=unordered).fingerprint,
        small(user_ids=("u", "w")).fingerprint,
        small(user_features=None, user_feature_names=()).fingerprint,
        small(is_synthetic=True).fingerprint,
        small(name="other").fingerprint,
    }
    assert len(shown) == 7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"user_features": None, "user_feature_names": ()},
        {"user_features": np.zeros((2, 0)), "user_feature_names": ()},
        {"is_synthetic": True, "interactions": Interactions([1], [2], [3.3])},
    ],
)
def test_save_and_load(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = small(**changes)
    back = Dataset.load(data.save(tmp_path / "saved"))
    assert back.fingerprint == data.fingerprint
    assert back.statistics == data.statistics
    assert back.catalogue.categories == data.catalogue.categories
    assert (back.interactions.order is None) == (data.interactions.order is None)
    assert (back.user_features is None) == (data.user_features is None)
    assert back.is_synthetic == data.is_synthetic


def test_load_refuses_a_broken_or_missing_folder(tmp_path: Path) -> None:
    folder = small().save(tmp_path / "saved")
    whole = (folder / "catalogue.parquet").read_bytes()
    (folder / "catalogue.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="broken"):
        Dataset.load(folder)
    with pytest.raises(MissingDataError, match="is not there"):
        Dataset.load(tmp_path / "nothing")


def test_saved_files_are_parquet_and_json(tmp_path: Path) -> None:
    folder = small().save(tmp_path / "saved")
    assert {p.suffix for p in folder.iterdir()} == {".parquet", ".json"}
    assert json.loads((folder / "dataset.json").read_text())["name"] == "small"


def test_table_says_sizes_and_statistics() -> None:
    text = small().table()
    assert "density                0.5000" in text
    assert "rows dropped           2" in text
    assert "nested                 a: 1, 2.5" in text
    assert small(is_synthetic=True).table().startswith("dataset                small (synthetic)")


def test_names_and_near_misses() -> None:
    assert names() == ["amazon", "coat", "movielens", "steam", "synthetic"]
    with pytest.raises(DataError, match="did you mean 'steam'"):
        load("stem")
    with pytest.raises(DataError, match="no option 'min_users': did you mean 'min_user'"):
        load("steam", min_users=3)


def test_find_root_argument_then_environment_then_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ILREC_DATA", str(tmp_path))
    assert find_root() == tmp_path
    (tmp_path / "given").mkdir()
    assert find_root(tmp_path / "given") == tmp_path / "given"
    with pytest.raises(MissingDataError, match=r"as given.*--data"):
        find_root(tmp_path / "nothing")
    monkeypatch.setenv("ILREC_DATA", str(tmp_path / "gone"))
    with pytest.raises(MissingDataError, match=r"gone \(ILREC_DATA\) is not there"):
        find_root()
    monkeypatch.delenv("ILREC_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MissingDataError, match=r"neither root nor ILREC_DATA.*set the env"):
        find_root()


def test_quantile_ratings_by_hand() -> None:
    # Of [1, 10, 10, 100]: q = 1/8, (1 + 3)/8, (1 + 3)/8, 7/8 and the rating is 1 + 4 q.
    assert quantile_ratings([1, 10, 10, 100]).tolist() == [1.5, 3.0, 3.0, 4.5]
    assert quantile_ratings([1, 2, 3, 4, 5], levels=5).tolist() == [1, 2, 3, 4, 5]
    assert quantile_ratings([1, 2, 3, 4], levels=2).tolist() == [1, 1, 5, 5]


@settings(max_examples=50, deadline=None)
@given(
    hours=st.lists(st.floats(0.1, 1e5), min_size=1, max_size=50),
    levels=st.sampled_from([None, 2, 5]),
)
def test_quantile_ratings_keep_order_and_do_not_see_the_logarithm(
    hours: list[float], levels: int | None
) -> None:
    ratings = quantile_ratings(hours, levels)
    assert ((ratings >= 1) & (ratings <= 5)).all()
    order = np.argsort(hours, kind="stable")
    assert (np.diff(ratings[order]) >= 0).all()
    doubled = quantile_ratings(np.asarray(hours) * 2, levels)  # a shift of the logarithm
    assert np.array_equal(ratings, doubled)
    if levels is None:
        assert ratings.mean() == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("bad", [[-1.0], [float("nan")], [float("inf")]])
def test_quantile_ratings_refuse_bad_amounts(bad: list[float]) -> None:
    with pytest.raises(DataError, match="0 or more"):
        quantile_ratings(bad)
    with pytest.raises(DataError, match="levels=1"):
        quantile_ratings([1.0], levels=1)


@pytest.mark.parametrize(
    ("ratings", "scale", "expected"),
    [
        ([1.0, 3.0, 5.0], (1.0, 5.0), [1, 3, 5]),
        ([0.0, 0.5, 1.0], (0.0, 1.0), [1, 3, 5]),
        ([-1.0, 0.0, 1.0], (-1.0, 1.0), [1, 3, 5]),
        ([1.0, 5.5, 10.0], (1.0, 10.0), [1, 3, 5]),
        ([0.0, 5.0, 10.0], (0.0, 10.0), [1, 3, 5]),
        ([0.5, 2.75, 5.0], (0.5, 5.0), [1, 3, 5]),
        ([0.0, 2.5, 5.0], (0.0, 5.0), [1, 3, 5]),
        ([0.0, 50.0, 100.0], (0.0, 100.0), [1, 3, 5]),
    ],
)
def test_scales_are_recognised_and_mapped(
    ratings: list[float], scale: tuple[float, float], expected: list[float]
) -> None:
    values = np.array(ratings)
    assert guess_scale(values) == scale
    assert rescale(values, scale).tolist() == pytest.approx(expected)


def test_unknown_scale_and_ratings_off_the_scale() -> None:
    with pytest.raises(DataError, match="from -7 to 3"):
        guess_scale(np.array([-7.0, 3.0]))
    with pytest.raises(DataError, match=r"row 1 has 8"):
        rescale(np.array([1.0, 8.0]), (1.0, 7.0))
    with pytest.raises(DataError, match="lowest < highest"):
        rescale(np.array([1.0]), (5.0, 1.0))


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Sam &amp; Max 101: Culture Shock", "sam and max 101 culture shock"),
        ("Tom Clancy's Rainbow Six® Vegas", "tom clancys rainbow six vegas"),
        ("Pokémon™ - Été", "pokemon ete"),
        ("  A_B--C  ", "a b c"),
    ],
)
def test_normalised_titles(title: str, expected: str) -> None:
    assert normalise_title(title) == expected
