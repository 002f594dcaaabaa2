from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from lea_toy import COLOURS, KINDS, SMALL, catalogue, language_model, lines

from llm_expert.environment import (
    POSITIONS,
    LanguageModel,
    Prompts,
    PromptWriter,
    SmallModelConfig,
    choice_exercises,
    choice_loss,
    load_language_model,
    practice_sentences,
    reward_loss,
    small_language_model,
    state_loss,
)
from llm_expert.environment import language_model as language_models
from llm_expert.environment.adapters import Adapter
from llm_expert.environment.practice import made_up_examples, nearest_items, telling_words
from llm_expert.environment.trees import plant, tree_mask
from llm_expert.errors import ModelSpecError
from recsim_env.errors import ArtefactError, DataError

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def shown(lm: LanguageModel, codes: list[int]) -> str:
    """Codes as a person reads them."""
    text, run = "", []
    for code in [*codes, None]:
        if code is not None and code < lm.vocabulary:
            run.append(code)
            continue
        text += lm.tokenizer.decode(run)
        run = []
        if code is not None:
            text += f"[{code - lm.vocabulary}]"
    return text


def test_reward_loss_by_hand() -> None:
    """-log sigmoid(1) = 0.313262 and -log sigmoid(-1) = 1.313262."""
    loss = reward_loss(th.tensor([3.0, 0.5]), th.tensor([2.0, 1.5]))
    assert float(loss) == pytest.approx((0.313262 + 1.313262) / 2, abs=1e-6)
    with pytest.raises(ValueError, match="expected the same"):
        reward_loss(th.zeros(2), th.zeros(2, 1))


def test_state_loss_by_hand() -> None:
    """Margins are [[0, 1], [2, 0]]: log 2 on the diagonal, 0.313262 and 0.126928 off it."""
    states, actions = th.tensor([[1.0, 0.0], [0.0, 2.0]]), th.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = state_loss(states, actions)
    expected = (2 * math.log(2) + 0.313262 + 0.126928) / 4
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="expected the same"):
        state_loss(states, actions[:1])


def test_the_state_loss_has_no_gradient_from_equal_actions() -> None:
    states = th.randn(3, 4, generator=th.Generator().manual_seed(0), requires_grad=True)
    state_loss(states, th.ones(3, 4)).backward()
    assert states.grad is not None
    assert float(states.grad.abs().max()) == pytest.approx(0.0, abs=1e-7)


def test_choice_loss_by_hand() -> None:
    logits = th.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, 0.0, 0.0, 0.0]])
    loss = choice_loss(logits, th.tensor([4, 0]))
    assert float(loss) == pytest.approx((math.log(5) - math.log(3 / 7)) / 2, abs=1e-6)


def test_prompts_around_vectors() -> None:
    lm, data = language_model(), catalogue()
    writer = PromptWriter(lm, data.titles, data.noun)
    assert shown(lm, writer.user([3, 11])) == (
        "<s>One person has chosen these products, the oldest first:[3][11]."
    )
    assert shown(lm, writer.reward(7)) == (" How likely is it that the product chosen next is[7]?")
    assert shown(lm, writer.choice([1, 2, 3, 4, 5])) == (
        " The next choice is one of five products: first[1] second[2] third[3] fourth[4] fifth[5]. "
        "The one that suits this person best is the"
    )
    assert [lm.tokenizer.decode([code]) for code in writer.position_tokens] == [
        f" {word}" for word in POSITIONS
    ]


def test_prompts_around_titles() -> None:
    lm, data = language_model(), catalogue()
    writer = PromptWriter(lm, data.titles, data.noun, item_tokens=False)
    assert shown(lm, writer.user([0, 5])) == (
        "<s>One person has chosen these products, the oldest first: red brass valve; green wool "
        "blanket."
    )
    assert " first red brass valve; second green" in shown(lm, writer.choice([0, 1, 2, 3, 4]))
    short = PromptWriter(lm, data.titles, data.noun, item_tokens=False, title_tokens=1)
    assert len(short.reward(0)) < len(writer.reward(0))


