"""Tables of a benchmark's report, in markdown and in HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ilrec_sb3.benchmark import metrics
from ilrec_sb3.benchmark.references import Published, published_name
from ilrec_sb3.benchmark.rows import (
    MAJORITY,
    ORACLE,
    OURS,
    PLANNER,
    RANDOM,
    Comparison,
    Results,
    Row,
    compare,
    compare_along,
    demonstrated_pairs,
    other_users_bar,
    speed_bars,
    time_to,
)
from ilrec_sb3.benchmark.text import NONE, TOO_FEW, between, duration, listing, number, percent

__all__ = [
    "Line",
    "Table",
    "Text",
    "ablation_table",
    "demonstrations_table",
    "main_table",
    "overview_table",
    "shown_table",
    "speed_table",
]

_SECTIONS = {
    "floor": "floors",
    "played": "not trained here",
    "offline": "offline, from the logged interactions",
    "online": "online, in the simulator",
    "ceiling": "ceilings: they know the rule; the oracle the test rewards as well",
}


@dataclass(frozen=True)
class Text:
    """Text in a cell of a table.

    Attributes:
        text: What it says.
        style: "", "best", "second" or "muted".
    """

    text: str
    style: str = ""

    def markdown(self) -> str:
        """Returns it in markdown."""
        text = " ".join(html.escape(self.text, quote=False).replace("|", "\\|").split())
        return {"best": f"**{text}**", "second": f"<u>{text}</u>", "muted": f"*{text}*"}.get(
            self.style, text
        )

    def html(self) -> str:
        """Returns it in HTML."""
        text = html.escape(self.text)
        tag = {"best": "b", "second": "u", "muted": "i"}.get(self.style)
        return f"<{tag}>{text}</{tag}>" if tag else text


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        cells: As many as the table has heads; a text alone is a heading within the table.
        ours: Whether it is ILRec's.
    """

    cells: tuple[Text, ...]
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        heads: Of its columns; the first column is text.
        lines: Its lines.
        caption: What its columns are.
        figures: Whether the other columns are figures, which stand at the right.
    """

    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    caption: str = ""
    figures: bool = True

    def markdown(self) -> str:
        """Returns it in markdown."""
        width = len(self.heads)
        lines = [_markdown_line(Text(head) for head in self.heads)]
        lines.append(f"|---{('|---:' if self.figures else '|---') * (width - 1)}|")
        for line in self.lines:
            blank = width - len(line.cells)
            lines.append(_markdown_line((*line.cells, *(Text("") for _ in range(blank)))))
        return "\n".join([*lines, "", self.caption]).rstrip()

    def html(self) -> str:
        """Returns it in HTML."""
        heads = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in self.heads)
        lines = "\n".join(self._html_line(line) for line in self.lines)
        kind = "" if self.figures else ' class="words"'
        caption = f'<p class="note">{html.escape(self.caption)}</p>' if self.caption else ""
        return (
            f'<div class="scroll"><table{kind}>\n<thead><tr>{heads}</tr></thead>\n'
            f"<tbody>\n{lines}\n</tbody></table></div>\n{caption}"
        )

    def _html_line(self, line: Line) -> str:
        if len(line.cells) == 1 < len(self.heads):
            width = len(self.heads)
            return f'<tr class="part"><th colspan="{width}">{line.cells[0].html()}</th></tr>'
        first, *others = (cell.html() for cell in line.cells)
        mark = ' class="ours"' if line.ours else ""
        others_html = "".join(f"<td>{cell}</td>" for cell in others)
        return f'<tr{mark}><th scope="row">{first}</th>{others_html}</tr>'


def _markdown_line(cells: Iterable[Text]) -> str:
    return f"| {' | '.join(cell.markdown() for cell in cells)} |"


def _name(row: Row) -> Text:
    lost = len(row.failed)
    kept = f" ({len(row.cells)} of {len(row.cells) + lost} seeds)" if lost and row.cells else ""
    return Text(f"{row.label}{kept}", "best" if row.label == OURS else "")


# -- the main table --------------------------------------------------------------------------------


def main_table(
    results: Results,
    mode: str,
    published: Mapping[str, Published] | None = None,
    caveat: str = "",
) -> Table:
    """Returns the table of returns, with floors and ceilings set apart.

    Args:
        results: Of one environment.
        mode: Test mode.
        published: Published figures by name (`published_name`); those of policies that are not in
            the table get lines of their own.
        caveat: What the reader should know of them.
    """
    rows = results.main(mode)
    floor, ceiling = (results.named(mode, name) for name in (RANDOM, ORACLE))
    best = _ranked(rows)
    heads = ["policy", "seeds", "len", "per step", "return (IQM)", "95 % interval"]
    heads += ["median", "lowest to highest", "way to the oracle"]
    if published:
        heads.append("published return")

    def line(row: Row) -> Line:
        if not row.cells:
            dashes = (Text(NONE),) * (len(heads) - 2)
            return Line((_name(row), Text("failed", "muted"), *dashes))
        way = math.nan
        if floor and ceiling:
            way = metrics.share_of_the_way(row.mean_return, floor.mean_return, ceiling.mean_return)
        several = len(row.cells) > 1
        cells = [
            _name(row),
            Text(str(len(row.cells)) if row.trained else NONE),
            Text(number(row.length)),
            Text(number(row.per_step, 2)),
            Text(number(row.mean_return), best.get(row.label, "")),
            Text(between(row.low, row.high)),
            Text(number(float(np.median(row.returns))) if several else NONE),
            Text(between(row.returns.min(), row.returns.max()) if several else NONE),
            Text(percent(way)),
        ]
        if published:
            known = published.get(published_name(row.algorithm))
            cells.append(Text(number(known.mean_return) if known else NONE))
        return Line(tuple(cells), row.label == OURS)

    lines = _in_sections(rows, line)
    if published:
        lines += _published_lines(rows, published, len(heads))
    caption = (
        "Sessions of the test world model. IQM: interquartile mean over seeds. Bold and "
        "underlined: the highest and the second highest return of what was trained. Way to the "
        "oracle: 0 % is random, 100 % the oracle, which looks one item ahead and is a high bar, "
        "not an upper bound."
    )
    if published:
        caption += (
            " Published: figures of others, one seed of public logs or measured with their code, "
            f"in their implementation of the same setting. {caveat}"
        ).rstrip()
    return Table(tuple(heads), tuple(lines), caption)


def _in_sections(rows: Sequence[Row], line: Callable[[Row], Line]) -> list[Line]:
    """Returns the lines under headings, within each the failed first, then by return."""
    lines: list[Line] = []
    for section, title in _SECTIONS.items():
        own = [row for row in rows if row.section == section]
        if own:
            lines.append(Line((Text(title, "muted"),)))
            own.sort(key=lambda row: row.mean_return if row.cells else -math.inf)
            lines.extend(line(row) for row in own)
    return lines


def _ranked(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the styles of the two highest returns of what was trained, by label."""
    learned = sorted(_learned(rows), key=lambda row: -row.mean_return)
    return dict(zip((row.label for row in learned), ("best", "second"), strict=False))


