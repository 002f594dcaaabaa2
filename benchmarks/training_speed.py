"""Measures how many env steps a second ILRec and DiscreteSAC train, and how much memory they take.

    python benchmarks/training_speed.py --dataset steam --data DIR

Each figure is the median over runs of the default settings, demonstrations and warm start left out
of the time (they are given apart). The table goes to the screen and to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch as th

import recsim_env
from ilrec_sb3 import DiscreteSAC, ILRec
from recsim_env.simulator import make_dynamics


def measure(
    algorithm: type[DiscreteSAC], env: recsim_env.RecEnv, steps: int, seed: int
) -> tuple[float, float]:
    """Returns env steps a second and the seconds of the start (demonstrations, warm start)."""
    model = algorithm("MlpPolicy", env, seed=seed, learning_starts=256)
    started = time.perf_counter()
    model.learn(512)
    start = time.perf_counter() - started
    started = time.perf_counter()
    model.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - started), start


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data", default=None, help="folder with the raw data")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    dynamics = make_dynamics(arguments.dataset, data=arguments.data)
    lines = [
        f"# Training speed on {arguments.dataset}",
        "",
        f"`{' '.join(['python', *sys.argv])}`: {arguments.runs} runs of {arguments.steps:,} env "
        f"steps each, {dynamics.n_items:,} items, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {th.__version__}.",
        "",
        "| algorithm | threads | env steps/s, median (least to most) | start, s |",
        "|---|---|---|---|",
    ]
    for threads in arguments.threads:
        th.set_num_threads(threads)
        for algorithm in (ILRec, DiscreteSAC):
            env = recsim_env.RecEnv(dynamics=dynamics)
            runs = [
                measure(algorithm, env, arguments.steps, seed) for seed in range(arguments.runs)
            ]
            rates = [rate for rate, _ in runs]
            start = statistics.median(seconds for _, seconds in runs)
            lines.append(
                f"| {algorithm.__name__} | {threads} | {statistics.median(rates):,.0f} "
                f"({min(rates):,.0f} to {max(rates):,.0f}) | {start:.1f} |"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines += ["", f"Peak memory of the whole script: {peak:.2f} GiB."]
    text = "\n".join(lines) + "\n"
    target = Path(__file__).parent / "results" / f"training_speed_{arguments.dataset}.md"
    target.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
