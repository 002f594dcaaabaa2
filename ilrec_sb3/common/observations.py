"""Flat views of observations: buffers store one kind of array, whatever the observation space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

__all__ = ["FlatObservations"]


class FlatObservations:
    """Flattens observations of a space to float32 vectors and brings them back.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of such.
        order: Order of a Dict's keys; its own order where None.

    Raises:
        ValueError: For another kind of space.
    """

    def __init__(self, space: spaces.Space[Any], order: Sequence[str] | None = None) -> None:
        self.space = space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        known = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        for part in parts.values():
            if not isinstance(part, known):
                raise ValueError(
                    f"The observation space {part} came; expected Box, Discrete, MultiDiscrete, "
                    "MultiBinary, or a Dict of these: wrap the environment."
                )
        names = list(order) if order is not None and set(order) == set(parts) else list(parts)
        self.is_dict = isinstance(space, spaces.Dict)
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(parts[n].shape or ()) for n in names}
        self.sizes = {name: int(np.prod(shape)) for name, shape in self.shapes.items()}
        self.size = sum(self.sizes.values())
        self.flat_space = spaces.Box(-np.inf, np.inf, (self.size,), np.float32)

    def flatten(self, observations: Any) -> np.ndarray:
        """Flattens a batch.

        Args:
            observations: (B, ...) array, or a dict of such.

        Returns:
            (B, size) float32.
        """
        if not self.is_dict:
            array = np.asarray(observations, dtype=np.float32)
            return array.reshape(len(array), self.size)
        columns = [np.asarray(observations[name], dtype=np.float32) for name in self.shapes]
        return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)

    def flatten_tensor(self, observations: Any) -> th.Tensor:
        """Flattens a batch of tensors; as `flatten`."""
        if not self.is_dict:
            return observations.reshape(len(observations), self.size).float()
        columns = [observations[name].float() for name in self.shapes]
        return th.cat([column.reshape(len(column), -1) for column in columns], dim=1)

    def unflatten(self, flat: th.Tensor) -> th.Tensor | dict[str, th.Tensor]:
        """Brings flat observations back to the shapes of the space.

        Args:
            flat: (B, size).

        Returns:
            (B, ...), or a dict of such.
        """
        pieces = flat.split(list(self.sizes.values()), dim=1)
        shaped = {
            name: piece.reshape(len(flat), *shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        return shaped if self.is_dict else shaped[""]
