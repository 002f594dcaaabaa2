"""What an experiment shows: a table, a plot of learning curves, and three lines of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ilrec_sb3.evaluation import Summary

__all__ = ["Curve", "Row", "findings", "plot_curves", "table_markdown"]

_LATENCY = "latency"
_COLOURS = {
    "ILRec": "#c1272d",
    "DiscreteSAC": "#0b6fa4",
    "A2C": "#6a8d2f",
    "DQN": "#8a5a9e",
    "MaskablePPO": "#c07a1a",
}
_LINES = {
    "oracle": ("#222222", "-"),
    "rule-aware planner": ("#222222", "--"),
    "demonstrations": ("#777777", "-."),
    "random": ("#777777", ":"),
}


@dataclass(frozen=True)
class Row:
    """One policy in the table.

    Attributes:
        policy: Its name.
        summary: Its sessions on the test world model.
        steps_per_second: Env steps per second: of training where it was trained, else of playing.
        seconds: Wall time of the same.
        trained: Whether it was trained.
        columns: Further columns, by their heads, as text.
    """

    policy: str
    summary: Summary
    steps_per_second: float
    seconds: float
    trained: bool
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        policy: Name of the algorithm.
        seed: Of the training.
        points: Env steps and the mean return of the test sessions played there.
    """

    policy: str
    seed: int
    points: tuple[tuple[int, float], ...]


