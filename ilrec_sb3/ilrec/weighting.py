"""How much each demonstrated transition counts (IL-Rec, eq. 15 to 19), in log-space.

N is the number of transitions. Products of powers of exponentials overflow easily; sums of their
logarithms do not, so weights stay logarithms until they are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

__all__ = [
    "ValueFit",
    "WeightStatistics",
    "advantage",
    "combine",
    "discounted_returns",
    "effective_sample_size",
    "fit_value",
    "log_env_weight",
    "log_irl_weight",
    "normalise",
    "weight_statistics",
]


class ValueFit(NamedTuple):
    """What `fit_value` found.

    Attributes:
        values: (N,) float32, V_demo of each transition's state.
        error: Mean squared error of the values against the returns.
        constant_error: The same for the mean return of the other sessions.
        epochs: Passes over the data, mean over the folds.
        extra: (M,) float32, V_demo of the states that were asked about besides.
    """

    values: th.Tensor
    error: float
    constant_error: float
    epochs: float
    extra: th.Tensor


class WeightStatistics(NamedTuple):
    """The distribution of the weights, for the log.

    Attributes:
        mean: Mean; 1 before clipping.
        minimum: Smallest weight.
        maximum: Largest weight.
        effective_share: Effective sample size over N, in (0, 1].
        clipped_share: Share of the weights that lie on a bound.
    """

    mean: float
    minimum: float
    maximum: float
    effective_share: float
    clipped_share: float


def discounted_returns(rewards: th.Tensor, gamma: float, bootstrap: float = 0.0) -> th.Tensor:
    r"""Return from each step on, :math:`G_t = \sum_{k=t}^T \gamma^{k-t} r_k` (IL-Rec, eq. 15).

    Args:
        rewards: (T,) of one session.
        gamma: Discount factor in [0, 1].
        bootstrap: Value of the state after the last step; 0 where the session ended there.

    Returns:
        (T,) of the type of the rewards.
    """
    result = th.empty_like(rewards)
    running = th.as_tensor(bootstrap, dtype=rewards.dtype, device=rewards.device)
    for step in range(len(rewards) - 1, -1, -1):
        running = rewards[step] + gamma * running
        result[step] = running
    return result


def advantage(returns: th.Tensor, values: th.Tensor) -> th.Tensor:
    r"""Advantage, :math:`A_{demo} = Q_{demo} - V_{demo}`, Q being the return (IL-Rec, eq. 16).

    Args:
        returns: (N,) from `discounted_returns`.
        values: (N,) from `fit_value`.

    Returns:
        (N,) in units of the return.
    """
    return returns - values


def log_env_weight(advantages: th.Tensor, beta: float) -> th.Tensor:
    r"""Logarithm of :math:`w_{env} = \exp(A_{demo} / \beta)` (IL-Rec, eq. 17).

    Args:
        advantages: (N,).
        beta: Temperature in units of the return, positive. Lowering it puts more of the weight on
            the best transitions; the standard deviation of the advantages is a middling choice.

    Returns:
        (N,).
    """
    if beta <= 0:
        raise ValueError(f"beta = {beta} came; expected a positive temperature: try 1.0.")
    return advantages / beta


def log_irl_weight(logits: th.Tensor, gamma: float) -> th.Tensor:
    r"""Logarithm of :math:`w_{IRL} = (1/D - 1)^\gamma` (IL-Rec, eq. 18).

    D = sigmoid(-logit) is the chance that the transition is the policy's, so 1/D - 1 = exp(logit).

    Args:
        logits: (N,) of the discriminator, high where it looks like the expert.
        gamma: Confidence in the discriminator, at least 0 (not the discount factor); 0 ignores it.

    Returns:
        (N,).
    """
    return gamma * logits


def combine(log_env: th.Tensor, log_irl: th.Tensor, alpha: float) -> th.Tensor:
    r"""Logarithm of :math:`w = w_{env}^\alpha w_{IRL}^{1-\alpha}` (IL-Rec, eq. 19).

    Args:
        log_env: (N,) from `log_env_weight`.
        log_irl: (N,) from `log_irl_weight`.
        alpha: In [0, 1]; 1 trusts the world model's rewards alone, 0 the discriminator alone.

    Returns:
        (N,).
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha = {alpha} came; expected a number from 0 to 1: try 0.5.")
    return alpha * log_env + (1.0 - alpha) * log_irl


