"""Sphinx configuration; built with warnings as errors by `make docs`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "ilrec"
author = "The ilrec authors"
project_copyright = "2026, The ilrec authors"
release = installed_version("ilrec")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ilrec {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

COMMANDS = ("", "demo", "prepare", "train", "evaluate")
"""Sub-commands whose help is shown on the page on the command line."""


def write_help(app: Any) -> None:
    """Writes what `ilrec ... --help` prints, so that the page cannot fall behind the program."""
    folder = Path(app.srcdir) / "_build" / "help"
    folder.mkdir(parents=True, exist_ok=True)
    for command in COMMANDS:
        arguments = [str(Path(sys.executable).with_name("ilrec")), *command.split(), "--help"]
        environment = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
        run = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
        text = "".join(line.rstrip() + "\n" for line in run.stdout.splitlines())
        (folder / f"{command or 'ilrec'}.txt").write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("builder-inited", write_help)
