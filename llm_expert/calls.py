"""Calls of chat models: cached, bounded, retried, counted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.messages import BaseMessage

from llm_expert.call_store import CallStore, Spent, Stored, difference
from llm_expert.errors import BadResponseError, LLMError, ReplayMissError, StopAsked
from llm_expert.failures import Failure, failure_of, secrets_of, wait_before
from llm_expert.tokens import count_messages
from recsim_env.errors import DataError, IlrecError

if TYPE_CHECKING:
    from llm_expert.chat_models import ChatModel, Price

__all__ = [
    "Answer",
    "Call",
    "CallStore",
    "Caller",
    "Counts",
    "Stored",
    "Tag",
    "Usage",
    "call_key",
    "prompt_hash",
]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tag:
    """Where in a run a call belongs; not part of what it is cached under.

    Args:
        role: "planner", "actor", "critic" or "reflector".
        session: Number of the session in its run, from 0.
        step: Number of the step in its session, from 0.
        attempt: 0 for the first question, k for the k-th time that it was asked again because the
            answer was not in the format.
    """

    role: str
    session: int = 0
    step: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said to one prompt.

    Args:
        text: The answer.
        prompt_hash: Sha256 (hex) of the rendered messages.
        prompt_tokens: Of the prompt.
        completion_tokens: Of the answer.
        latency: Seconds that the model took when the call was made; failed attempts and every
            wait before it are left out.
        cached: Whether the answer came from the record.
    """

    text: str
    prompt_hash: str
    prompt_tokens: int
    completion_tokens: int
    latency: float
    cached: bool


class Call(Protocol):
    """Asks a chat model; `Caller` is the one that does."""

    async def __call__(
        self, messages: Sequence[BaseMessage], *, tag: Tag, sample: int = 0
    ) -> Answer:
        """Returns the answer.

        Args:
            messages: The rendered prompt.
            tag: Where in the run the call belongs.
            sample: Number of the draw: the same prompt with another number is another call.

        Raises:
            CallError: The call has failed for good.
            StopAsked: The call was not made, since the run is to stop.
            ReplayMissError: A replay lacks the answer.
            StorageError: The record cannot be written.
        """
        ...


def prompt_hash(messages: Sequence[BaseMessage]) -> str:
    """Returns the sha256 (hex) of rendered messages: of their roles and texts in canonical JSON."""
    return _sha256(_rendered(messages))


def call_key(chat: ChatModel, messages: Sequence[BaseMessage], sample: int = 0) -> str:
    """Returns what a call is cached under: the sha256 (hex) of model, settings, prompt and draw.

    Args:
        chat: Its spec and its settings count; its secrets are in neither.
        messages: The rendered prompt.
        sample: Number of the draw.
    """
    return _key(chat.spec, _settings(chat.settings), _rendered(messages), sample)


def _key(spec: str, settings: str, rendered: str, sample: int) -> str:
    return _sha256(_json([spec, settings, rendered, sample]))


def _rendered(messages: Sequence[BaseMessage]) -> str:
    return _json([[message.type, message.content] for message in messages])


def _settings(settings: Mapping[str, Any]) -> str:
    """Returns settings as canonical JSON, in which 1.0 and 1 are the same."""
    whole = (float, int)
    return _json({n: int(v) if type(v) in whole and v % 1 == 0 else v for n, v in settings.items()})


def _json(value: object) -> str:
    # Escaped to ASCII, so that even half of a surrogate pair can be hashed and stored.
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass
class Counts:
    """How many calls there were and what they took.

    Args:
        calls: Answers that were paid for now.
        cached: Answers that were in the record, or that another call in flight brought along.
        retries: Attempts that failed and were followed by another.
        prompt_tokens: Of what was paid for now, empty answers too.
        completion_tokens: Likewise.
        total_calls: Different answers, whether paid for now or before. An answer that several were
            given counts once, for the role that had it first.
        total_prompt_tokens: Of these answers, and of the empty ones on the way to them.
        total_completion_tokens: Likewise.
        total_latency: Seconds that the model took for these answers, one after another.
    """

    calls: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_calls: int = 0
    total_prompt_tokens: int = 0
    total_completion_tokens: int = 0
    total_latency: float = 0.0

    def cost(self, price: Price | None) -> float | None:
        """Returns the USD that were paid now, or None where the price is not known."""
        return _cost(price, self.prompt_tokens, self.completion_tokens)

    def total_cost(self, price: Price | None) -> float | None:
        """Returns the USD that all this has cost, now or before, or None as `cost` does."""
        return _cost(price, self.total_prompt_tokens, self.total_completion_tokens)


