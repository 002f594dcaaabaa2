"""Experiments with LEA's recommenders: feedback made once, cells trained, kept and compared.

A grid is written in TOML. A cell is one variant on one backbone, one dataset and one seed; its
folder is written whole when it is finished, and found again by all that its result depends on.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import itertools
import json
import logging
import shlex
import shutil
import time
import tomllib
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ilrec_sb3.arguments import arguments_of, check_arguments
from ilrec_sb3.benchmark.text import duration
from ilrec_sb3.benchmark.workers import Died, in_parallel, locked
from ilrec_sb3.cells import cell_name, code_hash, versions
from ilrec_sb3.lea.candidates import top_items
from ilrec_sb3.lea.metrics import ranking_metrics, ranks
from ilrec_sb3.lea.networks import BACKBONES, Backbone, NetworkConfig
from ilrec_sb3.lea.recommender import LEA
from ilrec_sb3.lea.variants import Variant
from recsim_env import artefacts
from recsim_env.command_line import FeedbackSource
from recsim_env.datasets import custom_names, load_custom
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import ArtefactError, DataError, IlrecError, MissingDataError, near_miss
from recsim_env.sequences import (
    Examples,
    IntArray,
    SequenceData,
    load_sequences,
    sequence_names,
    sequences_of,
)
from recsim_env.settings import check_types, from_mapping
from recsim_env.threads import one_thread

__all__ = [
    "FEEDBACK",
    "FLOORS",
    "Candidates",
    "Finished",
    "GridDataset",
    "RecommenderGrid",
    "RecommenderRow",
    "RecommenderTask",
    "Trained",
    "find_feedback",
    "floor_ranks",
    "load_data",
    "load_recommender_grid",
    "make_recommender",
    "make_source",
    "metric_names",
    "prepare_feedback",
    "run_recommender_benchmark",
    "source_arguments",
    "train_recommender",
    "write_curve",
]

logger = logging.getLogger(__name__)

FEEDBACK = "feedback.safetensors"
FLOORS = ("popularity", "last item")
"""Recommendations that need no training, see `floor_ranks`."""

_SETTINGS = "settings.json"
_STAGES = "stages"
_METRICS, _CURVE, _RANKS, _MODEL = "metrics.json", "curve.csv", "ranks.parquet", "model.zip"
_FAILED, _TRACEBACK = "failed.json", "traceback.txt"
_ENVIRONMENTS = "ilrec.environments"
_CANDIDATES = 5
_CHUNK = 512
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


def metric_names() -> list[str]:
    """Returns the names of the metrics in the order of the tables."""
    return list(ranking_metrics([1]))


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
    """

    valid: Mapping[str, float]
    test: Mapping[str, float]
    test_ranks: IntArray
    curve: Sequence[Mapping[str, float]]
    best_step: int
    steps: int
    seconds: float

    def described(self) -> dict[str, Any]:
        """Returns all but ranks and curve, in terms of JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)[:2]} | {
            name: getattr(self, name) for name in ("best_step", "steps", "seconds")
        }


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
        _backbone(backbone),
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
        DataError: One is not known, or not of its type.
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
    return {n: value for n, value in settings.items() if n in known} | {"network": network}


def _backbone(name: str) -> Backbone:
    if name not in BACKBONES:
        raise DataError(f"The backbone {name!r} is not known; {near_miss(name, BACKBONES)}.")
    return name


def train_recommender(model: LEA, steps: int, progress: bool = False) -> Trained:
    """Trains a recommender and ranks the test targets by it.

    Args:
        model: To be trained.
        steps: Gradient steps at most.
        progress: Shows a progress bar.

    Raises:
        DataError: The loss is no number any more.
    """
    assert model.data is not None
    started = time.perf_counter()
    try:
        model.learn(steps, log_interval=0, progress_bar=progress)
    except FloatingPointError as error:
        raise DataError(str(error)) from error
    seconds = time.perf_counter() - started
    found = model_ranks(model, model.data.examples("test", model.config.length))
    best = max(model.evaluations, key=lambda entry: entry["NDCG@10"], default=None)
    return Trained(
        valid={} if best is None else {n: v for n, v in best.items() if n != "step"},
        test=ranking_metrics(found) if found.size else {},
        test_ranks=found,
        curve=tuple(model.evaluations),
        best_step=model.num_timesteps if best is None else int(best["step"]),
        steps=model.num_timesteps,
        seconds=round(seconds, 2),
    )


def model_ranks(model: LEA, examples: Examples) -> IntArray:
    """Returns (m,) ranks of the targets among all items, 1 the best."""
    found = [
        ranks(model.scores(part.histories), part.targets)
        for start in range(0, len(examples), _CHUNK)
        for part in [examples.take(slice(start, start + _CHUNK))]
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """Writes the metrics of each evaluation as a table in CSV."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, ["step", *metric_names()], lineterminator="\n")
    table.writeheader()
    table.writerows({n: f"{v:.6f}" if n != "step" else v for n, v in e.items()} for e in curve)
    artefacts.write_file(path, stream.getvalue())


