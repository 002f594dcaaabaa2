"""Encoders over item-id sequences: GRU and SASRec, and how they are trained.

Sequences are int64 item indices padded on the left with ``n_items``. Shapes: B batch, L length,
D size of the output, N items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from tqdm import tqdm

from recsim_env.artefacts import write_folder
from recsim_env.datasets.dataset import Dataset
from recsim_env.errors import ArtefactError, DataError, near_miss
from recsim_env.threads import one_thread

__all__ = [
    "EncoderConfig",
    "GRUEncoder",
    "Objective",
    "SASRecEncoder",
    "build_encoder",
    "fit_encoder",
    "load_encoder",
    "save_encoder",
    "user_sequences",
]

_FORMAT = 1
Kind = Literal["gru", "sasrec"]
Objective = Literal["next_item", "rating"]


@dataclass(frozen=True)
class EncoderConfig:
    """Settings of an encoder and of its training.

    The defaults were chosen on Steam (``benchmarks/results/world_model_steam.md``): trained on
    next items the state ranks them better than popularity does, which training on ratings does
    not bring, and the GRU does it no worse than SASRec at a fraction of the time per step.

    Attributes:
        kind: "gru" or "sasrec".
        objective: What it is trained to predict: the next item, or the next item's rating.
        dim: Size of the output; 16 to 64. Raising it slows every step of the environment.
        max_length: Most items of a sequence that are seen in training (and by SASRec at all).
        blocks: Attention blocks of SASRec.
        dropout: Share of the inputs dropped in training.
        learning_rate: Step size of Adam.
        weight_decay: L2 penalty.
        batch_size: Sequences in a step.
        max_epochs: Passes over the users at most.
        patience: Passes without a better validation figure before the training ends.
        holdout_fraction: Share of the users whose sequences are kept aside for the figures.
    """

    kind: Kind = "gru"
    objective: Objective = "next_item"
    dim: int = 32
    max_length: int = 50
    blocks: int = 1
    dropout: float = 0.5
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    batch_size: int = 64
    max_epochs: int = 30
    patience: int = 8
    holdout_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, known in (("kind", ("gru", "sasrec")), ("objective", ("next_item", "rating"))):
            if getattr(self, name) not in known:
                raise DataError(
                    f"EncoderConfig.{name} is {getattr(self, name)!r}; "
                    f"{near_miss(getattr(self, name), known)}."
                )
        for name in ("dim", "max_length", "blocks", "batch_size", "max_epochs"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"EncoderConfig.{name} is {getattr(self, name)}, expected at least 1."
                )


def _draw(weight: Tensor, std: float) -> None:
    """Fills a weight with normal numbers that are the same on every processor."""
    with torch.no_grad():
        weight.copy_(std * torch.randn(weight.shape, dtype=torch.float64))


class GRUEncoder(nn.Module):
    """One-layer GRU (Hidasi et al., 2016); padding leaves the state as it is.

    Args:
        n_items: N; the index N is padding.
        dim: D.
        dropout: Share of the input vector dropped in training.
        packed: Whether `forward` leaves out padding, which is quicker where many sequences are
            short; its results then differ in the last digits.
    """

    def __init__(
        self, n_items: int, dim: int = 32, dropout: float = 0.0, packed: bool = False
    ) -> None:
        super().__init__()
        self.n_items, self.dim, self.packed = n_items, dim, packed
        self.embedding = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        _draw(self.embedding.weight[:n_items], dim**-0.5)

    def forward(self, items_BL: Tensor) -> Tensor:
        """Encodes sequences: (B, L) item indices to (B, D), the state after the last item."""
        return self._last_packed(items_BL) if self.packed else self.states(items_BL)[:, -1]

    def _last_packed(self, items_BL: Tensor) -> Tensor:
        """As `forward`, at the cost of the items instead of that of all places."""
        width = items_BL.shape[1]
        lengths_B, order_B = (items_BL != self.n_items).sum(1).sort(descending=True, stable=True)
        # Time first, the longest sequence first: of each time those rows that have one, in a block.
        place_LB = torch.arange(width, device=items_BL.device)[:, None] + (width - lengths_B)
        kept_LB = place_LB < width
        sizes_L = kept_LB.sum(1).cpu()
        out_BD = self.embedding.weight.new_zeros(len(items_BL), self.dim)
        if not sizes_L.any():
            return out_BD
        items_P = items_BL[order_B].T.gather(0, place_LB.clamp(max=width - 1))[kept_LB]
        inputs = PackedSequence(self.dropout(self.embedding(items_P)), sizes_L[sizes_L > 0])
        _, last_1KD = self.gru(inputs)
        return out_BD.index_copy(0, order_B[: last_1KD.shape[1]], last_1KD[0])

    def states(self, items_BL: Tensor) -> Tensor:
        """Encodes every prefix: (B, L) item indices to (B, L, D)."""
        if not items_BL.shape[1]:
            items_BL = items_BL.new_full((len(items_BL), 1), self.n_items)
        padding_BL = items_BL == self.n_items
        lengths = (~padding_BL).sum(1)
        # Padding goes to the right, where it cannot touch the states that count, and back.
        width = items_BL.shape[1]
        position = torch.arange(width, device=items_BL.device)
        shift_B1 = (width - lengths)[:, None]
        right_BL = (position + shift_B1).clamp(max=width - 1)
        inputs = self.dropout(self.embedding(items_BL.gather(1, right_BL)))
        states_BLD, _ = self.gru(inputs)
        back_BL = (position - shift_B1).clamp(min=0)
        states_BLD = states_BLD.gather(1, back_BL[..., None].expand(-1, -1, self.dim))
        return torch.where(padding_BL[..., None], 0.0, states_BLD)


class SASRecEncoder(nn.Module):
    """Causal self-attention (Kang and McAuley, 2018) over the last ``max_length`` items.

    Args:
        n_items: N; the index N is padding.
        dim: D.
        max_length: Longest sequence; positions are counted from the end.
        blocks: Attention blocks.
        dropout: Share of the activations dropped in training.
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 32,
        max_length: int = 50,
        blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_items, self.dim, self.max_length = n_items, dim, max_length
        self.embedding = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
        self.position = nn.Embedding(max_length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 1, 2 * dim, dropout, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        _draw(self.embedding.weight[:n_items], dim**-0.5)
        _draw(self.position.weight, 0.1 * dim**-0.5)

    def forward(self, items_BL: Tensor) -> Tensor:
        """Encodes sequences: (B, L) item indices to (B, D), zeros for an empty one."""
        return self._encode(items_BL, last=True)[:, 0]

    def states(self, items_BL: Tensor) -> Tensor:
        """Encodes every prefix: (B, L) item indices, L <= max_length, to (B, L, D)."""
        return self._encode(items_BL, last=False)

    def _encode(self, items_BL: Tensor, last: bool) -> Tensor:
        """Encodes every prefix, or whole sequences only: (B, L, D) or (B, 1, D)."""
        items_BL = items_BL[:, -self.max_length :]
        if not items_BL.shape[1]:
            items_BL = items_BL.new_full((len(items_BL), 1), self.n_items)
        width = items_BL.shape[1]
        padding_BL = items_BL == self.n_items
        position = self.position.weight[:width].flip(0)  # the last place is the first
        x_BLD = self.dropout(self.embedding(items_BL) + position)
        whole = len(self.blocks) - 1 if last else len(self.blocks)
        blocked_BLL = _blocked(padding_BL) if whole else None
        for block in self.blocks[:whole]:
            x_BLD = block(x_BLD, src_mask=blocked_BLL)
        if last:
            block = self.blocks[-1]
            assert isinstance(block, nn.TransformerEncoderLayer)
            x_BLD = _last_place(block, x_BLD, padding_BL)[:, None]
            padding_BL = padding_BL[:, -1:]
        return torch.where(padding_BL[..., None], 0.0, self.norm(x_BLD))


def _blocked(padding_BL: Tensor) -> Tensor:
    """Returns which place (second axis) may not see which (third axis), (B, L, L)."""
    width = padding_BL.shape[1]
    allowed_LL = torch.ones(width, width, dtype=torch.bool, device=padding_BL.device).tril()
    own_LL = torch.eye(width, dtype=torch.bool, device=padding_BL.device)
    # A padded place may see itself, else its softmax would have nothing to sum over.
    return ~((allowed_LL & ~padding_BL[:, None, :]) | own_LL)


def _last_place(block: nn.TransformerEncoderLayer, x_BLD: Tensor, padding_BL: Tensor) -> Tensor:
    """Returns what the block makes of the last place, (B, D), without the work for the others.

    The last place asks all places x for their keys W_k x + b_k and values W_v x + b_v. Its question
    q meets a key as q . W_k x + q . b_k, of which the second part is the same for all places and
    falls out of the softmax: so W_k meets the one question, not all places. The weighted sum of the
    values is W_v (sum of p x) + b_v (sum of p): so W_v meets the one sum.

    Args:
        block: Of one head, with its normalisation first.
        x_BLD: What goes into it.
        padding_BL: Places that nobody sees, but for the last one, which sees itself.
    """
    attention, dim = block.self_attn, x_BLD.shape[-1]
    query_DD, key_DD, value_DD = attention.in_proj_weight.split(dim)
    query_D, _, value_D = attention.in_proj_bias.split(dim)
    normed_BLD, x_BD = block.norm1(x_BLD), x_BLD[:, -1]
    asked_BD = nn.functional.linear(normed_BLD[:, -1], query_DD, query_D) @ key_DD * dim**-0.5
    blocked_BL = nn.functional.pad(padding_BL[:, :-1], (0, 1), value=False)
    scores_BL = (normed_BLD @ asked_BD[:, :, None])[:, :, 0].masked_fill(blocked_BL, -torch.inf)
    shares_BL = nn.functional.dropout(scores_BL.softmax(dim=1), attention.dropout, block.training)
    seen_BD = (shares_BL[:, None] @ normed_BLD)[:, 0]
    value_BD = (
        nn.functional.linear(seen_BD, value_DD) + shares_BL.sum(dim=1, keepdim=True) * value_D
    )
    x_BD = x_BD + block.dropout1(attention.out_proj(value_BD))
    inner_BH = block.dropout(block.activation(block.linear1(block.norm2(x_BD))))
    out_BD: Tensor = x_BD + block.dropout2(block.linear2(inner_BH))
    return out_BD


Encoder = GRUEncoder | SASRecEncoder


def build_encoder(n_items: int, config: EncoderConfig) -> Encoder:
    """Returns a fresh encoder of the configured kind."""
    if config.kind == "gru":
        return GRUEncoder(n_items, config.dim, config.dropout)
    return SASRecEncoder(n_items, config.dim, config.max_length, config.blocks, config.dropout)


def user_sequences(
    dataset: Dataset, rows: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float32]]]:
    """Returns every user's items and ratings, oldest first; shuffled where no order is known.

    Args:
        dataset: The data.
        rows: (n_interactions,) bool, the interactions to use.
        rng: Source of the shuffle.

    Returns:
        Items and ratings, one array a user, empty for a user without rows.
    """
    table = dataset.interactions
    users = table.users[rows]
    rank = rng.permutation(len(users)) if table.order is None else table.order[rows]
    by_user = np.lexsort((rank, users))
    ends = np.cumsum(np.bincount(users, minlength=dataset.n_users))[:-1]
    items = table.items[rows][by_user].astype(np.int64)
    return np.split(items, ends), np.split(table.ratings[rows][by_user], ends)


