"""Collecting survives anything: faults, kills, a full disk, Ctrl-C; and replays without a model."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_expert.agents import CachedEmbedder
from llm_expert.chat_models import ChatModel, make_chat_model
from llm_expert.demonstrations import CollectConfig, Collected, collect, dynamics_of
from llm_expert.errors import (
    CallError,
    ConnectionLostError,
    PromptTooLongError,
    ReplayMissError,
    StorageError,
)
from llm_expert.interrupts import Stopped
from llm_expert.offline import Knowledge, OfflineChatModel
from llm_expert.testing import ChatServer
from recsim_env import Dynamics, Prepared
from recsim_env.errors import DataError
from recsim_env.termination import make_rules
from recsim_env.text import TextEmbedder, item_documents
from recsim_env.trajectories import load_trajectories

FILES = ("demonstrations.parquet", "report.json", "config.json")


@pytest.fixture
def dynamics(prepared: Prepared) -> Dynamics:
    return Dynamics(prepared, split="train", rules=make_rules(window=10, max_repeats=4), limit=12)


@pytest.fixture
def offline(prepared: Prepared) -> ChatModel:
    return make_chat_model("offline:invent=0.2,break=0.1", prepared=prepared)


def config(**changes: Any) -> CollectConfig:
    return replace(CollectConfig(env="IlRecSynthetic-v0", episodes=8, parallel=3), **changes)


def run(
    chat: ChatModel,
    out: Path,
    dynamics: Dynamics,
    settings: CollectConfig | None = None,
    **more: Any,
) -> Collected:
    settings = settings or config()
    return collect(settings, chat, out, dynamics=dynamics, progress=False, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def recorded(folder: Path) -> Counter[str]:
    """Returns how often each prompt is in the record: once for each visit of a user."""
    with contextlib.closing(sqlite3.connect(folder / "calls.sqlite")) as file:
        rows = file.execute("SELECT prompt_hash, COUNT(*) FROM calls GROUP BY prompt_hash")
        return Counter(dict(rows.fetchall()))


@pytest.mark.parametrize("agent", ["act-only", "react", "reflexion", "billp"])
def test_every_agent_makes_trajectories(
    agent: str, offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    found = run(offline, tmp_path / "run", dynamics, config(agent=agent))
    assert load_trajectories(found.path) == found.trajectories
    assert len(found.trajectories) == 8
    for trajectory in found.trajectories:
        steps = len(trajectory)
        masks = trajectory.unpacked_masks()
        assert masks is not None
        assert masks[np.arange(steps), trajectory.actions].all()
        assert trajectory.state_embeddings is not None
        assert trajectory.state_embeddings.shape[0] == steps
        assert set(trajectory.extras["model"]) == {offline.spec}
        assert all(len(name) == 64 for name in trajectory.extras["prompt_hash"])
        assert all(tokens > 0 for tokens in trajectory.extras["prompt_tokens"])
        assert set(trajectory.extras["grounding"]) <= {"exact", "normalised", "similar"}
        thoughts = any(trajectory.extras["thought"])
        assert thoughts == (agent != "act-only")
        assert (trajectory.extras["reflection"][-1] is not None) <= (
            agent in ("reflexion", "billp")
        )
    advantages = [a for t in found.trajectories for a in t.extras["advantage"]]
    assert any(a is not None for a in advantages) == (agent == "billp")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report == found.report
    assert report["steps"] == sum(len(t) for t in found.trajectories)
    assert 0.0 < report["regrounded_share"] < 1.0


def test_the_same_run_gives_the_same_files_and_asks_nothing_twice(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    first = run(offline, tmp_path / "a", dynamics)
    before = contents(tmp_path / "a")
    other = run(offline, tmp_path / "b", dynamics)
    assert contents(tmp_path / "b") == before
    assert other.usage.calls == first.usage.calls > 0
    again = run(offline, tmp_path / "a", dynamics)
    assert again.usage.calls == 0
    assert contents(tmp_path / "a") == before


def test_sessions_at_a_time_change_what_is_remembered_but_users_stay(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    one = run(offline, tmp_path / "one", dynamics, config(parallel=1))
    many = run(offline, tmp_path / "many", dynamics, config(parallel=8))
    assert [t.user for t in one.trajectories] == [t.user for t in many.trajectories]
    assert one.trajectories != many.trajectories


def test_a_run_is_replayed_without_the_model(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    run(offline, tmp_path / "run", dynamics)
    before = contents(tmp_path / "run")
    for name in FILES:
        (tmp_path / "run" / name).unlink() if name != "config.json" else None

    class Dead(OfflineChatModel):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            raise AssertionError("the model was asked")

    dead = replace(offline, model=Dead(knowledge=Knowledge.of(dynamics.prepared)))
    run(dead, tmp_path / "run", dynamics, replay=True)
    assert contents(tmp_path / "run") == before


def test_a_replay_that_lacks_an_answer_names_the_prompt(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    run(offline, tmp_path / "run", dynamics)
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "calls.sqlite")) as file, file:
        file.execute("DELETE FROM calls WHERE role = 'actor' AND session = 5 AND step = 1")
    with pytest.raises(ReplayMissError, match=r"actor.*session 5.*step 1"):
        run(offline, tmp_path / "run", dynamics, replay=True)


def test_another_run_is_refused(offline: ChatModel, dynamics: Dynamics, tmp_path: Path) -> None:
    run(offline, tmp_path / "run", dynamics, config(episodes=2))
    with pytest.raises(DataError, match="holds a run with episodes=2, but 3 came"):
        run(offline, tmp_path / "run", dynamics, config(episodes=3))
    with pytest.raises(DataError, match="holds a run with seed=0, but 1 came: give the same"):
        run(offline, tmp_path / "run", dynamics, config(episodes=2, seed=1))
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(DataError, match=r"without its config\.json"):
        run(offline, tmp_path / "run", dynamics, config(episodes=2))


def test_two_processes_do_not_share_a_run(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(DataError, match="Another process is collecting"),
    ):
        run(offline, tmp_path / "run", dynamics)


def test_memories_are_kept_and_taken_up(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    run(offline, tmp_path / "first", dynamics)
    memories = tmp_path / "first" / "memories"
    assert {f.name for f in memories.iterdir()} == {"reflections", "experiences", "values"}
    plain = run(offline, tmp_path / "plain", dynamics, config(seed=5))
    started = run(offline, tmp_path / "started", dynamics, config(seed=5, memories=str(memories)))
    assert started.usage.prompt_tokens > plain.usage.prompt_tokens
    with pytest.raises(DataError, match="holds no memories"):
        run(offline, tmp_path / "x", dynamics, config(memories=str(tmp_path)))
    with pytest.raises(DataError, match="react, which remembers nothing"):
        run(offline, tmp_path / "x", dynamics, config(agent="react", memories=str(memories)))


def test_other_memories_make_another_run(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    run(offline, tmp_path / "first", dynamics)
    run(offline, tmp_path / "second", dynamics, config(seed=9))
    settings = config(memories=str(tmp_path / "first" / "memories"))
    run(offline, tmp_path / "run", dynamics, settings)
    shutil.rmtree(tmp_path / "first" / "memories")
    shutil.copytree(tmp_path / "second" / "memories", tmp_path / "first" / "memories")
    with pytest.raises(DataError, match="holds a run with memories_digest="):
        run(offline, tmp_path / "run", dynamics, settings)


class Named:
    """An embedder that says what it is, or not."""

    def __init__(self, prepared: Prepared, identity: str) -> None:
        self._embedder = TextEmbedder(dim=8).fit(item_documents(prepared.dataset.catalogue))
        self.identity = identity

    def embed(self, texts: Any, /) -> Any:
        return self._embedder.embed(texts)


def test_a_run_goes_on_with_its_embedder_alone(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    def embedder(identity: str) -> CachedEmbedder:
        return CachedEmbedder(Named(dynamics.prepared, identity))

    settings = config(episodes=2)
    run(offline, tmp_path / "run", dynamics, settings, embedder=embedder("one"))
    again = run(offline, tmp_path / "run", dynamics, settings, embedder=embedder("one"))
    assert again.usage.calls == 0
    for other in (embedder("two"), None):
        with pytest.raises(DataError, match="holds a run with embedder='one'"):
            run(offline, tmp_path / "run", dynamics, settings, embedder=other)
    with pytest.raises(DataError, match="without an `identity`"):
        run(offline, tmp_path / "x", dynamics, settings, embedder=embedder(""))


def test_what_lies_in_the_folder_may_be_broken(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    settings = config(episodes=2)
    run(offline, tmp_path / "run", dynamics, settings)
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "demonstrations.parquet").write_bytes(b"PAR1 and then nothing")
    run(offline, tmp_path / "run", dynamics, settings)
    assert contents(tmp_path / "run") == before
    for text in ("[]", "{"):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(DataError, match="expected the settings of a run"):
            run(offline, tmp_path / "run", dynamics, settings)
    with pytest.raises(DataError, match="holds no run to replay"):
        run(offline, tmp_path / "none", dynamics, settings, replay=True)


def test_sessions_without_their_record_are_not_paid_for_again(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    run(offline, tmp_path / "run", dynamics, config(episodes=2))
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "calls.sqlite").unlink()
    with pytest.raises(DataError, match="holds 2 sessions and no record"):
        run(offline, tmp_path / "run", dynamics, config(episodes=2))
    assert contents(tmp_path / "run") == before


def test_a_start_that_failed_before_the_first_answer_binds_nothing(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    with pytest.raises(PromptTooLongError):
        run(replace(offline, window=400), tmp_path / "run", dynamics, config(episodes=2))
    assert len(run(offline, tmp_path / "run", dynamics, config(episodes=2)).trajectories) == 2


def test_a_folder_that_vanishes_is_said(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    def move() -> None:
        (tmp_path / "run").rename(tmp_path / "elsewhere")

    moving = interrupting(offline, dynamics, 20, move)
    with pytest.raises(StorageError, match="removed or moved"):
        run(moving, tmp_path / "run", dynamics)
    assert not (tmp_path / "run").exists()


def test_a_replay_writes_only_where_it_may(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(offline, tmp_path / "run", dynamics, config(episodes=2))

    def read_only(*_: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("recsim_env.trajectories.write_file", read_only)
    monkeypatch.setattr("llm_expert.demonstrations.write_file", read_only)
    again = run(offline, tmp_path / "run", dynamics, config(episodes=2), replay=True)
    assert again.trajectories == whole.trajectories
    assert again.report == whole.report


def test_how_memories_are_named_does_not_matter(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(offline, tmp_path / "first", dynamics, config(episodes=2))
    for name in ("first/memories", "./first/memories", str(tmp_path / "first" / "memories")):
        run(offline, tmp_path / "run", dynamics, config(episodes=2, memories=name))


def test_from_within_a_notebook(offline: ChatModel, dynamics: Dynamics, tmp_path: Path) -> None:
    async def cell() -> Collected:
        return run(offline, tmp_path / "run", dynamics, config(episodes=2))

    assert len(asyncio.run(cell()).trajectories) == 2


def test_a_visit_of_the_same_user_is_another_session(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    found = run(offline, tmp_path / "run", dynamics, config(agent="react", episodes=60))
    by_user: dict[int, set[tuple[int, ...]]] = {}
    visits = Counter(t.user for t in found.trajectories)
    for trajectory in found.trajectories:
        by_user.setdefault(trajectory.user, set()).add(tuple(trajectory.actions.tolist()))
    often = [user for user, count in visits.items() if count > 1]
    assert len(often) > 5
    assert np.mean([len(by_user[user]) == visits[user] for user in often]) > 0.9


# -- stops of all kinds ----------------------------------------------------------------------------


class Interrupting(OfflineChatModel):
    """Does something at its n-th answer."""

    left: int = 0
    act: Any = None

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.act()
        return await super()._agenerate(*args, **kwargs)


def interrupting(
    offline: ChatModel, dynamics: Dynamics, n: int, act: Callable[[], None]
) -> ChatModel:
    knowledge = Knowledge.of(dynamics.prepared)
    fields = {"invent": 0.2, "break_format": 0.1, "seed": 0}
    return replace(offline, model=Interrupting(knowledge=knowledge, left=n, act=act, **fields))


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C as in a terminal; in a shell's background it is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_lets_the_answers_come_and_the_next_start_goes_on(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    whole = run(offline, tmp_path / "whole", dynamics)
    stopping = interrupting(offline, dynamics, 40, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped):
        run(stopping, tmp_path / "run", dynamics)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = run(offline, tmp_path / "run", dynamics)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert 0 < rest.usage.calls <= whole.usage.calls - 40


@pytest.mark.usefixtures("listening")
def test_ctrl_c_starts_no_call_that_was_waiting(
    dynamics: Dynamics, offline: ChatModel, tmp_path: Path
) -> None:
    stopping = interrupting(offline, dynamics, 10, lambda: os.kill(os.getpid(), signal.SIGINT))
    settings = config(episodes=30, parallel=30)
    with pytest.raises(Stopped):
        run(stopping, tmp_path / "run", dynamics, settings, max_in_flight=2)
    model: Any = stopping.model
    assert -2 <= model.left <= 0, "calls were made after the user had asked to stop"
    assert sum(recorded(tmp_path / "run").values()) == 10 - model.left


def test_ctrl_c_stays_ignored_where_it_is(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        going_on = interrupting(offline, dynamics, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert len(run(going_on, tmp_path / "run", dynamics).trajectories) == 8
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_full_disk_is_said_and_the_next_start_goes_on(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(offline, tmp_path / "whole", dynamics)
    from llm_expert.call_store import CallStore

    put, counted = CallStore.put, iter(range(10_000))

    def full(self: CallStore, call: Any) -> None:
        if next(counted) == 30:
            pages = self._connection.execute("PRAGMA page_count").fetchone()[0]
            self._connection.execute(f"PRAGMA max_page_count = {pages}")
        put(self, call)

    monkeypatch.setattr(CallStore, "put", full)
    with pytest.raises(StorageError, match="full"):
        run(offline, tmp_path / "run", dynamics)
    monkeypatch.setattr(CallStore, "put", put)
    run(offline, tmp_path / "run", dynamics)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_folder_that_cannot_be_written(
    offline: ChatModel, dynamics: Dynamics, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        run(offline, tmp_path / "file" / "run", dynamics)


@pytest.fixture
def server(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model = OfflineChatModel(knowledge=Knowledge.of(prepared))
    with ChatServer(model, slow=3.0) as running:
        yield running


FAULTY = {
    "429": 0.037,
    "500": 0.03,
    "slow": 0.003,
    "cut": 0.03,
    "invalid_json": 0.02,
    "empty": 0.02,
    "no_choices": 0.02,
    "html": 0.02,
    "disconnect": 0.02,
}


@pytest.mark.slow
def test_faults_in_a_fifth_of_the_calls_change_nothing(
    server: ChatServer, dynamics: Dynamics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llm_expert.demonstrations as module

    monkeypatch.setattr(
        module, "Caller", lambda *args, **kwargs: Caller(*args, first_wait=0.01, **kwargs)
    )
    from llm_expert.calls import Caller

    dynamics = Dynamics(dynamics.prepared, split="train", rules=make_rules(), limit=5)
    settings = config(episodes=100, parallel=32)
    chat = make_chat_model(f"{server.url}#test-model", encoding=None, window=8192, timeout=2.0)
    run(chat, tmp_path / "calm", dynamics, settings)
    assert server.requests == sum(server.completed.values())
    server.completed.clear()
    before = server.requests
    server.set_faults(FAULTY)
    found = run(chat, tmp_path / "faulty", dynamics, settings, attempts=12, max_in_flight=16)
    faults, requests = sum(server.served.values()), server.requests - before
    assert 0.15 < faults / requests < 0.25
    assert set(server.served) == set(FAULTY)
    calm, faulty = contents(tmp_path / "calm"), contents(tmp_path / "faulty")
    reports = [json.loads(files.pop("report.json")) for files in (calm, faulty)]
    assert faulty == calm
    # answers that came empty were paid all the same
    assert reports[1].pop("prompt_tokens") > reports[0].pop("prompt_tokens")
    assert reports[1] == reports[0]
    assert len(found.trajectories) == 100
    assert recorded(tmp_path / "faulty") == server.completed, "an answer was paid twice or lost"


@pytest.mark.slow
def test_wrong_answers_are_asked_again_and_sessions_complete(
    server: ChatServer, dynamics: Dynamics, tmp_path: Path
) -> None:
    dynamics = Dynamics(dynamics.prepared, split="train", rules=make_rules(), limit=5)
    server.set_faults({"wrong_format": 0.1, "refusal": 0.1})
    chat = make_chat_model(f"{server.url}#test-model", encoding=None, window=8192)
    found = run(chat, tmp_path / "run", dynamics, config(episodes=100, parallel=32))
    assert len(found.trajectories) == 100
    assert sum(server.served.values()) > 0.15 * server.requests
    assert recorded(tmp_path / "run") == server.completed
    assert any(not ok for t in found.trajectories for ok in t.extras["parsed"])


def test_a_dead_server_stops_the_run_and_the_next_start_goes_on(
    server: ChatServer, dynamics: Dynamics, tmp_path: Path
) -> None:
    chat = make_chat_model(f"{server.url}#test-model", encoding=None, window=8192, timeout=30.0)
    run(chat, tmp_path / "whole", dynamics)
    server.delay = 0.01
    last = server.requests + 30

    def die() -> None:
        while server.requests < last:
            time.sleep(0.001)
        server.down()

    death = threading.Thread(target=die, daemon=True)
    death.start()
    with pytest.raises(ConnectionLostError, match="goes on where it stopped"):
        run(chat, tmp_path / "run", dynamics, attempts=1)
    death.join()
    server.delay = 0.0
    server.up()
    run(chat, tmp_path / "run", dynamics)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


SCRIPT = """
import sys
from llm_expert.chat_models import make_chat_model
from llm_expert.demonstrations import CollectConfig, collect
from recsim_env import Dynamics, prepare
from recsim_env.datasets import load
from recsim_env.termination import make_rules

