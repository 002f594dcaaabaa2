"""Batched session dynamics: windows, ends of sessions, starts, replays and observations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import CATEGORIES, HISTORIES, REWARDS, toy_prepared

from recsim_env import Dynamics, Prepared, Session
from recsim_env.dynamics import spread_within
from recsim_env.errors import DataError
from recsim_env.simulator import Observer
from recsim_env.termination import (
    CategoryDiversity,
    Repeat,
    RuleContext,
    Similarity,
    window_counts,
)

TOY = toy_prepared()
NAMES = ("a", "b", "c")


class EndsOn:
    """A rule of one's own: ends a session when a given item is shown."""

    def __init__(self, item: int, name: str) -> None:
        self.item, self.name = item, name

    def __call__(self, context: RuleContext) -> Any:
        return context.items == self.item


def _toy(*rules: Any, split: Any = "train", limit: int = 5) -> Dynamics:
    return Dynamics(TOY, split=split, rules=rules, limit=limit)


def _play(
    dynamics: Dynamics, items: list[int], user: int = 0
) -> list[tuple[float, bool, bool, str]]:
    state = dynamics.allocate(1)
    dynamics.initial(state, np.zeros(1, int), np.array([user]))
    result = []
    for item in items:
        out = dynamics.step(state, np.array([item]))
        ended_by = str(dynamics.ending_names[out.ended_by[0]])
        result.append(
            (float(out.rewards[0]), bool(out.terminated[0]), bool(out.truncated[0]), ended_by)
        )
    return result


@given(
    window=st.integers(1, 12),
    limit=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    restart=st.floats(0, 0.5),
)
@settings(max_examples=60, deadline=None)
def test_kept_counts_are_those_of_a_slow_reference(
    window: int, limit: int, seed: int, restart: float
) -> None:
    """Counts over the last N - 1 items, for windows longer and shorter than the session, and 1."""
    rng = np.random.default_rng(seed)
    dynamics = _toy(CategoryDiversity(window, window), limit=limit)
    state = dynamics.allocate(3)
    dynamics.initial(state, np.arange(3), np.arange(3))
    sessions: list[list[int]] = [[], [], []]
    for _ in range(2 * limit):
        items = rng.integers(6, size=3)
        dynamics.step(state, items)
        for row, item in enumerate(items.tolist()):
            sessions[row].append(item)
            if len(sessions[row]) == limit or rng.random() < restart:
                dynamics.initial(state, np.array([row]), np.array([row]))
                sessions[row] = []
        expected = np.zeros((3, 3))
        for row, session in enumerate(sessions):
            t = len(session)
            recent = session[max(0, t - (window - 1)) : t] if window > 1 else []
            seen = Counter(name for item in recent for name in CATEGORIES[item])
            expected[row] = [seen[name] for name in NAMES]
        np.testing.assert_array_equal(state.counts, expected)
        scratch = window_counts(state.shown, state.steps, window - 1, dynamics.categories)
        np.testing.assert_array_equal(state.counts, scratch)
        assert state.steps.tolist() == [len(session) for session in sessions]
        for row, session in enumerate(sessions):
            assert state.mask[row].tolist() == [item not in session for item in range(6)]


def test_spread_within_items_by_hand() -> None:
    items, ratings = np.array([0, 0, 2, 2, 2, 5]), np.array([1, 3, 2, 3, 4, 5], np.float32)
    # squares (1 + 1) + (1 + 0 + 1) of 6 ratings with 3 means
    assert spread_within(items, ratings) == pytest.approx(np.sqrt(4 / 3))
    assert spread_within(np.array([0, 1]), np.array([1.0, 3.0], np.float32)) == 1.0
    assert spread_within(np.zeros(0, int), np.zeros(0, np.float32)) == 0.0


