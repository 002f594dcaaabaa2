"""The report of a benchmark: markdown, HTML, CSV and plots, from finished cells."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ilrec_sb3.benchmark import metrics, tables, verdicts
from ilrec_sb3.benchmark.plots import curves_png, returns_png, sensitivity_png
from ilrec_sb3.benchmark.references import CAVEATS, REFERENCES, Published, published_name
from ilrec_sb3.benchmark.rows import FEW, SPECIAL, Background, Figures, Results, Row, gather
from ilrec_sb3.benchmark.tables import Table
from ilrec_sb3.cells import DEMONSTRATIONS, CellResult
from recsim_env.artefacts import write_file

__all__ = ["REFERENCES", "Background", "write_report"]


@dataclass
class _Document:
    """What the report says, in order; written twice, as markdown and as HTML."""

    parts: list[tuple[str, Any]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)

    def heading(self, level: int, text: str) -> None:
        self.parts.append((f"h{level}", text))

    def text(self, text: str) -> None:
        if text:
            self.parts.append(("p", text))

    def table(self, table: Table | None) -> None:
        if table is not None:
            self.parts.append(("table", table))

    def image(self, name: str, content: bytes | None, caption: str) -> None:
        if content is not None:
            self.images[name] = content
            self.parts.append(("image", (name, caption)))


def write_report(
    folder: Path,
    cells: Sequence[CellResult],
    backgrounds: Mapping[str, Background],
    *,
    title: str,
    command: str,
) -> Path:
    """Writes ``report.md``, ``report.html`` (self-contained), ``tables.csv`` and the plots.

    Args:
        folder: Where to; made if need be.
        cells: Finished and failed ones, in the order of the tables.
        backgrounds: Of the environments, by name; one that is missing costs the metrics of what was
            shown.
        title: Of the report.
        command: What makes it again.

    Returns:
        The path of ``report.md``.

    Raises:
        DataError: Without any cell, or where cells of one environment were not played in the same
            one.
    """
    results = gather(cells, backgrounds)
    document = _document(results, cells, title, command)
    for name, content in document.images.items():
        write_file(folder / name, content)
    write_file(folder / "tables.csv", _csv(results))
    write_file(folder / "report.html", _html(document, title))
    return write_file(folder / "report.md", _markdown(document))


# -- what it says ----------------------------------------------------------------------------------


def _document(
    results: Sequence[Results], cells: Sequence[CellResult], title: str, command: str
) -> _Document:
    document = _Document()
    document.heading(1, title)
    document.text(_how(cells, command))
    if len(results) > 1 or len(results[0].modes) > 1:
        document.heading(2, "Overview")
        document.table(tables.overview_table(results))
    for found in results:
        _environment(document, found)
    failed = [cell for cell in cells if cell.failed]
    if failed:
        document.heading(2, "Failed")
        document.table(_failed_table(failed))
    return document


def _how(cells: Sequence[CellResult], command: str) -> str:
    """Returns the caption of the whole: sessions, seeds, intervals, versions of the code."""
    done = [cell for cell in cells if not cell.failed]
    failed = len(cells) - len(done)
    sessions = sorted(
        {
            len(played.returns)
            for cell in done
            if cell.algorithm != DEMONSTRATIONS
            for played in cell.episodes.values()
        }
    )
    seeds = sorted({cell.seed for cell in done if cell.seed is not None})
    codes = sorted({cell.code for cell in done})
    several = "all of the same code" if len(codes) == 1 else f"of {len(codes)} versions of the code"
    parts = [
        f"{len(done):,} finished cells, {several} ({', '.join(code[:8] for code in codes)})"
        if done
        else "No cell finished",
        f"{failed} failed" if failed else "",
        f"{_range(sessions)} sessions for each cell and test mode (demonstrations: their own)"
        if sessions
        else "",
        f"{len(seeds)} training {'seed' if len(seeds) == 1 else 'seeds'}, "
        f"{', '.join(map(str, seeds))}"
        if seeds
        else "nothing was trained",
    ]
    return (
        f"{'; '.join(part for part in parts if part)}. Intervals are 95 % bootstrap intervals of "
        "the interquartile mean (IQM): sessions and seeds are drawn anew, the same sessions for "
        "all seeds where these had the same users; of what was not trained, sessions only. "
        "Differences are of draws that share their sessions where the users are the same; the "
        f"probabilities P are over pairs of seeds, a tie counts one half; trainings of fewer than "
        f"{FEW} seeds get no verdict. Made by: `{command}`"
    )


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _environment(document: _Document, results: Results) -> None:
    document.heading(2, results.title)
    slug = re.sub(r"[^\w.-]+", "-", results.environment)
    known = REFERENCES.get(results.environment, {})
    caveat = CAVEATS.get(results.environment, "")
    has_main = any(row.group not in SPECIAL for row in results.rows[results.modes[0]])
    for mode in results.modes:
        if len(results.modes) > 1:
            document.heading(3, f"Mode {mode}")
        published = known.get(mode)
        if has_main:
            document.text(verdicts.main_verdict(results, mode))
            if published and not caveat:
                document.text(verdicts.published_verdict(results, mode, published))
        table = tables.main_table(results, mode, published, caveat)
        last = mode == results.modes[-1]
        document.table(table if last else replace(table, caption=""))
        if last:
            marks = {mode: _marks(results, mode, known.get(mode, {})) for mode in results.modes}
            document.image(
                f"{slug}-returns.png",
                returns_png(results, marks),
                "Interquartile mean over seeds (dot), 95 % interval (bar), seeds (ticks)"
                + (f"; published figures (crosses). {caveat}".rstrip() if known else "."),
            )
    _learning(document, results, slug)
    for mode in results.modes:
        suffix = f", {mode}" if mode else ""
        if (shown := tables.shown_table(results, mode)) is not None:
            document.heading(3, f"What was shown{suffix}")
            last = mode == results.modes[-1]
            document.table(shown if last else replace(shown, caption=""))
        _special(document, results, mode, suffix, slug + (f"-{mode}" if mode else ""))


def _learning(document: _Document, results: Results, slug: str) -> None:
    if (speed := tables.speed_table(results)) is not None:
        document.heading(3, "Speed of learning")
        document.text(verdicts.speed_verdict(results))
        document.table(speed)
    document.image(
        f"{slug}-curves.png",
        curves_png(results),
        "Interquartile mean over seeds, band: its 95 % bootstrap interval over seeds. Curves are "
        "of other, fewer sessions than the table; so are the lines across where their cells have "
        "them, but not those of demonstrations.",
    )


def _special(document: _Document, results: Results, mode: str, suffix: str, slug: str) -> None:
    if (ablation := tables.ablation_table(results, mode)) is not None:
        document.heading(3, f"Ablations{suffix}")
        document.text(verdicts.ablation_verdict(results, mode))
        document.table(ablation)
    if (shown := tables.demonstrations_table(results, mode)) is not None:
        document.heading(3, f"Demonstrations{suffix}")
        document.text(verdicts.demonstrations_verdict(results, mode))
        document.table(shown)
    plot = sensitivity_png(results, mode)
    if plot is not None:
        document.heading(3, f"Sensitivity{suffix}")
        document.image(
            f"{slug}-sensitivity.png",
            plot,
            "One setting at a time. Dots: seeds; line: interquartile mean; band: 95 % interval.",
        )


def _marks(results: Results, mode: str, published: Mapping[str, Published]) -> dict[str, float]:
    """Returns published returns by label of the row that they belong to."""
    return {
        row.label: published[published_name(row.algorithm)].mean_return
        for row in results.main(mode)
        if published_name(row.algorithm) in published
    }


def _failed_table(failed: Sequence[CellResult]) -> Table:
    lines = [
        tables.Line(
            tuple(
                tables.Text(text)
                for text in (
                    cell.label,
                    cell.environment,
                    "–" if cell.seed is None else str(cell.seed),
                    cell.failed or "",
                )
            )
        )
        for cell in failed
    ]
    return Table(("policy", "environment", "seed", "what went wrong"), tuple(lines), figures=False)


# -- how it is written -----------------------------------------------------------------------------


def _markdown(document: _Document) -> str:
    lines = []
    for kind, content in document.parts:
        if kind == "table":
            lines.append(content.markdown())
        elif kind == "image":
            name, caption = content
            lines.append(f"![{Path(name).stem}]({name})\n\n*{caption}*")
        elif kind == "p":
            lines.append(content)
        else:
            lines.append(f"{'#' * int(kind[1])} {html.escape(content, quote=False)}")
    return "\n\n".join(lines) + "\n"


_STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
  color: #1d1d1f; background: #fff; max-width: 1120px; margin: 0 auto; padding: 24px; }
h1 { font-size: 1.7rem; margin: .2em 0 .5em; }
h2 { font-size: 1.3rem; margin: 2em 0 .5em; padding-top: .6em; border-top: 2px solid #1d1d1f; }
h3 { font-size: 1.05rem; margin: 1.8em 0 .4em; }
p { max-width: 90ch; margin: .5em 0; }
p.note, figcaption { color: #6a6a6f; font-size: .85rem; }
code { font-size: .88em; background: #f3f3f5; padding: .1em .35em; border-radius: 4px; }
nav a { margin-right: 1.2em; color: #0b6fa4; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; margin: .8em 0 .3em; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28em .7em; text-align: right; white-space: nowrap; font-weight: normal; }
th:first-child { text-align: left; padding-left: .4em; }
thead th { font-weight: 600; white-space: normal; vertical-align: bottom;
  border-bottom: 1.5px solid #1d1d1f; }
tbody tr:hover { background: #f6f6f8; }
table.words th, table.words td { text-align: left; white-space: normal; }
tr.part th i { font-style: normal; }
tr.part th { text-align: left; color: #6a6a6f; font-size: .8rem; padding-top: .9em;
  border-bottom: 1px solid #dcdce0; }
tr.ours { background: #fbeeee; }
tr.ours:hover { background: #f8e2e2; }
figure { margin: 1.2em 0; }
figure img { max-width: 100%; height: auto; }
""".strip()