# -- feedback --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidates:
    """The recommender whose best items are put to the environment to choose from.

    Attributes:
        backbone: "SASRec" or "GRU4Rec".
        steps: Gradient steps at most.
        seed: Of its training.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
    """

    backbone: str = "SASRec"
    steps: int = 20_000
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def make_source(name: str | None = None) -> FeedbackSource:
    """Returns an environment that a package brings.

    Args:
        name: Of its entry point; None: the first.

    Raises:
        DataError: There is none, or none of that name.
    """
    found: dict[str, FeedbackSource] = {}
    for entry in sorted(importlib.metadata.entry_points(group=_ENVIRONMENTS), key=lambda e: e.name):
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())
            logger.warning("%r of %s cannot be loaded: %s", entry.name, _ENVIRONMENTS, reason)
    if not found:
        raise DataError(
            f"No installed package brings an environment (entry points of {_ENVIRONMENTS}), "
            "expected at least one: install ilrec with all of its packages."
        )
    if name is None:
        return next(iter(found.values()))
    if name not in found:
        raise DataError(f"There is no environment {name!r}; {near_miss(name, found)}.")
    return found[name]


class _Options(argparse.ArgumentParser):
    """A parser of options that come from a file: what is wrong is an error, not the end."""

    def error(self, message: str) -> NoReturn:
        """Refuses."""
        raise DataError(f"The options of the environment do not fit: {message}.")


def source_arguments(source: FeedbackSource, options: Mapping[str, Any]) -> argparse.Namespace:
    """Returns what a command line with some options would give.

    Args:
        source: Whose options they are.
        options: Values by name: ``share = 0.2`` stands for ``--share 0.2``, false for ``--no-...``,
            a list for an option that is repeated.

    Raises:
        DataError: An option is not known, or its value does not fit.
    """
    parser = _Options(add_help=False, allow_abbrev=False)
    source.add_arguments(parser)
    known = vars(parser.parse_args([]))
    given: list[str] = []
    for name, value in options.items():
        if name not in known:
            raise DataError(f"The environment has no option {name!r}; {near_miss(name, known)}.")
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            given += [f"--{flag}={one}" for one in values]
    return parser.parse_args(given)


def prepare_feedback(
    data: SequenceData,
    source: FeedbackSource,
    arguments: argparse.Namespace,
    folder: str | Path,
    *,
    candidates: Candidates,
    stages: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = logger.info,
) -> EnvironmentFeedback:
    """Makes the feedback of an environment on the train examples, stage by stage.

    What is there and belongs to the same data and settings is not made again: a call that was
    stopped goes on with the stage, or the piece of the feedback, that it was at.

    Args:
        data: The sequences.
        source: The environment.
        arguments: Its options.
        folder: Gets ``feedback.safetensors`` and ``settings.json``.
        candidates: Whose best items the environment chooses from.
        stages: Keeps what the stages made; None: a folder beside the feedback. Several feedbacks
            on one dataset may share it.
        device: Of the recommender; None: "auto".
        progress: Shows progress bars.
        say: Takes lines that tell how far it is.

    Raises:
        IlrecError: Settings that cannot be used, or a language model that fails.
    """
    folder = Path(folder)
    stages = folder / _STAGES if stages is None else Path(stages)
    network: NetworkConfig = check_settings(candidates.settings)["network"]
    examples = data.examples("train", network.length)
    about: dict[str, Any] = {
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "candidates": asdict(candidates),
        "environment": dict(source.settings(arguments)),
    }
    about = {"key": artefacts.key(**about), **json.loads(json.dumps(about))}
    if _settings_of(folder).get("key") == about["key"]:
        try:
            found = EnvironmentFeedback.load(folder / FEEDBACK, examples)
        except ArtefactError as error:
            logger.warning("%s It is made again.", error)
        else:
            say(f"{folder / FEEDBACK} is there.")
            return found
    (folder / _SETTINGS).unlink(missing_ok=True)  # from here on it is not what it was
    say(f"Candidates: a {candidates.backbone} recommender without feedback.")
    model = _candidate_model(data, candidates, stages, device, progress)
    chosen = top_items(model, examples, _CANDIDATES)
    say("Environment: what is missing is made; what is there is used.")
    found = source.feedback(arguments, data, examples, chosen, stages, progress)
    found.check(examples)
    found.save(folder / FEEDBACK)
    artefacts.write_file(folder / _SETTINGS, json.dumps(about, indent=1) + "\n")
    return found