def normalise(log_weights: th.Tensor, low: float = 0.01, high: float = 10.0) -> th.Tensor:
    """Weights of mean 1 over the demonstrations, then clipped (IL-Rec, below eq. 19).

    Args:
        log_weights: (N,) from `combine`.
        low: Smallest weight, at least 0.
        high: Largest weight; raising it lets fewer transitions dominate. Usual: 5 to 20.

    Returns:
        (N,) in [low, high].
    """
    if not 0.0 <= low <= 1.0 <= high:
        raise ValueError(
            f"Bounds ({low}, {high}) came for weights of mean 1; expected 0 <= low <= 1 <= high: "
            "try (0.01, 10)."
        )
    exact = log_weights.double()  # float32 has no digits left for the mean of large logarithms
    log_mean = th.logsumexp(exact, dim=0) - math.log(len(exact))
    return (exact - log_mean).exp().clamp(low, high).to(log_weights.dtype)


def effective_sample_size(weights: th.Tensor) -> float:
    """Number of equally weighted transitions worth as much, (sum w)^2 / sum w^2.

    Args:
        weights: (N,), at least 0, not all 0.

    Returns:
        In [1, N].
    """
    weights = weights.double()
    return float(weights.sum() ** 2 / (weights**2).sum())


def weight_statistics(
    weights: th.Tensor, low: float = 0.01, high: float = 10.0
) -> WeightStatistics:
    """Describes how the weights are spread.

    Args:
        weights: (N,) from `normalise`.
        low: The bound that was used there.
        high: The bound that was used there.

    Returns:
        Five numbers.
    """
    clipped = (weights <= low) | (weights >= high)
    return WeightStatistics(
        mean=float(weights.mean()),
        minimum=float(weights.min()),
        maximum=float(weights.max()),
        effective_share=effective_sample_size(weights) / len(weights),
        clipped_share=float(clipped.float().mean()),
    )


