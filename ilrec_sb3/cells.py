"""Cells of an experiment or a benchmark: one policy, one environment, one seed.

A `Task` says what a cell is to be, `run_task` makes it, and a folder keeps it: ``cell.json``,
``episodes.parquet`` and, where a model was trained, ``model.zip``. A cell that failed leaves
``failed.json`` and ``traceback.txt`` instead.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from ilrec_sb3.baselines import find_algorithm, make_model, save_model
from ilrec_sb3.common.callbacks import BetweenRollouts
from ilrec_sb3.evaluation import as_planner, can_play, replay_sessions, takes_shown_away
from recsim_env import artefacts, planners
from recsim_env.dynamics import Dynamics, State
from recsim_env.errors import DataError, near_miss
from recsim_env.planners import Episodes, Planner, run_episodes
from recsim_env.trajectories import Trajectory

__all__ = [
    "CELL",
    "DEMONSTRATIONS",
    "EPISODES",
    "FAILED",
    "MODEL",
    "PLANNERS",
    "TAG_PRICES",
    "CellResult",
    "CurveCallback",
    "Stage",
    "Task",
    "best_tag_price",
    "cell_name",
    "check_comparable",
    "code_hash",
    "copy_cell",
    "failed_result",
    "make_planner",
    "read_cell",
    "read_cells",
    "run_task",
    "versions",
    "write_cell",
    "write_failure",
]

CELL, EPISODES, MODEL = "cell.json", "episodes.parquet", "model.zip"
FAILED, _TRACEBACK = "failed.json", "traceback.txt"
DEMONSTRATIONS = "demonstrations"
"""Name of the policy that plays the demonstrated sessions again."""

TAG_PRICES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Prices tried for the planners' ``tag_price``, in reward units for each category of an item."""

PLANNERS = (
    "random",
    "popularity",
    "greedy",
    "rule-aware greedy",
    "rule-aware planner",
    "oracle",
)
"""Policies that need no training, see `make_planner`."""

_CURVE_USERS = 1
"""Added to ``evaluation_seed``: the users of the curves are others."""

_PACKAGES = ("recsim_env", "llm_expert", "ilrec_sb3")


