"""What a session's rewards tell about its user: an update of the user vector, item by item."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsim_env.errors import DataError

__all__ = ["Feedback", "updated_beliefs"]

FloatArray = NDArray[np.float32]


def updated_beliefs(
    vectors: FloatArray,
    covariances: FloatArray,
    columns: FloatArray,
    surprises: FloatArray,
    noise: float,
) -> tuple[FloatArray, FloatArray]:
    """Conditions normal beliefs about user vectors on one reward each.

    Rasmussen and Williams (2006), eq. 2.8, for one observation at a time (recursive least squares):
    with gain g = C b / (b' C b + noise), the mean moves to v + g e and the covariance to C - g (C
    b)'.

    Args:
        vectors: (n, K) means v.
        covariances: (n, K, K) covariances C.
        columns: (n, K) row b of the user basis, of the item that was shown.
        surprises: (n,) rewards less those that the means predicted, e.
        noise: Variance of a reward that user vectors do not explain.

    Returns:
        (n, K) means and (n, K, K) covariances, float32.
    """
    moved = np.einsum("nij,nj->ni", covariances, columns)
    spread = np.einsum("ni,ni->n", columns, moved) + noise
    gains = moved / spread[:, None]
    return (
        (vectors + gains * surprises[:, None]).astype(np.float32),
        (covariances - gains[:, :, None] * moved[:, None, :]).astype(np.float32),
    )


@dataclass(frozen=True, eq=False)
class Feedback:
    """Lets observations follow what a session's rewards tell about its user.

    The user vector of an observation starts as the train world model has it and is then updated
    with every reward (`updated_beliefs`), as peers feed the rewards of a session to their state
    trackers. Rewards that the world model foresaw leave it where it is.

    Attributes:
        covariance: (K, K) of what the world model does not know about a user's vector.
        noise: Variance of a reward that user vectors do not explain, above 0. Raising it makes
            beliefs move less.
    """

    covariance: FloatArray = field(repr=False)
    noise: float

    def __post_init__(self) -> None:
        """Checks shapes and ranges."""
        matrix = np.asarray(self.covariance, np.float32)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
            raise DataError(
                f"Feedback.covariance has shape {matrix.shape}, expected a finite square matrix, "
                "one row for each number of a user vector."
            )
        if not np.allclose(matrix, matrix.T, atol=1e-5) or np.linalg.eigvalsh(matrix)[0] < -1e-5:
            raise DataError(
                "Feedback.covariance is not one: expected a symmetric matrix without negative "
                "eigenvalues."
            )
        if not self.noise > 0:
            raise DataError(f"Feedback.noise is {self.noise}, expected a variance above 0.")
        object.__setattr__(self, "covariance", matrix)