def test_a_title_cannot_end_the_text() -> None:
    lm = language_model()
    writer = PromptWriter(lm, ["</s><s>"], "product", item_tokens=False)
    assert not {lm.tokenizer.eos_token_id, lm.tokenizer.bos_token_id} & set(writer.reward(0))


def test_templates_need_their_places() -> None:
    with pytest.raises(DataError, match=r"one \{item\} and no space before it"):
        Prompts(reward=" Is it {item}?")
    with pytest.raises(DataError, match=r"one \{history\}"):
        Prompts(user="Nothing.")


def test_position_words_must_differ() -> None:
    lm = language_model()
    blind = LanguageModel(lm.model, lm.tokenizer, "blind")
    blind.continuation = lambda text, most=None: [len(text), 1][:most]  # type: ignore[method-assign]
    with pytest.raises(DataError, match="five different ones"):
        PromptWriter(blind, ["a"], "product")


def test_practice_sentences_are_prompts_and_hints() -> None:
    data = catalogue()
    sentences = practice_sentences(data, 80, seed=1)
    assert sentences == practice_sentences(data, 80, seed=1)
    assert sentences != practice_sentences(data, 80, seed=2)
    assert all(sentence.endswith("?") for sentence in sentences[3::4])
    answered = [
        (sentence[: -len(word) - 2], POSITIONS.index(word))
        for sentence in sentences[::2]
        for word in [sentence.rstrip(".").split()[-1]]
    ]
    assert answered == list(islice(choice_exercises(data, 1), len(answered)))
    for sentence in sentences[1::4]:
        hints, _, text = sentence.partition(" product is titled ")
        assert f"product is titled {text}" in data.texts
        assert set(hints.split()) <= set(text.split(",")[0].split())


def test_telling_words_by_hand() -> None:
    texts = ["film is red, red and long", "film is blue.", "film is", "film is (long)"]
    assert telling_words(texts) == [["red", "and"], ["blue"], ["is"], ["long"]]


def test_telling_words_are_those_of_most_texts() -> None:
    texts = ["a b c", "a b d", "a b e", "c f", "g"]
    assert telling_words(texts) == [["c"], ["d"], ["e"], ["c", "f"], ["g"]]
    assert telling_words(texts, n_words=2) == [["c"], ["d"], ["e"], ["c"], ["g"]]


def test_nearest_items_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = [[1.0, 0.0], [0.0, 3.0], [2.0, 0.1], [-1.0, 0.2], [0.0, 0.0]]
    expected = [[2, 1], [3, 2], [0, 1], [1, 4], [0, 1]]
    assert nearest_items(vectors, 2).tolist() == expected
    assert nearest_items(vectors).tolist() == [[row[0]] for row in expected]
    monkeypatch.setattr(sys.modules["llm_expert.environment.practice"], "_ROWS", 2)
    assert nearest_items(vectors, 2).tolist() == expected


def test_made_up_users_take_what_is_like_their_history() -> None:
    nearest = np.array([[1, 2], [0, 2], [1, 0], [4, 5], [3, 5], [3, 4]])
    found = made_up_examples(nearest, 300, 4, np.random.default_rng(1))
    assert len(found) == 300
    assert found.histories.shape == (300, 4)
    for history, target in zip(found.histories, found.targets, strict=True):
        taken = [int(item) for item in history if item < 6]
        assert any(target in nearest[item] for item in taken)
        assert target not in taken
    sizes = (found.histories < 6).sum(axis=1)
    assert set(sizes.tolist()) == {1, 2, 3, 4}
    assert set(found.targets.tolist()) == set(range(6))