def _html(document: _Document, title: str) -> str:
    anchors: dict[int, str] = {}
    body = []
    links = []
    for number, (kind, content) in enumerate(document.parts):
        if kind == "h2":
            anchors[number] = f"part-{number}"
            links.append(f'<a href="#part-{number}">{html.escape(content)}</a>')
        body.append(_html_part(kind, content, document.images, anchors.get(number, "")))
    # the links come after the title
    body.insert(1, f"<nav>{' '.join(links)}</nav>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _html_part(kind: str, content: Any, images: Mapping[str, bytes], anchor: str) -> str:
    if kind == "table":
        return str(content.html())
    if kind == "image":
        name, caption = content
        data = base64.b64encode(images[name]).decode()
        text = html.escape(caption)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(content))
    mark = f' id="{anchor}"' if anchor else ""
    return f"<{kind}{mark}>{text}</{kind}>"


# -- the tidy table --------------------------------------------------------------------------------

_SHOWN = (
    "coverage",
    "diversity",
    "category diversity",
    "category entropy",
    "novelty",
    "majority share",
    "gini",
)


def _csv(results: Sequence[Results]) -> str:
    """Returns one line for each cell and test mode; empty fields where a figure is not known."""
    lines = [line for found in results for line in _csv_lines(found)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _csv_lines(results: Results) -> Iterator[dict[str, Any]]:
    told = set()  # a failed cell belongs to no mode
    for mode in results.modes:
        for row in results.rows[mode]:
            for cell, figures in zip(row.cells, row.figures, strict=True):
                yield _csv_line(results, row, cell, figures)
            for cell in row.failed:
                if id(cell) not in told:
                    told.add(id(cell))
                    yield _csv_line(results, row, cell, None)


def _csv_line(
    results: Results, row: Row, cell: CellResult, figures: Figures | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "environment": cell.environment,
        "mode": row.mode if figures else "",
        "group": cell.group,
        "label": cell.label,
        "algorithm": cell.algorithm,
        "seed": "" if cell.seed is None else cell.seed,
        "steps": cell.steps,
        "seconds": round(cell.seconds, 3),
        "sessions": figures.sessions if figures else 0,
    }
    values: dict[str, float] = {}
    if figures is not None:
        floor, ceiling = (results.named(row.mode, name) for name in ("random", "oracle"))
        values = {
            "length": figures.length,
            "per_step": figures.per_step,
            "return": figures.mean_return,
            "return_low": figures.low,
            "return_high": figures.high,
            "way": metrics.share_of_the_way(
                figures.mean_return,
                floor.mean_return if floor else math.nan,
                ceiling.mean_return if ceiling else math.nan,
            ),
            **{name.replace(" ", "_"): figures.shown.get(name, math.nan) for name in _SHOWN},
        }
    names = ("length", "per_step", "return", "return_low", "return_high", "way")
    for name in (*names, *(name.replace(" ", "_") for name in _SHOWN)):
        value = values.get(name, math.nan)
        found[name] = "" if math.isnan(value) else f"{value:.6g}"
    found |= {
        "settings": json.dumps(dict(cell.settings), sort_keys=True, default=str),
        "fingerprint": cell.fingerprint,
        "code": cell.code,
        "failed": cell.failed or "",
    }
    return found
