"""What the commands of ``ilrec`` share, whichever package they come from.

Three entry-point groups add to the command line:

- ``ilrec.commands``: a callable that gets the sub-parsers and adds a command of its own;
- ``ilrec.players``: a `Player`, which ``ilrec evaluate`` lets play beside saved models;
- ``ilrec.environments``: a `FeedbackSource`, which ``ilrec lea prepare`` asks.

Their modules are imported for every ``ilrec --help``: heavy imports belong into functions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recsim_env.errors import DataError

if TYPE_CHECKING:
    from recsim_env.dynamics import Dynamics
    from recsim_env.environment_feedback import EnvironmentFeedback
    from recsim_env.planners import Played
    from recsim_env.sequences import Examples, IntArray, SequenceData

__all__ = [
    "FeedbackSource",
    "Player",
    "add_common",
    "add_data",
    "add_grid",
    "add_later",
    "add_raw_data",
    "device",
    "grid_made",
    "json_pairs",
    "pairs",
    "positive",
    "say",
    "seed",
    "show",
]


class Player(Protocol):
    """Who can be played by ``ilrec evaluate`` without being a saved model."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds options that choose and set up the player."""

    def chosen(self, arguments: argparse.Namespace) -> bool:
        """Returns whether the command line asks for the player."""

    def play(
        self, arguments: argparse.Namespace, dynamics: Dynamics, episodes: int, seed: int
    ) -> list[Played]:
        """Plays sessions of the users of `recsim_env.planners.draw_users`, in their order.

        Args:
            arguments: The command line.
            dynamics: Where to play.
            episodes: How many sessions.
            seed: Draws the users.

        Returns:
            One entry for each row of the table.
        """


class FeedbackSource(Protocol):
    """Who says what an environment thinks of each train example of a sequential recommender."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds options that set up the environment.

        Each has a default, and its destination is its name, as a benchmark's grid writes it.
        """

    def settings(self, arguments: argparse.Namespace) -> Mapping[str, Any]:
        """Returns, in terms of JSON, all that the feedback depends on beside data and candidates.

        Args:
            arguments: The command line.

        Raises:
            IlrecError: An option cannot be used.
        """

    def check(self, arguments: argparse.Namespace) -> None:
        """Refuses, before anything takes long, what cannot be done on this machine.

        Args:
            arguments: The command line.

        Raises:
            IlrecError: A device, a package or a file is not there.
        """

    def feedback(
        self,
        arguments: argparse.Namespace,
        data: SequenceData,
        examples: Examples,
        candidates: IntArray,
        folder: Path,
        progress: bool,
        say: Callable[[str], None],
    ) -> EnvironmentFeedback:
        """Makes what is missing in a folder and computes the feedback.

        Args:
            arguments: The command line.
            data: The sequences.
            examples: m train examples.
            candidates: (m, 5) items for the environment to choose from.
            folder: Keeps what takes long, of other settings too: what is there is not made again.
            progress: Shows progress bars.
            say: Takes lines that tell how good it is.
        """


# -- arguments -------------------------------------------------------------------------------------


def add_later(subparsers: Any, name: str, fill: str, **about: Any) -> None:
    """Adds a command that gets its options when it is chosen.

    For commands in packages whose import takes seconds: the help of all commands need not wait.

    Args:
        subparsers: Of the program.
        name: Of the command.
        fill: "module:function"; the function adds options to the parser that it is given.
        **about: Of the parser, such as ``help``.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(name, **about)
    module, _, function = fill.partition(":")

    def parse(*given: Any, **named: Any) -> Any:
        del vars(parser)["parse_known_args"]
        getattr(importlib.import_module(module), function)(parser)
        return parser.parse_known_args(*given, **named)

    vars(parser)["parse_known_args"] = parse


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cache``, ``--no-progress`` and ``--verbose``.

    Args:
        parser: Of a command.
    """
    parser.add_argument("--cache", metavar="DIR", help="where prepared data are kept")
    parser.add_argument(
        "--no-progress", dest="progress", action="store_false", help="no progress bars"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="log more, and show tracebacks of errors"
    )


