"""Made-up cells of a benchmark, for the tests of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ilrec_sb3.benchmark.report import Background
from ilrec_sb3.cells import CellResult
from recsim_env.planners import Episodes

N_ITEMS = 60


def episodes(
    mean: float, *, length: float = 20.0, sessions: int = 40, seed: int = 0, users: int = 7
) -> Episodes:
    """Returns sessions whose mean return is about ``mean``."""
    generator = np.random.default_rng([seed, round(10 * mean)])
    lengths = np.maximum(1, generator.normal(length, 4, sessions)).astype(np.int64)
    returns = (mean * lengths / lengths.mean()).astype(np.float32)
    shown = generator.zipf(1.4, size=(sessions, int(lengths.max()))) % N_ITEMS
    return Episodes(
        users=np.random.default_rng(users).integers(50, size=sessions),
        lengths=lengths,
        returns=returns,
        ended_by=("category",) * sessions,
        actions=tuple(tuple(row[:n].tolist()) for row, n in zip(shown, lengths, strict=True)),
    )


def cell(
    label: str,
    mean: float,
    *,
    algorithm: str | None = None,
    seed: int | None = None,
    group: str = "main",
    environment: str = "steam",
    modes: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    curve: tuple[tuple[int, float], ...] | None = None,
    **changes: Any,
) -> CellResult:
    """Returns a finished cell; with a seed it was trained and has a learning curve."""
    trained = seed is not None
    if curve is None:
        points = 1 - np.exp(-np.linspace(0, 5, 21))
        curve = tuple((5_000 * k, float(mean * p)) for k, p in enumerate(points)) if trained else ()
    values: dict[str, Any] = {
        "environment": environment,
        "fingerprint": f"fingerprint of {environment}",
        "label": label,
        "algorithm": algorithm or label,
        "group": group,
        "seed": seed,
        "steps": 100_000 if trained else 0,
        "seconds": 90.0 if trained else 0.4,
        "settings": settings or {},
        "curve": curve,
        "episodes": {
            mode: episodes(value, seed=seed or 0) for mode, value in (modes or {"": mean}).items()
        },
        "code": "0123456789abcdef",
    }
    return CellResult(**(values | changes))


def failed(label: str, *, seed: int | None = 0, **changes: Any) -> CellResult:
    """Returns a cell that failed."""
    values: dict[str, Any] = {
        "curve": (),
        "episodes": {},
        "steps": 0,
        "seconds": 0.0,
        "failed": "ValueError: the items | the users",
    }
    return cell(label, 1.0, seed=seed, **(values | changes))


def trained(
    label: str, mean: float, *, seeds: int = 5, spread: float = 1.0, **rest: Any
) -> list[CellResult]:
    """Returns one cell a seed, ``spread`` apart around ``mean``."""
    shift = spread * (np.arange(seeds) - (seeds - 1) / 2)
    if modes := rest.pop("modes", None):
        return [
            cell(label, mean, seed=k, modes={m: v + shift[k] for m, v in modes.items()}, **rest)
            for k in range(seeds)
        ]
    return [cell(label, mean + shift[k], seed=k, **rest) for k in range(seeds)]


def background(environment: str = "steam", title: str = "Steam, rule 50/4") -> Background:
    """Returns random items of five categories."""
    generator = np.random.default_rng(0)
    categories = (generator.random((N_ITEMS, 5)) < [0.6, 0.4, 0.3, 0.2, 0.1]).astype(np.float32)
    text = generator.normal(size=(N_ITEMS, 8)).astype(np.float32)
    return Background(
        environment=environment,
        title=title,
        n_items=N_ITEMS,
        categories=categories,
        category_names=("action", "indie", "casual", "racing", "sports"),
        popularity=generator.integers(0, 100, N_ITEMS),
        text=text / np.linalg.norm(text, axis=1, keepdims=True),
    )


def planner_cells(**rest: Any) -> list[CellResult]:
    """Returns floors and ceilings."""
    means = {
        "random": 17.0,
        "popularity": 20.5,
        "greedy": 23.1,
        "rule-aware greedy": 92.3,
        "rule-aware planner": 115.8,
        "oracle": 122.5,
    }
    return [cell(name, mean, **rest) for name, mean in means.items()]


def full_grid() -> list[CellResult]:
    """Returns every kind of row on two environments, one of them with several modes."""
    cells = planner_cells()
    cells += [cell("demonstrations", 68.1)]
    cells += trained("ILRec", 108.0)
    cells += trained("DiscreteSAC", 101.0, spread=2)
    cells += trained("DoubleDQN+items", 99.0, spread=3)
    cells += trained("sb3:DQN", 24.0)
    cells += trained("sb3:A2C+items", 61.0, spread=5)
    cells += trained("sb3:PPO+items", 66.0, spread=4)
    cells += trained("contrib:MaskablePPO", 48.0, spread=4)
    cells += trained("contrib:QRDQN+items", 95.0, spread=4)
    cells += trained("sb3:A2C+items@dorl", 108.5, spread=3)
    for name, mean in (("BC", 30.0), ("SQN", 33.0), ("CRR", 36.0), ("BCQ", 41.0), ("CQL", 44.0)):
        cells += trained(f"offline:{name}", mean, steps=10_000, seconds=30.0)
    for name, mean in (("w", 100.0), ("w_env", 103.0), ("w_IRL", 107.9), ("warm start", 110.8)):
        cells += trained(
            f"ILRec without {name}", mean, algorithm="ILRec", group="ablation", spread=0.6
        )
    for name, own, mean in (("GPT-3.5", 60.0, 104.0), ("GPT-4", 75.0, 111.0)):
        cells.append(
            cell(f"demonstrations {name}", own, algorithm="demonstrations", group="demonstrations")
        )
        cells += trained(f"ILRec, {name}", mean, algorithm="ILRec", group="demonstrations")
    for name, values in {
        "beta": (0.1, 1.0, 10.0, 100.0),
        "alpha": (0.0, 0.25, 0.5, 0.75, 1.0),
        "ent_coef": (0.0, 0.01, 0.1, 1.0),
        "imitation_coef": (0.1, 0.25, 0.5, 1.0),
    }.items():
        for k, value in enumerate(values):
            cells += trained(
                f"ILRec {name}={value:g}",
                100.0 + 5 * k - 2 * k * k,
                algorithm="ILRec",
                group="sensitivity",
                settings={name: value},
            )
    cells[-1] = failed("ILRec imitation_coef=1", seed=4, algorithm="ILRec", group="sensitivity")
    coat = {"environment": "coat-easyrl4rec"}
    for name, fb in (("random", 28.0), ("greedy", 30.0), ("rule-aware greedy", 79.4)):
        cells.append(cell(name, fb, modes={"FB": fb, "NX_0": fb - 2, "NX_10": fb / 3}, **coat))
    cells.append(cell("oracle", 93.7, modes={"FB": 93.7, "NX_0": 88.3, "NX_10": 30.8}, **coat))
    for name, fb in (("ILRec", 86.0), ("sb3:A2C", 81.0), ("offline:CQL", 40.0), ("sb3:DQN", 50.0)):
        modes = {"FB": fb, "NX_0": fb - 5, "NX_10": fb / 3}
        cells += trained(name, fb, modes=modes, **coat)
    cells += [failed("offline:BCQ", seed=k, **coat) for k in range(5)]
    return cells
