"""Sentences of a report, computed from its rows: what ILRec is above, and what it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ilrec_sb3.benchmark.references import PLANNED, Published, published_name
from ilrec_sb3.benchmark.rows import (
    ORACLE,
    OURS,
    RANDOM,
    Comparison,
    Results,
    Row,
    compare,
    compare_along,
    demonstrated_pairs,
    dqn_row,
    same_users,
    speed_bars,
    time_to,
)
from ilrec_sb3.benchmark.text import TOO_FEW, between, listing, number, percent, signed

__all__ = [
    "ablation_verdict",
    "demonstrations_verdict",
    "main_verdict",
    "published_verdict",
    "speed_verdict",
]

_SAME_STEPS = 0.05
"""Trainings that differ by less are of the same length: rollouts are of whole steps."""


def speed_verdict(results: Results) -> str:
    """Returns a sentence on ILRec's steps to DQN's final return; "" where either is missing."""
    mode = results.modes[0]
    ours, dqn = results.ours(mode), dqn_row(results.main(mode))
    if ours is None or dqn is None or not ours.curves:
        return ""
    bar = speed_bars(results)[f"the final return of {dqn.label}"]
    theirs, own = time_to(dqn, bar)[0] or dqn.steps, time_to(ours, bar)[0]
    text = f"{dqn.label} first reaches its final return of {number(bar)} after {theirs:,.0f} steps"
    few = f" There are {TOO_FEW} for a verdict." if ours.few or dqn.few else ""
    if own is None:
        return f"{text}; {OURS} does NOT reach it within {ours.steps:,} steps.{few}"
    return f"{text}, {OURS} after {own:,.0f}: {percent(own / max(theirs, 1))} of them.{few}"


def ablation_verdict(results: Results, mode: str) -> str:
    """Returns a sentence that says which parts earn their place; "" without ablations."""
    full, parts = results.ours(mode), results.group(mode, "ablation")
    found = [compare(full, row) for row in parts if full and row.cells and row is not full]
    if not found:
        return ""
    texts = []
    for verdict, words in (
        ("above", "Worse than full ILRec, so the part earns its place: {}."),
        ("level", "No difference is shown for: {}."),
        ("below", "BETTER than full ILRec: {}."),
        ("few", f"No verdict, {TOO_FEW}: {{}}."),
    ):
        own = [f"{f.other.label} ({signed(-f.difference)})" for f in found if f.verdict == verdict]
        if own:
            texts.append(words.format(listing(own)))
    return " ".join([*texts, *_along_verdict(results, mode, full, parts)])


def _along_verdict(
    results: Results, mode: str, full: Row | None, parts: Sequence[Row]
) -> Iterator[str]:
    """Yields sentences on the learning curves, which are of the first mode."""
    if full is None or mode != results.modes[0]:
        return
    found = [compare_along(full, row) for row in parts if row.cells and row is not full]
    for verdict, words in (
        ("above", "Along the curve worse than full ILRec: {}."),
        ("below", "Along the curve BETTER than full ILRec: {}."),
    ):
        own = [
            f"{f.other.label} ({signed(-f.difference)})"
            for f in found
            if f is not None and f.verdict == verdict
        ]
        if own:
            yield words.format(listing(own))


def demonstrations_verdict(results: Results, mode: str) -> str:
    """Returns sentences that say by how much the demonstrations were surpassed.

    They name whose return it is, that it is a lower bound where sessions were cut, and what random
    items return.

    Args:
        results: Of one environment.
        mode: Test mode.
    """
    said: dict[str, list[str]] = {"above": [], "below": [], "few": []}
    for shown, row in demonstrated_pairs(results, mode):
        if shown is not None:
            gain = row.mean_return / shown.mean_return - 1
            verdict = "few" if row.few else ("above" if gain > 0 else "below")
            said[verdict].append(_beside_shown(row, shown, gain))
    heads = {
        "above": "Above the demonstrations' own return",
        "below": "NOT above the demonstrations' own return, but below by",
        "few": f"No verdict on the demonstrations' own return, {TOO_FEW}",
    }
    texts = [f"{heads[name]}: {'; '.join(parts)}." for name, parts in said.items() if parts]
    floor = results.named(mode, RANDOM)
    if texts and floor is not None:
        texts.append(f"Random items return {number(floor.mean_return)}.")
    return " ".join(texts)


def _beside_shown(row: Row, shown: Row, gain: float) -> str:
    """Returns what a row gains over its demonstrations, or lacks."""
    cut = shown.cut
    # what was cut would have gone on: the true gain is smaller, the true lack greater
    bound = "" if cut == 0 else ("at most " if gain > 0 else "at least ")
    notes = [] if same_users([*shown.played, *row.played]) else ["of other users"]
    if cut > 0:
        notes.append(f"{percent(cut)} of them cut by the end of their record")
    return (
        f"{row.label} {bound}{percent(abs(gain), 1)} ({number(row.mean_return)} against "
        f"{'at least ' if cut > 0 else ''}{', '.join([number(shown.mean_return), *notes])})"
    )


def main_verdict(results: Results, mode: str) -> str:
    """Returns sentences that say which rows ILRec is above, and which it is not."""
    ours = results.ours(mode)
    if ours is None:
        learned = any(row.trained for row in results.main(mode))
        return f"{OURS} is not among the finished rows." if learned else ""
    others = [row for row in results.main(mode) if row.cells and row is not ours]
    found = [compare(ours, row) for row in others if row.section != "ceiling"]
    trained = [f for f in found if f.other.trained]
    seeds = f"IQM of {len(ours.cells)} seeds" if len(ours.cells) > 1 else "one seed"
    texts = [f"{ours.label} returns {number(ours.mean_return)} a session ({seeds})"]
    judged = [f for f in trained if not f.few]
    ahead = [f for f in judged if f.verdict == "above"]
    if judged:
        texts[0] += f", above {len(ahead)} of the {len(judged)} other trained rows"
        if ahead:
            nearest = max(ahead, key=lambda f: f.other.mean_return)
            texts[0] += f" (the nearest of them: {_against(nearest)})"
    texts[0] += "."
    not_above = [f for f in found if f.verdict != "above"]
    level = [_against(f) for f in not_above if f.verdict == "level"]
    below = [_against(f) for f in not_above if f.verdict == "below"]
    if level:
        texts.append(f"NOT clearly above, the interval holds 0: {'; '.join(level)}.")
    if below:
        texts.append(f"BELOW: {'; '.join(below)}.")
    if found and not not_above:
        texts.append("No row below the ceilings reaches it.")
    few = [_against(f) for f in found if f.few]
    if few:
        texts.append(f"No verdict, {TOO_FEW}: {'; '.join(few)}.")
    texts += _other_steps(ours, others)
    ceilings = [row for row in others if row.section == "ceiling"]
    if ceilings:
        shares = [
            f"{percent(ours.mean_return / row.mean_return)} of {row.label} "
            f"({number(row.mean_return)})"
            for row in ceilings
        ]
        texts.append(f"It has {listing(shares)}.")
    return " ".join(texts)


def _other_steps(ours: Row, others: Sequence[Row]) -> list[str]:
    """Returns a sentence on online rows whose trainings were of another length than ILRec's."""
    told = [
        f"{row.label} ({row.steps:,})"
        for row in others
        if row.section == "online" and abs(row.steps - ours.steps) > _SAME_STEPS * ours.steps
    ]
    return [f"Trained for other than {ours.steps:,} steps: {listing(told)}."] if told else []


