"""The commands and options that the experts add to ``ilrec``.

`add_collect` adds ``ilrec collect``; `players` lets ``ilrec evaluate`` play agents beside models.
Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsim_env import command_line as cl
from recsim_env.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llm_expert.agents import Agent
    from llm_expert.calls import Caller
    from llm_expert.chat_models import ChatModel
    from llm_expert.grounding import Embedder
    from llm_expert.play import PlayedSession
    from recsim_env.dynamics import Dynamics
    from recsim_env.planners import Played
    from recsim_env.prepare import Prepared

__all__ = ["Players", "add_collect", "players"]

_AGENTS = ("act-only", "react", "reflexion", "billp")


# -- options that both share -----------------------------------------------------------------------


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the language model")
    group.add_argument(
        "--llm",
        metavar="SPEC",
        default="offline",
        help="openai:NAME, anthropic:NAME, ollama:NAME, huggingface:PATH, http://host:port/v1#NAME "
        "or offline, a stand-in without network (default: offline)",
    )
    group.add_argument("--temperature", type=float, default=0.5, metavar="T", help="(default: 0.5)")
    group.add_argument(
        "--max-tokens",
        type=cl.positive,
        default=256,
        metavar="N",
        help="the most tokens of an answer (default: 256)",
    )
    group.add_argument(
        "--encoding",
        default="auto",
        metavar="NAME",
        help="how tokens are counted: a tiktoken encoding, or bytes (default: the model's own)",
    )
    group.add_argument(
        "--window", type=cl.positive, metavar="N", help="the model's context window, in tokens"
    )
    group.add_argument(
        "--price",
        type=float,
        nargs=2,
        metavar=("IN", "OUT"),
        help="USD per million tokens of prompts and of answers (default: the known list price)",
    )
    group.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="seconds for a call (default: 60)"
    )
    group.add_argument(
        "--attempts",
        type=cl.positive,
        default=6,
        metavar="N",
        help="how often a call is tried (default: 6)",
    )
    group.add_argument(
        "--in-flight",
        type=cl.positive,
        default=64,
        metavar="N",
        help="calls at a time (default: 64)",
    )
    group.add_argument(
        "--requests-per-second", type=float, metavar="R", help="the most calls started in a second"
    )
    group.add_argument(
        "--replay",
        action="store_true",
        help="take every answer from the record and ask no model",
    )
    group.add_argument(
        "--embedder",
        metavar="SPEC",
        help="what grounds titles: huggingface:PATH (a causal language model) or "
        "sentence-transformers:PATH (default: the package's own)",
    )


def _add_agent_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the agent, such as gamma=0.5, top_k=5 or planner_threshold=0.8; may be "
        "repeated",
    )
    parser.add_argument(
        "--memories",
        metavar="DIR",
        help="start from what an earlier run remembered (its DIR/memories), or from `recorded`: "
        "what BiLLP's agents remembered of their training users, where the data have it",
    )
    parser.add_argument(
        "--parallel",
        type=cl.positive,
        default=64,
        metavar="N",
        help="sessions at a time (default: 64)",
    )


def _chat(arguments: argparse.Namespace, prepared: Prepared, seed: int) -> ChatModel:
    from llm_expert.chat_models import Price, make_chat_model

    return make_chat_model(
        arguments.llm,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
        timeout=arguments.timeout,
        window=arguments.window,
        price=None if arguments.price is None else Price(*arguments.price),
        seed=seed,
        prepared=prepared,
        encoding=arguments.encoding,
        requests_per_second=arguments.requests_per_second,
        replay=arguments.replay,
    )


def _embedder(spec: str | None) -> Embedder | None:
    if spec is None:
        return None
    from llm_expert.agents import CachedEmbedder
    from llm_expert.embedders import CausalLMEmbedder, SentenceEmbedder

    kinds: dict[str, Any] = {
        "huggingface": CausalLMEmbedder.from_pretrained,
        "sentence-transformers": SentenceEmbedder,
    }
    kind, _, name = spec.partition(":")
    if kind not in kinds or not name:
        raise DataError(
            f"--embedder {spec} came, expected huggingface:PATH or sentence-transformers:PATH."
        )
    return CachedEmbedder(kinds[kind](name))


# -- ilrec collect ---------------------------------------------------------------------------------


def add_collect(subparsers: Any) -> None:
    """Adds ``ilrec collect``.

    Args:
        subparsers: Of the command line's parser.
    """
    parser = subparsers.add_parser(
        "collect",
        help="let a language model recommend, and keep its sessions as demonstrations",
        description=(
            "An agent on a language model recommends to the users of an environment. Its sessions\n"
            "become DIR/demonstrations.parquet, for `ilrec train --demonstrations`. Every answer\n"
            "is kept before it is used: after Ctrl-C, a crash, a full disk or a dead server the\n"
            "same command goes on where it stopped, and no answer is paid twice."
        ),
        epilog=(
            "examples:\n"
            "  ilrec collect --env IlRecSynthetic-v0 --episodes 50 --out runs/demos\n"
            "  ilrec collect --agent billp --llm openai:gpt-4o-mini --env IlRecSteam-v0 \\\n"
            "      --data ~/data --episodes 100 --out runs/gpt --dry-run\n"
            "  ilrec train --dataset steam --data ~/data \\\n"
            "      --demonstrations runs/gpt/demonstrations.parquet\n"
        ),
    )
    parser.add_argument(
        "--agent",
        choices=_AGENTS,
        default="billp",
        metavar="NAME",
        help="act-only, react, reflexion or billp (default: billp)",
    )
    parser.add_argument(
        "--env", default="IlRecSynthetic-v0", metavar="ID", help="(default: IlRecSynthetic-v0)"
    )
    parser.add_argument(
        "--env-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the environment, such as termination=billp; may be repeated",
    )
    cl.add_raw_data(parser)
    parser.add_argument(
        "--episodes", type=cl.positive, default=100, metavar="N", help="sessions (default: 100)"
    )
    parser.add_argument(
        "--seed", type=cl.seed, default=0, metavar="S", help="draws the users (default: 0)"
    )
    parser.add_argument("--out", metavar="DIR", help="where the run goes")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="ask no model: estimate calls, tokens and cost from a few sessions of the stand-in",
    )
    _add_agent_settings(parser)
    _add_model(parser)
    cl.add_common(parser)
    parser.set_defaults(run=_collect)


def _collect(arguments: argparse.Namespace) -> int:
    from llm_expert.demonstrations import CollectConfig, collect, dynamics_of

    options = cl.json_pairs(arguments.env_option, "--env-option")
    config = CollectConfig.from_dict(
        {
            "agent": arguments.agent,
            "env": arguments.env,
            "env_options": options,
            "episodes": arguments.episodes,
            "seed": arguments.seed,
            "parallel": arguments.parallel,
            "memories": arguments.memories,
            "settings": cl.json_pairs(arguments.settings, "--set"),
        }
    )
    places = {name: getattr(arguments, name) for name in ("data", "cache", "progress")}
    given = {name: value for name, value in places.items() if value is not None}
    if arguments.data is not None and not Path(arguments.data).expanduser().is_dir():
        raise DataError(f"--data {arguments.data} is not there, expected a folder with the data.")
    if arguments.dry_run:
        return _dry_run(arguments, config, dynamics_of(config.env, {**options, **given}))
    if not arguments.out:
        raise DataError("No --out came, expected a folder for the run: give --out runs/NAME.")
    dynamics = dynamics_of(config.env, {**options, **given})
    own = options.get("dataset", _dataset_of(config.env))
    if dynamics.prepared.dataset.name != own and arguments.llm != "offline":
        raise DataError(
            f"There are no data for {config.env}, and {arguments.llm} is not asked about the "
            "built-in catalogue in its place: name the folder with the data (--data), or play "
            "IlRecSynthetic-v0."
        )
    arguments.resume = "The same command goes on where it stopped"
    chat = _chat(arguments, dynamics.prepared, arguments.seed)
    started = time.perf_counter()
    collected = collect(
        config,
        chat,
        arguments.out,
        dynamics=dynamics,
        embedder=_embedder(arguments.embedder),
        replay=arguments.replay,
        max_in_flight=arguments.in_flight,
        attempts=arguments.attempts,
        progress=arguments.progress,
        data=arguments.data,
    )
    cl.show(_report_table(collected.report))
    cl.show(collected.usage.table(chat.price))
    if chat.spec.startswith("offline"):
        cl.say("The stand-in counts bytes for tokens, about four times as many.")
    cl.say(f"{time.perf_counter() - started:.0f} s. Demonstrations: {collected.path}")
    cl.say(f"Next: ilrec train {_same_data(arguments, options, dynamics)} \\")
    cl.say(f"          --demonstrations {collected.path}")
    return 0


def _dataset_of(env: str) -> str:
    """Returns the name of an environment's own dataset."""
    import gymnasium

    return str(gymnasium.spec(env).kwargs.get("dataset", ""))


