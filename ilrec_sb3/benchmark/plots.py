"""Plots of a benchmark's report: returns, learning curves, sensitivity."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilrec_sb3.benchmark import metrics
from ilrec_sb3.benchmark.rows import (
    DEMONSTRATIONS,
    OURS,
    Results,
    Row,
    curve_return,
    curve_seconds,
)

__all__ = ["Sweep", "curves_png", "returns_png", "sensitivity_png", "sweeps"]

_RED, _BLUE, _GREEN, _GREY, _DARK = "#c1272d", "#0b6fa4", "#5b8a2b", "#8a8a8a", "#222222"
_SECTION_COLOURS = {
    "floor": _GREY,
    "played": "#b07d2b",
    "offline": _GREEN,
    "online": _BLUE,
    "ceiling": _DARK,
}
_SECTION_NAMES = {
    "floor": "floor",
    "played": "not trained here",
    "offline": "offline",
    "online": "online",
    "ceiling": "ceiling",
}
_PALETTE = ("#0b6fa4", "#6a8d2f", "#8a5a9e", "#c07a1a", "#2f8f83", "#5a5fb0")
_MARKS = ("D", "s", "^", "v", "P", "X")
_BARS = (("oracle", "-"), ("rule-aware planner", "--"), (DEMONSTRATIONS, "-."), ("random", ":"))


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


# -- returns ---------------------------------------------------------------------------------------


def returns_png(results: Results, references: Mapping[str, Mapping[str, float]]) -> bytes | None:
    """Draws each row's return with its interval and its seeds, one panel a mode.

    Args:
        results: Of one environment.
        references: For each mode, returns to mark by label of the row (published figures).

    Returns:
        A PNG; None where no row is finished.
    """
    first = [row for row in results.main(results.modes[0]) if row.cells]
    if not first:
        return None
    order = [row.label for row in sorted(first, key=lambda row: row.mean_return)]
    panels = len(results.modes)
    width = 8.4 if panels == 1 else 3.2 + 3.4 * panels
    figure = _figure(width, 1.5 + 0.27 * len(order))
    axes = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
    for panel, mode in zip(axes, results.modes, strict=True):
        rows = {row.label: row for row in results.main(mode) if row.cells}
        for height, label in enumerate(order):
            if label in rows:
                _dot(panel, height, rows[label], references.get(mode, {}).get(label))
        for name, style in _BARS:
            if name != DEMONSTRATIONS and (row := results.named(mode, name)):
                panel.axvline(
                    row.mean_return, color=_GREY, linestyle=style, linewidth=0.9, zorder=0
                )
        panel.set_title(mode or results.title, fontsize=10.5, loc="left")
        panel.set_xlabel("return of a session", fontsize=9)
        panel.grid(axis="y", color="#eeeeee", linewidth=0.8)
        panel.tick_params(axis="y", length=0)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.set_ylim(-0.7, len(order) - 0.3)
    axes[0].set_yticks(range(len(order)), order, fontsize=9)
    for tick, label in zip(axes[0].get_yticklabels(), order, strict=True):
        if label == OURS:
            tick.set_fontweight("bold")
            tick.set_color(_RED)
    _returns_legend(figure, first, any(references.values()))
    return _png(figure)


def _dot(axes: Any, height: float, row: Row, reference: float | None) -> None:
    colour = _RED if row.label == OURS else _SECTION_COLOURS[row.section]
    axes.plot([row.low, row.high], [height, height], color=colour, linewidth=2.2, alpha=0.55)
    axes.plot(row.mean_return, height, "o", color=colour, markersize=6.5, zorder=3)
    if len(row.returns) > 1:
        shift = np.full(len(row.returns), height - 0.28)
        axes.plot(row.returns, shift, "|", color=colour, markersize=5, alpha=0.8)
    if reference is not None:
        axes.plot(reference, height, "x", color=_DARK, markersize=6, zorder=4)


def _returns_legend(figure: Any, rows: Sequence[Row], published: bool) -> None:
    from matplotlib.lines import Line2D

    def mark(colour: str, label: str, marker: str = "o") -> Any:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)

    handles = [mark(_RED, OURS)] if any(row.label == OURS for row in rows) else []
    sections = {row.section for row in rows if row.label != OURS}
    handles += [
        mark(_SECTION_COLOURS[name], text)
        for name, text in _SECTION_NAMES.items()
        if name in sections
    ]
    if any(len(row.returns) > 1 for row in rows):
        handles.append(mark(_GREY, "a seed", "|"))
    if published:
        handles.append(mark(_DARK, "published", "x"))
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize=8.5)


# -- learning curves -------------------------------------------------------------------------------


def curves_png(results: Results) -> bytes | None:
    """Draws learning curves over steps and over wall time, with floor and ceiling lines.

    Lines are interquartile means over seeds, bands their 95 % bootstrap intervals over seeds. ILRec
    and the six best others have colours, the rest is grey.

    Args:
        results: Of one environment; its first mode is drawn.

    Returns:
        A PNG; None where there is no curve.
    """
    mode = results.modes[0]
    rows = [row for row in results.main(mode) if any(len(c) > 1 for c in row.curves)]
    if not rows:
        return None
    figure = _figure(11.0, 5.0)
    by_steps, by_time = figure.subplots(1, 2, sharey=True)
    styles = _curve_styles(rows)
    online = [row for row in rows if row.section != "offline"]
    handles = {}
    unit, per = _time_unit(rows)
    for row in rows:
        steps, means, low, high = _curve(row)
        times = _times(row, steps) / per
        for axes, x in ((by_steps, steps), (by_time, times)):
            if axes is by_steps and row not in online:
                continue
            style = styles[row.label]
            (line,) = axes.plot(x, means, **style, label=row.label)
            if low is not None and style["alpha"] == 1:
                axes.fill_between(x, low, high, color=style["color"], alpha=0.14, linewidth=0)
            if style["alpha"] == 1:
                handles[row.label] = line
            else:
                handles["others"] = line
    _bars(by_time, results, mode)
    _bars(by_steps, results, mode, named=False)
    by_steps.set_xlabel("env steps" + ("" if len(online) == len(rows) else " (offline: at right)"))
    by_time.set_xlabel(f"{unit} of training")
    by_steps.xaxis.set_major_formatter("{x:,.0f}")
    by_steps.set_ylabel("return of a session (test world model)")
    by_steps.set_ylim(bottom=0)
    for axes in (by_steps, by_time):
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{results.title}{f', {mode}' if mode else ''}: learning curves", fontsize=11)
    heights = {row.label: row.mean_return for row in rows}
    order = sorted(handles, key=lambda n: (n == "others", n != OURS, -heights.get(n, 0.0)))
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return _png(figure)


def _curve_styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    ranked = sorted((row for row in rows if row.label != OURS), key=lambda row: -row.mean_return)
    styles: dict[str, dict[str, Any]] = {
        row.label: {"color": "#bbbbbb", "linewidth": 1.0, "alpha": 0.8, "zorder": 1}
        for row in ranked
    }
    for row, colour in zip(ranked, _PALETTE, strict=False):
        styles[row.label] = {"color": colour, "linewidth": 1.6, "alpha": 1, "zorder": 2}
    styles[OURS] = {"color": _RED, "linewidth": 2.5, "alpha": 1, "zorder": 3}
    return styles


def _curve(
    row: Row,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Returns steps, interquartile means, and the band where there are several seeds."""
    curves = row.curves
    # seeds of vectorised trainings are evaluated at nearly, not exactly, the same steps
    steps = np.array(max(curves, key=len))[:, 0]
    values = np.stack([np.interp(steps, *np.array(curve).T) for curve in curves])
    means = metrics.interquartile_mean(values, axis=0)
    if len(curves) == 1:
        return steps, means, None, None
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(curves), size=(1_000, len(curves)))
    draws = metrics.interquartile_mean(values[chosen], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return steps, means, low, high


def _times(row: Row, steps: NDArray[Any]) -> NDArray[Any]:
    """Returns the median seconds of training until each of ``steps``."""
    cells = [cell for cell in row.cells if cell.curve]
    seconds = [np.interp(steps, np.array(c.curve)[:, 0], curve_seconds(c)) for c in cells]
    return np.asarray(np.median(seconds, axis=0))


def _time_unit(rows: Sequence[Row]) -> tuple[str, float]:
    longest = max(row.seconds for row in rows)
    if longest < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if longest < 3 * 3_600 else ("hours", 3_600.0)


def _bars(axes: Any, results: Results, mode: str, *, named: bool = True) -> None:
    """Draws the returns of floor and ceilings as lines; names close together are pushed apart.

    They are of the users of the curves where the cells have them.
    """
    rows = [(row, style) for name, style in _BARS if (row := results.named(mode, name))]
    rows.sort(key=lambda pair: -curve_return(pair[0]))
    if not rows:
        return
    top = max(axes.get_ylim()[1], 1.05 * curve_return(rows[0][0]))
    axes.set_ylim(top=top)
    place = math.inf
    for row, style in rows:
        height = curve_return(row)
        axes.axhline(height, color=_DARK, linestyle=style, linewidth=1.0, alpha=0.7, zorder=0)
        place = min(height, place - 0.045 * top)
        if named:
            axes.annotate(
                f"{row.label} {height:.0f}",
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                color="#333333",
                annotation_clip=False,
            )


# -- sensitivity -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Rows that differ in one setting only.

    Attributes:
        parameter: Its name.
        algorithm: What was trained.
        values: Ascending; numbers, else texts.
        rows: One for each value.
    """

    parameter: str
    algorithm: str
    values: tuple[Any, ...]
    rows: tuple[Row, ...]


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """Finds the settings that were swept: rows that agree in all others and differ in this one.

    Args:
        rows: Finished rows of one environment and mode.
    """
    found = []
    names = dict.fromkeys(name for row in rows for name in row.cells[0].settings)
    for name in names:
        bases: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            settings = dict(row.cells[0].settings)
            if name in settings:
                del settings[name]
                rest = json.dumps(settings, sort_keys=True, default=str)
                bases.setdefault((row.algorithm, rest), []).append(row)
        for (algorithm, _), same in bases.items():
            by_value = {_value(row.cells[0].settings[name]): row for row in same}
            if len(by_value) > 1:
                values = sorted(by_value, key=lambda value: (isinstance(value, str), value))
                ordered = tuple(by_value[value] for value in values)
                found.append(Sweep(name, algorithm, tuple(values), ordered))
    return found


def _value(value: Any) -> Any:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain else str(value)


def sensitivity_png(results: Results, mode: str) -> bytes | None:
    """Draws the return over each swept setting: seeds, interquartile mean, 95 % interval.

    Args:
        results: Of one environment.
        mode: Test mode.

    Returns:
        A PNG; None where nothing was swept.
    """
    rows = [row for row in results.group(mode, "sensitivity") if row.cells]
    found = sweeps(rows)
    if not found:
        return None
    columns = min(2, len(found))
    lines = math.ceil(len(found) / columns)
    figure = _figure(4.6 * columns, 0.5 + 3.1 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for panel, sweep in zip(panels, found, strict=False):
        _sweep_panel(panel, sweep)
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("return of a session", fontsize=9)
    title = f"{results.title}{f', {mode}' if mode else ''}: sensitivity"
    figure.suptitle(title, fontsize=11)
    return _png(figure)


def _sweep_panel(axes: Any, sweep: Sweep) -> None:
    numbers = not any(isinstance(value, str) for value in sweep.values)
    x = np.array(sweep.values if numbers else range(len(sweep.values)), np.float64)
    means = np.array([row.mean_return for row in sweep.rows])
    low, high = np.array([[row.low, row.high] for row in sweep.rows]).T
    axes.fill_between(x, low, high, color=_RED, alpha=0.13, linewidth=0)
    axes.plot(x, means, color=_RED, linewidth=1.8, marker="o", markersize=5, zorder=3)
    for place, row in zip(x, sweep.rows, strict=True):
        seeds = np.full(len(row.returns), place)
        axes.plot(seeds, row.returns, ".", color=_DARK, markersize=4, alpha=0.45, zorder=2)
    positive = x[x > 0]
    if numbers and len(positive) > 1 and x.min() >= 0 and positive.max() / positive.min() >= 30:
        if x.min() == 0:
            axes.set_xscale("symlog", linthresh=positive.min())
        else:
            axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" if numbers else str(value) for value in sweep.values])
    axes.minorticks_off()
    axes.set_title(f"{sweep.parameter} ({sweep.algorithm})", fontsize=10, loc="left")
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