def test_a_session_by_hand() -> None:
    """Rewards, the paper's rule (window 3, twice) and the last item's own reward."""
    assert _play(_toy(CategoryDiversity(3, 2), Repeat()), [0, 1, 3, 2, 0]) == [
        (5.0, False, False, ""),
        (4.0, False, False, ""),
        (2.0, False, False, ""),
        (3.0, True, False, "category"),  # b of items 1 and 2
        (5.0, True, False, "category"),  # and a repeat as well: the first rule is named
    ]


def test_the_limit_truncates_and_rules_terminate() -> None:
    none = _play(_toy(limit=3), [0, 0, 0])
    assert [step[1:] for step in none] == [
        (False, False, ""),
        (False, False, ""),
        (False, True, "limit"),
    ]
    both = _play(_toy(EndsOn(4, "eel"), limit=2), [0, 4])
    assert both[1][1:] == (True, False, "eel")
    assert _play(_toy(limit=1), [0]) == [(5.0, False, True, "limit")]


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_the_first_rule_that_fires_is_named(order: tuple[str, str]) -> None:
    rules = {"one": EndsOn(1, "one"), "two": EndsOn(1, "two"), "x": EndsOn(3, "x")}
    dynamics = _toy(rules["x"], *(rules[name] for name in order))
    assert _play(dynamics, [1])[0][1:] == (True, False, order[0])
    assert _play(dynamics, [0])[0][1:] == (False, False, "")


def test_each_session_of_a_batch_ends_by_its_own_rule() -> None:
    dynamics = _toy(EndsOn(1, "bee"), Repeat(), limit=2)
    state = dynamics.allocate(4)
    dynamics.initial(state, np.arange(4), np.array([0, 1, 2, 0]))
    dynamics.step(state, np.array([0, 0, 0, 0]))
    out = dynamics.step(state, np.array([1, 0, 2, 3]))
    assert dynamics.ending_names[out.ended_by].tolist() == ["bee", "repeat", "limit", "limit"]
    assert out.terminated.tolist() == [True, True, False, False]
    assert out.truncated.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(out.rewards, [4.0, 1.0, 3.0, 2.0])


def test_a_rule_sees_the_session_before_the_item() -> None:
    seen: list[tuple[list[int], int, float]] = []

    class Spy:
        name = "spy"

        def __call__(self, context: RuleContext) -> Any:
            before = context.shown[0, : context.steps[0]].tolist()
            seen.append((before, int(context.items[0]), float(context.rewards[0])))
            return np.zeros(1, bool)

    _play(_toy(Spy()), [3, 1, 3])
    assert seen == [([], 3, 2.0), ([3], 1, 4.0), ([3, 1], 3, 2.0)]


@pytest.mark.parametrize("answer", [np.zeros(2, bool), np.zeros(1, int)])
def test_a_rule_that_answers_wrongly_is_told(answer: Any) -> None:
    class Wrong:
        name = "wrong"

        def __call__(self, context: RuleContext) -> Any:
            del context
            return answer

    with pytest.raises(
        DataError, match=r"rule 'wrong' gave .* one bool for each of the 1 sessions"
    ):
        _play(_toy(Wrong()), [0])


def test_splits_differ_in_rewards_and_not_in_observations() -> None:
    train, test = _toy(split="train"), _toy(split="test")
    states = [dynamics.allocate(1) for dynamics in (train, test)]
    for dynamics, state in zip((train, test), states, strict=True):
        dynamics.initial(state, np.zeros(1, int), np.array([1]))
    for item in (4, 0, 2):
        outs = [
            dynamics.step(state, np.array([item]))
            for dynamics, state in zip((train, test), states, strict=True)
        ]
        assert outs[0].rewards[0] == REWARDS[1, item]
        assert outs[1].rewards[0] == 6 - REWARDS[1, item]
        np.testing.assert_array_equal(train.observe(states[0]), test.observe(states[1]))