def _cost(price: Price | None, prompt: int, completion: int) -> float | None:
    return None if price is None else (prompt * price.prompt + completion * price.completion) / 1e6


@dataclass
class Usage(Counts):
    """The counts of all calls, and of those of each role.

    Args:
        by_role: From the name of a role to its counts.
    """

    by_role: dict[str, Counts] = field(default_factory=dict)

    def add(self, role: str, **amounts: float) -> None:
        """Adds to the counts of all calls and to those of a role.

        Args:
            role: Of the call.
            **amounts: From the name of a count to what is added to it.
        """
        for counts in (self, self.by_role.setdefault(role, Counts())):
            for name, amount in amounts.items():
                setattr(counts, name, getattr(counts, name) + amount)

    def table(self, price: Price | None = None) -> str:
        """Returns a table in Markdown: a row for each role by name, and one for all.

        Args:
            price: Of the model; without it the costs are left open.
        """
        rows = [
            "| role | calls | from record | retries | tokens in | tokens out | USD |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for role, counts in [*sorted(self.by_role.items()), ("all", self)]:
            cost = counts.cost(price)
            paid = "-" if cost is None else f"{cost:.4f}"
            rows.append(
                f"| {role} | {counts.calls} | {counts.cached} | {counts.retries} "
                f"| {counts.prompt_tokens} | {counts.completion_tokens} | {paid} |"
            )
        return "\n".join(rows)


@dataclass(frozen=True)
class _Question:
    """A call that is not answered yet."""

    messages: Sequence[BaseMessage]
    rendered: str
    prompt_hash: str
    key: str
    tag: Tag
    sample: int


class Caller:
    """Asks a chat model, and nothing twice; a `Call`.

    An answer comes from the record where it is there. Otherwise the model is asked, and the answer
    is in the record before anybody sees it. Of equal calls at the same time one is made and all
    get its answer. It may be used in one event loop after another, not in two at a time.

    Once a call has failed for good, or the record cannot be written, or `stop` was called, no
    further call is made: those that wait end in `StopAsked`, and what is on its way comes to its
    end and is recorded. The record goes on answering. A new start takes a new object.

    Args:
        chat: The model.
        store: The record; None keeps the answers in memory for as long as this object lives.
        replay: Whether the record alone answers, so that the model is never asked.
        max_in_flight: Calls at the same time, at most; those that wait to try again count.
        attempts: How often a call is tried before it has failed, at least 1.
        first_wait: Seconds before the second attempt, about; they double from one to the next.
        longest_wait: Seconds between two attempts, at most.
        on_answer: Is told every answer, those of the record too.
        sleep: Waits some seconds; tests give their own.
    """

    def __init__(
        self,
        chat: ChatModel,
        store: CallStore | None = None,
        *,
        replay: bool = False,
        max_in_flight: int = 64,
        attempts: int = 6,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        on_answer: Callable[[Answer, Tag], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if replay and store is None:
            raise DataError("A replay came without a record of calls; give the record as `store`.")
        if min(max_in_flight, attempts) < 1:
            raise DataError(
                f"max_in_flight={max_in_flight} and attempts={attempts} came where both are at "
                "least 1; give larger numbers."
            )
        self.chat = chat
        self.usage = Usage()
        self._store = store
        self._replay = replay
        self._max_in_flight = max_in_flight
        self._attempts = attempts
        self._first_wait = first_wait
        self._longest_wait = longest_wait
        self._on_answer = on_answer
        self._sleep = sleep
        self._settings = _settings(chat.settings)
        self._secrets = secrets_of(chat.model)
        self._kept: dict[str, Stored] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(max_in_flight)
        self._woken = asyncio.Event()
        self._flights: dict[str, asyncio.Task[Stored]] = {}
        self._counted: set[str] = set()
        self._stopped = False
        self._failure: Exception | None = None

    async def __call__(
        self, messages: Sequence[BaseMessage], *, tag: Tag, sample: int = 0
    ) -> Answer:
        """Returns the answer; see `Call`."""
        rendered = _rendered(messages)
        key = _key(self.chat.spec, self._settings, rendered, sample)
        question = _Question(messages, rendered, _sha256(rendered), key, tag, sample)
        found = self._find(key)
        self._count_past(key, found, tag.role)
        if found is not None:
            return self._deliver(found, tag, cached=True)
        if self._replay:
            raise self._miss(question)
        self._enter_loop()
        flight = self._flights.get(key)
        first = flight is None
        if flight is None:
            flight = asyncio.create_task(self._pay(question))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        # Who waits may be cancelled; the call goes on for the others and for the record.
        return self._deliver(await asyncio.shield(flight), tag, cached=not first)

    def stop(self) -> None:
        """Sees to it that no further call is made; see the class.

        Any thread may call it, and a handler of a signal; a second time does nothing.
        """
        self._stopped = True
        # In this order: a loop that starts meanwhile sees the flag before it waits.
        loop, woken = self._loop, self._woken
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits in it
                loop.call_soon_threadsafe(woken.set)

    def _enter_loop(self) -> None:
        """Starts afresh where the event loop is not that of the call before."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._slots = asyncio.Semaphore(self._max_in_flight)
            self._flights = {}
            self._woken = asyncio.Event()
            self._loop = loop

    def _landed(self, key: str, flight: asyncio.Task[Stored]) -> None:
        """Forgets a call that is over; its error is taken note of even if nobody waits for it."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()

    def _find(self, key: str) -> Stored | None:
        return self._kept.get(key) if self._store is None else self._store.get(key)

    def _deliver(self, call: Stored, tag: Tag, *, cached: bool) -> Answer:
        """Returns a call's answer after it has been counted and told."""
        answer = Answer(
            call.text,
            call.prompt_hash,
            call.prompt_tokens,
            call.completion_tokens,
            call.latency,
            cached,
        )
        self.usage.add(tag.role, cached=int(cached))
        if self._on_answer is not None:
            self._on_answer(answer, tag)
        return answer

    def _count_past(self, key: str, found: Stored | None, role: str) -> None:
        """Counts once what a call has cost before this object came to it."""
        if key in self._counted:
            return
        self._counted.add(key)
        if found is not None:
            self.usage.add(role, total_calls=1, total_latency=found.latency, **_in_total(found))
        if self._store is not None:
            past = self._store.spent(key)
            if past.answers:
                self.usage.add(role, **_in_total(past))

    async def _pay(self, question: _Question) -> Stored:
        """Asks the model until it answers; the answer is in the record when this returns."""
        async with self._slots:
            try:
                return await self._ask(question)
            except StopAsked:
                raise
            except Exception as error:
                # Before the slot is free for the next.
                self._failure = self._failure or error
                self.stop()
                raise

    async def _ask(self, question: _Question) -> Stored:
        """Asks the model until it answers or has failed for good."""
        failures = 0
        while True:
            if self.chat.limiter is not None:
                await self._until_stopped(self.chat.limiter.aacquire())
            self._go_on(question)
            outcome = await self._attempt(question)
            if isinstance(outcome, Stored):
                return outcome
            failures += 1
            if not outcome.again or failures == self._attempts:
                break
            self._go_on(question)
            self.usage.add(question.tag.role, retries=1)
            wait = wait_before(
                question.key, failures, outcome.wait, self._first_wait, self._longest_wait
            )
            _LOG.info("%s: %s; again in %.1f s", _name(question.tag), outcome.what, wait)
            await self._until_stopped(self._sleep(wait))
        # Not inside an `except`: an exception whose text holds a key must not come along.
        raise outcome.kind(
            f"{_name(question.tag).capitalize()} failed after {failures} "
            f"attempt{'s' * (failures > 1)}: {outcome.what}; {outcome.mend}, and start the same "
            "command again: it goes on where it stopped."
        ) from outcome.cause

    def _go_on(self, question: _Question) -> None:
        """Raises where no further call is to be made."""
        if self._stopped:
            why = "another call failed for good" if self._failure else "the run was asked to stop"
            raise StopAsked(
                f"{_name(question.tag).capitalize()} was not made, since {why}; start the same "
                "command again: it goes on where it stopped."
            ) from self._failure

    async def _until_stopped(self, waiting: Awaitable[object]) -> None:
        """Waits, but no longer than until no further call is to be made."""
        wanted = asyncio.ensure_future(waiting)
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            if not self._stopped:
                await asyncio.wait({wanted, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
            woken.cancel()
            await asyncio.wait({wanted, woken})
        if not wanted.cancelled():
            wanted.result()

    async def _attempt(self, question: _Question) -> Stored | Failure:
        """Asks the model once."""
        started = time.perf_counter()
        try:
            message = await self.chat.model.ainvoke(
                list(question.messages), **self._draw(question.sample)
            )
        except IlrecError:
            raise
        except Exception as error:  # noqa: BLE001 - a model may raise whatever its provider does
            return failure_of(error, self._secrets)
        latency = time.perf_counter() - started
        # From here to the record nothing is awaited, so nothing can come between.
        text = _text_of(message)
        counted = getattr(message, "usage_metadata", None) or {}
        prompt_tokens = counted.get("input_tokens") or count_messages(
            self.chat.counter, question.messages
        )
        completion_tokens = counted.get("output_tokens") or self.chat.counter.count(text)
        call = self._row(
            question,
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            latency=_seconds_of(message, latency),
        )
        return self._keep(call, message.response_metadata)

    def _draw(self, sample: int) -> dict[str, Any]:
        """Returns what tells the model that another draw of a prompt is wanted."""
        name = self.chat.draw_argument
        if name is None or not sample:
            return {}
        return {name: int(self.chat.settings.get("seed") or 0) + sample}

    def _keep(self, call: Stored, metadata: Mapping[str, Any]) -> Stored | Failure:
        """Counts and records an answer that was paid for, the tokens alone where it is empty."""
        empty = not call.text.strip()
        paid = {"prompt_tokens": call.prompt_tokens, "completion_tokens": call.completion_tokens}
        self.usage.add(call.role, **paid, **_in_total(call))
        if empty:
            if self._store is not None:
                self._store.spend(call.key, Spent(1, **paid))
            return _empty(metadata)
        self.usage.add(call.role, calls=1, total_calls=1, total_latency=call.latency)
        if self._store is None:
            self._kept[call.key] = call
        else:
            self._store.put(call)
        return call

    def _row(
        self,
        question: _Question,
        *,
        text: str = "",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        latency: float = 0.0,
    ) -> Stored:
        return Stored(
            question.key,
            question.prompt_hash,
            self.chat.spec,
            self._settings,
            question.rendered,
            question.sample,
            **vars(question.tag),
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            latency=latency,
        )

    def _miss(self, question: _Question) -> ReplayMissError:
        """Returns the error of a replay that lacks an answer; it says what is nearest to it."""
        store = self._store
        if store is None:
            raise LLMError("A replay has lost its record of calls; make a new Caller with one.")
        start = f"The record {store.path} has no answer to {_name(question.tag)}"
        mend = "replay with what was recorded, or start the same command without the replay"
        if not len(store):
            return ReplayMissError(f"{start}: it is empty; give another record or record a run.")
        asked = self._row(question)
        near = store.nearest(asked)
        if near is None:
            return ReplayMissError(f"{start}: it has no calls of the {asked.role}; {mend}.")
        tag = Tag(near.role, near.session, near.step, near.attempt)
        return ReplayMissError(
            f"{start} ({mend}); the nearest that it has is {_name(tag)}, which differs: "
            f"{difference(near, asked)}"
        )


def _in_total(cost: Stored | Spent) -> dict[str, int]:
    """Returns the tokens of an answer under the names of the totals."""
    return {
        "total_prompt_tokens": cost.prompt_tokens,
        "total_completion_tokens": cost.completion_tokens,
    }


def _seconds_of(message: BaseMessage, measured: float) -> float:
    """Returns the seconds that the model says it took, or those that were measured around it."""
    said = message.response_metadata.get("seconds")
    return float(said) if isinstance(said, (int, float)) else measured


def _name(tag: Tag) -> str:
    """Returns what a call is called in messages."""
    again = f", question {tag.attempt + 1}" if tag.attempt else ""
    return f"the {tag.role}'s call of session {tag.session}, step {tag.step}{again}"


def _text_of(message: BaseMessage) -> str:
    """Returns the text of an answer, or that of a refusal; characters that no file holds as `?`."""
    content = message.content
    text = content if isinstance(content, str) else str(message.text)
    text = text or str(message.additional_kwargs.get("refusal") or "")
    return text.encode("utf-8", "replace").decode("utf-8")


def _empty(metadata: Mapping[str, Any]) -> Failure:
    """Returns the failure that an empty answer is."""
    reason = metadata.get("finish_reason") or metadata.get("stop_reason")
    if reason in ("length", "max_tokens"):
        what, mend = "the answer is empty, its tokens are used up", "allow more tokens an answer"
    else:
        what, mend = "the answer is empty", "see what the server says"
    return Failure(BadResponseError, what, mend, again=True)
