"""Recorded sessions of language models, told in the items of a dataset's catalogue.

The sessions are those of BiLLP's agents: a language model recommends to a simulated user until that
user leaves. They speak of BiLLP's catalogue, and the model often says a title that not even this
one has. What becomes of a step is decided in this order:

1. the item that the model named, if the dataset has its title (`exact`) or its normalised title
   (`normalised`);
2. the item that BiLLP's simulator showed instead, by the same two rules;
3. the item whose text is nearest to the title and the genres of the item that was shown, among the
   items that this session has not shown yet (`similar`).

A step that says again what the session has said, or names an item that it has already shown, is
left out: the environments show an item once, so there is nothing to imitate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_expert.grounding import Embedder, Grounded, Grounder
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.sources import find_root
from recsim_env.datasets.tables import lists_of_text, read_table, texts
from recsim_env.errors import DataError, near_miss
from recsim_env.prepare import Session

__all__ = ["GPT_3_5", "GPT_4", "amazon_sessions", "steam_sessions"]

GPT_3_5 = "gpt-3.5-turbo-16k"
GPT_4 = "gpt-4-32k"

_LEFT = -1000.0
"""The printed reward of a step after which the user left; it is no reward."""
_FOLDER = "llm_demos"
_TRAJECTORY_COLUMNS = (
    "run",
    "model",
    "split",
    "episode_id",
    "user_id",
    "t",
    "user_history_item_ids",
    "thought",
    "raw_action",
    "action_item_id",
    "reward",
    "done",
)
_MEMORY_COLUMNS = (
    "run",
    "model",
    "split",
    "episode_id",
    "user_id",
    "t",
    "history_scope",
    "history_item_ids",
    "action_item_id",
    "inherited",
)


@dataclass(frozen=True)
class _Record:
    """One step as it was recorded; ids are those of BiLLP's catalogue."""

    said: str
    shown: int
    thought: str
    reward: float | None
    left: bool


@dataclass(frozen=True)
class _Episode:
    """One session as it was recorded."""

    run: str
    model: str
    split: str
    number: int
    user_id: int | None
    history: tuple[int, ...]
    steps: tuple[_Record, ...]


@dataclass
class _Tally:
    """Counts for the report."""

    how: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    similarities: list[float] = field(default_factory=list)
    history_items: int = 0
    history_dropped: int = 0


def steam_sessions(
    dataset: Dataset,
    root: str | Path | None,
    embedder: Embedder,
    *,
    models: Sequence[str] = (GPT_3_5,),
    min_similarity: float = -1.0,
) -> tuple[list[Session], dict[str, Any]]:
    """Returns BiLLP's recorded Steam sessions in the items of a dataset.

    The users are BiLLP's own, so to any Steam dataset they are unknown ones (-1) with a history.

    Args:
        dataset: Whose catalogue.
        root: The data folder that holds "llm_demos" and "steam"; None: where `ILREC_DATA` says.
        embedder: Fitted on the catalogue's texts.
        models: Whose sessions. Of a model with printed sessions these are taken; of one without
            (`GPT_4`) those that its agent's memory holds, which lack thoughts and rewards.
        min_similarity: Steps grounded by text similarity below this cosine are left out. The
            default keeps all: a gap would change what came before every later step.

    Returns:
        Sessions in the order of the files, and a report in JSON types: sessions, steps, users and
        mean length, how steps were grounded, what was left out and why. Both are empty where the
        folder has no recorded sessions.

    Raises:
        DataError: A file is broken, lacks a column, or no session is of one of the models.
    """
    return _sessions(
        _Billp("steam", ("steam",), ()), dataset, root, embedder, models, min_similarity
    )


def amazon_sessions(
    dataset: Dataset,
    root: str | Path | None,
    embedder: Embedder,
    *,
    models: Sequence[str] = (GPT_3_5,),
    min_similarity: float = -1.0,
) -> tuple[list[Session], dict[str, Any]]:
    """Returns BiLLP's recorded Amazon-Book sessions in the items of a dataset.

    The users of its test runs are users of the dataset, by the same id; those of its training runs
    are numbered otherwise and count as unknown.

    Args:
        dataset: Whose catalogue.
        root: The data folder that holds "llm_demos" and "amazon_book"; None: where `ILREC_DATA`
            says.
        embedder: Fitted on the catalogue's texts.
        models: As in `steam_sessions`.
        min_similarity: As in `steam_sessions`.

    Returns:
        As `steam_sessions`.

    Raises:
        DataError: As `steam_sessions`.
    """
    source = _Billp("amazon", ("amazon_book", "amazon"), ("test",))
    return _sessions(source, dataset, root, embedder, models, min_similarity)


