"""What the agents have in common: roles that ask a model, and memories that outlive a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_expert.actor import Actor
from llm_expert.asking import Asking
from llm_expert.calls import Call
from llm_expert.critic import Critic
from llm_expert.grounding import Embedder
from llm_expert.memory import VectorMemory
from llm_expert.planner import Planner
from llm_expert.prompting import PromptBook
from llm_expert.reflector import Reflector
from llm_expert.tokens import TokenCounter
from recsim_env.errors import DataError

__all__ = ["Agent", "AgentMaker", "AgentSettings", "CachedEmbedder", "Kit", "Memories"]

_MEMORIES = ("reflections", "experiences", "values")
_KEPT_TEXTS = 20_000


@dataclass(frozen=True)
class AgentSettings:
    """What an agent can be set to; the defaults are those of the agents' own functions.

    Attributes:
        gamma: Discount of the critic's values, in [0, 1). Raising it makes the agent look further
            ahead and the values larger (at most 5 / (1 - gamma)); BiLLP's published code has 0.5.
        planner_threshold: τ_P (eq. 4): reflections must be more similar than this to the state, in
            [0, 1) after min-max normalisation. Raising it gives fewer and closer ones.
        actor_threshold: τ_A (eq. 6), the same for remembered actions.
        critic_threshold: τ_C (eq. 9), the same for remembered values.
        top_k: The most memories of each kind in a prompt.
        history: How many of the user's items from before the session a prompt shows.
        state_titles: How many of the last titles are the key of a state in the memories.
        reasks: How often a role asks again after an answer in the wrong format.
    """

    gamma: float = 0.5
    planner_threshold: float = 0.8
    actor_threshold: float = 0.8
    critic_threshold: float = 0.8
    top_k: int = 5
    history: int = 10
    state_titles: int = 10
    reasks: int = 2

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("gamma", "planner_threshold", "actor_threshold", "critic_threshold"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0.0 <= value < 1.0:
                raise DataError(
                    f"{name}={value!r} came, expected a number of at least 0 and less than 1."
                )
        for name, least in (("top_k", 1), ("history", 0), ("state_titles", 1), ("reasks", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise DataError(
                    f"{name}={value!r} came, expected a whole number of {least} or more."
                )


@dataclass(frozen=True)
class Kit:
    """What the roles of an agent are made with.

    Attributes:
        book: The prompts of the domain.
        call: Asks the model.
        counter: Counts tokens of prompts.
        budget: The most tokens of a prompt.
        categories: Of the catalogue, most frequent first.
        embedder: Of the memories' keys.
        settings: Of the agent.
    """

    book: PromptBook
    call: Call
    counter: TokenCounter
    budget: int
    categories: Sequence[str]
    embedder: Embedder
    settings: AgentSettings = field(default_factory=AgentSettings)

    def planner(self) -> Planner:
        """Returns the role that guides (eq. 5)."""
        return Planner(self.asking)

    def actor(self, *, think: bool) -> Actor:
        """Returns the role that names an item (eq. 7).

        Args:
            think: Whether it says a thought before.
        """
        return Actor(self.asking, think)

    def critic(self) -> Critic:
        """Returns the role that values states (eq. 10)."""
        return Critic(self.asking, self.settings.gamma)

    def reflector(self) -> Reflector:
        """Returns the role that looks back on a session (eq. 2)."""
        return Reflector(self.asking)

    @property
    def asking(self) -> Asking:
        """What the roles are made with."""
        return Asking(
            self.book, self.call, self.counter, self.budget, self.categories, self.settings.reasks
        )

    def memory(self, threshold: float) -> VectorMemory:
        """Returns an empty memory.

        Args:
            threshold: In [0, 1).
        """
        return VectorMemory(self.embedder, threshold=threshold, top_k=self.settings.top_k)


@dataclass(frozen=True)
class Memories:
    """The three memories; an agent has those that its roles use.

    Attributes:
        reflections: M_P: state at the end of a session -> reflection (eq. 3, 4).
        experiences: M_A: state -> item, encouraged or discouraged (eq. 6).
        values: M_C: state -> value (eq. 9).
    """

    reflections: VectorMemory | None = None
    experiences: VectorMemory | None = None
    values: VectorMemory | None = None

    def save(self, folder: str | Path) -> None:
        """Writes each memory into a folder of its own, each whole or not at all.

        Args:
            folder: Where to.
        """
        for name in _MEMORIES:
            memory: VectorMemory | None = getattr(self, name)
            if memory is not None:
                memory.save(Path(folder) / name)

    def with_entries(
        self, entries: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
    ) -> Memories:
        """Returns these memories after entries have been added to those that are there.

        Args:
            entries: Name of a memory -> keys and values, as
                `llm_expert.recorded.recorded_memories` gives them.
        """
        for name in _MEMORIES:
            memory: VectorMemory | None = getattr(self, name)
            if memory is not None and entries.get(name):
                memory.add([key for key, _ in entries[name]], [value for _, value in entries[name]])
        return self

    def with_contents_of(self, folder: str | Path, embedder: Embedder) -> Memories:
        """Returns the same kinds of memories with what an earlier run remembered.

        Args:
            folder: What `save` wrote.
            embedder: Of the keys.

        Raises:
            ArtefactError: One of them is broken or of another embedder.
        """
        found: dict[str, VectorMemory] = {}
        for name in _MEMORIES:
            mine: VectorMemory | None = getattr(self, name)
            if mine is not None and (Path(folder) / name).is_dir():
                kept = VectorMemory.load(Path(folder) / name, embedder)
                kept.threshold, kept.top_k = mine.threshold, mine.top_k
                found[name] = kept
        return replace(self, **found)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the memories that are there."""
        return tuple(name for name in _MEMORIES if getattr(self, name) is not None)


@dataclass(frozen=True)
class Agent:
    """Roles and memories that recommend together; `llm_expert.play.play` lets it recommend.

    Attributes:
        name: For tables.
        actor: Names the item.
        planner: Guides the actor; None: no guidance.
        critic: Values states; None: no values, and nothing becomes encouraged or discouraged.
        reflector: Looks back on sessions; None: no reflections.
        memories: Those that the roles use.
        settings: As it was made with.
    """

    name: str
    actor: Actor
    planner: Planner | None = None
    critic: Critic | None = None
    reflector: Reflector | None = None
    memories: Memories = field(default_factory=Memories)
    settings: AgentSettings = field(default_factory=AgentSettings)


class CachedEmbedder:
    """Remembers the vectors of texts: a state's text is asked for by three memories and the file.

    Args:
        embedder: Does the work.

    Attributes:
        identity: What tells the embedder from others; "" where it does not say.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.identity = str(getattr(embedder, "identity", ""))
        self._known: dict[str, npt.NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Returns (n, d) float32, as the embedder gives it."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        if missing or not texts:
            vectors = self._embedder.embed(missing)
            if not texts:
                return vectors
            if len(self._known) > _KEPT_TEXTS:
                kept = {text: self._known[text] for text in texts if text in self._known}
                self._known = kept
            self._known.update(zip(missing, vectors, strict=True))
        return np.stack([self._known[text] for text in texts])


AgentMaker = Callable[[Kit], Agent]
"""Makes an agent of a kit."""
