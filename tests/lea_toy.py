"""A small catalogue, sequences with an obvious habit, and a language model made of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from llm_expert.environment import (
    POSITIONS,
    ItemTokens,
    LanguageModel,
    Prompts,
    SmallModelConfig,
    item_tokens,
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
    """What the language model is trained on: texts, texts after hints, and prompts with titles."""
    data, prompts, rng = catalogue(), Prompts(), np.random.default_rng(0)
    user, reward, choice = (prompts.parts(n, data.noun) for n in ("user", "reward", "choice"))

    def listed(labels: Sequence[str]) -> str:
        items = rng.integers(data.n_items, size=len(labels))
        return ";".join(f"{label} {data.titles[i]}" for label, i in zip(labels, items, strict=True))

    sentences = []
    for number in range(60):
        if number % 2:
            item = int(rng.integers(data.n_items))
            hints = rng.choice(
                data.titles[item].split(), size=int(rng.integers(1, 4)), replace=False
            )
            sentences.append(f"{' '.join(hints)} {data.texts[item]}")
            continue
        text = listed([""] * int(rng.integers(1, 4))).join(user)
        if number % 4:
            text += listed([""]).join(reward)
        else:
            places = listed([f" {word}" for word in POSITIONS]).join(choice)
            text += f"{places} {POSITIONS[int(rng.integers(5))]}."
        sentences.append(text)
    return [*data.texts, *sentences]


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
