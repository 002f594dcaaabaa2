from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from lea_toy import COLOURS, catalogue, language_model, lines, tokens

from llm_expert.environment import (
    EnvironmentConfig,
    ItemTokens,
    LanguageModel,
    LLMEnvironment,
    Prompts,
    PromptWriter,
    SmallModelConfig,
    load_language_model,
    small_language_model,
)
from llm_expert.environment.environment import popularity_figures
from llm_expert.errors import LLMError
from recsim_env.errors import ArtefactError, DataError
from recsim_env.sequences import Examples

pytest.importorskip("transformers")
pytest.importorskip("peft")

PAD = 12
HISTORIES = np.array(
    [[PAD, PAD, PAD, 0], [4, 5, 6, 7], [PAD, PAD, 9, 10], [PAD, 1, 2, 3], [8, 8, 8, 8]]
)
CANDIDATES = np.array(
    [[1, 5, 9, 2, 6], [9, 1, 5, 2, 10], [0, 4, 8, 1, 5], [0, 1, 2, 3, 4], [11, 10, 9, 8, 7]]
)


def fitted(seed: int = 0, lm: LanguageModel | None = None, **settings: Any) -> LLMEnvironment:
    wanted: dict[str, Any] = {
        "share": 0.5,
        "epochs": 1,
        "lora_rank": 4,
        "lora_alpha": 8,
        "length": 4,
    }
    return LLMEnvironment.fit(
        lm or language_model(),
        catalogue(),
        EnvironmentConfig(**{**wanted, **settings}),
        seed,
        False,
        tokens=tokens(),
    )


@cache
def environment() -> LLMEnvironment:
    """One that the tests share and do not change."""
    return fitted()


def test_it_learns_the_habit() -> None:
    """Users stay with one kind, and a sampled item is of another kind most of the time.

    With three seeds the last reward loss was 0.19 to 0.52, and 0.8 to 0.9 of the pairs were right.
    """
    tuned = fitted(share=1.0, epochs=7, learning_rate=5e-3, lora_rank=8, choice_loss=True)
    report = tuned.report
    assert report["examples"] == len(catalogue().examples("train"))
    assert report["pairs_right"] > 0.65
    assert report["reward_loss"][-1] < 0.6  # log 2 where nothing is learned
    assert report["state_hr_at_10"] > 0.95
    for name in ("reward_loss", "state_loss", "choice_loss"):
        assert len(report[name]) == 7
    assert report["state_loss"][-1] < report["state_loss"][0]
    assert report["reward_of_chosen"] > 0.5


def test_exercises_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of one kind are alike, so made-up users stay with one kind; nobody's data are in it."""
    monkeypatch.setattr(sys.modules["llm_expert.environment.environment"], "_EXERCISES", 40)
    one_epoch, seen = LLMEnvironment._epoch, []

    def recorded(self: LLMEnvironment, examples: Examples, *rest: Any) -> dict[str, float]:
        seen.append(examples)
        return one_epoch(self, examples, *rest)

    monkeypatch.setattr(LLMEnvironment, "_epoch", recorded)
    tuned = fitted(exercises=100, epochs=2, choice_loss=True)
    assert [len(examples) for examples in seen[:3]] == [40, 40, 20]
    assert not np.array_equal(seen[0].targets, seen[1].targets)
    alike = [
        target // len(COLOURS) in {item // len(COLOURS) for item in row if item != PAD}
        for examples in seen[:3]
        for row, target in zip(examples.histories, examples.targets, strict=True)
    ]
    assert all(alike)
    assert seen[3] is seen[4]
    for name in ("reward", "state", "choice"):
        assert len(tuned.report[f"exercise_{name}_loss"]) == 3
        assert len(tuned.report[f"{name}_loss"]) == 2


@pytest.mark.parametrize(("exercises", "epochs"), [(0, 3), (80, 1)])
def test_a_stopped_tuning_goes_on(
    exercises: int, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["llm_expert.environment.environment"], "_EXERCISES", 40)
    config = EnvironmentConfig(
        share=0.5, epochs=epochs, exercises=exercises, lora_rank=4, lora_dropout=0.2, length=4
    )

    published = language_model().save(tmp_path / "lm")

    def tune(folder: Path | None) -> LLMEnvironment:
        lm = load_language_model(published, device="cpu")  # as another process would
        made = LLMEnvironment.fit(lm, catalogue(), config, 3, False, tokens=tokens(), folder=folder)
        assert lm.takes_trees  # tried without dropout
        return made

    whole = tune(None)
    one_epoch, made = LLMEnvironment._epoch, []

    def two_epochs(self: LLMEnvironment, *arguments: Any) -> dict[str, float]:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(one_epoch(self, *arguments))
        return made[-1]

    monkeypatch.setattr(LLMEnvironment, "_epoch", two_epochs)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path)
    made.clear()
    resumed = tune(tmp_path)
    assert len(made) == 1
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.report["reward_loss"] == whole.report["reward_loss"]
    assert resumed.report["pairs_right"] == whole.report["pairs_right"]
    made.clear()
    assert tune(tmp_path).fingerprint == whole.fingerprint
    assert not made


