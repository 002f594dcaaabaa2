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

COMMANDS = ("", "demo", "prepare", "collect", "train", "evaluate", "benchmark")
LEA = ("lea prepare", "lea train", "lea evaluate", "lea benchmark")
"""Sub-commands whose help is shown on the page on the command line."""


def write_help(app: Any) -> None:
    """Writes what `ilrec ... --help` prints, so that the page cannot fall behind the program."""
    folder = Path(app.srcdir) / "_build" / "help"
    folder.mkdir(parents=True, exist_ok=True)
    for command in (*COMMANDS, *LEA):
        arguments = [str(Path(sys.executable).with_name("ilrec")), *command.split(), "--help"]
        environment = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
        run = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
        text = "".join(line.rstrip() + "\n" for line in run.stdout.splitlines())
        name = command.replace(" ", "_") or "ilrec"
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def write_recorded_session(app: Any) -> None:
    """Writes a recorded session where the data are there; they may not be passed on, so it is not
    part of the sources.
    """
    examples = Path(app.srcdir).parent / "examples"
    places = [Path(app.srcdir).parents[1] / "shared" / "data"]
    if "ILREC_DATA" in os.environ:
        places.insert(0, Path(os.environ["ILREC_DATA"]))
    data = next((place for place in places if (place / "llm_demos").is_dir()), None)
    text = (
        "*This page was built without the recorded sessions, which may not be passed on. With "
        "them* `python examples/recorded_session.py DATA` *tells one.*"
    )
    if data is not None:
        command = [sys.executable, str(examples / "recorded_session.py"), str(data)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    target = Path(app.srcdir) / "_build" / "recorded_session.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def write_model_specs(app: Any) -> None:
    """Writes the table of the forms in which a language model is named."""
    from llm_expert import known_specs

    target = Path(app.srcdir) / "_build" / "known_specs.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(known_specs() + "\n", encoding="utf-8")


def setup(app: Any) -> None:
    for write in (write_help, write_recorded_session, write_model_specs):
        app.connect("builder-inited", write)
