"""Causal language models that an environment is made of: loaded, or small and trained from scratch.

Any model of transformers goes. Where no weights can be had, `small_language_model` makes a model
of Mistral's architecture out of a catalogue's own text. It knows that text and nothing of the
world.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from tqdm import tqdm

from llm_expert.environment.chunks import ChunkFolder
from llm_expert.environment.prompts import POSITIONS
from llm_expert.environment.trees import plant, tree_mask
from llm_expert.environment.tuning_state import restored, tuning_state
from llm_expert.errors import ModelSpecError
from recsim_env.artefacts import key, write_folder
from recsim_env.errors import DataError
from recsim_env.settings import check_range

__all__ = [
    "LanguageModel",
    "SmallModelConfig",
    "check_loading",
    "load_language_model",
    "small_language_model",
]

logger = logging.getLogger(__name__)

_PADDING, _START, _END = "<pad>", "<s>", "</s>"
_ANCHOR = "x"
"""What stands before a text that is encoded as a continuation."""
_KEPT_EVERY = 100  # steps
_RECENT = 100
"""Steps whose mean loss tells whether exercises were learned."""
_LEARNED = 1.0
"""Nats of an exercise below which they were; guessing one of five has 1.61."""
_CLOSE = 0.02
"""Largest difference, as a share of the largest number, at which two ways count as one."""


class LanguageModel:
    """A frozen causal language model and its tokenizer.

    Args:
        model: A transformers model with an output layer over the vocabulary.
        tokenizer: Its tokenizer.
        name: What it was loaded from, for messages.

    Attributes:
        start: The tokens that begin every prompt, one or none.
        fingerprint: Of the weights, the number type and the tokenizer; equal for two loads of the
            same model.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        from llm_expert.embedders import CausalLMEmbedder

        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        begins = tokenizer.bos_token_id
        self.start: list[int] = [] if begins is None else [int(begins)]
        identity = json.loads(CausalLMEmbedder(model, tokenizer, source=name).identity)
        self.fingerprint = key(sha256=identity["sha256"], dtype=str(self.dtype))
        self.adapted: Any = None
        """The model inside peft's wrapper, once an adapter has been added."""

    def __repr__(self) -> str:
        """Returns sizes, not weights."""
        return (
            f"LanguageModel({self.name!r}, {type(self.model).__name__}, hidden={self.hidden_size}, "
            f"vocabulary={self.vocabulary}, {self.dtype}, {self.device})"
        )

    @property
    def hidden_size(self) -> int:
        """Size of a token's embedding and of a hidden state."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """Rows of the token embeddings, V."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> th.device:
        """Where the token embeddings are, and inputs go."""
        device: th.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> th.dtype:
        """Type of the weights."""
        dtype: th.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    def token_ids(self, text: str, most: int | None = None) -> list[int]:
        """Returns the tokens of a text, none of them special, whatever the text says.

        Args:
            text: The text.
            most: How many are kept; None keeps all.
        """
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids[:most]

    def continuation(self, text: str, most: int | None = None) -> list[int]:
        """Returns the tokens of a text that goes on after something else.

        Tokenizers in the manner of SentencePiece put a space before what they take for the
        beginning of a text.

        Args:
            text: The text, with its leading space if there is one.
            most: How many are kept; None keeps all.
        """
        anchor = self.token_ids(_ANCHOR)
        ids = self.token_ids(_ANCHOR + text)
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :][:most]
        return self.token_ids(text, most)

    def embed(self, ids: th.Tensor) -> th.Tensor:
        """Returns the token embeddings.

        Args:
            ids: (...) int64 tokens.

        Returns:
            (..., h) in the model's type.
        """
        embeddings: th.Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return embeddings

    def hidden(
        self,
        embeddings_BTh: th.Tensor,
        mask_B1TT: th.Tensor | None = None,
        positions_BT: th.Tensor | None = None,
    ) -> th.Tensor:
        """Runs the layers below the output layer.

        Args:
            embeddings_BTh: (B, T, h) inputs; padding stands on the right.
            mask_B1TT: Added to the attention scores; None: every place sees those before it.
            positions_BT: Positions in the text; None: 0 to T - 1. Given with the mask.

        Returns:
            (B, T, h), the last hidden states.
        """
        given: dict[str, Any] = {}
        if mask_B1TT is not None:
            given = {"attention_mask": mask_B1TT, "position_ids": positions_BT}
        states: th.Tensor = self.model.base_model(
            inputs_embeds=embeddings_BTh, use_cache=False, **given
        ).last_hidden_state
        return states

    def logits(self, states: th.Tensor, tokens: Sequence[int] | None = None) -> th.Tensor:
        """Returns what the output layer gives, for the whole vocabulary or for some tokens.

        Args:
            states: (..., h) last hidden states.
            tokens: n tokens; None takes all.

        Returns:
            (..., V) or (..., n) float32.
        """
        layer = self.model.get_output_embeddings()
        if tokens is None:
            scores: th.Tensor = layer(states)
            return scores.float()
        rows = th.tensor(list(tokens), device=layer.weight.device)
        bias = getattr(layer, "bias", None)
        chosen = th.nn.functional.linear(
            states, layer.weight[rows], None if bias is None else bias[rows]
        )
        return chosen.float()

    @cached_property
    def takes_trees(self) -> bool:
        """Whether several continuations of a prompt can share one row (see `trees`).

        It is tried out: some models know no mask of this shape, others count positions themselves.
        """
        prefix, branches = [1, 2, 3], [[4, 5], [6, 7]]
        forest = plant([prefix], [branches])
        segments, codes, positions, ends = (
            th.from_numpy(array).to(self.device)
            for array in (forest.segments, forest.codes, forest.positions, forest.ends)
        )
        with th.inference_mode():
            alone = th.cat(
                [
                    self.hidden(self.embed(th.tensor([prefix + branch])))[:, -1]
                    for branch in branches
                ]
            )
            try:
                mask = tree_mask(segments, self.dtype)
                shared = self.hidden(self.embed(codes), mask, positions)[0, ends[0, 1:]]
            except (TypeError, ValueError, RuntimeError, IndexError):
                return False
        difference = (shared.float() - alone.float()).abs().max()
        return bool(difference <= _CLOSE * alone.float().abs().max())

    def save(self, folder: str | Path) -> Path:
        """Writes the model and its tokenizer as transformers does, whole or not at all.

        Adapters are left out.

        Args:
            folder: Where to; a folder that is there is replaced.

        Returns:
            The folder.
        """

        def write(target: Path) -> None:
            state = {
                name.replace(".base_layer", ""): tensor
                for name, tensor in self.model.state_dict().items()
                if ".lora_" not in name
            }
            with _bars(shown=False):
                self.model.save_pretrained(target, state_dict=state)
            self.tokenizer.save_pretrained(target)

        return write_folder(folder, write)


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Sees to it that transformers shows progress bars of its own, or none."""
    try:
        logging: Any = importlib.import_module("transformers.utils.logging")
    except ImportError:  # whoever needs it says so
        yield
        return
    were_shown = logging.is_progress_bar_enabled()
    if not shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


def load_language_model(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | th.dtype | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Loads a causal language model of Hugging Face.

    Args:
        name: Folder, or name on the hub, such as "mistralai/Mistral-7B-v0.1".
        device: For example "cuda:0"; "auto" spreads the layers over all GPUs; None takes a GPU if
            there is one.
        dtype: For example "bfloat16"; None: as the weights were published on a GPU, which is half
            precision for the large ones, and float32 elsewhere.
        progress: Shows transformers' progress bars.

    Raises:
        ModelSpecError: transformers is missing, or there is no such model, device or type.
    """
    from llm_expert.local import load_causal_lm

    wanted = _number_type(name, dtype)
    spread = device == "auto"
    with _bars(shown=progress):
        model, tokenizer = load_causal_lm(name, "cpu" if spread else device)
    if wanted is not None:
        model = model.to(wanted)
    if spread and th.cuda.is_available():
        model = _over_all_gpus(model if wanted is not None else model.to(th.bfloat16))
    return LanguageModel(model, tokenizer, str(name))


