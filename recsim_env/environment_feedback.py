"""What a language model, as the environment, says about each training example (LEA, 3.2-3.4).

The arrays are where the model that makes them and the recommender that learns from them meet:
neither needs the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from recsim_env import artefacts
from recsim_env.errors import ArtefactError, DataError
from recsim_env.sequences import Examples, IntArray

__all__ = ["EnvironmentFeedback", "sample_negatives"]

_FORMAT = "ilrec environment feedback 1"
_FLOATS = ("states", "next_states", "rewards", "negative_rewards", "augmented_rewards")
_ITEMS = ("negatives", "augmented")
_REQUIRED = {"states", "next_states", "rewards", "negatives", "negative_rewards"}


@dataclass(frozen=True, eq=False, repr=False)
class EnvironmentFeedback:
    """States, rewards and augmented actions; row k belongs to row k of the examples.

    The arrays are kept as they are given.

    Args:
        states: (m, d) float32, finite, the environment's own state s^e_t (LEA, eq. 3).
        next_states: (m, d) float32, finite, s^e_{t+1}.
        rewards: (m,) float32, finite, r^e of the target (LEA, eq. 5); any range.
        negatives: (m, k) int64, k at least 1: items that are neither the target nor in the history.
        negative_rewards: (m, k) float32, finite, r^e of these.
        augmented: (m,) int64, the item that the language model chose (LEA, 3.4); or None.
        augmented_rewards: (m,) float32, finite, r^e of these; None where `augmented` is None.
        examples: `Examples.fingerprint` of the examples.

    Raises:
        DataError: A shape or a type differs, or a row is not finite or has an index below 0.
    """

    states: NDArray[np.float32]
    next_states: NDArray[np.float32]
    rewards: NDArray[np.float32]
    negatives: IntArray
    negative_rewards: NDArray[np.float32]
    augmented: IntArray | None
    augmented_rewards: NDArray[np.float32] | None
    examples: str

    def __post_init__(self) -> None:
        if (self.augmented is None) != (self.augmented_rewards is None):
            raise DataError(
                "Augmented actions and their rewards came one without the other: give both, or "
                "None for both."
            )
        for name, array in self._arrays().items():
            object.__setattr__(self, name, np.asarray(array))
        self._check_shapes()
        for name, array in self._arrays().items():
            rows = array.reshape(len(self), -1)
            good = rows >= 0 if name in _ITEMS else np.isfinite(rows)
            bad_m = ~good.all(axis=1)
            if bad_m.any():
                row = int(bad_m.argmax())
                value = rows[row][~good[row]][0]
                raise DataError(
                    f"{name} has {value} in row {row} (and in {int(bad_m.sum())} of {len(self)} "
                    f"rows in all), expected {'an item' if name in _ITEMS else 'finite numbers'}: "
                    "compute those rows again."
                )

    def _check_shapes(self) -> None:
        arrays = self._arrays()
        m = self.rewards.size
        d = self.states.shape[-1] if self.states.ndim == 2 else 0
        k = self.negatives.shape[-1] if self.negatives.ndim == 2 else 0
        shapes = {
            "states": (m, d),
            "next_states": (m, d),
            "negatives": (m, k),
            "negative_rewards": (m, k),
        }
        for name, array in arrays.items():
            shape = shapes.get(name, (m,))
            kind = np.int64 if name in _ITEMS else np.float32
            if array.shape != shape or array.dtype != kind or 0 in shape:
                raise DataError(
                    f"{name} of shape {array.shape} and type {array.dtype} came for {m} rewards; "
                    f"expected {kind.__name__} of shape {shape}, no size being 0: convert it."
                )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        named = {name: getattr(self, name) for name in (*_FLOATS, *_ITEMS)}
        return {name: array for name, array in named.items() if array is not None}

    def __len__(self) -> int:
        """Returns the number of rows m."""
        return len(self.rewards)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return (
            f"EnvironmentFeedback(m={len(self)}, d={self.states.shape[1]}, "
            f"negatives={self.negatives.shape[1]}, augmented={self.augmented is not None})"
        )

    def check(self, examples: Examples) -> None:
        """Checks that this belongs to some examples.

        Raises:
            ArtefactError: It was made for others, or holds an item that it may not.
        """
        if self.examples != examples.fingerprint or len(self) != len(examples):
            raise ArtefactError(
                f"The environment's feedback of {len(self)} rows belongs to other examples "
                f"({self.examples[:12]}) than these {len(examples)} "
                f"({examples.fingerprint[:12]}), expected feedback on these: prepare it again "
                "with this data, split and length."
            )
        for name in _ITEMS:
            chosen: IntArray | None = getattr(self, name)
            if chosen is not None and (chosen >= examples.n_items).any():
                bad_m = (chosen >= examples.n_items).reshape(len(self), -1).any(axis=1)
                raise ArtefactError(
                    f"{name} has an unknown item in row {int(bad_m.argmax())}, expected indices "
                    f"from 0 to {examples.n_items - 1}: prepare the feedback again."
                )
        forbidden_mf = np.column_stack([examples.histories, examples.targets])
        for negative_m in self.negatives.T:
            bad_m = (forbidden_mf == negative_m[:, None]).any(axis=1)
            if bad_m.any():
                raise ArtefactError(
                    f"negatives has in row {int(bad_m.argmax())} an item of the history or the "
                    "target itself, expected items that the user did not take: prepare the "
                    "feedback again."
                )

    def scaled(self) -> EnvironmentFeedback:
        """Returns the same with rewards whose size is that of SNQN's, where each target earns 1.

        All rewards are divided by the root mean square of the targets'. A language model's are
        differences of log-odds, several times as large: their TD errors would drown the other
        losses. Rewards that are all 0 stay so.
        """
        size = float(np.sqrt(np.mean(np.square(self.rewards, dtype=np.float64)))) or 1.0
        augmented = self.augmented_rewards
        return replace(
            self,
            rewards=(self.rewards / size).astype(np.float32),
            negative_rewards=(self.negative_rewards / size).astype(np.float32),
            augmented_rewards=None if augmented is None else (augmented / size).astype(np.float32),
        )

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file, whole or not at all.

        Args:
            path: Where to; a file that is there is replaced.

        Returns:
            The path.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays().items()}
        about = {"format": _FORMAT, "examples": self.examples, "sha256": _digest(arrays)}
        return artefacts.write_file(path, save(arrays, metadata=about))

    @classmethod
    def load(cls, path: str | Path, examples: Examples | None = None) -> EnvironmentFeedback:
        """Reads what `save` wrote.

        Args:
            path: The file.
            examples: What it must belong to; None: that is not checked.

        Raises:
            ArtefactError: The file is missing, broken, foreign or belongs to other examples.
        """
        try:
            with safe_open(Path(path), framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ArtefactError(
                f"{path} cannot be read as environment feedback ({error}), expected the whole "
                "file that prepare wrote: prepare it again."
            ) from error
        if about.get("format") != _FORMAT:
            raise ArtefactError(
                f"{path} is marked {about.get('format')!r}, expected {_FORMAT!r}: it holds "
                "something else, so check the path or prepare the feedback again."
            )
        if about.get("sha256") != _digest(arrays) or not _REQUIRED <= set(arrays):
            raise ArtefactError(
                f"{path} holds other numbers than were written, expected them unchanged: the file "
                "is damaged, so prepare the feedback again."
            )
        feedback = cls(
            **{name: arrays.get(name) for name in (*_FLOATS, *_ITEMS)},  # type: ignore[arg-type]
            examples=about["examples"],
        )
        if examples is not None:
            feedback.check(examples)
        return feedback


def sample_negatives(examples: Examples, k: int, seed: int) -> IntArray:
    """Draws items evenly from those that are neither the target nor in the history of a row.

    Only the items of the (cut) history are known here; an older one may be drawn. The k draws of a
    row are independent of each other.

    Args:
        examples: The rows.
        k: Draws per row, 1 or more.
        seed: Of the draws.

    Returns:
        (m, k) int64.

    Raises:
        DataError: `k` is below 1, or a row leaves nothing to draw.
    """
    if k < 1:
        raise DataError(f"k={k} negatives came, expected 1 or more: give for example 1.")
    n_items = examples.n_items
    forbidden_mf = np.sort(np.column_stack([examples.histories, examples.targets]), axis=1)
    repeated = forbidden_mf[:, 1:] == forbidden_mf[:, :-1]
    forbidden_mf[:, 1:][repeated] = n_items  # as padding is: beyond every item
    forbidden_mf.sort(axis=1)
    free_m = n_items - (forbidden_mf < n_items).sum(axis=1)
    if len(examples) and free_m.min() < 1:
        raise DataError(
            f"Row {int(free_m.argmin())} has all {n_items} items in its history or as its target, "
            "expected at least one to draw as a negative: use a shorter history or more items."
        )
    rng = np.random.default_rng(seed)
    # The r-th free item: r moves on past each forbidden one, the smallest first.
    drawn_mk = rng.integers(free_m[:, None], size=(len(examples), k))
    for forbidden_m in forbidden_mf.T:
        drawn_mk += drawn_mk >= forbidden_m[:, None]
    return drawn_mk


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    """Returns the sha256 (hex) of named arrays."""
    return artefacts.fingerprint_bytes(
        *(
            chunk
            for name in sorted(arrays)
            for chunk in (
                f"{name} {arrays[name].dtype.name} {arrays[name].shape}".encode(),
                arrays[name].astype(arrays[name].dtype.newbyteorder("<"), copy=False).tobytes(),
            )
        )
    )
