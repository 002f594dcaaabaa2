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

SCHEMA_VERSION = 2
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
        pa.field("state_embeddings", pa.list_(pa.float32())),
        pa.field("state_embedding_dim", pa.int32()),
        pa.field("action_embeddings", pa.list_(pa.float32())),
        pa.field("action_embedding_dim", pa.int32()),
    ],
    metadata={_METADATA_KEY: json.dumps({"version": SCHEMA_VERSION}).encode()},
)
_VERSION_2 = _SCHEMA.names[-4:]
_COLUMNS = {1: [name for name in _SCHEMA.names if name not in _VERSION_2], 2: _SCHEMA.names}
"""Columns of each version of the format that this release reads."""
_MINARI_KEY = "ilrec"
_OPTIONAL_ARRAYS = ("action_masks", "state_embeddings", "action_embeddings")
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
        state_embeddings: (T, e) float32, finite, e at least 1: the text of the state before each
            step, embedded (IL-Rec, IV-A); or None.
        action_embeddings: (T, f) float32, finite, f at least 1: the text of each action, embedded;
            or None.
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
    state_embeddings: np.ndarray | None = None
    action_embeddings: np.ndarray | None = None

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
        self._check_embeddings()

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

    def _check_embeddings(self) -> None:
        for name in ("state_embeddings", "action_embeddings"):
            if getattr(self, name) is None:
                continue
            values = np.array(getattr(self, name), dtype=np.float32)
            fits = values.ndim == 2 and len(values) == len(self) and values.shape[1] > 0
            if not fits or not np.isfinite(values).all():
                raise DataError(
                    f"{name} of shape {values.shape} came for {len(self)} steps; expected finite "
                    f"numbers of shape ({len(self)}, e), e at least 1: embed one text for each "
                    "step."
                )
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        """Returns the number of steps T."""
        return len(self.actions)

    def __eq__(self, other: object) -> bool:
        """Returns whether every field is the same, arrays element by element."""
        if not isinstance(other, Trajectory):
            return NotImplemented
        return all(
            _same(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Returns the shapes and what tells sessions apart, not the arrays."""
        arrays = {name: getattr(self, name) for name in _OPTIONAL_ARRAYS}
        shapes = {name: None if array is None else array.shape for name, array in arrays.items()}
        return (
            f"Trajectory(steps={len(self)}, observations={self.observations.shape}, "
            f"total_reward={float(self.rewards.sum()):.2f}, terminated={self.terminated}, "
            f"truncated={self.truncated}, user={self.user}, history={len(self.history)} items, "
            f"source={self.source!r}, action_masks={shapes['action_masks']}, "
            f"n_actions={self.n_actions}, extras={sorted(self.extras)}, "
            f"state_embeddings={shapes['state_embeddings']}, "
            f"action_embeddings={shapes['action_embeddings']})"
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


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray):
        return np.array_equal(mine, theirs)
    if isinstance(mine, np.ndarray) or isinstance(theirs, np.ndarray):
        return False
    return bool(mine == theirs)


def _extras_as_json(trajectory: Trajectory, position: int) -> str:
    try:
        return json.dumps(trajectory.extras, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"extras of trajectory {position} cannot be written as JSON ({error}); expected lists "
            "of numbers, strings, booleans, None, lists or dicts: convert them first."
        ) from error


def _to_row(trajectory: Trajectory, position: int) -> dict[str, Any]:
    masks = trajectory.action_masks
    states, acts = trajectory.state_embeddings, trajectory.action_embeddings
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
        "extras": _extras_as_json(trajectory, position),
        "state_embeddings": None if states is None else states.ravel(),
        "state_embedding_dim": None if states is None else states.shape[1],
        "action_embeddings": None if acts is None else acts.ravel(),
        "action_embedding_dim": None if acts is None else acts.shape[1],
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
    if version not in _COLUMNS:
        known = " and ".join(str(number) for number in _COLUMNS)
        raise DataError(
            f"{path} has version {version} of the trajectory format; this release reads versions "
            f"{known}: install the release that wrote it, or collect it again."
        )
    missing = [name for name in _COLUMNS[version] if name not in table.schema.names]
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
    columns = {name: table.column(name) for name in _SCHEMA.names if name in table.schema.names}
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

    def embeddings(kind: str) -> np.ndarray | None:
        name, size = f"{kind}_embeddings", f"{kind}_embedding_dim"
        if name not in row or not row[name].is_valid:
            return None
        return array(name, np.float32).reshape(len(actions), row[size].as_py())

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
        state_embeddings=embeddings("state"),
        action_embeddings=embeddings("action"),
    )


def to_minari(trajectories: Sequence[Trajectory], env_id: str | None, dataset_id: str) -> Any:
    """Writes trajectories as a Minari dataset (in its Arrow form).

    All that a trajectory holds travels: what Minari has no field for goes into the infos of its
    steps (masks, embeddings) and into the metadata of its episodes (user, history, source, extras).

    Args:
        trajectories: At least one; their arrays have the same number of columns.
        env_id: The Gymnasium id of the environment they come from; None where there is none, and
            the spaces are then made of the data.
        dataset_id: Minari's name, such as ``"ilrec/steam/gpt4-v0"``.

    Returns:
        The MinariDataset.
    """
    minari = _import_minari()
    if not trajectories:
        raise DataError("No trajectories came; a Minari dataset needs at least one: collect some.")
    widths = {name: _width(trajectories, name) for name in ("observations", *_OPTIONAL_ARRAYS)}
    if not widths["observations"]:
        raise DataError(
            "Observations without a column came; Minari cannot hold them: choose an environment "
            "with observations."
        )
    metadata = [
        {_MINARI_KEY: _episode_metadata(trajectory, position)}
        for position, trajectory in enumerate(trajectories)
    ]
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=number,
            observations=list(trajectory.observations),
            actions=list(trajectory.actions),
            rewards=trajectory.rewards.tolist(),
            terminations=_at_the_end(len(trajectory), trajectory.terminated),
            truncations=_at_the_end(len(trajectory), trajectory.truncated),
            infos=_to_infos(trajectory, widths),
        )
        for number, trajectory in enumerate(trajectories)
    ]
    known = [t.n_actions or int(t.actions.max()) + 1 for t in trajectories]
    where: dict[str, Any] = {"env": env_id}
    if env_id is None:
        where["observation_space"] = spaces.Box(
            -np.inf, np.inf, (widths["observations"],), np.float32
        )
        where["action_space"] = spaces.Discrete(max(known))
    dataset = minari.create_dataset_from_buffers(dataset_id, buffers, data_format="arrow", **where)
    dataset.storage.update_episode_metadata(metadata)
    return dataset


def _episode_metadata(trajectory: Trajectory, position: int) -> dict[str, Any]:
    return {
        "user": trajectory.user,
        "history": trajectory.history,
        "source": trajectory.source,
        "n_actions": trajectory.n_actions,
        "extras": json.loads(_extras_as_json(trajectory, position)),
        "arrays": [name for name in _OPTIONAL_ARRAYS if getattr(trajectory, name) is not None],
    }


def _width(trajectories: Sequence[Trajectory], name: str) -> int:
    """Returns the number of columns of an array, the same in all; 0 where none has it."""
    arrays = [getattr(trajectory, name) for trajectory in trajectories]
    widths = {array.shape[1] for array in arrays if array is not None}
    if len(widths) > 1:
        raise DataError(
            f"{name} with {' and '.join(map(str, sorted(widths)))} columns came; a Minari dataset "
            "needs the same number in each trajectory: write one dataset for each."
        )
    return int(widths.pop()) if widths else 0


def _to_infos(trajectory: Trajectory, widths: Mapping[str, int]) -> dict[str, np.ndarray] | None:
    """Returns the optional arrays in Minari's form, all episodes alike: T + 1 rows, or zeros."""
    infos = {}
    for name in _OPTIONAL_ARRAYS:
        if widths[name]:
            dtype = np.uint8 if name == "action_masks" else np.float32
            infos[name] = np.zeros((len(trajectory) + 1, widths[name]), dtype)
            array = getattr(trajectory, name)
            if array is not None:
                infos[name][: len(array)] = array
    return infos or None


def from_minari(dataset_id: str) -> list[Trajectory]:
    """Reads a local Minari dataset with flat observations and discrete actions.

    Args:
        dataset_id: Minari's name of it.

    Returns:
        One trajectory for each episode: those that `to_minari` was given; of another dataset what
        Minari knows, `dataset_id` being the source.
    """
    dataset = _import_minari().load_dataset(dataset_id)
    n_actions = getattr(dataset.action_space, "n", None)
    if n_actions is None:
        raise DataError(
            f"The Minari dataset {dataset_id!r} has the action space {dataset.action_space}; "
            "expected a Discrete one: choose a dataset with discrete actions."
        )
    about = {"source": dataset_id, "n_actions": int(n_actions)}
    metadata = dataset.storage.get_episode_metadata(dataset.episode_indices)
    return [
        _from_episode(episode, {**about, **known.get(_MINARI_KEY, {})})
        for episode, known in zip(dataset.iterate_episodes(), metadata, strict=True)
    ]


def _from_episode(episode: Any, about: Mapping[str, Any]) -> Trajectory:
    fields = dict(about)
    steps = len(episode)
    for name in fields.pop("arrays", ()):
        fields[name] = episode.infos[name][: steps + 1 if name == "action_masks" else steps]
    return Trajectory(
        observations=np.asarray(episode.observations).reshape(steps + 1, -1),
        actions=np.asarray(episode.actions),
        rewards=np.asarray(episode.rewards),
        terminated=bool(episode.terminations[-1]),
        truncated=bool(episode.truncations[-1]),
        **fields,
    )


def _at_the_end(steps: int, value: bool) -> list[bool]:
    return [False] * (steps - 1) + [value]


def _import_minari() -> Any:
    try:
        return importlib.import_module("minari")
    except ImportError as error:
        raise ImportError(
            f"The package minari is not installed; Minari datasets need it: {_MINARI_INSTALL}"
        ) from error
