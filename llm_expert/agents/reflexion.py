"""Reflexion: ReAct that looks back on finished sessions."""

from __future__ import annotations

from llm_expert.agents.agent import Agent, Kit, Memories

__all__ = ["reflexion"]


def reflexion(kit: Kit) -> Agent:
    """Returns Reflexion (IL-Rec, V-A2): reflections on finished sessions guide later ones.

    Users come once or twice, so the reflections of one session serve similar states of all users
    and not, as in the original, further trials of the same task.

    Args:
        kit: What its roles are made with.
    """
    return Agent(
        "Reflexion",
        kit.actor(think=True),
        reflector=kit.reflector(),
        memories=Memories(reflections=kit.memory(kit.settings.planner_threshold)),
        settings=kit.settings,
    )
