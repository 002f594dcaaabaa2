"""Measures what a gradient step gains where freed memory is kept (`keep_freed_memory`).

    python benchmarks/freed_memory.py --dataset amazon --data DIR

Processes with and without take turns, each with the default settings of DiscreteSAC; figures are
processor time and page faults of a gradient step. The table goes to the screen and to
``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")


def measure(dataset: str, data: str | None, steps: int, kept: bool) -> dict[str, float]:
    """Returns milliseconds and page faults of a gradient step, and the peak of memory in GiB."""
    import recsim_env
    from ilrec_sb3 import DiscreteSAC
    from ilrec_sb3.allocator import keep_freed_memory
    from recsim_env.simulator import make_dynamics

    if kept and not keep_freed_memory():
        raise SystemExit("The C library is not glibc, or the environment has settings for it.")
    dynamics = make_dynamics(dataset, data=data)
    env = recsim_env.RecEnv(dynamics=dynamics)
    model = DiscreteSAC("MlpPolicy", env, seed=0, learning_starts=256, updates_per_step=1 / 64)
    model.learn(1_024)
    model.updates_per_step = 1.0
    before = resource.getrusage(resource.RUSAGE_SELF)
    model.train(steps, model.batch_size)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "items": dynamics.n_items,
        "ms": 1_000 * spent / steps,
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "peak": after.ru_maxrss / 2**20,
    }


def main() -> None:
    """Measures in turns and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data", default=None, help="folder with the raw data")
    parser.add_argument("--steps", type=int, default=30, help="gradient steps of a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", choices=["kept", "given back"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        found = measure(arguments.dataset, arguments.data, arguments.steps, arguments.one == "kept")
        sys.stdout.write(json.dumps(found) + "\n")
        return
    runs: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
    for _ in range(arguments.runs):
        for name, found_so_far in runs.items():
            command = [sys.executable, *sys.argv, "--one", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found_so_far.append(json.loads(done.stdout.splitlines()[-1]))
    shown = ["python", *sys.argv]
    if arguments.data:
        shown = ["DIR" if part == arguments.data else part for part in shown]
    lines = [
        f"# Freed memory kept, {arguments.dataset}",
        "",
        f"`{' '.join(shown)}`: {arguments.runs} processes each, in turns, of {arguments.steps} "
        f"gradient steps of DiscreteSAC over {runs['kept'][0]['items']:,} items; 1 thread.",
        "",
        "| freed memory | ms of processor time a step, median (least to most) | page faults a step "
        "| peak, GiB |",
        "|---|---:|---:|---:|",
    ]
    for name, rows in runs.items():
        times = [row["ms"] for row in rows]
        faults, peak = (statistics.median(row[key] for row in rows) for key in ("faults", "peak"))
        lines.append(
            f"| {name} | {statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f}) | "
            f"{faults:,.0f} | {peak:.2f} |"
        )
    ratios = [
        kept["ms"] / back["ms"] for kept, back in zip(runs["kept"], runs["given back"], strict=True)
    ]
    lines += ["", f"Time where it is kept, as a share: {statistics.median(ratios):.2f}."]
    text = "\n".join(lines) + "\n"
    target = Path(__file__).parent / "results" / f"freed_memory_{arguments.dataset}.md"
    target.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
