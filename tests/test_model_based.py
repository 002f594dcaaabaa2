"""Reward models of model-based methods: every equation by hand, and what they make of toy data."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy import REWARDS, toy_prepared

from ilrec_sb3.model_based import REWARD_MODELS, SuccessorEntropy, reward_model
from ilrec_sb3.model_based.neighbours import nearest_users, neighbour_rewards, neighbour_weights
from ilrec_sb3.model_based.reward_models import (
    ensemble_uncertainty,
    item_labels,
    penalised_reward,
)
from ilrec_sb3.model_based.successors import grouped_entropy
from recsim_env import Dynamics, Prepared
from recsim_env.errors import DataError
from recsim_env.termination import CategoryDiversity, Repeat, make_rules
from recsim_env.world_model import kernel as kernel_module
from recsim_env.world_model import kernel_table


def test_a_kernel_regression_that_stops_early_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    users, items = np.array([0, 1, 1], np.int32), np.array([0, 0, 1], np.int32)
    ratings = np.array([5.0, 3.0, 1.0], np.float32)
    features = np.zeros((2, 0), np.float32), np.eye(2, dtype=np.float32)
    kernel_table(users, items, ratings, *features)
    assert not caplog.records
    monkeypatch.setattr(kernel_module, "_MOST_STEPS", 1)
    kernel_table(users, items, ratings, *features)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "stopped after 1 steps with a relative error of" in record.getMessage()


class UncertainModel:
    """Means and variances from tables; whoever comes with k items of history gets 1 + k / 2."""

    variance_fit = (2.0, 0.5)

    def __init__(self, means: NDArray[np.float32], variances: NDArray[np.float32]) -> None:
        self.means, self.variances = means, variances

    def rows(self, users: Any = None, histories: Any = None, user_features: Any = None) -> Any:
        return self.rows_with_variance(users, histories, user_features)[0]

    def rows_with_variance(
        self, users: Any = None, histories: Any = None, user_features: Any = None
    ) -> Any:
        del user_features
        if histories is not None:
            worth = np.array([1.0 + len(history) / 2 for history in histories], np.float32)
            mean = np.repeat(worth[:, None], self.means.shape[1], axis=1)
            return mean, np.full_like(mean, 1.5)
        chosen = slice(None) if users is None else users
        return self.means[chosen].copy(), self.variances[chosen].copy()


def _toy(
    means: NDArray[np.float32] = REWARDS,
    variances: NDArray[np.float32] | None = None,
    **changes: Any,
) -> Dynamics:
    if variances is None:
        variances = np.full_like(means, 0.5)
    model: Any = UncertainModel(means, variances)
    prepared = dataclasses.replace(toy_prepared(), train_model=model, **changes)
    return Dynamics(prepared, split="train", rules=(CategoryDiversity(3, 2), Repeat()), limit=9)


def _started(dynamics: Dynamics, users: list[int]) -> Any:
    state = dynamics.allocate(len(users))
    dynamics.initial(state, np.arange(len(users)), np.array(users))
    return state


def _told(dynamics: Dynamics, user: int, items: list[int]) -> list[float]:
    """What one user's session is told, item by item."""
    state = _started(dynamics, [user])
    return [float(dynamics.step(state, np.array([item])).rewards[0]) for item in items]


def test_penalised_reward_by_hand() -> None:
    told = penalised_reward(
        np.float32([4.0, 3.0]),
        np.float32([2.0, 0.0]),
        np.float32([0.5, 1.0]),
        uncertainty_weight=0.25,
        entropy_weight=2.0,
    )
    assert told.tolist() == [4.5, 5.0]
    assert told.dtype == np.float32


def test_ensemble_uncertainty_is_the_part_above_the_offset() -> None:
    variance = np.float32([0.5, 1.1, 0.4])
    np.testing.assert_allclose(
        ensemble_uncertainty(variance, (2.0, 0.5)), [0.0, 0.6, 0.0], atol=1e-6
    )


