"""What a model that is trained from scratch on a catalogue's text has to learn besides.

Who chose what is not in it: sequences are not looked at, and all items are drawn alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from llm_expert.environment.prompts import POSITIONS, SEPARATOR, Prompts
from recsim_env.sequences import Examples, IntArray

if TYPE_CHECKING:
    from recsim_env.sequences import SequenceData

__all__ = [
    "PRACTICE",
    "choice_exercises",
    "made_up_examples",
    "nearest_items",
    "practice_sentences",
    "telling_words",
]

PRACTICE = 3
"""Counted up when sentences or exercises change, as what is learned from them then does."""
_COMMON = 0.4
"""A word that more of the texts have tells nothing about an item."""
_N_WORDS = 2_500
"""Words that exercises are made of: rarer ones are several tokens to a small vocabulary, and with
all the words of long texts next to nothing was learned."""
_NEAR = 10
"""Items that count as like another one."""
_MOST_TAKEN = 5
"""Items of a made-up history."""
_TINY = np.finfo(np.float32).tiny
_ROWS = 1_024
"""Items that are compared with all others at once."""
_MOST_OTHERS = 2
"""Items of a history that have nothing to do with the answer."""


def practice_sentences(
    data: SequenceData, n_sentences: int, seed: int = 0, prompts: Prompts | None = None
) -> list[str]:
    """Returns sentences that teach what item tokens and prompts look like.

    A quarter is an item's text after one to three words of its title, so that what stands before a
    text tells the model what it is about, as an item token has to. Another quarter is user and
    reward prompts about items drawn alike, and half are exercises with their answers.

    Args:
        data: Items and their texts.
        n_sentences: How many.
        seed: Of the draws.
        prompts: The templates; None takes the default.
    """
    prompts = prompts or Prompts()
    rng = np.random.default_rng(seed)
    user, reward = (prompts.parts(name, data.noun) for name in ("user", "reward"))
    exercises = choice_exercises(data, seed, prompts)

    def listed(count: int) -> str:
        chosen = rng.integers(data.n_items, size=count)
        return SEPARATOR.join(f" {data.titles[item]}" for item in chosen)

    sentences = []
    for number in range(n_sentences):
        if number % 4 == 1:
            item = int(rng.integers(data.n_items))
            hints = _some(data.titles[item].split() or [data.noun], int(rng.integers(1, 4)), rng)
            sentences.append(f"{' '.join(hints)} {data.texts[item]}")
        elif number % 4 == 3:
            text = listed(int(rng.integers(1, 4))).join(user)
            sentences.append(text + listed(1).join(reward))
        else:
            prompt, place = next(exercises)
            sentences.append(f"{prompt} {POSITIONS[place]}.")
    return sentences


def choice_exercises(
    data: SequenceData, seed: int = 0, prompts: Prompts | None = None
) -> Iterator[tuple[str, int]]:
    """Yields choice prompts and the position of the right answer, without end.

    In the place of an item stand one or two words of its text. The history holds an item and up to
    two others; the right answer has, in turns, a word in common with that item, or words that are
    elsewhere in its text. No wrong answer has a word of the history, where its text has others. So
    the model learns to look for what is like the history, by words and by what goes together in
    texts.

    Args:
        data: Items and their texts.
        seed: Of the draws.
        prompts: The templates; None takes the default.
    """
    prompts = prompts or Prompts()
    rng = np.random.default_rng(seed)
    user, choice = (prompts.parts(name, data.noun) for name in ("user", "choice"))
    telling = telling_words(data.texts)
    same_word = False
    while True:
        same_word = not same_word
        asked, answer = _alike(telling[int(rng.integers(data.n_items))], same_word, rng)
        others = rng.integers(data.n_items, size=int(rng.integers(_MOST_OTHERS + 1)))
        history = [asked, *(_some(telling[item], 2, rng) for item in others)]
        known = {word for words in history for word in words} | set(answer)
        candidates = []
        for item in rng.integers(data.n_items, size=len(POSITIONS) - 1):
            fresh = [word for word in telling[item] if word not in known]
            candidates.append(_some(fresh or telling[item], int(rng.integers(1, 3)), rng))
        place = int(rng.integers(len(POSITIONS)))
        candidates.insert(place, answer)
        shown = [f" {' '.join(history[number])}" for number in rng.permutation(len(history))]
        labelled = [
            f" {label} {' '.join(words)}"
            for label, words in zip(POSITIONS, candidates, strict=True)
        ]
        prompt = SEPARATOR.join(shown).join(user) + SEPARATOR.join(labelled).join(choice)
        yield prompt, place


def nearest_items(vectors: ArrayLike, k: int | None = None) -> IntArray:
    """Returns the items that are most like each item, by the cosine of their vectors.

    Args:
        vectors: (n_items, h); one without a length is like nothing.
        k: How many, below n_items; None: ten, but at most a quarter of the items.

    Returns:
        (n_items, k) int64, the most alike first.
    """
    given = np.asarray(vectors, np.float32)
    unit = given / np.maximum(np.linalg.norm(given, axis=1, keepdims=True), _TINY)
    n_items = len(unit)
    width = max(1, min(_NEAR, n_items // 4)) if k is None else k
    found = np.empty((n_items, width), np.int64)
    for at in range(0, n_items, _ROWS):
        cosines = unit[at : at + _ROWS] @ unit.T
        rows = np.arange(len(cosines))
        cosines[rows, at + rows] = -np.inf
        found[at : at + _ROWS] = np.argsort(-cosines, axis=1, kind="stable")[:, :width]
    return found


def made_up_examples(
    nearest: IntArray, count: int, length: int, rng: np.random.Generator
) -> Examples:
    """Returns examples of users who take what is like something that they took.

    A history is one to five items drawn alike, and the target is one of those nearest to one of
    them.

    Args:
        nearest: (n_items, k) items that are alike, see `nearest_items`.
        count: How many.
        length: Most items of a history.
        rng: Of the draws.
    """
    n_items, k = nearest.shape
    asked = rng.integers(n_items, size=count)
    targets = nearest[asked, rng.integers(k, size=count)]
    width = min(length, _MOST_TAKEN, max(1, n_items - 2))
    histories = np.full((count, length), n_items, np.int64)
    sizes = rng.integers(1, width + 1, size=count)
    for row, (item, target, size) in enumerate(zip(asked, targets, sizes, strict=True)):
        others = rng.integers(n_items, size=size)
        others[rng.integers(size)] = item
        histories[row, length - size :] = np.where(others == target, item, others)
    return Examples(
        histories=histories,
        targets=targets,
        next_histories=np.column_stack([histories[:, 1:], targets]),
        users=np.arange(count),
        ends=np.ones(count, np.bool_),
        n_items=n_items,
    )


def telling_words(texts: Sequence[str], n_words: int = _N_WORDS) -> list[list[str]]:
    """Returns the different words of each text that not most texts have, at least one each.

    Args:
        texts: Of the items.
        n_words: How many different words there are at most over all texts; those that more texts
            have go first.
    """
    found = [
        list(dict.fromkeys(word for word in (w.strip(".,;:()\"'") for w in text.split()) if word))
        for text in texts
    ]
    counts = Counter(word for words in found for word in words)
    rare_enough = {word: n for word, n in counts.items() if n <= _COMMON * len(texts)}
    taken = {word for word, _ in Counter(rare_enough).most_common(n_words)}
    return [
        [word for word in words if word in taken] or words[-1:] or text.split()[-1:]
        for words, text in zip(found, texts, strict=True)
    ]


def _alike(
    words: Sequence[str], same_word: bool, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Returns words for an item of the history and for the right answer."""
    if same_word or len(words) == 1:
        word = _some(words, 1, rng)
        return (
            list(dict.fromkeys([*word, *_some(words, int(rng.integers(2)), rng)])),
            list(dict.fromkeys([*_some(words, int(rng.integers(2)), rng), *word])),
        )
    mixed = _some(words, len(words), rng)
    half = len(mixed) // 2
    return mixed[:half][:3], mixed[half:][:2]


def _some(words: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Returns so many different words, or all, in any order."""
    drawn = rng.permutation(len(words))[:count]
    return [words[number] for number in drawn]
