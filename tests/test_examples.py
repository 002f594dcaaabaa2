from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAYS = {
    "custom_rule.py": "ended by",
    "lea.py": "SNQN-LEASR",
    "llm_agent.py": "ILRec learned from 20 sessions",
    "own_data.py": "recommended first: Book no.",
    "quickstart.py": "items, return",
    "sb3_baseline.py": "MaskablePPO",
}
SAYS_WITH_DATA = {"recorded_session.py": "*Thought.*"}


def test_every_example_is_listed() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted({**SAYS, **SAYS_WITH_DATA})


@pytest.fixture(scope="module")
def example_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("example-cache")


def run(name: str, *arguments: str, cwd: Path, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "ILREC_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example_runs_offline(name: str, tmp_path: Path, example_cache: Path) -> None:
    assert SAYS[name] in run(name, cwd=tmp_path, cache=example_cache)


@pytest.mark.realdata
@pytest.mark.parametrize("name", sorted(SAYS_WITH_DATA))
def test_example_runs_on_real_data(
    name: str, tmp_path: Path, example_cache: Path, real_data: Path
) -> None:
    found = run(name, str(real_data), cwd=tmp_path, cache=example_cache)
    assert SAYS_WITH_DATA[name] in found
