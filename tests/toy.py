"""A prepared dataset written by hand, whose every reward, category and observation is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsim_env.datasets.dataset import Catalogue, Dataset, Interactions
from recsim_env.prepare import PrepareConfig, Prepared

CATEGORIES = (("a",), ("b",), ("a", "b"), ("c",), ("c",), ("a",))
REWARDS = np.array(
    [[5.0, 4.0, 3.0, 2.0, 1.0, 4.5], [1.0, 2.0, 3.0, 4.0, 5.0, 1.5], [3.0] * 6], np.float32
)
"""Of the train model, (users, items); those of the test model are 6 minus these."""

HISTORIES = ((0, 1), (3, 4), (2, 5))
"""Items of the train interactions of each user, oldest first."""


class ToyModel:
    """Rewards from a table; with a history of length k everything is worth 1 + k / 2."""

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = table

    def rows(self, users: Any = None, histories: Any = None, user_features: Any = None) -> Any:
        del user_features
        if histories is None:
            return self.table.copy() if users is None else self.table[users]
        worth = np.array([1.0 + len(history) / 2 for history in histories], np.float32)
        return np.repeat(worth[:, None], self.table.shape[1], axis=1)


class ToyTracker:
    """Its output is the sum of (item + 1) over history and session."""

    dim = 1

    def initial(self, histories: Any) -> dict[str, NDArray[Any]]:
        sums = [[float(sum(int(item) + 1 for item in history))] for history in histories]
        return {"sum": np.array(sums, np.float32).reshape(len(histories), 1)}

    def advance(self, state: dict[str, NDArray[Any]], items: Any) -> dict[str, NDArray[Any]]:
        state["sum"] += (np.asarray(items) + 1)[:, None]
        return state

    def output(self, state: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        return state["sum"]


def toy_prepared() -> Prepared:
    """Returns 3 users and 6 items; the user basis reproduces the train rewards exactly."""
    users, items = np.divmod(np.arange(18, dtype=np.int32), 6)
    order = np.zeros(18, np.int64)
    train = np.zeros(18, bool)
    for user, history in enumerate(HISTORIES):
        for place, item in enumerate(history):
            train[user * 6 + item] = True
            order[user * 6 + item] = place
    dataset = Dataset(
        name="toy",
        catalogue=Catalogue(
            item_ids=tuple("uvwxyz"),
            titles=("Ant", "Bee", "Cat", "Dog", "Eel", "Fox"),
            categories=CATEGORIES,
            texts=("",) * 6,
        ),
        interactions=Interactions(
            users=users, items=items, ratings=REWARDS.ravel().copy(), order=order
        ),
        user_ids=("p", "q", "r"),
        user_features=None,
        user_feature_names=(),
        statistics={},
    )
    root = np.float32(np.sqrt(6.0))
    angle = np.arange(6) * np.pi / 6
    models: Any = ToyModel(REWARDS), ToyModel(np.float32(6.0) - REWARDS)
    return Prepared(
        dataset=dataset,
        train_rows=train,
        test_rows=~train,
        train_model=models[0],
        test_model=models[1],
        tracker=ToyTracker(),
        user_basis=np.eye(6, dtype=np.float32) * root,
        user_offset=np.zeros(6, np.float32),
        user_vectors=REWARDS / root,
        text_embeddings=np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32),
        sessions=(),
        card={},
        path=Path("nowhere"),
        fingerprint="toy",
        contents="toy",
        config=PrepareConfig(),
    )
