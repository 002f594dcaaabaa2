"""Texts as vectors of trained language models; `recsim_env.text.TextEmbedder` needs none.

Every text goes through the model alone. Beside others it would get a vector that differs in the
last bits, since the order of the sums in a matrix product depends on its size; then what an agent
recalls would depend on which other texts were asked for at the same time. So a text has one vector,
bit for bit, on one machine with one number of threads. On a GPU, too, what is computed depends on
the text alone; whether the GPU's libraries then repeat a sum to the last bit is up to them.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_expert.errors import ModelSpecError
from recsim_env.errors import DataError

__all__ = ["CausalLMEmbedder", "SentenceEmbedder"]

_ITEM = "{item}"
_SMALLEST = 1e-12
_WEIGHTS = 64
"""How many numbers of each tensor of weights tell one model from another."""
_VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
"""What a model's configuration says of how it was loaded or saved, and not of the model."""
_PROBE = "The Legend of Zelda™: 漢字, 1986 -- Director's Cut!"
"""A text whose tokens tell one tokenizer from another."""
_LOGIN = re.compile("(?<=://)[^/@]*@")


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
        source: What the model was loaded from, for `identity`; None: what the model itself says.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        template: str = "The type of {item} is",
        source: str | Path | None = None,
    ) -> None:
        if template.count(_ITEM) != 1:
            raise DataError(
                f"CausalLMEmbedder got template={template!r}, expected a text with one {_ITEM} in "
                "it."
            )
        from llm_expert.local import longest_text

        self.model, self.tokenizer = model.eval(), tokenizer
        self.template = template
        self.source = str(getattr(model, "name_or_path", "") if source is None else source)
        self._limit = longest_text(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        *,
        template: str = "The type of {item} is",
    ) -> CausalLMEmbedder:
        """Loads model and tokenizer.

        Args:
            path: Folder, or name on the Hugging Face hub.
            device: For example "cuda:0"; None takes a GPU if there is one.
            template: As for the class.

        Raises:
            ModelSpecError: transformers is missing, or there is no such model.
        """
        from llm_expert.local import load_causal_lm

        model, tokenizer = load_causal_lm(path, device)
        return cls(model, tokenizer, template=template, source=path)

    def __repr__(self) -> str:
        """Returns what it was made of, not the weights."""
        return f"CausalLMEmbedder(model={type(self.model).__name__}, template={self.template!r})"

    @property
    def dim(self) -> int:
        """Size of a vector."""
        return int(self.model.config.hidden_size)

    @cached_property
    def identity(self) -> str:
        """What the vectors depend on, without the weights: equal for two loads of one model.

        The hash is of the model's configuration, the first numbers of each of its weights, and the
        tokens of a text.
        """
        config = self.model.config.to_diff_dict()
        kept = {key: value for key, value in config.items() if key not in _VOLATILE}
        described = json.dumps([kept, self._limit, self._tokens(_PROBE)], sort_keys=True)
        return _identity(
            "causal-lm",
            self.source,
            _fingerprint(self.model, described),
            template=self.template,
            dim=self.dim,
        )

    def embed(self, texts: Sequence[str], /) -> NDArray[np.float32]:
        """Embeds texts.

        Args:
            texts: n texts. Of one that is too long for the model the end is left out.

        Returns:
            (n, dim) float32, rows of norm 1, or of 0 where there is no token at all.
        """
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            tokens = self._tokens(text)
            if tokens:
                vectors[row] = self._last_state(tokens)
        return _unit(vectors)

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

    def _last_state(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Returns the (d,) hidden state of the last token."""
        import torch as th

        body = getattr(self.model, "base_model", self.model)
        with th.inference_mode():
            ids = th.tensor([tokens], device=self.model.device)
            # (1, L, d) -> (d,)
            found: NDArray[np.float32] = body(ids).last_hidden_state[0, -1].float().cpu().numpy()
        return found


class SentenceEmbedder:
    """Embeds texts with a model of sentence-transformers.

    Args:
        path: Folder, or name on the Hugging Face hub.
        device: For example "cuda:0"; None takes a GPU if there is one.

    Raises:
        ModelSpecError: sentence-transformers is missing, or there is no such model.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
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
        self.path = str(path)

    def __repr__(self) -> str:
        """Returns what it was made of, not the weights."""
        return f"SentenceEmbedder({_without_login(self.path)!r})"

    @cached_property
    def identity(self) -> str:
        """What the vectors depend on, without the weights: equal for two loads of one model.

        The hash is of the model's layers as they describe themselves and the first numbers of each
        of its weights.
        """
        sha = _fingerprint(self.model, repr(self.model))
        return _identity("sentence", self.path, sha, dim=self.embed([""]).shape[1])

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
            batch_size=1,
            convert_to_numpy=True,
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        return _unit(np.asarray(vectors, np.float32))


def _identity(kind: str, source: str, sha: str, **facts: Any) -> str:
    """Returns one line of JSON that names an embedder."""
    return json.dumps({"kind": kind, "source": _without_login(source), **facts, "sha256": sha})


def _without_login(source: str) -> str:
    """Returns an address without a user and a password in it."""
    return _LOGIN.sub("", source)


def _fingerprint(model: Any, described: str) -> str:
    """Returns a short hash of a torch module.

    Args:
        model: Of whose every parameter the first numbers count.
        described: What else of it does.
    """
    sha = hashlib.sha256(described.encode())
    for name, weights in model.named_parameters():
        sha.update(f"{name}{tuple(weights.shape)}".encode())
        sha.update(weights.detach().flatten()[:_WEIGHTS].float().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the rows at norm 1."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.float32(_SMALLEST))
    return unit
