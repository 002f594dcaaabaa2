"""Packages whose public names are imported when they are first asked for.

torch, scikit-learn and Stable-Baselines3 take seconds to import. A command line that imported them
to print its help would be slow, and Ctrl-C in that time would end in a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["lazy_names"]


class _LazyPackage(ModuleType):
    """A package that knows where its public names come from."""

    _origins: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        """Imports a public name, or a submodule."""
        if name in self._origins:
            value = getattr(import_module(self._origins[name]), name)
            super().__setattr__(name, value)
            return value
        path = f"{self.__name__}.{name}"
        try:
            if not name.startswith("_"):
                return import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self
        )

    def __setattr__(self, name: str, value: object) -> None:
        """Sets an attribute, unless it is the submodule of the same name as a public name.

        Importing ``recsim_env.prepare`` binds the module to the package. The function is what
        ``recsim_env.prepare`` has to be.
        """
        if not (name in self._origins and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._origins})


def lazy_names(package: str, names: Mapping[str, Sequence[str]]) -> None:
    """Makes names of submodules attributes of a package, without importing the submodules.

    Args:
        package: ``__name__`` of the package that is being imported.
        names: Submodule -> the names that the package takes from it.
    """
    module = sys.modules[package]
    vars(module)["_origins"] = {
        name: f"{package}.{submodule}" for submodule, taken in names.items() for name in taken
    }
    module.__class__ = _LazyPackage
