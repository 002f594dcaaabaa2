"""Discrete soft actor-critic: ILRec without demonstrations."""

from __future__ import annotations

import io
import json
import logging
import pathlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv

from ilrec_sb3.common.buffers import DemonstrationSamples, MaskedReplayBuffer
from ilrec_sb3.common.make_env import as_vec_env
from ilrec_sb3.common.masking import masked_entropy
from ilrec_sb3.ilrec.heads import doubt
from ilrec_sb3.ilrec.losses import (
    actor_loss,
    critic_loss,
    critic_target,
    entropy_temperature_loss,
    imitation_loss,
    outcome_loss,
    policy_loss,
    soft_value,
    spread_penalty,
    target_entropy,
)
from ilrec_sb3.ilrec.policies import ILRecPolicy, MlpPolicy, MultiInputPolicy, Outcomes
from recsim_env.artefacts import write_file
from recsim_env.dynamics import ItemContext

__all__ = ["DiscreteSAC", "LinearDecay", "updates_for"]

SelfDiscreteSAC = TypeVar("SelfDiscreteSAC", bound="DiscreteSAC")

logger = logging.getLogger(__name__)

_TINY = 1e-30
_STATE_FILE = "training_state.safetensors"
# Early on the actor's average spans the last tenth of the gradient steps, not a fixed number.
_AVERAGED = 10


