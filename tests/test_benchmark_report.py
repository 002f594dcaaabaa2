from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_cells import (
    background,
    cell,
    episodes,
    failed,
    full_grid,
    planner_cells,
    trained,
)

from ilrec_sb3.benchmark import verdicts
from ilrec_sb3.benchmark.metrics import bootstrap_iqm, interval
from ilrec_sb3.benchmark.plots import curves_png, returns_png, sensitivity_png, sweeps
from ilrec_sb3.benchmark.references import CAVEATS, REFERENCES, published_name
from ilrec_sb3.benchmark.report import write_report
from ilrec_sb3.benchmark.rows import compare, demonstrated_pairs, dqn_row, gather, time_to
from ilrec_sb3.benchmark.tables import (
    Line,
    Table,
    Text,
    ablation_table,
    demonstrations_table,
    main_table,
    overview_table,
    shown_table,
    speed_table,
)
from ilrec_sb3.benchmark.text import duration, listing, number, percent
from ilrec_sb3.cells import CellResult
from recsim_env import DataError

COAT = "coat-easyrl4rec"


def _texts(table: Table | None) -> dict[str, list[str]]:
    """Returns the lines of a table by their first cell."""
    assert table is not None
    return {line.cells[0].text: [text.text for text in line.cells[1:]] for line in table.lines}


def _results(cells: list[CellResult], **backgrounds: Any) -> Any:
    return gather(cells, backgrounds)[0]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    known = {"steam": background(), COAT: background(COAT, "Coat")}
    path = write_report(
        folder, full_grid(), known, title="A <title>", command="ilrec benchmark steam.toml"
    )
    assert path == folder / "report.md"
    return folder


# -- rows


def test_a_row_is_the_interquartile_mean_over_its_seeds() -> None:
    cells = [cell("X", mean, seed=k) for k, mean in enumerate((0.5, 10.0, 20.0, 33.0, 500.0))]
    (row,) = _results(cells).main("")
    assert row.mean_return == pytest.approx(21.0, rel=1e-5)
    assert row.returns == pytest.approx([0.5, 10.0, 20.0, 33.0, 500.0], rel=1e-5)
    assert row.low < 21.0 < row.high
    assert row.section == "online"
    assert row.length == pytest.approx(
        np.mean(sorted(c.episodes[""].lengths.mean() for c in cells)[1:4])
    )


def test_comparison_of_rows_of_the_same_users_is_paired() -> None:
    # both have the very same sessions, but for a constant: no doubt is left
    one = cell("one", 50.0)
    played = dataclasses.replace(one.episodes[""], returns=one.episodes[""].returns + 0.5)
    other = dataclasses.replace(one, label="other", episodes={"": played})
    first, second = _results([one, other]).main("")
    found = compare(second, first)
    assert (found.difference, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-4)
    assert (found.verdict, found.probability) == ("above", 1.0)
    assert compare(first, second).verdict == "below"
    assert compare(first, first).verdict == "level"


def _of_users(label: str, mean: float, users: int) -> CellResult:
    """Returns a cell whose users are drawn from a seed of their own."""
    return cell(label, mean, episodes={"": episodes(mean, users=users)})


def test_rows_of_different_users_do_not_share_their_draws() -> None:
    one, twin, stranger = _results(
        [_of_users("one", 50.0, 7), _of_users("twin", 50.0, 7), _of_users("stranger", 50.0, 8)]
    ).main("")
    # the very same returns: with the same users no doubt is left, with others there is
    assert (compare(one, twin).low, compare(one, twin).high) == (0.0, 0.0)
    found = compare(one, stranger)
    low, high = interval(bootstrap_iqm([one.cells[0].episodes[""].returns]))
    assert found.high - found.low == pytest.approx(2**0.5 * (high - low), rel=0.15)