def _same_data(arguments: argparse.Namespace, options: dict[str, Any], dynamics: Dynamics) -> str:
    """Returns the arguments that give another command the same dataset."""
    words = ["--dataset", dynamics.prepared.dataset.name]
    for flag in ("data", "cache"):
        if getattr(arguments, flag):
            words += [f"--{flag}", str(getattr(arguments, flag))]
    for name, value in dict(options.get("options") or {}).items():
        words += ["--option", f"{name}={value}"]
    return shlex.join(words)


def _report_table(report: Mapping[str, Any]) -> str:
    endings = ", ".join(f"{name} {count}" for name, count in report["ended_by"].items())
    rows = [
        ("sessions", f"{report['sessions']:,}"),
        ("mean length, items", f"{report['mean_length']:.1f}"),
        ("mean return", f"{report['mean_return']:.1f}"),
        ("reward per step", f"{report['reward_per_step']:.2f}"),
        ("ended by", endings),
        ("titles that are not in the catalogue", f"{report['regrounded_share']:.0%}"),
        ("answers that no item could be read from", f"{report['unparsed_share']:.1%}"),
    ]
    if report["encouraged_share"] is not None:
        rows.append(("actions with an advantage above 0", f"{report['encouraged_share']:.0%}"))
    return "\n".join(["| what | figure |", "|---|---:|", *(f"| {a} | {b} |" for a, b in rows)])


