"""The report of an experiment with LEA's recommenders: tables, sentences, learning curves."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ilrec_sb3.benchmark.metrics import (
    RESAMPLES,
    bootstrap_iqm,
    interquartile_mean,
    interval,
)
from ilrec_sb3.benchmark.tables import Line, Table, Text
from ilrec_sb3.benchmark.text import NONE, between, duration, listing, number
from ilrec_sb3.lea.cells import Finished
from ilrec_sb3.lea.grid import RecommenderGrid
from ilrec_sb3.lea.training import metric_names
from ilrec_sb3.lea.variants import Variant
from recsim_env import artefacts
from recsim_env.sequences import IntArray

__all__ = [
    "Comparison",
    "Estimate",
    "Tested",
    "compare",
    "estimate",
    "gains",
    "write_recommender_report",
]

FloatArray = NDArray[np.float64]

SHOWN = ("HR@10", "NDCG@10")
"""Metrics with intervals and comparisons; the others are in the table of means and the CSV."""

FEW = 3
"""With fewer seeds there is no verdict."""

_DIGITS = 4
_COLOURS = ("#c1272d", "#0b6fa4", "#6a8d2f", "#8a5a9e", "#c07a1a", "#2f8f83", "#5a5fb0", "#777777")
_STYLES = ("-", "--", ":")

_LEAST_SPAN = 0.15
"""What the axis of the learning curves spans at least, as a share of its top: in less, noise would
look like learning."""


# -- figures ---------------------------------------------------------------------------------------


def gains(ranks: IntArray, metric: str) -> FloatArray:
    """Returns (m,) what each test example adds to a metric, which is the mean of them.

    Args:
        ranks: (m,) of the targets, 1 the best.
        metric: ``HR@k`` or ``NDCG@k``.
    """
    kind, _, k = metric.partition("@")
    hits = ranks <= int(k)
    return np.where(hits, 1.0 if kind == "HR" else 1.0 / np.log2(ranks + 1.0), 0.0)


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds.

    Attributes:
        mean: Interquartile mean over the seeds.
        median: Over the seeds.
        low: Lower end of the 95 % bootstrap interval of the mean, over seeds and users.
        high: Upper end.
        seeds: How many.
    """

    mean: float
    median: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """A row against another one, seed by seed.

    Attributes:
        baseline: Label of the other one.
        difference: Of the two, over the seeds that both have.
        above: In how many of these seeds the row is above.
    """

    baseline: str
    difference: Estimate
    above: int


@dataclass(frozen=True, eq=False)
class Tested:
    """The test examples of a dataset.

    Attributes:
        users: (m,) to whom each belongs.
        floors: (m,) ranks of the targets by name of the floor.
    """

    users: IntArray
    floors: Mapping[str, IntArray]


def estimate(values: Sequence[FloatArray], users: IntArray) -> Estimate:
    """Returns a figure of what each test example adds to it, for each seed.

    The examples of a user go together: the interval draws users, each with all examples.

    Args:
        values: (m,) for each seed; the same examples for every seed.
        users: (m,) to whom each example belongs.
    """
    means = np.array([part.mean() for part in values])
    _, user_m = np.unique(users, return_inverse=True)
    counts = np.bincount(user_m)
    sums = [np.bincount(user_m, weights=part) for part in values]
    # A seed counts with sum / count over the users drawn. All seeds get the same draw of users, and
    # with it the same count, which may thus be divided by at the end.
    draws = bootstrap_iqm(sums, paired=True) / bootstrap_iqm([counts], paired=True)
    low, high = interval(draws)
    return Estimate(
        float(interquartile_mean(means)), float(np.median(means)), low, high, len(values)
    )


def compare(
    ours: Mapping[int, Finished],
    others: Mapping[int, Finished],
    users: IntArray,
    baseline: str,
    metric: str,
) -> Comparison | None:
    """Compares two rows on the seeds that both have; None without any.

    Args:
        ours: Cells by seed.
        others: Likewise.
        users: (m,) to whom each test example belongs.
        baseline: Label of the others.
        metric: Its name.
    """
    both = sorted(set(ours) & set(others))
    if not both:
        return None
    values = [
        gains(ours[seed].trained.test_ranks, metric)
        - gains(others[seed].trained.test_ranks, metric)
        for seed in both
    ]
    above = sum(bool(part.mean() > 0) for part in values)
    return Comparison(baseline, estimate(values, users), above)


@dataclass(frozen=True)
class _Row:
    """A row of the tables on one dataset and one backbone."""

    label: str
    cells: Mapping[int, Finished]
    estimates: Mapping[str, Estimate]
    comparisons: Mapping[str, Comparison]


