"""A user's own tables: as they come, in files and frames, and with every kind of fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsim_env.datasets import Dataset, from_tables, names, save_custom
from recsim_env.errors import DataError, MissingDataError
from recsim_env.sequences import sequence_names

ROWS = {"user": ["u", "u", "v"], "item": [1, 2, 1], "rating": [1, 3, 5]}
ITEMS = {"item": [1, 2], "title": ["One", "Two"], "categories": ["a|b", "b"]}


def make(rows: Any = None, items: Any = None, name: str = "mine", **options: Any) -> Dataset:
    return from_tables(
        ROWS if rows is None else rows, ITEMS if items is None else items, name, **options
    )


def ratings_of(data: Dataset) -> dict[tuple[str, str], float]:
    rows = data.interactions
    return {
        (data.user_ids[u], data.catalogue.item_ids[i]): float(r)
        for u, i, r in zip(rows.users, rows.items, rows.ratings, strict=True)
    }


def test_smallest_tables() -> None:
    data = make()
    assert ratings_of(data) == {("u", "1"): 1.0, ("u", "2"): 3.0, ("v", "1"): 5.0}
    assert data.catalogue.titles == ("One", "Two")
    assert data.catalogue.categories == (("a", "b"), ("b",))
    assert data.interactions.order is None
    assert data.statistics["rating_mapping"] == "none (1 to 5 already)"
    assert not data.is_synthetic


def as_frame(table: dict[str, Any], tmp_path: Path) -> Any:
    del tmp_path
    return pd.DataFrame(table)


def as_csv(table: dict[str, Any], tmp_path: Path) -> Any:
    path = tmp_path / f"{len(table)}{'-'.join(table)}.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def as_parquet(table: dict[str, Any], tmp_path: Path) -> Any:
    path = tmp_path / f"{'-'.join(table)}.parquet"
    pq.write_table(pa.table(table), path)
    return str(path)


@pytest.mark.parametrize("form", [as_frame, as_csv, as_parquet])
def test_every_form_gives_the_same_dataset(form: Any, tmp_path: Path) -> None:
    data = make(form(ROWS, tmp_path), form(ITEMS, tmp_path))
    assert data.fingerprint == make().fingerprint


def test_ids_of_any_type_meet() -> None:
    rows = pd.DataFrame({"user": [1.0, 2.0], "item": [1.0, 2.0], "rating": [1, 5]})
    data = make(rows, {**ITEMS, "item": ["1", "2"]})
    assert data.user_ids == ("1", "2")
    assert data.catalogue.item_ids == ("1", "2")


def test_csv_ids_keep_leading_zeros(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("user,item,rating\n007,01,1\n7,01,5\n")
    items = tmp_path / "items.csv"
    items.write_text('item,title,categories\n01,"One, and only",a\n')
    data = make(rows, items)
    assert sorted(data.user_ids) == ["007", "7"]
    assert data.catalogue.titles == ("One, and only",)


def test_names_of_columns_are_found_or_given() -> None:
    rows = {"User ID": ["u", "v"], "ITEM-ID": [1, 2], "Stars": [2, 4], "TimeStamp": [1, 2]}
    items = {"Item_Id": [1, 2], "Name": ["One", "Two"], "Genres": [["a"], ["b", "c"]]}
    data = make(rows, items)
    assert data.n_categories == 3
    assert data.interactions.order is not None
    renamed = {"client": ["u", "v"], "sku": [1, 2], "mark": [2, 4]}
    given = {"user": "client", "item": "sku", "rating": "Mark"}
    goods = {"sku": [1, 2], "label": ["One", "Two"], "kind": ["a", "b"], "blurb": ["x", None]}
    data = make(
        renamed,
        goods,
        columns=given,
        item_columns={"item": "sku", "title": "label", "categories": "kind", "text": "blurb"},
    )
    assert data.catalogue.texts == ("x", "")


@pytest.mark.parametrize(
    ("values", "options", "expected", "said"),
    [
        ([0, 1, 1], {}, [1, 5, 5], "linear from 0..1 to 1..5"),
        ([-1, 0, 1], {}, [1, 3, 5], "linear from -1..1 to 1..5"),
        ([1, 10, 5.5], {}, [1, 5, 3], "linear from 1..10 to 1..5"),
        ([0, 50, 100], {}, [1, 3, 5], "linear from 0..100 to 1..5"),
        ([1, 4, 7], {"rating_scale": (1, 7)}, [1, 3, 5], "linear from 1..7 to 1..5"),
    ],
)
def test_other_scales(
    values: list[float], options: dict[str, Any], expected: list[float], said: str
) -> None:
    data = make({**ROWS, "rating": values}, **options)
    assert list(ratings_of(data).values()) == pytest.approx(expected)
    assert data.statistics["rating_mapping"] == said


@pytest.mark.parametrize("signal", ["hours", "clicks"])
def test_hours_and_clicks_by_quantile(signal: str) -> None:
    rows = {"user": ["u", "u", "v"], "item": [1, 2, 1], signal: [0.5, 20, 3]}
    data = make(rows)
    assert list(ratings_of(data).values()) == pytest.approx([1 + 4 / 6, 1 + 20 / 6, 3.0])
    assert f"quantile of log-{signal}, continuous" == data.statistics["rating_mapping"]
    assert list(ratings_of(make(rows, levels=3)).values()) == [1, 5, 3]


def test_signal_can_be_chosen() -> None:
    rows = {**ROWS, "hours": [3, 2, 1]}
    assert make(rows).statistics["signal"] == "rating"
    assert make(rows, signal="hours").statistics["signal"] == "hours"


@pytest.mark.parametrize(("signal", "expected"), [("rating", 3.0), ("hours", 4.0), ("clicks", 6.0)])
def test_repeated_pairs_become_one(signal: str, expected: float) -> None:
    # u-1 has 2 and 4; the others bracket the mean, the maximum and the sum.
    values = [2, 4, 1, {"rating": 5, "hours": 3, "clicks": 5}[signal]]
    rows = {"user": ["u", "u", "v", "w"], "item": [1, 1, 1, 1], signal: values}
    data = make(rows, {"item": [1], "title": ["One"], "categories": ["a"]})
    got = ratings_of(data)
    assert data.statistics["repeated_rows_merged"] == 1
    assert len(got) == 3
    if signal == "rating":
        assert got["u", "1"] == expected
    else:
        assert got["u", "1"] > got["w", "1"] > got["v", "1"]


@pytest.mark.parametrize(
    "times",
    [
        [30, 10, 20],
        ["30", "10", "20"],
        ["2024-01-03", "2024-01-01", "2024-01-02"],
        pd.to_datetime(["2024-01-03", "2024-01-01", "2024-01-02"]),
        ["2024-01-03T10:00:00", "2024-01-03T08:00:00", "2024-01-03T09:00:00"],
        ["2024-01-03T10:00:00Z", "2024-01-03T08:00:00Z", "2024-01-03T09:00:00Z"],
        ["2024-01-03 10:00:00+02:00", "2024-01-03 08:00:00+02:00", " 2024-01-03 05:00:00-02:00"],
    ],
)
def test_time_becomes_order_within_the_user(times: Any) -> None:
    rows = pd.DataFrame({"user": ["u"] * 3, "item": [1, 2, 3], "rating": [1, 2, 3], "time": times})
    data = make(rows, {"item": [1, 2, 3], "title": list("ABC"), "categories": list("abc")})
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("texts", "separator", "expected"),
    [
        (["a|b", "c"], None, (("a", "b"), ("c",))),
        (["a, b", "c"], None, (("a", "b"), ("c",))),
        (["a, b|c", "c"], None, (("a, b", "c"), ("c",))),
        (["a/b", "c"], "/", (("a", "b"), ("c",))),
        (["a|b", "c"], ",", (("a|b",), ("c",))),
        (["['a', 'b, c']", "[]"], None, (("a", "b, c"),)),
    ],
)
def test_categories_as_text(
    texts: list[str], separator: str | None, expected: tuple[tuple[str, ...], ...]
) -> None:
    data = make(items={**ITEMS, "categories": texts}, separator=separator)
    assert data.catalogue.categories == expected


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    rows = {"user": list("uuvw"), "item": [1, 2, 9, 3], "rating": [1, 2, 3, 4]}
    items = {"item": [1, 2, 3, 3], "title": list("ABCD"), "categories": ["a", "b", None, "x"]}
    data = make(rows, items)
    assert data.user_ids == ("u",)
    stats = data.statistics
    assert stats["rows_dropped_not_in_catalogue"] == 1
    assert stats["rows_dropped_no_category"] == 1
    assert stats["repeated_items_ignored"] == 1
    assert make(rows, items, default_category="none").n_items == 3


@pytest.mark.parametrize(
    ("rows", "items", "options", "message"),
    [
        ({"usr": ["u"], "item": [1], "rating": [1]}, ITEMS, {}, "'user'.*did you mean 'usr'"),
        ({"user": ["u"], "item": [1], "ratng": [1]}, ITEMS, {}, "did you mean 'ratng'"),
        (ROWS, {"item": [1], "titel": ["A"], "categories": ["a"]}, {}, "did you mean 'titel'"),
        (ROWS, {"item": [1], "title": ["A"]}, {}, "'categories'"),
        (ROWS, ITEMS, {"columns": {"usr": "user"}}, "did you mean 'user'"),
        (ROWS, ITEMS, {"columns": {"user": "usr"}}, "did you mean 'user'"),
        (ROWS, ITEMS, {"signal": "hour"}, "did you mean 'hours'"),
        (ROWS, ITEMS, {"signal": "hours"}, "no column 'hours'"),
        (ROWS, ITEMS, {"name": "a/b"}, "rename it"),
        ({**ROWS, "rating": [1, None, 2]}, ITEMS, {}, "'rating' is empty or NaN in 1 rows.*row 1"),
        ({**ROWS, "rating": [1, float("nan"), 2]}, ITEMS, {}, "holds nan in row 1"),
        ({**ROWS, "rating": ["1", "x", "2"]}, ITEMS, {}, "no number"),
        ({**ROWS, "rating": [1, 2, 700]}, ITEMS, {}, "from 1 to 700"),
        ({**ROWS, "rating": [1, 2, 7]}, ITEMS, {"rating_scale": (1, 5)}, "row 2 has 7"),
        ({**ROWS, "rating": [1, 1, 1]}, ITEMS, {}, "All 3 values of 'rating' equal 1"),
        ({"user": list("uv"), "item": [1, 2], "hours": [-1, 2]}, ITEMS, {}, "0 or more"),
        ({**ROWS, "user": ["u", None, "v"]}, ITEMS, {}, "'user' is empty"),
        ({**ROWS, "item": [7, 8, 9]}, ITEMS, {}, "None of the 3 items.*same"),
        ({**ROWS, "time": ["now", "then", "1"]}, ITEMS, {}, "neither a number nor a time"),
        (ROWS, ITEMS, {"min_user": 3}, "none is left after filtering.*min_user=3"),
        (ROWS, {**ITEMS, "categories": [None, ""]}, {}, "none is left"),
        ({"user": [], "item": [], "rating": []}, ITEMS, {}, "empty"),
        ({**ROWS, "user": ["u", 1, "v"]}, ITEMS, {}, "one type per column"),
        (17, ITEMS, {}, "came as int"),
        ({**ROWS, "rating": [1, 2, "1,234"]}, ITEMS, {}, "one type per column"),
        ({**ROWS, "rating": ["1", "2", "1,234"]}, ITEMS, {}, "no number"),
        ({"user": ["u"], "item": [1], "clicks": [1]}, ITEMS, {}, "every user touched every item"),
        (
            {"user": ["u"], "item": [1], "clicks": [1]},
            ITEMS,
            {"negatives_per_positive": 0},
            "above 0",
        ),
        (
            pa.table([["u"], [1], [2], [3]], names=["user", "item", "rating", "rating"]),
            ITEMS,
            {},
            "several columns 'rating'",
        ),
    ],
)
def test_bad_tables_give_one_sentence(
    rows: Any, items: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make(rows, items, **options)
    assert "\n" not in str(caught.value)


def test_bad_files_give_one_sentence(tmp_path: Path) -> None:
    good = Path(as_parquet(ROWS, tmp_path))
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(good.read_bytes()[:-30])
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("user,item,rating\nu,1,2\nu,1\n")
    odd = tmp_path / "table.xlsx"
    odd.write_bytes(b"x")
    with pytest.raises(MissingDataError, match=r"is not there.*did you mean 'cut.parquet'"):
        make(tmp_path / "cuts.parquet")
    for path, message in ((cut, "cut short"), (ragged, "cannot be read"), (odd, "'.xlsx'")):
        with pytest.raises(DataError, match=message) as caught:
            make(path)
        assert "\n" not in str(caught.value)


def test_csv_files_as_spreadsheets_write_them(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_bytes(b"\xef\xbb\xbfUser ;Item; Rating\r\nu;1;1,5\r\nu;2; 3\r\nv;1;4,25\r\n")
    items = tmp_path / "items.csv"
    items.write_text(
        'item\ttitle\tcategories\n1\t"One, ""said""\n\n he"\ta|b\n2\tZwölf 🎮\tb\n',
        encoding="utf-8",
    )
    data = make(rows, items)
    assert ratings_of(data) == {("u", "1"): 1.5, ("u", "2"): 3.0, ("v", "1"): 4.25}
    assert data.catalogue.titles == ('One, "said" he', "Zwölf 🎮")
    assert data.catalogue.categories == (("a", "b"), ("b",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item,rating\nJosé,1,2\n".encode("latin-1"), "not UTF-8"),
        ("usér,item,rating\nu,1,2\n".encode("latin-1"), "not UTF-8"),
        ("user,item,rating\nu,1,2\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_other_encodings_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        make(path)
    with pytest.raises(DataError, match="is a folder"):
        make(tmp_path)


FOUR = {"item": [1, 2, 3, 4], "title": list("ABCD"), "categories": list("aabb")}


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ({"user": list("uuvv"), "item": [1, 2, 3, 4]}, {}),
        ({"user": list("uuvv"), "item": [1, 2, 3, 4], "clicks": [7, 7, 7, 7]}, {}),
        ({"user": list("uuvv"), "item": [1, 2, 3, 4], "liked": [1] * 4}, {"signal": "clicks"}),
    ],
)
def test_equal_clicks_are_contrasted_with_drawn_items(
    rows: dict[str, Any], options: dict[str, Any]
) -> None:
    data = make({**rows, "time": [5, 6, 7, 8]}, FOUR, **options)
    assert ratings_of(data) == {
        **{("u", "1"): 5, ("u", "2"): 5, ("u", "3"): 1, ("u", "4"): 1},
        **{("v", "1"): 1, ("v", "2"): 1, ("v", "3"): 5, ("v", "4"): 5},
    }
    assert data.interactions.order is not None
    assert data.interactions.order.tolist() == [0, 1, 0, 1, -1, -1, -1, -1]
    assert data.statistics["rating_mapping"] == "touched = 5, drawn and not touched = 1"
    assert data.statistics["drawn"] == 4
    fewer = make(rows, FOUR, negatives_per_positive=0.5, **options)
    assert len(fewer.interactions) == 6


def test_rows_of_events_are_counted() -> None:
    data = make({"user": list("uuvvv"), "item": [1, 1, 1, 2, 2]})
    assert data.statistics["signal"] == "rows, each a click"
    got = ratings_of(data)
    assert got["u", "1"] == got["v", "2"] > got["v", "1"]
    with pytest.raises(DataError, match="no column 'rating' or 'hours' or 'clicks'"):
        make({"user": list("uv"), "item": [1, 2], "liked": [1, 0]})


def test_saved_and_loaded(tmp_path: Path) -> None:
    data = make({**ROWS, "time": [1, 2, 3]})
    assert Dataset.load(data.save(tmp_path / "mine")).fingerprint == data.fingerprint


def test_thresholds_count_rows() -> None:
    rows = {"user": list("uuuvv"), "item": [1, 2, 3, 1, 2], "rating": [1, 2, 3, 4, 5]}
    items = {"item": [1, 2, 3], "title": list("ABC"), "categories": list("abc")}
    data = make(rows, items, min_user=2, min_item=2)
    assert (data.n_users, data.n_items) == (2, 2)
    assert data.statistics["rows_dropped_by_k_core"] == 1
    assert np.array_equal(data.interactions.ratings, [1, 2, 4, 5])


def test_items_without_a_category_column_take_the_default() -> None:
    items = {name: values for name, values in ITEMS.items() if name != "categories"}
    data = make(items=items, default_category="any")
    assert set(data.catalogue.categories) == {("any",)}
    with pytest.raises(DataError, match="categories"):
        make(items=items)


@pytest.mark.parametrize("name", sorted({*names(), *sequence_names()}))
def test_names_that_are_taken(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name!r} came as the name.*it is a built-in one's"):
        save_custom(make(name=name), tmp_path)
