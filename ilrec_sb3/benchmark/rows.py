"""Rows of a benchmark's tables: the cells of one policy, summed up over its seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ilrec_sb3.benchmark import metrics
from ilrec_sb3.cells import DEMONSTRATIONS, CellResult, check_comparable
from ilrec_sb3.evaluation import RECORD_ENDED
from recsim_env.errors import DataError
from recsim_env.planners import Episodes

__all__ = [
    "CEILINGS",
    "FEW",
    "FLOORS",
    "MAJORITY",
    "ORACLE",
    "OURS",
    "PLANNER",
    "RANDOM",
    "SPECIAL",
    "Background",
    "Comparison",
    "Figures",
    "Results",
    "Row",
    "compare",
    "curve_return",
    "curve_seconds",
    "demonstrated_pairs",
    "dqn_row",
    "gather",
    "other_users_bar",
    "same_users",
    "section_of",
    "speed_bars",
    "time_to",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

OURS = "ILRec"
FLOORS = ("random", "popularity", "greedy")
CEILINGS = ("rule-aware greedy", "rule-aware planner", "oracle")
PLANNER, ORACLE, RANDOM = "rule-aware planner", "oracle", "random"
SPECIAL = ("ablation", DEMONSTRATIONS, "sensitivity")
MAJORITY = 3
"""How many of the most frequent categories are the majority."""

FEW = 3
"""Trainings with fewer seeds get no verdict."""

NEAR = 0.9
"""Share of the planner's return whose reaching is timed."""

_DQN = re.compile(r"(sb3:)?(Double)?DQN(\+items)?")


@dataclass(frozen=True)
class Background:
    """What the metrics of shown items need to know of one environment.

    Attributes:
        environment: Its name in the grid.
        title: What the report calls it.
        n_items: Size of the catalogue.
        categories: (n_items, C) 1 where an item carries a category.
        category_names: Their C names.
        popularity: (n_items,) train interactions.
        text: (n_items, d) text embeddings, unit rows.
    """

    environment: str
    title: str
    n_items: int
    categories: FloatArray
    category_names: tuple[str, ...]
    popularity: IntArray
    text: FloatArray


