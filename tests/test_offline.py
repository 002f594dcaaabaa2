"""The offline algorithms find the known answer of a toy problem and behave as SB3's do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

import ilrec_sb3.offline
from ilrec_sb3 import RecVecEnv, as_vec_env
from ilrec_sb3.common.buffers import DemonstrationSamples
from ilrec_sb3.evaluation import as_planner
from ilrec_sb3.offline import (
    BC,
    CRR,
    SQN,
    DiscreteBCQ,
    DiscreteCQL,
    OfflineAlgorithm,
    logged_trajectories,
)
from recsim_env import Dynamics, RecEnv, RecVectorEnv, Trajectory
from recsim_env.errors import DataError
from recsim_env.planners import run_episodes

ALGORITHMS: list[type[OfflineAlgorithm]] = [BC, SQN, CRR, DiscreteBCQ, DiscreteCQL]
every_algorithm = pytest.mark.parametrize("kind", ALGORITHMS)
SMALL: dict[str, Any] = {
    "batch_size": 32,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
}

# -- a toy problem --------------------------------------------------------------------------------

POPULAR, PATIENT, POOR, UNSEEN = range(4)
SHARES = {POPULAR: 12, PATIENT: 5, POOR: 3}
"""How often the log shows each action, in every state."""
GAMMA = 0.9
TABULAR: dict[str, Any] = {
    "batch_size": 64,
    "gamma": GAMMA,
    "learning_rate": 0.05,
    "tau": 0.1,
    "policy_kwargs": {"net_arch": [], "value_scale": 1.0},
    "seed": 0,
    "device": "cpu",
}


class Ladder(gym.Env[np.ndarray, np.int64]):
    """Three steps up: the popular action earns 0.6 and ends it, the patient one 0.2 and climbs.

    At the top the patient one earns 2 and ends it. The poor one earns nothing and ends it, the
    unseen one costs 1 and ends it.
    """

    observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        self.place = 0
        return one_hot(0), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, ended = outcome(self.place, int(action))
        self.place = min(self.place + 1, 2)
        return one_hot(self.place), reward, ended, False, {}


def one_hot(place: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[place]


def outcome(place: int, action: int) -> tuple[float, bool]:
    if action == PATIENT:
        return (2.0, True) if place == 2 else (0.2, False)
    return {POPULAR: 0.6, POOR: 0.0, UNSEEN: -1.0}[action], True


def ladder_log() -> list[Trajectory]:
    """Every state with every logged action, one transition each, by the shares."""
    log = []
    for place in range(3):
        for action, times in SHARES.items():
            reward, ended = outcome(place, action)
            step = Trajectory(
                observations=np.stack([one_hot(place), one_hot(min(place + 1, 2))]),
                actions=np.array([action]),
                rewards=np.array([reward]),
                terminated=ended,
                truncated=not ended,
                n_actions=4,
            )
            log.extend([step] * times)
    return log


OPTIMAL_Q = {(2, PATIENT): 2.0, (1, PATIENT): 2.0, (0, PATIENT): 2.0, (0, POPULAR): 0.6}
"""0.2 + 0.9 * 2 is 2 again."""


def trained(kind: type[OfflineAlgorithm], steps: int = 250, **options: Any) -> OfflineAlgorithm:
    """A model whose values begin with a great liking for the action that the log never shows."""
    model = kind("MlpPolicy", Ladder(), data=ladder_log(), **{**TABULAR, **options})
    for name in ("critic", "critic_target"):
        network = getattr(model.policy, name, None)
        if network is not None:
            with th.no_grad():
                for head in network.scorer.heads:
                    head[-1].bias[UNSEEN] += 5.0
    return model.learn(steps)


def choices(model: OfflineAlgorithm) -> list[int]:
    actions, _ = model.predict(np.eye(3, dtype=np.float32), deterministic=True)
    return actions.tolist()


def test_cloning_gives_the_frequencies_of_the_log() -> None:
    model = trained(BC, learning_rate=lambda left: 0.1 * left)
    assert choices(model) == [POPULAR] * 3
    probs = model.policy.log_probs(th.eye(3)).exp().detach()
    np.testing.assert_allclose(probs, [[0.6, 0.25, 0.15, 0.0]] * 3, atol=0.05)


def test_sqn_clones_with_one_head_and_learns_values_with_the_other() -> None:
    model = trained(SQN, policy_kwargs={"net_arch": [16], "value_scale": 1.0}, learning_rate=0.01)
    assert choices(model) == [POPULAR] * 3, "the supervised head acts"
    policy = model.policy
    # values bootstrap from the best of all actions: nothing keeps the Q head within the log
    places = th.eye(3)
    values = policy.values(places)[0].detach()
    for row, action in ((2, PATIENT), (0, POPULAR), (1, POOR)):
        assert float(values[row, action]) == pytest.approx(outcome(row, action)[0], abs=0.1)
    best = float(values[2].max())
    assert best > 2.5, "the unseen action is still overrated"
    assert float(values[1, PATIENT]) == pytest.approx(0.2 + GAMMA * best, rel=0.1)


def test_sqn_shares_its_encoder() -> None:
    model = trained(SQN, steps=1)
    policy = model.policy
    assert policy.actor.extractor is policy.critic.extractor
    assert policy.critic_target.extractor is not policy.critic.extractor
    assert len(set(policy.parameters())) == len(list(policy.parameters()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CRR, {"beta": 0.2}),
        (CRR, {"weighting": "binary"}),
        (DiscreteBCQ, {"threshold": 0.3}),
        (DiscreteCQL, {"alpha": 0.3}),
    ],
)
def test_the_best_action_within_the_log_is_found(
    kind: type[OfflineAlgorithm], options: dict[str, Any]
) -> None:
    model = trained(kind, **options)
    assert choices(model) == [PATIENT] * 3


@pytest.mark.parametrize(
    ("kind", "options"), [(DiscreteBCQ, {"threshold": 0.0}), (DiscreteCQL, {"alpha": 0.0})]
)
def test_without_its_constraint_each_is_fooled(
    kind: type[OfflineAlgorithm], options: dict[str, Any]
) -> None:
    assert choices(trained(kind, **options))[2] == UNSEEN


def test_bcq_learns_the_values_of_the_best_policy_within_the_log() -> None:
    model = trained(DiscreteBCQ, threshold=0.3)
    values = model.policy.values(th.eye(3))[0].detach()
    for (place, action), value in OPTIMAL_Q.items():
        assert float(values[place, action]) == pytest.approx(value, abs=0.1)


def test_a_high_threshold_clones() -> None:
    assert choices(trained(DiscreteBCQ, threshold=0.9)) == [POPULAR] * 3


def test_masks_hold_while_playing() -> None:
    for kind in ALGORITHMS:
        model = trained(kind, steps=50)
        masks = np.array([[False, False, False, True], [True] * 3 + [False], [False, False, 1, 0]])
        actions, _ = model.predict(np.eye(3, dtype=np.float32), action_masks=masks)
        assert masks[np.arange(3), actions].all(), kind


def test_dict_observations() -> None:
    class Parts(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self) -> None:
            super().__init__(Ladder())
            self.observation_space = spaces.Dict({"place": self.env.observation_space})

        def observation(self, observation: Any) -> Any:
            return {"place": observation}

    model = SQN("MultiInputPolicy", Parts(), data=ladder_log(), **SMALL).learn(2)
    action, _ = model.predict({"place": one_hot(0)}, deterministic=True)
    assert action in range(4)


# -- masks in targets and losses ------------------------------------------------------------------

VALUES = [1.0, 2.0, 4.0, 3.0]
"""Of every critic, in every state."""
TARGET_VALUES = [10.0, 20.0, 40.0, 30.0]
"""Of every target critic."""
LOGGED = 0
"""The action of every row, which is worth 1."""


def known(kind: type[OfflineAlgorithm], **options: Any) -> OfflineAlgorithm:
    """A model of known values, whose actor finds all actions alike."""
    settings = {**TABULAR, "data": ladder_log(), **options}
    model = kind("MlpPolicy", Ladder(), **settings)
    contents = {"critic": VALUES, "critic_target": TARGET_VALUES, "actor": 0, "actor_target": 0}
    with th.no_grad():
        for name, biases in contents.items():
            network = getattr(model.policy, name, None)
            if network is None:
                continue
            for parameter in network.parameters():
                parameter.zero_()
            for head in network.scorer.heads:
                head[-1].bias.copy_(th.as_tensor(biases).expand(4))
    return model


def losses(
    model: OfflineAlgorithm, masks: list[bool] | None, next_masks: list[bool] | None
) -> dict[str, float]:
    """What a batch of one row that goes on for a reward of 0.5 gives."""
    row = DemonstrationSamples(
        observations=th.eye(3)[:1],
        actions=th.tensor([[LOGGED]]),
        next_observations=th.eye(3)[1:2],
        dones=th.zeros(1, 1),
        rewards=th.tensor([[0.5]]),
        action_masks=None if masks is None else th.tensor([masks]),
        next_action_masks=None if next_masks is None else th.tensor([next_masks]),
        discounts=None,
        weights=th.ones(1),
        returns=th.ones(1),
        indices=th.zeros(1, dtype=th.int64),
    )
    return {name: float(value.detach()) for name, value in model._losses(row).items()}


WITH_TARGETS = [
    (DiscreteBCQ, 40.0),
    (DiscreteCQL, 40.0),
    (SQN, 40.0),
    (CRR, 25.0),  # the mean of all, as the actor finds them alike
]


@pytest.mark.parametrize(("kind", "unmasked"), WITH_TARGETS)
def test_targets_keep_to_the_next_masks(kind: type[OfflineAlgorithm], unmasked: float) -> None:
    model = known(kind)
    heads = 2 if kind is CRR else 1  # CRR adds the losses of its two critics
    for only, value in enumerate(TARGET_VALUES):
        found = losses(model, None, [action == only for action in range(4)])
        # 0.5 + 0.9 times what the one allowed action is worth, less 1; Huber's takes off a half
        assert found["td_loss"] == pytest.approx(heads * (0.5 + 0.9 * value - 1.0 - 0.5))
    found = losses(model, None, None)
    assert found["td_loss"] == pytest.approx(heads * (0.5 + 0.9 * unmasked - 1.0 - 0.5))


@pytest.mark.parametrize(("kind", "best"), [(DiscreteBCQ, 30.0), (DiscreteCQL, 30.0), (SQN, 30.0)])
def test_targets_take_the_best_of_what_the_next_masks_allow(
    kind: type[OfflineAlgorithm], best: float
) -> None:
    found = losses(known(kind), None, [True, True, False, True])
    assert found["td_loss"] == pytest.approx(0.5 + 0.9 * best - 1.0 - 0.5)


TWO = [True, False, False, True]
"""Allowed actions; they are worth 1 and 3."""


@pytest.mark.parametrize(
    ("kind", "name"), [(BC, "loss"), (SQN, "cross_entropy"), (DiscreteBCQ, "imitation_loss")]
)
def test_cloning_keeps_to_the_masks(kind: type[OfflineAlgorithm], name: str) -> None:
    model = known(kind)
    assert losses(model, TWO, None)[name] == pytest.approx(math.log(2))
    assert losses(model, None, None)[name] == pytest.approx(math.log(4))


def test_crr_weighs_among_what_the_masks_allow() -> None:
    found = losses(known(CRR, beta=2.0), TWO, None)
    assert found["advantage"] == pytest.approx(1.0 - (1.0 + 3.0) / 2)
    assert found["weight"] == pytest.approx(math.exp(-0.5))
    assert found["actor_loss"] == pytest.approx(math.exp(-0.5) * math.log(2))


def test_cql_pushes_down_only_what_the_masks_allow() -> None:
    model = known(DiscreteCQL)
    expected = math.log(math.exp(1) + math.exp(3)) - 1
    assert losses(model, TWO, None)["conservative_loss"] == pytest.approx(expected)
    assert losses(model, None, None)["conservative_loss"] > expected + 1


# -- on recommender environments ------------------------------------------------------------------


@pytest.fixture
def env(dynamics: Dynamics) -> RecVecEnv:
    return RecVecEnv(RecVectorEnv(2, dynamics=dynamics))


def _weights(model: OfflineAlgorithm) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])


@every_algorithm
def test_saving_loading_and_going_on(
    kind: type[OfflineAlgorithm], env: RecVecEnv, dynamics: Dynamics, tmp_path: Path
) -> None:
    constant = {**SMALL, "final_learning_rate": 1.0}  # a rate that falls is planned for a `learn`
    whole = kind("MlpPolicy", env, **constant).learn(8)
    assert whole.num_timesteps == 8
    model = kind("MlpPolicy", env, **constant).learn(5)
    model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    again = kind.load(tmp_path / "model", env=env, device="cpu")
    observations = dynamics.observe(_started(dynamics))
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], expected)
    again.learn(3, reset_num_timesteps=False)
    assert again.num_timesteps == 8
    np.testing.assert_array_equal(_weights(again), _weights(whole))


def _started(dynamics: Dynamics) -> Any:
    state = dynamics.allocate(5)
    dynamics.initial(state, np.arange(5), np.arange(5))
    return state


@every_algorithm
def test_items_are_scored_by_their_features(kind: type[OfflineAlgorithm], env: RecVecEnv) -> None:
    model = kind("MlpPolicy", env, **SMALL)
    assert model.policy.cross is not None
    n_actions = model.action_space.n  # type: ignore[attr-defined]
    assert all(n_actions not in p.shape for p in model.policy.parameters())
    plain = kind("MlpPolicy", env, **{**SMALL, "policy_kwargs": {"use_item_heads": False}})
    assert plain.policy.cross is None
    assert any(n_actions in p.shape for p in plain.learn(1).policy.parameters())


@every_algorithm
def test_every_part_is_trained(kind: type[OfflineAlgorithm], env: RecVecEnv) -> None:
    model = kind("MlpPolicy", env, **SMALL)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(3)
    same = [n for n, p in model.policy.named_parameters() if th.equal(p.detach(), before[n])]
    assert not same


@every_algorithm
def test_it_plays_whole_sessions(
    kind: type[OfflineAlgorithm], env: RecVecEnv, dynamics: Dynamics
) -> None:
    model = kind("MlpPolicy", env, **SMALL).learn(2)
    for deterministic in (True, False):
        planner = as_planner(model, dynamics, deterministic=deterministic)
        episodes = run_episodes(dynamics, planner, 5, 1)
        assert len(episodes.returns) == 5
        assert all(len(set(actions)) == len(actions) for actions in episodes.actions)


def test_value_policies_are_never_drawn_from(env: RecVecEnv, dynamics: Dynamics) -> None:
    observations = dynamics.observe(_started(dynamics))
    for kind in (DiscreteBCQ, DiscreteCQL):
        model = kind("MlpPolicy", env, **SMALL)
        greedy, _ = model.predict(observations, deterministic=True)
        for _ in range(3):
            np.testing.assert_array_equal(model.predict(observations)[0], greedy)


def test_offline_critics_learn_where_users_leave(env: RecVecEnv, dynamics: Dynamics) -> None:
    options = {**SMALL, "batch_size": 64, "policy_kwargs": {}}
    returns = {}
    for kind in (BC, CRR, DiscreteCQL):
        model = kind("MlpPolicy", env, **options).learn(250)
        episodes = run_episodes(dynamics, as_planner(model, dynamics), 50, 5)
        returns[kind] = float(np.mean(episodes.returns))
    assert returns[CRR] > 1.3 * returns[BC]
    assert returns[DiscreteCQL] > 1.3 * returns[BC]


# -- the loop of gradient steps -------------------------------------------------------------------


class Counter(BaseCallback):
    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.stop_at = stop_at

    def _on_step(self) -> bool:
        self.seen.append(self.num_timesteps)
        return self.num_timesteps != self.stop_at


def test_callbacks_come_after_every_gradient_step(tmp_path: Path) -> None:
    model = BC("MlpPolicy", Ladder(), data=ladder_log(), **SMALL)
    counter = Counter()
    saver = CheckpointCallback(2, str(tmp_path))
    model.learn(5, callback=[counter, saver])
    assert counter.seen == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.iterdir())) == 2
    stopper = Counter(stop_at=3)
    model.learn(5, callback=stopper)
    assert stopper.seen == [1, 2, 3]
    assert model.num_timesteps == 3


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_counts_gradient_steps(env: RecVecEnv) -> None:
    seen = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            bars = [c for c in self.locals["calls"].callbacks if hasattr(c, "pbar")]
            seen.append(bars[0].pbar.n)
            return True

    BC("MlpPolicy", env, **SMALL).learn(3, callback=Watch(), progress_bar=True)
    assert seen == [0, 1, 2], "not one for each of the two sessions"
    BC("MlpPolicy", env, **SMALL).learn(1, progress_bar=True)


def test_the_log_tells_losses_and_rates() -> None:
    model = DiscreteCQL(
        "MlpPolicy", Ladder(), data=ladder_log(), **{**SMALL, "learning_rate": lambda left: left}
    )
    records: dict[str, Any] = {}

    class Read(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps == 2:
                records.update(self.logger.name_to_value)

        def _on_step(self) -> bool:
            records.update(self.logger.name_to_value)
            return True

    model.learn(3, callback=Read(), log_interval=2)
    assert records["train/learning_rate"] == pytest.approx(1 / 3), "falls over the steps"


def test_the_learning_rate_falls_in_a_straight_line() -> None:
    class Rates(BaseCallback):
        def _on_training_start(self) -> None:
            self.seen: list[float] = []

        def _on_step(self) -> bool:
            self.seen.append(self.model.policy.optimizer.param_groups[0]["lr"])
            return True

    def rates(**options: Any) -> list[float]:
        watch = Rates()
        CRR("MlpPolicy", Ladder(), data=ladder_log(), **SMALL, **options).learn(4, watch)
        return watch.seen

    # what is left before each of four steps: all, 3/4, 1/2, 1/4
    assert rates(learning_rate=1.0) == pytest.approx([1.0, 0.775, 0.55, 0.325])
    assert rates(learning_rate=1.0, final_learning_rate=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert rates(learning_rate=0.5, final_learning_rate=1.0) == [0.5] * 4
    assert rates(learning_rate=lambda left: left) == [1.0, 0.75, 0.5, 0.25], "schedules stay"


def test_batches_follow_from_the_seed() -> None:
    def weights(seed: int) -> th.Tensor:
        options = {**SMALL, "seed": seed}
        return _weights(BC("MlpPolicy", Ladder(), data=ladder_log(), **options).learn(3))

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not th.equal(weights(1), weights(2))
    unseeded = BC("MlpPolicy", Ladder(), data=ladder_log(), **{**SMALL, "seed": None})
    assert unseeded.learn(1).num_timesteps == 1


# -- the data -------------------------------------------------------------------------------------


def test_the_environments_own_log_is_the_default(env: RecVecEnv, dynamics: Dynamics) -> None:
    own = BC("MlpPolicy", env, **SMALL).learn(3)
    passed = BC("MlpPolicy", env, data=logged_trajectories(dynamics), **SMALL).learn(3)
    np.testing.assert_array_equal(_weights(own), _weights(passed))
    records = BC("MlpPolicy", env, ends="record", **SMALL).learn(1)
    assert own.buffer is not None
    assert records.buffer is not None
    assert own.buffer.dones.any()
    assert not records.buffer.dones.any()


def test_a_bare_environment_is_enough(dynamics: Dynamics) -> None:
    assert BC("MlpPolicy", RecEnv(dynamics=dynamics), **SMALL).learn(1).num_timesteps == 1
    model = BC("MlpPolicy", as_vec_env(RecEnv(dynamics=dynamics), None), **SMALL)
    assert model.learn(1).buffer is not None


def test_data_that_do_not_fit_are_refused(env: RecVecEnv) -> None:
    with pytest.raises(DataError, match="BC was given no data and its environment has no logs"):
        BC("MlpPolicy", Ladder(), **SMALL).learn(1)
    with pytest.raises(DataError, match="record or replay the data in this environment"):
        BC("MlpPolicy", env, data=ladder_log(), **SMALL).learn(1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CRR, {"weighting": "linear"}),
        (CRR, {"beta": 0.0}),
        (BC, {"final_learning_rate": 1.1}),
        (DiscreteBCQ, {"threshold": 1.0}),
        (DiscreteCQL, {"alpha": -1.0}),
    ],
)
def test_settings_out_of_range_are_refused(
    kind: type[OfflineAlgorithm], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="came; expected"):
        kind("MlpPolicy", Ladder(), data=ladder_log(), **options)


def test_defaults_that_were_chosen_for_long_training() -> None:
    assert {kind: kind("MlpPolicy", Ladder()).gamma for kind in ALGORITHMS} == {
        **dict.fromkeys(ALGORITHMS, 0.99),
        DiscreteBCQ: 0.9,
        DiscreteCQL: 0.95,
    }
    bcq = DiscreteBCQ("MlpPolicy", Ladder(), threshold=0.2, gamma=0.5)
    assert (bcq.gamma, bcq.threshold, bcq.policy.threshold) == (0.5, 0.2, 0.2)  # type: ignore[attr-defined]


def test_public_names() -> None:
    assert ilrec_sb3.offline.__all__ == [
        "BC",
        "CRR",
        "SQN",
        "DiscreteBCQ",
        "DiscreteCQL",
        "OfflineAlgorithm",
        "logged_trajectories",
    ]
