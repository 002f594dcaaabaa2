"""From what a language model says to an item of the catalogue (IL-Rec, eq. 8)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import Catalogue
from recsim_env.errors import DataError
from recsim_env.text import item_documents, normalise_title

__all__ = ["Embedder", "Grounded", "Grounder", "How", "ground"]

How = Literal["exact", "normalised", "similar"]

_TIE = 1e-6
"""Similarities closer than this are one: a float32 sum depends on where in a block a row lies."""
_NEIGHBOURS = 8


class Embedder(Protocol):
    """Anything that turns texts into unit vectors, `recsim_env.text.TextEmbedder` for one."""

    def embed(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        """Returns (n, d) float32, rows of norm 1 (or 0, for a text without features)."""
        ...


@dataclass(frozen=True)
class Grounded:
    """An item that was found for a title.

    Args:
        item: Index in the catalogue.
        how: By which rule: the same title, the same normalised title, or the nearest text.
        similarity: Cosine similarity in [-1, 1]; 1 for the first two rules.
    """

    item: int
    how: How
    similarity: float


def ground(
    query_embeddings: npt.NDArray[np.float32],
    item_embeddings: npt.NDArray[np.float32],
    allowed: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns the allowed item nearest to each query (IL-Rec, eq. 8).

    a = argmax over allowed items i of cos(e_query, e_i); the lowest index of a tie.

    Args:
        query_embeddings: (q, d), of any norm.
        item_embeddings: (n, d), of any norm; a row of zeros is similar to nothing (cosine 0).
        allowed: (n,) or (q, n) booleans; None allows every item.

    Returns:
        Indices (q,) in [0, n) and their cosine similarities (q,) in [-1, 1].

    Raises:
        DataError: No item is allowed to some query.
    """
    # (q, d) @ (d, n) -> (q, n)
    cosine = _unit(query_embeddings) @ _unit(item_embeddings).T
    if allowed is not None:
        cosine = np.where(allowed, cosine, np.float32(-np.inf))
    best = cosine.max(axis=1, initial=-np.inf)
    if not np.isfinite(best).all():
        raise _nothing_allowed()
    items = (cosine >= best[:, None] - np.float32(_TIE)).argmax(axis=1)
    return items.astype(np.int64), cosine[np.arange(len(items)), items]


class Grounder:
    """Finds catalogue items by title: exactly, then normalised, then by text similarity.

    The answers do not depend on the order of the questions. What the similarity rule compares is
    the text of `recsim_env.text.item_documents` (title, categories, longer text), so a question
    that also names categories is answered better than a bare title.

    Args:
        catalogue: The items.
        embedder: Gives the vectors of items and questions.
    """

    def __init__(self, catalogue: Catalogue, embedder: Embedder) -> None:
        self.catalogue = catalogue
        self.embedder = embedder
        self._exact: dict[str, list[int]] = {}
        self._normalised: dict[str, list[int]] = {}
        for index, title in enumerate(catalogue.titles):
            self._exact.setdefault(title.strip(), []).append(index)
            self._normalised.setdefault(normalise_title(title), []).append(index)
        for titles in (self._exact, self._normalised):
            titles.pop("", None)  # a title without a letter names nothing
        embeddings = _unit(embedder.embed(item_documents(catalogue)))
        self._index: Any = faiss.IndexFlatIP(embeddings.shape[1])
        self._index.add(embeddings)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return f"Grounder(n_items={len(self.catalogue)}, dim={self._index.d})"

    def lookup(self, title: str, shown: Collection[int] = ()) -> Grounded | None:
        """Returns the item of this very title, or of this normalised title, or None.

        Args:
            title: As it was said.
            shown: Items that are not to be found any more. Of several items with one title the
                first that is left is taken.
        """
        rules: tuple[tuple[How, list[int]], ...] = (
            ("exact", self._exact.get(title.strip(), [])),
            ("normalised", self._normalised.get(normalise_title(title), [])),
        )
        for how, items in rules:
            for item in items:
                if item not in shown:
                    return Grounded(item, how, 1.0)
        return None

    def nearest(self, embedding: npt.NDArray[np.float32], shown: Collection[int] = ()) -> Grounded:
        """Returns the item whose text is most similar; the lowest index of a tie.

        Args:
            embedding: (d,) vector of the question.
            shown: Items that are not to be found any more.

        Raises:
            DataError: Every item has been shown.
        """
        n_items = len(self.catalogue)
        allowed = np.ones(n_items, dtype=bool)
        allowed[list(shown)] = False
        n_allowed = int(allowed.sum())
        if n_allowed == 0:
            raise _nothing_allowed()
        bitmap = np.packbits(allowed, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
        query = _unit(embedding[None])
        k = min(_NEIGHBOURS, n_allowed)
        while True:
            scores, items = self._index.search(query, k, params=parameters)
            tied = items[0][scores[0] >= scores[0, 0] - _TIE]
            if len(tied) < k or k == n_allowed:
                break
            k = min(2 * k, n_allowed)  # a tie may go on beyond what was asked for
        return Grounded(int(tied.min()), "similar", float(scores[0, 0]))

    def ground(self, title: str, shown: Collection[int] = ()) -> Grounded:
        """Returns the item meant by a title, by the first rule that finds one.

        Args:
            title: As it was said.
            shown: Items that this session has already shown; none of them is returned.

        Raises:
            DataError: Every item has been shown.
        """
        found = self.lookup(title, shown)
        return found if found else self.nearest(self.embedder.embed([title])[0], shown)


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the rows at norm 1; rows of zeros stay."""
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _nothing_allowed() -> DataError:
    return DataError(
        "No item of the catalogue is allowed here, expected at least one that was not yet shown: "
        "end the session earlier or use a larger catalogue."
    )
