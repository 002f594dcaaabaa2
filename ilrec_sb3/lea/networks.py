"""What a recommender of LEA is made of: backbone, supervised head and Q head.

B is the batch, L the length of a history, n the number of items, D the size of the backbone's
state, E that of the environment's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch as th
from torch import nn

from ilrec_sb3.lea.losses import item_scores, scores_of
from ilrec_sb3.lea.variants import StateSource
from recsim_env.encoders import GRUEncoder, SASRecEncoder
from recsim_env.errors import DataError, near_miss

__all__ = ["BACKBONES", "Backbone", "NetworkConfig", "RecommenderNetwork"]

Backbone = Literal["GRU4Rec", "SASRec"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the networks.

    Attributes:
        dim: Size of item vectors and hidden state; 64 in the paper.
        length: Items of a history that are seen, the last ones; 10 in the paper.
        blocks: Attention blocks of SASRec.
        dropout: Share of activations dropped in training; 0.1 to 0.5. Raising it helps where there
            are few examples an item.
        tied: Whether the supervised head scores items by their input vectors, so that only its bias
            is its own. Off as in the paper; on, rare items profit from being seen in histories.
    """

    dim: int = 64
    length: int = 10
    blocks: int = 1
    dropout: float = 0.1
    tied: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("dim", "length", "blocks"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"NetworkConfig.{name} is {getattr(self, name)}, expected at least 1."
                )
        if not 0 <= self.dropout < 1:
            raise DataError(
                f"NetworkConfig.dropout is {self.dropout}, expected a share from 0 to below 1: 0.1 "
                "is usual."
            )


class RecommenderNetwork(nn.Module):
    """G and Q of the paper: a backbone with a supervised head and, where asked for, a Q head.

    Args:
        backbone: "GRU4Rec" or "SASRec".
        n_items: n; the index n is padding.
        config: Sizes.
        state: What the Q head sees; None for a network without one.
        environment_dim: E; of no effect where the Q head does not see these states.
    """

    supervised_weight: nn.Parameter | None
    state_mean: th.Tensor
    state_scale: th.Tensor

    def __init__(
        self,
        backbone: Backbone,
        n_items: int,
        config: NetworkConfig,
        state: StateSource | None = None,
        environment_dim: int = 0,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise DataError(f"There is no backbone {backbone!r}; {near_miss(backbone, BACKBONES)}.")
        self.config, self.state = config, state
        self.encoder: GRUEncoder | SASRecEncoder
        if backbone == "GRU4Rec":
            self.encoder = GRUEncoder(n_items, config.dim, config.dropout, packed=True)
        else:
            self.encoder = SASRecEncoder(
                n_items, config.dim, config.length, config.blocks, config.dropout
            )
        self.n_items = n_items
        head = nn.Linear(config.dim, n_items)
        self.supervised_bias = nn.Parameter(head.bias.detach())
        # Tied, the weights are those of the item vectors.
        own_weights = None if config.tied else nn.Parameter(head.weight.detach())
        self.register_parameter("supervised_weight", own_weights)
        self.q_head: nn.Linear | None = None
        if state is not None:
            seen = {"backbone": config.dim, "environment": environment_dim}
            self.q_head = nn.Linear(seen.get(state, config.dim + environment_dim), n_items)
        self.register_buffer("state_mean", th.zeros(environment_dim))
        self.register_buffer("state_scale", th.ones(environment_dim))

    def standardise_by(self, states: th.Tensor) -> None:
        """Takes over the mean and deviation of the environment's states.

        Args:
            states: (m, E) of the train examples. A number that is the same in all rows is only
                centred.
        """
        deviation = states.std(dim=0, correction=0)
        constant = deviation <= 1e-6 * states.abs().amax(dim=0)
        self.state_mean.copy_(states.mean(dim=0))
        self.state_scale.copy_(deviation.masked_fill(constant, 1.0))

    def hidden(self, histories: th.Tensor) -> th.Tensor:
        """Encodes (B, L) left-padded item indices to (B, D), h_t of the paper."""
        return self.encoder(histories)

    def logits(self, hidden: th.Tensor) -> th.Tensor:
        """Scores all items for (B, D) hidden states: (B, n), eq. 7 before its softmax."""
        own_weights = self.supervised_weight
        vectors = self.encoder.embedding.weight[: self.n_items]
        weights = vectors if own_weights is None else own_weights
        return item_scores(hidden, weights, self.supervised_bias)

    def q_state(self, hidden: th.Tensor | None, states: th.Tensor | None) -> th.Tensor:
        """What the Q head sees, eq. 3 and 4; the environment's part is standardised.

        Args:
            hidden: (B, D) from `hidden`; not used where the environment's states are all it sees.
            states: (B, E) of the environment, as they came; None where it does not see them.

        Returns:
            (B, D), (B, D + E) or (B, E).
        """
        if states is None or self.state == "backbone":
            assert hidden is not None
            return hidden
        scaled = (states - self.state_mean) / self.state_scale
        if self.state == "environment":
            return scaled
        assert hidden is not None
        return th.cat([scaled, hidden], dim=1)

    def q_state_of(self, histories: th.Tensor, states: th.Tensor | None) -> th.Tensor:
        """As `q_state`, from (B, L) histories; these are encoded only where that is needed."""
        hidden = None if self.state == "environment" else self.hidden(histories)
        return self.q_state(hidden, states)

    def q_values(self, states: th.Tensor) -> th.Tensor:
        """Q of all items, eq. 9: (B, n) for (B, d) from `q_state`."""
        assert self.q_head is not None
        return item_scores(states, self.q_head.weight, self.q_head.bias)

    def q_of(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Q of (B, A) items, eq. 9: (B, A) for (B, d) from `q_state`."""
        assert self.q_head is not None
        return scores_of(states, self.q_head.weight, self.q_head.bias, actions)
