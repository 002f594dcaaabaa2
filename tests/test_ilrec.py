"""ILRec and DiscreteSAC behave as Stable-Baselines3 algorithms do, and learn."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from ilrec_sb3 import DiscreteSAC, ILRec, as_vec_env
from ilrec_sb3.ilrec.discrete_sac import Batch, LinearDecay, updates_for
from ilrec_sb3.ilrec.heads import doubt
from ilrec_sb3.ilrec.policies import Outcomes
from recsim_env import Dynamics, Prepared, RecEnv, RecVectorEnv, Trajectory, save_trajectories
from recsim_env.planners import explore, random_policy, rule_aware, run_episodes
from recsim_env.termination import Similarity

SMALL: dict[str, Any] = {
    "learning_starts": 64,
    "batch_size": 32,
    "policy_kwargs": {"net_arch": [32]},
    "seed": 0,
    "device": "cpu",
}
WARM: dict[str, Any] = {**SMALL, "warm_start_steps": 20, "discriminator_steps": 5}


@pytest.fixture
def env(dynamics: Dynamics) -> RecEnv:
    """One session at a time."""
    return RecEnv(dynamics=dynamics)


@pytest.fixture
def trajectories(dynamics: Dynamics) -> list[Trajectory]:
    """A few sessions of the scripted explorer."""
    return dynamics.replay(explore(dynamics, 20, seed=1))


def _weights(model: DiscreteSAC) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])


# -- the interface --------------------------------------------------------------------------------


def test_a_bare_environment_becomes_many_sessions(env: RecEnv) -> None:
    assert DiscreteSAC("MlpPolicy", env, **SMALL).n_envs == 32
    assert DiscreteSAC("MlpPolicy", env, n_sessions=None, **SMALL).n_envs == 1
    assert DiscreteSAC("MlpPolicy", Monitor(env), **SMALL).n_envs == 1, "wrappers are kept"
    assert DiscreteSAC("MlpPolicy", RecVectorEnv(3, dynamics=env.dynamics), **SMALL).n_envs == 3


@pytest.mark.parametrize("n_sessions", [None, 4])
@pytest.mark.parametrize("algorithm", [DiscreteSAC, ILRec])
def test_it_learns_predicts_saves_and_loads(
    algorithm: type[DiscreteSAC], n_sessions: int | None, env: RecEnv, tmp_path: Path
) -> None:
    options = WARM if algorithm is ILRec else SMALL
    model = algorithm("MlpPolicy", env, n_sessions=n_sessions, **options)
    before = _weights(model).clone()
    model.learn(200)
    assert not th.equal(before, _weights(model))
    observation, info = env.reset(seed=5)
    mask = info["action_mask"]
    action, state = model.predict(observation, action_masks=mask, deterministic=True)
    assert state is None
    assert env.action_space.contains(int(action))
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model.zip")
    repeated, _ = again.predict(observation, action_masks=mask, deterministic=True)
    assert int(repeated) == int(action)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.zip"], "nothing half-written is left"


@pytest.mark.parametrize(
    ("mode", "policy"), [("dict", "MultiInputPolicy"), ("sequence", "MlpPolicy")]
)
def test_other_observations(dynamics: Dynamics, mode: Any, policy: str) -> None:
    env = RecEnv(dynamics=dynamics, obs_mode=mode)
    model = ILRec(policy, env, **WARM).learn(100)
    assert (model.policy.cross is not None) == (mode == "dict")
    assert model.demonstration_buffer is not None
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation, action_masks=env.action_masks())
    assert env.action_space.contains(int(action))


def test_dict_and_vector_observations_give_the_same_policy(dynamics: Dynamics) -> None:
    flat_env, dict_env = RecEnv(dynamics=dynamics), RecEnv(dynamics=dynamics, obs_mode="dict")
    flat = DiscreteSAC("MlpPolicy", flat_env, **SMALL)
    named = DiscreteSAC("MultiInputPolicy", dict_env, **SMALL)
    observation, _ = flat_env.reset(seed=3)
    parts, _ = dict_env.reset(seed=3)
    np.testing.assert_array_equal(
        flat.policy.flat.flatten(observation[None]),
        named.policy.flat.flatten({k: v[None] for k, v in parts.items()}),
    )


@pytest.mark.parametrize("algorithm", [DiscreteSAC, ILRec])
def test_masked_actions_are_never_chosen(algorithm: type[DiscreteSAC], env: RecEnv) -> None:
    model = algorithm("MlpPolicy", env, **(WARM if algorithm is ILRec else SMALL))
    model.learn(200)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(300, *env.observation_space.shape)).astype(np.float32)
    masks = rng.random((300, model.action_space.n)) < 0.1
    masks[:, 3] = True
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic, action_masks=masks)
        assert masks[np.arange(300), actions].all()
    replayed = model.replay_buffer.sample(500)
    assert replayed.action_masks.gather(1, replayed.actions).all(), "training kept to the masks"
    with pytest.raises(ValueError, match="row that allows nothing"):
        model.predict(observations[:1], action_masks=np.zeros((1, model.action_space.n), bool))


def test_predicting_without_masks_is_said_once(
    env: RecEnv, caplog: pytest.LogCaptureFixture
) -> None:
    model = DiscreteSAC("MlpPolicy", env, **SMALL).learn(64)
    observation, info = env.reset(seed=0)
    with caplog.at_level(logging.WARNING):
        model.predict(observation, action_masks=info["action_mask"])
        assert "trained with action masks" not in caplog.text
        model.predict(observation)
        model.predict(observation)
    assert caplog.text.count("trained with action masks") == 1


def test_a_draw_follows_the_policy(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, **SMALL)
    observation, _ = env.reset(seed=0)
    flat = th.from_numpy(observation)[None]
    probs = model.policy.log_probs(flat).exp()[0].detach().numpy()
    th.manual_seed(0)
    drawn, _ = model.predict(np.repeat(observation[None], 20_000, axis=0))
    frequency = np.bincount(drawn, minlength=len(probs)) / len(drawn)
    np.testing.assert_allclose(frequency, probs, atol=0.006)


def test_callbacks_tensorboard_and_evaluation(env: RecEnv, tmp_path: Path) -> None:
    model = ILRec("MlpPolicy", env, tensorboard_log=str(tmp_path / "tb"), **WARM)
    callback = EvalCallback(
        as_vec_env(RecEnv(dynamics=env.dynamics), 2), n_eval_episodes=2, eval_freq=5
    )
    model.learn(160, callback=callback, log_interval=1)
    assert callback.n_calls > 0
    assert np.isfinite(callback.last_mean_reward)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next((tmp_path / "tb").iterdir())
    tags = set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
    for name in (
        "train/critic_loss",
        "train/actor_loss",
        "train/imitation_loss",
        "train/entropy",
        "train/ent_coef",
        "train/imitation_coef",
        "discriminator/loss",
        "discriminator/irl_reward",
        "weights/effective_share",
        "weights/quantile_0.5",
        "rollout/ep_rew_mean",
    ):
        assert name in tags
    mean, _ = evaluate_masked(model, Monitor(RecEnv(dynamics=env.dynamics)), 3, warn=False)
    assert mean > 0


def test_set_parameters_and_set_env(env: RecEnv) -> None:
    one = DiscreteSAC("MlpPolicy", env, **{**SMALL, "seed": 1})
    other = DiscreteSAC("MlpPolicy", env, **{**SMALL, "seed": 2})
    assert not th.equal(_weights(one), _weights(other))
    other.set_parameters(one.get_parameters())
    assert th.equal(_weights(one), _weights(other))
    other.set_env(RecEnv(dynamics=env.dynamics))
    assert other.get_env().num_envs == 32


def test_fixed_entropy_coefficient_and_n_steps(env: RecEnv) -> None:
    model = ILRec("MlpPolicy", env, ent_coef=0.2, n_steps=3, **WARM).learn(150)
    assert model.ent_coef_optimizer is None
    assert model.replay_buffer.n_steps == 3
    assert float(model._entropy_coefficient()) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ent_coef": "later"}, "ent_coef='later'"),
        ({"updates_per_step": 0}, "updates_per_step=0"),
        ({"mask_dropout": 1.5}, "mask_dropout=1.5"),
        ({"updates_per_step": "fast"}, "updates_per_step='fast'"),
        ({"target_entropy": 2.0}, "target_entropy=2.0"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"alpha": 1.5}, "alpha=1.5"),
    ],
)
def test_bad_arguments(env: RecEnv, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILRec("MlpPolicy", env, **{**WARM, **options})


# -- demonstrations -------------------------------------------------------------------------------


def test_demonstrations_from_a_list_a_file_or_the_environment(
    env: RecEnv, trajectories: list[Trajectory], tmp_path: Path
) -> None:
    path = tmp_path / "sessions.parquet"
    save_trajectories(path, trajectories)
    steps = sum(len(t) for t in trajectories)
    for given in (trajectories, path, str(path)):
        model = ILRec("MlpPolicy", env, demonstrations=given, **WARM).learn(32)
        assert len(model.demonstration_buffer) + model.demonstration_buffer.dropped == steps
    model = ILRec("MlpPolicy", env, **WARM).learn(32)
    assert len(np.unique(model.demonstration_buffer.sessions)) == 200


def test_without_demonstrations_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ILRec("MlpPolicy", "CartPole-v1", **WARM).learn(80)
    assert "learns as DiscreteSAC does" in caplog.text


def test_demonstrations_of_another_environment_are_refused(
    trajectories: list[Trajectory],
) -> None:
    model = ILRec("MlpPolicy", "CartPole-v1", demonstrations=trajectories, **WARM)
    with pytest.raises(ValueError, match="the environment gives 4"):
        model.learn(10)


def test_demonstrations_of_another_catalogue_are_refused(
    env: RecEnv, trajectories: list[Trajectory]
) -> None:
    n = env.action_space.n
    unmasked = [replace(t, action_masks=None, n_actions=None) for t in trajectories]
    for given, what in (
        ([replace(t, actions=t.actions + n) for t in unmasked], rf"with action \d+ .* has {n}:"),
        ([replace(t, n_actions=n + 1) for t in unmasked], rf"of \[{n + 1}\] actions .* has {n}:"),
    ):
        model = ILRec("MlpPolicy", env, demonstrations=given, **WARM)
        with pytest.raises(ValueError, match=what):
            model.learn(10)


def test_warm_start_imitates_before_the_first_step(
    env: RecEnv, trajectories: list[Trajectory]
) -> None:
    def likelihood(steps: int) -> float:
        model = ILRec(
            "MlpPolicy", env, demonstrations=trajectories, **{**WARM, "warm_start_steps": steps}
        )
        model._setup_learn(1)
        assert model.num_timesteps == 0
        samples = model.demonstration_buffer.at(np.arange(len(model.demonstration_buffer)))
        return float(model._log_probs(samples).mean())

    assert likelihood(150) > likelihood(0) + 0.3


def test_weights_follow_advantage_and_discriminator(
    env: RecEnv, trajectories: list[Trajectory]
) -> None:
    options = {**WARM, "demonstrations": trajectories, "warm_start_steps": 0}
    by_advantage = ILRec("MlpPolicy", env, alpha=1.0, beta=10.0, **options)
    by_advantage._setup_learn(1)
    weights = by_advantage.demonstration_buffer.weights
    assert weights.mean() == pytest.approx(1.0, abs=0.2)
    inside = (weights > 0.011) & (weights < 9.9)
    order = np.argsort(by_advantage._log_env.numpy()[inside])
    assert (np.diff(weights[inside][order]) >= -1e-6).all()
    by_discriminator = ILRec("MlpPolicy", env, alpha=0.0, **options)
    by_discriminator._setup_learn(1)
    buffer = by_discriminator.demonstration_buffer
    pairs = by_discriminator._pairs(buffer.at(np.arange(len(buffer))))
    logits = by_discriminator.discriminator.logits(*pairs).numpy()
    weights = by_discriminator.demonstration_buffer.weights
    inside = (weights > 0.011) & (weights < 9.9)
    assert (np.diff(weights[inside][np.argsort(logits[inside])]) >= -1e-5).all()


def test_a_cut_session_goes_on_with_the_value_of_its_last_state(
    env: RecEnv, trajectories: list[Trajectory]
) -> None:
    whole = [t for t in trajectories if t.terminated]
    cut = replace(
        whole[0],
        observations=whole[0].observations[:3],
        actions=whole[0].actions[:2],
        rewards=whole[0].rewards[:2],
        action_masks=whole[0].action_masks[:3],
        terminated=False,
        truncated=True,
    )
    model = ILRec("MlpPolicy", env, demonstrations=[*whole[1:], cut], pessimism=0.0, **WARM)
    model._load_demonstrations()
    buffer = model.demonstration_buffer
    rows = np.flatnonzero(~buffer.complete)
    assert len(rows) == 2
    followed = (buffer.returns[rows] - cut.returns(model.gamma)) / buffer.to_end[rows]
    assert followed[0] == pytest.approx(followed[1], rel=1e-4), "one value of the last state"
    others = buffer.returns[buffer.complete]
    assert others.min() < followed[0] < others.max()
    np.testing.assert_allclose(buffer.last_observations()[rows], cut.observations[[2, 2]])


def test_as_many_sessions_as_demonstrations(dynamics: Dynamics) -> None:
    trajectories = dynamics.replay(explore(dynamics, 5, seed=0))
    env = RecVectorEnv(5, dynamics=dynamics)
    env.demonstrations = lambda: trajectories  # type: ignore[method-assign,assignment]
    model = ILRec("MlpPolicy", env, **WARM).learn(20)
    assert len(np.unique(model.demonstration_buffer.sessions)) == 5


def test_a_second_learn_retrains_the_discriminator(
    env: RecEnv, trajectories: list[Trajectory]
) -> None:
    options = {**WARM, "discriminator_every": 20, "demonstrations": trajectories}
    model = ILRec("MlpPolicy", env, **options).learn(320)
    before = model.discriminator.updates
    model.learn(320)
    assert model.discriminator.updates > before


def test_a_file_without_training_state_finds_its_demonstrations_again(
    env: RecEnv, tmp_path: Path
) -> None:
    ILRec("MlpPolicy", env, **WARM).learn(64).save(tmp_path / "m", training_state=False)
    model = ILRec.load(tmp_path / "m", env=env, device="cpu")
    updates = model._n_updates
    model.learn(64, reset_num_timesteps=False)
    assert model.demonstration_buffer is not None
    assert model._n_updates - updates < WARM["warm_start_steps"], "no second warm start"


def test_next_step_autoreset_is_refused() -> None:
    cart_poles = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    if getattr(cart_poles.metadata.get("autoreset_mode"), "name", None) != "NEXT_STEP":
        pytest.skip("this version of Gymnasium resets in the same step")
    with pytest.raises(ValueError, match=r"expected AutoresetMode\.SAME_STEP"):
        DiscreteSAC("MlpPolicy", cart_poles, **SMALL)


def test_spans_of_several_steps_end_where_learning_was_taken_up_again() -> None:
    model = DiscreteSAC("MlpPolicy", "CartPole-v1", n_steps=3, **SMALL)
    model.learn(50)
    model.learn(50)
    assert model.replay_buffer.dones[49] == 1.0
    assert model.replay_buffer.dones[99] in (0.0, 1.0)


def test_what_critics_and_returns_find_worse_is_not_imitated(
    env: RecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ILRec("MlpPolicy", env, imitation_steps=None, **WARM).learn(64)
    batch = model._join(model.replay_buffer.sample(8), model._demonstration_batch(64))

    def share(q_filter: bool, value: float, followed: float) -> float:
        """What is imitated where the policy is worth 0 and demonstrated actions ``value``."""

        def values_of(flat: th.Tensor, *_: object) -> th.Tensor:
            return th.full((2, len(flat)), value)

        def expected_q(flat: th.Tensor, *_: object, **__: object) -> th.Tensor:
            return th.zeros(2, len(flat))

        monkeypatch.setattr(model.policy, "values_of", values_of)
        monkeypatch.setattr(model.policy, "expected_q", expected_q)
        model.q_filter = q_filter
        returns = th.full((batch.n_demonstrations,), followed)
        found = model._gradient_step(batch._replace(returns=returns), 0.5)
        assert (found["imitation_loss"] > 0) == (found["imitated_share"] > 0)
        return found["imitated_share"]

    assert share(True, value=1.0, followed=-1.0) == 1.0
    assert share(True, value=-1.0, followed=1.0) == 1.0
    assert share(True, value=-1.0, followed=-1.0) == 0.0
    assert share(False, value=-1.0, followed=-1.0) == 1.0


def test_values_of_actions_are_the_critics(env: RecEnv) -> None:
    policy = ILRec("MlpPolicy", env, **SMALL).policy
    observation, info = env.reset(seed=0)
    flat = th.as_tensor(observation)[None].repeat(3, 1)
    masks = th.as_tensor(info["action_mask"])[None].repeat(3, 1)
    actions = th.multinomial(masks.float()[0], 3)[:, None]
    with th.no_grad():
        outcomes = policy.outcomes(flat)
        certain = th.nn.functional.one_hot(actions[:, 0], masks.shape[1]).float()
        th.testing.assert_close(
            policy.values_of(flat, actions, outcomes),
            policy.expected_q(flat, certain, outcomes=outcomes),
        )


def test_imitation_decays_to_nothing(env: RecEnv) -> None:
    model = ILRec("MlpPolicy", env, imitation_coef=0.5, imitation_steps=1_000, **WARM)
    shares = []
    for steps in (0, 500, 1_000, 5_000):
        model._n_updates = steps
        shares.append(model._imitation_coefficient())
    assert shares == [0.5, 0.25, 0.0, 0.0]
    model.imitation_steps = None
    assert model._imitation_coefficient() == 0.5
    model.learn(64)
    model.imitation_steps = 10
    assert model._demonstration_batch(32) is None


# -- going on as if never stopped -----------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [DiscreteSAC, ILRec])
def test_training_goes_on_as_if_never_stopped(
    algorithm: type[DiscreteSAC], dynamics: Dynamics, tmp_path: Path
) -> None:
    options = {**(WARM if algorithm is ILRec else SMALL)}
    if algorithm is ILRec:
        options["discriminator_every"] = 20

    def fresh() -> DiscreteSAC:
        return algorithm("MlpPolicy", RecVectorEnv(4, dynamics=dynamics), **options)

    whole = fresh().learn(200)
    whole.learn(200, reset_num_timesteps=False)
    half = fresh().learn(200)
    half.save(tmp_path / "half.zip")
    th.manual_seed(12345)  # what happens in between must not matter
    resumed = algorithm.load(
        tmp_path / "half.zip", env=RecVectorEnv(4, dynamics=dynamics), device="cpu"
    )
    resumed.learn(200, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps == 400
    th.testing.assert_close(_weights(resumed), _weights(whole), rtol=0, atol=0)
    assert resumed.replay_buffer.pos == whole.replay_buffer.pos
    np.testing.assert_array_equal(
        resumed.replay_buffer.observations, whole.replay_buffer.observations
    )


def test_a_small_file_predicts_and_a_failed_save_leaves_the_old_one(
    env: RecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ILRec("MlpPolicy", env, **WARM).learn(100)
    path = tmp_path / "model.zip"
    model.save(path, training_state=False)
    small = path.stat().st_size
    model.save(path)
    assert path.stat().st_size > small
    content = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        model.save(path)
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]


# -- learning -------------------------------------------------------------------------------------


class Bandit(gym.Env[np.ndarray, np.int64]):
    """Shows a number from 0 to 3; the reward is 1 where the action is that number."""

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Starts ten rounds."""
        super().reset(seed=seed, options=options)
        self.left = 10
        return self._show(), {}

    def step(self, action: Any) -> Any:
        """Rewards the right number."""
        reward = float(action == self.number)
        self.left -= 1
        return self._show(), reward, False, self.left == 0, {}

    def _show(self) -> np.ndarray:
        self.number = int(self.np_random.integers(4))
        return np.eye(4, dtype=np.float32)[self.number]


