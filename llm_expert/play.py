"""Lets an agent recommend to many users at once, over the batched dynamics.

Sessions run in lockstep, so many at a time; where one ends, the next begins with the next tick. One
tick is: recall for all sessions in one batch; then the model's answers, concurrently (guidance and
action one after the other, the value of the state beside them, reflections on sessions that have
just ended too); then grounding and one step of the dynamics for all; then the memories are written,
in the order of the sessions' numbers. What a session sees therefore never depends on which answer
came first, and a run that is played again with the same answers is the same run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llm_expert.actor import Action
from llm_expert.agents.agent import Agent
from llm_expert.asking import Asked
from llm_expert.calls import Answer, Tag
from llm_expert.critic import advantage
from llm_expert.errors import StopAsked
from llm_expert.grounding import Grounded, Grounder
from llm_expert.memory import Recalled, VectorMemory
from llm_expert.scratchpad import HistoryItem, Scratchpad, ShownItem
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError
from recsim_env.prepare import Prepared

__all__ = ["PlayedSession", "PlayedStep", "play"]

T = TypeVar("T")
_FALLBACK_CHARACTERS = 200


@dataclass
class PlayedStep:
    """One finished step.

    Attributes:
        state: The key of the state before it in the memories.
        item: Index of the item that was shown.
        grounded: How it was found.
        parsed: Whether the actor's answer was in the format; where not, its text was grounded.
        said: The title that was named.
        thought: The actor's.
        guidance: The planner's; None without one.
        reward: In [1, 5].
        answers: Of all calls for this step, the critic's value of the state included.
        latency: Seconds of model time between the user's request and the item: planner and actor.
        value: V(s), None without a critic or where it gave none.
        advantage: A(s, a) (IL-Rec, eq. 11), None where a value is missing.
    """

    state: str
    item: int
    grounded: Grounded
    parsed: bool
    said: str
    thought: str
    guidance: str | None
    reward: float
    answers: tuple[Answer, ...]
    latency: float
    value: float | None
    advantage: float | None = None

    @property
    def prompt_hash(self) -> str:
        """Hash of the prompt that was answered with the item."""
        return self.answers[-1].prompt_hash if self.answers else ""


@dataclass
class PlayedSession:
    """One session and what was thought in it.

    Attributes:
        number: In the run, from 0.
        user: Index of the user.
        visit: How often this user was drawn before in this run.
        pad: What the agent knows of the session.
        steps: The finished steps.
        ended_by: Name of what ended it, "" while it goes on.
        terminated: Whether the user left; False where the length limit cut it.
        reflection: What the reflector said of it; None without one.
    """

    number: int
    user: int
    visit: int
    pad: Scratchpad
    steps: list[PlayedStep] = field(default_factory=list)
    ended_by: str = ""
    terminated: bool = False
    reflection: str | None = None
    closing_answers: tuple[Answer, ...] = ()

    @property
    def actions(self) -> tuple[int, ...]:
        """Indices of the items shown."""
        return tuple(step.item for step in self.steps)


@dataclass(frozen=True)
class _Decision:
    """What planner and actor said."""

    guidance: str | None
    action: Asked[Action]
    answers: tuple[Answer, ...]

    @property
    def latency(self) -> float:
        return sum(answer.latency for answer in self.answers)

    def text(self, state: str) -> str:
        """Returns what is to be grounded: the title, or whatever else there is."""
        if self.action.value is not None:
            return self.action.value.title
        lines = (self.action.raw.strip(), self.guidance or "", state)
        return next((line for line in lines if line), "")[:_FALLBACK_CHARACTERS]


@dataclass(frozen=True)
class _Recall:
    """What the memories hold of one state."""

    reflections: tuple[str, ...]
    encouraged: tuple[str, ...]
    discouraged: tuple[str, ...]
    values: tuple[tuple[str, float], ...]


async def play(
    agent: Agent,
    dynamics: Dynamics,
    users: Sequence[int] | npt.NDArray[np.int64],
    *,
    grounder: Grounder,
    parallel: int = 64,
    on_finished: Callable[[PlayedSession], None] | None = None,
) -> list[PlayedSession]:
    """Plays one session for each user.

    Args:
        agent: Who recommends. Its memories grow.
        dynamics: Where; the rewards and rules are its.
        users: (n,) indices of known users; a user may come more than once.
        grounder: Of the dynamics' catalogue.
        parallel: How many sessions run at a time; part of what defines the run, because a session
            sees what those before it have left in the memories.
        on_finished: Called with each session when all is known of it.

    Returns:
        The sessions in the order of the users.

    Raises:
        DataError: There is no user, or one is not known.
        CallError: A call failed for good. The calls beside it are let finish first.
    """
    if parallel < 1:
        raise DataError(f"parallel={parallel} came, expected at least one session at a time.")
    if len(users) == 0:
        raise DataError("No user came to recommend to, expected at least one: raise the number.")
    known = dynamics.known_users(users)
    return await _Run(agent, dynamics, known, grounder, parallel, on_finished).run()


class _Run:
    """One run; `play` says what it does."""

    def __init__(
        self,
        agent: Agent,
        dynamics: Dynamics,
        users: npt.NDArray[np.int64],
        grounder: Grounder,
        parallel: int,
        on_finished: Callable[[PlayedSession], None] | None,
    ) -> None:
        self.agent = agent
        self.dynamics = dynamics
        self.grounder = grounder
        self.on_finished = on_finished
        self.sessions = self._plan_sessions(users)
        n = min(parallel, len(users))
        self.state = dynamics.allocate(n)
        self.slots: list[PlayedSession | None] = [None] * n
        self.waiting = iter(self.sessions)
        self.closing: list[PlayedSession] = []

    def _plan_sessions(self, users: npt.NDArray[np.int64]) -> list[PlayedSession]:
        prepared = self.dynamics.prepared
        titles = prepared.dataset.catalogue.titles
        ratings = _known_ratings(prepared, set(users.tolist()))
        visits: Counter[int] = Counter()
        sessions = []
        for number, user in enumerate(users.tolist()):
            items = [i for i in self.dynamics.history_of(user).tolist() if (user, i) in ratings]
            last = items[max(0, len(items) - self.agent.settings.history) :]
            history = tuple(HistoryItem(titles[i], ratings[user, i]) for i in last)
            sessions.append(PlayedSession(number, user, visits[user], Scratchpad(history)))
            visits[user] += 1
        return sessions

    async def run(self) -> list[PlayedSession]:
        """Plays all sessions to their end."""
        self._start_next()
        while self._open() or self.closing:
            await self._tick()
        return self.sessions

    def _open(self) -> list[tuple[int, PlayedSession]]:
        """Returns slot and session of those that go on, in the order of their numbers."""
        found = [(k, session) for k, session in enumerate(self.slots) if session is not None]
        return sorted(found, key=lambda pair: pair[1].number)

    def _start_next(self) -> None:
        """Gives free slots the next sessions."""
        rows, users = [], []
        for slot, session in enumerate(self.slots):
            if session is None and (following := next(self.waiting, None)) is not None:
                self.slots[slot] = following
                rows.append(slot)
                users.append(following.user)
        if rows:
            self.dynamics.initial(self.state, np.array(rows), np.array(users))

    async def _tick(self) -> None:
        active = self._open()
        sessions = [session for _, session in active]
        closing, self.closing = self.closing, []
        states = [self._key(session) for session in sessions]
        last_states = [self._key(session) for session in closing]
        recalled = self._recall(sessions, states)
        recalled_last = self._recall(closing, last_states)
        decisions, values, last_values, reflections = await _concurrently(
            [self._decide(s, r) for s, r in zip(sessions, recalled, strict=True)],
            [self._value(s, r) for s, r in zip(sessions, recalled, strict=True)],
            [self._last_value(s, r) for s, r in zip(closing, recalled_last, strict=True)],
            [self._reflect(s) for s in closing],
        )
        known = {s.number: v.value for s, v in zip(sessions, values, strict=True)}
        known |= {s.number: v.value for s, v in zip(closing, last_values, strict=True)}
        for session, value, reflection in zip(closing, last_values, reflections, strict=True):
            session.reflection = reflection.value
            session.closing_answers = value.answers + reflection.answers
        self._judge_last_steps(sorted([*sessions, *closing], key=lambda s: s.number), known)
        self._remember_reflections(closing, last_states)
        if self.on_finished is not None:
            for session in closing:
                self.on_finished(session)
        if active:
            self._step(active, states, decisions, values)
        self._start_next()

    def _key(self, session: PlayedSession) -> str:
        return session.pad.state_text(self.agent.settings.state_titles)

    # -- memories ----------------------------------------------------------------------------------

    def _recall(self, sessions: Sequence[PlayedSession], states: Sequence[str]) -> list[_Recall]:
        """Returns what the memories hold of states.

        An item that cannot be recommended any more takes no place among the remembered ones; of an
        item, and of a state, the latest memory counts.
        """
        memories = self.agent.memories
        n = len(states)
        reflections = _ask(
            memories.reflections,
            states,
            distinct=lambda key, value: value["text"],  # noqa: ARG005
        )
        experiences = _ask(
            memories.experiences,
            states,
            skip=[_is_known_to(session.pad) for session in sessions],
            distinct=lambda key, value: value["title"],  # noqa: ARG005
        )
        values = _ask(
            memories.values,
            states,
            distinct=lambda key, value: key,  # noqa: ARG005
        )
        return [
            _Recall(
                tuple(str(found.value["text"]) for found in reflections[k]),
                tuple(str(f.value["title"]) for f in experiences[k] if f.value["encouraged"]),
                tuple(str(f.value["title"]) for f in experiences[k] if not f.value["encouraged"]),
                tuple((found.key, float(found.value["value"])) for found in values[k]),
            )
            for k in range(n)
        ]

    def _judge_last_steps(
        self, sessions: Sequence[PlayedSession], values: dict[int, float | None]
    ) -> None:
        """Computes the advantages of the steps before and remembers what came of them.

        Args:
            sessions: Open and just ended ones, in the order of their numbers.
            values: V of their present states by number; 0 after the user has left.
        """
        judged = []
        for session in sessions:
            following = values[session.number]
            if not session.steps or following is None:
                continue
            step = session.steps[-1]
            if step.value is not None:
                gamma = self.agent.settings.gamma
                step.advantage = advantage(step.reward, step.value, following, gamma)
                judged.append((step, step.reward + gamma * following))
        memories = self.agent.memories
        if memories.experiences is not None and judged:
            titles = self.dynamics.prepared.dataset.catalogue.titles
            memories.experiences.add(
                [step.state for step, _ in judged],
                [
                    {"title": titles[step.item], "encouraged": (step.advantage or 0.0) > 0.0}
                    for step, _ in judged
                ],
            )
        if memories.values is not None and judged:
            memories.values.add(
                [step.state for step, _ in judged], [{"value": target} for _, target in judged]
            )

    def _remember_reflections(
        self, closing: Sequence[PlayedSession], states: Sequence[str]
    ) -> None:
        memory = self.agent.memories.reflections
        kept = [
            (state, {"text": session.reflection})
            for session, state in zip(closing, states, strict=True)
            if session.reflection
        ]
        if memory is not None and kept:
            memory.add([state for state, _ in kept], [value for _, value in kept])

    # -- the model's part --------------------------------------------------------------------------

    async def _decide(self, session: PlayedSession, recall: _Recall) -> _Decision:
        step = len(session.steps)
        guidance: str | None = None
        answers: tuple[Answer, ...] = ()
        reflections: tuple[str, ...] = recall.reflections
        if self.agent.planner is not None:
            plan = await self.agent.planner(
                session.pad,
                reflections,
                tag=Tag("planner", session.number, step),
                sample=session.visit,
            )
            guidance, answers, reflections = plan.value, plan.answers, ()
        action = await self.agent.actor(
            session.pad,
            guidance=guidance,
            encouraged=recall.encouraged,
            discouraged=recall.discouraged,
            reflections=reflections,
            tag=Tag("actor", session.number, step),
            sample=session.visit,
        )
        return _Decision(guidance, action, answers + action.answers)

    async def _value(self, session: PlayedSession, recall: _Recall) -> Asked[float]:
        if self.agent.critic is None:
            return Asked(None, (), "")
        return await self.agent.critic(
            session.pad,
            recall.values,
            tag=Tag("critic", session.number, len(session.steps)),
            sample=session.visit,
        )

    async def _last_value(self, session: PlayedSession, recall: _Recall) -> Asked[float]:
        """Returns V of the state in which a session ended: 0 if the user left."""
        if session.terminated and self.agent.critic is not None:
            return Asked(0.0, (), "")
        return await self._value(session, recall)

    async def _reflect(self, session: PlayedSession) -> Asked[str]:
        if self.agent.reflector is None:
            return Asked(None, (), "")
        return await self.agent.reflector(
            session.pad,
            tag=Tag("reflector", session.number, len(session.steps)),
            sample=session.visit,
        )

    # -- the environment's part --------------------------------------------------------------------

    def _step(
        self,
        active: Sequence[tuple[int, PlayedSession]],
        states: Sequence[str],
        decisions: Sequence[_Decision],
        values: Sequence[Asked[float]],
    ) -> None:
        slots = np.array([slot for slot, _ in active])
        texts = [decision.text(state) for decision, state in zip(decisions, states, strict=True)]
        grounded = self.grounder.ground_many(texts, self.state.mask[slots])
        items = np.zeros(len(self.slots), np.int64)
        items[slots] = [found.item for found in grounded]
        outcome = self.dynamics.step(self.state, items)
        for k, (slot, session) in enumerate(active):
            decision, ended_by = decisions[k], int(outcome.ended_by[slot])
            action = decision.action.value
            session.steps.append(
                PlayedStep(
                    state=states[k],
                    item=grounded[k].item,
                    grounded=grounded[k],
                    parsed=action is not None,
                    said=texts[k],
                    thought="" if action is None else action.thought,
                    guidance=decision.guidance,
                    reward=float(outcome.rewards[slot]),
                    answers=values[k].answers + decision.answers,
                    latency=decision.latency,
                    value=values[k].value,
                )
            )
            terminated = bool(outcome.terminated[slot])
            session.pad.steps.append(self._shown(session.steps[-1], terminated))
            if ended_by:
                session.ended_by = str(self.dynamics.ending_names[ended_by])
                session.terminated = terminated
                self.closing.append(session)
                self.slots[slot] = None
        idle = np.flatnonzero(self.state.steps >= self.dynamics.limit)
        self.state.steps[idle] = self.dynamics.limit - 1  # free slots idle in place
        self.closing.sort(key=lambda session: session.number)

    def _shown(self, step: PlayedStep, left: bool) -> ShownItem:
        catalogue = self.dynamics.prepared.dataset.catalogue
        return ShownItem(
            said=step.said if step.parsed else catalogue.titles[step.item],
            title=catalogue.titles[step.item],
            categories=tuple(catalogue.categories[step.item]),
            rating=step.reward,
            left=left,
        )


def _known_ratings(prepared: Prepared, users: set[int]) -> dict[tuple[int, int], float]:
    """Returns what some users rated in the train rows, by user and item.

    Negatives that a dataset was given by drawing (their order is below 0) nobody has rated.
    """
    interactions = prepared.dataset.interactions
    wanted = np.isin(interactions.users, sorted(users)) & prepared.train_rows
    if interactions.order is not None:
        wanted &= interactions.order >= 0
    rows = zip(
        interactions.users[wanted].tolist(),
        interactions.items[wanted].tolist(),
        interactions.ratings[wanted].tolist(),
        strict=True,
    )
    return {(user, item): rating for user, item, rating in rows}


def _ask(memory: VectorMemory | None, states: Sequence[str], **how: Any) -> list[list[Recalled]]:
    if memory is None or not states:
        return [[] for _ in states]
    return memory.recall(states, **how)


def _is_known_to(pad: Scratchpad) -> Callable[[Mapping[str, Any]], bool]:
    """Returns whether a remembered item stands in the history or the session."""
    titles = {item.title for item in pad.history} | {step.title for step in pad.steps}
    return lambda value: value["title"] in titles


async def _concurrently(*groups: Sequence[Coroutine[Any, Any, Any]]) -> list[list[Any]]:
    """Runs all at once and returns their results group by group.

    All are let finish, since an answer that is on its way is paid; then the first error is raised,
    and only where there is none that a call was not made because of another.
    """
    flat = [coroutine for group in groups for coroutine in group]
    results = await asyncio.gather(*flat, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, StopAsked)):
        raise error
    rest = iter(results)
    return [[next(rest) for _ in group] for group in groups]
