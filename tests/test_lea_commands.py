"""`ilrec lea`, from the options to the tables."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ilrec_sb3.cli import main
from ilrec_sb3.lea import LEA
from ilrec_sb3.lea.feedback import FEEDBACK
from llm_expert.environment import plugin
from recsim_env.datasets import from_tables, save_custom

DATA = ["--option", "n_users=30", "--option", "n_items=12", "--option", "length=6"]
TINY = ["--set", "dim=8", "--set", "evaluate_every=2", "--no-progress"]
NEXT = [*DATA, *TINY, "--backbone", "GRU4Rec"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ILREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point, whether it is installed yet or not."""
    entry = SimpleNamespace(name="language-model", load=lambda: plugin.source)
    real = importlib.metadata.entry_points

    def found(**options: str) -> object:
        return [entry] if options == {"group": "ilrec.environments"} else real(**options)

    monkeypatch.setattr(importlib.metadata, "entry_points", found)


def usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("step", ["prepare", "train", "evaluate", "benchmark"])
def test_help_has_examples(
    step: str, capsys: pytest.CaptureFixture[str], language_model: None
) -> None:
    del language_model
    with pytest.raises(SystemExit) as stop:
        main(["lea", step, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert f"examples:\n  ilrec lea {step}" in printed
    assert ("--llm NAME" in printed) == (step == "prepare")


def test_the_help_of_all_commands_imports_nothing_of_it() -> None:
    code = "import sys, ilrec_sb3.cli as c; c.main([]); print(*sys.modules, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert " lea " in run.stdout
    assert {"torch", "ilrec_sb3.lea"} & set(run.stderr.split()) == set()


def test_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'train'" in usage_error(["lea", "trane"], capsys)
    error = usage_error(["lea", "train", "--out", "x", "--varant", "SNQN"], capsys)
    assert "there is no option '--varant'; did you mean '--variant'" in error
    assert "STEP" in usage_error(["lea"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "x"], "came without --feedback"),
        (["train", "--out", "x", "--feedback", "no"], "no is not there, expected the feedback"),
        (["train", "--out", "x", "--variant", "SNQ"], "did you mean 'SNQN'"),
        (["train", "--out", "x", "--variant", "SNQN", "--dataset", "steem"], "mean 'steam'"),
        (["train", "--out", "x", "--variant", "SNQN", "--set", "dim=wide"], "dim='wide' came"),
        (["train", "--out", "x", "--variant", "SNQN", "--backbone", "GRU"], "mean 'GRU4Rec'"),
        (["train", "--out", "full", "--variant", "SNQN"], "something else in it"),
        (["train", "--out", "full/file", "--variant", "SNQN"], "which is a file"),
        (["evaluate", "full"], "is no finished run"),
        (["benchmark", "none.toml"], "none.toml is not there"),
    ],
)
def test_one_sentence_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("of somebody else")
    assert main(["lea", *arguments]) == 1
    printed, error = capsys.readouterr()
    assert message in error
    assert not printed
    assert len(error.strip().splitlines()) == 1
    assert not Path("x").exists()
    assert Path("full/file").read_text() == "of somebody else"


def test_no_environment_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    assert main(["lea", "prepare", "--out", "x"]) == 1
    assert "No installed package brings an environment" in capsys.readouterr().err


def test_repeats_in_data_of_your_own_are_told(
    capsys: pytest.CaptureFixture[str], language_model: None
) -> None:
    del language_model
    users, items, times = zip(
        *((u, (u + t) % 8, t) for u in range(20) for t in range(10)), strict=True
    )
    rows = {"user": users, "item": items, "time": times, "clicks": [1 + t % 3 for t in times]}
    words = {"item": range(8), "title": [f"Song {n}" for n in range(8)], "genre": ["pop"] * 8}
    save_custom(from_tables(rows, words, "songs"))
    missing = ["--llm", "./nowhere", "--no-progress"]  # stops before anything is made
    assert main(["lea", "prepare", "--dataset", "songs", "--out", "x", *missing]) == 1
    printed, error = capsys.readouterr()
    assert "songs: 20 sequences of 160 events and 8 items." in printed
    assert "Beware: 40 rows repeated a user and an item" in printed
    assert "./nowhere came, which is no folder" in error


