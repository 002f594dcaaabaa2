from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsim_env.datasets.dataset import Catalogue, Dataset, Interactions
from recsim_env.encoders import (
    EncoderConfig,
    GRUEncoder,
    SASRecEncoder,
    build_encoder,
    fit_encoder,
    load_encoder,
    save_encoder,
    user_sequences,
)
from recsim_env.errors import ArtefactError, DataError
from recsim_env.tracker import GRUTracker, SASRecTracker, make_tracker

N_ITEMS = 12
KINDS = ("gru", "sasrec")


def encoder(kind: str) -> GRUEncoder | SASRecEncoder:
    torch.manual_seed(1)
    config = EncoderConfig(kind=kind, dim=8, max_length=6)  # type: ignore[arg-type]
    return build_encoder(N_ITEMS, config).eval().requires_grad_(False)


def cycles(n_users: int = 120, length: int = 9) -> Dataset:
    """Users who go round the items: item i is always followed by item i + 1."""
    start = np.random.default_rng(0).integers(40, size=n_users)
    items = (start[:, None] + np.arange(length)) % 40
    items[0, :] = np.arange(length)
    shuffled = np.random.default_rng(1).permutation(items.size)
    return Dataset(
        name="cycles",
        catalogue=Catalogue(
            item_ids=tuple(map(str, range(40))),
            titles=tuple(f"title {i}" for i in range(40)),
            categories=(("all",),) * 40,
            texts=("",) * 40,
        ),
        interactions=Interactions(
            users=np.repeat(np.arange(n_users), length)[shuffled],
            items=items.ravel()[shuffled],
            ratings=np.full(items.size, 3.0)[shuffled],
            order=np.tile(np.arange(length), n_users)[shuffled],
        ),
        user_ids=tuple(map(str, range(n_users))),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left_changes_nothing(kind: str) -> None:
    net = encoder(kind)
    plain = net(torch.tensor([[3, 1, 4]]))
    padded = net(torch.tensor([[N_ITEMS, N_ITEMS, N_ITEMS, 3, 1, 4]]))
    torch.testing.assert_close(plain, padded)
    assert not torch.equal(plain, net(torch.tensor([[3, 1, 5]])))


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_causal(kind: str) -> None:
    net = encoder(kind)
    states = net.states(torch.tensor([[N_ITEMS, 5, 2, 7, 7], [N_ITEMS, 5, 2, 1, 0]]))
    torch.testing.assert_close(states[0, :3], states[1, :3])
    assert not torch.allclose(states[0, 3:], states[1, 3:])
    torch.testing.assert_close(states[:1, -1], net(torch.tensor([[5, 2, 7, 7]])))


@pytest.mark.parametrize("blocks", [1, 2])
def test_sasrec_encodes_the_last_place_alone(blocks: int) -> None:
    torch.manual_seed(1)
    net = SASRecEncoder(N_ITEMS, 8, 6, blocks).eval()
    for weight in net.parameters():  # biases, too, which begin as zeros
        torch.nn.init.normal_(weight, std=0.5)
    items = torch.randint(N_ITEMS, (7, 6))
    for row in range(7):
        items[row, :row] = N_ITEMS  # from a whole sequence to an empty one
    found, gradients = [], []
    for encoded in (net(items), net.states(items)[:, -1]):
        found.append(encoded.detach())
        net.zero_grad()
        encoded.square().sum().backward()
        gradients.append([weight.grad for weight in net.parameters() if weight.grad is not None])
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)
    assert not found[0][-1].any()
    assert found[0][:-1].any(dim=1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_items_give_zeros(kind: str) -> None:
    net = encoder(kind)
    assert not net(torch.zeros(2, 0, dtype=torch.int64)).any()
    assert not net(torch.full((2, 3), N_ITEMS)).any()
    assert (
        not make_tracker(net)
        .initial([np.zeros(0, np.int64)])["output" if kind == "sasrec" else "hidden"]
        .any()
    )


def test_gru_step_by_hand() -> None:
    net = GRUEncoder(2, 1)
    with torch.no_grad():
        net.embedding.weight.copy_(torch.tensor([[1.0], [2.0], [0.0]]))
        net.gru.weight_ih_l0.copy_(torch.tensor([[0.1], [0.2], [0.3]]))
        net.gru.weight_hh_l0.copy_(torch.tensor([[0.4], [0.5], [0.6]]))
        net.gru.bias_ih_l0.copy_(torch.tensor([0.01, 0.02, 0.03]))
        net.gru.bias_hh_l0.copy_(torch.tensor([0.04, 0.05, 0.06]))

    def sigmoid(x: float) -> float:
        return 1.0 / (1.0 + np.exp(-x))

    h = 0.0
    for x in (2.0, 1.0):
        r = sigmoid(0.1 * x + 0.01 + 0.4 * h + 0.04)
        z = sigmoid(0.2 * x + 0.02 + 0.5 * h + 0.05)
        n = np.tanh(0.3 * x + 0.03 + r * (0.6 * h + 0.06))
        h = (1 - z) * n + z * h
    tracker = GRUTracker(net.eval().requires_grad_(False))
    state = tracker.advance(tracker.initial([np.array([1])]), np.array([0]))
    assert tracker.output(state)[0, 0] == pytest.approx(h, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=9), min_size=1, max_size=5),
    st.sampled_from(KINDS),
)
def test_trackers_agree_with_torch(sessions: list[list[int]], kind: str) -> None:
    net = encoder(kind)
    tracker = make_tracker(net)
    # The last item comes as a step, the others as history.
    state = tracker.initial([np.array(s[:-1], np.int64) for s in sessions])
    state = tracker.advance(state, np.array([s[-1] for s in sessions]))
    expected = torch.cat([net(torch.tensor([s])) for s in sessions]).numpy()
    assert tracker.output(state).shape == (len(sessions), tracker.dim)
    np.testing.assert_allclose(tracker.output(state), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_of_a_tracker_do_not_mix(kind: str) -> None:
    tracker = make_tracker(encoder(kind))
    both = tracker.initial([np.array([1]), np.array([2, 3])])
    one = tracker.initial([np.array([2, 3])])
    for items in ([4, 5], [6, 7]):
        both = tracker.advance(both, np.array(items))
        one = tracker.advance(one, np.array(items[1:]))
    np.testing.assert_allclose(tracker.output(both)[1:], tracker.output(one), atol=1e-6)
    assert not np.allclose(tracker.output(both)[0], tracker.output(both)[1])


def test_trackers_start_no_sessions() -> None:
    for kind, cls in zip(KINDS, (GRUTracker, SASRecTracker), strict=True):
        tracker = make_tracker(encoder(kind))
        assert isinstance(tracker, cls)
        assert tracker.output(tracker.initial([])).shape == (0, 8)


def test_sequences_are_in_order() -> None:
    data = cycles(20, 5)
    items, ratings = user_sequences(data, np.ones(100, bool), np.random.default_rng(0))
    for sequence in items:
        assert ((np.diff(sequence) % 40) == 1).all()
    assert all(len(r) == 5 for r in ratings)


@pytest.mark.parametrize("kind", KINDS)
def test_next_item_is_learned(kind: str) -> None:
    data = cycles()
    config = EncoderConfig(
        kind=kind,  # type: ignore[arg-type]
        dim=16,
        learning_rate=1e-2,
        dropout=0.0,
        weight_decay=0.0,
        batch_size=16,
        patience=10,
    )
    _, report = fit_encoder(data, np.ones(len(data.interactions), bool), config, progress=False)
    assert report["hr_at_10"] > 0.9
    assert report["hr_at_10_popular"] < 0.6


def test_rating_objective_and_seed() -> None:
    data = cycles(40)
    config = EncoderConfig(objective="rating", dim=8, max_epochs=2)
    rows = np.ones(len(data.interactions), bool)
    first, report = fit_encoder(data, rows, config, progress=False)
    again, _ = fit_encoder(data, rows, config, progress=False)
    assert report["objective"] == "rating"
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    config = EncoderConfig(kind=kind, dim=8, max_length=6)  # type: ignore[arg-type]
    net = encoder(kind)
    save_encoder(net, config, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    items = torch.tensor([[1, 2, 3]])
    assert torch.equal(net(items), loaded(items))
    (tmp_path / "encoder" / "encoder.json").write_text("{}")
    with pytest.raises(ArtefactError, match="whole encoder"):
        load_encoder(tmp_path / "encoder")


def test_bad_settings_are_explained() -> None:
    with pytest.raises(DataError, match="did you mean 'gru'"):
        EncoderConfig(kind="gruu")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least 1"):
        EncoderConfig(dim=0)
