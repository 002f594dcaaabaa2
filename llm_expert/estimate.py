"""What a run would cost, before it is run."""

from __future__ import annotations

import dataclasses
import math

from llm_expert.calls import Caller
from llm_expert.chat_models import ModelFacts, make_chat_model
from llm_expert.demonstrations import CollectConfig, agent_for, play_agent, state_embedder
from recsim_env.dynamics import Dynamics
from recsim_env.planners import draw_users

__all__ = ["estimate"]

_SESSIONS = 20


def estimate(
    config: CollectConfig,
    facts: ModelFacts,
    dynamics: Dynamics,
    *,
    max_tokens: int = 256,
    in_flight: int = 64,
) -> str:
    """Returns calls, tokens and cost of a run as markdown, from sessions of the offline stand-in.

    The stand-in plays the first users of the run with the very prompts; how long sessions get with
    the model itself is not known before, and every figure grows with it.

    Args:
        config: The run.
        facts: Of the model; it is not asked.
        dynamics: Of the run's environment.
        max_tokens: The most tokens of an answer.
        in_flight: Calls at a time.
    """
    prepared = dynamics.prepared
    n = min(_SESSIONS, config.episodes)
    stand_in = make_chat_model("offline", prepared=prepared, seed=config.seed)
    chat = dataclasses.replace(
        stand_in, window=facts.window, max_tokens=max_tokens, counter=facts.counter
    )
    caller = Caller(chat)
    embedder = state_embedder(prepared)
    agent = agent_for(config.agent, chat, caller, prepared, config.settings, embedder)
    users = draw_users(dynamics, config.episodes, config.seed)[:n]
    sessions = play_agent(agent, dynamics, users, embedder, parallel=config.parallel)
    scale = config.episodes / n
    lines = ["| role | calls | prompt tokens | answer tokens |", "|---|---:|---:|---:|"]
    calls, prompt, answer = 0.0, 0.0, 0.0
    for role, usage in sorted(caller.usage.by_role.items()):
        row = [
            scale * value for value in (usage.calls, usage.prompt_tokens, usage.completion_tokens)
        ]
        calls, prompt, answer = calls + row[0], prompt + row[1], answer + row[2]
        lines.append(f"| {role} | {' | '.join(f'{value:,.0f}' for value in row)} |")
    lines.append(f"| all | {calls:,.0f} | {prompt:,.0f} | {answer:,.0f} |")
    if facts.price is None:
        money = "The price of this model is not known here: give --price IN OUT (USD per million)."
    else:
        dollars = (prompt * facts.price.prompt + answer * facts.price.completion) / 1e6
        money = f"About ${dollars:,.2f} at ${facts.price.prompt:g} and ${facts.price.completion:g} "
        money += "per million tokens."
    length = sum(len(session.steps) for session in sessions) / n
    minutes = math.ceil(calls / in_flight / 60)
    counted = facts.counter.name if facts.counter.exact else "bytes, an upper bound"
    return "\n".join(
        [
            *lines,
            "",
            f"Estimate for {config.episodes:,} sessions of {config.agent} on {facts.spec}, from "
            f"{n} sessions that the offline stand-in played ({length:.1f} items each; longer "
            f"sessions cost more). Tokens counted by: {counted}. {money} At one second a call and "
            f"{in_flight} calls at a time: about {minutes:,} min.",
        ]
    )