def test_splits_of_learned_models_differ_too(prepared: Prepared) -> None:
    dynamics = [Dynamics(prepared, split=split, rules=()) for split in ("train", "test")]
    states = [each.allocate(5) for each in dynamics]
    rewards = []
    for each, state in zip(dynamics, states, strict=True):
        each.initial(state, np.arange(5), np.arange(5))
        rewards.append(each.step(state, np.arange(5)).rewards)
    assert np.abs(rewards[0] - rewards[1]).max() > 0.01
    np.testing.assert_array_equal(dynamics[0].observe(states[0]), dynamics[1].observe(states[1]))


def test_an_observation_by_hand() -> None:
    dynamics = _toy(CategoryDiversity(3, 2), limit=5)
    state = dynamics.allocate(1)
    dynamics.initial(state, np.zeros(1, int), np.array([1]))
    for item in (0, 2, 3):
        dynamics.step(state, np.array([item]))
    observation = dynamics.observe(state)[0]
    layout = dynamics.layout
    assert layout.size == len(observation) == 1 + 6 + 3 + 1
    assert observation[layout.tracker].tolist() == [sum(i + 1 for i in (*HISTORIES[1], 0, 2, 3))]
    np.testing.assert_allclose(
        dynamics.item_context.user_basis @ observation[layout.user], REWARDS[1]
    )
    assert observation[layout.categories].tolist() == [0.5, 0.5, 0.5]  # items 2 and 3
    assert observation[layout.step].tolist() == [np.float32(0.6)]
    assert layout.count_scale == 2.0


def test_the_tracker_follows_history_and_session(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=())
    state = dynamics.allocate(2)
    dynamics.initial(state, np.arange(2), np.array([7, 3]))
    shown = np.array([[5, 1], [0, 2], [5, 5]])
    for items in shown:
        dynamics.step(state, items)
    whole = [
        np.concatenate([dynamics.history_of(user), shown[:, row]])
        for row, user in enumerate((7, 3))
    ]
    expected = prepared.tracker.output(prepared.tracker.initial(whole))
    observed = dynamics.observe(state)[:, dynamics.layout.tracker]
    np.testing.assert_allclose(observed, expected, atol=1e-5)


def test_sessions_start_from_users_and_histories() -> None:
    dynamics = _toy(EndsOn(5, "fox"))
    state = dynamics.allocate(3)
    dynamics.initial(state, np.array([0]), np.array([2]))
    dynamics.initial_from_history(state, np.array([1, 2]), [[4, 4], []], [-1, 1])
    assert state.users.tolist() == [2, -1, 1]
    tracker = dynamics.observe(state)[:, dynamics.layout.tracker]
    assert tracker[:, 0].tolist() == [3.0 + 6.0, 10.0, 0.0]
    out = dynamics.step(state, np.array([3, 3, 3]))
    assert out.rewards.tolist() == [3.0, 2.0, 1.0]  # the toy model: 1 + half the history's length
    assert dynamics.reward_table(state)[:, 5].tolist() == [3.0, 2.0, 1.0]
    dynamics.initial(state, np.array([1]), np.array([0]))
    assert dynamics.reward(state, np.zeros(3, int)).tolist() == [3.0, 5.0, 1.0]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda d, s: d.initial_from_history(s, np.array([0]), [[6]], [-1]), "holds the item 6"),
        (lambda d, s: d.initial_from_history(s, np.array([0]), [[-1]], [-1]), "holds the item -1"),
        (lambda d, s: d.initial_from_history(s, np.array([0]), [[0.5]], [-1]), "flat list of item"),
        (lambda d, s: d.initial_from_history(s, np.array([0]), [[0]], [3]), "user 3 came"),
        (lambda d, s: d.initial_from_history(s, np.array([0]), [[0]], [-2]), "user -2 came"),
        (lambda d, s: d.known_users([-1]), "without a history"),  # noqa: ARG005
        (lambda d, s: d.known_users(["p"]), "give user indices"),  # noqa: ARG005
        (lambda d, s: d.known_users([0.5]), "give user indices"),  # noqa: ARG005
        (lambda d, s: Dynamics(TOY, split="dev", rules=()), "split='dev'"),  # noqa: ARG005
        (lambda d, s: Dynamics(TOY, split="test", rules=(), limit=0), "limit=0"),  # noqa: ARG005
    ],
)
def test_bad_input_is_told_in_one_sentence(start: Any, message: str) -> None:
    dynamics = _toy()
    with pytest.raises(DataError, match=message) as caught:
        start(dynamics, dynamics.allocate(1))
    assert "\n" not in str(caught.value)