def test_a_variance_of_scale_0_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def warnings(dynamics: Dynamics, name: str, **values: Any) -> list[str]:
        caplog.clear()
        dynamics = dynamics.with_reward_model(reward_model(name, dynamics, **values))
        _told(dynamics, 0, [0, 1])
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    flat = _toy()
    model: Any = flat.prepared.train_model
    assert warnings(flat, "mopo") == []
    model.variance_fit = (0.0, 0.5)
    for name in ("mopo", "dorl"):
        (message,) = warnings(flat, name)
        assert f"the uncertainty of {name!r} is 0 for every item" in message
        assert warnings(flat, name, uncertainty=0.0) == []
    assert warnings(flat, "mbpo") == warnings(flat, "roler", neighbours=2) == []


def test_grouped_entropy_by_hand() -> None:
    """Group 0 is followed by 3 and 1, group 1 always by the same, group 2 once, group 3 evenly."""
    groups = np.array([0, 0, 1, 2, 3, 3, 3])
    counts = np.array([3, 1, 5, 1, 2, 2, 2])
    by_hand = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    np.testing.assert_allclose(grouped_entropy(groups, counts, 4, 0.7), [by_hand, 0.0, 0.7, 1.0])


SEQUENCES = [np.array(s) for s in ([0, 1, 2], [1, 0, 2, 3], [0, 2], [], [4], [1, 0, 3])]


def test_successor_entropy_by_hand() -> None:
    """After 0 come 1, 2, 2, 3; after 1 come 2, 0, 0; after {0, 1} come 2, 2, 3; after 2 only 3."""
    entropy = SuccessorEntropy.fit(SEQUENCES, np.arange(5), order=2)
    after_0 = 1.5 / math.log2(3)
    after_1 = after_pair = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    last = np.array([[0, -1], [0, 1], [1, 0], [2, 0], [4, 3], [2, -1]])
    expected = [after_0 + 1, after_0 + after_pair, after_1 + after_pair, 1 + 1, 1 + 1, 1 + 1]
    np.testing.assert_allclose(entropy(last), expected, rtol=1e-6)
    assert entropy.order == 2
    assert "5 labels" in repr(entropy)


def test_labels_join_items() -> None:
    """With 0 and 1 as one label, it is followed by 0, 2; 0, 2; 2; 0, 3."""
    labels = np.array([0, 0, 1, 2, 3])
    entropy = SuccessorEntropy.fit(SEQUENCES, labels, order=1)
    shares = np.array([3, 3, 1]) / 7
    by_hand = -(shares * np.log(shares)).sum() / math.log(3)
    np.testing.assert_allclose(entropy(np.array([[0], [1]])), [by_hand, by_hand], rtol=1e-6)
    categories = np.float32([[1, 0], [1, 1], [1, 0], [0, 1]])
    assert item_labels(categories, "item").tolist() == [0, 1, 2, 3]
    joined = item_labels(categories, "category")
    assert joined[0] == joined[2]
    assert len(set(joined.tolist())) == 3


