"""What is fitted to the data does not depend on how a processor rounds."""

import json
import os
import subprocess
import sys

import pytest

FIT = """
import json
import numpy as np
from recsim_env.datasets import load
from recsim_env.encoders import EncoderConfig, fit_encoder
from recsim_env.world_model import WorldModel, WorldModelConfig

data = load("synthetic", n_users=150, n_items=60, seed=1)
rows = np.ones(len(data.interactions), bool)
model = WorldModel.fit(data, rows, WorldModelConfig(members=2), progress=False)
_, report = fit_encoder(data, rows, EncoderConfig(max_epochs=4, batch_size=16), progress=False)
figures = [model.report["rmse"], model.rows().std(dtype=float), report["rating_rmse"]]
print(json.dumps([model.report["epochs"], report["hr_at_10"], *figures]))
"""
# The plainest code paths of torch, oneDNN and MKL, where these are in use.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX2 FMA3",
}


def fitted(**environment: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return [float(value) for value in json.loads(done.stdout)]


def test_world_model_and_tracker_are_the_same_on_every_processor() -> None:
    assert fitted(**PLAIN) == pytest.approx(fitted(), rel=1e-6)
