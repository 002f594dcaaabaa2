"""A small catalogue, sequences with an obvious habit, and a language model made of the texts."""

from __future__ import annotations

from functools import cache

import numpy as np

from llm_expert.environment import (
    ItemTokens,
    LanguageModel,
    SmallModelConfig,
    item_tokens,
    practice_sentences,
    small_language_model,
)
from recsim_env.sequences import SequenceData

KINDS = ("brass valve", "wool blanket", "glass beaker")
COLOURS = ("red", "green", "blue", "black")
SMALL = SmallModelConfig(
    vocabulary=420,
    hidden=64,
    layers=2,
    heads=4,
    key_value_heads=2,
    intermediate=128,
    block=32,
    batch_size=8,
    epochs=30,
    learning_rate=5e-3,
)


@cache
def catalogue(n_users: int = 40) -> SequenceData:
    """Twelve products of three kinds; each user takes one kind only."""
    titles = [f"{colour} {kind}" for kind in KINDS for colour in COLOURS]
    texts = [
        f"product is titled {title}, its brand is {title.split()[-1]} works" for title in titles
    ]
    rng = np.random.default_rng(5)
    sequences = [
        user % len(KINDS) * len(COLOURS) + rng.integers(len(COLOURS), size=5 + user % 3)
        for user in range(n_users)
    ]
    parts = [0 if user < 0.7 * n_users else 1 + user % 2 for user in range(n_users)]
    splits = [
        np.array([-1] + [part] * (len(sequence) - 1), np.int8)
        for part, sequence in zip(parts, sequences, strict=True)
    ]
    return SequenceData(
        "toy",
        tuple(f"p{number}" for number in range(len(titles))),
        tuple(titles),
        tuple(texts),
        "product",
        tuple(sequences),
        tuple(splits),
    )


def lines() -> list[str]:
    """What the language model is trained on."""
    data = catalogue()
    return [*data.texts, *practice_sentences(data, 60)]


@cache
def language_model() -> LanguageModel:
    """A language model that all tests share: they must not change it."""
    return small_language_model(lines(), config=SMALL, progress=False)


@cache
def tokens() -> ItemTokens:
    """Vectors of the catalogue's items."""
    return item_tokens(
        language_model(), catalogue(), iterations=40, learning_rate=2e-2, progress=False
    )
