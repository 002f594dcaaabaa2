"""Training one model in a folder of its own, and playing saved models."""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from ilrec_sb3.baselines import (
    check_settings,
    find_algorithm,
    load_model,
    make_model,
    save_model,
)
from ilrec_sb3.cells import CELL
from ilrec_sb3.common.callbacks import BetweenRollouts
from ilrec_sb3.evaluation import as_planner, summarise, summarise_seeds
from ilrec_sb3.experiment import ExperimentConfig, experiment_dynamics, planners, prepare_data
from ilrec_sb3.report import Row, table_markdown
from recsim_env import artefacts
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError, MissingDataError
from recsim_env.planners import Planner, Played, draw_users, run_episodes
from recsim_env.settings import check_types, from_mapping
from recsim_env.trajectories import load_trajectories

__all__ = ["CheckpointCallback", "TrainConfig", "evaluate_models", "train"]

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_MODEL = "model.zip"


@dataclass(frozen=True)
class TrainConfig:
    """What makes a training what it is; the number of steps may grow later.

    Attributes:
        dataset: Name of a dataset, a custom one included.
        data: Folder with the raw data; None: ``ILREC_DATA``, else the user cache directory.
        options: Options of the dataset.
        algorithm: By name, see `ilrec_sb3.baselines.find_algorithm`.
        settings: Constructor arguments of the algorithm.
        seed: Of the training.
        demonstrations: Path of a trajectory file; None: those that come with the dataset.
        device: "cpu", "cuda" or "auto"; None: the algorithm's usual one.
    """

    dataset: str = "synthetic"
    data: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "ILRec"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    demonstrations: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks types and names."""
        check_types(self)
        chosen = find_algorithm(self.algorithm)
        check_settings(self.algorithm, self.settings)
        if self.demonstrations is not None and not chosen.demonstrated:
            raise DataError(
                f"Demonstrations came for {self.algorithm}, which takes none; leave them out or "
                "train ILRec."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Builds the settings from a mapping, as JSON gives it.

        Raises:
            DataError: For a name that is no setting.
        """
        return from_mapping(cls, values)


class CheckpointCallback(BetweenRollouts):
    """Saves the model every so many steps, atomically.

    Args:
        path: The file; each checkpoint replaces the last.
        every: Steps between checkpoints.
    """

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path = path
        self.every = every

    def _on_training_start(self) -> None:
        self.next_at = self.num_timesteps + self.every

    def act(self) -> None:
        """Saves the model."""
        self.next_at = self.num_timesteps + self.every
        save_model(self.model, self.path)


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    steps: int = 100_000,
    checkpoint_every: int = 5_000,
    cache: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = logger.info,
) -> BaseAlgorithm:
    """Trains a model in a folder, or goes on with the one that is there.

    Args:
        config: What to train on what.
        out: The folder: ``config.json`` and ``model.zip``.
        steps: Env steps in all, those of earlier calls included.
        checkpoint_every: Env steps between checkpoints.
        cache: Folder of prepared artefacts; None: ``ILREC_CACHE``, else the user cache directory.
        progress: Shows progress bars.
        say: Takes lines that tell how far it is.

    Returns:
        The trained model.

    Raises:
        DataError: The folder holds another training, or data or settings cannot be used.
    """
    folder = Path(out)
    is_new = _check_folder(folder, config)
    where = ExperimentConfig(dataset=config.dataset, data=config.data, options=config.options)
    dynamics, _ = experiment_dynamics(where, prepare_data(where, cache, progress))
    path = folder / _MODEL
    if path.exists():
        model = load_model(config.algorithm, _checked_model(path), dynamics, config.device)
        say(f"Going on from {model.num_timesteps:,} steps ({path}).")
    else:
        given = config.demonstrations
        model = make_model(
            config.algorithm,
            dynamics,
            seed=config.seed,
            demonstrations=None if given is None else load_trajectories(given),
            settings=config.settings,
            device=config.device,
        )
    if is_new:
        # not before the data and the settings have turned out to be usable
        artefacts.write_file(folder / _CONFIG, json.dumps(_as_json(config), indent=1) + "\n")
    if model.num_timesteps < steps:
        started, before = time.perf_counter(), model.num_timesteps
        model.learn(
            steps - before,
            callback=CheckpointCallback(path, checkpoint_every),
            reset_num_timesteps=before == 0,
            progress_bar=progress,
        )
        save_model(model, path)
        seconds = time.perf_counter() - started
        say(f"{(model.num_timesteps - before) / seconds:,.0f} steps a second.")
    return model


