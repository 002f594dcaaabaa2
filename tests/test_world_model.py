from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsim_env.datasets import load
from recsim_env.datasets.dataset import Catalogue, Dataset, Interactions
from recsim_env.datasets.splits import split_interactions
from recsim_env.errors import ArtefactError, DataError
from recsim_env.world_model import Biases, DeepFM, WorldModel, WorldModelConfig
from recsim_env.world_model.deepfm import pair_terms, support

QUICK = WorldModelConfig(members=2, max_epochs=4)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load("synthetic", n_users=80, n_items=50, seed=1)


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> WorldModel:
    rows = split_interactions(dataset.interactions).train
    return WorldModel.fit(dataset, rows, QUICK, seed=5, progress=False)


def tiny(users: list[int], items: list[int], ratings: list[float]) -> Dataset:
    n_items = max(items) + 1
    return Dataset(
        name="tiny",
        catalogue=Catalogue(
            item_ids=tuple(map(str, range(n_items))),
            titles=tuple(f"title {i}" for i in range(n_items)),
            categories=tuple(("even" if i % 2 == 0 else "odd",) for i in range(n_items)),
            texts=("",) * n_items,
        ),
        interactions=Interactions(
            users=np.array(users), items=np.array(items), ratings=np.array(ratings), order=None
        ),
        user_ids=tuple(map(str, range(max(users) + 1))),
    )


def network(hidden: tuple[int, ...] = (3,)) -> DeepFM:
    torch.manual_seed(0)
    net = DeepFM(
        n_users=4,
        category_matrix=torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        item_counts=torch.tensor([3, 0, 1]),
        n_features=2,
        members=2,
        embedding_size=3,
        hidden=hidden,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return net


def test_pair_terms_by_hand() -> None:
    # <a, b> + <a, c> + <b, c> for a = (1, 2), b = (3, -1), c = (0, 5): 1 + 10 - 5 = 6
    fields = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]], [[0.0, 5.0]]]])
    assert pair_terms(fields).tolist() == [[6.0]]


def test_support_by_hand() -> None:
    assert support(torch.tensor([3])).tolist() == [pytest.approx([0.25, np.log(4.0) / 4.0])]


@pytest.mark.parametrize("hidden", [(3,), (4, 2)])
def test_score_is_the_factorisation_machine_plus_the_network(hidden: tuple[int, ...]) -> None:
    net, m = network(hidden), 1
    user, item, history = 2, 1, [0, 2]
    features = torch.tensor([0.5, -1.0])
    extra = torch.cat([features, support(torch.tensor([2]))[0]])
    u = net.user[user, m]
    h = net.history[history, m].mean(0)
    f = extra @ net.feature[:, m]
    i = net.item[item, m]
    c = net.category[:, m].mean(0)
    s = support(torch.tensor([0]))[0] @ net.support[:, m]
    fields = [u, h, f, i, c, s]
    pairs = sum(fields[a] @ fields[b] for a in range(6) for b in range(a))
    first = (
        net.bias[m]
        + net.user_first[user, m]
        + net.history_first[history, m].mean()
        + extra @ net.feature_first[:, m]
        + net.item_first[item, m]
        + net.category_first[:, m].mean()
        + support(torch.tensor([0]))[0] @ net.support_first[:, m]
    )
    x = torch.cat([u, h, f]) @ net.user_layer[m] + torch.cat([i, c, s]) @ net.item_layer[m]
    x = x + net.first_bias[m]
    for weight, bias in zip(net.tail_weights, net.tail_biases, strict=True):
        x = torch.relu(x) @ weight[m] + bias[m]
    with torch.no_grad():
        left = net.user_half(torch.tensor([user]), torch.tensor([[0, 3, 2]]), features[None])
        right = net.item_half(torch.tensor([item]))
        score = net.score(left, right)[0, m]
        table = net.score_all(left, net.item_half(torch.arange(3)), m)[0, item]
    assert score.item() == pytest.approx((first + pairs + x[0]).item(), rel=1e-4)
    assert table.item() == pytest.approx(score.item(), rel=1e-4)


