"""The main path on whatever versions are installed: make, check, learn, load, predict, collect."""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import stable_baselines3
from stable_baselines3.common.env_checker import check_env

import ilrec_sb3
import recsim_env
from ilrec_sb3 import ILRec
from llm_expert import CollectConfig, collect, make_chat_model


def main() -> None:
    """Runs the path and prints the versions it ran on."""
    env = gym.make("IlRecSynthetic-v0", progress=False)
    check_env(env.unwrapped)
    model = ILRec("MlpPolicy", env, seed=0).learn(total_timesteps=500)
    observation, _ = env.reset(seed=1)
    masks = env.unwrapped.action_masks()
    action, _ = model.predict(observation, action_masks=masks, deterministic=True)
    if not masks[int(action)]:
        raise AssertionError("the chosen item is masked")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save(path)
        again, _ = ILRec.load(path, env=env).predict(
            observation, action_masks=masks, deterministic=True
        )
    if int(again) != int(action):
        raise AssertionError(f"saved: item {int(action)}, loaded: item {int(again)}")
    chat = make_chat_model("offline", prepared=env.unwrapped.dynamics.prepared)
    with tempfile.TemporaryDirectory() as folder:
        config = CollectConfig("billp", "IlRecSynthetic-v0", {"progress": False}, episodes=3)
        collected = collect(config, chat, folder, progress=False)
    if len(collected.trajectories) != 3:
        raise AssertionError(f"3 sessions were asked for, {len(collected.trajectories)} came")
    for module in (gym, stable_baselines3, np, recsim_env, ilrec_sb3):
        print(module.__name__, getattr(module, "__version__", ""), Path(module.__file__).parent)


if __name__ == "__main__":
    main()
