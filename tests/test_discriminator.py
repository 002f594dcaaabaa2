"""The discriminator: signs, equations 13 and 14, and that it learns to tell two policies apart."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from ilrec_sb3.ilrec.discriminator import (
    DiscriminatorConfig,
    DiscriminatorTrainer,
    ItemRewardNet,
    StateActions,
    airl_logit,
    discriminator_loss,
    gradient_penalty,
    irl_reward,
    policy_probability,
)

N_ITEMS = 12
BOX = spaces.Box(-5, 5, (3,), np.float32)
ITEMS = spaces.Discrete(N_ITEMS)
FEATURES = np.eye(N_ITEMS, 4, dtype=np.float32) + np.linspace(0, 1, N_ITEMS)[:, None]


def _net(**kwargs: object) -> ItemRewardNet:
    th.manual_seed(0)
    return ItemRewardNet(BOX, ITEMS, FEATURES, **kwargs)  # type: ignore[arg-type]


def _pairs(rng: np.random.Generator, expert: bool, count: int = 128) -> StateActions:
    """The expert shows the first items where the state is positive, the policy any item."""
    states = rng.normal(size=(count, 3)).astype(np.float32)
    actions = rng.integers(0, N_ITEMS, size=count)
    if expert:
        actions = np.where(states[:, 0] > 0, actions % 3, 9 + actions % 3)
    log_probs = th.full((count,), -math.log(N_ITEMS))
    return StateActions(th.from_numpy(states), th.from_numpy(actions), log_probs)


def test_eq_13_by_hand() -> None:
    # logit log 3: D = 1/4; logit -log 3: D = 3/4
    expert, policy = th.tensor([math.log(3.0)]), th.tensor([-math.log(3.0)])
    np.testing.assert_allclose(policy_probability(expert), [0.25], rtol=1e-6)
    expected = -math.log(1 - 0.25) - math.log(0.75)
    assert discriminator_loss(expert, policy).item() == pytest.approx(expected, rel=1e-6)


def test_eq_13_is_least_where_expert_logits_are_high() -> None:
    high, low = th.tensor([3.0]), th.tensor([-3.0])
    assert discriminator_loss(high, low) < discriminator_loss(low, high)


def test_label_smoothing_by_hand() -> None:
    zero, d = th.tensor([0.0]), math.log1p(math.exp(-2.0))
    got = discriminator_loss(th.tensor([2.0]), zero, 0.1).item()
    assert got == pytest.approx(0.9 * d + 0.1 * (d + 2.0) + math.log(2.0), rel=1e-6)


def test_eq_14_by_hand() -> None:
    np.testing.assert_allclose(irl_reward(th.tensor([math.log(3.0)])), [math.log(4.0)], rtol=1e-6)
    logits = th.linspace(-80, 80, 17)
    reward = irl_reward(logits)
    th.testing.assert_close(reward[7:10], -policy_probability(logits[7:10]).log())
    assert th.isfinite(reward).all()
    assert (reward.diff() >= 0).all()


def test_the_airl_logit_is_high_where_the_policy_would_not_go() -> None:
    got = airl_logit(th.tensor([1.0, 1.0]), th.tensor([-0.5, -3.0]))
    np.testing.assert_allclose(got, [1.5, 4.0])


def test_a_fresh_network_is_undecided_about_a_uniform_policy() -> None:
    pairs = _pairs(np.random.default_rng(0), expert=False)
    logits = DiscriminatorTrainer(_net()).logits(*pairs)
    assert logits.abs().mean() < 0.6


def test_indices_and_one_hot_actions_agree_with_and_without_features() -> None:
    pairs = _pairs(np.random.default_rng(0), expert=True, count=6)
    one_hot = th.nn.functional.one_hot(pairs.actions, N_ITEMS).float()
    for net in (_net(), ItemRewardNet(BOX, ITEMS)):
        net.eval()
        flat = net(pairs.observations, pairs.actions)
        assert flat.shape == (6,)
        th.testing.assert_close(net(pairs.observations, one_hot), flat)
        th.testing.assert_close(net(pairs.observations, pairs.actions[:, None]), flat)


def test_it_is_a_reward_net_of_imitation() -> None:
    net = _net()
    states = np.zeros((5, 3), np.float32)
    predicted = net.predict(states, np.arange(5), states, np.zeros(5, bool))
    assert predicted.shape == (5,)
    processed = net.predict_processed(states, np.arange(5), states, np.zeros(5, bool))
    np.testing.assert_array_equal(processed, predicted)


def test_dict_observations() -> None:
    space = spaces.Dict({"user": spaces.Box(-1, 1, (2,), np.float32), "level": spaces.Discrete(3)})
    net = ItemRewardNet(space, ITEMS, FEATURES)
    state = {"user": th.zeros(4, 2), "level": th.tensor([0, 1, 2, 1])}
    assert net(state, th.arange(4)).shape == (4,)
    arrays = {key: value.numpy() for key, value in state.items()}
    processed = net.preprocess(arrays, np.arange(4), arrays, np.zeros(4))
    assert net(*processed).shape == (4,)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_it_learns_to_tell_expert_from_policy(spectral_norm: bool) -> None:
    rng = np.random.default_rng(0)
    config = DiscriminatorConfig(learning_rate=3e-3, gradient_penalty=0.1)
    trainer = DiscriminatorTrainer(_net(spectral_norm=spectral_norm), config)
    first = trainer.update(_pairs(rng, True), _pairs(rng, False))
    for _ in range(150):
        stats = trainer.update(_pairs(rng, True), _pairs(rng, False))
    assert stats.loss < 0.85 * first.loss
    assert stats.expert_logit > 0 > stats.policy_logit
    expert, policy = trainer.logits(*_pairs(rng, True)), trainer.logits(*_pairs(rng, False))
    assert irl_reward(expert).mean() > irl_reward(policy).mean()
    assert stats.expert_accuracy > 0.7


def test_the_gradient_penalty_of_a_linear_score_by_hand() -> None:
    net = _net(hidden=(), normalize_inputs=False)
    with th.no_grad():
        net.mlp[0].weight.zero_()
        net.mlp[0].weight[0, 0] = 3.0
    inputs = th.zeros(5, 7)
    assert gradient_penalty(net, inputs, inputs).item() == pytest.approx(4.0, rel=1e-5)


def test_a_disallowed_action_does_not_swamp_the_logits() -> None:
    trainer = DiscriminatorTrainer(_net())
    logits = trainer.logits(th.zeros(1, 3), th.zeros(1), th.tensor([-1e9]))
    assert logits.abs().item() < 50


def test_saved_and_loaded_it_goes_on_the_same() -> None:
    rng = np.random.default_rng(0)
    batches = [(_pairs(rng, True), _pairs(rng, False)) for _ in range(6)]
    whole = DiscriminatorTrainer(_net())
    for batch in batches[:3]:
        whole.update(*batch)
    state = th.load(_saved(whole.state_dict()), weights_only=True)
    th.manual_seed(9)
    other = DiscriminatorTrainer(ItemRewardNet(BOX, ITEMS, FEATURES))
    other.load_state_dict(state, strict=True)
    for batch in batches[3:]:
        assert whole.update(*batch) == other.update(*batch)
    assert other.updates == 6


def _saved(state: dict[str, object]) -> io.BytesIO:
    buffer = io.BytesIO()
    th.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match=r"expected \(12, k\)"):
        ItemRewardNet(BOX, ITEMS, FEATURES[:3])
    with pytest.raises(ValueError, match="Discrete"):
        ItemRewardNet(BOX, BOX)
    with pytest.raises(ValueError, match="label_smoothing"):
        DiscriminatorConfig(label_smoothing=0.5)
