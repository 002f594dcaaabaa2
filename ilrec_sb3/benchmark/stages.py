"""Where the cells of a grid are played, and what their learners are shown beforehand."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ilrec_sb3.baselines import find_algorithm, make_model
from ilrec_sb3.benchmark.grid import DemonstrationSpec, GridEnvironment
from ilrec_sb3.cells import Stage, cell_name, make_planner
from ilrec_sb3.evaluation import as_planner
from ilrec_sb3.experiment import ExperimentConfig, experiment_dynamics, prepare_data
from recsim_env import artefacts
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError, MissingDataError, near_miss
from recsim_env.planners import Planner, explore, run_episodes
from recsim_env.prepare import Session
from recsim_env.simulator import Observer
from recsim_env.trajectories import Trajectory, load_trajectories, save_trajectories

__all__ = [
    "Stages",
    "demonstrations_hash",
    "demonstrations_path",
    "keep_demonstrations",
    "make_demonstrations",
]

_READERS = "ilrec.demonstrations"
_SEED = 0
_STEPS = 10_000


class Stages:
    """The stages of a grid's environments, each made when it is first asked for.

    Other processes get it without what was made.

    Args:
        data: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        cache: Folder of prepared artefacts; None: ``ILREC_CACHE``, else the user cache directory.
        progress: Shows progress bars while data are prepared.
    """

    def __init__(
        self, data: str | None = None, cache: str | None = None, progress: bool = False
    ) -> None:
        self.data = data
        self.cache = cache
        self.progress = progress
        self._made: dict[str, Stage] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "progress": False, "_made": {}}

    def get(self, environment: GridEnvironment) -> Stage:
        """Returns the stage of an environment.

        Raises:
            DataError: For data or settings that cannot be used.
        """
        key = artefacts.key(environment=environment)
        if key not in self._made:
            self._made[key] = self._make(environment)
        return self._made[key]

    def _make(self, environment: GridEnvironment) -> Stage:
        if environment.setting == "easyrl4rec":
            from recsim_env.easyrl4rec import easyrl4rec_stage

            options = _options_of(easyrl4rec_stage, environment.options)
            return Stage(*easyrl4rec_stage(self.data, self.cache, self.progress, **options))
        config = ExperimentConfig(
            dataset=environment.dataset,
            data=self.data,
            options=environment.options,
            termination=environment.termination,
            window=environment.window,
            max_repeats=environment.max_repeats,
            limit=environment.limit,
        )
        prepared = prepare_data(config, self.cache, self.progress)
        train, test = experiment_dynamics(config, prepared)
        return Stage(train, {"": test})


def _options_of(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a setting, having checked their names."""
    parameters = inspect.signature(make).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise DataError(f"The setting has no option {name!r}; {near_miss(name, known)}.")
    return dict(options)


def make_demonstrations(
    spec: DemonstrationSpec, train: Dynamics, data: str | None = None
) -> list[Trajectory]:
    """Returns the demonstrations that a row asks for, under the train rewards and rules.

    Where more sessions are there than asked for, they are drawn, always the same ones.

    Args:
        spec: Which.
        train: The train dynamics.
        data: Folder with the raw data, for sessions that the dataset does not carry.

    Raises:
        DataError: There are none.
    """
    if spec.parts:
        every = [t for part in spec.parts for t in make_demonstrations(part, train, data)]
        return [every[k] for k in _drawn(len(every), spec.sessions)]
    if spec.file is not None:
        sessions = [_as_session(trajectory) for trajectory in load_trajectories(spec.file)]
    elif spec.source is not None:
        sessions = _recorded(spec.source, train, data)
    elif spec.planner == "explorer":
        sessions = explore(train, spec.played, _SEED)
    elif spec.planner is not None:
        sessions = _play(make_planner(spec.planner, train, train), spec, train, spec.planner)
    elif spec.algorithm is not None:
        sessions = _play(_learn(spec, train), spec, train, spec.algorithm)
    else:
        found = demonstrations(Observer(train), n_sessions=spec.played, seed=_SEED)
        return [found[k] for k in _drawn(len(found), spec.sessions)]
    chosen = [sessions[k] for k in _drawn(len(sessions), spec.sessions)]
    return train.replay(chosen)


