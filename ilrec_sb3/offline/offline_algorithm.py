"""What all offline algorithms share: the data, the loop of gradient steps, saving."""

from __future__ import annotations

import io
import pathlib
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv

from ilrec_sb3.common.buffers import DemonstrationBuffer, DemonstrationSamples
from ilrec_sb3.common.make_env import as_vec_env
from ilrec_sb3.ilrec.discrete_sac import LinearDecay
from ilrec_sb3.ilrec.losses import critic_target
from ilrec_sb3.offline.logs import Ends, logged_trajectories
from ilrec_sb3.offline.policies import OfflinePolicy
from recsim_env.artefacts import write_file
from recsim_env.dynamics import Dynamics, ItemContext
from recsim_env.errors import DataError
from recsim_env.trajectories import Trajectory

__all__ = ["OfflineAlgorithm"]

SelfOffline = TypeVar("SelfOffline", bound="OfflineAlgorithm")


class OfflineAlgorithm(BaseAlgorithm):
    """Learns from logged transitions and never acts while it learns.

    `learn` counts gradient steps; callbacks are called after each. The environment gives spaces,
    item features and, where no data are passed, the users' logged interactions
    (`logged_trajectories`); callbacks may evaluate on it. What is drawn for a gradient step follows
    from the seed and the step's number, so at a constant learning rate a loaded model goes on as if
    it had never stopped; one that falls is planned over the steps of each `learn`.

    Args:
        policy: ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a policy class.
        env: An environment with discrete actions.
        data: Sessions to learn from; None takes the environment's own logs.
        ends: Where those logs end, see `logged_trajectories`; of no effect on passed data.
        learning_rate: Of Adam, at the start; or a schedule over the steps.
        batch_size: Transitions in a gradient step.
        gamma: Discount factor. Raising it looks further ahead; where targets take the best of many
            items, values then grow for thousands of steps, and soon are far larger than what tells
            two items apart. 0.9 to 0.99 is usual.
        tau: Share of the trained networks that the targets take over at each gradient step.
        final_learning_rate: Share of ``learning_rate`` that is left at the end of `learn`; in
            between it falls in a straight line. 1 keeps it constant. Of no effect with a schedule.
        max_grad_norm: Gradients are scaled down to this norm.
        policy_kwargs: See `ilrec_sb3.offline.policies.OfflinePolicy`.
        stats_window_size: As in Stable-Baselines3.
        tensorboard_log: As in Stable-Baselines3.
        verbose: As in Stable-Baselines3.
        seed: Of networks and batches.
        device: As in Stable-Baselines3.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]]
    policy: OfflinePolicy

    def __init__(
        self,
        policy: str | type[OfflinePolicy],
        env: GymEnv | str | None,
        data: Sequence[Trajectory] | None = None,
        ends: Ends = "rule",
        learning_rate: float | Schedule = 1e-3,
        batch_size: int = 256,
        gamma: float = 0.99,
        tau: float = 0.03,
        final_learning_rate: float = 0.1,
        max_grad_norm: float = 10.0,
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
            env=as_vec_env(env),
            learning_rate=learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=(spaces.Discrete,),
        )
        if not 0 <= final_learning_rate <= 1:
            raise ValueError(
                f"final_learning_rate={final_learning_rate} came; expected a share of the learning "
                "rate, from 0 to 1: 0.1 is usual."
            )
        self.final_learning_rate = final_learning_rate
        self.data = data
        self.ends: Ends = ends
        self.batch_size = batch_size
        self.gamma = gamma
        self.tau = tau
        self.max_grad_norm = max_grad_norm
        self.buffer: DemonstrationBuffer | None = None
        self._batch_seed = int(np.random.default_rng(seed).integers(2**63))
        if _init_setup_model:
            self._setup_model()

    # -- set-up ------------------------------------------------------------------------------------

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return BaseAlgorithm._wrap_env(as_vec_env(env), verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        context: ItemContext | None = self._from_env("item_context")
        if context is not None and self.policy_kwargs.get("item_context") is None:
            self.policy_kwargs = {**self.policy_kwargs, "item_context": context}
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy = self.policy.to(self.device)

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        if not callable(self.learning_rate):
            self.lr_schedule = LinearDecay(float(self.learning_rate), self.final_learning_rate)

    def _from_env(self, name: str) -> Any:
        """Returns what the environment says under a name, or None."""
        if self.env is None:
            return None
        try:
            return self.env.get_attr(name, 0)[0]
        except AttributeError:
            return None

    def _make_buffer(self) -> DemonstrationBuffer:
        data = self.data
        if data is None:
            dynamics: Dynamics | None = self._from_env("dynamics")
            if dynamics is None:
                raise DataError(
                    f"{type(self).__name__} was given no data and its environment has no logs of "
                    "its own; pass data, a list of trajectories."
                )
            data = logged_trajectories(dynamics, ends=self.ends)
        buffer = DemonstrationBuffer(data, self.gamma, self.device)
        width, n_actions = self.policy.flat.size, int(self.action_space.n)  # type: ignore[attr-defined]
        most = n_actions if buffer.n_actions is None else buffer.n_actions
        fits = most == n_actions and int(buffer.actions.max()) < n_actions
        if buffer.observations.shape[1] != width or not fits:
            raise DataError(
                f"The data have observations of {buffer.observations.shape[1]} numbers and actions "
                f"up to {max(most - 1, int(buffer.actions.max()))}, but the environment has {width}"
                f" numbers and {n_actions} actions; record or replay the data in this environment."
            )
        return buffer

    # -- learning ----------------------------------------------------------------------------------

    @abstractmethod
    def _losses(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        """Returns scalars of a batch for the log; "loss", with gradients, is to be minimised."""

    def _update_targets(self) -> None:
        """Moves the targets towards the trained networks."""
        policy = self.policy
        polyak_update(policy.critic.parameters(), policy.critic_target.parameters(), self.tau)

    def _double_q_target(self, batch: DemonstrationSamples, next_actions: th.Tensor) -> th.Tensor:
        """Returns (B,) targets: the target critic's value of the (B,) next actions, bootstrapped.

        Where the trained critic chose the actions, that is double DQN's target (van Hasselt et al.,
        2016).
        """
        values = self.policy.target_pairs(batch.next_observations, next_actions[:, None])[0][:, 0]
        return critic_target(batch.rewards, batch.dones, values, self.gamma)

    def _gradient_step(self, batch: DemonstrationSamples) -> dict[str, th.Tensor]:
        losses = self._losses(batch)
        self.policy.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        self._update_targets()
        self._n_updates += 1
        return {name: value.detach() for name, value in losses.items()}

    def _sample(self) -> DemonstrationSamples:
        assert self.buffer is not None
        rng = np.random.default_rng([self._batch_seed, self._n_updates])
        return self.buffer.sample(self.batch_size, rng, weighted=False)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if not progress_bar:
            return super()._init_callback(callback)
        bar = _GradientStepsBar()
        if callback is None:
            return super()._init_callback(bar)
        return super()._init_callback(CallbackList([super()._init_callback(callback), bar]))

    def learn(
        self: SelfOffline,
        total_timesteps: int = 3_000,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "run",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOffline:
        """Makes gradient steps.

        Args:
            total_timesteps: How many.
            callback: Called after each; see Stable-Baselines3.
            log_interval: Gradient steps between two entries of the log.
            tb_log_name: As in Stable-Baselines3.
            reset_num_timesteps: Whether the steps are counted from 0 again.
            progress_bar: Whether to show one.

        Returns:
            The model.
        """
        if self.buffer is None:
            self.buffer = self._make_buffer()
        total_timesteps, calls = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        calls.on_training_start(locals(), globals())
        recent: list[dict[str, th.Tensor]] = []
        while self.num_timesteps < total_timesteps:
            calls.on_rollout_start()
            self.policy.set_training_mode(True)
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self._update_learning_rate(self.policy.optimizer)
            recent.append(self._gradient_step(self._sample()))
            self.policy.set_training_mode(False)
            self.num_timesteps += 1
            calls.update_locals(locals())
            if not calls.on_step():
                break
            if log_interval and self.num_timesteps % log_interval == 0:
                self._log(recent)
                recent = []
        calls.on_training_end()
        return self

    def _log(self, recent: Sequence[dict[str, th.Tensor]]) -> None:
        for name in recent[0]:
            mean = th.stack([scalars[name] for scalars in recent]).mean()
            self.logger.record(f"train/{name}", float(mean))
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        done = self.num_timesteps - self._num_timesteps_at_start
        self.logger.record("time/gradient_steps_per_second", done / elapsed)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    # -- acting and saving -------------------------------------------------------------------------

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Returns actions; see `ILRecPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "data", "buffer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Saves the model without its data, atomically where ``path`` is a path.

        Args:
            path: Where to; ``.zip`` is added as in Stable-Baselines3.
            exclude: As in Stable-Baselines3.
            include: As in Stable-Baselines3.
        """
        if not isinstance(path, (str, pathlib.Path)):
            super().save(path, exclude, include)
            return
        content = io.BytesIO()
        super().save(content, exclude, include)
        target = pathlib.Path(path)
        write_file(target if target.suffix else target.with_suffix(".zip"), content.getvalue())


class _GradientStepsBar(ProgressBarCallback):
    """Counts gradient steps; Stable-Baselines3's own counts one for each environment."""

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True
