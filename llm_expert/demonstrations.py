"""Collects demonstrations: sessions of an agent, in a folder that survives anything.

A folder of a run holds

| file | what |
|---|---|
| ``config.json`` | all that defines the run; another run is refused |
| ``calls.sqlite`` | every prompt and its answer, written before the answer is used |
| ``demonstrations.parquet`` | the finished sessions (`recsim_env.trajectories`) |
| ``memories/`` | what the agent remembers at the end |
| ``report.json`` | the figures of the whole run; there when the run is whole |

A run that was stopped, however it was, is played again from its beginning: what was answered is not
asked again, so this takes milliseconds a step, and the files come out as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import inspect
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

import recsim_env  # noqa: F401  (registers the environments)
from llm_expert.agents import AGENTS, Agent, AgentSettings, CachedEmbedder, Kit, make_agent
from llm_expert.calls import Call, Caller, CallStore, Usage
from llm_expert.chat_models import ChatModel
from llm_expert.errors import StorageError
from llm_expert.grounding import Embedder, Grounder, regrounded_share
from llm_expert.interrupts import Stopped, run_coroutine, stopping_on_interrupt
from llm_expert.play import PlayedSession, play
from llm_expert.prompting import PromptBook, domain_of
from llm_expert.starting import StartingMemories, starting_memories
from recsim_env.artefacts import write_file
from recsim_env.dynamics import Dynamics
from recsim_env.env import RecEnv
from recsim_env.errors import DataError, near_miss
from recsim_env.planners import draw_users
from recsim_env.prepare import Prepared, Session
from recsim_env.settings import from_mapping
from recsim_env.simulator import Observer
from recsim_env.text import TextEmbedder
from recsim_env.trajectories import Trajectory, save_trajectories

__all__ = [
    "CollectConfig",
    "Collected",
    "Stopped",
    "agent_for",
    "collect",
    "collect_report",
    "dynamics_of",
    "play_agent",
    "state_embedder",
    "to_trajectories",
]

logger = logging.getLogger(__name__)

_CONFIG, _CALLS, _FILE, _REPORT = (
    "config.json",
    "calls.sqlite",
    "demonstrations.parquet",
    "report.json",
)
_COUNTED_BY = "tokens_counted_by"
_SAVE_EVERY = 10.0
"""Seconds between two saves of the finished sessions while a run goes on."""


@dataclass(frozen=True)
class CollectConfig:
    """What defines a run: two runs with equal settings and answers give equal files.

    Attributes:
        agent: A key of `llm_expert.agents.AGENTS`.
        env: Id of an environment, such as ``"IlRecSteam-v0"``.
        env_options: Arguments of the environment, such as ``{"termination": "billp"}``.
        episodes: Sessions.
        seed: Draws the users.
        parallel: Sessions at a time; it decides which memories a session finds.
        memories: What the agent remembers at the start: a folder of memories, or "recorded", those
            of BiLLP's agents in the data folder (training users); None: nothing.
        settings: Of the agent.
    """

    agent: str = "billp"
    env: str = "IlRecSteam-v0"
    env_options: Mapping[str, Any] = field(default_factory=dict)
    episodes: int = 100
    seed: int = 0
    parallel: int = 64
    memories: str | None = None
    settings: AgentSettings = field(default_factory=AgentSettings)

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        if self.agent not in AGENTS:
            raise DataError(f"There is no agent {self.agent!r}; {near_miss(self.agent, AGENTS)}.")
        for name, least in (("episodes", 1), ("parallel", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise DataError(
                    f"{name}={value!r} came, expected a whole number of {least} or more."
                )
        if not isinstance(self.settings, AgentSettings):
            raise DataError(
                f"settings={self.settings!r} came, expected AgentSettings: make them by "
                "AgentSettings(...), or everything by CollectConfig.from_dict."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CollectConfig:
        """Builds the settings from a mapping, as JSON gives it.

        Raises:
            DataError: For a name that is no setting.
        """
        given = dict(values)
        if isinstance(given.get("settings"), Mapping):
            given["settings"] = from_mapping(AgentSettings, given["settings"])
        return from_mapping(cls, given)


@dataclass(frozen=True)
class Collected:
    """A whole run.

    Attributes:
        trajectories: One for each session, in the order of their numbers.
        report: The figures, in JSON types.
        path: The trajectory file.
        usage: What was called and paid, now and in all.
    """

    trajectories: list[Trajectory]
    report: dict[str, Any]
    path: Path
    usage: Usage


# -- pieces ----------------------------------------------------------------------------------------


def dynamics_of(env: str, options: Mapping[str, Any] | None = None) -> Dynamics:
    """Returns the dynamics of an environment.

    Args:
        env: Its id.
        options: Its arguments.

    Raises:
        DataError: The id is not known, or is not one of a recommender environment.
    """
    known = [name for name in gym.registry if name.startswith("IlRec")]
    if env not in gym.registry:
        raise DataError(f"There is no environment {env!r}; {near_miss(env, known)}.")
    if gym.spec(env).entry_point != gym.spec(known[0]).entry_point:
        raise DataError(f"{env!r} is no recommender environment; {near_miss(env, known)}.")
    arguments = [name for name in inspect.signature(RecEnv).parameters if name != "render_mode"]
    for name in options or {}:
        if name not in arguments:
            raise DataError(
                f"The environment {env} has no argument {name!r}; {near_miss(name, arguments)}."
            )
    try:
        made = gym.make(env, disable_env_checker=True, **dict(options or {}))
    except DataError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).partition(" was raised from the environment creator")[0]
        raise DataError(
            f"The environment {env} cannot be made with {dict(options or {})} ({reason}): mend the "
            "arguments."
        ) from error
    found: Dynamics = made.unwrapped.dynamics  # type: ignore[attr-defined]
    made.close()
    return found


def agent_for(
    name: str,
    chat: ChatModel,
    call: Call,
    prepared: Prepared,
    settings: AgentSettings | None = None,
    embedder: Embedder | None = None,
) -> Agent:
    """Returns an agent for a prepared dataset.

    Args:
        name: A key of `llm_expert.agents.AGENTS`.
        chat: The model, for its window and its way of counting tokens.
        call: Asks it.
        prepared: Whose items it recommends.
        settings: Of the agent.
        embedder: Of states; None: the package's own, fitted on the catalogue.
    """
    catalogue = prepared.dataset.catalogue
    counts = Counter(name for names in catalogue.categories for name in names)
    kit = Kit(
        book=PromptBook.load(domain_of(prepared.dataset.name)),
        call=call,
        counter=chat.counter,
        budget=chat.window - chat.max_tokens,
        categories=[name for name, _ in sorted(counts.items(), key=lambda c: (-c[1], c[0]))],
        embedder=embedder or state_embedder(prepared),
        settings=settings or AgentSettings(),
    )
    return make_agent(name, kit)


def state_embedder(prepared: Prepared) -> Embedder:
    """Returns the default embedder of states and titles: the one of the dataset's items."""
    return CachedEmbedder(TextEmbedder.load(prepared.path / "text"))


