"""One training of a recommender: data, settings, metrics; and the floors, which need none."""

from __future__ import annotations

import csv
import io
import logging
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilrec_sb3.arguments import arguments_of, check_arguments, defaults_of
from ilrec_sb3.lea.metrics import ranking_metrics, ranks
from ilrec_sb3.lea.networks import BACKBONES, Backbone, NetworkConfig
from ilrec_sb3.lea.recommender import LEA, checked_settings
from ilrec_sb3.lea.variants import Variant
from recsim_env import artefacts
from recsim_env.datasets import custom_names, load_custom
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import DataError, near_miss
from recsim_env.sequences import (
    Examples,
    IntArray,
    SequenceData,
    load_sequences,
    sequence_names,
    sequences_of,
)

__all__ = [
    "FLOORS",
    "Candidates",
    "Trained",
    "all_settings",
    "check_backbone",
    "check_settings",
    "floor_ranks",
    "load_data",
    "make_recommender",
    "metric_names",
    "model_ranks",
    "repeat_share",
    "train_recommender",
    "write_curve",
]

logger = logging.getLogger(__name__)

FLOORS = ("popularity", "last item")
"""Recommendations that need no training, see `floor_ranks`."""

_CHUNK = 512
_REPEATS = 0.1
_FIXED = {
    "backbone": "is chosen by itself",
    "data": "are chosen by their name",
    "variant": "is chosen by its name",
    "feedback": "is prepared by itself",
    "network": "is given by its fields, such as dim",
    "seed": "is given by itself",
    "device": "is given by itself",
    "verbose": "has no place here",
    "tensorboard_log": "has no place here",
}
"""Constructor arguments that are no settings, and why."""


# -- data and floors -------------------------------------------------------------------------------


def load_data(
    name: str,
    root: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
) -> SequenceData:
    """Returns sequences by name: one of `sequence_names()`, or data of your own.

    Args:
        name: Of the sequences, or of a dataset that ``ilrec prepare`` was given.
        root: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        options: Of `load_sequences`, or of `sequences_of` for data of your own.
        cache: Where data of your own are kept; None: ``ILREC_CACHE``, else the user's.

    Raises:
        DataError: The name is not known, or an option does not fit.
    """
    options = dict(options or {})
    if name in sequence_names():
        return load_sequences(name, root, **options)
    own = custom_names(cache)
    if name not in own:
        raise DataError(
            f"The sequences {name!r} are not known; {near_miss(name, [*sequence_names(), *own])}. "
            "Your own become known with `ilrec prepare --interactions FILE --items FILE --name "
            f"{name}`."
        )
    known = {n: hint for n, hint in _hints(sequences_of).items() if n not in ("dataset", "texts")}
    check_arguments(f"the dataset {name!r}", options, known)
    return sequences_of(load_custom(name, cache), **options)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return {n: hint for n, hint in typing.get_type_hints(function).items() if n != "return"}


def floor_ranks(data: SequenceData, length: int = 10) -> dict[str, IntArray]:
    """Ranks the test targets by counts of the train examples alone.

    "popularity" scores an item by how often it is a target. "last item" scores it by how often it
    followed the last item of the history; of equals the more popular one comes first.

    Args:
        data: The sequences.
        length: Most items of a history.

    Returns:
        (m,) ranks of the test targets, 1 the best, by the names of `FLOORS`.
    """
    train, test = data.examples("train", length), data.examples("test", length)
    popular = np.bincount(train.targets, minlength=data.n_items) / (len(train) + 1.0)
    pairs, counts = np.unique(
        train.histories[:, -1] * data.n_items + train.targets, return_counts=True
    )

    def followed(last: IntArray) -> NDArray[np.float64]:
        scores = np.tile(popular, (len(last), 1))
        starts = np.searchsorted(pairs, last * data.n_items)
        ends = np.searchsorted(pairs, (last + 1) * data.n_items)
        for row, start, end in zip(scores, starts, ends, strict=True):
            row[pairs[start:end] % data.n_items] += counts[start:end]
        return scores

    found: dict[str, list[IntArray]] = {name: [] for name in FLOORS}
    for start in range(0, len(test), _CHUNK):
        last = test.histories[start : start + _CHUNK, -1]
        targets = test.targets[start : start + _CHUNK]
        popularity, last_item = FLOORS
        found[popularity].append(ranks(np.tile(popular, (len(last), 1)), targets))
        found[last_item].append(ranks(followed(last), targets))
    return {
        name: np.concatenate(parts) if parts else np.zeros(0, np.int64)
        for name, parts in found.items()
    }


# -- one recommender -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training came to.

    Attributes:
        valid: Metrics of the best evaluation on the validation split; empty without one.
        test: Metrics on the test split; empty without one.
        test_ranks: (m,) rank of each test target, 1 the best.
        curve: Metrics of each evaluation and, as "step", when.
        best_step: Gradient steps of the weights that are served.
        steps: Gradient steps made.
        seconds: Of these, evaluations included.
        diverged: Why it ended, where the loss was no number any more; else None.
    """

    valid: Mapping[str, float]
    test: Mapping[str, float]
    test_ranks: IntArray
    curve: Sequence[Mapping[str, float]]
    best_step: int
    steps: int
    seconds: float
    diverged: str | None = None

    def described(self) -> dict[str, Any]:
        """Returns all but ranks and curve, in terms of JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:2]} | {
            name: getattr(self, name) for name in ("best_step", "steps", "seconds", "diverged")
        }


