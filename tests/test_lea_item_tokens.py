from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from lea_toy import COLOURS, catalogue, language_model, tokens
from safetensors.numpy import save_file

from llm_expert.environment import ItemTokens, LanguageModel, item_tokens
from llm_expert.errors import LLMError
from recsim_env.errors import ArtefactError, DataError

pytest.importorskip("transformers")

module = sys.modules["llm_expert.environment.item_tokens"]


def quick(**settings: Any) -> ItemTokens:
    wanted: dict[str, Any] = {"iterations": 6, "learning_rate": 2e-2, "progress": False}
    return item_tokens(language_model(), catalogue(), **{**wanted, **settings})


def losses_of(text: str, vectors: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of a text after each vector, by transformers' own loss."""
    lm = language_model()
    ids = lm.continuation(f" {text}", 32)
    found = []
    for vector in vectors:
        begin = lm.embed(th.tensor(lm.start))
        inputs = th.cat([begin, th.from_numpy(vector)[None], lm.embed(th.tensor(ids))])[None]
        labels = th.tensor([[-100] * (len(lm.start) + 1) + ids])
        with th.inference_mode():
            found.append(float(lm.model(inputs_embeds=inputs, labels=labels).loss))
    return np.array(found)


def test_the_loss_falls_and_the_model_stays() -> None:
    lm = language_model()
    before = {name: weights.clone() for name, weights in lm.model.named_parameters()}
    found = quick(iterations=15)
    assert found.vectors.shape == (12, lm.hidden_size)
    assert found.losses.shape == (16,)
    assert found.losses[-1] < found.losses[0] - 0.05
    for name, weights in lm.model.named_parameters():
        assert th.equal(weights, before[name]), name


def test_the_losses_are_those_of_transformers() -> None:
    data = catalogue()
    vectors = tokens().vectors
    own = [losses_of(text, vectors[[item]])[0] for item, text in enumerate(data.texts)]
    assert float(np.mean(own)) == pytest.approx(float(tokens().losses[-1]), abs=1e-4)


def test_a_vector_tells_texts_of_its_own_kind_best() -> None:
    """The model is too small for the colours; with three seeds 10 to 12 kinds were right."""
    best = [int(losses_of(text, tokens().vectors).argmin()) for text in catalogue().texts]
    right = [told // len(COLOURS) == item // len(COLOURS) for item, told in enumerate(best)]
    assert sum(right) >= 9  # by chance 4


def test_items_do_not_depend_on_each_other() -> None:
    together, apart = quick(batch_size=12), quick(batch_size=5)
    np.testing.assert_allclose(together.vectors, apart.vectors, atol=1e-4)
    np.testing.assert_allclose(together.losses, apart.losses, atol=1e-4)
    assert np.array_equal(quick().vectors, quick().vectors)
    assert not np.allclose(quick(seed=1).vectors, quick().vectors, atol=0.01)


def test_text_vectors_by_hand() -> None:
    """Tokens 0 to 3 are the corners of a square; the first is in all texts and says nothing."""
    table = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]], np.float32)
    # means: (1, -1), (-1, -1) and nothing; less their mean (0, -1): (1, 0), (-1, 0)
    found = module.text_vectors(table, [[0, 1], [0, 2, 2], [0]])
    spread = np.sqrt(2.0)  # a variance of 1 in each of two dimensions
    np.testing.assert_allclose(found, [[spread, 0.0], [-spread, 0.0], [0.0, 0.0]], atol=1e-6)
    # of two tokens that one and two of three texts have: ln 3 and ln 1.5
    found = module.text_vectors(table + 5.0, [[1, 2], [2], [3]])
    rare, common = np.log(3.0), np.log(1.5)
    first = (rare * table[1] + common * table[2]) / (rare + common)
    apart = first - (first + table[2] + table[3]) / 3
    expected = 5.0 + spread * apart / np.linalg.norm(apart)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_where_vectors_begin() -> None:
    """Before the first step the text's own words tell more of it than a draw does."""
    by_text, by_draw = quick(iterations=0, start="text"), quick(iterations=0)
    assert by_text.losses.shape == (1,)
    assert by_text.losses[0] < by_draw.losses[0]
    assert np.array_equal(quick(iterations=0, start="text", seed=1).vectors, by_text.vectors)
    with pytest.raises(DataError, match=r"start='title' came .* Known: random, text"):
        quick(start="title")


def test_they_survive_their_file(tmp_path: Path) -> None:
    found = tokens()
    loaded = ItemTokens.load(found.save(tmp_path / "tokens.safetensors"))
    assert np.array_equal(loaded.vectors, found.vectors)
    assert np.array_equal(loaded.losses, found.losses)
    assert loaded.source == found.source


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(ArtefactError, match="cannot be read as item tokens"):
        ItemTokens.load(path)
    save_file({"vectors": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ArtefactError, match="expected 'ilrec item tokens 1'"):
        ItemTokens.load(path)
    whole = tokens().save(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="cannot be read as item tokens"):
        ItemTokens.load(path)


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quick(batch_size=4)
    tune, calls = module._tune, []

    def counting(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return tune(*arguments)

    monkeypatch.setattr(module, "_tune", counting)
    with pytest.raises(KeyboardInterrupt):
        quick(batch_size=4, folder=tmp_path)
    resumed = quick(batch_size=4, folder=tmp_path)
    assert len(calls) == 4  # two batches were kept, one was stopped, one was left
    assert np.array_equal(resumed.vectors, whole.vectors)
    assert np.array_equal(resumed.losses, whole.losses)
    quick(batch_size=4, folder=tmp_path, start="text")
    assert len(calls) == 7  # other settings, other pieces


def test_nan_names_the_item(tmp_path: Path) -> None:
    shared = language_model()
    broken = LanguageModel(shared.model, shared.tokenizer, "broken")
    broken.hidden = lambda inputs, *_: inputs * th.nan  # type: ignore[method-assign]
    with pytest.raises(LLMError, match=r"not finite for item \d+ \(\"\w+ \w+ \w+\"\)"):
        item_tokens(broken, catalogue(), iterations=1, folder=tmp_path, progress=False)
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("name", "value"), [("iterations", -1), ("batch_size", 0), ("max_tokens", 0)]
)
def test_too_small_numbers_are_refused(name: str, value: int) -> None:
    with pytest.raises(DataError, match=f"{name}={value} came .* at least {value + 1}"):
        quick(**{name: value})


def test_vectors_have_to_be_finite() -> None:
    with pytest.raises(DataError, match=r"not finite for items \[1\]"):
        ItemTokens(np.array([[0.0], [np.nan]], np.float32), np.zeros(2, np.float32), "here")