url, out = sys.argv[1:]
prepared = prepare(load("synthetic", n_users=60, n_items=40, seed=3), progress=False)
dynamics = Dynamics(prepared, split="train", rules=make_rules(window=10, max_repeats=4), limit=12)
config = CollectConfig(env="IlRecSynthetic-v0", episodes=40, parallel=4)
chat = make_chat_model(url + "#test-model", encoding=None, window=8192)
collect(config, chat, out, dynamics=dynamics, progress=False)
"""


@pytest.mark.slow
def test_killed_ten_times_the_file_is_that_of_a_run_that_was_not(
    server: ChatServer, dynamics: Dynamics, tmp_path: Path
) -> None:
    chat = make_chat_model(f"{server.url}#test-model", encoding=None, window=8192)
    settings = CollectConfig(env="IlRecSynthetic-v0", episodes=40, parallel=4)
    run(chat, tmp_path / "whole", dynamics, settings)
    needed = server.completed.copy()
    server.completed.clear()
    server.delay = 0.005
    moments = random.Random(0)
    command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "run")]
    for _ in range(10):
        target = server.requests + moments.randint(1, needed.total() // 12)
        process = subprocess.Popen(command)
        while server.requests < target and process.poll() is None:
            time.sleep(0.001)
        assert process.poll() is None, "the run was over before it was killed"
        process.kill()
        process.wait()
    assert subprocess.run(command, check=True, timeout=120).returncode == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert recorded(tmp_path / "run") == needed
    # only what was on its way when it was killed may have been answered a second time
    assert set(server.completed) == set(needed)
    assert (server.completed - needed).total() <= 10 * 3 * settings.parallel


def test_errors_of_calls_are_of_one_family() -> None:
    assert issubclass(ConnectionLostError, CallError)


def test_environments_by_name(cache: Path) -> None:
    del cache
    with pytest.raises(DataError, match="did you mean 'IlRecSteam-v0'"):
        dynamics_of("IlRecStem-v0")
    with pytest.raises(DataError, match="no recommender environment"):
        dynamics_of("CartPole-v1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"agent": "bilp"}, "did you mean 'billp'"),
        ({"episodes": 0}, "episodes=0"),
        ({"episodes": "3"}, "episodes='3'"),
        ({"seed": -1}, "seed=-1"),
        ({"settings": [1]}, "expected AgentSettings"),
        ({"parallel": 0}, "parallel=0"),
        ({"episode": 3}, "episode"),
        ({"settings": {"gama": 1}}, "gama"),
        ({"settings": {"gamma": 1.0}}, "gamma=1.0"),
        ({"settings": {"top_k": 0}}, "top_k=0"),
        ({"settings": {"top_k": 2.5}}, "top_k=2.5"),
        ({"settings": {"gamma": "0.5"}}, "gamma='0.5'"),
        ({"settings": {"history": None}}, "history=None"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CollectConfig.from_dict(values)
