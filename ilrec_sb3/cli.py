"""The command ``ilrec``: prepare data, train, evaluate, and the whole thing in one go."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ilrec_sb3.allocator import keep_freed_memory
from recsim_env import command_line as cl
from recsim_env.errors import DataError, IlrecError, MissingDataError, near_miss

__all__ = ["main"]

_COMMANDS = "ilrec.commands"
_PLAYERS = "ilrec.players"
_INTERRUPTED = 130
logger = logging.getLogger(__name__)

_EPILOG = """\
examples:
  ilrec demo                                        the whole thing on made-up data, in minutes
  ilrec demo --dataset steam --data ~/data          the same on real data
  ilrec prepare --interactions plays.csv --items games.csv --name mine
  ilrec train --dataset mine --steps 50000 --out runs/mine
  ilrec evaluate runs/mine
  ilrec benchmark benchmarks/grids/smoke.toml

`ilrec COMMAND --help` tells more. Exit codes: 0 done, 1 something in the data or settings was
not usable (one sentence says what), 2 a wrong command line, 130 stopped by Ctrl-C (the same
command goes on where it can).
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations that suggests the near miss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints one sentence and ends with exit code 2."""
        found = re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)", message)
        if found:
            choices = re.findall(r"[\w.-]+", found.group(2))
            message = f"{found.group(1)!r} is not known; {near_miss(found.group(1), choices)}"
        super().error(message)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Refuses arguments that nobody knows."""
        options = [o for o in self._option_string_actions if o.startswith("--")]
        name = unknown[0].split("=")[0]
        self.error(f"there is no option {name!r}; {near_miss(name, options)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; None: those of the process.

    Returns:
        The exit code: 0 done, 1 data or settings that cannot be used, 130 stopped by Ctrl-C. Wrong
        usage ends the process with 2.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = argparse.Namespace(command=None, verbose=False)
    try:
        return _run(given, arguments)
    except KeyboardInterrupt:
        again = "The same command goes on with what is finished"
        sys.stderr.write(f"\nStopped. {getattr(arguments, 'resume', again)}.\n")
        return _INTERRUPTED
    except BrokenPipeError:
        return 1
    except (IlrecError, ValueError, OSError) as error:
        if arguments.verbose or arguments.command is None:
            raise
        sys.stderr.write(f"ilrec {arguments.command}: {_sentence(error)}\n")
        return 1


def _run(given: Sequence[str], arguments: argparse.Namespace) -> int:
    """Runs a command line and returns its exit code.

    Args:
        given: The arguments without the program's name.
        arguments: Filled with what they say, so that the caller knows it whatever happens.
    """
    parser, commands = _parser()
    _, unknown = parser.parse_known_args(given, arguments)
    if unknown:
        commands.get(arguments.command or "", parser).refuse(unknown)
    if arguments.command is None:
        parser.print_help()
        return 0
    arguments.argv = ["ilrec", *given]
    _set_up_logging(arguments.verbose)
    # read when torch is first imported: the matrices are small, and threads would spend more time
    # waiting for each other than they save
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    return int(arguments.run(arguments) or 0)


def _sentence(error: Exception) -> str:
    """Returns what an error has to say to whoever typed the command."""
    if isinstance(error, OSError) and not isinstance(error, IlrecError) and error.filename:
        reason = str(error.strerror or type(error).__name__).lower()
        return (
            f"{error.filename} cannot be read or written ({reason}); choose another place, such as "
            "with --out or --cache."
        )
    return str(error)


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", force=True
    )
    if not verbose:
        # Stable-Baselines3 advises CPUs over GPUs and the like: nothing that a reader here can act
        # on
        warnings.filterwarnings("ignore", category=UserWarning, module="stable_baselines3")


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """Returns the parser and those of its commands by name."""
    parser = _Parser(
        prog="ilrec",
        description=(
            "Recommender simulators learned from data, demonstrations by language models, and "
            "IL-Rec,\nwhich learns from both to recommend over whole sessions."
        ),
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"ilrec {_version()}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    for add in (_add_demo, _add_prepare, _add_train, _add_evaluate, _add_benchmark):
        add(subparsers)
    cl.add_later(
        subparsers,
        "lea",
        "ilrec_sb3.lea.commands:add_commands",
        help="recommenders that learn from a language model's feedback",
        description=(
            "LEA: sequential recommenders that learn by SNQN or SA2C, with a language model as\n"
            "the environment. It gives states, rewards and further positive items once,\n"
            "beforehand; the small recommender alone serves."
        ),
        epilog=(
            "in this order:\n"
            "  ilrec lea prepare --out runs/feedback                       made-up data\n"
            "  ilrec lea train --feedback runs/feedback --out runs/leasr\n"
            "  ilrec lea train --variant SA2C --out runs/sa2c              without feedback\n"
            "  ilrec lea evaluate runs/sa2c runs/leasr\n"
            "ilrec lea STEP --help has the options of a step."
        ),
    )
    _plug_in(_COMMANDS, lambda add: add(subparsers))
    commands: dict[str, _Parser] = dict(subparsers.choices)
    return parser, commands


def _plug_in(group: str, use: Callable[[Any], object]) -> None:
    """Hands each entry point of a group over, sorted by name; one that fails is told and left out.

    Args:
        group: Name of the group.
        use: Gets what the entry point stands for.
    """
    for entry in sorted(importlib.metadata.entry_points(group=group), key=lambda e: e.name):
        try:
            use(entry.load())
        except (ImportError, AttributeError, argparse.ArgumentError) as error:
            reason = " ".join(str(error).split())
            logger.warning("%r of %s cannot be loaded: %s", entry.name, group, reason)


def _version() -> str:
    try:
        return importlib.metadata.version("ilrec")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# -- ilrec demo ------------------------------------------------------------------------------------


def _add_demo(subparsers: Any) -> None:
    parser: _Parser = subparsers.add_parser(
        "demo",
        help="the whole thing: data, demonstrations, training, one table",
        description=(
            "Prepares the data, takes demonstrations, trains ILRec and its competitors for the\n"
            "same number of env steps, lets everyone recommend to the same users of the test\n"
            "world model, and prints one table. All of it is written to runs/<time>-<dataset>/."
        ),
        epilog=(
            "examples:\n"
            "  ilrec demo                       made-up data: a few minutes on 2 cores\n"
            "  ilrec demo --quick               a glimpse in well under a minute of training\n"
            "  ilrec demo --dataset steam --data ~/data --steps 100000 --seeds 0 1 2\n"
            "Ctrl-C loses the training that is running; the same command goes on with the rest.\n"
        ),
    )
    cl.add_data(parser)
    parser.add_argument(
        "--steps", type=cl.positive, metavar="N", help="env steps of each training (default: 10000)"
    )
    parser.add_argument(
        "--seeds",
        type=cl.seed,
        nargs="+",
        metavar="S",
        help="one training for each (default: 0 1 2)",
    )
    parser.add_argument(
        "--algorithms",
        nargs="+",
        metavar="NAME",
        help="what to train (default: DQN A2C DiscreteSAC ILRec; others: see ilrec train)",
    )
    parser.add_argument(
        "--episodes",
        type=cl.positive,
        metavar="N",
        help="sessions everyone is judged by (default: 500)",
    )
    parser.add_argument("--device", type=cl.device, metavar="NAME", help="cpu, cuda or auto")
    parser.add_argument(
        "--config", metavar="FILE", help="settings as JSON, such as runs/<id>/config.json"
    )
    parser.add_argument(
        "--out", default="runs", metavar="DIR", help="where runs go (default: runs)"
    )
    parser.add_argument("--run", dest="run_name", metavar="NAME", help="name of the run's folder")
    parser.add_argument("--quick", action="store_true", help="2,000 steps, one seed, 100 sessions")
    parser.add_argument(
        "--fresh", action="store_true", help="start anew, also where one could go on"
    )
    cl.add_common(parser)
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from ilrec_sb3.experiment import ExperimentConfig, run_experiment

    values: dict[str, Any] = {}
    if arguments.config:
        values = _read_json(Path(arguments.config))
    config = ExperimentConfig.from_dict(values)
    if arguments.quick:
        config = replace(config, steps=2_000, seeds=(0,), episodes=100, curve_points=8)
    asked = {
        name: getattr(arguments, name)
        for name in ("dataset", "data", "steps", "episodes", "device")
        if getattr(arguments, name) is not None
    }
    for name in ("seeds", "algorithms"):
        if getattr(arguments, name) is not None:
            asked[name] = tuple(getattr(arguments, name))
    config = replace(config, **asked)
    _check_dataset(config.dataset, arguments.cache)
    if arguments.option:
        config = replace(config, options=_options(arguments, config.dataset))
    cl.say(
        f"Dataset {config.dataset}: prepared the first time, which takes seconds for thousands of "
        "interactions and minutes for millions, then found again."
    )
    result = run_experiment(
        config,
        arguments.out,
        cache=arguments.cache,
        name=arguments.run_name,
        command=arguments.argv,
        fresh=arguments.fresh,
        progress=arguments.progress,
        say=cl.say,
    )
    cl.say("")
    cl.show(result.table)
    cl.say("")
    for line in result.findings:
        cl.say(line)
    cl.say(f"\nAll of it, with the plot curves.png: {result.folder}")
    return 0


def _check_dataset(name: str, cache: str | None) -> None:
    """Refuses the name of a dataset that there is none of, before anything is said or done."""
    from recsim_env.datasets import load_custom, names

    if name not in names():
        load_custom(name, cache)


def _options(arguments: argparse.Namespace, name: str | None) -> dict[str, Any]:
    """Returns the options of a dataset; refuses those for a dataset of the user's own.

    Args:
        arguments: With ``option`` and ``cache``.
        name: Of the dataset; None: it is not known yet.
    """
    options = cl.json_pairs(arguments.option, "--option")
    if options and name is not None:
        from recsim_env.datasets import custom_names, names

        if name not in names() and name in custom_names(arguments.cache):
            raise _own_takes_none(arguments.option[0], name)
    return options


def _own_takes_none(option: str, name: str) -> DataError:
    return DataError(
        f"--option {option} came for {name!r}, a dataset of your own, and options belong to "
        "datasets that are known by name, such as steam: leave it out, and say how your tables "
        "are read when you prepare them (ilrec prepare --help)."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingDataError(f"{path} is not there; name a file of settings.") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); expected an object of settings.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}; expected an object of settings.")
    return content


