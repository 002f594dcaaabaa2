"""From a dataset to everything that an environment needs, kept on disk and made once."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.utils.extmath import randomized_svd

from recsim_env import artefacts, datasets
from recsim_env.card import agreement, outside_check
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.sources import find_root
from recsim_env.datasets.splits import split_interactions
from recsim_env.datasets.store import load_custom
from recsim_env.encoders import (
    EncoderConfig,
    fit_encoder,
    load_encoder,
    save_encoder,
    user_sequences,
)
from recsim_env.errors import ArtefactError, DataError, MissingDataError, near_miss
from recsim_env.settings import from_mapping
from recsim_env.text import TextEmbedder, item_documents
from recsim_env.tracker import Tracker, make_tracker
from recsim_env.world_model import WorldModel, WorldModelConfig

__all__ = ["PrepareConfig", "Prepared", "Session", "prepare", "user_vector_for"]

_FORMAT = 3
_ENTRY_POINTS = "ilrec.demonstrations"
_USERS_FOR_SVD = 20_000
logger = logging.getLogger(__name__)

T = TypeVar("T")
Floats = NDArray[np.float32]
Split = Literal["train", "test"]
Histories = Sequence[NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of the preparation; each is part of the artefact's key.

    Attributes:
        seed: Of the split and of all that is trained.
        test_fraction: Share of the interactions that the test world model is fitted on; 0 where
            test rewards come from elsewhere: then the train model is fitted on all interactions,
            and the test model is the same.
        user_vector_size: K, principal directions of the predicted ratings that describe a user in
            an observation; 8 to 32.
        text_dim: Size of a text embedding; 32 to 256.
        world_model: Settings of both world models.
        encoder: Settings of the state tracker.
    """

    seed: int = 0
    test_fraction: float = 0.5
    user_vector_size: int = 16
    text_dim: int = 64
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.test_fraction < 1:
            raise DataError(
                f"PrepareConfig.test_fraction is {self.test_fraction}, expected a share from 0 to "
                "below 1, for example 0.5."
            )
        for name in ("user_vector_size", "text_dim"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"PrepareConfig.{name} is {getattr(self, name)}, expected at least 1."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrepareConfig:
        """Builds a configuration from nested mappings, as JSON gives them.

        Args:
            values: Field names and values; ``world_model`` and ``encoder`` may be mappings.

        Raises:
            DataError: For a name that is no field.
        """
        nested = dict(values)
        for name, kind in (("world_model", WorldModelConfig), ("encoder", EncoderConfig)):
            if isinstance(nested.get(name), Mapping):
                nested[name] = from_mapping(kind, nested[name])
        return from_mapping(cls, nested)


@dataclass(frozen=True)
class Session:
    """What a demonstrator recommended to one user.

    Attributes:
        user: Index of the user, -1 for a user who is not in the dataset.
        history: Item indices before the session, oldest first.
        actions: Item indices shown, in order.
        source: Who demonstrated, for example the name of a language model.
        extras: JSON-able values; a list as long as ``actions`` holds one value a step.
    """

    user: int
    history: tuple[int, ...]
    actions: tuple[int, ...]
    source: str
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dataset with its world models, state tracker, vectors and demonstrations.

    Attributes:
        dataset: The data.
        train_rows: (n_interactions,) bool, what the train model was fitted on.
        test_rows: (n_interactions,) bool, what the test model was fitted on; disjoint.
        train_model: Reward model for learning and for observations.
        test_model: Reward model for evaluation.
        tracker: Turns item sequences into vectors.
        user_basis: (n_items, K) float32; ``user_basis.T @ user_basis`` is n_items times the
            identity.
        user_offset: (n_items,) float32; the train model's rating of user u and item i is about
            ``user_offset[i] + user_vectors[u] @ user_basis[i]``.
        user_vectors: (n_users, K) float32.
        text_embeddings: (n_items, d) float32, rows of norm 1.
        sessions: Demonstrations in catalogue items, may be empty.
        card: What was measured, JSON-able; see `recsim_env.card.card_table`.
        path: Folder of the artefact.
        fingerprint: Key of the artefact (sha256 hex): data and settings.
        contents: Hash (sha256 hex) of the errors of what was fitted to them, to four digits: where
            the same data were fitted differently, by other code or another version of a library,
            these differ.
        config: The settings.
    """

    dataset: Dataset
    train_rows: NDArray[np.bool_]
    test_rows: NDArray[np.bool_]
    train_model: WorldModel
    test_model: WorldModel
    tracker: Tracker
    user_basis: Floats
    user_offset: Floats
    user_vectors: Floats
    text_embeddings: Floats
    sessions: tuple[Session, ...]
    card: dict[str, Any]
    path: Path
    fingerprint: str
    contents: str
    config: PrepareConfig

    def __repr__(self) -> str:
        """Returns the sizes."""
        return (
            f"Prepared({self.dataset.name!r}, {self.dataset.n_users} users, "
            f"{self.dataset.n_items} items, {len(self.sessions)} sessions, {str(self.path)!r})"
        )

    @cached_property
    def text_embedder(self) -> TextEmbedder:
        """Embeds other texts into the space of ``text_embeddings``."""
        return TextEmbedder.load(self.path / "text")

    def model(self, split: Split) -> WorldModel:
        """Returns the world model of a split, "train" or "test"."""
        if split not in ("train", "test"):
            raise DataError(f"There is no split {split!r}; {near_miss(split, ('train', 'test'))}.")
        return self.train_model if split == "train" else self.test_model

    def rows(
        self,
        split: Split,
        users: NDArray[np.integer[Any]] | None = None,
        histories: Histories | None = None,
        user_features: Floats | None = None,
    ) -> Floats:
        """Returns the rewards of every item; see `WorldModel.rows`.

        Args:
            split: "train" or "test".
            users: (n,) indices, -1 for unknown users.
            histories: n int arrays of item indices.
            user_features: (n, k) float32, for unknown users.

        Returns:
            (n, n_items) float32 in [1, 5].
        """
        return self.model(split).rows(users, histories, user_features)

    def histories(self, split: Split = "train") -> list[NDArray[np.int64]]:
        """Returns every user's items of a split, oldest first (shuffled without an order)."""
        rows = self.train_rows if split == "train" else self.test_rows
        return user_sequences(self.dataset, rows, np.random.default_rng(self.config.seed))[0]


def user_vector_for(
    prepared: Prepared,
    histories: Histories,
    user_features: Floats | None = None,
    users: NDArray[np.integer[Any]] | None = None,
) -> Floats:
    """Returns the vectors of users who come with a history.

    Args:
        prepared: The prepared dataset.
        histories: n int arrays of item indices.
        user_features: (n, k) float32, for unknown users.
        users: (n,) indices, -1 for unknown users; ``None`` means that all are unknown.

    Returns:
        (n, K) float32: the least-squares projection of the predicted rows on ``user_basis``.
    """
    rows = prepared.train_model.rows(users, histories, user_features)
    return _project(rows, prepared.user_offset, prepared.user_basis)


def _project(rows: Floats, offset: Floats, basis: Floats) -> Floats:
    """Least squares; the columns of the basis are orthogonal with square n_items."""
    return ((rows - offset) @ basis / np.float32(len(basis))).astype(np.float32)


def _user_basis(
    model: WorldModel, size: int, seed: int
) -> tuple[Floats, Floats, Floats, dict[str, float]]:
    """Item means, directions, user vectors and how much of the variance they explain."""
    rng = np.random.default_rng(seed)
    chosen = np.arange(model.n_users)
    if len(chosen) > _USERS_FOR_SVD:
        chosen = np.sort(rng.choice(chosen, _USERS_FOR_SVD, replace=False))
    rows = model.rows(chosen)
    offset = rows.mean(0)
    centred = (rows - offset).astype(np.float64)
    rank = min(size, *centred.shape)
    _, _, directions = randomized_svd(centred, n_components=rank, n_iter=6, random_state=seed)
    basis = np.ascontiguousarray(directions.T * np.sqrt(model.n_items), np.float32)
    residual = centred - _project(rows, offset, basis) @ basis.T
    total = float(np.square(centred).sum(dtype=np.float64))
    lost = float(np.square(residual).sum(dtype=np.float64))
    vectors = np.concatenate(
        [
            _project(model.rows(np.arange(start, min(start + 4096, model.n_users))), offset, basis)
            for start in range(0, model.n_users, 4096)
        ]
    )
    report = {"size": rank, "explained_variance": 1.0 - lost / total if total > 0 else 1.0}
    return offset.astype(np.float32), basis, vectors, report


def prepare(
    dataset: str | Dataset,
    root: str | Path | None = None,
    config: PrepareConfig | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Prepared:
    """Makes, or finds, all that an environment needs.

    The artefact's key is made of the data's hash and the settings: a changed setting never reuses
    a stale artefact. A broken artefact is made again, with a warning in the log.

    Args:
        dataset: A name (see `recsim_env.datasets.names`) or a dataset.
        root: Folder with the raw data; else ``ILREC_DATA``, else the user cache directory.
        config: Settings.
        cache: Folder for artefacts; else ``ILREC_CACHE``, else the user cache directory.
        progress: Shows progress bars.
        options: Options of the dataset, with a name only.

    Returns:
        The prepared dataset.

    Raises:
        DataError: For an unknown name or option, or data that cannot be used.
        MissingDataError: Where the data are not there.
    """
    config = config or PrepareConfig()
    folder = artefacts.cache_dir(cache)
    if options and not isinstance(dataset, str):
        raise DataError(
            f"Options {sorted(options)} came with a dataset object, expected them with a name "
            "only; apply them where the dataset is made."
        )
    if isinstance(dataset, str) and dataset not in datasets.names() and not options:
        dataset = load_custom(dataset, cache)
    name = dataset if isinstance(dataset, str) else dataset.name
    place = _root(root)
    source = _demonstration_source(name)
    contents = _files_contents(place, f"llm_demos/{name}*") if source else []
    note = None
    fingerprint = None
    if isinstance(dataset, str):
        # Remembers which data a name stood for, so that they are not read again each time.
        loaders = Path(datasets.__file__).parent
        note = (
            folder
            / "datasets"
            / (
                artefacts.key(
                    name=name,
                    options=dict(options or {}),
                    root=None if place is None else str(place.resolve()),
                    files=_files_stamp(place, "*", "*/*"),
                    code=_files_stamp(loaders, "*.py"),
                )
                + ".json"
            )
        )
        fingerprint = _read_note(note)
    if fingerprint is None:
        if isinstance(dataset, str):
            dataset = datasets.load(dataset, root=root, **dict(options or {}))
        fingerprint = dataset.fingerprint
        if note is not None:
            artefacts.write_file(note, json.dumps({"fingerprint": fingerprint}))
    key = artefacts.key(
        format=_FORMAT,
        data=fingerprint,
        config=config,
        demonstrations=[source.value if source else None, contents],
    )
    path = folder / "prepared" / f"{name}-{key[:16]}"
    found = _find(path, key)
    if found is not None:
        return found
    if isinstance(dataset, str):
        dataset = datasets.load(dataset, root=root, **dict(options or {}))
    _build(dataset, place, config, path, key, source, progress)
    return _load(path, key)


def _root(root: str | Path | None) -> Path | None:
    """The data folder, or None where there is none (the synthetic data need none)."""
    try:
        return find_root(root)
    except MissingDataError:
        return None


def _files_contents(folder: Path | None, pattern: str) -> list[list[str]]:
    """Names and contents (sha256) of the files that match: a copy of them counts as the same."""
    if folder is None or not folder.is_dir():
        return []
    files = sorted(f for f in folder.glob(pattern) if f.is_file())
    return [
        [f.relative_to(folder).as_posix(), artefacts.fingerprint_bytes(f.read_bytes())]
        for f in files
    ]


def _files_stamp(folder: Path | None, *patterns: str) -> list[list[Any]]:
    """Names, sizes and times of the files that match: cheap, and changed by any edit."""
    if folder is None or not folder.is_dir():
        return []
    files = sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})
    stats = [(f, f.stat()) for f in files]
    return [[f.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns] for f, s in stats]


