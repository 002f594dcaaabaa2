"""How well a rule of likeness tells where recorded users left, and under which threshold.

BiLLP's simulator ends a session where the item shown is nearer than a threshold to one of the last
four in the space of a large language model, or where its reward is below 2. The recorded sessions
say where users left. This module asks how well `recsim_env.termination.Similarity` finds the same
places from distances in another space.

A step is compared with the steps before it in its session. The first step has none before it and is
left out everywhere: no rule of likeness can end a session there, and counting it as a success would
only flatter the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from llm_expert.grounding import Grounder
from llm_expert.recorded import RecordedEpisode, RecordedItem
from recsim_env.errors import DataError

__all__ = [
    "Causes",
    "Distance",
    "Recording",
    "Roc",
    "Steps",
    "area_interval",
    "category_distance",
    "causes",
    "compared_steps",
    "estimated_length",
    "grounded_rows",
    "half_of_users",
    "length_threshold",
    "make_recordings",
    "operating_point",
    "roc",
    "text_distance",
    "youden_threshold",
]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

Distance = Callable[[int, IntArray], FloatArray]
"""Distances from one item to (k,) others, as (k,) numbers that are 0 for the item itself."""


@dataclass(frozen=True)
class Recording:
    """A recorded session as the calibration sees it.

    Args:
        user: Whose session; sessions of one user are never on both sides of a split.
        split: Of BiLLP's runs: "train" or "test".
        items: (T,) items shown, oldest first.
        history: (h,) items before the session, oldest first.
        rewards: (T,) rewards, NaN where none was recorded (at the step after which a user left).
        left: Whether the user left at the last step; otherwise the recording stops there.
    """

    user: int
    split: str
    items: IntArray
    history: IntArray
    rewards: FloatArray
    left: bool


def make_recordings(
    episodes: Iterable[RecordedEpisode], rows: Mapping[int, int]
) -> list[Recording]:
    """Returns recorded sessions with their items as rows of a table of items.

    Args:
        episodes: As `llm_expert.recorded.recorded_episodes` gives them.
        rows: Row in the table per BiLLP id.
    """
    return [
        Recording(
            user=-1 if episode.user_id is None else episode.user_id,
            split=episode.split,
            items=np.array([rows[step.shown] for step in episode.steps], np.int64),
            history=np.array([rows[item] for item in episode.history], np.int64),
            rewards=np.array(
                [np.nan if step.reward is None else step.reward for step in episode.steps]
            ),
            left=any(step.left for step in episode.steps),
        )
        for episode in episodes
    ]


def grounded_rows(
    items: Mapping[int, RecordedItem], used: Iterable[int], grounder: Grounder
) -> dict[int, int]:
    """Returns the item of a catalogue that stands for each recorded item.

    It is found by title, else by the nearest text; so two recorded items may become one, which
    looks like an item that was shown again.

    Args:
        items: BiLLP's catalogue, by id.
        used: Ids to find.
        grounder: Of the other catalogue.

    Returns:
        Index in the other catalogue per id.
    """
    return {
        item: (
            grounder.lookup(items[item].title)
            or grounder.nearest(grounder.embedder.embed([items[item].document])[0])
        ).item
        for item in sorted(set(used))
    }


def half_of_users(recordings: Sequence[Recording], half: int) -> list[Recording]:
    """Returns the sessions of every second user.

    Args:
        recordings: Of all users.
        half: 0 or 1: users of an even or an odd number.
    """
    return [recording for recording in recordings if recording.user % 2 == half]


def text_distance(vectors: npt.NDArray[np.float32]) -> Distance:
    """Returns the Euclidean distance between the vectors of items, in [0, 2] for unit vectors.

    Args:
        vectors: (n_items, d) rows of norm 1.
    """

    def distance(item: int, others: IntArray) -> FloatArray:
        difference = vectors[others].astype(np.float64) - vectors[item]
        distances: FloatArray = np.sqrt(np.square(difference).sum(axis=-1))
        return distances

    return distance


def category_distance(categories: Sequence[Iterable[str]]) -> Distance:
    """Returns one minus the Jaccard similarity of two items' categories, in [0, 1].

    Args:
        categories: Names per item; two items without any are taken to be alike.
    """
    sets = [frozenset(names) for names in categories]

    def apart(one: frozenset[str], other: frozenset[str]) -> float:
        return 1.0 - len(one & other) / len(one | other) if one or other else 0.0

    def distance(item: int, others: IntArray) -> FloatArray:
        return np.array([apart(sets[item], sets[other]) for other in others.tolist()], np.float64)

    return distance


@dataclass(frozen=True)
class Steps:
    """All steps that have another before them in their session.

    Args:
        distance: (n,) to the nearest item compared with.
        left: (n,) whether the user left.
        repeat: (n,) whether the item is one of those compared with.
        session: (n,) number of the session, not decreasing.
        number: (n,) number of the step in its session, from 1.
        lengths: (sessions,) steps of every session, the first one counted.
    """

    distance: FloatArray
    left: BoolArray
    repeat: BoolArray
    session: IntArray
    number: IntArray
    lengths: IntArray

    def only(self, chosen: BoolArray) -> Steps:
        """Returns the chosen steps; the sessions keep their numbers and lengths.

        Args:
            chosen: (n,) booleans.
        """
        return Steps(
            self.distance[chosen],
            self.left[chosen],
            self.repeat[chosen],
            self.session[chosen],
            self.number[chosen],
            self.lengths,
        )


def compared_steps(
    recordings: Sequence[Recording],
    distance: Distance,
    window: int = 4,
    *,
    with_history: bool = False,
) -> Steps:
    """Returns how near every step comes to the items just before it.

    Args:
        recordings: Recorded sessions.
        distance: Between items.
        window: How many of the items before a step are compared, at least 1.
        with_history: Whether the window reaches back into the time before the session.
    """
    rows: list[tuple[float, bool, bool, int, int]] = []
    for session, recording in enumerate(recordings):
        before = recording.history if with_history else recording.history[:0]
        items = np.concatenate([before, recording.items])
        last = len(recording.items) - 1
        for t in range(1, last + 1):
            at = len(before) + t
            recent = items[max(0, at - window) : at]
            near = float(distance(int(items[at]), recent).min())
            repeat = bool((recent == items[at]).any())
            rows.append((near, recording.left and t == last, repeat, session, t))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Steps(
        distance=np.array(columns[0], np.float64),
        left=np.array(columns[1], np.bool_),
        repeat=np.array(columns[2], np.bool_),
        session=np.array(columns[3], np.int64),
        number=np.array(columns[4], np.int64),
        lengths=np.array([len(recording.items) for recording in recordings], np.int64),
    )


@dataclass(frozen=True)
class Roc:
    """Receiver operating characteristic of the rule "left where distance < threshold".

    Args:
        thresholds: (k,) increasing, from 0 (never) to beyond every distance (always).
        false_rate: (k,) share of the steps that users stayed at where the rule fires.
        true_rate: (k,) share of the steps that users left at where the rule fires.
        area: Under the curve: the chance that of a step of each kind the one where the user left is
            the nearer; 0.5 says nothing.
    """

    thresholds: FloatArray
    false_rate: FloatArray
    true_rate: FloatArray
    area: float


def roc(steps: Steps) -> Roc:
    """Returns the curve over all thresholds; each lies halfway between two distances that occur.

    Args:
        steps: With at least one step of each kind.

    Raises:
        DataError: The users left at every step, or at none.
    """
    if steps.left.all() or not steps.left.any():
        raise DataError(
            f"{int(steps.left.sum())} of {len(steps.left)} steps are such that the user left, "
            "expected some of them but not all: give more recorded sessions."
        )
    false_rate, true_rate, scores = roc_curve(steps.left, -steps.distance, drop_intermediate=False)
    at = -scores[1:]  # the rule "distance <= at"; ours is strict, so it lies above
    above = np.append((at[:-1] + at[1:]) / 2.0, at[-1] + 1.0)
    area = float(np.trapezoid(true_rate, false_rate))
    return Roc(np.concatenate([[0.0], above]), false_rate, true_rate, area)


def area_interval(
    steps: Steps, generator: np.random.Generator, *, draws: int = 300, level: float = 0.95
) -> tuple[float, float]:
    """Returns a confidence interval of the area under the curve, by drawing sessions anew.

    Args:
        steps: As for `roc`.
        generator: Of the draws.
        draws: How many bootstrap samples of whole sessions; 200 to 2,000.
        level: Share of the samples that the interval holds, in (0, 1).
    """
    n_sessions = len(steps.lengths)
    ties, place = np.unique(steps.distance, return_inverse=True)
    areas = []
    for _ in range(draws):
        drawn = np.bincount(generator.integers(n_sessions, size=n_sessions), minlength=n_sessions)
        weight = drawn[steps.session].astype(np.float64)
        leaving = np.bincount(place, weight * steps.left, len(ties))
        staying = np.bincount(place, weight * ~steps.left, len(ties))
        beyond = staying.sum() - staying.cumsum() + staying / 2.0  # a tie counts half
        pairs = leaving.sum() * staying.sum()
        if pairs > 0:
            areas.append(float((leaving * beyond).sum() / pairs))
    low, high = np.quantile(areas, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def youden_threshold(curve: Roc) -> float:
    """Returns the threshold of the greatest Youden index, true rate less false rate.

    Args:
        curve: As `roc` gives it. Of several best thresholds the least is taken, which ends the
            fewest sessions.
    """
    return float(curve.thresholds[int((curve.true_rate - curve.false_rate).argmax())])


def operating_point(steps: Steps, threshold: float) -> tuple[float, float]:
    """Returns the true rate and the false rate of the rule under one threshold.

    Args:
        steps: With at least one step of each kind.
        threshold: Distances below it end a session.
    """
    fires = steps.distance < threshold
    return float(fires[steps.left].mean()), float(fires[~steps.left].mean())


def estimated_length(steps: Steps, threshold: float) -> float:
    """Returns the mean length that sessions would have if the rule alone ended them.

    A replayed session cannot outlast its recording, so its mean length says too little. As with
    other censored times, the steps that were played (up to the first at which the rule fires, or to
    the end of the recording) are divided by the number of sessions that the rule has ended.

    Args:
        steps: All steps of their sessions, first steps aside.
        threshold: Distances below it end a session.

    Returns:
        Steps a session, infinite where the rule never fires.
    """
    fires = steps.distance < threshold
    ended, first = np.unique(steps.session[fires], return_index=True)
    played = steps.lengths.astype(np.int64).copy()
    played[ended] = steps.number[fires][first] + 1
    return float(played.sum() / len(ended)) if len(ended) else np.inf


def length_threshold(steps: Steps) -> float:
    """Returns the threshold under which sessions are as long as the recorded users' sessions.

    Both lengths are those of `estimated_length`: steps divided by ends.

    Args:
        steps: All steps of their sessions, first steps aside; at least one user left.
    """
    wanted = steps.lengths.sum() / steps.left.sum()
    thresholds = roc(steps).thresholds
    low, high = 0, len(thresholds) - 1
    while low < high:  # the length falls as the threshold rises
        middle = (low + high) // 2
        if estimated_length(steps, float(thresholds[middle])) > wanted:
            low = middle + 1
        else:
            high = middle
    return float(thresholds[low])


@dataclass(frozen=True)
class Causes:
    """What the recorded sessions themselves say of why users left, distances apart.

    Args:
        left: Sessions that a user left.
        repeats_left: Steps with an item of the window, at which the user left.
        repeats_stayed: Such steps, at which the user stayed.
        low_first: First steps with a reward below the least; users stay at all of them.
        low_later: Later steps with such a reward, at which the user stayed.
        others: Leaves that are no repeat.
        others_liked: Of these, how many are of an item that the same user, in another session,
            was shown after the first step without leaving, and rated at least the least reward.
        stays: Steps after the first at which users stayed.
        stays_liked: Of these, how many are of an item of which the same holds.
    """

    left: int
    repeats_left: int
    repeats_stayed: int
    low_first: int
    low_later: int
    others: int
    others_liked: int
    stays: int
    stays_liked: int

    @property
    def others_alike(self) -> float:
        """Estimated number of the others that likeness, and not a low reward, made leave.

        An item that a user likes can drive the user away by likeness only. How often a liked item
        is seen to be one, by another session, is measured where users stayed.
        """
        seen = self.stays_liked / self.stays if self.stays else 0.0
        return min(float(self.others), self.others_liked / seen) if seen else float("nan")


def causes(recordings: Sequence[Recording], *, window: int = 4, min_reward: float = 2.0) -> Causes:
    """Counts repeats, low rewards and what other sessions of the same user tell.

    Args:
        recordings: Recorded sessions of one split and one matrix of rewards.
        window: How many items before a step count as recent.
        min_reward: The least reward that does not end a session.
    """
    liked: dict[tuple[int, int], int] = {}
    for recording in recordings:
        for t in _stayed(recording):
            if t and recording.rewards[t] >= min_reward:
                key = (recording.user, int(recording.items[t]))
                liked[key] = liked.get(key, 0) + 1
    steps = compared_steps(recordings, lambda item, others: (others != item) * 1.0, window)
    keys = [(recording.user, int(item)) for recording in recordings for item in recording.items[1:]]
    others = steps.left & ~steps.repeat
    seen = np.array([liked.get(key, 0) for key in keys], np.int64)
    low = [
        (t, recording.rewards[t] < min_reward)
        for recording in recordings
        for t in _stayed(recording)
    ]
    return Causes(
        left=sum(recording.left for recording in recordings),
        repeats_left=int((steps.repeat & steps.left).sum()),
        repeats_stayed=int((steps.repeat & ~steps.left).sum()),
        low_first=sum(bool(is_low) for t, is_low in low if t == 0),
        low_later=sum(bool(is_low) for t, is_low in low if t > 0),
        others=int(others.sum()),
        others_liked=int((seen[others] > 0).sum()),
        stays=int((~steps.left).sum()),
        stays_liked=int((seen[~steps.left] > 1).sum()),
    )


def _stayed(recording: Recording) -> range:
    """The steps after which the user went on."""
    return range(len(recording.items) - recording.left)
