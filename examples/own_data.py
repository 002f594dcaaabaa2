"""Your own data: two tables become a dataset, a simulator and an environment."""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd

from ilrec_sb3 import ILRec
from recsim_env import prepare
from recsim_env.datasets import from_tables, save_custom

folder = Path(tempfile.mkdtemp())

# 1. Two tables. Yours exist already; these are made up: readers who give books 0 to 10 points.
random = np.random.default_rng(0)
genres = ["crime", "history", "poetry", "science", "travel"]
books = pd.DataFrame(
    {
        "item_id": [f"book-{i}" for i in range(40)],
        "title": [f"Book no. {i}" for i in range(40)],
        "genres": [
            "|".join(random.choice(genres, size=1 + i % 2, replace=False)) for i in range(40)
        ],
    }
)
readings = pd.DataFrame(
    [
        {"reader": f"reader-{user}", "item_id": f"book-{item}", "points": (user * item) % 11}
        for user in range(50)
        for item in random.choice(40, size=12, replace=False)
    ]
)
books.to_csv(folder / "books.csv", index=False)
readings.to_csv(folder / "readings.csv", index=False)

# 2. A dataset: columns that have another name than expected are named, the scale is mapped.
dataset = from_tables(
    folder / "readings.csv",
    folder / "books.csv",
    name="books",
    columns={"user": "reader", "rating": "points"},
    rating_scale=(0, 10),
)
print(dataset.table())

# 3. Kept under its name, prepared, and an environment like any other.
save_custom(dataset, cache=folder)
prepared = prepare("books", cache=folder, progress=False)
env = gym.make("IlRecCustom-v0", dataset="books", cache=folder, window=10, max_repeats=4)
model = ILRec("MlpPolicy", env, warm_start_steps=50, seed=0).learn(500)

observation, _ = env.reset(seed=0, options={"history": [3, 14, 15]})  # a new reader, by history
action, _ = model.predict(
    observation, deterministic=True, action_masks=env.unwrapped.action_masks()
)
print("recommended first:", prepared.dataset.catalogue.titles[int(action)])
