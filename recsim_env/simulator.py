"""From an environment's arguments to its dynamics; shared by the single and the batched view."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from recsim_env.datasets import Dataset
from recsim_env.dynamics import Dynamics, Split, State
from recsim_env.errors import DataError, MissingDataError, near_miss
from recsim_env.prepare import Prepared, prepare
from recsim_env.termination import Rule, make_rules

__all__ = ["OBSERVATION_MODES", "ObservationMode", "Observer", "make_dynamics"]

ObservationMode = Literal["vector", "dict", "sequence"]
OBSERVATION_MODES = ("vector", "dict", "sequence")

logger = logging.getLogger(__name__)
_said: set[str] = set()


def _fall_back(dataset: str, reason: MissingDataError) -> None:
    if dataset in _said:
        return
    _said.add(dataset)
    logger.warning(
        "No data for %r, so the built-in synthetic catalogue stands in for it: figures say nothing "
        "about %s. To get the real one, point `data=` or the environment variable ILREC_DATA to a "
        "folder that holds it (see the page on data in the documentation). %s",
        dataset,
        dataset,
        reason,
    )


def make_dynamics(
    dataset: str | Dataset | Prepared = "synthetic",
    *,
    split: Split = "train",
    termination: str | Rule | Sequence[Rule] = "category",
    window: int | None = None,
    max_repeats: int | None = None,
    repeat: bool = True,
    limit: int = 100,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    fallback: bool = False,
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Dynamics:
    """Builds the dynamics that an environment's arguments describe.

    Args:
        dataset: A name, a dataset or a prepared dataset.
        split: Whose world model gives the rewards.
        termination: See `recsim_env.termination.make_rules`.
        window: Overrides the window of the category rule, in items.
        max_repeats: Overrides its count.
        repeat: Whether showing an item twice ends a session.
        limit: Length limit, in items.
        data: Folder with the raw data; else ``ILREC_DATA``, else the user cache directory.
        cache: Folder for prepared artefacts; else ``ILREC_CACHE``, else the user cache directory.
        fallback: Take the synthetic dataset, with one warning, where the data are not there.
        progress: Show progress bars while preparing.
        options: Options of the dataset (see `recsim_env.datasets.load`).

    Raises:
        DataError: For unknown names, options or rules.
        MissingDataError: Where the data are not there and ``fallback`` is off.
    """
    if isinstance(dataset, str) and not dataset:
        raise DataError(
            "no dataset came; give `dataset=` a dataset object or the name of a prepared one."
        )
    rules_for = dataset if isinstance(dataset, str) else ""
    if isinstance(dataset, Prepared):
        prepared = dataset
        rules_for = prepared.dataset.name
    else:
        try:
            prepared = prepare(
                dataset, root=data, cache=cache, progress=progress, options=dict(options or {})
            )
        except MissingDataError as error:
            if not (fallback and isinstance(dataset, str)):
                raise
            _fall_back(dataset, error)
            prepared = prepare("synthetic", cache=cache, progress=progress)
        rules_for = rules_for or prepared.dataset.name
    rules = make_rules(
        termination, dataset=rules_for, window=window, max_repeats=max_repeats, repeat=repeat
    )
    return Dynamics(prepared, split=split, rules=rules, limit=limit)


class Observer:
    """Gives observations of a state in one of three forms.

    Args:
        dynamics: Whose states.
        mode: ``"vector"`` (one flat float vector), ``"dict"`` (its named parts) or ``"sequence"``
            (the ids of the last ``length`` items shown, padded on the left with ``n_items``).
        length: Length of the id sequence.
    """

    def __init__(
        self, dynamics: Dynamics, mode: ObservationMode = "vector", length: int = 50
    ) -> None:
        if mode not in OBSERVATION_MODES:
            raise DataError(
                f"obs_mode={mode!r} is not known; {near_miss(mode, OBSERVATION_MODES)}."
            )
        self.dynamics = dynamics
        self.mode = mode
        self.length = length
        layout = dynamics.layout
        self.space: spaces.Space[Any]
        low = np.full(layout.size, -np.inf, np.float32)
        high = np.full(layout.size, np.inf, np.float32)
        for part in (layout.categories, layout.step, layout.recent):
            low[part] = 0.0
        high[layout.step] = high[layout.recent] = 1.0
        if mode == "vector":
            self.space = spaces.Box(low, high, dtype=np.float32)
        elif mode == "dict":
            self.space = spaces.Dict(
                {
                    name: spaces.Box(low[part], high[part], dtype=np.float32)
                    for name, part in layout.parts().items()
                }
            )
        else:
            self.space = spaces.Box(0, dynamics.n_items, (length,), np.int64)

    def __call__(self, state: State) -> Any:
        """Returns the batch of observations: an array or a dictionary of arrays, first axis n."""
        if self.mode == "sequence":
            return self._sequence(state)
        flat = self.dynamics.observe(state)
        return flat if self.mode == "vector" else self.split(flat)

    def flat(self, state: State) -> NDArray[np.float32]:
        """Returns (n, d) float32, the observations as trajectories keep them."""
        if self.mode == "sequence":
            return self._sequence(state).astype(np.float32)
        return self.dynamics.observe(state)

    def split(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Returns the named parts of flat observations (any leading axes)."""
        return {name: flat[..., part].copy() for name, part in self.dynamics.layout.parts().items()}

    def _sequence(self, state: State) -> NDArray[np.int64]:
        n, length = len(state.steps), self.length
        position = state.steps[:, None] - np.arange(length, 0, -1)[None, :]  # (n, length)
        shown = state.shown[np.arange(n)[:, None], np.maximum(position, 0)]
        sequence = np.where(position >= 0, shown, self.dynamics.n_items)
        for row in np.flatnonzero(state.steps < length).tolist():
            history = self._history(state, row)[-(length - int(state.steps[row])) :]
            end = length - int(state.steps[row])
            sequence[row, end - len(history) : end] = history
        return sequence

    def _history(self, state: State, row: int) -> NDArray[np.int64]:
        given = state.histories[row]
        if given is not None:
            return given
        return self.dynamics.history_of(int(state.users[row]))
