"""World model against user and item biases, and state trackers, on held-out data.

Run: ``python benchmarks/world_model.py --data FOLDER [--dataset steam] [--seeds 5]``. Prints
markdown tables and writes them to ``benchmarks/results/world_model_{dataset}.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recsim_env import datasets
from recsim_env.card import agreement
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.splits import split_interactions
from recsim_env.encoders import EncoderConfig, Kind, Objective, fit_encoder
from recsim_env.tracker import make_tracker
from recsim_env.world_model import WorldModel

RESULTS = Path(__file__).parent / "results"
SESSIONS = 1024


def row(cells: Iterable[Any]) -> str:
    """Returns one line of a markdown table."""
    texts = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(texts)} |"


def head(names: Iterable[str]) -> Iterator[str]:
    """Yields the head of a markdown table."""
    names = list(names)
    yield row(names)
    yield row(["---", *["---:"] * (len(names) - 1)])


def world_models(dataset: Dataset, seeds: int, progress: bool) -> Iterator[str]:
    """Yields the table of the world models: both halves of the split, for every seed."""
    yield "## World model: 10 % of each half held out"
    yield ""
    yield from head(
        [
            "seed, half",
            "constant RMSE",
            "biases RMSE",
            "DeepFM RMSE",
            "difference",
            "biases MAE",
            "DeepFM MAE",
            "RMSE by history alone",
            "variance / squared error",
            "epochs",
            "seconds",
        ]
    )
    gains, alike = [], []
    for seed in range(seeds):
        split = split_interactions(dataset.interactions, seed=seed)
        rows = []
        for name, part, shift in (("train", split.train, 0), ("test", split.test, 1)):
            model = WorldModel.fit(dataset, part, seed=seed + shift, progress=progress)
            report = model.report
            gains.append(report["rmse"] - report["biases"]["rmse"])
            rows.append(model.rows())
            yield row(
                [
                    f"{seed}, {name}",
                    report["constant"]["rmse"],
                    report["biases"]["rmse"],
                    report["rmse"],
                    gains[-1],
                    report["biases"]["mae"],
                    report["mae"],
                    report["model_unknown_user"]["rmse"],
                    report["calibration"]["variance_over_squared_error"],
                    report["epochs"],
                    round(report["seconds"], 1),
                ]
            )
        alike.append(agreement(rows[0], rows[1], seed))
    spread = np.std(gains, ddof=1) / np.sqrt(len(gains))
    yield ""
    yield (
        f"DeepFM less biases, RMSE: mean {np.mean(gains):.4f} (standard error {spread:.4f}), "
        f"better in {sum(gain < 0 for gain in gains)} of {len(gains)} fits."
    )
    yield ""
    means = {name: float(np.mean([a[name] for a in alike])) for name in alike[0]}
    yield "Train and test model, all users and items: " + ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items()
    )
    yield ""


def trackers(dataset: Dataset, seeds: int, progress: bool) -> Iterator[str]:
    """Yields the table of the state trackers, means over seeds."""
    names = ["hr_at_10", "hr_at_10_popular", "rating_rmse", "rating_rmse_item_mean", "epochs"]
    yield "## State trackers: a tenth of the users held out"
    yield ""
    yield from head(
        ["tracker, objective", *(n.replace("_", " ") for n in names), "seconds", "ms / 1,024 steps"]
    )
    kinds: tuple[Kind, ...] = ("gru", "sasrec")
    objectives: tuple[Objective, ...] = ("next_item", "rating")
    for kind in kinds:
        for objective in objectives:
            reports = []
            for seed in range(seeds):
                part = split_interactions(dataset.interactions, seed=seed).train
                config = EncoderConfig(kind=kind, objective=objective)
                encoder, report = fit_encoder(dataset, part, config, seed, progress)
                reports.append(report)
            tracker = make_tracker(encoder)
            state = tracker.initial([np.zeros(0, np.int64)] * SESSIONS)
            items = np.random.default_rng(0).integers(dataset.n_items, size=SESSIONS)
            times = []
            for _ in range(20):
                started = time.perf_counter()
                state = tracker.advance(state, items)
                times.append(time.perf_counter() - started)
            yield row(
                [
                    f"{kind}, {objective.replace('_', ' ')}",
                    *(float(np.mean([r[name] for r in reports])) for name in names),
                    float(np.mean([r["seconds"] for r in reports])),
                    1000 * min(times),
                ]
            )
    yield ""


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="steam", choices=datasets.names())
    parser.add_argument("--data", help="folder with the raw data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tracker-seeds", type=int, default=2)
    parser.add_argument("--progress", action="store_true")
    given = parser.parse_args()
    dataset = datasets.load(given.dataset, root=given.data)
    lines = [
        f"# World model and state tracker on {dataset.name}",
        "",
        f"{dataset.n_users} users, {dataset.n_items} items, {len(dataset.interactions)} "
        f"interactions; {given.seeds} seeds for the world model, {given.tracker_seeds} for the "
        "trackers.",
        "",
    ]
    for part in (
        world_models(dataset, given.seeds, given.progress),
        trackers(dataset, given.tracker_seeds, given.progress),
    ):
        for line in part:
            lines.append(line)
    text = "\n".join(lines)
    sys.stdout.write(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"world_model_{dataset.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
