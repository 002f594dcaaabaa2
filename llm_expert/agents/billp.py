"""BiLLP: planner and reflector above, actor and critic below."""

from __future__ import annotations

from llm_expert.agents.agent import Agent, Kit, Memories

__all__ = ["billp"]


def billp(kit: Kit) -> Agent:
    """Returns the expert of IL-Rec (section IV-A, eq. 2 to 12).

    The reflector looks back on finished sessions, the planner turns reflections on similar states
    into guidance, the actor names an item with the guidance and remembered actions in view, and the
    critic's values decide whether an action is remembered as encouraged or discouraged.

    Args:
        kit: What its roles are made with.
    """
    settings = kit.settings
    return Agent(
        "BiLLP",
        kit.actor(think=True),
        planner=kit.planner(),
        critic=kit.critic(),
        reflector=kit.reflector(),
        memories=Memories(
            reflections=kit.memory(settings.planner_threshold),
            experiences=kit.memory(settings.actor_threshold),
            values=kit.memory(settings.critic_threshold),
        ),
        settings=settings,
    )
