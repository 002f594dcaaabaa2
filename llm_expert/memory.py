"""What an agent remembers: texts as keys, found again by similarity (IL-Rec, eq. 3, 4, 6, 9)."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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
"""Neighbours searched for to find the nearest one, so that most ties end among them."""


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


@dataclass(frozen=True)
class _Entry:
    """What is stored: key, its row in the index, and value."""

    key: str
    row: int
    value: dict[str, Any]


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
        self._index: Any = None  # of the keys; its dimension is known with the first vectors
        self._rows: dict[str, int] = {}  # key -> its row in the index
        self._entries: list[_Entry] = []

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
        kept = [_as_json(value, key) for key, value in zip(keys, values, strict=True)]
        if kept:
            self._append(keys, kept, embed_texts(self.embedder, keys))

    def _append(
        self,
        keys: Sequence[str],
        values: Sequence[dict[str, Any]],
        vectors: npt.NDArray[np.float32],
    ) -> None:
        with self._lock:
            if self._index is None:
                self._index = faiss.IndexFlatIP(vectors.shape[1])
            if vectors.shape[1] != self._index.d:
                raise DataError(
                    f"The embedder gave vectors of size {vectors.shape[1]}, expected "
                    f"{self._index.d} as before: use one embedder for one memory."
                )
            first = {key: number for number, key in reversed(list(enumerate(keys)))}
            fresh = sorted(number for key, number in first.items() if key not in self._rows)
            if fresh:
                self._index.add(vectors[fresh])
            for number in fresh:
                self._rows[keys[number]] = len(self._rows)
            rows = (self._rows[key] for key in keys)
            self._entries.extend(map(_Entry, keys, rows, values))

    def recall(
        self,
        queries: Sequence[str],
        *,
        skip: Sequence[Callable[[Mapping[str, Any]], bool]] | None = None,
        distinct: Callable[[str, Mapping[str, Any]], Hashable] | None = None,
    ) -> list[list[Recalled]]:
        """Returns for each query the entries that are similar to it.

        Both conditions apply before the cut to `top_k`, and neither changes a similarity: it is
        normalised over the whole memory, with the entries that are left out.

        Args:
            queries: q texts.
            skip: q functions of an entry's value, each for one query; an entry for which it is
                true is left out, as if the threshold had done so. They must neither change the
                value nor use this memory.
            distinct: Function of an entry's key and value: of the entries with the same result
                only the latest counts, among those above the threshold that are not skipped. For
                example ``lambda key, value: value["title"]``. The same holds for it.

        Returns:
            q lists of at most `top_k` entries, each more similar than the threshold; best first,
            and of equally similar ones the latest first.

        Raises:
            DataError: There are not as many functions as queries.
        """
        if skip is not None and len(skip) != len(queries):
            raise DataError(
                f"{len(queries)} queries and {len(skip)} functions to skip by came, expected one "
                "function for each query."
            )
        if not queries or not self._entries:
            return [[] for _ in queries]
        vectors = embed_texts(self.embedder, queries, self._index.d)
        with self._lock:
            groups = None if distinct is None else self._groups(distinct)
            return [
                self._choose(numbers, similarities, skip[query] if skip else None, groups)
                for query, (numbers, similarities) in enumerate(self._above_threshold(vectors))
            ]

    def _groups(
        self, distinct: Callable[[str, Mapping[str, Any]], Hashable]
    ) -> npt.NDArray[np.int64]:
        """Returns (n,) numbers, equal for entries with the same result of `distinct`."""
        known: dict[Hashable, int] = {}
        found = (distinct(entry.key, entry.value) for entry in self._entries)
        groups = (known.setdefault(result, len(known)) for result in found)
        return np.fromiter(groups, np.int64, len(self._entries))

    def _choose(
        self,
        numbers: npt.NDArray[np.int64],
        similarities: npt.NDArray[np.float64],
        skip: Callable[[Mapping[str, Any]], bool] | None,
        groups: npt.NDArray[np.int64] | None,
    ) -> list[Recalled]:
        """Returns what one query recalls of the entries above the threshold.

        Args:
            numbers: (m,) of the entries, ascending.
            similarities: (m,) theirs.
            skip: As in `recall`.
            groups: Of all entries, as `_groups` gives them; None: each is its own.
        """

        def kept(number: int) -> bool:
            return skip is None or not skip(self._entries[number].value)

        mine = None if groups is None else groups[numbers]
        latest: dict[int, int | None] = {}  # group -> the entry that counts
        chosen: list[Recalled] = []
        for place in np.lexsort((-numbers, -similarities)).tolist():
            number = int(numbers[place])
            if mine is None:
                counts = kept(number)
            else:
                group = int(mine[place])
                if group not in latest:
                    members = numbers[mine == group][::-1].tolist()
                    latest[group] = next(filter(kept, members), None)
                counts = latest[group] == number
            if counts:
                entry, similarity = self._entries[number], float(similarities[place])
                chosen.append(Recalled(number, entry.key, copy.deepcopy(entry.value), similarity))
                if len(chosen) == self.top_k:
                    break
        return chosen

    def _above_threshold(
        self, queries: npt.NDArray[np.float32]
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Yields for each query the entries above the threshold, ascending, and similarities.

        faiss chooses candidates; float64 sums, which do not depend on the other queries, decide.
        """
        lowest, highest = self._extremes(queries)
        bounds = lowest + self.threshold * (highest - lowest) - 2 * _MARGIN
        # scores and rows of query i are those from ends[i] to ends[i + 1]
        ends, scores, rows = self._index.range_search(queries, float(bounds.min()))
        row_of = np.fromiter((entry.row for entry in self._entries), np.int64, len(self._entries))
        for query, vector in enumerate(queries):
            part = slice(int(ends[query]), int(ends[query + 1]))
            near = rows[part][scores[part] > bounds[query]]
            cosines = self._cosines(vector, near)
            extremes = (lowest[query], highest[query])
            normalised = min_max(np.append(cosines, extremes))[:-2].round(_DECIMALS)
            of_row = np.full(self._index.ntotal, -1.0)
            of_row[near] = np.where(normalised > self.threshold, normalised, -1.0)
            similarities = of_row[row_of]
            numbers = np.flatnonzero(similarities >= 0)
            yield numbers, similarities[numbers]

    def _extremes(
        self, queries: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Returns the (q,) lowest and the (q,) highest cosines of q queries with any key.

        The keys farthest from a query are those nearest to its opposite.
        """
        both, n_keys, k = np.concatenate((-queries, queries)), self._index.ntotal, _SPARE
        scores, near = self._index.search(both, min(k, n_keys))
        while k < n_keys and (scores[:, 0] - scores[:, -1] <= 2 * _MARGIN).any():
            k *= 8  # until every one that may be the nearest is among them
            scores, near = self._index.search(both, min(k, n_keys))
        nearest = np.array(
            [self._cosines(vector, rows).max() for vector, rows in zip(both, near, strict=True)]
        )
        return -nearest[: len(queries)], nearest[len(queries) :]

    def _cosines(
        self, vector: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Returns the (k,) rounded cosines of a query with k keys, each for itself."""
        # (k, d) * (d,) -> (k,)
        products = self._index.reconstruct_batch(rows) * vector.astype(np.float64)
        cosines: npt.NDArray[np.float64] = products.sum(axis=1)
        return cosines.round(_DECIMALS)

    def save(self, folder: str | Path) -> None:
        """Writes the memory into a folder (safetensors and JSON), whole or not at all.

        Args:
            folder: Where to; an existing folder is replaced.
        """
        with self._lock:
            entries = list(self._entries)
            vectors = np.zeros((0, 0), np.float32)
            if self._index is not None:
                vectors = self._index.reconstruct_batch([entry.row for entry in entries])
        document = {
            "format": _FORMAT,
            "threshold": self.threshold,
            "top_k": self.top_k,
            "entries": [{"key": entry.key, "value": entry.value} for entry in entries],
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
            keys = [str(entry["key"]) for entry in document["entries"]]
            values = [dict(entry["value"]) for entry in document["entries"]]
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ArtefactError(
                f"{folder} does not hold a memory that this release reads ({error}), expected what "
                f"VectorMemory.save of format {_FORMAT} wrote: collect again."
            ) from error
        if keys:
            _check_embedder(folder, embedder, keys[0], vectors[:1])
            memory._append(keys, values, vectors)
        return memory


def _check_embedder(
    folder: Path, embedder: Embedder, key: str, stored: npt.NDArray[np.float32]
) -> None:
    """Refuses an embedder that gives the first key another vector than the stored one."""
    given = embed_texts(embedder, [key])
    if given.shape != stored.shape or not np.allclose(given, stored, atol=0.05):
        raise ArtefactError(
            f"The memory in {folder} was made with another embedder or on another catalogue (this "
            f"one gives other vectors: of size {given.shape[1]}, stored are {stored.shape[1]}): "
            "load it with the embedder and the dataset that it was made with, or start with an "
            "empty one."
        )


def _as_json(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns a copy of a value as it will be read from a file."""
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The value of the key {key[:60]!r} cannot be written as JSON ({error}), expected a "
            "mapping of numbers, strings, booleans, None, lists or mappings: convert it first."
        ) from error
    return kept