# -- ilrec prepare ---------------------------------------------------------------------------------


def _add_prepare(subparsers: Any) -> None:
    parser: _Parser = subparsers.add_parser(
        "prepare",
        help="make a dataset ready: world models, state tracker, model card",
        description=(
            "Reads a dataset by name, or your own two tables (CSV or parquet), learns the world\n"
            "models and the state tracker, keeps them, and prints what is in the data and how\n"
            "good the models are. Interactions need the columns user, item and one of rating,\n"
            "hours or clicks (order or time helps); items need item, title and categories\n"
            "(text helps)."
        ),
        epilog=(
            "examples:\n"
            "  ilrec prepare synthetic\n"
            "  ilrec prepare steam --data ~/data --option min_user=10\n"
            "  ilrec prepare --interactions plays.csv --items games.csv --name mine\n"
            "  ilrec prepare --interactions p.csv --items g.csv --name mine \\\n"
            "      --column user=client --rating-column stars --rating-scale 0 10\n"
            'then: gymnasium.make("IlRecCustom-v0", dataset="mine") or ilrec train --dataset mine\n'
        ),
    )
    parser.add_argument("dataset", nargs="?", metavar="NAME", help="a dataset by its name")
    parser.add_argument("--data", metavar="DIR", help="folder with the raw data")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the dataset"
    )
    own = parser.add_argument_group("your own data")
    own.add_argument("--interactions", metavar="FILE", help="table of who did what")
    own.add_argument("--items", metavar="FILE", help="table of the items")
    own.add_argument("--name", metavar="N", help="what the dataset is called from now on")
    own.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="name of a column of the interactions, such as user=client; may be repeated",
    )
    own.add_argument(
        "--item-column",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="the same for the items, such as categories=genres",
    )
    own.add_argument("--rating-column", metavar="NAME", help="short for --column rating=NAME")
    own.add_argument(
        "--rating-scale",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="lowest and highest rating that your scale has (default: guessed)",
    )
    own.add_argument("--signal", choices=("rating", "hours", "clicks"), help="which column to use")
    own.add_argument("--separator", help="what parts categories given as text")
    own.add_argument("--default-category", metavar="NAME", help="for items without a category")
    own.add_argument("--min-user", type=cl.positive, default=1, help="rows that a user must have")
    own.add_argument("--min-item", type=cl.positive, default=1, help="rows that an item must have")
    cl.add_common(parser)
    parser.set_defaults(run=_prepare, parser=parser)


