"""Several continuations of one prompt in one pass of the language model.

The reward prompts of all actions and the choice prompt begin with the user prompt. A row of a batch
is the prefix and then its branches, one after the other. A place of a branch attends to the prefix
and to what precedes it in its own branch, and its position is counted as if its branch stood alone
behind the prefix. So the prefix is computed once, in training as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from numpy.typing import NDArray

__all__ = ["Forest", "plant", "tree_mask"]

_PADDING = -1
Codes = Sequence[int]


@dataclass(frozen=True, eq=False, repr=False)
class Forest:
    """B trees in rows of T places.

    Attributes:
        codes: (B, T) int64, 0 at places that hold nothing.
        positions: (B, T) int64, the place in the text that a branch would be with its prefix.
        segments: (B, T) int64, 0 in the prefix, 1, 2, ... in the branches, -1 where nothing is.
        ends: (B, 1 + k) int64, where the prefix and each branch end.
    """

    codes: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    ends: NDArray[np.int64]


def plant(prefixes: Sequence[Codes], branches: Sequence[Sequence[Codes]]) -> Forest:
    """Lays trees out as rows.

    Args:
        prefixes: B prompts of at least one code.
        branches: For each of them k continuations of at least one code; k is the same for all.
    """
    rows = [
        [*prefix, *(code for branch in own for code in branch)]
        for prefix, own in zip(prefixes, branches, strict=True)
    ]
    shape = (len(rows), max(map(len, rows)))
    codes, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments = np.full(shape, _PADDING, np.int64)
    ends = np.zeros((len(rows), 1 + len(branches[0])), np.int64)
    for number, (row, prefix, own) in enumerate(zip(rows, prefixes, branches, strict=True)):
        codes[number, : len(row)] = row
        at = 0
        for segment, part in enumerate((prefix, *own)):
            first = len(prefix) if segment else 0
            positions[number, at : at + len(part)] = np.arange(first, first + len(part))
            segments[number, at : at + len(part)] = segment
            at += len(part)
            ends[number, segment] = at - 1
    return Forest(codes, positions, segments, ends)


def tree_mask(segments_BT: th.Tensor, dtype: th.dtype) -> th.Tensor:
    """Returns what is added to the attention scores: 0 where attention is allowed.

    Args:
        segments_BT: As in `Forest`.
        dtype: Of the language model.

    Returns:
        (B, 1, T, T), query before key; the smallest number of the type where it is not allowed.
    """
    width = segments_BT.shape[1]
    earlier_TT = th.ones(width, width, dtype=th.bool, device=segments_BT.device).tril()
    own_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    prefix_B1T = (segments_BT == 0)[:, None, :]
    allowed_BTT = earlier_TT & (own_BTT | prefix_B1T)
    mask = th.zeros(allowed_BTT.shape, dtype=dtype, device=segments_BT.device)
    return mask.masked_fill(~allowed_BTT, th.finfo(dtype).min)[:, None]
