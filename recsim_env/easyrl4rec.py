"""Coat as EasyRL4Rec plays it: its simulator, its session-end rule and its three test modes.

The rewards of a test are a complete rating matrix that others have published for Coat, the pseudo
ground truth; nothing here learns from it. A learner sees the world model that is fitted on the
self-selected ratings alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recsim_env.datasets.coat import pseudo_ground_truth
from recsim_env.dynamics import Dynamics, Split
from recsim_env.env import RecEnv
from recsim_env.errors import DataError, near_miss
from recsim_env.feedback import Feedback
from recsim_env.prepare import PrepareConfig, Prepared, prepare
from recsim_env.termination import Rule, RuleContext
from recsim_env.vector_env import RecVectorEnv
from recsim_env.world_model import WorldModelConfig, taste_covariance

__all__ = [
    "COAT_CONFIG",
    "COAT_OPTIONS",
    "FixedLength",
    "Mode",
    "RatingDistance",
    "coat_feedback",
    "easyrl4rec_dynamics",
    "easyrl4rec_stage",
    "make_easyrl4rec_env",
    "make_easyrl4rec_vector_env",
    "prepare_coat",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Mode = Literal["FB", "NX_0", "NX_10"]

_LIMIT = 30
_STEPS_OF_NX_10 = 10
COAT_OPTIONS: dict[str, Any] = {
    "splits": ("train",),
    "category_features": ("gender", "jackettype", "color", "onfrontpage"),
}
"""Options of the dataset: the self-selected ratings, and all that is known of a coat."""

COAT_CONFIG = PrepareConfig(
    test_fraction=0.0,
    world_model=WorldModelConfig(
        unknown_user_dropout=0.1, weight_decay=64.0, card_fraction=0.0, kernel_share=1.0
    ),
)
"""Settings of the preparation, chosen by cross-validation on the self-selected ratings alone."""


@dataclass(frozen=True, eq=False)
class RatingDistance:
    """Ends a session when an item is rated too much like a recent one (EasyRL4Rec).

    The user leaves when the Euclidean distance between the item's column of ratings and that of any
    of the last ``window`` items is below ``threshold``. An item has distance 0 from itself. Nothing
    ends a session at its first step.

    Attributes:
        columns: (n_items, n_users) the ratings of each item by all users.
        window: How many items before the current one are compared.
        threshold: Distance below which two items count as alike.
        short_window: Compare as the published simulator does, whose slice ``[t - window:t]`` counts
            from the end where t < window: after t items only the last ``min(t, window - t)`` are
            compared then, so that sessions last a little longer.
    """

    columns: FloatArray = field(repr=False)
    window: int = 7
    threshold: float = 6.0
    short_window: bool = False
    name: str = "distance"

    def __post_init__(self) -> None:
        """Checks the settings and finds the pairs of like items."""
        columns = np.asarray(self.columns, np.float64)
        if columns.ndim != 2 or not np.isfinite(columns).all():
            raise DataError(
                f"RatingDistance.columns has shape {columns.shape}, expected finite ratings, one "
                "row for each item and one column for each user."
            )
        if self.window < 1 or not self.threshold >= 0:
            raise DataError(
                f"RatingDistance got window={self.window} and threshold={self.threshold}; the "
                "window must be 1 or more and the threshold not negative."
            )
        squares = np.square(columns).sum(axis=1)
        distances = np.sqrt(
            np.maximum(squares[:, None] + squares[None, :] - 2.0 * columns @ columns.T, 0.0)
        )
        np.fill_diagonal(distances, 0.0)
        object.__setattr__(self, "_alike", distances < self.threshold)

    @property
    def recent(self) -> int:
        """How many of the last items it looks at."""
        return self.window

    def __call__(self, context: RuleContext) -> BoolArray:
        """Returns (n,) True where the item is too near to a recent one."""
        recent, compared = self._recent(context)
        return np.asarray((self._pairs[recent, context.items[:, None]] & compared).any(axis=1))

    def ends(self, context: RuleContext) -> BoolArray:
        """Returns (n, n_items) the same for every item."""
        recent, compared = self._recent(context)
        return np.asarray((self._pairs[recent] & compared[:, :, None]).any(axis=1))

    @property
    def _pairs(self) -> BoolArray:
        """(n_items, n_items) True where two items are too near to each other."""
        pairs: BoolArray = self.__dict__["_alike"]
        return pairs

    def _recent(self, context: RuleContext) -> tuple[IntArray, BoolArray]:
        """(n, window) the last items, the newest first, and which of them are compared."""
        back = np.arange(1, self.window + 1)[None, :]
        steps = context.steps[:, None]
        recent = context.shown[context.rows[:, None], np.maximum(steps - back, 0)]
        compared = back <= steps
        if self.short_window:
            compared &= (steps >= self.window) | (back <= self.window - steps)
        return np.where(compared, recent, 0), compared


@dataclass(frozen=True)
class FixedLength:
    """Ends every session after ``steps`` items, whatever is shown.

    It stands in for the length limit where observations shall tell the time as in sessions of
    another limit.

    Attributes:
        steps: Items of a session.
        recent: How many of the last items observations tell, though this rule looks at none.
    """

    steps: int = 10
    recent: int = 0
    name: str = "length"

    def __call__(self, context: RuleContext) -> BoolArray:
        """Returns (n,) True at the last step."""
        return np.asarray(context.steps + 1 >= self.steps)

    def ends(self, context: RuleContext) -> BoolArray:
        """Returns (n, n_items) the same for every item."""
        last = np.asarray(context.steps + 1 >= self.steps)
        return np.repeat(last[:, None], context.mask.shape[1], axis=1)


def prepare_coat(
    root: str | Path | None = None, cache: str | Path | None = None, progress: bool = True
) -> Prepared:
    """Prepares Coat for EasyRL4Rec's settings.

    The world model is fitted on all self-selected ratings, 24 of each user, and on nothing else.

    Args:
        root: Folder with the raw data; else ``ILREC_DATA``, else the user cache directory.
        cache: Folder for artefacts; else ``ILREC_CACHE``, else the user cache directory.
        progress: Shows progress bars.

    Raises:
        MissingDataError: Where the data are not there.
    """
    return prepare(
        "coat", root=root, config=COAT_CONFIG, cache=cache, progress=progress, options=COAT_OPTIONS
    )


def easyrl4rec_dynamics(
    prepared: Prepared,
    ratings: FloatArray,
    *,
    split: Split = "train",
    mode: Mode = "FB",
    short_window: bool = False,
    feedback: bool = True,
) -> Dynamics:
    """Builds the dynamics of one mode.

    The observations of all modes have the same parts, so a policy that was trained in one plays
    in each. That is why NX_10 ends by `FixedLength`, not by a limit of 10.

    Args:
        prepared: What `prepare_coat` made.
        ratings: (n_users, n_items) the pseudo ground truth, in the dataset's order.
        split: ``"train"``: rewards are the world model's; ``"test"``: they are ``ratings``.
        mode: ``"FB"``: items may be shown again; ``"NX_0"``: masks take shown items out;
            ``"NX_10"``: so they do, and every session has 10 steps, whatever is shown. In the first
            two, sessions end by `RatingDistance` or at 30 steps.
        short_window: See `RatingDistance`.
        feedback: Whether user vectors follow the rewards of the session (`coat_feedback`). The
            peers' state trackers see those rewards too.

    Raises:
        DataError: For a mode that is not known.
    """
    if mode not in get_args(Mode):
        raise DataError(f"mode={mode!r} is not known; {near_miss(mode, get_args(Mode))}.")
    leaves = RatingDistance(np.ascontiguousarray(ratings.T), short_window=short_window)
    rule: Rule = leaves
    if mode == "NX_10":
        rule = FixedLength(_STEPS_OF_NX_10, recent=leaves.recent)
    return Dynamics(
        prepared,
        split=split,
        rules=(rule,),
        limit=_LIMIT,
        table=ratings if split == "test" else None,
        repeats=mode == "FB",
        feedback=coat_feedback(prepared) if feedback else None,
    )


def coat_feedback(prepared: Prepared) -> Feedback:
    """Returns how user vectors follow a session's rewards, from the self-selected ratings alone.

    What is not known about a user's ratings is the `taste_covariance` of the world model's kernel
    regression. Its projection on the user basis is the covariance of a user vector; what the
    projection leaves out, with what it leaves out of the predictions, is the noise.

    Args:
        prepared: What `prepare_coat` made.
    """
    basis, offset = prepared.user_basis.astype(np.float64), prepared.user_offset
    unknown = taste_covariance(prepared.histories(), prepared.dataset.catalogue.category_matrix)
    project = np.linalg.pinv(basis)
    covariance = project @ unknown @ project.T
    explained = np.einsum("ik,kl,il->i", basis, covariance, basis)
    left = prepared.rows("train") - offset - prepared.user_vectors @ prepared.user_basis.T
    noise = float((unknown.diagonal() - explained).mean() + np.square(left).mean())
    return Feedback(covariance.astype(np.float32), noise)


def easyrl4rec_stage(
    root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    *,
    short_window: bool = False,
    feedback: bool = True,
) -> tuple[Dynamics, dict[str, Dynamics]]:
    """Makes what a peer test on Coat needs.

    Args:
        root: As in `prepare_coat`.
        cache: As in `prepare_coat`.
        progress: As in `prepare_coat`.
        short_window: See `RatingDistance`.
        feedback: As in `easyrl4rec_dynamics`.

    Returns:
        The dynamics to learn in (mode FB, rewards of the world model) and those to test in (by
        mode, rewards of the pseudo ground truth).

    Raises:
        MissingDataError: Where the data are not there.
    """
    prepared = prepare_coat(root, cache, progress)
    ratings = pseudo_ground_truth(prepared.dataset, root)
    options: dict[str, Any] = {"short_window": short_window, "feedback": feedback}
    train = easyrl4rec_dynamics(prepared, ratings, **options)
    tests = {
        mode: easyrl4rec_dynamics(prepared, ratings, split="test", mode=mode, **options)
        for mode in get_args(Mode)
    }
    return train, tests


def _dynamics(
    *,
    mode: Mode = "FB",
    split: Split = "train",
    short_window: bool = False,
    feedback: bool = True,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Dynamics:
    prepared = prepare_coat(data, cache, progress)
    ratings = pseudo_ground_truth(prepared.dataset, data)
    return easyrl4rec_dynamics(
        prepared, ratings, split=split, mode=mode, short_window=short_window, feedback=feedback
    )


def make_easyrl4rec_env(
    *,
    obs_mode: Any = "vector",
    sequence_length: int = 50,
    render_mode: str | None = None,
    **kwargs: Any,
) -> RecEnv:
    """Makes the environment ``IlRecCoatEasyRL4Rec-v0``.

    Args:
        obs_mode: As in `RecEnv`.
        sequence_length: As in `RecEnv`.
        render_mode: As in `RecEnv`.
        kwargs: ``mode``, ``split``, ``short_window`` and ``feedback`` as in `easyrl4rec_dynamics`;
            ``data``, ``cache`` and ``progress`` as in `RecEnv`.
    """
    return RecEnv(
        dynamics=_dynamics(**kwargs),
        obs_mode=obs_mode,
        sequence_length=sequence_length,
        render_mode=render_mode,
    )


def make_easyrl4rec_vector_env(
    num_envs: int = 1,
    *,
    obs_mode: Any = "vector",
    sequence_length: int = 50,
    render_mode: str | None = None,
    **kwargs: Any,
) -> RecVectorEnv:
    """Makes many sessions of ``IlRecCoatEasyRL4Rec-v0`` at once.

    Args:
        num_envs: Number of sessions.
        obs_mode: As in `RecVectorEnv`.
        sequence_length: As in `RecVectorEnv`.
        render_mode: As in `RecVectorEnv`.
        kwargs: As in `make_easyrl4rec_env`.
    """
    return RecVectorEnv(
        num_envs,
        dynamics=_dynamics(**kwargs),
        obs_mode=obs_mode,
        sequence_length=sequence_length,
        render_mode=render_mode,
    )