def add_raw_data(parser: argparse.ArgumentParser) -> None:
    """Adds ``--data``.

    Args:
        parser: Of a command.
    """
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder with the raw data (default: ILREC_DATA, else the user cache directory)",
    )


def add_data(
    parser: argparse.ArgumentParser,
    default: str | None = None,
    said: str = "synthetic",
    names: Sequence[str] = ("synthetic", "steam", "amazon", "coat", "movielens"),
) -> None:
    """Adds ``--dataset``, ``--data`` and ``--option``.

    Args:
        parser: Of a command.
        default: Name of the dataset where none is given.
        said: What the help says of that.
        names: Of the datasets that the command knows.
    """
    parser.add_argument(
        "--dataset",
        default=default,
        metavar="NAME",
        help=f"{', '.join(names)}, or a name that you prepared (default: {said})",
    )
    add_raw_data(parser)
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the dataset, such as min_user=10; may be repeated",
    )


def add_grid(
    parser: argparse.ArgumentParser, folder: str, rows: str, parts: tuple[str, str], fresh: str
) -> None:
    """Adds what all commands have that make the cells of a grid.

    Args:
        parser: Of a command.
        folder: Where a run goes by itself.
        rows: What the help of ``--only`` says.
        parts: The option that picks a part of the grid and what its help says.
        fresh: What the help of ``--fresh`` says.
    """
    parser.add_argument("grid", metavar="GRID.toml", help="what to make")
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="processes (default: 1)"
    )
    parser.add_argument("--out", metavar="DIR", help=f"folder of the run (default: {folder})")
    add_raw_data(parser)
    parser.add_argument("--only", nargs="+", default=[], metavar="LABEL", help=rows)
    parser.add_argument(parts[0], nargs="+", default=[], metavar="NAME", help=parts[1])
    parser.add_argument("--fresh", action="store_true", help=fresh)
    parser.add_argument(
        "--report-only", action="store_true", help="make no cell, only the report of those there"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be made, and make nothing"
    )
    add_common(parser)


def grid_made(report: object, failed: int) -> int:
    """Says what became of a grid, and returns the exit code.

    Args:
        report: Its path, None without one.
        failed: How many cells failed.
    """
    if report is not None:
        say(f"Report: {report}")
    if failed:
        say(f"{failed} cells failed; the same command tries them again.")
    return 1 if failed else 0


def pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """Returns KEY=VALUE arguments as a dictionary; the last one of a key counts.

    Args:
        values: What came.
        flag: The option that it came with, such as ``--set``.

    Raises:
        DataError: For what has no key or no ``=``.
    """
    result = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not (key and equals):
            raise DataError(f"{flag} {value} came; expected KEY=VALUE.")
        result[key] = content
    return result


def json_pairs(values: Sequence[str], flag: str) -> dict[str, Any]:
    """Returns KEY=VALUE arguments as a dictionary; values are read as JSON where they are.

    Args:
        values: What came.
        flag: The option that it came with.

    Raises:
        DataError: For what has no key or no ``=``.
    """
    result: dict[str, Any] = {}
    for key, content in pairs(values, flag).items():
        try:
            result[key] = json.loads(content)
        except ValueError:
            result[key] = content
    return result


def positive(text: str) -> int:
    """Reads a whole number of 1 or more, such as ``10_000``; an argparse ``type``."""
    try:
        number = int(text.replace("_", "").replace(",", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} came; expected a whole number of 1 or more")
    return number


def seed(text: str) -> int:
    """Reads a whole number of 0 or more; an argparse ``type``."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} came; expected a whole number of 0 or more")
    return int(text)


def device(text: str) -> str:
    """Reads the name of a device; an argparse ``type``."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} came; expected cpu, cuda, cuda:1 or auto")
    return text


# -- output ----------------------------------------------------------------------------------------


def show(markdown: str) -> None:
    """Prints markdown: rendered on a terminal, as it is into a file or pipe."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:
        sys.stdout.write(markdown + "\n")
    sys.stdout.flush()


def say(line: str) -> None:
    """Prints a line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
