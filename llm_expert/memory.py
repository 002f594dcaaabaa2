"""What an agent remembers: texts as keys, found again by similarity (IL-Rec, eq. 3, 4, 6, 9)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llm_expert.grounding import Embedder, embed_texts
from recsim_env.artefacts import check_folder, write_folder
from recsim_env.errors import ArtefactError, DataError

__all__ = ["Recalled", "VectorMemory", "min_max"]

_FORMAT = 1
_ENTRIES, _VECTORS = "memory.json", "memory.safetensors"
_DECIMALS = 6
"""Similarities that agree to these are one."""
_MARGIN = 1e-5
"""More than a float32 sum of products of two unit vectors is wrong by."""
_SPARE = 8
"""Neighbours searched for beyond those asked for, so that most ties end among them."""


def min_max(similarities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Returns similarities in [0, 1]: (s - min) / (max - min) (IL-Rec, IV-A2).

    Args:
        similarities: (n,) finite numbers, n at least 1.

    Returns:
        (n,) float64; 1 for each where all are equal.
    """
    values = np.asarray(similarities, dtype=np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.ones_like(values)


@dataclass(frozen=True)
class Recalled:
    """An entry of a memory that is similar to a query.

    Args:
        number: Position in the memory, 0 being the oldest entry.
        key: The text that was compared.
        value: What was stored with it; a copy.
        similarity: In [0, 1], 1 for the most similar entry of the memory and 0 for the least.
    """

    number: int
    key: str
    value: Mapping[str, Any]
    similarity: float


class VectorMemory:
    """Entries with a text as key, recalled by the cosine similarity of a query to the keys.

    A query recalls {m in memory | sim(m, query) > threshold} (IL-Rec, eq. 4, 6, 9), where the
    similarity is min-max normalised over the whole memory, query by query; of these, the `top_k`
    best. The search is exact. It may be used from several threads at once.

    Args:
        embedder: Gives the vectors of keys and queries.
        threshold: τ in [0, 1]. Raising it recalls fewer entries; 1 recalls none. Usually 0.6 to
            0.9.
        top_k: The most entries that a query recalls, at least 1. Raising it makes prompts longer.
    """

    def __init__(self, embedder: Embedder, *, threshold: float = 0.8, top_k: int = 5) -> None:
        if not 0.0 <= threshold <= 1.0 or top_k < 1:
            raise DataError(
                f"VectorMemory got threshold={threshold} and top_k={top_k}, expected a threshold "
                "in [0, 1] and a top_k of at least 1."
            )
        self.embedder, self.threshold, self.top_k = embedder, float(threshold), int(top_k)
        self._lock = threading.Lock()
        self._index: Any = None  # its dimension is known with the first vectors
        self._entries: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Returns the number of entries."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return f"VectorMemory(entries={len(self)}, threshold={self.threshold}, top_k={self.top_k})"

    def add(self, keys: Sequence[str], values: Sequence[Mapping[str, Any]]) -> None:
        """Stores entries, all or (after an error) none.

        Args:
            keys: n texts.
            values: n mappings that JSON can hold.

        Raises:
            DataError: There are not as many values as keys, or JSON cannot hold a value.
        """
        if len(keys) != len(values):
            raise DataError(
                f"{len(keys)} keys and {len(values)} values came, expected one value for each key."
            )
        entries = [(key, _to_json(value, key)) for key, value in zip(keys, values, strict=True)]
        if entries:
            self._append(entries, embed_texts(self.embedder, keys))

    def _append(self, entries: list[tuple[str, str]], vectors: npt.NDArray[np.float32]) -> None:
        with self._lock:
            if self._index is None:
                self._index = faiss.IndexFlatIP(vectors.shape[1])
            if vectors.shape[1] != self._index.d:
                raise DataError(
                    f"The embedder gave vectors of size {vectors.shape[1]}, expected "
                    f"{self._index.d} as before: use one embedder for one memory."
                )
            self._index.add(vectors)
            self._entries.extend(entries)

    def recall(self, queries: Sequence[str]) -> list[list[Recalled]]:
        """Returns for each query the entries that are similar to it.

        Args:
            queries: q texts.

        Returns:
            q lists of at most `top_k` entries, each more similar than the threshold; best first,
            and of equally similar ones the latest first.
        """
        if not queries or not self._entries:
            return [[] for _ in queries]
        vectors = embed_texts(self.embedder, queries, self._index.d)
        with self._lock:
            found = self._search(vectors)
        return [
            [
                self._recalled(number, similarity)
                for number, similarity in zip(numbers.tolist(), similarities.tolist(), strict=True)
                if similarity > self.threshold
            ]
            for numbers, similarities in found
        ]

    def _recalled(self, number: int, similarity: float) -> Recalled:
        key, value = self._entries[number]
        return Recalled(number, key, json.loads(value), similarity)

    def _search(
        self, queries: npt.NDArray[np.float32]
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Returns for each query the numbers of its best entries, best first, and similarities.

        Two searches suffice: the entries nearest to q, and those nearest to -q for the minimum.
        faiss chooses candidates; float64 sums, which do not depend on the other queries, decide.
        """
        n_entries = self._index.ntotal
        k = min(self.top_k + _SPARE, n_entries)
        scores, near = self._index.search(queries, k)
        far = self._index.search(-queries, min(_SPARE, n_entries))[1]
        lowest = self._similarities(queries, far).min(axis=1)
        similarities = self._similarities(queries, near)
        results = []
        for row, query in enumerate(queries):
            numbers, exact = near[row], similarities[row]
            if k < n_entries and scores[row, self.top_k - 1] - scores[row, -1] <= _MARGIN:
                numbers = self._ties(query)
                exact = self._similarities(query[None], numbers[None])[0]
            best = np.lexsort((-numbers, -exact))[: self.top_k]
            # The best and the lowest are the extremes of the whole memory.
            normalised = min_max(np.append(exact[best], lowest[row]))[:-1]
            results.append((numbers[best], np.round(normalised, _DECIMALS)))
        return results

    def _similarities(
        self, queries: npt.NDArray[np.float32], numbers: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Returns the (q, k) rounded cosines of q queries with k entries each."""
        rows = self._index.reconstruct_batch(numbers.ravel()).reshape(*numbers.shape, -1)
        # (q, k, d) * (q, 1, d) -> (q, k)
        cosines: npt.NDArray[np.float64] = (rows * queries[:, None].astype(np.float64)).sum(axis=-1)
        return cosines.round(_DECIMALS)

    def _ties(self, query: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Returns every entry that may be among the best, however many are tied with the last."""
        cosine = self._index.reconstruct_n(0, self._index.ntotal) @ query
        last = np.partition(cosine, -self.top_k)[-self.top_k]
        return np.flatnonzero(cosine >= last - _MARGIN)

    def save(self, folder: str | Path) -> None:
        """Writes the memory into a folder (safetensors and JSON), whole or not at all.

        Args:
            folder: Where to; an existing folder is replaced.
        """
        with self._lock:
            entries = list(self._entries)
            vectors = np.zeros((0, 0), np.float32)
            if self._index is not None:
                vectors = self._index.reconstruct_n(0, self._index.ntotal)
        document = {
            "format": _FORMAT,
            "threshold": self.threshold,
            "top_k": self.top_k,
            "entries": [{"key": key, "value": json.loads(value)} for key, value in entries],
        }

        def write(target: Path) -> None:
            save_file({"vectors": vectors}, target / _VECTORS)
            (target / _ENTRIES).write_text(json.dumps(document), encoding="utf-8")

        write_folder(folder, write)

    @classmethod
    def load(cls, folder: str | Path, embedder: Embedder) -> VectorMemory:
        """Reads what `save` wrote.

        Args:
            folder: Where from.
            embedder: The one that the memory was made with.

        Returns:
            The memory, with its threshold and top_k.

        Raises:
            ArtefactError: The folder is broken, or the embedder gives other vectors.
        """
        folder = Path(folder)
        if not check_folder(folder):
            raise ArtefactError(
                f"{folder} does not hold a whole memory, expected what VectorMemory.save wrote: "
                "check the path or collect again."
            )
        try:
            document = json.loads((folder / _ENTRIES).read_text(encoding="utf-8"))
            vectors = load_file(folder / _VECTORS)["vectors"]
            if document["format"] != _FORMAT or len(vectors) != len(document["entries"]):
                raise ValueError(
                    f"format {document['format']}, {len(vectors)} vectors for "
                    f"{len(document['entries'])} entries"
                )
            memory = cls(embedder, threshold=document["threshold"], top_k=document["top_k"])
            entries = [(str(e["key"]), json.dumps(e["value"])) for e in document["entries"]]
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ArtefactError(
                f"{folder} does not hold a memory that this release reads ({error}), expected what "
                f"VectorMemory.save of format {_FORMAT} wrote: collect again."
            ) from error
        if entries:
            _check_embedder(folder, embedder, entries[0][0], vectors[:1])
            memory._append(entries, vectors)
        return memory


def _check_embedder(
    folder: Path, embedder: Embedder, key: str, stored: npt.NDArray[np.float32]
) -> None:
    """Refuses an embedder that gives the first key another vector than the stored one."""
    given = embed_texts(embedder, [key])
    if given.shape != stored.shape or not np.allclose(given, stored, atol=0.05):
        raise ArtefactError(
            f"The embedder gives vectors of size {given.shape[1]} that differ from those of size "
            f"{stored.shape[1]} in {folder}: load the memory with the embedder that it was made "
            "with, or start with an empty one."
        )


def _to_json(value: Mapping[str, Any], key: str) -> str:
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The value of the key {key[:60]!r} cannot be written as JSON ({error}), expected a "
            "mapping of numbers, strings, booleans, None, lists or mappings: convert it first."
        ) from error
