"""Language models as recommenders: agents that play the environments, and their demonstrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsim_env.lazy import lazy_names

if TYPE_CHECKING:
    from llm_expert.agents import AGENTS, Agent, AgentSettings, make_agent
    from llm_expert.agents.act_only import act_only
    from llm_expert.agents.billp import billp
    from llm_expert.agents.react import react
    from llm_expert.agents.reflexion import reflexion
    from llm_expert.calls import Caller, CallStore
    from llm_expert.chat_models import ChatModel, Price, known_specs, make_chat_model
    from llm_expert.demonstrations import (
        CollectConfig,
        Collected,
        agent_for,
        collect,
        play_agent,
        to_trajectories,
    )
    from llm_expert.embedders import CausalLMEmbedder, SentenceEmbedder
    from llm_expert.grounding import Grounded, Grounder, ground
    from llm_expert.memory import VectorMemory
    from llm_expert.offline import OfflineChatModel
    from llm_expert.play import PlayedSession, PlayedStep, play
    from llm_expert.recorded import (
        amazon_sessions,
        recorded_episodes,
        recorded_memories,
        steam_sessions,
    )

__all__ = [
    "AGENTS",
    "Agent",
    "AgentSettings",
    "CallStore",
    "Caller",
    "CausalLMEmbedder",
    "ChatModel",
    "CollectConfig",
    "Collected",
    "Grounded",
    "Grounder",
    "OfflineChatModel",
    "PlayedSession",
    "PlayedStep",
    "Price",
    "SentenceEmbedder",
    "VectorMemory",
    "act_only",
    "agent_for",
    "amazon_sessions",
    "billp",
    "collect",
    "ground",
    "known_specs",
    "make_agent",
    "make_chat_model",
    "play",
    "play_agent",
    "react",
    "recorded_episodes",
    "recorded_memories",
    "reflexion",
    "steam_sessions",
    "to_trajectories",
]

lazy_names(
    __name__,
    {
        "agents": (
            "AGENTS",
            "Agent",
            "AgentSettings",
            "act_only",
            "billp",
            "make_agent",
            "react",
            "reflexion",
        ),
        "calls": ("CallStore", "Caller"),
        "chat_models": ("ChatModel", "Price", "known_specs", "make_chat_model"),
        "demonstrations": (
            "CollectConfig",
            "Collected",
            "agent_for",
            "collect",
            "play_agent",
            "to_trajectories",
        ),
        "embedders": ("CausalLMEmbedder", "SentenceEmbedder"),
        "grounding": ("Grounded", "Grounder", "ground"),
        "memory": ("VectorMemory",),
        "offline": ("OfflineChatModel",),
        "play": ("PlayedSession", "PlayedStep", "play"),
        "recorded": (
            "amazon_sessions",
            "recorded_episodes",
            "recorded_memories",
            "steam_sessions",
        ),
    },
)