def test_it_solves_a_toy_problem() -> None:
    model = DiscreteSAC(
        "MlpPolicy", Bandit(), **{**SMALL, "gamma": 0.0}, updates_per_step=0.5, target_entropy=0.1
    )
    model.learn(1_500)
    mean, _ = evaluate_policy(model, Bandit(), 10, warn=False)
    assert mean > 9.5


def test_it_beats_random_and_its_demonstrations_on_the_simulator(dynamics: Dynamics) -> None:
    demonstrations = dynamics.replay(explore(dynamics, 60, seed=2))
    own = np.mean([t.rewards.sum() for t in demonstrations])
    model = ILRec(
        "MlpPolicy",
        RecEnv(dynamics=dynamics),
        demonstrations=demonstrations,
        seed=1,
        device="cpu",
        warm_start_steps=150,
        batch_size=64,
        updates_per_step=1 / 8,
    ).learn(3_000)

    def act(_: Dynamics, state: Any, __: Any) -> np.ndarray:
        return model.predict(dynamics.observe(state), deterministic=True, action_masks=state.mask)[
            0
        ]

    learned = run_episodes(dynamics, act, 100, seed=0).returns.mean()
    floor = run_episodes(dynamics, random_policy, 100, seed=0).returns.mean()
    planner = run_episodes(dynamics, rule_aware(1.0), 100, seed=0).returns.mean()
    assert floor < own < 0.95 * planner, "the demonstrations are good, not optimal"
    assert learned > 1.05 * own
    assert learned > 0.95 * planner