@dataclass(frozen=True)
class Figures:
    """What the sessions of one cell under one test mode came to.

    Attributes:
        sessions: How many.
        length: Mean length, in items.
        per_step: Mean reward of an item.
        mean_return: Mean undiscounted return.
        low: Lower end of its 95 % bootstrap interval over sessions.
        high: Upper end.
        shown: Metrics of what was shown, by name; empty without a background.
    """

    sessions: int
    length: float
    per_step: float
    mean_return: float
    low: float
    high: float
    shown: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One policy under one test mode; figures are interquartile means over its seeds.

    Attributes:
        label: Its name in the table.
        algorithm: What it is.
        group: Table that it belongs to.
        mode: Test mode, "" where there is one only.
        cells: Finished cells, by seed; none where all failed.
        failed: Cells that failed.
        figures: Of each finished cell.
        returns: (k,) mean return of each.
        mean_return: Their interquartile mean.
        low: Lower end of its 95 % bootstrap interval over seeds and sessions.
        high: Upper end.
    """

    label: str
    algorithm: str
    group: str
    mode: str
    cells: tuple[CellResult, ...]
    failed: tuple[CellResult, ...]
    figures: tuple[Figures, ...]
    returns: NDArray[np.float64] = field(repr=False)
    mean_return: float
    low: float
    high: float

    @property
    def trained(self) -> bool:
        """Whether a training made it."""
        return any(cell.seed is not None for cell in (*self.cells, *self.failed))

    @property
    def section(self) -> str:
        """Section of the table: "floor", "played", "offline", "online" or "ceiling"."""
        return section_of(self.algorithm, self.trained)

    @property
    def length(self) -> float:
        """Length of a session, in items."""
        return float(metrics.interquartile_mean([f.length for f in self.figures]))

    @property
    def per_step(self) -> float:
        """Reward of an item."""
        return float(metrics.interquartile_mean([f.per_step for f in self.figures]))

    @property
    def seconds(self) -> float:
        """Median wall time of training, or of playing where nothing was trained."""
        return float(np.median([cell.seconds for cell in self.cells]))

    @property
    def steps(self) -> int:
        """Median steps of training."""
        return int(np.median([cell.steps for cell in self.cells]))

    @property
    def curves(self) -> list[tuple[tuple[int, float], ...]]:
        """The learning curves of the seeds that have one."""
        return [cell.curve for cell in self.cells if cell.curve]

    @property
    def along(self) -> list[float]:
        """Mean return along the learning curve of each seed that has one of two points or more."""
        return [metrics.mean_along(curve) for curve in self.curves if len(curve) > 1]

    @property
    def few(self) -> bool:
        """Whether it was trained with too few seeds for a verdict."""
        return self.trained and len(self.cells) < FEW

    def shown(self, name: str) -> float:
        """Returns a metric of what was shown, of the seeds that have it; NaN where none has."""
        values = self._shown(name)
        return float(metrics.interquartile_mean(values)) if len(values) else float("nan")

    def without(self, name: str) -> int:
        """Returns how many seeds lack a metric of what was shown."""
        return len(self.figures) - len(self._shown(name))

    def _shown(self, name: str) -> list[float]:
        values = [figures.shown.get(name, np.nan) for figures in self.figures]
        return [value for value in values if not np.isnan(value)]

    @property
    def cut(self) -> float:
        """Share of the sessions that ended because their record did, not the user."""
        endings = [end for cell in self.cells for end in cell.episodes[self.mode].ended_by]
        return endings.count(RECORD_ENDED) / len(endings)

    @property
    def played(self) -> list[Episodes]:
        """The sessions of each finished cell."""
        return [cell.episodes[self.mode] for cell in self.cells]

    def draws(self, stream: int = 0, seed: int = 0) -> NDArray[np.float64]:
        """Returns bootstrap draws of ``mean_return``.

        Args:
            stream: As in `ilrec_sb3.benchmark.metrics.bootstrap_iqm`.
            seed: As there.
        """
        return metrics.bootstrap_iqm(
            [episodes.returns for episodes in self.played],
            paired=same_users(self.played),
            stream=stream,
            seed=seed,
        )


@dataclass(frozen=True)
class Comparison:
    """How one row stands to another.

    Attributes:
        other: The other row.
        difference: Return of the one less that of the other.
        low: Lower end of the 95 % bootstrap interval of ``difference``.
        high: Upper end.
        probability: P(one > other) over seeds; NaN where there are too few.
        few: Whether one of the two was trained with too few seeds.
    """

    other: Row
    difference: float
    low: float
    high: float
    probability: float
    few: bool = False

    @property
    def verdict(self) -> str:
        """Whether it is "above" or "below", the interval leaving out 0, or else "level".

        "few" where there are too few seeds to say.
        """
        if self.few:
            return "few"
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "level"


@dataclass(frozen=True)
class Results:
    """All rows of one environment.

    Attributes:
        environment: Its name.
        title: What the report calls it.
        modes: Test modes, the first one first; ("",) where there is one only.
        rows: Rows by mode, in the order of the grid.
        background: None where it is not known.
    """

    environment: str
    title: str
    modes: tuple[str, ...]
    rows: Mapping[str, Sequence[Row]]
    background: Background | None

    def main(self, mode: str) -> list[Row]:
        """Returns the rows of the main table; floors and ceilings of any group among them."""
        found: dict[str, Row] = {}
        for row in self.rows[mode]:
            if row.group not in SPECIAL or row.section in ("floor", "ceiling"):
                found.setdefault(row.label, row)
        return list(found.values())

    def group(self, mode: str, group: str) -> list[Row]:
        """Returns the rows of a special group without floors and ceilings."""
        return [
            row
            for row in self.rows[mode]
            if row.group == group and row.section not in ("floor", "ceiling")
        ]

    def named(self, mode: str, name: str) -> Row | None:
        """Returns the first finished row with this algorithm, that of the main table if any."""
        candidates = [row for row in self.rows[mode] if row.algorithm == name and row.cells]
        return min(candidates, key=lambda row: row.group in SPECIAL, default=None)

    def planner(self, mode: str) -> Row | None:
        """Returns the rule-aware planner, else the rule-aware greedy one."""
        return self.named(mode, PLANNER) or self.named(mode, CEILINGS[0])

    def ours(self, mode: str) -> Row | None:
        """Returns ILRec's row: that of its name, else the first of the main table."""
        candidates = [
            row
            for row in self.rows[mode]
            if row.algorithm == OURS
            and row.cells
            and (row.label == OURS or row.group not in SPECIAL)
        ]
        return min(
            candidates, key=lambda row: (row.label != OURS, row.group in SPECIAL), default=None
        )


def section_of(algorithm: str, trained: bool) -> str:
    """Returns the section of the table that a policy belongs to.

    Args:
        algorithm: Its name.
        trained: Whether a training made it.
    """
    if algorithm in FLOORS:
        return "floor"
    if algorithm in CEILINGS:
        return "ceiling"
    if not trained:
        return "played"
    return "offline" if algorithm.startswith("offline:") else "online"


