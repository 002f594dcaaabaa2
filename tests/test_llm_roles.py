from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from llm_expert.actor import Action, Actor, parse_action
from llm_expert.asking import Asked, Asking
from llm_expert.calls import Answer, Tag
from llm_expert.critic import Critic, advantage, highest_value, parse_value
from llm_expert.errors import FormatError, PromptTooLongError, RateLimitError
from llm_expert.planner import Planner, parse_guidance
from llm_expert.prompting import PromptBook
from llm_expert.reflector import Reflector, parse_reflection
from llm_expert.scratchpad import HistoryItem, Scratchpad, ShownItem
from llm_expert.tokens import count_messages, make_counter
from recsim_env.errors import DataError

BYTES = make_counter("bytes")
PLENTY = 10**6


class Scripted:
    """A Call that says one answer after the other and remembers what it was asked."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.prompts: list[list[BaseMessage]] = []
        self.tags: list[Tag] = []
        self.samples: list[int] = []

    async def __call__(
        self, messages: Sequence[BaseMessage], *, tag: Tag, sample: int = 0
    ) -> Answer:
        self.prompts.append(list(messages))
        self.tags.append(tag)
        self.samples.append(sample)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, f"hash{len(self.prompts)}", 10, 5, 0.0, cached=False)


def pad() -> Scratchpad:
    return Scratchpad(
        [HistoryItem("Portal", 4.5)], [ShownItem("Rust 2", "Rust", ("Action", "Indie"), 4.1)]
    )


def role(kind: Callable[..., Any], call: Scripted, budget: int = PLENTY, **options: Any) -> Any:
    reasks = options.pop("reasks", 2)
    asking = Asking(PromptBook.load("games"), call, BYTES, budget, ("Action", "RPG"), reasks)
    return kind(asking, **options)


# equations


def test_advantage() -> None:
    # 4 + 0.5 * 6 - 6.5 (eq. 11)
    assert advantage(4.0, 6.5, 6.0, 0.5) == pytest.approx(0.5)
    # the session ends with this action: nothing follows
    assert advantage(2.0, 6.5, 0.0, 0.5) == pytest.approx(-4.5)


def test_the_highest_value() -> None:
    assert highest_value(0.5) == pytest.approx(10.0)
    assert highest_value(0.0) == 5.0
    for gamma in (1.0, -0.1, float("nan")):
        with pytest.raises(DataError, match=r"gamma=.*less than 1"):
            highest_value(gamma)


# parsers

ACTIONS = [
    ('Thought: t\nAction: recommend["Portal 2"]', "t", "Portal 2"),
    ('Action: recommend["Portal 2"]', "", "Portal 2"),
    ('  action :  RECOMMEND [ "Portal 2" ] .', "", "Portal 2"),
    ("Action: recommend[Portal 2]", "", "Portal 2"),
    ("Action: recommend['Portal 2']", "", "Portal 2"),
    ("Action: recommend[“Portal 2”]", "", "Portal 2"),
    ('Action: recommend("Portal 2")', "", "Portal 2"),
    ("Action: recommend(Ico (2001))", "", "Ico (2001)"),
    ("Action: recommend[Portal 2] (a great game)", "", "Portal 2"),
    ('Action: recommend "Portal 2"', "", "Portal 2"),
    ('Action: I would recommend "Portal 2".', "", "Portal 2"),
    ("Action: Portal 2", "", "Portal 2"),
    ("Action: Ico (2001)", "", "Ico (2001)"),
    ("Action: [Portal 2]", "", "Portal 2"),
    ('Action: "Portal 2"', "", "Portal 2"),
    ("Action\uff1arecommend[Portal 2]", "", "Portal 2"),
    ('**Thought:** so\n**Action:** recommend["Portal 2"]', "so", "Portal 2"),
    ('**Action**: `recommend["Portal 2"]`', "", "Portal 2"),
    ('1. Thought: so\n2. Action: recommend["Portal 2"]', "so", "Portal 2"),
    ('> Action: recommend["Portal 2"]', "", "Portal 2"),
    ('Thought:\nso it\nis\nAction:\nrecommend["Portal 2"]', "so it is", "Portal 2"),
    ('Sure! I recommend["Portal 2"] today.', "", "Portal 2"),
    ('Action: recommend["Rust"]\nAction: recommend["Portal 2"]\nEnjoy!', "", "Portal 2"),
    ('Thought: Action: x\nAction: recommend["Portal 2"]\nI may recommend (later)', "Action: x", ""),
    ('Action: recommend["Portal 2"], recommend["Rust"]', "", "Portal 2"),
    (r'Action: recommend["Say recommend[\"Rust\"]"]', "", 'Say recommend["Rust"]'),
    ("Action: recommend[Obey: Action: recommend[Rust]]", "", "Obey: Action: recommend[Rust]"),
    ('Action: recommend["Portal 2", "Rust"]', "", "Portal 2"),
    (r'Action: recommend["Say \"Hi\" \u00e9"]', "", 'Say "Hi" é'),
    ('Action: recommend["The "Best" Game"]', "", 'The "Best" Game'),
    ('Action: recommend["Portal 2]', "", "Portal 2"),
    (r'Action: recommend["C:\Games"]', "", r"C:\Games"),
    ('Action: recommend["NieR [Remastered]"]', "", "NieR [Remastered]"),
    ("Action: recommend[NieR [Remastered]]", "", "NieR [Remastered]"),
    ('Action: recommend["#Funtime"]', "", "#Funtime"),
    ('{\n "thought": "so",\n "action": "Portal 2"\n}', '"so",', "Portal 2"),
    ('{"action": "recommend[\\"Portal 2\\"]"}', "", "Portal 2"),
    ('Action: recommend["TITLE"]\nAction: recommend["Portal 2"]', "", "Portal 2"),
    ('Action: recommend["Portal 2"]\nAction: recommend["TITLE"]', "", "Portal 2"),
    ('<think>Action: recommend["No"]</think>Action: recommend["Portal 2"]', "", "Portal 2"),
    (r'Action: recommend["a\u202eb\nc\ud800"]', "", "ab c\ufffd"),
    ('Action: recommend["' + "x" * 5_000 + '"]', "", "x" * 200),
    ('Action: recommend["' + r"\u0041" * 300 + '"]', "", "A" * 200),
]


@pytest.mark.parametrize(("text", "thought", "title"), ACTIONS, ids=range(len(ACTIONS)))
def test_actions(text: str, thought: str, title: str) -> None:
    assert parse_action(text) == Action(thought, title or "Portal 2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I am sorry, but I cannot.",
        'Thought: ...\nAction: recommend["TITLE"]',
        'Action: recommend[""]',
        "Action: recommend[]",
        "Action: recommend",
        "Action:",
        "Action: ...",
        'Portal 2 is what I would say. "Portal 2"',
    ],
)
def test_no_action(text: str) -> None:
    with pytest.raises(FormatError, match=r"recommend\[\"TITLE\"\]"):
        parse_action(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Value: 6.5", 6.5),
        ("value:6", 6.0),
        ("**Value:** 6.5", 6.5),
        ("**Value**: **6.5**", 6.5),
        ("Value = 6.5", 6.5),
        ("Value: 6.5/10", 6.5),
        ("Value: 6,5", 6.5),
        ("Value: about 7 out of 10.", 7.0),
        ("Value:\n\n.5", 0.5),
        ("The session goes well.\nValue: 3\nValue: 6.5\nThat is all.", 6.5),
        ("Value: 3\nValue: unknown", 3.0),
        ("6.5", 6.5),
        (" **6.5** ", 6.5),
        ('{"value": 6.5}', 6.5),
        ("Value: 0", 0.0),
        ("Value: 10", 10.0),
        ("Value: 10.0005", 10.0),
        ("Value: -0.0005", 0.0),
    ],
)
def test_values(text: str, value: float) -> None:
    assert parse_value(text, 10.0) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no number"),
        ("Value: NUMBER", "no number"),
        ("Value: nan", "no number"),
        ("Value: high", "no number"),
        ("I would say 7 of them", "no number"),
        ("Value: 10,000", "no plain number"),
        ("Value: 1.2.3", "no plain number"),
        ("Value: 10.1", "between 0 and 10"),
        ("Value: -1", "between 0 and 10"),
        ("Value: −1", "between 0 and 10"),
        ("Value: " + "9" * 100_000, "between 0 and 10"),
    ],
)
def test_no_value(text: str, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        parse_value(text, 10.0)


TEXTS = [
    ("{}: Show an RPG.", "Show an RPG."),
    ("  **{}:**   Show an RPG.  ", "Show an RPG."),
    ('{}: "Show an RPG."', "Show an RPG."),
    ('{}: Rest "Action", show "RPG"', 'Rest "Action", show "RPG"'),
    ("### {}\n{}: Show\nan RPG.\n\nI hope this helps!", "Show an RPG."),
    ("{}:\n\nShow an RPG.", "Show an RPG."),
    ("Of course.\n{}: one\n{}: Show an RPG.", "Show an RPG."),
    ("{}: Show an RPG.\n{}: ...", "Show an RPG."),
    ("{}: Show\u2028an \u202eRPG.\x00", "Show an RPG."),
    ("{}: " + "x" * 5_000, "x" * 1_000),
]


@pytest.mark.parametrize(("text", "found"), TEXTS, ids=range(len(TEXTS)))
def test_guidance_and_reflections(text: str, found: str) -> None:
    assert parse_guidance(text.replace("{}", "Guidance")) == found
    assert parse_reflection(text.replace("{}", "REFLECTION")) == found


@pytest.mark.parametrize("text", ["", "Show an RPG.", "Guidance: ...", "Guidance:", "Value: 3"])
def test_no_guidance(text: str) -> None:
    with pytest.raises(FormatError, match="'Guidance:'"):
        parse_guidance(text)
    with pytest.raises(FormatError, match="'Reflection:'"):
        parse_reflection(text.replace("Guidance", "Reflection"))


PARSERS: list[Callable[[str], Any]] = [
    parse_action,
    parse_guidance,
    parse_reflection,
    lambda text: parse_value(text, 10.0),
]
VALID = [
    *(text for text, _, _ in ACTIONS),
    "Value: 6.5",
    "Guidance: Show an RPG.",
    "Reflection: Too much action.",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid answer with some of it cut, doubled or overwritten."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        junk = draw(st.one_of(st.text(max_size=6), st.text('[]()"\\:*\n', max_size=6)))
        text = text[:start] + junk + text[end:] + draw(st.sampled_from(["", text[start:end]]))
    return text


def check_any(text: str) -> None:
    for parse in PARSERS:
        try:
            value = parse(text)
        except FormatError as error:
            assert len(str(error)) < 200  # noqa: PT017
            continue
        said = [value.title, value.thought] if isinstance(value, Action) else [value]
        if isinstance(value, float):
            assert 0.0 <= value <= 10.0
            continue
        for part, limit in zip(said, (200 if len(said) == 2 else 1_000, 1_000), strict=False):
            part.encode()
            assert len(part) <= limit
            assert len(part.splitlines()) <= 1
        assert said[0]


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=200), mutated()))
@example("Action: recommend[")
@example('Action: recommend["\\ud800"]')
@example("Value: -")
@example("Value: −.")
@example("Guidance: \u2028\u2029")
def test_any_answer_is_a_value_or_a_format_error(text: str) -> None:
    check_any(text)


@pytest.mark.parametrize(
    "unit",
    [
        "recommend[",
        'recommend[""',
        'Action: recommend["" ',
        "Action: ",
        "Action:\n",
        "Value: \n",
        "Guidance: ...\n",
        "Thought:\n\n",
        "1. 1. 1) ",
        "* _ ` ",
        "9",
        ".,",
        '\\"',
        "\u202e",
        "<think>",
        "</think>",
        "\n",
        "x ",
    ],
)
def test_long_answers_are_read_in_linear_time(unit: str) -> None:
    def seconds(length: int, start: str, end: str, parse: Callable[[str], Any]) -> float:
        whole = start + (unit * (length // len(unit) + 1))[:length] + end
        started = time.process_time()
        with contextlib.suppress(FormatError):
            parse(whole)
        return time.process_time() - started

    for ends in (("", ""), ("Value: ", ""), ('Action: recommend["', ""), ("<think>", "</think>")):
        for parse in PARSERS:
            short = min(seconds(10_000, *ends, parse) for _ in range(3))
            # ten times as long; what grows with the square would take a hundred times as long
            assert min(seconds(100_000, *ends, parse) for _ in range(2)) < 40 * max(short, 1e-3)


# roles


def ask(kind: Callable[..., Any], call: Scripted, **options: Any) -> Asked[Any]:
    budget = options.pop("budget", PLENTY)
    given: dict[Any, tuple[Any, ...]] = {Planner: (["Vary."],), Critic: ([("Portal", 6.0)],)}
    made = role(kind, call, budget, **options)
    question = made(pad(), *given.get(kind, ()), tag=Tag(kind.__name__.lower(), 3, 4), sample=7)
    answer: Asked[Any] = asyncio.run(question)
    return answer


GOOD = [
    (Planner, "Guidance: Show an RPG.", "Show an RPG."),
    (Actor, 'Thought: so\nAction: recommend["Portal 2"]', Action("so", "Portal 2")),
    (Critic, "Value: 6.5", 6.5),
    (Reflector, "Reflection: Too much action.", "Too much action."),
]


@pytest.mark.parametrize(("kind", "text", "value"), GOOD)
def test_a_good_answer_takes_one_call(kind: type, text: str, value: object) -> None:
    call = Scripted(text)
    asked = ask(kind, call)
    assert (asked.value, asked.raw, len(asked.answers)) == (value, text, 1)
    assert asked.answers[0].prompt_hash == "hash1"
    assert call.tags == [Tag(kind.__name__.lower(), 3, 4, 0)]
    assert call.samples == [7]
    assert '"Rust" ["Action", "Indie"]' in str(call.prompts[0][-1].content)


@pytest.mark.parametrize(("kind", "text", "value"), GOOD)
def test_a_wrong_answer_is_sent_back(kind: type, text: str, value: object) -> None:
    call = Scripted("I am\nsorry \ud800", "Still sorry", text)
    asked = ask(kind, call)
    assert (asked.value, asked.raw, len(asked.answers)) == (value, text, 3)
    assert [tag.attempt for tag in call.tags] == [0, 1, 2]
    assert call.samples == [7, 7, 7]
    first, second, third = call.prompts
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    wrong, correction = second[-2:]
    assert isinstance(wrong, AIMessage)
    assert isinstance(correction, HumanMessage)
    assert wrong.content == "I am sorry \ufffd"
    assert str(first[-1].content).endswith(str(correction.content).partition("\n")[2])
    assert "### Task" not in str(correction.content)
    assert third[-2].content == "Still sorry"


@pytest.mark.parametrize(("kind", "text", "value"), GOOD)
@pytest.mark.parametrize("reasks", [0, 1, 3])
def test_asking_again_is_bounded(kind: type, text: str, value: object, reasks: int) -> None:
    call = Scripted(*["no"] * (reasks + 1), text)
    asked = ask(kind, call, reasks=reasks)
    assert (asked.value, asked.raw, len(asked.answers)) == (None, "no", reasks + 1)
    assert call.answers == [text]
    del value


def test_an_answer_of_nothing_is_not_sent_back_empty() -> None:
    call = Scripted(" \n\u200b", "Value: 1")
    assert ask(Critic, call).value == 1.0
    assert call.prompts[1][-2].content == "(nothing)"


def test_failures_of_calls_pass() -> None:
    with pytest.raises(RateLimitError):
        ask(Planner, Scripted("no", RateLimitError("Too many requests.")))


def test_reasks_stay_within_the_budget() -> None:
    fits = count_messages(BYTES, probe())
    call = Scripted("no " * 1000, "Value: 2")
    assert ask(Critic, call, budget=fits).value == 2.0
    assert "Rust" in str(call.prompts[0][-1].content)
    assert all(count_messages(BYTES, prompt) <= fits for prompt in call.prompts)


def probe() -> list[BaseMessage]:
    call = Scripted("Value: 1")
    ask(Critic, call)
    return call.prompts[0]


def test_no_room_to_ask_again_ends_the_question() -> None:
    least = len(probe()[0].content) + len("### Task\n") + 4 + 4 + 3
    script_task = PromptBook.load("games").script("critic", gamma=0.5, top=10.0).task
    least += len(script_task)
    asked = ask(Critic, Scripted("no"), budget=least)
    assert asked.value is None
    assert len(asked.answers) == 1
    with pytest.raises(PromptTooLongError, match="larger window"):
        ask(Critic, Scripted(), budget=least - 1)


def test_a_value_out_of_range_is_asked_again() -> None:
    call = Scripted("Value: 12", "Value: 9")
    assert ask(Critic, call).value == 9.0
    assert "between 0 and 10" in str(call.prompts[1][-1].content)
    assert ask(Critic, Scripted("Value: 12"), gamma=0.75).value == 12.0


def test_the_actor_shows_what_it_is_given() -> None:
    call = Scripted('Action: recommend["Portal 2"]')
    made = role(Actor, call, think=False)
    asyncio.run(
        made(
            pad(),
            guidance="Show an RPG.",
            encouraged=["Braid"],
            discouraged=["Nitro"],
            reflections=["Vary."],
            tag=Tag("actor"),
        )
    )
    text = str(call.prompts[0][-1].content)
    for part in (
        '### Guidance\n"Show an RPG."\n',
        '### Encouraged\n- "Braid"\n',
        '### Discouraged\n- "Nitro"\n',
        '### Reflections\n- "Vary."\n',
        '### Categories\n"Action", "RPG"\n',
    ):
        assert part in text
    assert "Thought" not in text


def test_settings_are_checked() -> None:
    with pytest.raises(DataError, match="reasks=-1"):
        role(Planner, Scripted(), reasks=-1)
    with pytest.raises(DataError, match=r"gamma=1\.0"):
        role(Critic, Scripted(), gamma=1.0)
