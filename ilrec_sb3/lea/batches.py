"""Train examples and the environment's feedback as batches of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from ilrec_sb3.lea.variants import Variant
from recsim_env.environment_feedback import EnvironmentFeedback, sample_negatives
from recsim_env.errors import DataError
from recsim_env.sequences import Examples

__all__ = ["Batch", "Batches"]


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples; what a variant does not use is None.

    Attributes:
        histories: (B, L) x_{1:t}, left-padded.
        targets: (B,) a_t^+, the next item.
        next_histories: (B, L) x_{1:t+1}.
        ends: (B,) bool, True where nothing follows the next item.
        rewards: (B,) of the next item.
        negatives: (B,) a_t^-, an item that the user did not take.
        negative_rewards: (B,).
        states: (B, E) of the environment at t.
        next_states: (B, E) of the environment at t + 1.
        augmented: (B,) a_t^e, the item that the environment chose.
        augmented_rewards: (B,).
    """

    histories: th.Tensor
    targets: th.Tensor
    next_histories: th.Tensor
    ends: th.Tensor
    rewards: th.Tensor
    negatives: th.Tensor
    negative_rewards: th.Tensor
    states: th.Tensor | None = None
    next_states: th.Tensor | None = None
    augmented: th.Tensor | None = None
    augmented_rewards: th.Tensor | None = None


class Batches:
    """Draws batches for ever: each pass goes through all train examples in a new order.

    Where rewards come from the environment, so do the negatives, since only theirs are known: one
    of each row's is drawn anew for each pass. Else a pass samples its own, which are neither in the
    history nor the next item, and earn 0 while items that were taken or chosen earn 1.

    Args:
        examples: The train examples, at least one.
        feedback: Of the environment, row by row; None for variants without need of it.
        variant: Says which parts of the feedback are used.
        batch_size: B; the last batch of a pass may be smaller.
        device: Where to.

    Raises:
        DataError: There are no examples, or the feedback lacks what the variant needs.
        ArtefactError: The feedback belongs to other examples.
    """

    def __init__(
        self,
        examples: Examples,
        feedback: EnvironmentFeedback | None,
        variant: Variant,
        batch_size: int,
        device: th.device,
    ) -> None:
        if not len(examples):
            raise DataError(
                "There are no train examples, expected at least one; pass data whose train split "
                "has a sequence of two items or more."
            )
        if variant.needs:
            _check(feedback, examples, variant)
        self.examples, self.variant = examples, variant
        self.batch_size, self.device = batch_size, device
        self.feedback = feedback if variant.needs else None
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        self._columns = self._fixed_columns()

    @property
    def states(self) -> th.Tensor:
        """(m, E) of the environment, for variants that use them."""
        return self._columns["states"]

    @property
    def per_pass(self) -> int:
        """The number of batches of a pass."""
        return -(-len(self.examples) // self.batch_size)

    def draw(self, rng: np.random.Generator) -> Batch:
        """Returns the next batch.

        Args:
            rng: Source of the order and of the negatives.
        """
        if not len(self._order):
            self._start_pass(rng)
        rows, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        at = th.from_numpy(rows).to(self.device)
        return Batch(**{name: column[at] for name, column in self._columns.items()})

    def _start_pass(self, rng: np.random.Generator) -> None:
        m = len(self.examples)
        self._order = rng.permutation(m)
        seed = int(rng.integers(2**31))
        if self.feedback is not None and self.variant.rewards:
            pick = rng.integers(self.feedback.negatives.shape[1], size=(m, 1))
            found = np.take_along_axis(self.feedback.negatives, pick, axis=1)[:, 0]
            rewards = np.take_along_axis(self.feedback.negative_rewards, pick, axis=1)[:, 0]
            self._columns["negative_rewards"] = self._tensor(rewards)
        elif self.variant.learns_q:
            found = sample_negatives(self.examples, 1, seed)[:, 0]
        else:
            return
        self._columns["negatives"] = self._tensor(found)

    def _fixed_columns(self) -> dict[str, th.Tensor]:
        """Returns the columns of `Batch` over all examples, negatives to be put in by passes."""
        examples, feedback, variant = self.examples, self.feedback, self.variant
        ones = np.ones(len(examples), np.float32)
        columns: dict[str, Any] = {
            "histories": examples.histories,
            "targets": examples.targets,
            "next_histories": examples.next_histories,
            "ends": examples.ends,
            "rewards": ones,
            "negatives": examples.targets,
            "negative_rewards": np.zeros_like(ones),
        }
        if feedback is not None:
            if "states" in variant.needs:
                columns |= {"states": feedback.states, "next_states": feedback.next_states}
            if "augmented" in variant.needs:
                columns |= {"augmented": feedback.augmented, "augmented_rewards": ones}
            if "rewards" in variant.needs:
                columns["rewards"] = feedback.rewards
                if "augmented" in variant.needs:
                    columns["augmented_rewards"] = feedback.augmented_rewards
        return {name: self._tensor(column) for name, column in columns.items()}

    def _tensor(self, column: NDArray[Any]) -> th.Tensor:
        # A copy: arrays may be read-only, which tensors cannot be.
        return th.tensor(column, device=self.device)


def _check(feedback: EnvironmentFeedback | None, examples: Examples, variant: Variant) -> None:
    if feedback is None:
        raise DataError(
            f"Variant {variant.name} came without feedback, expected the environment's "
            f"{' and '.join(sorted(variant.needs))}; pass feedback, or take SNQN or SA2C alone."
        )
    if "augmented" in variant.needs and feedback.augmented is None:
        raise DataError(
            f"Variant {variant.name} came with feedback without chosen items, expected one for "
            "each train example; let the environment choose among candidates (`top_items`) first."
        )
    feedback.check(examples)
