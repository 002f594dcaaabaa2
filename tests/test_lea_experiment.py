"""Experiments with LEA: feedback by stages, grids, cells, reports."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import inspect
import json
import runpy
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch as th
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ilrec_sb3.benchmark.metrics import bootstrap_iqm, interval
from ilrec_sb3.benchmark.workers import LOCK, locked
from ilrec_sb3.lea import LEA
from ilrec_sb3.lea.benchmark import run_recommender_benchmark
from ilrec_sb3.lea.cells import Finished, Maker, Plan, read_cell
from ilrec_sb3.lea.feedback import (
    FEEDBACK,
    find_feedback,
    make_source,
    prepare_feedback,
    source_arguments,
)
from ilrec_sb3.lea.grid import RecommenderGrid, RecommenderTask, load_recommender_grid
from ilrec_sb3.lea.report import _legend, compare, estimate, gains
from ilrec_sb3.lea.reuse import find_cells, write_cells
from ilrec_sb3.lea.training import (
    FLOORS,
    Candidates,
    Trained,
    floor_ranks,
    load_data,
    make_recommender,
    metric_names,
    repeat_share,
    train_recommender,
)
from llm_expert.environment import plugin
from llm_expert.environment.environment import LLMEnvironment
from llm_expert.errors import ModelSpecError
from recsim_env import artefacts
from recsim_env.environment_feedback import EnvironmentFeedback, sample_negatives
from recsim_env.errors import ArtefactError, DataError, MissingDataError
from recsim_env.sequences import Examples, IntArray, SequenceData

GRIDS = sorted((Path(__file__).resolve().parents[1] / "benchmarks" / "lea").glob("*.toml"))
OPTIONS = {"n_users": 30, "n_items": 12, "length": 6}
TINY = {"dim": 8, "learning_rate": 0.01}


class FakeSource:
    """An environment that knows the chain of the synthetic sequences."""

    def __init__(self) -> None:
        self.asked = 0
        self.version = 1
        self.lacking: str | None = None
        self.fails: Exception | BaseException | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--share", type=float, default=0.1)
        parser.add_argument("--state-loss", action=argparse.BooleanOptionalAction, default=True)
        parser.add_argument("--tune", action="append", default=[])

    def settings(self, arguments: argparse.Namespace) -> Mapping[str, Any]:
        told = {"share": arguments.share, "state_loss": arguments.state_loss}
        return {**told, "version": self.version}

    def check(self, arguments: argparse.Namespace) -> None:
        del arguments
        if self.lacking is not None:
            raise DataError(self.lacking)

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
        del data, folder, progress, say
        self.asked += 1
        if self.fails is not None:
            raise self.fails
        m = len(examples)
        negatives = sample_negatives(examples, 1, 0)
        return EnvironmentFeedback(
            states=np.eye(12, dtype=np.float32)[examples.histories[:, -1]],
            next_states=np.eye(12, dtype=np.float32)[examples.targets],
            rewards=np.full(m, arguments.share, np.float32),
            negatives=negatives,
            negative_rewards=np.zeros((m, 1), np.float32),
            augmented=candidates[:, 0],
            augmented_rewards=np.ones(m, np.float32),
            examples=examples.fingerprint,
        )


@pytest.fixture(scope="module")
def data() -> SequenceData:
    return load_data("synthetic", options=OPTIONS)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    made = FakeSource()
    bring(monkeypatch, SimpleNamespace(name="fake", load=lambda: made))
    return made


def bring(monkeypatch: pytest.MonkeyPatch, *entries: Any) -> None:
    """Lets these entry points be the installed ones."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: list(entries))


def grid_of(**changes: Any) -> RecommenderGrid:
    values: dict[str, Any] = {
        "name": "tiny",
        "datasets": {"made": {"dataset": "synthetic", "options": OPTIONS}},
        "variants": ["Normal", "SNQN", "SNQN-LEASR"],
        "backbones": ["GRU4Rec"],
        "seeds": [0, 1],
        "steps": 4,
        "evaluate_every": 2,
        "settings": TINY,
    }
    return RecommenderGrid.from_dict({**values, **changes})


# -- data and floors -------------------------------------------------------------------------------


def test_floors_by_hand() -> None:
    # train targets: 1, 2, 1, 2, 3; what follows: 0 -> 1 twice, 1 -> 2 twice, 2 -> 3
    sequences = ([0, 1, 2], [0, 1, 2, 3], [1, 2, 0, 1])
    codes = ([-1, 0, 0], [-1, 0, 0, 0], [-1, 2, 2, 2])
    made = SequenceData(
        "hand",
        ("a", "b", "c", "d"),
        ("A", "B", "C", "D"),
        ("A", "B", "C", "D"),
        "thing",
        tuple(np.array(s) for s in sequences),
        tuple(np.array(c, np.int8) for c in codes),
    )
    # test: 1 -> 2, 2 -> 0, 0 -> 1. Popularity: items 1 and 2 twice (the target counts as the last
    # of equals), item 3 once, item 0 never.
    found = floor_ranks(made)
    assert found["popularity"].tolist() == [2, 4, 2]
    # item 2 first after 1; item 0 is last after 2; item 1 first after 0
    assert found["last item"].tolist() == [1, 4, 1]


def test_data_by_name(tmp_path: Path) -> None:
    assert load_data("synthetic", options=OPTIONS).n_items == 12
    with pytest.raises(DataError, match="did you mean 'industrial'"):
        load_data("industrie", cache=tmp_path)
    with pytest.raises(DataError, match="no option 'n_user'"):
        load_data("synthetic", options={"n_user": 3})


# -- feedback --------------------------------------------------------------------------------------


def prepared(data: SequenceData, source: Any, folder: Path, **options: Any) -> EnvironmentFeedback:
    candidates = Candidates(options.pop("backbone", "GRU4Rec"), 4, 0, {"evaluate_every": 2, **TINY})
    return prepare_feedback(
        data,
        source,
        source_arguments(source, options),
        folder,
        candidates=candidates,
        progress=False,
    )


