r"""MBPO, MOPO, DORL and ROLeR as reward models around the world model, and ILRec's pessimism.

All of them tell the learner :math:`\tilde r = \hat r - \lambda_1 P_U + \lambda_2 P_E`: an estimate
of the reward, less what is uncertain about it, plus what keeps the future open. They differ in the
three terms.

======  ========================  ===============  ======================
name    estimate                  uncertainty P_U  entropy P_E
======  ========================  ===============  ======================
mbpo    world model's mean        none             none
mopo    world model's mean        ensemble         none
dorl    world model's mean        ensemble         successors in the logs
roler   nearest users' rewards    nearest users    successors in the logs
counts  world model's mean        ratings seen     none
======  ========================  ===============  ======================

The members of this world model's ensemble predict no variance of their own, so the largest
predicted variance, which MOPO and DORL subtract, does not exist here; the spread between the
members takes its place, in units of squared stars as `WorldModel` calibrates it on kept-aside
ratings, without the part that is the same for all pairs.

The part that depends on user and item alone is a table made once; the entropy is looked up at every
step. The rewards that come out may leave [1, 5]. Rules and evaluation never see them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ilrec_sb3.ilrec.heads import doubt
from ilrec_sb3.model_based.neighbours import nearest_users, neighbour_rewards, neighbour_weights
from ilrec_sb3.model_based.successors import SuccessorEntropy
from recsim_env.dynamics import Dynamics, RewardModel, State
from recsim_env.errors import DataError, near_miss
from recsim_env.prepare import Prepared, user_vector_for
from recsim_env.settings import check_range, from_mapping

__all__ = [
    "REWARD_MODELS",
    "CountsConfig",
    "DORLConfig",
    "MBPOConfig",
    "MOPOConfig",
    "PenalisedReward",
    "ROLeRConfig",
    "ensemble_uncertainty",
    "item_labels",
    "penalised_reward",
    "reward_model",
]

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Level = Literal["item", "category"]
Penalty = Literal["distance", "variance"]

_HIGHEST_ORDER = 4


@dataclass(frozen=True)
class MBPOConfig:
    """MBPO (Janner et al., 2019): the world model is believed. No settings."""


@dataclass(frozen=True)
class MOPOConfig:
    """MOPO (Yu et al., 2020, arXiv 2005.13239): rewards less uncertainty.

    Attributes:
        uncertainty: Stars taken off for each squared star of spread; raising it keeps the learner
            to what the ensemble agrees on, 0 to 10. Published recommenders use 0.01 to 0.05 on
            their own world models' variances, which are larger.
    """

    uncertainty: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_range(self, "uncertainty", least=0)


@dataclass(frozen=True)
class CountsConfig:
    """What ILRec's ``pessimism`` takes off, for any other algorithm.

    Attributes:
        uncertainty: Standard errors, see `ilrec_sb3.ilrec.heads.doubt`; 0.5 to 2 is usual.
    """

    uncertainty: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_range(self, "uncertainty", least=0)


@dataclass(frozen=True)
class DORLConfig:
    """DORL (Gao et al., 2023, arXiv 2307.04571): less uncertainty, more entropy.

    Attributes:
        uncertainty: As in `MOPOConfig`; the paper takes MOPO's or less.
        entropy: Stars for each unit of entropy; raising it leads to states after which the logs go
            on in many ways, 0 to 5 (1 for Coat and 5 for KuaiRec in the published settings).
        order: How many of the last items make a state, 1 to 4; 2 in the published settings.
        level: ``"item"``: states and successors are items, as published for Coat. ``"category"``:
            items with the same categories are one; for logs too sparse to show an item twice.
        unseen: Entropy of a state that the logs do not know, 0 to 1; 1 as published.
    """

    uncertainty: float = 1.0
    entropy: float = 1.0
    order: int = 2
    level: Level = "item"
    unseen: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_range(self, "uncertainty", "entropy", least=0)
        _check_entropy(self)


@dataclass(frozen=True)
class ROLeRConfig:
    """ROLeR (Zhang et al., 2024, arXiv 2407.13163): rewards from the nearest users.

    Attributes:
        neighbours: How many, the user himself included; raising it smooths the rewards and adds
            bias, 5 to 150 (15 for Coat, 20 for Yahoo, 30 for KuaiRec in the published settings).
        weighted: Whether nearer users count for more.
        penalty: Uncertainty of a reward: ``"distance"`` is the neighbours' mean cosine distance,
            the same for all items of a user; ``"variance"`` how much their rewards differ.
        uncertainty: Stars for each unit of uncertainty, 0 to 10 (0.005 to 0.05 as published, where
            distances are those of uncentred rows).
        entropy: As in `DORLConfig`.
        order: As in `DORLConfig`.
        level: As in `DORLConfig`.
        unseen: As in `DORLConfig`.
    """

    neighbours: int = 15
    weighted: bool = True
    penalty: Penalty = "distance"
    uncertainty: float = 0.05
    entropy: float = 1.0
    order: int = 2
    level: Level = "item"
    unseen: float = 1.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_range(self, "uncertainty", "entropy", least=0)
        _check_entropy(self)
        check_range(self, "neighbours", least=1)
        if self.penalty not in ("distance", "variance"):
            raise DataError(
                f"ROLeRConfig.penalty is {self.penalty!r}; "
                f"{near_miss(str(self.penalty), ('distance', 'variance'))}."
            )


Config = MBPOConfig | MOPOConfig | DORLConfig | ROLeRConfig | CountsConfig

REWARD_MODELS: dict[str, type[Config]] = {
    "mbpo": MBPOConfig,
    "mopo": MOPOConfig,
    "dorl": DORLConfig,
    "roler": ROLeRConfig,
    "counts": CountsConfig,
}
"""Settings of each reward model, by name."""


def penalised_reward(
    estimate: FloatArray,
    uncertainty: FloatArray | float = 0.0,
    entropy: FloatArray | float = 0.0,
    *,
    uncertainty_weight: float = 0.0,
    entropy_weight: float = 0.0,
) -> FloatArray:
    r"""What the learner is told, :math:`\hat r - \lambda_1 P_U + \lambda_2 P_E` (DORL).

    With :math:`\lambda_2 = 0` it is MOPO's, with both 0 MBPO's.

    Args:
        estimate: Rewards in stars, any shape.
        uncertainty: P_U, of a shape that fits.
        entropy: P_E, of a shape that fits.
        uncertainty_weight: lambda_1, at least 0.
        entropy_weight: lambda_2, at least 0.
    """
    told = estimate - uncertainty_weight * uncertainty + entropy_weight * entropy
    return np.asarray(told, np.float32)


def ensemble_uncertainty(variance: FloatArray, variance_fit: tuple[float, float]) -> FloatArray:
    """The part of the expected squared error that comes from the members' disagreement.

    Args:
        variance: As `WorldModel.predict` gives it: scale times the members' variance, plus offset.
        variance_fit: That scale and that offset.

    Returns:
        As ``variance``, at least 0, in squared stars.
    """
    return np.maximum(variance - np.float32(variance_fit[1]), np.float32(0.0))


def item_labels(categories: FloatArray, level: Level) -> IntArray:
    """Returns (n_items,) which items are one in the entropy of the logs.

    Args:
        categories: (n_items, n_categories) multi-hot.
        level: As in `DORLConfig`.
    """
    if level == "item":
        return np.arange(len(categories))
    return np.unique(categories, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


class PenalisedReward:
    """A reward model: a table by user and item, and the entropy of the last items.

    Args:
        name: With all settings; part of the fingerprint of the dynamics.
        rows: Gives the (m, n_items) rewards before entropy of users who are known by index, or,
            with histories, of users who come with a history of their own.
        n_users: Number of known users.
        entropy: Entropy of the last items, None where it does not count.
        entropy_weight: lambda_2.
    """

    def __init__(
        self,
        name: str,
        rows: Callable[[IntArray, list[IntArray] | None], FloatArray],
        n_users: int,
        entropy: SuccessorEntropy | None = None,
        entropy_weight: float = 0.0,
    ) -> None:
        self.name = name
        self.entropy = entropy
        self.entropy_weight = entropy_weight
        self.needs_history = entropy is not None
        self.table = rows(np.arange(n_users), None)
        self._rows = rows

    def __repr__(self) -> str:
        """Returns the name."""
        return f"PenalisedReward({self.name!r})"

    def __call__(self, dynamics: Dynamics, state: State, items: IntArray) -> FloatArray:
        """Returns (n,) float32, what the learner is told for showing ``items``."""
        told = self.table[state.users, items]
        if state.reward_rows:
            given = np.array(sorted(state.reward_rows), np.int64)
            histories = [state.histories[row] for row in given.tolist()]
            known = [np.empty(0, np.int64) if h is None else h for h in histories]
            rows = self._rows(state.users[given], known)
            told[given] = rows[np.arange(len(given)), items[given]]
        if self.entropy is None:
            return told
        before = dynamics.recent_items(state, self.entropy.order - 1)
        last = np.concatenate([items[:, None], before], axis=1)
        return penalised_reward(
            told, entropy=self.entropy(last), entropy_weight=self.entropy_weight
        )


@dataclass(frozen=True, eq=False)
class _Predicted:
    """Rewards of the world model less its uncertainty; see `PenalisedReward`."""

    prepared: Prepared
    uncertainty: float

    def __call__(self, users: IntArray, histories: list[IntArray] | None) -> FloatArray:
        model = self.prepared.train_model
        if self.uncertainty == 0:
            return model.rows(users, histories)
        mean, variance = model.rows_with_variance(users, histories)
        return penalised_reward(
            mean,
            ensemble_uncertainty(variance, model.variance_fit),
            uncertainty_weight=self.uncertainty,
        )


@dataclass(frozen=True, eq=False)
class _Counted:
    """Rewards of the world model less the doubt in each item; see `PenalisedReward`."""

    prepared: Prepared
    doubt: FloatArray
    uncertainty: float

    def __call__(self, users: IntArray, histories: list[IntArray] | None) -> FloatArray:
        rows = self.prepared.train_model.rows(users, histories)
        return penalised_reward(rows, self.doubt, uncertainty_weight=self.uncertainty)


class _FromNeighbours:
    """Rewards of the nearest users less their uncertainty; see `PenalisedReward`.

    Who is near says the user vector, which is the row of predicted rewards less the items' means:
    cosines of whole rows are all near 1. A neighbour's reward is his logged rating where there is
    one and the world model's mean where not.
    """

    def __init__(self, prepared: Prepared, config: ROLeRConfig) -> None:
        self.prepared = prepared
        self.config = config
        table = prepared.dataset.interactions
        rows = prepared.train_rows
        self.rewards = prepared.train_model.rows()
        self.rewards[table.users[rows], table.items[rows]] = table.ratings[rows]

    def __call__(self, users: IntArray, histories: list[IntArray] | None) -> FloatArray:
        config, vectors = self.config, self.prepared.user_vectors
        if histories is None:
            queries = vectors[users]
        else:
            queries = user_vector_for(self.prepared, histories, users=users)
        near, similarity = nearest_users(vectors, queries, config.neighbours)
        weights = neighbour_weights(similarity, config.weighted)
        mean, variance = neighbour_rewards(self.rewards, near, weights)
        distance = 1.0 - similarity.mean(axis=1, keepdims=True)
        return penalised_reward(
            mean,
            distance if config.penalty == "distance" else variance,
            uncertainty_weight=config.uncertainty,
        )


def reward_model(name: str, dynamics: Dynamics, **settings: Any) -> RewardModel:
    """Makes a reward model from what a learner may know: the train model and the train logs.

    The entropy of DORL and ROLeR needs logs in the order in which they came; a dataset without an
    order has its interactions shuffled. Where the world model's variance has scale 0, its members'
    disagreement tells nothing: the uncertainty of MOPO and DORL is 0, and a warning says so.

    Args:
        name: ``"mbpo"``, ``"mopo"``, ``"dorl"``, ``"roler"`` or ``"counts"``.
        dynamics: Where it will be used, as ``dynamics.with_reward_model(...)``.
        **settings: Fields of the method's settings, see `REWARD_MODELS`.

    Raises:
        DataError: For a name or a setting that is not known, or a value out of its range.
    """
    if name not in REWARD_MODELS:
        raise DataError(f"There is no reward model {name!r}; {near_miss(name, REWARD_MODELS)}.")
    config: Config = from_mapping(REWARD_MODELS[name], settings)
    prepared = dynamics.prepared
    rows: _Predicted | _FromNeighbours | _Counted
    if isinstance(config, ROLeRConfig):
        rows = _FromNeighbours(prepared, config)
    elif isinstance(config, CountsConfig):
        rows = _Counted(
            prepared, doubt(dynamics.support, dynamics.rating_spread), config.uncertainty
        )
    else:
        rows = _Predicted(prepared, getattr(config, "uncertainty", 0.0))
        if rows.uncertainty > 0 and prepared.train_model.variance_fit[0] == 0:
            logger.warning(
                "The members' disagreement did not explain the world model's errors (its variance "
                "has scale 0), so the uncertainty of %r is 0 for every item: its rewards are as "
                "with uncertainty = 0; fit the world model with more members or more data.",
                name,
            )
    entropy, weight = None, 0.0
    if isinstance(config, (DORLConfig, ROLeRConfig)) and config.entropy > 0:
        labels = item_labels(dynamics.categories, config.level)
        logs = prepared.histories("train")
        entropy = SuccessorEntropy.fit(logs, labels, config.order, config.unseen)
        weight = config.entropy
    return PenalisedReward(
        _full_name(name, asdict(config)), rows, dynamics.n_users, entropy, weight
    )


def _full_name(name: str, settings: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(settings, sort_keys=True)}" if settings else name


def _check_entropy(config: DORLConfig | ROLeRConfig) -> None:
    kind = type(config).__name__
    check_range(config, "order", least=1, most=_HIGHEST_ORDER)
    check_range(config, "unseen", least=0, most=1)
    if config.level not in ("item", "category"):
        raise DataError(
            f"{kind}.level is {config.level!r}; {near_miss(config.level, ('item', 'category'))}."
        )
