from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lea_toy import catalogue, language_model, tokens

from llm_expert.environment import EnvironmentConfig, LLMEnvironment, precompute
from llm_expert.errors import LLMError
from recsim_env.environment_feedback import EnvironmentFeedback, sample_negatives
from recsim_env.errors import DataError
from recsim_env.sequences import Examples

pytest.importorskip("transformers")
pytest.importorskip("peft")

FIELDS = ("states", "next_states", "rewards", "negative_rewards", "augmented", "augmented_rewards")


@cache
def environment(seed: int = 0) -> LLMEnvironment:
    config = EnvironmentConfig(share=0.3, epochs=1, length=4)
    return LLMEnvironment.fit(
        language_model(), catalogue(), config, seed, progress=False, tokens=tokens()
    )


@cache
def examples() -> Examples:
    return catalogue().examples("train", 4)


def lists(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(12)[:5] for _ in range(len(examples()))])


def computed(tuned: LLMEnvironment | None = None, **settings: Any) -> EnvironmentFeedback:
    wanted: dict[str, Any] = {
        "negatives": sample_negatives(examples(), 2, 0),
        "candidates": lists(),
        "chunk": 50,
        "progress": False,
    }
    return precompute(tuned or environment(), examples(), **{**wanted, **settings})


def test_candidates_are_shown_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best item of a recommender comes first in its list, but not in the prompt."""
    shown = []

    def first(_: LLMEnvironment, __: Any, candidates: Any) -> Any:
        shown.append(candidates)
        return candidates[:, 0]

    monkeypatch.setattr(LLMEnvironment, "choose", first)
    found = computed()
    every = np.concatenate(shown)
    np.testing.assert_array_equal(np.sort(every), np.sort(lists()))
    best = lists()[:, 0]
    places = np.bincount((every == best[:, None]).argmax(axis=1), minlength=5)
    assert places.min() > 0.1 * len(every)
    assert found.augmented is not None
    np.testing.assert_array_equal(found.augmented, every[:, 0])
    assert not np.array_equal(computed(seed=1).augmented, found.augmented)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the language model is asked for: "plain" or "choice", one entry for each call."""
    calls: list[str] = []
    ask = LLMEnvironment.ask

    def counting(self: Any, histories: Any, actions: Any = None, candidates: Any = None) -> Any:
        calls.append("plain" if candidates is None else "choice")
        return ask(self, histories, actions, candidates)

    monkeypatch.setattr(LLMEnvironment, "ask", counting)
    return calls


def test_other_choosers_show_what_the_choice_is_worth(asked: list[str], tmp_path: Path) -> None:
    found = {name: computed(chooser=name, folder=tmp_path) for name in ("recommender", "random")}
    assert "choice" not in asked
    best, drawn = found["recommender"].augmented, found["random"].augmented
    assert best is not None
    assert drawn is not None
    np.testing.assert_array_equal(best, lists()[:, 0])
    places = np.bincount((lists() == drawn[:, None]).argmax(axis=1), minlength=5)
    assert places.min() > 0.1 * len(drawn)
    for one in found.values():
        assert one.augmented is not None
        assert one.augmented_rewards is not None
        direct = environment().rewards(examples().histories, one.augmented)
        np.testing.assert_allclose(one.augmented_rewards, direct, atol=1e-4)
    with pytest.raises(DataError, match="no chooser 'dice'"):
        computed(chooser="dice")


def test_it_is_what_the_environment_says(tmp_path: Path) -> None:
    found, rows, tuned = computed(folder=tmp_path), examples(), environment()
    found.check(rows)
    direct = tuned.states(rows.next_histories)
    np.testing.assert_allclose(found.states, tuned.states(rows.histories), atol=1e-4)
    np.testing.assert_allclose(found.next_states, direct, atol=1e-4)
    own = tuned.rewards(rows.histories, rows.targets)
    np.testing.assert_allclose(found.rewards, own, atol=1e-4)
    sampled = tuned.rewards(rows.histories, found.negatives)
    np.testing.assert_allclose(found.negative_rewards, sampled, atol=1e-4)
    assert found.augmented is not None
    shown = np.random.default_rng(0).permuted(lists(), axis=1)
    assert np.mean(found.augmented == tuned.choose(rows.histories, shown)) > 0.99  # near ties
    extra = tuned.rewards(rows.histories, found.augmented)
    np.testing.assert_allclose(found.augmented_rewards, extra, atol=1e-4)


