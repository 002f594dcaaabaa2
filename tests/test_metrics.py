from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from ilrec_sb3.benchmark import metrics

FLAGS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], np.float32)
"""Categories of four items: 3 items carry the first, 2 the second, 1 the third."""

numbers = st.floats(-1e3, 1e3)


# -- of returns


def test_interquartile_mean_of_five_is_that_of_the_middle_three() -> None:
    assert metrics.interquartile_mean([100.0, 1.0, 2.0, 6.0, -50.0]) == pytest.approx(3.0)
    assert metrics.interquartile_mean([1.0, 2.0, 4.0, 100.0]) == pytest.approx(3.0)
    assert metrics.interquartile_mean([1.0, 2.0, 9.0]) == pytest.approx(4.0)
    assert metrics.interquartile_mean([7.0]) == 7.0


@settings(max_examples=50)
@given(st.lists(numbers, min_size=1, max_size=30))
def test_interquartile_mean_is_scipys_trimmed_mean(values: list[float]) -> None:
    assert metrics.interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25), abs=1e-9)


def test_interquartile_mean_along_an_axis() -> None:
    values = np.array([[0.0, 10.0], [1.0, 20.0], [2.0, 30.0], [9.0, 90.0]])
    np.testing.assert_allclose(metrics.interquartile_mean(values, axis=0), [1.5, 25.0])


def test_bootstrap_of_one_seed_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = metrics.interval(metrics.bootstrap_iqm([values]))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_bootstrap_draws_seeds_as_well() -> None:
    # sessions without any spread: what is left is the spread of the seeds
    flat = [np.full(10, value) for value in (1.0, 2.0, 3.0)]
    draws = metrics.bootstrap_iqm(flat)
    assert set(np.round(draws * 3).astype(int)) == set(range(3, 10))
    assert np.mean(draws == 1.0) == pytest.approx(1 / 27, abs=0.02)


def test_seeds_that_share_their_users_share_their_luck() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, size=200)
    same = [values] * 5
    paired = metrics.bootstrap_iqm(same, paired=True).std()
    apart = metrics.bootstrap_iqm(same).std()
    assert paired == pytest.approx(values.std() / np.sqrt(200), rel=0.1)
    assert apart < 0.75 * paired


def test_draws_of_a_comparison_share_the_sessions_but_not_the_seeds() -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, size=50)
    one = metrics.bootstrap_iqm([values], paired=True, stream=1)
    np.testing.assert_allclose(one, metrics.bootstrap_iqm([values + 2], paired=True) - 2)
    flat = [np.full(10, value) for value in (1.0, 2.0, 3.0)]
    first, second = (metrics.bootstrap_iqm(flat, stream=k) for k in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_interval_takes_percentiles() -> None:
    assert metrics.interval(np.arange(101.0), level=0.9) == pytest.approx((5.0, 95.0))


def test_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # pairs of (3, 1) and (2, 3): 3>2, 3=3, 1<2, 1<3
    assert metrics.probability_of_improvement([3.0, 1.0], [2.0, 3.0]) == pytest.approx(1.5 / 4)


@settings(max_examples=50)
@given(st.lists(numbers, min_size=1, max_size=8), st.lists(numbers, min_size=1, max_size=8))
def test_probabilities_of_both_sides_add_up_to_one(ours: list[float], others: list[float]) -> None:
    there = metrics.probability_of_improvement(ours, others)
    assert there + metrics.probability_of_improvement(others, ours) == pytest.approx(1.0)


def test_share_of_the_way() -> None:
    assert metrics.share_of_the_way(15.0, 10.0, 20.0) == 0.5
    assert np.isnan(metrics.share_of_the_way(15.0, 20.0, 20.0))
    assert np.isnan(metrics.share_of_the_way(15.0, 10.0, float("nan")))


# -- of learning


def test_mean_along_a_curve_weighs_by_steps() -> None:
    # 2 on average over 10 steps, then 6 over 30: (20 + 180) / 40
    assert metrics.mean_along([(0, 0.0), (10, 4.0), (40, 8.0)]) == pytest.approx(5.0)


def test_first_step_at_or_above_a_bar() -> None:
    curve = ((0, 1.0), (10, 5.0), (20, 4.0), (30, 6.0))
    assert metrics.first_step(curve, 5.0) == 10
    assert metrics.first_step(curve, 5.5) == 30
    assert metrics.first_step(curve, 6.5) == np.inf


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ([1.0, 2.0, np.inf], 2.0),
        ([1.0, np.inf, np.inf], None),
        ([1.0, 3.0, np.inf, np.inf], None),
        ([1.0, 2.0, 4.0, np.inf], 3.0),
        ([np.inf, np.inf], None),
        ([], None),
    ],
)
def test_a_bar_that_half_of_the_seeds_miss_is_not_reached(
    values: list[float], median: float | None
) -> None:
    assert metrics.median_or_never(values) == median


