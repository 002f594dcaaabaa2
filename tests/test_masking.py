"""Masks: packing, and a softmax that knows what is not allowed."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings

from ilrec_sb3.common.masking import (
    _unpack_bits,
    masked_entropy,
    masked_log_softmax,
    masked_logits,
    pack_masks,
    sample_actions,
    unpack_masks,
    unpack_to_torch,
)

masks_2d = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=37))


@given(masks_2d)
@settings(max_examples=50, deadline=None)
def test_packing_round_trip(masks: np.ndarray) -> None:
    packed = pack_masks(masks)
    assert packed.shape == (len(masks), -(-masks.shape[1] // 8))
    np.testing.assert_array_equal(unpack_masks(packed, masks.shape[1]), masks)
    on_torch = unpack_to_torch(packed, masks.shape[1])
    assert on_torch.dtype == th.bool
    np.testing.assert_array_equal(on_torch.numpy(), masks)


@pytest.mark.parametrize("n_actions", [1, 8, 13, 6012])
def test_the_accelerators_way_of_unpacking_gives_the_same(n_actions: int) -> None:
    masks = np.random.default_rng(0).random((5, n_actions)) < 0.5
    got = _unpack_bits(th.from_numpy(pack_masks(masks)), n_actions)
    assert got.dtype == th.bool
    np.testing.assert_array_equal(got.numpy(), masks)


@pytest.mark.gpu
@pytest.mark.skipif(
    not th.cuda.is_available(), reason="needs a CUDA device; the same on the CPU is tested above"
)
def test_unpacking_on_cuda() -> None:
    masks = np.random.default_rng(0).random((5, 6012)) < 0.5
    got = unpack_to_torch(pack_masks(masks), 6012, "cuda")
    np.testing.assert_array_equal(got.cpu().numpy(), masks)


def test_the_wrong_number_of_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 bytes"):
        unpack_masks(np.zeros((2, 1), np.uint8), 9)


def test_masked_probabilities_by_hand() -> None:
    logits = th.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]])
    masks = th.tensor([[True, True, False]])
    np.testing.assert_allclose(
        masked_log_softmax(logits, masks).exp(), [[1 / 3, 2 / 3, 0.0]], rtol=1e-6
    )
    log_probs = masked_log_softmax(logits, masks)
    assert log_probs[0, 2].exp() == 0.0
    expected = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert masked_entropy(log_probs).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [th.float16, th.bfloat16, th.float32, th.float64])
def test_no_nan_in_values_or_gradients(dtype: th.dtype) -> None:
    logits = th.tensor([[30.0, -30.0, 5.0, 0.0]], dtype=dtype, requires_grad=True)
    masks = th.tensor([[False, True, False, True]])
    log_probs = masked_log_softmax(logits, masks)
    q = th.tensor([[1e4, 1.0, -1e4, 2.0]], dtype=dtype)
    loss = (log_probs.exp() * (q - 0.1 * log_probs)).sum() + masked_entropy(log_probs).sum()
    loss.backward()
    assert th.isfinite(loss)
    assert th.isfinite(logits.grad).all()
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 2] == 0


def test_without_masks_it_is_the_plain_softmax() -> None:
    logits = th.randn(3, 4, generator=th.Generator().manual_seed(0))
    assert masked_logits(logits, None) is logits
    th.testing.assert_close(masked_log_softmax(logits, None).exp(), th.softmax(logits, -1))


def test_a_row_without_any_action_is_refused() -> None:
    masks = th.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"rows \[1\] allow no action"):
        masked_logits(th.zeros(2, 2), masks)


def test_masks_of_another_catalogue_are_refused() -> None:
    with pytest.raises(ValueError, match="pass the masks of this environment"):
        masked_logits(th.zeros(2, 3), th.ones(2, 2, dtype=th.bool))


def test_draws_follow_the_probabilities_and_skip_impossible_actions() -> None:
    th.manual_seed(0)
    probs = th.tensor([[0.0, 0.2, 0.0, 0.5, 0.3, 0.0]])
    drawn = sample_actions(probs.expand(40_000, 6))
    frequency = th.bincount(drawn, minlength=6) / len(drawn)
    th.testing.assert_close(frequency, probs[0], atol=0.01, rtol=0)
    assert set(drawn.unique().tolist()) == {1, 3, 4}