def gather(
    cells: Sequence[CellResult], backgrounds: Mapping[str, Background]
) -> tuple[Results, ...]:
    """Sums up cells by environment, mode and row, in the order in which they come.

    Args:
        cells: Of any number of environments.
        backgrounds: Of environments, by name; one that is missing costs the metrics of what was
            shown.

    Raises:
        DataError: Without any cell, where cells of one environment have other fingerprints, or
            where two cells are the same.
    """
    if not cells:
        raise DataError("No cell came to report on; run the benchmark first.")
    found = []
    for environment in dict.fromkeys(cell.environment for cell in cells):
        own = [cell for cell in cells if cell.environment == environment]
        _check(environment, own)
        background = backgrounds.get(environment)
        modes = tuple(dict.fromkeys(mode for cell in own for mode in cell.episodes)) or ("",)
        rows = {mode: list(_rows(own, mode, background)) for mode in modes}
        title = background.title if background else environment
        found.append(Results(environment, title, modes, rows, background))
    return tuple(found)


def _check(environment: str, cells: Sequence[CellResult]) -> None:
    check_comparable([cell for cell in cells if not cell.failed])
    seen = set()
    for cell in cells:
        key = (cell.group, cell.label, cell.seed)
        if key in seen:
            raise DataError(
                f"Two cells of {environment!r} are {cell.label!r} with seed {cell.seed}; give "
                "their rows labels of their own."
            )
        seen.add(key)


def _rows(cells: Sequence[CellResult], mode: str, background: Background | None) -> Iterable[Row]:
    for group, label in dict.fromkeys((cell.group, cell.label) for cell in cells):
        same = [cell for cell in cells if (cell.group, cell.label) == (group, label)]
        # a policy that was not played under this mode has no row there
        finished = [cell for cell in same if not cell.failed and mode in cell.episodes]
        failed = [cell for cell in same if cell.failed]
        if finished or failed:
            yield _row(finished, failed, mode, background)


def _row(
    cells: Sequence[CellResult],
    failed: Sequence[CellResult],
    mode: str,
    background: Background | None,
) -> Row:
    first = (*cells, *failed)[0]
    cells = sorted(cells, key=lambda cell: -1 if cell.seed is None else cell.seed)
    figures = tuple(_figures(cell.episodes[mode], background) for cell in cells)
    returns = np.array([f.mean_return for f in figures], np.float64)
    mean, low, high = (float("nan"),) * 3
    if cells:
        played = [cell.episodes[mode] for cell in cells]
        draws = metrics.bootstrap_iqm([e.returns for e in played], paired=same_users(played))
        low, high = metrics.interval(draws)
        mean = float(metrics.interquartile_mean(returns))
    return Row(
        label=first.label,
        algorithm=first.algorithm,
        group=first.group,
        mode=mode,
        cells=tuple(cells),
        failed=tuple(failed),
        figures=figures,
        returns=returns,
        mean_return=mean,
        low=low,
        high=high,
    )


def same_users(played: Sequence[Episodes]) -> bool:
    """Returns whether session k has the same user in all of them.

    Args:
        played: At least one.
    """
    return all(np.array_equal(played[0].users, episodes.users) for episodes in played[1:])


def _figures(played: Episodes, background: Background | None) -> Figures:
    if len(played.returns) == 0:
        raise DataError("A cell without any session came; play at least one.")
    low, high = metrics.interval(metrics.bootstrap_iqm([played.returns]))
    return Figures(
        sessions=len(played.returns),
        length=float(played.lengths.mean()),
        per_step=float(played.returns.sum(dtype=np.float64) / played.lengths.sum()),
        mean_return=float(played.returns.mean(dtype=np.float64)),
        low=low,
        high=high,
        shown=_shown(played, background) if background else {},
    )


def _shown(played: Episodes, background: Background) -> dict[str, float]:
    shown = metrics.exposure(played.actions, background.n_items)
    categories = background.categories
    return {
        "coverage": metrics.coverage(shown),
        "diversity": metrics.intra_session_diversity(played.actions, background.text),
        "category diversity": metrics.intra_session_diversity(played.actions, categories),
        "category entropy": metrics.category_entropy(shown, categories),
        "novelty": metrics.novelty(shown, background.popularity),
        "majority share": metrics.majority_share(shown, categories, MAJORITY),
        "gini": metrics.gini(shown),
    }


def compare(one: Row, other: Row) -> Comparison:
    """Compares two finished rows; the sessions of both are drawn alike where the users are."""
    shared = same_users([*one.played, *other.played])
    low, high = metrics.interval(one.draws(stream=1) - other.draws(seed=0 if shared else 1))
    difference = one.mean_return - other.mean_return
    few = one.few or other.few
    return _comparison(other, difference, (low, high), (one.returns, other.returns), few)


def _comparison(
    other: Row,
    difference: float,
    interval: tuple[float, float],
    values: tuple[ArrayLike, ArrayLike],
    few: bool,
) -> Comparison:
    chance = float("nan") if few else metrics.probability_of_improvement(*values)
    return Comparison(other, difference, *interval, chance, few)


