"""Feedback on all examples, computed once and kept: training never asks the language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from llm_expert.environment.chunks import ChunkFolder
from llm_expert.environment.environment import LLMEnvironment
from llm_expert.errors import LLMError
from recsim_env.artefacts import key
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import DataError, near_miss
from recsim_env.sequences import Examples, IntArray

__all__ = ["CHOOSERS", "Chooser", "precompute"]

Chooser = Literal["llm", "recommender", "random"]
CHOOSERS: tuple[Chooser, ...] = get_args(Chooser)
_Arrays = dict[str, NDArray[Any]]


def precompute(
    environment: LLMEnvironment,
    examples: Examples,
    *,
    negatives: IntArray,
    candidates: IntArray | None = None,
    chooser: Chooser = "llm",
    folder: str | Path | None = None,
    chunk: int = 512,
    seed: int = 0,
    progress: bool = True,
) -> EnvironmentFeedback:
    """Computes states, rewards and augmented actions for examples.

    States and rewards on the one hand and augmented actions on the other are kept as two kinds of
    pieces: other candidates, of a recommender that was trained anew, leave the former as they are.
    A state that stands in several rows of a piece, as the next state of one and the state of the
    next, is computed once.

    Args:
        environment: The tuned language model.
        examples: m rows.
        negatives: (m, k) sampled items, from `sample_negatives`.
        candidates: (m, 5) items for the language model to choose from, the recommender's best
            first, which are shown to it in an order drawn for each row; None: no augmentation.
        chooser: Who chooses. Beside the language model there are two that show what its choice is
            worth: "recommender" takes the first candidate, "random" any. The chosen item's reward
            is the language model's in any case.
        folder: Keeps finished pieces, so that the same call goes on where it was stopped, and
            computes nothing that is there; None keeps nothing.
        chunk: Rows of a piece.
        seed: Of the orders.
        progress: Shows a progress bar.

    Raises:
        DataError: Arrays that do not fit the examples.
        LLMError: The language model gave numbers that are not finite; the pieces that were finished
            are kept.
    """
    m = len(examples)
    _check(environment, examples, negatives, candidates, chunk)
    if chooser not in CHOOSERS:
        raise DataError(f"There is no chooser {chooser!r}; {near_miss(chooser, CHOOSERS)}.")
    common = {"environment": environment.fingerprint, "examples": examples.fingerprint}
    plain = ChunkFolder(folder, "states", key(**common, chunk=chunk, negatives=negatives))
    parts = [np.arange(at, min(at + chunk, m)) for at in range(0, m, chunk)]
    passes = 1 if candidates is None else 2
    with tqdm(
        total=m * passes, desc="feedback of the environment", unit="row", disable=not progress
    ) as bar:

        def piece_by_piece(kept: ChunkFolder, compute: Callable[[IntArray], _Arrays]) -> _Arrays:
            found = []
            for number, rows in enumerate(parts):
                piece = kept.load(number)
                if piece is None:
                    try:
                        piece = compute(rows)
                    except LLMError as error:
                        raise LLMError(
                            f"The feedback on rows {rows[0]} to {rows[-1]} of {m} could not be "
                            f"computed: {error} The {number} pieces before it are kept where a "
                            "folder was given."
                        ) from error
                    kept.save(number, piece)
                found.append(piece)
                bar.update(len(rows))
            return {name: np.concatenate([piece[name] for piece in found]) for name in found[0]}

        arrays = piece_by_piece(
            plain,
            lambda rows: _states_and_rewards(environment, examples.take(rows), negatives[rows]),
        )
        more: _Arrays = {}
        if candidates is not None:
            # the recommender's order would tell, and language models favour places
            lists = np.random.default_rng(seed).permuted(candidates, axis=1)
            if chooser != "llm":
                lists = candidates[:, :1] if chooser == "recommender" else lists[:, :1]
            augmented = ChunkFolder(
                folder, "augmented", key(**common, chunk=chunk, candidates=lists)
            )
            more = piece_by_piece(
                augmented, lambda rows: _augmented(environment, examples.take(rows), lists[rows])
            )
    return EnvironmentFeedback(
        states=arrays["states"],
        next_states=arrays["next_states"],
        rewards=arrays["rewards"],
        negatives=np.asarray(negatives, np.int64),
        negative_rewards=arrays["negative_rewards"],
        augmented=more.get("augmented"),
        augmented_rewards=more.get("augmented_rewards"),
        examples=examples.fingerprint,
    )


def _check(
    environment: LLMEnvironment,
    examples: Examples,
    negatives: IntArray,
    candidates: IntArray | None,
    chunk: int,
) -> None:
    m = len(examples)
    if chunk < 1 or not m:
        raise DataError(
            f"{m} examples came in pieces of {chunk}, expected at least one of each: check the "
            "split and chunk."
        )
    if examples.n_items != environment.n_items:
        raise DataError(
            f"Examples of {examples.n_items} items came for an environment of "
            f"{environment.n_items}, expected the catalogue that it was tuned on: tune one on this."
        )
    for name, array in (("negatives", negatives), ("candidates", candidates)):
        if array is not None and (array.ndim != 2 or len(array) != m or not array.shape[1]):
            raise DataError(
                f"{name} of shape {array.shape} came with {m} examples, expected one row for each "
                "and at least one column."
            )


def _states_and_rewards(
    environment: LLMEnvironment, examples: Examples, negatives: IntArray
) -> _Arrays:
    """Asks for the rows' states and rewards together, and for the next states that remain."""
    actions = np.column_stack([examples.targets, negatives])
    answers = environment.ask(examples.histories, actions)
    known = {row.tobytes(): place for place, row in enumerate(examples.histories)}
    next_states = np.zeros_like(answers.states)
    waiting: dict[bytes, list[int]] = {}
    for place, row in enumerate(examples.next_histories):
        if row.tobytes() in known:
            next_states[place] = answers.states[known[row.tobytes()]]
        else:
            waiting.setdefault(row.tobytes(), []).append(place)
    if waiting:
        firsts = [places[0] for places in waiting.values()]
        states = environment.states(examples.next_histories[firsts])
        for state, places in zip(states, waiting.values(), strict=True):
            next_states[places] = state
    return {
        "states": answers.states,
        "next_states": next_states,
        "rewards": answers.rewards[:, 0],
        "negative_rewards": answers.rewards[:, 1:],
    }


def _augmented(environment: LLMEnvironment, examples: Examples, candidates: IntArray) -> _Arrays:
    """Asks which candidate would be chosen, where there are several, and for its reward."""
    only = candidates.shape[1] == 1
    chosen = candidates[:, 0] if only else environment.choose(examples.histories, candidates)
    return {
        "augmented": chosen,
        "augmented_rewards": environment.rewards(examples.histories, chosen),
    }
