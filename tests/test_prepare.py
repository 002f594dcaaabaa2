from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsim_env import prepare as package_prepare
from recsim_env.artefacts import check_folder
from recsim_env.card import agreement, card_table, outside_check
from recsim_env.datasets import from_tables, load
from recsim_env.datasets.dataset import Dataset
from recsim_env.encoders import EncoderConfig
from recsim_env.errors import DataError, MissingDataError
from recsim_env.prepare import PrepareConfig, Prepared, Session, prepare, user_vector_for
from recsim_env.world_model import WorldModel, WorldModelConfig

QUICK = PrepareConfig(
    user_vector_size=4,
    text_dim=8,
    world_model=WorldModelConfig(members=1, max_epochs=2),
    encoder=EncoderConfig(dim=4, max_epochs=1),
)


@pytest.fixture(scope="module")
def small() -> Dataset:
    return load("synthetic", n_users=40, n_items=30, seed=2)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(WorldModel, "fit", refuse)


def make(dataset: Dataset | str, cache: Path, config: PrepareConfig = QUICK, **kw: Any) -> Prepared:
    return prepare(dataset, config=config, cache=cache, progress=False, **kw)


def test_shapes_and_splits(prepared: Prepared) -> None:
    n_users, n_items = prepared.dataset.n_users, prepared.dataset.n_items
    assert not (prepared.train_rows & prepared.test_rows).any()
    assert (prepared.train_rows | prepared.test_rows).all()
    assert prepared.user_vectors.shape == (n_users, 16)
    assert prepared.user_basis.shape == (n_items, 16)
    assert prepared.user_offset.shape == (n_items,)
    assert prepared.text_embeddings.shape == (n_items, 64)
    np.testing.assert_allclose(np.linalg.norm(prepared.text_embeddings, axis=1), 1.0, atol=1e-5)
    for split in ("train", "test"):
        assert prepared.rows(split).shape == (n_users, n_items)
    assert not np.allclose(prepared.rows("train"), prepared.rows("test"))
    with pytest.raises(DataError, match="no split"):
        prepared.rows("tset")  # type: ignore[arg-type]


def test_user_vectors_describe_the_rows(prepared: Prepared) -> None:
    rows = prepared.rows("train")
    guess = prepared.user_offset + prepared.user_vectors @ prepared.user_basis.T
    share = 1.0 - np.var(rows - guess) / np.var(rows - rows.mean(0))
    assert share > 0.98
    assert prepared.card["user_basis"]["explained_variance"] == pytest.approx(share, abs=0.01)
    gram = prepared.user_basis.T @ prepared.user_basis / prepared.dataset.n_items
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-3)
    histories = [np.array([1, 2, 3]), np.zeros(0, np.int64)]
    vectors = user_vector_for(prepared, histories)
    expected = np.linalg.lstsq(
        prepared.user_basis,
        (prepared.rows("train", histories=histories) - prepared.user_offset).T,
        rcond=None,
    )[0].T
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    known = user_vector_for(prepared, histories, users=np.array([0, -1]))
    assert not np.allclose(known[0], vectors[0])
    np.testing.assert_allclose(known[1], vectors[1], atol=1e-6)


def test_histories_are_the_rows_of_the_split(prepared: Prepared) -> None:
    table = prepared.dataset.interactions
    for split, rows in (("train", prepared.train_rows), ("test", prepared.test_rows)):
        histories = prepared.histories(split)  # type: ignore[arg-type]
        for user in (0, 7):
            mine = table.items[rows & (table.users == user)]
            assert sorted(histories[user]) == sorted(mine)