def test_what_comes_next_has_the_options_that_were_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["--data", "some where", "--cache", str(tmp_path)]
    train = ["lea", "train", "--variant", "Normal", *NEXT, *given, "--steps", "2", "--out", "one"]
    assert main(train) == 0
    expected = f"Next: ilrec lea evaluate one '--data=some where' --cache={tmp_path}"
    assert expected in capsys.readouterr().out


def test_train_and_evaluate_without_feedback(capsys: pytest.CaptureFixture[str]) -> None:
    train = ["lea", "train", "--variant", "SNQN", *NEXT, "--steps", "4", "--out", "runs/one"]
    assert main(train) == 0
    printed = capsys.readouterr().out
    assert "GRU4Rec SNQN: 4 steps" in printed
    assert "| validation |" in printed
    about = json.loads(Path("runs/one/run.json").read_text())
    assert about["settings"] == {"evaluate_every": 2, "dim": 8}
    assert len(Path("runs/one/curve.csv").read_text().splitlines()) == 3
    assert main(train) == 0  # a run may be replaced
    capsys.readouterr()
    assert main(["lea", "evaluate", "runs/one", "--no-progress"]) == 0
    table = capsys.readouterr().out
    assert "| GRU4Rec SNQN, seed 0 (one) |" in table
    assert "| popularity |" in table
    assert "| last item |" in table
    metrics = json.loads(Path("runs/one/metrics.json").read_text())
    assert f"{metrics['test']['HR@10']:.4f}" in table
    # data that changed since
    about["fingerprint"] = "other"
    Path("runs/one/run.json").write_text(json.dumps(about))
    assert main(["lea", "evaluate", "runs/one"]) == 1
    assert "was trained on other data" in capsys.readouterr().err


def test_a_loss_that_is_no_number_gets_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise FloatingPointError("The loss at step 2 is nan.")

    monkeypatch.setattr(LEA, "learn", diverge)
    assert main(["lea", "train", "--variant", "SNQN", *NEXT, "--out", "runs/one"]) == 1
    assert capsys.readouterr().err == "ilrec lea: The loss at step 2 is nan.\n"


def test_prepare_stop_go_on_train(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, language_model: None
) -> None:
    del language_model
    sizes = (
        "vocabulary=420",
        "hidden=16",
        "heads=2",
        "epochs=1",
        "practice=40",
        "exercise_steps=1",
    )
    small = [f"--small={size}" for size in sizes]
    prepare = ["lea", "prepare", *NEXT, "--candidate-steps", "4", "--out", "fb", *small]
    prepare += ["--tune=iterations=2", "--epochs", "1", "--share", "0.2", "--chunk", "40"]
    from llm_expert.environment.environment import LLMEnvironment

    with monkeypatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(LLMEnvironment, "fit", stop)
        assert main(prepare) == 130
    assert "goes on with the stages and pieces that are finished" in capsys.readouterr().err
    assert not Path("fb", FEEDBACK).exists()
    kept = {path.name.split("-")[0] for path in Path("fb/stages").iterdir()}
    assert {"candidates", "language_model", "item_tokens"} <= kept
    assert any(Path("fb/stages/pieces").glob("small_model-*/*"))  # where its training stood
    assert main(prepare) == 0
    assert Path("fb", FEEDBACK).exists()
    capsys.readouterr()
    assert main(prepare) == 0
    assert "feedback.safetensors is there" in capsys.readouterr().out
    train = ["lea", "train", *NEXT, "--steps", "4", "--feedback", "fb", "--out", "runs/leasr"]
    assert main(train) == 0
    assert "GRU4Rec SA2C-LEASR: 4 steps" in capsys.readouterr().out
    other = [*train, "--option", "n_users=31"]
    assert main(other) == 1
    assert "belongs to other examples" in capsys.readouterr().err


def test_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.toml").write_text(
        'name = "tiny"\nvariants = ["Normal"]\nseeds = [0]\nsteps = 2\nevaluate_every = 1\n'
        'backbones = ["GRU4Rec"]\nsettings = { dim = 8 }\n[datasets.made]\n'
        'dataset = "synthetic"\noptions = { n_users = 30, n_items = 12, length = 6 }\n'
    )
    assert main(["lea", "benchmark", "grid.toml"]) == 0
    printed = capsys.readouterr().out
    assert "[1/1] made/GRU4Rec/Normal-seed0: HR@10" in printed
    assert "Report: runs/lea-tiny/report.md" in printed
    assert "$ ilrec lea benchmark grid.toml" in Path("runs/lea-tiny/report.md").read_text()