def test_a_state_as_arrays_comes_back() -> None:
    dynamics = _toy(CategoryDiversity(3, 2))
    state = dynamics.allocate(3)
    dynamics.initial(state, np.arange(3), np.array([0, 1, 2]))
    dynamics.initial_from_history(state, np.array([2, 0]), [[4, 5], []], [-1, 2])
    dynamics.step(state, np.array([0, 1, 2]))
    arrays = dynamics.state_arrays(state)
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
    again = dynamics.state_from_arrays(arrays)
    dynamics.step(state, np.array([3, 3, 3]))  # the copy must not move with it
    dynamics.step(again, np.array([3, 3, 3]))
    np.testing.assert_array_equal(dynamics.observe(again), dynamics.observe(state))
    np.testing.assert_array_equal(dynamics.reward_table(again), dynamics.reward_table(state))
    for mine, theirs in zip(state.histories, again.histories, strict=True):
        assert (mine is None) == (theirs is None)
        np.testing.assert_array_equal(
            () if mine is None else mine, () if theirs is None else theirs
        )


def test_a_replay_is_cut_where_a_rule_or_the_limit_ends_it() -> None:
    dynamics = _toy(EndsOn(4, "eel"), Repeat(), limit=3)
    by_rule, by_limit, ran_out, one = dynamics.replay(
        [
            Session(0, (), (0, 4, 1), "x", {"thought": ["p", "q", "r"], "run": "z"}),
            Session(0, (), (0, 1, 2, 3), "x"),
            Session(0, (), (0, 1), "x"),
            Session(0, (), (), "x"),  # without an action there is no trajectory
            Session(1, (), (4,), "x"),
        ]
    )
    assert by_rule.actions.tolist() == [0, 4]
    assert by_rule.rewards.tolist() == [5.0, 1.0]
    assert (by_rule.terminated, by_rule.truncated) == (True, False)
    assert by_rule.extras == {"thought": ["p", "q"]}
    assert by_rule.observations.shape == (3, dynamics.layout.size)
    assert by_limit.actions.tolist() == [0, 1, 2]
    assert (by_limit.terminated, by_limit.truncated) == (False, True)
    assert ran_out.actions.tolist() == [0, 1]
    assert (ran_out.terminated, ran_out.truncated) == (False, True)
    assert (one.terminated, one.rewards.tolist(), one.user) == (True, [5.0], 1)


def test_a_replay_starts_from_the_recorded_history() -> None:
    known, unknown, cold, other = _toy().replay(
        [
            Session(0, (), (3,), ""),
            Session(-1, (4, 4), (3,), ""),
            Session(-1, (), (3,), ""),
            Session(0, (4,), (3,), ""),
        ]
    )
    sums = [trajectory.observations[0, 0] for trajectory in (known, unknown, cold, other)]
    assert sums == [3.0, 10.0, 0.0, 5.0]
    rewards = [float(t.rewards[0]) for t in (known, unknown, cold, other)]
    assert rewards == [2.0, 2.0, 1.0, 1.5]
    assert unknown.history == (4, 4)