def _dry_run(arguments: argparse.Namespace, config: Any, dynamics: Dynamics) -> int:
    from llm_expert.chat_models import Price, model_facts
    from llm_expert.estimate import estimate

    price = None if arguments.price is None else Price(*arguments.price)
    facts = model_facts(
        arguments.llm, window=arguments.window, price=price, encoding=arguments.encoding
    )
    cl.show(
        estimate(
            config,
            facts,
            dynamics,
            max_tokens=arguments.max_tokens,
            in_flight=arguments.in_flight,
            data=arguments.data,
        )
    )
    return 0


# -- ilrec evaluate --agent ------------------------------------------------------------------------


class Players:
    """Agents as policies of ``ilrec evaluate``."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options of agents.

        Args:
            parser: Of ``ilrec evaluate``.
        """
        group = parser.add_argument_group("agents on a language model")
        group.add_argument(
            "--agent",
            nargs="+",
            choices=_AGENTS,
            default=[],
            metavar="NAME",
            help="act-only, react, reflexion, billp; several make several rows",
        )
        group.add_argument(
            "--calls",
            metavar="FILE",
            help="record of calls: what it has is not asked again (default: one in the cache)",
        )
        _add_agent_settings(parser)
        _add_model(parser)

    def chosen(self, arguments: argparse.Namespace) -> bool:
        """Returns whether the command line asks for agents."""
        return bool(arguments.agent)

    def play(
        self, arguments: argparse.Namespace, dynamics: Dynamics, episodes: int, seed: int
    ) -> list[Played]:
        """Plays the agents that were asked for.

        Args:
            arguments: The command line.
            dynamics: Where.
            episodes: Sessions of each.
            seed: Draws the users.
        """
        from llm_expert.agents import AgentSettings
        from llm_expert.calls import Caller, CallStore
        from llm_expert.demonstrations import agent_for, state_embedder
        from llm_expert.starting import starting_memories
        from recsim_env.artefacts import cache_dir
        from recsim_env.planners import draw_users
        from recsim_env.settings import from_mapping

        prepared = dynamics.prepared
        chat = _chat(arguments, prepared, seed)
        settings = from_mapping(AgentSettings, cl.json_pairs(arguments.settings, "--set"))
        embedder = _embedder(arguments.embedder) or state_embedder(prepared)
        memories = starting_memories(
            arguments.memories, prepared, embedder, data=arguments.data, gamma=settings.gamma
        )
        names = list(dict.fromkeys(arguments.agent))
        users = draw_users(dynamics, episodes, seed)
        path = Path(arguments.calls or cache_dir(arguments.cache) / "calls.sqlite")
        with CallStore(path, read_only=arguments.replay) as store:
            callers = [
                Caller(
                    chat,
                    store,
                    replay=arguments.replay,
                    max_in_flight=arguments.in_flight,
                    attempts=arguments.attempts,
                )
                for _ in names
            ]
            agents = [
                agent_for(name, chat, caller, prepared, settings, embedder)
                for name, caller in zip(names, callers, strict=True)
            ]
            if arguments.memories and not any(agent.memories.kinds for agent in agents):
                raise DataError(
                    f"--memories came for {', '.join(names)}, which remember nothing: leave it "
                    "out, or take reflexion or billp."
                )
            return [
                _play(memories.given_to(agent), caller, users, dynamics, embedder, arguments)
                for agent, caller in zip(agents, callers, strict=True)
            ]


