"""Figures of merit: of returns over seeds and sessions, of learning, and of what was shown.

Returns are summed up as Agarwal et al. advise (2021, arXiv 2108.13264): the interquartile mean over
seeds, bootstrap intervals, and the probability that one algorithm beats another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "bootstrap_iqm",
    "category_entropy",
    "coverage",
    "exposure",
    "first_step",
    "gini",
    "interquartile_mean",
    "interval",
    "intra_session_diversity",
    "majority_categories",
    "majority_share",
    "mean_along",
    "median_or_never",
    "novelty",
    "probability_of_improvement",
    "share_of_the_way",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RESAMPLES = 2_000


# -- of returns ------------------------------------------------------------------------------------


def interquartile_mean(values: ArrayLike, axis: int = -1) -> FloatArray:
    """Returns the mean of what is left when the lowest and the highest quarter are cut off.

    A quarter is rounded down to whole values: of 5 seeds the middle three are averaged, of 4 the
    middle two, of 3 or fewer all (as ``scipy.stats.trim_mean(values, 0.25)`` does).

    Args:
        values: At least one along ``axis``.
        axis: What to average over.
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, np.float64), axis, -1), axis=-1)
    n = ordered.shape[-1]
    cut = n // 4
    return np.asarray(ordered[..., cut : n - cut].mean(axis=-1))


def bootstrap_iqm(
    sessions: Sequence[ArrayLike],
    *,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    stream: int = 0,
) -> FloatArray:
    """Draws seeds and sessions anew and returns the (resamples,) interquartile means.

    Each time the sessions are drawn with replacement, then the seeds; a seed counts with the mean
    of its sessions. With one seed it is the bootstrap of the mean over sessions.

    Args:
        sessions: For each seed (m,) one value per session.
        paired: Whether session k has the same user for every seed. Then every seed gets the same
            draw of sessions, so that the luck of the users does not average out over seeds.
        resamples: How often to draw.
        seed: Of the draws. Two calls with the same seed, ``paired`` and equally many sessions draw
            the same sessions: the difference of their results is that of a paired comparison.
        stream: Of the draws of seeds; differs between the two sides of a comparison, since nothing
            pairs the trainings of two algorithms.
    """
    values = [np.asarray(part, np.float64) for part in sessions]
    means = np.empty((len(values), resamples))
    for k, part in enumerate(values):
        times = _times_drawn(part.size, resamples, seed, 0 if paired else k)
        # single precision is enough for what the draws differ by
        apart = (part - part.mean()).astype(np.float32)
        means[k] = part.mean() + (times @ apart).astype(np.float64) / part.size
    of_seeds = np.random.default_rng([seed, 1, stream])
    chosen = of_seeds.integers(len(values), size=(resamples, len(values)))
    return interquartile_mean(means[chosen, np.arange(resamples)[:, None]])


@lru_cache(maxsize=8)
def _times_drawn(n: int, resamples: int, seed: int, part: int) -> NDArray[np.float32]:
    """Returns (resamples, n) how often each of n sessions is drawn."""
    draws = np.random.default_rng([seed, 0, part]).integers(n, size=(resamples, n))
    flat = (draws + n * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=n * resamples).reshape(resamples, n).astype(np.float32)