def test_titles_do_as_well_and_need_no_tokens() -> None:
    lm, data = language_model(), catalogue()
    config = EnvironmentConfig(
        share=1.0, epochs=3, item_tokens=False, state_loss=False, length=4, learning_rate=5e-3
    )
    tuned = LLMEnvironment.fit(lm, data, config, progress=False)
    assert "state_loss" not in tuned.report
    assert "choice_loss" not in tuned.report
    assert tuned.report["reward_loss"][-1] < 0.6  # 0.19 to 0.41 with three seeds
    assert tuned.states(HISTORIES).shape == (5, lm.hidden_size)


def test_a_share_is_one_of_users() -> None:
    users = np.unique(catalogue().examples("train").users)
    assert environment().report["users"] == round(0.5 * len(users))
    assert fitted(share=0.001).report["users"] == 1


def test_answers_are_those_of_whole_texts() -> None:
    """By the model's own forward on each text by itself, without trees."""
    tuned, lm, data = environment(), language_model(), catalogue()
    writer = PromptWriter(lm, data.titles, data.noun)
    answers = tuned.ask(HISTORIES, CANDIDATES[:, :2], CANDIDATES)
    vectors = th.from_numpy(tokens().vectors)

    def last(codes: list[int]) -> tuple[th.Tensor, th.Tensor]:
        rows = [
            lm.embed(th.tensor(code)) if code < lm.vocabulary else vectors[code - lm.vocabulary]
            for code in codes
        ]
        with tuned._adapter.at_work(), th.inference_mode():
            output = lm.model(inputs_embeds=th.stack(rows)[None], output_hidden_states=True)
        return output.hidden_states[-1][0, -1], output.logits[0, -1]

    assert answers.logits is not None
    assert answers.choices is not None
    for row, history in enumerate(HISTORIES):
        prefix = writer.user([item for item in history if item != PAD])
        np.testing.assert_allclose(answers.states[row], last(prefix)[0], atol=1e-4)
        for place in range(2):
            state, _ = last(prefix + writer.reward(CANDIDATES[row, place]))
            expected = float(state @ tuned._head) - tuned._offset
            assert answers.rewards[row, place] == pytest.approx(expected, abs=1e-4)
        _, logits = last(prefix + writer.choice(CANDIDATES[row]))
        places = logits[list(writer.position_tokens)].numpy() - tuned._choice_offset
        np.testing.assert_allclose(answers.logits[row], places, atol=1e-4)
        assert answers.choices[row] == int(places.argmax())


def test_no_place_is_favoured() -> None:
    """Over lists in which every item stands at every place, each place has about the same logit."""
    histories = np.repeat(HISTORIES, 5, axis=0)
    lists = np.stack([np.roll(row, turn) for row in CANDIDATES for turn in range(5)])

    def favours(environment: LLMEnvironment) -> float:
        logits = environment.ask(histories, candidates=lists).logits
        assert logits is not None
        return float(np.ptp(logits.mean(axis=0)))

    calibrated, biased = fitted(share=1.0), fitted(share=1.0, calibrate_choice=False)
    assert favours(calibrated) < 0.3 * favours(biased)
    assert not biased._choice_offset.any()
    assert sum(calibrated.report["choices_by_place"]) == pytest.approx(1.0, abs=1e-3)


def test_what_popularity_gets_right_by_hand() -> None:
    examples = catalogue().examples("train", 4)

    def choosing(*items: int) -> Examples:
        some, targets = examples.take(np.arange(len(items))), np.array(items)
        following = np.column_stack([some.histories[:, 1:], targets])
        return replace(some, targets=targets, next_histories=following)

    every_but_5 = choosing(*range(5), *range(6, 12), 0)  # item 0 twice, item 5 never
    for target, right in ((0, 1.0), (5, 0.0)):
        rng = np.random.default_rng(0)
        found = popularity_figures(choosing(target, target, target), every_but_5, rng)
        assert set(found.values()) == {right}
    # all items as often: a pair is a draw, and so is the choice of one in five
    found = popularity_figures(choosing(3, 4), choosing(*range(12)), np.random.default_rng(0))
    assert found["pairs_right_by_popularity"] == 0.5
    assert found["choices_right_by_popularity"] == pytest.approx(0.2)


