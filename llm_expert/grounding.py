"""From what a language model says to an item of the catalogue (IL-Rec, eq. 8)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from recsim_env.datasets.dataset import Catalogue
from recsim_env.errors import DataError
from recsim_env.text import item_documents, normalise_title

__all__ = [
    "Embedder",
    "Grounded",
    "Grounder",
    "How",
    "embed_texts",
    "ground",
    "regrounded_share",
]

How = Literal["exact", "normalised", "similar"]

_TIE = 1e-6
"""Similarities closer than this are one."""
_MARGIN = 1e-5
"""More than a float32 sum of products of two unit vectors is wrong by."""
_LONGEST = 1000
"""Characters of a question that are embedded."""
_SURROGATES = re.compile("[\ud800-\udfff]")


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


def embed_texts(
    embedder: Embedder, texts: Sequence[str], dim: int | None = None
) -> npt.NDArray[np.float32]:
    """Returns the vectors of texts of any kind, checked and at norm 1.

    Args:
        embedder: Gives the vectors.
        texts: n texts; halves of surrogate pairs, which no encoding can write, become spaces.
        dim: Size that a vector has to have; None for any.

    Returns:
        (n, d) float32, rows of norm 1, or 0 where the embedder gives 0.

    Raises:
        DataError: The embedder gives something else than n finite vectors of this size.
    """
    clean = [_SURROGATES.sub(" ", text) for text in texts]
    vectors = np.asarray(embedder.embed(clean), dtype=np.float32)
    fits = vectors.ndim == 2 and len(vectors) == len(clean) and dim in (None, vectors.shape[1])
    if not fits or not np.isfinite(vectors).all():
        raise DataError(
            f"The embedder {type(embedder).__name__} gave an array of shape {vectors.shape} for "
            f"{len(clean)} texts, expected finite numbers of shape "
            f"({len(clean)}, {'d' if dim is None else dim}): use the embedder that the other "
            "vectors were made by."
        )
    return _unit(vectors)


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
    return _nearest(_unit(query_embeddings), _unit(item_embeddings), allowed)


def regrounded_share(hows: Sequence[str]) -> float:
    """Returns the share of actions that named no item and were grounded by similarity.

    Args:
        hows: By which rule each action was grounded (`Grounded.how`).

    Returns:
        A share in [0, 1]; 0 where there are no actions.
    """
    return sum(how == "similar" for how in hows) / len(hows) if hows else 0.0


class Grounder:
    """Finds catalogue items by title: exactly, then normalised, then by text similarity.

    The answers depend neither on the order of the questions nor on which of them are asked at
    once. What the similarity rule compares is the text of `recsim_env.text.item_documents` (title,
    categories, longer text), so a question that also names categories is answered better than a
    bare title. Of a question longer than 1,000 characters the first 1,000 are compared.

    Args:
        catalogue: The n items.
        embedder: Gives the vectors of items and questions.
        embeddings: (n, d) vectors of the items, of any norm; None asks the embedder for them.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        embedder: Embedder,
        embeddings: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.catalogue = catalogue
        self.embedder = embedder
        self._exact: dict[str, list[int]] = {}
        self._normalised: dict[str, list[int]] = {}
        for index, title in enumerate(catalogue.titles):
            self._exact.setdefault(title.strip(), []).append(index)
            self._normalised.setdefault(normalise_title(title), []).append(index)
        for titles in (self._exact, self._normalised):
            titles.pop("", None)  # a title without a letter names nothing
        if embeddings is None:
            embeddings = embed_texts(embedder, item_documents(catalogue))
        if embeddings.ndim != 2 or len(embeddings) != len(catalogue):
            raise DataError(
                f"embeddings of shape {embeddings.shape} came for {len(catalogue)} items, expected "
                f"({len(catalogue)}, d): embed the documents of this catalogue."
            )
        self._items = _unit(embeddings)

    def __repr__(self) -> str:
        """Returns sizes, not contents."""
        return f"Grounder(n_items={len(self.catalogue)}, dim={self._items.shape[1]})"

    def lookup(self, title: str, shown: Collection[int] = ()) -> Grounded | None:
        """Returns the item of this very title, or of this normalised title, or None.

        Args:
            title: As it was said.
            shown: Items that are not to be found any more. Of several items with one title the
                first that is left is taken.
        """
        return self._named(title, self._all_but(shown))

    def nearest(self, embedding: npt.NDArray[np.float32], shown: Collection[int] = ()) -> Grounded:
        """Returns the item whose text is most similar; the lowest index of a tie.

        Args:
            embedding: (d,) vector of the question.
            shown: Items that are not to be found any more.

        Raises:
            DataError: Every item has been shown.
        """
        items, cosine = _nearest(_unit(embedding[None]), self._items, self._all_but(shown))
        return Grounded(int(items[0]), "similar", float(cosine[0]))

    def ground(self, title: str, shown: Collection[int] = ()) -> Grounded:
        """Returns the item meant by a title, by the first rule that finds one.

        Args:
            title: As it was said.
            shown: Items that this session has already shown; none of them is returned.

        Raises:
            DataError: Every item has been shown.
        """
        return self.ground_many([title], self._all_but(shown)[None])[0]

    def ground_many(self, titles: Sequence[str], masks: npt.NDArray[np.bool_]) -> list[Grounded]:
        """Returns what `ground` returns for each title, by one embedding of all together.

        Args:
            titles: q titles, as they were said.
            masks: (q, n) booleans, True where an item may be returned.

        Raises:
            DataError: No item is allowed to some title, or the masks have another shape.
        """
        masks = np.asarray(masks)
        expected = (len(titles), len(self.catalogue))
        if masks.shape != expected or masks.dtype != np.bool_:
            raise DataError(
                f"masks of shape {masks.shape} and type {masks.dtype} came for {expected[0]} "
                f"titles, expected booleans of shape {expected}: give a row of masks per title."
            )
        found = {row: self._named(title, masks[row]) for row, title in enumerate(titles)}
        rest = [row for row, grounded in found.items() if grounded is None]
        if rest:
            questions = [titles[row][:_LONGEST] for row in rest]
            places = {question: place for place, question in enumerate(dict.fromkeys(questions))}
            vectors = embed_texts(self.embedder, list(places), self._items.shape[1])
            queries = vectors[[places[question] for question in questions]]
            items, cosine = _nearest(queries, self._items, masks[rest])
            for row, item, similarity in zip(rest, items.tolist(), cosine.tolist(), strict=True):
                found[row] = Grounded(item, "similar", similarity)
        return [grounded for grounded in found.values() if grounded]

    def _named(self, title: str, allowed: npt.NDArray[np.bool_]) -> Grounded | None:
        rules: tuple[tuple[How, list[int]], ...] = (
            ("exact", self._exact.get(title.strip(), [])),
            ("normalised", self._normalised.get(normalise_title(title), [])),
        )
        for how, items in rules:
            for item in items:
                if allowed[item]:
                    return Grounded(item, how, 1.0)
        return None

    def _all_but(self, shown: Collection[int]) -> npt.NDArray[np.bool_]:
        allowed = np.ones(len(self.catalogue), dtype=np.bool_)
        allowed[list(shown)] = False
        return allowed


def _nearest(
    queries: npt.NDArray[np.float32],
    items: npt.NDArray[np.float32],
    allowed: npt.NDArray[np.bool_] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Does the work of `ground` on rows of norm 1 (or 0).

    A float32 product depends in its last digits on how many rows are multiplied at once; so it
    only chooses the candidates, and float64 sums, each of its own row, decide between them.
    """
    # (q, d) @ (d, n) -> (q, n)
    cosine = queries @ items.T
    if allowed is not None:
        cosine = np.where(allowed, cosine, np.float32(-np.inf))
    best = cosine.max(axis=1, initial=-np.inf)
    if not np.isfinite(best).all():
        raise _nothing_allowed()
    found = np.zeros(len(queries), dtype=np.int64)
    similarity = np.zeros(len(queries), dtype=np.float32)
    for row, query in enumerate(queries.astype(np.float64)):
        near = np.flatnonzero(cosine[row] >= best[row] - _MARGIN)
        sums = (items[near] * query).sum(axis=1)
        first = int((sums >= sums.max() - _TIE).argmax())
        found[row], similarity[row] = near[first], np.clip(sums[first], -1.0, 1.0)
    return found, similarity


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
