"""Measures how fast LEA's recommenders learn and answer, and where the time of a step goes.

    python benchmarks/lea_speed.py

Sequences and feedback are made up: of no meaning, but of the sizes that real ones have. Each figure
is a median over runs. The tables go to the screen and to ``benchmarks/results/lea_speed.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch as th
from torch.profiler import ProfilerActivity, profile

from ilrec_sb3.allocator import keep_freed_memory
from ilrec_sb3.lea import LEA
from ilrec_sb3.lea.networks import BACKBONES, Backbone
from recsim_env.environment_feedback import EnvironmentFeedback, sample_negatives
from recsim_env.sequences import SequenceData

VARIANTS = ("Normal", "SNQN", "SA2C", "SA2C-LEASR")
STATES = 128  # numbers in a state of the small language model
WARM_UP = 20
TOP = 20
PROFILED = 30  # steps


def made_up(n_items: int, n_users: int = 3_000) -> SequenceData:
    """Returns sequences of 4 to 16 items, of which few are popular."""
    rng = np.random.default_rng(0)
    sequences = [
        np.minimum(rng.zipf(1.2, rng.integers(4, 17)) - 1, n_items - 1) for _ in range(n_users)
    ]
    splits = [np.array([-1] + [0] * (len(s) - 1), np.int8) for s in sequences]
    names = tuple(f"item {number}" for number in range(n_items))
    return SequenceData("made-up", names, names, names, "product", tuple(sequences), tuple(splits))


def random_feedback(data: SequenceData) -> EnvironmentFeedback:
    """Returns feedback on the train examples that says nothing."""
    examples, rng = data.examples("train"), np.random.default_rng(0)
    m = len(examples)
    rewards = rng.random((m, 7), np.float32)
    return EnvironmentFeedback(
        states=rng.standard_normal((m, STATES), np.float32),
        next_states=rng.standard_normal((m, STATES), np.float32),
        rewards=rewards[:, 0],
        negatives=sample_negatives(examples, 5, 0),
        negative_rewards=rewards[:, 1:6],
        augmented=rng.integers(data.n_items, size=m),
        augmented_rewards=rewards[:, 6],
        examples=examples.fingerprint,
    )


def seconds_of(act: Callable[[], object]) -> float:
    """Returns how long it takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def learning(model: LEA, steps: int, runs: int) -> list[float]:
    """Returns the sequences a second of each run; there is no validation split to stop for."""
    model.learn(WARM_UP, log_interval=0)
    examples = steps * model.batch_size
    return [examples / seconds_of(lambda: model.learn(steps, log_interval=0)) for _ in range(runs)]


def shares(model: LEA, steps: int, runs: int, most: int) -> list[tuple[str, float]]:
    """Returns the operations of a step that take longest, and their shares of its time.

    The profiler takes memory of its own, and operations that come upon its new pages wait for them.
    So there are several runs, of which the fastest counts.
    """
    fastest: dict[str, float] = {}
    for _ in range(runs):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model.learn(steps, log_interval=0)
        found = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        if not fastest or sum(found.values()) < sum(fastest.values()):
            fastest = found
    total = sum(fastest.values())
    ordered = sorted(fastest.items(), key=lambda pair: -pair[1])
    return [(name, spent / total) for name, spent in ordered[:most]]


def answering(model: LEA, data: SequenceData, calls: int) -> list[float]:
    """Returns the milliseconds of each call for one user's best items."""
    histories = data.examples("train").histories
    spent = [
        seconds_of(partial(model.predict, histories[row : row + 1], TOP))
        for row in range(WARM_UP + calls)
    ]
    return [1_000 * seconds for seconds in spent[WARM_UP:]]


def tables(arguments: argparse.Namespace) -> list[str]:
    """Measures, and returns the lines of the tables."""
    data = made_up(arguments.items)
    feedback = random_feedback(data)

    def made(backbone: Backbone, variant: str) -> LEA:
        own = feedback if variant.partition("-")[2] else None
        return LEA(backbone, data, variant, own, batch_size=arguments.batch, seed=0, device="cpu")

    lines = [
        "## Learning",
        "",
        "| backbone | variant | threads | sequences/s, median (least to most) | ms a step |",
        "|---|---|---:|---:|---:|",
    ]
    for threads in arguments.threads:
        th.set_num_threads(threads)
        for backbone in BACKBONES:
            for variant in VARIANTS:
                rates = learning(made(backbone, variant), arguments.steps, arguments.runs)
                rate = statistics.median(rates)
                lines.append(
                    f"| {backbone} | {variant} | {threads} | {rate:,.0f} ({min(rates):,.0f} to "
                    f"{max(rates):,.0f}) | {1_000 * arguments.batch / rate:.1f} |"
                )
    th.set_num_threads(1)
    lines += ["", "## Where the time of a step goes (one thread)", ""]
    lines += ["| backbone | variant | operations and their shares |", "|---|---|---|"]
    for backbone in BACKBONES:
        for variant in (VARIANTS[0], VARIANTS[-1]):
            model = made(backbone, variant)
            found = shares(model, PROFILED, arguments.runs, 6)
            said = ", ".join(f"`{name}` {share:.0%}" for name, share in found)
            lines.append(f"| {backbone} | {variant} | {said} |")
    lines += ["", f"## Answering: the {TOP} best items for one user (one thread)", ""]
    lines += ["| backbone | p50, ms | p99, ms |", "|---|---:|---:|"]
    for backbone in BACKBONES:
        spent = answering(made(backbone, VARIANTS[0]), data, arguments.calls)
        p50, p99 = np.percentile(spent, [50, 99])
        lines.append(f"| {backbone} | {p50:.2f} | {p99:.2f} |")
    return lines


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    kept = "kept, as `ilrec` has it" if keep_freed_memory() else "given back"
    lines = [
        "# Speed of LEA's recommenders",
        "",
        f"`{' '.join(['python', *sys.argv])}`: {arguments.items:,} items, batches of "
        f"{arguments.batch}, {arguments.runs} runs of {arguments.steps} steps, {arguments.calls:,} "
        f"calls, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{th.__version__}; freed memory is {kept}.",
        "",
        *tables(arguments),
    ]
    text = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "lea_speed.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
