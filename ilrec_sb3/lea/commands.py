"""``ilrec lea``: feedback of a language model, recommenders that learn from it, their tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ilrec_sb3.benchmark.tables import Line, Table, Text
from ilrec_sb3.benchmark.text import NONE, duration, number
from ilrec_sb3.lea.benchmark import run_recommender_benchmark
from ilrec_sb3.lea.feedback import (
    FEEDBACK,
    feedback_key,
    find_feedback,
    make_source,
    prepare_feedback,
)
from ilrec_sb3.lea.grid import load_recommender_grid
from ilrec_sb3.lea.metrics import ranking_metrics
from ilrec_sb3.lea.networks import BACKBONES
from ilrec_sb3.lea.recommender import LEA
from ilrec_sb3.lea.training import (
    Candidates,
    floor_ranks,
    load_data,
    make_recommender,
    metric_names,
    model_ranks,
    train_recommender,
    write_curve,
)
from ilrec_sb3.lea.variants import Variant
from recsim_env import artefacts
from recsim_env import command_line as cl
from recsim_env.datasets import custom_names, load_custom
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import DataError, MissingDataError
from recsim_env.sequences import SequenceData, sequence_names

__all__ = ["add_commands"]

_RUN, _MODEL, _METRICS, _CURVE = "run.json", "model.zip", "metrics.json", "curve.csv"
_STEPS = 20_000
_EVERY = 500


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the commands of ``ilrec lea``.

    Args:
        parser: Of ``ilrec lea``.
    """
    strict = type("_Strict", (_Refusing, type(parser)), {})
    subparsers: Any = parser.add_subparsers(
        dest="step", metavar="STEP", title="steps", required=True, parser_class=strict
    )
    for add in (_add_prepare, _add_train, _add_evaluate, _add_benchmark):
        add(subparsers)


class _Refusing(argparse.ArgumentParser):
    """A parser that tells of unknown options itself: only it knows which ones there are."""

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """Parses, or ends with a sentence on the first option that is not known."""
        found, unknown = super().parse_known_args(*given, **named)
        if unknown:
            refuse: Callable[[Sequence[str]], object] = getattr(self, "refuse", self._refuse)
            refuse(unknown)
        return found, unknown

    def _refuse(self, unknown: Sequence[str]) -> None:
        self.error(f"there is no option {unknown[0]!r}")


def _add_data(parser: argparse.ArgumentParser) -> None:
    cl.add_data(parser, "synthetic", names=sequence_names())


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backbone",
        default="SASRec",
        metavar="NAME",
        help=f"{' or '.join(BACKBONES)} (default: SASRec)",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the recommender, such as learning_rate=0.002 or dim=32; may be repeated",
    )
    parser.add_argument(
        "--seed", type=cl.seed, default=0, metavar="S", help="of the training (default: 0)"
    )
    parser.add_argument("--device", type=cl.device, metavar="NAME", help="cpu, cuda or auto")


def _data(arguments: argparse.Namespace) -> SequenceData:
    options = cl.json_pairs(arguments.option, "--option")
    return load_data(arguments.dataset, arguments.data, options, arguments.cache)


def _settings(arguments: argparse.Namespace, times: int = 1) -> dict[str, Any]:
    return {"evaluate_every": _EVERY * times, **cl.json_pairs(arguments.settings, "--set")}


def _given(arguments: argparse.Namespace, *names: str) -> list[str]:
    """Returns options that were given, for a command that is to come next."""
    return [f"--{name}={value}" for name in names if (value := vars(arguments)[name])]


# -- ilrec lea prepare -----------------------------------------------------------------------------


