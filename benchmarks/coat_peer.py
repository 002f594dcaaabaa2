"""Coat in EasyRL4Rec's settings: floor and ceiling without learning, and how its world model ranks.

Run: ``python benchmarks/coat_peer.py --data FOLDER``. Writes ``benchmarks/results/coat_peer.md``.
The second table is what the world model's settings were chosen by: cross-validation on the
self-selected ratings. No test rating and nothing of the pseudo ground truth enters it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsim_env.datasets import Dataset, load
from recsim_env.dynamics import Dynamics, State
from recsim_env.easyrl4rec import COAT_CONFIG, COAT_OPTIONS, RatingDistance, easyrl4rec_stage
from recsim_env.planners import Planner, greedy, known_rewards, run_episodes
from recsim_env.world_model import Biases, WorldModel, WorldModelConfig

RESULTS = Path(__file__).parent / "results" / "coat_peer.md"
SESSIONS = 2000
FOLDS = 5
Floats = NDArray[np.floating]
Predictor = Callable[[NDArray[np.bool_], int], Floats]
"""Gives (n,) predictions for the rows that are False, from those that are True, of a fold."""


def masked_random(_: Dynamics, state: State, generator: np.random.Generator) -> NDArray[np.int64]:
    """Any item that the mask leaves."""
    return np.asarray(np.where(state.mask, generator.random(state.mask.shape), -1.0).argmax(axis=1))


def careful(rule: RatingDistance, rewards: Callable[[Dynamics, State], Floats]) -> Planner:
    """Plays the best item that the rule lets pass, in NX_10 too, as the peers' policies do."""

    def act(dynamics: Dynamics, state: State, _: np.random.Generator) -> NDArray[np.int64]:
        table = np.asarray(rewards(dynamics, state))
        scores = np.where(state.mask, table, -np.inf)
        ends = rule.ends(dynamics.context(state, state.users, table[:, 0]))
        safe = np.where(ends, -np.inf, scores)
        stuck = np.isneginf(safe).all(axis=1, keepdims=True)
        return np.asarray(np.where(stuck, scores, safe).argmax(axis=1))

    return act


def remembered_rewards(dynamics: Dynamics, state: State) -> Floats:
    """What the observation tells, and for items that were shown before what they earned then."""
    rewards = known_rewards(dynamics, state).copy()
    earned = dynamics.reward_table(state)
    for row, (shown, steps) in enumerate(zip(state.shown, state.steps, strict=True)):
        seen = shown[:steps]
        rewards[row, seen] = earned[row, seen]
    return rewards


def planners(data: str | None, short_window: bool) -> Iterator[str]:
    """Yields the table of planners, return / reward per step / length in each mode."""
    _, tests = easyrl4rec_stage(data, short_window=short_window)
    rule = tests["FB"].rules[0]
    assert isinstance(rule, RatingDistance)
    players: Mapping[str, Planner] = {
        "random": masked_random,
        "greedy on the train world model": greedy,
        "the same, avoids quitting": careful(rule, known_rewards),
        "the same, and remembers what a session's items earned": careful(rule, remembered_rewards),
        "myopic oracle, avoids quitting": careful(rule, Dynamics.reward_table),
    }
    yield f"| | {' | '.join(tests)} |"
    yield f"|---|{'---:|' * len(tests)}"
    for name, player in players.items():
        cells = []
        for dynamics in tests.values():
            played = run_episodes(dynamics, player, SESSIONS, seed=0)
            total, steps = played.returns.mean(dtype=np.float64), played.lengths.mean()
            cells.append(f"{total:.2f} / {total / steps:.2f} / {steps:.2f}")
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def scores(users: NDArray[np.int32], truth: Floats, guess: Floats) -> tuple[float, float, float]:
    """Returns the RMSE, the share of a user's pairs in the right order, and the NDCG."""
    right = pairs = 0.0
    gains = []
    for user in np.unique(users):
        a, b = truth[users == user], guess[users == user]
        differ = np.triu(a[:, None] != a, 1)
        agree = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
        right += float(((1.0 + agree) / 2.0)[differ].sum())
        pairs += float(differ.sum())
        if np.ptp(a) > 0:
            discount = 1.0 / np.log2(np.arange(len(a)) + 2.0)
            gain = 2.0**a - 1.0
            best = float((np.sort(gain)[::-1] * discount).sum())
            gains.append(float((gain[np.argsort(-b, kind="stable")] * discount).sum()) / best)
    rmse = float(np.sqrt(np.mean((guess - truth) ** 2)))
    return rmse, right / pairs, float(np.mean(gains))