def test_mask_dropout_takes_actions_away_and_leaves_some() -> None:
    model = DiscreteSAC("MlpPolicy", Bandit(), mask_dropout=0.5, **SMALL)
    rows, n_actions = 240, int(model.action_space.n)
    given = th.ones((rows, n_actions), dtype=th.bool)
    given[:, 0] = False
    nothing = th.zeros((rows, 1))

    def batch(masks: th.Tensor | None) -> Batch:
        return Batch(
            nothing,
            nothing.long(),
            nothing,
            nothing,
            nothing,
            0.9,
            masks,
            masks,
            n_demonstrations=40,
        )

    masks, thinned = model._thinned_masks(batch(given))
    assert thinned == 100  # half of those that were not demonstrated
    assert masks is not None
    assert not masks[:, 0].any()
    assert masks.any(dim=1).all()
    assert masks[100:, 1:].all()
    assert 0.3 < masks[:100, 1:].float().mean() < 0.8
    assert given[:, 1:].all(), "the batch is left as it came"
    assert model._thinned_masks(batch(None)) == (None, 0), "there are no masks to thin"
    model.mask_dropout = 0.0
    assert model._thinned_masks(batch(given)) == (given, 0)


def test_gradient_steps_go_by_the_size_of_the_catalogue() -> None:
    assert updates_for(2) == updates_for(200) == 0.25
    assert updates_for(300) == pytest.approx(1 / 6)
    assert updates_for(1_539) == updates_for(10_000) == pytest.approx(1 / 30)
    model = DiscreteSAC("MlpPolicy", Bandit(), **SMALL).learn(464)
    assert model._n_updates == pytest.approx((464 - SMALL["learning_starts"]) / 4, abs=9)