@given(
    sequences=st.lists(st.lists(st.integers(0, 3), max_size=7), max_size=5),
    session=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    order=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_successor_entropy_equals_counting_with_dictionaries(
    sequences: list[list[int]], session: list[int], order: int
) -> None:
    logs = [np.array(s, np.int64) for s in sequences]
    entropy = SuccessorEntropy.fit(logs, np.arange(4), order, unseen=0.25)
    expected = 0.0
    for length in range(1, order + 1):
        seen: list[int] = []
        if len(session) >= length:
            for log in sequences:
                for t in range(length, len(log)):
                    if sorted(log[t - length : t]) == sorted(session[-length:]):
                        seen.append(log[t])
        if len(seen) < 2:
            expected += 0.25
        elif len(set(seen)) > 1:
            shares = [seen.count(x) / len(seen) for x in set(seen)]
            expected -= sum(p * math.log(p) for p in shares) / math.log(len(shares))
    newest = [*session[::-1], -1, -1, -1][:order]
    np.testing.assert_allclose(entropy(np.array([newest])), [expected], rtol=1e-5, atol=1e-6)


def test_patterns_that_have_no_number_are_refused() -> None:
    with pytest.raises(DataError, match="lower the order"):
        SuccessorEntropy.fit([], np.arange(100_000), order=4)


def test_nearest_users_by_hand() -> None:
    vectors = np.float32([[1, 0], [0, 2], [3, 3], [-1, 0]])
    near = nearest_users(vectors, np.float32([[5, 0], [0, 0]]), k=3)
    assert near.users[0].tolist() == [0, 2, 1]
    np.testing.assert_allclose(near.similarity[0], [1.0, math.sqrt(0.5), 0.0], atol=1e-6)
    assert near.users[1].tolist() == [0, 1, 2]
    assert near.similarity[1].tolist() == [0.0, 0.0, 0.0]
    assert nearest_users(vectors, vectors[:1], k=9).users.tolist() == [[0, 2, 1, 3]]


def test_neighbour_weights_by_hand() -> None:
    similarity = np.float32([[0.6, 0.2, -0.5], [-0.1, -0.2, -0.3]])
    np.testing.assert_allclose(
        neighbour_weights(similarity, weighted=True), [[0.75, 0.25, 0.0], [1 / 3] * 3], rtol=1e-6
    )
    np.testing.assert_allclose(neighbour_weights(similarity, weighted=False), 1 / 3, rtol=1e-6)


def test_neighbour_rewards_by_hand() -> None:
    rewards = np.float32([[1, 5], [3, 5], [5, 1]])
    kept = rewards.copy()
    mean, variance = neighbour_rewards(
        rewards, np.array([[0, 2], [1, 0]]), np.float32([[0.75, 0.25], [0.5, 0.5]])
    )
    np.testing.assert_allclose(mean, [[2.0, 4.0], [2.0, 5.0]], rtol=1e-6)
    np.testing.assert_allclose(variance, [[3.0, 3.0], [1.0, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(rewards, kept)


def test_mbpo_believes_the_train_model_even_where_the_rewards_are_others() -> None:
    dynamics = _toy()
    other = Dynamics(
        dynamics.prepared, split="train", rules=(), limit=9, table=np.full((3, 6), 2.0, np.float32)
    )
    told = other.with_reward_model(reward_model("mbpo", other))
    assert _told(told, 0, [0, 5, 4]) == [5.0, 4.5, 1.0]
    assert _told(other, 0, [0, 5, 4]) == [2.0, 2.0, 2.0]


def test_mopo_avoids_what_is_good_and_uncertain() -> None:
    """Item 0 is predicted at 5 with a spread of 1.2, item 5 at 4.5 with none."""
    variances = np.full((3, 6), 0.5, np.float32)
    variances[0, 0] = 1.7
    dynamics = _toy(variances=variances)
    mopo = dynamics.with_reward_model(reward_model("mopo", dynamics, uncertainty=1.0))
    told = [_told(mopo, 0, [item])[0] for item in range(6)]
    np.testing.assert_allclose(told, [3.8, 4.0, 3.0, 2.0, 1.0, 4.5], rtol=1e-6)
    believing = dynamics.with_reward_model(reward_model("mbpo", dynamics))
    assert int(np.argmax(told)) == 5
    assert int(np.argmax([_told(believing, 0, [item])[0] for item in range(6)])) == 0


def test_counts_doubt_what_was_rated_seldom() -> None:
    dynamics = _toy()
    dynamics.support = np.array([0, 3, 8, 0, 0, 15], np.float32)
    dynamics.rating_spread = 0.5
    counts = dynamics.with_reward_model(reward_model("counts", dynamics, uncertainty=2.0))
    sure = [_told(dynamics, 0, [item])[0] for item in (0, 1, 2, 5)]
    told = [_told(counts, 0, [item])[0] for item in (0, 1, 2, 5)]
    np.testing.assert_allclose(np.subtract(sure, told), [1.0, 0.5, 1 / 3, 0.25], rtol=1e-5)


def _logged(sequences: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Train interactions in place of the toy's own: sequences of items, one for each user."""
    prepared = toy_prepared()
    order, train = np.zeros(18, np.int64), np.zeros(18, bool)
    for user, items in enumerate(sequences):
        for place, item in enumerate(items):
            train[user * 6 + item], order[user * 6 + item] = True, place
    interactions = dataclasses.replace(prepared.dataset.interactions, order=order)
    dataset = dataclasses.replace(prepared.dataset, interactions=interactions)
    return {"dataset": dataset, "train_rows": train, "test_rows": ~train}


def test_dorl_prefers_the_path_after_which_the_logs_go_on_in_many_ways() -> None:
    """After 0 always comes 1, after 3 each time another; both are worth 3 to user 2."""
    changes = _logged(((0, 1, 3, 4), (0, 1, 3, 5), (0, 1, 3, 2)))
    dynamics = _toy(**changes)
    model = reward_model("dorl", dynamics, entropy=2.0, order=1)
    dorl = dynamics.with_reward_model(model)
    np.testing.assert_allclose(_told(dorl, 2, [0, 3]), [3.0, 5.0], rtol=1e-6)
    pairs = reward_model("dorl", dynamics, entropy=2.0, order=2, unseen=0.5)
    told = _told(dynamics.with_reward_model(pairs), 2, [0, 1, 3])
    # {0} and {0, 1} go on in one way, {1, 3} in three; before the second item no pair is known
    np.testing.assert_allclose(told, [3 + 2 * 0.5, 3.0, 3 + 2 * 2.0], rtol=1e-6)


def test_dorl_takes_off_uncertainty_as_well() -> None:
    variances = np.full((3, 6), 1.0, np.float32)
    dynamics = _toy(variances=variances)
    told = dynamics.with_reward_model(
        reward_model("dorl", dynamics, uncertainty=2.0, entropy=1.0, order=1, unseen=0.5)
    )
    np.testing.assert_allclose(_told(told, 0, [3]), [2.0 - 2.0 * 0.5 + 0.5], rtol=1e-6)


def test_roler_corrects_a_wrong_model_towards_the_neighbours_ratings() -> None:
    """The model gives item 4 to all at 1.2; users 0 and 1 are alike and user 1 rated it 5."""
    means = REWARDS.copy()
    means[:, 4] = 1.2
    vectors = np.float32([[1, 0], [1, 0.1], [-1, 0]])
    dynamics = _toy(
        means,
        **_logged(((0,), (4,), (1,))),
        user_vectors=vectors,
        user_basis=np.zeros((6, 2), np.float32),
    )
    plain = {"entropy": 0.0, "uncertainty": 0.0, "weighted": False}
    roler = reward_model("roler", dynamics, neighbours=2, **plain)
    told = _told(dynamics.with_reward_model(roler), 0, [4])
    np.testing.assert_allclose(told, [(1.2 + 5.0) / 2], rtol=1e-5)
    opposite = reward_model("roler", dynamics, neighbours=2, entropy=0.0, uncertainty=0.0)
    told = _told(dynamics.with_reward_model(opposite), 2, [4])
    np.testing.assert_allclose(told, [1.2], rtol=1e-5)
    alone = reward_model("roler", dynamics, neighbours=1, **plain)
    np.testing.assert_allclose(_told(dynamics.with_reward_model(alone), 0, [4]), [1.2], rtol=1e-5)
    penalised = reward_model(
        "roler", dynamics, neighbours=2, entropy=0.0, weighted=False, uncertainty=1.0
    )
    cosine = 1 / math.sqrt(1.01)
    told = _told(dynamics.with_reward_model(penalised), 0, [4])
    np.testing.assert_allclose(told, [3.1 - (1 - (1 + cosine) / 2)], rtol=1e-5)
    varied = reward_model(
        "roler",
        dynamics,
        neighbours=2,
        entropy=0.0,
        weighted=False,
        uncertainty=0.5,
        penalty="variance",
    )
    told = _told(dynamics.with_reward_model(varied), 0, [4])
    np.testing.assert_allclose(told, [3.1 - 0.5 * 1.9**2], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(REWARD_MODELS))
def test_sessions_with_a_history_of_their_own(name: str, prepared: Prepared) -> None:
    """A known user who brings his own train history is told the same; an unknown one differs."""
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=20)
    told = dynamics.with_reward_model(reward_model(name, dynamics))
    history = dynamics.history_of(4)
    state = _started(told, [4, 4, 4])
    told.initial_from_history(state, np.array([1, 2]), [history, history], [4, -1])
    for item in (3, 8, 11):
        rewards = told.step(state, np.full(3, item)).rewards
        assert rewards.dtype == np.float32
        np.testing.assert_allclose(rewards[0], rewards[1], atol=0.2)  # the model kept rows aside
        assert np.isfinite(rewards).all()
    blank = _started(told, [4])
    told.initial_from_history(blank, np.array([0]), [[]], [-1])
    assert abs(float(told.step(blank, np.array([3])).rewards[0])) < 20


@pytest.mark.parametrize("name", sorted(REWARD_MODELS))
def test_rules_and_evaluation_never_see_them(name: str, prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules("similarity"), limit=20)
    model = reward_model(name, dynamics)
    told = dynamics.with_reward_model(model)
    assert told.fingerprint != dynamics.fingerprint
    one, other = _started(dynamics, [0, 1, 2]), _started(told, [0, 1, 2])
    for item in range(12):
        items = np.full(3, item)
        np.testing.assert_array_equal(dynamics.reward(one, items), told.reward(other, items))
        plain, changed = dynamics.step(one, items), told.step(other, items)
        np.testing.assert_array_equal(plain.ended_by, changed.ended_by)
    again = copy.deepcopy(model)
    np.testing.assert_array_equal(
        again(told, other, np.array([1, 2, 3])), model(told, other, np.array([1, 2, 3]))
    )


def test_the_name_tells_all_settings(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=20)
    assert reward_model("mbpo", dynamics).name == "mbpo"
    assert reward_model("mopo", dynamics, uncertainty=2.0).name == 'mopo {"uncertainty": 2.0}'
    names = {reward_model("dorl", dynamics, entropy=e).name for e in (0.5, 1.0)}
    assert len(names) == 2
    assert "dorl" in repr(reward_model("dorl", dynamics))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dorel", {}, "did you mean 'dorl'"),
        ("mopo", {"uncertain": 1}, "did you mean 'uncertainty'"),
        ("mopo", {"uncertainty": -1.0}, "expected 0 or more"),
        ("dorl", {"entropy": float("nan")}, "expected 0 or more"),
        ("mopo", {"uncertainty": float("inf")}, "uncertainty=inf came; expected 0 or more"),
        ("dorl", {"order": 5}, "expected 1 to 4"),
        ("dorl", {"unseen": 2.0}, "expected 0 to 1"),
        ("dorl", {"level": "items"}, "did you mean 'item'"),
        ("roler", {"neighbours": 0}, "expected 1 or more"),
        ("roler", {"penalty": "dist"}, "Known: distance, variance"),
    ],
)
def test_what_is_wrong_is_said(
    name: str, values: dict[str, Any], message: str, prepared: Prepared
) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=20)
    with pytest.raises(DataError, match=message):
        reward_model(name, dynamics, **values)


def test_categories_as_states(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=20)
    joined: Any = reward_model("dorl", dynamics, level="category")
    single: Any = reward_model("dorl", dynamics)
    assert joined.entropy.n_labels < single.entropy.n_labels == dynamics.n_items


def test_looking_up_sessions_does_not_go_through_the_logs() -> None:
    """Logs as large as Steam's, 2,000 users with 40 of 1,500 items each, and a tenth of them."""

    def seconds(users: int) -> float:
        rng = np.random.default_rng(0)
        logs = list(rng.integers(1500, size=(users, 40)))
        entropy = SuccessorEntropy.fit(logs, np.arange(1500))
        last = np.stack([logs[user][:2] for user in range(32)])
        taken = []
        for _ in range(30):
            started = time.perf_counter()
            entropy(last)
            taken.append(time.perf_counter() - started)
        return min(taken)

    assert seconds(2_000) < 4 * seconds(200)
