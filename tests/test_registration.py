"""The environments by name: what is registered, and what happens where the data are not there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import recsim_env
from recsim_env import (
    DataError,
    MissingDataError,
    PrepareConfig,
    Prepared,
    RecEnv,
    RecVectorEnv,
    simulator,
)
from recsim_env.encoders import EncoderConfig
from recsim_env.registration import EASYRL4REC, ENVIRONMENTS
from recsim_env.termination import CategoryDiversity
from recsim_env.world_model import WorldModelConfig

WITH_DATA = ("IlRecAmazon-v0", "IlRecCoat-v0", "IlRecMovieLens-v0", "IlRecSteam-v0")
SMALL = {"n_users": 60, "n_items": 40, "seed": 3}
"""Options of the synthetic dataset that the fixture `prepared` prepared."""

BARELY_TRAINED = PrepareConfig(
    world_model=WorldModelConfig(members=1, max_epochs=1),
    encoder=EncoderConfig(dim=4, max_epochs=1),
)


@pytest.fixture
def small(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """Lets the small prepared dataset stand in for the synthetic one; others are looked for."""
    real = simulator.prepare

    def prepare(dataset: Any, **kwargs: Any) -> Prepared:
        return prepared if dataset == "synthetic" else real(dataset, **kwargs)

    monkeypatch.setattr(simulator, "prepare", prepare)
    monkeypatch.setattr(simulator, "_said", set())
    return prepared


def test_the_names() -> None:
    assert sorted(ENVIRONMENTS) == [
        *WITH_DATA[:2],
        "IlRecCustom-v0",
        *WITH_DATA[2:],
        "IlRecSynthetic-v0",
    ]
    assert all(name in gym.registry for name in (*ENVIRONMENTS, EASYRL4REC))
    recsim_env.register_envs()  # a second time changes nothing and warns of nothing


@pytest.mark.filterwarnings("ignore:.*infinity")
@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_gymnasium_and_stable_baselines_accept_each(
    name: str, small: Prepared, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"data": tmp_path, "progress": False, "limit": 6}
    if name == "IlRecCustom-v0":
        arguments["dataset"] = small.dataset
    env = gym.make(name, render_mode="ansi", **arguments)
    check_env(env.unwrapped)
    sb3_check_env(gym.make(name, **arguments))
    assert isinstance(env.unwrapped, RecEnv)
    assert env.unwrapped.dynamics.n_items == 40


@pytest.mark.parametrize("name", WITH_DATA)
def test_the_fallback_is_told_once_with_the_way_to_the_real_data(
    name: str, small: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="recsim_env"):
        env = gym.make(name, data=tmp_path, progress=False)
        gym.make_vec(name, num_envs=2, data=tmp_path, progress=False)
    assert env.unwrapped.dynamics.prepared is small
    (record,) = [r for r in caplog.records if r.name == "recsim_env.simulator"]
    told = record.getMessage()
    for part in ("synthetic", ENVIRONMENTS[name]["dataset"], "ILREC_DATA", "data=", str(tmp_path)):
        assert part in told


def test_the_fallback_keeps_the_rule_of_the_dataset_asked_for(
    small: Prepared, tmp_path: Path
) -> None:
    del small
    windows = {}
    for name in ("IlRecSteam-v0", "IlRecAmazon-v0"):
        rule = gym.make(name, data=tmp_path, progress=False).unwrapped.dynamics.rules[0]
        assert isinstance(rule, CategoryDiversity)
        windows[name] = (rule.window, rule.max_repeats)
    assert windows == {"IlRecSteam-v0": (50, 4), "IlRecAmazon-v0": (15, 4)}


def test_without_the_fallback_missing_data_are_an_error(small: Prepared, tmp_path: Path) -> None:
    del small
    with pytest.raises(MissingDataError, match="steam"):
        gym.make("IlRecSteam-v0", data=tmp_path, fallback=False, progress=False)
    with pytest.raises(MissingDataError, match="steam"):
        RecEnv("steam", data=tmp_path, progress=False)


def test_custom_asks_for_a_dataset() -> None:
    with pytest.raises(DataError, match="give `dataset=`"):
        gym.make("IlRecCustom-v0")
    with pytest.raises(DataError, match="no-such-set"):
        gym.make("IlRecCustom-v0", dataset="no-such-set")


def test_synthetic_takes_the_options_of_its_dataset(prepared: Prepared, cache: Path) -> None:
    env = gym.make("IlRecSynthetic-v0", options=SMALL, cache=cache, progress=False)
    assert env.unwrapped.dynamics.prepared.fingerprint == prepared.fingerprint
    env.reset(seed=0)
    assert not env.step(3)[3]


def test_make_vec_gives_the_batched_environment(small: Prepared) -> None:
    name, arguments = "IlRecSynthetic-v0", {"progress": False, "split": "test"}
    if gym.__version__.startswith("0."):  # there it is asked for, and its arguments go another way
        arguments["dataset"] = "synthetic"
        vector = gym.make_vec(name, 3, vectorization_mode="custom", vector_kwargs=arguments)
        with pytest.raises(TypeError, match="dataset"):
            gym.make_vec(name, 3, vectorization_mode="custom")
    else:
        vector = gym.make_vec(name, 3, **arguments)
        short = gym.make_vec(name, 2, progress=False, max_episode_steps=5)
        assert short.unwrapped.dynamics.limit == 5
    assert isinstance(vector.unwrapped, RecVectorEnv)
    assert vector.num_envs == 3
    assert vector.unwrapped.dynamics.split == "test"
    assert vector.unwrapped.dynamics.prepared is small
    vector.reset(seed=0)
    rewards = vector.step(np.zeros(3, int))[1]
    assert rewards.shape == (3,)
    vector.close()


def test_make_vec_can_also_copy_the_single_environment(small: Prepared) -> None:
    del small
    vector = gym.make_vec(
        "IlRecSynthetic-v0", num_envs=2, vectorization_mode="sync", progress=False
    )
    observations, _ = vector.reset(seed=5)
    batched, _ = RecVectorEnv(2, "synthetic", progress=False).reset(seed=5)
    np.testing.assert_allclose(observations, batched, atol=1e-5)
    vector.close()


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*infinity")
@pytest.mark.parametrize("name", WITH_DATA)
def test_the_real_environments(
    name: str,
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On the real data, with models that are trained as little as can be."""
    real = simulator.prepare
    monkeypatch.setattr(simulator, "prepare", lambda *a, **k: real(*a, **k, config=BARELY_TRAINED))
    options = {"min_item": 40} if name == "IlRecAmazon-v0" else {}
    arguments: dict[str, Any] = {"data": real_data, "cache": tmp_path, "options": options}
    with caplog.at_level(logging.WARNING, logger="recsim_env"):
        env = gym.make(name, fallback=False, progress=False, render_mode="ansi", **arguments)
    assert not [r for r in caplog.records if r.name == "recsim_env.simulator"]
    check_env(env.unwrapped, skip_render_check=True)
    sb3_check_env(env)
    _, info = env.reset(seed=0)
    reward = env.step(int(np.flatnonzero(info["action_mask"])[0]))[1]
    assert 1.0 <= reward <= 5.0
    assert not env.unwrapped.dynamics.prepared.dataset.is_synthetic