def _settings_of(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _candidate_model(
    data: SequenceData, candidates: Candidates, stages: Path, device: str | None, progress: bool
) -> LEA:
    """Returns the recommender that is kept, or trains one and keeps it."""
    key = artefacts.key(data=data.fingerprint, candidates=candidates)
    path = stages / f"candidates-{key[:16]}.zip"
    if path.exists():
        try:
            return LEA.load(path, data, device=device or "auto")
        except ArtefactError as error:
            logger.warning("%s That is what happens now.", error)
    model = make_recommender(
        candidates.backbone,
        data,
        "Normal",
        seed=candidates.seed,
        settings=candidates.settings,
        device=device,
    )
    train_recommender(model, candidates.steps, progress)
    model.save(path)
    return model


def find_feedback(path: str | Path) -> Path:
    """Returns the file of a feedback.

    Args:
        path: The file, or a folder that `prepare_feedback` wrote.

    Raises:
        MissingDataError: It is not there.
    """
    file = Path(path)
    file = file / FEEDBACK if file.is_dir() else file
    if not file.is_file():
        raise MissingDataError(
            f"{file} is not there, expected the feedback of an environment: make it with `ilrec "
            "lea prepare`."
        )
    return file


# -- the grid --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridDataset:
    """A dataset of a grid.

    Attributes:
        dataset: Name of the sequences, or of data of your own.
        options: Options of these.
        settings: Of the recommenders, in addition to the grid's.
        feedback: Options of the environment, in addition to the grid's.
        title: What the report calls it; None: its name in the grid.
    """

    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None

    def __post_init__(self) -> None:
        """Checks types."""
        check_types(self)
        check_settings(self.settings)


@dataclass(frozen=True)
class RecommenderRow:
    """A row of the tables.

    Attributes:
        variant: Its name, see `ilrec_sb3.lea.variants`.
        label: What the tables call it; None: the variant.
        baseline: Label of the row that it is compared with; None: that of its framework, where the
            grid has it.
        backbones: None: the grid's.
        datasets: Names in the grid; None: all.
        settings: Of the recommender, in addition to the grid's and the dataset's.
        feedback: Options of the environment, in addition to the grid's and the dataset's.
    """

    variant: str
    label: str | None = None
    baseline: str | None = None
    backbones: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        known = Variant.parse(self.variant)
        check_settings(self.settings)
        for name in ("backbones", "datasets"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in self.backbones or ():
            _backbone(name)
        if self.feedback and not known.needs:
            raise DataError(
                f"The row {self.name!r} came with options of the environment, of which "
                f"{self.variant} needs nothing: leave them out."
            )

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.label or self.variant


@dataclass(frozen=True)
class RecommenderTask:
    """What a cell is to be.

    Attributes:
        dataset: Its name in the grid.
        backbone: "SASRec" or "GRU4Rec".
        variant: Its name.
        label: Row of the table.
        seed: Of the training.
        steps: Gradient steps at most.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
        feedback: Options of the environment; empty where the variant needs nothing of it.
        candidates: Whose best items the environment chooses from; None likewise.
    """

    dataset: str
    backbone: str
    variant: str
    label: str
    seed: int
    steps: int
    settings: Mapping[str, Any]
    feedback: Mapping[str, Any]
    candidates: Candidates | None

    @property
    def name(self) -> str:
        """The path of its folder below that of all cells."""
        label = self.label.replace("'", "-prime")  # lest LES' be LES
        return f"{self.dataset}/{self.backbone}/{cell_name(label, self.seed)}"

    @property
    def needs_feedback(self) -> bool:
        """Whether the environment has to say something first."""
        return self.candidates is not None

    def feedback_name(self) -> str:
        """The name of its feedback's folder."""
        key = artefacts.key(feedback=self.feedback, candidates=self.candidates)
        return f"{self.backbone}-{key[:16]}"

    def key(self, data: SequenceData) -> str:
        """Returns the hash of all that decides its result, the code left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {n: v for n, v in values.items() if n not in ("dataset", "label")}
        return artefacts.key(data=data.fingerprint, **values)


@dataclass(frozen=True)
class RecommenderGrid:
    """What an experiment is made of.

    Under SNQN and SA2C the network that is served is trained by half of the gradient steps (see
    `LEA`). So that all variants see as many of its steps between two evaluations, and before they
    end, ``steps`` and ``evaluate_every`` count for two there.

    Attributes:
        name: Of the grid; its run is kept in ``runs/lea-NAME``.
        datasets: By name.
        variants: One row for each, with the grid's settings.
        rows: Further rows.
        title: Of the report; None: the name.
        backbones: On which the rows are trained.
        seeds: One training for each.
        steps: Gradient steps of the served network at most.
        evaluate_every: Such steps between two evaluations.
        settings: Arguments of `LEA`, and fields of `NetworkConfig`.
        feedback: Options of the environment.
        environment: Name of its entry point; None: the first.
        models: Whether trained models are kept.
        device: "cpu", "cuda" or "auto"; None: "auto".
    """

    name: str
    datasets: Mapping[str, GridDataset]
    variants: tuple[str, ...] = ()
    rows: tuple[RecommenderRow, ...] = ()
    title: str | None = None
    backbones: tuple[str, ...] = BACKBONES
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 20_000
    evaluate_every: int = 500
    settings: Mapping[str, Any] = field(default_factory=dict)
    feedback: Mapping[str, Any] = field(default_factory=dict)
    environment: str | None = None
    models: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        for name in ("variants", "rows", "backbones", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_settings(self.settings)
        if "evaluate_every" in self.settings:
            raise DataError("evaluate_every came among the settings; it belongs to the grid.")
        if self.steps < 1 or self.evaluate_every < 1 or min(self.seeds, default=-1) < 0:
            raise DataError(
                f"steps={self.steps}, evaluate_every={self.evaluate_every} and "
                f"seeds={list(self.seeds)} came; expected steps of 1 or more and at least one seed "
                "of 0 or more."
            )
        named = tuple(RecommenderRow(variant) for variant in self.variants)
        object.__setattr__(self, "rows", (*named, *self.rows))
        object.__setattr__(self, "variants", ())
        if not self.rows or not self.datasets or not self.backbones:
            raise DataError(
                f"The grid {self.name!r} has {len(self.rows)} rows, {len(self.datasets)} datasets "
                f"and {len(self.backbones)} backbones; give variants or [[rows]], and at least one "
                "[datasets.NAME]."
            )
        for name in (self.name, *self.datasets):
            if cell_name(name, None) != name:
                raise DataError(
                    f"The name {name!r} came; expected letters, digits, - and _, as a folder is "
                    "named after it."
                )
        self._check_rows()

    def _check_rows(self) -> None:
        labels = [row.name for row in self.rows]
        for row in self.rows:
            for name in row.datasets or ():
                if name not in self.datasets:
                    raise DataError(
                        f"The row {row.name!r} names the dataset {name!r}, which the grid has not; "
                        f"{near_miss(name, self.datasets)}."
                    )
            if row.baseline is not None and row.baseline not in labels:
                raise DataError(
                    f"The row {row.name!r} is compared with {row.baseline!r}, which the grid has "
                    f"not; {near_miss(row.baseline, labels)}."
                )
        for name in self.backbones:
            _backbone(name)
        folders = [task.name.casefold() for task in self.tasks()]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"Two cells would share the folder {twice}: give one of the rows another label, "
                "and no seed twice."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecommenderGrid:
        """Builds a grid from nested mappings, as TOML gives them.

        Raises:
            DataError: For a name that is no setting, or a value that does not fit.
        """
        nested = dict(values)
        datasets, rows = nested.get("datasets", {}), nested.get("rows", [])
        tables = isinstance(datasets, Mapping) and isinstance(rows, (list, tuple))
        if not tables or not all(isinstance(t, Mapping) for t in (*datasets.values(), *rows)):
            raise DataError(
                "datasets or rows of another form came; expected [datasets.NAME] and [[rows]]."
            )
        for what, needed, all_tables in (
            ("row", "variant", rows),
            ("dataset", "dataset", datasets.values()),
            ("grid", "name", [nested]),
        ):
            lacking = next((table for table in all_tables if needed not in table), None)
            if lacking is not None:
                raise DataError(f"A {what} came without {needed!r}: give it one.")
        nested["datasets"] = {n: from_mapping(GridDataset, t) for n, t in datasets.items()}
        nested["rows"] = tuple(from_mapping(RecommenderRow, row) for row in rows)
        return from_mapping(cls, nested)

    def baseline(self, row: RecommenderRow) -> str | None:
        """Returns the label of the row that a row is compared with, if there is one."""
        if row.baseline is not None:
            return row.baseline
        framework = Variant.parse(row.variant).framework
        labels = [other.name for other in self.rows]
        return framework if framework in labels and row.name != framework else None

    def tasks(self) -> Iterator[RecommenderTask]:
        """Yields the cells, seed by seed."""
        for seed, name, row in itertools.product(self.seeds, self.datasets, self.rows):
            if row.datasets is not None and name not in row.datasets:
                continue
            for backbone in self.backbones if row.backbones is None else row.backbones:
                yield self._task(name, row, backbone, seed)

    def _task(self, name: str, row: RecommenderRow, backbone: str, seed: int) -> RecommenderTask:
        dataset, variant = self.datasets[name], Variant.parse(row.variant)
        shared = {**self.settings, **dataset.settings}
        times = 2 if variant.learns_q else 1
        every = {"evaluate_every": self.evaluate_every}
        candidates = Candidates(backbone, self.steps, 0, {**every, **shared})
        return RecommenderTask(
            dataset=name,
            backbone=backbone,
            variant=row.variant,
            label=row.name,
            seed=seed,
            steps=self.steps * times,
            settings={"evaluate_every": self.evaluate_every * times, **shared, **row.settings},
            feedback={**self.feedback, **dataset.feedback, **row.feedback} if variant.needs else {},
            candidates=candidates if variant.needs else None,
        )


def load_recommender_grid(path: str | Path) -> RecommenderGrid:
    """Reads a grid file.

    Raises:
        DataError: It is not there, no TOML, or says what cannot be understood.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        return RecommenderGrid.from_dict(values)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{file} is not there; name a grid file, such as benchmarks/lea/table2.toml."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{file} is not TOML ({error}); expected a grid of LEA.") from error
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


# -- cells -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished cell.

    Attributes:
        task: What it is.
        trained: What came of it.
        code: Hash of the package's code that made it.
    """

    task: RecommenderTask
    trained: Trained
    code: str


@dataclass(frozen=True)
class _Plan:
    """A cell, where it is kept, and where its feedback is.

    Attributes:
        task: What it is to be.
        folder: Its folder.
        key: Of all that decides its result.
        feedback: File; None where none is needed.
    """

    task: RecommenderTask
    folder: Path
    key: str
    feedback: Path | None

    @property
    def state(self) -> str:
        """How far it is: "finished", "failed", "of other settings" or "missing"."""
        if not artefacts.check_folder(self.folder):
            return "missing"
        if not (self.folder / _METRICS).exists():
            return "failed"
        return (
            "finished"
            if _read_json(self.folder / _METRICS)["key"] == self.key
            else ("of other settings")
        )


@dataclass(frozen=True)
class _Made:
    """What a worker says of a piece of work.

    Attributes:
        said: One line of what came of it.
        seconds: Wall time.
        failed: One line; None where it did not fail.
    """

    said: str
    seconds: float
    failed: str | None = None


class _Maker:
    """Prepares feedback and makes cells; what it has loaded serves the next one.

    Args:
        grid: The grid.
        root: Folder with the raw data.
        cache: Of prepared artefacts.
        code: Hash of the package's code.
    """

    def __init__(
        self, grid: RecommenderGrid, root: str | None, cache: str | None, code: str
    ) -> None:
        self.grid, self.root, self.cache, self.code = grid, root, cache, code
        self._data: dict[str, SequenceData] = {}
        self._feedback: tuple[Path | None, EnvironmentFeedback | None] = (None, None)

    def data(self, name: str) -> SequenceData:
        """Returns the sequences of a dataset of the grid."""
        if name not in self._data:
            dataset = self.grid.datasets[name]
            self._data[name] = load_data(dataset.dataset, self.root, dataset.options, self.cache)
        return self._data[name]

    def prepare(self, task: RecommenderTask, folder: Path, progress: bool) -> None:
        """Makes the feedback that a task needs.

        Args:
            task: The task.
            folder: Of the feedback; what the stages make is kept beside it.
            progress: Shows progress bars.
        """
        assert task.candidates is not None
        source = make_source(self.grid.environment)
        prepare_feedback(
            self.data(task.dataset),
            source,
            source_arguments(source, task.feedback),
            folder,
            candidates=task.candidates,
            stages=folder.parent / _STAGES,
            device=self.grid.device,
            progress=progress,
        )

    def prepare_all(self, plans: Sequence[_Plan]) -> dict[Path, _Made]:
        """Makes the feedback of some plans, one after the other.

        Returns:
            What came of each file.
        """
        made = {}
        for plan in plans:
            assert plan.feedback is not None
            started = time.perf_counter()
            failed = None
            try:
                with one_thread():
                    self.prepare(plan.task, plan.feedback.parent, progress=False)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                failed = _reason(error)
                logger.info("%s", traceback.format_exc())
            said = f"feedback on {plan.task.dataset} for {plan.task.backbone}"
            made[plan.feedback] = _Made(said, time.perf_counter() - started, failed)
        return made

    def __call__(self, plan: _Plan) -> _Made:
        """Makes a cell and writes it, or that it failed and why."""
        started = time.perf_counter()
        try:
            with one_thread():
                said = self._make(plan)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other cells go on
            self.fail(plan, _reason(error), traceback.format_exc())
            return _Made("", time.perf_counter() - started, _reason(error))
        return _Made(said, time.perf_counter() - started)

    def _make(self, plan: _Plan) -> str:
        task = plan.task
        data = self.data(task.dataset)
        feedback = None
        if plan.feedback is not None:
            if self._feedback[0] != plan.feedback:
                self._feedback = (plan.feedback, EnvironmentFeedback.load(plan.feedback))
            feedback = self._feedback[1]
        model = make_recommender(
            task.backbone,
            data,
            task.variant,
            feedback,
            seed=task.seed,
            settings=task.settings,
            device=self.grid.device,
        )
        trained = train_recommender(model, task.steps)

        def write(folder: Path) -> None:
            about = {"key": plan.key, "task": asdict(task), "code": self.code}
            content = json.dumps({**about, **trained.described()}, indent=1)
            (folder / _METRICS).write_text(content + "\n", encoding="utf-8")
            write_curve(folder / _CURVE, trained.curve)
            table = pa.table({"rank": pa.array(trained.test_ranks, pa.int32())})
            pq.write_table(table, folder / _RANKS, compression="zstd")
            if self.grid.models:
                model.save(folder / _MODEL)

        artefacts.write_folder(plan.folder, write)
        shown = trained.test or trained.valid
        return ", ".join(f"{n} {shown[n]:.4f}" for n in ("HR@10", "NDCG@10") if n in shown)

    def fail(self, plan: _Plan, reason: str, trace: str) -> None:
        """Writes that a cell failed.

        Raises:
            OSError: Not even that can be written, so it is of no use to make the others.
        """

        def write(folder: Path) -> None:
            about = {"key": plan.key, "task": asdict(plan.task), "failed": reason}
            (folder / _FAILED).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            (folder / _TRACEBACK).write_text(trace, encoding="utf-8")

        artefacts.write_folder(plan.folder, write)


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, IlrecError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _read_cell(plan: _Plan) -> Finished:
    values = _read_json(plan.folder / _METRICS)
    with (plan.folder / _CURVE).open(encoding="utf-8", newline="") as stream:
        curve = [{n: float(v) for n, v in row.items()} for row in csv.DictReader(stream)]
    found = pq.read_table(plan.folder / _RANKS)["rank"].to_numpy().astype(np.int64)
    names = ("valid", "test", "best_step", "steps", "seconds")
    trained = Trained(curve=curve, test_ranks=found, **{name: values[name] for name in names})
    return Finished(plan.task, trained, values["code"])


# -- running ---------------------------------------------------------------------------------------


def run_recommender_benchmark(
    grid: RecommenderGrid,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    cache: str | None = None,
    jobs: int = 1,
    only: Sequence[str] = (),
    datasets: Sequence[str] = (),
    fresh: bool = False,
    report_only: bool = False,
    dry_run: bool = False,
    command: Sequence[str] = (),
    say: Callable[[str], None] = logger.info,
) -> tuple[Path | None, int]:
    """Makes the cells of a grid that are missing, and the report of all that are there.

    Feedback is made first, once for each dataset, backbone and set of options; then the cells.

    Args:
        grid: What to make.
        out: Folder of the run; None: ``runs/lea-NAME``.
        data: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        cache: Where data of your own are kept; None: ``ILREC_CACHE``, else the user's.
        jobs: Processes.
        only: Labels of rows, or their names with backbone, such as ``GRU4Rec/SA2C``; ``*`` stands
            for any text.
        datasets: Names in the grid, likewise.
        fresh: Makes the chosen cells anew; feedback stays.
        report_only: Makes no cell.
        dry_run: Makes nothing, and says what would be made.
        command: What was typed, to be kept and shown in the report.
        say: Takes lines that tell how far it is.

    Returns:
        The report, None where none was written, and how many of the chosen cells failed.

    Raises:
        DataError: For data or settings that cannot be used, or where another process works in the
            folder.
    """
    folder = Path(out or f"runs/lea-{grid.name}")
    if report_only and not folder.is_dir():
        raise DataError(f"{folder} is not there, so there is no cell to report: make some first.")
    maker = _Maker(grid, data, cache, code_hash())
    chosen = _chosen(grid, only, datasets)
    _check_sources(grid, chosen)
    plans = [_plan(maker, task, folder) for task in chosen]
    if dry_run:
        for plan in plans:
            say(f"{plan.task.name}: {'to be made anew' if fresh else plan.state}")
        return None, 0
    with locked(folder):
        failed = 0
        if not report_only:
            _write_run(folder, grid, command)
            if fresh:
                for plan in plans:
                    shutil.rmtree(plan.folder, ignore_errors=True)
            failed = _run(plans, maker, jobs, say)
        return _report(grid, folder, maker, command, say), failed


def _chosen(
    grid: RecommenderGrid, only: Sequence[str], datasets: Sequence[str]
) -> list[RecommenderTask]:
    tasks = list(grid.tasks())
    names = [{task.label, f"{task.backbone}/{task.label}"} for task in tasks]
    for pattern in only:
        if not any(_fits(own, pattern) for own in names):
            known = sorted({name for own in names for name in own})
            raise DataError(f"No row is called {pattern!r}; {near_miss(pattern, known)}.")
    for pattern in datasets:
        if not _fits(set(grid.datasets), pattern):
            known_sets = near_miss(pattern, grid.datasets)
            raise DataError(f"The grid has no dataset {pattern!r}; {known_sets}.")
    chosen = [
        task
        for task, own in zip(tasks, names, strict=True)
        if (not only or any(_fits(own, pattern) for pattern in only))
        and (not datasets or any(_fits({task.dataset}, pattern) for pattern in datasets))
    ]
    if not chosen:
        raise DataError(
            f"None of the rows asked for is trained on {', '.join(map(repr, datasets))}: choose "
            "other rows or datasets."
        )
    return chosen


def _fits(names: set[str], pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def _check_sources(grid: RecommenderGrid, tasks: Sequence[RecommenderTask]) -> None:
    """Refuses options of the environment that do not fit, before anything is made."""
    for task in tasks:
        if task.needs_feedback:
            source = make_source(grid.environment)
            source.settings(source_arguments(source, task.feedback))


def _plan(maker: _Maker, task: RecommenderTask, folder: Path) -> _Plan:
    feedback = None
    if task.needs_feedback:
        feedback = folder / "feedback" / task.dataset / task.feedback_name() / FEEDBACK
    key = task.key(maker.data(task.dataset))
    return _Plan(task, folder / "cells" / task.name, key, feedback)


def _run(plans: Sequence[_Plan], maker: _Maker, jobs: int, say: Callable[[str], None]) -> int:
    """Makes what is missing and returns how many cells failed."""
    left = [plan for plan in plans if plan.state != "finished"]
    say(f"{len(left)} cells to make, {len(plans) - len(left)} are finished.")
    broken = _prepare(left, maker, jobs, say)
    failed = 0
    for plan in [plan for plan in left if plan.feedback in broken]:
        reason = f"Its feedback could not be made: {broken[plan.feedback]}"
        maker.fail(plan, reason, f"{reason}\n")
        failed += 1
    left = [plan for plan in left if plan.feedback not in broken]
    seconds: list[float] = []
    with closing(in_parallel(maker, left, min(jobs, max(len(left), 1)))) as outcomes:
        for done, (number, outcome) in enumerate(outcomes, start=1):
            plan, made = left[number], outcome
            if isinstance(made, Died):
                maker.fail(plan, str(made), f"{made}\n")
                made = _Made("", 0.0, str(made))
            said = f"[{done}/{len(left)}] {plan.task.name}"
            if made.failed is not None:
                failed += 1
                say(f"{said} FAILED: {made.failed}")
                continue
            seconds.append(made.seconds)
            rest = float(np.mean(seconds)) * (len(left) - done) / jobs
            more = f"; about {duration(rest)} left" if done < len(left) else ""
            say(f"{said}: {made.said} after {duration(made.seconds)}{more}")
    return failed


def _prepare(
    plans: Sequence[_Plan], maker: _Maker, jobs: int, say: Callable[[str], None]
) -> dict[Path | None, str]:
    """Makes the feedback that cells need; returns why some of it could not be made.

    Feedbacks of one dataset share what the stages make, so they are made one after the other.
    """
    first = {plan.feedback: plan for plan in plans if plan.feedback is not None}
    pieces = [
        [plan for plan in first.values() if plan.task.dataset == name]
        for name in dict.fromkeys(plan.task.dataset for plan in first.values())
    ]
    broken: dict[Path | None, str] = {}
    with closing(in_parallel(maker.prepare_all, pieces, min(jobs, max(len(pieces), 1)))) as found:
        for number, outcome in found:
            if isinstance(outcome, Died):
                lost = _Made(f"feedback on {pieces[number][0].task.dataset}", 0.0, str(outcome))
                outcome = {cast(Path, plan.feedback): lost for plan in pieces[number]}
            for file, made in outcome.items():
                if made.failed is not None:
                    broken[file] = made.failed
                    say(f"{made.said} FAILED: {made.failed}")
                else:
                    say(f"{made.said}: there after {duration(made.seconds)}")
    return broken


def _report(
    grid: RecommenderGrid,
    folder: Path,
    maker: _Maker,
    command: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    from ilrec_sb3.lea.report import write_recommender_report

    tasks = list(grid.tasks())
    # the data of what was never begun need not be there
    begun = [task for task in tasks if (folder / "cells" / task.name).is_dir()]
    plans = [(plan, plan.state) for plan in (_plan(maker, task, folder) for task in begun)]
    finished = [_read_cell(plan) for plan, state in plans if state == "finished"]
    failed = [plan.task.name for plan, state in plans if state == "failed"]
    if not finished:
        raise DataError(
            f"{folder} holds no finished cell of the grid: look into the files {_FAILED} below it, "
            "or make some."
        )
    shown = dict.fromkeys(cell.task.dataset for cell in finished)
    floors = {name: floor_ranks(maker.data(name)) for name in shown}
    report = write_recommender_report(
        folder,
        grid,
        finished,
        floors,
        failed=failed,
        missing=len(tasks) - len(finished) - len(failed),
        command=shlex.join(command),
    )
    if len(finished) < len(tasks):
        say(f"{len(tasks) - len(finished)} cells of the grid are not there; the rest is reported.")
    return report


def _write_run(folder: Path, grid: RecommenderGrid, command: Sequence[str]) -> None:
    """Writes what the run is, and sweeps up what a killed one left half-written."""
    for half in folder.glob("cells/*/*/.*"):
        shutil.rmtree(half, ignore_errors=True)
    artefacts.write_file(folder / "grid.json", json.dumps(asdict(grid), indent=1) + "\n")
    artefacts.write_file(folder / "command.txt", shlex.join(command) + "\n")
    described = json.dumps(versions(code_hash()), indent=1)
    artefacts.write_file(folder / "versions.json", described + "\n")