@dataclass(frozen=True)
class _Billp:
    """Where BiLLP's files of one dataset are.

    Args:
        name: Beginning of the file names.
        catalogue_folders: Where its catalogue may lie.
        shared_splits: Splits whose user ids are those of the dataset.
    """

    name: str
    catalogue_folders: tuple[str, ...]
    shared_splits: tuple[str, ...]

    def catalogue(self, root: Path) -> dict[int, tuple[str, str]]:
        """Returns title and text (title and genres) per BiLLP id."""
        files = [root / folder / "billp_catalogue.parquet" for folder in self.catalogue_folders]
        file = next((file for file in files if file.is_file()), files[0])
        table = read_table(file, ("item_id", "title", "genres"))
        rows = zip(
            table["item_id"].to_pylist(),
            texts(table["title"]),
            lists_of_text(table["genres"]),
            strict=True,
        )
        return {
            int(item): (title, ". ".join(part for part in (title, ", ".join(genres)) if part))
            for item, title, genres in rows
        }

    def episodes(self, root: Path, models: Sequence[str]) -> list[_Episode]:
        """Returns the recorded sessions of the models, none where there are no files.

        Raises:
            DataError: Files are there, and none has a session of one of the models.
        """
        printed = root / _FOLDER / f"{self.name}_trajectories.parquet"
        memory = root / _FOLDER / f"{self.name}_memory_transitions.parquet"
        readers = ((printed, _read_printed), (memory, _read_memory))
        found: list[_Episode] = []
        known: set[str] = set()
        for file, read in readers:
            open_models = set(models) - {episode.model for episode in found}
            if not file.is_file() or not open_models:
                continue
            episodes = read(file)
            known |= {episode.model for episode in episodes}
            found += [episode for episode in episodes if episode.model in open_models]
        for model in models:
            if known and model not in known:
                raise DataError(
                    f"No recorded {self.name} session is of the model {model!r}: "
                    f"{near_miss(model, known)}."
                )
        return found


def _sessions(
    source: _Billp,
    dataset: Dataset,
    root: str | Path | None,
    embedder: Embedder,
    models: Sequence[str],
    min_similarity: float,
) -> tuple[list[Session], dict[str, Any]]:
    folder = find_root(root)
    episodes = source.episodes(folder, models)
    if not episodes:
        return [], {}
    catalogue = source.catalogue(folder)
    _check_ids(episodes, catalogue, source.name)
    retelling = _Retelling(dataset, embedder, catalogue, episodes, min_similarity)
    users = {user: index for index, user in enumerate(dataset.user_ids)}
    sessions = []
    for episode in episodes:
        shared = episode.split in source.shared_splits
        user = users.get(str(episode.user_id), -1) if shared else -1
        session = retelling.session(episode, user)
        if session is not None:
            sessions.append(session)
    return sessions, _report(models, episodes, sessions, retelling.tally)


class _Retelling:
    """Tells recorded episodes in the items of a catalogue, and counts how.

    Args:
        dataset: Whose catalogue.
        embedder: Fitted on the catalogue's texts.
        catalogue: Title and text per BiLLP id.
        episodes: All that will be told; their texts are embedded at once.
        min_similarity: Steps below it are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        embedder: Embedder,
        catalogue: dict[int, tuple[str, str]],
        episodes: Sequence[_Episode],
        min_similarity: float,
    ) -> None:
        self.tally = _Tally()
        self._catalogue = catalogue
        self._min_similarity = min_similarity
        self._grounder = Grounder(dataset.catalogue, embedder)
        shown = sorted({step.shown for episode in episodes for step in episode.steps})
        vectors: npt.NDArray[np.float32] = embedder.embed([catalogue[item][1] for item in shown])
        self._vectors = dict(zip(shown, vectors, strict=True))

    def session(self, episode: _Episode, user: int) -> Session | None:
        """Returns an episode as a session, or None where no step of it is left."""
        found = list(self._steps(episode.steps))
        if not found:
            self.tally.dropped["sessions"] += 1
            return None
        steps = [step for step, _, _ in found]
        return Session(
            user=user,
            history=self._history(episode.history),
            actions=tuple(grounded.item for _, grounded, _ in found),
            source=episode.model,
            extras={
                "run": episode.run,
                "episode": episode.number,
                "split": episode.split,
                "recorded_user": episode.user_id,
                "left": any(step.left for step in episode.steps),
                "thought": [step.thought for step in steps],
                "raw_action": [step.said for step in steps],
                "recorded_reward": [step.reward for step in steps],
                "grounding": [grounded.how for _, grounded, _ in found],
                "grounded_by": [by for _, _, by in found],
                "similarity": [round(grounded.similarity, 4) for _, grounded, _ in found],
            },
        )

    def _history(self, items: Iterable[int]) -> tuple[int, ...]:
        """Returns the history by title alone; an item that the dataset lacks is left out."""
        found = [self._grounder.lookup(self._catalogue[item][0]) for item in items]
        self.tally.history_items += len(found)
        self.tally.history_dropped += found.count(None)
        return tuple(grounded.item for grounded in found if grounded)

    def _steps(self, steps: Iterable[_Record]) -> Iterator[tuple[_Record, Grounded, str]]:
        """Yields the steps that are kept, their item, and what it was found by."""
        said: set[str] = set()
        shown: set[int] = set()
        for step in steps:
            words = step.said or self._catalogue[step.shown][0]
            grounded, by = self._ground(step, shown)
            if words in said or grounded.item in shown:
                self.tally.dropped["repeated"] += 1
                continue
            if grounded.how == "similar" and grounded.similarity < self._min_similarity:
                self.tally.dropped["below_min_similarity"] += 1
                continue
            said.add(words)
            shown.add(grounded.item)
            self.tally.how[grounded.how] += 1
            self.tally.by[by] += 1
            if grounded.how == "similar":
                self.tally.similarities.append(grounded.similarity)
            yield step, grounded, by

    def _ground(self, step: _Record, shown: set[int]) -> tuple[Grounded, str]:
        named = self._grounder.lookup(step.said)
        if named:
            return named, "named"
        instead = self._grounder.lookup(self._catalogue[step.shown][0], shown)
        if instead:
            return instead, "shown"
        return self._grounder.nearest(self._vectors[step.shown], shown), "shown"


def _read_printed(file: Path) -> list[_Episode]:
    """Reads whole sessions as BiLLP's runs printed them."""
    rows = read_table(file, _TRAJECTORY_COLUMNS).to_pylist()
    episodes = []
    for first, steps in _by_episode(rows):
        episodes.append(
            _episode(
                first,
                first["user_history_item_ids"],
                [
                    _Record(
                        said=(row["raw_action"] or "").strip(),
                        shown=int(row["action_item_id"]),
                        thought=row["thought"] or "",
                        reward=None if row["reward"] == _LEFT else float(row["reward"]),
                        left=bool(row["done"]),
                    )
                    for row in steps
                ],
            )
        )
    return episodes


