"""How well the `Similarity` rule finds where BiLLP's recorded users left, and its thresholds.

Run: ``python benchmarks/similarity_rule.py --data FOLDER [--play]``. Writes
``benchmarks/results/similarity_rule.md`` and ``docs/images/similarity_roc.png``. Thresholds are
chosen on the sessions of one half of the users; every rate, length and area is of the other half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from llm_expert.calibration import (
    Distance,
    Recording,
    Steps,
    area_interval,
    category_distance,
    causes,
    compared_steps,
    estimated_length,
    grounded_rows,
    half_of_users,
    length_threshold,
    make_recordings,
    operating_point,
    roc,
    text_distance,
    youden_threshold,
)
from llm_expert.grounding import Grounder
from llm_expert.recorded import recorded_episodes
from recsim_env import Dynamics, prepare
from recsim_env.datasets import load
from recsim_env.planners import (
    Planner,
    explorer,
    greedy,
    oracle,
    random_policy,
    rule_aware,
    run_episodes,
)
from recsim_env.termination import BILLP, make_rules
from recsim_env.text import TextEmbedder, item_documents

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "similarity_rule.md"
PLOT = HERE.parent / "docs" / "images" / "similarity_roc.png"
WINDOWS = (1, 2, 3, 4, 6, 10)
EPISODES = 100
REPEATS_ONLY = 1e-9
"""A threshold that nothing but the very same item lies below."""


@dataclass(frozen=True)
class Space:
    """Recorded sessions, told in some items with some distance between them."""

    name: str
    recordings: list[Recording]
    distance: Distance
    history: bool = False

    def steps(self, half: int | None = None, window: int = 4) -> Steps:
        """Returns the steps of one half of the users, or of all."""
        chosen = self.recordings if half is None else half_of_users(self.recordings, half)
        return compared_steps(chosen, self.distance, window, with_history=self.history)


def spaces(name: str, data: str | None) -> list[Space]:
    """Returns the recorded sessions in every space; the environment's own is the third."""
    episodes, items = recorded_episodes(name, data)
    rows = {item: row for row, item in enumerate(items)}
    documents = [item.document for item in items.values()]
    own = make_recordings(episodes, rows)
    own_text = text_distance(TextEmbedder().fit(documents).embed(documents))
    catalogue = load(name, root=data).catalogue
    embedder = TextEmbedder().fit(item_documents(catalogue))
    vectors = embedder.embed(item_documents(catalogue))
    used = {step.shown for episode in episodes for step in episode.steps}
    used |= {item for episode in episodes for item in episode.history}
    grounder = Grounder(catalogue, embedder, vectors)
    told = make_recordings(episodes, grounded_rows(items, used, grounder))
    return [
        Space("BiLLP's items, text", own, own_text),
        Space("the same, with the history", own, own_text, history=True),
        Space("environment's items, text", told, text_distance(vectors)),
        Space("the same, with the history", told, text_distance(vectors), history=True),
        Space(
            "BiLLP's items, genres",
            own,
            category_distance([item.categories for item in items.values()]),
        ),
        Space("environment's items, categories", told, category_distance(catalogue.categories)),
    ]


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yields a markdown table."""
    yield f"| {' | '.join(names)} |"
    yield f"| {' | '.join(['---', *['---:'] * (len(names) - 1)])} |"
    for row in rows:
        cells = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        yield f"| {' | '.join(cells)} |"
    yield ""


def area(steps: Steps) -> str:
    """Returns the area under the curve and its interval as text."""
    low, high = area_interval(steps, np.random.default_rng(0))
    return f"{roc(steps).area:.3f} [{low:.3f}, {high:.3f}]"


def rates(steps: Steps, threshold: float) -> str:
    """Returns true rate, false rate and estimated length as text."""
    true_rate, false_rate = operating_point(steps, threshold)
    return f"{true_rate:.3f} / {false_rate:.3f} / {estimated_length(steps, threshold):.1f}"


def by_space(found: Sequence[Space]) -> Iterator[str]:
    """Yields the table of the spaces."""
    rows = []
    for space in found:
        choice, report = space.steps(0), space.steps(1)
        best, long = youden_threshold(roc(choice)), length_threshold(choice)
        rows.append(
            [
                space.name,
                area(report),
                area(report.only(~report.repeat)),
                rates(report, REPEATS_ONLY),
                f"{best:.3f}: {rates(report, best)}",
                f"{long:.3f}: {rates(report, long)}",
            ]
        )
    yield from table(
        [
            "space",
            "AUC",
            "AUC, repeats left out",
            "repeats alone",
            "Youden's threshold",
            "length-matching threshold",
        ],
        rows,
    )


def by_window(space: Space) -> Iterator[str]:
    """Yields the table of the windows."""
    rows = []
    for window in WINDOWS:
        choice, report = space.steps(0, window), space.steps(1, window)
        best = youden_threshold(roc(choice))
        other = report.only(~report.repeat)
        rows.append([window, roc(report).area, roc(other).area, f"{best:.3f}", rates(report, best)])
    yield from table(
        ["window", "AUC", "AUC, repeats left out", "Youden's threshold", "its rates and length"],
        rows,
    )


def why(recordings: Sequence[Recording]) -> Iterator[str]:
    """Yields what the recordings say of why users left."""
    rows: list[list[Any]] = []
    for split in ("train", "test"):
        part = [recording for recording in recordings if recording.split == split]
        found = causes(part)
        # The rewards of BiLLP's training runs are not of one matrix, so nothing follows there.
        alike = f"{found.others_alike:.0f}" if split == "test" else "not to be told"
        rows.append(
            [
                split,
                found.left,
                f"{found.repeats_left} of {found.repeats_left + found.repeats_stayed}",
                f"{found.low_first} / {found.low_later}",
                found.others,
                f"{found.others_liked} ({found.stays_liked / found.stays:.2f})",
                alike,
            ]
        )
    yield from table(
        [
            "BiLLP's split",
            "users left",
            "left at an item of the last 4",
            "stayed at a reward < 2, first / later step",
            "other leaves",
            "of a liked item (share where users stayed)",
            "so by likeness",
        ],
        rows,
    )


def played(data: str | None) -> Iterator[str]:
    """Yields what simple players reach under the preset on Steam."""
    prepared = prepare("steam", root=data, progress=False)
    rows: list[list[Any]] = []
    players: list[tuple[str, Planner]] = [
        ("random", random_policy),
        ("greedy", greedy),
        ("scripted explorer", explorer()),
        ("rule-aware", rule_aware()),
        ("oracle", oracle()),
    ]
    for split in ("train", "test"):
        dynamics = Dynamics(prepared, split=split, rules=make_rules("billp", dataset="steam"))
        replays = dynamics.replay(prepared.sessions)
        length = sum(len(replay.actions) for replay in replays)
        reward = float(sum(replay.rewards.sum() for replay in replays))
        ended = sum(replay.terminated for replay in replays)
        rows.append(
            [
                f"recorded sessions, {split}",
                f"{length / len(replays):.2f}",
                f"{reward / len(replays):.1f}",
                reward / length,
                f"{length / ended:.1f}",
            ]
        )
        for name, player in players:
            result = run_episodes(dynamics, player, EPISODES, seed=0)
            ends = sum(end != "limit" for end in result.ended_by)
            rows.append(
                [
                    f"{name}, {split}",
                    f"{result.lengths.mean():.2f}",
                    f"{result.returns.mean():.1f}",
                    float(result.returns.sum() / result.lengths.sum()),
                    f"{result.lengths.sum() / ends:.1f}" if ends else "no end",
                ]
            )
    yield from table(["player, world model", "len", "return", "per step", "steps / ends"], rows)


def plot(found: dict[str, Sequence[Space]]) -> None:
    """Writes the curves of the reporting half."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(11, 5.5))
    for axis, (name, in_spaces) in zip(np.atleast_1d(axes), found.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle=":")
        for space in (in_spaces[0], in_spaces[2], in_spaces[5]):
            curve = roc(space.steps(1))
            axis.plot(
                curve.false_rate, curve.true_rate, label=f"{space.name} (AUC {curve.area:.2f})"
            )
        steps = in_spaces[2].steps(1)
        rest = roc(steps.only(~steps.repeat))
        axis.plot(
            rest.false_rate,
            rest.true_rate,
            color="C1",
            linestyle="--",
            label=f"environment's, text, repeats left out (AUC {rest.area:.2f})",
        )
        true_rate, false_rate = operating_point(steps, BILLP[name])
        axis.plot(
            false_rate, true_rate, "ko", label=f'termination="billp" (threshold {BILLP[name]})'
        )
        axis.set(
            title=name.capitalize(),
            xlabel="share of steps stayed at where the rule fires",
            ylabel="share of steps left at where the rule fires",
            aspect="equal",
        )
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8, frameon=False)
    figure.savefig(PLOT, dpi=110, bbox_inches="tight")