def _cart_pole_sessions(n_sessions: int) -> list[Trajectory]:
    """Sessions of a scripted expert that errs in one step of five."""
    env = gym.make("CartPole-v1")
    rng = np.random.default_rng(0)
    result = []
    for seed in range(n_sessions):
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards = [observation], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            right = observation[2] + 0.5 * observation[3] > 0
            action = int(right) if rng.random() > 0.2 else int(rng.integers(2))
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        result.append(
            Trajectory(
                observations=np.array(observations, np.float32),
                actions=np.array(actions),
                rewards=np.array(rewards, np.float32),
                terminated=bool(terminated),
                truncated=bool(truncated),
                n_actions=2,
                source="scripted expert",
            )
        )
    return result


CART_POLE: dict[str, Any] = {
    "batch_size": 64,
    "updates_per_step": 0.5,
    "n_steps": 3,
    "learning_rate": 5e-4,
    "tau": 0.02,
    "policy_kwargs": {"net_arch": [64, 64], "value_scale": 50.0},
    "seed": 0,
    "device": "cpu",
}


def _balances(model: DiscreteSAC) -> float:
    """Returns how many steps the pole stands, 500 at most, mean of the same 20 sessions."""
    env = Monitor(gym.make("CartPole-v1"))
    env.reset(seed=0)
    mean, _ = evaluate_policy(model, env, 20)
    return float(np.mean(mean))


