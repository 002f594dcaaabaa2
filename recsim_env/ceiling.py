"""How much any policy can earn at most: a bound above the oracle, for the category rule.

The oracle of `recsim_env.planners` is myopic, so a policy may beat it. What no policy can beat
follows from the rule itself: before the item that ends it, a session holds each category at most
``max_repeats - 1`` times in a window, which makes it a packing of items under budgets. The packing
where items may also be shown in parts is a linear programme, and bounds it from above.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, vstack

from recsim_env.dynamics import Dynamics
from recsim_env.errors import DataError
from recsim_env.termination import CategoryDiversity, Repeat

__all__ = ["packing_bound", "return_bound"]

FloatArray = NDArray[np.float32]


def packing_bound(rewards: FloatArray, categories: FloatArray, budget: float, slots: int) -> float:
    r"""Bounds the reward of the best packing from above (linear relaxation).

    :math:`\max_x \sum_i r_i x_i` subject to :math:`0 \le x_i \le 1`,
    :math:`\sum_i a_{ic} x_i \le b` for each category c, and :math:`\sum_i x_i \le s`.

    Args:
        rewards: (n_items,) in stars.
        categories: (n_items, n_categories) multi-hot, a.
        budget: How often each category may come, b; infinite where that does not matter.
        slots: How many items may come, s.
    """
    if math.isinf(budget):
        return float(np.sort(rewards)[::-1][:slots].sum(dtype=np.float64))
    uses = vstack([csr_matrix(categories.T), csr_matrix(np.ones((1, len(rewards))))])
    budgets = np.append(np.full(categories.shape[1], budget), slots)
    solved = linprog(-rewards.astype(np.float64), A_ub=uses, b_ub=budgets, bounds=(0, 1))
    return -float(solved.fun)


def return_bound(dynamics: Dynamics, users: ArrayLike) -> FloatArray:
    """Returns (n,) float32, more than which no policy earns in a session of these users.

    Rules other than the category rule only shorten sessions, so the bound holds with them, but may
    be far; without a category rule it is the sum of the best ``limit`` items.

    Args:
        dynamics: Whose rewards and rules.
        users: (n,) indices of known users; each different one takes some milliseconds.

    Raises:
        DataError: Where items may be shown again, since each is counted once.
    """
    if not any(isinstance(rule, Repeat) for rule in dynamics.rules):
        raise DataError(
            "return_bound needs the rule Repeat, since it counts each item once; add Repeat() to "
            "the rules."
        )
    different, place = np.unique(dynamics.known_users(users), return_inverse=True)
    state = dynamics.allocate(len(different))
    dynamics.initial(state, np.arange(len(different)), different)
    budget = _budget(dynamics)
    bounds = np.empty(len(different), np.float32)
    for k, rewards in enumerate(dynamics.reward_table(state)):
        # the item that ends the session takes one slot of the limit, and may be any
        packed = packing_bound(rewards, dynamics.categories, budget, dynamics.limit - 1)
        bounds[k] = packed + rewards.max()
    return bounds[place.reshape(-1)]


def _budget(dynamics: Dynamics) -> float:
    """How often a category may come in a session before the item that ends it."""
    rules = [rule for rule in dynamics.rules if isinstance(rule, CategoryDiversity)]
    if not rules:
        return math.inf
    rule = rules[0]
    one_window = float(rule.max_repeats - 1)
    alike = np.ones(dynamics.n_items, np.float32)
    longest = packing_bound(alike, dynamics.categories, one_window, dynamics.limit)
    if longest < rule.window - 1e-6:  # no session fills a window, so nothing ever leaves it
        return one_window
    return one_window * math.ceil(dynamics.limit / rule.window)
