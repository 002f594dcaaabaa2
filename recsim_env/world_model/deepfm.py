"""DeepFM for ratings, several members at once, split into a user half and an item half.

Every table carries a member axis, so that one pass trains a whole ensemble: the tables are small
and a separate pass per member would spend its time on overhead.

Shapes: B batch, N items, M members, K embedding size, H hidden size, C categories, L history.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["DeepFM", "Half"]


class Half(NamedTuple):
    """What one side (user or item) brings to the score of a pair.

    Attributes:
        linear_BM: First-order terms and the interactions among the fields of this side.
        factor_BMK: Sum of the field vectors; the pairwise terms between the two sides are the
            inner product of their factors.
        hidden_BMH: Share of the first layer's input.
    """

    linear_BM: Tensor
    factor_BMK: Tensor
    hidden_BMH: Tensor

    def member(self, index: int) -> Half:
        """Returns one member's share, without the member axis."""
        return Half(self.linear_BM[:, index], self.factor_BMK[:, index], self.hidden_BMH[:, index])


_SUPPORT = 2  # size of what `support` gives


def support(count_B: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Says how much is known of a user or an item; rarely rated ones are rated lower.

    Args:
        count_B: Number of ratings.
        dtype: Of the result.

    Returns:
        (B, 2): 1 / (1 + count) and log(1 + count) / 4.
    """
    count_B = count_B.to(dtype)
    return torch.stack([1.0 / (1.0 + count_B), torch.log1p(count_B) / 4.0], 1)


def pair_terms(fields_BFMK: Tensor) -> Tensor:
    """Second-order factorisation machine: the sum over pairs of fields of their inner products.

    Rendle (2010), eq. 3: half of (square of the sum minus sum of the squares).

    Args:
        fields_BFMK: Field vectors, F fields.

    Returns:
        (B, M).
    """
    total_BMK = fields_BFMK.sum(1)
    return 0.5 * (total_BMK.square().sum(-1) - fields_BFMK.square().sum((1, 3)))


class DeepFM(nn.Module):
    """Ensemble of DeepFM (Guo et al., 2017).

    Fields of the user's side: id, pooled history, features (with the length of the history).
    Fields of the item's side: id, categories, number of ratings.

    score = bias + first-order terms + pairwise inner products of the field vectors + MLP(fields).
    The MLP's first layer and the pairwise terms are sums of a user's and an item's share; only
    the layers above the first have to be computed for each pair.

    Args:
        n_users: Number of known users; index ``n_users`` is the unknown user.
        category_matrix: (n_items, C) float32 of 0/1.
        item_counts: (n_items,) int64, ratings of each item that are fitted on.
        n_features: Number of user features, 0 for none.
        members: M, number of ensemble members.
        embedding_size: K.
        hidden: Sizes of the MLP's layers, at least one.
        generator: Source of the initial values, which are drawn in double precision.
        dtype: Of the weights.
    """

    categories: Tensor
    item_counts: Tensor

    def __init__(
        self,
        n_users: int,
        category_matrix: Tensor,
        item_counts: Tensor,
        n_features: int,
        members: int,
        embedding_size: int,
        hidden: tuple[int, ...],
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        n_items, n_categories = category_matrix.shape
        share = category_matrix / category_matrix.sum(1, keepdim=True).clamp(min=1)
        self.register_buffer("categories", share)
        self.register_buffer("item_counts", item_counts)
        self.n_users, self.n_items, self.n_features = n_users, n_items, n_features
        self.members = members

        def table(rows: int, *shape: int, scale: float) -> nn.Parameter:
            drawn = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
            return nn.Parameter(scale * drawn)

        size, first = embedding_size, hidden[0]
        self.user = table(n_users + 1, members, size, scale=0.05)
        self.history = table(n_items, members, size, scale=0.05)
        self.feature = table(n_features + _SUPPORT, members, size, scale=0.05)
        self.support = table(_SUPPORT, members, size, scale=0.05)
        self.item = table(n_items, members, size, scale=0.05)
        self.category = table(n_categories, members, size, scale=0.05)
        self.bias = nn.Parameter(torch.zeros(members))
        self.user_first = nn.Parameter(torch.zeros(n_users + 1, members))
        self.history_first = nn.Parameter(torch.zeros(n_items, members))
        self.feature_first = nn.Parameter(torch.zeros(n_features + _SUPPORT, members))
        self.support_first = nn.Parameter(torch.zeros(_SUPPORT, members))
        self.item_first = nn.Parameter(torch.zeros(n_items, members))
        self.category_first = nn.Parameter(torch.zeros(n_categories, members))
        self.user_layer = table(members, 3 * size, first, scale=(3 * size) ** -0.5)
        self.item_layer = table(members, 3 * size, first, scale=(3 * size) ** -0.5)
        self.first_bias = nn.Parameter(torch.zeros(members, first))
        sizes = (*hidden, 1)
        self.tail_weights = nn.ParameterList(
            table(members, i, o, scale=i**-0.5) for i, o in itertools.pairwise(sizes)
        )
        with torch.no_grad():  # the fit starts at the first-order terms, without noise
            self.tail_weights[-1].zero_()
        self.tail_biases = nn.ParameterList(
            nn.Parameter(torch.zeros(members, o)) for o in sizes[1:]
        )
        self.to(dtype)

    def user_half(
        self,
        users_B: Tensor,
        history_BL: Tensor,
        features_BF: Tensor,
        unknown_BM: Tensor | None = None,
    ) -> Half:
        """Computes what the user's side brings.

        Args:
            users_B: int64, ``n_users`` for the unknown user.
            history_BL: int64 item indices, padded with ``n_items`` (in any place).
            features_BF: user features, zeros for an unknown user.
            unknown_BM: bool, where a member shall see the unknown user (training).

        Returns:
            The user half.
        """
        user_BMK, first_BM = self.user[users_B], self.user_first[users_B]
        if unknown_BM is not None:
            user_BMK = torch.where(unknown_BM[..., None], self.user[-1], user_BMK)
            first_BM = torch.where(unknown_BM, self.user_first[-1], first_BM)
        pooled_BMK, pooled_first_BM = self._pool(history_BL)
        seen_B = (history_BL < self.n_items).sum(1)
        features_BF = torch.cat([features_BF, support(seen_B, features_BF.dtype)], 1)
        feature_BMK = torch.einsum("bf,fmk->bmk", features_BF, self.feature)
        linear_BM = first_BM + pooled_first_BM + features_BF @ self.feature_first
        fields_BFMK = torch.stack([user_BMK, pooled_BMK, feature_BMK], 1)
        stacked_BMX = torch.cat([user_BMK, pooled_BMK, feature_BMK], -1)
        return Half(
            linear_BM + pair_terms(fields_BFMK),
            fields_BFMK.sum(1),
            torch.einsum("bmx,mxh->bmh", stacked_BMX, self.user_layer) + self.first_bias,
        )

    def _pool(self, history_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the history items' vectors and first-order weights; zeros for no history."""
        members, size = self.history.shape[1:]
        table = torch.cat([self.history.flatten(1), self.history_first], 1)
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        mean = nn.functional.embedding_bag(history_BL, table, mode="mean", padding_idx=self.n_items)
        return mean[:, : members * size].reshape(-1, members, size), mean[:, members * size :]

    def item_half(self, items_B: Tensor, left_out: int = 0) -> Half:
        """Computes what the item's side brings.

        Args:
            items_B: int64 item indices.
            left_out: Ratings of each item that are not counted: 1 in training, where the target
                itself is among them.

        Returns:
            The item half.
        """
        share_BC = self.categories[items_B]
        counts_B = (self.item_counts[items_B] - left_out).clamp(min=0)
        support_BF = support(counts_B, share_BC.dtype)
        fields_BFMK = torch.stack(
            [
                self.item[items_B],
                torch.einsum("bc,cmk->bmk", share_BC, self.category),
                torch.einsum("bf,fmk->bmk", support_BF, self.support),
            ],
            1,
        )
        linear_BM = (
            self.bias
            + self.item_first[items_B]
            + share_BC @ self.category_first
            + support_BF @ self.support_first
        )
        stacked_BMX = torch.cat(fields_BFMK.unbind(1), -1)
        return Half(
            linear_BM + pair_terms(fields_BFMK),
            fields_BFMK.sum(1),
            torch.einsum("bmx,mxh->bmh", stacked_BMX, self.item_layer),
        )

    def score(self, user: Half, item: Half) -> Tensor:
        """Scores pairs, row by row.

        Args:
            user: User half of B users.
            item: Item half of B items.

        Returns:
            (B, M) scores, not clipped.
        """
        x_BMH = torch.relu(user.hidden_BMH + item.hidden_BMH)
        last = len(self.tail_weights) - 1
        for layer, (weight, bias) in enumerate(
            zip(self.tail_weights, self.tail_biases, strict=True)
        ):
            x_BMH = torch.einsum("bmh,mho->bmo", x_BMH, weight) + bias
            if layer < last:
                x_BMH = torch.relu(x_BMH)
        pairs_BM = (user.factor_BMK * item.factor_BMK).sum(-1)
        return user.linear_BM + item.linear_BM + pairs_BM + x_BMH[..., 0]

    def score_all(self, user: Half, item: Half, member: int) -> Tensor:
        """Scores every user of one half against every item of the other, for one member.

        Args:
            user: User half of B users.
            item: Item half of N items.
            member: Index of the member.

        Returns:
            (B, N) scores, not clipped.
        """
        user, item = user.member(member), item.member(member)
        x_BNH = (user.hidden_BMH[:, None] + item.hidden_BMH[None]).relu_()
        last = len(self.tail_weights) - 1
        for layer, (weight, bias) in enumerate(
            zip(self.tail_weights, self.tail_biases, strict=True)
        ):
            x_BNH = x_BNH @ weight[member] + bias[member]
            if layer < last:
                x_BNH = x_BNH.relu_()
        out_BN = user.factor_BMK @ item.factor_BMK.T
        out_BN += x_BNH[..., 0]
        out_BN += user.linear_BM[:, None]
        out_BN += item.linear_BM
        return out_BN