def test_exercises_have_an_answer_that_is_like_the_history() -> None:
    data = catalogue()
    wanted = {frozenset(words) for words in telling_words(data.texts)}
    exercises = list(islice(choice_exercises(data, seed=1), 200))
    assert exercises == list(islice(choice_exercises(data, seed=1), 200))
    assert {place for _, place in exercises} == set(range(len(POSITIONS)))
    for number, (prompt, place) in enumerate(exercises):
        history = prompt.split("first:")[1].split(".")[0].replace(";", " ").split()
        listed = prompt.split("products: ")[1].split(".")[0].split("; ")
        assert [words.split()[0] for words in listed] == list(POSITIONS)
        answer = listed[place].split()[1:]
        assert any(set(answer) <= words and words & set(history) for words in wanted)
        if number % 2 == 0:
            assert set(answer) & set(history)


def test_the_small_model_learns_what_it_is_asked() -> None:
    """Exercises of another kind, which few steps are enough for: each colour has a place."""
    asked = [
        (f"One product is {colour}, so it is the", COLOURS.index(colour)) for colour in COLOURS
    ]
    config = replace(SMALL, epochs=1, exercise_steps=60, exercise_batch=8, exercise_rate=5e-3)
    lm = small_language_model(lines(), cycle(asked), config=config, progress=False)
    words = [lm.continuation(f" {word}")[0] for word in POSITIONS]
    for prompt, place in asked:
        codes = th.tensor([lm.start + lm.token_ids(prompt)])
        with th.inference_mode():
            logits = lm.logits(lm.hidden(lm.embed(codes))[0, -1])
        assert int(logits.argmax()) == words[place]


