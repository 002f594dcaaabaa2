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
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm_expert.grounding import Embedder, Grounded, Grounder
from recsim_env.datasets.dataset import Dataset
from recsim_env.datasets.sources import find_root
from recsim_env.datasets.tables import lists_of_text, read_table, texts
from recsim_env.errors import DataError, near_miss
from recsim_env.prepare import Session

__all__ = [
    "GPT_3_5",
    "GPT_4",
    "RecordedEpisode",
    "RecordedItem",
    "RecordedStep",
    "amazon_sessions",
    "recorded_episodes",
    "recorded_memories",
    "steam_sessions",
]

GPT_3_5 = "gpt-3.5-turbo-16k"
GPT_4 = "gpt-4-32k"

_LEFT = -1000.0
"""The printed reward of a step after which the user left; it is no reward."""
_FOLDER = "llm_demos"
_WHOLE_HISTORY = "user_history_plus_recommended"
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
_VALUED_COLUMNS = (*_MEMORY_COLUMNS, "sign", "critic_value")
_REFLECTION_COLUMNS = ("run", "dataset", "model", "split", "line_no", "text", "inherited")
_STATE_TITLES = 10
"""How many of the last items BiLLP's keys hold."""
_CRITIC_WORST, _CRITIC_BEST = -5.0, 5.0
"""The whole numbers between which BiLLP's critic values a state."""


@dataclass(frozen=True)
class RecordedItem:
    """An item of BiLLP's catalogue.

    Args:
        title: Its title.
        categories: Its genres.
    """

    title: str
    categories: tuple[str, ...]

    @property
    def document(self) -> str:
        """What is embedded of it, as in `recsim_env.text.item_documents`."""
        return ". ".join(part for part in (self.title, ", ".join(self.categories)) if part)


@dataclass(frozen=True)
class RecordedStep:
    """One step as it was recorded; ids are those of BiLLP's catalogue.

    Args:
        said: What the model named; empty where it is not recorded.
        shown: The item that the simulator showed for it.
        thought: What the model gave as its reason; empty where it is not recorded.
        reward: As printed, or None where none is: at the step after which the user left.
        left: Whether the user left.
    """

    said: str
    shown: int
    thought: str
    reward: float | None
    left: bool


@dataclass(frozen=True)
class RecordedEpisode:
    """One session as it was recorded; ids are those of BiLLP's catalogue.

    Args:
        run: Of BiLLP's program.
        model: Whose words.
        split: Of BiLLP's users: "train" or "test".
        number: Of the session in its run.
        user_id: Of BiLLP's split, or None where it is not known.
        history: Items before the session, oldest first.
        steps: Oldest first.
    """

    run: str
    model: str
    split: str
    number: int
    user_id: int | None
    history: tuple[int, ...]
    steps: tuple[RecordedStep, ...]


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
    return _sessions("steam", dataset, root, embedder, models, min_similarity)


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
    return _sessions("amazon", dataset, root, embedder, models, min_similarity)


def recorded_episodes(
    name: str, root: str | Path | None, *, models: Sequence[str] = (GPT_3_5,)
) -> tuple[list[RecordedEpisode], dict[int, RecordedItem]]:
    """Returns BiLLP's sessions as they were recorded, told in BiLLP's own items.

    Args:
        name: "steam" or "amazon".
        root: As in `steam_sessions`.
        models: As in `steam_sessions`.

    Returns:
        The sessions in the order of the files, none where the folder has no recorded sessions, and
        the items by the ids that the sessions hold.

    Raises:
        DataError: As `steam_sessions`, or the name is another.
    """
    source, folder = _source(name), find_root(root)
    episodes = source.episodes(folder, models)
    if not episodes:
        return [], {}
    catalogue = source.catalogue(folder)
    _check_ids(episodes, catalogue, name)
    return episodes, catalogue


