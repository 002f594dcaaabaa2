"""Trains where settings are chosen: on a pair of world models that both come from train rows.

    python benchmarks/validation_pair.py ILRec --dataset steam --data DIR --seed 102 \
        --steps 60000 --set buffer_size=20000

The rows that the train world model of the benchmarks is fitted on are split once more; the policy
learns on the model of one part and is judged on that of the other, 400 sessions each. Nothing of
the benchmarks' test rows is in either. Use seeds from 101 on: those of the tables are 0 to 4.
Demonstrations are those that the dataset carries, or 200 sessions of a scripted demonstrator: the
explorer, the rule-aware planner that shows a random item one time in fifty, or half of them
that planner's and half random ("mixed").
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import numpy as np
import numpy.typing as npt
import torch as th

from ilrec_sb3.baselines import make_model
from ilrec_sb3.evaluation import as_planner
from recsim_env import command_line as cl
from recsim_env.demonstrations import demonstrations
from recsim_env.dynamics import Dynamics, State
from recsim_env.planners import Planner, explorer, random_policy, rule_aware, run_episodes
from recsim_env.prepare import PrepareConfig, Prepared, Session, prepare
from recsim_env.simulator import Observer
from recsim_env.termination import make_rules
from recsim_env.trajectories import Trajectory


def validation_pair(name: str, data: str | None) -> Prepared:
    """Prepares the train rows of a dataset as a dataset of their own."""
    whole = prepare(name, root=data)
    table = whole.dataset.interactions
    columns = {
        field.name: column[whole.train_rows]
        for field in dataclasses.fields(table)
        if isinstance(column := getattr(table, field.name), np.ndarray)
    }
    part = dataclasses.replace(whole.dataset, interactions=dataclasses.replace(table, **columns))
    return prepare(part, root=data, config=PrepareConfig(seed=7))


def absent_minded(planner: Planner, share: float) -> Planner:
    """Returns a planner that shows an item at random now and then.

    Args:
        planner: What it does otherwise.
        share: Of its items, in [0, 1].
    """

    def act(
        dynamics: Dynamics, state: State, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        planned = np.asarray(planner(dynamics, state, generator))
        slips = generator.random(len(planned)) < share
        drawn = np.where(state.mask, generator.random(state.mask.shape), -1).argmax(axis=1)
        return np.where(slips, drawn, planned)

    return act


def scripted(name: str, dynamics: Dynamics) -> list[Trajectory]:
    """Returns the sessions of a scripted demonstrator."""
    careless = absent_minded(rule_aware(), 0.02)
    planners = {
        "explorer": [explorer()],
        "planner": [careless],
        "mixed": [careless, random_policy],
    }[name]
    sessions = []
    for number, planner in enumerate(planners):
        played = run_episodes(dynamics, planner, 200 // len(planners), 5 + number)
        sessions += [
            Session(user=int(user), history=(), actions=actions, source=name)
            for user, actions in zip(played.users, played.actions, strict=True)
        ]
    return dynamics.replay(sessions, observe=Observer(dynamics).flat)


def main() -> None:
    """Prints the returns on both models as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", help="as in `ilrec train --algorithm`")
    parser.add_argument("--dataset", default="steam")
    parser.add_argument("--data", help="folder with the raw data")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument(
        "--demonstrator", choices=["carried", "explorer", "planner", "mixed"], default="carried"
    )
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    settings = cl.json_pairs(arguments.settings, "--set")
    prepared = validation_pair(arguments.dataset, arguments.data)
    rules = make_rules(dataset=arguments.dataset)
    train, held_out = (Dynamics(prepared, split=s, rules=rules) for s in ("train", "test"))
    shown = (
        demonstrations(Observer(train), n_sessions=200, seed=0)
        if arguments.demonstrator == "carried"
        else scripted(arguments.demonstrator, train)
    )
    model = make_model(
        arguments.algorithm, train, seed=arguments.seed, demonstrations=shown, settings=settings
    )
    model.learn(arguments.steps)
    played = {
        name: run_episodes(dynamics, as_planner(model, train), 400, 77)
        for name, dynamics in (("trained on", train), ("held out", held_out))
    }
    returns = {name: round(float(episodes.returns.mean()), 2) for name, episodes in played.items()}
    said = {"dataset": arguments.dataset, "seed": arguments.seed, "steps": arguments.steps}
    said["demonstrations"] = round(float(np.mean([t.rewards.sum() for t in shown])), 1)
    print(json.dumps({"algorithm": arguments.algorithm, **said, "settings": settings, **returns}))


if __name__ == "__main__":
    main()