def play_agent(
    agent: Agent,
    dynamics: Dynamics,
    users: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]],
    embedder: Embedder,
    *,
    parallel: int = 64,
    on_finished: Callable[[PlayedSession], None] | None = None,
) -> list[PlayedSession]:
    """Plays sessions, also from within a running event loop (a notebook).

    Args:
        agent: Who recommends.
        dynamics: Where.
        users: One session for each.
        embedder: Grounds titles.
        parallel: Sessions at a time.
        on_finished: Called with each finished session.
    """
    grounder = Grounder(dynamics.prepared.dataset.catalogue, embedder)
    return run_coroutine(
        play(agent, dynamics, users, grounder=grounder, parallel=parallel, on_finished=on_finished)
    )


def to_trajectories(
    sessions: Sequence[PlayedSession],
    dynamics: Dynamics,
    *,
    model: str,
    agent: str,
    embedder: Embedder,
) -> list[Trajectory]:
    """Returns finished sessions as trajectories, with what was thought at each step.

    The extras of a step are ``thought``, ``guidance``, ``raw_action`` (the title that was named),
    ``grounding`` and ``similarity`` (how its item was found), ``parsed``, ``model``,
    ``prompt_hash``, ``prompt_tokens``, ``completion_tokens``, ``calls``, ``value``, ``advantage``,
    ``encouraged``, and ``reflection`` (at the last step). The embeddings are those of the state's
    last titles and of the item (IL-Rec, section IV-A).

    Args:
        sessions: With at least one step each.
        dynamics: Where they were played.
        model: Who answered.
        agent: Name of the agent.
        embedder: Of states and items.
    """
    replayed = dynamics.replay(
        [Session(s.user, (), s.actions, f"{agent} ({model})", _extras(s, model)) for s in sessions],
        observe=Observer(dynamics).flat,
    )
    titles = dynamics.prepared.dataset.catalogue.titles
    return [
        replace(
            trajectory,
            state_embeddings=embedder.embed([step.state for step in session.steps]),
            action_embeddings=embedder.embed([titles[item] for item in session.actions]),
        )
        for trajectory, session in zip(replayed, sessions, strict=True)
    ]