def recorded_memories(
    name: str,
    dataset: Dataset,
    root: str | Path | None,
    embedder: Embedder,
    *,
    models: Sequence[str] = (GPT_3_5,),
    splits: Sequence[str] = ("train", "test"),
    gamma: float = 0.5,
) -> tuple[dict[str, list[tuple[str, dict[str, Any]]]], dict[str, Any]]:
    """Returns what BiLLP's agents remembered, as entries of this project's memories.

    Copies that a run took over from an earlier one are left out, and so are the early runs whose
    keys lack the user's own history. The key of a state is that of
    `llm_expert.scratchpad.Scratchpad.state_text`: its last 10 titles, those of the dataset where it
    has the item by title, else BiLLP's. Items to recommend are grounded: by title, else by the
    nearest text.

    A reflection belongs under the state in which its session ended, which its file does not name.
    A run wrote one reflection a session, in the order of the sessions; so where a run has as many
    reflections as sessions, the first is that of the first session, and so on. Of the 2,019
    reflections that are placed so, 394 name an item of a session of their run; in 388 of these no
    other session has more of the items that are named. The rest is left out and counted.

    BiLLP's critic values a state by whole numbers from -5 to 5, this project's critic from 0 to
    5 / (1 - gamma). One range is laid on the other linearly, which keeps the order of the states
    and their distances; it cannot know what the numbers meant in rewards.

    Args:
        name: "steam" or "amazon".
        dataset: Whose catalogue. Of "amazon", BiLLP's test users are users of the dataset, so their
            keys may hold items that a split has held out: take ``splits=("train",)`` for results.
        root: As in `steam_sessions`.
        embedder: Fitted on the catalogue's texts.
        models: Whose memories.
        splits: Of BiLLP's users.
        gamma: Discount of the critic, in [0, 1).

    Returns:
        Entries (key, value) in the order of the files, by the name of the memory:
        ``"reflections"``, ``{"text"}`` under the last state of a session; ``"experiences"``, an
        item under a state, ``{"title", "encouraged"}``; ``"values"``, ``{"value"}`` under a state.
        And a report in JSON types, which says under ``"unplaced_reflections"`` how many have no
        state, and why: their run has left no sessions, sessions without the user's own history, or
        another number of them. Without files, no entries.

    Raises:
        DataError: The name or a model is another, or a file is broken or lacks a column.
    """
    if not 0.0 <= gamma < 1.0:
        raise DataError(f"gamma={gamma} came, expected at least 0 and less than 1: take 0.5.")
    source, folder = _source(name), find_root(root)
    transitions = folder / _FOLDER / f"{name}_memory_transitions.parquet"
    found = _own_rows(transitions, _VALUED_COLUMNS, models, splits)
    rows = [row for row in found if row["history_scope"] == _WHOLE_HISTORY]
    rows.sort(key=lambda row: (row["run"], row["episode_id"], row["t"]))
    reflections = [
        row
        for row in _own_rows(folder / _FOLDER / "reflections.parquet", _REFLECTION_COLUMNS, models)
        if row["dataset"] == name and row["split"] in splits
    ]
    titles = _Titles(dataset, embedder, source.catalogue(folder) if rows else {}, rows)
    keys = [titles.state(row["history_item_ids"]) for row in rows]
    placed, unplaced = _place_reflections(reflections, rows, {row["run"] for row in found})
    texts_ = [(titles.state(items), text) for items, text in placed]
    experiences = [
        (key, {"title": titles.action(row["action_item_id"]), "encouraged": row["sign"] > 0})
        for key, row in zip(keys, rows, strict=True)
        if row["sign"]
    ]
    scale = 5.0 / (1.0 - gamma) / (_CRITIC_BEST - _CRITIC_WORST)
    values = [
        (key, {"value": (float(row["critic_value"]) - _CRITIC_WORST) * scale})
        for key, row in zip(keys, rows, strict=True)
        if row["critic_value"] is not None
    ]
    entries: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "reflections": [(key, {"text": text}) for key, text in dict.fromkeys(texts_)],
        "experiences": experiences,
        "values": values,
    }
    return entries, {
        "models": list(models),
        "splits": list(splits),
        "entries": {kind: len(kept) for kind, kept in entries.items()},
        "encouraged": sum(bool(value["encouraged"]) for _, value in experiences),
        "repeated_reflections": len(texts_) - len(entries["reflections"]),
        "unplaced_reflections": unplaced,
        "grounding": titles.report(row["action_item_id"] for row in rows if row["sign"]),
    }


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

    def catalogue(self, root: Path) -> dict[int, RecordedItem]:
        """Returns the items by BiLLP id."""
        files = [root / folder / "billp_catalogue.parquet" for folder in self.catalogue_folders]
        file = next((file for file in files if file.is_file()), files[0])
        table = read_table(file, ("item_id", "title", "genres"))
        rows = zip(
            table["item_id"].to_pylist(),
            texts(table["title"]),
            lists_of_text(table["genres"]),
            strict=True,
        )
        return {int(item): RecordedItem(title, tuple(genres)) for item, title, genres in rows}

    def episodes(self, root: Path, models: Sequence[str]) -> list[RecordedEpisode]:
        """Returns the recorded sessions of the models, none where there are no files.

        Raises:
            DataError: Files are there, and none has a session of one of the models.
        """
        printed = root / _FOLDER / f"{self.name}_trajectories.parquet"
        memory = root / _FOLDER / f"{self.name}_memory_transitions.parquet"
        readers = ((printed, _read_printed), (memory, _read_memory))
        found: list[RecordedEpisode] = []
        known: set[str] = set()
        for file, read in readers:
            open_models = set(models) - {episode.model for episode in found}
            if not file.is_file() or not open_models:
                continue
            episodes = read(file)
            known |= {episode.model for episode in episodes}
            found += [episode for episode in episodes if episode.model in open_models]
        if known:
            _check_models(models, known, f"the recorded {self.name} sessions")
        return found