class Batch(NamedTuple):
    """Transitions of one gradient step; the last ``n_demonstrations`` rows are demonstrated ones.

    Attributes:
        observations: (B, d) flat.
        actions: (B, 1) int64.
        next_observations: (B, d) flat.
        dones: (B, 1).
        rewards: (B, 1).
        discounts: (B, 1) or a number.
        masks: (B, n) bool or None.
        next_masks: (B, n) bool or None.
        n_demonstrations: How many rows are demonstrated.
        returns: (n_demonstrations,) discounted rewards from the demonstrated ones on, or None.
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | float
    masks: th.Tensor | None
    next_masks: th.Tensor | None
    n_demonstrations: int
    returns: th.Tensor | None = None


@dataclass(frozen=True)
class LinearDecay:
    """A learning rate that falls in a straight line.

    Attributes:
        start: At the start.
        share: What is left of it at the end, in [0, 1].
    """

    start: float
    share: float

    def __call__(self, progress_remaining: float) -> float:
        """Returns the rate where ``progress_remaining`` falls from 1 to 0."""
        return self.start * (self.share + (1.0 - self.share) * max(progress_remaining, 0.0))


def updates_for(n_actions: int) -> float:
    """Returns the gradient steps per env step for so many actions, from 1/30 to 1/4.

    A gradient step takes time in proportion to the actions; with 50 / n_actions of them a small
    catalogue gets as much time for each env step as one of 1,500 items.
    """
    return min(1 / 4, max(1 / 30, 50 / n_actions))


class DiscreteSAC(OffPolicyAlgorithm):
    """Soft actor-critic for discrete actions, with exact expectations over the actions.

    Paper: Christodoulou, Soft Actor-Critic for Discrete Action Settings (2019), arXiv 1910.07207.
    Expectations over actions are exact sums, actions may be masked (as in sb3-contrib's
    MaskablePPO), and recommender environments get item-feature heads (`ilrec_sb3.ilrec.heads`).

    Args:
        policy: ``"MlpPolicy"``, ``"MultiInputPolicy"``, or a policy class.
        env: An environment with discrete actions. A bare `RecEnv` is expanded to ``n_sessions``
            parallel ones.
        learning_rate: Of Adam, for actor, critics and temperature, at the start; or a schedule.
        final_learning_rate: Share of ``learning_rate`` that is left at the end of `learn`; in
            between it falls in a straight line. At a constant rate a policy that was nearly
            deterministic now and then forgot what ends a session. Going on with a larger total
            raises the rate again. Of no effect with a schedule.
        buffer_size: Latest transitions kept. Observations leave out which of the good items are
            used up; replayed for too long, an older policy's sessions make items look good that
            were shown while the good ones were left.
        learning_starts: Env steps before the first gradient step, played at random among what the
            masks allow.
        batch_size: Transitions in a gradient step.
        tau: Share of the critics that the targets take over at each gradient step.
        gamma: Discount factor. Raising it looks further ahead and makes values larger than what
            tells two items apart; 0.9 to 0.99 is usual.
        train_freq: Vector steps between trainings.
        updates_per_step: Gradient steps per env step (of one session). Raising it learns more from
            each step and takes longer. Usual: 1/64 for large catalogues to 1 for small problems.
            ``"auto"``: `updates_for` the number of actions.
        n_steps: Rewards summed before the critics' target bootstraps. Usual: 1 to 5.
        ent_coef: alpha_ent in units of reward per nat; ``"auto"`` (or ``"auto_0.5"``, with its
            first value) learns it so that the policy keeps ``target_entropy`` of the entropy that
            its allowed actions make possible.
        target_entropy: That share, in (0, 1).
        actor_tau: Share of the actor that its average takes over at each gradient step, and more in
            the first 10 / actor_tau steps; 1 takes the actor as it is. Lowering it evens out the
            noise of the last steps and lags behind; 0.005 to 0.05 is usual.
        pessimism: How many standard errors are taken off the reward of an item: s / sqrt(n + 1)
            for n ratings that the world model saw of it and the spread s of an item's ratings
            (`ilrec_sb3.ilrec.heads.doubt`). A policy that looks for the best of thousands finds
            those that the world model overrates, and these are the ones with few ratings. 0
            believes the world model; 0.5 to 2 is usual. Of no effect where the environment does not
            tell the support of its items.
        mask_dropout: Share of the actor's states in which a random part of the actions, from none
            to nearly all, is masked as well. The actor then learns what to do where the best are
            not to be had, because they were shown or are out of stock. 0 learns it from what
            happens alone; 0.25 to 0.75 is usual. Demonstrated states are left as they are, and so
            are environments without masks.
        spread_coef: Weight of `ilrec_sb3.ilrec.losses.spread_penalty` on the values of going on.
            What comes after one good item is much the same as after another; errors that are small
            beside a value are not small beside the differences between actions, and this evens them
            out. Raising it makes the policy short-sighted; 0.03 to 0.3 is usual. Of no effect with
            one value head (``policy_kwargs`` with ``decomposed=False``).
        max_grad_norm: Gradients are scaled down to this norm.
        n_sessions: Sessions that a single `RecEnv` is expanded to; None keeps it single.
        replay_buffer_kwargs: As in Stable-Baselines3.
        policy_kwargs: See `ilrec_sb3.ilrec.policies.ILRecPolicy`.
        stats_window_size: As in Stable-Baselines3.
        tensorboard_log: As in Stable-Baselines3.
        verbose: As in Stable-Baselines3.
        seed: Of networks, environment, exploration and batches.
        device: As in Stable-Baselines3.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: ILRecPolicy
    replay_buffer: MaskedReplayBuffer | None

    def __init__(
        self,
        policy: str | type[ILRecPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 20_000,
        learning_starts: int = 1_000,
        batch_size: int = 256,
        tau: float = 0.1,
        gamma: float = 0.95,
        train_freq: int = 1,
        updates_per_step: float | str = "auto",
        n_steps: int = 1,
        ent_coef: float | str = "auto_0.5",
        target_entropy: float = 0.3,
        actor_tau: float = 0.01,
        final_learning_rate: float = 0.1,
        pessimism: float = 1.0,
        mask_dropout: float = 0.5,
        spread_coef: float = 0.1,
        max_grad_norm: float = 10.0,
        n_sessions: int | None = 32,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy=policy,
            env=as_vec_env(env, n_sessions),
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=-1,
            replay_buffer_class=MaskedReplayBuffer,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete,),
        )
        if updates_per_step != "auto" and (
            isinstance(updates_per_step, str) or not updates_per_step > 0
        ):
            raise ValueError(
                f"updates_per_step={updates_per_step!r} came; expected a number above 0, or "
                "'auto': 1/30 is usual for catalogues of a thousand items."
            )
        if not 0 < target_entropy < 1:
            raise ValueError(
                f"target_entropy={target_entropy} came; expected a share of the highest entropy, "
                "between 0 and 1: 0.3 is usual."
            )
        if not 0 < actor_tau <= 1:
            raise ValueError(
                f"actor_tau={actor_tau} came; expected a share above 0, at most 1: 0.01 is usual."
            )
        if not 0 <= final_learning_rate <= 1:
            raise ValueError(
                f"final_learning_rate={final_learning_rate} came; expected a share of the learning "
                "rate, from 0 to 1: 0.1 is usual."
            )
        if not 0 <= mask_dropout <= 1:
            raise ValueError(
                f"mask_dropout={mask_dropout} came; expected a share from 0 to 1: 0.5 is usual."
            )
        if spread_coef < 0:
            raise ValueError(f"spread_coef={spread_coef} came; expected 0 or more: 0.1 is usual.")
        self.spread_coef = spread_coef
        if pessimism < 0:
            raise ValueError(f"pessimism={pessimism} came; expected 0 or more: 1 is usual.")
        self.pessimism = pessimism
        self.mask_dropout = mask_dropout
        self.final_learning_rate = final_learning_rate
        self.updates_per_step = updates_per_step
        self.actor_tau = actor_tau
        self.n_step_returns = n_steps
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.max_grad_norm = max_grad_norm
        self.n_sessions = n_sessions
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef_optimizer: th.optim.Adam | None = None
        self.rng = np.random.default_rng(seed)
        self._n_updates = 0
        self._owed_updates = 0.0
        self._masked = False
        self._warned = False
        self._last_masks: np.ndarray | None = None
        self._pending_env_state: dict[str, np.ndarray] | None = None
        if _init_setup_model:
            self._setup_model()

    # -- set-up ------------------------------------------------------------------------------------

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return OffPolicyAlgorithm._wrap_env(as_vec_env(env), verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        context = self._item_context()
        if context is not None and self.policy_kwargs.get("item_context") is None:
            self.policy_kwargs = {**self.policy_kwargs, "item_context": context}
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = self.policy.to(self.device)
        if self.replay_buffer is None:
            options = {
                "n_steps": self.n_step_returns,
                "gamma": self.gamma,
                "seed": self.seed,
                **self.replay_buffer_kwargs,
            }
            self.replay_buffer = MaskedReplayBuffer(
                self.buffer_size,
                self.policy.flat.flat_space,
                self.action_space,
                device=self.device,
                n_envs=self.n_envs,
                **options,
            )
        self._convert_train_freq()
        self._setup_entropy()

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        if not callable(self.learning_rate):
            self.lr_schedule = LinearDecay(float(self.learning_rate), self.final_learning_rate)

    def _setup_entropy(self) -> None:
        if isinstance(self.ent_coef, str):
            start = 1.0
            kind, _, number = self.ent_coef.partition("_")
            try:
                start = float(number) if number else 1.0
            except ValueError:
                kind = ""
            if kind != "auto" or start <= 0:
                raise ValueError(
                    f"ent_coef={self.ent_coef!r} came; expected a number, 'auto', or 'auto_' and "
                    "its first value: 'auto_0.5'."
                )
            self.log_ent_coef = th.full((1,), float(np.log(start)), device=self.device)
            self.log_ent_coef.requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        elif self.ent_coef < 0:
            raise ValueError(f"ent_coef={self.ent_coef} came; expected a number of 0 or more.")

    def _penalty(self, actions: np.ndarray) -> np.ndarray:
        """Returns (m,) what pessimism takes off the rewards of m actions."""
        context = self.policy.item_context
        flat = np.asarray(actions).reshape(-1)
        if context is None or self.policy.cross is None or self.pessimism == 0:
            return np.zeros(len(flat), np.float32)
        return np.float32(self.pessimism) * doubt(context.support[flat], context.rating_spread)

    def _item_context(self) -> ItemContext | None:
        if self.env is None:
            return None
        try:
            context: ItemContext = self.env.get_attr("item_context", 0)[0]
        except AttributeError:
            return None
        return context

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Sets the environment, as in Stable-Baselines3; a bare `RecEnv` is expanded."""
        super().set_env(as_vec_env(env, self.n_sessions), force_reset)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        resets = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if resets and self._pending_env_state is None and self.replay_buffer is not None:
            self.replay_buffer.cut()
        assert self.env is not None
        self._masked = is_masking_supported(self.env)
        if self._pending_env_state is not None:
            self._restore_env(self._pending_env_state)
            self._pending_env_state = None
        self._last_masks = self._current_masks()
        return result

    def learn(
        self: SelfDiscreteSAC,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiscreteSAC:
        """Trains for ``total_timesteps`` env steps; as in Stable-Baselines3, with a default."""
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    # -- acting ------------------------------------------------------------------------------------

    def _current_masks(self) -> np.ndarray | None:
        if not self._masked or self.env is None:
            return None
        batched = getattr(self.env, "action_masks", None)
        masks = batched() if callable(batched) else get_action_masks(self.env)
        return np.asarray(masks, dtype=bool)

    def _acts_at_random(self, learning_starts: int) -> bool:
        return self.num_timesteps < learning_starts

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        del action_noise
        assert self._last_obs is not None
        if self._acts_at_random(learning_starts):
            n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
            scores = self.rng.random((n_envs, n_actions), dtype=np.float32)
            if self._last_masks is not None:
                scores = np.where(self._last_masks, scores, -1.0)
            actions = scores.argmax(axis=1)
        else:
            actions, _ = self.predict(self._last_obs, action_masks=self._last_masks)
        return actions, actions

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Returns actions; see `ILRecPolicy.predict`.

        A model that was trained with masks and is asked without them says so, once: it would show
        again what was just shown.
        """
        if self._masked and action_masks is None and not self._warned:
            self._warned = True
            logger.warning(
                "The policy was trained with action masks and predicts without them, so items may "
                "be shown twice: pass action_masks=env.unwrapped.action_masks(), and evaluate with "
                "sb3-contrib's MaskableEvalCallback and its evaluate_policy."
            )
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        if self._vec_normalize_env is not None:
            raise ValueError(
                "A VecNormalize came; demonstrations and cross features need raw observations: "
                "leave it out, the policy scales what it sees by itself."
            )
        flat = self.policy.flat
        next_obs = flat.flatten(new_obs).copy()
        for row in np.flatnonzero(dones):
            last = infos[row].get("terminal_observation")
            if last is not None:
                batch = (
                    {k: v[None] for k, v in last.items()}
                    if flat.is_dict
                    else np.asarray(last)[None]
                )
                next_obs[row] = flat.flatten(batch)[0]
            if "action_mask" in infos[row]:
                infos[row].setdefault("terminal_action_mask", infos[row]["action_mask"])
        new_masks = self._current_masks()
        assert isinstance(replay_buffer, MaskedReplayBuffer)
        replay_buffer.add(
            flat.flatten(self._last_obs),
            next_obs,
            buffer_action,
            reward - self._penalty(buffer_action),
            dones,
            infos,
            action_masks=self._last_masks,
            next_action_masks=new_masks,
        )
        self._last_obs = new_obs
        self._last_masks = new_masks

    # -- learning ----------------------------------------------------------------------------------

    def _demonstration_batch(self, batch_size: int) -> DemonstrationSamples | None:
        """Returns demonstrated transitions for a gradient step; there are none here."""
        del batch_size
        return None

    def _imitation_coefficient(self) -> float:
        """Returns lambda_imit now."""
        return 0.0

    def _worth_imitating(
        self, batch: Batch, probs: th.Tensor, outcomes: Outcomes | None
    ) -> th.Tensor:
        """Returns the (n_demonstrations,) factors of demonstrated actions in the imitation loss.

        Args:
            batch: Transitions, the demonstrated ones last.
            probs: (n_demonstrations, n) of the policy in demonstrated states.
            outcomes: Of all states of the batch; None where values are not decomposed.
        """
        del batch, outcomes
        return probs.new_ones(len(probs))

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Makes the gradient steps that the collected env steps allow.

        Args:
            gradient_steps: Env steps collected since the last call; times ``updates_per_step`` they
                are gradient steps (a rest is carried over).
            batch_size: Transitions in each.
        """
        per_step = self.updates_per_step
        if isinstance(per_step, str):
            per_step = updates_for(int(self.action_space.n))  # type: ignore[attr-defined]
        self._owed_updates += gradient_steps * per_step
        steps, self._owed_updates = int(self._owed_updates), self._owed_updates % 1.0
        if steps == 0:
            return
        self.policy.set_training_mode(True)
        optimizers = [self.policy.actor_optimizer, self.policy.critic_optimizer]
        if self.policy.decomposed:
            optimizers.append(self.policy.outcome_optimizer)
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        coefficient = self._imitation_coefficient()
        scalars: dict[str, list[float]] = {}
        assert self.replay_buffer is not None
        for _ in range(steps):
            demonstrated = self._demonstration_batch(batch_size)
            rest = batch_size - (0 if demonstrated is None else len(demonstrated.actions))
            batch = self._join(self.replay_buffer.sample(rest), demonstrated)
            for name, value in self._gradient_step(batch, coefficient).items():
                scalars.setdefault(name, []).append(value)
        self.policy.set_training_mode(False)
        for name, values in scalars.items():
            self.logger.record(f"train/{name}", float(np.mean(values)))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _gradient_step(self, batch: Batch, imitation_coefficient: float) -> dict[str, float]:
        """One step of critics, actor, temperature and targets; returns scalars for the log.

        Args:
            batch: Transitions.
            imitation_coefficient: lambda_imit.
        """
        policy = self.policy
        alpha = self._entropy_coefficient()
        scalars = self._critic_step(batch, self._critic_target(batch, alpha))

        # actor, eq. 20 to 22
        crossed = policy.crossed(batch.observations)
        masks, n_thinned = self._thinned_masks(batch)
        log_probs = policy.log_probs(batch.observations, masks, crossed)
        with th.no_grad():
            outcomes = policy.outcomes(batch.observations, crossed)
        demonstrated = log_probs.new_zeros(())
        if batch.n_demonstrations and imitation_coefficient > 0:
            rows = slice(len(log_probs) - batch.n_demonstrations, None)
            chosen = log_probs[rows].gather(1, batch.actions[rows])[:, 0]
            worth = self._worth_imitating(batch, log_probs[rows].detach().exp(), outcomes)
            demonstrated = imitation_loss(chosen, worth)  # the rows were drawn in proportion to w
            scalars["imitation_loss"] = float(demonstrated.detach())
            scalars["imitated_share"] = float(worth.mean())
        with th.no_grad():
            q_values = policy.q_values(batch.observations, log_probs.exp(), crossed, outcomes)
        reinforced = actor_loss(log_probs, q_values, alpha)
        total = policy_loss(demonstrated, reinforced.loss, imitation_coefficient)
        self._descend(policy.actor_optimizer, policy.actor, total.total)
        polyak_update(
            policy.actor.parameters(),
            policy.actor_average.parameters(),
            max(self.actor_tau, _AVERAGED / (self._n_updates + _AVERAGED)),
        )

        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
            rows = slice(n_thinned, None)
            given = None if batch.masks is None else batch.masks[rows]
            aim = target_entropy(self.target_entropy, n_actions, given).to(self.device)
            loss = entropy_temperature_loss(self.log_ent_coef, reinforced.entropy[rows], aim)
            self.ent_coef_optimizer.zero_grad()
            loss.backward()
            self.ent_coef_optimizer.step()

        polyak_update(policy.critic.parameters(), policy.critic_target.parameters(), self.tau)
        self._n_updates += 1
        scalars.update(
            actor_loss=float(reinforced.loss.detach()),
            policy_loss=float(total.total.detach()),
            entropy=float(reinforced.entropy.detach().mean()),
            ent_coef=float(alpha),
        )
        return scalars

    def _thinned_masks(self, batch: Batch) -> tuple[th.Tensor | None, int]:
        """Returns the actor's masks, (B, n) bool or None, and in how many rows they are thinned.

        These are the first rows; what is left of a row's actions differs from row to row.
        """
        n_rows = int(self.mask_dropout * (len(batch.actions) - batch.n_demonstrations))
        if n_rows == 0 or batch.masks is None:
            return batch.masks, 0
        share = th.rand((n_rows, 1), device=self.device)
        kept = th.rand((n_rows, batch.masks.shape[1]), device=self.device) < share
        masks = batch.masks.clone()
        kept &= masks[:n_rows]
        masks[:n_rows] = th.where(kept.any(dim=1, keepdim=True), kept, masks[:n_rows])
        return masks, n_rows

    def _critic_step(self, batch: Batch, target: th.Tensor) -> dict[str, float]:
        """One step of the critics towards (B,) targets, eq. 23; returns scalars for the log."""
        policy, scale = self.policy, self.policy.value_scale
        scalars: dict[str, float] = {}
        actions = batch.actions
        spread = policy.decomposed and self.spread_coef > 0
        if spread:  # a second action in each state, drawn as the first
            order = th.randperm(len(actions), device=self.device)
            actions = th.cat([actions, actions[order]], dim=1)
        values = policy.q_pairs(batch.observations, actions)
        predictions = [q[:, 0] for q in values]
        if policy.decomposed:
            rewards, ends = policy.outcome_pairs(batch.observations, batch.actions)
            outcome = outcome_loss(rewards, ends, batch.rewards[:, 0], batch.dones[:, 0])
            self._descend(policy.outcome_optimizer, policy.outcome, outcome.loss)
            scalars.update(
                reward_error=float(outcome.reward_error), end_loss=float(outcome.end_loss)
            )
            # U is the value of going on: seen only where the session went on
            on = batch.dones[:, 0] == 0
            if not on.any():
                return scalars
            values = [u[on] for u in values]
            predictions = [u[:, 0] for u in values]
            target = (target - rewards.detach())[on]
        critics = critic_loss([q / scale for q in predictions], target / scale, kind="huber")
        loss = critics.loss
        if spread:
            penalty = spread_penalty(
                [u / scale for u in predictions], [u[:, 1] / scale for u in values]
            )
            loss = loss + self.spread_coef * penalty
        self._descend(policy.critic_optimizer, policy.critic, loss)
        return {
            **scalars,
            "critic_loss": float(critics.loss.detach()),
            "q_mean": float(critics.mean_q) * scale,
            "q_error": float(critics.mean_error) * scale,
        }

    def _critic_target(self, batch: Batch, alpha: th.Tensor) -> th.Tensor:
        """Returns (B,) targets of eq. 23."""
        policy, observations = self.policy, batch.next_observations
        with th.no_grad():
            crossed = policy.crossed(observations)
            log_probs = policy.log_probs(observations, batch.next_masks, crossed)
            outcomes = policy.outcomes(observations, crossed)
            probs = policy.careful(log_probs.exp(), outcomes)
            log_probs = probs.clamp_min(_TINY).log()
            expected = policy.expected_q(observations, probs, crossed, True, outcomes)
            next_values = soft_value(expected.amin(0), masked_entropy(log_probs, probs), alpha)
            return critic_target(batch.rewards, batch.dones, next_values, batch.discounts)

    def _entropy_coefficient(self) -> th.Tensor:
        if self.log_ent_coef is not None:
            return self.log_ent_coef.detach().exp()[0]
        return th.tensor(float(self.ent_coef), device=self.device)

    def _descend(
        self, optimizer: th.optim.Optimizer, module: th.nn.Module, loss: th.Tensor
    ) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        th.nn.utils.clip_grad_norm_(module.parameters(), self.max_grad_norm)
        optimizer.step()

    def _join(self, collected: Any, demonstrated: DemonstrationSamples | None) -> Batch:
        """Puts collected and demonstrated transitions into one batch."""
        parts = [part for part in (collected, demonstrated) if part is not None]
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]

        def masks(name: str) -> th.Tensor | None:
            values = [getattr(part, name) for part in parts]
            if all(value is None for value in values):
                return None
            return th.cat(
                [
                    th.ones((len(part.actions), n_actions), dtype=th.bool, device=self.device)
                    if value is None
                    else value
                    for part, value in zip(parts, values, strict=True)
                ]
            )

        def discounts(part: Any) -> th.Tensor:
            values = getattr(part, "discounts", None)
            return th.full_like(part.rewards, self.gamma) if values is None else values

        def join(name: str) -> th.Tensor:
            return th.cat([getattr(part, name) for part in parts])

        return Batch(
            observations=join("observations"),
            actions=join("actions"),
            next_observations=join("next_observations"),
            dones=join("dones"),
            rewards=join("rewards"),
            discounts=th.cat([discounts(part) for part in parts]),
            masks=masks("action_masks"),
            next_masks=masks("next_action_masks"),
            returns=None if demonstrated is None else demonstrated.returns,
            n_demonstrations=0 if demonstrated is None else len(demonstrated.actions),
        )

    # -- saving ------------------------------------------------------------------------------------

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "rng",
            "_last_masks",
            "_pending_env_state",
            "ent_coef_optimizer",
            "log_ent_coef",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "policy.actor_optimizer", "policy.critic_optimizer"]
        if self.policy.decomposed:
            state_dicts.append("policy.outcome_optimizer")
        variables: list[str] = []
        if self.ent_coef_optimizer is not None:
            state_dicts.append("ent_coef_optimizer")
            variables.append("log_ent_coef")
        return state_dicts, variables

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        training_state: bool = True,
    ) -> None:
        """Saves the model, atomically where ``path`` is a path.

        Args:
            path: Where to; ``.zip`` is added as in Stable-Baselines3.
            exclude: As in Stable-Baselines3.
            include: As in Stable-Baselines3.
            training_state: Whether replay buffer, random states and running sessions go in too, so
                that training can go on as if it had never stopped; without them the file is small
                and enough to predict.
        """
        content = io.BytesIO()
        super().save(content, exclude, include)
        if training_state:
            with zipfile.ZipFile(content, mode="a", compression=zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(_STATE_FILE, save_arrays(self._training_state()))
        if not isinstance(path, (str, pathlib.Path)):
            path.write(content.getvalue())
            return
        target = pathlib.Path(path)
        if target.suffix == "":
            target = target.with_suffix(".zip")
        write_file(target, content.getvalue())

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfDiscreteSAC],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfDiscreteSAC:
        """Loads a model; with ``env`` and a saved training state, training can go on.

        Args:
            path: As in `save`.
            env: Environment to go on in.
            device: As in Stable-Baselines3.
            **kwargs: As in Stable-Baselines3.
        """
        source: Any = path
        if isinstance(path, (str, pathlib.Path)):
            source = pathlib.Path(path)
            source = source if source.exists() else source.with_suffix(".zip")
        with zipfile.ZipFile(source) as archive:
            n_sessions = json.loads(archive.read("data"))["n_sessions"]
            stored = archive.read(_STATE_FILE) if _STATE_FILE in archive.namelist() else None
        if env is not None:
            env = as_vec_env(env, n_sessions)
        if not isinstance(path, (str, pathlib.Path)):
            path.seek(0)
        model = super().load(path, env=env, device=device, **kwargs)
        if stored is not None:
            model._load_training_state(load_arrays(stored))
        return model

    def _training_state(self) -> dict[str, np.ndarray]:
        """Returns what training needs to go on, as flat arrays."""
        assert self.replay_buffer is not None
        state = prefixed("replay", self.replay_buffer.state_dict())
        state["random/torch"] = th.get_rng_state().numpy().copy()
        if self.device.type == "cuda":
            state["random/cuda"] = th.cuda.get_rng_state(self.device).numpy().copy()
        state["random/numpy"] = _encode(self.rng.bit_generator.state)
        env_state = self._env_state()
        if env_state is not None:
            state.update(prefixed("env", env_state))
        if self._last_obs is not None:
            state["last_obs"] = self.policy.flat.flatten(self._last_obs)
        return state

    def _load_training_state(self, state: dict[str, np.ndarray]) -> None:
        assert self.replay_buffer is not None
        stored = unprefixed("replay", state)
        n_envs = stored["observations"].shape[1]
        if n_envs != self.n_envs:
            logger.warning(
                "The model was trained on %d sessions at a time and %d came: "
                "its replay buffer stays behind.",
                n_envs,
                self.n_envs,
            )
            self.learning_starts = self.num_timesteps + self.batch_size
        else:
            self.replay_buffer.load_state_dict(stored)
        if self.env is not None:  # to predict, the process's own random state is left alone
            th.set_rng_state(th.from_numpy(state["random/torch"].copy()))
            if "random/cuda" in state and self.device.type == "cuda":
                th.cuda.set_rng_state(th.from_numpy(state["random/cuda"].copy()), self.device)
        self.rng.bit_generator.state = json.loads(state["random/numpy"].tobytes())
        env_state = unprefixed("env", state)
        if env_state and n_envs == self.n_envs:
            self._pending_env_state = {**env_state, "last_obs": state["last_obs"]}

    def _env_state(self) -> dict[str, np.ndarray] | None:
        inner = getattr(self.env, "env", None)
        method = getattr(inner, "state_dict", None)
        if not callable(method):
            return None
        result: dict[str, np.ndarray] = method()
        return {**result, **self.env.statistics_state()}  # type: ignore[union-attr]

    def _restore_env(self, state: dict[str, np.ndarray]) -> None:
        """Puts the running sessions back where they were when the model was saved."""
        inner = getattr(self.env, "env", None)
        method = getattr(inner, "load_state_dict", None)
        if not callable(method):
            return
        observations = method(state)
        self.env.load_statistics_state(state)  # type: ignore[union-attr]
        self._last_obs = observations
        self._last_episode_starts = np.zeros(self.n_envs, dtype=bool)


def prefixed(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays under names that begin with ``prefix/``."""
    return {f"{prefix}/{name}": np.ascontiguousarray(a) for name, a in arrays.items()}


def unprefixed(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what `prefixed` put under this prefix."""
    start = f"{prefix}/"
    return {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}


def _encode(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy()
