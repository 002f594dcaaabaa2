"""Train a recommender on what a small language model says about users and items."""

from ilrec_sb3.lea import LEA, top_items
from llm_expert.environment import (
    EnvironmentConfig,
    LLMEnvironment,
    SmallModelConfig,
    choice_exercises,
    practice_sentences,
    precompute,
    small_language_model,
)
from recsim_env.environment_feedback import sample_negatives
from recsim_env.sequences import load_sequences

# made-up products whose parts follow each other: an HR@1 of 0.7 is about the best there is
data = load_sequences("synthetic", n_users=100, n_items=24)
examples = data.examples("train")

# a language model of the catalogue's own text; load_language_model("...") takes any other
# with the default sizes and 2,500 steps of exercises it learns to choose, in a quarter of an hour
sizes = SmallModelConfig(
    vocabulary=420, hidden=32, layers=2, intermediate=64, epochs=2, exercise_steps=20
)
texts = [*data.texts, *practice_sentences(data, 100)]
language_model = small_language_model(texts, choice_exercises(data), config=sizes, progress=False)

# tuned on a part of the users, it becomes the environment
config = EnvironmentConfig(share=0.2, epochs=2, iterations=20)
environment = LLMEnvironment.fit(language_model, data, config, progress=False)

# it chooses among the best items of a recommender that learned without it
normal = LEA("GRU4Rec", data, "Normal", learning_rate=0.01, evaluate_every=50, seed=0)
normal.learn(150)
feedback = precompute(
    environment,
    examples,
    negatives=sample_negatives(examples, 5, seed=0),
    candidates=top_items(normal, examples),
    progress=False,
)

# from here on no language model is asked
leasr = LEA("GRU4Rec", data, "SNQN-LEASR", feedback, learning_rate=0.01, evaluate_every=100, seed=0)
leasr.learn(300)

for model in (normal, leasr):
    print(f"{model.variant.name:12} HR@5 on the test users: {model.evaluate('test')['HR@5']:.3f}")
print("next after items 0, 1, 2:", [data.titles[item] for item in leasr.predict([[0, 1, 2]], 3)[0]])