def _drawn(n: int, wanted: int | None) -> list[int]:
    if wanted is None or wanted >= n:
        return list(range(n))
    return sorted(np.random.default_rng(_SEED).choice(n, wanted, replace=False).tolist())


def _as_session(trajectory: Trajectory) -> Session:
    return Session(
        user=trajectory.user,
        history=trajectory.history,
        actions=tuple(int(action) for action in trajectory.actions),
        source=trajectory.source,
    )


def _recorded(source: str, train: Dynamics, data: str | None) -> list[Session]:
    """Returns the sessions of a demonstrator: those carried, else those that the reader finds."""
    prepared = train.prepared
    carried = [s for s in prepared.sessions if source in s.source]
    if carried:
        return carried
    name = prepared.dataset.name
    for entry in importlib.metadata.entry_points(group=_READERS, name=name):
        read = entry.load()
        if "models" in inspect.signature(read).parameters:
            found, _ = read(prepared.dataset, data, prepared.text_embedder, models=(source,))
            # known users start from their train interactions: no test one can come in
            return [s if s.user < 0 else replace(s, history=()) for s in found]
    known = sorted({s.source for s in prepared.sessions})
    said = near_miss(source, known) if known else "it carries none"
    raise DataError(f"{name!r} has no demonstrations of {source!r}; {said}.")


def _learn(spec: DemonstrationSpec, train: Dynamics) -> Planner:
    assert spec.algorithm is not None
    model = make_model(spec.algorithm, train, seed=_SEED)
    model.learn(spec.steps or _STEPS)
    return as_planner(model, train, deterministic=find_algorithm(spec.algorithm).deterministic)


def _play(planner: Planner, spec: DemonstrationSpec, train: Dynamics, source: str) -> list[Session]:
    played = run_episodes(train, planner, spec.played, _SEED)
    return [
        Session(user=int(user), history=(), actions=actions, source=source)
        for user, actions in zip(played.users, played.actions, strict=True)
    ]


def demonstrations_path(folder: Path, name: str, spec: DemonstrationSpec, stage: Stage) -> Path:
    """Returns the file in which a run keeps demonstrations, named by all that they depend on.

    Args:
        folder: Of the run.
        name: Of the environment.
        spec: Which.
        stage: The environment.
    """
    described = asdict(spec)
    parts = described.pop("parts")
    files = {"parts": [(part, _content(p)) for part, p in zip(parts, spec.parts, strict=True)]}
    key = artefacts.key(
        train=stage.train.fingerprint,
        spec=described,
        file=_content(spec),
        **(files if parts else {}),
    )
    rest = "several" if parts else Path(spec.file or "all").stem
    stem = spec.source or spec.planner or spec.algorithm or rest
    return folder / "demonstrations" / f"{name}-{cell_name(stem, None)}-{key[:12]}.parquet"


def _content(spec: DemonstrationSpec) -> str | None:
    """Returns a hash of the file that is named; None without one."""
    if spec.file is None:
        return None
    file = Path(spec.file)
    if not file.is_file():
        raise MissingDataError(f"{file} is not there; name a trajectory file.")
    return artefacts.fingerprint_bytes(file.read_bytes())


def keep_demonstrations(
    path: Path, spec: DemonstrationSpec, stage: Stage, data: str | None = None
) -> None:
    """Writes demonstrations, unless they are there.

    Args:
        path: From `demonstrations_path`.
        spec: Which.
        stage: The environment.
        data: As in `make_demonstrations`.

    Raises:
        DataError: There are none.
    """
    if path.exists():
        return
    found = make_demonstrations(spec, stage.train, data)
    if not found:
        name = stage.train.prepared.dataset.name
        raise DataError(
            f"No demonstrated session came of {json.dumps(_given(spec))} in {name!r}; name other "
            "demonstrations."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_trajectories(path, found)


def _given(spec: DemonstrationSpec) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if value}


def demonstrations_hash(trajectories: Sequence[Trajectory]) -> str:
    """Returns a hash (sha256 hex) of what was shown to whom, what it earned and how it ended."""
    return artefacts.fingerprint_bytes(
        *(
            chunk
            for t in trajectories
            for chunk in (
                json.dumps([t.user, list(t.history), t.source, t.terminated]).encode(),
                np.asarray(t.actions, np.int64).tobytes(),
                np.asarray(t.rewards, np.float32).tobytes(),
            )
        )
    )
