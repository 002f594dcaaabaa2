"""Where a training stands between two steps, as arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

__all__ = ["restored", "tuning_state"]

Losses = dict[str, list[float]]


def tuning_state(
    weights: Sequence[th.nn.Parameter],
    optimiser: th.optim.Optimizer,
    rng: np.random.Generator | None = None,
    losses: Losses | None = None,
) -> dict[str, NDArray[Any]]:
    """Returns what a training needs to go on as if it had never stopped.

    On a GPU the dropout after a stop is another one, since the state of its random numbers stays
    behind.

    Args:
        weights: What is trained.
        optimiser: Of these weights, after at least one step.
        rng: Of order and sampled items; None where the caller sees to that.
        losses: By name, one number for each pass made.
    """
    arrays = {"random/torch": th.get_rng_state().numpy().copy(), "losses": _text(losses or {})}
    if rng is not None:
        arrays["random/numpy"] = _text(rng.bit_generator.state)
    found = optimiser.state_dict()["state"]
    for number, parameter in enumerate(weights):
        arrays[f"weights/{number}"] = _array(parameter)
        for name, value in found[number].items():
            arrays[f"optimiser/{number}/{name}"] = _array(value)
    return arrays


def restored(
    arrays: Mapping[str, NDArray[Any]],
    weights: Sequence[th.nn.Parameter],
    optimiser: th.optim.Optimizer,
    rng: np.random.Generator | None = None,
) -> Losses:
    """Puts everything back to where `tuning_state` found it; returns the losses.

    Args:
        arrays: What it gave.
        weights: As there.
        optimiser: As there, before its first step.
        rng: As there.
    """
    states: dict[int, dict[str, th.Tensor]] = {}
    for name, array in arrays.items():
        kind, *rest = name.split("/")
        if kind == "weights":
            with th.no_grad():
                weights[int(rest[0])].copy_(th.from_numpy(array))
        elif kind == "optimiser":
            states.setdefault(int(rest[0]), {})[rest[1]] = th.from_numpy(array)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": states})
    th.set_rng_state(th.from_numpy(arrays["random/torch"].copy()))
    if rng is not None:
        rng.bit_generator.state = json.loads(arrays["random/numpy"].tobytes())
    losses: Losses = json.loads(arrays["losses"].tobytes())
    return losses


def _array(tensor: th.Tensor) -> NDArray[Any]:
    return tensor.detach().float().cpu().numpy().copy()


def _text(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy()