def _number_type(name: str | Path, dtype: str | th.dtype | None) -> th.dtype | None:
    wanted = getattr(th, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None:
        return None
    if not (isinstance(wanted, th.dtype) and wanted.is_floating_point):
        raise ModelSpecError(
            f"dtype={dtype!r} came for the model {name}, expected a floating-point type of torch, "
            'such as "bfloat16", "float16" or "float32".'
        )
    return wanted


def check_loading(name: str | None, device: str | None = None, dtype: str | None = None) -> None:
    """Refuses what `load_language_model` and the tuning would refuse, without loading anything.

    Args:
        name: As there; None for the small model.
        device: As there.
        dtype: As there.

    Raises:
        ModelSpecError: A package is missing, or there is no such folder, device or type.
    """
    from llm_expert.local import check_device

    shown = name or "small"
    for package in ("transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            raise ModelSpecError(
                f"The model {shown} needs the package {package}, which is not there: "
                "pip install 'ilrec[local]'"
            )
    if name is not None and name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise ModelSpecError(
            f"The model {name} came, which is no folder, expected one with a causal language model "
            "and its tokenizer, or a name on the Hugging Face hub."
        )
    if device not in (None, "auto"):
        check_device(device)
    _number_type(shown, dtype)


def _over_all_gpus(model: Any) -> Any:
    """Returns the model with its layers spread over the GPUs, and the CPU where they are full."""
    accelerate: Any = importlib.import_module("accelerate")  # it has no type hints

    whole = getattr(model, "_no_split_modules", None)
    places = accelerate.infer_auto_device_map(model, no_split_module_classes=whole)
    return accelerate.dispatch_model(model, places)


@dataclass(frozen=True)
class SmallModelConfig:
    """Sizes of the small model and how it is trained.

    Attributes:
        vocabulary: Tokens; raising it makes texts shorter and the output layer slower.
        hidden: Size of the embeddings and of a state of the environment.
        layers: Blocks of attention and feed-forward network.
        heads: Attention heads; `hidden` is a multiple.
        key_value_heads: Heads of keys and values; `heads` is a multiple.
        intermediate: Size of the feed-forward networks.
        max_length: Most tokens of a text.
        block: Tokens of a row in training, texts packed one after the other.
        batch_size: Rows in a step.
        epochs: Passes over the texts.
        learning_rate: Highest step size of AdamW; it rises over the first 5 % of the steps and
            falls to a tenth along half a cosine.
        weight_decay: Of AdamW.
        practice: Practice sentences that `ilrec lea prepare` adds to the texts.
        exercise_steps: Steps in which it learns to choose from exercises, where it is given some.
            In the first thousand next to nothing is learned, and with long texts in the first
            three.
        exercise_rounds: Times that these steps are made at most: once more where the mean loss of
            the last hundred is not below 1, which guessing has at 1.61.
        exercise_batch: Exercises in a step. After them the texts are gone through once more, with a
            quarter as many exercises in each step.
        exercise_rate: Step size of the exercises, which rises and stays; with more, and where it
            fell, next to nothing was learned. It is the highest one of the texts after them, too.
    """

    vocabulary: int = 3000
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 256
    max_length: int = 512
    block: int = 128
    batch_size: int = 16
    epochs: int = 4
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    practice: int = 16_000
    exercise_steps: int = 2_500
    exercise_rounds: int = 3
    exercise_batch: int = 64
    exercise_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in (
            "layers",
            "intermediate",
            "block",
            "batch_size",
            "epochs",
            "exercise_batch",
            "exercise_rounds",
        ):
            if getattr(self, name) < 1:
                raise DataError(
                    f"SmallModelConfig.{name} is {getattr(self, name)}, expected at least 1."
                )
        for name in ("practice", "exercise_steps"):
            if getattr(self, name) < 0:
                raise DataError(
                    f"SmallModelConfig.{name} is {getattr(self, name)}, expected 0 or more."
                )
        if self.vocabulary < 400:
            raise DataError(
                f"SmallModelConfig.vocabulary is {self.vocabulary}, expected at least 400, since "
                "259 go to single bytes and special tokens."
            )
        for name, of in (("heads", "hidden"), ("key_value_heads", "heads")):
            if getattr(self, name) < 1 or getattr(self, of) % getattr(self, name):
                raise DataError(
                    f"SmallModelConfig.{name} is {getattr(self, name)}, expected a divisor of "
                    f"{of}={getattr(self, of)}."
                )
        if self.hidden // self.heads % 2:
            raise DataError(
                f"SmallModelConfig.hidden={self.hidden} and heads={self.heads} give heads of "
                f"{self.hidden // self.heads} numbers, expected an even number: positions turn "
                "pairs of them."
            )
        check_range(self, "learning_rate", "exercise_rate", least=1e-12)
        check_range(self, "weight_decay", least=0.0)


def small_language_model(
    texts: Sequence[str],
    exercises: Iterator[tuple[str, int]] | None = None,
    *,
    seed: int = 0,
    config: SmallModelConfig | None = None,
    progress: bool = True,
    folder: str | Path | None = None,
) -> LanguageModel:
    """Trains a tokenizer and a small model of Mistral's architecture on texts, from scratch.

    Input and output embeddings are shared, unlike Mistral's, which makes a model of this size
    smaller by a quarter or so.

    Args:
        texts: Of a catalogue, and sentences such as `practice_sentences` gives, lest the words of
            the prompts be unknown.
        exercises: Prompts and which position word is to follow, from `choice_exercises`; None: it
            does not learn to choose.
        seed: Of the initial weights and the order of the texts.
        config: Sizes; None takes the default.
        progress: Shows a progress bar.
        folder: Keeps where the training stands after every hundred steps, so that the same call,
            with the same exercises, goes on where it was stopped; None keeps nothing.

    Raises:
        DataError: There are no texts.
        ModelSpecError: transformers is missing.
    """
    config = config or SmallModelConfig()
    if not any(text.strip() for text in texts):
        raise DataError(
            f"{len(texts)} texts without a word came, expected those of a catalogue: give the "
            "texts of SequenceData."
        )
    try:
        from transformers import MistralConfig, MistralForCausalLM
    except ImportError as error:
        raise ModelSpecError(
            "A small language model needs the package transformers, which cannot be imported: "
            "pip install 'ilrec[local]'"
        ) from error
    tokenizer = _train_tokenizer(texts, config.vocabulary)
    settings = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.max_length,
        sliding_window=None,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        model: Any = MistralForCausalLM(settings)
    stream = _Stream(tokenizer, texts, np.random.default_rng(seed))
    lessons = [_reading(model, stream, config)]
    if exercises is not None and config.exercise_steps:
        exam = _Exam(model, tokenizer, exercises)
        lessons += [_answering(exam, config), _reading(model, stream, config, exam)]
    source = key(texts=list(texts), config=asdict(config), seed=seed, lessons=len(lessons))
    _teach(model, lessons, ChunkFolder(folder, "small_model", source), progress)
    return LanguageModel(model, tokenizer, "small")


def _train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """Returns a byte-level byte-pair tokenizer in transformers' wrapper."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(texts)
    # Often enough for each position word to become a token, even in a small vocabulary.
    drilled = [f" {word}" for word in POSITIONS] * (len(texts) + 1000)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_PADDING, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*texts, *drilled], trainer)
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=backend, pad_token=_PADDING, bos_token=_START, eos_token=_END)


class _Stream:
    """Texts packed into rows of one length, in a new order for each pass.

    Args:
        tokenizer: For the texts.
        texts: The texts.
        rng: Of the order.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], rng: np.random.Generator) -> None:
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._rows = [np.array([begin, *ids, end]) for ids in _encoded(tokenizer, texts)]
        self._rng = rng

    def n_blocks(self, width: int) -> int:
        """Returns how many rows of a width a pass has."""
        return max(1, sum(map(len, self._rows)) // width)

    def batches(self, width: int, size: int) -> Iterator[th.Tensor]:
        """Yields (size or less, width) tokens without end, one pass after the other."""
        count = self.n_blocks(width)
        while True:
            order = self._rng.permutation(len(self._rows))
            stream = np.concatenate([self._rows[number] for number in order])
            blocks = np.resize(stream, count * width).reshape(count, width)
            yield from th.from_numpy(blocks).split(size)


_Asked = list[tuple[str, int]]


class _Exam:
    """Exercises, and how well a model answers them.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        exercises: Prompts and which position word is to follow.
    """

    def __init__(self, model: Any, tokenizer: Any, exercises: Iterator[tuple[str, int]]) -> None:
        self._model, self._tokenizer, self._exercises = model, tokenizer, exercises
        words = _encoded(tokenizer, [f" {word}" for word in POSITIONS])
        self._words = th.tensor([ids[0] for ids in words])

    def draw(self, size: int) -> _Asked:
        """Returns so many new exercises."""
        return list(islice(self._exercises, size))

    def loss(self, asked: _Asked) -> th.Tensor:
        """Returns the mean loss of exercises; only the answer counts."""
        prompts, places = zip(*asked, strict=True)
        begin, padding = self._tokenizer.bos_token_id, self._tokenizer.pad_token_id
        rows = [[begin, *ids] for ids in _encoded(self._tokenizer, prompts)]
        last = th.tensor([len(row) - 1 for row in rows])
        padded = np.full((len(rows), int(last.max()) + 1), padding, np.int64)
        for number, row in enumerate(rows):
            padded[number, : len(row)] = row
        output = self._model.base_model(input_ids=th.from_numpy(padded), use_cache=False)
        ends = output.last_hidden_state[th.arange(len(rows)), last]
        logits = self._model.get_output_embeddings()(ends)
        return th.nn.functional.cross_entropy(logits, self._words[th.tensor(places)])


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    return found


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A part of the training, with an optimiser of its own.

    Attributes:
        name: For the progress bar.
        n_steps: Gradient steps.
        draws: Yields what each step learns from, without end.
        loss: Of what was drawn.
        rate: Learning rate at its highest.
        weight_decay: Of AdamW.
        falls: Whether the rate falls to a tenth.
        rounds: Times that the steps are made at most.
        enough: Mean loss of recent steps below which they are not made again.
    """

    name: str
    n_steps: int
    draws: Iterator[Any]
    loss: Callable[[Any], th.Tensor]
    rate: float
    weight_decay: float
    falls: bool
    rounds: int = 1
    enough: float = math.inf

    def is_over(self, step: int, recent: Sequence[float]) -> bool:
        """Returns whether nothing is left to do after so many steps.

        Args:
            step: Steps made.
            recent: Losses of the last of them.
        """
        if step % self.n_steps or not step:
            return False
        return step >= self.rounds * self.n_steps or float(np.mean(recent)) < self.enough


def _reading(
    model: Any, stream: _Stream, config: SmallModelConfig, exam: _Exam | None = None
) -> _Lesson:
    """Returns what teaches to continue the texts, and to answer some more, lest it be forgotten."""
    width, size = config.block + 1, config.batch_size
    questions = max(1, config.exercise_batch // 4)

    def draws() -> Iterator[tuple[th.Tensor, _Asked]]:
        for tokens in stream.batches(width, size):
            yield tokens, [] if exam is None else exam.draw(questions)

    def loss(drawn: tuple[th.Tensor, _Asked]) -> th.Tensor:
        tokens_BT, asked = drawn
        logits = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        read = th.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())
        return read if exam is None else read + exam.loss(asked)

    n_steps = -(-stream.n_blocks(width) // size) * config.epochs
    rate = config.learning_rate if exam is None else config.exercise_rate
    return _Lesson("texts", n_steps, draws(), loss, rate, config.weight_decay, falls=True)


def _answering(exam: _Exam, config: SmallModelConfig) -> _Lesson:
    """Returns what teaches to answer, which makes the model forget the texts.

    With texts in the same steps, and without texts before, nothing was learned in 1,300.
    """

    def draws() -> Iterator[_Asked]:
        while True:
            yield exam.draw(config.exercise_batch)

    decay = 0.1 * config.weight_decay
    return _Lesson(
        "exercises",
        config.exercise_steps,
        draws(),
        exam.loss,
        config.exercise_rate,
        decay,
        falls=False,
        rounds=config.exercise_rounds,
        enough=_LEARNED,
    )


def _teach(model: Any, lessons: Sequence[_Lesson], kept: ChunkFolder, progress: bool) -> None:
    """Trains on lesson after lesson, from where the training was kept.

    What was learned from before is drawn once more and passed over: random numbers stay in step.
    """
    weights = list(model.parameters())
    found = kept.load(0)
    made: list[int] = [] if found is None else found["steps"].tolist()  # in each lesson
    reached = len(made) - 1
    model.train()
    for number, lesson in enumerate(lessons):
        if number < reached:
            _pass_over(lesson.draws, made[number])
            continue
        optimiser = th.optim.AdamW(
            weights, lr=lesson.rate, weight_decay=lesson.weight_decay, betas=(0.9, 0.98)
        )
        recent: deque[float] = deque(maxlen=_RECENT)
        if found is not None and number == reached:
            with th.random.fork_rng(devices=[]):  # nothing is drawn by torch here
                recent.extend(restored(found, weights, optimiser)["recent"])
            _pass_over(lesson.draws, made[number])
        else:
            made.append(0)
        with tqdm(
            initial=made[-1],
            total=lesson.n_steps,
            desc=f"small language model: {lesson.name}",
            unit="step",
            disable=not progress,
        ) as bar:
            while not lesson.is_over(step := made[-1], recent):
                bar.total = lesson.n_steps * (1 + step // lesson.n_steps)
                for group in optimiser.param_groups:
                    group["lr"] = lesson.rate * _rate(step, lesson.n_steps, lesson.falls)
                optimiser.zero_grad(set_to_none=True)
                loss = lesson.loss(next(lesson.draws))
                loss.backward()
                th.nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
                recent.append(float(loss.detach()))
                made[-1] += 1
                bar.set_postfix(loss=f"{recent[-1]:.3f}", refresh=False)
                bar.update()
                if made[-1] % _KEPT_EVERY == 0 or made[-1] % lesson.n_steps == 0:
                    stands = tuning_state(weights, optimiser, losses={"recent": list(recent)})
                    kept.save(0, {**stands, "steps": np.array(made)})
        if np.mean(recent) >= lesson.enough:
            logger.warning(
                "The small language model has not learned to choose: a loss of %.2f after %d steps "
                "of exercises came, expected less than %g, where guessing has %.2f; its choices "
                "say little: raise exercise_steps, or take a model that was trained already.",
                np.mean(recent),
                made[-1],
                lesson.enough,
                math.log(len(POSITIONS)),
            )


def _pass_over(draws: Iterator[Any], count: int) -> None:
    for _ in islice(draws, count):
        pass


def _rate(step: int, n_steps: int, falls: bool) -> float:
    """Returns the share of the learning rate in a step."""
    rising = max(1, n_steps // 20)
    if step < rising:
        return (step + 1) / rising
    if not falls:
        return 1.0
    done = (step - rising) / max(1, n_steps - rising)
    return 0.1 + 0.9 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
