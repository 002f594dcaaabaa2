"""How many ways the logs go on after the last items: the entropy term of DORL.

DORL (Gao et al., 2023, arXiv 2307.04571) relaxes pessimism where the logging policy was undecided:
a state is known by the last items shown, and worth the entropy of what followed them in the logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsim_env.errors import DataError

__all__ = ["SuccessorEntropy", "grouped_entropy"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


def grouped_entropy(
    groups: IntArray, counts: IntArray, n_groups: int, unseen: float
) -> NDArray[np.float64]:
    r"""Normalised entropy of the successors of each group (DORL's entropy penalty).

    :math:`-\sum_x p(x) \log p(x) / \log m` with m the number of different successors, so that any
    even choice is worth 1 and a choice that never varies 0. A group that was followed once only
    says nothing and counts as unseen. (The published code gives 1 to every group with one
    successor, however often it came; here only where it came once.)

    Args:
        groups: (s,) the group of each pair of group and successor, in [0, n_groups).
        counts: (s,) how often the pair was seen, at least 1.
        n_groups: Number of groups; each has at least one pair.
        unseen: Value of a group that was followed once.

    Returns:
        (n_groups,) values in [0, 1] (or ``unseen``).
    """
    total = np.bincount(groups, counts, minlength=n_groups)
    different = np.bincount(groups, minlength=n_groups)
    share = counts / total[groups]
    entropy = np.bincount(groups, -share * np.log(share), minlength=n_groups)
    entropy = np.clip(entropy / np.log(np.maximum(different, 2)), 0.0, 1.0)
    return np.where(total > 1, entropy, unseen)


@dataclass(frozen=True, eq=False)
class SuccessorEntropy:
    """Looks up the entropy of what followed the last items in the logs.

    The last j items are taken as a multiset (their order does not matter), for j = 1 to the order;
    the values are summed. Made by :meth:`fit`.

    Attributes:
        labels: (n_items,) the label of each item: itself, or the group of items it belongs to.
        n_labels: Number of labels.
        keys: For each j the known multisets, encoded as numbers and sorted.
        values: For each j (len(keys[j]),) float32 their entropies.
        unseen: Value of a multiset that is not in the logs, or longer than the session.
    """

    labels: IntArray
    n_labels: int
    keys: tuple[IntArray, ...]
    values: tuple[FloatArray, ...]
    unseen: float

    def __repr__(self) -> str:
        """Returns the sizes."""
        patterns = ", ".join(str(len(keys)) for keys in self.keys)
        return f"SuccessorEntropy({self.n_labels} labels, patterns by length: {patterns})"

    @property
    def order(self) -> int:
        """How many of the last items count, the current one included."""
        return len(self.keys)

    @classmethod
    def fit(
        cls,
        sequences: Sequence[IntArray],
        labels: IntArray,
        order: int = 2,
        unseen: float = 1.0,
    ) -> SuccessorEntropy:
        """Counts the successors in logged sequences.

        Args:
            sequences: For each user the item indices, oldest first; may be empty.
            labels: (n_items,) label of each item, from 0.
            order: How many of the last items count, 1 to 4.
            unseen: Value of what the logs do not tell; 1 favours it, 0 shuns it.

        Raises:
            DataError: Where multisets of so many labels have no number of 63 bits.
        """
        n_labels = int(labels.max()) + 1
        if n_labels ** (order + 1) >= 2**63:
            raise DataError(
                f"order={order} came for {n_labels} labels, expected fewer than 2**63 patterns; "
                "lower the order."
            )
        flat = labels[np.concatenate([np.empty(0, np.int64), *sequences]).astype(np.int64)]
        owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
        keys, values = [], []
        for length in range(1, order + 1):
            starts = np.flatnonzero(owner[length:] == owner[: max(0, len(owner) - length)])
            windows = flat[starts[:, None] + np.arange(length + 1)[None, :]]
            pairs, counts = np.unique(
                _encode(windows[:, :-1], n_labels) * n_labels + windows[:, -1], return_counts=True
            )
            known, groups = np.unique(pairs // n_labels, return_inverse=True)
            keys.append(known)
            entropy = grouped_entropy(groups, counts, len(known), unseen)
            values.append(entropy.astype(np.float32))
        return cls(np.asarray(labels, np.int64), n_labels, tuple(keys), tuple(values), unseen)

    def __call__(self, last: IntArray) -> FloatArray:
        """Returns (n,) float32, the sum over j = 1 to the order, in [0, order].

        Args:
            last: (n, order) the last items, the current one included and first; -1 where the
                session has no more.
        """
        labels = self.labels[last]
        total = np.zeros(len(last), np.float32)
        for length, (keys, values) in enumerate(zip(self.keys, self.values, strict=True), start=1):
            if not len(keys):
                total += np.float32(self.unseen)
                continue
            wanted = _encode(labels[:, :length], self.n_labels)
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            known = (keys[place] == wanted) & (last[:, length - 1] >= 0)
            total += np.where(known, values[place], np.float32(self.unseen))
        return total


def _encode(labels: IntArray, n_labels: int) -> IntArray:
    """Returns (n,) one number per multiset of (n, j) labels."""
    code = np.zeros(len(labels), np.int64)
    for column in np.sort(labels, axis=1).T:
        code = code * n_labels + column
    return code
