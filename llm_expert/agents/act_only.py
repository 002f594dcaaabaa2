"""ActOnly: an item at once, without a thought or a memory."""

from __future__ import annotations

from llm_expert.agents.agent import Agent, Kit

__all__ = ["act_only"]


def act_only(kit: Kit) -> Agent:
    """Returns the naive baseline (IL-Rec, V-A2): the actor alone names the next item.

    The paper describes it as recommending directly with the LLM's actor and critic; without a
    memory the critic's values would change nothing that it does, so it is not asked.

    Args:
        kit: What its role is made with.
    """
    return Agent("ActOnly", kit.actor(think=False), settings=kit.settings)
