"""Losses and targets of BCQ and CQL agree with those of d3rlpy on the same batch and weights."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys
import types
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from test_offline import GAMMA, Ladder, ladder_log

from ilrec_sb3.offline import DiscreteBCQ, DiscreteCQL, OfflineAlgorithm

if importlib.util.find_spec("d3rlpy") is None:
    pytest.skip(
        "d3rlpy is not installed: the comparison with it is left out", allow_module_level=True
    )


def stand_in_for_gym() -> dict[str, Any]:
    """Modules by name: d3rlpy imports the retired Gym, to know its environments by their class."""
    parts = {
        "gym.spaces": {"Box": gym.spaces.Box, "Discrete": gym.spaces.Discrete},
        "gym.wrappers.time_limit": {"TimeLimit": gym.wrappers.TimeLimit},
        "gym.wrappers.transform_reward": {"TransformReward": gym.wrappers.TransformReward},
        "gym.wrappers": {},
        "gym.version": {"VERSION": "0.26.2"},
        "gym": {"Env": gym.Env, "Wrapper": gym.Wrapper, "spaces": gym.spaces},
    }
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in parts}
    for name, module in modules.items():
        module.__dict__.update(parts[name])
    return modules


with pytest.MonkeyPatch.context() as patch:
    if importlib.util.find_spec("gym") is None:
        for name, module in stand_in_for_gym().items():
            patch.setitem(sys.modules, name, module)
    import d3rlpy  # noqa: F401

N_ACTIONS = 4
OPTIONS: dict[str, Any] = {
    "batch_size": 32,
    "gamma": GAMMA,
    "policy_kwargs": {"net_arch": [8], "value_scale": 1.0},
    "seed": 3,
    "device": "cpu",
}


def perturbed(kind: type[OfflineAlgorithm], **options: Any) -> OfflineAlgorithm:
    """A model whose target differs from its critic, with values far from each other."""
    model = kind("MlpPolicy", Ladder(), data=ladder_log(), **OPTIONS, **options)
    model.buffer = model._make_buffer()
    generator = th.Generator().manual_seed(0)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter += th.randn(parameter.shape, generator=generator)
    return model


def q_functions(network: th.nn.Module) -> Any:
    from d3rlpy.models.torch.q_functions.mean_q_function import DiscreteMeanQFunction

    hidden, last = copy.deepcopy(network.scorer.heads[0])  # type: ignore[union-attr]
    function = DiscreteMeanQFunction(hidden, last.in_features, N_ACTIONS)
    function._fc = last
    return th.nn.ModuleList([function])


def forwarder(functions: Any) -> Any:
    from d3rlpy.models.torch.q_functions.ensemble_q_function import (
        DiscreteEnsembleQFunctionForwarder,
    )
    from d3rlpy.models.torch.q_functions.mean_q_function import DiscreteMeanQFunctionForwarder

    parts = [DiscreteMeanQFunctionForwarder(f, N_ACTIONS) for f in functions]
    return DiscreteEnsembleQFunctionForwarder(parts, N_ACTIONS)


def implementation(cls: Any, modules_class: Any, model: OfflineAlgorithm, **options: Any) -> Any:
    """Returns d3rlpy's algorithm on copies of the model's networks."""
    policy = model.policy
    critic, target = q_functions(policy.critic), q_functions(policy.critic_target)
    modules = {"q_funcs": critic, "targ_q_funcs": target, "optim": None}
    if "imitator" in {field.name for field in dataclasses.fields(modules_class)}:
        from d3rlpy.models.torch.policies import CategoricalPolicy

        hidden, last = copy.deepcopy(policy.actor.scorer.heads[0])
        modules["imitator"] = CategoricalPolicy(hidden, last.in_features, N_ACTIONS)
        modules["imitator"]._fc = last
    stored = copy.deepcopy(target.state_dict())
    made = cls(
        observation_shape=(3,),
        action_size=N_ACTIONS,
        modules=modules_class(**modules),
        q_func_forwarder=forwarder(critic),
        targ_q_func_forwarder=forwarder(target),
        target_update_interval=100,
        gamma=GAMMA,
        compiled=False,
        device="cpu",
        **options,
    )
    target.load_state_dict(stored)  # it makes the target a copy of the critic
    return made


def their_batch(ours: Any) -> Any:
    from d3rlpy.torch_utility import TorchMiniBatch

    return TorchMiniBatch(
        observations=ours.observations,
        actions=ours.actions,
        rewards=ours.rewards,
        next_observations=ours.next_observations,
        next_actions=ours.actions,
        returns_to_go=ours.rewards,
        terminals=ours.dones,
        intervals=th.ones_like(ours.rewards),
        device="cpu",
    )


def gradients(module: th.nn.Module) -> th.Tensor:
    return th.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 4.0])
def test_cql(alpha: float) -> None:
    from d3rlpy.algos.qlearning.torch.cql_impl import DiscreteCQLImpl, DQNModules

    model = perturbed(DiscreteCQL, alpha=alpha)
    batch = model._sample()
    theirs = implementation(DiscreteCQLImpl, DQNModules, model, alpha=alpha)
    expected = theirs.compute_loss(their_batch(batch), theirs.compute_target(their_batch(batch)))
    losses = model._losses(batch)
    assert losses["td_loss"].item() == pytest.approx(expected.td_loss.item(), rel=1e-5)
    assert losses["conservative_loss"].item() == pytest.approx(
        expected.conservative_loss.item(), rel=1e-5
    )
    assert losses["loss"].item() == pytest.approx(expected.loss.item(), rel=1e-5)
    losses["loss"].backward()
    expected.loss.backward()
    ours = gradients(model.policy.critic)
    th.testing.assert_close(ours, gradients(theirs.q_function))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7])
def test_bcq(threshold: float) -> None:
    from d3rlpy.algos.qlearning.torch.bcq_impl import DiscreteBCQImpl, DiscreteBCQModules

    # d3rlpy squares normalised logits, the paper's authors and this project the raw ones
    model = perturbed(DiscreteBCQ, threshold=threshold, logit_coefficient=0.0)
    batch = model._sample()
    theirs = implementation(
        DiscreteBCQImpl, DiscreteBCQModules, model, action_flexibility=threshold, beta=0.0
    )
    expected = theirs.compute_loss(their_batch(batch), theirs.compute_target(their_batch(batch)))
    losses = model._losses(batch)
    assert losses["td_loss"].item() == pytest.approx(expected.td_loss.item(), rel=1e-5)
    assert losses["imitation_loss"].item() == pytest.approx(expected.imitator_loss.item(), rel=1e-5)
    losses["loss"].backward()
    expected.loss.backward()
    th.testing.assert_close(gradients(model.policy.critic), gradients(theirs.q_function))
    th.testing.assert_close(gradients(model.policy.actor), gradients(theirs._modules.imitator))
    greedy = model.policy.greedy_scores(th.eye(3), None).argmax(dim=1)
    assert greedy.tolist() == theirs.inner_predict_best_action(th.eye(3)).tolist()


def test_the_regulariser_of_bcq_on_normalised_logits() -> None:
    from d3rlpy.models.torch.imitators import compute_discrete_imitation_loss
    from d3rlpy.models.torch.policies import CategoricalPolicy

    from ilrec_sb3.offline.losses import bcq_loss

    policy = CategoricalPolicy(th.nn.Identity(), 3, N_ACTIONS)
    actions = th.tensor([[0], [2], [3]])
    expected = compute_discrete_imitation_loss(policy, th.eye(3), actions, beta=0.01)
    log_probs = policy(th.eye(3)).logits
    zero = th.zeros(3)
    losses = bcq_loss(zero, zero, log_probs, log_probs, actions, logit_coefficient=0.01)
    assert losses.total.item() == pytest.approx(expected.loss.item(), rel=1e-6)
