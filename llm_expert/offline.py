"""A stand-in for a chat model that needs no network and no weights.

`OfflineChatModel` is not a language model. It reads the rendered prompt line by line, looks up the
titles in what is publicly known of the catalogue and fills in a sentence. It is there so that every
part of a run (prompts, calls, parsers, memories, grounding, files) works and can be tested
anywhere, the same way each time. Numbers obtained with it say nothing about language models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from numpy.typing import NDArray
from pydantic import Field, InstanceOf

from llm_expert.errors import LLMError
from llm_expert.prompting import one_line, quote
from recsim_env.errors import DataError
from recsim_env.prepare import Prepared
from recsim_env.text import normalise_title

__all__ = ["Knowledge", "OfflineChatModel", "RecordedChatModel"]

Floats = NDArray[np.float32]
Role = Literal["planner", "actor", "critic", "reflector"]

_APOLOGY = "I am sorry, but I cannot tell what I am asked to do here."
_TITLE_LIMIT = 200
"""Characters of a title that is said."""
_KEY_LIMIT = 80
"""Characters by which a title is known: prompts cut long titles."""
_NAME_LIMIT = 60
"""The same of a category."""
_LATELY = 10
"""How many of the last steps it looks back on."""
_LATELY_AFTER_REFLECTION = 40
"""The same once a reflection has said that variety was missing."""
_OFTEN = 2
"""How many times lately are often."""
_MAX_REST = 8
"""How many categories guidance lets rest, at most."""
_CANDIDATES = 12
"""From how many of the best items a recommendation is drawn."""
_TEMPERATURE = 0.15

_STRING = r'"(?:[^"\\]|\\.)*"'
_NUMBER = r"-?\d{1,6}(?:\.\d{1,6})?"
_DECODER = json.JSONDecoder(strict=False)
_STRINGS = re.compile(_STRING)
_TASK = re.compile(r"^### Task[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"### ([A-Z][a-z]+(?: [a-z]+)?)\s*")
_HISTORY = re.compile(rf"\s*\d+\.\s*({_STRING})(?:\s*\(rated\s+({_NUMBER})\))?")
_SESSION = re.compile(
    rf"\s*\d+\.\s*({_STRING})\s*(?:\[((?:{_STRING}[,\s]*)*)\])?\s*(?:\(asked for {_STRING}\))?"
    rf"\s*->\s*rating\s+({_NUMBER})(,\s*the user left)?"
)
_SIMILAR = re.compile(rf"\s*-\s*value\s+({_NUMBER})\s*:")
_RANGE = re.compile(rf"between\s+({_NUMBER})\s+and\s+({_NUMBER})")
_FORMAT = re.compile(
    r"^\W*(?:(Guidance)\s*:|(Action)\s*:\s*recommend\s*\[|(Value)\s*:|(Reflection)\s*:)",
    re.MULTILINE,
)
_ROLES: tuple[Role, ...] = ("planner", "actor", "critic", "reflector")
_THINK = re.compile(r"^\W*Thought\s*:", re.MULTILINE)
_CLAUSE = re.compile(r"[;.!?]|\bbut\b|\bwhile\b")
_REST = re.compile(
    r"\b(?:rest|avoid|less|fewer|not|never|no|stop|skip|pause|without|enough|tired|bored"
    r"|too (?:often|much|many))\b"
)
_VARIETY = re.compile(
    r"\b(?:vary|variety|varied|divers\w*|different|too often|repeat\w*|explore)\b"
)


@lru_cache(maxsize=65_536)
def _key(title: str) -> str:
    """What a title is known by: its beginning, spelling aside."""
    beginning = one_line(title, _KEY_LIMIT)
    return normalise_title(beginning) or beginning


@dataclass(frozen=True, eq=False, repr=False)
class Knowledge:
    """What anybody may know of a catalogue; nothing of users, rewards or rules.

    Args:
        titles: One per item.
        categories: Names per item.
        popularity: (n,) in [0, 1], how often an item was used, on a log scale.
        text: (n, d) vectors of the items' texts, rows of norm 1.

    Raises:
        DataError: The four do not have one row per item.
    """

    titles: Sequence[str]
    categories: Sequence[tuple[str, ...]]
    popularity: Floats
    text: Floats

    def __post_init__(self) -> None:
        lengths = {
            "titles": len(self.titles),
            "categories": len(self.categories),
            "popularity": len(self.popularity),
            "text": len(self.text),
        }
        if len(set(lengths.values())) != 1 or not self.titles:
            raise DataError(
                f"Knowledge came with {lengths} rows, expected one row per item and at least one "
                "item: take all four from one catalogue."
            )

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return f"Knowledge(n_items={len(self.titles)}, n_categories={len(self.names)})"

    @classmethod
    def of(cls, prepared: Prepared) -> Knowledge:
        """Collects titles, categories, text vectors and the use of each item in the train rows.

        Args:
            prepared: A prepared dataset. Rows that are no event in time (sampled negatives) do not
                count as use.
        """
        table, catalogue = prepared.dataset.interactions, prepared.dataset.catalogue
        rows = prepared.train_rows
        if table.order is not None:
            rows = rows & (table.order >= 0)
        used = np.log1p(np.bincount(table.items[rows], minlength=len(catalogue)))
        popularity = (used / max(float(used.max()), 1e-9)).astype(np.float32)
        return cls(catalogue.titles, catalogue.categories, popularity, prepared.text_embeddings)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all categories as prompts have them, sorted."""
        found = {one_line(name, _NAME_LIMIT) for names in self.categories for name in names}
        return tuple(sorted(found))

    @cached_property
    def columns(self) -> Mapping[str, int]:
        """Category name to column of `matrix`."""
        return {name: j for j, name in enumerate(self.names)}

    @cached_property
    def item_columns(self) -> Sequence[tuple[int, ...]]:
        """Per item the columns of its categories."""
        return [
            self.columns_of(one_line(name, _NAME_LIMIT) for name in names)
            for names in self.categories
        ]

    @cached_property
    def matrix(self) -> Floats:
        """(n, n_categories) of 0 and 1."""
        matrix = np.zeros((len(self.titles), len(self.names)), np.float32)
        for row, columns in enumerate(self.item_columns):
            matrix[row, list(columns)] = 1.0
        return matrix

    @cached_property
    def shares(self) -> Floats:
        """(n, n_categories), rows of `matrix` divided by their sums."""
        shares: Floats = self.matrix / np.maximum(self.matrix.sum(1, keepdims=True), 1.0)
        return shares

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Normalised beginning of a title to the first item that has it."""
        return {_key(title): i for i, title in reversed(list(enumerate(self.titles)))}

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 (hex) of all that is known; two models that know the same are one to a cache."""
        digest = hashlib.sha256()
        digest.update(_bytes(json.dumps([list(self.titles), [list(c) for c in self.categories]])))
        digest.update(np.ascontiguousarray(self.popularity, "<f4").tobytes())
        digest.update(np.ascontiguousarray(self.text, "<f4").tobytes())
        return digest.hexdigest()

    def find(self, title: str) -> int | None:
        """Returns the item with this title, spelling aside, or None."""
        return self.positions.get(_key(title))

    def columns_of(self, names: Iterable[str]) -> tuple[int, ...]:
        """Returns the columns of the names, as prompts have them, that are categories."""
        return tuple(self.columns[name] for name in names if name in self.columns)


