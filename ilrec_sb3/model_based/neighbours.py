"""Rewards and uncertainty from the nearest users: the non-parametric part of ROLeR.

ROLeR (Zhang et al., 2024, arXiv 2407.13163) replaces the reward that a world model predicts for a
user and an item by what the most similar users' rewards for the item say, and the disagreement of
an ensemble by how far away these users are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

__all__ = ["Neighbours", "nearest_users", "neighbour_rewards", "neighbour_weights"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_QUERIES_AT_ONCE = 512


class Neighbours(NamedTuple):
    """The k nearest users of q users.

    Attributes:
        users: (q, k) user indices, the nearest first.
        similarity: (q, k) cosine similarities in [-1, 1].
    """

    users: IntArray
    similarity: FloatArray


def nearest_users(vectors: FloatArray, queries: FloatArray, k: int) -> Neighbours:
    """Finds the users with the highest cosine similarity; of equals the lower index.

    Args:
        vectors: (n_users, d) vectors of the users who are searched.
        queries: (q, d) vectors whose neighbours are wanted; a user who is among ``vectors`` is his
            own nearest neighbour.
        k: How many; no more than there are users are given.
    """
    k = min(k, len(vectors))
    unit = _unit(vectors)
    users = np.empty((len(queries), k), np.int64)
    similarity = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        part = slice(start, start + _QUERIES_AT_ONCE)
        cosine = _unit(queries[part]) @ unit.T
        nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        users[part] = nearest
        similarity[part] = np.take_along_axis(cosine, nearest, axis=1)
    return Neighbours(users, similarity.clip(-1.0, 1.0))


def neighbour_weights(similarity: FloatArray, weighted: bool) -> FloatArray:
    """Weights of the neighbours: alike, or in proportion to their similarity.

    Args:
        similarity: (q, k) cosine similarities; negative ones weigh nothing.
        weighted: Whether the similarity counts.

    Returns:
        (q, k) float32, rows of sum 1; alike where nobody is similar.
    """
    kept = np.maximum(similarity, 0.0) if weighted else np.ones_like(similarity)
    total = kept.sum(axis=1, keepdims=True)
    alike = np.float32(1.0 / similarity.shape[1])
    return np.where(total > 0, kept / np.where(total > 0, total, 1.0), alike).astype(np.float32)


def neighbour_rewards(
    rewards: FloatArray, users: IntArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    r"""Weighted mean and variance of the neighbours' rewards (ROLeR's reward shaping).

    :math:`\hat r(u, i) = \sum_j w_j r(u_j, i)` over the neighbours j of u.

    Args:
        rewards: (n_users, n_items) rewards of all users.
        users: (q, k) the neighbours.
        weights: (q, k) their weights, rows of sum 1.

    Returns:
        Mean and variance, both (q, n_items) float32.
    """
    q, k = users.shape
    row_starts = np.arange(0, q * k + 1, k)
    picked = csr_matrix((weights.ravel(), users.ravel(), row_starts), shape=(q, len(rewards)))
    centred = rewards - np.float32(3.0)  # around 3 the squares lose fewer digits than around 0
    mean = np.asarray(picked @ centred, np.float32)
    square = np.asarray(picked @ np.square(centred, out=centred), np.float32)
    variance = np.maximum(square - np.square(mean), np.float32(0.0))
    return mean + np.float32(3.0), variance


def _unit(vectors: FloatArray) -> FloatArray:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norm > 0, norm, 1.0), np.float32)