def test_biases_by_hand() -> None:
    # One user, one item, two ratings of mean 3: nothing is left to explain.
    users, items = np.array([0, 0, 1]), np.array([0, 1, 0])
    ratings = np.array([5.0, 3.0, 4.0], np.float32)
    fitted = Biases.fit(users, items, ratings, (3, 2), damping=(1.0, 2.0), sweeps=200)
    # The normal equations: (2 + 1) b0 = (1 - c0) + (-1 - c1), (1 + 1) b1 = 0 - c0,
    # (2 + 2) c0 = (1 - b0) + (0 - b1), (1 + 2) c1 = -1 - b0.
    b0, b1 = fitted.users[:2]
    c0, c1 = fitted.items
    assert 3 * b0 == pytest.approx(-c0 - c1)
    assert 2 * b1 == pytest.approx(-c0)
    assert 4 * c0 == pytest.approx(1 - b0 - b1)
    assert 3 * c1 == pytest.approx(-1 - b0)
    assert fitted.users[2] == 0.0
    assert fitted.predict(np.array([2]), np.array([0]))[0] == pytest.approx(4.0 + c0)


def test_own_share_is_what_leaving_the_rating_out_takes_off() -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(5, size=40), rng.integers(6, size=40)
    ratings = rng.uniform(1, 5, 40).astype(np.float32)
    fitted = Biases.fit(users, items, ratings, (5, 6), damping=(3.0, 2.0), sweeps=200)
    share, _ = fitted.own_share(users, items, ratings)
    others = np.arange(40) != 7
    same = others & (users == users[7])
    rest = ratings[same] - fitted.mean - fitted.items[items[same]]
    without = rest.sum() / (same.sum() + 3.0)
    assert fitted.users[users[7]] - share[7] == pytest.approx(without, abs=1e-6)


def test_predictions_agree_with_rows(model: WorldModel) -> None:
    users = np.array([3, -1, 0, 79])
    histories = [np.array([1, 2]), np.array([4, 5, 6]), np.zeros(0, np.int64), np.array([49])]
    for given_histories in (None, histories):
        mean, variance = model.rows_with_variance(users, given_histories)
        assert np.array_equal(mean, model.rows(users, given_histories))
        for row in range(4):
            one_mean, one_variance = model.predict(
                np.full(50, users[row]),
                np.arange(50),
                None if given_histories is None else [given_histories[row]] * 50,
            )
            np.testing.assert_allclose(mean[row], one_mean, atol=1e-5)
            np.testing.assert_allclose(variance[row], one_variance, atol=1e-3)