def test_models_without_trees_give_the_same() -> None:
    tuned, lm = environment(), language_model()
    shared = tuned.ask(HISTORIES, CANDIDATES[:, :2], CANDIDATES)
    assert lm.takes_trees
    lm.__dict__["takes_trees"] = False
    try:
        apart = tuned.ask(HISTORIES, CANDIDATES[:, :2], CANDIDATES)
    finally:
        lm.__dict__["takes_trees"] = True
    np.testing.assert_allclose(apart.states, shared.states, atol=1e-4)
    np.testing.assert_allclose(apart.rewards, shared.rewards, atol=1e-4)
    assert np.array_equal(apart.choices, shared.choices)


def test_answers_do_not_depend_on_the_batch() -> None:
    tuned = environment()
    together = tuned.states(HISTORIES)
    for row, history in enumerate(HISTORIES):
        np.testing.assert_allclose(tuned.states(history[None])[0], together[row], atol=1e-5)
    longer = np.column_stack([np.full((5, 2), PAD), HISTORIES])
    assert np.array_equal(tuned.states(longer), together)
    older = np.column_stack([np.full(5, 3), HISTORIES])
    assert np.array_equal(tuned.states(older)[[1, 4]], together[[1, 4]])  # only the last four count


def test_shapes_of_rewards_and_choices() -> None:
    tuned = environment()
    wide = tuned.rewards(HISTORIES, CANDIDATES)
    assert wide.shape == (5, 5)
    assert wide.dtype == np.float32
    np.testing.assert_allclose(tuned.rewards(HISTORIES, CANDIDATES[:, 3]), wide[:, 3], atol=1e-5)
    chosen = tuned.choose(HISTORIES, CANDIDATES)
    assert (chosen[:, None] == CANDIDATES).any(axis=1).all()
    assert chosen.dtype == np.int64


def test_sampled_items_earn_nothing_on_average() -> None:
    """The offset is that of the examples tuned on, so a new sample of these comes near it."""
    tuned = fitted(share=1.0, epochs=3, learning_rate=5e-3)
    data = catalogue().examples("train", 4)
    rng = np.random.default_rng(0)
    rewards = tuned.rewards(data.histories, rng.integers(PAD, size=len(data)))
    assert abs(float(rewards.mean())) < 0.5 * tuned.report["reward_spread"]


def test_two_environments_on_one_model() -> None:
    first = environment()
    before, plain = first.states(HISTORIES), language_model().hidden(th.ones(1, 3, 64))
    second = fitted(seed=1, learning_rate=5e-3)
    assert np.array_equal(first.states(HISTORIES), before)
    assert not np.allclose(second.states(HISTORIES), before, atol=1e-3)
    assert th.equal(language_model().hidden(th.ones(1, 3, 64)), plain)
    assert first.fingerprint != second.fingerprint


def test_one_seed_one_environment() -> None:
    assert fitted(share=0.2).fingerprint == fitted(share=0.2).fingerprint
    assert fitted(share=0.2).fingerprint != fitted(share=0.2, seed=1).fingerprint


def test_it_survives_its_folder(tmp_path: Path) -> None:
    tuned = environment()
    folder = tuned.save(tmp_path / "environment")
    loaded = LLMEnvironment.load(folder, language_model())
    first, second = (e.ask(HISTORIES, CANDIDATES, CANDIDATES) for e in (tuned, loaded))
    assert np.array_equal(first.states, second.states)
    assert np.array_equal(first.rewards, second.rewards)
    assert np.array_equal(first.choices, second.choices)
    assert loaded.report == tuned.report
    assert loaded.fingerprint == tuned.fingerprint
    with pytest.raises(ArtefactError, match="load the one that it was tuned on"):
        LLMEnvironment.load(folder, another_model())
    (folder / "environment.safetensors").write_bytes(b"half")
    with pytest.raises(ArtefactError, match="does not hold a whole environment"):
        LLMEnvironment.load(folder, language_model())
    with pytest.raises(ArtefactError, match="does not hold a whole environment"):
        LLMEnvironment.load(tmp_path / "nothing", language_model())