def _against(found: Comparison) -> str:
    other = found.other
    text = f"{other.label} {number(other.mean_return)}, difference {signed(found.difference)}"
    if found.few:
        return text
    return (
        f"{text} [{between(found.low, found.high)}], "
        f"P({OURS} higher) {number(found.probability, 2)}"
    )


def published_verdict(results: Results, mode: str, published: Mapping[str, Published]) -> str:
    """Returns sentences on rows below their published figure by more than their interval.

    Args:
        results: Of one environment.
        mode: Test mode.
        published: Published figures by name.
    """
    ours = results.ours(mode)
    texts = []
    if ours is not None:
        learned = [name for name in published if name not in (RANDOM, ORACLE, PLANNED)]
        best = max(learned, key=lambda name: published[name].mean_return)
        bars = [f"{_beside(ours, published[best])} {best}, the best published of what learns"]
        if PLANNED in published:
            bars.append(f"{_beside(ours, published[PLANNED])} {PLANNED}")
        texts.append(f"{OURS}'s {number(ours.mean_return)} is {', and '.join(bars)}.")
    beside = [
        (row, published[published_name(row.algorithm)])
        for row in results.main(mode)
        if row.cells and published_name(row.algorithm) in published
    ]
    few = [row.label for row, _ in beside if row.few]
    judged = [(row, known) for row, known in beside if not row.few]
    below = [(row, known) for row, known in judged if row.high < known.mean_return]
    if below:
        parts = [
            f"{row.label} {number(row.mean_return)} (published {number(known.mean_return)})"
            for row, known in below
        ]
        texts.append(f"BELOW their published figures by more than the interval: {listing(parts)}.")
    elif judged:
        texts.append("No row is below its published figure by more than its interval.")
    if few:
        texts.append(f"No verdict on their published figures, {TOO_FEW}: {listing(few)}.")
    notes = sorted({known.note for _, known in beside if known.note})
    return " ".join([*texts, *notes])


def _beside(row: Row, known: Published) -> str:
    theirs = known.mean_return
    if row.few:
        return f"({TOO_FEW} for a verdict) beside the {number(theirs)} of"
    word = "above" if row.low > theirs else ("BELOW" if row.high < theirs else "level with")
    return f"{word} the {number(theirs)} of"
