"""A language model as the environment of a recommender: states, rewards and augmented actions."""

from llm_expert.environment.environment import Answers, EnvironmentConfig, LLMEnvironment
from llm_expert.environment.item_tokens import ItemTokens, item_tokens
from llm_expert.environment.language_model import (
    LanguageModel,
    SmallModelConfig,
    load_language_model,
    small_language_model,
)
from llm_expert.environment.losses import choice_loss, reward_loss, state_loss
from llm_expert.environment.practice import choice_exercises, practice_sentences
from llm_expert.environment.precompute import precompute
from llm_expert.environment.prompts import POSITIONS, Prompts, PromptWriter

__all__ = [
    "POSITIONS",
    "Answers",
    "EnvironmentConfig",
    "ItemTokens",
    "LLMEnvironment",
    "LanguageModel",
    "PromptWriter",
    "Prompts",
    "SmallModelConfig",
    "choice_exercises",
    "choice_loss",
    "item_tokens",
    "load_language_model",
    "practice_sentences",
    "precompute",
    "reward_loss",
    "small_language_model",
    "state_loss",
]