def test_a_replay_equals_stepping_by_hand_whatever_its_batches(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="test", rules=(CategoryDiversity(6, 3), Repeat()), limit=8)
    rng = np.random.default_rng(0)
    sessions = [
        Session(
            user=int(rng.integers(-1, 60)),
            history=tuple(rng.integers(40, size=rng.integers(0, 4)).tolist()),
            actions=tuple(rng.integers(40, size=rng.integers(1, 12)).tolist()),
            source="test",
        )
        for _ in range(30)
    ]
    batched = dynamics.replay(sessions)
    for chunk in (1, 7):
        for mine, theirs in zip(batched, dynamics.replay(sessions, chunk=chunk), strict=True):
            np.testing.assert_array_equal(mine.actions, theirs.actions)
            np.testing.assert_array_equal(mine.action_masks, theirs.action_masks)
            np.testing.assert_allclose(mine.rewards, theirs.rewards, atol=1e-5)
            np.testing.assert_allclose(mine.observations, theirs.observations, atol=1e-4)
            assert (mine.terminated, mine.truncated) == (theirs.terminated, theirs.truncated)
    for session, trajectory in zip(sessions, batched, strict=True):
        state, row = dynamics.allocate(1), np.zeros(1, int)
        if session.user >= 0 and not session.history:
            dynamics.initial(state, row, np.array([session.user]))
        else:
            dynamics.initial_from_history(state, row, [session.history], [session.user])
        done = False
        for t, item in enumerate(session.actions):
            assert not done
            packed = np.packbits(state.mask, axis=1)[0]
            np.testing.assert_array_equal(trajectory.action_masks[t], packed)
            np.testing.assert_allclose(
                trajectory.observations[t], dynamics.observe(state)[0], atol=1e-4
            )
            out = dynamics.step(state, np.array([item]))
            np.testing.assert_allclose(trajectory.rewards[t], out.rewards[0], atol=1e-5)
            if out.ended_by[0]:
                break
        assert len(trajectory) == t + 1
        assert trajectory.terminated == bool(out.terminated[0])


def test_observation_forms_agree() -> None:
    dynamics = _toy(CategoryDiversity(3, 2))
    vector, named = Observer(dynamics, "vector"), Observer(dynamics, "dict")
    state = dynamics.allocate(2)
    dynamics.initial(state, np.arange(2), np.array([1, 2]))
    dynamics.step(state, np.array([0, 5]))
    flat, parts = vector(state), named(state)
    assert list(parts) == ["tracker", "user", "categories", "step"]
    np.testing.assert_array_equal(np.concatenate(list(parts.values()), axis=1), flat)
    np.testing.assert_array_equal(vector.flat(state), flat)
    np.testing.assert_array_equal(named.flat(state), flat)
    for k in range(2):
        assert vector.space.contains(flat[k])
        assert named.space.contains({name: values[k] for name, values in parts.items()})


def test_sequences_by_hand() -> None:
    dynamics = _toy()
    observer = Observer(dynamics, "sequence", length=4)
    state = dynamics.allocate(3)
    dynamics.initial(state, np.array([0, 1]), np.array([0, 1]))
    dynamics.initial_from_history(state, np.array([2]), [[5, 4, 3, 2, 1]], [-1])
    assert observer(state).tolist() == [[6, 6, 0, 1], [6, 6, 3, 4], [4, 3, 2, 1]]
    for items in ([2, 2, 2], [3, 0, 3], [3, 0, 3]):
        dynamics.step(state, np.array(items))
    assert observer(state).tolist() == [[1, 2, 3, 3], [4, 2, 0, 0], [1, 2, 3, 3]]
    for items in ([4, 5, 4], [5, 5, 5]):
        dynamics.step(state, np.array(items))
    assert observer(state).tolist() == [[3, 3, 4, 5], [0, 0, 5, 5], [3, 3, 4, 5]]
    assert observer.space.contains(observer(state)[0])
    assert observer.flat(state).dtype == np.float32


def test_an_unknown_observation_form_is_told() -> None:
    with pytest.raises(DataError, match="did you mean 'vector'"):
        Observer(_toy(), "vectors")  # type: ignore[arg-type]


def test_a_session_is_cut_when_the_whole_catalogue_was_shown(prepared: Prepared) -> None:
    dynamics = Dynamics(prepared, split="train", rules=[Repeat()], limit=100)
    state = dynamics.allocate(2)
    dynamics.initial(state, np.arange(2), np.array([0, 1]))
    for item in range(dynamics.n_items):
        outcome = dynamics.step(state, np.array([item, item]))
    assert dynamics.n_items < 100
    assert outcome.truncated.all()
    assert not outcome.terminated.any()


