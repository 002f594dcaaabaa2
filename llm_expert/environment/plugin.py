"""The environment as ``ilrec lea prepare`` asks it: its options, and its stages on disk."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm_expert.environment.precompute import CHOOSERS, precompute
from recsim_env import artefacts
from recsim_env import command_line as cl
from recsim_env.errors import ArtefactError, DataError
from recsim_env.settings import check_type, from_mapping

if TYPE_CHECKING:
    from llm_expert.environment.environment import EnvironmentConfig, LLMEnvironment
    from llm_expert.environment.item_tokens import ItemTokens
    from llm_expert.environment.language_model import LanguageModel, SmallModelConfig
    from recsim_env.environment_feedback import EnvironmentFeedback
    from recsim_env.sequences import Examples, IntArray, SequenceData

__all__ = ["LanguageModelSource", "source"]

logger = logging.getLogger(__name__)

SMALL = "small"
_FORMAT = 2
"""Counted up when the feedback of equal options becomes another one."""
_PIECES = "pieces"
_MARGIN = 0.05
"""What is right by less than this more often than by chance is called chance."""
_BY_TEXT = ("token_start=text", "iterations=0", "exercises=40000", "learning_rate=0.002")
"""What `benchmarks/lea/table2.toml` has for industrial products, whose texts are long."""
_SAMPLE, _SAMPLES = 16_384, 64  # bytes, and how many of them of a large file
T = TypeVar("T")


class LanguageModelSource:
    """A language model as the environment; a `recsim_env.command_line.FeedbackSource`.

    Its stages are the language model (where it is trained on the catalogue's text), the item
    tokens, the tuned environment, and the feedback in pieces. Each is kept under a hash of all that
    it depends on, so that feedbacks which differ in the share of the users, say, have the first two
    in common.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds options that set up the environment."""
        group = parser.add_argument_group("the language model as environment")
        group.add_argument(
            "--llm",
            default=SMALL,
            metavar="NAME",
            help="a causal language model of Hugging Face by name or folder, or small: one that is "
            "trained on the catalogue's text alone and knows nothing else (default: small)",
        )
        group.add_argument(
            "--llm-device",
            type=cl.device,
            metavar="NAME",
            help="where the language model is asked: cpu, cuda:0, or auto for all GPUs",
        )
        group.add_argument(
            "--llm-dtype", metavar="NAME", help="type of its numbers, such as bfloat16"
        )
        group.add_argument(
            "--share",
            type=_share,
            default=0.1,
            metavar="S",
            help="of the users that it is tuned on (default: 0.1)",
        )
        group.add_argument(
            "--epochs",
            type=cl.positive,
            default=10,
            metavar="N",
            help="passes over their examples (default: 10)",
        )
        group.add_argument(
            "--item-tokens",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="items as vectors that tell their texts; off: as their titles (default: on)",
        )
        group.add_argument(
            "--state-loss",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="tune states to tell users apart (default: on)",
        )
        group.add_argument(
            "--choice-loss",
            action=argparse.BooleanOptionalAction,
            help="tune the choice among five, too, which the paper does not (default: on for the "
            "small model, which cannot choose without, else off)",
        )
        group.add_argument(
            "--chooser",
            choices=CHOOSERS,
            default=CHOOSERS[0],
            help="who chooses among the five: the language model or, to see what its choice is "
            "worth, the recommender (its best) or a draw (default: llm)",
        )
        group.add_argument(
            "--negatives",
            type=cl.positive,
            default=5,
            metavar="N",
            help="items nobody took that get a reward, for each example, of which every pass over "
            "the examples draws one (default: 5)",
        )
        group.add_argument(
            "--llm-seed", type=cl.seed, default=0, metavar="S", help="of all of it (default: 0)"
        )
        group.add_argument(
            "--chunk",
            type=cl.positive,
            default=512,
            metavar="N",
            help="examples in a piece that is kept (default: 512)",
        )
        group.add_argument(
            "--tune",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a field of EnvironmentConfig, such as iterations=100; may be repeated",
        )
        group.add_argument(
            "--small",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a field of SmallModelConfig, such as epochs=4; may be repeated",
        )

    def settings(self, arguments: argparse.Namespace) -> Mapping[str, Any]:
        """Returns all that the feedback depends on beside data and candidates.

        Args:
            arguments: The command line.

        Raises:
            DataError: An option cannot be used.
        """
        from llm_expert.environment.practice import PRACTICE

        small = _small_config(arguments)
        return {
            "format": _FORMAT,
            "practice": None if small is None else PRACTICE,
            "llm": arguments.llm if small is not None else _identity(arguments.llm),
            "dtype": arguments.llm_dtype,
            "seed": arguments.llm_seed,
            "negatives": arguments.negatives,
            "chooser": arguments.chooser,
            "small": None if small is None else asdict(small),
            "tuning": asdict(_config(arguments)),
        }

    def check(self, arguments: argparse.Namespace) -> None:
        """Refuses, before anything takes long, what cannot be done on this machine.

        Args:
            arguments: The command line.

        Raises:
            ModelSpecError: A package is missing, or there is no such model, device or type.
        """
        from llm_expert.environment.language_model import check_loading

        model = None if arguments.llm == SMALL else arguments.llm
        check_loading(model, arguments.llm_device, arguments.llm_dtype)

    def feedback(
        self,
        arguments: argparse.Namespace,
        data: SequenceData,
        examples: Examples,
        candidates: IntArray,
        folder: Path,
        progress: bool,
        say: Callable[[str], None],
    ) -> EnvironmentFeedback:
        """Makes what is missing in a folder and computes the feedback.

        Args:
            arguments: The command line.
            data: The sequences.
            examples: m train examples.
            candidates: (m, 5) items for the language model to choose from.
            folder: Keeps the stages.
            progress: Shows progress bars.
            say: Takes lines that tell how good it is.

        Raises:
            ModelSpecError: The language model cannot be loaded.
            LLMError: It gave numbers that are not finite.
        """
        from recsim_env.environment_feedback import sample_negatives

        config, seed = _config(arguments), arguments.llm_seed
        stages = _Stages(folder, data, seed, progress)
        lm = stages.language_model(arguments)
        tokens = stages.item_tokens(lm, config) if config.item_tokens else None
        environment = stages.environment(lm, config, tokens)
        by_text = arguments.llm == SMALL and config.item_tokens and config.token_start == "random"
        for line in _quality(environment.report, by_text):
            say(line)
        return precompute(
            environment,
            examples,
            negatives=sample_negatives(examples, arguments.negatives, seed),
            candidates=candidates,
            chooser=arguments.chooser,
            folder=folder / _PIECES,
            chunk=arguments.chunk,
            seed=seed,
            progress=progress,
        )


source = LanguageModelSource()
"""What the entry point names."""


def _identity(name: str) -> str | dict[str, str]:
    """Returns what tells a language model from others without loading it.

    That is its name on the hub. Of a folder it is what is in it, wherever it lies: names, sizes and
    64 samples of each file, since all of it would take long to read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    parts: list[bytes] = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = file.stat().st_size
        parts += [str(file.relative_to(folder)).encode(), str(size).encode()]
        with file.open("rb") as content:
            for place in range(0, size, max(_SAMPLE, size // _SAMPLES)):
                content.seek(place)
                parts.append(content.read(_SAMPLE))
    return {"folder": folder.name, "contents": artefacts.fingerprint_bytes(*parts)}


@dataclass(frozen=True)
class _Stages:
    """What takes long, by what it depends on.

    Attributes:
        folder: Keeps it.
        data: The sequences.
        seed: Of all draws.
        progress: Shows progress bars.
    """

    folder: Path
    data: SequenceData
    seed: int
    progress: bool

    def language_model(self, arguments: argparse.Namespace) -> LanguageModel:
        """Returns the language model, loaded or trained."""
        from llm_expert.environment.language_model import (
            load_language_model,
            small_language_model,
        )
        from llm_expert.environment.practice import (
            PRACTICE,
            choice_exercises,
            practice_sentences,
        )

        device, dtype = arguments.llm_device, arguments.llm_dtype
        config = _small_config(arguments)
        if config is None:
            return load_language_model(
                arguments.llm, device=device, dtype=dtype, progress=self.progress
            )
        key = artefacts.key(
            data=self.data.fingerprint, config=asdict(config), seed=self.seed, practice=PRACTICE
        )
        folder = self.folder / f"language_model-{key[:16]}"
        if not artefacts.check_folder(folder):
            practice = practice_sentences(self.data, config.practice, self.seed)
            texts = [*self.data.texts, *practice]
            made = small_language_model(
                texts,
                choice_exercises(self.data, self.seed),
                seed=self.seed,
                config=config,
                progress=self.progress,
                folder=self.folder / _PIECES,
            )
            made.save(folder)
        # read back also where it was just made: what comes after must not depend on which it was
        return load_language_model(folder, device=device, dtype=dtype, progress=False)

    def item_tokens(self, lm: LanguageModel, config: EnvironmentConfig) -> ItemTokens:
        """Returns the vectors of the items."""
        from llm_expert.environment.item_tokens import ItemTokens, item_tokens

        key = artefacts.key(
            lm=lm.fingerprint,
            data=self.data.fingerprint,
            iterations=config.iterations,
            learning_rate=config.token_learning_rate,
            max_tokens=config.text_tokens,
            start=config.token_start,
            seed=self.seed,
        )
        path = self.folder / f"item_tokens-{key[:16]}.safetensors"

        def make() -> ItemTokens:
            made = item_tokens(
                lm,
                self.data,
                iterations=config.iterations,
                learning_rate=config.token_learning_rate,
                max_tokens=config.text_tokens,
                start=config.token_start,
                seed=self.seed,
                folder=self.folder / _PIECES,
                progress=self.progress,
            )
            made.save(path)
            return made

        return _kept(path, lambda: ItemTokens.load(path), make)

    def environment(
        self, lm: LanguageModel, config: EnvironmentConfig, tokens: ItemTokens | None
    ) -> LLMEnvironment:
        """Returns the tuned language model."""
        from llm_expert.environment.environment import LLMEnvironment

        key = artefacts.key(
            format=_FORMAT,
            lm=lm.fingerprint,
            data=self.data.fingerprint,
            config=asdict(config),
            tokens=None if tokens is None else tokens.source,
            seed=self.seed,
        )
        folder = self.folder / f"environment-{key[:16]}"

        def make() -> LLMEnvironment:
            made = LLMEnvironment.fit(
                lm,
                self.data,
                config,
                self.seed,
                self.progress,
                tokens=tokens,
                folder=self.folder / _PIECES,
            )
            made.save(folder)
            return made

        return _kept(folder, lambda: LLMEnvironment.load(folder, lm), make)


def _quality(report: Mapping[str, Any], by_text: bool = False) -> list[str]:
    """Returns lines on what a tuned environment gets right on validation examples.

    Args:
        report: Of the environment.
        by_text: Whether item tokens from the texts are still to be tried.
    """
    if "pairs_right" not in report:
        return []
    rewards = f"{report['pairs_right']:.2f} ({report['pairs_right_by_popularity']:.2f})"
    choices = f"{report['choices_right']:.2f} ({report['choices_right_by_popularity']:.2f})"
    lines = [
        "Right on validation examples, and in brackets what preferring popular items gets: rewards "
        f"{rewards}, chance is 0.50; choices {choices}, chance is 0.20."
    ]
    weak = [
        name
        for name, figure, chance in (
            ("rewards", "pairs_right", 0.5),
            ("choices", "choices_right", 0.2),
        )
        if report[figure] < chance + _MARGIN
    ]
    if weak:
        lines.append(
            f"Beware: the {' and '.join(weak)} are hardly better than chance, so they cannot help "
            "a recommender; a larger --llm, or a larger --share, may know more."
        )
        if by_text:
            tried = " ".join(f"--tune {name}" for name in _BY_TEXT)
            lines.append(f"Where texts are long, the small model learns more from them by {tried}.")
    return lines


def _share(text: str) -> float:
    """Reads a share; an argparse ``type``."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(
            f"{text!r} came; expected a share of the users above 0 and up to 1, such as 0.1"
        )
    return share


def _kept(path: Path, load: Callable[[], T], make: Callable[[], T]) -> T:
    """Returns what is kept at a path, or makes it where it is not there or broken."""
    if path.exists():
        try:
            return load()
        except ArtefactError as error:
            logger.warning("%s It is made again.", error)
    return make()


def _small_config(arguments: argparse.Namespace) -> SmallModelConfig | None:
    """Returns the sizes of the small model; None where another one is asked for."""
    from llm_expert.environment.language_model import SmallModelConfig

    values = _fields(arguments.small, "--small", SmallModelConfig)
    if arguments.llm != SMALL:
        if values:
            raise DataError(
                f"--small came with --llm {arguments.llm}, expected it with the small model alone: "
                "leave it out."
            )
        return None
    return from_mapping(SmallModelConfig, values)


def _config(arguments: argparse.Namespace) -> EnvironmentConfig:
    """Returns how the environment is tuned."""
    from llm_expert.environment.environment import EnvironmentConfig

    flags = {
        "share": arguments.share,
        "epochs": arguments.epochs,
        "item_tokens": arguments.item_tokens,
        "state_loss": arguments.state_loss,
        "choice_loss": arguments.choice_loss,
    }
    if arguments.choice_loss is None:
        flags["choice_loss"] = arguments.llm == SMALL
    values = _fields(arguments.tune, "--tune", EnvironmentConfig)
    for name in flags:
        if name in values:
            flag = name.replace("_", "-")
            raise DataError(f"--tune {name}=... came; it has an option of its own: give --{flag}.")
    return from_mapping(EnvironmentConfig, {**flags, **values})


def _fields(given: list[str], flag: str, kind: type) -> dict[str, Any]:
    """Returns KEY=VALUE arguments as fields of a dataclass, having checked their types."""
    values = cl.json_pairs(given, flag)
    for item in fields(kind):
        if item.name in values:
            check_type(f"{flag} {item.name}", values[item.name], type(item.default))
    return values
