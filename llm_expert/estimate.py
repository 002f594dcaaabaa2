"""What a run would cost, before it is run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from langchain_core.outputs import ChatResult

from llm_expert.calls import Caller
from llm_expert.chat_models import ModelFacts, make_chat_model
from llm_expert.demonstrations import CollectConfig, agent_for, play_agent, state_embedder
from llm_expert.offline import Knowledge, OfflineChatModel
from llm_expert.starting import starting_memories
from recsim_env.dynamics import Dynamics
from recsim_env.planners import draw_users

__all__ = ["estimate"]

_SESSIONS = 40


class _Uncounted(OfflineChatModel):
    """The stand-in, without its own count of bytes: the model's way of counting is asked for."""

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        result = await super()._agenerate(*args, **kwargs)
        for generation in result.generations:
            generation.message.usage_metadata = None  # type: ignore[attr-defined]
        return result


def estimate(
    config: CollectConfig,
    facts: ModelFacts,
    dynamics: Dynamics,
    *,
    max_tokens: int = 256,
    in_flight: int = 64,
    data: str | Path | None = None,
) -> str:
    """Returns calls, tokens and cost of a run as markdown, from sessions of the offline stand-in.

    The stand-in plays the first users of the run with the very prompts. How long sessions get with
    the model itself is not known before, and every figure grows with it; so do prompts of later
    sessions, which find more in the memories.

    Args:
        config: The run.
        facts: Of the model; it is not asked.
        dynamics: Of the run's environment.
        max_tokens: The most tokens of an answer.
        in_flight: Calls at a time.
        data: Folder with the raw data, for recorded memories.
    """
    prepared = dynamics.prepared
    n = min(_SESSIONS, config.episodes)
    chat = dataclasses.replace(
        make_chat_model("offline", prepared=prepared, seed=config.seed),
        model=_Uncounted(knowledge=Knowledge.of(prepared), seed=config.seed),
        window=facts.window,
        max_tokens=max_tokens,
        counter=facts.counter,
    )
    caller = Caller(chat)
    embedder = state_embedder(prepared)
    memories = starting_memories(
        config.memories, prepared, embedder, data=data, gamma=config.settings.gamma
    )
    agent = memories.given_to(
        agent_for(config.agent, chat, caller, prepared, config.settings, embedder)
    )
    users = draw_users(dynamics, config.episodes, config.seed)[:n]
    sessions = play_agent(agent, dynamics, users, embedder, parallel=config.parallel)
    scale = config.episodes / n
    lines = ["| role | calls | prompt tokens | answer tokens |", "|---|---:|---:|---:|"]
    for role, counts in [*sorted(caller.usage.by_role.items()), ("all", caller.usage)]:
        row = (counts.calls, counts.prompt_tokens, counts.completion_tokens)
        lines.append(f"| {role} | {' | '.join(f'{scale * value:,.0f}' for value in row)} |")
    usage = caller.usage
    steps = sum(len(session.steps) for session in sessions)
    # one second a call: the limit is the calls at a time, or those of a step one after another
    chain = 2 if agent.planner is not None else 1
    at_a_time = min(config.parallel, config.episodes)
    seconds = scale * max(usage.calls / in_flight, chain * steps / at_a_time)
    counted = facts.counter.name if facts.counter.exact else "bytes, an upper bound"
    return "\n".join(
        [
            *lines,
            "",
            f"Estimate for {config.episodes:,} sessions of {config.agent} on {facts.spec}, from "
            f"{n} sessions that the offline stand-in played ({steps / n:.1f} items each; longer "
            f"sessions cost more). Tokens counted by: {counted}. "
            f"{_money(facts, scale * usage.prompt_tokens, scale * usage.completion_tokens)} At "
            f"one second a call, {at_a_time} sessions and {in_flight} calls at a time: about "
            f"{math.ceil(seconds / 60):,} min.",
        ]
    )


def _money(facts: ModelFacts, prompt: float, completion: float) -> str:
    if facts.price is None:
        return (
            "The price of this model is not known here: give --price IN OUT (USD per million "
            "tokens)."
        )
    dollars = (prompt * facts.price.prompt + completion * facts.price.completion) / 1e6
    return (
        f"About ${dollars:,.2f} at ${facts.price.prompt:g} and ${facts.price.completion:g} per "
        "million tokens."
    )