@pytest.mark.slow
def test_it_learns_cart_pole_without_demonstrations() -> None:
    model = DiscreteSAC("MlpPolicy", "CartPole-v1", learning_starts=500, **CART_POLE)
    model.learn(8_000)
    assert _balances(model) > 150, "random play lasts 22 steps"


@pytest.mark.slow
def test_it_learns_cart_pole_with_demonstrations() -> None:
    model = ILRec(
        "MlpPolicy",
        "CartPole-v1",
        demonstrations=_cart_pole_sessions(10),
        imitation_steps=2_000,
        warm_start_steps=200,
        **CART_POLE,
    )
    model.learn(8_000)
    assert _balances(model) > 300, "the scripted expert, who errs in a step of five, reaches 440"


def test_another_sb3_algorithm_runs_on_the_same_environment(env: RecEnv) -> None:
    model = DQN("MlpPolicy", as_vec_env(env, 4), learning_starts=50, seed=0).learn(200)
    action, _ = model.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(int(action))


def test_the_rate_falls_in_a_straight_line() -> None:
    rate = LinearDecay(2e-3, 0.1)
    assert rate(1.0) == pytest.approx(2e-3)
    assert rate(0.5) == pytest.approx(1.1e-3)
    assert rate(0.0) == pytest.approx(2e-4)
    assert rate(-0.01) == pytest.approx(2e-4)