@dataclass(frozen=True)
class _Seen:
    """A line of the history or of the session."""

    title: str
    item: int | None
    columns: tuple[int, ...]
    rating: float | None = None
    left: bool = False


@dataclass(frozen=True)
class _Page:
    """What a prompt says."""

    role: Role
    think: bool
    again: bool
    low: float
    high: float
    history: tuple[_Seen, ...]
    session: tuple[_Seen, ...]
    guidance: str
    encouraged: tuple[str, ...]
    discouraged: tuple[str, ...]
    reflections: tuple[str, ...]
    values: tuple[float, ...]
    categories: tuple[str, ...]

    @property
    def misses_variety(self) -> bool:
        """Whether a reflection says that sessions lacked variety."""
        return any(_VARIETY.search(text.lower()) for text in self.reflections)

    def lately(self) -> tuple[_Seen, ...]:
        """Returns the steps that it looks back on."""
        return self.session[-(_LATELY_AFTER_REFLECTION if self.misses_variety else _LATELY) :]


class OfflineChatModel(BaseChatModel):
    """Answers rendered prompts from catalogue statistics and text similarity; see the module.

    The answer is a function of the seed and the messages, whatever was asked before; a call may
    bring a `seed` of its own. It knows
    nothing but the prompt and its `Knowledge`: no rule that ends sessions and no reward model.
    Prompts that it cannot read get an apology.

    Args:
        knowledge: Public facts about the catalogue.
        seed: Another seed gives other answers.
        invent: Share of recommendations that name a title which is not in the catalogue, in [0, 1].
        break_format: Share of first answers that are not in the asked format, in [0, 1]; when it is
            asked again it keeps to the format.
    """

    knowledge: InstanceOf[Knowledge] = Field(repr=False, exclude=True)
    seed: int = 0
    invent: float = Field(default=0.1, ge=0.0, le=1.0)
    break_format: float = Field(default=0.02, ge=0.0, le=1.0)

    @property
    def _llm_type(self) -> str:
        return "ilrec-offline"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "knowledge": self.knowledge.fingerprint,
            "seed": self.seed,
            "invent": self.invent,
            "break_format": self.break_format,
        }

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager  # it does not stream
        texts = [message.text for message in messages]
        seed = kwargs.get("seed", self.seed)
        model = self if seed == self.seed else self.model_copy(update={"seed": seed})
        text = model.answer(messages)
        for end in stop or ():
            text = text.split(end, 1)[0] if end else text
        asked, said = sum(len(_bytes(part)) for part in texts), len(_bytes(text))
        usage = UsageMetadata(input_tokens=asked, output_tokens=said, total_tokens=asked + said)
        message = AIMessage(text, usage_metadata=usage, response_metadata={"model_name": "offline"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        return self._generate(messages, stop, **kwargs)

    def answer(self, messages: Sequence[BaseMessage]) -> str:
        """Returns the answer to rendered messages.

        Args:
            messages: Any messages. What counts is the last human message with a Task section; a
                later human message says that the answer to it was not in the format.
        """
        page = _read(messages, self.knowledge)
        if page is None:
            return _APOLOGY
        rng = _generator(self.seed, messages)
        breaks, invents = rng.random(2) < (self.break_format, self.invent)
        if breaks and not page.again:
            return _broken(page, self.knowledge, rng)
        if page.role == "planner":
            return f"Guidance: {_plan(page, self.knowledge, rng)}"
        if page.role == "critic":
            return f"Value: {_value(page, self.knowledge, rng):.2f}"
        if page.role == "reflector":
            return f"Reflection: {_reflect(page, self.knowledge, rng)}"
        title = self.knowledge.titles[_choose(page, self.knowledge, rng)]
        if invents:
            title = _invented(title, self.knowledge, rng)
        action = f"Action: recommend[{quote(title, _TITLE_LIMIT)}]"
        return f"Thought: {_thought(page, self.knowledge)}\n{action}" if page.think else action


class RecordedChatModel(BaseChatModel):
    """Stands for a model in a replay: everything is known of it, and it cannot be asked.

    Args:
        spec: Of the model that it stands for.
    """

    spec: str

    @property
    def _llm_type(self) -> str:
        return "ilrec-recorded"

    def _generate(
        self,
        messages: list[BaseMessage],  # noqa: ARG002 (LangChain's signature)
        stop: list[str] | None = None,  # noqa: ARG002
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> ChatResult:
        raise LLMError(
            f"{self.spec} was made for a replay and got a question, expected answers from the "
            "record alone: make it without `replay`, or ask it through Caller(..., replay=True)."
        )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _generator(seed: int, messages: Sequence[BaseMessage]) -> np.random.Generator:
    """Returns a generator that depends on the seed and the messages' kinds and texts only."""
    content = json.dumps([seed, [[message.type, message.text] for message in messages]])
    return np.random.default_rng(
        np.frombuffer(hashlib.sha256(_bytes(content)).digest(), dtype="<u4").tolist()
    )


def _listed(names: Iterable[str]) -> str:
    """Returns '"a", "b" and "c"'."""
    quoted = [quote(name) for name in names]
    return " and ".join(part for part in (", ".join(quoted[:-1]), *quoted[-1:]) if part)


# Reading a prompt


def _read(messages: Sequence[BaseMessage], knowledge: Knowledge) -> _Page | None:
    """Returns what the last message with a Task section says, or None where there is none."""
    humans = [message.text for message in messages if isinstance(message, HumanMessage)]
    for later, text in enumerate(reversed(humans)):
        tasks = list(_TASK.finditer(text))
        if tasks:
            return _read_page(text[: tasks[-1].start()], text[tasks[-1].end() :], later, knowledge)
    return None


def _read_page(state: str, task: str, later: int, knowledge: Knowledge) -> _Page | None:
    formats = list(_FORMAT.finditer(task))
    if not formats:
        return None
    role = _ROLES[next(k for k, group in enumerate(formats[-1].groups()) if group)]
    sections = _sections(state)
    bounds = _RANGE.search(task)
    low, high = (float(bounds[1]), float(bounds[2])) if bounds else (0.0, 10.0)
    similar = (_SIMILAR.match(line) for line in sections.get("Similar states", ()))
    return _Page(
        role=role,
        think=bool(_THINK.search(task)),
        again=later > 0,
        low=min(low, high),
        high=max(low, high),
        history=tuple(_read_history(sections.get("History", ()), knowledge)),
        session=tuple(_read_session(sections.get("Session", ()), knowledge)),
        guidance=" ".join(_texts(sections.get("Guidance", ()))),
        encouraged=tuple(_texts(sections.get("Encouraged", ()))),
        discouraged=tuple(_texts(sections.get("Discouraged", ()))),
        reflections=tuple(_texts(sections.get("Reflections", ()))),
        values=tuple(float(found[1]) for found in similar if found),
        categories=tuple(_texts(sections.get("Categories", ()))),
    )


def _sections(state: str) -> dict[str, list[str]]:
    """Returns the lines under each heading."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in state.split("\n"):
        heading = _HEADING.fullmatch(line)
        if heading:
            lines = sections.setdefault(heading[1], [])
        else:
            lines.append(line)
    return sections


@lru_cache(maxsize=16_384)
def _text(quoted: str) -> str:
    """Returns the text of a JSON string, as it stands where it is not valid JSON."""
    try:
        return str(_DECODER.decode(quoted))
    except ValueError:
        return quoted[1:-1]


def _texts(lines: Iterable[str]) -> list[str]:
    return [_text(found) for line in lines for found in _STRINGS.findall(line)]


def _read_history(lines: Iterable[str], knowledge: Knowledge) -> Iterator[_Seen]:
    for line in lines:
        found = _HISTORY.match(line)
        if found:
            title = _text(found[1])
            item = knowledge.find(title)
            columns = () if item is None else knowledge.item_columns[item]
            yield _Seen(title, item, columns, _rating(found[2]) if found[2] else None)


def _read_session(lines: Iterable[str], knowledge: Knowledge) -> Iterator[_Seen]:
    for line in lines:
        found = _SESSION.match(line)
        if found:
            title = _text(found[1])
            columns = knowledge.columns_of(_texts([found[2] or ""]))
            yield _Seen(title, knowledge.find(title), columns, _rating(found[3]), bool(found[4]))


def _rating(number: str) -> float:
    return min(5.0, max(1.0, float(number)))


def _wishes(text: str, knowledge: Knowledge) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the columns of categories that a text asks for, and of those that it warns of.

    The quoted names of a clause are warned of where the clause has a word such as "rest".
    """
    wanted: list[str] = []
    warned: list[str] = []
    words, names = "", list[str]()
    # Splitting by a group: texts between strings at even places, strings at odd places.
    for place, part in enumerate(re.split(f"({_STRING})", text)):
        if place % 2:
            names.append(_text(part))
            continue
        first, *others = _CLAUSE.split(part.lower())
        words += " " + first
        for other in others:
            (warned if _REST.search(words) else wanted).extend(names)
            words, names = other, []
    (warned if _REST.search(words) else wanted).extend(names)
    rest = knowledge.columns_of(warned)
    return tuple(c for c in knowledge.columns_of(wanted) if c not in rest), rest


# Thinking about it


def _weights(page: _Page) -> list[tuple[_Seen, float]]:
    """Returns what the user has seen and how much it was liked, about -1 to 1."""
    ratings = [seen.rating for seen in page.session if seen.rating is not None]
    mean = (6.0 + sum(ratings)) / (2 + len(ratings))
    weighted = [
        (seen, 0.5 if seen.rating is None else (seen.rating - 3.0) / 2) for seen in page.history
    ]
    return weighted + [(seen, (seen.rating or mean) - mean) for seen in page.session]


def _taste(page: _Page, knowledge: Knowledge) -> Floats:
    """Returns (n_categories,) how much the user likes each category, about -1 to 1; 0 unknown."""
    total = np.zeros(len(knowledge.names), np.float32)
    count = np.full(len(knowledge.names), 2.0, np.float32)
    for seen, weight in _weights(page):
        for column in seen.columns:
            total[column] += weight
            count[column] += 1.0
    return np.asarray(total / count, np.float32)


def _counts(steps: Iterable[_Seen], knowledge: Knowledge) -> Floats:
    """Returns (n_categories,) how often each category was shown in steps."""
    counts = np.zeros(len(knowledge.names), np.float32)
    for seen in steps:
        counts[list(seen.columns)] += 1.0
    return counts


def _likeness(page: _Page, knowledge: Knowledge) -> Floats:
    """Returns (n,) cosine of each item's text with the liked less the disliked ones."""
    liked = [(seen.item, weight) for seen, weight in _weights(page) if seen.item is not None]
    if not liked:
        return np.zeros(len(knowledge.titles), np.float32)
    items, weights = zip(*liked, strict=True)
    direction = np.asarray(weights, np.float32) @ knowledge.text[list(items)]
    return np.asarray(
        knowledge.text @ (direction / max(float(np.linalg.norm(direction)), 1e-6)), np.float32
    )


def _scores(page: _Page, knowledge: Knowledge) -> Floats:
    """Returns (n,) how well each item seems to suit; some words weigh more than taste."""
    taste = _taste(page, knowledge)
    wanted, rest = _wishes(page.guidance, knowledge)
    taste[list(wanted)] += 1.0
    for titles, sign in ((page.encouraged, 0.2), (page.discouraged, -0.2)):
        items = [item for item in map(knowledge.find, titles) if item is not None]
        taste += np.float32(sign) * knowledge.shares[items].sum(axis=0)
    scores = (
        1.5 * (knowledge.shares @ taste)
        + 0.5 * _likeness(page, knowledge)
        + 0.6 * knowledge.popularity
    )
    # Who writes a thought first notices a little more of what was shown, and who is told that
    # variety was missing more still; guidance says the rest.
    care = 0.1 * page.think + 0.2 * page.misses_variety
    tired = care * _counts(page.lately(), knowledge)
    tired[list(rest)] += 2.0
    return np.asarray(scores - (knowledge.matrix * tired).max(axis=1, initial=0.0), np.float32)


def _choose(page: _Page, knowledge: Knowledge, rng: np.random.Generator) -> int:
    """Returns an item: one of the best few that the user has not seen, the better the likelier."""
    scores = _scores(page, knowledge)
    for past in (page.history, page.session):
        scores[[seen.item for seen in past if seen.item is not None]] -= 100.0
    few = min(_CANDIDATES, len(scores))
    best = np.sort(np.argpartition(-scores, few - 1)[:few])
    return int(best[np.argmax(scores[best] / _TEMPERATURE + rng.gumbel(size=few))])


def _often(page: _Page, knowledge: Knowledge) -> list[str]:
    """Returns the categories that were shown often lately, most often first."""
    counts = _counts(page.lately(), knowledge)
    order = np.argsort(-counts, kind="stable")
    return [knowledge.names[c] for c in order if counts[c] >= _OFTEN]


def _liked(page: _Page, knowledge: Knowledge) -> list[str]:
    """Returns the categories that the user seems to like, best first."""
    taste = _taste(page, knowledge)
    order = np.argsort(-taste, kind="stable")
    return [knowledge.names[c] for c in order if taste[c] > 0.0]


def _invented(title: str, knowledge: Knowledge, rng: np.random.Generator) -> str:
    """Returns a title made of a real one that is not in the catalogue."""
    base = one_line(title, _KEY_LIMIT // 2)
    ideas = [f"{base} 2", f"{base}: Definitive Edition", f"Return to {base}", f"{base} Untold"]
    rng.shuffle(ideas)
    ideas += [f"{base} {number}" for number in range(3, 4 + len(knowledge.titles))]
    return next(idea for idea in ideas if knowledge.find(idea) is None)


# Saying it


def _thought(page: _Page, knowledge: Knowledge) -> str:
    wanted, rest = _wishes(page.guidance, knowledge)
    if wanted or rest:
        return (
            f"The plan is to go for {_listed(knowledge.names[c] for c in wanted) or 'other things'}"
            ", so I look for a title of that kind."
        )
    liked = _liked(page, knowledge)[:2]
    if liked:
        return f"The user seems to like {_listed(liked)}, so I recommend more of that."
    return "Little is known of the user, so I recommend something that many people like."


def _plan(page: _Page, knowledge: Knowledge, rng: np.random.Generator) -> str:
    """Returns guidance: categories to go for, and those that should rest."""
    offered = [name for name in page.categories if name in knowledge.columns] or knowledge.names
    rest = [name for name in _often(page, knowledge) if name in offered][:_MAX_REST]
    taste, shown = _taste(page, knowledge), _counts(page.lately(), knowledge)
    explore = 0.5 if page.misses_variety else 0.2
    appeal = {
        name: taste[c] - explore * shown[c] + 0.1 * rng.random()
        for name, c in ((name, knowledge.columns[name]) for name in offered)
        if name not in rest
    }
    prefer = sorted(appeal, key=lambda name: -appeal[name])[: 3 if page.misses_variety else 2]
    parts = [f"go for {_listed(prefer)}"] if prefer else []
    if rest:
        parts.append(f"let {_listed(rest)} rest for a while")
    sentence = "; ".join(parts) or "show what many people like"
    return sentence[0].upper() + sentence[1:] + "."


def _value(page: _Page, knowledge: Knowledge, rng: np.random.Generator) -> float:
    """Returns the expected discounted sum of ratings: mean rating, boredom, similar states."""
    steps = page.session
    if steps and steps[-1].left:
        return page.low
    ratings = [seen.rating for seen in steps if seen.rating is not None]
    mean = (2 * 3.5 + sum(ratings)) / (2 + len(ratings))
    repeats = float(_counts(steps[-8:], knowledge).max(initial=0.0))
    drop = mean - sum(ratings[-2:]) / len(ratings[-2:]) if ratings else 0.0
    boredom = min(1.0, max(0.0, (repeats - 1.0) / 6.0 + drop / 4.0))
    # A mean rating of 5 for ever is worth the upper end of the range.
    value = page.low + (page.high - page.low) * mean / 5.0 * (1.0 - 0.6 * boredom)
    if page.values:
        value = 0.7 * value + 0.3 * sum(page.values) / len(page.values)
    value += 0.02 * (page.high - page.low) * (rng.random() - 0.5)
    return min(page.high, max(page.low, value))


def _reflect(page: _Page, knowledge: Knowledge, rng: np.random.Generator) -> str:
    """Returns what a session showed and what to do next time."""
    steps = page.session
    if not steps:
        return "Nothing was shown, so begin with what many people like."
    best = max(steps, key=lambda seen: seen.rating or 0.0)
    praise = f"{quote(best.title)} was rated best"
    often = _often(page, knowledge)[:2]
    if steps[-1].left and often:
        counts = _counts(steps, knowledge)
        fresh = [name for name in knowledge.names if counts[knowledge.columns[name]] == 0]
        idea = f" and try {quote(fresh[rng.integers(len(fresh))])}" if fresh else ""
        return (
            f"The categories {_listed(often)} came too often before the user left; {praise}. "
            f"Next time vary the categories sooner{idea}."
        )
    if steps[-1].left:
        return (
            f"The user left after {quote(steps[-1].title)}; {praise}. Next time stay closer "
            "to what the user likes."
        )
    return f"The user stayed to the end; {praise}. Next time go on in the same way."


def _broken(page: _Page, knowledge: Knowledge, rng: np.random.Generator) -> str:
    """Returns an answer that is not in the format, as models give them."""
    if page.role != "actor":
        return (
            "Sure, I can help with that! Could you tell me a little more about the user first?",
            "Hmm, that depends on many things.",
            "As an assistant I would rather not say.",
        )[rng.integers(3)]
    title = quote(knowledge.titles[_choose(page, knowledge, rng)])
    return (
        f"I think the user would enjoy {title}. Have fun!",
        json.dumps({"thought": "more of the same", "item": json.loads(title)}),
        "Thought: Let me think about it first.",
        "Action: recommend[]",
    )[rng.integers(4)]