def _learned(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.cells and row.section in ("offline", "online")]


def _published_lines(
    rows: Sequence[Row], published: Mapping[str, Published], width: int
) -> list[Line]:
    have = {published_name(row.algorithm) for row in rows}
    missing = [name for name in published if name not in have]
    lines = [Line((Text("published only", "muted"),))] if missing else []
    for name in sorted(missing, key=lambda name: published[name].mean_return):
        known = published[name]
        figures = [
            Text(NONE),
            Text(number(known.length) if known.length is not None else NONE),
            Text(number(known.per_step, 2) if known.per_step is not None else NONE),
        ]
        blank = [Text(NONE)] * (width - len(figures) - 2)
        lines.append(Line((Text(name, "muted"), *figures, *blank, Text(number(known.mean_return)))))
    return lines


# -- learning speed --------------------------------------------------------------------------------


def speed_table(results: Results) -> Table | None:
    """Returns steps and wall time of training and until two bars; None if nothing was trained.

    Args:
        results: Of one environment; the curves were played under its first mode.
    """
    mode = results.modes[0]
    learned = _learned(results.main(mode))
    if not learned:
        return None
    bars = speed_bars(results)
    heads = ["policy", "steps", "training", "s for 1,000 steps", "along the curve"]
    for name in bars:
        heads += [f"steps to {name}", "time"]

    def line(row: Row) -> Line:
        rate = 1_000 * row.seconds / row.steps if row.steps else math.nan
        cells = [
            _name(row),
            Text(f"{row.steps:,}"),
            Text(duration(row.seconds)),
            Text(number(rate, 2)),
            Text(_along(row)),
        ]
        for bar in bars.values():
            steps, seconds = time_to(row, bar)
            never = "not reached" if row.curves else NONE
            cells.append(Text(never if steps is None else f"{steps:,.0f}"))
            cells.append(Text(NONE if seconds is None else duration(seconds)))
        return Line(tuple(cells), row.label == OURS)

    caption = (
        "Medians over seeds. Training: wall time without the evaluations on the way. Along the "
        "curve: mean return over the training, IQM over seeds. Steps to: the "
        "first point of the learning curve at or above it; time: of the training until then, what "
        "comes before the first step, such as ILRec's warm start, included. Steps of offline "
        "algorithms are gradient steps."
    )
    if any(cell.curve and not cell.curve_seconds for row in learned for cell in row.cells):
        caption += (
            " Cells of before the times of the points were kept are taken to have trained at an "
            "even pace."
        )
    caption += "".join(
        f" {name[0].upper()}{name[1:]}: {number(bar)}." for name, bar in bars.items()
    )
    if apart := other_users_bar(results):
        caption += f" {apart} is of the users of the table above, not of those of the curves."
    return Table(tuple(heads), tuple(_in_sections(learned, line)), caption)


