"""The made-up data: reproducible, like Steam, and with something to learn."""

from __future__ import annotations

import numpy as np
import pytest

from recsim_env.datasets import load, synthetic, true_ratings
from recsim_env.errors import DataError


def test_same_seed_same_data_and_other_seed_other_data() -> None:
    assert synthetic().fingerprint == load("synthetic").fingerprint
    assert synthetic(seed=1).fingerprint != synthetic().fingerprint


def test_sizes_are_as_asked() -> None:
    data = synthetic(n_users=50, n_items=60, seed=3, interactions_per_user=10)
    assert (data.n_users, data.n_items, data.is_synthetic) == (50, 60, True)
    assert np.bincount(data.interactions.items, minlength=60).min() >= 3
    assert 8 <= len(data.interactions) / 50 <= 13
    pairs = set(zip(data.interactions.users, data.interactions.items, strict=True))
    assert len(pairs) == len(data.interactions)


def test_titles_are_readable_and_different() -> None:
    titles = synthetic().catalogue.titles
    assert len(set(titles)) == len(titles)
    assert all(title[0].isupper() and " " in title for title in titles)


def test_genres_have_the_frequencies_of_steam() -> None:
    catalogue = synthetic(n_users=20, n_items=4000, interactions_per_user=20).catalogue
    share = dict(zip(catalogue.category_names, catalogue.category_matrix.mean(axis=0), strict=True))
    expected = {"Action": 0.54, "Indie": 0.47, "Adventure": 0.28, "RPG": 0.21, "Racing": 0.03}
    for genre, value in expected.items():
        assert share[genre] == pytest.approx(value, abs=0.03)
    assert catalogue.category_matrix.sum(axis=1).mean() == pytest.approx(2.3, abs=0.1)


def test_truth_is_what_the_ratings_scatter_around() -> None:
    data, truth = synthetic(), true_ratings()
    rows = data.interactions
    error = rows.ratings - truth[rows.users, rows.items]
    assert truth.shape == (400, 300)
    assert abs(error.mean()) < 0.03
    assert np.sqrt((error**2).mean()) < 0.7 < rows.ratings.std()


def test_without_noise_the_ratings_are_the_truth() -> None:
    options = {"n_users": 60, "n_items": 80, "interactions_per_user": 12.0, "noise": 0.0}
    rows = synthetic(**options).interactions
    assert rows.ratings == pytest.approx(true_ratings(**options)[rows.users, rows.items], abs=1e-5)


def test_missing_not_at_random() -> None:
    rows, truth = synthetic().interactions, true_ratings()
    assert truth[rows.users, rows.items].mean() > truth.mean() + 0.2


def test_tastes_explain_more_than_biases() -> None:
    """The truth has much that no sum of a user's and an item's bias can tell."""
    truth = true_ratings()
    biases = truth.mean(1, keepdims=True) + truth.mean(0) - truth.mean()
    assert (truth - biases).var() > 0.3 * truth.var()


@pytest.mark.parametrize(
    "options", [{"n_users": 0}, {"n_items": 5}, {"interactions_per_user": 400}, {"noise": -1}]
)
def test_bad_settings(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match="change these"):
        load("synthetic", **options)


def test_levels_give_whole_stars() -> None:
    assert set(synthetic(levels=5).interactions.ratings.tolist()) == {1, 2, 3, 4, 5}