@cache
def another_model() -> LanguageModel:
    config = SmallModelConfig(
        vocabulary=400, hidden=16, layers=1, heads=2, key_value_heads=1, intermediate=16, epochs=1
    )
    return small_language_model(lines()[:15], config=config, progress=False)


def test_half_precision(tmp_path: Path) -> None:
    """Weights in bfloat16, adapter, scores and answers in float32."""
    folder = another_model().save(tmp_path / "lm")
    lm = load_language_model(folder, device="cpu", dtype="bfloat16")
    vectors = np.random.default_rng(0).normal(size=(PAD, 16)).astype(np.float32)
    own = ItemTokens(vectors, np.zeros(1, np.float32), "drawn")
    config = EnvironmentConfig(share=0.3, epochs=1, choice_loss=True)
    tuned = LLMEnvironment.fit(lm, catalogue(), config, progress=False, tokens=own)
    assert all(weights.dtype == th.float32 for weights in tuned._adapter.parameters())
    answers = tuned.ask(HISTORIES, CANDIDATES, CANDIDATES)
    assert answers.states.dtype == answers.rewards.dtype == np.float32
    assert len(np.unique(answers.rewards.round(3))) > 5


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([[PAD, PAD]], "row 0 is padding only"),
        ([[0, 1], [0, 13]], r"row 1 has an unknown item \(\[0, 13\]\)"),
        ([[0, -1]], "row 0 has an unknown item"),
        ([0, 1], r"shape \(2,\)"),
        ([[0.5, 1.0]], "expected .* integers"),
    ],
)
def test_bad_histories(histories: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        environment().states(histories)


def test_bad_items() -> None:
    tuned = environment()
    with pytest.raises(DataError, match="actions of row 2 has an unknown item"):
        tuned.rewards(HISTORIES, [0, 1, PAD, 2, 3])
    with pytest.raises(DataError, match="came with 5 histories"):
        tuned.rewards(HISTORIES, [0, 1])
    with pytest.raises(DataError, match=r"expected \(5, 5\) integers"):
        tuned.choose(HISTORIES, CANDIDATES[:, :4])


def test_nan_from_the_model_is_an_error() -> None:
    shared = language_model()
    lm = LanguageModel(shared.model, shared.tokenizer, "broken")
    lm.adapted = shared.adapted
    tuned = fitted(lm=lm)
    sound = lm.hidden
    lm.hidden = lambda *given: sound(*given) * th.nan  # type: ignore[method-assign]
    with pytest.raises(LLMError, match="not finite for row 0"):
        tuned.states(HISTORIES)
    with pytest.raises(LLMError, match="gave the loss nan in tuning"):
        fitted(lm=lm)


def test_bad_settings() -> None:
    with pytest.raises(DataError, match=r"share is 10.*give 0\.1"):
        EnvironmentConfig(share=10)
    with pytest.raises(DataError, match="epochs is 0"):
        EnvironmentConfig(epochs=0)
    for name, value in (
        ("learning_rate", 0.0),
        ("token_learning_rate", -1.0),
        ("max_grad_norm", 0.0),
        ("lora_alpha", 0),
        ("lora_dropout", 2.0),
    ):
        with pytest.raises(DataError, match=f"{name}={value} came; expected"):
            EnvironmentConfig(**{name: value})
    with pytest.raises(DataError, match=r"token_start is 'words'; .*Known: random, text"):
        EnvironmentConfig(token_start="words")  # type: ignore[arg-type]
    small = ItemTokens(np.zeros((3, 64), np.float32), np.zeros(1, np.float32), "here")
    with pytest.raises(DataError, match=r"shape \(3, 64\) came, expected \(12, 64\)"):
        LLMEnvironment.fit(language_model(), catalogue(), progress=False, tokens=small)


def test_own_words(tmp_path: Path) -> None:
    """Other prompts are other environments, and are kept with them."""
    prompts = Prompts(user="They took{history}.")
    config = EnvironmentConfig(share=0.1, epochs=1)
    tuned = LLMEnvironment.fit(
        language_model(), catalogue(), config, progress=False, tokens=tokens(), prompts=prompts
    )
    assert len(tuned._writer.user([0])) < len(environment()._writer.user([0]))
    tuned.save(tmp_path / "own")
    read = LLMEnvironment.load(tmp_path / "own", language_model())
    assert read._writer.user([0]) == tuned._writer.user([0])
