"""How near the oracle comes to what no policy can exceed under the category rule.

    python benchmarks/return_bound.py --data DIR

Plays the oracle on the test world models and solves one linear programme per drawn user.
"""

from __future__ import annotations

import argparse
import sys

from ilrec_sb3.experiment import best_tag_price
from recsim_env.ceiling import return_bound
from recsim_env.planners import oracle, run_episodes
from recsim_env.simulator import make_dynamics


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with the raw data")
    parser.add_argument("--datasets", nargs="+", default=["steam", "amazon", "movielens"])
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lines = ["| dataset | oracle | bound | share |", "|---|---:|---:|---:|"]
    for name in arguments.datasets:
        dynamics = make_dynamics(name, split="test", data=arguments.data)
        player = oracle(best_tag_price(dynamics, oracle))
        played = run_episodes(dynamics, player, arguments.episodes, arguments.seed)
        bound = float(return_bound(dynamics, played.users).mean())
        reached = float(played.returns.mean())
        lines.append(f"| {name} | {reached:.1f} | {bound:.1f} | {reached / bound:.1%} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
