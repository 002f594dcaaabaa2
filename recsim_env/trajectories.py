"""The one format of demonstrations: what an agent saw, did and earned in one session.

A file of trajectories is a single parquet table with one row per session; its key-value metadata
carry the name and the version of the schema. Whoever collects demonstrations writes this format,
whoever learns from them reads it, and neither needs to know the other.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces

from recsim_env.artefacts import write_file
from recsim_env.errors import DataError, MissingDataError

__all__ = [
    "Trajectory",
    "from_minari",
    "load_trajectories",
    "save_trajectories",
    "to_minari",
]

SCHEMA_VERSION = 1
_METADATA_KEY = b"ilrec.trajectories"
_SCHEMA = pa.schema(
    [
        pa.field("observations", pa.list_(pa.float32()), nullable=False),
        pa.field("observation_dim", pa.int32(), nullable=False),
        pa.field("actions", pa.list_(pa.int64()), nullable=False),
        pa.field("rewards", pa.list_(pa.float32()), nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("user", pa.int64(), nullable=False),
        pa.field("history", pa.list_(pa.int64()), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("n_actions", pa.int64()),
        pa.field("action_masks", pa.binary()),
        pa.field("extras", pa.string(), nullable=False),
    ],
    metadata={_METADATA_KEY: json.dumps({"version": SCHEMA_VERSION}).encode()},
)
_MINARI_INSTALL = "pip install 'ilrec[minari]'"


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory:
    """One session of T steps, from its first observation to its last.

    Attributes:
        observations: (T + 1, d) float32, finite; the last row is what was seen after the last step.
        actions: (T,) int64, not negative; T is at least 1.
        rewards: (T,) float32, finite.
        terminated: Whether the session ended of itself (a rule, the user leaving).
        truncated: Whether it was cut (a time limit). Both false: the recording stops midway.
        user: Index of the user; -1 is an unknown one.
        history: Items that the user knew before the session.
        source: Who acted, for example ``"gpt-4"``.
        action_masks: (T + 1, ceil(n_actions / 8)) uint8 as `numpy.packbits` gives, a set bit being
            an allowed action; or None where everything was allowed.
        n_actions: Number of actions there were to choose from; or None where unknown.
        extras: What else is known of each step: lists of length T of JSON-able values.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool = False
    user: int = -1
    history: tuple[int, ...] = ()
    source: str = ""
    action_masks: np.ndarray | None = None
    n_actions: int | None = None
    extras: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Brings every field to its type and checks that they fit together."""
        actions = np.array(self.actions)
        if actions.ndim != 1 or len(actions) == 0 or actions.dtype.kind not in "iu":
            raise DataError(
                f"actions of shape {actions.shape} and type {actions.dtype} came; expected a flat "
                "array of at least one integer action: pass np.asarray(actions, np.int64)."
            )
        n_actions = None if self.n_actions is None else int(self.n_actions)
        put = object.__setattr__
        put(self, "actions", actions.astype(np.int64))
        put(self, "n_actions", n_actions)
        put(self, "terminated", bool(self.terminated))
        put(self, "truncated", bool(self.truncated))
        put(self, "user", int(self.user))
        put(self, "history", tuple(int(item) for item in self.history))
        put(self, "source", str(self.source))
        put(self, "extras", {str(name): list(values) for name, values in self.extras.items()})
        self._check_actions()
        self._check_numbers()
        self._check_masks()
        self._check_extras()

    def _check_actions(self) -> None:
        low, high = int(self.actions.min()), int(self.actions.max())
        if low < 0 or (self.n_actions is not None and high >= self.n_actions):
            limit = "" if self.n_actions is None else f" and below n_actions = {self.n_actions}"
            raise DataError(
                f"actions from {low} to {high} came; they must be at least 0{limit}: map external "
                "ids to indices first."
            )

    def _check_numbers(self) -> None:
        observations = np.array(self.observations, dtype=np.float32)
        rewards = np.array(self.rewards, dtype=np.float32)
        steps = len(self)
        if observations.ndim != 2 or len(observations) != steps + 1:
            raise DataError(
                f"observations of shape {observations.shape} came for {steps} actions; expected "
                f"({steps + 1}, d): one row before each action and one after the last."
            )
        if rewards.shape != (steps,):
            raise DataError(
                f"rewards of shape {rewards.shape} came for {steps} actions; expected ({steps},): "
                "one reward for each action."
            )
        for name, values in (("observations", observations), ("rewards", rewards)):
            if not np.isfinite(values).all():
                raise DataError(
                    f"{name} hold NaN or infinite values; a trajectory needs finite numbers: drop "
                    "or repair the session before it is stored."
                )
            object.__setattr__(self, name, values)

    def _check_masks(self) -> None:
        if self.action_masks is None:
            return
        if self.n_actions is None:
            raise DataError(
                "action_masks came without n_actions, which their packed bits need: pass n_actions."
            )
        masks = np.array(self.action_masks)
        expected = (len(self) + 1, (self.n_actions + 7) // 8)
        if masks.dtype != np.uint8 or masks.shape != expected:
            raise DataError(
                f"action_masks of shape {masks.shape} and type {masks.dtype} came; expected packed "
                f"uint8 of shape {expected}: pass np.packbits(masks, axis=-1)."
            )
        object.__setattr__(self, "action_masks", masks)

    def _check_extras(self) -> None:
        for name, values in self.extras.items():
            if len(values) != len(self):
                raise DataError(
                    f"extras[{name!r}] has {len(values)} values for {len(self)} steps; expected "
                    "one for each step: fill the gaps with None."
                )

    def __len__(self) -> int:
        """Returns the number of steps T."""
        return len(self.actions)

    def __eq__(self, other: object) -> bool:
        """Returns whether every field is the same, arrays element by element."""
        if not isinstance(other, Trajectory):
            return NotImplemented
        arrays = ("observations", "actions", "rewards", "action_masks")
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in arrays and mine is not None and theirs is not None:
                if not np.array_equal(mine, theirs):
                    return False
            elif name in arrays:
                if mine is not theirs:
                    return False
            elif mine != theirs:
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Returns the shapes and what tells sessions apart, not the arrays."""
        masks = "None" if self.action_masks is None else str(self.action_masks.shape)
        return (
            f"Trajectory(steps={len(self)}, observations={self.observations.shape}, "
            f"total_reward={float(self.rewards.sum()):.2f}, terminated={self.terminated}, "
            f"truncated={self.truncated}, user={self.user}, history={len(self.history)} items, "
            f"source={self.source!r}, action_masks={masks}, n_actions={self.n_actions}, "
            f"extras={sorted(self.extras)})"
        )

    def returns(self, gamma: float = 1.0) -> np.ndarray:
        """Returns the discounted return that follows each step (IL-Rec, eq. 15).

        Args:
            gamma: Discount factor in [0, 1].

        Returns:
            (T,) float64; its first element is the return of the session.
        """
        result = np.empty(len(self), dtype=np.float64)
        running = 0.0
        for step in range(len(self) - 1, -1, -1):
            running = float(self.rewards[step]) + gamma * running
            result[step] = running
        return result

    def unpacked_masks(self) -> np.ndarray | None:
        """Returns the (T + 1, n_actions) bool masks, True where allowed; None without masks."""
        if self.action_masks is None:
            return None
        bits = np.unpackbits(self.action_masks, axis=-1, count=self.n_actions)
        return bits.view(np.bool_)