def _extras(session: PlayedSession, model: str) -> dict[str, list[Any]]:
    rows = []
    for k, step in enumerate(session.steps):
        last = k == len(session.steps) - 1
        answers = step.answers + (session.closing_answers if last else ())
        rows.append(
            {
                "thought": step.thought,
                "guidance": step.guidance,
                "raw_action": step.said,
                "grounding": step.grounded.how,
                "similarity": round(step.grounded.similarity, 6),
                "parsed": step.parsed,
                "model": model,
                "prompt_hash": step.prompt_hash,
                "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
                "completion_tokens": sum(answer.completion_tokens for answer in answers),
                "calls": len(answers),
                "value": step.value,
                "advantage": step.advantage,
                "encouraged": None if step.advantage is None else step.advantage > 0.0,
                "reflection": session.reflection if last else None,
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


def collect_report(
    sessions: Sequence[PlayedSession], chat: ChatModel, usage: Usage
) -> dict[str, Any]:
    """Returns the figures of finished sessions, in JSON types.

    Args:
        sessions: At least one, each with at least one step.
        chat: The model.
        usage: Of all their calls.
    """
    steps = [step for session in sessions for step in session.steps]
    returns = [sum(step.reward for step in session.steps) for session in sessions]
    advantages = [step.advantage for step in steps if step.advantage is not None]
    cost = usage.total_cost(chat.price)
    return {
        "sessions": len(sessions),
        "steps": len(steps),
        "mean_length": len(steps) / len(sessions),
        "mean_return": float(np.mean(returns)),
        "reward_per_step": float(np.mean([step.reward for step in steps])),
        "ended_by": dict(sorted(Counter(session.ended_by for session in sessions).items())),
        "grounding": dict(sorted(Counter(step.grounded.how for step in steps).items())),
        "regrounded_share": regrounded_share([step.grounded.how for step in steps]),
        "unparsed_share": float(np.mean([not step.parsed for step in steps])),
        "encouraged_share": (
            float(np.mean([value > 0.0 for value in advantages])) if advantages else None
        ),
        "calls": usage.total_calls,
        "prompt_tokens": usage.total_prompt_tokens,
        "completion_tokens": usage.total_completion_tokens,
        "cost_usd": None if cost is None else round(cost, 6),
        "tokens_counted_by": chat.counter.name,
    }


# -- a run in a folder -----------------------------------------------------------------------------


def collect(
    config: CollectConfig,
    chat: ChatModel,
    out: str | Path,
    *,
    dynamics: Dynamics | None = None,
    embedder: Embedder | None = None,
    replay: bool = False,
    max_in_flight: int = 64,
    attempts: int = 6,
    progress: bool = True,
    data: str | Path | None = None,
) -> Collected:
    """Plays sessions and keeps them, or goes on with what a folder holds.

    Args:
        config: What to collect.
        chat: Who answers.
        out: The folder.
        dynamics: Of ``config.env``, where it is made already.
        embedder: Of states and titles; None: the package's own, fitted on the catalogue. A run
            goes on only with the embedder that it began with.
        replay: Answers come from the record alone, and the model is not asked.
        max_in_flight: Calls at a time.
        attempts: How often a call is tried before the run stops.
        progress: Shows a progress bar.
        data: Folder with the raw data, for recorded memories; None: where `ILREC_DATA` says.

    Returns:
        The run.

    Raises:
        DataError: The folder holds another run, or another process is at it.
        CallError: A call failed for good; the same call of this function goes on.
        StorageError: The disk is full, or the record is broken.
        ReplayMissError: A replay lacks an answer.
    """
    folder = Path(out)
    dynamics = dynamics or dynamics_of(config.env, config.env_options)
    known = embedder or state_embedder(dynamics.prepared)
    memories = starting_memories(
        config.memories, dynamics.prepared, known, data=data, gamma=config.settings.gamma
    )
    wanted = _definition(config, chat, dynamics, embedder, memories)
    if replay and not (folder / _CALLS).exists():
        raise DataError(
            f"{folder} holds no run to replay, expected {_CONFIG} and {_CALLS}: name the folder of "
            "a recorded run."
        )
    if not replay:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if replay else _locked(folder):
        kept = _sessions_in(folder / _FILE)
        with CallStore(folder / _CALLS, read_only=replay) as store:
            if len(store) or kept:
                _check_run(folder, wanted, replay)
            if kept and not len(store):
                raise DataError(
                    f"{folder} holds {kept} sessions and no record of their calls, so going on "
                    f"would pay for them again: put {_CALLS} back, or choose another folder."
                )
            if not replay:
                with _writing(folder):
                    write_file(folder / _CONFIG, json.dumps(wanted, indent=1) + "\n")
            caller = Caller(
                chat, store, replay=replay, max_in_flight=max_in_flight, attempts=attempts
            )
            agent = agent_for(config.agent, chat, caller, dynamics.prepared, config.settings, known)
            if config.memories is not None and not agent.memories.kinds:
                raise DataError(
                    f"memories={config.memories!r} came for {config.agent}, which remembers "
                    "nothing: leave them out, or take reflexion or billp."
                )
            run = _Run(config, chat, caller, dynamics, known, folder, kept, replay)
            return run.finish(memories.given_to(agent), progress)


class _Run:
    """One run in its folder, which is locked meanwhile."""

    def __init__(
        self,
        config: CollectConfig,
        chat: ChatModel,
        caller: Caller,
        dynamics: Dynamics,
        embedder: Embedder,
        folder: Path,
        kept: int,
        replay: bool,
    ) -> None:
        self.config, self.chat, self.caller = config, chat, caller
        self.dynamics, self.embedder, self.folder = dynamics, embedder, folder
        self.finished: list[PlayedSession] = []
        self.kept, self.replay = kept, replay
        self.saved_at = time.monotonic()

    def finish(self, agent: Agent, progress: bool) -> Collected:
        """Plays what is not played yet, which costs nothing for what is answered, and keeps it."""
        from tqdm.auto import tqdm

        users = draw_users(self.dynamics, self.config.episodes, self.config.seed)
        with (
            stopping_on_interrupt(self.caller),
            tqdm(
                total=self.config.episodes, desc=agent.name, unit="session", disable=not progress
            ) as bar,
        ):

            def on_finished(session: PlayedSession) -> None:
                self.finished.append(session)
                bar.update()
                bar.set_postfix_str(self._said())
                if time.monotonic() - self.saved_at > _SAVE_EVERY:
                    self._save()

            sessions = play_agent(
                agent,
                self.dynamics,
                users,
                self.embedder,
                parallel=self.config.parallel,
                on_finished=on_finished,
            )
        trajectories = self._save()
        report = collect_report(sessions, self.chat, self.caller.usage)
        text = json.dumps(report, indent=1) + "\n"
        self._write(lambda folder: agent.memories.save(folder / "memories"))
        self._write(lambda folder: write_file(folder / _REPORT, text))
        return Collected(trajectories, report, self.folder / _FILE, self.caller.usage)

    def _said(self) -> str:
        usage = self.caller.usage
        tokens = usage.total_prompt_tokens + usage.total_completion_tokens
        cost = usage.total_cost(self.chat.price)
        money = "" if cost is None or cost == 0 else f", ${cost:.2f}"
        return f"{tokens / 1000:,.0f}k tokens{money}"

    def _write(self, write: Callable[[Path], object]) -> None:
        """Writes something into the folder; a replay does without where it may not."""
        if not (self.folder / _CONFIG).exists():
            raise StorageError(
                f"{self.folder} was removed or moved while the run wrote to it: put it back, and "
                "the same command goes on where it stopped."
            )
        try:
            with _writing(self.folder):
                write(self.folder)
        except StorageError as error:
            if not self.replay:
                raise
            logger.warning("%s", error)

    def _save(self) -> list[Trajectory]:
        """Writes the finished sessions, unless the file has more of them already."""
        found = to_trajectories(
            sorted(self.finished, key=lambda session: session.number),
            self.dynamics,
            model=self.chat.spec,
            agent=self.config.agent,
            embedder=self.embedder,
        )
        if len(found) >= self.kept:
            self._write(lambda folder: save_trajectories(folder / _FILE, found))
            self.kept = len(found)
        self.saved_at = time.monotonic()
        return found


def _sessions_in(path: Path) -> int:
    """Returns how many sessions a trajectory file has; 0 for one that cannot be read."""
    if not path.exists():
        return 0
    try:
        return int(pq.ParquetFile(path).metadata.num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        logger.warning("%s cannot be read (%s); it is written again.", path, error)
        return 0


def _definition(
    config: CollectConfig,
    chat: ChatModel,
    dynamics: Dynamics,
    embedder: Embedder | None,
    memories: StartingMemories,
) -> dict[str, Any]:
    """Returns all that defines a run, in JSON types and without secrets."""
    try:
        values: dict[str, Any] = json.loads(json.dumps(asdict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The settings of the run cannot be written as JSON ({error}), expected numbers, "
            "strings, lists and dictionaries: name things, or pass `dynamics` of your own."
        ) from error
    identity = "default" if embedder is None else str(getattr(embedder, "identity", ""))
    if not identity:
        raise DataError(
            f"{type(embedder).__name__} came as embedder without an `identity`, expected a text "
            "that tells it from others: a run goes on only with the embedder that it began with."
        )
    values |= {
        "memories_digest": memories.digest,
        "model": chat.spec,
        "model_settings": json.loads(json.dumps(dict(chat.settings))),
        "window": chat.window,
        "max_tokens": chat.max_tokens,
        _COUNTED_BY: chat.counter.name,
        "dataset": dynamics.prepared.fingerprint,
        "split": dynamics.split,
        "rules": [repr(rule) for rule in dynamics.rules],
        "limit": dynamics.limit,
        "embedder": identity,
        "prompts": _digest_of_prompts(),
    }
    return values


def _digest_of_prompts() -> str:
    prompts = hashlib.sha256()
    folder = resources.files("llm_expert") / "prompts"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            prompts.update(file.name.encode() + b"\0" + file.read_bytes())
    return prompts.hexdigest()[:16]


def _check_run(folder: Path, wanted: Mapping[str, Any], replay: bool) -> None:
    """Refuses a folder in which another run has begun."""
    path = folder / _CONFIG
    if not path.exists():
        raise DataError(
            f"{folder} holds a run without its {_CONFIG}, so it cannot be told whether it is this "
            "one: choose another folder."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({error}), expected the settings of a run: choose another folder."
        ) from error
    if not isinstance(found, dict):
        raise DataError(
            f"{path} holds {type(found).__name__}, expected the settings of a run: choose another "
            "folder."
        )
    # What memories hold counts, not how their folder was named. In a replay a prompt that is cut
    # otherwise is missed, and the message then says where.
    ignored = {"memories", _COUNTED_BY} if replay else {"memories"}
    different = [name for name in wanted if name not in ignored and found.get(name) != wanted[name]]
    if not different:
        return
    if different == [_COUNTED_BY]:
        raise DataError(
            f"{folder} holds a run whose tokens were counted by {found.get(_COUNTED_BY)!r}, and "
            f"now they are by {wanted[_COUNTED_BY]!r}: "
            "give --encoding bytes to count bytes, or let tiktoken reach its vocabulary "
            "(TIKTOKEN_CACHE_DIR keeps it)."
        )
    name = different[0]  # the arguments of the run come first
    before, now = _what_differs(found.get(name), wanted[name])
    raise DataError(
        f"{folder} holds a run with {name}={before!r}, but {now!r} came: give the same arguments "
        "to go on with it, or choose another folder."
    )


def _what_differs(before: Any, now: Any) -> tuple[Any, Any]:
    """Returns two values, of mappings only the entries that differ."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before, now
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {n: before.get(n) for n in names}, {n: now.get(n) for n in names}


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says in one sentence that a folder cannot be written."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DataError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StorageError(
            f"{error.filename or folder} cannot be written "
            f"({str(error.strerror or error).lower()}): "
            f"{'free space' if full else 'see what is there'}, or choose another folder; the same "
            "command goes on where it stopped."
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run; a killed one lets go by itself."""
    lock = FileLock(folder / ".lock", timeout=0)
    with _writing(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise DataError(
                f"Another process is collecting into {folder}: wait for it, or choose another "
                "folder."
            ) from error
    try:
        yield
    finally:
        lock.release()
