"""`ilrec collect` and `ilrec evaluate --agent` as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ilrec_sb3.cli import main
from llm_expert.chat_models import ModelFacts
from llm_expert.demonstrations import CollectConfig
from llm_expert.estimate import estimate
from llm_expert.testing import ChatServer
from llm_expert.tokens import TokenCounter, make_counter
from recsim_env import Dynamics, Prepared
from recsim_env.termination import make_rules
from recsim_env.trajectories import load_trajectories

ENV = [
    "--env-option",
    'options={"n_users": 60, "n_items": 40, "seed": 3}',
    "--env-option",
    "limit=6",
    "--no-progress",
]
SMALL = ["--option", "n_users=60", "--option", "n_items=40", "--option", "seed=3", "--no-progress"]
SECRET = "sk-test-SECRET123456"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared) -> None:
    assert prepared.path.exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    return capsys.readouterr().err


def test_collect_then_again_then_train(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["collect", "--episodes", "6", "--out", "run", *ENV]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "| sessions | 6 |" in out
    assert "| all |" in out
    assert "counts bytes for tokens" in out
    options = "--option n_users=60 --option n_items=40 --option seed=3"
    assert f"Next: ilrec train --dataset synthetic {options}" in out
    path = Path("run/demonstrations.parquet")
    before = path.read_bytes()
    assert main(command) == 0
    assert "| all | 0 |" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert main([*command, "--replay"]) == 0
    assert path.read_bytes() == before
    assert len(load_trajectories(path)) == 6
    quick = ["--set", "warm_start_steps=2", "--set", "discriminator_steps=1"]
    quick += ["--set", "batch_size=16", "--steps", "64"]
    train = ["train", *SMALL, *quick, "--demonstrations", str(path), "--out", "model"]
    assert main(train) == 0


def test_evaluate_agents_beside_the_planners(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--agent", "act-only", "billp", "--episodes", "4", *SMALL]
    assert main(command) == 0
    table = capsys.readouterr().out
    for text in ("random", "oracle", "ActOnly (offline)", "BiLLP (offline)", "| calls |", "$0.00"):
        assert text in table
    rows = {line.split(" | ")[0]: line for line in table.splitlines() if line.startswith("| ")}
    assert main(command) == 0  # every answer is in the record of calls in the cache
    again = capsys.readouterr().out
    assert [line.split(" | ")[:5] for line in again.splitlines()] == [
        line.split(" | ")[:5] for line in table.splitlines()
    ]
    assert main([*command, "--replay"]) == 0
    assert rows["| BiLLP (offline)"].split(" | ")[7].strip() != "–"


def test_a_dry_run_needs_neither_key_nor_network(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["collect", "--dry-run", "--llm", "openai:gpt-4o-mini", "--episodes", "50", *ENV]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "About $" in out
    assert "Estimate for 50 sessions of billp on openai:gpt-4o-mini, from 40 sessions" in out
    assert not Path("runs").exists()
    unknown = ["collect", "--dry-run", "--llm", "http://localhost:1/v1#m", "--episodes", "3", *ENV]
    assert main(unknown) == 0
    assert "give --price IN OUT" in capsys.readouterr().out


def test_a_dry_run_counts_as_the_model_would(prepared: Prepared) -> None:
    config = CollectConfig(env="IlRecSynthetic-v0", episodes=5)
    dynamics = Dynamics(prepared, split="train", rules=make_rules(), limit=6)

    def counted(counter: TokenCounter) -> list[int]:
        facts = ModelFacts("m", 100_000, counter, None)
        text = estimate(config, facts, dynamics)
        (line,) = [line for line in text.splitlines() if line.startswith("| all |")]
        return [int(cell.replace(",", "")) for cell in line.split("|")[2:5]]

    calls, prompt, answer = counted(make_counter(None))
    fourth = TokenCounter("fourth", exact=True, count_anew=lambda text: len(text) // 4)
    fewer_calls, fewer_prompt, fewer_answer = counted(fourth)
    assert fewer_calls == calls > 0
    assert 0.2 < fewer_prompt / prompt < 0.3
    assert 0.15 < fewer_answer / answer < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "No --out came"),
        (["--out", "x", "--llm", "openia:gpt-4o"], "did you mean 'openai'"),
        (["--out", "x", "--llm", "openai:gpt-4o"], "OPENAI_API_KEY is not set"),
        (["--out", "x", "--set", "gama=0.3"], "did you mean 'gamma'"),
        (["--out", "x", "--env", "IlRecSynthetc-v0"], "did you mean 'IlRecSynthetic-v0'"),
        (["--out", "x", "--memories", "nowhere"], "holds no memories"),
        (["--out", "x", "--memories", "recorded"], "no recordings of 'synthetic'"),
        (["--out", "x", "--embedder", "bert"], "expected huggingface:PATH"),
        (["--out", "x", "--env-option", "nope=1"], "has no argument 'nope'"),
        (["--out", "x", "--env-option", "limits=1"], "did you mean 'limit'"),
        (["--out", "x", "--env-option", "window=abc"], "cannot be made with"),
        (["--out", "x", "--env", "CartPole-v1"], "no recommender environment"),
        (["--out", "x", "--env", "nothing:IlRecSteam-v0"], "There is no environment"),
        (["--out", "x", "--data", "nowhere"], "--data nowhere is not there"),
        (["--out", ""], "No --out came"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["collect", "--episodes", "2", *arguments, *ENV], capsys)
    assert message in error
    assert "Traceback" not in error


def test_keys_are_written_nowhere(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    answers = {"Action:": 'Action: recommend["Portal"]', "Value:": "Value: 5"}

    def say(messages: list[dict[str, str]]) -> str:
        task = messages[-1]["content"].rpartition("### Task")[2]
        return next((text for label, text in answers.items() if label in task), "Guidance: vary")

    with ChatServer(say, key=SECRET) as server:
        llm = ["--llm", f"{server.url}#test-model", "--window", "9000", "--out", "run"]
        assert main(["collect", "--episodes", "2", *llm, *ENV, "--verbose"]) == 0
    with ChatServer(say, key="another") as server:
        llm = ["--llm", f"{server.url}#test-model", "--window", "9000", "--out", "refused"]
        error = refused(["collect", "--episodes", "2", *llm, *ENV], capsys)
        assert "key" in error
        assert SECRET not in error
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err + caplog.text
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["model"].startswith("http://127.0.0.1")


def test_no_paid_model_plays_the_stand_in_for_missing_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("ILREC_DATA", str(tmp_path))
    command = ["collect", "--env", "IlRecCoat-v0", "--out", "x", "--no-progress"]
    error = refused([*command, "--llm", "openai:gpt-4o-mini"], capsys)
    assert "There are no data for IlRecCoat-v0" in error


@pytest.mark.realdata
def test_recorded_memories_are_taken_up(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["collect", "--env", "IlRecSteam-v0", "--data", str(real_data), "--episodes", "4"]
    command += ["--env-option", 'options={"min_user": 20, "min_item": 10}', "--no-progress"]
    assert main([*command, "--memories", "recorded", "--out", "run"]) == 0
    assert "| sessions | 4 |" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    started = sum(file.stat().st_size for file in (tmp_path / "run" / "memories").rglob("*"))
    assert main([*command, "--out", "empty"]) == 0
    empty = sum(file.stat().st_size for file in (tmp_path / "empty" / "memories").rglob("*"))
    assert started > 5 * empty
    assert report != json.loads((tmp_path / "empty" / "report.json").read_text())