def report(found: dict[str, Sequence[Space]], play: bool, data: str | None) -> Iterator[str]:
    """Yields the lines of the report."""
    yield "# The similarity rule against where recorded users left"
    yield ""
    yield (
        "Steps after the first of BiLLP's printed sessions (gpt-3.5-turbo-16k). Users of an even "
        "number choose thresholds, all figures but those of the first table are of users of an odd "
        "number; intervals hold 95 % of 300 bootstrap samples of sessions. Three figures a "
        "threshold: share of the leaves found / share of the stays wrongly ended / steps divided "
        "by ends of sessions that the rule alone ends."
    )
    yield ""
    for name, in_spaces in found.items():
        steps = in_spaces[2].steps(1)
        recorded = steps.lengths.sum() / steps.left.sum()
        yield f"## {name}"
        yield ""
        yield "What the recordings themselves say (all users):"
        yield ""
        yield from why(in_spaces[0].recordings)
        yield f"Spaces, window 4. Recorded: {recorded:.1f} steps a leave."
        yield ""
        yield from by_space(in_spaces)
        yield "Windows, text of the environment's items:"
        yield ""
        yield from by_window(in_spaces[2])
        other = youden_threshold(roc(in_spaces[2].steps(1)))
        yield (
            f'`termination="billp"` takes {BILLP[name]}: {rates(steps, BILLP[name])}. Chosen on '
            f"the other half of the users it would be {other:.3f}."
        )
        yield ""
    if play:
        yield '## Playing under `termination="billp"`, Steam'
        yield ""
        yield (
            f"{EPISODES} sessions a player. Replays of recorded sessions stop where the recording "
            "stops, so steps / ends is what compares."
        )
        yield ""
        yield from played(data)


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with the raw data")
    parser.add_argument("--play", action="store_true", help="also play on Steam (a minute more)")
    given = parser.parse_args()
    found = {name: spaces(name, given.data) for name in ("steam", "amazon")}
    text = "\n".join(report(found, given.play, given.data)).rstrip() + "\n"
    sys.stdout.write(text)
    RESULTS.write_text(text, encoding="utf-8")
    plot(found)


if __name__ == "__main__":
    main()
