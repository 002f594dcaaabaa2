"""Chat with a causal language model of transformers in this process."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field, PrivateAttr

from llm_expert.errors import ModelSpecError

__all__ = ["LocalChatModel", "load_causal_lm", "what_is_here"]

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}
_NO_LIMIT = 10**9
"""Tokenizers without a longest text give a number beyond this."""


class LocalChatModel(BaseChatModel):
    """A causal language model with a chat template, one call at a time.

    An answer is a function of the seed and the messages, whatever was asked before: every call
    draws from a generator of its own, and may bring a `seed` of its own. Names of special tokens
    inside a message are broken up, so that a text cannot end its own message. The seconds that an
    answer took, without the wait for the calls before it, are in its `response_metadata`.

    Args:
        network: A transformers model that generates.
        tokenizer: Its tokenizer, with a chat template.
        temperature: 0 takes the likeliest token; None takes the model's own settings.
        max_tokens: Of an answer.
        seed: Of the draws.
    """

    network: Any = Field(repr=False, exclude=True)
    tokenizer: Any = Field(repr=False, exclude=True)
    temperature: float | None = 0.5
    max_tokens: int = 256
    seed: int = 0
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | None = None, **fields: Any
    ) -> LocalChatModel:
        """Loads a model and its tokenizer.

        Args:
            path: Folder, or name on the Hugging Face hub.
            device: For example "cuda:0"; None takes a GPU if there is one.
            **fields: Of the class.

        Raises:
            ModelSpecError: There is no such model, or it is not made for chats.
        """
        network, tokenizer = load_causal_lm(path, device)
        if not getattr(tokenizer, "chat_template", None):
            raise ModelSpecError(
                f"The model {path} has no chat template, expected one that was trained for chats: "
                "take its instruct or chat version."
            )
        return cls(network=network, tokenizer=tokenizer, **fields)

    @property
    def window(self) -> int | None:
        """Tokens of prompt and answer together, where the model says so."""
        return longest_text(self.network, self.tokenizer)

    @property
    def _llm_type(self) -> str:
        return "local"

    def token_counter(self) -> Callable[[str], int]:
        """Returns what counts the tokens of a text, safe beside a running call."""
        return counting(copy.deepcopy(self.tokenizer))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 (LangChain's signature)
        **kwargs: Any,
    ) -> ChatResult:
        import torch as th

        turns = [{"role": _ROLES[m.type], "content": self._plain(str(m.text))} for m in messages]
        with self._lock, th.random.fork_rng(), th.inference_mode():
            started = time.perf_counter()
            prompt = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self.network.device)
            th.manual_seed(_seed(kwargs.get("seed", self.seed), turns))
            output = self.network.generate(**prompt, **self._sampling())
            n_prompt = prompt["input_ids"].shape[1]
            answer = output[0, n_prompt:]
            text = self.tokenizer.decode(answer, skip_special_tokens=True)
            seconds = time.perf_counter() - started
        for end in stop or ():
            text = text.partition(end)[0]
        usage = UsageMetadata(
            input_tokens=n_prompt, output_tokens=len(answer), total_tokens=n_prompt + len(answer)
        )
        message = AIMessage(
            content=text, usage_metadata=usage, response_metadata={"seconds": seconds}
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _sampling(self) -> dict[str, Any]:
        padding = self.tokenizer.pad_token_id
        padding = self.tokenizer.eos_token_id if padding is None else padding
        arguments: dict[str, Any] = {"max_new_tokens": self.max_tokens, "pad_token_id": padding}
        if self.temperature is None:
            return arguments
        if self.temperature == 0:
            # transformers warns of sampling settings that a greedy choice does not look at
            return {**arguments, "do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
        return {**arguments, "do_sample": True, "temperature": self.temperature}

    def _plain(self, text: str) -> str:
        """Returns the text with a space inside every name of a special token."""
        for token in _special_tokens(self.tokenizer):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def check_device(name: str) -> None:
    """Refuses a device that torch cannot use here.

    Args:
        name: For example "cuda:0".

    Raises:
        ModelSpecError: It cannot.
    """
    import torch as th

    try:
        th.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelSpecError(
            f"The device {name!r} came for a language model, which torch cannot use here "
            f"({reason}): choose another one, or cpu."
        ) from error


def load_causal_lm(path: str | Path, device: str | None = None) -> tuple[Any, Any]:
    """Loads a causal language model and its tokenizer with transformers.

    Args:
        path: Folder, or name on the Hugging Face hub.
        device: For example "cuda:0"; None takes a GPU if there is one.

    Returns:
        The model, set to evaluate, and the tokenizer.

    Raises:
        ModelSpecError: transformers is missing, or there is no such model or device.
    """
    import torch as th

    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ModelSpecError(
            f"The model {path} needs the package transformers, which cannot be imported: "
            "pip install 'ilrec[local]'"
        ) from error
    place = device or ("cuda" if th.cuda.is_available() else "cpu")
    check_device(place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        network = AutoModelForCausalLM.from_pretrained(
            str(path), dtype="auto" if place.startswith("cuda") else th.float32
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelSpecError(
            f"The model {path} cannot be loaded ({reason}), expected a folder or a name on the "
            "Hugging Face hub with a causal language model and its tokenizer."
        ) from error
    loaded: Any = network
    return loaded.to(place).eval(), tokenizer


def counting(tokenizer: Any) -> Callable[[str], int]:
    """Returns what counts the tokens of a text with a tokenizer of transformers."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    return count


def what_is_here(path: str | Path) -> tuple[int | None, Callable[[str], int] | None]:
    """Returns a model's window and its token counter as far as they can be had without weights.

    No network is asked. Without transformers, or where no file of the model is on this machine,
    both are None.

    Args:
        path: Folder, or name on the Hugging Face hub.
    """
    try:
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(str(path), local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (ImportError, OSError, ValueError, KeyError):
        return None, None
    return _longest(config, tokenizer), counting(tokenizer)


def longest_text(network: Any, tokenizer: Any) -> int | None:
    """Returns how many tokens a model can read, where it says so.

    Args:
        network: A transformers model.
        tokenizer: Its tokenizer.
    """
    return _longest(network.config, tokenizer)


def _longest(config: Any, tokenizer: Any) -> int | None:
    said = [
        getattr(config, "max_position_embeddings", None),
        getattr(tokenizer, "model_max_length", None),
    ]
    limits = [int(number) for number in said if number and number < _NO_LIMIT]
    return min(limits) if limits else None


def _special_tokens(tokenizer: Any) -> Sequence[str]:
    """Returns the names of special tokens that a text may be mistaken for, longest first."""
    added = [str(token) for token in tokenizer.get_added_vocab()]
    names = {name for name in [*tokenizer.all_special_tokens, *added] if len(name) > 1}
    return sorted(names, key=lambda name: (-len(name), name))


def _seed(seed: int, turns: list[dict[str, str]]) -> int:
    text = json.dumps([seed, turns], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