@dataclass(frozen=True)
class _Part:
    """One dataset and one backbone."""

    dataset: str
    backbone: str
    rows: tuple[_Row, ...]


def _parts(
    grid: RecommenderGrid, cells: Sequence[Finished], tested: Mapping[str, Tested]
) -> list[_Part]:
    found: dict[tuple[str, str], dict[str, dict[int, Finished]]] = {}
    for cell in cells:
        if cell.trained.test_ranks.size:
            place = found.setdefault((cell.task.dataset, cell.task.backbone), {})
            place.setdefault(cell.task.label, {})[cell.task.seed] = cell
    baselines = {row.name: grid.baseline(row) for row in grid.rows}
    parts = []
    for (dataset, backbone), rows in sorted(found.items(), key=lambda item: _place(grid, item[0])):
        ordered = [label for label in baselines if label in rows]
        users = tested[dataset].users
        made = [_row(label, rows, users, baselines[label]) for label in ordered]
        parts.append(_Part(dataset, backbone, tuple(made)))
    return parts


def _place(grid: RecommenderGrid, key: tuple[str, str]) -> tuple[int, str]:
    return list(grid.datasets).index(key[0]), key[1]


def _row(
    label: str,
    rows: Mapping[str, Mapping[int, Finished]],
    users: IntArray,
    baseline: str | None,
) -> _Row:
    cells = rows[label]
    estimates = {
        name: estimate(
            [gains(cells[seed].trained.test_ranks, name) for seed in sorted(cells)], users
        )
        for name in metric_names()
    }
    comparisons = {}
    if baseline is not None and baseline in rows:
        for name in metric_names():
            found = compare(cells, rows[baseline], users, baseline, name)
            if found is not None:
                comparisons[name] = found
    return _Row(label, cells, estimates, comparisons)


# -- tables ----------------------------------------------------------------------------------------


def _means_table(part: _Part, floors: Mapping[str, IntArray]) -> Table:
    """Returns the metrics of all rows, the best figures of each column marked."""
    heads = metric_names()
    columns = {
        name: sorted((row.estimates[name].mean for row in part.rows), reverse=True)
        for name in heads
    }

    def styled(name: str, value: float) -> Text:
        place = columns[name].index(value)
        return Text(number(value, _DIGITS), ("best", "second", "")[min(place, 2)])

    lines = [Line((Text("floors", "muted"),))]
    lines += [
        Line((Text(label), Text(NONE), *(Text(number(_floor(r, n), _DIGITS)) for n in heads)))
        for label, r in floors.items()
    ]
    lines.append(Line((Text("trained", "muted"),)))
    for row in part.rows:
        figures = [styled(name, row.estimates[name].mean) for name in heads]
        lines.append(Line((Text(row.label), Text(str(len(row.cells))), *figures)))
    caption = (
        "Interquartile means over seeds; the best trained one is bold, the second underlined. "
        "popularity: how often an item is a train target; last item: how often it followed the "
        "last item of the history in the train examples."
    )
    return Table(("", "seeds", *heads), tuple(lines), caption)


def _floor(ranks: IntArray, metric: str) -> float:
    return float(gains(ranks, metric).mean()) if ranks.size else float("nan")


def _comparison_table(part: _Part) -> Table:
    heads = ["", "compared with"]
    for name in SHOWN:
        heads += [f"{name}, 95 % interval", f"difference in {name}", "95 % interval", "seeds above"]
    lines = []
    for row in part.rows:
        compared = row.comparisons.get(SHOWN[0])
        texts = [row.label, NONE if compared is None else compared.baseline]
        for name in SHOWN:
            own, found = row.estimates[name], row.comparisons.get(name)
            texts.append(between(own.low, own.high, _DIGITS))
            if found is None:
                texts += [NONE, NONE, NONE]
            else:
                d = found.difference
                texts += [
                    _signed(d.mean),
                    between(d.low, d.high, _DIGITS),
                    f"{found.above} of {d.seeds}",
                ]
        lines.append(Line(tuple(map(Text, texts))))
    caption = (
        "Differences are taken seed by seed, on the same test examples. Intervals draw seeds and "
        f"users anew, {RESAMPLES:,} times; a user comes with all test examples of theirs."
    )
    return Table(tuple(heads), tuple(lines), caption)


def _signed(value: float) -> str:
    return f"+{number(value, _DIGITS)}" if value > 0 else number(value, _DIGITS)


