from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilrec_sb3 import cli
from ilrec_sb3.cli import main
from recsim_env import Dynamics, Prepared
from recsim_env.planners import Played, draw_users, rule_aware, run_episodes

SMALL = ["--option", "n_users=60", "--option", "n_items=40", "--option", "seed=3", "--no-progress"]
QUICK = ["--set", "warm_start_steps=2", "--set", "discriminator_steps=1", "--set", "batch_size=16"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> None:
    assert prepared.path.exists()
    monkeypatch.chdir(tmp_path)


def usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "prepare", "train", "evaluate", "benchmark"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"examples:\n  ilrec {command}" in capsys.readouterr().out


def test_without_a_command_comes_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: ilrec" in capsys.readouterr().out


def test_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean '--steps'" in usage_error(["demo", "--stpes", "3"], capsys)
    assert "did you mean 'demo'" in usage_error(["demmo"], capsys)
    assert "there is no option '--ste'" in usage_error(["demo", "--ste", "3"], capsys)
    assert "whole number of 1 or more" in usage_error(["demo", "--steps", "0"], capsys)
    assert "give either the NAME" in usage_error(["prepare"], capsys)
    assert "whole number of 0 or more" in usage_error(["train", "--seed", "-1"], capsys)
    assert "expected cpu, cuda" in usage_error(["train", "--device", "tpu"], capsys)
    assert "all three" in usage_error(["prepare", "--items", "x"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "nowhere is not there"),
        (["train", "--algorithm", "ILRek"], "did you mean 'ILRec'"),
        (["train", "--dataset", "synthetik"], "did you mean 'synthetic'"),
        (["train", "--option", "n_users"], "expected KEY=VALUE"),
        (["train", *SMALL, "--set", "ent_coef=no"], "ent_coef='no' came"),
        (["train", "--demonstrations", "x", "--algorithm", "DQN"], "takes none"),
        (["demo", "--config", "no.json"], "no.json is not there"),
        (["demo", "--dataset", "synthetik"], "did you mean 'synthetic'"),
        (["train", "--option", "n_users=many"], "n_users='many' of 'synthetic' came, expected int"),
        (["train", "--option", "n_users=true"], "n_users=True"),
        (["train", *SMALL, "--out", "afile/x"], "afile/x cannot be read or written"),
        (["evaluate", "afile"], "afile is not a saved model"),
    ],
)
def test_one_sentence_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("afile").write_text("this is no folder and no model")
    assert main(arguments) == 1
    printed, error = capsys.readouterr()
    assert message in error
    assert not printed
    assert sorted(path.name for path in Path().iterdir()) == ["afile"]
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_verbose_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        main(["evaluate", "nowhere", "-v"])


