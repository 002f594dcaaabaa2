"""An agent on a language model plays; ILRec learns from its sessions.

`offline` is a stand-in that needs no network. Name a model in its place, such as
"openai:gpt-4o-mini", "ollama:llama3.1" or "http://localhost:8000/v1", and nothing else changes.
"""

import sys
from pathlib import Path

import gymnasium as gym

import recsim_env  # noqa: F401  (registers the environments)
from ilrec_sb3 import ILRec
from llm_expert import CollectConfig, collect, make_chat_model

LLM = sys.argv[1] if len(sys.argv) > 1 else "offline"
ENV_OPTIONS = {"options": {"n_users": 100, "n_items": 60}, "limit": 20}

env = gym.make("IlRecSynthetic-v0", **ENV_OPTIONS)
chat = make_chat_model(LLM, prepared=env.unwrapped.dynamics.prepared)
config = CollectConfig("billp", "IlRecSynthetic-v0", ENV_OPTIONS, episodes=20, parallel=10)
# Stop it whenever you like: the same call goes on where it stopped, and pays for no answer twice.
collected = collect(config, chat, Path("runs") / f"billp-{chat.spec.split(':')[0]}")
print(f"{config.agent} on {chat.spec}: mean return {collected.report['mean_return']:.1f}")

first = collected.trajectories[0]
titles = env.unwrapped.dynamics.prepared.dataset.catalogue.titles
for step, item in enumerate(first.actions[:3]):
    print(f"thought: {first.extras['thought'][step]}")
    print(f"said {first.extras['raw_action'][step]!r}, shown {titles[item]!r}")

demonstrations = str(collected.path)
model = ILRec("MlpPolicy", env, demonstrations=demonstrations, warm_start_steps=50, seed=0)
model.learn(1_200)
print(f"ILRec learned from {len(collected.trajectories)} sessions")