def _read_note(note: Path) -> str | None:
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _demonstration_source(name: str) -> importlib.metadata.EntryPoint | None:
    """The installed reader of demonstrations for a dataset, if there is one."""
    found = importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name)
    return next(iter(found), None)


def _find(path: Path, key: str) -> Prepared | None:
    """The artefact if it is there and whole."""
    if not path.exists():
        return None
    if artefacts.check_folder(path):
        try:
            return _load(path, key)
        except ArtefactError as error:
            logger.warning("%s is made again: %s", path, error)
            return None
    logger.warning("%s is made again: a file is missing or broken.", path)
    return None


def _build(
    dataset: Dataset,
    root: Path | None,
    config: PrepareConfig,
    path: Path,
    key: str,
    source: importlib.metadata.EntryPoint | None,
    progress: bool,
) -> None:
    """Trains and measures everything and writes the artefact."""
    seconds: dict[str, float] = {}

    def timed(what: str, make: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = make()
        seconds[what] = round(time.perf_counter() - started, 2)
        return result

    split = split_interactions(dataset.interactions, config.test_fraction, config.seed)
    fitted = {
        name: timed(
            f"world model, {name}",
            lambda rows=rows, shift=shift: WorldModel.fit(  # type: ignore[misc]
                dataset, rows, config.world_model, config.seed + shift, progress
            ),
        )
        for name, rows, shift in (("train", split.train, 0), ("test", split.test, 1))
        if name == "train" or config.test_fraction > 0
    }
    train, test = fitted["train"], fitted.get("test", fitted["train"])
    encoder, tracker_report = timed(
        "state tracker",
        lambda: fit_encoder(dataset, split.train, config.encoder, config.seed, progress),
    )
    offset, basis, vectors, basis_report = timed(
        "user vectors", lambda: _user_basis(train, config.user_vector_size, config.seed)
    )
    documents = item_documents(dataset.catalogue)
    embedder = timed(
        "text embeddings",
        lambda: TextEmbedder(config.text_dim, seed=config.seed).fit(documents),
    )
    sessions, session_report = timed(
        "recorded sessions", lambda: _demonstrations(source, dataset, root, embedder)
    )
    sessions = _without_test_rows(sessions, dataset, split.test)
    sample = np.random.default_rng(config.seed).permutation(dataset.n_users)[:_USERS_FOR_SVD]
    checks = (
        {}
        if root is None
        else {
            name: outside_check(model, dataset.catalogue, root, dataset.name)
            for name, model in fitted.items()
        }
    )
    card = {
        "dataset": {
            "name": dataset.name,
            "users": dataset.n_users,
            "items": dataset.n_items,
            "categories": dataset.n_categories,
            "interactions": len(dataset.interactions),
            "mean_rating": float(dataset.interactions.ratings.mean(dtype=np.float64)),
            "synthetic": dataset.is_synthetic,
        },
        "world_model": {name: model.report for name, model in fitted.items()},
        "agreement": timed(
            "agreement", lambda: agreement(train.rows(sample), test.rows(sample), config.seed)
        )
        if "test" in fitted
        else {},
        "tracker": tracker_report,
        "user_basis": basis_report,
        "demonstrations": session_report,
        "outside_check": {name: check for name, check in checks.items() if check is not None},
        "seconds": seconds,
    }

    def write(folder: Path) -> None:
        dataset.save(folder / "dataset")
        train.save(folder / "train_model")
        test.save(folder / "test_model")
        embedder.save(folder / "text")
        save_encoder(encoder, config.encoder, folder / "encoder")
        save_file(
            {
                "train_rows": split.train.astype(np.uint8),
                "test_rows": split.test.astype(np.uint8),
                "user_basis": basis,
                "user_offset": offset,
                "user_vectors": vectors,
                "text_embeddings": embedder.embed(documents),
            },
            folder / "arrays.safetensors",
        )
        _write_sessions(sessions, folder / "sessions.parquet")
        meta = {"format": _FORMAT, "key": key, "config": asdict(config), "card": card}
        (folder / "prepared.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    artefacts.write_folder(path, write)


def _demonstrations(
    source: importlib.metadata.EntryPoint | None,
    dataset: Dataset,
    root: Path | None,
    embedder: TextEmbedder,
) -> tuple[list[Session], dict[str, Any]]:
    """Recorded sessions in catalogue items; none where there is no reader or no record."""
    if source is None or root is None:
        return [], {"sessions": 0}
    try:
        sessions, report = source.load()(dataset, root, embedder)
    except MissingDataError as error:
        logger.info("No recorded sessions for %s: %s", dataset.name, error)
        return [], {"sessions": 0}
    return list(sessions), {"sessions": len(sessions), **report}


_SESSION_SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        pa.field("history", pa.list_(pa.int64()), nullable=False),
        pa.field("actions", pa.list_(pa.int64()), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("extras", pa.string(), nullable=False),
    ]
)


def _without_test_rows(
    sessions: Sequence[Session], dataset: Dataset, test: NDArray[np.bool_]
) -> list[Session]:
    """Takes what a known user did in the test rows out of the histories of recorded sessions."""
    table = dataset.interactions
    held = set(zip(table.users[test].tolist(), table.items[test].tolist(), strict=True))
    return [
        replace(s, history=tuple(i for i in s.history if (s.user, i) not in held)) for s in sessions
    ]


def _write_sessions(sessions: Sequence[Session], path: Path) -> None:
    """Writes sessions as parquet; the extras as JSON text."""
    rows = [
        {
            "user": int(s.user),
            "history": [int(i) for i in s.history],
            "actions": [int(i) for i in s.actions],
            "source": s.source,
            "extras": json.dumps(dict(s.extras), allow_nan=False),
        }
        for s in sessions
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SESSION_SCHEMA), path, compression="zstd")