def interval(draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Returns the percentile interval of bootstrap draws.

    Args:
        draws: (resamples,) values.
        level: Coverage, in (0, 1).
    """
    low, high = np.quantile(np.asarray(draws, np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def probability_of_improvement(ours: ArrayLike, others: ArrayLike) -> float:
    """Returns P(X > Y) over all pairs of seeds; a tie counts one half.

    Args:
        ours: (n,) one value per seed, X.
        others: (m,) one value per seed, Y.
    """
    difference = np.subtract.outer(np.asarray(ours, np.float64), np.asarray(others, np.float64))
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def share_of_the_way(value: float, floor: float, ceiling: float) -> float:
    """Returns how far ``value`` is on the way from ``floor`` (0) to ``ceiling`` (1).

    NaN where the ceiling is not above the floor.
    """
    return (value - floor) / (ceiling - floor) if ceiling > floor else float("nan")


# -- of learning -----------------------------------------------------------------------------------


def first_step(curve: Sequence[tuple[int, float]], bar: float) -> float:
    """Returns the first evaluated step whose return is at or above ``bar``; infinity if none is.

    Args:
        curve: Steps, ascending, and returns.
        bar: The return to reach.
    """
    return next((float(step) for step, value in curve if value >= bar), float("inf"))


def mean_along(curve: Sequence[tuple[int, float]]) -> float:
    """Returns the area under a learning curve over its length, by the trapezoidal rule.

    Args:
        curve: Steps, ascending, and returns; at least two points.
    """
    steps, values = np.asarray(curve, np.float64).T
    between = (values[1:] + values[:-1]) / 2
    return float(np.average(between, weights=np.diff(steps)))


def median_or_never(values: ArrayLike) -> float | None:
    """Returns the median; None where it is not finite, hence where half of the values are not.

    Args:
        values: (n,) one value per seed, infinity for a seed that never got there.
    """
    found = np.asarray(values, np.float64)
    if found.size == 0:
        return None
    median = float(np.median(found))
    return median if np.isfinite(median) else None


# -- of what was shown -----------------------------------------------------------------------------


def exposure(actions: Sequence[Sequence[int]], n_items: int) -> IntArray:
    """Returns (n_items,) how often each item was shown.

    Args:
        actions: The items of each session.
        n_items: Size of the catalogue.
    """
    shown = [np.asarray(session, np.int64) for session in actions]
    items = np.concatenate(shown) if shown else np.zeros(0, np.int64)
    return np.bincount(items, minlength=n_items)


def coverage(shown: ArrayLike) -> float:
    """Returns the share of the catalogue that was shown at all.

    It grows with the number of sessions: compare it among equally many only.

    Args:
        shown: (n_items,) how often each item was shown.
    """
    return float((np.asarray(shown) > 0).mean())


def gini(shown: ArrayLike) -> float:
    """Returns the Gini coefficient of exposure: 0 where all items are shown alike.

    1 - 1/n_items where only one is; NaN where nothing was shown.

    Args:
        shown: (n_items,) how often each item was shown.
    """
    ordered = np.sort(np.asarray(shown, np.float64))
    n, total = ordered.size, ordered.sum()
    if total == 0:
        return float("nan")
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)


def intra_session_diversity(actions: Sequence[Sequence[int]], features: ArrayLike) -> float:
    """Returns the mean over sessions of the mean of 1 - cosine over all pairs of shown items.

    Sessions of fewer than two items are left out; NaN where none is left. An item without any
    feature is as far from every other as can be.

    Args:
        actions: The items of each session.
        features: (n_items, d) text embeddings or categories; rows are brought to length 1.
    """
    rows = np.asarray(features, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    squared = (norms[:, 0] > 0).astype(np.float64)
    found = []
    for session in actions:
        n = len(session)
        if n < 2:
            continue
        items = np.array(session, np.int64)
        total = unit[items].sum(axis=0)
        # over ordered pairs of different positions: |sum|^2 less the sum of |.|^2
        alike = total @ total - squared[items].sum()
        found.append(1.0 - alike / (n * (n - 1)))
    return float(np.mean(found)) if found else float("nan")


def category_entropy(shown: ArrayLike, categories: ArrayLike) -> float:
    """Returns the entropy of the categories of all shown items, in bits.

    An item with k categories counts 1/k for each of them; NaN where no shown item has any.

    Args:
        shown: (n_items,) how often each item was shown.
        categories: (n_items, C) 1 where an item carries a category.
    """
    flags = np.asarray(categories, np.float64)
    carried = flags.sum(axis=1, keepdims=True)
    weights = np.divide(flags, carried, out=np.zeros_like(flags), where=carried > 0)
    mass = np.asarray(shown, np.float64) @ weights
    if mass.sum() == 0:
        return float("nan")
    shares = mass[mass > 0] / mass.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def novelty(shown: ArrayLike, popularity: ArrayLike) -> float:
    """Returns the mean of -log2 of the popularity share of what was shown, in bits.

    The share of an item is (its train interactions + 1) / (all train interactions + n_items), so
    that items which nobody has touched have one as well. NaN where nothing was shown.

    Args:
        shown: (n_items,) how often each item was shown.
        popularity: (n_items,) train interactions.
    """
    counts = np.asarray(popularity, np.float64) + 1.0
    times = np.asarray(shown, np.float64)
    if times.sum() == 0:
        return float("nan")
    return float((times * -np.log2(counts / counts.sum())).sum() / times.sum())


def majority_categories(categories: ArrayLike, k: int = 3) -> IntArray:
    """Returns the k categories that most items of the catalogue carry; of equals the first.

    Args:
        categories: (n_items, C) 1 where an item carries a category.
        k: How many, at most C.
    """
    counts = np.asarray(categories, np.float64).sum(axis=0)
    return np.argsort(-counts, kind="stable")[:k]


def majority_share(shown: ArrayLike, categories: ArrayLike, k: int = 3) -> float:
    """Returns the share of shown items that carry one of the k most frequent categories.

    NaN where nothing was shown.

    Args:
        shown: (n_items,) how often each item was shown.
        categories: (n_items, C) 1 where an item carries a category.
        k: How many categories are the majority.
    """
    flags = np.asarray(categories, np.float64)
    times = np.asarray(shown, np.float64)
    if times.sum() == 0:
        return float("nan")
    carries = flags[:, majority_categories(flags, k)].any(axis=1)
    return float(times[carries].sum() / times.sum())
