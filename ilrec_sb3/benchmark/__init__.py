"""Benchmarks: grids of policies, environments and seeds, made in processes, and their reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recsim_env.lazy import lazy_names

if TYPE_CHECKING:
    from ilrec_sb3.benchmark.grid import (
        DemonstrationSpec,
        Grid,
        GridEnvironment,
        GridRow,
        load_grid,
    )
    from ilrec_sb3.benchmark.run import BenchmarkResult, run_benchmark

__all__ = [
    "BenchmarkResult",
    "DemonstrationSpec",
    "Grid",
    "GridEnvironment",
    "GridRow",
    "load_grid",
    "run_benchmark",
]

# a worker imports this package before it gets its first piece of work
lazy_names(
    __name__,
    {
        "grid": ("DemonstrationSpec", "Grid", "GridEnvironment", "GridRow", "load_grid"),
        "run": ("BenchmarkResult", "run_benchmark"),
    },
)
