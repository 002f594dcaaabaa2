"""The main job: one dataset, every policy, the same users, one table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from ilrec_sb3.baselines import find_algorithm, make_model, save_model
from ilrec_sb3.evaluation import Summary, as_planner, replay_sessions, summarise, summarise_seeds
from ilrec_sb3.report import Curve, Row, findings, plot_curves, table_markdown
from recsim_env import artefacts
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError
from recsim_env.planners import (
    Episodes,
    Planner,
    greedy,
    oracle,
    random_policy,
    rule_aware,
    run_episodes,
)
from recsim_env.prepare import Prepared, prepare
from recsim_env.settings import from_mapping
from recsim_env.simulator import Observer
from recsim_env.termination import make_rules
from recsim_env.trajectories import Trajectory, load_trajectories, save_trajectories

__all__ = [
    "TAG_PRICES",
    "CurveCallback",
    "ExperimentConfig",
    "ExperimentResult",
    "best_tag_price",
    "experiment_dynamics",
    "planners",
    "run_experiment",
]

logger = logging.getLogger(__name__)

TAG_PRICES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Prices tried for the planners' ``tag_price``, in reward units for each category of an item."""

DEMONSTRATIONS = "demonstrations"
_CELL = "cell.json"
_EPISODES = "episodes.parquet"
_PACKAGES = ("recsim_env", "llm_expert", "ilrec_sb3")
_TRIAL_STEPS = 320
# Demonstrations make a gradient step this much dearer, and a warm start costs as much as so many
# env steps.
_DEMONSTRATED_COST, _WARM_START_STEPS = 1.3, 8_000


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings of an experiment; all of them are kept with its results.

    Attributes:
        dataset: Name of a dataset, a custom one included.
        data: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        options: Options of the dataset, such as ``{"min_user": 10}``.
        termination: ``"category"``, ``"billp"``, ``"similarity"`` or ``"none"``.
        window: N of the category rule; None: the dataset's preset.
        max_repeats: M of the category rule; None: the dataset's preset.
        limit: Length limit of a session, in items.
        algorithms: What is trained, by name (`ilrec_sb3.baselines.ALGORITHMS`).
        settings: Constructor arguments by algorithm.
        steps: Env steps that each algorithm trains for. Raising it takes longer and, up to a
            point, learns more.
        seeds: One training for each.
        demonstrations: Sessions that the scripted explorer plays where the dataset carries no
            recorded ones.
        episodes: Sessions on the test world model that each policy is judged by.
        evaluation_seed: Draws their users; the same ones for every policy.
        curve_points: Evaluations along a training; 0 for none.
        curve_episodes: Sessions of each of these.
        device: "cpu", "cuda" or "auto"; None: each algorithm's usual one.
    """

    dataset: str = "synthetic"
    data: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    termination: str = "category"
    window: int | None = None
    max_repeats: int | None = None
    limit: int = 100
    algorithms: tuple[str, ...] = ("DQN", "A2C", "DiscreteSAC", "ILRec")
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int = 10_000
    seeds: tuple[int, ...] = (0, 1, 2)
    demonstrations: int = 200
    episodes: int = 500
    evaluation_seed: int = 1_000
    curve_points: int = 20
    curve_episodes: int = 64
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        object.__setattr__(self, "algorithms", tuple(self.algorithms))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        for name in (*self.algorithms, *self.settings):
            find_algorithm(name)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise DataError(f"The seeds {self.seeds} came; give at least one, and none twice.")
        for name in ("steps", "demonstrations", "episodes", "curve_episodes", "limit"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)} came; give 1 or more.")
        if self.curve_points < 0:
            raise DataError(f"curve_points={self.curve_points} came; give 0 or more.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExperimentConfig:
        """Builds the settings from a mapping, as JSON gives it.

        Raises:
            DataError: For a name that is no setting.
        """
        return from_mapping(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings in terms of JSON."""
        values = asdict(self)
        return {**values, "algorithms": list(self.algorithms), "seeds": list(self.seeds)}


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment came to.

    Attributes:
        folder: Where everything was written.
        rows: The table, in order.
        curves: Learning curves by algorithm and seed.
        table: The table as markdown, with its caption.
        findings: Three lines: what was found, and what to try next.
    """

    folder: Path
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]
    table: str
    findings: tuple[str, str, str]


@dataclass(frozen=True)
class _Cell:
    """The finished result of one policy and, where it was trained, one seed."""

    policy: str
    seed: int | None
    summary: Summary
    seconds: float
    steps: int
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def folder_name(self) -> str:
        return _cell_name(self.policy, self.seed)


class CurveCallback(BaseCallback):
    """Evaluates a model on a few fixed test sessions along its training.

    Args:
        dynamics: Where to evaluate.
        every: Env steps between evaluations.
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
        self.seconds = 0.0
        self._next = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next:
            self._evaluate()

    def _on_training_end(self) -> None:
        if not self.curve or self.curve[-1][0] != self.num_timesteps:
            self._evaluate()

    def _evaluate(self) -> None:
        started = time.perf_counter()
        self._next = (self.num_timesteps // self.every + 1) * self.every
        planner = as_planner(self.model, self.dynamics, deterministic=self.deterministic)
        played = run_episodes(self.dynamics, planner, self.episodes, self.seed)
        mean = float(played.returns.mean(dtype=np.float64))
        self.curve.append((self.num_timesteps, mean))
        self.logger.record("curve/return", mean)
        self.seconds += time.perf_counter() - started


def experiment_dynamics(config: ExperimentConfig, prepared: Prepared) -> tuple[Dynamics, Dynamics]:
    """Returns the train and the test dynamics of an experiment."""
    rules = make_rules(
        config.termination,
        dataset=prepared.dataset.name,
        window=config.window,
        max_repeats=config.max_repeats,
    )
    return (
        Dynamics(prepared, split="train", rules=rules, limit=config.limit),
        Dynamics(prepared, split="test", rules=rules, limit=config.limit),
    )


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


def planners(train: Dynamics, test: Dynamics) -> dict[str, Planner]:
    """Returns the policies that need no training, by their names in the table.

    The rule-aware planner's price of a category is chosen on the train world model, as a
    recommender could; the oracle's on the test world model, whose rewards it sees. Both look one
    item ahead, so the oracle is a high bar, not an upper bound.
    """
    return {
        "random": random_policy,
        "greedy": greedy,
        "rule-aware planner": rule_aware(best_tag_price(train, rule_aware)),
        "oracle": oracle(best_tag_price(test, oracle)),
    }


def run_experiment(
    config: ExperimentConfig,
    out: str | Path = "runs",
    *,
    cache: str | Path | None = None,
    name: str | None = None,
    command: Sequence[str] = (),
    fresh: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = logger.info,
) -> ExperimentResult:
    """Runs an experiment, or goes on with one that was stopped.

    Every policy (and seed) is a cell of the experiment, written whole when it is finished. A
    second start with the same settings, data and code finds the newest run that is not finished
    and does only what is missing.

    Args:
        config: The settings.
        out: Folder of the runs.
        cache: Folder of prepared artefacts; None: ``ILREC_CACHE``, else the user cache directory.
        name: Of the run; None: the time and the dataset.
        command: What was typed, to be kept.
        fresh: Starts anew even where a run could be gone on with.
        progress: Shows progress bars.
        say: Takes lines that tell how far it is.

    Returns:
        The table and all that belongs to it.

    Raises:
        DataError: For data or settings that cannot be used, or where ``name`` is a run of other
            settings.
    """
    prepared = prepare(
        config.dataset,
        root=config.data,
        cache=cache,
        progress=progress,
        options=dict(config.options),
    )
    identity = {
        "config": config.to_dict(),
        "data": prepared.fingerprint,
        "code": _code_hash(),
    }
    folder, resumed = _choose_folder(Path(out), config, identity, name, fresh)
    if resumed:
        say(f"Going on with {folder}: {len(_finished(folder))} parts of it are finished.")
    else:
        _write_identity(folder, identity, command)
    train, test = experiment_dynamics(config, prepared)
    demonstrated = _demonstrations(config, train, folder)
    jobs = list(_jobs(config, train, test, demonstrated, progress))
    missing = [job for job in jobs if not artefacts.check_folder(folder / "cells" / job.name)]
    trained = [job.policy for job in missing if job.seed is not None]
    if trained:
        say(
            f"{config.steps:,} env steps for each of {len(trained)} trainings: about "
            f"{_minutes(estimate_seconds(config, train, trained))} on this machine."
        )
    for job in jobs:
        if job in missing:
            if job.seed is not None:
                say(f"{job.policy}, seed {job.seed} ...")
            _write_cell(folder / "cells" / job.name, *job.run())
            if job.seed is not None:
                done = _read_cell(folder / "cells" / job.name)
                say(
                    f"{job.policy}, seed {job.seed}: return {done.summary.mean_return:.1f} after "
                    f"{done.seconds:.0f} s"
                )
    return _conclude(config, prepared, folder, [job.name for job in jobs])


@dataclass(frozen=True)
class _Job:
    """How a cell comes about; ``run`` gives the cell, its sessions and the trained model."""

    policy: str
    seed: int | None
    run: Callable[[], tuple[_Cell, Episodes, BaseAlgorithm | None]]

    @property
    def name(self) -> str:
        return _cell_name(self.policy, self.seed)


def _cell_name(policy: str, seed: int | None) -> str:
    plain = policy.replace(" ", "-")
    return plain if seed is None else f"{plain}-seed{seed}"


def _jobs(
    config: ExperimentConfig,
    train: Dynamics,
    test: Dynamics,
    demonstrated: Sequence[Trajectory],
    progress: bool,
) -> Iterator[_Job]:
    """Yields the cells in the order of the table."""
    fixed = planners(train, test)

    def play(policy: str) -> Callable[[], tuple[_Cell, Episodes, None]]:
        def run() -> tuple[_Cell, Episodes, None]:
            started = time.perf_counter()
            played = run_episodes(test, fixed[policy], config.episodes, config.evaluation_seed)
            return _planner_cell(policy, played, time.perf_counter() - started), played, None

        return run

    def replay() -> tuple[_Cell, Episodes, None]:
        started = time.perf_counter()
        played = replay_sessions(test, demonstrated)
        return _planner_cell(DEMONSTRATIONS, played, time.perf_counter() - started), played, None

    def learn(policy: str, seed: int) -> Callable[[], tuple[_Cell, Episodes, BaseAlgorithm]]:
        return lambda: _train_cell(config, policy, seed, train, test, demonstrated, progress)

    yield _Job("random", None, play("random"))
    yield _Job("greedy", None, play("greedy"))
    yield _Job(DEMONSTRATIONS, None, replay)
    for policy in config.algorithms:
        for seed in config.seeds:
            yield _Job(policy, seed, learn(policy, seed))
    yield _Job("rule-aware planner", None, play("rule-aware planner"))
    yield _Job("oracle", None, play("oracle"))


def _planner_cell(policy: str, played: Episodes, seconds: float) -> _Cell:
    summary = summarise(played)
    return _Cell(policy, None, summary, seconds, int(played.lengths.sum()))


def _train_cell(
    config: ExperimentConfig,
    policy: str,
    seed: int,
    train: Dynamics,
    test: Dynamics,
    demonstrated: Sequence[Trajectory],
    progress: bool,
) -> tuple[_Cell, Episodes, BaseAlgorithm]:
    """Trains one model and plays it on the test world model."""
    deterministic = find_algorithm(policy).deterministic
    model = make_model(
        policy,
        train,
        seed=seed,
        demonstrations=demonstrated,
        settings=config.settings.get(policy),
        device=config.device,
    )
    callback = CurveCallback(
        test,
        every=max(1, config.steps // max(config.curve_points, 1)),
        episodes=config.curve_episodes,
        seed=config.evaluation_seed + 1,
        deterministic=deterministic,
    )
    started = time.perf_counter()
    model.learn(
        config.steps, callback=callback if config.curve_points else None, progress_bar=progress
    )
    seconds = time.perf_counter() - started - callback.seconds
    planner = as_planner(model, test, deterministic=deterministic)
    played = run_episodes(test, planner, config.episodes, config.evaluation_seed)
    summary = summarise(played)
    cell = _Cell(policy, seed, summary, seconds, model.num_timesteps, tuple(callback.curve))
    return cell, played, model


def estimate_seconds(
    config: ExperimentConfig, dynamics: Dynamics, trainings: Sequence[str]
) -> float:
    """Returns about how long trainings will take on this machine, from a short trial of each kind.

    Args:
        config: The settings.
        dynamics: Where they train.
        trainings: Names of algorithms, once for each training.
    """
    total = 0.0
    for name in sorted(set(trainings)):
        demonstrated = find_algorithm(name).demonstrated
        # a trial needs no demonstrations: what they add is counted below
        model = make_model(
            "DiscreteSAC" if demonstrated else name,
            dynamics,
            settings=None if demonstrated else config.settings.get(name),
            device=config.device,
        )
        if isinstance(model, OffPolicyAlgorithm):
            model.learning_starts = 0
        model.learn(_TRIAL_STEPS)
        started = time.perf_counter()
        model.learn(_TRIAL_STEPS)
        seconds = (time.perf_counter() - started) / model.num_timesteps
        steps = float(config.steps)
        if demonstrated:
            steps = _DEMONSTRATED_COST * (steps + _WARM_START_STEPS)
        total += seconds * steps * trainings.count(name)
    return total


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _demonstrations(config: ExperimentConfig, train: Dynamics, folder: Path) -> list[Trajectory]:
    """Returns the demonstrations, and keeps them with the run."""
    path = folder / "demonstrations.parquet"
    if path.exists():
        return load_trajectories(path)
    found = demonstrations(Observer(train), n_sessions=config.demonstrations, seed=0)
    save_trajectories(path, found)
    return found


# -- folders and files -----------------------------------------------------------------------------


def _code_hash() -> str:
    """Returns a hash of the package's own code: other code must not go on with a run."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        folder = Path(__file__).parents[1] / package
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder.parent).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _choose_folder(
    out: Path,
    config: ExperimentConfig,
    identity: Mapping[str, Any],
    name: str | None,
    fresh: bool,
) -> tuple[Path, bool]:
    """Returns the folder of the run and whether it is there already."""
    if name is not None:
        folder = out / name
        if fresh or not (folder / "identity.json").exists():
            shutil.rmtree(folder / "cells", ignore_errors=True)
            (folder / "demonstrations.parquet").unlink(missing_ok=True)
            return folder, False
        if _read_identity(folder) != identity:
            raise DataError(
                f"{folder} holds a run of other settings, data or code; give another name, or "
                "--fresh to replace it."
            )
        return folder, True
    if not fresh:
        for folder in sorted(out.glob("*"), reverse=True):
            if not (folder / "table.md").exists() and _read_identity(folder) == identity:
                return folder, True
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.dataset}"
    folder, number = out / stem, 1
    while folder.exists():
        number += 1
        folder = out / f"{stem}-{number}"
    return folder, False


def _read_identity(folder: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((folder / "identity.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content


def _write_identity(folder: Path, identity: Mapping[str, Any], command: Sequence[str]) -> None:
    """Writes what makes the run what it is; the file that says so comes last."""
    _write_json(folder / "config.json", identity["config"])
    artefacts.write_file(folder / "command.txt", f"{shlex.join(command) or 'run_experiment'}\n")
    _write_json(folder / "versions.json", _versions(str(identity["code"])))
    artefacts.write_file(folder / "data_hash.txt", f"{identity['data']}\n")
    _write_json(folder / "identity.json", identity)


def _versions(code: str) -> dict[str, Any]:
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


def _write_json(path: Path, content: Any) -> None:
    artefacts.write_file(path, json.dumps(content, indent=1) + "\n")


def _finished(folder: Path) -> list[Path]:
    return [cell for cell in sorted(folder.glob("cells/*")) if artefacts.check_folder(cell)]


def _write_cell(path: Path, cell: _Cell, played: Episodes, model: BaseAlgorithm | None) -> None:
    """Writes a finished cell, whole or not at all."""

    def write(folder: Path) -> None:
        columns = {
            "policy": pa.array([cell.policy] * len(played.users)),
            "seed": pa.array([cell.seed] * len(played.users), pa.int64()),
            "user": pa.array(played.users),
            "length": pa.array(played.lengths),
            "return": pa.array(played.returns),
            "ended_by": pa.array(list(played.ended_by)),
            "items": pa.array([list(items) for items in played.actions], pa.list_(pa.int64())),
        }
        pq.write_table(pa.table(columns), folder / _EPISODES, compression="zstd")
        if model is not None:
            save_model(model, folder / "model.zip", training_state=False)
        (folder / _CELL).write_text(json.dumps(asdict(cell), indent=1), encoding="utf-8")

    artefacts.write_folder(path, write)


def _read_cell(path: Path) -> _Cell:
    values = json.loads((path / _CELL).read_text(encoding="utf-8"))
    values["summary"] = Summary(**values["summary"])
    values["curve"] = tuple((int(step), float(mean)) for step, mean in values["curve"])
    return _Cell(**values)


def _conclude(
    config: ExperimentConfig, prepared: Prepared, folder: Path, names: Sequence[str]
) -> ExperimentResult:
    """Puts the finished cells together: table, plot, sessions and the three lines."""
    cells = [_read_cell(folder / "cells" / name) for name in names]
    rows = []
    for policy in dict.fromkeys(cell.policy for cell in cells):
        same = [cell for cell in cells if cell.policy == policy]
        rows.append(
            Row(
                policy=policy,
                summary=summarise_seeds([cell.summary for cell in same]),
                steps_per_second=float(np.median([c.steps / max(c.seconds, 1e-9) for c in same])),
                seconds=float(np.median([cell.seconds for cell in same])),
                trained=same[0].seed is not None,
            )
        )
    curves = tuple(
        Curve(cell.policy, int(cell.seed or 0), cell.curve) for cell in cells if cell.curve
    )
    table = table_markdown(
        rows,
        title=(
            f"{prepared.dataset.name}, {prepared.dataset.n_items:,} items, "
            f"{config.steps:,} env steps"
        ),
    )
    lines = findings(rows, curves, dataset=config.dataset, steps=config.steps)
    pq.write_table(
        pa.concat_tables([pq.read_table(folder / "cells" / name / _EPISODES) for name in names]),
        folder / _EPISODES,
        compression="zstd",
    )
    if curves:
        plot_curves(folder / "curves.png", rows, curves, title=prepared.dataset.name)
    _write_json(
        folder / "summary.json",
        {
            "rows": [asdict(row) for row in rows],
            "by_seed": [asdict(cell) for cell in cells],
            "findings": list(lines),
        },
    )
    # last of all: a run with a table is finished
    artefacts.write_file(folder / "table.md", table + "\n" + "\n".join(lines) + "\n")
    return ExperimentResult(folder, tuple(rows), curves, table, lines)