_SOURCES = {
    "steam": _Billp("steam", ("steam",), ()),
    "amazon": _Billp("amazon", ("amazon_book", "amazon"), ("test",)),
}


def _source(name: str) -> _Billp:
    if name not in _SOURCES:
        raise DataError(f"There are no recordings of {name!r}: {near_miss(name, _SOURCES)}.")
    return _SOURCES[name]


def _sessions(
    name: str,
    dataset: Dataset,
    root: str | Path | None,
    embedder: Embedder,
    models: Sequence[str],
    min_similarity: float,
) -> tuple[list[Session], dict[str, Any]]:
    episodes, catalogue = recorded_episodes(name, root, models=models)
    if not episodes:
        return [], {}
    retelling = _Retelling(dataset, embedder, catalogue, episodes, min_similarity)
    users = {user: index for index, user in enumerate(dataset.user_ids)}
    sessions = []
    for episode in episodes:
        shared = episode.split in _SOURCES[name].shared_splits
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
        catalogue: The items by BiLLP id.
        episodes: All that will be told; their texts are embedded at once.
        min_similarity: Steps below it are left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        embedder: Embedder,
        catalogue: dict[int, RecordedItem],
        episodes: Sequence[RecordedEpisode],
        min_similarity: float,
    ) -> None:
        self.tally = _Tally()
        self._catalogue = catalogue
        self._min_similarity = min_similarity
        self._grounder = Grounder(dataset.catalogue, embedder)
        shown = sorted({step.shown for episode in episodes for step in episode.steps})
        vectors: npt.NDArray[np.float32] = embedder.embed(
            [catalogue[item].document for item in shown]
        )
        self._vectors = dict(zip(shown, vectors, strict=True))

    def session(self, episode: RecordedEpisode, user: int) -> Session | None:
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
        found = [self._grounder.lookup(self._catalogue[item].title) for item in items]
        self.tally.history_items += len(found)
        self.tally.history_dropped += found.count(None)
        return tuple(grounded.item for grounded in found if grounded)

    def _steps(self, steps: Iterable[RecordedStep]) -> Iterator[tuple[RecordedStep, Grounded, str]]:
        """Yields the steps that are kept, their item, and what it was found by."""
        said: set[str] = set()
        shown: set[int] = set()
        for step in steps:
            words = step.said or self._catalogue[step.shown].title
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

    def _ground(self, step: RecordedStep, shown: set[int]) -> tuple[Grounded, str]:
        named = self._grounder.lookup(step.said)
        if named:
            return named, "named"
        instead = self._grounder.lookup(self._catalogue[step.shown].title, shown)
        if instead:
            return instead, "shown"
        return self._grounder.nearest(self._vectors[step.shown], shown), "shown"


def _check_models(models: Sequence[str], known: Collection[str], where: str) -> None:
    for model in models:
        if model not in known:
            raise DataError(
                f"{where} hold nothing of the model {model!r}: {near_miss(model, known)}."
            )


class _Titles:
    """Titles of a dataset for the items of BiLLP's catalogue.

    Args:
        dataset: Whose titles.
        embedder: Fitted on the catalogue's texts.
        catalogue: The items by BiLLP id.
        rows: Of the agents' memory; the texts of their actions are embedded at once.
    """

    def __init__(
        self,
        dataset: Dataset,
        embedder: Embedder,
        catalogue: dict[int, RecordedItem],
        rows: Sequence[dict[str, Any]],
    ) -> None:
        actions = sorted({int(row["action_item_id"]) for row in rows})
        before = {int(item) for row in rows for item in row["history_item_ids"] if item >= 0}
        _check_known({*actions, *before}, catalogue, "memories")
        self._own = dataset.catalogue.titles
        self._known: dict[int, str] = {}
        self._actions: dict[int, Grounded] = {}
        if not rows:
            return
        grounder = Grounder(dataset.catalogue, embedder)
        lacking = []
        for item in sorted({*actions, *before}):
            found = grounder.lookup(catalogue[item].title)
            self._known[item] = self._own[found.item] if found else catalogue[item].title
            if found:
                self._actions[item] = found
            elif item in actions:
                lacking.append(item)
        vectors = embedder.embed([catalogue[item].document for item in lacking])
        for item, vector in zip(lacking, vectors, strict=True):
            self._actions[item] = grounder.nearest(vector)

    def state(self, items: Iterable[int]) -> str:
        """Returns the key of a state: its titles, oldest first; an unmatched item has none."""
        return "; ".join(self._known[item] for item in items if item >= 0)

    def action(self, item: int) -> str:
        """Returns the title of the dataset's item."""
        return self._own[self._actions[item].item]

    def report(self, items: Iterable[int]) -> dict[str, int]:
        """Returns how many of the items were grounded by which rule."""
        counts = Counter(self._actions[item].how for item in items)
        return {how: counts[how] for how in ("exact", "normalised", "similar")}


