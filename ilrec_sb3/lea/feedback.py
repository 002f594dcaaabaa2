"""Feedback of an environment on the train examples: made once, kept in a folder, found again."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from ilrec_sb3.benchmark.workers import LOCK, locked
from ilrec_sb3.lea.candidates import top_items
from ilrec_sb3.lea.networks import NetworkConfig
from ilrec_sb3.lea.recommender import LEA
from ilrec_sb3.lea.training import (
    Candidates,
    check_settings,
    make_recommender,
    train_recommender,
)
from recsim_env import artefacts
from recsim_env.command_line import FeedbackSource
from recsim_env.environment_feedback import EnvironmentFeedback
from recsim_env.errors import ArtefactError, DataError, MissingDataError, near_miss
from recsim_env.sequences import SequenceData

__all__ = [
    "FEEDBACK",
    "STAGES",
    "feedback_key",
    "find_feedback",
    "make_source",
    "prepare_feedback",
    "source_arguments",
]

logger = logging.getLogger(__name__)

FEEDBACK = "feedback.safetensors"
STAGES = "stages"
_SETTINGS = "settings.json"
_ENVIRONMENTS = "ilrec.environments"
_CANDIDATES = 5


def make_source(name: str | None = None) -> FeedbackSource:
    """Returns an environment that a package brings.

    Args:
        name: Of its entry point; None: the first.

    Raises:
        DataError: There is none, or none of that name.
    """
    found: dict[str, FeedbackSource] = {}
    for entry in sorted(importlib.metadata.entry_points(group=_ENVIRONMENTS), key=lambda e: e.name):
        try:
            found[entry.name] = entry.load()
        except (ImportError, AttributeError) as error:
            reason = " ".join(str(error).split())
            logger.warning("%r of %s cannot be loaded: %s", entry.name, _ENVIRONMENTS, reason)
    if not found:
        raise DataError(
            f"No installed package brings an environment (entry points of {_ENVIRONMENTS}), "
            "expected at least one: install ilrec with all of its packages."
        )
    if name is None:
        return next(iter(found.values()))
    if name not in found:
        raise DataError(f"There is no environment {name!r}; {near_miss(name, found)}.")
    return found[name]


class _Options(argparse.ArgumentParser):
    """A parser of options that come from a file: what is wrong is an error, not the end."""

    def error(self, message: str) -> NoReturn:
        """Refuses."""
        raise DataError(f"The options of the environment do not fit: {message}.")


def source_arguments(source: FeedbackSource, options: Mapping[str, Any]) -> argparse.Namespace:
    """Returns what a command line with some options would give.

    Args:
        source: Whose options they are.
        options: Values by name: ``share = 0.2`` stands for ``--share 0.2``, false for ``--no-...``,
            a list for an option that is repeated, a table for one that takes KEY=VALUE.

    Raises:
        DataError: An option is not known, or its value does not fit.
    """
    parser = _Options(add_help=False, allow_abbrev=False)
    source.add_arguments(parser)
    known = vars(parser.parse_args([]))
    given: list[str] = []
    for name, value in options.items():
        if name not in known:
            raise DataError(f"The environment has no option {name!r}; {near_miss(name, known)}.")
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            if isinstance(value, Mapping):
                value = [f"{key}={json.dumps(one)}" for key, one in value.items()]
            values = value if isinstance(value, (list, tuple)) else [value]
            given += [f"--{flag}={one}" for one in values]
    return parser.parse_args(given)


def prepare_feedback(
    data: SequenceData,
    source: FeedbackSource,
    arguments: argparse.Namespace,
    folder: str | Path,
    *,
    candidates: Candidates,
    stages: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = logger.info,
) -> EnvironmentFeedback:
    """Makes the feedback of an environment on the train examples, stage by stage.

    What is there and belongs to the same data and settings is not made again: a call that was
    stopped goes on with the stage, or the piece of the feedback, that it was at.

    Args:
        data: The sequences.
        source: The environment.
        arguments: Its options.
        folder: Gets ``feedback.safetensors`` and ``settings.json``; a new or empty one, or one
            that has feedback.
        candidates: Whose best items the environment chooses from.
        stages: Keeps what the stages made; None: a folder beside the feedback. Several feedbacks
            on one dataset may share it.
        device: Of the recommender; None: "auto".
        progress: Shows progress bars.
        say: Takes lines that tell how far it is.

    Raises:
        DataError: The folder has something else in it, or another process works on it.
        IlrecError: Settings that cannot be used, or a language model that fails.
    """
    folder, candidates = Path(folder), candidates.spelled_out(data)
    stages = folder / STAGES if stages is None else Path(stages)
    network: NetworkConfig = check_settings(candidates.settings)["network"]
    examples = data.examples("train", network.length)
    about: dict[str, Any] = {
        "data": {"name": data.name, "fingerprint": data.fingerprint},
        "candidates": asdict(candidates),
        "environment": dict(source.settings(arguments)),
    }
    about = {"key": artefacts.key(**about), **json.loads(json.dumps(about))}
    _check_free(folder)
    with locked(folder):
        if feedback_key(folder) == about["key"]:
            try:
                found = EnvironmentFeedback.load(folder / FEEDBACK, examples)
            except ArtefactError as error:
                logger.warning("%s It is made again.", error)
            else:
                say(f"{folder / FEEDBACK} is there.")
                return found
        source.check(arguments)
        if data.n_items < _CANDIDATES:
            raise DataError(
                f"{data.name!r} has {data.n_items} items, expected {_CANDIDATES} or more: the "
                f"environment chooses among {_CANDIDATES}; a lower min_item leaves more."
            )
        (folder / _SETTINGS).unlink(missing_ok=True)  # from here on it is not what it was
        say(f"Candidates: a {candidates.backbone} recommender without feedback.")
        model = _candidate_model(data, candidates, stages, device, progress)
        assert candidates.repeats is not None
        chosen = top_items(model, examples, _CANDIDATES, candidates.repeats)
        say("Environment: what is missing is made; what is there is used.")
        found = source.feedback(arguments, data, examples, chosen, stages, progress, say)
        found.check(examples)
        found.save(folder / FEEDBACK)
        artefacts.write_file(folder / _SETTINGS, json.dumps(about, indent=1) + "\n")
    return found


def _check_free(folder: Path) -> None:
    """Refuses a folder that is not new, empty or one of feedback."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} came for feedback, which is a file: choose a folder.")
    found = {path.name for path in folder.glob("*")} - {LOCK}
    if found and not found & {FEEDBACK, STAGES}:
        raise DataError(
            f"{folder} came for feedback, a folder with something else in it ({min(found)}): "
            "choose a new one."
        )