def _add_prepare(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "prepare",
        help="ask a language model for states, rewards and likely next items",
        description=(
            "Trains a recommender whose best items the language model chooses from, tunes the\n"
            "language model on a share of the users, asks it about every train example, and\n"
            f"writes DIR/{FEEDBACK}. What is there and belongs to the same settings is not made\n"
            "again."
        ),
        epilog=(
            "examples:\n"
            "  ilrec lea prepare --out runs/feedback              made-up data\n"
            "  ilrec lea prepare --dataset industrial --data ~/data --out runs/industrial\n"
            "  ilrec lea prepare --llm mistralai/Mistral-7B-v0.1 --dataset steam --out runs/m\n"
            "Ctrl-C loses what is running: the training of the recommender, a hundred steps of\n"
            "the small language model, a batch of item tokens, an epoch of the tuning, or a piece\n"
            "of the answers; the same command goes on from there.\n"
        ),
    )
    _add_data(parser)
    _add_training(parser)
    parser.add_argument(
        "--candidate-steps",
        type=cl.positive,
        default=_STEPS,
        metavar="N",
        help=f"gradient steps at most of the first recommender (default: {_STEPS})",
    )
    parser.add_argument(
        "--repeats",
        action=argparse.BooleanOptionalAction,
        help="items of the history may be among those to choose from (default: where at least a "
        "tenth of the train targets repeat one)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the feedback goes")
    with contextlib.suppress(DataError):  # told when it is run: the other commands need none
        make_source().add_arguments(parser)
    cl.add_common(parser)
    parser.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    source = make_source()
    arguments.resume = "The same command goes on with the stages and pieces that are finished"
    data = _data(arguments)
    events = sum(len(sequence) for sequence in data.sequences)
    cl.say(
        f"{data.name}: {len(data.sequences):,} sequences of {events:,} events and "
        f"{data.n_items:,} items."
    )
    if arguments.dataset in custom_names(arguments.cache):
        counted = load_custom(arguments.dataset, arguments.cache).statistics
        if merged := counted.get("repeated_rows_merged"):
            cl.say(
                f"Beware: {merged:,} rows repeated a user and an item, and each pair is one event, "
                "at the last of its times; recsim_env.sequences.SequenceData takes repeats."
            )
    feedback = prepare_feedback(
        data,
        source,
        arguments,
        arguments.out,
        candidates=Candidates(
            arguments.backbone,
            arguments.candidate_steps,
            arguments.seed,
            _settings(arguments),
            arguments.repeats,
        ),
        device=arguments.device,
        progress=arguments.progress,
        say=cl.say,
    )
    cl.say(f"Feedback on {len(feedback):,} train examples: {Path(arguments.out) / FEEDBACK}")
    same = _given(arguments, "dataset", "data", "cache")
    same += [f"--option={option}" for option in arguments.option]
    same += [f"--set={setting}" for setting in arguments.settings if setting.startswith("length=")]
    train = ["ilrec", "lea", "train", *same, "--feedback", arguments.out, "--out", "runs/leasr"]
    cl.say(f"Next: {shlex.join(train)}")
    return 0


# -- ilrec lea train -------------------------------------------------------------------------------