# -- what was shown --------------------------------------------------------------------------------


def shown_table(results: Results, mode: str) -> Table | None:
    """Returns the table of coverage, diversity and the like; None without a background.

    Args:
        results: Of one environment.
        mode: Test mode.
    """
    background = results.background
    rows = [row for row in results.main(mode) if row.cells]
    if background is None or not rows:
        return None
    kinds: dict[str, tuple[str, Callable[[float], str]]] = {
        "coverage": ("coverage", percent),
        "diversity": ("diversity (text)", lambda value: number(value, 3)),
        "category diversity": ("diversity (categories)", lambda value: number(value, 3)),
        "category entropy": ("category entropy", lambda value: number(value, 2)),
        "novelty": ("novelty", lambda value: number(value, 2)),
        "majority share": ("majority share", percent),
        "gini": ("Gini", lambda value: number(value, 3)),
    }

    def line(row: Row) -> Line:
        figures = (
            Text(form(row.shown(name)) + _known(row, name)) for name, (_, form) in kinds.items()
        )
        return Line((_name(row), *figures), row.label == OURS)

    majority = metrics.majority_categories(background.categories, MAJORITY)
    names = [background.category_names[k] for k in majority]
    catalogue = metrics.majority_share(np.ones(background.n_items), background.categories, MAJORITY)
    caption = (
        f"IQM over seeds. Coverage: share of the {background.n_items:,} items shown at all in the "
        "sessions of a seed. Diversity: mean of 1 − cosine over the pairs of a session, of text "
        "embeddings or categories. Category entropy and novelty (−log2 of the popularity share in "
        f"the train data) in bits. Majority share: shown items of {listing(names)}; of the "
        f"catalogue {percent(catalogue)} are. Gini: of exposure over the catalogue, 0 is even."
    )
    heads = ("policy", *(head for head, _ in kinds.values()))
    return Table(heads, tuple(_in_sections(rows, line)), caption)


def _known(row: Row, name: str) -> str:
    """Returns how many seeds a metric of what was shown is of; "" where it is of all or none."""
    lost, seeds = row.without(name), len(row.figures)
    return f" ({seeds - lost} of {seeds} seeds)" if 0 < lost < seeds else ""


# -- ablations, demonstrations, overview -----------------------------------------------------------