def _verdicts(parts: Sequence[_Part]) -> list[str]:
    """Returns a sentence for each row that is compared: where it is above on both metrics."""
    places: dict[tuple[str, str], list[tuple[str, bool | None]]] = {}
    for part in parts:
        for row in part.rows:
            found = [row.comparisons.get(name) for name in SHOWN]
            known = [one for one in found if one is not None]
            if len(known) < len(SHOWN):
                continue
            enough = all(one.difference.seeds >= FEW for one in known)
            above = all(one.difference.median > 0 for one in known) if enough else None
            key = (row.label, known[0].baseline)
            places.setdefault(key, []).append((f"{part.dataset} ({part.backbone})", above))
    lines = []
    for (label, baseline), judged in places.items():
        clear = [(place, above) for place, above in judged if above is not None]
        if not clear:
            lines.append(f"- {label} against {baseline}: too few seeds.")
            continue
        where = [place for place, above in clear if above]
        said = f": {listing(where)}" if where else ""
        lines.append(
            f"- {label} is above {baseline} on {listing(SHOWN)}, in the median of the differences "
            f"over seeds, in {len(where)} of {len(clear)} places{said}."
        )
    return lines


# -- plots -----------------------------------------------------------------------------------------


def _curve(cells: Sequence[Finished]) -> tuple[FloatArray, FloatArray]:
    """Returns steps of the served network and interquartile means over seeds of NDCG@10.

    A training that ended earlier goes on with its last figure.
    """
    halved = 2 if Variant.parse(cells[0].task.variant).learns_q else 1
    curves = [cell.trained.curve for cell in cells]
    steps = np.array([point["step"] for point in max(curves, key=len)], np.float64)
    values = [
        np.interp(steps, [p["step"] for p in curve], [p["NDCG@10"] for p in curve])
        for curve in curves
    ]
    return steps / halved, np.asarray(interquartile_mean(np.stack(values), axis=0))


