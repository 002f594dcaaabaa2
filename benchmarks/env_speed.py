"""Measures how many steps a second the environments make, and where the time goes.

Each size is measured in several runs of about a second with a random policy, sessions that end and
start anew included; `RecVectorEnv` gives the masks and infos of every session at each step.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import resource
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import torch
from tqdm import tqdm

from recsim_env import RecEnv, RecVectorEnv

SIZES = (1, 64, 1024, 4096)
RESULTS = Path(__file__).parent / "results"

Run = Callable[[], float]
"""Makes many steps and returns steps per second."""


def _single(env: RecEnv, seconds: float) -> Run:
    def run() -> float:
        actions = np.random.default_rng(0).integers(env.dynamics.n_items, size=1000).tolist()
        env.reset(seed=0)
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for action in actions:
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            steps += len(actions)
        return steps / (time.perf_counter() - start)

    return run


def _vector(env: RecVectorEnv, seconds: float) -> Run:
    def run() -> float:
        rng = np.random.default_rng(0)
        actions = rng.integers(env.dynamics.n_items, size=(20, env.num_envs))
        env.reset(seed=0)
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for row in actions:
                env.step(row)
            steps += actions.size
        return steps / (time.perf_counter() - start)

    return run


def _peak_mib() -> float:
    """Peak memory of this process so far; kibibytes on Linux, bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _processor() -> str:
    """The processor's model name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _profile(env: RecVectorEnv | RecEnv, steps: int) -> list[str]:
    """Returns a markdown table of the functions in which a step spends its time."""
    size = env.num_envs if isinstance(env, RecVectorEnv) else 1
    actions = np.random.default_rng(0).integers(env.dynamics.n_items, size=(steps, size))
    env.reset(seed=0)
    profile = cProfile.Profile()
    profile.enable()
    for row in actions:
        _, _, terminated, truncated, _ = env.step(row if size > 1 else row[0])
        if size == 1 and (terminated or truncated):
            env.reset()
    profile.disable()
    stats = pstats.Stats(profile)
    times: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        inside = "recsim_env" in file
        label = f"`{Path(file).stem}.{name}`" if inside else f"`{name}`"
        times[label] = times.get(label, 0.0) + own
    total = sum(times.values())
    rows = sorted(times.items(), key=lambda item: -item[1])[:8]
    return [
        "| own time in | share |",
        "|---|---|",
        *(f"| {label} | {share / total:.0%} |" for label, share in rows),
    ]


def measure(dataset: str, data: str | None, runs: int, seconds: float) -> list[str]:
    """Returns the lines of the report.

    Args:
        dataset: Name of the dataset.
        data: Folder with the raw data, or None.
        runs: How often each size is measured.
        seconds: Length of a run.
    """
    vector = RecVectorEnv(1, dataset, data=data)
    dynamics, base = vector.dynamics, _peak_mib()
    table = [
        "| environment | sessions | steps/s, median | lowest to highest | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    cases: list[tuple[str, int, Run]] = [("RecEnv", 1, _single(RecEnv(dynamics=dynamics), seconds))]
    cases += [
        ("RecVectorEnv", n, _vector(RecVectorEnv(n, dynamics=dynamics), seconds)) for n in SIZES
    ]
    for name, size, run in tqdm(cases, desc="measuring", unit="size"):
        run()  # warms up
        rates = [run() for _ in range(runs)]
        table.append(
            f"| {name} | {size:,} | {np.median(rates):,.0f} | "
            f"{min(rates):,.0f} to {max(rates):,.0f} | {_peak_mib():,.0f} |"
        )
    tracker = type(dynamics.prepared.tracker).__name__
    return [
        f"# Speed of the environments: {dynamics.prepared.dataset.name}",
        "",
        f"Command: `{shlex.join(['python', *sys.argv])}`",
        "",
        f"{os.cpu_count()} cores ({_processor()}), {os.environ['OMP_NUM_THREADS']} thread; Python "
        f"{platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}, "
        f"gymnasium {gymnasium.__version__}.",
        "",
        f"{dynamics.n_users:,} users, {dynamics.n_items:,} items, {tracker} of "
        f"{dynamics.prepared.tracker.dim} units, observations of {dynamics.layout.size} numbers, "
        f"rules {', '.join(rule.name for rule in dynamics.rules)}; random policy; {runs} runs of "
        f"{seconds:g} s. The dataset with its models takes {base:,.0f} MiB of the memory.",
        "",
        *table,
        "",
        "## Where the time goes",
        "",
        "`tracker._step` is the GRU. `copy` is the masks, a byte for each item and session, once "
        "a step for the infos and once more where sessions end: with many sessions and items the "
        "memory bounds the speed. A single session pays for the number of calls.",
        "",
        "`RecVectorEnv` of 1,024 sessions:",
        "",
        *_profile(RecVectorEnv(1024, dynamics=dynamics), 300),
        "",
        "`RecEnv`:",
        "",
        *_profile(RecEnv(dynamics=dynamics), 10_000),
    ]


def main() -> None:
    """Measures, prints the report and writes it to the results folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="synthetic", help="steam or synthetic")
    parser.add_argument("--data", default=None, help="folder with the raw data (else ILREC_DATA)")
    parser.add_argument("--runs", type=int, default=7, help="runs of each size")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a run")
    arguments = parser.parse_args()
    report = measure(arguments.dataset, arguments.data, arguments.runs, arguments.seconds)
    text = "\n".join(report) + "\n"
    print(text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"env_speed_{arguments.dataset}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