def _prepare(arguments: argparse.Namespace) -> int:
    from recsim_env.card import card_table
    from recsim_env.prepare import prepare

    own = [arguments.interactions, arguments.items, arguments.name]
    if (arguments.dataset is None) == (not any(own)):
        arguments.parser.error(
            "give either the NAME of a dataset or --interactions, --items and --name"
        )
    arguments.resume = "Nothing half-made is kept; the same command starts over"
    if arguments.dataset is None and not all(own):
        arguments.parser.error("your own data need --interactions, --items and --name, all three")
    if arguments.dataset is None:
        if arguments.option:
            raise _own_takes_none(arguments.option[0], arguments.name)
        name, options = _prepare_own(arguments), {}
    else:
        name, options = arguments.dataset, _options(arguments, arguments.dataset)
    prepared = prepare(
        name,
        root=arguments.data,
        cache=arguments.cache,
        progress=arguments.progress,
        options=options,
    )
    cl.say(prepared.dataset.table())
    cl.say("")
    cl.show(card_table(prepared.card))
    cl.say(f"Kept in {prepared.path}")
    held_out = [prepared.card["world_model"][split] for split in ("train", "test")]
    if all("rmse" in e and e["rmse"] >= e["biases"]["rmse"] for e in held_out):
        cl.say(
            "Beware: neither world model beats user and item biases on held-out ratings. A policy "
            "trained here\nlearns when users leave, and little about taste; more interactions "
            "for each user would help."
        )
    if arguments.dataset is None:
        cl.say(f'Next: gymnasium.make("IlRecCustom-v0", dataset={name!r})')
        cl.say(f"or: ilrec train --dataset {name}")
        if prepared.dataset.interactions.order is not None:
            cl.say(f"or: ilrec lea prepare --dataset {name} --out runs/{name}-feedback")
    return 0