def _read_memory(file: Path) -> list[_Episode]:
    """Reads sessions out of the agents' memory: only the run's own, with the user's own history."""
    rows = [
        row
        for row in read_table(file, _MEMORY_COLUMNS).to_pylist()
        if not row["inherited"] and row["history_scope"] == "user_history_plus_recommended"
    ]
    episodes = []
    for first, steps in _by_episode(rows):
        records = [_Record("", int(row["action_item_id"]), "", None, left=False) for row in steps]
        episodes.append(_episode(first, first["history_item_ids"], records))
    return episodes


def _by_episode(
    rows: Iterable[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yields the first row and all rows of each episode, in the order of the steps."""
    ordered = sorted(rows, key=lambda row: (row["run"], row["episode_id"], row["t"]))
    for _, group in groupby(ordered, key=lambda row: (row["run"], row["episode_id"])):
        steps = list(group)
        yield steps[0], steps


def _episode(first: dict[str, Any], history: Iterable[int], steps: list[_Record]) -> _Episode:
    return _Episode(
        run=first["run"],
        model=first["model"],
        split=first["split"],
        number=int(first["episode_id"]),
        user_id=None if first["user_id"] is None else int(first["user_id"]),
        history=tuple(int(item) for item in history if item >= 0),  # -1: no match in the source
        steps=tuple(steps),
    )


def _check_ids(
    episodes: Iterable[_Episode], catalogue: dict[int, tuple[str, str]], name: str
) -> None:
    """Checks that the catalogue knows every item of the sessions."""
    used = {item for episode in episodes for item in episode.history}
    used |= {step.shown for episode in episodes for step in episode.steps}
    unknown = used - catalogue.keys()
    if unknown:
        raise DataError(
            f"The recorded {name} sessions hold {len(unknown)} item ids (the lowest is "
            f"{min(unknown)}) that billp_catalogue.parquet lacks, expected ids of that catalogue: "
            "take both files from the same source."
        )


def _report(
    models: Sequence[str],
    episodes: Sequence[_Episode],
    sessions: Sequence[Session],
    tally: _Tally,
) -> dict[str, Any]:
    recorded = sum(len(episode.steps) for episode in episodes)
    steps = sum(len(session.actions) for session in sessions)
    return {
        "models": list(models),
        "recorded_sessions": len(episodes),
        "recorded_steps": recorded,
        "sessions": len(sessions),
        "steps": steps,
        "users": len({(episode.split, episode.user_id) for episode in episodes}),
        "known_users": len({session.user for session in sessions} - {-1}),
        "mean_length": steps / len(sessions) if sessions else 0.0,
        "recorded_mean_length": recorded / len(episodes),
        "grounding": {
            how: {"steps": tally.how[how], "share": tally.how[how] / steps if steps else 0.0}
            for how in ("exact", "normalised", "similar")
        },
        "grounded_by": {by: tally.by[by] for by in ("named", "shown")},
        "mean_similarity": float(np.mean(tally.similarities)) if tally.similarities else None,
        "dropped_steps": {why: tally.dropped[why] for why in ("repeated", "below_min_similarity")},
        "dropped_sessions": tally.dropped["sessions"],
        "history_items": tally.history_items,
        "history_items_dropped": tally.history_dropped,
        "without_history": sum(not session.history for session in sessions),
        "left": sum(bool(session.extras["left"]) for session in sessions),
    }
