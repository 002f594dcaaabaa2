"""Networks that score actions: plain ones, and ones that know items by their features.

Over a catalogue of thousands a one-hot head learns next to nothing. An item scorer scores item a in
state s as

    v(s) + f(s) . g(a) + b(a) + c(s) r(s, a) + sum_j T_j(s)[k_j(s, a)] + sum_i p(i) . q(a)

with v the level of the state, g a linear map of the item's features, r(s, a) the reward that the
train world model predicts, and k_1(s, a) the largest count, in the window of the session-end rule,
among the categories of a. Where observations tell the last items, k_2 and k_3 say how near a comes
to any of them, in the space of text embeddings and in that of predicted rewards, as one of a few
classes, and the last sum goes over these items i, with learned vectors p and q of E numbers: which
item does not go after which can be learned by name where no feature shows it. In catalogues of up
to 1,000 items a learned table of all pairs takes the place of the products p(i) . q(a), since such
relations are of no low rank. r and the k_j are the state-item cross features. They say nothing
about the rule (where it bites is learned, one number of T for each count or class), but they put
what it depends on within reach. All follow from the observation, so they exist for replayed states
too, and are shared by the actor and all critics.

r(s, a) is itself a product of the user vector in s and the item's row of the basis, so the first
and the third term are one matrix product. In the expectation of the score over a policy, that
product is with the items' mean columns, which all critics share:

    E_a[score] = [f(s), c(s) u(s), c(s)] . E_a[g(a), v(a), o(a)] + E_a[b(a)]
                 + E_a[sum_j T_j(s)[k_j(s, a)]]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from recsim_env.dynamics import ItemContext

__all__ = [
    "N_CLASSES",
    "N_COUNTS",
    "Coefficients",
    "CrossNet",
    "ItemScorer",
    "PlainScorer",
    "doubt",
    "mlp",
    "nearness_classes",
]

N_COUNTS = 8
"""Counts from 0 to this less one are told apart; larger ones are taken together."""
N_CLASSES = 8
"""Classes of nearness: 0 where nothing was shown yet or for the far half of all pairs of items, the
last for an item and itself."""
_PAIR_DIM = 16  # E
_MOST_PAIRED = 1_000  # items: a larger table of all pairs would cost more than the rest of a step
_PAIR_STEP = 10.0
"""What entries of the table of pairs are multiplied by. Adam moves a number by about a learning
rate at each visit, and most pairs are met a few times only."""
_NEAR = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Shares of all pairs of items below which the classes from 1 on begin."""


def nearness_classes(vectors: np.ndarray) -> np.ndarray:
    """Returns (n, n) uint8, how near items lie to each other, as classes by share of all pairs.

    Class k of 1 to 6 begins where 50, 80, 90, 95, 98 and 99 % of the pairs lie further apart; 7 is
    an item and itself.

    Args:
        vectors: (n, d), one vector an item; nearness is Euclidean.
    """
    vectors = np.asarray(vectors, np.float32)
    square = (vectors**2).sum(1)
    n = len(vectors)
    sample = np.arange(n) if n <= 2_000 else np.linspace(0, n - 1, 2_000).astype(np.int64)
    some = square[sample, None] + square[sample] - 2.0 * vectors[sample] @ vectors[sample].T
    pairs = some[np.triu_indices(len(sample), 1)]
    edges = np.quantile(pairs, [1.0 - share for share in _NEAR]) if len(pairs) else np.zeros(6)
    classes = np.zeros((n, n), np.uint8)
    for start in range(0, n, 1_024):
        part = slice(start, start + 1_024)
        distance = square[part, None] + square - 2.0 * vectors[part] @ vectors.T
        for number, edge in enumerate(edges, start=1):
            classes[part][distance < edge] = number
    np.fill_diagonal(classes, N_CLASSES - 1)
    return classes


