"""Ranking metrics over all items, one relevant item a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsim_env.errors import DataError

__all__ = ["CUTOFFS", "hit_ratio", "ndcg", "ranking_metrics", "ranks"]

CUTOFFS = (5, 10, 20)


def ranks(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Returns each target's rank among all items, 1 the best.

    Of items with equal scores the target comes last, so that a model which scores all items alike
    ranks every target last instead of first.

    Args:
        scores: (B, n), higher is better.
        targets: (B,) item indices, 0 to n - 1.

    Returns:
        (B,) from 1 to n.

    Raises:
        DataError: Scores are NaN, shapes do not fit, or a target is no item.
    """
    values, wanted = np.asarray(scores), np.asarray(targets)
    if values.ndim != 2 or wanted.shape != values.shape[:1]:
        raise DataError(
            f"Scores of shape {values.shape} came with targets of shape {wanted.shape}; expected "
            "(B, n) and (B,): one target for each row of scores."
        )
    if np.isnan(values).any():
        row = int(np.isnan(values).any(axis=1).argmax())
        raise DataError(
            f"Row {row} of the scores holds NaN, expected numbers; the model has diverged: train "
            "it again with a lower learning rate."
        )
    foreign = (wanted < 0) | (wanted >= values.shape[1])
    if foreign.any():
        raise DataError(
            f"Target {wanted[foreign][0]} came with scores of {values.shape[1]} items, expected 0 "
            f"to {values.shape[1] - 1}; pass item indices of the same catalogue."
        )
    own = np.take_along_axis(values, wanted[:, None], axis=1)
    return np.asarray((values >= own).sum(axis=1), np.int64)


def hit_ratio(ranks: ArrayLike, k: int) -> float:
    """Returns HR@k: the share of targets among the first k.

    Args:
        ranks: (B,) from `ranks`, at least one.
        k: Length of the list, at least 1.
    """
    return float((_checked(ranks, k) <= k).mean())


def ndcg(ranks: ArrayLike, k: int) -> float:
    """Returns NDCG@k: the mean of 1 / log2(rank + 1) over targets among the first k, else 0.

    With one relevant item the best possible gain is 1, so nothing is left to divide by.

    Args:
        ranks: (B,) from `ranks`, at least one.
        k: Length of the list, at least 1.
    """
    found = _checked(ranks, k)
    return float(np.where(found <= k, 1.0 / np.log2(found + 1.0), 0.0).mean())


def ranking_metrics(ranks: ArrayLike, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, float]:
    """Returns HR and NDCG by name, for example ``{"HR@5": 0.1, "NDCG@5": 0.07, ...}``.

    Args:
        ranks: (B,) from `ranks`, at least one.
        cutoffs: Lengths of the list.
    """
    found: dict[str, float] = {}
    for k in cutoffs:
        found |= {f"HR@{k}": hit_ratio(ranks, k), f"NDCG@{k}": ndcg(ranks, k)}
    return found


def _checked(ranks: ArrayLike, k: int) -> NDArray[np.int64]:
    found = np.asarray(ranks, np.int64)
    if not found.size or k < 1 or found.min() < 1:
        raise DataError(
            f"{found.size} ranks from {found.min(initial=1)} came with k={k}; expected at least "
            "one rank, ranks from 1 and k of at least 1."
        )
    return found