def test_the_rate_reaches_its_last_share_at_the_end(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, final_learning_rate=0.25, **SMALL)
    model.learn(640)
    rates = {
        group["lr"]
        for optimizer in (model.policy.actor_optimizer, model.policy.critic_optimizer)
        for group in optimizer.param_groups
    }
    assert len(rates) == 1
    assert rates.pop() == pytest.approx(0.25e-3, rel=0.2)
    with pytest.raises(ValueError, match="final_learning_rate=2 came"):
        DiscreteSAC("MlpPolicy", env, final_learning_rate=2, **SMALL)


def test_the_averaged_actor_follows_the_actor_and_gives_the_best_action(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, updates_per_step=0.1, actor_tau=0.5, **SMALL)
    policy = model.policy
    before = [p.detach().clone() for p in policy.actor_average.parameters()]
    model.learning_starts = 0
    model.learn(96)
    model._n_updates = 90
    batch = model._join(model.replay_buffer.sample(32), None)
    averages = [p.detach().clone() for p in policy.actor_average.parameters()]
    assert any(not th.equal(a, b) for a, b in zip(before, averages, strict=True))
    model._gradient_step(batch, 0.0)
    for old, actor, new in zip(
        averages, policy.actor.parameters(), policy.actor_average.parameters(), strict=True
    ):
        th.testing.assert_close(new, 0.5 * old + 0.5 * actor.detach())
        assert not new.requires_grad
    observation, info = env.reset(seed=0)
    flat = th.as_tensor(observation)[None]
    mask = th.as_tensor(info["action_mask"])[None]
    with th.no_grad():
        best = policy.log_probs(flat, mask, average=True).argmax()
        for p in policy.actor.parameters():
            p.zero_()
    action, _ = model.predict(observation, deterministic=True, action_masks=info["action_mask"])
    assert int(action) == int(best), "the actor itself has no say in it"


def test_early_on_the_average_spans_a_tenth_of_the_steps(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, actor_tau=0.01, **SMALL).learn(96)
    batch = model._join(model.replay_buffer.sample(32), None)
    for n_updates, share in ((0, 1.0), (30, 0.25), (10_000, 0.01)):
        model._n_updates = n_updates
        old = [p.detach().clone() for p in model.policy.actor_average.parameters()]
        model._gradient_step(batch, 0.0)
        pairs = zip(old, model.policy.actor.parameters(), strict=True)
        expected = [(1 - share) * a + share * b.detach() for a, b in pairs]
        for got, wanted in zip(model.policy.actor_average.parameters(), expected, strict=True):
            th.testing.assert_close(got, wanted)


