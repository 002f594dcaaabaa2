"""The environment's feedback is whole, fits its examples, and comes back from disk as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from recsim_env.environment_feedback import EnvironmentFeedback, sample_negatives
from recsim_env.errors import ArtefactError, DataError
from recsim_env.sequences import Examples, SequenceData, load_sequences


def few(n_items: int = 6) -> Examples:
    names = tuple(map(str, range(n_items)))
    data = SequenceData(
        "few",
        names,
        names,
        names,
        "thing",
        (np.array([3, 1, 4, 1]), np.array([0, 2, 4])),
        (np.array([-1, 0, 0, 0]), np.array([-1, 0, 0])),
    )
    return data.examples("train", 3)


def feedback(examples: Examples, k: int = 2, augmented: bool = True) -> EnvironmentFeedback:
    rng = np.random.default_rng(0)
    m = len(examples)
    normal = rng.standard_normal((m, 2 * 4 + 2 + k)).astype(np.float32)
    return EnvironmentFeedback(
        states=normal[:, :4],
        next_states=normal[:, 4:8],
        rewards=normal[:, 8],
        negatives=sample_negatives(examples, k, seed=1),
        negative_rewards=normal[:, 10:],
        augmented=rng.integers(examples.n_items, size=m) if augmented else None,
        augmented_rewards=normal[:, 9] if augmented else None,
        examples=examples.fingerprint,
    )


def test_scaled_by_hand() -> None:
    examples = few()
    m = len(examples)
    before = replace(
        feedback(examples),
        rewards=np.resize(np.array([5.0, -5.0], np.float32), m),
        negative_rewards=np.full((m, 2), 10.0, np.float32),
        augmented_rewards=np.full(m, 2.5, np.float32),
    )
    after = before.scaled()
    np.testing.assert_allclose(after.rewards[:2], [1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(after.negative_rewards, 2.0, rtol=1e-6)
    assert after.augmented_rewards is not None
    np.testing.assert_allclose(after.augmented_rewards, 0.5, rtol=1e-6)
    np.testing.assert_array_equal(after.states, before.states)
    nothing = replace(before, rewards=np.zeros(m, np.float32)).scaled()
    assert not nothing.rewards.any()
    np.testing.assert_array_equal(nothing.negative_rewards, before.negative_rewards)
    assert feedback(examples, augmented=False).scaled().augmented_rewards is None


@pytest.mark.parametrize("augmented", [True, False])
def test_round_trip(tmp_path: Path, augmented: bool) -> None:
    examples = few()
    before = feedback(examples, augmented=augmented)
    path = before.save(tmp_path / "sub" / "feedback.safetensors")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    after = EnvironmentFeedback.load(path, examples)
    for name in EnvironmentFeedback.__dataclass_fields__:
        old, new = getattr(before, name), getattr(after, name)
        assert type(old) is type(new)
        if isinstance(old, np.ndarray):
            assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)
    assert len(after) == 5
    assert repr(after) == f"EnvironmentFeedback(m=5, d=4, negatives=2, augmented={augmented})"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", np.nan, "rewards has nan in row 3"),
        ("states", np.inf, "states has inf in row 3"),
        ("next_states", np.nan, "next_states has nan in row 3"),
        ("negative_rewards", -np.inf, "negative_rewards has -inf in row 3"),
        ("augmented_rewards", np.nan, r"augmented_rewards has nan in row 3 \(and in 1 of 5"),
        ("negatives", -1, "negatives has -1 in row 3"),
        ("augmented", -2, "augmented has -2 in row 3"),
    ],
)
def test_the_first_bad_row_is_named(name: str, value: float, message: str) -> None:
    good = feedback(few())
    array = getattr(good, name).copy()
    array.reshape(5, -1)[3, -1] = value
    with pytest.raises(DataError, match=message):
        replace(good, **{name: array})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": np.zeros((4, 4), np.float32)}, r"states of shape \(4, 4\)"),
        ({"next_states": np.zeros((5, 3), np.float32)}, r"expected float32 of shape \(5, 4\)"),
        ({"states": np.zeros(5, np.float32)}, r"states of shape \(5,\)"),
        ({"states": np.zeros((5, 4))}, "type float64"),
        ({"rewards": np.zeros((5, 1), np.float32)}, r"rewards of shape \(5, 1\)"),
        ({"rewards": np.zeros(0, np.float32)}, "no size being 0"),
        ({"negatives": np.zeros((5, 0), np.int64)}, "no size being 0"),
        ({"negatives": np.zeros((5, 2), np.int32)}, "expected int64"),
        ({"negative_rewards": np.zeros((5, 1), np.float32)}, r"expected float32 of shape \(5, 2\)"),
        ({"augmented": np.zeros(4, np.int64)}, r"augmented of shape \(4,\)"),
        ({"augmented": None}, "one without the other"),
        ({"augmented_rewards": None}, "one without the other"),
    ],
)
def test_bad_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(feedback(few()), **changes)


def test_feedback_of_other_examples_is_refused(tmp_path: Path) -> None:
    examples = few()
    path = feedback(examples).save(tmp_path / "feedback.safetensors")
    EnvironmentFeedback.load(path)
    with pytest.raises(ArtefactError, match="belongs to other examples"):
        EnvironmentFeedback.load(path, few(n_items=7))
    with pytest.raises(ArtefactError, match="belongs to other examples"):
        EnvironmentFeedback.load(path, examples.take([1, 0, 2, 3, 4]))


def test_forbidden_items_are_refused() -> None:
    examples = few()
    good = feedback(examples)
    good.check(examples)
    for wrong, message in (
        (examples.targets, "negatives has in row 0 .*the target itself"),
        (examples.histories[:, -1], "negatives has in row 0 an item of the history"),
    ):
        with pytest.raises(ArtefactError, match=message):
            replace(good, negatives=wrong[:, None].repeat(2, axis=1)).check(examples)
    unknown = np.array([0, 0, 6, 0, 0])
    with pytest.raises(ArtefactError, match="augmented has an unknown item in row 2"):
        replace(good, augmented=unknown).check(examples)
    with pytest.raises(ArtefactError, match="negatives has an unknown item in row 2"):
        replace(good, negatives=np.column_stack([unknown, unknown])).check(examples)


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = feedback(few()).save(tmp_path / "feedback.safetensors")
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[:40], b"not a tensor file at all"):
        path.write_bytes(broken)
        with pytest.raises(ArtefactError, match="cannot be read as environment feedback"):
            EnvironmentFeedback.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match="is damaged"):
        EnvironmentFeedback.load(path)
    with pytest.raises(ArtefactError, match="cannot be read"):
        EnvironmentFeedback.load(tmp_path / "absent.safetensors")
    with pytest.raises(ArtefactError, match="cannot be read"):
        EnvironmentFeedback.load(tmp_path)
    path.write_bytes(whole)
    arrays = load_file(path)
    save_file(arrays, path)
    with pytest.raises(ArtefactError, match="is marked None"):
        EnvironmentFeedback.load(path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = few()
    path = feedback(examples).save(tmp_path / "feedback.safetensors")
    whole = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        feedback(examples, augmented=False).save(path)
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@settings(max_examples=60, deadline=None)
@given(st.integers(7, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_negatives_are_never_what_was_taken(n_items: int, length: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    histories = rng.integers(n_items, size=(20, length))
    cut = rng.integers(length, size=20)
    histories[np.arange(length) < cut[:, None]] = n_items
    targets = rng.integers(n_items, size=20)
    examples = Examples(
        histories=histories,
        targets=targets,
        next_histories=np.column_stack([histories[:, 1:], targets]),
        users=np.arange(20),
        ends=np.ones(20, np.bool_),
        n_items=n_items,
    )
    drawn = sample_negatives(examples, k, seed)
    assert drawn.shape == (20, k)
    assert drawn.min() >= 0
    assert drawn.max() < n_items
    taken = np.column_stack([histories, targets])
    assert not (drawn[:, :, None] == taken[:, None, :]).any()
    np.testing.assert_array_equal(drawn, sample_negatives(examples, k, seed))


def test_negatives_are_drawn_evenly() -> None:
    examples = few()  # row 2 has the history 3, 1, 4 and the target 1
    drawn = sample_negatives(examples, 6000, seed=0)[2]
    items, counts = np.unique(drawn, return_counts=True)
    assert items.tolist() == [0, 2, 5]
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(6000 * 2 / 9)
    assert not np.array_equal(drawn, sample_negatives(examples, 6000, seed=1)[2])


def test_negatives_need_something_to_draw() -> None:
    examples = few()
    with pytest.raises(DataError, match="k=0"):
        sample_negatives(examples, 0, seed=0)
    names = ("a", "b", "c")
    full = SequenceData(
        "full", names, names, names, "thing", (np.arange(3),), (np.array([-1, 0, 0]),)
    ).examples("train")
    with pytest.raises(DataError, match="Row 1 has all 3 items"):
        sample_negatives(full, 1, seed=0)


def test_it_fits_loaded_sequences(tmp_path: Path) -> None:
    examples = load_sequences("synthetic", n_users=30, n_items=12).examples("train")
    saved = feedback(examples, k=1).save(tmp_path / "feedback.safetensors")
    again = load_sequences("synthetic", n_users=30, n_items=12).examples("train")
    assert len(EnvironmentFeedback.load(saved, again)) == len(examples)
