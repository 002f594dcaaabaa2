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
    """An `__init__.py` may also call functions: lazy imports, registration with Gymnasium."""
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


@pytest.mark.parametrize("module", ["recsim_env", "recsim_env.command_line", "ilrec_sb3.cli"])
def test_the_command_line_starts_without_what_takes_seconds(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert {"torch", "sklearn", "pandas", "stable_baselines3"} & set(run.stdout.split()) == set()


def test_help_imports_no_language_model_library() -> None:
    code = "import sys, ilrec_sb3.cli; ilrec_sb3.cli.main([]); print(*sys.modules, file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "usage: ilrec" in run.stdout
    assert {"langchain", "langchain_core", "faiss", "torch"} & set(run.stderr.split()) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_lazy_names_are_those_of_the_submodules(package: str) -> None:
    """In a process of its own: names that are also submodules depend on what came first."""
    code = f"""
import sys, importlib, {package} as package
origins = vars(package)["_origins"]
for path in set(origins.values()):
    importlib.import_module(path)
for name, path in origins.items():
    assert getattr(package, name) is getattr(sys.modules[path], name), name
assert set(origins) <= set(package.__all__) <= set(dir(package))
try:
    package.nothing
except AttributeError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == f"module {package!r} has no attribute 'nothing'"


def test_submodules_are_attributes_without_an_import_of_their_own() -> None:
    code = "import recsim_env; print(recsim_env.planners.__name__, callable(recsim_env.prepare))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.split() == ["recsim_env.planners", "True"]