@pytest.mark.parametrize("seeds", [1, 2])
def test_rows_of_one_or_two_seeds_get_no_verdict(seeds: int) -> None:
    cells = planner_cells() + trained("ILRec", 100.0, spread=0.1)
    cells += trained("few", 30.0, seeds=seeds) + trained("sb3:A2C", 90.0)
    cells += [*trained("ILRec x", 30.0, seeds=seeds, group="ablation"), failed("few", seed=9)]
    cells += [cell("demonstrations (y)", 9.0, algorithm="demonstrations", group="demonstrations")]
    cells += trained("ILRec (y)", 99.0, seeds=seeds, algorithm="ILRec", group="demonstrations")
    results = _results(cells)
    ours = results.ours("")
    rows = {row.label: row for row in results.rows[""]}
    found = compare(ours, rows["few"])
    assert (found.verdict, found.few) == ("few", True)
    assert np.isnan(found.probability)
    assert compare(ours, rows["random"]).verdict == "above"
    assert compare(ours, rows["sb3:A2C"]).probability == 1.0
    text = verdicts.main_verdict(results, "")
    assert "above 1 of the 1 other trained rows" in text
    assert text.count("P(ILRec higher)") == 1
    assert "No verdict, too few seeds: few 30.0, difference +70.0." in text
    assert verdicts.ablation_verdict(results, "") == ("No verdict, too few seeds: ILRec x (−70.0).")
    assert _texts(ablation_table(results, ""))["ILRec x"][7] == "too few seeds"
    said = verdicts.demonstrations_verdict(results, "")
    assert said.startswith("No verdict on the demonstrations' own return, too few seeds: ILRec (y)")


@pytest.mark.parametrize("seeds", [1, 2])
def test_ilrec_of_one_or_two_seeds_gets_no_verdict(seeds: int) -> None:
    cells = planner_cells() + trained("ILRec", 120.0, seeds=seeds) + trained("sb3:A2C", 20.0)
    results = _results(cells)
    text = verdicts.main_verdict(results, "")
    assert "above" not in text
    assert "No row below" not in text
    assert "P(" not in text
    (line,) = _texts(overview_table([results])).values()
    assert line[4] == "too few seeds"
    known = REFERENCES[COAT]["FB"]
    text = verdicts.published_verdict(results, "", known)
    assert "120.0 is (too few seeds for a verdict) beside the 81.8 of A2C" in text
    assert "above" not in text
    text = verdicts.published_verdict(_results(trained("sb3:A2C", 20.0, seeds=seeds)), "", known)
    assert text == "No verdict on their published figures, too few seeds: sb3:A2C."
    assert verdicts.speed_verdict(
        _results(trained("ILRec", 9.0, seeds=seeds) + trained("sb3:DQN", 9.0))
    ).endswith("There are too few seeds for a verdict.")


def test_seeds_without_a_metric_of_what_was_shown_are_left_out_and_told() -> None:
    cells = trained("X", 20.0, seeds=3)
    bare = dataclasses.replace(cells[0].episodes[""], actions=((1,),) * 40)  # no pair of items
    cells[0] = dataclasses.replace(cells[0], episodes={"": bare})
    results = gather(cells, {"steam": background()})[0]
    (row,) = results.main("")
    known = [figures.shown["diversity"] for figures in row.figures[1:]]
    assert np.isnan(row.figures[0].shown["diversity"])
    assert row.shown("diversity") == pytest.approx(np.mean(known))
    assert (row.without("diversity"), row.without("coverage")) == (1, 0)
    texts = _texts(shown_table(results, ""))["X"]
    assert texts[1].endswith(" (2 of 3 seeds)")
    assert "seeds" not in texts[0]
    alone = gather(cells[:1], {"steam": background()})[0]
    assert _texts(shown_table(alone, ""))["X"][1] == "–"


def test_cells_of_different_environments_are_refused() -> None:
    cells = [cell("a", 1.0), cell("b", 2.0, fingerprint="another")]
    with pytest.raises(DataError, match="cannot be compared"):
        gather(cells, {})
    assert gather([cells[0], failed("b", fingerprint="another")], {})


def test_no_cell_and_the_same_cell_twice_are_refused() -> None:
    with pytest.raises(DataError, match="run the benchmark first"):
        gather([], {})
    with pytest.raises(DataError, match="labels of their own"):
        gather([cell("a", 1.0, seed=3), cell("a", 2.0, seed=3)], {})