def _prepare_own(arguments: argparse.Namespace) -> str:
    """Reads the user's tables, keeps them under their name and returns it."""
    from recsim_env.datasets import from_tables, save_custom

    columns = cl.pairs(arguments.column, "--column")
    if arguments.rating_column:
        columns["rating"] = arguments.rating_column
    dataset = from_tables(
        arguments.interactions,
        arguments.items,
        arguments.name,
        columns=columns,
        item_columns=cl.pairs(arguments.item_column, "--item-column"),
        signal=arguments.signal or ("rating" if arguments.rating_column else None),
        rating_scale=tuple(arguments.rating_scale) if arguments.rating_scale else None,
        separator=arguments.separator,
        default_category=arguments.default_category,
        min_user=arguments.min_user,
        min_item=arguments.min_item,
    )
    save_custom(dataset, arguments.cache)
    return dataset.name


# -- ilrec train -----------------------------------------------------------------------------------


def _add_train(subparsers: Any) -> None:
    parser: _Parser = subparsers.add_parser(
        "train",
        help="train one algorithm and keep the model",
        description=(
            "Trains on the train world model and writes DIR/model.zip and DIR/config.json. The\n"
            "model is saved every --checkpoint-every steps with its whole training state; after\n"
            "Ctrl-C, or with a larger --steps, the same command goes on from there. (Of\n"
            "Stable-Baselines3's own algorithms the replay buffer is not kept: DQN goes on with\n"
            "an empty one.)"
        ),
        epilog=(
            "examples:\n"
            "  ilrec train --steps 20000 --out runs/first\n"
            "  ilrec train --dataset steam --data ~/data --algorithm DiscreteSAC --seed 1\n"
            "  ilrec train --demonstrations mine.parquet --set imitation_coef=0.2\n"
        ),
    )
    cl.add_data(parser, default="synthetic")
    parser.add_argument(
        "--algorithm",
        default="ILRec",
        metavar="NAME",
        help="ILRec, DiscreteSAC, DoubleDQN, sb3:CLASS, contrib:CLASS, offline:NAME, with +items "
        "for masks and item heads and @NAME for a reward model (default: ILRec)",
    )
    parser.add_argument(
        "--steps",
        type=cl.positive,
        default=100_000,
        metavar="N",
        help="env steps, gradient steps of offline algorithms (default: 100000)",
    )
    parser.add_argument(
        "--seed", type=cl.seed, default=0, metavar="S", help="of the training (default: 0)"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a constructor argument of the algorithm; may be repeated",
    )
    parser.add_argument(
        "--demonstrations",
        metavar="FILE",
        help="trajectory file (default: those that come with the dataset)",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=cl.positive,
        default=5_000,
        metavar="N",
        help="env steps between two saves (default: 5000)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where the model goes (default: runs/<dataset>-<algorithm>-seed<S>)",
    )
    parser.add_argument("--device", type=cl.device, metavar="NAME", help="cpu, cuda or auto")
    cl.add_common(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from ilrec_sb3.baselines import find_algorithm
    from ilrec_sb3.training import TrainConfig, train

    config = TrainConfig(
        dataset=arguments.dataset,
        data=arguments.data,
        options=_options(arguments, arguments.dataset),
        algorithm=arguments.algorithm,
        settings=cl.json_pairs(arguments.settings, "--set"),
        seed=arguments.seed,
        demonstrations=arguments.demonstrations,
        device=arguments.device,
    )
    default = f"runs/{config.dataset}-{config.algorithm}-seed{config.seed}"
    out = Path(arguments.out or default)
    arguments.resume = "The same command goes on from the last checkpoint"
    model = train(
        config,
        out,
        steps=arguments.steps,
        checkpoint_every=arguments.checkpoint_every,
        cache=arguments.cache,
        progress=arguments.progress,
        say=cl.say,
    )
    kind = "gradient" if find_algorithm(config.algorithm).offline else "env"
    cl.say(f"{config.algorithm} after {model.num_timesteps:,} {kind} steps: {out / 'model.zip'}")
    cl.say(f"Next: ilrec evaluate {out}")
    return 0


# -- ilrec evaluate --------------------------------------------------------------------------------


def _add_evaluate(subparsers: Any) -> None:
    parser: _Parser = subparsers.add_parser(
        "evaluate",
        help="play saved models and agents on the test world model",
        description=(
            "Plays a model (a .zip file, a folder of `ilrec train`, or a run of `ilrec demo` with\n"
            "all its models) on the test world model, beside random and greedy recommendations,\n"
            "the planner that knows the session-end rule, and the oracle. Players that other\n"
            "packages bring, such as agents on a language model, can take the model's place or\n"
            "play as well."
        ),
        epilog=(
            "examples:\n"
            "  ilrec evaluate runs/first\n"
            "  ilrec evaluate some/model.zip --algorithm DQN --dataset steam --data ~/data\n"
        ),
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL_OR_RUN",
        help="a .zip file or a folder; may be left out where a player is chosen",
    )
    cl.add_data(parser, said="that of the training, synthetic without one")
    parser.add_argument(
        "--algorithm", default="ILRec", metavar="NAME", help="of a bare .zip file (default: ILRec)"
    )
    parser.add_argument(
        "--episodes", type=cl.positive, default=500, metavar="N", help="sessions (default: 500)"
    )
    parser.add_argument(
        "--seed", type=cl.seed, default=1_000, metavar="S", help="draws the users (default: 1000)"
    )
    parser.add_argument("--device", type=cl.device, metavar="NAME", help="cpu, cuda or auto")
    cl.add_common(parser)
    players: list[cl.Player] = []

    def add(player: cl.Player) -> None:
        player.add_arguments(parser)
        players.append(player)

    _plug_in(_PLAYERS, add)
    parser.set_defaults(run=_evaluate, parser=parser, players=players)


def _evaluate(arguments: argparse.Namespace) -> int:
    chosen: list[cl.Player] = [p for p in arguments.players if p.chosen(arguments)]
    if arguments.model is None and not chosen:
        other = ", or choose a player by its option (see --help)" if arguments.players else ""
        arguments.parser.error(
            f"nobody to play came: name a MODEL_OR_RUN, such as runs/first{other}"
        )
    options = _options(arguments, arguments.dataset) if arguments.option else None
    from ilrec_sb3.training import evaluate_models

    table = evaluate_models(
        None if arguments.model is None else Path(arguments.model),
        players=[partial(player.play, arguments) for player in chosen],
        dataset=arguments.dataset,
        data=arguments.data,
        options=options,
        algorithm=arguments.algorithm,
        episodes=arguments.episodes,
        seed=arguments.seed,
        cache=arguments.cache,
        device=arguments.device,
        progress=arguments.progress,
    )
    cl.show(table)
    return 0


# -- ilrec benchmark -------------------------------------------------------------------------------


def _add_benchmark(subparsers: Any) -> None:
    parser: _Parser = subparsers.add_parser(
        "benchmark",
        help="a grid of algorithms, environments and seeds, and one report of it",
        description=(
            "Makes the cells of a grid (one policy, one environment, one seed each) in several\n"
            "processes and puts them together: report.md, report.html, tables.csv and plots.\n"
            "Every cell is written whole when it is finished. The same command goes on with what\n"
            "is missing and tries again what failed."
        ),
        epilog=(
            "examples:\n"
            "  ilrec benchmark benchmarks/grids/smoke.toml              made-up data, seconds\n"
            "  ilrec benchmark benchmarks/grids/steam.toml --data ~/data --jobs 2\n"
            "  ilrec benchmark benchmarks/grids/steam.toml --only 'ILRec*' --fresh\n"
            "  ilrec benchmark my_grid.toml --reuse runs/benchmark-steam\n"
            "  ilrec benchmark benchmarks/grids/steam.toml --report-only\n"
            "Exit code 1: a cell failed; its folder has failed.json and traceback.txt.\n"
        ),
    )
    cl.add_grid(
        parser,
        folder="runs/benchmark-<name>",
        rows="make these rows only; * stands for any text",
        parts=("--environments", "make it in these only; * stands for any text"),
        fresh="make what is asked for anew, also where it is there",
    )
    parser.add_argument(
        "--reuse",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of other runs; their finished cells are taken where they are the same",
    )
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> int:
    from ilrec_sb3.benchmark import load_grid, run_benchmark

    result = run_benchmark(
        load_grid(arguments.grid),
        arguments.out,
        data=arguments.data,
        cache=arguments.cache,
        jobs=arguments.jobs,
        only=arguments.only,
        environments=arguments.environments,
        fresh=arguments.fresh,
        reuse=arguments.reuse,
        report_only=arguments.report_only,
        dry_run=arguments.dry_run,
        progress=arguments.progress,
        command=arguments.argv,
        say=cl.say,
    )
    return cl.grid_made(result.report, result.failed)


if __name__ == "__main__":
    sys.exit(main())
