from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("recsim_env", "llm_expert", "ilrec_sb3")
HEAVY = {
    "recsim_env": {"stable_baselines3", "imitation", "langchain", "faiss", "llm_expert"},
    "llm_expert": {"stable_baselines3", "imitation", "ilrec_sb3"},
    "ilrec_sb3": {"langchain", "langchain_core", "faiss", "llm_expert"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_there(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    "path", [path for name in PACKAGES for path in modules(name)], ids=lambda path: path.stem
)
def test_init_files_only_import_and_modules_name_what_is_public(path: Path) -> None:
    """An `__init__.py` may also call one function: registration with Gymnasium."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    if path.name != "__init__.py":
        assert "__all__" in names or path.stem.startswith("_")
        return
    work = [
        node
        for node in tree.body[1:]
        if not isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign, ast.If))
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    ]
    assert work == []


@pytest.mark.parametrize("package", PACKAGES)
def test_import_stays_on_its_side(package: str) -> None:
    """In a process of its own, since this one has imported everything."""
    code = (
        f"import sys, {package}; print(*sorted({{m.split('.')[0] for m in sys.modules}}), sep=' ')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert set(run.stdout.split()) & HEAVY[package] == set()
