"""State trackers of the environment: encoders over item-id sequences, stepped on the numpy side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsim_env.encoders import GRUEncoder, SASRecEncoder
from recsim_env.threads import one_thread

__all__ = ["GRUTracker", "SASRecTracker", "Tracker", "TrackerState", "make_tracker"]

TrackerState = dict[str, NDArray[Any]]
Sequences = Sequence[NDArray[np.integer[Any]]]


class Tracker(Protocol):
    """Turns the items so far into a vector, session by session."""

    @property
    def dim(self) -> int:
        """Size of the output."""

    def initial(self, histories: Sequences) -> TrackerState:
        """Starts sessions.

        Args:
            histories: Per session the item indices so far, oldest first; may be empty.

        Returns:
            Arrays whose first axis is the session.
        """

    def advance(self, state: TrackerState, items: NDArray[np.integer[Any]]) -> TrackerState:
        """Adds one item to every session.

        Args:
            state: Changed in place where that is possible.
            items: (n,) item indices.

        Returns:
            The new state.
        """

    def output(self, state: TrackerState) -> NDArray[np.float32]:
        """Returns what is known of the sessions: (n, dim) float32."""


class GRUTracker:
    """GRU with the input half of its gates tabulated per item.

    A step is one (n, H) x (H, 3H) product, a gather and the gate arithmetic. The gates' sigmoids
    are computed as 0.5 + 0.5 tanh(x / 2), with the halves folded into the weights.

    Args:
        encoder: Trained encoder; its weights are copied.
    """

    def __init__(self, encoder: GRUEncoder) -> None:
        width = encoder.dim
        weights: dict[str, Tensor] = dict(encoder.gru.named_parameters())
        gates = 2 * width
        with torch.no_grad():
            table = encoder.embedding.weight[: encoder.n_items] @ weights["weight_ih_l0"].T
            table += weights["bias_ih_l0"]
            # The reset and update gates take both biases, the candidate keeps its own apart:
            # the reset gate scales the recurrent bias too (Cho et al., 2014, as in torch).
            table[:, :gates] += weights["bias_hh_l0"][:gates]
            recurrent = weights["weight_hh_l0"].T.clone()
            table[:, :gates] *= 0.5
            recurrent[:, :gates] *= 0.5
            # Gates first, so that each gate's numbers lie side by side: (3, N, H) and (3, H, H).
            self._table: NDArray[np.float32] = (
                table.unflatten(1, (3, width)).transpose(0, 1).contiguous().numpy()
            )
            self._recurrent: NDArray[np.float32] = (
                recurrent.unflatten(1, (3, width)).transpose(0, 1).contiguous().numpy()
            )
            self._candidate_bias: NDArray[np.float32] = weights["bias_hh_l0"][gates:].numpy().copy()
        self.encoder = encoder
        self._width = width
        self._scratch: tuple[NDArray[np.float32], ...] | None = None

    @property
    def dim(self) -> int:
        """Size of the output, H."""
        return self._width

    def initial(self, histories: Sequences) -> TrackerState:
        """Runs the histories; see `Tracker.initial`."""
        n = len(histories)
        hidden = np.zeros((n, self._width), np.float32)
        lengths = np.array([len(h) for h in histories], np.int64)
        # Longest first, so that the sessions that still run are always the first ones.
        by_length = np.argsort(-lengths, kind="stable")
        running = np.zeros_like(hidden)
        padded = np.zeros((n, int(lengths.max(initial=0))), np.int64)
        for row, index in enumerate(by_length):
            padded[row, : lengths[index]] = histories[index]
        ordered = lengths[by_length]
        for step in range(padded.shape[1]):
            active = int(np.searchsorted(-ordered, -step, side="left"))
            self._step(running[:active], padded[:active, step])
        hidden[by_length] = running
        return {"hidden": hidden}

    def advance(self, state: TrackerState, items: NDArray[np.integer[Any]]) -> TrackerState:
        """Adds one item to every session, in place; see `Tracker.advance`."""
        self._step(state["hidden"], items)
        return state

    def output(self, state: TrackerState) -> NDArray[np.float32]:
        """Returns the hidden states, (n, H)."""
        return state["hidden"]

    def _step(self, hidden: NDArray[np.float32], items: NDArray[np.integer[Any]]) -> None:
        """One GRU step in place, h = n + z (h - n), with all temporaries in kept buffers."""
        n, width = hidden.shape
        if self._scratch is None or len(self._scratch[2]) != n:
            self._scratch = (
                np.empty((3, n, width), np.float32),
                np.empty((3, n, width), np.float32),
                np.tile(self._candidate_bias, (n, 1)),
            )
        inputs, gates, bias = self._scratch
        np.take(self._table, items, axis=1, out=inputs, mode="clip")
        np.matmul(hidden, self._recurrent, out=gates)
        both = gates[:2]
        both += inputs[:2]
        np.tanh(both, out=both)
        both *= 0.5
        both += 0.5
        reset, update, new = gates
        new += bias
        new *= reset
        new += inputs[2]
        np.tanh(new, out=new)
        hidden -= new
        hidden *= update
        hidden += new


class SASRecTracker:
    """SASRec over the last L items of a session; runs torch without gradients.

    Args:
        encoder: Trained encoder.
    """

    def __init__(self, encoder: SASRecEncoder) -> None:
        self.encoder = encoder.eval()

    @property
    def dim(self) -> int:
        """Size of the output."""
        return self.encoder.dim

    def initial(self, histories: Sequences) -> TrackerState:
        """Keeps the last L items of the histories; see `Tracker.initial`."""
        length = self.encoder.max_length
        items = np.full((len(histories), length), self.encoder.n_items, np.int64)
        for row, history in zip(items, histories, strict=True):
            kept = np.asarray(history)[-length:]
            row[length - len(kept) :] = kept
        return {"items": items, "output": self._encode(items)}

    def advance(self, state: TrackerState, items: NDArray[np.integer[Any]]) -> TrackerState:
        """Adds one item to every session, in place; see `Tracker.advance`."""
        window = state["items"]
        window[:, :-1] = window[:, 1:].copy()
        window[:, -1] = items
        state["output"][:] = self._encode(window)
        return state

    def output(self, state: TrackerState) -> NDArray[np.float32]:
        """Returns the encodings, (n, dim)."""
        return state["output"]

    def _encode(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        with one_thread(), torch.no_grad():
            if not len(items):
                return np.zeros((0, self.dim), np.float32)
            parts = [self.encoder(part) for part in torch.from_numpy(items).split(1024)]
            return torch.cat(parts).numpy()


def make_tracker(encoder: GRUEncoder | SASRecEncoder) -> Tracker:
    """Returns the tracker that steps the given encoder."""
    return GRUTracker(encoder) if isinstance(encoder, GRUEncoder) else SASRecTracker(encoder)
