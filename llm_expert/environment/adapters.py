"""Low-rank adapters (LoRA) on a frozen language model, through peft.

A language model may carry the adapters of several environments. None of them is at work but inside
`Adapter.at_work`, so item tokens and other environments see the model as it was published.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llm_expert.errors import ModelSpecError
from recsim_env.errors import ArtefactError

if TYPE_CHECKING:
    from llm_expert.environment.language_model import LanguageModel

__all__ = ["Adapter"]

_WEIGHTS = "adapter_model.safetensors"


class Adapter:
    """One adapter on all linear layers of a language model but its output layer.

    Args:
        lm: The language model, which gets new layers around its own.
        rank: Of the two factors of each layer's change.
        alpha: The change is scaled by alpha / rank.
        dropout: Share of a layer's inputs that its change does not see in training.
        seed: Of the initial weights.

    Raises:
        ModelSpecError: peft is missing.
    """

    def __init__(
        self, lm: LanguageModel, rank: int, alpha: int, dropout: float = 0.0, seed: int = 0
    ) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise ModelSpecError(
                "Tuning a language model needs the package peft, which cannot be imported: "
                "pip install 'ilrec[local]'"
            ) from error
        settings: Any = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear"
        )
        with th.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks transformers for something that has a new name in transformers 5.
            warnings.simplefilter("ignore", FutureWarning)
            th.manual_seed(seed)
            if lm.adapted is None:
                self.name = "environment_0"
                lm.adapted = get_peft_model(lm.model, settings, adapter_name=self.name)
            else:
                self.name = f"environment_{len(lm.adapted.peft_config)}"
                lm.adapted.add_adapter(self.name, settings)
        self._lm = lm
        self._rest()

    @contextmanager
    def at_work(self, *, training: bool = False) -> Iterator[None]:
        """Lets this adapter change what the language model says.

        Args:
            training: Whether its weights take gradients and dropout is on.
        """
        wrapped = self._lm.adapted
        wrapped.base_model.enable_adapter_layers()
        wrapped.set_adapter(self.name)
        for weights in self.parameters():
            weights.requires_grad_(training)
        wrapped.train(training)
        try:
            yield
        finally:
            self._rest()

    def parameters(self) -> list[th.nn.Parameter]:
        """Returns the weights."""
        return list(self._named().values())

    def state(self) -> dict[str, th.Tensor]:
        """Returns the weights under the names that peft's files have."""
        return {
            f"base_model.model.{name.replace(f'.{self.name}.', '.')}": weights.detach()
            for name, weights in self._named().items()
        }

    def save(self, folder: Path) -> None:
        """Writes the adapter so that peft, too, can load it onto the language model.

        Args:
            folder: Where to; it is made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: weights.cpu().contiguous() for name, weights in self.state().items()}
        save_file(tensors, folder / _WEIGHTS)
        self._lm.adapted.peft_config[self.name].save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Takes the weights that `save` wrote.

        Args:
            folder: Where from.

        Raises:
            ArtefactError: They are not there, are broken or are those of another adapter.
        """
        try:
            found = load_file(folder / _WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ArtefactError(
                f"{folder} does not hold an adapter ({error}), expected {_WEIGHTS}: tune the "
                "environment again."
            ) from error
        own = self.state()
        if {name: weights.shape for name, weights in found.items()} != {
            name: weights.shape for name, weights in own.items()
        }:
            raise ArtefactError(
                f"{folder} holds an adapter of other layers or sizes than this one's, expected "
                "that of the same language model and settings: tune the environment again."
            )
        for name, weights in own.items():
            weights.copy_(found[name])

    def _named(self) -> dict[str, th.nn.Parameter]:
        return {
            name: weights
            for name, weights in self._lm.model.named_parameters()
            if ".lora_" in name and f".{self.name}." in name
        }

    def _rest(self) -> None:
        self._lm.adapted.base_model.disable_adapter_layers()
        self._lm.adapted.eval()
