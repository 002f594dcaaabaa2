"""Agents play: who is asked what, what is remembered, and that order of answers changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import BaseMessage
from scripted import ScriptedCall, kit_for
from toy import toy_prepared

from llm_expert.agents import AGENTS, Agent, make_agent
from llm_expert.calls import Tag
from llm_expert.errors import ServerError
from llm_expert.grounding import Grounder
from llm_expert.play import PlayedSession, play
from recsim_env import Dynamics, Prepared
from recsim_env.errors import DataError
from recsim_env.termination import CategoryDiversity, Repeat
from recsim_env.text import TextEmbedder, item_documents

REPEAT = (Repeat(),)
TITLES = ("Ant", "Bee", "Cat", "Dog", "Eel", "Fox")


@pytest.fixture(scope="module")
def toy() -> Prepared:
    return toy_prepared()


@pytest.fixture(scope="module")
def embedder(toy: Prepared) -> TextEmbedder:
    return TextEmbedder(dim=4).fit(item_documents(toy.dataset.catalogue))


def speak(plan: dict[int, Sequence[str]] | None = None) -> Any:
    """Returns a model: titles by session from a plan, values that fall by one a step from 4."""

    def say(messages: Sequence[BaseMessage], tag: Tag, sample: int) -> str:
        del messages, sample
        if tag.role == "actor":
            titles = (plan or {}).get(tag.session, TITLES)
            return f'Thought: of {tag.step}\nAction: recommend["{titles[tag.step % len(titles)]}"]'
        if tag.role == "planner":
            return f"Guidance: guide {tag.session}.{tag.step}"
        if tag.role == "critic":
            return f"Value: {max(0, 4 - tag.step)}"
        return f"Reflection: looked back on session {tag.session}"

    return say


def run(
    name: str,
    call: ScriptedCall,
    toy: Prepared,
    embedder: TextEmbedder,
    users: Sequence[int],
    *,
    parallel: int = 2,
    limit: int = 3,
    rules: Any = REPEAT,
    **settings: Any,
) -> tuple[list[PlayedSession], Agent]:
    dynamics = Dynamics(toy, split="train", rules=rules, limit=limit)
    agent = make_agent(name, kit_for(toy, call, embedder, **settings))
    grounder = Grounder(toy.dataset.catalogue, embedder)
    played = play(agent, dynamics, users, grounder=grounder, parallel=parallel)
    return asyncio.run(played), agent


def test_advantages_of_a_session_that_the_limit_cuts(toy: Prepared, embedder: TextEmbedder) -> None:
    call = ScriptedCall(speak())
    (session,), agent = run("billp", call, toy, embedder, [0], limit=2)
    assert [step.item for step in session.steps] == [0, 1]
    assert [step.reward for step in session.steps] == [5.0, 4.0]
    # V is 4, 3 and, of the state in which the limit cut the session, 2
    assert session.steps[0].advantage == pytest.approx(5.0 + 0.5 * 3.0 - 4.0)
    assert session.steps[1].advantage == pytest.approx(4.0 + 0.5 * 2.0 - 3.0)
    assert (session.ended_by, session.terminated) == ("limit", False)
    assert agent.memories.values is not None
    assert agent.memories.experiences is not None
    found = agent.memories.values.recall([session.steps[0].state])[0]
    assert found[0].value == {"value": 6.5}
    remembered = agent.memories.experiences.recall([session.steps[1].state])[0]
    assert remembered[0].value == {"title": "Bee", "encouraged": True}


def test_value_is_zero_where_the_user_left(toy: Prepared, embedder: TextEmbedder) -> None:
    rules = (CategoryDiversity(window=50, max_repeats=2),)
    call = ScriptedCall(speak({0: ("Dog", "Eel")}))
    (session,), _ = run("billp", call, toy, embedder, [0], limit=5, rules=rules)
    assert [step.item for step in session.steps] == [3, 4]
    assert (session.ended_by, session.terminated) == ("category", True)
    assert session.steps[1].advantage == pytest.approx(1.0 - 3.0)
    assert [tag.step for tag, _, _ in call.of("critic")] == [0, 1]
    assert session.reflection == "looked back on session 0"
    assert session.pad.steps[-1].left


def test_answers_may_come_in_any_order(toy: Prepared, embedder: TextEmbedder) -> None:
    rng = np.random.default_rng(0)
    plan = {k: [TITLES[i] for i in rng.permutation(6)] for k in range(11)}
    users = rng.integers(3, size=11).tolist()
    runs = []
    for jitter in (None, 1, 2, 3):
        call = ScriptedCall(speak(plan), jitter)
        sessions, agent = run("billp", call, toy, embedder, users, parallel=4, limit=4)
        experiences = agent.memories.experiences
        assert experiences is not None
        recalled = experiences.recall([s.steps[2].state for s in sessions])
        runs.append((sessions, recalled, sorted(call.asked, key=str)))
    for other in runs[1:]:
        assert other == runs[0]


def test_which_roles_each_agent_asks(toy: Prepared, embedder: TextEmbedder) -> None:
    expected = {
        "act-only": {"actor"},
        "react": {"actor"},
        "reflexion": {"actor", "reflector"},
        "billp": {"actor", "critic", "planner", "reflector"},
    }
    assert set(expected) == set(AGENTS)
    for name, roles in expected.items():
        call = ScriptedCall(speak())
        run(name, call, toy, embedder, [0, 1])
        assert {tag.role for tag, _, _ in call.asked} == roles


def test_later_sessions_see_what_earlier_ones_left(toy: Prepared, embedder: TextEmbedder) -> None:
    call = ScriptedCall(speak())
    run("billp", call, toy, embedder, [0, 0, 0], parallel=1)
    first, *_, last = call.of("planner")
    assert "looked back on session 0" not in first[2][-1]
    assert "looked back on session 0" in last[2][-1]
    first, *later = call.of("actor")
    assert "### Encouraged" not in first[2][-1]
    assert any("### Encouraged" in texts[-1] for tag, _, texts in later if tag.session == 1)
    assert any("### Similar states" in texts[-1] for _, _, texts in call.of("critic"))


def test_reflections_go_to_the_actor_where_nobody_plans(
    toy: Prepared, embedder: TextEmbedder
) -> None:
    call = ScriptedCall(speak())
    run("reflexion", call, toy, embedder, [0, 0], parallel=1)
    last = call.of("actor")[-1]
    assert "looked back on session 0" in last[2][-1]


def test_an_item_is_never_shown_twice_whatever_is_said(
    toy: Prepared, embedder: TextEmbedder
) -> None:
    call = ScriptedCall(speak({0: ("Ant",)}))
    (session,), _ = run("react", call, toy, embedder, [1], limit=6)
    assert sorted(session.actions) == [0, 1, 2, 3, 4, 5]
    assert [step.grounded.how for step in session.steps] == ["exact", *["similar"] * 5]


def test_answers_that_cannot_be_read_still_become_items(
    toy: Prepared, embedder: TextEmbedder
) -> None:
    def say(messages: Sequence[BaseMessage], tag: Tag, sample: int) -> str:
        del messages, sample
        return "I am sorry, I would rather not." if tag.step else ""

    call = ScriptedCall(say)
    (session,), agent = run("billp", call, toy, embedder, [2], limit=3, reasks=1)
    assert len(set(session.actions)) == 3
    assert not any(step.parsed for step in session.steps)
    assert [step.value for step in session.steps] == [None] * 3
    assert [step.advantage for step in session.steps] == [None] * 3
    assert session.reflection is None
    assert [len(memory) for memory in vars(agent.memories).values()] == [0, 0, 0]
    attempts = [tag.attempt for tag, _, _ in call.of("actor")]
    assert attempts == [0, 1] * 3
    assert session.pad.steps[0].said == session.pad.steps[0].title


def test_a_user_who_comes_again_is_another_draw(toy: Prepared, embedder: TextEmbedder) -> None:
    call = ScriptedCall(speak())
    sessions, _ = run("act-only", call, toy, embedder, [1, 2, 1, 1], parallel=4, limit=1)
    assert [session.visit for session in sessions] == [0, 0, 1, 2]
    assert {(tag.session, sample) for tag, sample, _ in call.asked} == {
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
    }


def test_a_failed_call_stops_the_run_after_the_others(
    toy: Prepared, embedder: TextEmbedder
) -> None:
    class Failing(ScriptedCall):
        async def __call__(self, messages: Any, *, tag: Tag, sample: int = 0) -> Any:
            if tag.session == 0:
                raise ServerError("The server failed.")
            await asyncio.sleep(0.02)
            return await super().__call__(messages, tag=tag, sample=sample)

    call = Failing(speak())
    with pytest.raises(ServerError, match="The server failed"):
        run("act-only", call, toy, embedder, [0, 1, 2], parallel=3)
    assert {tag.session for tag, _, _ in call.asked} == {1, 2}


def test_history_is_shown_with_ratings_and_cut(toy: Prepared, embedder: TextEmbedder) -> None:
    call = ScriptedCall(speak())
    sessions, _ = run("act-only", call, toy, embedder, [0], limit=1, history=1)
    (item,) = sessions[0].pad.history
    assert (item.title, item.rating) == ("Bee", 4.0)
    assert '"Bee"' in call.of("actor")[0][2][-1]
    assert '"Ant"' not in call.of("actor")[0][2][-1]


def test_drawn_negatives_and_test_rows_are_no_history(
    toy: Prepared, embedder: TextEmbedder
) -> None:
    order = toy.dataset.interactions.order.copy()
    order[0] = -1  # of user 0 and item 0, which is in the history
    interactions = replace(toy.dataset.interactions, order=order)
    changed = replace(toy, dataset=replace(toy.dataset, interactions=interactions))
    call = ScriptedCall(speak())
    sessions, _ = run("act-only", call, changed, embedder, [0], limit=1)
    assert [item.title for item in sessions[0].pad.history] == ["Bee"]


def test_finished_sessions_are_told_once_each(toy: Prepared, embedder: TextEmbedder) -> None:
    told: list[PlayedSession] = []
    call = ScriptedCall(speak())
    dynamics = Dynamics(toy, split="train", rules=(), limit=2)
    agent = make_agent("billp", kit_for(toy, call, embedder))
    grounder = Grounder(toy.dataset.catalogue, embedder)
    sessions = asyncio.run(
        play(agent, dynamics, [0, 1, 2], grounder=grounder, parallel=2, on_finished=told.append)
    )
    assert sorted(session.number for session in told) == [0, 1, 2]
    assert all(session.reflection for session in told)
    assert sessions == sorted(told, key=lambda session: session.number)


@pytest.mark.parametrize(
    ("users", "parallel", "message"),
    [([0], 0, "parallel=0"), ([], 1, "No user came"), ([7], 1, "user 7")],
)
def test_bad_arguments(
    toy: Prepared, embedder: TextEmbedder, users: list[int], parallel: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run("act-only", ScriptedCall(speak()), toy, embedder, users, parallel=parallel)


def test_an_unknown_agent_gets_the_near_miss(toy: Prepared, embedder: TextEmbedder) -> None:
    with pytest.raises(DataError, match="did you mean 'billp'"):
        make_agent("bilp", kit_for(toy, ScriptedCall(speak()), embedder))