def test_a_table_takes_the_place_of_the_world_models_rewards() -> None:
    table = np.full((3, 6), 2.5, np.float32)
    table[1, 4] = 4.5
    dynamics = Dynamics(TOY, split="test", rules=(), limit=5, table=table)
    assert _play(dynamics, [4, 3], user=1) == [(4.5, False, False, ""), (2.5, False, False, "")]
    with pytest.raises(
        DataError, match=r"\(3, 5\) came, expected finite numbers of shape \(3, 6\)"
    ):
        Dynamics(TOY, split="test", rules=(), table=table[:, :5])


def test_with_repeats_no_item_is_masked() -> None:
    dynamics = Dynamics(TOY, split="train", rules=(), limit=5, repeats=True)
    state = dynamics.allocate(1)
    dynamics.initial(state, np.zeros(1, int), np.array([0]))
    dynamics.step(state, np.array([2]))
    assert state.mask.all()


class Halved:
    """A reward model: half the reward, plus the number of items shown before."""

    name = "halved"

    def __call__(self, dynamics: Dynamics, state: Any, items: Any) -> Any:
        return (dynamics.reward(state, items) / 2 + state.steps).astype(np.float32)


def test_a_reward_model_says_what_was_earned_and_rules_go_by_the_reward() -> None:
    class Bored:
        name = "bored"

        def __call__(self, context: RuleContext) -> Any:
            return context.rewards < 2.0

    plain = _toy(Bored())
    dynamics = plain.with_reward_model(Halved())
    # user 0 rewards: 5, 4, 3, 2, 1
    assert _play(dynamics, [1, 0, 4]) == [
        (2.0, False, False, ""),
        (3.5, False, False, ""),
        (2.5, True, False, "bored"),
    ]
    assert _play(plain, [1]) == [(4.0, False, False, "")]
    assert dynamics.fingerprint != plain.fingerprint


def test_fingerprints_tell_what_differs() -> None:
    base = _toy(CategoryDiversity(5, 2))
    table = np.full((3, 6), 2.5, np.float32)
    others = [
        _toy(CategoryDiversity(5, 3)),
        _toy(CategoryDiversity(5, 2), Repeat()),
        _toy(CategoryDiversity(5, 2), split="test"),
        _toy(CategoryDiversity(5, 2), limit=6),
        Dynamics(TOY, split="train", rules=base.rules, limit=5, table=table),
        Dynamics(TOY, split="train", rules=base.rules, limit=5, table=table + 1),
        Dynamics(TOY, split="train", rules=base.rules, limit=5, repeats=True),
        Dynamics(replace(TOY, contents="other"), split="train", rules=base.rules, limit=5),
    ]
    found = {base.fingerprint, *(other.fingerprint for other in others)}
    assert len(found) == 1 + len(others)
    assert _toy(CategoryDiversity(5, 2)).fingerprint == base.fingerprint


def test_whether_the_history_matters_is_up_to_rules_and_reward_model() -> None:
    class LooksBack:
        name = "looks back"

        def __call__(self, context: RuleContext) -> np.ndarray:
            return context.steps >= 3

    told = [CategoryDiversity(5, 2), Repeat()]
    prepared = toy_prepared()
    assert not Dynamics(prepared, split="train", rules=told).item_context.history_matters
    assert not Dynamics(prepared, split="train", rules=[]).item_context.history_matters
    assert Dynamics(
        prepared, split="train", rules=[*told, LooksBack()]
    ).item_context.history_matters
    assert Dynamics(prepared, split="train", rules=[Similarity()]).item_context.history_matters

    class Ones:
        name = "ones"

        def __call__(self, *shown: Any) -> np.ndarray:
            return np.ones(len(shown[-1]), np.float32)

    plain = Dynamics(prepared, split="train", rules=told)
    assert plain.with_reward_model(Ones()).item_context.history_matters