def _read_sessions(path: Path) -> tuple[Session, ...]:
    columns = pq.read_table(path, schema=_SESSION_SCHEMA).to_pydict()
    return tuple(
        Session(user, tuple(history), tuple(actions), source, json.loads(extras))
        for user, history, actions, source, extras in zip(*columns.values(), strict=True)
    )


def _contents(card: Mapping[str, Any]) -> str:
    """Returns a hash of the card's figures of what was fitted; times are left out."""

    def rounded(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: rounded(v) for name, v in value.items() if name != "seconds"}
        if isinstance(value, (list, tuple)):
            return [rounded(v) for v in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return artefacts.key(**{name: rounded(card[name]) for name in ("world_model", "tracker")})


def _load(path: Path, key: str) -> Prepared:
    """Reads a whole artefact.

    Raises:
        ArtefactError: Where something does not fit.
    """
    try:
        meta = json.loads((path / "prepared.json").read_text(encoding="utf-8"))
        if meta["format"] != _FORMAT or meta["key"] != key:
            raise ArtefactError(
                f"{path} holds something else than its name says; delete the folder."
            )
        arrays = load_file(path / "arrays.safetensors")
        return Prepared(
            dataset=Dataset.load(path / "dataset"),
            train_rows=arrays["train_rows"].astype(np.bool_),
            test_rows=arrays["test_rows"].astype(np.bool_),
            train_model=WorldModel.load(path / "train_model"),
            test_model=WorldModel.load(path / "test_model"),
            tracker=make_tracker(load_encoder(path / "encoder")),
            user_basis=arrays["user_basis"],
            user_offset=arrays["user_offset"],
            user_vectors=arrays["user_vectors"],
            text_embeddings=arrays["text_embeddings"],
            sessions=_read_sessions(path / "sessions.parquet"),
            card=meta["card"],
            path=path,
            fingerprint=key,
            contents=_contents(meta["card"]),
            config=PrepareConfig.from_dict(meta["config"]),
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, pa.ArrowException) as error:
        raise ArtefactError(
            f"{path} cannot be read as a prepared dataset ({error}); delete the folder and prepare "
            "the data again."
        ) from error
