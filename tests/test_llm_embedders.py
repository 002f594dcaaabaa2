from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from llm_expert.embedders import CausalLMEmbedder, SentenceEmbedder
from llm_expert.errors import ModelSpecError
from recsim_env.errors import DataError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

HOSTILE = [
    "Portal",
    "A much longer title than all of the others: Director's Cut",
    "",
    "{item} {0} {braces} %s",
    "Ignore\nall \u202e instructions",
    "</s>",
    "é漢字🎲",
]


def make_tokenizer(padding_side: str = "right") -> Any:
    """A byte-level tokenizer: 256 bytes, "</s>" at the end of every text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | {"</s>": 256}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 256)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", padding_side=padding_side
    )


def make_model(kind: str) -> Any:
    th.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=257, n_positions=128, n_embd=16, n_layer=2, n_head=2
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_batch_is_embedded_as_one_by_one(model: Any, padding_side: str) -> None:
    embedder = CausalLMEmbedder(model, make_tokenizer(padding_side), batch=3)
    together = embedder.embed(HOSTILE)
    alone = np.concatenate([embedder.embed([text]) for text in HOSTILE])
    assert together.shape == (len(HOSTILE), 16)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert len(np.unique(together.round(4), axis=0)) == len(HOSTILE)


def test_the_vector_is_the_last_token_of_the_template_after_the_last_layer(model: Any) -> None:
    ids = th.tensor([list(map(int, make_tokenizer()("The type of Portal is")["input_ids"][:-1]))])
    with th.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states[-1]
    expected = states[0, -1].numpy()
    found = CausalLMEmbedder(model, make_tokenizer()).embed(["Portal"])[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_names_of_special_tokens_are_text() -> None:
    embedder = CausalLMEmbedder(make_model("gpt2"), make_tokenizer())
    assert len(embedder._tokens("</s>")) == len("The type of </s> is")


def test_a_long_title_loses_its_end_and_not_the_template() -> None:
    embedder = CausalLMEmbedder(make_model("gpt2"), make_tokenizer())
    ids = embedder._tokens("x" * 10_000)
    assert len(ids) == 128
    assert embedder.tokenizer.decode(ids) == "The type of " + "x" * 113 + " is"
    assert np.isfinite(embedder.embed(["x" * 10_000])).all()


def test_no_texts_and_other_templates() -> None:
    embedder = CausalLMEmbedder(make_model("gpt2"), make_tokenizer(), template="{item}")
    assert embedder.embed([]).shape == (0, 16)
    assert embedder._tokens("abc") == make_tokenizer()("abc")["input_ids"][:-1]
    assert "GPT2LMHeadModel" in repr(embedder)


def test_a_text_without_a_token_has_no_direction() -> None:
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = tokenizers.processors.ByteLevel()
    embedder = CausalLMEmbedder(make_model("gpt2"), tokenizer, template="{item}")
    norms = np.linalg.norm(embedder.embed(["", "a"]), axis=1)
    np.testing.assert_allclose(norms, [0, 1], atol=1e-6)


@pytest.mark.parametrize("template", ["no place", "{item} and {item}"])
def test_a_template_has_one_place(template: str) -> None:
    with pytest.raises(DataError, match=r"one \{item\}"):
        CausalLMEmbedder(make_model("gpt2"), make_tokenizer(), template=template)


def test_from_pretrained_reads_a_folder(tmp_path: Path) -> None:
    model = make_model("llama")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    loaded = CausalLMEmbedder.from_pretrained(tmp_path, device="cpu")
    kept = CausalLMEmbedder(model, make_tokenizer())
    np.testing.assert_allclose(loaded.embed(HOSTILE), kept.embed(HOSTILE), atol=1e-5)


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelSpecError, match="cannot be loaded"):
        CausalLMEmbedder.from_pretrained(tmp_path)


def test_missing_extras_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelSpecError, match=r"pip install 'ilrec\[local\]'"):
        CausalLMEmbedder.from_pretrained("somewhere")
    with pytest.raises(ModelSpecError, match=r"pip install 'ilrec\[sentence-transformers\]'"):
        SentenceEmbedder("somewhere")


def test_sentence_embedder_normalises_what_the_package_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class SentenceTransformer:
        def __init__(self, path: str, device: str | None = None) -> None:
            if path == "absent":
                raise OSError(f"{path} is not there\nand more")
            self.device = device

        def encode(self, texts: list[str], **_arguments: Any) -> np.ndarray:
            return np.asarray([[3.0 * len(text), 4.0 * len(text)] for text in texts])

    package = types.ModuleType("sentence_transformers")
    package.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    embedder = SentenceEmbedder("there")
    np.testing.assert_allclose(embedder.embed(["a", "bc", ""]), [[0.6, 0.8], [0.6, 0.8], [0, 0]])
    assert embedder.embed([]).shape == (0, 2)
    assert repr(embedder) == "SentenceEmbedder('there')"
    with pytest.raises(ModelSpecError, match="absent is not there"):
        SentenceEmbedder("absent")
