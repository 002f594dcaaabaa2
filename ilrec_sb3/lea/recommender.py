"""Sequential recommenders that learn from a language-model environment's feedback."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger, get_device
from stable_baselines3.common.vec_env import VecEnv
from torch import nn
from tqdm import tqdm

from ilrec_sb3.arguments import arguments_of
from ilrec_sb3.lea.batches import Batches
from ilrec_sb3.lea.early_stopping import BestWeights
from ilrec_sb3.lea.histories import Histories, padded_histories
from ilrec_sb3.lea.metrics import ranking_metrics, ranks
from ilrec_sb3.lea.model_file import read_model, write_model
from ilrec_sb3.lea.networks import Backbone, NetworkConfig, RecommenderNetwork
from ilrec_sb3.lea.objective import Objective, objective_losses
from ilrec_sb3.lea.variants import Variant
from recsim_env.artefacts import fingerprint_bytes
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import ArtefactError, DataError, near_miss
from recsim_env.sequences import Examples, SequenceData, SequenceSplit
from recsim_env.settings import check_type

__all__ = ["LEA", "checked_settings"]

SelfLEA = TypeVar("SelfLEA", bound="LEA")

_log = logging.getLogger(__name__)
_MONITOR = "NDCG@10"
_CHUNK = 512
_WARM_UP_PASSES = 2


class LEA:
    """SNQN and SA2C with a language model as the environment, in the manner of Stable-Baselines3.

    Paper: "Reinforcement Learning-based Recommender Systems with Large Language Models for State,
    Reward and Action Modeling" (LEA). The language model's states, rewards and chosen items come as
    `EnvironmentFeedback`, computed beforehand; neither training nor serving calls it. Served is the
    backbone with its supervised head.

    Double Q-learning keeps two whole networks (algorithm 1). Each step draws one of them: all
    losses go to it, it chooses the best next items, and the other one says what they are worth. The
    first of the two is evaluated, saved as the best, and served, so that half of the steps train it
    (all of them under "Normal", which has no second). Targets are valued without dropout; the best
    item in the present state is chosen by the pass that is trained, with it. The language model's
    chosen items are part of the loss from the first step, since the candidates that they were
    chosen from come from a supervised head which was trained before.

    Args:
        backbone: "GRU4Rec" or "SASRec".
        data: The sequences.
        variant: Name or `Variant`; see `ilrec_sb3.lea.variants`.
        feedback: Of the environment on ``data.examples("train")``; None where the variant needs
            none.
        learning_rate: Of Adam; 5e-4 to 5e-3.
        batch_size: Examples in a gradient step.
        gamma: Discount factor, in [0, 1]. Raising it looks further ahead; Q-values grow with
            1 / (1 - gamma), and TD errors with them.
        augmented_supervised_weight: w_ah of eq. 15; raising it trusts the chosen items more.
        augmented_q_weight: w_aq of eq. 15.
        warm_up_steps: Gradient steps after which SA2C weighs its supervised loss by advantages;
            before, they would be those of an untrained Q. Evaluations and early stopping count
            from there on. None: two passes over the train examples for each of the two networks.
        minimum_advantage: Smallest weight of SA2C; None clips nothing, as in the paper. A negative
            weight pushes the next item's probability down without a bound, and rewards of a
            language model make many; 0 leaves such examples to the TD loss.
        scale_rewards: Whether the environment's rewards are scaled to the size of SNQN's (see
            `EnvironmentFeedback.scaled`); the paper says nothing of their size.
        evaluate_every: Gradient steps between two evaluations on the validation split.
        patience: Evaluations without a better NDCG@10 after which `learn` ends; None never does.
        network: Sizes; None takes those of `NetworkConfig`.
        tensorboard_log: As in Stable-Baselines3.
        verbose: As in Stable-Baselines3.
        seed: Of weights, order, negatives and dropout; None draws one.
        device: As in Stable-Baselines3.

    Attributes:
        evaluations: Of the last `learn`: the metrics of each evaluation and, as "step", when.
        best_step: The step of the weights that the last `learn` put back; None without evaluations.
        num_timesteps: Gradient steps since they were last counted from 0.

    Raises:
        DataError: An argument is out of range, or the feedback lacks what the variant needs.
        ArtefactError: The feedback belongs to other data.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: SequenceData | None,
        variant: str | Variant = "SA2C-LEASR",
        feedback: EnvironmentFeedback | None = None,
        learning_rate: float = 1e-3,
        batch_size: int = 100,
        gamma: float = 0.5,
        augmented_supervised_weight: float = 0.1,
        augmented_q_weight: float = 0.01,
        warm_up_steps: int | None = None,
        minimum_advantage: float | None = 0.0,
        scale_rewards: bool = True,
        evaluate_every: int = 1_000,
        patience: int | None = 5,
        network: NetworkConfig | None = None,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.backbone: Backbone = backbone
        self.variant = variant if isinstance(variant, Variant) else Variant.parse(variant)
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.gamma = gamma
        self.augmented_supervised_weight = augmented_supervised_weight
        self.augmented_q_weight = augmented_q_weight
        self.warm_up_steps = warm_up_steps
        self.minimum_advantage = minimum_advantage
        self.scale_rewards = scale_rewards
        self.evaluate_every = evaluate_every
        self.patience = patience
        self.config = network or NetworkConfig()
        self.tensorboard_log = tensorboard_log
        self.verbose = verbose
        self.seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self.device = get_device(device)
        for name, number in checked_settings({n: getattr(self, n) for n in _NUMBERS}).items():
            setattr(self, name, number)
        self.data = data
        self.batches: Batches | None = None
        self._examples: dict[SequenceSplit, Examples] = {}
        self.evaluations: list[dict[str, float]] = []
        self.best_step: int | None = None
        self.num_timesteps = 0
        self._n_updates = 0
        self._logger: Logger | None = None
        self._custom_logger = False
        self._rng = np.random.default_rng(self.seed)
        if _init_setup_model:
            if data is None:
                raise DataError(
                    "LEA came without data, expected the sequences to learn from; pass data, or "
                    "read a trained model with LEA.load."
                )
            self._set_batches(feedback)
            environment_dim = 0
            if "states" in self.variant.needs:
                assert feedback is not None
                environment_dim = feedback.states.shape[1]
            self._setup_model(data.n_items, environment_dim, _catalogue(data))

    # -- set-up ------------------------------------------------------------------------------------

    def _set_batches(self, feedback: EnvironmentFeedback | None) -> None:
        assert self.data is not None
        if feedback is not None and self.variant.rewards and self.scale_rewards:
            feedback = feedback.scaled()
        self.batches = Batches(
            self.data.examples("train", self.config.length),
            feedback,
            self.variant,
            self.batch_size,
            self.device,
        )

    def _setup_model(self, n_items: int, environment_dim: int, catalogue: str) -> None:
        self.n_items, self._environment_dim, self._catalogue = n_items, environment_dim, catalogue
        state = self.variant.state if self.variant.learns_q else None
        with th.random.fork_rng(devices=[]):
            th.manual_seed(self.seed)
            made = [
                RecommenderNetwork(self.backbone, n_items, self.config, state, environment_dim)
                for _ in range(2 if self.variant.learns_q else 1)
            ]
        self.networks = nn.ModuleList(made).to(self.device).eval()
        # Algorithm 1 starts from copies.
        for other in made[1:]:
            other.load_state_dict(made[0].state_dict())
        if self.batches is not None and environment_dim:
            for each in made:
                each.standardise_by(self.batches.states)
        self._objective = Objective(
            self.variant,
            self.gamma,
            self.augmented_supervised_weight,
            self.augmented_q_weight,
            self.minimum_advantage,
        )
        self._optimizers = [
            th.optim.Adam(each.parameters(), lr=self.learning_rate, fused=True) for each in made
        ]

    @property
    def network(self) -> RecommenderNetwork:
        """The network that is evaluated and served, G and Q of the paper."""
        return cast(RecommenderNetwork, self.networks[0])

    @property
    def _warm_up(self) -> int:
        """The number of gradient steps that SA2C makes without advantages."""
        if self.warm_up_steps is not None:
            return self.warm_up_steps
        assert self.batches is not None
        return _WARM_UP_PASSES * self.batches.per_pass * len(self.networks)

    # -- what callbacks of Stable-Baselines3 ask for -----------------------------------------------

    @property
    def logger(self) -> Logger:
        """The logger, there from the first `learn` on or after `set_logger`."""
        if self._logger is None:
            self._logger = configure_logger(self.verbose)
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Logs to this one instead of what `verbose` and `tensorboard_log` ask for."""
        self._logger, self._custom_logger = logger, True

    def get_env(self) -> VecEnv | None:
        """Returns None: there is no environment to step."""
        return None

    def _init_callback(self, callback: MaybeCallback) -> BaseCallback:
        if isinstance(callback, list):
            callback = CallbackList(callback)
        if not isinstance(callback, BaseCallback):
            callback = ConvertCallback(callback)
        callback.init_callback(cast(BaseAlgorithm, self))
        return callback

    # -- learning ----------------------------------------------------------------------------------

    def learn(
        self: SelfLEA,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "lea",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfLEA:
        """Makes gradient steps until there are enough or the validation split sees no progress.

        Every `evaluate_every` steps, and at the end, the validation split is evaluated; the weights
        of the best NDCG@10 are put back at the end. Under SA2C only evaluations after the warm-up
        count; where it ends before, the last one does. Without validation examples the last weights
        stay.

        Args:
            total_timesteps: How many steps at most.
            callback: Called after each; one that returns False ends it.
            log_interval: Steps between two entries of the log.
            tb_log_name: As in Stable-Baselines3.
            reset_num_timesteps: Whether steps are counted from 0 again.
            progress_bar: Whether to show one.

        Returns:
            The model.

        Raises:
            DataError: The model was loaded without what it needs to learn.
            FloatingPointError: The loss is no number any more; the best weights are put back.
        """
        if self.batches is None:
            raise DataError(
                "The model was loaded without data, or without the feedback that its variant "
                "needs, and cannot learn; pass both to LEA.load."
            )
        if reset_num_timesteps:
            self.num_timesteps = 0
        if not self._custom_logger:
            self._logger = configure_logger(
                self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps
            )
        total_timesteps += self.num_timesteps
        calls = self._init_callback(callback)
        best = BestWeights(self.networks, self.patience)
        self.evaluations, self.best_step = [], None
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            th.random.fork_rng(devices=devices),
            tqdm(
                total=total_timesteps,
                initial=self.num_timesteps,
                desc=f"{self.backbone} {self.variant.name}",
                unit="step",
                disable=not progress_bar,
            ) as bar,
        ):
            th.manual_seed(int(self._rng.integers(2**31)))
            calls.on_training_start(locals(), globals())
            try:
                self._steps(total_timesteps, calls, best, log_interval, bar)
            finally:
                best.restore()
                self.best_step = best.step
            calls.on_training_end()
        _log.info(
            "%s %s: best %s %.4f at step %s of %d",
            self.backbone,
            self.variant.name,
            _MONITOR,
            best.value,
            best.step,
            self.num_timesteps,
        )
        return self

    def _steps(
        self,
        total_timesteps: int,
        calls: BaseCallback,
        best: BestWeights,
        log_interval: int,
        bar: tqdm[Any],
    ) -> None:
        recent: list[dict[str, th.Tensor]] = []  # since the last entry of the log
        loss: th.Tensor | None = None
        started, first, evaluated = time.perf_counter(), self.num_timesteps, -1
        while self.num_timesteps < total_timesteps and not best.enough:
            calls.on_rollout_start()
            losses = self._gradient_step()
            loss = losses["loss"]
            if log_interval:
                recent.append(losses)
            self.num_timesteps += 1
            bar.update()
            if self.num_timesteps % self.evaluate_every == 0:
                evaluated = self.num_timesteps
                self._validate(best, loss, bar)
            calls.update_locals(locals())
            go_on = calls.on_step()
            if log_interval and self.num_timesteps % log_interval == 0:
                done = self.num_timesteps - first
                self._write_log(recent, done / (time.perf_counter() - started))
                recent = []
            if not go_on:
                break
        if loss is not None and evaluated != self.num_timesteps:
            self._validate(best, loss, bar)

    def _gradient_step(self) -> dict[str, th.Tensor]:
        """Draws a batch and one of the networks, and trains that one (LEA, algorithm 1)."""
        assert self.batches is not None
        drawn = int(self._rng.integers(len(self.networks)))
        main = cast(RecommenderNetwork, self.networks[drawn])
        other = cast(RecommenderNetwork, self.networks[-1 - drawn])
        batch = self.batches.draw(self._rng)
        weigh = self._n_updates >= self._warm_up
        losses = objective_losses(self._objective, main, other, batch, weigh)
        optimizer = self._optimizers[drawn]
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        self._n_updates += 1
        return {name: value.detach() for name, value in losses.items()}

    def _validate(self, best: BestWeights, loss: th.Tensor, bar: tqdm[Any]) -> None:
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"The loss at step {self.num_timesteps} is {float(loss)}, expected a finite "
                "number; lower learning_rate."
            )
        found = self.evaluate("valid")
        if not found:
            return
        self.evaluations.append({"step": self.num_timesteps, **found})
        warming_up = self.variant.framework == "SA2C" and self._n_updates <= self._warm_up
        best.update(found[_MONITOR], self.num_timesteps, warming_up)
        for name, value in found.items():
            self.logger.record(f"valid/{name}", value)
        self.logger.record("valid/best_step", best.step)
        self.logger.dump(self.num_timesteps)
        bar.set_postfix({_MONITOR: f"{found[_MONITOR]:.4f}", "best": f"{best.value:.4f}"})

    def _write_log(self, recent: list[dict[str, th.Tensor]], rate: float) -> None:
        for name in recent[0]:
            mean = th.stack([scalars[name] for scalars in recent]).mean()
            self.logger.record(f"train/{name}", float(mean))
        self.logger.record("time/gradient_steps_per_second", rate)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    # -- recommending ------------------------------------------------------------------------------

    def predict(self, histories: Histories, k: int = 10, repeats: bool = True) -> NDArray[np.int64]:
        """Recommends the items with the highest scores.

        Args:
            histories: (B, any) left-padded item indices, or B sequences of any lengths.
            k: How many, from 1 to the number of items.
            repeats: Whether items of the history stay where their scores put them; else they come
                after all others. Only the last items are known, as many as the network reads.

        Returns:
            (B, k) item indices, the best first.

        Raises:
            DataError: A history is empty or holds an unknown item, or k is out of range.
        """
        if not 1 <= k <= self.n_items:
            raise DataError(
                f"k={k} came, expected from 1 to the {self.n_items} items of the catalogue."
            )
        found = []
        for padded, scores in self._scores(histories):
            if not repeats:
                # one more place, for the padding
                taken = scores.new_zeros(len(scores), self.n_items + 1).scatter(1, padded, -th.inf)
                scores = scores + taken[:, :-1]
            found.append(scores.topk(k, dim=1).indices)
        return np.asarray(th.cat(found).cpu().numpy()) if found else np.zeros((0, k), np.int64)

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Scores all items, eq. 7 before its softmax.

        Args:
            histories: As in `predict`.

        Returns:
            (B, n_items), higher is better.
        """
        found = [scores.cpu().numpy() for _, scores in self._scores(histories)]
        return np.concatenate(found) if found else np.zeros((0, self.n_items), np.float32)

    def _scores(self, histories: Histories) -> Iterator[tuple[th.Tensor, th.Tensor]]:
        """Yields (b, length) padded histories and (b, n_items) scores, chunk by chunk."""
        padded = padded_histories(histories, self.config.length, self.n_items)
        network = self.network
        for start in range(0, len(padded), _CHUNK):
            with th.inference_mode():
                chunk = th.from_numpy(padded[start : start + _CHUNK]).to(self.device)
                scores = network.logits(network.hidden(chunk))
            yield chunk, scores

    def evaluate(self, split: SequenceSplit) -> dict[str, float]:
        """Ranks the next item of each example among all items.

        Args:
            split: "train", "valid" or "test".

        Returns:
            ``HR@k`` and ``NDCG@k`` for k = 5, 10, 20; empty where the split has no examples.

        Raises:
            DataError: The model was loaded without data.
        """
        if self.data is None:
            raise DataError(
                "The model was loaded without data and has nothing to be evaluated on; pass data "
                "to LEA.load."
            )
        examples = self._examples.get(split)
        if examples is None:
            examples = self._examples[split] = self.data.examples(split, self.config.length)
        if not len(examples):
            return {}
        found, start = [], 0
        for _, scores in self._scores(examples.histories):
            targets = examples.targets[start : start + len(scores)]
            found.append(ranks(scores.cpu().numpy(), targets))
            start += len(scores)
        return ranking_metrics(np.concatenate(found))

    # -- saving ------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes settings and weights into one zip of JSON and safetensors, atomically.

        Data, feedback and the optimisers' state are left out.

        Args:
            path: Where to; ".zip" is added where the name has no ending.

        Returns:
            The path written.
        """
        about = {
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "variant": asdict(self.variant),
            "network": asdict(self.config),
            "n_items": self.n_items,
            "environment_dim": self._environment_dim,
            "catalogue": self._catalogue,
            "num_timesteps": self.num_timesteps,
            "n_updates": self._n_updates,
            "evaluations": self.evaluations,
            "best_step": self.best_step,
        }
        return write_model(path, about, self.networks.state_dict())

    @classmethod
    def load(
        cls,
        path: str | Path,
        data: SequenceData | None = None,
        feedback: EnvironmentFeedback | None = None,
        device: th.device | str = "auto",
        **settings: Any,
    ) -> LEA:
        """Reads a saved model.

        Args:
            path: The file.
            data: To evaluate on and to go on learning from; None for a model that only serves.
            feedback: To go on learning from, with data, where the variant needs it.
            device: Where to.
            **settings: Arguments of the constructor that replace what was saved, such as
                ``learning_rate``, ``verbose`` or ``tensorboard_log``.

        Returns:
            The model; its predictions are those of the one that was saved.

        Raises:
            ArtefactError: The file is missing, broken or of another catalogue than the data.
        """
        known = (*_SETTINGS, "tensorboard_log")
        for name in settings:
            if name not in known:
                raise DataError(
                    f"LEA.load has no setting {name!r} to replace; {near_miss(name, known)}."
                )
        about, weights = read_model(path)
        try:
            model = cls(
                data=None,
                variant=Variant(**about["variant"]),
                network=NetworkConfig(**about["network"]),
                device=device,
                _init_setup_model=False,
                **{**about["settings"], **settings},
            )
            model._setup_model(about["n_items"], about["environment_dim"], about["catalogue"])
            model.networks.load_state_dict(weights)
            model.num_timesteps = about["num_timesteps"]
            model._n_updates = about["n_updates"]
            model.evaluations = about["evaluations"]
            model.best_step = about.get("best_step")
        except (KeyError, TypeError, RuntimeError) as error:
            raise ArtefactError(
                f"{path} does not hold a whole recommender ({error}); expected a file that "
                "LEA.save wrote: train it again."
            ) from error
        if data is not None:
            model._take_data(path, data, feedback)
        return model

    def _take_data(
        self, path: str | Path, data: SequenceData, feedback: EnvironmentFeedback | None
    ) -> None:
        """Takes the data of a loaded model."""
        if _catalogue(data) != self._catalogue:
            raise ArtefactError(
                f"{path} was trained on another catalogue of {self.n_items} items than that of "
                f"{data.name!r} with {data.n_items}; pass the data that it was trained on."
            )
        self.data = data
        if self.variant.needs and feedback is None:
            return
        self._set_batches(feedback)
        if "states" in self.variant.needs:
            assert feedback is not None
            dim = feedback.states.shape[1]
            if dim != self._environment_dim:
                raise ArtefactError(
                    f"{path} was trained on states of {self._environment_dim} numbers and the "
                    f"feedback has {dim}; pass feedback of the same environment."
                )


_SETTINGS = (
    "backbone",
    "learning_rate",
    "batch_size",
    "gamma",
    "augmented_supervised_weight",
    "augmented_q_weight",
    "warm_up_steps",
    "minimum_advantage",
    "scale_rewards",
    "evaluate_every",
    "patience",
    "verbose",
    "seed",
)


_NUMBERS = _SETTINGS[1:]
_BOUNDS = {
    "learning_rate": (1e-12, math.inf),
    "batch_size": (1, math.inf),
    "gamma": (0, 1),
    "augmented_supervised_weight": (0, math.inf),
    "augmented_q_weight": (0, math.inf),
    "warm_up_steps": (0, math.inf),
    "minimum_advantage": (-sys.float_info.max, sys.float_info.max),
    "evaluate_every": (1, math.inf),
    "patience": (1, math.inf),
}


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `LEA` as Python's numbers, having checked types and ranges.

    Args:
        settings: Those of its arguments that are numbers, true or false.

    Raises:
        DataError: One does not fit.
    """
    hints = arguments_of(LEA)
    # a file of JSON takes Python's numbers only
    found = {n: v.item() if isinstance(v, np.generic) else v for n, v in settings.items()}
    for name, value in found.items():
        check_type(name, value, hints[name])
        low, high = _BOUNDS.get(name, (-math.inf, math.inf))
        if value is not None and not low <= value <= high:
            raise DataError(
                f"{name}={value} came, expected from {low:g} to {high:g}; leave it out for the "
                "usual value."
            )
    return found


def _catalogue(data: SequenceData) -> str:
    """Returns the sha256 (hex) of the items' ids in their order."""
    return fingerprint_bytes(*(item.encode() for item in data.item_ids))