def test_train_stop_go_on_evaluate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", *SMALL, *QUICK, "--out", "runs/one", "--checkpoint-every", "32"]
    from ilrec_sb3 import training

    real = training.save_model

    def interrupt(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_model", interrupt)
        assert main([*command, "--steps", "96"]) == 130
    assert "same command goes on from the last checkpoint" in capsys.readouterr().err
    assert main([*command, "--steps", "96"]) == 0
    printed = capsys.readouterr().out
    assert "Going on from 32 steps" in printed
    assert "ILRec after 96 env steps" in printed
    assert main([*command, "--steps", "96", "--seed", "1"]) == 1
    assert "seed=0" in capsys.readouterr().err
    assert main(["evaluate", "runs/one", "--episodes", "10", "--no-progress"]) == 0
    table = capsys.readouterr().out
    assert "| **ILRec** |" in table
    assert "| oracle |" in table
    other = ["--option", "n_users=60", "--option", "n_items=48", "--no-progress"]
    assert main(["evaluate", "runs/one/model.zip", *other]) == 1
    assert "for 40 items came for a dataset of 48" in capsys.readouterr().err


def test_offline_algorithms_are_trained_in_gradient_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", *SMALL, "--algorithm", "offline:BC", "--out", "bc"]
    checkpoints = ["--checkpoint-every", "2"]
    assert main([*command, *checkpoints, "--steps", "4"]) == 0
    assert "offline:BC after 4 gradient steps" in capsys.readouterr().out
    assert main([*command, "--steps", "6"]) == 0
    assert "Going on from 4 steps" in capsys.readouterr().out
    assert main(["evaluate", "bc", "--episodes", "5", "--no-progress"]) == 0
    assert "| offline:BC |" in capsys.readouterr().out


def test_demo_then_evaluate_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.json").write_text(json.dumps({"curve_points": 0, "demonstrations": 5}))
    options = ["--config", "config.json", "--algorithms", "A2C", "--episodes", "10", "--run", "r"]
    assert main(["demo", *SMALL, *options, "--steps", "80", "--seeds", "0", "1"]) == 0
    printed = capsys.readouterr().out
    assert "about" in printed
    assert "| A2C |" in printed
    assert "Try next" in printed
    assert Path("runs/r/table.md").exists()
    stored = json.loads(Path("runs/r/config.json").read_text())
    assert stored["seeds"] == [0, 1]
    assert main(["evaluate", "runs/r", "--episodes", "10", "--no-progress"]) == 0
    assert "of the 2 trainings" in capsys.readouterr().out


def test_an_unknown_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.json").write_text('{"seedz": [1]}')
    assert main(["demo", "--config", "config.json"]) == 1
    assert "did you mean 'seeds'" in capsys.readouterr().err


def test_prepare_prints_statistics_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "synthetic", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "hours_quartiles" in printed or "hours quartiles" in printed
    assert "# Model card: synthetic" in printed


def test_prepare_own_tables_then_find_them(capsys: pytest.CaptureFixture[str]) -> None:
    items = ["item,title,genres", *(f"i{k},Title {k},{'abc'[k % 3]}" for k in range(12))]
    plays = ["client,item,stars"]
    plays += [f"u{u},i{(u * 5 + k) % 12},{(u + k) % 11}" for u in range(12) for k in range(8)]
    Path("items.csv").write_text("\n".join(items))
    Path("plays.csv").write_text("\n".join(plays))
    own = ["--interactions", "plays.csv", "--items", "items.csv", "--name", "mine"]
    assert main(["prepare", *own, "--no-progress"]) == 1
    assert "no column 'user'" in capsys.readouterr().err
    named = ["--column", "user=client", "--rating-column", "stars", "--rating-scale", "0", "10"]
    assert main(["prepare", *own, *named, "--no-progress"]) == 0
    assert "ilrec train --dataset mine" in capsys.readouterr().out
    option = ["--option", "x=1", "--no-progress"]
    for command in (
        ["prepare", "mine"],
        ["prepare", *own],
        ["train", "--dataset", "mine"],
        ["demo", "--dataset", "mine"],
        ["evaluate", "no.zip", "--dataset", "mine"],
    ):
        assert main([*command, *option]) == 1
        refused = capsys.readouterr().err.strip()
        assert "--option x=1 came for 'mine', a dataset of your own" in refused
        assert len(refused.splitlines()) == 1
    train = ["train", "--dataset", "mine", "--no-progress", "--algorithm", "A2C", "--steps", "80"]
    assert main(train) == 0
    assert Path("runs/mine-A2C-seed0/model.zip").exists()


def test_a_stopped_preparation_says_that_it_starts_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["recsim_env.prepare"], "prepare", stop)
    assert main(["prepare", "synthetic", *SMALL]) == 130
    assert "the same command starts over" in capsys.readouterr().err


