"""Fixtures of several test files: a small prepared dataset, and the real data if there."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

import pytest
import torch as th

from recsim_env import Dynamics, Prepared, prepare
from recsim_env.datasets import load
from recsim_env.termination import make_rules

th.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ILREC_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(cache: Path) -> Prepared:
    """A small synthetic dataset, prepared."""
    dataset = load("synthetic", n_users=60, n_items=40, seed=3)
    return prepare(dataset, cache=cache, progress=False)


@pytest.fixture
def dynamics(prepared: Prepared) -> Dynamics:
    """Dynamics of the small dataset under the category rule, train rewards."""
    return Dynamics(prepared, split="train", rules=make_rules(), limit=100)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data; the test skips where it is not there."""
    candidates = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if "ILREC_DATA" in os.environ:
        candidates.insert(0, Path(os.environ["ILREC_DATA"]))
    for folder in candidates:
        if (folder / "steam").is_dir():
            return folder
    pytest.skip("the real data are not there: set ILREC_DATA to their folder to run this test")