def test_feedback_is_made_once_for_each_setting(
    data: SequenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FakeSource()
    first = prepared(data, source, tmp_path)
    assert (tmp_path / FEEDBACK).exists()
    about = json.loads((tmp_path / "settings.json").read_text())
    assert about["environment"] == {"share": 0.1, "state_loss": True, "version": 1}
    trained: list[LEA] = []
    real = LEA.learn

    def learn(self: LEA, *given: Any, **named: Any) -> LEA:
        trained.append(self)
        return real(self, *given, **named)

    monkeypatch.setattr(LEA, "learn", learn)
    again = prepared(data, source, tmp_path)
    assert source.asked == 1
    np.testing.assert_array_equal(again.rewards, first.rewards)
    # another share: asked again, with the candidates that are there
    assert prepared(data, source, tmp_path, share=0.5).rewards[0] == np.float32(0.5)
    assert source.asked == 2
    assert not trained
    # another backbone: other candidates
    prepared(data, source, tmp_path, backbone="SASRec")
    assert len(trained) == 1
    # a broken file is no feedback
    (tmp_path / FEEDBACK).write_bytes(b"broken")
    prepared(data, source, tmp_path, backbone="SASRec")
    assert source.asked == 4
    EnvironmentFeedback.load(tmp_path / FEEDBACK, data.examples("train"))


def test_what_was_stopped_leaves_no_settings_behind(data: SequenceData, tmp_path: Path) -> None:
    source = FakeSource()
    prepared(data, source, tmp_path)
    source.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        prepared(data, source, tmp_path, share=0.5)
    assert not (tmp_path / "settings.json").exists()
    with pytest.raises(DataError, match=r"other options when that was stopped.*run the same"):
        find_feedback(tmp_path)
    assert find_feedback(tmp_path / FEEDBACK) == tmp_path / FEEDBACK  # asked for by its name
    source.fails = None
    assert prepared(data, source, tmp_path).rewards[0] == np.float32(0.1)
    assert source.asked == 3
    assert find_feedback(tmp_path) == tmp_path / FEEDBACK


def test_feedback_goes_into_a_folder_of_its_own(data: SequenceData, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("mine")
    with pytest.raises(DataError, match=r"something else in it \(settings\.json\): choose a new"):
        prepared(data, FakeSource(), tmp_path)
    assert (tmp_path / "settings.json").read_text() == "mine"
    with pytest.raises(DataError, match="which is a file: choose a folder"):
        prepared(data, FakeSource(), tmp_path / "settings.json")
    with (
        locked(tmp_path / "new"),
        pytest.raises(DataError, match="Another process works on"),
    ):
        prepared(data, FakeSource(), tmp_path / "new")


def test_a_folder_of_a_language_model_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    def told(folder: Path) -> object:
        arguments = source_arguments(plugin.source, {"llm": str(folder)})
        return plugin.source.settings(arguments)["llm"]

    content = np.random.default_rng(0).bytes(3_000_000)
    for folder in ("a/model", "b/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "weights").write_bytes(content)
    first = told(tmp_path / "a/model")
    assert first == told(tmp_path / "b/model")  # the same model elsewhere
    changed = bytes(byte ^ 1 for byte in content)
    (tmp_path / "b/model/weights").write_bytes(changed)
    assert first != told(tmp_path / "b/model")
    assert told(tmp_path / "none") == str(tmp_path / "none")


def test_options_of_a_file() -> None:
    source = FakeSource()
    found = source_arguments(source, {"share": 0.3, "state_loss": False, "tune": ["a=1", "b=2"]})
    assert vars(found) == {"share": 0.3, "state_loss": False, "tune": ["a=1", "b=2"]}
    table = {"iterations": 3, "state_loss": False}
    assert source_arguments(source, {"tune": table}).tune == ["iterations=3", "state_loss=false"]
    with pytest.raises(DataError, match="no option 'shares'; did you mean 'share'"):
        source_arguments(source, {"shares": 0.3})
    with pytest.raises(DataError, match="do not fit: argument --share"):
        source_arguments(source, {"share": "much"})


def test_no_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bring(monkeypatch)
    with pytest.raises(DataError, match="No installed package brings an environment"):
        make_source()


def test_a_tiny_language_model_as_source(
    data: SequenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "share": 0.2,
        "epochs": 1,
        "chunk": 40,
        "negatives": 2,
        "small": [
            "vocabulary=420",
            "hidden=16",
            "heads=2",
            "layers=1",
            "epochs=1",
            "practice=40",
            "exercise_steps=1",
        ],
        "tune": ["iterations=2", "lora_rank=2"],
    }
    first = prepared(data, plugin.source, tmp_path, **options)
    assert first.negatives.shape == (len(data.examples("train")), 2)
    assert first.augmented is not None
    # with everything but the last file there, no language model has to say anything
    (tmp_path / FEEDBACK).unlink()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    # by the modules, since functions of the same names are in the package
    language_models = importlib.import_module("llm_expert.environment.language_model")
    tokens = importlib.import_module("llm_expert.environment.item_tokens")
    with monkeypatch.context() as patch:
        patch.setattr(LLMEnvironment, "fit", never)
        patch.setattr(LLMEnvironment, "ask", never)
        patch.setattr(language_models, "small_language_model", never)
        patch.setattr(tokens, "item_tokens", never)
        again = prepared(data, plugin.source, tmp_path, **options)
    np.testing.assert_array_equal(again.states, first.states)
    np.testing.assert_array_equal(again.augmented, first.augmented)
    # another share: the language model and the item tokens stay
    with monkeypatch.context() as patch:
        patch.setattr(language_models, "small_language_model", never)
        patch.setattr(tokens, "item_tokens", never)
        other = prepared(data, plugin.source, tmp_path, **{**options, "share": 1.0})
    assert not np.array_equal(other.states, first.states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 2.0}, "'2.0' came; expected a share of the users above 0"),
        ({"share": "much"}, "'much' came; expected a share"),
        ({"llm_device": "gpu"}, "'gpu' came; expected cpu, cuda"),
        ({"tune": ["lora_rang=2"]}, "did you mean 'lora_rank'"),
        ({"tune": ["lora_rank=two"]}, "lora_rank='two' came; expected a whole number"),
        ({"tune": ["share=0.2"]}, "give --share"),
        ({"small": ["hidden=7"]}, "expected a divisor"),
        ({"llm": "some/model", "small": ["hidden=8"]}, "with the small model alone"),
    ],
)
def test_options_of_the_language_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plugin.source.settings(source_arguments(plugin.source, options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"llm_device": "cuda:63"}, "'cuda:63' came for a language model, which torch cannot use"),
        ({"llm_dtype": "float99"}, "dtype='float99' came"),
        ({"llm": "./nowhere"}, r"\./nowhere came, which is no folder"),
    ],
)
def test_what_this_machine_cannot_do_is_told_before_anything_is_made(
    options: dict[str, Any], message: str, data: SequenceData, tmp_path: Path
) -> None:
    with pytest.raises(ModelSpecError, match=message):
        prepared(data, plugin.source, tmp_path / "new", **options)
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {LOCK}