def _add_train(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train one recommender",
        description=(
            "Trains a recommender until the validation split sees no progress, and keeps the\n"
            f"best weights: DIR/{_MODEL}, {_METRICS}, {_CURVE} and {_RUN}, which `ilrec lea\n"
            "evaluate` reads."
        ),
        epilog=(
            "examples:\n"
            "  ilrec lea train --variant SNQN --out runs/snqn          made-up data, no feedback\n"
            "  ilrec lea train --variant SA2C-LEASR --feedback runs/feedback --out runs/leasr\n"
            "  ilrec lea train --dataset industrial --data ~/data --variant Normal \\\n"
            "      --backbone GRU4Rec --set learning_rate=0.002 --out runs/gru\n"
            "variants: Normal, or SNQN or SA2C alone or with -LER, -LES, -LES', -LEA, -LEAR,\n"
            "-LEAS, -LEASR, -LEAS'R, -sv, -q, -sv+q. Under SNQN and SA2C half of the steps train\n"
            "the network that is served.\n"
        ),
    )
    _add_data(parser)
    parser.add_argument(
        "--variant",
        default="SA2C-LEASR",
        metavar="NAME",
        help="what it learns from (default: SA2C-LEASR)",
    )
    _add_training(parser)
    parser.add_argument(
        "--feedback",
        metavar="DIR",
        help="of `ilrec lea prepare`; Normal, SNQN and SA2C alone need none",
    )
    parser.add_argument(
        "--steps",
        type=cl.positive,
        metavar="N",
        help=f"gradient steps at most (default: {_STEPS}, twice that under SNQN and SA2C)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the run goes")
    cl.add_common(parser)
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    arguments.resume = "Nothing was written; the same command begins anew"
    variant = Variant.parse(arguments.variant)
    out = _free_folder(arguments.out)
    feedback = None
    if variant.needs:
        if arguments.feedback is None:
            raise DataError(
                f"--variant {arguments.variant} came without --feedback, expected a folder that "
                "`ilrec lea prepare` wrote: give it, or take SNQN or SA2C alone."
            )
        feedback = EnvironmentFeedback.load(find_feedback(arguments.feedback))
    data = _data(arguments)
    # what is served is trained by half of the steps where there are two networks
    times = 2 if variant.learns_q else 1
    settings = _settings(arguments, times)
    model = make_recommender(
        arguments.backbone,
        data,
        arguments.variant,
        feedback,
        seed=arguments.seed,
        settings=settings,
        device=arguments.device,
    )
    trained = train_recommender(model, arguments.steps or _STEPS * times, arguments.progress)
    about = {
        "dataset": arguments.dataset,
        "options": cl.json_pairs(arguments.option, "--option"),
        "fingerprint": data.fingerprint,
        "variant": arguments.variant,
        "backbone": arguments.backbone,
        "seed": arguments.seed,
        "settings": settings,
        "feedback": None if feedback is None else str(Path(arguments.feedback).absolute()),
        "feedback_key": None if feedback is None else feedback_key(arguments.feedback),
    }
    (out / _RUN).unlink(missing_ok=True)
    model.save(out / _MODEL)
    write_curve(out / _CURVE, trained.curve)
    _write_json(out / _METRICS, trained.described())
    _write_json(out / _RUN, about)
    cl.say(
        f"{arguments.backbone} {arguments.variant}: {trained.steps:,} steps in "
        f"{duration(trained.seconds)}, the weights of step {trained.best_step:,} kept."
    )
    cl.show(_table([("validation", trained.valid), ("test", trained.test)]).markdown())
    if not trained.valid or not trained.test:
        cl.say(
            f"Beware: of {len(data.sequences):,} sequences none is left to "
            f"{'validate' if not trained.valid else 'test'} on; more users would help."
        )
    following = ["ilrec", "lea", "evaluate", str(out), *_given(arguments, "data", "cache")]
    cl.say(f"Model: {out / _MODEL}. Next: {shlex.join(following)}")
    return 0


def _free_folder(path: str) -> Path:
    """Returns a folder that a run may be written into: a new or empty one, or that of a run."""
    out = Path(path)
    if out.is_dir() and any(out.iterdir()) and not (out / _MODEL).exists():
        raise DataError(f"--out {out} came, a folder with something else in it: choose a new one.")
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} came, which is a file: choose a folder.")
    return out


def _write_json(path: Path, content: Any) -> None:
    artefacts.write_file(path, json.dumps(content, indent=1) + "\n")


# -- ilrec lea evaluate ----------------------------------------------------------------------------