def _to_row(trajectory: Trajectory, position: int) -> dict[str, Any]:
    try:
        extras = json.dumps(trajectory.extras, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"extras of trajectory {position} cannot be written as JSON ({error}); expected lists "
            "of numbers, strings, booleans, None, lists or dicts: convert them first."
        ) from error
    masks = trajectory.action_masks
    return {
        "observations": trajectory.observations.ravel(),
        "observation_dim": trajectory.observations.shape[1],
        "actions": trajectory.actions,
        "rewards": trajectory.rewards,
        "terminated": trajectory.terminated,
        "truncated": trajectory.truncated,
        "user": trajectory.user,
        "history": trajectory.history,
        "source": trajectory.source,
        "n_actions": trajectory.n_actions,
        "action_masks": None if masks is None else masks.tobytes(),
        "extras": extras,
    }


def save_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> Path:
    """Writes trajectories to one parquet file, atomically.

    Args:
        path: The file to write; it is replaced where it exists.
        trajectories: The sessions, in the order in which they are to be read back.

    Returns:
        The path.
    """
    rows = [_to_row(trajectory, position) for position, trajectory in enumerate(trajectories)]
    columns = [pa.array([row[f.name] for row in rows], type=f.type) for f in _SCHEMA]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA)
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    return write_file(path, content.getvalue())


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise MissingDataError(
            f"There is no trajectory file at {path}; expected a parquet file written by "
            "save_trajectories: check the path."
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a whole parquet file ({error}); expected one written by "
            "save_trajectories: write it again."
        ) from error
    stored = (table.schema.metadata or {}).get(_METADATA_KEY)
    if stored is None:
        raise DataError(
            f"{path} is a parquet file but holds no trajectories; expected one written by "
            "save_trajectories: check the path."
        )
    version = json.loads(stored).get("version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has version {version} of the trajectory format; this release reads version "
            f"{SCHEMA_VERSION}: install the release that wrote it, or collect it again."
        )
    missing = [name for name in _SCHEMA.names if name not in table.schema.names]
    if missing:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}; expected those that "
            "save_trajectories writes: write it again."
        )
    return table