def test_a_missing_package_is_told_before_anything_is_made(
    data: SequenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "peft" else real(name, *more),
    )
    with pytest.raises(ModelSpecError, match=r"needs the package peft.*ilrec\[local\]"):
        prepared(data, plugin.source, tmp_path)


def test_a_stopped_check_leaves_the_feedback_as_it_was(data: SequenceData, tmp_path: Path) -> None:
    source = FakeSource()
    prepared(data, source, tmp_path)
    source.lacking = "There is no GPU here."
    with pytest.raises(DataError, match="no GPU"):
        prepared(data, source, tmp_path, share=0.5)
    assert find_feedback(tmp_path) == tmp_path / FEEDBACK


def test_repeats_are_put_up_where_users_repeat() -> None:
    sequences = tuple(np.array(s) for s in ([0, 1, 2, 0], [0, 1, 2, 3], [3, 3, 1, 2]))
    codes = (np.array([-1, 0, 0, 0], np.int8),) * 3
    words = tuple("abcd")
    made = SequenceData("hand", words, words, words, "thing", sequences, codes)
    assert repeat_share(made.examples("train")) == 2 / 9  # 0 after 0 1 2, and 3 after 3
    assert repeat_share(made.examples("test")) == 0.0
    assert Candidates().spelled_out(made).repeats is True
    assert Candidates(repeats=False).spelled_out(made).repeats is False
    fresh = SequenceData("hand", words, words, words, "thing", sequences[1:2], codes[1:2])
    assert Candidates().spelled_out(fresh).repeats is False
    assert Candidates(repeats=True).spelled_out(fresh).repeats is True


def test_candidates_without_repeats(data: SequenceData, tmp_path: Path) -> None:
    asked: list[IntArray] = []

    class Listening(FakeSource):
        def feedback(
            self, arguments: Any, data: Any, examples: Any, candidates: Any, *rest: Any
        ) -> Any:
            asked.append((candidates[:, :, None] == examples.histories[:, None, :]).any(2))
            return super().feedback(arguments, data, examples, candidates, *rest)

    source = Listening()
    for repeats in (True, False):
        prepare_feedback(
            data,
            source,
            source_arguments(source, {}),
            tmp_path,
            candidates=Candidates("GRU4Rec", 4, 0, {"evaluate_every": 2, **TINY}, repeats),
            progress=False,
        )
    assert asked[0].any()
    assert not asked[1].any()
    assert len(list((tmp_path / "stages").glob("candidates-*"))) == 1  # trained once


def test_choices_come_from_five_items(tmp_path: Path) -> None:
    few = SequenceData(
        "few", tuple("abcd"), tuple("ABCD"), tuple("ABCD"), "thing",
        (np.array([0, 1, 2, 3]),), (np.array([-1, 0, 0, 0], np.int8),),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"'few' has 4 items, expected 5 or more.*lower min_item"):
        prepared(few, FakeSource(), tmp_path)


@pytest.mark.parametrize(
    ("pairs", "choices", "warned"),
    [(0.6, 0.4, ""), (0.52, 0.4, "the rewards are"), (0.5, 0.2, "the rewards and choices are")],
)
def test_what_the_tuned_model_gets_right_is_told(pairs: float, choices: float, warned: str) -> None:
    by_popularity = {"pairs_right_by_popularity": 0.55, "choices_right_by_popularity": 0.3}
    report = {"pairs_right": pairs, "choices_right": choices, **by_popularity}
    first, *more = plugin._quality(report)
    assert f"rewards {pairs:.2f} (0.55)" in first
    assert f"choices {choices:.2f} (0.30)" in first
    assert len(more) == bool(warned)
    assert warned in "".join(more)
    assert plugin._quality({}) == []
    advice = plugin._quality(report, by_text=True)[1 + len(more) :]
    assert len(advice) == bool(warned)
    assert all("by --tune token_start=text --tune iterations=0" in line for line in advice)


@pytest.mark.parametrize(
    ("options", "trained"),
    [({}, True), ({"choice_loss": False}, False), ({"llm": "some/model"}, False)],
)
def test_the_small_model_is_taught_to_choose(options: dict[str, Any], trained: bool) -> None:
    tuning = plugin.source.settings(source_arguments(plugin.source, options))["tuning"]
    assert tuning["choice_loss"] is trained


