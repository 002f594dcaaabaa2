"""Model card: what was measured when a dataset was prepared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import spearmanr

from recsim_env.datasets.dataset import Catalogue
from recsim_env.datasets.titles import normalise_title
from recsim_env.world_model import WorldModel

__all__ = ["agreement", "card_table", "outside_check"]

_SAMPLE = 200_000
_LEFT = -1000.0  # the recorded simulator's mark of a user who left: no rating
_CATALOGUE_FOLDERS = {"steam": "steam", "amazon": "amazon_book"}


def agreement(
    first: NDArray[np.float32], second: NDArray[np.float32], seed: int = 0
) -> dict[str, float]:
    """Says how alike two models rate all pairs of user and item.

    Args:
        first: (n_users, n_items) ratings.
        second: (n_users, n_items) ratings.
        seed: Of the sample of pairs that the rank correlation is computed on.

    Returns:
        Pearson correlation over all pairs, the same within users (each user's mean taken off),
        and Spearman's over at most 200,000 pairs.
    """
    rng = np.random.default_rng(seed)
    size = min(_SAMPLE, first.size)
    pairs = (
        rng.choice(first.size, size, replace=False)
        if first.size < 10**8
        else rng.integers(first.size, size=size)
    )
    return {
        "pearson": _pearson(first, second),
        "pearson_within_user": _pearson(
            first - first.mean(1, keepdims=True), second - second.mean(1, keepdims=True)
        ),
        "spearman": _spearman(first.ravel()[pairs], second.ravel()[pairs]),
        "rms_difference": float(np.sqrt(np.mean((first - second) ** 2))),
    }


def _pearson(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    a = first.ravel().astype(np.float64)
    b = second.ravel().astype(np.float64)
    a -= a.mean()
    b -= b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)


def outside_check(
    model: WorldModel, catalogue: Catalogue, root: str | Path, name: str
) -> dict[str, Any] | None:
    """Compares predictions with the rewards of another simulator, recorded with LLM agents.

    The recorded users are unknown to the model, which sees their recorded history alone. Items
    are matched by title, exact, then normalised. Steps at which the user left carry no rating.

    Args:
        model: World model.
        catalogue: Its items.
        root: Data folder; reads ``llm_demos/{name}_trajectories.parquet`` and the catalogue of
            the recorded simulator.
        name: "steam" or "amazon".

    Returns:
        Numbers of triples and of matched ones, Spearman correlation of predicted and recorded
        rating over triples, over items (means), and within users (means taken off); None where
        the files are not there.
    """
    if name not in _CATALOGUE_FOLDERS:
        return None
    recorded = Path(root) / "llm_demos" / f"{name}_trajectories.parquet"
    titles = Path(root) / _CATALOGUE_FOLDERS[name] / "billp_catalogue.parquet"
    if not (recorded.is_file() and titles.is_file()):
        return None
    to_index = _match(catalogue, titles)
    columns = ["split", "user_index", "user_history_item_ids", "action_item_id", "reward"]
    table = pq.read_table(recorded, columns=columns)
    split, user, past, action, reward = (table[name].to_pylist() for name in columns)
    rewards: dict[tuple[str, int], dict[int, list[float]]] = {}
    histories: dict[tuple[str, int], NDArray[np.int64]] = {}
    triples: set[tuple[str, int, int]] = set()
    for row in range(len(reward)):
        if reward[row] == _LEFT:
            continue
        key = (split[row], user[row])
        triples.add((*key, action[row]))
        if action[row] not in to_index:
            continue
        histories[key] = np.array([to_index[i] for i in past[row] if i in to_index], np.int64)
        rewards.setdefault(key, {}).setdefault(to_index[action[row]], []).append(reward[row])
    keys = list(rewards)
    rows = model.rows(histories=[histories[k] for k in keys])
    owner, items, truth = [], [], []
    for index, found in enumerate(keys):
        for item, values in rewards[found].items():
            owner.append(index)
            items.append(item)
            truth.append(float(np.mean(values)))
    if not truth:
        return {"triples": len(triples), "matched": 0}
    predicted = rows[owner, items].astype(np.float64)
    return {
        "triples": len(triples),
        "matched": len(truth),
        "users": len(keys),
        "spearman": _spearman(predicted, np.array(truth)),
        "spearman_item_means": _spearman(_means(predicted, items), _means(truth, items)),
        "spearman_within_user": _spearman(
            predicted - _means(predicted, owner)[owner],
            np.array(truth) - _means(truth, owner)[owner],
        ),
    }


def _means(values: Any, groups: Any) -> NDArray[np.float64]:
    """Mean of each group that occurs; for groups 0..n-1 the position is the group."""
    _, index = np.unique(groups, return_inverse=True)
    return np.bincount(index, values) / np.bincount(index)


def _match(catalogue: Catalogue, titles: Path) -> dict[int, int]:
    """Recorded item id to catalogue index, by exact and then by normalised title."""
    exact: dict[str, int] = {}
    normal: dict[str, int] = {}
    for index, title in enumerate(catalogue.titles):
        exact.setdefault(title, index)
        normal.setdefault(normalise_title(title), index)
    table = pq.read_table(titles, columns=["item_id", "title"])
    found = {}
    for item, title in zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True):
        match = exact.get(title, normal.get(normalise_title(title)))
        if match is not None:
            found[int(item)] = match
    return found


def card_table(card: Mapping[str, Any]) -> str:
    """Renders a model card as markdown.

    Args:
        card: `Prepared.card`.

    Returns:
        Tables under headings.
    """
    return "\n".join(_lines(card))


def _lines(card: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Model card: {card['dataset']['name']}"
    yield ""
    yield from _table(("dataset", ""), card["dataset"].items())
    for split, report in card["world_model"].items():
        rows = report["rows"]
        held_out = rows["card"] or rows["validation"]
        yield f"## World model, {split} ({rows['fit']} rows fitted, {held_out} held out)"
        yield ""
        yield from _table(
            ("held-out rows", "RMSE", "MAE"),
            (
                (label, report[name]["rmse"], report[name]["mae"])
                for name, label in (
                    ("constant", "constant"),
                    ("biases", "user + item biases"),
                    ("model", "DeepFM ensemble"),
                    ("model_unknown_user", "DeepFM ensemble, user by history alone"),
                )
                if name in report
            ),
        )
        if "calibration" in report:
            calibration = report["calibration"]
            yield from _table(
                ("by rising variance", *(f"fifth {i + 1}" for i in range(5))),
                (
                    ("predicted RMSE", *calibration["predicted_rmse"]),
                    ("observed RMSE", *calibration["observed_rmse"]),
                ),
            )
    if card["agreement"]:
        yield "## Agreement of the train and the test model"
        yield ""
        yield from _table(("over all users and items", ""), card["agreement"].items())
    yield "## State tracker"
    yield ""
    yield from _table(("users kept aside", ""), card["tracker"].items())
    yield "## Users, sessions, outside check"
    yield ""
    yield from _table(("user vectors", ""), card["user_basis"].items())
    yield from _table(("recorded sessions", ""), _flat(card["demonstrations"]))
    for split, check in (card["outside_check"] or {}).items():
        yield from _table(
            (f"recorded rewards of another simulator, {split} model", ""), check.items()
        )
    yield from _table(("seconds", ""), card["seconds"].items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", value


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    """Yields the lines of a markdown table and an empty one; nothing where there are no rows."""
    body = [tuple(_cell(value) for value in row) for row in rows]
    if not body:
        return
    yield f"| {' | '.join(head)} |"
    yield f"|---{'|---:' * (len(head) - 1)}|"
    for row in body:
        yield f"| {' | '.join(row)} |"
    yield ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value).replace("_", " ").replace("|", "/")