def test_without_candidates_there_is_no_augmentation() -> None:
    found = computed(candidates=None)
    assert found.augmented is None
    assert found.augmented_rewards is None


def test_nothing_is_computed_twice(tmp_path: Path, asked: list[str]) -> None:
    first = computed(folder=tmp_path)
    del asked[:]
    again = computed(folder=tmp_path)
    assert asked == []
    for name in FIELDS:
        assert np.array_equal(getattr(again, name), getattr(first, name)), name
    other = computed(folder=tmp_path, candidates=lists(1))
    n_pieces = -(-len(examples()) // 50)
    # Other candidates: a choice and the rewards of what was chosen, and no state of a row again.
    assert asked == ["choice", "plain"] * n_pieces
    assert np.array_equal(other.states, first.states)
    del asked[:]
    computed(environment(1), folder=tmp_path)
    assert len(asked) >= 3 * n_pieces  # another environment has pieces of its own


def test_a_stopped_run_goes_on(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = computed()
    sound = LLMEnvironment._pass
    passes = [0]

    def failing(self: Any, *given: Any) -> Any:
        passes[0] += 1
        states, rewards, logits = sound(self, *given)
        return states * (np.nan if passes[0] == 3 else 1.0), rewards, logits

    monkeypatch.setattr(LLMEnvironment, "_pass", failing)
    with pytest.raises(LLMError, match=r"rows 50 to 99 of \d+ could not .* 1 pieces before it"):
        computed(folder=tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    before = len(asked)
    resumed = computed(folder=tmp_path)
    for name in FIELDS:
        assert np.array_equal(getattr(resumed, name), getattr(whole, name)), name
    n_pieces = -(-len(examples()) // 50)
    assert len(asked) - before == 2 * (n_pieces - 1) + 2 * n_pieces


def test_a_broken_piece_is_computed_again(tmp_path: Path, asked: list[str]) -> None:
    first = computed(folder=tmp_path, candidates=None)
    piece = sorted(tmp_path.rglob("*.safetensors"))[0]
    piece.write_bytes(piece.read_bytes()[:100])
    del asked[:]
    again = computed(folder=tmp_path, candidates=None)
    assert len(asked) == 2
    assert np.array_equal(again.states, first.states)


def test_a_state_in_two_rows_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ask = LLMEnvironment.ask

    def counting(self: Any, histories: Any, *given: Any, **named: Any) -> Any:
        sizes.append(len(histories))
        return ask(self, histories, *given, **named)

    monkeypatch.setattr(LLMEnvironment, "ask", counting)
    computed(candidates=None, chunk=len(examples()))
    rows = examples()
    different = {row.tobytes() for row in np.concatenate([rows.histories, rows.next_histories])}
    assert sum(sizes) == len(rows) + len(different - {row.tobytes() for row in rows.histories})


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="negatives of shape"):
        computed(negatives=np.zeros((2, 1), np.int64))
    with pytest.raises(DataError, match="at least one of each"):
        computed(chunk=0)
    with pytest.raises(DataError, match=r"expected \(50, 5\) integers"):
        computed(candidates=lists()[:, :3])
    rows = examples()
    foreign = Examples(
        np.where(rows.histories == 12, 99, rows.histories),
        rows.targets,
        np.where(rows.next_histories == 12, 99, rows.next_histories),
        rows.users,
        rows.ends,
        99,
    )
    with pytest.raises(DataError, match="Examples of 99 items"):
        precompute(environment(), foreign, negatives=np.zeros((len(rows), 1), np.int64))