def test_a_flag_and_a_field_reach_the_environment() -> None:
    options = {"state_loss": False, "choice_loss": True, "tune": ["lora_rank=2"]}
    tuning = plugin.source.settings(source_arguments(plugin.source, options))["tuning"]
    told = {name: tuning[name] for name in ("state_loss", "choice_loss", "lora_rank", "share")}
    assert told == {"state_loss": False, "choice_loss": True, "lora_rank": 2, "share": 0.1}


# -- the grid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_of_the_project(path: Path) -> None:
    grid = load_recommender_grid(path)
    tasks = list(grid.tasks())
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        if task.needs_feedback:
            plugin.source.settings(source_arguments(plugin.source, task.feedback))
    compared = {row.name: grid.baseline(row) for row in grid.rows}
    assert set(compared.values()) - {None} <= set(compared)


def test_grids_of_the_tables_mean_the_same_by_the_same_label() -> None:
    grids = [load_recommender_grid(path) for path in GRIDS if path.stem != "smoke"]
    assert {grid.run_name for grid in grids} == {"tables"}
    assert len({grid.name for grid in grids}) == len(grids) == 5
    seen: dict[str, RecommenderTask] = {}
    for task in [task for grid in grids for task in grid.tasks()]:
        assert seen.setdefault(task.name, task) == task
    # and by another label something else
    contents = [artefacts.key(task=replace(task, label="")) for task in seen.values()]
    assert len(set(contents)) == len(contents)


def test_two_networks_get_twice_the_steps() -> None:
    tasks = {task.label: task for task in grid_of(seeds=[0]).tasks()}
    plain, doubled = tasks["Normal"], tasks["SNQN"]
    assert (plain.steps, plain.settings["evaluate_every"]) == (4, 2)
    assert (doubled.steps, doubled.settings["evaluate_every"]) == (8, 4)
    assert plain.candidates is None
    assert doubled.feedback == {}
    candidates = tasks["SNQN-LEASR"].candidates
    assert candidates == Candidates("GRU4Rec", 4, 0, {"evaluate_every": 2, **TINY})


def test_the_key_of_a_cell_has_the_defaults(
    data: SequenceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task, *_) = grid_of().tasks()
    key = task.key(data, {})
    given = replace(task, settings={**task.settings, "gamma": 0.5}, label="another name")
    assert given.key(data, {}) == key
    real = inspect.signature(LEA.__init__)
    parameters = [
        p.replace(default=0.9) if p.name == "gamma" else p for p in real.parameters.values()
    ]
    monkeypatch.setattr(
        LEA.__init__, "__signature__", real.replace(parameters=parameters), raising=False
    )
    assert task.key(data, {}) != key
    assert given.key(data, {}) == key


def test_histories_of_a_row_may_be_longer(source: FakeSource, tmp_path: Path) -> None:
    row = {"variant": "SNQN-LEASR", "settings": {"length": 4}}
    grid = grid_of(variants=[], rows=[row], seeds=[0])
    _, failed = run_recommender_benchmark(grid, tmp_path)
    assert (failed, source.asked) == (0, 1)


def test_a_dataset_may_have_steps_of_its_own() -> None:
    own = {"dataset": "synthetic", "options": OPTIONS, "steps": 6, "evaluate_every": 3}
    both = {"made": {"dataset": "synthetic", "options": OPTIONS}, "own": own}
    tasks = {(t.dataset, t.label): t for t in grid_of(seeds=[0], datasets=both).tasks()}
    found = {n: (task.steps, task.settings["evaluate_every"]) for n, task in tasks.items()}
    assert found["made", "Normal"] == (4, 2)
    assert found["made", "SNQN"] == (8, 4)
    assert found["own", "Normal"] == (6, 3)
    assert found["own", "SNQN-LEASR"] == (12, 6)
    candidates = tasks["own", "SNQN-LEASR"].candidates
    assert candidates == Candidates("GRU4Rec", 6, 0, {"evaluate_every": 3, **TINY})