def _legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """Puts a legend below the panels, in as many columns as the figure is wide enough for."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=9,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _curves_png(parts: Sequence[_Part], title: str) -> bytes | None:
    """Draws the learning curves of one dataset, a panel for each backbone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [
        (part, [row for row in part.rows if all(c.trained.curve for c in row.cells.values())])
        for part in parts
    ]
    if not any(rows for _, rows in drawn):
        return None
    figure = Figure(figsize=(1.5 + 5.0 * len(drawn), 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(drawn), squeeze=False, sharey=True)[0]
    handles: dict[str, Any] = {}
    labels = list(dict.fromkeys(row.label for part in parts for row in part.rows))
    for panel, (part, rows) in zip(panels, drawn, strict=True):
        for row in rows:
            place = labels.index(row.label)
            steps, values = _curve(list(row.cells.values()))
            (handles[row.label],) = panel.plot(
                steps,
                values,
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_STYLES[place // len(_COLOURS) % len(_STYLES)],
                linewidth=1.6,
            )
        panel.set_title(part.backbone, fontsize=10.5, loc="left")
        panel.set_xlabel("gradient steps of the served network")
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
    low, high = panels[0].get_ylim()  # of all panels: they share it
    panels[0].set_ylim(bottom=max(0.0, min(low, high - _LEAST_SPAN * high)))
    panels[0].set_ylabel("NDCG@10 on the validation split")
    figure.suptitle(f"{title}: learning curves", fontsize=11)
    _legend(figure, {label: handles[label] for label in labels if label in handles})
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


# -- files -----------------------------------------------------------------------------------------


def write_recommender_report(
    folder: Path,
    grid: RecommenderGrid,
    cells: Sequence[Finished],
    tested: Mapping[str, Tested],
    *,
    failed: Sequence[str] = (),
    missing: int = 0,
    command: str = "",
) -> Path:
    """Writes ``report.md``, ``results.csv`` and a PNG of learning curves for each dataset.

    Args:
        folder: Where to.
        grid: What was asked for.
        cells: The finished cells, at least one.
        tested: The test examples by dataset.
        failed: Names of the cells that failed.
        missing: How many cells are not there.
        command: What was typed.

    Returns:
        The report.
    """
    parts = _parts(grid, cells, tested)
    lines = [f"# {grid.title or grid.name}", ""]
    lines += [_described(grid, cells, missing), ""]
    if failed:
        lines += [f"{len(failed)} cells failed: {', '.join(failed)}.", ""]
    verdicts = _verdicts(parts)
    if verdicts:
        lines += ["## Summary", "", *verdicts, ""]
    for dataset in dict.fromkeys(part.dataset for part in parts):
        title = grid.datasets[dataset].title or dataset
        own = [part for part in parts if part.dataset == dataset]
        lines += [f"## {title}", "", _about(grid, dataset, tested[dataset]), ""]
        png = _curves_png(own, title)
        if png is not None:
            name = f"{dataset}_curves.png"
            artefacts.write_file(folder / name, png)
            lines += [f"![Learning curves on {title}]({name})", ""]
        for part in own:
            lines += [f"### {part.backbone}", ""]
            lines += [_means_table(part, tested[dataset].floors).markdown()]
            lines += ["", _comparison_table(part).markdown(), ""]
    if command:
        lines += ["## How to replicate", "", "```console", f"$ {command}", "```", ""]
    artefacts.write_file(folder / "results.csv", _csv(parts, tested))
    return artefacts.write_file(folder / "report.md", "\n".join(lines).rstrip() + "\n")


def _described(grid: RecommenderGrid, cells: Sequence[Finished], missing: int) -> str:
    """Returns paragraphs on what was trained, which weights are kept, and what seeds vary."""
    spent = sum(cell.trained.seconds for cell in cells)
    lacking = f" {missing} cells of the grid are not there yet." if missing else ""
    codes = len({cell.code for cell in cells})
    version = "" if codes == 1 else f" The cells come from {codes} versions of the code."
    first = [f"{len(cells)} trainings, {duration(spent)} in all.{lacking}{version}"]
    frameworks = {Variant.parse(cell.task.variant).framework for cell in cells}
    second = ["The weights with the best NDCG@10 on the validation split are kept."]
    if "SA2C" in frameworks:
        second.append(
            f"SA2C does without advantages for {_warm_ups(cells)}; only weights from after that "
            "count, unless the training ends before."
        )
    if frameworks - {"Normal"}:
        second.append(
            "Under SNQN and SA2C half of all steps train the network that is served, so twice as "
            "many are made."
        )
    diverged = _diverged(grid, cells)
    if diverged:
        second.append(diverged)
    third = "Seeds vary the training alone: first weights, order, negatives and dropout."
    if any(cell.task.needs_feedback for cell in cells):
        third += (
            " All seeds of a row share one language model with its feedback, and one recommender "
            "that the candidates come from, so the intervals do not cover what these would vary by."
        )
    return "\n\n".join([" ".join(first), " ".join(second), third])


def _warm_ups(cells: Sequence[Finished]) -> str:
    """Returns how long SA2C warms up, in words."""
    tasks = [cell.task for cell in cells]
    steps = {
        task.settings.get("warm_up_steps")
        for task in tasks
        if Variant.parse(task.variant).framework == "SA2C"
    }
    said = [f"{n:,} gradient steps" for n in sorted(n for n in steps if n is not None)]
    usual = ["two passes of each network over the train examples"] if None in steps else []
    return " or ".join(usual + said)


def _diverged(grid: RecommenderGrid, cells: Sequence[Finished]) -> str:
    """Returns how often the loss was no number any more, by row; nothing where it never was."""
    found = Counter(cell.task.label for cell in cells if cell.trained.diverged is not None)
    if not found:
        return ""
    labels = dict.fromkeys(row.name for row in grid.rows)
    rows = [f"{label} {found[label]}" for label in labels if found[label]]
    return (
        f"In {found.total()} trainings the loss was no number any more, and the best weights from "
        f"before stand: {', '.join(rows)}."
    )


def _about(grid: RecommenderGrid, dataset: str, tested: Tested) -> str:
    steps, every = grid.steps_on(dataset)
    return (
        f"{len(tested.users):,} test examples of {len(np.unique(tested.users)):,} users, each next "
        f"item ranked among all items. At most {steps:,} gradient steps of the network that is "
        f"served, evaluated on the validation split every {every:,} of them."
    )


def _csv(parts: Sequence[_Part], tested: Mapping[str, Tested]) -> str:
    stream = io.StringIO()
    heads = (
        "dataset backbone row metric seeds mean median low high baseline difference "
        "difference_median difference_low difference_high seeds_above"
    ).split()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(heads)
    blank = [""] * 6
    for dataset in dict.fromkeys(part.dataset for part in parts):
        for label, ranks in tested[dataset].floors.items():
            for name in metric_names():
                value = f"{_floor(ranks, name):.6f}"
                table.writerow([dataset, "", label, name, 0, value, value, "", "", *blank])
    for part in parts:
        for row in part.rows:
            for name, own in row.estimates.items():
                found = row.comparisons.get(name)
                table.writerow(
                    [
                        *(part.dataset, part.backbone, row.label, name, own.seeds),
                        *(f"{v:.6f}" for v in (own.mean, own.median, own.low, own.high)),
                        *(blank if found is None else _compared(found)),
                    ]
                )
    return stream.getvalue()


def _compared(found: Comparison) -> list[str]:
    d = found.difference
    figures = [f"{value:.6f}" for value in (d.mean, d.median, d.low, d.high)]
    return [found.baseline, *figures, str(found.above)]
