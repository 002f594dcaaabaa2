"""Agents that recommend with a language model."""

from llm_expert.agents.act_only import act_only
from llm_expert.agents.agent import Agent, AgentSettings, CachedEmbedder, Kit, Memories
from llm_expert.agents.billp import billp
from llm_expert.agents.react import react
from llm_expert.agents.reflexion import reflexion
from llm_expert.agents.registry import AGENTS, make_agent

__all__ = [
    "AGENTS",
    "Agent",
    "AgentSettings",
    "CachedEmbedder",
    "Kit",
    "Memories",
    "act_only",
    "billp",
    "make_agent",
    "react",
    "reflexion",
]