def test_rows_of_all_users_and_of_unknown_ones(model: WorldModel) -> None:
    table = model.rows()
    assert table.shape == (80, 50)
    assert table.dtype == np.float32
    assert table.min() >= 1.0
    assert table.max() <= 5.0
    np.testing.assert_allclose(table[[7]], model.rows(np.array([7])), atol=1e-6)
    histories = [np.array([1, 2, 3]), np.array([30])]
    unknown = model.rows(histories=histories)
    assert np.array_equal(unknown, model.rows(np.array([-1, -1]), histories))
    assert not np.allclose(unknown[0], unknown[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 49), max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_a_history_does_not_matter(
    model: WorldModel, history: list[int], random: object
) -> None:
    shuffled = list(history)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    rows = model.rows(histories=[np.array(history, int), np.array(shuffled, int)])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_the_target_is_not_in_its_own_history() -> None:
    # Users with one item each: a history without the target is empty, so that no training step
    # may move the vectors of the history.
    n = 60
    rng = np.random.default_rng(0)
    items = [*range(10), *rng.integers(10, size=n - 10).tolist()]
    data = tiny(list(range(n)), items, rng.uniform(1, 5, n).tolist())
    tables = [
        WorldModel.fit(
            data,
            np.ones(n, bool),
            WorldModelConfig(
                members=1, max_epochs=epochs, weight_decay=0.0, validation_fraction=0.0
            ),
            progress=False,
        ).network
        for epochs in (1, 4)
    ]
    assert torch.equal(tables[0].history, tables[1].history)
    assert not torch.equal(tables[0].item, tables[1].item)


def test_beats_the_biases_where_there_are_tastes() -> None:
    data = load("synthetic")
    rows = split_interactions(data.interactions).train
    report = WorldModel.fit(data, rows, WorldModelConfig(members=3), seed=0, progress=False).report
    assert report["rmse"] < report["biases"]["rmse"] < report["constant"]["rmse"]
    assert report["model_unknown_user"]["rmse"] < report["constant"]["rmse"]
    assert 0.5 < report["calibration"]["variance_over_squared_error"] < 2.0


def test_the_seed_decides(dataset: Dataset, model: WorldModel) -> None:
    rows = split_interactions(dataset.interactions).train
    again = WorldModel.fit(dataset, rows, QUICK, seed=5, progress=False)
    other = WorldModel.fit(dataset, rows, QUICK, seed=6, progress=False)
    assert np.array_equal(model.rows(), again.rows())
    assert not np.array_equal(model.rows(), other.rows())


def test_save_and_load(model: WorldModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = WorldModel.load(tmp_path / "model")
    users = np.array([4, -1])
    histories = [np.array([1]), np.array([2, 3])]
    for first, second in zip(
        model.rows_with_variance(users, histories),
        loaded.rows_with_variance(users, histories),
        strict=True,
    ):
        assert np.array_equal(first, second)
    assert np.array_equal(model.rows(), loaded.rows())
    assert loaded.report == model.report
    assert loaded.config == model.config
    content = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtefactError, match="prepare the data again"):
        WorldModel.load(tmp_path / "model")


def test_user_features_count() -> None:
    rng = np.random.default_rng(0)
    n = 400
    users, items = rng.integers(40, size=n), np.r_[np.arange(8), rng.integers(8, size=n - 8)]
    features = (np.arange(40) % 2).astype(np.float32)[:, None]
    ratings = 2.0 + 2.0 * features[users, 0]
    plain = tiny([39, *users[1:].tolist()], items.tolist(), ratings.tolist())
    data = Dataset(
        name="tiny",
        catalogue=plain.catalogue,
        interactions=Interactions(
            users=users, items=items, ratings=ratings.astype(np.float32), order=None
        ),
        user_ids=plain.user_ids,
        user_features=features,
        user_feature_names=("odd",),
    )
    config = WorldModelConfig(
        members=2, learning_rate=0.02, unknown_user_dropout=0.8, validation_fraction=0.0
    )
    model = WorldModel.fit(data, np.ones(n, bool), config, progress=False)
    low, high = model.rows(
        histories=[np.zeros(0, int)] * 2, user_features=np.array([[0.0], [1.0]], np.float32)
    )
    assert high.mean() - low.mean() > 1.0


def test_bad_input_is_explained(dataset: Dataset, model: WorldModel) -> None:
    with pytest.raises(DataError, match="expected at least 10"):
        WorldModel.fit(dataset, np.arange(len(dataset.interactions)) < 5, progress=False)
    with pytest.raises(DataError, match="expected -1"):
        model.rows(np.array([80]))
    with pytest.raises(DataError, match="expected 0 to 49"):
        model.predict(np.array([0]), np.array([50]))
    with pytest.raises(DataError, match="expected one each"):
        model.rows(np.array([0, 1]), [np.array([1])])
    with pytest.raises(DataError, match="user_features has shape"):
        model.rows(np.array([0]), user_features=np.zeros((1, 3), np.float32))
    for wrong in (
        {"members": 0},
        {"hidden": ()},
        {"unknown_user_dropout": 1.5},
        {"card_fraction": 0.5, "validation_fraction": 0.5},
    ):
        with pytest.raises(DataError, match="WorldModelConfig"):
            WorldModelConfig(**wrong)


@pytest.mark.realdata
def test_beats_the_biases_on_steam(real_data: Path) -> None:
    data = load("steam", root=real_data)
    rows = split_interactions(data.interactions).train
    report = WorldModel.fit(data, rows, WorldModelConfig(members=3), progress=False).report
    assert report["rmse"] < report["biases"]["rmse"] < report["constant"]["rmse"]