def ablation_table(results: Results, mode: str) -> Table | None:
    """Returns full ILRec and what is left when a part is taken away; None without ablations."""
    full, parts = results.ours(mode), results.group(mode, "ablation")
    parts = [row for row in parts if row is not full]
    if not parts:
        return None
    heads: tuple[str, ...] = (
        "variant",
        "seeds",
        "len",
        "per step",
        "return (IQM)",
        "95 % interval",
    )
    heads += ("difference", "95 % interval", "P(full > variant)")
    curves = mode == results.modes[0] and any(row.along for row in parts)
    if curves:
        heads += ("along the curve", "difference", "95 % interval")

    def line(row: Row) -> Line:
        if not row.cells:
            return Line((_name(row), Text("failed", "muted"), *(Text(NONE),) * (len(heads) - 2)))
        against: tuple[str, ...] = (NONE, NONE, NONE)
        if full is not None and row is not full:
            found = compare(full, row)
            against = (*_less(found), _chance(found))
        if curves:
            along = compare_along(full, row) if full is not None and row is not full else None
            against += (_along(row), *((NONE, NONE) if along is None else _less(along)))
        figures = (
            str(len(row.cells)),
            number(row.length),
            number(row.per_step, 2),
            number(row.mean_return),
            between(row.low, row.high),
            *against,
        )
        return Line((_name(row), *(Text(text) for text in figures)), row is full)

    rows = [*([full] if full is not None else []), *parts]
    caption = (
        "Difference: return of the variant less that of full ILRec; below 0 the part that was "
        "taken away had helped."
    )
    if curves:
        caption += (
            " Along the curve: mean return over the training, of the users of the curves; its "
            "intervals are over seeds."
        )
    return Table(heads, tuple(line(row) for row in rows), caption)


def _along(row: Row) -> str:
    return number(float(metrics.interquartile_mean(row.along))) if row.along else NONE


def _less(found: Comparison) -> tuple[str, str]:
    """Returns by how much the other row is above, and the interval."""
    return number(-found.difference), between(-found.high, -found.low)


def _chance(found: Comparison) -> str:
    return TOO_FEW if found.few else number(found.probability, 2)


def demonstrations_table(results: Results, mode: str) -> Table | None:
    """Returns the demonstrations' own return beside ILRec's; None where there are none."""
    pairs = demonstrated_pairs(results, mode)
    if not pairs:
        return None
    heads: tuple[str, ...] = (
        "what learned from them",
        "sessions",
        "their len",
        "their per step",
        "their return",
        "cut",
    )
    heads += ("seeds", "len", "per step", "return (IQM)", "95 % interval", "ratio")
    lines = []
    for shown, row in pairs:
        theirs: tuple[str, ...] = (NONE,) * 5
        ratio = NONE
        if shown is not None:
            theirs = (
                f"{sum(figures.sessions for figures in shown.figures):,}",
                number(shown.length),
                number(shown.per_step, 2),
                number(shown.mean_return),
                percent(shown.cut),
            )
            ratio = number(row.mean_return / shown.mean_return, 2)
        figures = (
            *theirs,
            str(len(row.cells)),
            number(row.length),
            number(row.per_step, 2),
            number(row.mean_return),
            between(row.low, row.high),
            ratio,
        )
        lines.append(Line((_name(row), *(Text(text) for text in figures)), row.label == OURS))
    caption = (
        "Their: the demonstrations themselves, replayed on the test world model, with their own "
        "users, not those that the rows are judged by. Cut: share of "
        "them that end with their record and not with the user; their length and return are "
        "lower bounds where it is above 0. Ratio: of the two returns."
    )
    return Table(heads, tuple(lines), caption)


def overview_table(results: Sequence[Results]) -> Table:
    """Returns one line for each environment and mode.

    Args:
        results: Of all environments.
    """
    heads: tuple[str, ...] = (
        "environment",
        OURS,
        "95 % interval",
        "best other trained",
        "its return",
    )
    heads += ("P(ILRec > it)", "random", "planner", "oracle", "way to the oracle")
    lines = []
    for found in results:
        for mode in found.modes:
            lines.append(_overview_line(found, mode))
    return Table(heads, tuple(lines))


def _overview_line(found: Results, mode: str) -> Line:
    ours = found.ours(mode)
    others = [row for row in _learned(found.main(mode)) if row is not ours]
    best = max(others, key=lambda row: row.mean_return, default=None)
    fixed = {
        RANDOM: found.named(mode, RANDOM),
        PLANNER: found.planner(mode),
        ORACLE: found.named(mode, ORACLE),
    }
    mean = {name: row.mean_return if row else math.nan for name, row in fixed.items()}
    own = ours.mean_return if ours else math.nan
    chance = _chance(compare(ours, best)) if ours and best else NONE
    cells = (
        found.title + (f", {mode}" if mode else ""),
        number(own),
        between(ours.low, ours.high) if ours else NONE,
        best.label if best else NONE,
        number(best.mean_return) if best else NONE,
        chance,
        *(number(value) for value in mean.values()),
        percent(metrics.share_of_the_way(own, mean[RANDOM], mean[ORACLE])),
    )
    return Line(tuple(Text(text) for text in cells))