def folds(dataset: Dataset) -> NDArray[np.int64]:
    """Returns the fold of each rating; every user's ratings are spread over all of them."""
    generator = np.random.default_rng(5)
    users = dataset.interactions.users
    fold = np.zeros(len(users), np.int64)
    for user in range(dataset.n_users):
        rows = np.flatnonzero(users == user)
        fold[generator.permutation(rows)] = np.arange(len(rows)) % FOLDS
    return fold


def cross_validation(data: str | None) -> Iterator[str]:
    """Yields the table of world models."""
    dataset = load("coat", root=data, **COAT_OPTIONS)
    plain = load("coat", root=data, splits=COAT_OPTIONS["splits"])
    table = dataset.interactions
    shape = dataset.n_users, dataset.n_items

    def biases(fit: NDArray[np.bool_], _: int) -> Floats:
        model = Biases.fit(table.users[fit], table.items[fit], table.ratings[fit], shape)
        return model.predict(table.users[~fit], table.items[~fit])

    def world_model(config: WorldModelConfig, on: Dataset = dataset) -> Predictor:
        def predict(fit: NDArray[np.bool_], fold: int) -> Floats:
            model = WorldModel.fit(on, fit, config, seed=fold, progress=False)
            return model.predict(
                table.users[~fit].astype(np.int64), table.items[~fit].astype(np.int64)
            )[0]

        return predict

    chosen = COAT_CONFIG.world_model
    models: dict[str, Predictor] = {
        "user and item biases": biases,
        "DeepFM, default settings, type and colour of a coat": world_model(
            WorldModelConfig(), plain
        ),
        "DeepFM, default settings, all four features": world_model(WorldModelConfig()),
        "the same, 10 % of the rows kept aside, not 20 %": world_model(
            WorldModelConfig(card_fraction=0.0)
        ),
        "the same, unknown_user_dropout 0.1, weight_decay 64": world_model(
            replace(chosen, kernel_share=None)
        ),
        **{
            f"the same, kernel_share {share}": world_model(replace(chosen, kernel_share=share))
            for share in (0.5, 0.8, 1.0)
        },
    }
    fold = folds(dataset)
    yield "| | RMSE | pairs in the right order | NDCG |"
    yield "|---|---:|---:|---:|"
    for name, predict in models.items():
        found = [
            scores(table.users[fold == k], table.ratings[fold == k], predict(fold != k, k))
            for k in range(FOLDS)
        ]
        rmse, order, ndcg = np.mean(found, axis=0)
        yield f"| {name} | {rmse:.4f} | {order:.4f} | {ndcg:.4f} |"


def report(data: str | None) -> Iterator[str]:
    """Yields the lines of the report."""
    yield "# Coat in EasyRL4Rec's settings"
    yield ""
    yield (
        f"Return / reward per step / length over {SESSIONS} sessions, seed 0. In NX_10 quitting is "
        "ignored; players that avoid quitting avoid it there too."
    )
    yield ""
    yield "## With the last 7 items compared"
    yield ""
    yield from planners(data, short_window=False)
    yield "## With the published simulator's slice (`short_window=True`)"
    yield ""
    yield from planners(data, short_window=True)
    yield "## World models, 5-fold cross-validation on the self-selected ratings"
    yield ""
    yield from cross_validation(data)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with the raw data")
    given = parser.parse_args()
    lines = []
    for line in report(given.data):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        lines.append(line)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
