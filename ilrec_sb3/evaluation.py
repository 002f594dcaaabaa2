"""Plays trained models on the test world model and sums up what came out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy

from recsim_env.dynamics import Dynamics, State
from recsim_env.errors import DataError
from recsim_env.planners import Episodes, Planner
from recsim_env.prepare import Session
from recsim_env.simulator import Observer
from recsim_env.termination import Repeat
from recsim_env.trajectories import Trajectory

__all__ = [
    "Predictor",
    "Summary",
    "as_planner",
    "bootstrap_interval",
    "can_play",
    "replay_sessions",
    "summarise",
    "summarise_seeds",
    "takes_masks",
    "takes_shown_away",
]

RECORD_ENDED = "end of record"
_RESAMPLES = 2_000


class Predictor(Protocol):
    """What is asked of a model: Stable-Baselines3's ``predict``."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, Any]:
        """Returns actions for a batch of observations, and a state that is not used."""


def takes_masks(model: Predictor) -> bool:
    """Returns whether the model's ``predict`` takes ``action_masks``, as MaskablePPO's does."""
    return "action_masks" in inspect.signature(model.predict).parameters


def takes_shown_away(dynamics: Dynamics) -> bool:
    """Returns whether the environment itself takes shown items out of the choice.

    Its masks leave them out, and no rule ends a session for one that is shown again.
    """
    return not dynamics.repeats and not any(isinstance(rule, Repeat) for rule in dynamics.rules)


def can_play(model: Predictor, dynamics: Dynamics) -> bool:
    """Returns whether `as_planner` can keep the model to what the environment lets it show."""
    masked = takes_masks(model) or not takes_shown_away(dynamics)
    return masked or _scorer(model) is not None


def as_planner(model: Predictor, dynamics: Dynamics, *, deterministic: bool = True) -> Planner:
    """Makes a planner of a trained model, to be played by `recsim_env.planners.run_episodes`.

    Where the environment itself takes shown items away (`takes_shown_away`), so it does for models
    that know no masks: value-based ones show the allowed item of the highest value, actors the most
    likely allowed one, or a draw among the allowed ones from their own distribution.

    Draws of the model's own come from the planner's generator: torch's random state is left as it
    was found, so that evaluating in the middle of training does not change how the training goes
    on.

    Args:
        model: Any Stable-Baselines3 algorithm trained on one of the observation modes.
        dynamics: Where it will play.
        deterministic: Whether to take the most likely action instead of a draw.

    Raises:
        DataError: The model belongs to another catalogue or to other observations, or it cannot be
            kept to what the environment lets it show.
    """
    observer = _observer_for(model, dynamics)
    masked = takes_masks(model)
    if not masked and takes_shown_away(dynamics):
        return _among_allowed(model, observer, deterministic)

    def act(dynamics: Dynamics, state: State, generator: np.random.Generator) -> NDArray[np.int64]:
        options: dict[str, Any] = {"action_masks": state.mask} if masked else {}
        del dynamics  # the observer's own
        observation = observer(state)
        if deterministic:
            actions, _ = model.predict(observation, deterministic=True, **options)
        else:
            with th.random.fork_rng():
                th.manual_seed(int(generator.integers(2**31)))
                actions, _ = model.predict(observation, deterministic=False, **options)
        return np.asarray(actions, np.int64).reshape(-1)

    return act


def _among_allowed(model: Predictor, observer: Observer, deterministic: bool) -> Planner:
    """Returns a planner of a model without masks that shows what the state allows."""
    scorer = _scorer(model)
    if scorer is None:
        raise DataError(
            f"A model of {type(model).__name__} came, whose choice cannot be kept to items that "
            "were not shown, and this environment takes shown items away: play it where they may "
            "be shown again, or take an algorithm that is value-based, an actor-critic or masked."
        )
    policy: Any = model.policy  # type: ignore[attr-defined]
    drawn = not deterministic and isinstance(policy, ActorCriticPolicy)

    def act(dynamics: Dynamics, state: State, generator: np.random.Generator) -> NDArray[np.int64]:
        del dynamics  # the observer's own
        policy.set_training_mode(False)
        with th.no_grad():
            inputs, _ = policy.obs_to_tensor(observer(state))
            scores = scorer(inputs).cpu().numpy().astype(np.float64)
        if drawn:  # the highest of log-probability plus Gumbel noise is a draw
            scores += generator.gumbel(size=scores.shape)
        return np.asarray(np.where(state.mask, scores, -np.inf).argmax(axis=1), np.int64)

    return act


def _scorer(model: Predictor) -> Callable[[Any], th.Tensor] | None:
    """Returns what gives (n, n_items) values or log-probabilities of items; None if none does."""
    policy = getattr(model, "policy", None)
    if isinstance(policy, DQNPolicy):
        return policy.q_net
    if isinstance(policy, QRDQNPolicy):
        quantile_net = policy.quantile_net
        return lambda inputs: quantile_net(inputs).mean(dim=1)
    if isinstance(policy, ActorCriticPolicy):
        return partial(_log_probabilities, policy)
    return None


