"""Titles and texts as vectors: hashed character n-grams, TF-IDF, truncated SVD."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils.extmath import randomized_svd

from recsim_env.artefacts import write_folder
from recsim_env.datasets.dataset import Catalogue
from recsim_env.datasets.titles import normalise_title
from recsim_env.errors import ArtefactError, DataError

__all__ = ["TextEmbedder", "item_documents", "normalise_title"]

_FORMAT = 1


def item_documents(catalogue: Catalogue) -> list[str]:
    """Returns what is embedded of every item: title, categories and longer text."""
    rows = zip(catalogue.titles, catalogue.categories, catalogue.texts, strict=True)
    return [
        ". ".join(part for part in (title, ", ".join(categories), text) if part)
        for title, categories, text in rows
    ]


class TextEmbedder:
    """Embeds short texts by what they are spelled of; deterministic, without trained weights.

    Character n-grams (2 to 4, within words) are hashed, weighted by TF-IDF over the texts it was
    fitted on and projected on their leading singular directions. Two texts are near where they
    share spelling; it knows nothing of meaning.

    Args:
        dim: Size of a vector; fewer where there are fewer texts to fit on. 32 to 256.
        n_features: Number of hash buckets.
        seed: Of the randomised SVD.
    """

    def __init__(self, dim: int = 64, n_features: int = 2**15, seed: int = 0) -> None:
        if dim < 1 or n_features < 1:
            raise DataError(
                f"TextEmbedder got dim={dim} and n_features={n_features}, expected both to be at "
                "least 1."
            )
        self.dim, self.n_features, self.seed = dim, n_features, seed
        self._idf: NDArray[np.float32] = np.zeros(0, np.float32)
        self._projection: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    @property
    def identity(self) -> str:
        """What the vectors depend on: equal for two embedders that give the same ones.

        Raises:
            DataError: It was not fitted.
        """
        self._check_fitted("identity")
        sha = hashlib.sha256(self._idf.tobytes())
        sha.update((self._projection + 0.0).tobytes())  # -0.0, which is not saved, becomes 0.0
        facts = {"kind": "text", "dim": self.dim, "n_features": self.n_features}
        return json.dumps({**facts, "sha256": sha.hexdigest()[:16]})

    def fit(self, texts: Sequence[str], dim: int | None = None) -> TextEmbedder:
        """Learns weights and projection.

        Args:
            texts: At least one text.
            dim: Overrides the size of a vector.

        Returns:
            Itself.
        """
        if not texts:
            raise DataError("TextEmbedder.fit got no texts, expected at least one.")
        self.dim = dim or self.dim
        counts = self._count(texts)
        seen = np.bincount(counts.indices, minlength=self.n_features)
        self._idf = (np.log((1.0 + len(texts)) / (1.0 + seen)) + 1.0).astype(np.float32)
        rank = max(1, min(self.dim, len(texts) - 1))
        _, _, directions = randomized_svd(
            self._weigh(counts), n_components=rank, random_state=self.seed
        )
        projection = np.zeros((self.n_features, self.dim), np.float32)
        projection[:, :rank] = directions.T
        self._projection = projection
        return self

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: n texts.

        Returns:
            (n, dim) float32, rows of norm 1. A text that shares nothing with the fitted ones gets
            the vector of the fitted texts' common direction.
        """
        self._check_fitted("embed")
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vectors = np.asarray(self._weigh(self._count(texts)) @ self._projection, np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        empty = norms[:, 0] < 1e-6
        vectors[empty] = np.eye(1, self.dim, dtype=np.float32)
        norms[empty] = 1.0
        vectors /= norms
        return vectors

    def _check_fitted(self, what: str) -> None:
        if not len(self._idf):
            raise DataError(
                f"TextEmbedder.{what} came before fit; call fit on the catalogue first."
            )

    def _count(self, texts: Sequence[str]) -> sparse.csr_matrix:
        vectorizer = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(2, 4),
            n_features=self.n_features,
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )
        counts: sparse.csr_matrix = vectorizer.transform([normalise_title(text) for text in texts])
        return counts

    def _weigh(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Sublinear TF-IDF with rows of norm 1."""
        out = counts.copy()
        out.data = (1.0 + np.log(out.data)) * self._idf[out.indices]
        squares = np.asarray(out.multiply(out).sum(1)).ravel()
        scale = 1.0 / np.sqrt(np.maximum(squares, 1e-12))
        out.data *= np.repeat(scale, np.diff(out.indptr)).astype(np.float32)
        return out

    def save(self, folder: str | Path) -> None:
        """Writes the embedder into a folder (safetensors and JSON), whole or not at all.

        Args:
            folder: Where to; an existing folder is replaced.
        """
        used = np.flatnonzero(np.abs(self._projection).sum(1))

        def write(target: Path) -> None:
            tensors: dict[str, NDArray[Any]] = {
                "idf": self._idf,
                "buckets": used,
                "projection": np.ascontiguousarray(self._projection[used]),
            }
            save_file(tensors, target / "text.safetensors")
            meta = {
                "format": _FORMAT,
                "dim": self.dim,
                "n_features": self.n_features,
                "seed": self.seed,
            }
            (target / "text.json").write_text(json.dumps(meta), encoding="utf-8")

        write_folder(folder, write)

    @classmethod
    def load(cls, folder: str | Path) -> TextEmbedder:
        """Reads what `save` wrote.

        Args:
            folder: Where from.

        Returns:
            The embedder.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "text.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "text.safetensors")
            found = cls(meta["dim"], meta["n_features"], meta["seed"])
            projection = np.zeros((found.n_features, found.dim), np.float32)
            projection[tensors["buckets"]] = tensors["projection"]
            found._idf, found._projection = tensors["idf"], projection
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ArtefactError(
                f"{folder} does not hold a whole text embedder ({error}); delete the folder and "
                "prepare the data again."
            ) from error
        return found
