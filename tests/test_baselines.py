"""Baselines by name: every one of them learns, saves and loads; masks are obeyed throughout."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import QRDQN
from toy import toy_prepared

from ilrec_sb3.baselines import (
    ALGORITHMS,
    OFFLINE,
    REWARDS,
    check_settings,
    find_algorithm,
    load_model,
    make_model,
    save_model,
)
from ilrec_sb3.common.masked_observations import MaskedLayout
from ilrec_sb3.common.vec_env import RecVecEnv
from ilrec_sb3.double_dqn import double_q_target
from ilrec_sb3.evaluation import as_planner, takes_masks
from ilrec_sb3.item_qrdqn import ItemQRDQN
from ilrec_sb3.model_based import reward_model
from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError
from recsim_env.planners import greedy, run_episodes
from recsim_env.termination import make_rules
from recsim_env.vector_env import RecVectorEnv

FEW_STEPS: dict[str, dict[str, Any]] = {
    "DQN": {"learning_starts": 8, "batch_size": 8, "buffer_size": 200},
    "A2C": {"n_steps": 2},
    "PPO": {"n_steps": 2, "batch_size": 16, "n_epochs": 1},
    "TRPO": {"n_steps": 2, "batch_size": 16},
    "ARS": {"n_delta": 2},
    "SAC": {"learning_starts": 8, "batch_size": 8, "buffer_size": 200, "updates_per_step": 0.1},
}
PLAIN = ["sb3:DQN", "sb3:A2C", "sb3:PPO", "DoubleDQN", "contrib:QRDQN", "contrib:TRPO"]
MASKED = [f"{name}+items" for name in (*PLAIN, "MaskablePPO")]


def few_steps(name: str) -> dict[str, Any]:
    """Returns settings with which a model learns within a hundred steps."""
    kind = next(key for key in ("DQN", "A2C", "TRPO", "PPO", "ARS", "") if key in name)
    return FEW_STEPS[kind or "SAC"]


@pytest.mark.parametrize("name", [*PLAIN, *MASKED, "contrib:MaskablePPO", "contrib:ARS"])
def test_every_name_learns_saves_and_loads(name: str, dynamics: Dynamics, tmp_path: Path) -> None:
    model = make_model(name, dynamics, seed=1, settings=few_steps(name))
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(64)
    after = model.policy.state_dict()
    assert any(not th.equal(before[key], after[key]) for key in before)
    assert all(bool(th.isfinite(value.float()).all()) for value in after.values())
    played = run_episodes(dynamics, as_planner(model, dynamics), 6, seed=0)
    save_model(model, tmp_path / "model.zip", training_state=False)
    loaded = load_model(name, tmp_path / "model.zip")
    again = run_episodes(dynamics, as_planner(loaded, dynamics), 6, seed=0)
    assert played.actions == again.actions
    if name in MASKED:
        assert takes_masks(model)
        assert "repeat" not in played.ended_by
    load_model(name, tmp_path / "model.zip", dynamics).learn(32)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_obeys_masks(name: str, deterministic: bool, dynamics: Dynamics) -> None:
    model: Any = make_model(name, dynamics, settings=few_steps(name))
    model.exploration_rate = 0.5
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(64, dynamics.layout.size)).astype(np.float32)
    masks = np.zeros((64, dynamics.n_items), bool)
    only = generator.integers(dynamics.n_items, size=64)
    masks[np.arange(64), only] = True
    actions, _ = model.predict(observations, action_masks=masks, deterministic=deterministic)
    np.testing.assert_array_equal(actions, only)
    one, _ = model.predict(observations[0], action_masks=masks[0], deterministic=deterministic)
    assert one == only[0]
    free, _ = model.predict(observations, deterministic=deterministic)
    assert len(set(free.tolist())) > 1 or deterministic


@pytest.mark.parametrize("name", MASKED)
def test_training_never_shows_an_item_twice(name: str, dynamics: Dynamics) -> None:
    model: Any = make_model(name, dynamics, settings=few_steps(name))
    endings: list[str] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        endings.extend(info.get("ended_by") for info in local["infos"] if "episode" in info)
        return True

    model.learn(300, callback=note)
    assert endings
    assert "repeat" not in endings


def test_without_masks_items_are_shown_twice(dynamics: Dynamics) -> None:
    model = make_model("sb3:DQN", dynamics, settings=few_steps("DQN"))
    played = run_episodes(dynamics, as_planner(model, dynamics), 6, seed=0)
    assert set(played.ended_by) == {"repeat"}


class _Batch(types.SimpleNamespace):
    """What a replay buffer gives."""


def _transition(model: Any, next_mask: np.ndarray, reward: float, done: float) -> _Batch:
    layout = model.masked_layout
    flat = np.zeros((1, layout.size), np.float32)
    return _Batch(
        observations=th.as_tensor(layout.join(flat, None)),
        next_observations=th.as_tensor(layout.join(flat, next_mask[None])),
        actions=th.tensor([[0]]),
        rewards=th.tensor([[reward]]),
        dones=th.tensor([[done]]),
    )


def _toy(rules: str = "none") -> Dynamics:
    return Dynamics(toy_prepared(), split="train", rules=make_rules(rules, dataset="toy"), limit=6)


def _with_item_values(model: Any, online: list[float], target: list[float]) -> None:
    """Makes the values of the toy's 6 items constants, whatever the state: b(a) alone is left."""
    for net, values in ((model.q_net, online), (model.q_net_target, target)):
        scorer, features = net.q_net.scorer, net.q_net.cross.features
        with th.no_grad():
            for parameter in scorer.parameters():
                parameter.zero_()
            wanted = th.tensor(values)[:, None] / scorer.scale
            scorer.item.weight[-1] = (th.linalg.pinv(features) @ wanted)[:, 0]