def _own_rows(
    file: Path,
    columns: Sequence[str],
    models: Sequence[str],
    splits: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Returns the rows of the models that are no copies; none where there is no file.

    Raises:
        DataError: The file has no row of one of the models.
    """
    if not file.is_file():
        return []
    table = read_table(file, columns)
    _check_models(models, set(table["model"].unique().to_pylist()), file.name)
    own = pc.and_(pc.invert(table["inherited"]), pc.is_in(table["model"], pa.array(list(models))))
    if splits is not None:
        own = pc.and_(own, pc.is_in(table["split"], pa.array(list(splits), pa.string())))
    rows: list[dict[str, Any]] = table.filter(own).to_pylist()
    return rows


def _place_reflections(
    reflections: Iterable[dict[str, Any]], rows: Iterable[dict[str, Any]], runs: Collection[str]
) -> tuple[list[tuple[list[int], str]], dict[str, int]]:
    """Finds the states in which the sessions ended that reflections were written about.

    Args:
        reflections: Rows of their file.
        rows: Of the agents' memory, with whole histories.
        runs: All that have left rows.

    Returns:
        The last items, oldest first, and the text of each reflection that has a state, and how many
        have none, by reason.
    """
    last_states: dict[str, list[list[int]]] = {}
    for first, steps in _by_episode(rows):
        items = [*steps[-1]["history_item_ids"], steps[-1]["action_item_id"]]
        last_states.setdefault(first["run"], []).append(items[-_STATE_TITLES:])
    placed: list[tuple[list[int], str]] = []
    unplaced = {"no_sessions": 0, "no_history": 0, "another_number": 0}
    ordered = sorted(reflections, key=lambda row: (row["run"], row["line_no"]))
    for run, group in groupby(ordered, key=lambda row: row["run"]):
        texts_ = [" ".join(row["text"].split()) for row in group]
        states = last_states.get(run, [])
        if len(states) == len(texts_):
            placed += zip(states, texts_, strict=True)
        elif states:
            unplaced["another_number"] += len(texts_)
        else:
            unplaced["no_history" if run in runs else "no_sessions"] += len(texts_)
    return placed, unplaced


def _read_printed(file: Path) -> list[RecordedEpisode]:
    """Reads whole sessions as BiLLP's runs printed them."""
    rows = read_table(file, _TRAJECTORY_COLUMNS).to_pylist()
    episodes = []
    for first, steps in _by_episode(rows):
        episodes.append(
            _episode(
                first,
                first["user_history_item_ids"],
                [
                    RecordedStep(
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


def _read_memory(file: Path) -> list[RecordedEpisode]:
    """Reads sessions out of the agents' memory: only the run's own, with the user's own history."""
    rows = [
        row
        for row in read_table(file, _MEMORY_COLUMNS).to_pylist()
        if not row["inherited"] and row["history_scope"] == _WHOLE_HISTORY
    ]
    episodes = []
    for first, steps in _by_episode(rows):
        records = [
            RecordedStep("", int(row["action_item_id"]), "", None, left=False) for row in steps
        ]
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


def _episode(
    first: dict[str, Any], history: Iterable[int], steps: list[RecordedStep]
) -> RecordedEpisode:
    return RecordedEpisode(
        run=first["run"],
        model=first["model"],
        split=first["split"],
        number=int(first["episode_id"]),
        user_id=None if first["user_id"] is None else int(first["user_id"]),
        history=tuple(int(item) for item in history if item >= 0),  # -1: no match in the source
        steps=tuple(steps),
    )


def _check_ids(
    episodes: Iterable[RecordedEpisode], catalogue: dict[int, RecordedItem], name: str
) -> None:
    """Checks that the catalogue knows every item of the sessions."""
    used = {item for episode in episodes for item in episode.history}
    used |= {step.shown for episode in episodes for step in episode.steps}
    _check_known(used, catalogue, f"{name} sessions")


def _check_known(used: set[int], catalogue: dict[int, RecordedItem], what: str) -> None:
    unknown = used - catalogue.keys()
    if unknown:
        raise DataError(
            f"The recorded {what} hold {len(unknown)} item ids (the lowest is "
            f"{min(unknown)}) that billp_catalogue.parquet lacks, expected ids of that catalogue: "
            "take both files from the same source."
        )


def _report(
    models: Sequence[str],
    episodes: Sequence[RecordedEpisode],
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
