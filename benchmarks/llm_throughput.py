"""Measures how many steps a second an agent plays with many sessions in flight.

    python benchmarks/llm_throughput.py

BiLLP plays a synthetic catalogue on a canned model that waits a second before each answer: one call
after the other, then many sessions at once. Then the same on a canned model that does not wait:
what is left is everything but the model (prompts, memories, grounding, the record, LangChain, the
environment). At last the same over HTTP, from a loopback server in another process. Each figure is
the median over runs; the table goes to the screen and to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from llm_expert.calls import Caller, CallStore
from llm_expert.chat_models import ChatModel, Price, make_chat_model
from llm_expert.demonstrations import agent_for, play_agent, state_embedder
from llm_expert.testing import ChatServer
from llm_expert.tokens import make_counter
from recsim_env.datasets import load
from recsim_env.dynamics import Dynamics
from recsim_env.planners import draw_users
from recsim_env.simulator import make_dynamics


class CannedModel(BaseChatModel):
    """Answers at once, or after a second, by a rule that costs nothing."""

    titles: tuple[str, ...]
    delay: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "canned"

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        del args, kwargs
        text = canned(str(messages[-1].content), self.titles)
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        message = AIMessage(text, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        if self.delay:
            await asyncio.sleep(self.delay)
        return self._generate(messages, *args, **kwargs)


def canned(prompt: str, titles: tuple[str, ...]) -> str:
    """Returns an answer in the format that the prompt's last lines ask for."""
    end = prompt[-200:]
    if "Action:" in end:
        return f'Thought: next.\nAction: recommend["{titles[hash(prompt) % len(titles)]}"]'
    if "Value:" in end:
        return "Value: 5"
    return "Guidance: vary." if "Guidance:" in end else "Reflection: vary."


def measure(
    chat: ChatModel, dynamics: Dynamics, sessions: int, parallel: int, in_flight: int
) -> tuple[float, float]:
    """Returns seconds and steps of a run."""
    embedder = state_embedder(dynamics.prepared)
    with tempfile.TemporaryDirectory() as folder, CallStore(Path(folder) / "calls") as store:
        caller = Caller(chat, store, max_in_flight=in_flight)
        agent = agent_for("billp", chat, caller, dynamics.prepared, embedder=embedder)
        users = draw_users(dynamics, sessions, 0)
        started = time.perf_counter()
        played = play_agent(agent, dynamics, users, embedder, parallel=parallel)
        seconds = time.perf_counter() - started
    return seconds, sum(len(session.steps) for session in played)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serves canned answers from a process of its own; yields the address."""
    os.environ.setdefault("OPENAI_API_KEY", "none")
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process.stdout.readline().strip() if process.stdout else ""
    finally:
        process.kill()
        process.communicate()


def serve() -> None:
    """Serves canned answers until the process is ended."""
    titles = tuple(load("synthetic").catalogue.titles)
    with ChatServer(lambda messages: canned(messages[-1]["content"], titles)) as server:
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        threading.Event().wait()


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=10, help="steps of every session")
    parser.add_argument("--sessions", type=int, default=64, help="in flight")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    dynamics = make_dynamics("synthetic", termination="none", repeat=False, limit=arguments.limit)
    titles = tuple(dynamics.prepared.dataset.catalogue.titles)

    def chat(delay: float) -> ChatModel:
        model = CannedModel(titles=titles, delay=delay, cache=False)
        return ChatModel(model, "canned", {}, 100_000, 256, make_counter(None), Price(0.0, 0.0))

    def median(run: Callable[[], tuple[float, float]], runs: int) -> tuple[float, float, float]:
        results = [run() for _ in range(runs)]
        rates = [steps / seconds for seconds, steps in results]
        return statistics.median(rates), min(rates), max(rates)

    n = arguments.sessions
    serial = median(lambda: measure(chat(1.0), dynamics, 1, 1, 1), 1)
    rows = [("1 s a call, one call at a time", serial)]
    for in_flight in (n, 2 * n):
        rate = median(
            lambda k=in_flight: measure(chat(1.0), dynamics, n, n, k),  # type: ignore[misc]
            arguments.runs,
        )
        rows.append((f"1 s a call, {n} sessions, {in_flight} calls in flight", rate))
    rows.append(
        (
            f"no wait, {n} sessions, in process",
            median(lambda: measure(chat(0.0), dynamics, n, n, n), arguments.runs),
        )
    )
    with served() as url:
        over_http = make_chat_model(f"{url}#canned", encoding=None, window=100_000)
        rows.append(
            (
                f"no wait, {n} sessions, over loopback HTTP",
                median(lambda: measure(over_http, dynamics, n, n, n), arguments.runs),
            )
        )
    lines = [
        "# Throughput of agents",
        "",
        f"`{' '.join(['python', *sys.argv])}`: BiLLP, sessions of {arguments.limit} steps, three "
        f"calls a step and one at the end, {arguments.runs} runs (the first row: one), "
        f"{os.cpu_count()} cores, Python {platform.python_version()}. The rows "
        "without a wait are everything but the model; the last one adds LangChain's OpenAI client, "
        "and a server in a process of its own.",
        "",
        "| what | steps/s, median (least to most) | times the first row | ms per step |",
        "|---|---:|---:|---:|",
    ]
    for name, (rate, low, high) in rows:
        lines.append(
            f"| {name} | {rate:,.2f} ({low:,.2f} to {high:,.2f}) | {rate / serial[0]:,.1f} "
            f"| {1000 / rate:,.2f} |"
        )
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "llm_throughput.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