@dataclass(frozen=True)
class Candidates:
    """The recommender whose best items are put to the environment to choose from.

    Attributes:
        backbone: "SASRec" or "GRU4Rec".
        steps: Gradient steps at most.
        seed: Of its training.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
        repeats: Whether items of the history may be among its best; None: where at least a tenth
            of the train targets are in their histories. Recommenders that have one table of item
            vectors like the last item best, and where it is never taken again a chosen one would
            teach what cannot happen.
    """

    backbone: str = "SASRec"
    steps: int = 20_000
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool | None = None

    def spelled_out(self, data: SequenceData) -> Candidates:
        """Returns the same with every default among the settings, and repeats decided.

        Args:
            data: The sequences.
        """
        settings, repeats = all_settings(self.settings), self.repeats
        if repeats is None:
            repeats = _users_repeat(data, settings["length"])
        return replace(self, settings=settings, repeats=repeats)


@lru_cache(maxsize=8)  # a grid asks for each of its cells
def _users_repeat(data: SequenceData, length: int) -> bool:
    return repeat_share(data.examples("train", length)) >= _REPEATS


def repeat_share(examples: Examples) -> float:
    """Returns how many of the targets are in their histories, from 0 to 1; 0 without examples."""
    found = (examples.histories == examples.targets[:, None]).any(axis=1)
    return float(found.mean()) if len(found) else 0.0


def make_recommender(
    backbone: str,
    data: SequenceData,
    variant: str,
    feedback: EnvironmentFeedback | None = None,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> LEA:
    """Returns a recommender that is yet to be trained.

    Args:
        backbone: "SASRec" or "GRU4Rec".
        data: The sequences.
        variant: Its name.
        feedback: Of the environment, where the variant needs it.
        seed: Of the training.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
        device: "cpu", "cuda" or "auto"; None: "auto".

    Raises:
        DataError: A name or a setting is not known, or the feedback lacks something.
        ArtefactError: The feedback belongs to other data.
    """
    arguments = check_settings(settings or {})
    return LEA(
        check_backbone(backbone),
        data,
        variant,
        feedback if Variant.parse(variant).needs else None,
        seed=seed,
        device=device or "auto",
        **arguments,
    )


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `LEA` made of settings.

    Args:
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.

    Raises:
        DataError: One is not known, not of its type or out of its range.
    """
    for name in settings:
        if name in _FIXED:
            raise DataError(
                f"The setting {name!r} came, which {_FIXED[name]}: leave it out of the settings."
            )
    sizes = arguments_of(NetworkConfig)
    known = {n: h for n, h in arguments_of(LEA).items() if n not in _FIXED}
    check_arguments("LEA", settings, {**known, **sizes})
    network = NetworkConfig(**{n: value for n, value in settings.items() if n in sizes})
    own = checked_settings({n: value for n, value in settings.items() if n in known})
    return {**own, "network": network}


def all_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the defaults of all that were left out, as keys have them.

    Args:
        settings: As in `check_settings`.

    Raises:
        DataError: As there.
    """
    sizes = asdict(check_settings(settings)["network"])
    defaults = {n: value for n, value in defaults_of(LEA).items() if n not in _FIXED}
    return {**defaults, **sizes, **settings}


def check_backbone(name: str) -> Backbone:
    """Returns the name of a backbone.

    Args:
        name: To be checked.

    Raises:
        DataError: It is not known.
    """
    if name not in BACKBONES:
        raise DataError(f"The backbone {name!r} is not known; {near_miss(name, BACKBONES)}.")
    return name


def train_recommender(model: LEA, steps: int, progress: bool = False) -> Trained:
    """Trains a recommender and ranks the test targets by it.

    Where the loss is no number any more, the best weights from before stand.

    Args:
        model: To be trained.
        steps: Gradient steps at most.
        progress: Shows a progress bar.

    Raises:
        DataError: The loss is no number any more, and no weights were evaluated before.
    """
    assert model.data is not None
    started, diverged = time.perf_counter(), None
    try:
        model.learn(steps, log_interval=0, progress_bar=progress)
    except FloatingPointError as error:
        if model.best_step is None:
            raise DataError(str(error)) from error
        diverged = str(error)
        logger.warning("%s The weights of step %d are kept.", diverged, model.best_step)
    seconds = time.perf_counter() - started
    found = model_ranks(model, model.data.examples("test", model.config.length))
    best = next((e for e in model.evaluations if e["step"] == model.best_step), None)
    return Trained(
        valid={} if best is None else {n: v for n, v in best.items() if n != "step"},
        test=ranking_metrics(found) if found.size else {},
        test_ranks=found,
        curve=tuple(model.evaluations),
        best_step=model.num_timesteps if best is None else int(best["step"]),
        steps=model.num_timesteps,
        seconds=round(seconds, 2),
        diverged=diverged,
    )


def model_ranks(model: LEA, examples: Examples) -> IntArray:
    """Returns (m,) ranks of the targets among all items, 1 the best."""
    found = [
        ranks(model.scores(part.histories), part.targets)
        for start in range(0, len(examples), _CHUNK)
        for part in [examples.take(slice(start, start + _CHUNK))]
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def metric_names() -> list[str]:
    """Returns the names of the metrics in the order of the tables."""
    return list(ranking_metrics([1]))


def write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """Writes the metrics of each evaluation as a table in CSV."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, ["step", *metric_names()], lineterminator="\n")
    table.writeheader()
    table.writerows({n: f"{v:.6f}" if n != "step" else v for n, v in e.items()} for e in curve)
    artefacts.write_file(path, stream.getvalue())