@pytest.mark.parametrize(("errors", "warned"), [((0.9, 1.0), True), ((0.9, 0.8), False)])
def test_prepare_warns_of_world_models_that_learned_no_taste(
    errors: tuple[float, float],
    warned: bool,
    prepared: Prepared,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports = {
        split: {
            **prepared.card["world_model"][split],
            "rmse": rmse,
            "biases": {"rmse": 0.9, "mae": 1},
        }
        for split, rmse in zip(("train", "test"), errors, strict=True)
    }
    found = replace(prepared, card={**prepared.card, "world_model": reports})
    monkeypatch.setattr(sys.modules["recsim_env.prepare"], "prepare", lambda *_, **__: found)
    assert main(["prepare", "synthetic", *SMALL]) == 0
    assert ("neither world model beats" in capsys.readouterr().out) == warned


class Plug:
    """An entry point."""

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.target = target

    def load(self) -> Any:
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_commands_plug_in(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def add(subparsers: Any) -> None:
        parser: argparse.ArgumentParser = subparsers.add_parser("greet")
        parser.add_argument("--loud", action="store_true")
        parser.set_defaults(run=lambda arguments: 7 if arguments.loud else None)

    broken = Plug("broken", ImportError("no such module"))
    plugs = [Plug("greet", add), Plug("twice", add), broken]
    monkeypatch.setattr(
        cli.importlib.metadata,
        "entry_points",
        lambda group: plugs if group == "ilrec.commands" else [],
    )
    assert main(["greet"]) == 0
    assert main(["greet", "--loud"]) == 7
    captured = caplog.messages
    assert "'broken' of ilrec.commands cannot be loaded: no such module" in captured
    assert "'twice' of ilrec.commands cannot be loaded: argument" in captured[1]
    assert "did you mean '--loud'" in usage_error(["greet", "--lout"], capsys)


class FakePlayer:
    """Recommends the first items that end no session."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--fake", action="append", default=[], metavar="NAME")

    def chosen(self, arguments: argparse.Namespace) -> bool:
        return bool(arguments.fake)

    def play(
        self, arguments: argparse.Namespace, dynamics: Dynamics, episodes: int, seed: int
    ) -> list[Played]:
        played = run_episodes(dynamics, rule_aware(), episodes, seed)
        np.testing.assert_array_equal(played.users, draw_users(dynamics, episodes, seed))
        played = replace(played, users=(played.users + self.shift) % dynamics.n_users)
        columns = {"calls": "12", "latency": "1.5 s"}
        return [Played(name, played, 2.0, columns) for name in arguments.fake]


def plug_players(monkeypatch: pytest.MonkeyPatch, *plugs: Plug) -> None:
    monkeypatch.setattr(
        cli.importlib.metadata,
        "entry_points",
        lambda group, **_: plugs if group == "ilrec.players" else [],
    )


def test_players_are_rows_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_players(monkeypatch, Plug("fake", FakePlayer()))
    small = [*SMALL, "--episodes", "10"]
    assert main(["evaluate", "--fake", "one", "--fake", "two", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:8]]
    assert names == ["random", "greedy", "one", "two", "rule-aware planner", "oracle"]
    assert lines[0].endswith("| wall time | calls | latency |")
    assert lines[2].split("|")[-3].strip() == "–"
    assert lines[2].split("|")[-2].strip().endswith(" ms")
    assert lines[4].endswith("| 2 s | 12 | 1.5 s |")
    assert lines[-1].startswith("synthetic, 40 items. 10 sessions")


def test_players_play_beside_a_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_players(monkeypatch, Plug("fake", FakePlayer()))
    train = ["train", *SMALL, "--algorithm", "A2C", "--steps", "40", "--out", "a2c"]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["evaluate", "a2c", "--no-progress", "--episodes", "5", "--fake", "one"]) == 0
    table = capsys.readouterr().out
    assert table.index("| A2C |") < table.index("| one |") < table.index("| oracle |")
    assert main(["evaluate", "a2c", "--no-progress", "--episodes", "5"]) == 0
    assert "| wall time |\n" in capsys.readouterr().out


def test_a_player_of_other_users_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_players(monkeypatch, Plug("fake", FakePlayer(shift=1)))
    assert main(["evaluate", "--fake", "one", *SMALL, "--episodes", "10"]) == 1
    assert "one played other users" in capsys.readouterr().err


def test_nobody_to_play(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Plug("broken", ImportError("no such\nmodule"))
    plug_players(monkeypatch, broken, Plug("fake", FakePlayer()), Plug("twice", FakePlayer()))
    assert "or choose a player by its option" in usage_error(["evaluate"], capsys)
    assert caplog.messages[0] == "'broken' of ilrec.players cannot be loaded: no such module"
    assert "'twice' of ilrec.players cannot be loaded: argument --fake" in caplog.messages[1]
    plug_players(monkeypatch)
    error = usage_error(["evaluate"], capsys)
    assert error.strip().endswith("name a MODEL_OR_RUN, such as runs/first")


def test_ctrl_c_before_the_command_line_is_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_parser", stop)
    assert main(["train"]) == 130
    assert capsys.readouterr().err.startswith("\nStopped. ")