def test_steps_and_time_until_a_bar() -> None:
    curves = [((0, 0.0), (50, 5.0), (100, 9.0)), ((0, 0.0), (50, 1.0), (100, 6.0))]
    cells = [
        cell("X", 9.0, seed=k, curve=curve, steps=100, seconds=10.0 + 10 * k)
        for k, curve in enumerate(curves)
    ]
    (row,) = _results(cells).main("")
    assert time_to(row, 5.0) == (75.0, 12.5)  # 50 and 100 steps; 5 and 20 seconds
    assert time_to(row, 8.0) == (None, None)
    caption = "are taken to have trained at an even pace"
    table = speed_table(_results(cells))
    assert table is not None
    assert caption in table.caption
    # 4 seconds before the first step
    timed = [dataclasses.replace(c, curve_seconds=(4.0, 9.0, 14.0)) for c in cells]
    (row,) = _results(timed).main("")
    assert time_to(row, 0.0) == (0.0, 4.0)
    assert time_to(row, 5.0) == (75.0, 11.5)  # 50 and 100 steps; 9 and 14 seconds
    assert time_to(row, 8.0) == (None, None)
    table = speed_table(_results(timed))
    assert table is not None
    assert caption not in table.caption


def test_the_best_dqn_sets_the_bar() -> None:
    cells = trained("sb3:DQN", 24.0) + trained("DoubleDQN+items", 99.0) + trained("sb3:A2C", 150.0)
    found = dqn_row(_results(cells).main(""))
    assert found is not None
    assert found.label == "DoubleDQN+items"
    assert dqn_row(_results(trained("sb3:DQN", 9.0, curve=())).main("")) is None


def test_demonstrations_stand_beside_what_learned_from_them() -> None:
    group = {"group": "demonstrations"}
    cells = [
        cell("demonstrations (GPT-4)", 75.0, algorithm="demonstrations", **group),
        cell("demonstrations", 60.0),
        *trained("ILRec", 90.0),
        *trained("ILRec (GPT-4)", 95.0, algorithm="ILRec", **group),
        *trained("ILRec (nobody)", 20.0, algorithm="ILRec", **group),
    ]
    results = _results(cells)
    pairs = demonstrated_pairs(results, "")
    names = [(shown.label if shown else None, row.label) for shown, row in pairs]
    assert names == [
        ("demonstrations", "ILRec"),
        ("demonstrations (GPT-4)", "ILRec (GPT-4)"),
        (None, "ILRec (nobody)"),
    ]
    text = verdicts.demonstrations_verdict(results, "")
    assert "ILRec 50.0 % (90.0 against 60.0); ILRec (GPT-4) 26.7 % (95.0 against 75.0)." in text
    assert "NOT" not in text


def test_worse_than_the_demonstrations_is_said() -> None:
    results = _results([cell("demonstrations", 60.0), *trained("ILRec", 45.0)])
    assert verdicts.demonstrations_verdict(results, "") == (
        "NOT above the demonstrations' own return, but below by: ILRec 25.0 % (45.0 against 60.0)."
    )


def test_other_users_cut_sessions_and_random_are_said_beside_the_demonstrations() -> None:
    played = dataclasses.replace(
        episodes(10.0, users=8), ended_by=("end of record",) * 30 + ("category",) * 10
    )
    shown = cell("demonstrations", 10.0, episodes={"": played})
    rows = [cell("random", 17.0), *trained("ILRec", 80.0)]
    assert verdicts.demonstrations_verdict(_results([shown, *rows]), "") == (
        "Above the demonstrations' own return: ILRec at most 700.0 % (80.0 against at least 10.0, "
        "of other users, 75 % of them cut by the end of their record). Random items return 17.0."
    )
    worse = verdicts.demonstrations_verdict(_results([shown, *trained("ILRec", 5.0)]), "")
    assert "below by: ILRec at least 50.0 % (5.0 against at least 10.0, of other users" in worse
    assert "Random" not in worse


# -- tables


