"""How what was measured (hours, clicks, other scales) becomes a rating from 1 to 5."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import RATING_RANGE
from recsim_env.errors import DataError

__all__ = ["SCALES", "guess_scale", "quantile_ratings", "rescale"]

SCALES: tuple[tuple[float, float], ...] = (
    (1.0, 5.0),
    (0.0, 1.0),
    (-1.0, 1.0),
    (0.5, 5.0),
    (0.0, 5.0),
    (1.0, 10.0),
    (0.0, 10.0),
    (0.0, 100.0),
)
"""Rating scales that are recognised from the ratings alone, in order of preference."""


def quantile_ratings(amounts: npt.ArrayLike, levels: int | None = None) -> npt.NDArray[np.float32]:
    """Maps amounts of use, such as hours, to ratings by their quantile over the whole set.

    The quantile q of an amount is the share of rows below it, with half of the rows that equal
    it. The rating is 1 + 4 q, so the ratings are spread evenly over [1, 5] and a rating says which
    share of all plays was shorter. A quantile does not change under the logarithm: quantiles of
    hours and of log-hours are the same. The quantile is over the whole set, not per item: one per
    item would give every item the same mean and take away what can be learned about quality.

    By default the rating is continuous: hours have no natural steps, and cutting them into five
    levels adds noise of variance 1/12 of a level squared to what the world model has to fit.

    Args:
        amounts: One per row, (n,), finite, 0 or more.
        levels: Number of equally filled steps, 2 or more, that 1 to 5 is cut into (5: whole
            stars); None: continuous.

    Returns:
        Ratings, (n,) float32 in [1, 5].

    Raises:
        DataError: An amount is negative or no number, or `levels` is below 2.
    """
    values = np.asarray(amounts, dtype=np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        worst = values[~(np.isfinite(values) & (values >= 0))][0]
        raise DataError(
            f"The amount {worst} came, expected finite amounts (hours, clicks) of 0 or more: "
            "drop or mend those rows."
        )
    if levels is not None and levels < 2:
        raise DataError(f"levels={levels} came, expected 2 or more, or None: give for example 5.")
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    quantile = (below + not_above) / (2.0 * max(values.size, 1))
    if levels is not None:
        quantile = np.minimum(np.floor(quantile * levels), levels - 1) / (levels - 1)
    low, high = RATING_RANGE
    return (low + (high - low) * quantile).astype(np.float32)


def guess_scale(ratings: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Returns the narrowest of the usual scales that holds all ratings.

    Whole numbers from 1 to 5 are taken as they are. Ratings that fit into 1 to 5 but go below 1
    are on a scale that starts at 0 or -1.

    Args:
        ratings: (n,), finite.

    Raises:
        DataError: No usual scale holds them.
    """
    low, high = float(ratings.min()), float(ratings.max())
    for scale in SCALES:
        if scale[0] <= low and high <= scale[1]:
            return scale
    raise DataError(
        f"Ratings from {low:g} to {high:g} came, expected one of the scales "
        f"{', '.join(f'{a:g} to {b:g}' for a, b in SCALES)}: give rating_scale=(lowest, highest)."
    )


def rescale(
    ratings: npt.NDArray[np.float64], scale: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Maps a rating scale linearly to 1 to 5.

    Args:
        ratings: (n,), within `scale`.
        scale: The lowest and the highest rating that the scale has.

    Raises:
        DataError: The scale is no interval or a rating lies outside of it.
    """
    bottom, top = scale
    if not (math.isfinite(bottom) and math.isfinite(top) and bottom < top):
        raise DataError(
            f"The rating scale {scale} came, expected (lowest, highest) with lowest < highest."
        )
    outside = ~((ratings >= bottom) & (ratings <= top))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"{int(outside.sum())} ratings are no numbers from {bottom:g} to {top:g} (row {row} "
            f"has {ratings[row]:g}), expected only such: drop them or give another rating_scale."
        )
    low, high = RATING_RANGE
    return (low + (high - low) * (ratings - bottom) / (top - bottom)).astype(np.float32)
