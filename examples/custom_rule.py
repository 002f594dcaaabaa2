"""A session-end rule of your own: any object with a name that says where users leave."""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

import recsim_env  # noqa: F401  (registers the environments)
from ilrec_sb3 import ILRec
from recsim_env import RuleContext
from recsim_env.termination import window_counts


@dataclass(frozen=True)
class Monotony:
    """The user leaves when ``length`` items in a row share a category."""

    length: int = 3
    name: str = "monotony"

    def __call__(self, context: RuleContext) -> np.ndarray:
        """Returns (n,) True where the session ends with the item shown now."""
        before = window_counts(context.shown, context.steps, self.length - 1, context.categories)
        in_a_row = (before + 1) * context.categories[context.items]
        return in_a_row.max(axis=1) >= self.length


env = gym.make(
    "IlRecSynthetic-v0",
    termination=Monotony(),
    limit=20,
    render_mode="ansi",
    options={"n_users": 100, "n_items": 60},
)
model = ILRec("MlpPolicy", env, warm_start_steps=50, seed=0).learn(1_200)

observation, _ = env.reset(seed=0)
over = False
while not over:
    masks = env.unwrapped.action_masks()
    action, _ = model.predict(observation, deterministic=True, action_masks=masks)
    observation, _, terminated, truncated, info = env.step(action)
    over = terminated or truncated
print(env.render())