def _log_probabilities(policy: ActorCriticPolicy, inputs: Any) -> th.Tensor:
    distribution: Any = policy.get_distribution(inputs).distribution
    found: th.Tensor = distribution.logits  # of a categorical distribution
    return found


def _observer_for(model: Predictor, dynamics: Dynamics) -> Observer:
    """Returns the observer whose observations the model was trained on."""
    n_actions = getattr(model.action_space, "n", None)
    if n_actions != dynamics.n_items:
        raise DataError(
            f"A model for {n_actions} items came for a dataset of {dynamics.n_items}: name the "
            "dataset that it was trained on."
        )
    # algorithms whose observations carry their masks tell what they take beside masks
    space = getattr(model, "plain_observation_space", model.observation_space)
    if isinstance(space, spaces.Dict):
        observer = Observer(dynamics, "dict")
    elif np.issubdtype(space.dtype, np.integer):
        observer = Observer(dynamics, "sequence", int((space.shape or (1,))[0]))
    else:
        observer = Observer(dynamics, "vector")
    if observer.space.shape != space.shape:
        raise DataError(
            f"A model for observations of shape {space.shape} came, this dataset gives "
            f"{observer.space.shape}: prepare the dataset with the settings of the training."
        )
    return observer


@dataclass(frozen=True)
class Summary:
    """What the sessions of one policy came to.

    Attributes:
        episodes: How many sessions were played (for each seed).
        length: Mean length, in items.
        per_step: Mean reward of an item, in [1, 5].
        mean_return: Mean undiscounted return of a session.
        low: Lower end of the interval of ``mean_return``.
        high: Upper end.
        seeds: How many trainings it sums up; 1 where nothing was trained.
        cut: Share of the sessions that ended because their record did, not the user.
    """

    episodes: int
    length: float
    per_step: float
    mean_return: float
    low: float
    high: float
    seeds: int = 1
    cut: float = 0.0


def bootstrap_interval(
    values: NDArray[Any], level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean.

    Args:
        values: (n,) one value per session.
        level: Coverage, in (0, 1).
        resamples: How often the sessions are drawn anew.
        seed: Of the draws.
    """
    values = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for k in range(resamples):
        means[k] = values[generator.integers(len(values), size=len(values))].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(played: Episodes) -> Summary:
    """Sums up sessions; the interval is the 95 % bootstrap interval of the mean return.

    Args:
        played: At least one session.

    Raises:
        DataError: Without any session.
    """
    lengths, returns = played.lengths, played.returns
    if len(returns) == 0:
        raise DataError("No session came to sum up; play at least one.")
    low, high = bootstrap_interval(returns)
    return Summary(
        episodes=len(returns),
        length=float(np.mean(lengths)),
        per_step=float(np.sum(returns, dtype=np.float64) / np.sum(lengths)),
        mean_return=float(np.mean(returns, dtype=np.float64)),
        low=low,
        high=high,
        cut=float(np.mean([ending == RECORD_ENDED for ending in played.ended_by])),
    )


def summarise_seeds(summaries: Sequence[Summary]) -> Summary:
    """Sums up trainings that differ in their seed: medians, and the range of the mean returns.

    One training alone keeps its own figures, with the bootstrap interval over sessions.
    """
    if len(summaries) == 1:
        return summaries[0]
    means = [summary.mean_return for summary in summaries]
    return Summary(
        episodes=summaries[0].episodes,
        length=float(np.median([summary.length for summary in summaries])),
        per_step=float(np.median([summary.per_step for summary in summaries])),
        mean_return=float(np.median(means)),
        low=min(means),
        high=max(means),
        seeds=len(summaries),
    )


def _items(trajectory: Trajectory) -> tuple[int, ...]:
    return tuple(int(action) for action in trajectory.actions)


def _before_repeat(trajectory: Trajectory) -> tuple[int, ...]:
    """Returns the items of a session before the first that it shows again."""
    items = _items(trajectory)
    first = next((k for k, item in enumerate(items) if item in items[:k]), len(items))
    return items[:first]


def replay_sessions(dynamics: Dynamics, trajectories: Sequence[Trajectory]) -> Episodes:
    """Plays demonstrated sessions again, under the rewards and rules of other dynamics.

    Where these take shown items away, a session is cut before the first item that it repeats.

    Args:
        dynamics: Where to play.
        trajectories: What was shown to whom.
    """
    cut = takes_shown_away(dynamics)
    sessions = [
        Session(
            user=trajectory.user,
            history=trajectory.history,
            actions=_before_repeat(trajectory) if cut else _items(trajectory),
            source=trajectory.source,
        )
        for trajectory in trajectories
    ]
    replayed = dynamics.replay(sessions)
    return Episodes(
        users=np.array([trajectory.user for trajectory in replayed], np.int64),
        lengths=np.array([len(trajectory) for trajectory in replayed], np.int64),
        returns=np.array([trajectory.rewards.sum() for trajectory in replayed], np.float32),
        ended_by=tuple("rule" if t.terminated else RECORD_ENDED for t in replayed),
        actions=tuple(tuple(int(a) for a in t.actions) for t in replayed),
    )