def test_main_table_sets_floors_and_ceilings_apart() -> None:
    cells = planner_cells() + trained("ILRec", 100.0) + trained("offline:BC", 40.0)
    table = main_table(_results(cells + trained("sb3:A2C", 90.0)), "")
    order = [line.cells[0].text.partition(":")[0] for line in table.lines]
    assert (
        order.index("floors")
        < order.index("greedy")
        < order.index("offline, from the logged interactions")
        < order.index("sb3")
        < order.index("ILRec")
    )
    assert order[-4].startswith("ceilings")
    assert order[-1] == "oracle"
    texts = _texts(table)
    # the way from 17.0 to 122.5
    assert texts["ILRec"][-1] == "79 %"
    assert texts["ILRec"][0] == "5"
    assert texts["ILRec"][5:7] == ["100.0", "98.0 to 102.0"]
    assert texts["random"][-1] == "0 %"
    styles = {
        line.cells[0].text: line.cells[4].style for line in table.lines if len(line.cells) > 1
    }
    assert (styles["ILRec"], styles["sb3:A2C"], styles["oracle"]) == ("best", "second", "")


def test_failed_rows_are_shown_as_failed() -> None:
    cells = [*trained("ILRec", 9.0, seeds=2), failed("ILRec", seed=2), failed("offline:BCQ")]
    texts = _texts(main_table(_results(cells), ""))
    assert texts["offline:BCQ"][0] == "failed"
    assert texts["ILRec (2 of 3 seeds)"][0] == "2"


def test_published_figures_stand_beside_ours() -> None:
    known = REFERENCES[COAT]["FB"]
    cells = trained("sb3:A2C", 70.0, environment=COAT) + trained("ILRec", 90.0, environment=COAT)
    results = _results(cells)
    texts = _texts(main_table(results, "", known))
    assert texts["sb3:A2C"][-1] == "81.8"
    assert texts["ILRec"][-1] == "–"
    assert texts["PG"][1:3] == ["29.8", "2.66"]
    assert texts["PG"][-1] == "79.3"
    text = verdicts.published_verdict(results, "", known)
    assert "above the 81.8 of A2C, the best published of what learns" in text
    assert "BELOW their published figures by more than the interval: sb3:A2C 70.0" in text


def test_the_verdict_on_published_figures_is_of_the_rule_that_they_come_from(
    tmp_path: Path,
) -> None:
    assert REFERENCES["coat-short-window"] == REFERENCES[COAT]
    assert "coat-short-window" not in CAVEATS
    texts = {}
    for name in (COAT, "coat-short-window"):
        cells = trained("sb3:A2C", 90.0, modes={"FB": 90.0, "NX_0": 80.0}, environment=name)
        path = write_report(tmp_path / name, cells, {}, title="t", command="c")
        texts[name] = path.read_text(encoding="utf-8")
        assert "| 81.8 |" in texts[name]
    assert "below its published figure by more" not in texts[COAT]
    assert "the short window" in texts[COAT]
    assert "told by the environment coat-short-window" in texts[COAT]
    exact = texts["coat-short-window"]
    assert exact.count("No row is below its published figure by more than its interval.") == 2
    assert "short window)" not in exact


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        ("sb3:A2C+items", "A2C"),
        ("sb3:A2C+items@dorl", "DORL"),
        ("DQN@roler", "ROLeR"),
        ("offline:CQL", "CQL"),
        ("rule-aware greedy", "greedy that avoids quitting"),
        ("random", "random"),
        ("DoubleDQN", "DoubleDQN"),
    ],
)
def test_published_names(algorithm: str, name: str) -> None:
    assert published_name(algorithm) == name


def test_speed_table_and_its_sentence() -> None:
    cells = planner_cells()
    cells += trained("ILRec", 115.0, spread=0.1, curve=((0, 0.0), (20_000, 50.0), (40_000, 110.0)))
    cells += trained("sb3:DQN", 50.0, spread=0.1, curve=((0, 0.0), (40_000, 30.0), (80_000, 50.0)))
    results = _results(cells)
    texts = _texts(speed_table(results))
    assert texts["ILRec"][0] == "100,000"
    # 90 % of 115.8 are reached at 40,000 of 100,000 steps, hence after 40 % of 90 s
    assert texts["ILRec"][3:] == ["52.5", "40,000", "36 s", "20,000", "18 s"]
    assert texts["sb3:DQN"][3:] == ["27.5", "not reached", "–", "80,000", "72 s"]
    assert verdicts.speed_verdict(results) == (
        "sb3:DQN first reaches its final return of 50.0 after 80,000 steps, ILRec after 20,000: "
        "25 % of them."
    )


