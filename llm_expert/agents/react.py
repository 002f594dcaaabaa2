"""ReAct: a thought, then an item."""

from __future__ import annotations

from llm_expert.agents.agent import Agent, Kit

__all__ = ["react"]


def react(kit: Kit) -> Agent:
    """Returns ReAct (IL-Rec, V-A2): reasoning and acting in one answer, step by step.

    Args:
        kit: What its role is made with.
    """
    return Agent("ReAct", kit.actor(think=True), settings=kit.settings)
