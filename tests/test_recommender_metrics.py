from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from ilrec_sb3.lea.metrics import hit_ratio, ndcg, ranking_metrics, ranks
from recsim_env.errors import DataError


def test_ranks_by_hand() -> None:
    scores = [[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [3.0, 2.0, 1.0]]
    assert ranks(scores, [1, 0, 2]).tolist() == [1, 3, 3]


def test_of_equal_scores_the_target_comes_last() -> None:
    assert ranks(np.zeros((1, 7)), [3]).tolist() == [7]
    assert ranks([[2.0, 1.0, 1.0, 0.0]], [1]).tolist() == [3]


def test_hit_ratio_and_ndcg_by_hand() -> None:
    found = [1, 3, 6]
    assert hit_ratio(found, 5) == pytest.approx(2 / 3)
    assert ndcg(found, 5) == pytest.approx((1 + 0.5) / 3)  # 1 / log2(3 + 1)
    assert ndcg(found, 10) == pytest.approx((1.5 + 1 / math.log2(7)) / 3)
    assert ranking_metrics(found) == {
        "HR@5": hit_ratio(found, 5),
        "NDCG@5": ndcg(found, 5),
        "HR@10": 1.0,
        "NDCG@10": ndcg(found, 10),
        "HR@20": 1.0,
        "NDCG@20": ndcg(found, 20),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(3, 40), st.integers(1, 20), st.integers(0, 2**16))
def test_metrics_are_those_of_scikit_learn(rows: int, items: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    k = min(k, items - 1)
    scores = rng.permuted(np.tile(np.arange(items, dtype=float), (rows, 1)), axis=1)
    targets = rng.integers(items, size=rows)
    found = ranks(scores, targets)
    relevant = np.eye(items)[targets]
    assert ndcg(found, k) == pytest.approx(ndcg_score(relevant, scores, k=k))
    accuracy = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(items))
    assert hit_ratio(found, k) == pytest.approx(accuracy)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 30))
def test_metrics_are_shares_and_grow_with_k(found: list[int], k: int) -> None:
    assert 0.0 <= ndcg(found, k) <= hit_ratio(found, k) <= 1.0
    assert hit_ratio(found, k) <= hit_ratio(found, k + 1)
    assert ndcg(found, k) <= ndcg(found, k + 1)


def test_bad_input_is_explained() -> None:
    with pytest.raises(DataError, match=r"Row 1 of the scores holds NaN.*learning rate"):
        ranks([[1.0, 2.0], [1.0, np.nan]], [0, 0])
    with pytest.raises(DataError, match="Target 2 came with scores of 2 items"):
        ranks([[1.0, 2.0]], [2])
    with pytest.raises(DataError, match="one target for each row"):
        ranks([[1.0, 2.0]], [0, 1])
    for bad, k in (([], 5), ([1], 0), ([0], 5)):
        with pytest.raises(DataError, match="at least one rank"):
            hit_ratio(bad, k)