def fit_value(
    observations: th.Tensor,
    returns: th.Tensor,
    sessions: th.Tensor,
    extra: th.Tensor | None = None,
    seed: int = 0,
    folds: int = 5,
    hidden: tuple[int, ...] = (64, 64),
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-3,
    max_epochs: int = 200,
    patience: int = 10,
    batch_size: int = 256,
    progress: bool = False,
) -> ValueFit:
    """Regresses V_demo on the returns (IL-Rec, below eq. 15), each session by the other sessions.

    A network that has seen a session remembers its return, and the advantage of eq. 16 becomes
    zero. So the sessions are dealt into folds; a network for each fold is fitted on the others,
    stopped where its error on the fold is least, and only asked about the fold. With one session
    the value is the mean of its returns.

    Args:
        observations: (N, d) floating.
        returns: (N,) from `discounted_returns`.
        sessions: (N,) integer, which session each transition is of.
        extra: (M, d) states of other sessions, which all networks are asked about.
        seed: Of the folds, the networks and the batches.
        folds: At least 2; fewer where there are fewer sessions. Raising it fits better and costs
            in proportion.
        hidden: Widths of the hidden layers.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW; raising it flattens the value.
        max_epochs: Passes over the data at most.
        patience: Passes without a better error on the fold before it stops.
        batch_size: Transitions a gradient step.
        progress: Whether to show a progress bar.

    Returns:
        The values and how good they are.
    """
    if not len(observations) == len(returns) == len(sessions) > 0:
        raise ValueError(
            f"{len(observations)} observations, {len(returns)} returns and {len(sessions)} session "
            "numbers came; expected as many of each, and at least one."
        )
    generator = th.Generator().manual_seed(seed)
    raw = observations.detach().float().cpu()
    others = raw[:0] if extra is None else extra.detach().float().cpu()
    inputs, others = _standardise(raw, raw), _standardise(others, raw)
    targets, sessions = returns.detach().float().cpu(), sessions.cpu()
    names = sessions.unique()
    if len(names) < 2:
        values = targets.mean().expand_as(targets).clone()
        error = float(F.mse_loss(values, targets))
        same = targets.mean().expand(len(others)).clone()
        return ValueFit(values.to(returns.device), error, error, 0.0, same.to(returns.device))
    n_folds = min(max(folds, 2), len(names))
    dealt = th.randperm(len(names), generator=generator) % n_folds
    fold_of = dealt[th.searchsorted(names, sessions)]
    values, constants = th.empty_like(targets), th.empty_like(targets)
    besides = th.zeros(len(others))
    epochs = 0
    with tqdm(total=n_folds, desc="V_demo", unit="fold", disable=not progress) as bar:
        for fold in range(n_folds):
            held = fold_of == fold
            constants[held] = targets[~held].mean()
            values[held], other_values, passes = _fit_fold(
                (inputs[~held], targets[~held]),
                (inputs[held], targets[held]),
                others,
                generator,
                hidden=hidden,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                max_epochs=max_epochs,
                patience=patience,
                batch_size=batch_size,
            )
            besides += other_values / n_folds
            epochs += passes
            bar.update()
    return ValueFit(
        values=values.to(returns.device),
        error=float(F.mse_loss(values, targets)),
        constant_error=float(F.mse_loss(constants, targets)),
        epochs=epochs / n_folds,
        extra=besides.to(returns.device),
    )


def _standardise(values: th.Tensor, by: th.Tensor) -> th.Tensor:
    return (values - by.mean(dim=0)) / by.std(dim=0, correction=0).clamp(min=1e-3)


def _fit_fold(
    train: tuple[th.Tensor, th.Tensor],
    held: tuple[th.Tensor, th.Tensor],
    others: th.Tensor,
    generator: th.Generator,
    hidden: tuple[int, ...],
    learning_rate: float,
    weight_decay: float,
    max_epochs: int,
    patience: int,
    batch_size: int,
) -> tuple[th.Tensor, th.Tensor, int]:
    """Returns the best predictions for held-out and other states, and the passes made."""
    inputs, targets = train
    centre, scale = targets.mean(), targets.std(correction=0).clamp(min=1e-6)
    network = _value_network(inputs.shape[1], hidden, generator)
    optimizer = th.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    wanted = (held[1] - centre) / scale
    # the constant is where the search starts: a network that never beats it is not used
    asked = th.cat([held[0], others])
    best, at_best = th.zeros_like(wanted), th.zeros(len(asked))
    best_error, waited, passes = float(F.mse_loss(best, wanted)), 0, 0
    while passes < max_epochs and waited < patience:
        for rows in _batches(len(inputs), batch_size, generator):
            loss = F.mse_loss(network(inputs[rows])[:, 0], (targets[rows] - centre) / scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with th.no_grad():
            answers = network(asked)[:, 0]
        predicted = answers[: len(wanted)]
        error = float(F.mse_loss(predicted, wanted))
        passes, waited = passes + 1, waited + 1
        if error < best_error:
            best, at_best, best_error, waited = predicted, answers, error, 0
    return best * scale + centre, at_best[len(wanted) :] * scale + centre, passes


def _value_network(width: int, hidden: tuple[int, ...], generator: th.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.utils.skip_init(nn.Linear, width, size), nn.ReLU()]
        width = size
    layers.append(nn.utils.skip_init(nn.Linear, width, 1))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _batches(count: int, size: int, generator: th.Generator) -> Iterator[th.Tensor]:
    return iter(th.randperm(count, generator=generator).split(size))