def test_the_planners_bar_is_of_the_users_of_the_curves() -> None:
    curve = ((0, 0.0), (40_000, 95.0), (60_000, 110.0))
    learned = trained("ILRec", 115.0, spread=0.1, curve=curve)
    played = cell("rule-aware planner", 115.8, curve=((0, 100.0),))
    results = _results([played, *learned])
    # 90 % of the 100.0 that it returns to these users, not of the table's 115.8
    assert _texts(speed_table(results))["ILRec"][4] == "40,000"
    table = speed_table(results)
    assert table is not None
    assert "90 % of the rule-aware planner: 90.0." in table.caption
    assert "of the users of the table above" not in table.caption
    older = _results([cell("rule-aware planner", 115.8), *learned])
    table = speed_table(older)
    assert table is not None
    assert _texts(table)["ILRec"][4] == "60,000"
    assert (
        "90 % of the rule-aware planner is of the users of the table above, not of those of the "
        "curves." in table.caption
    )
    assert curves_png(_results([played])) is None


def test_ablation_table_gives_differences_to_full_ilrec() -> None:
    cells = trained("ILRec", 100.0, spread=0.1)
    for name, mean in (("weights", 70.0), ("luck", 100.0), ("ballast", 150.0)):
        label = f"ILRec without {name}"
        cells += trained(label, mean, spread=0.1, algorithm="ILRec", group="ablation")
    cells.append(failed("ILRec without sense", algorithm="ILRec", group="ablation"))
    results = _results(cells)
    texts = _texts(ablation_table(results, ""))
    assert next(iter(texts)) == "ILRec"
    assert texts["ILRec without weights"][5] == "−30.0"
    assert texts["ILRec without weights"][7] == "1.00"
    assert texts["ILRec without sense"][0] == "failed"
    assert verdicts.ablation_verdict(results, "") == (
        "Worse than full ILRec, so the part earns its place: ILRec without weights (−30.0). "
        "No difference is shown for: ILRec without luck (0.0). "
        "BETTER than full ILRec: ILRec without ballast (+50.0). "
        "Along the curve worse than full ILRec: ILRec without weights (−24.0). "
        "Along the curve BETTER than full ILRec: ILRec without ballast (+40.0)."
    )
    assert "ILRec without weights" not in _texts(main_table(results, ""))


def test_ablation_table_looks_along_the_curves() -> None:
    def rows(label: str, start: float, **rest: Any) -> list[CellResult]:
        made = trained(label, 100.0, spread=0.1, algorithm="ILRec", **rest)
        return [
            dataclasses.replace(cell, curve=((0, start + k), (50, 100.0), (100, 100.0)))
            for k, cell in enumerate(made)
        ]

    cells = rows("ILRec", 40.0)
    cells += rows("ILRec without a start", 20.0, group="ablation")
    cells += rows("ILRec without a brake", 60.0, group="ablation")
    cells += [
        dataclasses.replace(cell, curve=())
        for cell in rows("ILRec without a curve", 40.0, group="ablation")
    ]
    results = _results(cells)
    table = ablation_table(results, "")
    assert table is not None
    assert table.heads[-3:] == ("along the curve", "difference", "95 % interval")
    texts = _texts(table)
    # a quarter of the distance at the start: it is made up for in the first half
    assert texts["ILRec"][8:] == ["85.5", "–", "–"]
    assert texts["ILRec without a start"][8:10] == ["80.5", "−5.0"]
    assert texts["ILRec without a curve"][8:] == ["–", "–", "–"]
    verdict = verdicts.ablation_verdict(results, "")
    assert "Along the curve worse than full ILRec: ILRec without a start (−5.0)." in verdict
    assert "Along the curve BETTER than full ILRec: ILRec without a brake (+5.0)." in verdict


def test_verdict_names_the_rows_that_ilrec_is_not_above() -> None:
    cells = planner_cells() + trained("ILRec", 80.0, spread=0.1)
    cells += trained("weak", 30.0) + trained("twin", 80.0, spread=0.1) + trained("strong", 140.0)
    cells += trained("long", 20.0, steps=300_000)
    text = verdicts.main_verdict(_results(cells), "")
    assert text.startswith("ILRec returns 80.0 a session (IQM of 5 seeds), above 2 of the 4 other")
    assert re.search(r"NOT clearly above, the interval holds 0: twin 80\.0", text)
    assert re.search(r"BELOW: strong 140\.0", text)
    assert "No row" not in text
    assert "Trained for other than 100,000 steps: long (300,000)." in text
    assert "65 % of oracle (122.5)" in text


