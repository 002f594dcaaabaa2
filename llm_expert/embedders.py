"""Texts as vectors of trained language models; `recsim_env.text.TextEmbedder` needs none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_expert.errors import ModelSpecError
from recsim_env.errors import DataError

__all__ = ["CausalLMEmbedder", "SentenceEmbedder"]

_ITEM = "{item}"
_SMALLEST = 1e-12


class CausalLMEmbedder:
    """Embeds a text by what a causal language model would say next about it.

    The vector is the last token's hidden state, after the last layer, of a template that the text
    is put into (IL-Rec IV-A and eq. 8; the template is the one of its code base). A model without
    training gives vectors without sense.

    Args:
        model: A transformers model, of which only the layers below the language model's head are
            used.
        tokenizer: Its tokenizer.
        template: Text with one ``{item}``; ``"{item}"`` alone embeds a text as it is.
        batch: Texts a pass; raising it is faster until memory ends. 8 to 128.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str = "The type of {item} is",
        batch: int = 32,
    ) -> None:
        if template.count(_ITEM) != 1 or batch < 1:
            raise DataError(
                f"CausalLMEmbedder got template={template!r} and batch={batch}, expected a text "
                f"with one {_ITEM} in it and at least 1."
            )
        from llm_expert.local import longest_text

        self.model, self.tokenizer = model.eval(), tokenizer
        self.template, self.batch = template, batch
        self._limit = longest_text(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        *,
        template: str = "The type of {item} is",
        batch: int = 32,
    ) -> CausalLMEmbedder:
        """Loads model and tokenizer.

        Args:
            path: Folder, or name on the Hugging Face hub.
            device: For example "cuda:0"; None takes a GPU if there is one.
            template: As for the class.
            batch: As for the class.

        Raises:
            ModelSpecError: transformers is missing, or there is no such model.
        """
        from llm_expert.local import load_causal_lm

        model, tokenizer = load_causal_lm(path, device)
        return cls(model, tokenizer, template=template, batch=batch)

    def __repr__(self) -> str:
        """Returns what it was made of, not the weights."""
        return f"CausalLMEmbedder(model={type(self.model).__name__}, template={self.template!r})"

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return int(self.model.config.hidden_size)

    def embed(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: n texts. Of one that is too long for the model the end is left out.

        Returns:
            (n, dim) float32, rows of norm 1, or of 0 where there is no token at all.
        """
        vectors = np.zeros((len(texts), self.dim), np.float32)
        tokens = [self._tokens(text) for text in texts]
        for rows in self._batches(tokens):
            vectors[rows] = self._last_states([tokens[row] for row in rows])
        return _unit(vectors)

    def _batches(self, tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yields numbers of rows that are not empty, texts of like length together."""
        rows = (row for row, ids in enumerate(tokens) if ids)
        order = sorted(rows, key=lambda row: len(tokens[row]))
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]

    def _tokens(self, text: str) -> list[int]:
        """Returns the tokens of the filled template, none of them one that ends a text."""
        ids = self._encode(self.template.replace(_ITEM, text))
        if self._limit is not None and len(ids) > self._limit:
            end = self._encode(self.template.partition(_ITEM)[2], special=False)[
                -self._limit // 2 :
            ]
            ids = ids[: self._limit - len(end)] + end
        return ids

    def _encode(self, text: str, special: bool = True) -> list[int]:
        ids: list[int] = self.tokenizer(
            text,
            add_special_tokens=special,
            split_special_tokens=True,  # "</s>" in a title is a part of the title
            truncation=False,
            padding=False,
            verbose=False,
        )["input_ids"]
        while len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return ids

    def _last_states(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Returns the last token's hidden state of every row.

        Padded on the right, whatever the tokenizer would do: a causal model never looks there, and
        positions count from the first token.
        """
        import torch as th

        lengths = th.tensor([len(ids) for ids in tokens])
        # (B, L), padding of any token
        padded = th.zeros(len(tokens), int(lengths.max()), dtype=th.long)
        for row, ids in enumerate(tokens):
            padded[row, : len(ids)] = th.tensor(ids)
        mask = (th.arange(padded.shape[1]) < lengths[:, None]).long()
        body = getattr(self.model, "base_model", self.model)
        with th.inference_mode():
            # (B, L, d) -> (B, d)
            states = body(
                input_ids=padded.to(self.model.device), attention_mask=mask.to(self.model.device)
            ).last_hidden_state
            last = states[th.arange(len(tokens)), (lengths - 1).to(states.device)]
            found: NDArray[np.float32] = last.float().cpu().numpy()
        return found


class SentenceEmbedder:
    """Embeds texts with a model of sentence-transformers.

    Args:
        path: Folder, or name on the Hugging Face hub.
        device: For example "cuda:0"; None takes a GPU if there is one.
        batch: Texts a pass.

    Raises:
        ModelSpecError: sentence-transformers is missing, or there is no such model.
    """

    def __init__(self, path: str | Path, device: str | None = None, *, batch: int = 32) -> None:
        try:
            package: Any = importlib.import_module("sentence_transformers")
        except ImportError as error:
            raise ModelSpecError(
                f"The embedder {path} needs the package sentence_transformers, which cannot be "
                "imported: pip install 'ilrec[sentence-transformers]'"
            ) from error
        try:
            self.model: Any = package.SentenceTransformer(str(path), device=device)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelSpecError(
                f"The embedder {path} cannot be loaded ({reason}), expected a folder or a name on "
                "the Hugging Face hub with a model of sentence-transformers."
            ) from error
        self.path, self.batch = str(path), batch

    def __repr__(self) -> str:
        """Returns what it was made of, not the weights."""
        return f"SentenceEmbedder({self.path!r})"

    def embed(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: n texts.

        Returns:
            (n, d) float32, rows of norm 1.
        """
        if not texts:
            return self.embed([""])[:0]
        vectors = self.model.encode(
            list(texts),
            batch_size=self.batch,
            convert_to_numpy=True,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        return _unit(np.asarray(vectors, np.float32))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the rows at norm 1."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.float32(_SMALLEST))
    return unit
