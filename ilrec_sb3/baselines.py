"""The algorithms that an experiment can train, and how each is set up for recommender environments.

===========  =======================================================================================
DQN          Stable-Baselines3's own, unmasked. Changed: ``learning_starts`` 1,000, target network
             every 500 steps, ``learning_rate`` 1e-3, exploration over 30 % of the steps, 100,000
             transitions kept; the defaults are made for millions of frames and learn less here.
A2C          Stable-Baselines3's own, unmasked, its default settings; 16 sessions at a time.
MaskablePPO  sb3-contrib's, masked as ILRec is; ``n_steps`` 128 of 16 sessions, else as it comes.
DiscreteSAC  ILRec without demonstrations.
ILRec        The whole of it.
===========  =======================================================================================

Steps count alike: one step is one item shown in one session, however many sessions run side by
side. Models are evaluated in the manner that suits them: value-based and masked ones take their
best action; A2C draws from its policy, since without masks its single best item is shown twice and
ends the session at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.base_class import BaseAlgorithm

from ilrec_sb3.common.vec_env import RecVecEnv
from ilrec_sb3.ilrec.discrete_sac import DiscreteSAC
from ilrec_sb3.ilrec.ilrec import ILRec
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError, near_miss
from recsim_env.trajectories import Trajectory
from recsim_env.vector_env import RecVectorEnv

__all__ = ["ALGORITHMS", "Algorithm", "find_algorithm", "load_model", "make_model", "save_model"]


@dataclass(frozen=True)
class Algorithm:
    """How an algorithm is set up.

    Attributes:
        name: As in tables and on the command line.
        kind: The class.
        n_sessions: Sessions that it trains on side by side.
        settings: Constructor arguments that differ from the class's own defaults.
        deterministic: Whether it is evaluated by its best action instead of a draw.
        demonstrated: Whether it takes demonstrations.
        device: Where it runs where none is asked for.
    """

    name: str
    kind: type[BaseAlgorithm]
    n_sessions: int = 16
    settings: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = True
    demonstrated: bool = False
    device: str = "auto"


ALGORITHMS: dict[str, Algorithm] = {
    item.name: item
    for item in (
        Algorithm(
            "DQN",
            DQN,
            n_sessions=4,
            settings={
                "buffer_size": 100_000,
                "exploration_fraction": 0.3,
                "learning_rate": 1e-3,
                "learning_starts": 1_000,
                "target_update_interval": 500,
                "train_freq": 1,
            },
            device="cpu",
        ),
        Algorithm("A2C", A2C, deterministic=False, device="cpu"),
        Algorithm("MaskablePPO", MaskablePPO, settings={"n_steps": 128}, device="cpu"),
        Algorithm("DiscreteSAC", DiscreteSAC),
        Algorithm("ILRec", ILRec, demonstrated=True),
    )
}


def find_algorithm(name: str) -> Algorithm:
    """Returns the set-up of an algorithm.

    Raises:
        DataError: There is none of that name.
    """
    if name not in ALGORITHMS:
        raise DataError(f"The algorithm {name!r} is not known; {near_miss(name, ALGORITHMS)}.")
    return ALGORITHMS[name]


def _sessions(chosen: Algorithm, dynamics: Dynamics) -> RecVecEnv:
    return RecVecEnv(RecVectorEnv(chosen.n_sessions, dynamics=dynamics))


def make_model(
    name: str,
    dynamics: Dynamics,
    *,
    seed: int = 0,
    demonstrations: Sequence[Trajectory] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> BaseAlgorithm:
    """Makes an untrained model on parallel sessions of ``dynamics``.

    Args:
        name: A key of `ALGORITHMS`.
        dynamics: Where it will train.
        seed: Of networks, sessions and exploration.
        demonstrations: For algorithms that take them.
        settings: Constructor arguments that take precedence.
        device: "cpu", "cuda" or "auto"; None: the algorithm's usual one.

    Raises:
        DataError: The algorithm or one of the settings is not known.
    """
    chosen = find_algorithm(name)
    options: dict[str, Any] = {**chosen.settings, **(settings or {})}
    if chosen.demonstrated:
        options.setdefault("demonstrations", demonstrations)
    try:
        return chosen.kind(
            policy="MlpPolicy",
            env=_sessions(chosen, dynamics),
            seed=seed,
            device=device or chosen.device,
            **options,
        )
    except TypeError as error:
        raise DataError(
            f"{name} does not take the settings {sorted(settings or {})} ({error}): see its "
            "constructor for those that there are."
        ) from error


def save_model(model: BaseAlgorithm, path: Path, *, training_state: bool = True) -> None:
    """Saves a model so that a reader sees the old file or the new one, never a part.

    Args:
        model: Any of the algorithms.
        path: Ends in ".zip".
        training_state: Whether the project's own algorithms save what they need to go on training.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(model, DiscreteSAC):
        model.save(path, training_state=training_state)
        return
    beside = path.with_name(f".{path.name}")
    model.save(beside)
    written = beside if beside.exists() else beside.with_name(f"{beside.name}.zip")
    written.replace(path)


def load_model(
    name: str, path: Path, dynamics: Dynamics | None = None, device: str | None = None
) -> BaseAlgorithm:
    """Loads a saved model.

    Args:
        name: A key of `ALGORITHMS`.
        path: The file.
        dynamics: Where training is to go on; None where the model only predicts.
        device: As in `make_model`.

    Raises:
        DataError: The file holds no such model.
    """
    chosen = find_algorithm(name)
    env = None if dynamics is None else _sessions(chosen, dynamics)
    try:
        return chosen.kind.load(path, env=env, device=device or chosen.device)
    except (ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise DataError(
            f"{path} cannot be read as a model of {name} ({error}): name the algorithm that it was "
            "trained with, or train it again."
        ) from error
