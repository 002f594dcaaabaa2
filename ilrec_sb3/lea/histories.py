"""From what a caller passes as histories to left-padded arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsim_env.errors import DataError

__all__ = ["Histories", "padded_histories"]

Histories = NDArray[np.integer] | Sequence[Sequence[int]] | Sequence[NDArray[np.integer]]
"""(B, any) left-padded item indices, or B sequences of different lengths, oldest item first."""


def padded_histories(histories: Histories, length: int, n_items: int) -> NDArray[np.int64]:
    """Returns the last items of each history, padded on the left.

    Args:
        histories: Item indices, oldest first; ``n_items`` pads on the left.
        length: How many items are kept.
        n_items: Size of the catalogue and the index of padding.

    Returns:
        (B, length).

    Raises:
        DataError: A history is empty or all padding, an item is unknown, or padding follows one.
    """
    if isinstance(histories, np.ndarray) and histories.ndim == 2:
        found = _fit(histories, length, n_items)
    else:
        found = np.full((len(histories), length), n_items, np.int64)
        for row, history in zip(found, histories, strict=True):
            kept = np.asarray(history)[-length:] if np.ndim(history) == 1 else None
            if kept is None:
                raise DataError(
                    f"A history of shape {np.shape(history)} came, expected a sequence of item "
                    "indices for each user; wrap the one history in a list."
                )
            if len(kept):
                row[length - len(kept) :] = _integers(kept)
    _check(found, n_items)
    return found


def _fit(histories: NDArray[np.integer], length: int, n_items: int) -> NDArray[np.int64]:
    kept = _integers(histories[:, -length:])
    missing = length - kept.shape[1]
    if not missing:
        return kept
    padding = np.full((len(kept), missing), n_items, np.int64)
    return np.concatenate([padding, kept], axis=1)


def _integers(values: NDArray[np.integer]) -> NDArray[np.int64]:
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"Histories of type {values.dtype} came, expected item indices as whole numbers; look "
            "external ids up in data.item_ids first."
        )
    return values.astype(np.int64, copy=False)


def _check(histories: NDArray[np.int64], n_items: int) -> None:
    foreign = (histories < 0) | (histories > n_items)
    if foreign.any():
        row = int(foreign.any(axis=1).argmax())
        raise DataError(
            f"Item {histories[foreign][0]} came in history {row}, expected 0 to {n_items - 1} (or "
            f"{n_items} as padding); leave out items that the model was not trained on."
        )
    there = histories < n_items
    if not there[:, -1].all():
        row = int((~there[:, -1]).argmax())
        what = "padding after its last item" if there[row].any() else "no items"
        raise DataError(
            f"History {row} came with {what}, expected at least one item and padding on the left "
            "only; for users without history rank items by how often they were taken."
        )
    if (there[:, :-1] > there[:, 1:]).any():
        row = int((there[:, :-1] > there[:, 1:]).any(axis=1).argmax())
        raise DataError(
            f"History {row} came with padding between its items, expected it on the left only; "
            "leave it out."
        )