def fit_encoder(
    dataset: Dataset,
    rows: NDArray[np.bool_],
    config: EncoderConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Encoder, dict[str, Any]]:
    """Trains an encoder on the sequences of the users.

    "next_item": softmax over the catalogue, inner products of the state with the item vectors
    plus an item bias. "rating": squared error of the next item's rating, from the same products.
    On users kept aside the report gives, for either objective, HR@10 of the last item of a
    sequence (items of the sequence before it are not ranked) beside that of the most popular
    items, and the RMSE of a ridge regression of the next rating on state and item mean beside
    that of the item mean alone.

    Args:
        dataset: The data.
        rows: (n_interactions,) bool, the interactions to use.
        config: Settings.
        seed: Of the initial values, the split and the order.
        progress: Shows a progress bar.

    Returns:
        The encoder in evaluation mode, and the report.
    """
    config = config or EncoderConfig()
    started = time.perf_counter()
    rng = np.random.default_rng(seed)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        run = _Fit(dataset, rows, config, rng)
        epochs = run.train(progress)
        report = run.figures(run.aside) | {
            "kind": config.kind,
            "objective": config.objective,
            "dim": config.dim,
            "epochs": epochs,
            "users_aside": len(run.aside),
            "seconds": round(time.perf_counter() - started, 2),
        }
    return run.encoder.float().eval().requires_grad_(False), report


