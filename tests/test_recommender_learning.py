"""The recommenders of LEA on a chain of items whose best possible HR@1 is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure

from ilrec_sb3.lea import LEA, NetworkConfig, Variant, hit_ratio, ranks, top_items
from ilrec_sb3.lea.batches import Batch, Batches
from ilrec_sb3.lea.early_stopping import BestWeights
from ilrec_sb3.lea.networks import RecommenderNetwork
from ilrec_sb3.lea.objective import Objective, objective_losses
from recsim_env.encoders import GRUEncoder
from recsim_env.environment_feedback import EnvironmentFeedback, sample_negatives
from recsim_env.errors import ArtefactError, DataError
from recsim_env.sequences import SequenceData, load_sequences

BACKBONES = ("GRU4Rec", "SASRec")
SMALL = NetworkConfig(dim=16, dropout=0.0)


def following(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """The item that most often comes next in the synthetic sequences."""
    return items // 6 * 6 + (items % 6 + 1) % 6


def feedback_on(data: SequenceData, seed: int = 0) -> EnvironmentFeedback:
    """What an environment that knows the chain would say."""
    examples = data.examples("train")
    negatives = sample_negatives(examples, 2, seed)
    chosen = following(examples.histories[:, -1])
    codes = np.random.default_rng(seed).normal(size=(data.n_items, 12)).astype(np.float32)
    return EnvironmentFeedback(
        states=codes[examples.histories[:, -1]] * 100 + 7,
        next_states=codes[examples.targets] * 100 + 7,
        rewards=np.where(examples.targets == chosen, 2.0, -1.0).astype(np.float32),
        negatives=negatives,
        negative_rewards=np.where(negatives == chosen[:, None], 2.0, -1.0).astype(np.float32),
        augmented=chosen,
        augmented_rewards=np.full(len(examples), 2.0, np.float32),
        examples=examples.fingerprint,
    )


@pytest.fixture(scope="module")
def data() -> SequenceData:
    return load_sequences("synthetic", n_users=160, n_items=30, follow=0.9, seed=1)


@pytest.fixture(scope="module")
def feedback(data: SequenceData) -> EnvironmentFeedback:
    return feedback_on(data)


def make(data: SequenceData, variant: str, backbone: str = "GRU4Rec", **options: Any) -> LEA:
    options = {"learning_rate": 1e-2, "seed": 0, "network": SMALL, "device": "cpu"} | options
    return LEA(backbone, data, variant, **options)  # type: ignore[arg-type]


# -- what is learned -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "variant", "steps"),
    [
        ("GRU4Rec", "Normal", 120),
        ("GRU4Rec", "SA2C", 240),
        ("SASRec", "SNQN-LEASR", 240),
        ("SASRec", "SA2C-LEAS'R", 240),
    ],
)
def test_the_chain_is_learned(
    data: SequenceData, feedback: EnvironmentFeedback, backbone: str, variant: str, steps: int
) -> None:
    options = {"warm_up_steps": 100, "evaluate_every": 60, "learning_rate": 2e-2}
    model = make(data, variant, backbone, feedback=feedback, **options).learn(steps)
    test = data.examples("test")
    best = float((test.targets == following(test.histories[:, -1])).mean())
    found = hit_ratio(ranks(model.scores(test.histories), test.targets), 1)
    assert found == pytest.approx(best, abs=0.03)
    assert best > 0.8
    assert model.evaluate("test")["HR@5"] >= found


def test_chosen_items_teach_what_the_data_do_not() -> None:
    data = load_sequences("synthetic", n_users=160, n_items=30, follow=0.0, seed=2)
    test = data.examples("test")
    wanted = following(test.histories[:, -1])
    for variant, low, high in (("Normal-sv", 0.9, 1.0), ("Normal", 0.0, 0.2)):
        options = {"learning_rate": 2e-2, "augmented_supervised_weight": 1.0}
        model = make(data, variant, feedback=feedback_on(data), **options).learn(120)
        assert low <= hit_ratio(ranks(model.scores(test.histories), wanted), 1) <= high


def test_values_are_those_that_follow_from_the_rewards() -> None:
    """Each item leads to the next, rewards are 1 and 0, and one example in 8 ends a sequence.

    So V = 1 + gamma (7 / 8) V for the taken item and gamma V for any other; with gamma = 0.5
    V = 16 / 9.
    """
    n_items, length = 10, 9
    starts = np.arange(40)[:, None]
    items = (starts + np.arange(length)) % n_items
    codes = np.where(np.arange(length) == 0, -1, 0).astype(np.int8)
    names = tuple(map(str, range(n_items)))
    data = SequenceData(
        "ring", names, names, names, "item", tuple(items), tuple(codes for _ in starts)
    )
    model = make(data, "SNQN", learning_rate=2e-2, network=NetworkConfig(16, dropout=0.0, length=1))
    model.learn(400)
    histories = th.arange(n_items)[:, None]
    with th.no_grad():
        q = th.stack([net.q_values(net.q_state_of(histories, None)) for net in model.networks])
    taken = q.gather(2, ((histories + 1) % n_items).expand(2, -1, 1))
    others = q.sum(2, keepdim=True).sub(taken) / (n_items - 2)  # its own item is never sampled
    own = q.gather(2, histories.expand(2, -1, 1)) / (n_items - 2)
    assert taken.mean().item() == pytest.approx(16 / 9, abs=0.1)
    assert (others - own).mean().item() == pytest.approx(8 / 9, abs=0.1)


def test_candidates_are_the_first_items(data: SequenceData) -> None:
    model = make(data, "Normal").learn(50)
    examples = data.examples("train").take(np.arange(7))
    found = top_items(model, examples)
    new = top_items(model, examples, repeats=False)
    scores = model.scores(examples.histories)
    for row, items, history in zip(scores, new, examples.histories, strict=True):
        row[history[history < 30]] = -np.inf  # 30 is padding
        assert items.tolist() == np.argsort(-row, kind="stable")[:5].tolist()
    every = model.predict([[3, 7]], 30, repeats=False)[0]
    assert set(every[-2:]) == {3, 7}  # the last of all
    assert found.shape == (7, 5)
    scores = model.scores(examples.histories)
    assert found.tolist() == np.argsort(-scores, axis=1)[:, :5].tolist()


# -- algorithm 1 by hand ---------------------------------------------------------------------------


def pair_and_batch(variant: Variant, n_items: int = 9) -> tuple[list[RecommenderNetwork], Batch]:
    th.manual_seed(3)
    pair = [
        RecommenderNetwork("GRU4Rec", n_items, SMALL, variant.state, 4).eval() for _ in range(2)
    ]
    histories = th.randint(n_items, (6, 5))
    histories[1, :3] = n_items
    targets = th.randint(n_items, (6,))
    states, next_states = 3 * th.randn(6, 4) + 1, 3 * th.randn(6, 4) + 1
    for network in pair:
        network.standardise_by(states)
    batch = Batch(
        histories=histories,
        targets=targets,
        next_histories=th.cat([histories[:, 1:], targets[:, None]], dim=1),
        ends=th.tensor([False, True, False, False, False, True]),
        rewards=th.randn(6),
        negatives=(targets + 1) % n_items,
        negative_rewards=th.randn(6),
        states=states,
        next_states=next_states,
        augmented=(targets + 2) % n_items,
        augmented_rewards=th.randn(6),
    )
    return pair, batch


def q_of(network: RecommenderNetwork, histories: th.Tensor, states: th.Tensor) -> th.Tensor:
    """Q of all items, written down once more."""
    assert network.q_head is not None
    scaled = (states - network.state_mean) / network.state_scale
    parts = {
        "backbone": [network.encoder(histories)],
        "environment": [scaled],
        "joined": [scaled, network.encoder(histories)],
    }
    assert network.state is not None
    q: th.Tensor = network.q_head(th.cat(parts[network.state], dim=1))
    return q


@pytest.mark.parametrize("name", ["SA2C-LEASR", "SA2C-LEAS'R", "SA2C-LEAR", "SNQN-LEASR"])
@pytest.mark.parametrize("weigh", [False, True])
def test_loss_of_a_batch_row_by_row(name: str, weigh: bool) -> None:
    variant = Variant.parse(name)
    pair, batch = pair_and_batch(variant)
    main, other = pair
    objective = Objective(variant, 0.5, 0.1, 0.01, None)
    losses = objective_losses(objective, main, other, batch, weigh)
    assert batch.states is not None
    assert batch.next_states is not None
    assert batch.augmented is not None
    assert batch.augmented_rewards is not None
    now, following_state = (
        (batch.histories, batch.states),
        (batch.next_histories, batch.next_states),
    )
    with th.no_grad():
        q_main, q_next = q_of(main, *now), q_of(main, *following_state)
        value_now, value_next = q_of(other, *now), q_of(other, *following_state)
        log_probs = main.logits(main.encoder(batch.histories)).log_softmax(1)
    total = 0.0
    for row in range(6):
        positive, negative = int(batch.targets[row]), int(batch.negatives[row])
        chosen, q = int(batch.augmented[row]), q_main[row]
        going_on = 0.0 if batch.ends[row] else 0.5
        after = going_on * float(value_next[row, q_next[row].argmax()])
        stays = 0.5 * float(value_now[row, q.argmax()])
        td = (float(batch.rewards[row]) + after - float(q[positive])) ** 2
        td += (float(batch.negative_rewards[row]) + stays - float(q[negative])) ** 2
        td += 0.01 * (float(batch.augmented_rewards[row]) + after - float(q[chosen])) ** 2
        weight = float(q[positive] - q[negative]) / 2
        weight = weight if weigh and variant.framework == "SA2C" else 1.0
        supervised = -weight * float(log_probs[row, positive])
        total += (td + supervised - 0.1 * float(log_probs[row, chosen])) / 6
    assert float(losses["loss"].detach()) == pytest.approx(total, rel=1e-5)


def test_gradients_go_where_algorithm_1_sends_them() -> None:
    pair, batch = pair_and_batch(Variant.parse("SA2C-LEASR"))
    objective = Objective(Variant.parse("SA2C-LEASR"), 0.5, 0.1, 0.01, None)
    main, other = pair
    seen = []
    for weigh in (False, True):
        main.zero_grad()
        objective_losses(objective, main, other, batch, weigh)["loss"].backward()
        assert main.q_head is not None
        assert main.q_head.weight.grad is not None
        seen.append(main.q_head.weight.grad.clone())
        rows = main.q_head.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
        asked = th.cat([batch.targets, batch.negatives, batch.augmented])  # type: ignore[list-item]
        assert rows == sorted(set(asked.tolist()))
        assert all(p.grad is None for p in other.parameters())
    # The advantage weighs the supervised loss without training Q by it.
    assert th.equal(seen[0], seen[1])


def test_a_state_of_the_environment_alone_leaves_the_backbone_to_the_supervised_loss() -> None:
    grads = []
    for name in ("SNQN-LES'", "Normal"):
        variant = Variant.parse(name)
        pair, batch = pair_and_batch(Variant.parse("SNQN-LES'"))
        objective = Objective(variant, 0.5, 0.1, 0.01, None)
        objective_losses(objective, *pair, batch, False)["loss"].backward()
        grads.append(pair[0].encoder.embedding.weight.grad)
    assert th.equal(*grads)  # type: ignore[misc, call-arg]


def test_both_networks_are_drawn_and_normal_has_one(data: SequenceData) -> None:
    model = make(data, "SNQN")
    before = [[p.detach().clone() for p in net.parameters()] for net in model.networks]
    assert all(th.equal(a, b) for a, b in zip(*before, strict=True))
    steps = []
    for _ in range(12):
        kept = [net.supervised_bias.detach().clone() for net in model.networks]
        model._gradient_step()
        moved = [
            not th.equal(a, net.supervised_bias)
            for a, net in zip(kept, model.networks, strict=True)
        ]
        steps.append(tuple(moved))
    assert set(steps) == {(True, False), (False, True)}
    assert len(make(data, "Normal").networks) == 1


def test_packed_gru_gives_the_same_states_and_gradients() -> None:
    th.manual_seed(0)
    plain = GRUEncoder(9, 6)
    packed = GRUEncoder(9, 6, packed=True)
    packed.load_state_dict(plain.state_dict())
    items = th.tensor([[9, 9, 1, 2], [3, 4, 5, 6], [9, 9, 9, 9], [9, 9, 9, 0], [9, 7, 7, 7]])
    weights = th.randn(5, 6)
    for net in (plain, packed):
        (net(items) * weights).sum().backward()
    th.testing.assert_close(packed(items), plain(items))
    for a, b in zip(packed.parameters(), plain.parameters(), strict=True):
        th.testing.assert_close(a.grad, b.grad)
    empty = items[2:3]
    assert not packed(empty).any()


def test_states_are_standardised_over_the_train_rows(
    data: SequenceData, feedback: EnvironmentFeedback
) -> None:
    constant = np.column_stack([feedback.states, np.full(len(feedback), 0.3, np.float32)])
    wide = dataclasses.replace(feedback, states=constant, next_states=constant)
    model = make(data, "SNQN-LES'", feedback=wide)
    scaled = model.network.q_state(None, th.from_numpy(constant)).numpy()
    np.testing.assert_allclose(scaled.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), [*[1.0] * 12, 0.0], atol=1e-4)


def test_passes_go_through_all_examples_with_new_negatives(
    data: SequenceData, feedback: EnvironmentFeedback
) -> None:
    examples, m = data.examples("train"), len(data.examples("train"))
    for name, needs in (("SNQN", None), ("SNQN-LER", feedback)):
        variant, rng = Variant.parse(name), np.random.default_rng(0)
        batches = Batches(examples, needs, variant, m, th.device("cpu"))
        first, second = batches.draw(rng), batches.draw(rng)
        rows = [th.cat([b.histories, b.targets[:, None]], 1).tolist() for b in (first, second)]
        assert rows[0] != rows[1]
        assert sorted(rows[0]) == sorted(rows[1])
        for batch in (first, second):
            taken = th.cat([batch.histories, batch.targets[:, None]], dim=1)
            assert not (taken == batch.negatives[:, None]).any()
        assert sorted(first.negatives.tolist()) != sorted(second.negatives.tolist())
        wanted = {1.0} if needs is None else {2.0, -1.0}
        assert set(first.rewards.tolist()) == wanted
        last = examples.n_items - 1
        chosen = following(first.histories[:, -1].clamp(max=last).numpy())
        earned = np.where(first.negatives.numpy() == chosen, 2.0, -1.0)
        expected = np.zeros(m) if needs is None else earned
        np.testing.assert_array_equal(first.negative_rewards.numpy(), expected)


# -- manners of Stable-Baselines3 ------------------------------------------------------------------


class Watcher(BaseCallback):
    """Notes the steps and stops at one of them."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop, self.steps, self.predicted = stop, [], []  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.logger.record("own/step", self.num_timesteps)
        self.predicted.append(self.model.predict([[1, 2]]).tolist())  # type: ignore[arg-type]
        return self.num_timesteps < self.stop