# -- of what was shown


def test_exposure_and_coverage() -> None:
    shown = metrics.exposure([(0, 1, 1), (3,)], 4)
    assert shown.tolist() == [1, 2, 0, 1]
    assert metrics.coverage(shown) == 0.75
    assert metrics.exposure([], 3).tolist() == [0, 0, 0]


def test_gini_of_exposure() -> None:
    assert metrics.gini([2, 2, 2, 2]) == pytest.approx(0.0)
    assert metrics.gini([0, 0, 0, 9]) == pytest.approx(0.75)
    # mean absolute difference of (1, 3) over twice the mean: (0 + 2 + 2 + 0) / 4 / (2 * 2)
    assert metrics.gini([3, 1]) == pytest.approx(0.25)
    assert np.isnan(metrics.gini([0, 0]))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=30).filter(any))
def test_gini_stays_within_its_bounds(shown: list[int]) -> None:
    assert -1e-9 <= metrics.gini(shown) <= 1 - 1 / len(shown) + 1e-9


def test_diversity_is_the_mean_over_pairs_then_over_sessions() -> None:
    features = np.array([[2.0, 0.0], [0.0, 5.0], [3.0, 3.0], [0.0, 0.0]])
    half = 1 - np.sqrt(0.5)
    # items 0 and 1 are at right angles, item 2 lies between them
    assert metrics.intra_session_diversity([(0, 1, 2)], features) == pytest.approx(
        (1 + half + half) / 3
    )
    assert metrics.intra_session_diversity([(0, 1), (2, 2), (1,)], features) == pytest.approx(0.5)
    assert metrics.intra_session_diversity([(0, 3)], features) == pytest.approx(1.0)
    assert np.isnan(metrics.intra_session_diversity([(0,)], features))


def test_category_entropy_in_bits() -> None:
    # item 1 counts half for either of its categories: the mass is (1.5, 0.5)
    expected = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert metrics.category_entropy([1, 1, 0, 0], FLAGS) == pytest.approx(expected)
    assert metrics.category_entropy([5, 0, 0, 0], FLAGS) == 0.0
    assert np.isnan(metrics.category_entropy([0, 0, 0, 0], FLAGS))


def test_novelty_of_popular_and_unknown_items() -> None:
    # smoothed shares: (7 + 1) / 12, 2 / 12, 1 / 12, 1 / 12
    popularity = [7, 1, 0, 0]
    assert metrics.novelty([1, 0, 0, 0], popularity) == pytest.approx(-np.log2(8 / 12))
    assert metrics.novelty([0, 1, 1, 0], popularity) == pytest.approx(
        (-np.log2(2 / 12) - np.log2(1 / 12)) / 2
    )
    assert np.isnan(metrics.novelty([0] * 4, popularity))


def test_majority_share_counts_shown_items_of_the_frequent_categories() -> None:
    assert metrics.majority_categories(FLAGS, 2).tolist() == [0, 1]
    assert metrics.majority_share([1, 0, 3, 0], FLAGS, k=1) == pytest.approx(0.25)
    assert metrics.majority_share([1, 0, 3, 0], FLAGS, k=2) == 1.0
    assert np.isnan(metrics.majority_share([0, 0, 0, 0], FLAGS))