def table_markdown(rows: Sequence[Row], title: str) -> str:
    """Returns the table with a caption that says what its columns are.

    Where a row has further columns, the table has them too, and the latency of a recommendation:
    that of the row where it names one, else the wall time of its playing over its recommendations.

    Args:
        rows: In the order of the table.
        title: What was played.
    """
    several = any(row.summary.seeds > 1 for row in rows)
    interval = "interval" if several else "95 % interval"
    further = list(dict.fromkeys(head for row in rows for head in row.columns))
    if further and _LATENCY not in further:
        further.append(_LATENCY)
    head = ("policy", "len", "per-step", "return", interval, "steps/s", "wall time", *further)
    lines = [f"| {' | '.join(_cell(text) for text in head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for row in rows:
        summary = row.summary
        name = f"**{row.policy}**" if row.policy == "ILRec" else row.policy
        cells = (
            name,
            f"{summary.length:.1f}",
            f"{summary.per_step:.2f}",
            f"{summary.mean_return:.1f}",
            f"{summary.low:.1f} to {summary.high:.1f}",
            _rate(row.steps_per_second),
            _duration(row.seconds),
            *(_further(row, head) for head in further),
        )
        lines.append(f"| {' | '.join(_cell(text) for text in cells)} |")
    caption = _caption(rows, title)
    if further:
        caption += (
            " Latency, of one recommendation: as the player measured it, else the wall time of "
            "playing over the recommendations, many sessions at a time."
        )
    return "\n".join([*lines, "", caption])


def _cell(text: str) -> str:
    """Returns text that stays within a cell of a markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def _further(row: Row, head: str) -> str:
    if text := row.columns.get(head, ""):
        return text
    if head != _LATENCY or row.trained or row.steps_per_second <= 0:
        return "–"
    seconds = 1 / row.steps_per_second
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1_000 * seconds:.2g} ms" if seconds < 0.01 else f"{1_000 * seconds:.0f} ms"


def _rate(steps_per_second: float) -> str:
    return f"{steps_per_second:,.0f}" if steps_per_second >= 10 else f"{steps_per_second:.2g}"


def _caption(rows: Sequence[Row], title: str) -> str:
    counts = {row.policy: row.summary.episodes for row in rows}
    shown = counts.pop("demonstrations", None)
    episodes = max(counts.values())
    seeds = max(row.summary.seeds for row in rows)
    interval = "the interval is the 95 % bootstrap interval of the mean return over sessions"
    if seeds > 1:
        interval = (
            f"of the {seeds} trainings of each algorithm the median is given, and in place of the "
            f"interval the lowest and the highest mean return; for the others {interval}"
        )
    exception = f" (the demonstrations: their own {shown:,} sessions and users)" if shown else ""
    cut = next((row.summary.cut for row in rows if row.policy == "demonstrations"), 0.0)
    if cut > 0:
        exception = (
            f" (the demonstrations: their own {shown:,} sessions and users; {cut:.0%} of them end "
            "with their record and not with the user, so their figures are lower bounds)"
        )
    for name, count in counts.items():
        if count < episodes:
            exception += f" ({name}: the first {count:,} of them)"
    times = " Steps/s and wall time: of playing."
    if any(row.trained for row in rows):
        times = " Steps/s and wall time: of training for what learns, of playing for the rest."
    plain = [name for name in ("DQN", "A2C") if name in counts]
    unmasked = f" Without masks: {', '.join(plain)}." if plain else ""
    return (
        f"{title}. {episodes:,} sessions on the test world model, the same users for every policy"
        f"{exception}; {interval}.{times}{unmasked}"
    )


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def findings(
    rows: Sequence[Row], curves: Sequence[Curve], *, dataset: str, steps: int
) -> tuple[str, str, str]:
    """Returns three lines, computed from the results: two say what was found, one what to try next.

    Args:
        rows: The table.
        curves: The learning curves.
        dataset: Name of the dataset.
        steps: Env steps of each training.
    """
    returns = {row.policy: row.summary.mean_return for row in rows}
    if "ILRec" not in returns:
        best = max((row for row in rows), key=lambda row: row.summary.mean_return).policy
        return (
            f"ILRec was not trained; the highest return is that of {best}: {returns[best]:.1f}.",
            "Demonstrations return "
            f"{returns['demonstrations']:.1f}, random recommendations {returns['random']:.1f}.",
            "Try next: ILRec among the algorithms.",
        )
    return (
        _against_others(returns),
        _against_bars(returns, curves),
        _next(returns, dataset, steps, max(row.summary.seeds for row in rows)),
    )


def _against_others(returns: Mapping[str, float]) -> str:
    own = returns["ILRec"]
    ratio = own / max(returns["demonstrations"], 1e-9)
    text = (
        f"ILRec returns {own:.1f} a session, {ratio:.2f} times its demonstrations' "
        f"{returns['demonstrations']:.1f}"
    )
    others = [name for name in ("DQN", "A2C", "MaskablePPO") if name in returns]
    above = [f"{name} ({returns[name]:.1f})" for name in others if own > returns[name]]
    below = [f"{name} ({returns[name]:.1f})" for name in others if own <= returns[name]]
    if above:
        text += f"; it is above {' and '.join(above)}"
    if below:
        text += f"; it is NOT above {' and '.join(below)}"
    return f"{text}."


def _against_bars(returns: Mapping[str, float], curves: Sequence[Curve]) -> str:
    floor, ceiling = returns["random"], returns["oracle"]
    span = max(ceiling - floor, 1e-9)
    own = returns["ILRec"]
    text = (
        f"That is {100 * (own - floor) / span:.0f} % of the way from random ({floor:.1f}) to the "
        f"oracle ({ceiling:.1f})"
    )
    for name in ("DiscreteSAC", "rule-aware planner"):
        if name in returns:
            word = _compared(own, returns[name])
            text += f", {word} {name}'s {100 * (returns[name] - floor) / span:.0f} %"
    for bar, words in (
        (returns["demonstrations"], "the demonstrations were passed"),
        (floor + 0.9 * span, "90 % of the way"),
    ):
        reached = [
            f"{name} {f'after {steps:,}' if steps else 'before its first'}"
            for name in ("ILRec", "DiscreteSAC")
            if (steps := _steps_to(curves, name, bar)) is not None
        ]
        if reached:
            text += f"; env steps until {words}: {', '.join(reached)}"
    return f"{text}."


def _compared(own: float, other: float) -> str:
    if abs(own - other) <= 0.01 * abs(other):
        return "level with"
    return "above" if own > other else "BELOW"


def _steps_to(curves: Sequence[Curve], policy: str, bar: float) -> int | None:
    """Returns the median over seeds of the first evaluated step at or above ``bar``."""
    firsts = []
    for curve in curves:
        if curve.policy == policy:
            firsts.append(next((step for step, mean in curve.points if mean >= bar), None))
    known = [step for step in firsts if step is not None]
    return int(np.median(known)) if known and len(known) == len(firsts) else None


def _next(returns: Mapping[str, float], dataset: str, steps: int, seeds: int) -> str:
    own = returns["ILRec"]
    tips = []
    if own <= returns["demonstrations"]:
        tips.append(
            f"more steps (--steps {2 * steps}): ILRec has not yet passed its demonstrations"
        )
    elif own < 0.98 * returns.get("DiscreteSAC", own):
        tips.append(
            "a shorter imitation_steps or a smaller imitation_coef: the demonstrations hold ILRec "
            "back behind DiscreteSAC"
        )
    elif own < 0.98 * returns.get("rule-aware planner", own):
        tips.append(f"more steps (--steps {2 * steps}): the planner is still ahead")
    if dataset == "synthetic":
        tips.append("real data (ilrec demo --dataset steam --data DIR)")
    if seeds == 1:
        tips.append("several seeds (--seeds 0 1 2)")
    tips.append("a masked competitor (--algorithms ILRec MaskablePPO)")
    return f"Try next: {'; '.join(tips[:2])}."


def plot_curves(path: Path, rows: Sequence[Row], curves: Sequence[Curve], title: str) -> None:
    """Draws the learning curves with floor and ceiling lines, and writes a PNG.

    Args:
        path: Where to.
        rows: The table; gives the horizontal lines.
        curves: One for each algorithm and seed; several seeds become their median and range.
        title: What was played.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    last = max(point[0] for curve in curves for point in curve.points)
    for policy in dict.fromkeys(curve.policy for curve in curves):
        same = [curve.points for curve in curves if curve.policy == policy]
        shortest = min(len(points) for points in same)
        steps = np.array([step for step, _ in same[0][:shortest]])
        means = np.array([[mean for _, mean in points[:shortest]] for points in same])
        colour = _COLOURS.get(policy, "#444444")
        axes.plot(
            steps,
            np.median(means, axis=0),
            color=colour,
            label=policy,
            linewidth=2.4 if policy == "ILRec" else 1.6,
        )
        if len(same) > 1:
            axes.fill_between(
                steps, means.min(axis=0), means.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
    taken: list[float] = []
    top = max(
        *(row.summary.mean_return for row in rows),
        *(mean for curve in curves for _, mean in curve.points),
    )
    for row in sorted(rows, key=lambda row: -row.summary.mean_return):
        if row.policy not in _LINES:
            continue
        colour, style = _LINES[row.policy]
        height = row.summary.mean_return
        axes.axhline(height, color=colour, linestyle=style, linewidth=1.1, zorder=0)
        # names of lines that lie close together are pushed apart
        place = min([height, *(other - 0.05 * top for other in taken)])
        taken.append(place)
        axes.annotate(
            f"{row.policy} {height:.0f}",
            (last, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color="#333333",
            annotation_clip=False,
        )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, last)
    axes.set_ylim(0, 1.06 * top)
    axes.set_xlabel("env steps")
    axes.set_ylabel("return of a session (test world model)")
    axes.set_title(f"{title}: learning curves", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png")
    beside.replace(path)
