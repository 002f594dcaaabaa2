"""World model: an ensemble of DeepFM that predicts the rating a user gives an item."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import nnls
from torch import Tensor, nn
from tqdm import tqdm

from recsim_env.artefacts import write_folder
from recsim_env.datasets.dataset import Dataset
from recsim_env.errors import ArtefactError, DataError
from recsim_env.threads import one_thread
from recsim_env.world_model.biases import Biases
from recsim_env.world_model.deepfm import DeepFM, Half
from recsim_env.world_model.kernel import kernel_table

__all__ = ["WorldModel", "WorldModelConfig"]

_FORMAT = 1
_LEAST_ROWS = 10
_PAIRS_AT_ONCE = 8192
_USERS_AT_ONCE = 32
Floats = NDArray[np.float32]
Histories = Sequence[NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class WorldModelConfig:
    """Settings of the world model.

    Attributes:
        members: Models in the ensemble; raising it smooths the mean and costs time, 3 to 8.
        embedding_size: Size of a field's vector, 4 to 32.
        hidden: Sizes of the MLP's layers; every layer above the first is paid for each pair of
            user and item.
        history_cap: Most items of a history that are pooled (the latest, else a random choice).
        unknown_user_dropout: Share of the training rows in which the user is replaced by the
            unknown user; raising it helps users without an id and hurts those with one.
        history_dropout: Share of the training rows in which the history is left out.
        learning_rate: Step size of Adam.
        weight_decay: L2 penalty of all weights but the first-order ones of user and item, divided
            by the number of rows (as a prior's is); raising it pulls the model to the biases.
        batch_size: Rows in a step.
        max_epochs: Passes over the rows at most.
        patience: Passes without a better validation error before the fit ends.
        validation_fraction: Share of the rows kept aside for early stopping and calibration.
        card_fraction: Share of the rows kept aside for the figures of the model card.
        kernel_share: Share of a kernel regression (`kernel_table`) in the ratings of known users,
            in [0, 1]; raising it helps where ratings are few and features tell much. The regression
            needs no early stopping, so in the end it is fitted on the rows kept aside too. None: no
            such regression.
    """

    members: int = 5
    embedding_size: int = 8
    hidden: tuple[int, ...] = (16,)
    history_cap: int = 50
    unknown_user_dropout: float = 0.3
    history_dropout: float = 0.05
    learning_rate: float = 5e-3
    weight_decay: float = 16.0
    batch_size: int = 128
    max_epochs: int = 40
    patience: int = 5
    validation_fraction: float = 0.1
    card_fraction: float = 0.1
    kernel_share: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name in ("members", "embedding_size", "history_cap", "batch_size", "max_epochs"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"WorldModelConfig.{name} is {getattr(self, name)}, expected at least 1."
                )
        if not self.hidden or min(self.hidden) < 1:
            raise DataError(
                f"WorldModelConfig.hidden is {self.hidden}, expected one or more sizes of at "
                "least 1, for example (16,)."
            )
        for name in (
            "unknown_user_dropout",
            "history_dropout",
            "validation_fraction",
            "card_fraction",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(
                    f"WorldModelConfig.{name} is {getattr(self, name)}, expected a share in [0, 1)."
                )
        if self.kernel_share is not None and not 0 <= self.kernel_share <= 1:
            raise DataError(
                f"WorldModelConfig.kernel_share is {self.kernel_share}, expected a share in [0, 1] "
                "or None."
            )
        if self.validation_fraction + self.card_fraction > 0.8:
            raise DataError(
                "WorldModelConfig keeps more than 80 % of the rows aside; lower "
                "validation_fraction or card_fraction."
            )


class _Rows(NamedTuple):
    """Interactions as plain arrays."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    ratings: Floats

    def take(self, index: NDArray[np.intp]) -> _Rows:
        return _Rows(self.users[index], self.items[index], self.ratings[index])


def _pad(histories: Histories, cap: int, n_items: int) -> NDArray[np.int64]:
    """Pads histories with ``n_items`` to one (n, L) array, keeping the last ``cap`` items."""
    width = max(1, min(cap, max((len(h) for h in histories), default=0)))
    out = np.full((len(histories), width), n_items, np.int64)
    for row, history in zip(out, histories, strict=True):
        kept = history[-width:]
        row[: len(kept)] = kept
    return out


class WorldModel:
    """Predicts ratings in [1, 5] from user, history, item, categories and user features.

    An ensemble of DeepFM (Guo et al., 2017); the mean over the members is the reward of a
    recommendation, their disagreement the uncertainty. A user without an id (index -1) is known
    by the history alone: in training the id is left out at random. In training the target's own
    item never stands in its history; a prediction uses the whole history, also where it holds the
    item that is scored. The first-order weights start at regularised biases, each training row
    seeing them less its own share (`Biases.own_share`). With ``kernel_share``, the mean of a known
    user is blended with a kernel regression; the disagreement stays that of the members.

    Made by :meth:`fit` or :meth:`load`.
    """

    def __init__(
        self,
        network: DeepFM,
        config: WorldModelConfig,
        histories_UL: NDArray[np.int64],
        user_features: Floats,
        variance_fit: tuple[float, float] = (1.0, 0.0),
        report: dict[str, Any] | None = None,
        kernel_UI: Floats | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = config
        self.report: dict[str, Any] = report or {}
        self._histories_UL = histories_UL
        self._user_features = user_features
        self._kernel_UI = kernel_UI
        self.variance_fit = variance_fit
        with torch.no_grad():
            self._items = network.item_half(torch.arange(network.n_items))

    def __repr__(self) -> str:
        """Returns the sizes."""
        net = self.network
        return f"WorldModel({net.n_users} users, {net.n_items} items, {net.members} members)"

    @property
    def n_users(self) -> int:
        """Number of known users."""
        return self.network.n_users

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.network.n_items

    @property
    def item_vectors(self) -> Floats:
        """What the model knows of an item: (n_items, members * embedding_size) float32."""
        return self._items.factor_BMK.flatten(1).numpy()

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        rows: NDArray[np.bool_],
        config: WorldModelConfig | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> WorldModel:
        """Fits the ensemble.

        Args:
            dataset: The data.
            rows: (n_interactions,) bool, the interactions to use. Those kept aside for validation
                and for the card are taken from them.
            config: Settings.
            seed: Of the split, the initial values and the order of the rows.
            progress: Shows a progress bar.

        Returns:
            The fitted model; its ``report`` holds errors on the interactions kept aside.
        """
        config = config or WorldModelConfig()
        started = time.perf_counter()
        rng = np.random.default_rng(seed)
        table = dataset.interactions
        order = None if table.order is None else table.order[rows]
        data = _Rows(table.users[rows], table.items[rows], table.ratings[rows])
        count = len(data.ratings)
        if count < _LEAST_ROWS:
            raise DataError(
                f"The world model got {count} interactions, expected at least {_LEAST_ROWS}; "
                "lower the thresholds of the k-core or bring more data."
            )
        shuffled = rng.permutation(count)
        n_card, n_validation = (
            int(count * share) for share in (config.card_fraction, config.validation_fraction)
        )
        card, validation, fit = np.split(shuffled, [n_card, n_card + n_validation])
        biases = Biases.tune(
            data.take(fit), data.take(validation), (dataset.n_users, dataset.n_items)
        )
        histories_UL = _user_histories(data.take(fit), order, fit, dataset, config, rng)
        features = dataset.user_features
        if features is None:
            features = np.zeros((dataset.n_users, 0), np.float32)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        network = DeepFM(
            dataset.n_users,
            torch.from_numpy(np.array(dataset.catalogue.category_matrix, np.float32)),
            torch.from_numpy(np.bincount(data.items[fit], minlength=dataset.n_items)),
            features.shape[1],
            config.members,
            config.embedding_size,
            config.hidden,
            generator,
            torch.float64,
        )
        with torch.no_grad():
            network.bias.fill_(biases.mean)
            network.user_first[:-1] = torch.from_numpy(biases.users)[:, None]
            network.item_first[:] = torch.from_numpy(biases.items)[:, None]
        trainer = _Trainer(network, config, data, histories_UL, features, biases, fit, generator)
        with one_thread():
            epochs = trainer.run(fit, validation, rng, progress)
        network.float()
        held_out = card if len(card) else validation
        kernel_UI = _kernel(config, data.take(fit), features, dataset)
        model = cls(network, config, histories_UL, features, kernel_UI=kernel_UI)
        model.variance_fit = model._calibrate(data.take(validation))
        model.report = {
            **model._errors(data.take(fit), data.take(held_out), biases),
            "rows": {"fit": len(fit), "validation": len(validation), "card": len(card)},
            "epochs": epochs,
            "seed": seed,
            "seconds": round(time.perf_counter() - started, 2),
        }
        model._kernel_UI = _kernel(config, data, features, dataset)
        return model

    def predict(
        self,
        users: NDArray[np.integer[Any]],
        items: NDArray[np.integer[Any]],
        histories: Histories | None = None,
    ) -> tuple[Floats, Floats]:
        """Predicts the ratings of pairs.

        Args:
            users: (n,) indices, -1 for the unknown user.
            items: (n,) indices.
            histories: n int arrays of item indices; ``None`` takes the interactions that the
                model was fitted on.

        Returns:
            Mean (n,), clipped to [1, 5], and variance (n,): the expected squared error.
        """
        who = np.asarray(users, np.int64)
        items = np.asarray(items, np.int64)
        if len(items) and not 0 <= items.min() <= items.max() < self.n_items:
            raise DataError(
                f"Item indices run from {items.min()} to {items.max()}, expected 0 to "
                f"{self.n_items - 1}."
            )
        mean, variance = np.empty(len(who), np.float32), np.empty(len(who), np.float32)
        for start in range(0, len(who), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            user = self._user_half(who[part], None if histories is None else histories[part])
            chosen = torch.from_numpy(items[part])
            item = Half(*(t[chosen] for t in self._items))
            with torch.no_grad():
                scores_BM = self.network.score(user, item).numpy()
            mean[part] = scores_BM.mean(1)
            variance[part] = self._variance(scores_BM.var(1))
        if self._kernel_UI is not None:
            known = who >= 0
            mean[known] = self._blend(mean[known], self._kernel_UI[who[known], items[known]])
        return mean.clip(1.0, 5.0), variance

    def rows(
        self,
        users: NDArray[np.integer[Any]] | None = None,
        histories: Histories | None = None,
        user_features: Floats | None = None,
    ) -> Floats:
        """Predicts the ratings of every item.

        Args:
            users: (n,) indices, -1 for the unknown user; ``None`` with histories means n unknown
                users, ``None`` without means all known users.
            histories: As in :meth:`predict`.
            user_features: (n, k) float32 in place of the dataset's own; for unknown users.

        Returns:
            (n, n_items) float32, clipped to [1, 5].
        """
        return self._all(users, histories, user_features, with_variance=False)[0]

    def rows_with_variance(
        self,
        users: NDArray[np.integer[Any]] | None = None,
        histories: Histories | None = None,
        user_features: Floats | None = None,
    ) -> tuple[Floats, Floats]:
        """Predicts the ratings of every item with their variance; see :meth:`rows`.

        Returns:
            Mean and variance, both (n, n_items) float32.
        """
        return self._all(users, histories, user_features, with_variance=True)

    def _all(
        self,
        users: NDArray[np.integer[Any]] | None,
        histories: Histories | None,
        user_features: Floats | None,
        with_variance: bool,
    ) -> tuple[Floats, Floats]:
        if users is None:
            users = np.arange(self.n_users) if histories is None else np.full(len(histories), -1)
        user = self._user_half(np.asarray(users, np.int64), histories, user_features)
        count, members = len(users), self.network.members
        mean = torch.zeros(count, self.n_items)
        square = torch.zeros(count, self.n_items) if with_variance else torch.zeros(0)
        with torch.no_grad():
            for start in range(0, count, _USERS_AT_ONCE):
                part = slice(start, start + _USERS_AT_ONCE)
                half = Half(*(t[part] for t in user))
                for member in range(members):
                    score = self.network.score_all(half, self._items, member)
                    mean[part] += score
                    if with_variance:
                        # Around 3 the squares lose fewer digits than around 0.
                        square[part] += score.sub_(3.0).square_()
            mean /= members
            if with_variance:
                square = (square / members - (mean - 3.0).square()).clamp_(min=0.0)
        out: Floats = mean.numpy()
        if self._kernel_UI is not None:
            known = np.asarray(users) >= 0
            out[known] = self._blend(out[known], self._kernel_UI[users[known]])
        return out.clip(1.0, 5.0), self._variance(square.numpy())

    def _blend(self, network: Floats, kernel: Floats) -> Floats:
        """Ratings of known users, from the network's and the kernel regression's."""
        share = np.float32(self.config.kernel_share or 0.0)
        return network + share * (kernel - network)

    def _user_half(
        self,
        users: NDArray[np.int64],
        histories: Histories | None,
        user_features: Floats | None = None,
    ) -> Half:
        """User half of the given users; see :meth:`rows` for the arguments."""
        if len(users) and not -1 <= users.min() <= users.max() < self.n_users:
            raise DataError(
                f"User indices run from {users.min()} to {users.max()}, expected -1 (unknown) to "
                f"{self.n_users - 1}."
            )
        known = users >= 0
        if histories is None:
            padded_BL = np.full((len(users), self._histories_UL.shape[1]), self.n_items, np.int64)
            padded_BL[known] = self._histories_UL[users[known]]
        else:
            if len(histories) != len(users):
                raise DataError(
                    f"{len(histories)} histories came for {len(users)} users, expected one each."
                )
            padded_BL = _pad(histories, self.config.history_cap, self.n_items)
        if user_features is None:
            user_features = np.zeros((len(users), self.network.n_features), np.float32)
            user_features[known] = self._user_features[users[known]]
        elif user_features.shape != (len(users), self.network.n_features):
            raise DataError(
                f"user_features has shape {user_features.shape}, expected "
                f"({len(users)}, {self.network.n_features})."
            )
        with torch.no_grad():
            return self.network.user_half(
                torch.from_numpy(np.where(known, users, self.n_users)),
                torch.from_numpy(padded_BL),
                torch.from_numpy(np.ascontiguousarray(user_features, np.float32)),
            )

    def _variance(self, spread: Floats) -> Floats:
        """Expected squared error from the members' variance."""
        scale, offset = self.variance_fit
        return (scale * spread + offset).astype(np.float32)

    def _calibrate(self, validation: _Rows) -> tuple[float, float]:
        """Least squares of squared errors on the members' variance, both weights at least 0."""
        if not len(validation.ratings):
            return 1.0, 0.0
        mean, spread = self.predict(validation.users, validation.items)
        error = (mean - validation.ratings).astype(np.float64) ** 2
        design = np.stack([spread.astype(np.float64), np.ones(len(spread))], 1)
        weights, _ = nnls(design, error)
        return float(weights[0]), float(weights[1])

    def _errors(self, fit: _Rows, held_out: _Rows, biases: Biases) -> dict[str, Any]:
        """Errors on held-out rows, of the model and of the baselines, and of the variance."""
        if not len(held_out.ratings):
            return {}
        truth = held_out.ratings.astype(np.float64)
        mean, variance = self.predict(held_out.users, held_out.items)
        histories = [h[h < self.n_items] for h in self._histories_UL[held_out.users]]
        blind, _ = self.predict(np.full(len(truth), -1), held_out.items, histories)
        seen, _ = self.predict(fit.users, fit.items)
        guesses = {
            "constant": np.full(len(truth), fit.ratings.mean(dtype=np.float64)),
            "biases": biases.predict(held_out.users, held_out.items),
            "model": mean.astype(np.float64),
            "model_unknown_user": blind.astype(np.float64),
        }
        report: dict[str, Any] = {
            name: {
                "rmse": float(np.sqrt(np.mean((guess - truth) ** 2))),
                "mae": float(np.mean(np.abs(guess - truth))),
            }
            for name, guess in guesses.items()
        }
        report |= report["model"]
        report["rmse_on_fit_rows"] = float(np.sqrt(np.mean((seen - fit.ratings) ** 2)))
        report["calibration"] = _calibration(mean, variance, held_out.ratings)
        report["variance_fit"] = {"scale": self.variance_fit[0], "offset": self.variance_fit[1]}
        return report

    def save(self, folder: Path) -> None:
        """Writes the model into a folder (safetensors and JSON), whole or not at all.

        Args:
            folder: Where to; an existing folder is replaced.
        """

        def write(target: Path) -> None:
            tensors = dict(self.network.state_dict())
            tensors["histories"] = torch.from_numpy(self._histories_UL)
            tensors["user_features"] = torch.from_numpy(np.array(self._user_features))
            if self._kernel_UI is not None:
                tensors["kernel"] = torch.from_numpy(self._kernel_UI)
            save_file(
                {name: t.contiguous() for name, t in tensors.items()},
                target / "model.safetensors",
            )
            meta = {
                "format": _FORMAT,
                "config": asdict(self.config),
                "variance_fit": self.variance_fit,
                "report": self.report,
            }
            (target / "model.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

        write_folder(Path(folder), write)

    @classmethod
    def load(cls, folder: Path) -> WorldModel:
        """Reads what :meth:`save` wrote.

        Args:
            folder: Where from.

        Returns:
            The model.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            if meta["format"] != _FORMAT:
                raise ArtefactError(
                    f"{folder} holds a world model of format {meta['format']}, expected "
                    f"{_FORMAT}; delete the folder and prepare the data again."
                )
            config = WorldModelConfig(**meta["config"])
            tensors = load_file(folder / "model.safetensors")
            histories = tensors.pop("histories").numpy()
            features = tensors.pop("user_features").numpy()
            kernel = tensors.pop("kernel").numpy() if "kernel" in tensors else None
            network = DeepFM(
                len(tensors["user"]) - 1,
                tensors["categories"],
                tensors["item_counts"],
                features.shape[1],
                config.members,
                config.embedding_size,
                config.hidden,
                torch.Generator(),
            )
            network.load_state_dict(tensors)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, ArtefactError):
                raise
            raise ArtefactError(
                f"{folder} does not hold a whole world model ({error}); delete the folder and "
                "prepare the data again."
            ) from error
        scale, offset = meta["variance_fit"]
        return cls(network, config, histories, features, (scale, offset), meta["report"], kernel)


def _kernel(
    config: WorldModelConfig, rows: _Rows, features: Floats, dataset: Dataset
) -> Floats | None:
    """The kernel regression's ratings of every pair, (n_users, n_items); None where not wanted."""
    if config.kernel_share is None:
        return None
    return kernel_table(*rows, features, dataset.catalogue.category_matrix)


def _user_histories(
    fit: _Rows,
    order: NDArray[np.int64] | None,
    index: NDArray[np.intp],
    dataset: Dataset,
    config: WorldModelConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Items of every user, (n_users, L), padded: in order of time, or shuffled without one."""
    rank = rng.permutation(len(fit.users)) if order is None else order[index]
    by_user = np.lexsort((rank, fit.users))
    ends = np.cumsum(np.bincount(fit.users, minlength=dataset.n_users))
    items = np.split(fit.items[by_user], ends[:-1])
    return _pad(items, config.history_cap, dataset.n_items)


def _calibration(mean: Floats, variance: Floats, truth: Floats, bins: int = 5) -> dict[str, Any]:
    """Predicted against observed error in bins of equal size, by rising variance."""
    error = (mean - truth).astype(np.float64) ** 2
    parts = np.array_split(np.argsort(variance, kind="stable"), bins)
    return {
        "predicted_rmse": [float(np.sqrt(variance[p].mean())) for p in parts if len(p)],
        "observed_rmse": [float(np.sqrt(error[p].mean())) for p in parts if len(p)],
        "variance_over_squared_error": float(variance.mean() / max(error.mean(), 1e-12)),
    }


class _Trainer:
    """Adam on mini-batches with early stopping; the members share the order of the rows.

    In double precision: in single precision processors that round the last bit differently come to
    different weights and stop at different epochs, and the same data would give each its own world.
    """

    def __init__(
        self,
        network: DeepFM,
        config: WorldModelConfig,
        data: _Rows,
        histories_UL: NDArray[np.int64],
        features: Floats,
        biases: Biases,
        fit: NDArray[np.intp],
        generator: torch.Generator,
    ) -> None:
        self.network, self.config, self.generator = network, config, generator
        self.users = torch.from_numpy(data.users.astype(np.int64))
        self.items = torch.from_numpy(data.items.astype(np.int64))
        self.ratings = torch.from_numpy(data.ratings).double()
        self.histories_UL = torch.from_numpy(histories_UL)
        self.features = torch.from_numpy(np.array(features, np.float64))
        # What each rating adds to its own two biases; see `Biases.own_share`.
        own = np.zeros((2, len(data.users)))
        own[:, fit] = biases.own_share(*data.take(fit))
        self.own_user, self.own_item = torch.from_numpy(own)
        biases_: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            (biases_ if name in ("user_first", "item_first") else others).append(parameter)
        self.optimiser = torch.optim.Adam(
            [
                {"params": others, "weight_decay": config.weight_decay / max(len(fit), 1)},
                {"params": biases_, "lr": 0.1 * config.learning_rate},
            ],
            lr=config.learning_rate,
        )

    def run(
        self,
        fit: NDArray[np.intp],
        validation: NDArray[np.intp],
        rng: np.random.Generator,
        progress: bool,
    ) -> int:
        """Trains until the validation error stops falling and keeps the best state.

        Returns:
            Passes over the rows.
        """
        best, best_state, waited, epoch = np.inf, None, 0, 0
        with tqdm(
            total=self.config.max_epochs, desc="world model", unit="epoch", disable=not progress
        ) as bar:
            while epoch < self.config.max_epochs:
                epoch += 1
                loss = self._epoch(rng.permutation(fit))
                if len(validation):
                    loss = self._error(validation)
                bar.update()
                bar.set_postfix(rmse=f"{loss**0.5:.4f}")
                if loss < best - 1e-5:
                    best, waited = loss, 0
                    best_state = {name: t.clone() for name, t in self.network.state_dict().items()}
                else:
                    waited += 1
                    if waited >= self.config.patience:
                        break
        if best_state is not None:
            self.network.load_state_dict(best_state)
        return epoch

    def _batches(self, index: NDArray[np.intp]) -> Iterator[Tensor]:
        yield from torch.from_numpy(index).split(self.config.batch_size)

    def _epoch(self, index: NDArray[np.intp]) -> float:
        """One pass; returns the mean squared error of the ensemble's members."""
        total, config, members = 0.0, self.config, self.network.members
        for batch in self._batches(index):
            items = self.items[batch]
            history_BL = self.histories_UL[self.users[batch]]
            draw = torch.rand(len(batch), members + 1, generator=self.generator)
            # Leave-one-out: the target's own item would give its rating away.
            hidden = history_BL == items[:, None]
            hidden |= draw[:, :1] < config.history_dropout
            history_BL = history_BL.masked_fill(hidden, self.network.n_items)
            unknown_BM = draw[:, 1:] < config.unknown_user_dropout
            scores_BM = self.network.score(
                self.network.user_half(
                    self.users[batch],
                    history_BL,
                    self.features[self.users[batch]],
                    unknown_BM,
                ),
                self.network.item_half(items, left_out=1),
            )
            own_BM = self.own_item[batch, None] + self.own_user[batch, None] * ~unknown_BM
            error_BM = (scores_BM - own_BM - self.ratings[batch, None]).square()
            self.optimiser.zero_grad(set_to_none=True)
            # A sum over members: each gets the gradient it would get on its own.
            error_BM.mean(0).sum().backward()
            self.optimiser.step()
            total += float(error_BM.detach().mean()) * len(batch)
        return total / max(len(index), 1)

    def _error(self, index: NDArray[np.intp]) -> float:
        """Mean squared error of the ensemble's mean, users with and without id as in training."""
        share = self.config.unknown_user_dropout
        known = self.users
        unknown = torch.full_like(known, self.network.n_users)
        return (1.0 - share) * self._error_as(index, known) + share * self._error_as(index, unknown)

    def _error_as(self, index: NDArray[np.intp], shown: Tensor) -> float:
        """Mean squared error where the network is shown these user ids."""
        total = 0.0
        with torch.no_grad():
            for batch in torch.from_numpy(index).split(_PAIRS_AT_ONCE):
                users = self.users[batch]
                scores_BM = self.network.score(
                    self.network.user_half(
                        shown[batch], self.histories_UL[users], self.features[users]
                    ),
                    self.network.item_half(self.items[batch]),
                )
                error = scores_BM.mean(1).clamp(1.0, 5.0) - self.ratings[batch]
                total += float(error.square().sum())
        return total / len(index)
