from __future__ import annotations

import json
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
def test_a_vector_does_not_depend_on_the_other_texts(model: Any, padding_side: str) -> None:
    """Not in one bit, whatever the batch."""
    embedder = CausalLMEmbedder(model, make_tokenizer(padding_side))
    texts = HOSTILE + [f"{'a long ' * (n % 5)}title {n}" for n in range(30)]
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert alone.shape == (len(texts), 16)
    assert alone.dtype == np.float32
    for size in (2, 3, 8, len(texts)):
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        assert np.array_equal(np.concatenate([embedder.embed(part) for part in parts]), alone)
    assert np.array_equal(embedder.embed(texts[::-1])[::-1], alone)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)
    assert len(np.unique(alone.round(4), axis=0)) == len(texts)


def test_an_identity_is_that_of_the_model(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    first, second = (CausalLMEmbedder.from_pretrained(tmp_path, "cpu") for _ in range(2))
    assert first.identity == second.identity
    found = json.loads(first.identity)
    assert (found["kind"], found["source"], found["dim"]) == ("causal-lm", str(tmp_path), 16)
    assert found["template"] == "The type of {item} is"

    def identity(**changed: Any) -> str:
        arguments = {"model": make_model("llama"), "tokenizer": make_tokenizer(), **changed}
        model, tokenizer = arguments.pop("model"), arguments.pop("tokenizer")
        return CausalLMEmbedder(model, tokenizer, **{"source": tmp_path, **arguments}).identity

    assert identity() == first.identity
    embedding, layer, setting = (make_model("llama") for _ in range(3))
    with th.no_grad():
        embedding.get_input_embeddings().weight[0, 0] += 1.0
        layer.model.layers[-1].mlp.down_proj.weight[0, 0] += 1.0
    setting.config.rms_norm_eps = 0.5
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    others = [
        identity(model=embedding),
        identity(model=layer),
        identity(model=setting),
        identity(model=make_model("gpt2")),
        identity(tokenizer=tokenizer),
        identity(template="{item}"),
        identity(source="elsewhere"),
    ]
    assert len({first.identity, *others}) == 8


def test_an_identity_has_no_password() -> None:
    source = "https://me:secret@example.org/model"
    embedder = CausalLMEmbedder(make_model("gpt2"), make_tokenizer(), source=source)
    assert json.loads(embedder.identity)["source"] == "https://example.org/model"
    assert "secret" not in repr(embedder)
    unnamed = CausalLMEmbedder(make_model("gpt2"), make_tokenizer())
    assert json.loads(unnamed.identity)["source"] == ""


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
        def __init__(self, path: str, device: str | None = None) -> None:  # noqa: ARG002
            if path == "absent":
                raise OSError(f"{path} is not there\nand more")
            self.layer = th.nn.Linear(1, 1)
            th.nn.init.constant_(self.layer.weight, len(path))

        def __repr__(self) -> str:
            return "SentenceTransformer()"

        def named_parameters(self) -> Any:
            return iter([("layer", self.layer.weight)])

        def encode(self, texts: list[str], batch_size: int, **_arguments: Any) -> np.ndarray:
            assert batch_size == 1
            return np.asarray([[3.0 * len(text), 4.0 * len(text)] for text in texts])

    package = types.ModuleType("sentence_transformers")
    package.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    embedder = SentenceEmbedder("there")
    np.testing.assert_allclose(embedder.embed(["a", "bc", ""]), [[0.6, 0.8], [0.6, 0.8], [0, 0]])
    assert embedder.embed([]).shape == (0, 2)
    assert repr(embedder) == "SentenceEmbedder('there')"
    identity = json.loads(embedder.identity)
    assert (identity["kind"], identity["source"], identity["dim"]) == ("sentence", "there", 2)
    assert SentenceEmbedder("there").identity == embedder.identity
    assert json.loads(SentenceEmbedder("not there").identity)["sha256"] != identity["sha256"]
    with pytest.raises(ModelSpecError, match="absent is not there"):
        SentenceEmbedder("absent")