def feedback_key(path: str | Path) -> str | None:
    """Returns the hash of all that a feedback was made from; None where that is not known.

    Args:
        path: Folder that `prepare_feedback` wrote, or the file in it.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    key = found.get("key") if isinstance(found, dict) else None
    return key if isinstance(key, str) else None


def _candidate_model(
    data: SequenceData, candidates: Candidates, stages: Path, device: str | None, progress: bool
) -> LEA:
    """Returns the recommender that is kept, or trains one and keeps it."""
    trained = replace(candidates, repeats=None)  # which of its items are taken comes later
    key = artefacts.key(data=data.fingerprint, candidates=trained)
    path = stages / f"candidates-{key[:16]}.zip"
    if path.exists():
        try:
            return LEA.load(path, data, device=device or "auto")
        except ArtefactError as error:
            logger.warning("%s That is what happens now.", error)
    model = make_recommender(
        candidates.backbone,
        data,
        "Normal",
        seed=candidates.seed,
        settings=candidates.settings,
        device=device,
    )
    train_recommender(model, candidates.steps, progress)
    model.save(path)
    return model


def find_feedback(path: str | Path) -> Path:
    """Returns the file of a feedback.

    Args:
        path: The file, or a folder that `prepare_feedback` wrote.

    Raises:
        MissingDataError: It is not there.
        DataError: The folder was to get another feedback and has not got it yet.
    """
    file = Path(path)
    folder = file.is_dir()
    file = file / FEEDBACK if folder else file
    if not file.is_file():
        raise MissingDataError(
            f"{file} is not there, expected the feedback of an environment: make it with `ilrec "
            "lea prepare`."
        )
    if folder and feedback_key(file) is None:
        raise DataError(
            f"{path} was being prepared with other options when that was stopped, and its feedback "
            "is still the one before: run the same `ilrec lea prepare` again, or, to use what is "
            f"there, name the file {file}."
        )
    return file
