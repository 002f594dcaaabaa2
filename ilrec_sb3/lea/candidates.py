"""Items that a trained recommender puts to the language model to choose from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ilrec_sb3.lea.recommender import LEA
from recsim_env.sequences import Examples

__all__ = ["top_items"]


def top_items(
    model: LEA, examples: Examples, k: int = 5, repeats: bool = True
) -> NDArray[np.int64]:
    """Returns the first items of the supervised head for each example (LEA, 3.4).

    Args:
        model: Trained for a while; "Normal" will do.
        examples: Whose histories to look at; what came next is not.
        k: How many; 5 in the paper.
        repeats: Whether items of the history may be among them, see `LEA.predict`.

    Returns:
        (m, k) item indices, the best first.
    """
    return model.predict(examples.histories, k, repeats)
