from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, Version]:
    rows = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [row.split("==") for row in rows if row and not row.startswith("#")]
    return {canonical(package): Version(version) for package, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_entry_points_can_be_loaded() -> None:
    found = {
        point.name: point.load()
        for point in importlib.metadata.entry_points(group="ilrec.demonstrations")
    }
    assert {"steam", "amazon"} <= found.keys()
    assert all(callable(reader) for reader in found.values())


def test_the_console_script_is_there() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="ilrec")
    assert callable(script.load())


@pytest.mark.parametrize("package", ["recsim_env", "ilrec_sb3", "llm_expert"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_torch_is_the_first_pin() -> None:
    rows = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert next(row for row in rows if not row.startswith("#")).startswith("torch==")


def test_pins_hold_what_the_metadata_ask_for() -> None:
    """Save for the three bounds that only concern the set that imitation's own metadata lead to."""
    pinned = pins("requirements.txt") | pins("requirements-nodeps.txt")
    extras = PROJECT["optional-dependencies"]["dev"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        name = canonical(requirement.name)
        assert name in pinned, name
        if name not in {"huggingface-hub", "setuptools"}:
            assert pinned[name] in requirement.specifier, name


def test_docs_pins_hold_what_the_extra_asks_for() -> None:
    pinned = pins("requirements-docs.txt")
    for requirement in map(Requirement, PROJECT["optional-dependencies"]["docs"]):
        assert pinned[canonical(requirement.name)] in requirement.specifier


def test_no_package_is_pinned_twice() -> None:
    assert not pins("requirements.txt").keys() & pins("requirements-docs.txt").keys()


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )


def test_make_refuses_an_old_python_in_one_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.10" && exit 0\nexit 1\n',
        encoding="utf-8",
    )
    old.chmod(0o755)
    run = make(f"PYTHON={old}", f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/python")
    assert run.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in run.stdout
    assert "Python 3.8.10" in run.stdout


@pytest.mark.parametrize("target", ["demo", "test", "docs", "lint", "bench", "clean"])
def test_make_knows_its_targets(target: str) -> None:
    run = make("--dry-run", target)
    assert run.returncode == 0, run.stderr
