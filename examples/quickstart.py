"""Train ILRec on the built-in dataset and look at one session that it recommends."""

import gymnasium as gym

import recsim_env  # noqa: F401  (registers the environments)
from ilrec_sb3 import ILRec

# a small catalogue, so that this takes seconds; leave `options` out for the usual one
env = gym.make("IlRecSynthetic-v0", render_mode="ansi", options={"n_users": 100, "n_items": 60})
model = ILRec("MlpPolicy", env, warm_start_steps=100, seed=0).learn(1_500)

observation, _ = env.reset(seed=1)
over = False
while not over:
    masks = env.unwrapped.action_masks()
    action, _ = model.predict(observation, deterministic=True, action_masks=masks)
    observation, _, terminated, truncated, _ = env.step(action)
    over = terminated or truncated
print(env.render())
