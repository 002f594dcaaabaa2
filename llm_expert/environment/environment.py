"""A language model as the environment: states, rewards and choices of users (LEA, 3.2 and 3.4).

B is the batch, h the hidden size of the language model, m the number of rows asked for.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from llm_expert.environment.adapters import Adapter
from llm_expert.environment.chunks import ChunkFolder
from llm_expert.environment.item_tokens import (
    STARTS,
    ItemTokens,
    Start,
    item_tokens,
    text_vectors,
)
from llm_expert.environment.language_model import LanguageModel
from llm_expert.environment.losses import choice_loss, reward_loss, state_loss
from llm_expert.environment.practice import made_up_examples, nearest_items
from llm_expert.environment.prompts import POSITIONS, Prompts, PromptWriter
from llm_expert.environment.trees import plant, tree_mask
from llm_expert.environment.tuning_state import restored, tuning_state
from llm_expert.errors import LLMError
from recsim_env.artefacts import fingerprint_bytes, key, write_folder
from recsim_env.environment_feedback import sample_negatives
from recsim_env.errors import ArtefactError, DataError, near_miss
from recsim_env.sequences import Examples, IntArray, SequenceData
from recsim_env.settings import check_range, from_mapping

__all__ = ["Answers", "EnvironmentConfig", "LLMEnvironment", "popularity_figures"]

logger = logging.getLogger(__name__)

_FORMAT = 2
_N_CHOICES = len(POSITIONS)
_EXERCISES = 1_000
"""Made-up examples between two states that are kept."""
_MADE = "exercise_"
_HELD_OUT = 500
"""Most validation examples that the figures of the report are from."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """How a language model is tuned to be an environment.

    Attributes:
        share: Of the users whose train examples are used, in (0, 1]; the paper's is 0.1, and more
            helped little there.
        epochs: Passes over these examples; the paper's is 10.
        exercises: Made-up examples that come before them, in which users take what is like
            something that they took, by the words of the texts (see `made_up_examples`). They are
            for language models that have no sense of likeness, and use no data of users.
        batch_size: Examples in a step, which are each other's negatives in eq. 2; the paper's is
            20.
        learning_rate: Step size of Adam; 1e-4 is usual for models of billions of parameters, and
            small ones bear ten times as much or more.
        lora_rank: Of the adapter; 4 to 64. Raising it fits the examples closer.
        lora_alpha: The adapter's change is scaled by alpha / rank.
        lora_dropout: Share of the inputs that the adapter does not see in training.
        max_grad_norm: Gradients are scaled down to this norm.
        length: Most items of a history that the model reads.
        state_loss: Whether eq. 2 is trained; off in the paper's ablation -SM.
        item_tokens: Whether items are vectors; off, they are titles, as in the ablation -IT.
        choice_loss: Whether the choice among five is trained, too, which the paper does not do.
            See "choices_right" in the report before choices are used.
        calibrate_choice: Whether the mean logit of each position word, over lists in which every
            item stood anywhere, is taken off: language models favour places.
        title_tokens: Tokens of a title that are read where items are titles.
        text_tokens: Tokens of an item's text that its item token has to tell; the time that item
            tokens take grows with it.
        iterations: Steps that make the item tokens, where none are given; with 0 and "text" they
            are what their texts' tokens are in the mean, which takes no time.
        token_learning_rate: Of these steps.
        token_start: Where item tokens begin: "random" as in the paper, or "text" (see
            `item_tokens`).
    """

    share: float = 0.1
    epochs: int = 10
    exercises: int = 0
    batch_size: int = 20
    learning_rate: float = 1e-3
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    max_grad_norm: float = 1.0
    length: int = 10
    state_loss: bool = True
    item_tokens: bool = True
    choice_loss: bool = False
    calibrate_choice: bool = True
    title_tokens: int = 16
    text_tokens: int = 128
    iterations: int = 300
    token_learning_rate: float = 5e-3
    token_start: Start = "random"

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in (
            "epochs",
            "batch_size",
            "lora_rank",
            "length",
            "title_tokens",
            "text_tokens",
        ):
            if getattr(self, name) < 1:
                raise DataError(
                    f"EnvironmentConfig.{name} is {getattr(self, name)}, expected at least 1."
                )
        check_range(self, "learning_rate", "token_learning_rate", "max_grad_norm", least=1e-12)
        check_range(self, "iterations", "exercises", least=0)
        check_range(self, "lora_alpha", least=1)
        check_range(self, "lora_dropout", least=0.0, most=0.99)
        if self.token_start not in STARTS:
            raise DataError(
                f"EnvironmentConfig.token_start is {self.token_start!r}; "
                f"{near_miss(self.token_start, STARTS)}."
            )
        if not 0.0 < self.share <= 1.0:
            raise DataError(
                f"EnvironmentConfig.share is {self.share}, expected a share of the users above 0 "
                "and at most 1: for ten percent give 0.1."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Answers:
    """What an environment says of some histories.

    Attributes:
        states: (m, h) float32 s^e.
        rewards: (m, a) float32 of the actions asked for.
        logits: (m, 5) float32 of the position words, calibrated; None where no lists were given.
    """

    states: NDArray[np.float32]
    rewards: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None

    @property
    def choices(self) -> IntArray | None:
        """(m,) where in its list the item stands that was chosen; None where no lists were."""
        return None if self.logits is None else np.asarray(self.logits.argmax(axis=1), np.int64)


class LLMEnvironment:
    """A tuned language model that tells what users are like and what they would choose.

    The state s^e of a history is the last hidden state of the user prompt, the reward of an action
    is a linear score of the last hidden state of user and reward prompt (eq. 3 and 5), and the
    choice among five items is that of the position word with the highest logit after user and
    choice prompt (3.4). All three share one adapter, and what they have in common is computed once.

    Rewards are differences of log-odds: eq. 1 leaves them free up to a constant, which is chosen so
    that sampled items have the mean 0 on the examples tuned on, as they have in SNQN. The logits of
    the position words are taken less their means, or else a model that favours the first place
    chooses it whatever stands there (calibration as in Zhao et al., "Calibrate Before Use", 2021).

    Make one by `fit` or `load`.

    Attributes:
        config: How it was tuned.
        report: Losses by epoch and figures on validation examples (see `fit`).
        rows_at_once: Rows that go through the language model together; more need more memory.
    """

    def __init__(
        self,
        lm: LanguageModel,
        adapter: Adapter,
        config: EnvironmentConfig,
        *,
        titles: Sequence[str],
        noun: str,
        vectors: NDArray[np.float32],
        head: NDArray[np.float32],
        prompts: Prompts | None = None,
    ) -> None:
        self.lm, self.config = lm, config
        self.report: dict[str, Any] = {}
        self.rows_at_once = 64
        self._adapter = adapter
        self._titles, self._noun, self._prompts = tuple(titles), noun, prompts or Prompts()
        self._writer = PromptWriter(
            lm,
            self._titles,
            noun,
            self._prompts,
            item_tokens=config.item_tokens,
            title_tokens=config.title_tokens,
        )
        self._vectors_Nh = th.from_numpy(vectors).to(lm.device)
        self._head = th.nn.Parameter(th.from_numpy(head), requires_grad=False)
        self._offset = 0.0
        self._choice_offset = np.zeros(_N_CHOICES, np.float32)

    @property
    def n_items(self) -> int:
        """The number of items; as an index, padding."""
        return len(self._titles)

    @property
    def state_size(self) -> int:
        """Size of a state s^e."""
        return self.lm.hidden_size

    @property
    def fingerprint(self) -> str:
        """Hash of all that the answers depend on."""
        weights = [tensor.cpu().numpy().tobytes() for tensor in self._adapter.state().values()]
        arrays = [self._vectors_Nh.cpu().numpy().tobytes(), self._head.detach().numpy().tobytes()]
        return fingerprint_bytes(
            json.dumps(self._settings(), sort_keys=True).encode(), *weights, *arrays
        )

    def __repr__(self) -> str:
        """Returns sizes, not weights."""
        return f"LLMEnvironment({self.lm!r}, n_items={self.n_items}, {self.config!r})"

    @classmethod
    def fit(
        cls,
        lm: LanguageModel,
        data: SequenceData,
        config: EnvironmentConfig | None = None,
        seed: int = 0,
        progress: bool = True,
        *,
        tokens: ItemTokens | None = None,
        prompts: Prompts | None = None,
        folder: str | Path | None = None,
    ) -> LLMEnvironment:
        """Tunes a language model on a share of the users.

        Each step adds eq. 1, with one sampled item for each example, and eq. 2; the sampled items
        are drawn anew in every epoch. The report has the means of the losses by epoch
        ("reward_loss", "state_loss", "choice_loss"; of exercises by 1,000, "exercise_reward_loss"
        and so on), "examples" and "users", "seconds", the mean rewards of chosen and sampled items
        on the examples tuned on, and on at most 500 validation examples "pairs_right", the share
        where the chosen item has a higher reward than a sampled one (0.5 by chance),
        "choices_right" among the chosen and four sampled ones (0.2), both also for whoever prefers
        what was chosen more often in the examples tuned on ("_by_popularity"), "choices_by_place",
        how often it chose each place, and "state_hr_at_10", how often the chosen item is among the
        ten whose vectors have the largest inner product with the state.

        Args:
            lm: The language model. It gets an adapter of its own and is else left as it is.
            data: The sequences; examples of its "train" part are tuned on.
            config: Settings; None takes the default.
            seed: Of the users drawn, the initial weights, the order and the sampled items.
            progress: Shows progress bars.
            tokens: Item tokens; None makes them, which can take longer than the tuning. They are
                not needed where items are titles.
            prompts: The templates; None takes the default.
            folder: Keeps where the tuning stands after each epoch, and batches of item tokens, so
                that the same call goes on where it was stopped; None keeps nothing.

        Raises:
            DataError: No train examples, or item tokens of another catalogue or model.
            LLMError: The language model gave a loss that is not finite.
        """
        config = config or EnvironmentConfig()
        vectors = _vectors(lm, data, config, tokens, seed, progress, folder)
        started = time.perf_counter()
        rng = np.random.default_rng(seed)
        chosen = _share(data.examples("train", config.length), config.share, rng)
        adapter = Adapter(
            lm, config.lora_rank, config.lora_alpha, config.lora_dropout, int(rng.integers(2**31))
        )
        head = rng.normal(0.0, lm.hidden_size**-0.5, lm.hidden_size).astype(np.float32)
        environment = cls(
            lm,
            adapter,
            config,
            titles=data.titles,
            noun=data.noun,
            vectors=vectors,
            head=head,
            prompts=prompts,
        )
        source = key(
            format=_FORMAT,
            lm=lm.fingerprint,
            data=data.fingerprint,
            config=asdict(config),
            prompts=asdict(environment._prompts),
            vectors=fingerprint_bytes(vectors.tobytes()),
            seed=seed,
        )
        # tried while the adapter does nothing yet: with its dropout no two passes agree
        logger.debug("several prompts share a row: %s", lm.takes_trees)
        nearest = _nearest(lm, data, config.text_tokens) if config.exercises else None
        kept = ChunkFolder(folder, "tuning", source)
        losses = environment._tune(chosen, nearest, rng, progress, kept)
        sampled = environment._set_offsets(chosen, rng)
        held_out = data.examples("valid", config.length)
        environment.report = {
            "examples": len(chosen),
            "users": len(np.unique(chosen.users)),
            **losses,
            **sampled,
            **environment._figures(_some(held_out, rng), rng),
            **popularity_figures(_some(held_out, rng), chosen, rng),
            "seconds": round(time.perf_counter() - started, 2),
        }
        logger.info("environment tuned: %s", environment.report)
        return environment

    def states(self, histories: ArrayLike) -> NDArray[np.float32]:
        """Returns the states of users (LEA, eq. 3).

        Args:
            histories: (m, length) items, oldest first, padded with `n_items`; the last
                `config.length` of a row are read.

        Returns:
            (m, h) float32.

        Raises:
            DataError: An unknown item, or a row without an item.
            LLMError: The language model gave numbers that are not finite.
        """
        return self.ask(histories).states

    def rewards(self, histories: ArrayLike, actions: ArrayLike) -> NDArray[np.float32]:
        """Returns the rewards of actions (LEA, eq. 5).

        Args:
            histories: As for `states`.
            actions: (m,) or (m, a) items.

        Returns:
            float32 of the shape of `actions`.

        Raises:
            DataError: An unknown item, or a row without an item.
            LLMError: The language model gave numbers that are not finite.
        """
        asked = np.asarray(actions)
        answers = self.ask(histories, asked[:, None] if asked.ndim == 1 else asked)
        return answers.rewards.reshape(asked.shape)

    def choose(self, histories: ArrayLike, candidates: ArrayLike) -> IntArray:
        """Returns the items that users would choose next out of five (LEA, 3.4).

        Args:
            histories: As for `states`.
            candidates: (m, 5) items.

        Returns:
            (m,) int64 items.

        Raises:
            DataError: An unknown item, or a row without an item.
            LLMError: The language model gave numbers that are not finite.
        """
        lists = np.asarray(candidates)
        places = self.ask(histories, candidates=lists).choices
        assert places is not None
        chosen: IntArray = lists[np.arange(len(lists)), places].astype(np.int64)
        return chosen

    def ask(
        self,
        histories: ArrayLike,
        actions: ArrayLike | None = None,
        candidates: ArrayLike | None = None,
    ) -> Answers:
        """Returns states, rewards and choices, computing what they share once.

        Args:
            histories: As for `states`.
            actions: (m, a) items to be rewarded; None: none.
            candidates: (m, 5) items to choose from; None: no choice.

        Raises:
            DataError: An unknown item, or a row without an item.
            LLMError: The language model gave numbers that are not finite.
        """
        rows = self._checked(histories)
        m = len(rows)
        if actions is None:
            actions = np.empty((m, 0), np.int64)
        asked = self._checked_items("actions", actions, m, None)
        lists = None
        if candidates is not None:
            lists = self._checked_items("candidates", candidates, m, _N_CHOICES)
        states = np.zeros((m, self.state_size), np.float32)
        rewards = np.zeros(asked.shape, np.float32)
        logits = None if lists is None else np.zeros((m, _N_CHOICES), np.float32)
        prefixes = [self._writer.user(row) for row in rows]
        # Prompts of like length share a pass, so that little of it is padding.
        order = np.argsort([len(prefix) for prefix in prefixes], kind="stable")
        with th.inference_mode(), self._adapter.at_work():
            for at in range(0, m, self.rows_at_once):
                part = order[at : at + self.rows_at_once]
                found = self._pass(
                    [prefixes[row] for row in part],
                    asked[part],
                    None if lists is None else lists[part],
                )
                states[part] = found[0].cpu().numpy()
                rewards[part] = found[1].cpu().numpy()
                if logits is not None:
                    logits[part] = found[2].cpu().numpy()
        self._check_finite(states, rewards, logits)
        return Answers(states, rewards, logits)

    def _pass(
        self,
        prefixes: Sequence[list[int]],
        actions: IntArray,
        candidates: IntArray | None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Returns (B, h) states, (B, a) rewards and (B, 5) logits; these (B, 0) without lists."""
        branches = [[self._writer.reward(int(item)) for item in row] for row in actions]
        if candidates is not None:
            for own, row in zip(branches, candidates, strict=True):
                own.append(self._writer.choice([int(item) for item in row]))
        ends_Bkh = self._ends(prefixes, branches)
        n_actions = actions.shape[1]
        states_Bh = ends_Bkh[:, 0].float()
        head = self._head.to(ends_Bkh.device)
        rewards_Ba = ends_Bkh[:, 1 : 1 + n_actions].float() @ head - self._offset
        if candidates is None:
            return states_Bh, rewards_Ba, rewards_Ba.new_zeros(len(prefixes), 0)
        logits_B5 = self.lm.logits(ends_Bkh[:, -1], self._writer.position_tokens)
        logits_B5 = logits_B5 - th.from_numpy(self._choice_offset).to(logits_B5.device)
        return states_Bh, rewards_Ba, logits_B5

    def _ends(
        self, prefixes: Sequence[list[int]], branches: Sequence[list[list[int]]]
    ) -> th.Tensor:
        """Returns (B, 1 + k, h), the last hidden states of the prefixes and of their branches."""
        n_branches = len(branches[0])
        if n_branches and not self.lm.takes_trees:
            return self._ends_one_by_one(prefixes, branches)
        forest = plant(prefixes, branches)
        segments, codes, positions, ends = (
            th.from_numpy(array).to(self.lm.device)
            for array in (forest.segments, forest.codes, forest.positions, forest.ends)
        )
        inputs_BTh = self._embed(codes)
        if n_branches:
            mask = tree_mask(segments, self.lm.dtype)
            hidden_BTh = self.lm.hidden(inputs_BTh, mask, positions)
        else:
            hidden_BTh = self.lm.hidden(inputs_BTh)
        index_Bk1 = ends.to(hidden_BTh.device)[..., None]
        return hidden_BTh.gather(1, index_Bk1.expand(-1, -1, hidden_BTh.shape[-1]))

    def _ends_one_by_one(
        self, prefixes: Sequence[list[int]], branches: Sequence[list[list[int]]]
    ) -> th.Tensor:
        """Does what `_ends` does with a row for each branch."""
        n_branches = len(branches[0])
        rows = [
            prefix + branch
            for prefix, own in zip(prefixes, branches, strict=True)
            for branch in own
        ]
        forest = plant(rows, [[]] * len(rows))
        hidden = self.lm.hidden(self._embed(th.from_numpy(forest.codes).to(self.lm.device)))
        number = th.arange(len(rows), device=hidden.device)
        lasts = hidden[number, th.from_numpy(forest.ends[:, 0]).to(hidden.device)]
        own_ends = th.tensor([len(prefix) - 1 for prefix in prefixes], device=hidden.device)
        firsts = hidden[number[::n_branches], own_ends]
        return th.cat([firsts[:, None], lasts.unflatten(0, (len(prefixes), n_branches))], 1)

    def _embed(self, codes_BT: th.Tensor) -> th.Tensor:
        """Returns (B, T, h) token embeddings and item vectors in the model's type."""
        items_BT = codes_BT - self.lm.vocabulary
        tokens_BTh = self.lm.embed(codes_BT.clamp(max=self.lm.vocabulary - 1))
        vectors_BTh = self._vectors_Nh[items_BT.clamp(min=0)].to(tokens_BTh.dtype)
        return th.where((items_BT >= 0)[..., None], vectors_BTh, tokens_BTh)

    def _tune(
        self,
        chosen: Examples,
        nearest: IntArray | None,
        rng: np.random.Generator,
        progress: bool,
        kept: ChunkFolder,
    ) -> dict[str, list[float]]:
        """Trains adapter and head from where it stands; returns the mean losses by pass.

        The exercises come first, in passes of their own, each made up anew. `nearest` is for them.
        """
        config = self.config
        exercises = [
            min(_EXERCISES, config.exercises - at) for at in range(0, config.exercises, _EXERCISES)
        ]
        passes = [*exercises, *[len(chosen)] * config.epochs]
        steps = [-(-size // config.batch_size) for size in passes]
        self._head.requires_grad_(True)
        with self._adapter.at_work(training=True):
            weights = [*self._adapter.parameters(), self._head]
            optimiser = th.optim.Adam(weights, lr=config.learning_rate)
            history: dict[str, list[float]] = {}
            with (
                tqdm(
                    total=sum(steps), desc="LLM environment", unit="step", disable=not progress
                ) as bar,
                th.random.fork_rng(devices=[]),
            ):
                th.manual_seed(int(rng.integers(2**31)))  # for the adapter's dropout
                found, done = kept.load(0), 0
                if found is not None:
                    history = restored(found, weights, optimiser, rng)
                    done = sum(len(history.get(f"{name}reward_loss", ())) for name in ("", _MADE))
                    bar.update(sum(steps[:done]))
                    logger.info("tuning goes on after pass %d of %d", done, len(passes))
                for number in range(done, len(passes)):
                    examples, kind = chosen, ""
                    if number < len(exercises):
                        assert nearest is not None
                        kind = _MADE
                        examples = made_up_examples(nearest, passes[number], config.length, rng)
                    means = self._epoch(examples, rng, optimiser, weights, bar)
                    for name, value in means.items():
                        history.setdefault(f"{kind}{name}", []).append(value)
                    kept.save(0, tuning_state(weights, optimiser, rng, history))
                    logger.info("pass %d of %d: %s", number + 1, len(passes), means)
        self._head.requires_grad_(False)
        return history

    def _epoch(
        self,
        chosen: Examples,
        rng: np.random.Generator,
        optimiser: th.optim.Optimizer,
        weights: Sequence[th.nn.Parameter],
        bar: tqdm[Any],
    ) -> dict[str, float]:
        """Passes once over the examples; returns the mean losses."""
        size = self.config.batch_size
        order = rng.permutation(len(chosen))
        sampled, lists, places = _opponents(chosen, self.config.choice_loss, rng)
        totals: dict[str, float] = {}
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            terms = self._losses(
                chosen, rows, sampled, None if lists is None else lists[rows], places
            )
            loss = th.stack(list(terms.values())).sum()
            if not bool(th.isfinite(loss)):
                raise LLMError(
                    f"The language model {self.lm.name} gave the loss {float(loss.detach()):g} in "
                    "tuning, expected a finite one: lower learning_rate, or load the model in "
                    "bfloat16 or float32."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            th.nn.utils.clip_grad_norm_(weights, self.config.max_grad_norm)
            optimiser.step()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + float(term.detach()) * len(rows)
            bar.update()
            bar.set_postfix(
                {name: f"{float(term.detach()):.3f}" for name, term in terms.items()},
                refresh=False,
            )
        return {name: round(total / len(order), 5) for name, total in totals.items()}

    def _losses(
        self,
        chosen: Examples,
        rows: IntArray,
        sampled: IntArray,
        lists: IntArray | None,
        places: IntArray,
    ) -> dict[str, th.Tensor]:
        """Returns the losses of a batch by name."""
        targets = chosen.targets[rows]
        prefixes = [self._writer.user(row) for row in self._items_of(chosen.histories[rows])]
        actions = np.column_stack([targets, sampled[rows]])
        states_Bh, rewards_B2, logits_B5 = self._pass(prefixes, actions, lists)
        terms = {"reward_loss": reward_loss(rewards_B2[:, 0], rewards_B2[:, 1])}
        if self.config.state_loss:
            vectors_Bh = self._vectors_Nh[th.from_numpy(targets)].to(states_Bh.device)
            terms["state_loss"] = state_loss(states_Bh, vectors_Bh)
        if lists is not None:
            wanted = th.from_numpy(places[rows]).to(logits_B5.device)
            terms["choice_loss"] = choice_loss(logits_B5, wanted)
        return terms

    def _set_offsets(self, chosen: Examples, rng: np.random.Generator) -> dict[str, float]:
        """Sets what is taken off rewards and logits; returns the mean rewards.

        Sampled items have the mean reward 0, and each place the mean logit 0 over lists of the
        chosen item and four sampled ones in any order.
        """
        some = _some(chosen, rng)
        sampled, lists, _ = _opponents(some, True, rng)
        actions = np.column_stack([some.targets, sampled])
        answers = self.ask(some.histories, actions, lists)
        rewards, logits = answers.rewards, answers.logits
        assert logits is not None
        self._offset += float(rewards[:, 1].mean())
        if self.config.calibrate_choice:
            centred = logits - logits.mean(axis=1, keepdims=True)
            self._choice_offset = self._choice_offset + centred.mean(axis=0)
        return {
            "reward_of_chosen": round(float((rewards[:, 0] - rewards[:, 1].mean()).mean()), 4),
            "reward_of_sampled": 0.0,
            "reward_spread": round(float(rewards.std()), 4),
        }

    def _figures(self, held_out: Examples, rng: np.random.Generator) -> dict[str, Any]:
        """Returns what the report says of examples that were not tuned on."""
        if not len(held_out):
            return {}
        sampled, lists, places = _opponents(held_out, True, rng)
        actions = np.column_stack([held_out.targets, sampled])
        answers = self.ask(held_out.histories, actions, lists)
        assert answers.choices is not None
        scores = answers.states @ self._vectors_Nh.cpu().numpy().T
        own = scores[np.arange(len(scores)), held_out.targets]
        ranks = (scores > own[:, None]).sum(1)
        margins = answers.rewards[:, 0] - answers.rewards[:, 1]
        by_place = np.bincount(answers.choices, minlength=_N_CHOICES) / len(held_out)
        return {
            "held_out": len(held_out),
            "pairs_right": round(float(np.mean(margins > 0)), 4),
            "choices_right": round(float(np.mean(answers.choices == places)), 4),
            "choices_by_place": [round(float(share), 4) for share in by_place],
            "state_hr_at_10": round(float((ranks < 10).mean()), 4),
        }

    def _checked(self, histories: ArrayLike) -> list[list[int]]:
        """Returns the items of each row, the last ones and without padding."""
        given = np.asarray(histories)
        if given.ndim != 2 or not np.issubdtype(given.dtype, np.integer):
            raise DataError(
                f"Histories of shape {given.shape} and type {given.dtype} came, expected (m, "
                "length) integers: give one row of items for each user."
            )
        bad = ((given < 0) | (given > self.n_items)).any(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"The history of row {row} has an unknown item ({given[row].tolist()}), expected "
                f"items from 0 to {self.n_items - 1} and {self.n_items} for padding: check that "
                "it is of the same catalogue."
            )
        empty = (given == self.n_items).all(axis=1)
        if empty.any():
            raise DataError(
                f"The history of row {int(empty.argmax())} is padding only, expected at least one "
                "item: leave such rows out."
            )
        return self._items_of(given)

    def _items_of(self, histories: NDArray[Any]) -> list[list[int]]:
        return [
            [item for item in row if item != self.n_items][-self.config.length :]
            for row in histories.tolist()
        ]

    def _checked_items(self, name: str, items: ArrayLike, m: int, width: int | None) -> IntArray:
        """Returns (m, width) items as int64."""
        given = np.asarray(items)
        wanted = f"({m}, {'any number' if width is None else width})"
        if (
            given.ndim != 2
            or len(given) != m
            or width not in (None, given.shape[1])
            or not np.issubdtype(given.dtype, np.integer)
        ):
            raise DataError(
                f"{name} of shape {given.shape} and type {given.dtype} came with {m} histories, "
                f"expected {wanted} integers: give items for each row."
            )
        bad = np.asarray((given < 0) | (given >= self.n_items)).any(axis=1)
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{name} of row {row} has an unknown item ({given[row].tolist()}), expected items "
                f"from 0 to {self.n_items - 1}: check that they are of the same catalogue."
            )
        checked: IntArray = given.astype(np.int64)
        return checked

    def _check_finite(
        self,
        states: NDArray[np.float32],
        rewards: NDArray[np.float32],
        logits: NDArray[np.float32] | None,
    ) -> None:
        bad = ~(np.isfinite(states).all(1) & np.isfinite(rewards).all(1))
        if logits is not None:
            bad |= ~np.isfinite(logits).all(1)
        if bad.any():
            raise LLMError(
                f"The language model {self.lm.name} gave numbers that are not finite for row "
                f"{int(bad.argmax())} (and {int(bad.sum()) - 1} more of {len(states)}), expected "
                "finite states and rewards: load it in bfloat16 or float32, or tune it again with "
                "a lower learning_rate."
            )

    def _settings(self) -> dict[str, Any]:
        """Returns all that is no array."""
        return {
            "format": _FORMAT,
            "config": asdict(self.config),
            "prompts": asdict(self._prompts),
            "language_model": self.lm.fingerprint,
            "titles": list(self._titles),
            "noun": self._noun,
            "offset": self._offset,
            "choice_offset": [float(value) for value in self._choice_offset],
        }

    def save(self, folder: str | Path) -> Path:
        """Writes all but the language model, whole or not at all.

        Args:
            folder: Where to; a folder that is there is replaced. Its folder "adapter" is one that
                peft can load, too.

        Returns:
            The folder.
        """

        def write(target: Path) -> None:
            arrays = {
                "vectors": np.ascontiguousarray(self._vectors_Nh.cpu().numpy()),
                "head": self._head.detach().numpy(),
            }
            save_file(arrays, target / "environment.safetensors")
            about = {**self._settings(), "report": self.report, "language_model_name": self.lm.name}
            text = json.dumps(about, indent=1, sort_keys=True)
            (target / "environment.json").write_text(text, encoding="utf-8")
            self._adapter.save(target / "adapter")

        return write_folder(folder, write)

    @classmethod
    def load(cls, folder: str | Path, lm: LanguageModel) -> LLMEnvironment:
        """Reads what `save` wrote.

        Args:
            folder: Where from.
            lm: The language model that was tuned.

        Raises:
            ArtefactError: Something is missing or broken, or the language model is another one.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            arrays = load_file(folder / "environment.safetensors")
            if about["language_model"] != lm.fingerprint:
                raise ArtefactError(
                    f"{folder} was tuned on the language model {about['language_model_name']!r} "
                    f"({about['language_model'][:12]}), but {lm.name!r} ({lm.fingerprint[:12]}) "
                    "came: load the one that it was tuned on, in the same number type."
                )
            config = from_mapping(EnvironmentConfig, about["config"])
            adapter = Adapter(lm, config.lora_rank, config.lora_alpha, config.lora_dropout)
            adapter.load(folder / "adapter")
            environment = cls(
                lm,
                adapter,
                config,
                titles=about["titles"],
                noun=about["noun"],
                vectors=arrays["vectors"],
                head=arrays["head"],
                prompts=from_mapping(Prompts, about["prompts"]),
            )
            environment._offset = float(about["offset"])
            environment._choice_offset = np.array(about["choice_offset"], np.float32)
            environment.report = dict(about["report"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"{folder} does not hold a whole environment ({error}), expected what "
                "LLMEnvironment.save wrote: tune it again."
            ) from error
        return environment


def _vectors(
    lm: LanguageModel,
    data: SequenceData,
    config: EnvironmentConfig,
    tokens: ItemTokens | None,
    seed: int,
    progress: bool,
    folder: str | Path | None,
) -> NDArray[np.float32]:
    """Returns (n_items, h): item tokens, or the means of the titles' embeddings for eq. 2."""
    shape = (data.n_items, lm.hidden_size)
    if config.item_tokens:
        found = tokens or item_tokens(
            lm,
            data,
            iterations=config.iterations,
            learning_rate=config.token_learning_rate,
            max_tokens=config.text_tokens,
            start=config.token_start,
            seed=seed,
            folder=folder,
            progress=progress,
        )
        if found.vectors.shape != shape:
            raise DataError(
                f"Item tokens of shape {found.vectors.shape} came, expected {shape} for this "
                "catalogue and language model: make them of both."
            )
        return found.vectors.astype(np.float32)
    vectors = np.zeros(shape, np.float32)
    for number, title in enumerate(data.titles):
        ids = lm.continuation(f" {title}", config.title_tokens)
        if ids:
            embedded = lm.embed(th.tensor(ids)).float().mean(0)
            vectors[number] = embedded.cpu().numpy()
    return vectors


def _nearest(lm: LanguageModel, data: SequenceData, most: int) -> IntArray:
    """Returns which items have texts of like tokens."""
    table = lm.model.get_input_embeddings().weight.detach().float().cpu().numpy()
    texts = [lm.continuation(f" {text}", most) for text in data.texts]
    return nearest_items(text_vectors(table, texts) - table.mean(axis=0))


def _share(examples: Examples, share: float, rng: np.random.Generator) -> Examples:
    """Returns all examples of a share of the users, of at least one."""
    users = np.unique(examples.users)
    if not len(users):
        raise DataError(
            "The data have no train examples, expected some to tune the environment on: check the "
            "split."
        )
    count = max(1, round(share * len(users)))
    taken = rng.choice(users, size=count, replace=False)
    return examples.take(np.flatnonzero(np.isin(examples.users, taken)))


def _some(examples: Examples, rng: np.random.Generator) -> Examples:
    """Returns as many examples as figures are made of."""
    if len(examples) <= _HELD_OUT:
        return examples
    return examples.take(np.sort(rng.choice(len(examples), _HELD_OUT, replace=False)))


def _opponents(
    examples: Examples, with_lists: bool, rng: np.random.Generator
) -> tuple[IntArray, IntArray | None, IntArray]:
    """Draws sampled items (m,) and lists of five with the target, and says where it stands."""
    m = len(examples)
    drawn = sample_negatives(examples, _N_CHOICES if with_lists else 1, int(rng.integers(2**31)))
    if not with_lists:
        return drawn[:, 0], None, np.zeros(m, np.int64)
    order = rng.permuted(np.tile(np.arange(_N_CHOICES), (m, 1)), axis=1)
    lists = np.take_along_axis(np.column_stack([examples.targets, drawn[:, 1:]]), order, axis=1)
    return drawn[:, 0], lists, (order == 0).argmax(axis=1)


def popularity_figures(
    held_out: Examples, chosen: Examples, rng: np.random.Generator
) -> dict[str, float]:
    """Returns what preferring what was chosen more often in ``chosen`` would get right."""
    if not len(held_out):
        return {}
    counts = np.bincount(chosen.targets, minlength=chosen.n_items)
    sampled, lists, places = _opponents(held_out, True, rng)
    assert lists is not None
    own = counts[held_out.targets]
    pairs = np.where(own == counts[sampled], 0.5, own > counts[sampled])
    best = counts[lists] == counts[lists].max(axis=1, keepdims=True)
    hits = best[np.arange(len(best)), places] / best.sum(axis=1)
    return {
        "pairs_right_by_popularity": round(float(pairs.mean()), 4),
        "choices_right_by_popularity": round(float(hits.mean()), 4),
    }
