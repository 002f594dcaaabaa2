"""IL-Rec: imitation-enhanced reinforcement learning for recommendation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from tqdm import tqdm

from ilrec_sb3.common.buffers import DemonstrationBuffer, DemonstrationSamples
from ilrec_sb3.common.masking import sample_actions
from ilrec_sb3.ilrec.discrete_sac import Batch, DiscreteSAC, prefixed, unprefixed
from ilrec_sb3.ilrec.discriminator import (
    DiscriminatorConfig,
    DiscriminatorTrainer,
    ItemRewardNet,
    StateActions,
    irl_reward,
)
from ilrec_sb3.ilrec.losses import imitation_loss, worth_imitating
from ilrec_sb3.ilrec.policies import ILRecPolicy, Outcomes
from ilrec_sb3.ilrec.weighting import (
    ValueFit,
    WeightStatistics,
    advantage,
    combine,
    fit_value,
    log_env_weight,
    log_irl_weight,
    normalise,
    weight_statistics,
)
from recsim_env.trajectories import Trajectory, load_trajectories

__all__ = ["ILRec"]

SelfILRec = TypeVar("SelfILRec", bound="ILRec")
Demonstrations = Sequence[Trajectory] | str | Path

logger = logging.getLogger(__name__)


class ILRec(DiscreteSAC):
    """Learns from weighted demonstrations and goes beyond them in the simulator.

    Paper: Zhang et al., Beyond Static LLM Policies: Imitation-Enhanced Reinforcement Learning for
    Recommendation (2025), arXiv 2510.13229, section IV-B and IV-C, equations 13 to 23.

    Before the first env step, demonstrations are weighted by their advantage (eq. 15 to 17) and by
    a discriminator that tells them from the policy's own actions (eq. 13, 18, 19), and the policy
    and the critics learn from them alone. Then `DiscreteSAC` learns in the environment; a share of
    each batch is demonstrated transitions drawn in proportion to their weights (eq. 23), the
    imitation loss (eq. 20) is added with a factor that decays, and the discriminator is retrained
    and the weights are computed anew from time to time.

    Where this differs from the print:

    - Eq. 13 lacks its first minus; eq. 21 subtracts the entropy. Both signs are as they must be
      here (see `ilrec_sb3.ilrec.discriminator` and `ilrec_sb3.ilrec.losses`).
    - The log-probability of the current policy is part of the discriminator's logit, as in
      adversarial inverse RL (Fu et al., 2018), so that at its optimum f is a reward and not a
      density ratio.
    - Half of the policy's pairs that the discriminator sees are its actions in demonstrated states.
      With its own sessions alone the discriminator learns to tell the users of the two apart.
    - lambda_imit decays to 0 over ``imitation_steps``: demonstrations are good, not optimal, and a
      constant factor holds the policy back once it is better than they are. For the same reason
      a demonstrated action is let go of where the critics find the policy's own better.

    Args:
        policy: As in `DiscreteSAC`.
        env: As in `DiscreteSAC`.
        demonstrations: Trajectories with observations of this environment, the path of a trajectory
            file, or None, which takes those that the environment's prepared dataset carries
            (recorded sessions of a language model, or the package's scripted explorer). Without
            any, this is `DiscreteSAC`.
        imitation_coef: lambda_imit (eq. 22), in units of reward per nat. Raising it holds the
            policy closer to the demonstrations. The paper tries 0.1 to 2.
        imitation_steps: Gradient steps over which lambda_imit falls linearly to 0 once the policy
            learns in the environment; None keeps it.
        q_filter: Whether a demonstrated action is let go of where no critic finds it better than
            what the policy plays and what followed it was not better either
            (`ilrec_sb3.ilrec.losses.worth_imitating`): of a poor demonstrator only the good actions
            are imitated. The warm start, which has no such critics yet, imitates them all.
        demonstration_share: Share of the transitions in a gradient step that are demonstrated ones;
            it decays with lambda_imit.
        warm_start_steps: Gradient steps on the demonstrations before the first env step.
        beta: Temperature of w_env (eq. 17), in units of reward. Raising it weights demonstrations
            more alike. The paper tries 0.1 to 10.
        alpha: Share of w_env in the weight (eq. 19), the rest is w_IRL's. The paper tries 0.25 to
            0.75.
        irl_gamma: Exponent of w_IRL (eq. 18): how far the discriminator is trusted. The paper does
            not name its value. With the log-probability in the logit w_IRL is the demonstrator's
            probability over the policy's, so it grows where the policy has learned to avoid what
            was demonstrated; at 1 good demonstrations lost what they are worth. Usual: 0 to 0.3.
        weight_bounds: Weights are clipped to these after being brought to mean 1.
        discriminator_every: Gradient steps between retrainings of the discriminator.
        discriminator_steps: Gradient steps of each retraining.
        discriminator_config: How the discriminator is trained.
        learning_rate: As in `DiscreteSAC`.
        **kwargs: As in `DiscreteSAC`.
    """

    def __init__(
        self,
        policy: str | type[ILRecPolicy],
        env: GymEnv | str | None,
        demonstrations: Demonstrations | None = None,
        learning_rate: float | Schedule = 1e-3,
        imitation_coef: float = 0.5,
        imitation_steps: int | None = 100,
        q_filter: bool = True,
        demonstration_share: float = 0.25,
        warm_start_steps: int = 300,
        beta: float = 10.0,
        alpha: float = 0.5,
        irl_gamma: float = 0.1,
        weight_bounds: tuple[float, float] = (0.01, 10.0),
        discriminator_every: int = 25,
        discriminator_steps: int = 50,
        discriminator_config: DiscriminatorConfig | None = None,
        *,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, value, fits, expected in (
            ("imitation_coef", imitation_coef, imitation_coef >= 0, "0 or more"),
            (
                "demonstration_share",
                demonstration_share,
                0 <= demonstration_share < 1,
                "0 to below 1",
            ),
            ("warm_start_steps", warm_start_steps, warm_start_steps >= 0, "0 or more"),
            ("beta", beta, beta > 0, "a number above 0"),
            ("alpha", alpha, 0 <= alpha <= 1, "a share from 0 to 1"),
            ("irl_gamma", irl_gamma, irl_gamma >= 0, "0 or more"),
            ("discriminator_every", discriminator_every, discriminator_every > 0, "1 or more"),
        ):
            if not fits:
                raise ValueError(f"{name}={value} came; expected {expected}.")
        self.imitation_coef = imitation_coef
        self.imitation_steps = imitation_steps
        self.q_filter = q_filter
        self.demonstration_share = demonstration_share
        self.warm_start_steps = warm_start_steps
        self.beta = beta
        self.alpha = alpha
        self.irl_gamma = irl_gamma
        self.weight_bounds = weight_bounds
        self.discriminator_every = discriminator_every
        self.discriminator_steps = discriminator_steps
        self.discriminator_config = discriminator_config
        self._given = demonstrations
        self._warm = False
        self._searched = False
        self._trained_at = 0
        self.demonstration_buffer: DemonstrationBuffer | None = None
        self.discriminator: DiscriminatorTrainer | None = None
        self._log_env: th.Tensor | None = None
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    # -- set-up ------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        super()._setup_model()
        cross = self.policy.cross
        net = ItemRewardNet(
            self.policy.flat.flat_space,
            self.action_space,
            None if cross is None else cross.features.detach().cpu(),
        ).to(self.device)
        self.discriminator = DiscriminatorTrainer(
            net, self.discriminator_config, seed=self.seed or 0
        )

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.demonstration_buffer is None and not self._searched:
            self._searched = True
            found = self._load_demonstrations()
            if found and self._warm:  # loaded from a file that left the demonstrations out
                self._update_weights(from_policy=False)
            elif found:
                self._warm_start(progress=progress_bar)
        self._warm = True
        return result

    def _load_demonstrations(self) -> bool:
        """Reads the demonstrations and weights each step by its advantage; False without any."""
        trajectories = self._find_demonstrations()
        if not trajectories:
            logger.warning(
                "No demonstrations came and the environment carries none: "
                "ILRec learns as DiscreteSAC does."
            )
            return False
        self._check_demonstrations(trajectories)
        trajectories = [
            replace(t, rewards=t.rewards - self._penalty(t.actions)) for t in trajectories
        ]
        buffer = DemonstrationBuffer(
            trajectories, self.gamma, device=self.device, n_steps=self.n_step_returns
        )
        self.demonstration_buffer = buffer
        fit = self._value_demonstrations(buffer)
        logger.info(
            "%d demonstrated steps of %d sessions; V_demo explains %.0f %% of their variance.",
            len(buffer),
            len(trajectories),
            100 * (1 - fit.error / max(fit.constant_error, 1e-12)),
        )
        return True

    def _check_demonstrations(self, trajectories: Sequence[Trajectory]) -> None:
        """Raises ValueError where sessions were not recorded with these items and observations."""
        size, n_actions = self.policy.flat.size, int(self.action_space.n)  # type: ignore[attr-defined]
        sizes = {t.observations.shape[1] for t in trajectories}
        if sizes != {size}:
            raise ValueError(
                f"Demonstrations with observations of {sorted(sizes)} numbers came, the "
                f"environment gives {size}: replay them in this environment."
            )
        chosen = max(int(t.actions.max()) for t in trajectories)
        catalogues = {t.n_actions for t in trajectories} - {None, n_actions}
        if catalogues or chosen >= n_actions:
            what = f"of {sorted(catalogues)} actions" if catalogues else f"with action {chosen}"  # type: ignore[type-var]
            raise ValueError(
                f"Demonstrations {what} came, the environment has {n_actions}: replay them in this "
                "environment, or give those of its own catalogue."
            )

    def _value_demonstrations(self, buffer: DemonstrationBuffer) -> ValueFit:
        """Fits V_demo, completes the returns of cut sessions by it, and weights each step (eq. 17).

        V_demo is fitted on sessions that the user ended. A session that was cut (its record ran out
        before the user left) goes on with the value of its last state.
        """
        whole = th.from_numpy(buffer.complete if buffer.complete.any() else ~buffer.complete)
        observations = th.from_numpy(buffer.observations)
        returns = th.from_numpy(buffer.returns).clone()
        last = th.from_numpy(buffer.last_observations())
        fit = fit_value(
            observations[whole],
            returns[whole],
            th.from_numpy(buffer.sessions)[whole],
            extra=th.cat([observations[~whole], last[~whole]]),
            seed=self.seed or 0,
        )
        values = th.empty_like(returns)
        values[whole] = fit.values
        values[~whole], follows = fit.extra.chunk(2)
        returns[~whole] += th.from_numpy(buffer.to_end)[~whole] * follows
        buffer.returns = returns.numpy()
        self._log_env = log_env_weight(advantage(returns, values), self.beta)
        return fit

    def _find_demonstrations(self) -> list[Trajectory]:
        if isinstance(self._given, (str, Path)):
            return load_trajectories(self._given)
        if self._given is not None:
            return list(self._given)
        assert self.env is not None
        try:
            method = self.env.get_attr("demonstrations", indices=0)[0]
        except AttributeError:
            return []
        return list(method())

    # -- weights -----------------------------------------------------------------------------------

    def _imitation_coefficient(self) -> float:
        return self.imitation_coef * self._decay()

    def _decay(self) -> float:
        """Returns the share of lambda_imit that is left after the gradient steps made."""
        if self.imitation_steps is None:
            return 1.0
        return max(0.0, 1.0 - self._n_updates / max(self.imitation_steps, 1))

    def _worth_imitating(
        self, batch: Batch, probs: th.Tensor, outcomes: Outcomes | None
    ) -> th.Tensor:
        if not self.q_filter:
            return super()._worth_imitating(batch, probs, outcomes)
        assert batch.returns is not None
        rows = slice(-len(probs), None)
        observations, actions = batch.observations[rows], batch.actions[rows]
        with th.no_grad():
            if outcomes is not None:
                outcomes = Outcomes(*(part[rows] for part in outcomes))
            values = self.policy.values_of(observations, actions, outcomes)
            expected = self.policy.expected_q(observations, probs, outcomes=outcomes)
            return worth_imitating(values, expected, batch.returns)

    def _demonstration_batch(self, batch_size: int) -> DemonstrationSamples | None:
        size = round(batch_size * self.demonstration_share * self._decay())
        if self.demonstration_buffer is None or size == 0:
            return None
        return self.demonstration_buffer.sample(size, self.rng)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """As in `DiscreteSAC`; retrains discriminator and weights when it is time."""
        due = self._n_updates - self._trained_at >= self.discriminator_every
        if due and self.demonstration_buffer is not None and self._decay() > 0:
            self._trained_at = self._n_updates
            self._update_weights(from_policy=True)
        self.logger.record("train/imitation_coef", self._imitation_coefficient())
        super().train(gradient_steps, batch_size)

    def _update_weights(self, from_policy: bool) -> WeightStatistics:
        """Retrains the discriminator (eq. 13) and computes the weights anew (eq. 18, 19).

        Args:
            from_policy: Whether half of the policy's pairs come from its own sessions (the replay
                buffer); the others are its actions in demonstrated states.
        """
        buffer, trainer = self.demonstration_buffer, self.discriminator
        assert buffer is not None
        assert trainer is not None
        known = self._pairs(buffer.at(np.arange(len(buffer))))
        own = self._policy_pairs(from_policy)
        stats: dict[str, list[float]] = {}
        for _ in range(self.discriminator_steps):
            expert = self.rng.integers(len(buffer), size=self.batch_size)
            policy = self.rng.integers(len(own.actions), size=self.batch_size)
            found = trainer.update(_rows(known, expert), _rows(own, policy))
            for name, value in found._asdict().items():
                stats.setdefault(name, []).append(value)
        for name, values in stats.items():
            self.logger.record(f"discriminator/{name}", float(np.mean(values)))
        logits = trainer.logits(*known).cpu()
        self.logger.record("discriminator/irl_reward", float(irl_reward(logits).mean()))
        assert self._log_env is not None
        weights = normalise(
            combine(self._log_env, log_irl_weight(logits, self.irl_gamma), self.alpha),
            *self.weight_bounds,
        )
        buffer.set_weights(weights.numpy())
        described = weight_statistics(weights, *self.weight_bounds)
        for name, value in described._asdict().items():
            self.logger.record(f"weights/{name}", value)
        for quantile in (0.1, 0.5, 0.9):
            name = f"weights/quantile_{quantile:.1f}"
            self.logger.record(name, float(weights.quantile(quantile)))
        return described

    def _log_probs(self, samples: DemonstrationSamples, chunk: int = 512) -> th.Tensor:
        """Returns (B,) log-probabilities of demonstrated actions under the policy."""
        result = []
        with th.no_grad():
            for start in range(0, len(samples.actions), chunk):
                part = slice(start, start + chunk)
                masks = None if samples.action_masks is None else samples.action_masks[part]
                every = self.policy.log_probs(samples.observations[part], masks)
                result.append(every.gather(1, samples.actions[part])[:, 0])
        return th.cat(result)

    def _pairs(self, samples: DemonstrationSamples) -> StateActions:
        return StateActions(samples.observations, samples.actions, self._log_probs(samples))

    def _policy_pairs(self, from_policy: bool, n_batches: int = 4) -> StateActions:
        """Returns pairs of the current policy, a few batches to draw from."""
        assert self.demonstration_buffer is not None
        assert self.replay_buffer is not None
        pairs = []
        for number in range(n_batches):
            samples: Any
            if from_policy and number % 2:
                samples = self.replay_buffer.sample(self.batch_size)
            else:
                samples = self.demonstration_buffer.sample(
                    self.batch_size, self.rng, weighted=False
                )
            with th.no_grad():
                log_probs = self.policy.log_probs(samples.observations, samples.action_masks)
                actions = sample_actions(log_probs.exp())[:, None]
            pairs.append(
                StateActions(samples.observations, actions, log_probs.gather(1, actions)[:, 0])
            )
        observations, actions, log_probs = (th.cat(parts) for parts in zip(*pairs, strict=True))
        return StateActions(observations, actions, log_probs)

    # -- warm start --------------------------------------------------------------------------------

    def _warm_start(self, progress: bool = False) -> None:
        """Imitates, and fits the critics to the demonstrations' returns, before the first step.

        Bootstrapping is of no use here: values of actions that nobody demonstrated would feed on
        themselves.
        """
        buffer = self.demonstration_buffer
        assert buffer is not None
        self._update_weights(from_policy=False)
        self.policy.set_training_mode(True)
        for step in tqdm(range(self.warm_start_steps), desc="warm start", disable=not progress):
            demonstrated = buffer.sample(self.batch_size, self.rng)
            batch = self._join(None, demonstrated)
            self._critic_step(batch, demonstrated.returns)
            log_probs = self.policy.log_probs(batch.observations, batch.masks)
            imitation = imitation_loss(log_probs.gather(1, batch.actions)[:, 0])
            self._descend(self.policy.actor_optimizer, self.policy.actor, imitation)
            if step == self.warm_start_steps // 2:
                self._update_weights(from_policy=False)
        # random play would add nothing now: learn from the environment as soon as a batch is there
        self.learning_starts = min(self.learning_starts, self.batch_size)
        self.policy.critic_target.load_state_dict(self.policy.critic.state_dict())
        self.policy.actor_average.load_state_dict(self.policy.actor.state_dict())
        self.policy.set_training_mode(False)

    def _acts_at_random(self, learning_starts: int) -> bool:
        warm = self.demonstration_buffer is not None and self.warm_start_steps > 0
        return not warm and super()._acts_at_random(learning_starts)

    # -- saving ------------------------------------------------------------------------------------

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "demonstration_buffer",
            "discriminator",
            "_given",
            "_searched",
            "_log_env",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "discriminator"], variables

    def _training_state(self) -> dict[str, np.ndarray]:
        state = super()._training_state()
        if self.demonstration_buffer is not None and self._log_env is not None:
            state.update(prefixed("demonstrations", self.demonstration_buffer.state_dict()))
            state["log_env"] = self._log_env.numpy().copy()
        return state

    def _load_training_state(self, state: dict[str, np.ndarray]) -> None:
        super()._load_training_state(state)
        stored = unprefixed("demonstrations", state)
        if stored:
            self.demonstration_buffer = DemonstrationBuffer.from_state_dict(stored, self.device)
            self._log_env = th.from_numpy(state["log_env"].copy())


def _rows(pairs: StateActions, rows: np.ndarray) -> StateActions:
    index = th.from_numpy(rows).to(pairs.actions.device)
    return StateActions(*(part[index] for part in pairs))  # type: ignore[index]