def test_with_a_share_of_one_the_average_is_the_actor(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, updates_per_step=0.1, actor_tau=1.0, **SMALL)
    model.learn(160)
    policy = model.policy
    for slow, fast in zip(
        policy.actor_average.parameters(), policy.actor.parameters(), strict=True
    ):
        th.testing.assert_close(slow, fast.detach())
    with pytest.raises(ValueError, match="actor_tau=0 came"):
        DiscreteSAC("MlpPolicy", env, actor_tau=0, **SMALL)


@pytest.mark.parametrize("plain", [False, True])
def test_a_decomposed_value_is_reward_plus_what_goes_on(env: RecEnv, plain: bool) -> None:
    options = {**SMALL, "policy_kwargs": {"net_arch": [32], "use_item_heads": not plain}}
    model = DiscreteSAC("MlpPolicy", env, updates_per_step=0.1, **options).learn(160)
    policy = model.policy
    assert (policy.cross is None) == plain
    samples = model.replay_buffer.sample(16)
    flat = samples.observations
    with th.no_grad():
        crossed = policy.crossed(flat)
        probs = policy.log_probs(flat, samples.action_masks, crossed).exp()
        outcomes = policy.outcomes(flat, crossed)
        values = policy._scores(policy.critic, flat, crossed)
        whole = [outcomes.rewards + outcomes.goes_on * value for value in values]
        expected = policy.expected_q(flat, probs, crossed, outcomes=outcomes)
        for k, value in enumerate(whole):
            th.testing.assert_close(expected[k], (probs * value).sum(1), atol=1e-4, rtol=1e-4)
        least = expected.argmin(0)
        chosen = th.stack(whole)[least, th.arange(16)]
        got = policy.q_values(flat, probs, crossed, outcomes)
        th.testing.assert_close(got, chosen, atol=1e-4, rtol=1e-4)
        rewards, ends = policy.outcome_pairs(flat, samples.actions)
        th.testing.assert_close(
            rewards, outcomes.rewards.gather(1, samples.actions)[:, 0], atol=1e-4, rtol=1e-4
        )
        th.testing.assert_close(
            th.sigmoid(-ends),
            outcomes.goes_on.gather(1, samples.actions)[:, 0],
            atol=1e-4,
            rtol=1e-4,
        )


def test_critics_learn_from_what_went_on_and_ends_from_all(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, **SMALL).learn(96)
    samples = model.replay_buffer.sample(32)
    policy = model.policy

    def step(dones: th.Tensor) -> tuple[bool, bool]:
        critic = [p.detach().clone() for p in policy.critic.parameters()]
        outcome = [p.detach().clone() for p in policy.outcome.parameters()]
        model._critic_step(model._join(samples._replace(dones=dones), None), th.full((32,), 7.0))
        pairs = ((critic, policy.critic), (outcome, policy.outcome))
        return tuple(
            any(not th.equal(a, b) for a, b in zip(old, new.parameters(), strict=True))
            for old, new in pairs
        )  # type: ignore[return-value]

    assert step(th.ones(32, 1)) == (False, True)
    assert step(th.zeros(32, 1)) == (True, True)


def test_values_can_be_learned_whole(env: RecEnv) -> None:
    options = {**SMALL, "policy_kwargs": {"net_arch": [32], "decomposed": False}}
    model = DiscreteSAC("MlpPolicy", env, updates_per_step=0.1, **options).learn(160)
    assert not hasattr(model.policy, "outcome")
    assert model.policy.outcomes(model.replay_buffer.sample(4).observations) is None


def test_doubt_by_hand() -> None:
    np.testing.assert_allclose(doubt(np.array([0, 3, 24])), [1.0, 0.5, 0.2], rtol=1e-6)
    np.testing.assert_allclose(doubt(np.array([0, 3]), spread=3.0), [3.0, 1.5], rtol=1e-6)


