"""Train another algorithm on the same environment: MaskablePPO of sb3-contrib, on 64 sessions."""

from sb3_contrib import MaskablePPO

from ilrec_sb3 import RecVecEnv
from ilrec_sb3.evaluation import as_planner, summarise
from recsim_env import Dynamics, RecVectorEnv, load, prepare
from recsim_env.planners import random_policy, run_episodes
from recsim_env.termination import make_rules

prepared = prepare(load("synthetic", n_users=100, n_items=60))
train = Dynamics(prepared, split="train", rules=make_rules())
test = Dynamics(prepared, split="test", rules=make_rules())

env = RecVecEnv(RecVectorEnv(64, dynamics=train))
model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=256, seed=0, device="cpu")
model.learn(6_000)

# evaluated on the other world model, which was fitted on other interactions
for name, policy in (("random", random_policy), ("MaskablePPO", as_planner(model, test))):
    played = run_episodes(test, policy, n_episodes=200, seed=0)
    found = summarise(played)
    print(
        f"{name:12} {found.length:5.1f} items, return {found.mean_return:5.1f} "
        f"({found.low:.1f} to {found.high:.1f})"
    )