def mlp(width: int, hidden: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Returns a stack of linear layers and activations; its last width is ``hidden[-1]``."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), activation()]
        width = size
    return nn.Sequential(*layers)


def doubt(support: np.ndarray, spread: float = 1.0) -> np.ndarray:
    r"""How far the predicted reward of an item may be off, :math:`s / \sqrt{n + 1}`.

    The standard error of a mean of n ratings; the bonus of count-based exploration with
    its sign turned round.

    Args:
        support: (n_items,) how many ratings of each item the world model was fitted on.
        spread: Standard deviation of the ratings of an item.

    Returns:
        (n_items,) float32 in (0, spread].
    """
    return (spread / np.sqrt(np.asarray(support, np.float64) + 1.0)).astype(np.float32)


class CrossNet(nn.Module):
    """What follows from an observation about every item; nothing in it is trained.

    Args:
        context: What the environment says about its items.
        use_tracker: Whether the state tracker is part of what `scaled` gives.
    """

    categories: th.Tensor
    reward_items: th.Tensor
    features: th.Tensor
    input_scale: th.Tensor
    text_near: th.Tensor
    rating_near: th.Tensor

    def __init__(self, context: ItemContext, use_tracker: bool = True) -> None:
        super().__init__()
        self.layout = context.layout
        self.n_items = context.n_items
        self.n_recent = context.layout.n_recent
        self.sizes = (N_COUNTS, *((N_CLASSES, N_CLASSES) if self.n_recent else ()))
        self.base = 2.0 * max(float(context.categories.sum(axis=1).max()), 1.0)
        offset = (context.user_offset - context.user_offset.mean())[:, None]
        scale = np.ones(context.layout.size, np.float32)
        scale[context.layout.user] = 1.0 / np.maximum(context.user_scale, 1e-6)
        scale[context.layout.recent] = 0.0  # names of items, not amounts
        if not use_tracker:
            scale[context.layout.tracker] = 0.0
        buffers = {
            "categories": context.categories.T.copy(),  # (C, n)
            "reward_items": np.concatenate([context.user_basis, offset], axis=1),  # (n, K + 1)
            "features": self._features(context),  # (n, k)
            "input_scale": scale,  # (d,)
        }
        for name, values in buffers.items():
            self.register_buffer(name, th.as_tensor(np.asarray(values, np.float32)))
        if self.n_recent:
            nothing = np.zeros((1, self.n_items), np.uint8)  # row 0: no item
            for name, vectors in (
                ("text_near", context.text),
                ("rating_near", self._rating_vectors(context)),
            ):
                table = np.concatenate([nothing, nearness_classes(vectors)])
                self.register_buffer(name, th.from_numpy(table), persistent=False)

    @staticmethod
    def _rating_vectors(context: ItemContext) -> np.ndarray:
        """Returns (n_items, K + 1): distances between rows are those of predicted rating columns.

        Up to the rank of the basis, and for users whose vectors are spread as the known ones'.
        """
        offset = context.user_offset - context.user_offset.mean()
        return np.concatenate([context.user_basis * context.user_scale, offset[:, None]], axis=1)

    @staticmethod
    def _features(context: ItemContext) -> np.ndarray:
        """Returns (n_items, k) item features, each part of unit scale."""
        size = context.categories.sum(axis=1, keepdims=True)
        offset = context.user_offset - context.user_offset.mean()
        parts = [
            context.categories,
            size / max(float(size.mean()), 1.0),
            (offset / max(float(offset.std()), 1e-6))[:, None],
            (2.0 * doubt(context.support))[:, None],
            context.user_basis / np.maximum(context.user_basis.std(axis=0), 1e-6),
            context.text * np.sqrt(context.text.shape[1] / 4.0),
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def scaled(self, flat: th.Tensor) -> th.Tensor:
        """Returns observations whose parts are all of unit scale, (B, d), or 0 if left out."""
        return flat * self.input_scale

    def user(self, flat: th.Tensor) -> th.Tensor:
        """Returns (B, K + 1) user vectors and a 1; with ``reward_items`` they give r(s, a)."""
        part = flat[:, self.layout.user]
        return th.cat([part, th.ones_like(part[:, :1])], dim=1)

    def forward(self, flat: th.Tensor) -> tuple[th.Tensor, ...]:
        """Returns the cross features k_j of every item, each (B, n) int64.

        Args:
            flat: (B, d) observations.
        """
        counts = self._largest_counts(flat)
        if not self.n_recent:
            return (counts,)
        rows = self.recent(flat)
        return (
            counts,
            *(near[rows].amax(1).long() for near in (self.text_near, self.rating_near)),
        )

    def _largest_counts(self, flat: th.Tensor) -> th.Tensor:
        """Returns (B, n) int64, the largest count in the window among each item's categories.

        The largest exponent of a sum of powers is read off its logarithm, as long as the base
        exceeds the number of terms: one matrix product instead of one for each count.
        """
        powers = self.base ** self._counts(flat)
        total = (powers @ self.categories).clamp_(min=1.0)
        return total.log_().mul_(1.0 / float(np.log(self.base))).add_(1e-3).long()

    def pairs(self, flat: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """Returns the cross features of m items a state, each (B, m) int64; actions (B, m)."""
        counts = (self._counts(flat)[:, None] * self.categories.T[actions]).amax(2)
        found = [counts.long()]
        if self.n_recent:
            rows = self.recent(flat)[:, :, None]
            for near in (self.text_near, self.rating_near):
                found.append(near[rows, actions[:, None]].amax(1).long())
        return tuple(found)

    def _counts(self, flat: th.Tensor) -> th.Tensor:
        counts = flat[:, self.layout.categories] * self.layout.count_scale
        return counts.round().clamp(max=N_COUNTS - 1)

    def recent(self, flat: th.Tensor) -> th.Tensor:
        """Returns (B, n_recent) int64, the last items plus 1, and 0 where there is none."""
        return (flat[:, self.layout.recent] * self.n_items).round().long()


class Coefficients(NamedTuple):
    """What a head says about B states.

    Attributes:
        weights: (B, D + K + 1 + E), factors of the items' columns.
        table: (B, sum of `CrossNet.sizes`), the T_j(s) side by side.
        followed: (B, n) what the last items say about each item by name, the same for all heads
            that learn of pairs; None where p and q say it, or nothing does.
    """

    weights: th.Tensor
    table: th.Tensor
    followed: th.Tensor | None = None


def _looked_up(table: th.Tensor, crossed: Sequence[th.Tensor]) -> th.Tensor:
    """Returns (B, m) sum over j of T_j(s)[k_j(s, a)]; ``crossed`` are (B, m) each."""
    if len(crossed) == 1:
        return table.gather(1, crossed[0])
    parts = table.split([N_COUNTS, *[N_CLASSES] * (len(crossed) - 1)], dim=1)
    total = parts[0].gather(1, crossed[0])
    for part, codes in zip(parts[1:], crossed[1:], strict=True):
        total = total + part.gather(1, codes)
    return total


class ItemScorer(nn.Module):
    """One or more heads that score every item in every state; the heads share g, b, p and q.

    Args:
        n_features: Width of the state features.
        cross: The (shared) cross features.
        n_heads: Number of heads, each with a state network of its own.
        hidden: Widths of the state networks.
        dim: Width D of f and g.
        activation: Of the state networks.
        scale: What the scores are multiplied by; the usual size of what they stand for.
        pair_heads: Which heads learn of pairs of items; None: all.
    """

    def __init__(
        self,
        n_features: int,
        cross: CrossNet,
        n_heads: int,
        hidden: Sequence[int],
        dim: int,
        activation: type[nn.Module],
        scale: float,
        pair_heads: Collection[int] | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.pair_heads = set(range(n_heads) if pair_heads is None else pair_heads)
        self.scale = scale
        width = hidden[-1] if hidden else n_features
        self.table_size = sum(cross.sizes)
        # columns of a head: f(s), c(s), T(s), v(s)
        columns = dim + 1 + self.table_size + 1
        self.heads = nn.ModuleList(
            nn.Sequential(mlp(n_features, hidden, activation), nn.Linear(width, columns))
            for _ in range(n_heads)
        )
        self.item = nn.Linear(cross.features.shape[1], dim + 1)  # g(a), b(a)
        paired = bool(cross.n_recent) and cross.n_items <= _MOST_PAIRED
        self.pair_table = (
            nn.EmbeddingBag(cross.n_items + 1, cross.n_items, mode="sum", padding_idx=0)
            if paired
            else None
        )
        self.pair_dim = _PAIR_DIM if cross.n_recent and not paired else 0
        if self.pair_dim:
            self.before = nn.EmbeddingBag(
                cross.n_items + 1, self.pair_dim, mode="sum", padding_idx=0
            )  # p
            self.after = nn.Parameter(th.zeros(cross.n_items, self.pair_dim))  # q
        with th.no_grad():
            if self.pair_table is not None:
                self.pair_table.weight.zero_()
            if self.pair_dim:
                self.before.weight[1:].normal_(std=self.pair_dim**-0.5)
            for head in self.heads:
                head[-1].weight *= 0.01  # type: ignore[index]
                head[-1].bias.zero_()  # type: ignore[index]
            self.item.weight[-1] *= 0.1
            self.item.bias.zero_()

    def coefficients(
        self, features: th.Tensor, flat: th.Tensor, cross: CrossNet
    ) -> list[Coefficients]:
        """Returns what each head says about the states.

        Args:
            features: (B, n_features) state features.
            flat: (B, d) observations.
            cross: The cross features.
        """
        user = cross.user(flat)
        before = self.before(cross.recent(flat)) if self.pair_dim else None
        followed = None
        if self.pair_table is not None:
            followed = _PAIR_STEP * self.scale * self.pair_table(cross.recent(flat))
        result = []
        for number, head in enumerate(self.heads):
            learns = number in self.pair_heads
            pairs = [] if before is None else [before if learns else th.zeros_like(before)]
            f, slope, table, level = head(features).split([self.dim, 1, self.table_size, 1], dim=1)
            weights = self.scale * th.cat([f, slope * user, *pairs], dim=1)
            # every item has one count, so the level of the state goes with the counts' table
            table = th.cat([table[:, :N_COUNTS] + level, table[:, N_COUNTS:]], dim=1)
            result.append(Coefficients(weights, self.scale * table, followed if learns else None))
        return result

    def columns(
        self, cross: CrossNet, items: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """Returns columns (m, D + K + 1 + E) and biases (m,) of all items, or of the given (m,).

        Where ``items`` have more dimensions, so have columns and biases.
        """
        features, rewards = cross.features, cross.reward_items
        after: list[th.Tensor] = [self.after] if self.pair_dim else []
        if items is not None:
            features, rewards = features[items], rewards[items]
            after = [q[items] for q in after]
        g, bias = self.item(features).split([self.dim, 1], dim=-1)
        return th.cat([g, rewards, *after], dim=-1), self.scale * bias[..., 0]

    def scores(
        self, head: Coefficients, crossed: Sequence[th.Tensor], cross: CrossNet
    ) -> th.Tensor:
        """Returns (B, n) scores of one head; ``crossed`` as `CrossNet` gives it."""
        columns, bias = self.columns(cross)
        scores = th.addmm(bias, head.weights, columns.T) + _looked_up(head.table, crossed)
        return scores if head.followed is None else scores + head.followed

    def pairs(
        self,
        heads: Sequence[Coefficients],
        crossed: Sequence[th.Tensor],
        items: th.Tensor,
        cross: CrossNet,
    ) -> list[th.Tensor]:
        """Returns for each head (B, m) scores of m items a state.

        Args:
            heads: What each head says about the states.
            crossed: As `CrossNet.pairs` gives it.
            items: (B, m) the items.
            cross: The cross features.
        """
        columns, bias = self.columns(cross, items)
        found = []
        for head in heads:
            scores = (head.weights[:, None] * columns).sum(2) + bias
            scores = scores + _looked_up(head.table, crossed)
            if head.followed is not None:
                scores = scores + head.followed.gather(1, items)
            found.append(scores)
        return found

    def expected(
        self,
        heads: Sequence[Coefficients],
        probs: th.Tensor,
        crossed: Sequence[th.Tensor],
        cross: CrossNet,
    ) -> th.Tensor:
        """Returns (n_heads, B) expected scores under (B, n) probabilities."""
        columns, bias = self.columns(cross)
        mean = probs @ th.cat([columns, bias[:, None]], dim=1)
        found = []
        for head in heads:
            of_items = _looked_up(head.table, crossed)
            if head.followed is not None:
                of_items = of_items + head.followed
            level = mean[:, -1] + (probs * of_items).sum(1)
            found.append((head.weights * mean[:, :-1]).sum(1) + level)
        return th.stack(found)


class PlainScorer(nn.Module):
    """One or more multi-layer perceptrons with one output for each action.

    Args:
        n_features: Width of the state features.
        n_actions: Number of actions.
        n_heads: Number of heads.
        hidden: Widths of the hidden layers.
        activation: Of the hidden layers.
        scale: What the scores are multiplied by.
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        n_heads: int,
        hidden: Sequence[int],
        activation: type[nn.Module],
        scale: float,
    ) -> None:
        super().__init__()
        self.scale = scale
        width = hidden[-1] if hidden else n_features
        self.heads = nn.ModuleList(
            nn.Sequential(mlp(n_features, hidden, activation), nn.Linear(width, n_actions))
            for _ in range(n_heads)
        )

    def forward(self, features: th.Tensor) -> list[th.Tensor]:
        """Returns for each head the (B, n) scores of (B, n_features) state features."""
        return [self.scale * head(features) for head in self.heads]