@pytest.mark.usefixtures("cache")
def test_the_second_call_loads(
    small: Dataset, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = make(small, tmp_path)
    request.getfixturevalue("no_training")
    second = make(small, tmp_path)
    assert second.path == first.path
    assert second.fingerprint == first.fingerprint
    assert second.contents == first.contents
    assert second.card == first.card
    assert np.array_equal(second.rows("test"), first.rows("test"))
    assert np.array_equal(second.user_vectors, first.user_vectors)
    assert np.array_equal(
        second.text_embedder.embed(["Action"]), first.text_embedder.embed(["Action"])
    )


def test_a_changed_setting_makes_another_artefact(small: Dataset, tmp_path: Path) -> None:
    config = PrepareConfig(
        seed=1, user_vector_size=4, text_dim=8, world_model=QUICK.world_model, encoder=QUICK.encoder
    )
    assert make(small, tmp_path).path != make(small, tmp_path, config).path


def test_without_test_rows_there_is_one_model_of_all_interactions(
    small: Dataset, tmp_path: Path
) -> None:
    prepared = make(small, tmp_path, dataclasses.replace(QUICK, test_fraction=0.0))
    assert prepared.train_rows.all()
    assert not prepared.test_rows.any()
    assert np.array_equal(prepared.rows("train"), prepared.rows("test"))
    assert sum(map(len, prepared.histories())) == len(small.interactions)
    assert list(prepared.card["world_model"]) == ["train"]
    table = card_table(prepared.card)
    assert "World model, train" in table
    assert "World model, test" not in table
    assert "Agreement" not in table


@pytest.mark.parametrize("broken", ["prepared.json", "train_model/model.safetensors"])
def test_a_broken_artefact_is_made_again(
    broken: str, small: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(small, tmp_path)
    file = first.path / broken
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert not check_folder(first.path)
    with caplog.at_level(logging.WARNING):
        second = make(small, tmp_path)
    assert "made again" in caplog.text
    assert check_folder(second.path)
    assert np.array_equal(second.rows("train"), first.rows("train"))


def test_a_half_written_artefact_is_not_used(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # By its place among the modules: the package exports a function of the same name.
        patched.setattr(sys.modules["recsim_env.prepare"], "_write_sessions", crash)
        with pytest.raises(KeyboardInterrupt):
            make(small, tmp_path)
    assert not [p for p in (tmp_path / "prepared").iterdir() if not p.name.startswith(".")]
    assert make(small, tmp_path).path.is_dir()


def test_two_at_once(small: Dataset, tmp_path: Path) -> None:
    made: list[Prepared] = []
    threads = [
        threading.Thread(target=lambda: made.append(make(small, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert np.array_equal(made[0].rows("train"), made[1].rows("train"))


def test_a_name_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"n_users": 40, "n_items": 30}
    first = make("synthetic", tmp_path, options=options)
    monkeypatch.setattr("recsim_env.datasets.load", lambda *_, **__: pytest.fail("read again"))
    assert make("synthetic", tmp_path, options=options).path == first.path


def test_bad_arguments_are_explained(small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="with a name"):
        make(small, tmp_path, options={"n_users": 3})
    with pytest.raises(DataError, match="did you mean 'synthetic'"):
        make("syntetic", tmp_path)
    with pytest.raises(DataError, match="did you mean 'test_fraction'"):
        PrepareConfig.from_dict({"test_fractoin": 0.5})
    with pytest.raises(DataError, match="WorldModelConfig has no setting"):
        PrepareConfig.from_dict({"world_model": {"member": 3}})
    with pytest.raises(DataError, match="test_fraction"):
        PrepareConfig(test_fraction=1.0)
    with pytest.raises(DataError, match="user_vector_size"):
        PrepareConfig(user_vector_size=0)


def test_config_survives_json() -> None:
    values = json.loads(json.dumps(dataclasses.asdict(QUICK)))
    assert PrepareConfig.from_dict(values) == QUICK


class _EntryPoint:
    value = "tests:sessions"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def load(self) -> Any:
        def read(dataset: Dataset, root: Path, embedder: Any) -> tuple[list[Session], dict]:
            if self.error:
                raise self.error
            assert embedder.embed([dataset.catalogue.titles[0]]).shape == (1, 8)
            assert root.is_dir()
            extras = {"thought": ["a", "b"], "left": True}
            return [Session(-1, (1, 2), (3, 4), "someone", extras)], {"steps": 2}

        return read


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _EntryPoint:
    point = _EntryPoint()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [point])
    (tmp_path / "data").mkdir()
    return point


@pytest.mark.usefixtures("reader")
def test_sessions_are_kept(small: Dataset, tmp_path: Path) -> None:
    for _ in range(2):
        prepared = make(small, tmp_path, root=tmp_path / "data")
        assert prepared.sessions == (
            Session(-1, (1, 2), (3, 4), "someone", {"thought": ["a", "b"], "left": True}),
        )
        assert prepared.card["demonstrations"] == {"sessions": 1, "steps": 2}


def test_missing_records_mean_no_sessions(
    small: Dataset, tmp_path: Path, reader: _EntryPoint
) -> None:
    reader.error = MissingDataError("not there")
    prepared = make(small, tmp_path, root=tmp_path / "data")
    assert prepared.sessions == ()


def test_card_table_shows_the_figures(prepared: Prepared) -> None:
    table = card_table(prepared.card)
    assert f"{prepared.card['world_model']['train']['rmse']:.4f}" in table
    assert "user + item biases" in table
    assert json.loads(json.dumps(prepared.card)) == prepared.card


def test_agreement_by_hand() -> None:
    first = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]], np.float32)
    same = agreement(first, 2 * first)
    assert same["pearson"] == pytest.approx(1.0)
    assert same["pearson_within_user"] == pytest.approx(1.0)
    opposed = agreement(first, -first)
    assert opposed["spearman"] == pytest.approx(-1.0)
    assert opposed["rms_difference"] == pytest.approx(np.sqrt(np.mean((2 * first) ** 2)), rel=1e-5)


def test_outside_check_matches_titles_and_leaves_out_who_left(
    prepared: Prepared, tmp_path: Path
) -> None:
    catalogue, model = prepared.dataset.catalogue, prepared.train_model
    (tmp_path / "steam").mkdir()
    (tmp_path / "llm_demos").mkdir()
    titles = [t.upper() + "!" for t in catalogue.titles[:6]] + ["nowhere to be found"]
    pq.write_table(
        pa.table({"item_id": list(range(10, 17)), "title": titles}),
        tmp_path / "steam" / "billp_catalogue.parquet",
    )
    history = [10, 11, 16]
    rows = model.rows(histories=[np.array([0, 1])])[0]
    steps = [(item, float(rows[item - 10])) for item in (12, 13, 14)] + [(15, -1000.0), (16, 3.0)]
    pq.write_table(
        pa.table(
            {
                "split": ["test"] * 5,
                "user_index": [4] * 5,
                "user_history_item_ids": [history] * 5,
                "action_item_id": [item for item, _ in steps],
                "reward": [reward for _, reward in steps],
            }
        ),
        tmp_path / "llm_demos" / "steam_trajectories.parquet",
    )
    found = outside_check(model, catalogue, tmp_path, "steam")
    assert found is not None
    assert (found["triples"], found["matched"], found["users"]) == (4, 3, 1)
    assert found["spearman"] == pytest.approx(1.0)
    assert outside_check(model, catalogue, tmp_path, "amazon") is None
    assert outside_check(model, catalogue, tmp_path, "coat") is None


def test_exported() -> None:
    assert package_prepare is prepare


@pytest.mark.realdata
def test_steam_has_sessions_and_agrees_with_the_recorded_rewards(
    real_data: Path, tmp_path: Path
) -> None:
    config = PrepareConfig(
        world_model=WorldModelConfig(members=2, max_epochs=4), encoder=EncoderConfig(max_epochs=1)
    )
    prepared = make("steam", tmp_path, config, root=real_data)
    assert len(prepared.sessions) > 900
    check = prepared.card["outside_check"]["test"]
    assert check["triples"] == 6301
    assert check["spearman"] > 0.1


def test_users_with_one_interaction_each_are_enough(tmp_path: Path) -> None:
    tables = {
        "interactions": {
            "user": [f"u{k}" for k in range(20)],
            "item": [f"i{k % 5}" for k in range(20)],
            "rating": [1.0 + k % 5 for k in range(20)],
        },
        "items": {
            "item": [f"i{k}" for k in range(5)],
            "title": [f"Game {k}" for k in range(5)],
            "categories": ["Action", "Indie", "Action|Indie", "RPG", "RPG"],
        },
    }
    dataset = from_tables(tables["interactions"], tables["items"], "tiny")
    prepared = prepare(dataset, cache=tmp_path, progress=False)
    assert prepared.rows("train").shape == (20, 5)
    assert np.isfinite(prepared.rows("test")).all()


def test_copied_demonstrations_are_the_same_demonstrations(small: Dataset, tmp_path: Path) -> None:
    dataset = dataclasses.replace(small, name="steam")
    found = []
    for name, content in (("a", b"sessions"), ("b", b"sessions"), ("c", b"others")):
        file = tmp_path / name / "llm_demos" / "steam_other.parquet"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        os.utime(file, (len(found), len(found)))
        found.append(make(dataset, tmp_path / "cache", root=tmp_path / name).fingerprint)
    assert found[0] == found[1] != found[2]