def _left_pad(sequences: Sequence[NDArray[Any]], width: int, fill: float) -> NDArray[Any]:
    """Pads to (n, width) on the left and keeps the last ``width`` entries."""
    dtype = sequences[0].dtype if sequences else np.int64
    out = np.full((len(sequences), width), fill, dtype)
    for row, sequence in zip(out, sequences, strict=True):
        kept = sequence[-width:]
        row[width - len(kept) :] = kept
    return out


class _Fit:
    """One training run."""

    def __init__(
        self,
        dataset: Dataset,
        rows: NDArray[np.bool_],
        config: EncoderConfig,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.rng = config, rng
        self.n_items = dataset.n_items
        self.ordered = dataset.interactions.order is not None
        items, ratings = user_sequences(dataset, rows, rng)
        self.items, self.ratings = items, ratings
        usable = rng.permutation(
            np.array([u for u, s in enumerate(items) if len(s) >= 2], np.int64)
        )
        n_aside = int(len(usable) * config.holdout_fraction)
        # Early stopping and figures use different users.
        self.aside, self.validation = usable[:n_aside], usable[n_aside : 2 * n_aside]
        self.fit = usable[2 * n_aside :]
        # In double precision, as the world model and for the same reason.
        self.encoder = build_encoder(dataset.n_items, config).double()
        counts = np.bincount(dataset.interactions.items[rows], minlength=dataset.n_items)
        start = np.log((counts + 1.0) / (counts.sum() + dataset.n_items))
        self.popularity = torch.from_numpy(counts).float()
        self.mean = float(dataset.interactions.ratings[rows].mean())
        fitted = np.zeros(dataset.n_users, np.bool_)
        fitted[self.fit] = True
        known = rows & fitted[dataset.interactions.users]
        chosen, residual = (
            dataset.interactions.items[known],
            dataset.interactions.ratings[known] - self.mean,
        )
        total = np.bincount(chosen, residual, minlength=dataset.n_items)
        self.item_means = total / (np.bincount(chosen, minlength=dataset.n_items) + 5.0)
        if config.objective == "rating":
            start = np.full(dataset.n_items, self.mean)
        self.item_bias = nn.Parameter(torch.from_numpy(start))
        self.optimiser = torch.optim.Adam(
            [*self.encoder.parameters(), self.item_bias],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def batch(self, users: NDArray[np.int64], shuffle: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, next items and their ratings, each (B, L) and padded on the left."""
        items = [self.items[u] for u in users]
        ratings = [self.ratings[u] for u in users]
        if shuffle:
            orders = [self.rng.permutation(len(s)) for s in items]
            items = [s[o] for s, o in zip(items, orders, strict=True)]
            ratings = [s[o] for s, o in zip(ratings, orders, strict=True)]
        width = min(self.config.max_length, max(len(s) for s in items) - 1)
        padded = _left_pad(items, width + 1, self.n_items)
        rated = _left_pad(ratings, width + 1, 0.0)
        return (
            torch.from_numpy(padded[:, :-1]),
            torch.from_numpy(padded[:, 1:]),
            torch.from_numpy(rated[:, 1:]).double(),
        )

    def scores(self, states: Tensor) -> Tensor:
        """(..., D) states to (..., N) logits or ratings."""
        return states @ self.encoder.embedding.weight[: self.n_items].T + self.item_bias

    def loss(self, users: NDArray[np.int64], shuffle: bool) -> Tensor:
        """Mean loss over all places whose next item is known."""
        inputs_BL, next_BL, rating_BL = self.batch(users, shuffle)
        states = self.encoder.states(inputs_BL)
        there = (next_BL < self.n_items) & (inputs_BL < self.n_items)
        states_PD, target_P = states[there], next_BL[there]
        if self.config.objective == "next_item":
            return nn.functional.cross_entropy(self.scores(states_PD), target_P)
        guess_P = (states_PD * self.encoder.embedding(target_P)).sum(-1) + self.item_bias[target_P]
        return nn.functional.mse_loss(guess_P, rating_BL[there])

    def train(self, progress: bool) -> int:
        """Trains until the validation loss stops falling and keeps the best state."""
        config, best, waited, epoch = self.config, np.inf, 0, 0
        kept = self.snapshot()
        with tqdm(
            total=config.max_epochs, desc="state tracker", unit="epoch", disable=not progress
        ) as bar:
            while epoch < config.max_epochs:
                epoch += 1
                self.encoder.train()
                users = self.rng.permutation(self.fit)
                for start in range(0, len(users), config.batch_size):
                    loss = self.loss(
                        users[start : start + config.batch_size], shuffle=not self.ordered
                    )
                    self.optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    self.optimiser.step()
                self.encoder.eval()
                value = self.validate()
                bar.update()
                bar.set_postfix(loss=f"{value:.4f}")
                if value < best - 1e-4:
                    best, waited, kept = value, 0, self.snapshot()
                else:
                    waited += 1
                    if waited >= config.patience:
                        break
        self.encoder.load_state_dict(kept[0])
        self.item_bias.data.copy_(kept[1])
        self.encoder.eval()
        return epoch

    def snapshot(self) -> tuple[dict[str, Tensor], Tensor]:
        """Copies the weights."""
        state = {name: t.clone() for name, t in self.encoder.state_dict().items()}
        return state, self.item_bias.detach().clone()

    def validate(self) -> float:
        """Mean loss on the validation users (on the fitted ones where there are none)."""
        users = self.validation if len(self.validation) else self.fit
        with torch.no_grad():
            losses = [
                float(self.loss(users[start : start + 256], shuffle=False))
                for start in range(0, len(users), 256)
            ]
        return float(np.mean(losses)) if losses else 0.0

    def figures(self, users: NDArray[np.int64]) -> dict[str, Any]:
        """HR@10 of the last item and RMSE of the next rating on users kept aside."""
        if not len(users):
            return {}
        with torch.no_grad():
            inputs_BL, next_BL, _ = self.batch(users, shuffle=False)
            last_B1 = next_BL[:, -1:]
            scores_BN = self.scores(self.encoder(inputs_BL))
            popular_BN = self.popularity.expand(len(users), -1)
            hits = {}
            for name, ranked_BN in (("hr_at_10", scores_BN), ("hr_at_10_popular", popular_BN)):
                padded = torch.cat([ranked_BN, ranked_BN.new_zeros(len(users), 1)], 1)
                # The last item itself may stand in the sequence before it; it stays a candidate.
                blocked = padded.scatter(1, inputs_BL, -torch.inf).scatter(
                    1, last_B1, padded.gather(1, last_B1)
                )
                top_B10 = blocked[:, : self.n_items].topk(min(10, self.n_items), 1).indices
                hits[name] = float((top_B10 == last_B1).any(1).float().mean())
        return hits | self.rating_probe(users)

    def rating_probe(self, users: NDArray[np.int64]) -> dict[str, float]:
        """Ridge regression of the next rating on (state, item mean), fitted on other users."""
        fit_x, fit_y = self.probe_rows(self.fit[:1000])
        x, y = self.probe_rows(users)
        if len(fit_y) < 2 * fit_x.shape[1]:
            return {}
        gram = fit_x.T @ fit_x + 10.0 * np.eye(fit_x.shape[1])
        guess = x @ np.linalg.solve(gram, fit_x.T @ fit_y)
        return {
            "rating_rmse": float(np.sqrt(np.mean((guess - y) ** 2))),
            "rating_rmse_item_mean": float(np.sqrt(np.mean((x[:, -1] - y) ** 2))),
        }

    def probe_rows(
        self, users: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """State and item mean (P, D + 1), and rating less mean (P,), of all places of users."""
        with torch.no_grad():
            inputs_BL, next_BL, rating_BL = self.batch(users, shuffle=False)
            there = (next_BL < self.n_items) & (inputs_BL < self.n_items)
            states = self.encoder.states(inputs_BL)[there].numpy()
        items = next_BL[there].numpy()
        return (
            np.column_stack([states, self.item_means[items]]),
            rating_BL[there].numpy() - self.mean,
        )


def save_encoder(encoder: Encoder, config: EncoderConfig, folder: str | Path) -> None:
    """Writes an encoder into a folder (safetensors and JSON), whole or not at all.

    Args:
        encoder: The encoder.
        config: What it was made with.
        folder: Where to; an existing folder is replaced.
    """

    def write(target: Path) -> None:
        tensors = {name: t.contiguous() for name, t in encoder.state_dict().items()}
        save_file(tensors, target / "encoder.safetensors")
        meta = {"format": _FORMAT, "n_items": encoder.n_items, "config": asdict(config)}
        (target / "encoder.json").write_text(json.dumps(meta), encoding="utf-8")

    write_folder(folder, write)


def load_encoder(folder: str | Path) -> Encoder:
    """Reads what `save_encoder` wrote.

    Args:
        folder: Where from.

    Returns:
        The encoder in evaluation mode.

    Raises:
        ArtefactError: Where something in the folder is missing or broken.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        with torch.random.fork_rng(devices=[]):
            encoder = build_encoder(meta["n_items"], EncoderConfig(**meta["config"]))
        encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ArtefactError(
            f"{folder} does not hold a whole encoder ({error}); delete the folder and prepare the "
            "data again."
        ) from error
    return encoder.eval().requires_grad_(False)
