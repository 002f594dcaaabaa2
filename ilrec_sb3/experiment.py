"""The main job: one dataset, every policy, the same users, one table."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from ilrec_sb3.baselines import check_settings, find_algorithm, make_model
from ilrec_sb3.cells import (
    DEMONSTRATIONS,
    EPISODES,
    TAG_PRICES,
    CellResult,
    CurveCallback,
    Stage,
    Task,
    best_tag_price,
    code_hash,
    make_planner,
    read_cell,
    run_task,
    versions,
    write_cell,
)
from ilrec_sb3.evaluation import summarise, summarise_seeds
from ilrec_sb3.report import Curve, Row, findings, plot_curves, table_markdown
from recsim_env import artefacts
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError
from recsim_env.planners import Planner
from recsim_env.prepare import Prepared, prepare
from recsim_env.settings import check_range, check_types, from_mapping
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
    "prepare_data",
    "run_experiment",
]

logger = logging.getLogger(__name__)

_BELOW, _ABOVE = ("random", "greedy"), ("rule-aware planner", "oracle")
"""Policies of the table that need no training, before and after those that are trained."""
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
        """Checks types, names and ranges."""
        check_types(self)
        object.__setattr__(self, "algorithms", tuple(self.algorithms))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        for name in (*self.algorithms, *self.settings):
            check_settings(name, self.settings.get(name, {}))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise DataError(f"The seeds {self.seeds} came; give at least one, and none twice.")
        counts = ("steps", "demonstrations", "episodes", "curve_episodes", "limit")
        check_range(self, *counts, least=1)
        check_range(self, "curve_points", least=0)

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


def prepare_data(
    config: ExperimentConfig, cache: str | Path | None = None, progress: bool = True
) -> Prepared:
    """Returns the prepared data of an experiment.

    Args:
        config: Its settings.
        cache: Folder of prepared artefacts; None: ``ILREC_CACHE``, else the user cache directory.
        progress: Shows progress bars.

    Raises:
        DataError: For data or options that cannot be used.
    """
    return prepare(
        config.dataset,
        root=config.data,
        cache=cache,
        progress=progress,
        options=dict(config.options),
    )


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


def planners(train: Dynamics, test: Dynamics) -> dict[str, Planner]:
    """Returns the policies that need no training, by their names in the table.

    See `ilrec_sb3.cells.make_planner`.
    """
    return {name: make_planner(name, train, test) for name in (*_BELOW, *_ABOVE)}


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
    prepared = prepare_data(config, cache, progress)
    identity = {
        "config": config.to_dict(),
        "data": prepared.fingerprint,
        "code": code_hash(),
    }
    folder, resumed = _choose_folder(Path(out), config, identity, name, fresh)
    if resumed:
        say(f"Going on with {folder}: {len(_finished(folder))} parts of it are finished.")
    else:
        _write_identity(folder, identity, command)
    train, test = experiment_dynamics(config, prepared)
    demonstrated = _demonstrations(config, train, folder)
    stage = Stage(train, {"": test})
    tasks = _tasks(config)
    missing = [t for t in tasks if not artefacts.check_folder(folder / "cells" / t.name)]
    trained = [task.algorithm for task in missing if task.seed is not None]
    if trained:
        say(
            f"{config.steps:,} env steps for each of {len(trained)} trainings: about "
            f"{_minutes(estimate_seconds(config, train, trained))} on this machine."
        )
    for task in missing:
        if task.seed is not None:
            say(f"{task.label}, seed {task.seed} ...")
        cell, model = run_task(
            task, stage, demonstrated, code=str(identity["code"]), progress=progress
        )
        write_cell(folder / "cells" / task.name, cell, model)
        if task.seed is not None:
            mean = cell.episodes[""].returns.mean(dtype=np.float64)
            say(f"{task.label}, seed {task.seed}: return {mean:.1f} after {cell.seconds:.0f} s")
    return _conclude(config, prepared, folder, [task.name for task in tasks])


def _tasks(config: ExperimentConfig) -> list[Task]:
    """Returns the cells in the order of the table."""

    def task(policy: str, seed: int | None = None) -> Task:
        return Task(
            environment=config.dataset,
            label=policy,
            algorithm=policy,
            seed=seed,
            steps=0 if seed is None else config.steps,
            settings=config.settings.get(policy, {}),
            episodes=config.episodes,
            evaluation_seed=config.evaluation_seed,
            curve_points=config.curve_points,
            curve_episodes=config.curve_episodes,
            device=config.device,
        )

    return [
        *(task(policy) for policy in (*_BELOW, DEMONSTRATIONS)),
        *(task(policy, seed) for policy in config.algorithms for seed in config.seeds),
        *(task(policy) for policy in _ABOVE),
    ]


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
    _write_json(folder / "versions.json", versions(str(identity["code"])))
    artefacts.write_file(folder / "data_hash.txt", f"{identity['data']}\n")
    _write_json(folder / "identity.json", identity)


def _write_json(path: Path, content: Any) -> None:
    artefacts.write_file(path, json.dumps(content, indent=1) + "\n")


def _finished(folder: Path) -> list[Path]:
    return [cell for cell in sorted(folder.glob("cells/*")) if artefacts.check_folder(cell)]


def _steps(cell: CellResult) -> int:
    """Returns the env steps that ``seconds`` is the time of: trained, or played."""
    return cell.steps or sum(int(played.lengths.sum()) for played in cell.episodes.values())


def _conclude(
    config: ExperimentConfig, prepared: Prepared, folder: Path, names: Sequence[str]
) -> ExperimentResult:
    """Puts the finished cells together: table, plot, sessions and the three lines."""
    cells = [read_cell(folder / "cells" / name) for name in names]
    summaries = [summarise(cell.episodes[""]) for cell in cells]
    rows = []
    for policy in dict.fromkeys(cell.label for cell in cells):
        same = [k for k, cell in enumerate(cells) if cell.label == policy]
        rates = [_steps(cells[k]) / max(cells[k].seconds, 1e-9) for k in same]
        rows.append(
            Row(
                policy=policy,
                summary=summarise_seeds([summaries[k] for k in same]),
                steps_per_second=float(np.median(rates)),
                seconds=float(np.median([cells[k].seconds for k in same])),
                trained=cells[same[0]].seed is not None,
            )
        )
    curves = tuple(
        Curve(cell.label, int(cell.seed or 0), cell.curve) for cell in cells if cell.curve
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
        pa.concat_tables([pq.read_table(folder / "cells" / name / EPISODES) for name in names]),
        folder / EPISODES,
        compression="zstd",
    )
    if curves:
        plot_curves(folder / "curves.png", rows, curves, title=prepared.dataset.name)
    _write_json(
        folder / "summary.json",
        {
            "rows": [asdict(row) for row in rows],
            "by_seed": [
                {
                    "policy": cell.label,
                    "seed": cell.seed,
                    "summary": asdict(summary),
                    "seconds": cell.seconds,
                    "steps": _steps(cell),
                    "curve": cell.curve,
                }
                for cell, summary in zip(cells, summaries, strict=True)
            ],
            "findings": list(lines),
        },
    )
    # last of all: a run with a table is finished
    artefacts.write_file(folder / "table.md", table + "\n" + "\n".join(lines) + "\n")
    return ExperimentResult(folder, tuple(rows), curves, table, lines)