@dataclass(frozen=True)
class CellResult:
    """The finished result of a cell.

    Attributes:
        environment: Its name in the grid.
        fingerprint: Of the test dynamics; of several modes, of the first.
        label: Row of the table.
        algorithm: Name of the algorithm or planner.
        group: "main", "ablation", "demonstrations" or "sensitivity".
        seed: Of the training; None where nothing was trained.
        steps: Env steps trained; gradient steps of an offline algorithm; 0 where nothing was
            trained.
        seconds: Of training without the evaluations on the way; of playing for planners.
        settings: Constructor arguments.
        curve: Steps and mean returns; a policy that needs no training has one point at most.
        episodes: Sessions by test mode; "" where there is only one.
        code: Hash of the package's code that made it.
        failed: One line where the cell failed.
        curve_seconds: Of training until each point of ``curve``, counted as ``seconds`` are; empty
            in cells of before they were kept.
    """

    environment: str
    fingerprint: str
    label: str
    algorithm: str
    group: str
    seed: int | None
    steps: int
    seconds: float
    settings: Mapping[str, Any]
    curve: tuple[tuple[int, float], ...]
    episodes: Mapping[str, Episodes]
    code: str
    failed: str | None = None
    curve_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Where the policies of an environment train and where they are judged.

    Attributes:
        train: Where they train.
        tests: Where they are judged, by mode, at least one; curves are played on the first.
    """

    train: Dynamics
    tests: Mapping[str, Dynamics]

    @property
    def test(self) -> Dynamics:
        """The first of ``tests``."""
        return next(iter(self.tests.values()))


@dataclass(frozen=True)
class Task:
    """What a cell is to be.

    Attributes:
        environment: Name of the stage.
        label: Row of the table.
        algorithm: An algorithm (`ilrec_sb3.baselines.find_algorithm`), one of `PLANNERS`, or
            `DEMONSTRATIONS`.
        group: Which table it belongs to.
        seed: Of the training; None where nothing is trained.
        steps: Env steps to train for; gradient steps of an offline algorithm.
        settings: Constructor arguments.
        episodes: Sessions it is judged by, in each mode.
        evaluation_seed: Draws their users; the same ones for every policy.
        curve_points: Evaluations along a training; 0 for none.
        curve_episodes: Sessions of each of these.
        device: "cpu", "cuda" or "auto"; None: the algorithm's usual one.
    """

    environment: str
    label: str
    algorithm: str
    group: str = "main"
    seed: int | None = None
    steps: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 500
    evaluation_seed: int = 1_000
    curve_points: int = 20
    curve_episodes: int = 64
    device: str | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return cell_name(self.label, self.seed)

    @property
    def key(self) -> str:
        """Hash of all that decides its result, the environment and the demonstrations left out."""
        shown = {"environment", "label", "group", "device"}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return artefacts.key(**{name: v for name, v in values.items() if name not in shown})


class CurveCallback(BetweenRollouts):
    """Evaluates a model on a few fixed test sessions along its training.

    Its clock, which leaves the evaluations out, starts when it is made: what comes before the first
    step, such as a warm start, is in the seconds of the first point.

    Args:
        dynamics: Where to evaluate.
        every: Steps between evaluations.
        episodes: Sessions of each; the same users every time.
        seed: Draws the users.
        deterministic: As in `ilrec_sb3.evaluation.as_planner`.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        every: int,
        episodes: int = 64,
        seed: int = 0,
        deterministic: bool = True,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.every = every
        self.episodes = episodes
        self.seed = seed
        self.deterministic = deterministic
        self.curve: list[tuple[int, float]] = []
        self.curve_seconds: list[float] = []
        self.seconds = 0.0
        self._made_at = time.perf_counter()

    def _on_training_end(self) -> None:
        if not self.curve or self.curve[-1][0] != self.num_timesteps:
            self.act()

    def act(self) -> None:
        """Adds a point to the curve."""
        started = time.perf_counter()
        self.curve_seconds.append(started - self._made_at - self.seconds)
        self.next_at = (self.num_timesteps // self.every + 1) * self.every
        planner = as_planner(self.model, self.dynamics, deterministic=self.deterministic)
        played = run_episodes(self.dynamics, planner, self.episodes, self.seed)
        mean = float(played.returns.mean(dtype=np.float64))
        self.curve.append((self.num_timesteps, mean))
        self.logger.record("curve/return", mean)
        self.seconds += time.perf_counter() - started


# -- policies that need no training ----------------------------------------------------------------


def best_tag_price(
    dynamics: Dynamics, make: Callable[[float], Planner], episodes: int = 200, seed: int = 0
) -> float:
    """Returns the price of `TAG_PRICES` with which a planner does best; the lowest of equals.

    Args:
        dynamics: Where to try them.
        make: `rule_aware` or `oracle`.
        episodes: Sessions for each price.
        seed: Draws their users.
    """
    means = [
        float(run_episodes(dynamics, make(price), episodes, seed).returns.mean(dtype=np.float64))
        for price in TAG_PRICES
    ]
    return TAG_PRICES[int(np.argmax(means))]


def make_planner(name: str, train: Dynamics, test: Dynamics) -> Planner:
    """Returns a policy that needs no training.

    The rule-aware planner's price of a category is chosen on the train world model, as a
    recommender could; the oracle's on the test world model, whose rewards it sees. Both look one
    item ahead, so the oracle is a high bar, not an upper bound.

    Args:
        name: One of `PLANNERS`.
        train: The train dynamics.
        test: Where it will play.

    Raises:
        DataError: There is none of that name.
    """
    match name:
        case "random":
            return _random(test)
        case "popularity":
            return planners.popularity
        case "greedy":
            return planners.greedy
        case "rule-aware greedy":
            return planners.rule_aware()
        case "rule-aware planner":
            return planners.rule_aware(best_tag_price(train, planners.rule_aware))
        case "oracle":
            return planners.oracle(best_tag_price(test, planners.oracle))
    raise DataError(f"The planner {name!r} is not known; {near_miss(name, PLANNERS)}.")


def _random(test: Dynamics) -> Planner:
    """Any item; where the environment itself takes shown items away, any of the others."""
    return _random_allowed if takes_shown_away(test) else planners.random_policy


def _random_allowed(
    dynamics: Dynamics, state: State, generator: np.random.Generator
) -> NDArray[np.int64]:
    del dynamics
    draws = generator.random(state.mask.shape)
    return np.asarray(np.where(state.mask, draws, -1.0).argmax(axis=1))


# -- making a cell ---------------------------------------------------------------------------------


def run_task(
    task: Task,
    stage: Stage,
    demonstrated: Sequence[Trajectory] = (),
    *,
    code: str = "",
    progress: bool = False,
    planner_points: bool = False,
) -> tuple[CellResult, BaseAlgorithm | None]:
    """Trains and plays what a task asks for.

    A model that cannot be kept to what a mode lets it show (`ilrec_sb3.evaluation.can_play`) is not
    played in it.

    Args:
        task: What to do.
        stage: Where.
        demonstrated: Demonstrations, for algorithms that take them and to be played again.
        code: Kept with the result, see `code_hash`.
        progress: Shows a progress bar of the training.
        planner_points: Whether planners get a curve of one point, their return to the users of the
            curves, for bars that are drawn across these.

    Returns:
        The cell, and the model where one was trained.

    Raises:
        DataError: For settings that cannot be used, or a model that cannot be played in the first
            mode.
    """
    if task.seed is not None:
        return _train(task, stage, demonstrated, code, progress)
    seconds = 0.0
    played = {}
    for mode, test in stage.tests.items():
        if task.algorithm == DEMONSTRATIONS:
            started = time.perf_counter()
            played[mode] = replay_sessions(test, demonstrated)
        else:
            planner = make_planner(task.algorithm, stage.train, test)
            started = time.perf_counter()
            played[mode] = run_episodes(test, planner, task.episodes, task.evaluation_seed)
        seconds += time.perf_counter() - started
    curve = _planner_point(task, stage) if planner_points else ()
    return _result(task, stage, code, seconds=seconds, curve=curve, episodes=played), None


def _planner_point(task: Task, stage: Stage) -> tuple[tuple[int, float], ...]:
    """Returns the return of a planner to the users of the curves, at step 0."""
    if task.algorithm == DEMONSTRATIONS or not task.curve_points:
        return ()
    planner = make_planner(task.algorithm, stage.train, stage.test)
    seed = task.evaluation_seed + _CURVE_USERS
    played = run_episodes(stage.test, planner, task.curve_episodes, seed)
    return ((0, float(played.returns.mean(dtype=np.float64))),)


def _train(
    task: Task, stage: Stage, demonstrated: Sequence[Trajectory], code: str, progress: bool
) -> tuple[CellResult, BaseAlgorithm]:
    """Trains one model and plays it in every test mode."""
    assert task.seed is not None
    chosen = find_algorithm(task.algorithm)
    model = make_model(
        task.algorithm,
        stage.train,
        seed=task.seed,
        demonstrations=demonstrated if chosen.demonstrated else None,
        settings=copy.deepcopy(dict(task.settings)),  # some algorithms write into what they get
        device=task.device,
    )
    as_planner(model, stage.test)  # what cannot play at all fails before it is trained
    started = time.perf_counter()
    callback = CurveCallback(
        stage.test,
        every=max(1, task.steps // max(task.curve_points, 1)),
        episodes=task.curve_episodes,
        seed=task.evaluation_seed + _CURVE_USERS,
        deterministic=chosen.deterministic,
    )
    model.learn(task.steps, callback=callback if task.curve_points else None, progress_bar=progress)
    seconds = time.perf_counter() - started - callback.seconds
    played = {
        mode: run_episodes(
            test,
            as_planner(model, test, deterministic=chosen.deterministic),
            task.episodes,
            task.evaluation_seed,
        )
        for mode, test in stage.tests.items()
        if can_play(model, test)
    }
    result = _result(
        task,
        stage,
        code,
        steps=model.num_timesteps,
        seconds=seconds,
        curve=tuple(callback.curve),
        curve_seconds=tuple(callback.curve_seconds),
        episodes=played,
    )
    return result, model


def failed_result(task: Task, fingerprint: str, reason: str, code: str = "") -> CellResult:
    """Returns the cell of a task that failed.

    Args:
        task: What was asked for.
        fingerprint: Of the first test dynamics.
        reason: One line.
        code: See `code_hash`.
    """
    return _cell(task, fingerprint, code, failed=" ".join(reason.split()) or "no reason was given")


def _result(task: Task, stage: Stage, code: str, **found: Any) -> CellResult:
    return _cell(task, stage.test.fingerprint, code, **found)


def _cell(task: Task, fingerprint: str, code: str, **found: Any) -> CellResult:
    empty: dict[str, Any] = {"steps": 0, "seconds": 0.0, "curve": (), "episodes": {}}
    return CellResult(
        environment=task.environment,
        fingerprint=fingerprint,
        label=task.label,
        algorithm=task.algorithm,
        group=task.group,
        seed=task.seed,
        settings=dict(task.settings),
        code=code,
        **{**empty, **found},
    )


# -- folders and files -----------------------------------------------------------------------------


def cell_name(label: str, seed: int | None) -> str:
    """Returns the name of a cell's folder."""
    plain = re.sub(r"[^\w.+=@,-]+", "-", label).strip("-.") or "cell"
    return plain if seed is None else f"{plain}-seed{seed}"


def write_cell(
    path: Path,
    cell: CellResult,
    model: BaseAlgorithm | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
) -> None:
    """Writes a finished cell, whole or not at all.

    Args:
        path: Its folder; what is there is replaced.
        cell: The cell.
        model: Saved with it, without what it would need to go on training.
        identity: In terms of JSON, kept as ``identity`` with the rest.
    """

    def write(folder: Path) -> None:
        if model is not None:
            save_model(model, folder / MODEL, training_state=False)
        _write_finished(folder, cell, identity)

    artefacts.write_folder(path, write)


def copy_cell(source: Path, path: Path, task: Task, *, identity: Mapping[str, Any]) -> CellResult:
    """Writes a finished cell under another name, whole or not at all.

    Args:
        source: Folder of a finished cell.
        path: Folder of the new one; what is there is replaced.
        task: What the new one is. Its names and settings take the place of the other's.
        identity: As in `write_cell`.

    Returns:
        The new cell.

    Raises:
        DataError: There is no cell.
    """
    cell = replace(
        read_cell(source),
        environment=task.environment,
        label=task.label,
        group=task.group,
        settings=dict(task.settings),
    )

    def write(folder: Path) -> None:
        if (source / MODEL).exists():
            shutil.copyfile(source / MODEL, folder / MODEL)
        _write_finished(folder, cell, identity)

    artefacts.write_folder(path, write)
    return cell


def _write_finished(folder: Path, cell: CellResult, identity: Mapping[str, Any] | None) -> None:
    pq.write_table(_episodes_table(cell), folder / EPISODES, compression="zstd")
    _write_json(folder / CELL, _described(cell, identity))


def write_failure(
    path: Path, cell: CellResult, trace: str, *, identity: Mapping[str, Any] | None = None
) -> None:
    """Writes a cell that failed, whole or not at all.

    Args:
        path: Its folder; what is there is replaced.
        cell: From `failed_result`.
        trace: Text of the traceback.
        identity: As in `write_cell`.
    """

    def write(folder: Path) -> None:
        (folder / _TRACEBACK).write_text(trace, encoding="utf-8")
        _write_json(folder / FAILED, _described(cell, identity))

    artefacts.write_folder(path, write)


def _described(cell: CellResult, identity: Mapping[str, Any] | None) -> dict[str, Any]:
    values = {f.name: getattr(cell, f.name) for f in fields(cell) if f.name != "episodes"}
    return {**values, "modes": list(cell.episodes), "identity": dict(identity or {})}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _episodes_table(cell: CellResult) -> pa.Table:
    """One row for each session, one mode after the other."""
    tables = [
        pa.table(
            {
                "policy": pa.array([cell.label] * len(played.users), pa.string()),
                "seed": pa.array([cell.seed] * len(played.users), pa.int64()),
                "mode": pa.array([mode] * len(played.users), pa.string()),
                "user": pa.array(played.users, pa.int64()),
                "length": pa.array(played.lengths, pa.int64()),
                "return": pa.array(played.returns, pa.float32()),
                "ended_by": pa.array(list(played.ended_by), pa.string()),
                "items": pa.array([list(items) for items in played.actions], pa.list_(pa.int64())),
            }
        )
        for mode, played in cell.episodes.items()
    ]
    return pa.concat_tables(tables)


def read_cell(path: Path) -> CellResult:
    """Reads a cell, a failed one too.

    Args:
        path: Its folder.

    Raises:
        DataError: There is no cell.
    """
    file = next((path / name for name in (CELL, FAILED) if (path / name).exists()), None)
    if file is None:
        raise DataError(f"{path} holds no cell, expected {CELL} in it: name a cell's folder.")
    values = json.loads(file.read_text(encoding="utf-8"))
    values.pop("identity")
    modes = values.pop("modes")
    table = pq.read_table(path / EPISODES) if file.name == CELL else None
    return CellResult(
        **{
            **values,
            "curve": tuple((int(step), float(mean)) for step, mean in values["curve"]),
            "curve_seconds": tuple(map(float, values.get("curve_seconds", ()))),
            "episodes": {mode: _read_episodes(table, mode) for mode in modes},
        }
    )


def _read_episodes(table: pa.Table, mode: str) -> Episodes:
    rows = table.filter(pa.compute.equal(table["mode"], mode))

    def column(name: str) -> NDArray[Any]:
        return np.asarray(rows[name].to_numpy())

    return Episodes(
        users=column("user"),
        lengths=column("length"),
        returns=column("return"),
        ended_by=tuple(rows["ended_by"].to_pylist()),
        actions=tuple(tuple(items) for items in rows["items"].to_pylist()),
    )


def read_cells(folder: Path) -> list[CellResult]:
    """Reads the whole cells below a folder, failed ones too, sorted by their paths.

    Args:
        folder: Of a run, or its ``cells``.
    """
    found = sorted({file.parent for name in (CELL, FAILED) for file in folder.rglob(name)})
    return [
        read_cell(path)
        for path in found
        if not path.name.startswith(".") and artefacts.check_folder(path)
    ]


def check_comparable(cells: Sequence[CellResult]) -> None:
    """Refuses cells of environments that share a name and differ; failed ones are left out.

    Args:
        cells: To be put side by side.

    Raises:
        DataError: Two of one environment name have different fingerprints.
    """
    first: dict[str, CellResult] = {}
    for cell in cells:
        if cell.failed:
            continue
        known = first.setdefault(cell.environment, cell)
        if known.fingerprint != cell.fingerprint:
            raise DataError(
                f"The cells {known.label!r} and {cell.label!r} were played in different "
                f"environments of the name {cell.environment!r} (fingerprints "
                f"{known.fingerprint[:12]} and {cell.fingerprint[:12]}), so they cannot be "
                "compared: make both anew with --fresh, or keep them in folders of their own with "
                "--out."
            )


def code_hash() -> str:
    """Returns a hash (sha256 hex) of the package's own code."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        folder = Path(__file__).parents[1] / package
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder.parent).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def versions(code: str) -> dict[str, Any]:
    """Returns what a result was made with, in terms of JSON.

    Args:
        code: See `code_hash`.
    """
    names = (
        "ilrec numpy torch gymnasium stable-baselines3 sb3-contrib imitation scikit-learn pyarrow"
    ).split()
    packages = {}
    for name in names:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": th.get_num_threads(),
        "cuda": th.cuda.get_device_name(0) if th.cuda.is_available() else None,
        "packages": packages,
        "code": code,
    }