def _as_json(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values


def _check_folder(folder: Path, config: TrainConfig) -> bool:
    """Returns whether a folder is new; refuses one that holds other settings."""
    path = folder / _CONFIG
    wanted = _as_json(config)
    if not path.exists():
        if (folder / _MODEL).exists():
            raise DataError(f"{folder} holds a model without its {_CONFIG}; choose another folder.")
        return True
    found = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(name for name in wanted if found.get(name) != wanted[name])
    if different:
        name = different[0]
        raise DataError(
            f"{folder} holds a training with {name}={found.get(name)!r}, but {wanted[name]!r} "
            "came; choose another folder, or delete that one."
        )
    return False


def evaluate_models(
    path: Path | None,
    *,
    players: Sequence[Callable[[Dynamics, int, int], Sequence[Played]]] = (),
    dataset: str | None = None,
    data: str | None = None,
    options: Mapping[str, Any] | None = None,
    algorithm: str = "ILRec",
    episodes: int = 500,
    seed: int = 1_000,
    cache: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> str:
    """Plays saved models, other players and the planners on the test world model.

    Args:
        path: A .zip file, a folder of `train`, or a run of an experiment; None: players only.
        players: Each gets the dynamics, the number of sessions and the seed of their users, and
            gives what becomes rows of the table. They play last, when all else has been found to
            work, since a session of theirs may cost money.
        dataset: Where to play; None: where it was trained, ``"synthetic"`` where that is not
            known.
        data: Folder with the raw data.
        options: Options of the dataset; None: as it was trained.
        algorithm: Of a bare file.
        episodes: Sessions; the same users for everyone.
        seed: Draws the users.
        cache: Folder of prepared artefacts.
        device: "cpu", "cuda" or "auto".
        progress: Shows progress bars while a dataset is prepared.

    Returns:
        The table as markdown.

    Raises:
        DataError: There is nobody to play, a model does not fit the dataset, or a player played
            other users.
    """
    if path is None and not players:
        raise DataError("Neither a model nor a player came, expected one of them: name a model.")
    known, models = ({}, {}) if path is None else _find_models(path, algorithm)
    config = ExperimentConfig.from_dict(
        {
            **known,
            "dataset": dataset or known.get("dataset", "synthetic"),
            "data": data or known.get("data"),
            "options": known.get("options", {}) if options is None else options,
        }
    )
    prepared = prepare_data(config, cache, progress)
    train_dynamics, test = experiment_dynamics(config, prepared)
    loaded = {
        name: [
            as_planner(
                load_model(name, file, device=device),
                test,
                deterministic=find_algorithm(name).deterministic,
            )
            for file in files
        ]
        for name, files in models.items()
    }
    fixed = {
        name: _play(name, [planner], test, episodes, seed)
        for name, planner in planners(train_dynamics, test).items()
    }
    rows = [_play(name, played, test, episodes, seed) for name, played in loaded.items()]
    users = draw_users(test, episodes, seed)
    for play in players:
        rows += [_row_of(played, users) for played in play(test, episodes, seed)]
    return table_markdown(
        [fixed["random"], fixed["greedy"], *rows, fixed["rule-aware planner"], fixed["oracle"]],
        title=f"{config.dataset}, {prepared.dataset.n_items:,} items",
    )


def _find_models(path: Path, name: str) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Returns the settings that are known and the model files by algorithm."""
    if path.is_file():
        return {}, {name: [_checked_model(path)]}
    if not path.is_dir():
        raise MissingDataError(f"{path} is not there; name a .zip file or the folder of a run.")
    config: dict[str, Any] = {}
    if (path / _CONFIG).exists():
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    if (path / _MODEL).exists():
        kept = TrainConfig.from_dict(config) if config else TrainConfig(algorithm=name)
        shared = {"dataset": kept.dataset, "data": kept.data, "options": kept.options}
        return shared, {kept.algorithm: [_checked_model(path / _MODEL)]}
    models: dict[str, list[Path]] = {}
    for file in sorted(path.glob(f"cells/*/{_MODEL}")):
        cell = json.loads((file.parent / CELL).read_text(encoding="utf-8"))
        models.setdefault(cell["algorithm"], []).append(file)
    if not models:
        raise MissingDataError(
            f"{path} holds no model; name a .zip file, or a folder of `ilrec train` or `demo`."
        )
    return config, models


def _checked_model(path: Path) -> Path:
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} is not a saved model, expected a whole .zip file such as model.zip of "
            "`ilrec train`: name that, or the folder it is in."
        )
    return path


def _play(name: str, played: list[Planner], dynamics: Dynamics, episodes: int, seed: int) -> Row:
    """Returns the row of one policy, over its trainings."""
    summaries, seconds, steps = [], [], []
    for planner in played:
        started = time.perf_counter()
        found = run_episodes(dynamics, planner, episodes, seed)
        seconds.append(time.perf_counter() - started)
        steps.append(found.lengths.sum())
        summaries.append(summarise(found))
    return Row(
        policy=name,
        summary=summarise_seeds(summaries),
        steps_per_second=float(np.median(np.array(steps) / np.maximum(seconds, 1e-9))),
        seconds=float(np.median(seconds)),
        trained=False,
    )


def _row_of(played: Played, users: NDArray[np.int64]) -> Row:
    """Returns the row of somebody who played by themselves; refuses other users than everyone's."""
    found = played.episodes
    if not np.array_equal(found.users, users[: len(found.users)]):
        raise DataError(
            f"{played.name} played other users than the other policies, expected those of "
            "recsim_env.planners.draw_users in their order: draw them with the seed that is given."
        )
    return Row(
        policy=played.name,
        summary=summarise(found),
        steps_per_second=float(found.lengths.sum() / max(played.seconds, 1e-9)),
        seconds=played.seconds,
        trained=False,
        columns=played.columns,
    )