def test_settings_go_from_the_grid_to_the_row() -> None:
    grid = grid_of(
        variants=[],
        feedback={"share": 0.1},
        datasets={
            "made": {
                "dataset": "synthetic",
                "settings": {"dim": 4},
                "feedback": {"state_loss": False},
            }
        },
        rows=[
            {"variant": "SNQN-LES", "settings": {"gamma": 0.3}, "feedback": {"share": 0.5}},
            {"variant": "SNQN", "label": "plain"},
        ],
    )
    first, second = [task for task in grid.tasks() if task.seed == 0]
    assert first.settings == {"evaluate_every": 4, **TINY, "dim": 4, "gamma": 0.3}
    assert first.feedback == {"share": 0.5, "state_loss": False}
    assert second.label == "plain"
    assert grid.baseline(grid.rows[0]) is None  # no row is called SNQN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["SNQN-LEASRR"]}, "no variant 'SNQN-LEASRR'.*did you mean 'SNQN-LEASR'"),
        ({"backbones": ["SASREC"]}, "backbone 'SASREC' is not known; did you mean 'SASRec'"),
        ({"settings": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
        ({"settings": {"learning_rate": "fast"}}, "learning_rate='fast' came; expected a number"),
        ({"settings": {"seed": 3}}, "is given by itself"),
        ({"settings": {"evaluate_every": 3}}, "belongs to the grid"),
        ({"variants": []}, "0 rows"),
        ({"variants": ["SNQN", "SNQN"]}, "share the folder"),
        ({"rows": [{"variant": "SNQN-LES", "baseline": "SNQ"}]}, "compared with 'SNQ'"),
        ({"rows": [{"variant": "SA2C", "datasets": ["mode"]}]}, "did you mean 'made'"),
        ({"rows": [{"variant": "SA2C", "feedback": {"share": 1}}]}, "needs nothing"),
        ({"rows": [{"label": "x"}]}, "row came without 'variant'"),
        ({"steps": 0}, "steps of 1 or more"),
        ({"datasets": {"a": {"dataset": "synthetic", "steps": 0}}}, "steps=0 came"),
        ({"datasets": {"a": {"dataset": "synthetic", "evaluate_every": 0}}}, "every=0 came"),
        ({"datasets": {"a": {"dataset": "synthetic", "evaluate_every": "1"}}}, "a whole number"),
        (
            {"datasets": {"a": {"dataset": "synthetic", "settings": {"evaluate_every": 3}}}},
            "it belongs beside them",
        ),
        ({"run": "a/b"}, "a folder is named after it"),
        ({"run": "other", "name": "cells"}, "give the grid another name"),
        ({"seed": [1]}, "no setting 'seed'; did you mean 'seeds'"),
        ({"seeds": [0.5]}, r"seeds\[0\]=0\.5 came; expected a whole number"),
        ({"settings": {"gamma": 3}}, "gamma=3 came, expected from 0 to 1"),
        ({"device": "gpu"}, "device='gpu' came; expected cpu"),
        ({"name": "a/b"}, "a folder is named after it"),
        ({"datasets": [1]}, "of another form"),
    ],
)
def test_wrong_grids(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        grid_of(**changes)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="is not there; name a grid file"):
        load_recommender_grid(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(DataError, match=r"bad\.toml is not TOML"):
        load_recommender_grid(tmp_path / "bad.toml")


# -- running ---------------------------------------------------------------------------------------


def cell_of(run: Path, name: str) -> Path:
    """The folder of the one cell of a name."""
    (found,) = run.glob(f"cells/made/GRU4Rec/{name}-*")
    return found


def test_options_that_do_not_fit_are_told_with_their_row(
    source: FakeSource, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"The row 'SNQN-LEASR' on made: .*--share.*'x'"):
        run_recommender_benchmark(grid_of(feedback={"share": "x"}), tmp_path, dry_run=True)
    assert source.asked == 0


def test_other_feedback_of_the_same_options_makes_other_cells(
    tmp_path: Path, source: FakeSource
) -> None:
    run_recommender_benchmark(grid_of(), tmp_path)
    source.version += 1
    said: list[str] = []
    run_recommender_benchmark(grid_of(), tmp_path, say=said.append)
    assert said[0] == "2 cells to make, 4 are finished."
    assert source.asked == 2


@pytest.mark.parametrize(("label", "lines"), [("SA2C", 2), ("SA2C-LEAR, " + 4 * "weights ", 7)])
def test_the_legend_of_the_curves_is_not_wider_than_its_figure(label: str, lines: int) -> None:
    figure = Figure(figsize=(6.5, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    handles = {f"{label} {place}": Line2D([], []) for place in range(7)}
    _legend(figure, handles)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(handles)
    assert len({round(text.get_window_extent().y0) for text in legend.get_texts()}) == lines
    assert legend.get_window_extent().width <= figure.bbox.width


def test_cells_are_made_once_and_reported(tmp_path: Path, source: FakeSource) -> None:
    said: list[str] = []
    grid = grid_of()
    report, failed = run_recommender_benchmark(grid, tmp_path, say=said.append, command=["ilrec"])
    assert (report, failed) == (tmp_path / "report.md", 0)
    assert source.asked == 1
    cell = cell_of(tmp_path, "SNQN-LEASR-seed1")
    kept = json.loads((cell / "metrics.json").read_text())
    assert kept["diverged"] is None
    assert kept["steps"] == 8
    assert kept["test"].keys() == kept["valid"].keys() == set(metric_names())
    with (cell / "curve.csv").open() as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["4", "8"]
    text = (tmp_path / "report.md").read_text()
    assert "| last item | – |" in text
    assert "SNQN-LEASR against SNQN: too few seeds." in text
    assert (tmp_path / "made_curves.png").read_bytes()[:4] == b"\x89PNG"
    with (tmp_path / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["row"] for row in rows} == {"Normal", "SNQN", "SNQN-LEASR", *FLOORS}
    (own,) = [r for r in rows if (r["row"], r["metric"]) == ("SNQN-LEASR", "HR@10")]
    assert (own["seeds"], own["baseline"]) == ("2", "SNQN")
    assert float(own["low"]) <= float(own["mean"]) <= float(own["high"])

    said.clear()
    run_recommender_benchmark(grid, tmp_path, say=said.append)
    assert said[0] == "0 cells to make, 6 are finished."
    run_recommender_benchmark(grid, tmp_path, dry_run=True, say=said.append)
    assert said[-1] == "made/GRU4Rec/SNQN-LEASR-seed1: finished"
    # other settings of one row: its cells alone
    rows_changed = [
        {"variant": "SNQN-LEASR", "settings": {"gamma": 0.1}},
        {"variant": "SA2C", "label": "later"},
    ]
    other = grid_of(variants=["Normal", "SNQN"], rows=rows_changed)
    said.clear()
    run_recommender_benchmark(other, tmp_path, only=["*/SNQN*"], say=said.append)
    assert said[0] == "2 cells to make, 2 are finished."
    assert said[-1] == "2 cells of the grid are not there; the rest is reported."
    assert source.asked == 1
    # and back: those of before are still there
    said.clear()
    run_recommender_benchmark(grid, tmp_path, say=said.append)
    assert said[0] == "0 cells to make, 6 are finished."
    text = (tmp_path / "report.md").read_text()
    assert "6 trainings" in text


def test_grids_of_one_run_share_what_is_alike(
    tmp_path: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    first = grid_of(run="both", seeds=[0])
    rows = [
        {"variant": "SNQN-LEASR"},
        {"variant": "SNQN", "settings": {"gamma": 0.1}},  # the same label, other settings
        {"variant": "SNQN-LES", "feedback": {"share": 0.5}},
    ]
    second = grid_of(run="both", name="second", seeds=[0], variants=[], rows=rows)
    run = Path("runs/lea-both")
    for grid, line, asked in (
        (first, "3 cells to make, 0 are finished.", 1),
        (second, "2 cells to make, 1 are finished.", 2),
        (first, "0 cells to make, 3 are finished.", 2),
        (second, "0 cells to make, 3 are finished.", 2),
    ):
        said.clear()
        report, _ = run_recommender_benchmark(grid, say=said.append)
        assert report == run / grid.name / "report.md"
        assert said[0] == line
        assert source.asked == asked
    for name, shown in (("tiny", "Normal"), ("second", "SNQN-LES")):
        made = {path.name for path in (run / name).iterdir()}
        assert made >= {"results.csv", "grid.json", "command.txt", "versions.json"}
        assert "made_curves.png" in made
        assert f"\n| {shown} |" in (run / name / "report.md").read_text()
    assert {path.name for path in run.iterdir()} == {".lock", "cells", "feedback", "tiny", "second"}


def test_another_environment_or_other_data_are_other_feedback(
    tmp_path: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [SimpleNamespace(name=name, load=lambda: source) for name in ("fake", "twin")]
    bring(monkeypatch, *entries)
    plain: dict[str, Any] = {"variants": ["SNQN", "SNQN-LER"], "seeds": [0]}
    data = {"made": {"dataset": "synthetic", "options": {**OPTIONS, "n_users": 31}}}
    grids = [grid_of(**plain, **more) for more in ({}, {"environment": "twin"}, {"datasets": data})]
    said: list[str] = []
    for _ in range(2):
        for grid in grids:
            run_recommender_benchmark(grid, tmp_path, say=said.append)
    assert source.asked == 3
    counts = [line for line in said if "cells to make" in line]
    assert counts[3:] == ["0 cells to make, 2 are finished."] * 3
    # the environment is none of SNQN's business
    assert counts[1] == "1 cells to make, 1 are finished."
    assert len(list((tmp_path / "cells/made/GRU4Rec").glob("SNQN-seed0-*"))) == 2


def test_a_feedback_that_fails_takes_its_cells_with_it(tmp_path: Path, source: FakeSource) -> None:
    source.fails = DataError("The language model is gone.")
    said: list[str] = []
    grid = grid_of(seeds=[0])
    report, failed = run_recommender_benchmark(grid, tmp_path, say=said.append)
    assert (report, failed) == (tmp_path / "report.md", 1)
    text = (tmp_path / "report.md").read_text()
    assert "1 cells failed: made/GRU4Rec/SNQN-LEASR-seed0" in text
    failure = cell_of(tmp_path, "SNQN-LEASR-seed0") / "failed.json"
    reason = json.loads(failure.read_text())["failed"]
    assert reason == "Its feedback could not be made: The language model is gone."
    source.fails = None
    said.clear()
    assert run_recommender_benchmark(grid, tmp_path, say=said.append)[1] == 0
    assert said[0] == "1 cells to make, 2 are finished."


def test_a_cell_that_fails_leaves_the_others(
    tmp_path: Path, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    del source

    def diverge(model: LEA, *given: Any, **named: Any) -> LEA:
        if model.variant.name == "SNQN":
            raise FloatingPointError("The loss is nan.")
        return real(model, *given, **named)

    real = LEA.learn
    monkeypatch.setattr(LEA, "learn", diverge)
    grid = grid_of(variants=["Normal", "SNQN"], seeds=[0])
    report, failed = run_recommender_benchmark(grid, tmp_path)
    assert failed == 1
    assert report is not None
    folder = cell_of(tmp_path, "SNQN-seed0")
    assert json.loads((folder / "failed.json").read_text())["failed"] == "The loss is nan."
    assert "FloatingPointError" in (folder / "traceback.txt").read_text()


def spoil(monkeypatch: pytest.MonkeyPatch, variant: str, step: int) -> None:
    """Lets the loss of a variant be no number from a step on."""
    real = LEA._gradient_step

    def spoiled(model: LEA) -> dict[str, th.Tensor]:
        if model.variant.name == variant and model.num_timesteps + 1 >= step:
            with th.no_grad():
                for parameter in model.networks.parameters():
                    parameter.fill_(th.nan)
        return real(model)

    monkeypatch.setattr(LEA, "_gradient_step", spoiled)


def test_a_training_that_diverges_stands_with_its_best_weights(
    data: SequenceData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = {"seed": 3, "settings": {**TINY, "evaluate_every": 2}}
    good = train_recommender(make_recommender("GRU4Rec", data, "SNQN", **made), 2)
    assert good.diverged is None
    spoil(monkeypatch, "SNQN", 3)
    with caplog.at_level("WARNING"):
        found = train_recommender(make_recommender("GRU4Rec", data, "SNQN", **made), 40)
    assert found.diverged is not None
    assert "loss at step 4 is nan" in found.diverged
    assert "The weights of step 2 are kept." in caplog.text
    assert (found.best_step, found.steps, found.valid) == (2, 4, good.valid)
    np.testing.assert_array_equal(found.test_ranks, good.test_ranks)
    spoil(monkeypatch, "SNQN", 1)
    with pytest.raises(DataError, match="loss at step 2 is nan"):
        train_recommender(make_recommender("GRU4Rec", data, "SNQN", **made), 40)


def test_the_report_counts_trainings_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "SNQN", 6)
    said: list[str] = []
    grid = grid_of(variants=["Normal", "SNQN"])
    assert run_recommender_benchmark(grid, tmp_path, say=said.append)[1] == 0
    assert any("SNQN-seed1: HR@10" in line and "diverged after" in line for line in said)
    text = (tmp_path / "report.md").read_text()
    assert "In 2 trainings the loss was no number any more" in text
    assert "from before stand: SNQN 2." in text
    kept = json.loads((cell_of(tmp_path, "SNQN-seed0") / "metrics.json").read_text())
    assert "loss at step 8 is nan" in kept["diverged"]
    assert kept["best_step"] == 4


def test_the_report_says_what_is_kept_and_what_seeds_vary(
    tmp_path: Path, source: FakeSource
) -> None:
    del source

    def report(**changes: Any) -> str:
        path, _ = run_recommender_benchmark(grid_of(**changes), tmp_path)
        assert path is not None
        return path.read_text()

    advantages, shared = "SA2C does without advantages for", "share one language model"
    text = report(seeds=[0], variants=["Normal"])
    assert "Seeds vary the training alone" in text
    for sentence in (advantages, shared, "half of all steps", "no number any more"):
        assert sentence not in text
    rows = [{"variant": "SA2C", "label": "three", "settings": {"warm_up_steps": 3}}]
    text = report(seeds=[0], variants=["SA2C-LER"], rows=rows)
    usual = "two passes of each network over the train examples"
    assert f"{advantages} {usual} or 3 gradient steps; only weights from after that" in text
    assert shared in text
    assert "one recommender that the candidates come from" in text
    assert "draw seeds and users anew, 2,000 times" in text
    users = len(set(load_data("synthetic", options=OPTIONS).examples("test").users.tolist()))
    assert f"test examples of {users} users" in text
    assert "At most 4 gradient steps" in text
    assert "\n\n\n" not in text


def test_a_report_of_lea_is_published(
    tmp_path: Path,
    source: FakeSource,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del source
    file = Path(__file__).resolve().parents[1] / "benchmarks" / "publish.py"
    publish = runpy.run_path(str(file))
    monkeypatch.setitem(publish["main"].__globals__, "RESULTS", tmp_path / "results")
    own = tmp_path / "lea" / "mine.toml"
    own.parent.mkdir()
    table = "{ n_users = 30, n_items = 12, length = 6 }"
    own.write_text(
        'name = "tiny"\nrun = "shared"\nvariants = ["Normal", "SNQN"]\nsteps = 2\nseeds = [0]\n'
        'evaluate_every = 1\nbackbones = ["GRU4Rec"]\nsettings = { dim = 8 }\n[datasets.made]\n'
        f'dataset = "synthetic"\noptions = {table}\n[datasets.other]\ndataset = "synthetic"\n'
    )
    grid, run = load_recommender_grid(own), tmp_path / "run"
    command = ["ilrec", "--data", str(tmp_path)]
    chosen: dict[str, Any] = {"only": ["Normal"], "datasets": ["made"]}
    run_recommender_benchmark(grid, run, **chosen, command=command)
    run_recommender_benchmark(grid, run, datasets=["other"], command=command)
    published = tmp_path / "results" / "lea" / "mine"
    old = published / "made" / "old.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    monkeypatch.setattr("sys.argv", ["publish.py", str(own), "--run", str(run)])
    publish["main"]()
    assert capsys.readouterr().out.split() == [str(published / name) for name in ("made", "other")]
    for name, rows in (("made", " --only Normal"), ("other", "")):
        names = {path.name for path in (published / name).iterdir()}
        assert names == {"report.md", "results.csv", "cells.parquet", f"{name}_curves.png"}
        text = (published / name / "report.md").read_text()
        assert (
            "$ ilrec lea benchmark benchmarks/lea/mine.toml --data DIR --jobs 2"
            f"{rows} --datasets {name}\n"
        ) in text
        assert f"\n## {name}\n" in text
        assert str(tmp_path) not in text
    assert "1 cells of the grid are not there yet" in (published / "made/report.md").read_text()
    # what is published is enough to make the report again
    again, _ = run_recommender_benchmark(
        grid.only("other"), tmp_path / "again", reuse=[published / "other"], report_only=True
    )
    assert again is not None
    for name in ("results.csv", "other_curves.png", "cells.parquet"):
        assert (again.parent / name).read_bytes() == (published / "other" / name).read_bytes()


def test_cells_are_taken_from_other_runs(tmp_path: Path, source: FakeSource) -> None:
    said: list[str] = []
    grid, first = grid_of(models=True), tmp_path / "first"
    run_recommender_benchmark(grid, first)
    wanted = (first / "results.csv").read_bytes()
    # the same rows by other names, and one that the other run has not
    rows = [{"variant": "SNQN-LEASR", "label": "ours"}, {"variant": "SA2C"}]
    other = grid_of(name="other", seeds=[1], variants=["SNQN"], rows=rows, models=True)
    for place, taken_from in enumerate((first, first / "cells.parquet")):
        said.clear()
        run = tmp_path / f"second{place}"
        run_recommender_benchmark(other, run, reuse=[taken_from], dry_run=True, say=said.append)
        assert [line.rpartition(": ")[2] for line in said] == [*["to be taken"] * 2, "missing"]
        said.clear()
        report, failed = run_recommender_benchmark(other, run, reuse=[taken_from], say=said.append)
        assert said[:2] == [
            "2 cells are taken from where they were made before.",
            "1 cells to make, 2 are finished.",
        ]
        assert failed == 0
        assert report is not None
        assert "\n| ours |" in report.read_text()
        # whole from a run, without the model from the file
        assert (cell_of(run, "ours-seed1") / "model.zip").exists() == taken_from.is_dir()
    assert source.asked == 1
    # all of it, and the same figures
    again = tmp_path / "again"
    said.clear()
    run_recommender_benchmark(
        grid, again, reuse=[first / "cells.parquet"], report_only=True, say=said.append
    )
    assert said == ["6 cells are taken from where they were made before."]
    assert (again / "results.csv").read_bytes() == wanted
    # what is there already stays
    said.clear()
    run_recommender_benchmark(grid, again, reuse=[first], dry_run=True, say=said.append)
    run_recommender_benchmark(grid, again, reuse=[first], say=said.append)
    assert said[-2:] == [
        "0 cells are taken from where they were made before.",
        "0 cells to make, 6 are finished.",
    ]


def test_ranks_that_no_metric_looks_at_are_not_kept(tmp_path: Path, source: FakeSource) -> None:
    del source
    grid = grid_of(seeds=[0], variants=["Normal"])
    run_recommender_benchmark(grid, tmp_path)
    cell = cell_of(tmp_path, "Normal-seed0")
    own = pq.read_table(cell / "ranks.parquet")["rank"].to_numpy().copy()
    own[:3] = [20, 21, 5_000]
    plan = Plan(next(grid.tasks()), cell, "key", None)
    pq.write_table(pa.table({"rank": pa.array(own, pa.int32())}), cell / "ranks.parquet")
    file = write_cells(tmp_path / "some.parquet", [plan])
    taken = replace(plan, folder=tmp_path / "taken")
    (there,) = find_cells([file], [taken])
    there.take()
    found = read_cell(taken).trained
    np.testing.assert_array_equal(found.test_ranks, [20, 21, 21, *own[3:]])
    assert found.curve == read_cell(plan).trained.curve
    assert not find_cells([file], [taken])


def test_where_cells_are_taken_from_must_have_some(tmp_path: Path, source: FakeSource) -> None:
    del source
    grid, empty, broken = grid_of(), tmp_path / "empty", tmp_path / "cells.parquet"
    empty.mkdir()
    broken.write_bytes(b"no table")
    for place in (empty, tmp_path / "none", tmp_path / "none.parquet"):
        with pytest.raises(DataError, match=f"{place.name} came to take cells from, expected"):
            run_recommender_benchmark(grid, tmp_path / "run", reuse=[place])
    with pytest.raises(ArtefactError, match="cannot be read as cells of LEA"):
        run_recommender_benchmark(grid, tmp_path / "run", reuse=[broken])
    with pytest.raises(DataError, match="fresh and reuse came"):
        run_recommender_benchmark(grid, tmp_path / "run", reuse=[empty], fresh=True)
    assert not list((tmp_path / "run").glob("cells/*"))


def test_what_is_asked_for_must_be_there(tmp_path: Path, source: FakeSource) -> None:
    del source
    grid = grid_of()
    for options, message in (
        ({"only": ["SNQM"]}, "did you mean 'SNQN'"),
        ({"datasets": ["mode"]}, "did you mean 'made'"),
    ):
        with pytest.raises(DataError, match=message):
            run_recommender_benchmark(grid, tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is not there, so there is no cell to report"):
        run_recommender_benchmark(grid, tmp_path / "none", report_only=True)
    with pytest.raises(DataError, match="holds no finished cell"):
        run_recommender_benchmark(grid, tmp_path, report_only=True)
    wrong = grid_of(feedback={"shares": 0.1})
    with pytest.raises(DataError, match="did you mean 'share'"):
        run_recommender_benchmark(wrong, tmp_path)
    assert not list(tmp_path.glob("cells/*"))


def test_work_can_be_sent_to_another_process() -> None:
    maker = Maker(grid_of(), None, None, "code")
    for work in (maker, maker.prepare_all):
        again = ForkingPickler.loads(bytes(ForkingPickler.dumps(work)))
        assert callable(again)


# -- the report ------------------------------------------------------------------------------------


def test_gains_by_hand() -> None:
    ranks = np.array([1, 3, 7, 30])
    assert gains(ranks, "HR@5").tolist() == [1.0, 1.0, 0.0, 0.0]
    assert gains(ranks, "NDCG@10").tolist() == pytest.approx([1.0, 0.5, 1.0 / 3.0, 0.0])


def test_estimates_by_hand() -> None:
    # seeds' means 0, 0.25, 0.5, 0.75: the middle two are averaged
    values = [np.array([0.0] * (4 - n) + [1.0] * n) for n in range(4)]
    found = estimate(values, np.arange(4))
    assert (found.mean, found.median, found.seeds) == (0.375, 0.375, 4)
    assert found.low < 0.375 < found.high


def test_intervals_draw_users_with_all_their_examples() -> None:
    rng = np.random.default_rng(0)
    values = [rng.random(40) for _ in range(3)]
    # a user for each example: the interval over examples
    alone = estimate(values, np.arange(40)[::-1] * 3)
    reversed_values = [part[::-1] for part in values]
    assert (alone.low, alone.high) == interval(bootstrap_iqm(reversed_values, paired=True))
    # a user with 3 hits, one with a miss: draws of two users give 1, 3 / 4, or 0
    hits = np.array([1.0, 1.0, 0.0, 1.0])
    users = np.array([7, 7, 2, 7])
    found = estimate([hits], users)
    assert (found.mean, found.low, found.high) == (0.75, 0.0, 1.0)
    # each example ten times over knows no more about users
    often = estimate([np.repeat(part, 10) for part in values], np.repeat(np.arange(40), 10))
    once = estimate(values, np.arange(40))
    assert often.high - often.low == pytest.approx(once.high - once.low)
    apart = estimate([np.repeat(part, 10) for part in values], np.arange(400))
    assert apart.high - apart.low < 0.7 * (often.high - often.low)


def finished(seed: int, ranks: list[int]) -> Finished:
    task = RecommenderTask("made", "SASRec", "SNQN", "SNQN", seed, 1, {}, {}, None)
    return Finished(task, Trained({}, {}, np.array(ranks), (), 0, 0, 0.0), "")


def test_rows_are_compared_seed_by_seed() -> None:
    ours = {seed: finished(seed, [1, 1, 1, 30]) for seed in (0, 1, 2)}
    others = {0: finished(0, [1, 1, 30, 30]), 1: finished(1, [1] * 4), 3: finished(3, [30] * 4)}
    users = np.arange(4)
    found = compare(ours, others, users, "SA2C", "HR@10")
    assert found is not None
    # seed 0: 0.75 - 0.5; seed 1: 0.75 - 1; the others are in one row only
    assert (found.difference.mean, found.above, found.difference.seeds) == (0.0, 1, 2)
    assert compare(ours, {5: others[3]}, users, "SA2C", "HR@10") is None