def _play(
    agent: Agent,
    caller: Caller,
    users: NDArray[np.int64],
    dynamics: Dynamics,
    embedder: Embedder,
    arguments: argparse.Namespace,
) -> Played:
    from tqdm.auto import tqdm

    from llm_expert.demonstrations import play_agent
    from llm_expert.interrupts import stopping_on_interrupt
    from recsim_env.planners import Played

    started = time.perf_counter()
    with (
        stopping_on_interrupt(caller),
        tqdm(
            total=len(users),
            desc=agent.name,
            unit="session",
            disable=not arguments.progress,
        ) as bar,
    ):

        def count(session: PlayedSession) -> None:
            del session
            bar.update()

        sessions = play_agent(
            agent,
            dynamics,
            users,
            embedder,
            parallel=arguments.parallel,
            on_finished=count,
        )
    return Played(
        f"{agent.name} ({caller.chat.spec})",
        _episodes(sessions),
        time.perf_counter() - started,
        _columns(sessions, caller),
    )


def _episodes(sessions: list[PlayedSession]) -> Any:
    import numpy as np

    from recsim_env.planners import Episodes

    return Episodes(
        users=np.array([session.user for session in sessions], np.int64),
        lengths=np.array([len(session.steps) for session in sessions], np.int64),
        returns=np.array(
            [sum(s.reward for s in session.steps) for session in sessions], np.float32
        ),
        ended_by=tuple(session.ended_by for session in sessions),
        actions=tuple(session.actions for session in sessions),
    )


def _columns(sessions: list[PlayedSession], caller: Caller) -> dict[str, str]:
    import numpy as np

    usage, chat = caller.usage, caller.chat

    latency = float(np.median([step.latency for session in sessions for step in session.steps]))
    cost = usage.total_cost(chat.price)
    tokens = usage.total_prompt_tokens + usage.total_completion_tokens
    return {
        "calls": f"{usage.total_calls:,}",
        "tokens": f"{tokens / 1000:,.0f}k",
        "cost": "?" if cost is None else f"${cost:.2f}",
        "latency": f"{latency * 1000:.1f} ms" if latency < 1 else f"{latency:.1f} s",
    }


players = Players()