def _add_evaluate(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "evaluate",
        help="a table of trained recommenders on the test split, beside two floors",
        description=(
            "Ranks each next item of the test split among all items: HR and NDCG at 5, 10 and 20\n"
            "of runs of `ilrec lea train`, of the most popular items, and of those that followed\n"
            "the last item most often."
        ),
        epilog=(
            "examples:\n"
            "  ilrec lea evaluate runs/snqn runs/leasr\n"
            "  ilrec lea evaluate runs/industrial-* --data ~/data\n"
        ),
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of `ilrec lea train`")
    cl.add_raw_data(parser)
    parser.add_argument("--device", type=cl.device, metavar="NAME", help="cpu, cuda or auto")
    cl.add_common(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    abouts = [_read_run(Path(name)) for name in arguments.runs]
    by_data: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for name, about in zip(arguments.runs, abouts, strict=True):
        by_data.setdefault(about["fingerprint"], []).append((Path(name), about))
    for fingerprint, runs in by_data.items():
        about = runs[0][1]
        data = load_data(about["dataset"], arguments.data, about["options"], arguments.cache)
        if data.fingerprint != fingerprint:
            raise DataError(
                f"{runs[0][0]} was trained on other data of the name {data.name!r}, expected the "
                "same: name their folder with --data, or train again."
            )
        rows = []
        for folder, about in runs:
            model = LEA.load(folder / _MODEL, data, device=arguments.device or "auto")
            found = model_ranks(model, data.examples("test", model.config.length))
            label = f"{about['backbone']} {about['variant']}, seed {about['seed']} ({folder.name})"
            rows.append((label, ranking_metrics(found) if found.size else {}))
        floors = floor_ranks(data)
        rows += [(n, ranking_metrics(found) if found.size else {}) for n, found in floors.items()]
        tested = len(data.examples("test"))
        caption = f"{data.name}: {tested:,} test examples, {data.n_items:,} items."
        cl.show(_table(rows, caption).markdown())
    return 0


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        return {
            name: found[name]
            for name in ("dataset", "options", "fingerprint", "variant", "backbone", "seed")
        }
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{folder} is no finished run (no {_RUN} in it), expected a folder of `ilrec lea "
            "train`: train it first."
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{folder / _RUN} cannot be read ({error}), expected what `ilrec lea train` wrote: "
            "train again."
        ) from error


def _table(rows: Sequence[tuple[str, Any]], caption: str = "") -> Table:
    """Returns metrics as a table, a dash where there are none."""
    heads = metric_names()
    lines = [
        Line(
            (
                Text(label),
                *(Text(number(found[n], 4) if n in found else NONE) for n in heads),
            )
        )
        for label, found in rows
    ]
    return Table(("", *heads), tuple(lines), caption)


# -- ilrec lea benchmark ---------------------------------------------------------------------------


def _add_benchmark(subparsers: Any) -> None:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "benchmark",
        help="a grid of variants, backbones, datasets and seeds, and one report of it",
        description=(
            "Prepares the feedback that a grid needs, trains its cells in several processes and\n"
            "puts them together: report.md, results.csv and learning curves. Every cell is\n"
            "written whole when it is finished; the same command goes on with what is missing."
        ),
        epilog=(
            "examples:\n"
            "  ilrec lea benchmark benchmarks/lea/smoke.toml\n"
            "  ilrec lea benchmark benchmarks/lea/table2.toml --data ~/data --jobs 2\n"
            "  ilrec lea benchmark benchmarks/lea/table2.toml --only 'GRU4Rec/*' --report-only\n"
            "  ilrec lea benchmark my_grid.toml --reuse benchmarks/results/lea/table3/industrial\n"
            "Exit code 1: a cell failed; its folder has failed.json and traceback.txt.\n"
        ),
    )
    cl.add_grid(
        parser,
        folder="runs/lea-<run>",
        rows="make these rows only, such as SNQN or GRU4Rec/SNQN; * stands for any text",
        parts=("--datasets", "make these only, likewise"),
        fresh="make the cells asked for anew; feedback stays",
    )
    parser.add_argument(
        "--reuse",
        nargs="+",
        default=[],
        metavar="PATH",
        help="take finished cells that are the same from there: folders of runs or reports, or a "
        "cells.parquet that came with a report",
    )
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> int:
    report, failed = run_recommender_benchmark(
        load_recommender_grid(arguments.grid),
        arguments.out,
        data=arguments.data,
        cache=arguments.cache,
        jobs=arguments.jobs,
        only=arguments.only,
        datasets=arguments.datasets,
        fresh=arguments.fresh,
        reuse=arguments.reuse,
        report_only=arguments.report_only,
        dry_run=arguments.dry_run,
        command=arguments.argv,
        progress=arguments.progress,
        say=cl.say,
    )
    return cl.grid_made(report, failed)