def test_callbacks_see_each_step_and_may_stop(data: SequenceData, tmp_path: Path) -> None:
    model = make(data, "SNQN", network=NetworkConfig(dim=16, dropout=0.5))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    watcher = Watcher(stop=7)
    seen: list[int] = []
    checkpoint = CheckpointCallback(save_freq=5, save_path=str(tmp_path))
    model.learn(50, [watcher, checkpoint], log_interval=5)
    assert watcher.steps == [1, 2, 3, 4, 5, 6, 7]
    assert model.num_timesteps == 7
    assert model.evaluations[-1]["step"] == 7
    header = (tmp_path / "progress.csv").read_text().splitlines()[0]
    assert {"train/loss", "train/td_negative", "own/step"} <= set(header.split(","))
    # dropout is off for callbacks: the checkpoint recommends what the callback was shown
    saved = LEA.load(tmp_path / "rl_model_5_steps.zip", device="cpu")
    assert saved.predict([[1, 2]]).tolist() == watcher.predicted[4]

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(local["self"].num_timesteps)
        return True

    model.learn(3, note, reset_num_timesteps=False)
    assert seen == [8, 9, 10]
    model.logger.close()


def test_tensorboard_and_progress_bar(
    data: SequenceData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(data, "Normal", tensorboard_log=str(tmp_path), evaluate_every=4)
    model.learn(8, progress_bar=True, log_interval=4)
    assert list((tmp_path / "lea_1").glob("events.*"))
    assert "GRU4Rec Normal: 100%" in capsys.readouterr().err


def test_the_best_weights_come_back_and_patience_ends_it(data: SequenceData) -> None:
    model = make(data, "Normal", learning_rate=0.05, evaluate_every=20, patience=2)
    model.learn(5_000)
    figures = [e["NDCG@10"] for e in model.evaluations]
    best = int(np.argmax(figures))
    assert len(figures) == best + 3
    assert model.num_timesteps == 20 * len(figures)
    assert model.evaluate("valid")["NDCG@10"] == max(figures) > figures[-1]


def test_evaluations_of_the_warm_up_count_only_where_they_stay_the_last() -> None:
    network = th.nn.Linear(1, 1)

    def update(value: float, step: int, warming_up: bool = False) -> None:
        with th.no_grad():
            network.weight.fill_(step)
        best.update(value, step, warming_up)

    best = BestWeights(network, patience=1)
    update(0.5, 1, warming_up=True)
    update(0.4, 2, warming_up=True)
    assert not best.enough
    assert best.step == 2
    update(0.3, 3)
    assert not best.enough
    assert best.step == 3
    update(0.2, 4)
    assert best.enough
    best.restore()
    assert network.weight.item() == 3.0


def fall(model: LEA, monkeypatch: pytest.MonkeyPatch, *figures: float) -> LEA:
    """Lets the evaluations of a model find these figures."""
    left = iter(figures)
    monkeypatch.setattr(model, "evaluate", lambda _: {"NDCG@10": next(left)})
    return model


@pytest.mark.parametrize(
    ("variant", "steps", "patience", "kept", "ended"),
    [
        ("SNQN", 8, None, 2, 8),  # 0.9
        ("SA2C", 8, None, 8, 8),  # 0.2 after 0.1: those of steps 2 and 4 are of the warm-up
        ("SA2C", 4, None, 4, 4),  # 0.8: the last, as no other counts
        ("SNQN", 20, 1, 2, 4),
        ("SA2C", 20, 1, 8, 10),
    ],
)
def test_what_sa2c_keeps_was_trained_with_advantages(
    data: SequenceData,
    monkeypatch: pytest.MonkeyPatch,
    variant: str,
    steps: int,
    patience: int | None,
    kept: int,
    ended: int,
) -> None:
    model = make(data, variant, evaluate_every=2, warm_up_steps=4, patience=patience)
    seen: dict[int, th.Tensor] = {}

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen[local["self"].num_timesteps] = model.network.supervised_bias.detach().clone()
        return True

    fall(model, monkeypatch, 0.9, 0.8, 0.1, 0.2, 0.15).learn(steps, note)
    assert (model.best_step, model.num_timesteps) == (kept, ended)
    assert th.equal(model.network.supervised_bias, seen[kept])


def weighed(model: LEA, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[bool]:
    """Trains a model and returns at which steps SA2C weighed by advantages."""
    found = []

    def note(objective: Any, main: Any, other: Any, batch: Batch, weigh: bool) -> Any:
        found.append(weigh)
        return objective_losses(objective, main, other, batch, weigh)

    with monkeypatch.context() as patch:
        patch.setattr("ilrec_sb3.lea.recommender.objective_losses", note)
        model.learn(steps, reset_num_timesteps=False)
    return found


def test_the_warm_up_is_two_passes_of_each_network(
    data: SequenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = len(data.examples("train"))
    options = {"batch_size": m // 2 + 1, "evaluate_every": 3}  # two batches a pass
    model = make(data, "SA2C", **options)
    assert weighed(model, monkeypatch, 5) == [False] * 5
    # a file keeps that it is None, and how far the model was
    again = LEA.load(model.save(tmp_path / "model"), data, device="cpu")
    assert again.warm_up_steps is None
    assert (again.best_step, again.num_timesteps) == (model.best_step, 5) == (5, 5)
    for each in (model, again):
        assert weighed(each, monkeypatch, 5) == [False] * 3 + [True] * 2
    # a number stays as it is
    for steps in (0, 1):
        own = make(data, "SA2C", **options, warm_up_steps=steps)
        assert weighed(own, monkeypatch, 3) == [False] * steps + [True] * (3 - steps)
        assert LEA.load(own.save(tmp_path / "own"), device="cpu").warm_up_steps == steps


def test_the_last_step_is_evaluated_whatever_is_logged(data: SequenceData) -> None:
    for log_interval in (0, 3, 10):
        model = make(data, "Normal").learn(10, log_interval=log_interval)
        assert [entry["step"] for entry in model.evaluations] == [10]
        assert model.best_step == 10


def test_without_a_log_nothing_is_kept_for_it(data: SequenceData) -> None:
    kept: list[int] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        kept.append(len(local["recent"]))
        return True

    make(data, "Normal").learn(5, note, log_interval=0)
    assert kept == [0] * 5


def test_no_validation_examples_keep_the_last_weights() -> None:
    items, names = np.arange(8), tuple(map(str, range(20)))
    codes = np.array([-1, *[0] * 7], np.int8)
    data = SequenceData("one", names, names, names, "item", (items,), (codes,))
    model = make(data, "SNQN", learning_rate=2e-2, evaluate_every=5).learn(40)
    assert model.evaluations == []
    assert model.best_step is None
    assert model.evaluate("valid") == {}
    assert model.evaluate("train")["HR@5"] == 1.0


@pytest.mark.parametrize("scaled", [True, False])
def test_rewards_of_the_environment_get_the_size_of_ones(
    data: SequenceData, feedback: EnvironmentFeedback, scaled: bool
) -> None:
    model = make(data, "SNQN-LEASR", feedback=feedback, scale_rewards=scaled)
    assert model.batches is not None
    batch = model.batches.draw(np.random.default_rng(0))
    assert batch.augmented_rewards is not None
    size = float(np.sqrt(np.mean(feedback.rewards**2))) if scaled else 1.0
    np.testing.assert_allclose(batch.augmented_rewards, 2.0 / size, rtol=1e-5)
    for rewards in (batch.rewards, batch.negative_rewards):
        given = rewards.numpy() * size
        np.testing.assert_allclose(given, np.where(given > 0, 2.0, -1.0), rtol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_same_seed_same_weights(data: SequenceData, backbone: str) -> None:
    options = {"network": NetworkConfig(dim=16, dropout=0.3), "evaluate_every": 10}
    models = [make(data, "SA2C", backbone, **options) for _ in range(2)]
    th.manual_seed(99)
    before = th.rand(1)
    th.manual_seed(99)
    for model in models:
        model.learn(25)
    assert th.equal(th.rand(1), before)  # the global generator is left alone
    for a, b in zip(models[0].networks.parameters(), models[1].networks.parameters(), strict=True):
        assert th.equal(a, b)
    other = make(data, "SA2C", backbone, **options, seed=1)
    assert not th.equal(other.network.supervised_bias, models[0].network.supervised_bias)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(
    data: SequenceData, feedback: EnvironmentFeedback, tmp_path: Path, backbone: str, tied: bool
) -> None:
    network = NetworkConfig(dim=16, tied=tied, length=6)
    short = data.examples("train", 6)
    fitting = dataclasses.replace(feedback, examples=short.fingerprint)
    options = {
        "network": network,
        "evaluate_every": 10,
        "minimum_advantage": 0.25,
        "scale_rewards": False,
    }
    model = make(data, "SA2C-LEASR", backbone, feedback=fitting, **options).learn(20)
    path = model.save(tmp_path / "model")
    assert path == tmp_path / "model.zip"
    histories = data.examples("test", 6).histories
    served = LEA.load(path, device="cpu")
    np.testing.assert_array_equal(served.scores(histories), model.scores(histories))
    np.testing.assert_array_equal(served.predict(histories, 7), model.predict(histories, 7))
    with pytest.raises(DataError, match="pass data to"):
        served.evaluate("test")
    with pytest.raises(DataError, match="cannot learn"):
        served.learn(1)
    full = LEA.load(tmp_path / "model", data, fitting, device="cpu", patience=None)
    assert full.evaluate("test") == model.evaluate("test")
    assert (full.variant, full.config, full.patience) == (model.variant, network, None)
    assert (full.minimum_advantage, full.scale_rewards) == (0.25, False)
    assert th.equal(full.network.state_mean, model.network.state_mean)
    assert (tmp_path / "model.zip").read_bytes() == model.save(tmp_path / "again").read_bytes()
    full.learn(5, reset_num_timesteps=False)
    assert full.num_timesteps == 25


def test_broken_and_foreign_files_are_explained(data: SequenceData, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot be read as a recommender"):
        LEA.load(tmp_path / "nothing")
    path = make(data, "Normal").save(tmp_path / "model.zip")
    other = load_sequences("synthetic", n_users=40, n_items=36)
    with pytest.raises(ArtefactError, match="another catalogue of 30 items"):
        LEA.load(path, other)
    with pytest.raises(DataError, match="did you mean 'batch_size'"):
        LEA.load(path, batchsize=3)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtefactError, match="cannot be read as a recommender"):
        LEA.load(path)


# -- bad input -------------------------------------------------------------------------------------


def test_histories_of_any_length(data: SequenceData) -> None:
    model = make(data, "Normal", network=NetworkConfig(dim=16, length=3))
    pad = data.n_items
    wide = np.array([[pad, pad, 4, 5], [1, 2, 3, 4]])
    lists = [[4, 5], np.array([1, 2, 3, 4])]
    np.testing.assert_array_equal(model.scores(wide), model.scores(lists))  # type: ignore[arg-type]
    np.testing.assert_allclose(model.scores(wide)[1], model.scores([[2, 3, 4]])[0], atol=1e-6)
    np.testing.assert_allclose(model.scores(np.array([[5]])), model.scores([[5]]))
    assert model.predict([], 3).shape == (0, 3)
    assert model.scores([]).shape == (0, data.n_items)
    assert model.predict([[1]] * 1_100, 3).shape == (1_100, 3)


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([[]], "History 0 came with no items"),
        ([[3], [30, 30]], "History 1 came with no items"),
        (np.full((2, 4), 30), "History 0 came with no items"),
        (np.array([[1, 30]]), "padding after its last item"),
        ([[1, 30, 2]], "padding between its items"),
        ([[1, 31]], "Item 31 came in history 0, expected 0 to 29"),
        ([[1], [-1]], "Item -1 came in history 1"),
        ([[0.5]], "expected item indices as whole numbers"),
        ([1, 2], "wrap the one history in a list"),
        (np.array([["a"]]), "look external ids up"),
    ],
)
def test_bad_histories_are_explained(data: SequenceData, histories: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(data, "Normal").predict(histories)


def test_numbers_of_numpy_can_be_saved(data: SequenceData, tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"seed": np.int64(3), "learning_rate": np.float32(0.5)}
    model = make(data, "SNQN", **numbers).learn(2)
    read = LEA.load(model.save(tmp_path / "model"), data)
    assert (read.seed, read.learning_rate) == (3, 0.5)


def test_bad_arguments_are_explained(data: SequenceData, feedback: EnvironmentFeedback) -> None:
    for options, message in (
        ({"backbone": "SASrec"}, "did you mean 'SASRec'"),
        ({"gamma": 1.5}, "gamma=1.5 came, expected from 0 to 1"),
        ({"batch_size": 0}, "batch_size=0 came"),
        ({"warm_up_steps": -1}, "warm_up_steps=-1 came"),
        ({"evaluate_every": 0}, "evaluate_every=0 came"),
        ({"batch_size": 2.5}, "batch_size=2.5 came; expected a whole number"),
        ({"learning_rate": "fast"}, "learning_rate='fast' came; expected a number"),
        ({"minimum_advantage": float("nan")}, "minimum_advantage=nan came"),
        ({"variant": "SNQN-LES"}, "SNQN-LES came without feedback, expected .* states"),
    ):
        with pytest.raises(DataError, match=message):
            make(data, **({"variant": "SNQN"} | options))
    with pytest.raises(DataError, match=r"read a trained model with LEA\.load"):
        LEA("SASRec", None, "Normal")
    with pytest.raises(DataError, match="k=31 came, expected from 1 to the 30 items"):
        make(data, "Normal").predict([[1]], 31)
    with pytest.raises(DataError, match=r"NetworkConfig\.dropout is 1"):
        NetworkConfig(dropout=1.0)
    with pytest.raises(DataError, match=r"NetworkConfig\.dim is 0"):
        NetworkConfig(dim=0)
    alone = dataclasses.replace(feedback, augmented=None, augmented_rewards=None)
    make(data, "SNQN-LER", feedback=alone)
    with pytest.raises(DataError, match="feedback without chosen items"):
        make(data, "SNQN-LEAR", feedback=alone)
    with pytest.raises(ArtefactError, match="belongs to other examples"):
        make(data, "SNQN-LER", feedback=feedback, network=NetworkConfig(length=3))


def test_a_loss_that_is_no_number_is_explained_and_the_best_weights_stay(
    data: SequenceData,
) -> None:
    model = make(data, "Normal", evaluate_every=10)

    def spoil(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == 15:
            with th.no_grad():
                model.network.supervised_bias.fill_(th.nan)
        return True

    with pytest.raises(FloatingPointError, match="loss at step 20 is nan"):
        model.learn(40, spoil)
    assert model.evaluate("valid")["NDCG@10"] == model.evaluations[0]["NDCG@10"]
    assert model.best_step == 10
