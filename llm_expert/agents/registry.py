"""The agents by the names that the command line knows them by."""

from __future__ import annotations

from llm_expert.agents.act_only import act_only
from llm_expert.agents.agent import Agent, AgentMaker, Kit
from llm_expert.agents.billp import billp
from llm_expert.agents.react import react
from llm_expert.agents.reflexion import reflexion
from recsim_env.errors import DataError, near_miss

__all__ = ["AGENTS", "make_agent"]

AGENTS: dict[str, AgentMaker] = {
    "act-only": act_only,
    "billp": billp,
    "react": react,
    "reflexion": reflexion,
}


def make_agent(name: str, kit: Kit) -> Agent:
    """Returns an agent by its name.

    Args:
        name: A key of `AGENTS`.
        kit: What its roles are made with.

    Raises:
        DataError: There is no agent of this name.
    """
    if name not in AGENTS:
        raise DataError(f"There is no agent {name!r}; {near_miss(name, AGENTS)}.")
    return AGENTS[name](kit)
