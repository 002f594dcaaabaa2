"""Kernel regression, alone and as a part of the world model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from recsim_env.datasets import load
from recsim_env.datasets.dataset import Dataset
from recsim_env.errors import DataError
from recsim_env.world_model import (
    Kernel,
    WorldModel,
    WorldModelConfig,
    kernel_table,
    taste_covariance,
)
from recsim_env.world_model import kernel as kernel_module
from recsim_env.world_model.kernel import similarity

NOTHING = Kernel(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
QUICK = WorldModelConfig(members=2, max_epochs=2)


def test_similarity_by_hand() -> None:
    features = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    expected = np.array([[1, np.exp(-0.5), 1], [np.exp(-0.5), 1, np.exp(-0.5)]])
    np.testing.assert_allclose(similarity(features, 4.0)[:2], expected)
    assert (similarity(np.zeros((2, 0), np.float32), 4.0) == 1.0).all()


def test_two_ratings_by_hand() -> None:
    """Of one star above and one below the mean, a prior as strong as the noise keeps half."""
    users, items = np.array([0, 1], np.int32), np.array([0, 0], np.int32)
    ratings = np.array([5.0, 3.0], np.float32)
    features = np.zeros((3, 0), np.float32), np.eye(2, dtype=np.float32)
    table = kernel_table(users, items, ratings, *features, dataclasses.replace(NOTHING, user=1.0))
    np.testing.assert_allclose(table, [[4.5, 4.5], [3.5, 3.5], [4.0, 4.0]], atol=1e-5)
    # A taste goes over to the other item by exp(-2 / 4).
    table = kernel_table(users, items, ratings, *features, dataclasses.replace(NOTHING, taste=1.0))
    across = 0.5 * np.exp(-0.5)
    np.testing.assert_allclose(table, [[4.5, 4 + across], [3.5, 4 - across], [4, 4]], atol=1e-5)
    nothing = kernel_table(users, items, ratings, *features, NOTHING)
    np.testing.assert_allclose(nothing, 4.0)


def test_it_solves_the_equations_written_out() -> None:
    generator = np.random.default_rng(0)
    n_users, n_items, n = 6, 5, 14
    users = generator.integers(n_users, size=n).astype(np.int32)
    items = generator.integers(n_items, size=n).astype(np.int32)  # some pairs come twice
    ratings = generator.integers(1, 6, n).astype(np.float32)
    of_users = generator.integers(0, 2, (n_users, 3)).astype(np.float32)
    of_items = generator.integers(0, 2, (n_items, 4)).astype(np.float32)
    kernel = Kernel()
    like_users, like_items = similarity(of_users, 4.0), similarity(of_items, 4.0)

    def k(u: int, i: int, v: int, j: int) -> float:
        levels = kernel.user * (u == v) + kernel.user_features * like_users[u, v]
        taste = kernel.taste * (u == v) + kernel.group_taste * like_users[u, v]
        shared = kernel.item * (i == j) + kernel.item_features * like_items[i, j]
        return float(levels + shared + taste * like_items[i, j])

    given = list(zip(users.tolist(), items.tolist(), strict=True))
    matrix = np.array([[k(*a, *b) for b in given] for a in given])
    weights = np.linalg.solve(matrix + np.eye(n), ratings - ratings.mean())
    expected = [
        [
            ratings.mean() + sum(w * k(u, i, *b) for w, b in zip(weights, given, strict=True))
            for i in range(n_items)
        ]
        for u in range(n_users)
    ]
    table = kernel_table(users, items, ratings, of_users, of_items)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, expected, atol=1e-4)


def test_what_a_rating_leaves_unknown_by_hand() -> None:
    """Prior 2 at an item and 1 + exp(-1/2) across two; one rating with noise 1, of one user."""
    kernel = dataclasses.replace(NOTHING, user=1.0, taste=1.0)
    rated = [np.array([0]), np.zeros(0, np.int64)]
    across = 1.0 + np.exp(-0.5)
    prior = np.array([[2.0, across], [across, 2.0]])
    after = prior - np.outer(prior[0], prior[0]) / 3.0
    found = taste_covariance(rated, np.eye(2, dtype=np.float32), kernel)
    np.testing.assert_allclose(found, (after + prior) / 2.0)


def test_too_large_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_module, "_MOST", 3)
    one = np.zeros(1, np.int32)
    with pytest.raises(DataError, match=r"4 users and 2 items.*kernel_share"):
        kernel_table(
            one,
            one,
            np.ones(1, np.float32),
            np.zeros((4, 1), np.float32),
            np.eye(2, dtype=np.float32),
        )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load("synthetic", n_users=30, n_items=30, seed=1)


@pytest.fixture(scope="module")
def models(dataset: Dataset) -> dict[float | None, WorldModel]:
    every = np.ones(len(dataset.interactions), bool)
    return {
        share: WorldModel.fit(
            dataset, every, dataclasses.replace(QUICK, kernel_share=share), 0, progress=False
        )
        for share in (None, 0.0, 0.25, 1.0)
    }


def test_the_world_model_blends_known_users(
    dataset: Dataset, models: dict[float | None, WorldModel]
) -> None:
    table = dataset.interactions
    features = np.zeros((dataset.n_users, 0), np.float32)
    kernel = kernel_table(
        table.users, table.items, table.ratings, features, dataset.catalogue.category_matrix
    )
    rows = {share: model.rows() for share, model in models.items()}
    np.testing.assert_array_equal(rows[0.0], rows[None])
    np.testing.assert_allclose(rows[1.0], kernel.clip(1.0, 5.0), atol=1e-5)
    inside = (rows[None] > 1.0) & (rows[None] < 5.0)
    blend = (0.75 * rows[None] + 0.25 * kernel).clip(1.0, 5.0)
    np.testing.assert_allclose(rows[0.25][inside], blend[inside], atol=1e-4)
    known_and_not = np.array([3, -1])
    histories = [np.array([1, 2]), np.array([4])]
    plain, blended = (models[share].rows(known_and_not, histories) for share in (None, 1.0))
    assert not np.allclose(plain[0], blended[0])
    np.testing.assert_array_equal(plain[1], blended[1])


def test_predictions_agree_with_rows(models: dict[float | None, WorldModel]) -> None:
    users, items = np.array([0, 5, -1]), np.array([3, 3, 7])
    model = models[0.25]
    mean, _ = model.predict(users, items)
    rows, _ = model.rows_with_variance(users)
    np.testing.assert_allclose(mean, rows[np.arange(3), items], atol=1e-4)


def test_save_and_load(models: dict[float | None, WorldModel], tmp_path: Path) -> None:
    for share in (None, 0.25):
        models[share].save(tmp_path / "model")
        loaded = WorldModel.load(tmp_path / "model")
        assert loaded.config == models[share].config
        np.testing.assert_array_equal(loaded.rows(), models[share].rows())


def test_the_report_is_of_rows_that_the_regression_had_not_seen(dataset: Dataset) -> None:
    """What was fitted on is predicted better, so the report would flatter."""
    every = np.ones(len(dataset.interactions), bool)
    config = dataclasses.replace(QUICK, kernel_share=1.0)
    model = WorldModel.fit(dataset, every, config, 0, progress=False)
    table = dataset.interactions
    seen = model.predict(table.users.astype(np.int64), table.items.astype(np.int64))[0]
    error = float(np.sqrt(np.mean((seen - table.ratings) ** 2)))
    assert model.report["rmse"] > 1.1 * error


def test_a_share_out_of_range() -> None:
    with pytest.raises(DataError, match=r"kernel_share is 1.5"):
        WorldModelConfig(kernel_share=1.5)
