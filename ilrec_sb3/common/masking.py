"""Action masks: packed to bits for storage, unpacked to torch, and the masked softmax family.

A mask is True where an action is allowed. A masked logit becomes a large finite number rather than
minus infinity: its probability is exactly zero, and zero times its logarithm is zero, not NaN.
"""

from __future__ import annotations

import numpy as np
import torch as th
from torch.nn import functional as F

__all__ = [
    "masked_entropy",
    "masked_log_softmax",
    "masked_logits",
    "pack_masks",
    "sample_actions",
    "unpack_masks",
    "unpack_to_torch",
]

_LOWEST = -1e9


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Packs masks to one bit an action.

    Args:
        masks: (..., n) bool or 0/1, True where allowed.

    Returns:
        (..., ceil(n / 8)) uint8, as `numpy.packbits` gives.
    """
    return np.packbits(np.asarray(masks, dtype=np.bool_), axis=-1)


def unpack_masks(packed: np.ndarray, n_actions: int) -> np.ndarray:
    """Unpacks what `pack_masks` packed.

    Args:
        packed: (..., ceil(n / 8)) uint8.
        n_actions: n.

    Returns:
        (..., n) bool.
    """
    expected = (n_actions + 7) // 8
    if packed.shape[-1] != expected:
        raise ValueError(
            f"Packed masks of {packed.shape[-1]} bytes came for {n_actions} actions; expected "
            f"{expected} bytes: pass the number of actions that the masks were packed from."
        )
    return np.unpackbits(packed, axis=-1, count=n_actions).view(np.bool_)


def unpack_to_torch(
    packed: np.ndarray, n_actions: int, device: th.device | str = "cpu"
) -> th.Tensor:
    """Unpacks masks onto a device; to an accelerator only the bits travel.

    Args:
        packed: (..., ceil(n / 8)) uint8.
        n_actions: n.
        device: Where the result lives.

    Returns:
        (..., n) torch bool.
    """
    device = th.device(device)
    if device.type == "cpu":
        return th.from_numpy(unpack_masks(packed, n_actions))
    return _unpack_bits(th.as_tensor(packed, device=device), n_actions)


def _unpack_bits(packed: th.Tensor, n_actions: int) -> th.Tensor:
    """Unpacks (..., bytes) uint8 to (..., n_actions) bool where it lives."""
    shifts = th.arange(7, -1, -1, dtype=th.uint8, device=packed.device)
    bits = (packed[..., None] >> shifts) & 1  # (..., bytes, 8)
    return bits.flatten(-2)[..., :n_actions].bool()


def masked_logits(logits: th.Tensor, masks: th.Tensor | None, check: bool = True) -> th.Tensor:
    """Returns the logits with those of disallowed actions set to a large negative number.

    Args:
        logits: (..., n) floating.
        masks: (..., n) bool, True where allowed; None allows everything.
        check: Whether to refuse rows in which nothing is allowed (costs one pass over the masks).

    Returns:
        (..., n), finite wherever the logits are.

    Raises:
        ValueError: A row allows nothing, or the shapes differ.
    """
    if masks is None:
        return logits
    if masks.shape[-1] != logits.shape[-1]:
        raise ValueError(
            f"Masks of shape {tuple(masks.shape)} came for logits of shape {tuple(logits.shape)}; "
            "expected one value for each action: pass the masks of this environment."
        )
    masks = masks.to(device=logits.device, dtype=th.bool)
    # the maximum of bytes is twenty times as fast as any()
    if check and not bool(masks.view(th.uint8).amax(dim=-1).all()):
        rows = (~masks.any(dim=-1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"The action masks of rows {rows[:5]} allow no action at all; expected at least one "
            "in each row: end the session before its last action is used up."
        )
    lowest = max(_LOWEST, th.finfo(logits.dtype).min / 4)
    return th.where(masks, logits, lowest)


def masked_log_softmax(logits: th.Tensor, masks: th.Tensor | None, check: bool = True) -> th.Tensor:
    """Returns log-probabilities in which disallowed actions have a large negative one.

    Args:
        logits: (..., n) floating.
        masks: (..., n) bool, True where allowed; None allows everything.
        check: As in `masked_logits`.

    Returns:
        (..., n); its exponential is exactly 0 where an action is disallowed.
    """
    return F.log_softmax(masked_logits(logits, masks, check), dim=-1)


def masked_entropy(log_probs: th.Tensor, probs: th.Tensor | None = None) -> th.Tensor:
    """Returns the entropy of masked log-probabilities in nats, H = -sum_a p log p.

    Args:
        log_probs: (..., n) from `masked_log_softmax`.
        probs: Their exponentials, where they were computed already.

    Returns:
        (...), in [0, log n].
    """
    probs = log_probs.exp() if probs is None else probs
    return -(probs * log_probs).sum(dim=-1)


def sample_actions(probs: th.Tensor) -> th.Tensor:
    """Draws an action from each row of probabilities, by inverting their running sum.

    Args:
        probs: (B, n), at least 0, each row with a positive sum; no gradient flows.

    Returns:
        (B,) int64; actions of probability 0 are never drawn.
    """
    running = probs.detach().double().cumsum(dim=-1)
    drawn = th.rand((len(probs), 1), device=probs.device, dtype=th.float64) * running[:, -1:]
    return th.searchsorted(running, drawn, right=True).squeeze(-1).clamp(max=probs.shape[-1] - 1)