@pytest.mark.parametrize(
    ("name", "expected"), [("DQN+items", 1 + 0.5 * 4.0), ("DoubleDQN+items", 1 + 0.5 * 3.0)]
)
def test_targets_take_allowed_items_only(
    name: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item 5 is worth most by far and not allowed; of the rest, online prefers 1 and target 2."""
    model: Any = make_model(name, _toy(), settings={**few_steps(name), "gamma": 0.5})
    _with_item_values(model, [0.0, 2.0, 1.0, 0.0, 0.0, 90.0], [0.0, 3.0, 4.0, 0.0, 0.0, 80.0])
    allowed = np.array([True, True, True, True, True, False])
    going_on, over = (_transition(model, allowed, 1.0, done) for done in (0.0, 1.0))
    assert _target(model, going_on, monkeypatch) == pytest.approx(expected, rel=1e-4)
    assert _target(model, over, monkeypatch) == pytest.approx(1.0, rel=1e-4)


def test_a_state_in_which_nothing_is_left_has_a_finite_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = make_model("DQN+items", _toy(), settings={**few_steps("DQN"), "gamma": 0.5})
    _with_item_values(model, [0.0] * 6, [0.0, 3.0, 4.0, 0.0, 0.0, 80.0])
    batch = _transition(model, np.zeros(6, bool), 1.0, 0.0)
    assert _target(model, batch, monkeypatch) == pytest.approx(41.0, rel=1e-4)


def _target(model: Any, batch: _Batch, monkeypatch: pytest.MonkeyPatch) -> float:
    """Returns the target that ``train`` computes for a transition."""
    seen = []

    def loss(predicted: th.Tensor, target: th.Tensor) -> th.Tensor:
        seen.append(float(target))
        return (predicted * 0).sum()

    monkeypatch.setattr(th.nn.functional, "smooth_l1_loss", loss)
    batch.discounts = None
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *_, **__: batch)
    model.set_logger(types.SimpleNamespace(record=lambda *_, **__: None))
    model.train(1, 1)
    return seen[0]


def test_masks_of_last_observations_come_along(dynamics: Dynamics) -> None:
    model: Any = make_model("DQN+items", dynamics, settings=few_steps("DQN"))
    env, layout = model.get_env(), model.masked_layout
    observations, finished = env.reset(), 0
    for _ in range(30):
        observations, _, dones, infos = env.step(model._draw(observations))
        for row in np.flatnonzero(dones):
            _, masks = layout.split(th.as_tensor(infos[row]["terminal_observation"][None]))
            assert int((~masks).sum()) == infos[row]["episode"]["l"]
            finished += 1
        lengths = (~layout.split(th.as_tensor(observations))[1]).sum(1)
        assert (lengths[dones] == 0).all()
        assert (lengths[~dones] > 0).all()
    assert finished


def test_the_target_of_double_q_learning() -> None:
    """The second state is the last; of the first, online prefers item 2, worth 7 to the target."""
    online = th.tensor([[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]])
    target = th.tensor([[8.0, 9.0, 7.0], [5.0, 5.0, 5.0]])
    found = double_q_target(
        th.tensor([[1.0], [2.0]]),
        th.tensor([[0.0], [1.0]]),
        0.5,
        online,
        lambda chosen: target.gather(1, chosen),
    )
    assert found.tolist() == [[4.5], [2.0]]


@settings(max_examples=30, deadline=None)
@given(
    n_actions=st.integers(1, 70),
    size=st.integers(1, 5),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_observations_and_masks_come_back_as_they_were(
    n_actions: int, size: int, n: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    flat = generator.normal(size=(n, size)).astype(np.float32)
    masks = generator.random((n, n_actions)) < generator.random()
    layout = MaskedLayout(size, n_actions)
    joined = layout.join(flat, masks)
    assert joined.dtype == np.float32
    assert layout.space.contains(joined[0])
    again, found = layout.split(th.as_tensor(joined))
    np.testing.assert_array_equal(again.numpy(), flat)
    nothing = ~masks.any(axis=1, keepdims=True)
    np.testing.assert_array_equal(found.numpy(), masks | nothing)
    assert layout.split(th.as_tensor(layout.join(flat, None)))[1].all()


def _shaken(net: th.nn.Module) -> None:
    with th.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * th.randn_like(parameter))


def test_values_of_single_items_are_those_of_all(dynamics: Dynamics) -> None:
    model: Any = make_model("DoubleDQN+items", dynamics, settings=few_steps("DQN"))
    observations = th.as_tensor(model.get_env().reset())
    _shaken(model.q_net)
    actions = th.arange(len(observations))[:, None]
    with th.no_grad():
        every = model.q_net(observations)
        torch_close(model.q_net.pairs(observations, actions), every.gather(1, actions))


def test_quantiles_differ_between_items_around_their_mean(dynamics: Dynamics) -> None:
    model: Any = make_model("contrib:QRDQN+items", dynamics, settings=few_steps("DQN"))
    observations = th.as_tensor(model.get_env().reset())
    _shaken(model.quantile_net)
    with th.no_grad():
        every = model.quantile_net(observations)
        assert every.shape[1:] == (model.n_quantiles, dynamics.n_items)
        torch_close(every.mean(1), model.quantile_net.quantile_net.means(observations))
        spread = every.std(1)
        assert spread.min() > 0
        assert (spread.std(1) > 0).all()


def test_quantile_updates_are_those_of_the_library(dynamics: Dynamics) -> None:
    weights, losses = [], []
    for train in (ItemQRDQN.train, QRDQN.train):
        options = {**few_steps("DQN"), "policy_kwargs": {"n_quantiles": 5}}
        model: Any = make_model("contrib:QRDQN+items", dynamics, seed=2, settings=options)
        model.learning_starts = 1_000
        model.learn(64)
        th.manual_seed(0)
        _shaken(model.quantile_net)
        _shaken(model.quantile_net_target)
        np.random.seed(0)  # noqa: NPY002  the library's replay buffer draws from it
        train(model, 3, 8)
        weights.append(th.cat([p.detach().flatten() for p in model.quantile_net.parameters()]))
        losses.append(model.logger.name_to_value["train/loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] > 0
    torch_close(weights[0], weights[1])


def torch_close(found: th.Tensor, expected: th.Tensor) -> None:
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_dict_of_observations_is_flattened(dynamics: Dynamics) -> None:
    kind: Any = find_algorithm("DQN+items").kind
    env = RecVecEnv(RecVectorEnv(2, dynamics=dynamics, obs_mode="dict"))
    model = kind("MlpPolicy", env, seed=0, **few_steps("DQN"))
    model.learn(40)
    played = run_episodes(dynamics, as_planner(model, dynamics), 4, seed=0)
    assert "repeat" not in played.ended_by
    observations = env.reset()
    parts = [observations[name] for name in dynamics.layout.parts()]
    flat = np.concatenate(parts, axis=1)
    masks = np.asarray(env.action_masks())
    actions, _ = model.predict(observations, action_masks=masks, deterministic=True)
    expected, _ = model.predict(flat, action_masks=masks, deterministic=True)
    np.testing.assert_array_equal(actions, expected)


def test_an_environment_that_knows_no_items_is_refused() -> None:
    kind: Any = find_algorithm("A2C+items").kind
    with pytest.raises(ValueError, match="without `item_context`"):
        kind("MlpPolicy", "CartPole-v1")


@pytest.mark.parametrize("name", ["A2C+items", "DoubleDQN+items"])
def test_baselines_learn_what_greedy_does_not_know(name: str, dynamics: Dynamics) -> None:
    """That categories run out is learned: no planner without the rule gets so far."""
    floor = run_episodes(dynamics, greedy, 60, seed=1).returns.mean()
    model: Any = make_model(name, dynamics, seed=101)
    model.learn(2_000)
    reached = run_episodes(dynamics, as_planner(model, dynamics), 60, seed=1).returns.mean()
    assert reached > 1.1 * floor


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DNQ", "did you mean 'DQN'"),
        ("sb3:A3C", "did you mean 'A2C'"),
        ("contrib:QRDN", "did you mean 'QRDQN'"),
        ("sb2:DQN", "'sb2' is no library"),
        ("sb3:SAC", "continuous actions"),
        ("contrib:TQC", "continuous actions"),
        ("contrib:RecurrentPPO", "memory from step to step"),
        ("contrib:ARS+items", "no policy with item heads"),
        ("ILRec+items", "has masks and item heads anyway"),
        ("offline:BC+items", "has masks and item heads anyway"),
        ("offline:BCC", "did you mean 'BC'"),
        ("offline:BC@dorl", "rewards of the log"),
        ("A2C@dorrl", "did you mean 'dorl'"),
        ("A2C+heads", "only 'items'"),
    ],
)
def test_names_that_are_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_algorithm(name)
    assert str(caught.value).count(". ") == 0


def test_names_say_where_they_come_from() -> None:
    assert find_algorithm("sb3:DQN").kind is find_algorithm("DQN").kind
    assert find_algorithm("sb3:DQN").settings == find_algorithm("DQN").settings
    assert find_algorithm("DQN+items").settings == find_algorithm("sb3:DQN+items").settings
    assert find_algorithm("A2C+items@dorl").reward == "dorl"
    assert find_algorithm("A2C").reward is None
    assert not any(algorithm.offline for algorithm in ALGORITHMS.values())


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_algorithms_count_gradient_steps(name: str, dynamics: Dynamics) -> None:
    assert find_algorithm(f"offline:{name}").offline
    model: Any = make_model(f"offline:{name}", dynamics, seed=3, settings={"batch_size": 7})
    assert (model.seed, model.batch_size) == (3, 7)
    model.learn(2)
    assert model.num_timesteps == 2
    assert "repeat" not in run_episodes(dynamics, as_planner(model, dynamics), 4, seed=0).ended_by


@pytest.mark.parametrize("reward", REWARDS)
def test_reward_models_change_what_is_learned_from(reward: str, dynamics: Dynamics) -> None:
    name = f"A2C+items@{reward}"
    told = reward_model(reward, dynamics)
    model: Any = make_model(name, dynamics, seed=0, settings=few_steps("A2C"))
    env = model.get_env()
    assert env.get_attr("dynamics")[0].reward_model.name == told.name
    assert dynamics.reward_model is None
    model.learn(32)


def test_settings_of_reward_models(dynamics: Dynamics) -> None:
    options = {**few_steps("A2C"), "reward_model": {"uncertainty": 0.25}}
    model: Any = make_model("A2C@mopo", dynamics, settings=options)
    named = model.get_env().get_attr("dynamics")[0].reward_model.name
    assert named == reward_model("mopo", dynamics, uncertainty=0.25).name
    assert named != reward_model("mopo", dynamics).name
    with pytest.raises(DataError, match="write A2C@dorl"):
        make_model("A2C", dynamics, settings=options)


def test_settings_take_precedence_and_policy_settings_add_up(dynamics: Dynamics) -> None:
    options = {**few_steps("DQN"), "n_sessions": 2, "policy_kwargs": {"net_arch": [5]}}
    model: Any = make_model("contrib:QRDQN", dynamics, settings=options)
    assert model.n_envs == 2
    assert model.batch_size == 8
    assert (model.policy.n_quantiles, model.policy.net_arch) == (25, [5])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ILRec", {"learning_rate": "fast"}, "learning_rate='fast' came; expected a number or a"),
        ("ILRec", {"batch_size": "x"}, "batch_size='x' came; expected a whole number"),
        ("ILRec", {"batch_size": 8.5}, "batch_size=8.5 came; expected a whole number"),
        ("ILRec", {"warm_start_steps": True}, "warm_start_steps=True came; expected a whole"),
        ("ILRec", {"weight_bounds": [1.0]}, r"weight_bounds=\[1.0\] came; expected a list"),
        (
            "ILRec",
            {"demonstrations": 3},
            "demonstrations=3 came; expected a list or text",
        ),
        (
            "ILRec",
            {"policy_kwargs": {"decomposed": "no"}},
            "decomposed='no' came; expected true",
        ),
        ("ILRec", {"policy_kwargs": {"decomposd": True}}, "did you mean 'decomposed'"),
        ("ILRec", {"policy_kwargs": 3}, "policy_kwargs=3 came; expected a table"),
        ("ILRec", {"n_sessions": "four"}, "n_sessions='four' came; expected a whole number"),
        ("ILRec", {"beta": -1.0}, "cannot be made with beta=-1.0"),
        ("DiscreteSAC", {"beta": 1.0}, "'beta' came, which DiscreteSAC does not have"),
        ("DQN", {"learning_rat": 1e-3}, "did you mean 'learning_rate'"),
        ("DQN", {"train_freq": [4]}, r"train_freq=\[4\] came; expected a whole number or a list"),
        ("DQN", {"policy_kwargs": {"net_arch": ["wide"]}}, "net_arch=.* came; expected a list"),
        ("DQN", {"seed": 3}, "'seed' came, which DQN does not have"),
        ("sb3:PPO", {"batch_size": 1}, "cannot be made with batch_size=1"),
        (
            "sb3:A2C+items",
            {"policy_kwargs": {"item_dim": "x"}},
            "item_dim='x' came; expected a",
        ),
        ("contrib:QRDQN", {"policy_kwargs": {"n_quantile": 3}}, "did you mean 'n_quantiles'"),
        ("offline:BCQ", {"threshold": "low"}, "threshold='low' came; expected a number"),
        ("A2C@dorl", {"reward_model": {"entrpy": 1.0}}, "did you mean 'entropy'"),
        ("A2C@dorl", {"reward_model": {"order": "two"}}, "order='two' came; expected a whole"),
        ("A2C@dorl", {"reward_model": {"level": "tag"}}, "level='tag' came; expected 'item' or 'c"),
    ],
)
def test_settings_that_are_refused(
    name: str, settings: dict[str, Any], message: str, dynamics: Dynamics
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make_model(name, dynamics, settings=settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", [*ALGORITHMS, *PLAIN, *MASKED, "contrib:ARS", "offline:CQL"])
def test_the_defaults_of_constructors_are_of_their_types(name: str) -> None:
    """So that no setting is refused that repeats what is there anyway."""
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(find_algorithm(name).kind).parameters.items()
        if parameter.default is not parameter.empty and not key.startswith("_")
    }
    for key in ("policy", "env", "seed", "device"):
        defaults.pop(key, None)
    assert defaults
    check_settings(name, {**defaults, **find_algorithm(name).settings})


@pytest.mark.parametrize(("said", "meant"), [("sb3:dqn", "DQN"), ("ilrec", "ILRec")])
def test_another_case_is_a_near_miss(said: str, meant: str) -> None:
    with pytest.raises(DataError, match=f"did you mean '[a-z0-9:]*{meant}'"):
        find_algorithm(said)