def load_trajectories(path: str | Path) -> list[Trajectory]:
    """Reads the trajectories of one parquet file.

    Args:
        path: A file that `save_trajectories` wrote.

    Returns:
        The sessions, in the order in which they were written.

    Raises:
        MissingDataError: There is no such file.
        DataError: The file is cut short, is something else, or is of another version.
    """
    path = Path(path)
    table = _read_table(path)
    columns = {name: table.column(name) for name in _SCHEMA.names}
    trajectories = []
    for row in range(table.num_rows):
        scalars = {name: column[row] for name, column in columns.items()}
        trajectories.append(_from_row(scalars))
    return trajectories


def _from_row(row: Mapping[str, Any]) -> Trajectory:
    def array(name: str, dtype: Any) -> np.ndarray:
        return np.array(row[name].values.to_numpy(zero_copy_only=False), dtype=dtype)

    actions = array("actions", np.int64)
    packed, masks = row["action_masks"].as_py(), None
    if packed is not None:
        masks = np.frombuffer(packed, np.uint8).reshape(len(actions) + 1, -1)
    dim = row["observation_dim"].as_py()
    return Trajectory(
        observations=array("observations", np.float32).reshape(len(actions) + 1, dim),
        actions=actions,
        rewards=array("rewards", np.float32),
        terminated=row["terminated"].as_py(),
        truncated=row["truncated"].as_py(),
        user=row["user"].as_py(),
        history=tuple(row["history"].as_py()),
        source=row["source"].as_py(),
        action_masks=masks,
        n_actions=row["n_actions"].as_py(),
        extras=json.loads(row["extras"].as_py()),
    )


def to_minari(trajectories: Sequence[Trajectory], env_id: str | None, dataset_id: str) -> Any:
    """Writes trajectories as a Minari dataset (in its Arrow form).

    Observations, actions, rewards and session ends travel; user, history, masks and extras have no
    place there.

    Args:
        trajectories: At least one.
        env_id: The Gymnasium id of the environment they come from; None where there is none, and
            the spaces are then made of the data.
        dataset_id: Minari's name, such as ``"ilrec/steam/gpt4-v0"``.

    Returns:
        The MinariDataset.
    """
    minari = _import_minari()
    if not trajectories:
        raise DataError("No trajectories came; a Minari dataset needs at least one: collect some.")
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=number,
            observations=list(trajectory.observations),
            actions=list(trajectory.actions),
            rewards=trajectory.rewards.tolist(),
            terminations=_at_the_end(len(trajectory), trajectory.terminated),
            truncations=_at_the_end(len(trajectory), trajectory.truncated),
        )
        for number, trajectory in enumerate(trajectories)
    ]
    dim = trajectories[0].observations.shape[1]
    known = [t.n_actions or int(t.actions.max()) + 1 for t in trajectories]
    where: dict[str, Any] = {"env": env_id}
    if env_id is None:
        where["observation_space"] = spaces.Box(-np.inf, np.inf, (dim,), np.float32)
        where["action_space"] = spaces.Discrete(max(known))
    return minari.create_dataset_from_buffers(dataset_id, buffers, data_format="arrow", **where)


def from_minari(dataset_id: str) -> list[Trajectory]:
    """Reads a local Minari dataset with flat observations and discrete actions.

    Args:
        dataset_id: Minari's name of it.

    Returns:
        One trajectory for each episode, `dataset_id` being its source.
    """
    dataset = _import_minari().load_dataset(dataset_id)
    n_actions = getattr(dataset.action_space, "n", None)
    if n_actions is None:
        raise DataError(
            f"The Minari dataset {dataset_id!r} has the action space {dataset.action_space}; "
            "expected a Discrete one: choose a dataset with discrete actions."
        )
    return [
        Trajectory(
            observations=np.asarray(episode.observations).reshape(len(episode) + 1, -1),
            actions=np.asarray(episode.actions),
            rewards=np.asarray(episode.rewards),
            terminated=bool(episode.terminations[-1]),
            truncated=bool(episode.truncations[-1]),
            source=dataset_id,
            n_actions=int(n_actions),
        )
        for episode in dataset.iterate_episodes()
    ]


def _at_the_end(steps: int, value: bool) -> list[bool]:
    return [False] * (steps - 1) + [value]


def _import_minari() -> Any:
    try:
        return importlib.import_module("minari")
    except ImportError as error:
        raise ImportError(
            f"The package minari is not installed; Minari datasets need it: {_MINARI_INSTALL}"
        ) from error