def test_verdict_where_nothing_is_above_ilrec_or_ilrec_is_missing() -> None:
    best = planner_cells() + trained("ILRec", 120.0, spread=0.1) + trained("weak", 30.0)
    assert "No row below the ceilings reaches it." in verdicts.main_verdict(_results(best), "")
    missing = _results([*trained("weak", 30.0), failed("ILRec")])
    assert verdicts.main_verdict(missing, "") == "ILRec is not among the finished rows."
    assert verdicts.main_verdict(_results(planner_cells()), "") == ""


def test_overview_takes_the_best_other_trained_row() -> None:
    cells = planner_cells() + trained("ILRec", 100.0) + trained("a", 50.0) + trained("b", 60.0)
    (texts,) = _texts(overview_table(gather(cells, {}))).values()
    assert texts[0] == "100.0"
    assert texts[2:5] == ["b", "60.0", "1.00"]
    assert texts[5:8] == ["17.0", "115.8", "122.5"]


def test_texts_stay_in_their_cells() -> None:
    table = Table(("a", "b"), (Line((Text("x|y\n<b>"), Text("1", "best"))),))
    assert "| x\\|y &lt;b&gt; | **1** |" in table.markdown()
    assert "x|y\n&lt;b&gt;" in table.html()
    assert "<td><b>1</b></td>" in table.html()


def test_figures_as_text() -> None:
    assert number(-1234.56) == "−1,234.6"
    assert number(-0.01) == "0.0"
    assert number(float("nan")) == "–"
    assert percent(0.126, 1) == "12.6 %"
    assert [duration(s) for s in (0.5, 60.0, 600.0, 9_000.0)] == [
        "0.50 s",
        "60 s",
        "10.0 min",
        "2.5 h",
    ]
    assert listing(["a", "b", "c"]) == "a, b and c"


# -- sensitivity


