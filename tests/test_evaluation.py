from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from ilrec_sb3.baselines import make_model
from ilrec_sb3.evaluation import (
    Summary,
    as_planner,
    bootstrap_interval,
    can_play,
    replay_sessions,
    summarise,
    summarise_seeds,
    takes_masks,
    takes_shown_away,
)
from ilrec_sb3.report import Row, table_markdown
from ilrec_sb3.training import evaluate_models
from recsim_env import DataError, Dynamics, Prepared
from recsim_env.demonstrations import demonstrations
from recsim_env.planners import Episodes, run_episodes
from recsim_env.prepare import Session
from recsim_env.simulator import Observer
from recsim_env.termination import make_rules


class Scripted:
    """Recommends the first allowed item; without masks always the first."""

    def __init__(self, dynamics: Dynamics, mode: Any = "vector") -> None:
        self.observation_space = Observer(dynamics, mode).space
        self.action_space = spaces.Discrete(dynamics.n_items)
        self.seen: list[Any] = []

    def predict(self, observation: Any, *, deterministic: bool = False) -> tuple[Any, None]:
        self.seen.append(observation)
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        if not deterministic:
            th.rand(3)
        return np.zeros(len(first), np.int64), None


class Masked(Scripted):
    def predict(  # type: ignore[override]
        self, observation: Any, *, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[Any, None]:
        super().predict(observation, deterministic=deterministic)
        return action_masks.argmax(axis=1), None


def _played(lengths: list[int], returns: list[float], ended_by: list[str]) -> Episodes:
    return Episodes(
        users=np.zeros(len(lengths), np.int64),
        lengths=np.array(lengths, np.int64),
        returns=np.array(returns, np.float32),
        ended_by=tuple(ended_by),
        actions=tuple(() for _ in lengths),
    )


def test_summary_of_hand_written_sessions() -> None:
    found = summarise(_played([2, 4], [6.0, 15.0], ["category", "end of record"]))
    assert found.cut == 0.5
    assert found.length == 3.0
    assert found.per_step == pytest.approx(21 / 6)
    assert found.mean_return == pytest.approx(10.5)
    assert found.low == 6.0
    assert found.high == 15.0
    with pytest.raises(DataError, match="at least one"):
        summarise(_played([], [], []))


def test_bootstrap_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert bootstrap_interval(values) == (low, high)


def test_several_seeds_become_medians_and_range() -> None:
    one = Summary(10, 5.0, 3.0, 15.0, 14.0, 16.0)
    parts = [one, Summary(10, 7.0, 4.0, 28.0, 27.0, 29.0), Summary(10, 6.0, 2.0, 12.0, 11.0, 13.0)]
    found = summarise_seeds(parts)
    assert (found.length, found.per_step, found.mean_return) == (6.0, 3.0, 15.0)
    assert (found.low, found.high, found.seeds) == (12.0, 28.0, 3)
    assert summarise_seeds([one]) is one


def test_masks_go_to_models_that_take_them(dynamics: Dynamics) -> None:
    plain, masked = Scripted(dynamics), Masked(dynamics)
    assert not takes_masks(plain)
    assert takes_masks(masked)
    stuck = run_episodes(dynamics, as_planner(plain, dynamics), 4, seed=0)
    assert set(stuck.lengths.tolist()) == {2}
    assert set(stuck.ended_by) == {"repeat"}
    free = run_episodes(dynamics, as_planner(masked, dynamics), 4, seed=0)
    assert "repeat" not in free.ended_by
    assert free.actions[0][:3] == (0, 1, 2)


PLAIN = ("sb3:DQN", "DoubleDQN", "contrib:QRDQN", "sb3:A2C", "sb3:PPO", "contrib:TRPO")


def _repeated(played: Episodes) -> int:
    return sum(len(set(items)) < len(items) for items in played.actions)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_models_without_masks_repeat_nothing_where_the_environment_takes_it_away(
    prepared: Prepared, dynamics: Dynamics, name: str, deterministic: bool
) -> None:
    taken = Dynamics(prepared, split="test", rules=(), limit=40)  # as many as there are items
    kept = Dynamics(prepared, split="test", rules=(), limit=40, repeats=True)
    assert takes_shown_away(taken)
    assert not takes_shown_away(kept)
    assert not takes_shown_away(dynamics)  # a repeat ends its sessions instead
    model: Any = make_model(name, dynamics, seed=0)
    assert not takes_masks(model)
    assert can_play(model, taken)
    if name != "sb3:DQN" or deterministic:  # untrained, DQN draws anything at all
        free = run_episodes(kept, as_planner(model, kept, deterministic=deterministic), 4, seed=0)
        assert _repeated(free) == 4
    planner = as_planner(model, taken, deterministic=deterministic)
    played = run_episodes(taken, planner, 4, seed=0)
    assert played.lengths.tolist() == [40] * 4
    assert _repeated(played) == 0
    again = run_episodes(taken, planner, 4, seed=0)
    assert played.actions == again.actions
    drawn = not deterministic and name in ("sb3:A2C", "sb3:PPO", "contrib:TRPO")
    assert (played.actions != run_episodes(taken, planner, 4, seed=1).actions) or not drawn


def test_the_first_item_of_a_plain_model_is_its_own_choice(
    prepared: Prepared, dynamics: Dynamics
) -> None:
    taken = Dynamics(prepared, split="test", rules=(), limit=1)
    kept = Dynamics(prepared, split="test", rules=(), limit=1, repeats=True)
    for name in PLAIN:
        model: Any = make_model(name, dynamics, seed=0)
        masked, free = (
            run_episodes(where, as_planner(model, where), 30, seed=0) for where in (taken, kept)
        )
        assert masked.actions == free.actions, name


def test_draws_among_allowed_items_follow_the_actors_distribution(
    prepared: Prepared, dynamics: Dynamics
) -> None:
    taken = Dynamics(prepared, split="test", rules=(), limit=2)
    model: Any = make_model("sb3:A2C", dynamics, seed=0)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.fill_(-50.0)
        model.policy.action_net.bias[:3] = th.log(th.tensor([0.5, 0.3, 0.2]))
    planner = as_planner(model, taken, deterministic=False)
    pairs = np.array(run_episodes(taken, planner, 4_000, seed=0).actions)
    assert pairs.max() == 2
    np.testing.assert_allclose(np.bincount(pairs[:, 0]) / 4_000, [0.5, 0.3, 0.2], atol=0.03)
    after_first = pairs[pairs[:, 0] == 0, 1]
    np.testing.assert_allclose(np.mean(after_first == 1), 0.6, atol=0.04)


def test_a_model_that_cannot_be_kept_to_new_items_is_refused_there(
    prepared: Prepared, dynamics: Dynamics
) -> None:
    taken = Dynamics(prepared, split="test", rules=(), limit=5)
    model: Any = make_model("contrib:ARS", dynamics, seed=0)
    assert can_play(model, dynamics)
    assert not can_play(model, taken)
    with pytest.raises(DataError, match="takes shown items away"):
        as_planner(model, taken)
    assert can_play(Masked(taken), taken)


@pytest.mark.parametrize("mode", ["vector", "dict", "sequence"])
def test_observations_are_of_the_models_mode(dynamics: Dynamics, mode: Any) -> None:
    model = Scripted(dynamics, mode)
    run_episodes(dynamics, as_planner(model, dynamics), 3, seed=0)
    first = model.seen[0]
    if mode == "dict":
        assert set(first) == set(dynamics.layout.parts())
    else:
        assert first.shape[1:] == model.observation_space.shape
        assert first.dtype == model.observation_space.dtype


def test_a_model_of_another_catalogue_is_refused(dynamics: Dynamics) -> None:
    model = Scripted(dynamics)
    model.action_space = spaces.Discrete(7)
    with pytest.raises(DataError, match="7 items came for a dataset of 40"):
        as_planner(model, dynamics)
    other = Scripted(dynamics)
    other.observation_space = spaces.Box(0, 1, (3,), np.float32)
    with pytest.raises(DataError, match="observations of shape"):
        as_planner(other, dynamics)


def test_evaluating_leaves_the_random_state_alone(dynamics: Dynamics) -> None:
    before = th.get_rng_state()
    model = Scripted(dynamics)
    run_episodes(dynamics, as_planner(model, dynamics, deterministic=False), 3, seed=0)
    assert th.equal(before, th.get_rng_state())


def test_drawn_sessions_repeat_with_the_seed(dynamics: Dynamics) -> None:
    model: Any = make_model("A2C", dynamics, seed=0)
    planner = as_planner(model, dynamics, deterministic=False)
    first, again = (run_episodes(dynamics, planner, 20, seed=5) for _ in range(2))
    assert first.actions == again.actions
    assert first.actions != run_episodes(dynamics, planner, 20, seed=6).actions


def test_demonstrations_are_judged_by_the_other_world_model(
    prepared: Prepared, dynamics: Dynamics
) -> None:
    shown = demonstrations(Observer(dynamics), n_sessions=12, seed=0)
    same = replay_sessions(dynamics, shown)
    np.testing.assert_allclose(same.returns, [t.rewards.sum() for t in shown], rtol=1e-6)
    test = Dynamics(prepared, split="test", rules=make_rules())
    judged = replay_sessions(test, shown)
    assert judged.lengths.tolist() == same.lengths.tolist()
    assert not np.allclose(judged.returns, same.returns)


def test_replayed_sessions_are_cut_before_a_repeat_where_it_is_taken_away(
    prepared: Prepared,
) -> None:
    where = {
        repeats: Dynamics(prepared, split="test", rules=(), limit=10, repeats=repeats)
        for repeats in (False, True)
    }
    session = Session(user=0, history=(), actions=(4, 5, 6, 5, 7), source="x")
    shown = where[True].replay([session])
    assert replay_sessions(where[True], shown).actions == ((4, 5, 6, 5, 7),)
    played = replay_sessions(where[False], shown)
    assert (played.actions, played.ended_by) == (((4, 5, 6),), ("end of record",))


def _row(policy: str, rate: float, trained: bool = False, **columns: str) -> Row:
    return Row(policy, Summary(10, 4.0, 3.0, 12.0, 11.0, 13.0), rate, 2.0, trained, columns)


def test_further_columns_come_with_the_latency_of_everyone() -> None:
    rows = [
        _row("random", 4_000.0),
        _row("A2C", 100.0, trained=True),
        _row("agent | one", 0.25, calls="1,234", cost="", latency="4.1 s"),
        _row("slow", 0.5, cost="$0.12"),
    ]
    lines = table_markdown(rows, "toy").splitlines()
    assert lines[0].endswith("| wall time | calls | cost | latency |")
    assert lines[2].endswith("| 4,000 | 2 s | – | – | 0.25 ms |")
    assert lines[3].endswith("| 100 | 2 s | – | – | – |")
    assert lines[4].startswith("| agent \\| one |")
    assert lines[4].endswith("| 0.25 | 2 s | 1,234 | – | 4.1 s |")
    assert lines[5].endswith("| 0.5 | 2 s | – | $0.12 | 2.0 s |")
    assert "Latency, of one recommendation" in lines[-1]


def test_latency_is_added_last_and_not_without_further_columns() -> None:
    rows = [_row("agent", 20.0, cost="$1"), _row("random", 20.0), _row("slow", 1.6)]
    table = table_markdown(rows, "toy")
    assert table.splitlines()[0].endswith("| cost | latency |")
    assert table.splitlines()[3].endswith("| – | 50 ms |")
    assert table.splitlines()[4].endswith("| – | 625 ms |")
    assert "atency" not in table_markdown([_row("random", 20.0)], "toy")


def test_the_caption_names_who_played_fewer_sessions() -> None:
    short = Row("agent", Summary(4, 4.0, 3.0, 12.0, 11.0, 13.0), 1.0, 2.0, trained=False)
    table = table_markdown([_row("random", 20.0), short], "toy")
    assert "10 sessions on the test world model" in table
    assert "(agent: the first 4 of them)" in table


def test_somebody_has_to_play() -> None:
    with pytest.raises(DataError, match="Neither a model nor a player came"):
        evaluate_models(None)