def test_pessimism_is_taken_off_what_is_learned_from_and_nothing_else(
    env: RecEnv, trajectories: list[Trajectory]
) -> None:
    dynamics = env.dynamics
    rated = dynamics.prepared.dataset.interactions.items[dynamics.prepared.train_rows]
    support = np.bincount(rated, minlength=dynamics.n_items)
    np.testing.assert_array_equal(dynamics.item_context.support, support)
    spread = dynamics.item_context.rating_spread
    assert 0.5 < spread < 2.0

    def rewards(pessimism: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        model = ILRec("MlpPolicy", env, demonstrations=trajectories, pessimism=pessimism, **WARM)
        model.learning_starts = 10_000  # random play, the same in both
        model._acts_at_random = lambda _: True
        model.learn(64)
        size = model.replay_buffer.size()
        buffer = model.demonstration_buffer
        return (
            model.replay_buffer.rewards[:size].ravel(),
            model.replay_buffer.actions[:size].ravel(),
            buffer.rewards.ravel(),
        )

    plain, actions, shown = rewards(0.0)
    doubted, same, shown_doubted = rewards(2.0)
    np.testing.assert_array_equal(actions, same)
    np.testing.assert_allclose(
        plain - doubted, 2.0 * spread / np.sqrt(support[actions] + 1), rtol=1e-4
    )
    taken = np.concatenate([t.actions for t in trajectories])
    np.testing.assert_allclose(
        shown - shown_doubted, 2.0 * spread / np.sqrt(support[taken] + 1), rtol=1e-3, atol=1e-5
    )
    assert np.ptp(plain - doubted) > 0.1
    with pytest.raises(ValueError, match="pessimism=-1 came"):
        ILRec("MlpPolicy", env, pessimism=-1, **WARM)


def test_without_known_items_there_is_nothing_to_doubt(env: RecEnv) -> None:
    options = {**SMALL, "policy_kwargs": {"net_arch": [32], "use_item_heads": False}}
    model = DiscreteSAC("MlpPolicy", env, **options)
    assert not model._penalty(np.arange(4)).any()


@pytest.mark.parametrize(("use_tracker", "seen"), [(None, False), (True, True)])
def test_the_tracker_is_looked_at_where_rules_need_it(
    use_tracker: bool | None, seen: bool, env: RecEnv
) -> None:
    assert not env.dynamics.item_context.history_matters
    options = {**SMALL, "policy_kwargs": {"net_arch": [32], "use_tracker": use_tracker}}
    policy = DiscreteSAC("MlpPolicy", env, **options).policy
    layout = env.dynamics.layout
    scaled = policy.cross.scaled(th.ones(1, layout.size))
    assert bool(scaled[:, layout.tracker].any()) is seen
    assert scaled[:, layout.user].all()


def test_the_tracker_is_looked_at_under_rules_that_do_not_deny_it(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=[Similarity()])
    policy = DiscreteSAC("MlpPolicy", RecEnv(dynamics=dynamics), **SMALL).policy
    assert policy.cross.scaled(th.ones(1, dynamics.layout.size))[:, dynamics.layout.tracker].all()


def test_draws_avoid_what_ends_the_session(env: RecEnv) -> None:
    policy = DiscreteSAC("MlpPolicy", env, **SMALL).policy
    probs = th.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    goes_on = th.tensor([[1.0, 0.25, 1.0], [1.0, 1.0, 0.1], [0.0, 0.0, 1.0]])
    outcomes = Outcomes(th.zeros(3, 3), goes_on)
    expected = th.tensor([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]])
    th.testing.assert_close(policy.careful(probs, outcomes), expected)
    assert policy.careful(probs, None) is probs
    policy.caution = 2.0
    th.testing.assert_close(policy.careful(probs, outcomes)[0], th.tensor([16 / 17, 1 / 17, 0.0]))
    policy.caution = 0.0
    assert policy.careful(probs, outcomes) is probs
    with pytest.raises(ValueError, match="caution=-1 came"):
        DiscreteSAC("MlpPolicy", env, **{**SMALL, "policy_kwargs": {"caution": -1}})


def test_only_draws_are_careful(env: RecEnv) -> None:
    model = DiscreteSAC("MlpPolicy", env, **SMALL)
    policy = model.policy
    observation = np.repeat(env.reset(seed=0)[0][None], 64, axis=0)
    mask = np.zeros((64, env.dynamics.n_items), bool)
    mask[:, :2] = True
    best = policy.predict(observation, deterministic=True, action_masks=mask)[0][0]

    def ends(flat: th.Tensor, *_: object) -> Outcomes:
        goes_on = th.ones(len(flat), env.dynamics.n_items)
        goes_on[:, best] = 0.0
        return Outcomes(th.zeros_like(goes_on), goes_on)

    policy.outcomes = ends  # type: ignore[method-assign]
    assert (policy.predict(observation, deterministic=True, action_masks=mask)[0] == best).all()
    assert (policy.predict(observation, deterministic=False, action_masks=mask)[0] != best).all()


def test_a_spread_penalty_evens_out_what_comes_after_actions(env: RecEnv) -> None:
    def spread(coefficient: float) -> float:
        model = DiscreteSAC("MlpPolicy", env, spread_coef=coefficient, **SMALL).learn(200)
        flat = model.replay_buffer.sample(32).observations
        with th.no_grad():
            values = model.policy._scores(model.policy.critic, flat, None)
        return float(th.stack(values).std(dim=-1).mean())

    assert spread(100.0) < 0.5 * spread(0.0)
    with pytest.raises(ValueError, match="spread_coef=-1 came"):
        DiscreteSAC("MlpPolicy", env, spread_coef=-1, **SMALL)