def test_sweeps_are_rows_that_differ_in_one_setting() -> None:
    def rows(*settings: dict[str, Any]) -> Any:
        cells = [
            cell(f"ILRec {k}", 10.0 + k, algorithm="ILRec", seed=0, settings=own)
            for k, own in enumerate(settings)
        ]
        return _results(cells).main("")

    found = sweeps(rows({"beta": 10.0}, {"beta": 1.0}, {"alpha": 0.5}, {"alpha": 0.0}, {}))
    assert [(sweep.parameter, sweep.values) for sweep in found] == [
        ("beta", (1.0, 10.0)),
        ("alpha", (0.0, 0.5)),
    ]
    assert [row.label for row in found[0].rows] == ["ILRec 1", "ILRec 0"]
    # the default stands in both sweeps where every setting is written out
    full = sweeps(rows({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": "auto"}))
    assert [(sweep.parameter, sweep.values) for sweep in full] == [
        ("a", (1, 2)),
        ("b", (1, "auto")),
    ]
    assert sweeps(rows({"a": 1}, {"b": 1})) == []


def test_sensitivity_is_drawn_with_zero_words_and_several_seeds() -> None:
    cells = []
    for value in (0.0, 0.01, 1.0):
        cells += trained(
            f"a{value}", 5.0, group="sensitivity", algorithm="ILRec", seeds=2, settings={"a": value}
        )
    for word in (0.1, "auto", True):
        cells += trained(
            f"b{word}", 5.0, group="sensitivity", algorithm="ILRec", seeds=1, settings={"b": word}
        )
    picture = sensitivity_png(_results(cells), "")
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert sensitivity_png(_results(cells[:2]), "") is None


# -- the whole


def test_report_has_every_part(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# A &lt;title&gt;\n")
    for part in (
        "Overview",
        "Speed of learning",
        "What was shown",
        "Ablations",
        "Demonstrations",
        "Sensitivity",
        "Mode NX_10",
        "Failed",
    ):
        assert re.search(rf"^##+ {part}", text, re.MULTILINE), part
    assert "217 finished cells, all of the same code (01234567); 6 failed; 40 sessions" in text
    assert "5 training seeds, 0, 1, 2, 3, 4" in text
    assert "Made by: `ilrec benchmark steam.toml`" in text
    assert "nan" not in text.lower().replace("nan scores", "")
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in report.glob("*.png")) == [
        "coat-easyrl4rec-curves.png",
        "coat-easyrl4rec-returns.png",
        "steam-curves.png",
        "steam-returns.png",
        "steam-sensitivity.png",
    ]


def test_html_is_self_contained(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 5
    assert page.count("src=") == 5
    assert "http" not in page.replace("https", "http").replace("http-equiv", "")
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert page.count("<table") == page.count("</table>") > 8
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert len(anchors) == 4
    assert all(f'id="{anchor}"' in page for anchor in anchors)


def test_csv_has_one_line_for_each_cell_and_mode(report: Path) -> None:
    with (report / "tables.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    cells = full_grid()
    assert len(lines) == sum(max(1, len(one.episodes)) for one in cells)
    line = next(one for one in lines if (one["label"], one["seed"]) == ("ILRec", "2"))
    assert float(line["return"]) == pytest.approx(108.0, abs=0.1)
    assert float(line["way"]) == pytest.approx(91 / 105.5, abs=0.01)
    assert float(line["return_low"]) < 108 < float(line["return_high"])
    assert 0 < float(line["coverage"]) <= 1
    assert (line["failed"], line["steps"]) == ("", "100000")
    broken = [one for one in lines if one["failed"]]
    assert len(broken) == 6
    assert {one["return"] for one in broken} == {""}


def test_the_same_cells_give_the_same_report(tmp_path: Path) -> None:
    cells = planner_cells() + trained("ILRec", 100.0, seeds=2)
    for name in ("one", "two"):
        write_report(tmp_path / name, cells, {}, title="t", command="c")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (trained("ILRec", 50.0, seeds=1), "1 training seed, 0"),
        (planner_cells(), "nothing was trained"),
        (trained("ILRec", 50.0, curve=()), "5 training seeds"),
        ([failed("ILRec", seed=k) for k in range(2)], "No cell finished; 2 failed"),
        ([cell("oracle", 5.0), failed("ILRec")], "1 finished cells"),
        (trained("ILRec", 5.0, curve=((100_000, 5.0),)), "5 training seeds"),
        (trained("X", 5.0, group="sensitivity", settings={"a": 1}), "5 training seeds"),
        (trained("ILRec x", 5.0, group="ablation", algorithm="ILRec"), "Ablations"),
        ([cell("a", 5.0, code="1"), cell("b", 5.0, code="2")], "of 2 versions of the code (1, 2)"),
        ([cell("a b/c", 5.0, environment="../x y")], "a b/c"),
    ],
    ids=[
        "one seed",
        "planners only",
        "no curve",
        "failed only",
        "oracle only",
        "one point",
        "one value",
        "ablation only",
        "two versions",
        "odd names",
    ],
)
def test_unusual_cells_are_reported(cells: list[CellResult], expected: str, tmp_path: Path) -> None:
    text = write_report(tmp_path / "r", cells, {}, title="t", command="c").read_text(
        encoding="utf-8"
    )
    assert expected in text
    assert sorted(tmp_path.iterdir()) == [tmp_path / "r"]


def test_plots_need_something_to_draw() -> None:
    nothing = _results([failed("ILRec")])
    assert returns_png(nothing, {}) is None
    assert curves_png(nothing) is None
    assert curves_png(_results(trained("ILRec", 5.0, curve=()))) is None


def test_demonstrations_that_end_with_their_record_are_told() -> None:
    shown = cell("demonstrations", 60.0)
    endings = ("end of record",) * 10 + ("category",) * 30
    played = dataclasses.replace(shown.episodes[""], ended_by=endings)
    shown = dataclasses.replace(shown, episodes={"": played})
    texts = _texts(demonstrations_table(_results([shown, *trained("ILRec", 90.0)]), ""))
    assert texts["ILRec"][4] == "25 %"
    assert texts["ILRec"][-1] == "1.50"