def compare_along(one: Row, other: Row) -> Comparison | None:
    """Compares the mean returns along two rows' learning curves; None where either has none.

    The curves are of few sessions, the same ones in all cells, so seeds alone are drawn anew.

    Args:
        one: A row.
        other: Another one.
    """
    ours, theirs = one.along, other.along
    if not ours or not theirs:
        return None
    low, high = metrics.interval(
        metrics.bootstrap_iqm([[value] for value in ours], stream=1)
        - metrics.bootstrap_iqm([[value] for value in theirs])
    )
    means = [float(metrics.interquartile_mean(values)) for values in (ours, theirs)]
    few = min(len(ours), len(theirs)) < FEW
    return _comparison(other, means[0] - means[1], (low, high), (ours, theirs), few)


def curve_seconds(cell: CellResult) -> tuple[float, ...]:
    """Returns the seconds of training until each point of a learning curve.

    What comes before the first step, such as a warm start, counts. Cells of before the times were
    kept are taken to have trained at an even pace from the first step on.

    Args:
        cell: With a learning curve.
    """
    if cell.curve_seconds:
        return cell.curve_seconds
    return tuple(cell.seconds * step / max(cell.steps, 1) for step, _ in cell.curve)


def time_to(row: Row, bar: float) -> tuple[float | None, float | None]:
    """Returns the median steps and seconds of training until a return is reached.

    None where half of the seeds did not get there. See `curve_seconds`.

    Args:
        row: With learning curves.
        bar: The return.
    """
    steps, seconds = [], []
    for cell in row.cells:
        if cell.curve:
            first = metrics.first_step(cell.curve, bar)
            steps.append(first)
            times = zip(cell.curve, curve_seconds(cell), strict=True)
            seconds.append(next((s for (step, _), s in times if step >= first), np.inf))
    return metrics.median_or_never(steps), metrics.median_or_never(seconds)


def dqn_row(rows: Iterable[Row]) -> Row | None:
    """Returns the best DQN, plain or double, with or without items, that has a learning curve."""
    family = [row for row in rows if _DQN.fullmatch(row.algorithm) and row.curves]
    return max(family, key=lambda row: row.mean_return, default=None)


def speed_bars(results: Results) -> dict[str, float]:
    """Returns the returns whose reaching is timed, by name: of the planner and of the best DQN.

    Both are of the users of the curves, but for a planner that was not played for them
    (`other_users_bar`).

    Args:
        results: Of one environment.
    """
    mode = results.modes[0]
    bars = {}
    planner, dqn = results.planner(mode), dqn_row(results.main(mode))
    if planner is not None:
        bars[_planner_bar(planner)] = NEAR * curve_return(planner)
    if dqn is not None:
        bars[f"the final return of {dqn.label}"] = curve_return(dqn)
    return bars


def _planner_bar(planner: Row) -> str:
    return f"{100 * NEAR:.0f} % of the {planner.label}"


def curve_return(row: Row) -> float:
    """Returns a row's return to the users of the curves: the last point of its own curves.

    Its return of the table where it has none.

    Args:
        row: A finished one.
    """
    last = [curve[-1][1] for curve in row.curves]
    return float(metrics.interquartile_mean(last)) if last else row.mean_return


def other_users_bar(results: Results) -> str:
    """Returns the name of the bar that is of other users than the curves; "" if none is."""
    planner = results.planner(results.modes[0])
    return _planner_bar(planner) if planner is not None and not planner.curves else ""


def demonstrated_pairs(results: Results, mode: str) -> list[tuple[Row | None, Row]]:
    """Returns what learned from each kind of demonstrations beside these demonstrations.

    Rows belong together where their labels are the same but for the words "ILRec" and
    "demonstrations": "ILRec, GPT-4" and "demonstrations GPT-4".

    Args:
        results: Of one environment.
        mode: Test mode.
    """
    rows = [row for row in results.rows[mode] if row.cells]
    own = {_source(row): row for row in rows if row.algorithm == DEMONSTRATIONS}
    learned = [
        row
        for row in rows
        if row.algorithm != DEMONSTRATIONS and row.trained and row.group == DEMONSTRATIONS
    ]
    ours = results.ours(mode)
    if ours is not None and ours.group != DEMONSTRATIONS:
        learned.insert(0, ours)
    pairs = [(own.get(_source(row)), row) for row in learned]
    return [(shown, row) for shown, row in pairs if shown or row.group == DEMONSTRATIONS]


def _source(row: Row) -> str:
    words = re.sub(rf"{OURS}|{DEMONSTRATIONS}|\W+", " ", row.label, flags=re.IGNORECASE)
    return " ".join(words.lower().split())