@pytest.mark.parametrize(("can_be_learned", "rounds"), [(True, 1), (False, 3)])
def test_exercises_are_done_again_until_they_are_learned(
    can_be_learned: bool,
    rounds: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(language_models, "_RECENT", 5)
    places = cycle([0]) if can_be_learned else cycle(range(len(POSITIONS)))
    asked = (("It is the", place) for place in places)
    lessons: list[tuple[str, int]] = []
    pass_by = language_models._Lesson.is_over

    def counted(lesson: Any, step: int, recent: Sequence[float]) -> bool:
        over = pass_by(lesson, step, recent)
        lessons.extend([(lesson.name, step)] * over)
        return over

    monkeypatch.setattr(language_models._Lesson, "is_over", counted)
    config = replace(SMALL, epochs=1, exercise_steps=25, exercise_batch=10, exercise_rate=5e-3)
    small_language_model(lines(), asked, config=config, progress=False)
    assert [name for name, _ in lessons] == ["texts", "exercises", "texts"]
    assert lessons[1][1] == 25 * rounds
    assert ("has not learned to choose" in caplog.text) is not can_be_learned


@pytest.mark.parametrize("asked", [3, 20, 50])
def test_the_small_model_goes_on_where_it_was_stopped(
    asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the exercises and in the texts after them; the end is the same to the last bit."""
    monkeypatch.setattr(language_models, "_KEPT_EVERY", 4)
    config = replace(short_training(), batch_size=1, exercise_steps=10, exercise_batch=4)
    exercises = [("the red one is the", 0), ("the blue one is the", 1), ("and now it is the", 2)]

    def until(most: int) -> Iterator[tuple[str, int]]:
        yield from islice(cycle(exercises), most)
        raise KeyboardInterrupt

    texts = lines() * 4
    learned: list[int] = []
    learn = th.optim.AdamW.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        learned[-1] += 1
        return learn(*args, **kwargs)

    monkeypatch.setattr(th.optim.AdamW, "step", counted)

    def made(source: Iterator[tuple[str, int]], folder: Path | None) -> LanguageModel:
        learned.append(0)
        return small_language_model(texts, source, config=config, progress=False, folder=folder)

    whole = made(cycle(exercises), None)
    with pytest.raises(KeyboardInterrupt):
        made(until(asked), tmp_path)
    assert made(cycle(exercises), tmp_path).fingerprint == whole.fingerprint
    assert 0 < learned[1] < learned[0]
    assert learned[0] <= learned[1] + learned[2] < learned[0] + 4
    assert made(cycle(exercises), tmp_path).fingerprint == whole.fingerprint
    assert learned[3] == 0


def test_a_tree_by_hand() -> None:
    forest = plant([[7, 8], [7]], [[[1], [2, 3]], [[4], [5]]])
    assert forest.codes.tolist() == [[7, 8, 1, 2, 3], [7, 4, 5, 0, 0]]
    assert forest.positions.tolist() == [[0, 1, 2, 2, 3], [0, 1, 1, 0, 0]]
    assert forest.segments.tolist() == [[0, 0, 1, 2, 2], [0, 1, 2, -1, -1]]
    assert forest.ends.tolist() == [[1, 2, 4], [0, 1, 2]]
    mask = tree_mask(th.from_numpy(forest.segments), th.float32)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def other_model(kind: str) -> Any:
    rows = language_model().vocabulary
    if kind == "gpt2":
        sizes = {"n_positions": 128, "n_embd": 16, "n_layer": 2, "n_head": 2}
        config: Any = transformers.GPT2Config(vocab_size=rows, **sizes)
        return transformers.GPT2LMHeadModel(config)
    config = transformers.BloomConfig(vocab_size=rows, hidden_size=16, n_layer=2, n_head=2)
    return transformers.BloomForCausalLM(config)


@pytest.mark.parametrize(("kind", "shares"), [("gpt2", True), ("bloom", False)])
def test_models_that_count_positions_themselves_share_no_rows(kind: str, shares: bool) -> None:
    th.manual_seed(0)
    lm = LanguageModel(other_model(kind), language_model().tokenizer, kind)
    assert lm.takes_trees is shares
    assert language_model().takes_trees


def test_the_small_model_is_the_seeds() -> None:
    first, second = (
        small_language_model(lines()[:15], seed=seed, config=short_training(), progress=False)
        for seed in (0, 1)
    )
    again = small_language_model(lines()[:15], seed=0, config=short_training(), progress=False)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != second.fingerprint


def short_training() -> SmallModelConfig:
    return SmallModelConfig(
        vocabulary=400, hidden=16, layers=1, heads=2, key_value_heads=1, intermediate=16, epochs=1
    )


def test_the_small_model_knows_its_catalogue() -> None:
    """After "... is titled red" comes one of the kinds."""
    lm = language_model()
    ids = lm.start + lm.token_ids("product is titled red")
    state = lm.hidden(lm.embed(th.tensor([ids])))[0, -1]
    kinds = {lm.continuation(f" {kind}")[0] for kind in KINDS}
    assert int(lm.logits(state).argmax()) in kinds
    assert th.allclose(lm.logits(state, [5, 3]), lm.logits(state)[[5, 3]])


def test_a_language_model_survives_its_folder(tmp_path: Path) -> None:
    """With an adapter on it as well."""
    lm = small_language_model(lines()[:15], config=short_training(), progress=False)
    inputs = th.tensor([[1, 300, 301, 302]])
    before = lm.hidden(lm.embed(inputs))
    adapter = Adapter(lm, rank=2, alpha=2)
    for weights in adapter.parameters():
        weights.data.add_(1.0)
    loaded = load_language_model(lm.save(tmp_path / "lm"), device="cpu")
    assert loaded.fingerprint == lm.fingerprint
    assert th.equal(loaded.hidden(loaded.embed(inputs)), before)
    half = load_language_model(tmp_path / "lm", device="cpu", dtype="bfloat16")
    assert half.dtype == th.bfloat16
    assert half.fingerprint != lm.fingerprint


def test_bars_of_transformers_only_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = small_language_model(lines()[:15], config=short_training(), progress=False)
    folder = lm.save(tmp_path / "lm")
    load_language_model(folder, device="cpu", progress=False)
    assert capsys.readouterr().err == ""
    load_language_model(folder, device="cpu")
    assert "Loading weights" in capsys.readouterr().err


def test_adapters_keep_to_themselves(tmp_path: Path) -> None:
    lm = small_language_model(lines()[:15], config=short_training(), progress=False)
    inputs = lm.embed(th.tensor([[1, 300, 301, 302]]))
    plain = lm.hidden(inputs)
    first, second = Adapter(lm, rank=2, alpha=2), Adapter(lm, rank=2, alpha=2, seed=1)
    assert th.equal(lm.hidden(inputs), plain)
    with first.at_work(training=True):
        assert th.equal(lm.hidden(inputs), plain)  # one factor of each change begins at zero
        lm.hidden(inputs).sum().backward()
        grads = [weights.grad for weights in first.parameters()]
        assert all(grad is not None for grad in grads)
        assert all(weights.grad is None for weights in second.parameters())
        with th.no_grad():
            for weights in first.parameters():
                weights.add_(0.1)
        changed = lm.hidden(inputs)
    assert not th.allclose(changed, plain)
    assert th.equal(lm.hidden(inputs), plain)
    assert not any(weights.requires_grad for weights in lm.model.parameters())
    with second.at_work():
        assert th.equal(lm.hidden(inputs), plain)
    first.save(tmp_path / "adapter")
    second.load(tmp_path / "adapter")
    with second.at_work():
        assert th.equal(lm.hidden(inputs), changed)
    with pytest.raises(ArtefactError, match="other layers or sizes"):
        Adapter(lm, rank=3, alpha=2).load(tmp_path / "adapter")
    with pytest.raises(ArtefactError, match="does not hold an adapter"):
        first.load(tmp_path / "nothing")


def test_peft_reads_what_an_adapter_wrote(tmp_path: Path) -> None:
    lm = small_language_model(lines()[:15], config=short_training(), progress=False)
    folder = lm.save(tmp_path / "lm")
    adapter = Adapter(lm, rank=2, alpha=2)
    for weights in adapter.parameters():
        weights.data.add_(0.1)
    adapter.save(tmp_path / "adapter")
    ids = th.tensor([[1, 300, 301, 302]])
    with adapter.at_work(), th.inference_mode():
        expected = lm.hidden(lm.embed(ids))
    other = load_language_model(folder, device="cpu")
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert config.r == 2
    tensors = peft.load_peft_weights(str(tmp_path / "adapter"), device="cpu")
    wrapped = peft.inject_adapter_in_model(config, other.model)
    peft.set_peft_model_state_dict(
        wrapped, {name.removeprefix("base_model.model."): value for name, value in tensors.items()}
    )
    with th.inference_mode():
        assert th.allclose(other.hidden(other.embed(ids)), expected, atol=1e-6)


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_no_words_no_model(texts: list[str]) -> None:
    with pytest.raises(DataError, match="without a word"):
        small_language_model(texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary": 300}, "at least 400"),
        ({"heads": 3}, "divisor of hidden=128"),
        ({"epochs": 0}, "at least 1"),
        ({"hidden": 12, "heads": 4}, "heads of 3 numbers, expected an even number"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 came; expected 1e-12 or more"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 came"),
    ],
)
def test_sizes_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SmallModelConfig(**settings)


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match="floating-point type of torch"):
        load_language_model(tmp_path, dtype="int8")
    with pytest.raises(ModelSpecError, match="cannot be loaded"):
        load_language_model(tmp_path / "nothing", device="cpu")


def test_tokens_that_go_on_have_no_beginning() -> None:
    lm = language_model()
    whole = lm.token_ids("x red valve")
    assert lm.token_ids("x") + lm.continuation(" red valve") == whole
    assert lm.continuation(" red valve", 1) == lm.continuation(" red valve")[:1]
    assert SMALL.hidden == lm.hidden_size
    assert np.isfinite(lm.embed(th.tensor([0])).numpy()).all()
