from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_expert import amazon_sessions, steam_sessions
from llm_expert.recorded import GPT_4, recorded_episodes, recorded_memories
from recsim_env.datasets import load
from recsim_env.datasets.dataset import Catalogue, Dataset, Interactions
from recsim_env.errors import DataError, MissingDataError
from recsim_env.text import TextEmbedder, item_documents

# BiLLP's catalogue; the dataset below lacks "Doom" (12) and writes "Half-Life" (11) otherwise.
BILLP = {10: "Portal", 11: "Half-Life®", 12: "Doom", 13: "Quake", 14: "Doom II", 15: "Fez"}
TITLES = ("Quake", "Portal", "Half Life", "Doomed", "Braid", "Fez")
QUAKE, PORTAL, HALF_LIFE, DOOMED, BRAID, FEZ = range(6)


def dataset(name: str) -> Dataset:
    shooters = (("Shooter",), ("Puzzle",), ("Shooter",), ("Shooter",), ("Puzzle",), ("Puzzle",))
    return Dataset(
        name=name,
        catalogue=Catalogue(tuple("abcdef"), TITLES, shooters, ("",) * 6),
        interactions=Interactions(
            np.zeros(2, np.int32), np.arange(2, dtype=np.int32), np.array([5, 1], np.float32)
        ),
        user_ids=("77", "78"),
    )


def embedder(data: Dataset) -> TextEmbedder:
    return TextEmbedder(dim=6).fit(item_documents(data.catalogue))


def step(episode: int, t: int, said: str, shown: int, reward: float = 4.0, **more: Any) -> dict:
    row = {
        "run": "run-1",
        "model": "gpt-3.5-turbo-16k",
        "split": "test",
        "episode_id": episode,
        "user_id": 78,
        "t": t,
        "user_history_item_ids": [10, 12, 11, -1],
        "thought": f"because {said}",
        "raw_action": said,
        "action_item_id": shown,
        "reward": reward,
        "done": reward == -1000.0,
    }
    return row | more


PRINTED = [
    # kept out of order on purpose: `t` tells
    step(0, 1, "portal", 13),  # named, normalised; what was shown instead does not matter
    step(0, 0, "Quake", 13),  # named, exact
    step(0, 2, "Elden Ring", 11),  # not named: what was shown, normalised
    step(0, 3, "Quake", 13),  # said before
    step(0, 4, "Quake Live", 13),  # shown before: nearest to the shown one that is left
    step(0, 5, "Doom Eternal", 12, reward=-1000.0),  # nearest of what is left
    step(1, 0, "Half Life", 11),
    step(1, 1, "half life", 11),  # the same item once more
]


def memory(episode: int, t: int, shown: int, **more: Any) -> dict:
    row = {
        "run": "run-4",
        "model": "gpt-4-32k",
        "split": "test",
        "episode_id": episode,
        "user_id": None,
        "t": t,
        "history_scope": "user_history_plus_recommended",
        "history_item_ids": [10, 12] if t == 0 else [10, 12, 15],
        "action_item_id": shown,
        "inherited": False,
    }
    return row | more


MEMORY = [
    memory(0, 0, 15),
    memory(0, 1, 13),
    memory(1, 0, 10, inherited=True),
    memory(2, 0, 10, history_scope="recommended_only"),
    memory(3, 0, 10, model="gpt-3.5-turbo-16k", run="run-1"),
]


def write(root: Path, name: str = "steam", printed: Any = PRINTED, remembered: Any = None) -> Path:
    folder = {"steam": "steam", "amazon": "amazon_book"}[name]
    for sub in (folder, "llm_demos"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    genres = [["Puzzle"] if i in (10, 15) else ["Shooter"] for i in BILLP]
    rows = {"item_id": list(BILLP), "title": list(BILLP.values()), "genres": genres}
    pq.write_table(pa.table(rows), root / folder / "billp_catalogue.parquet")
    demos = root / "llm_demos"
    if printed:
        pq.write_table(pa.Table.from_pylist(printed), demos / f"{name}_trajectories.parquet")
    if remembered:
        file = demos / f"{name}_memory_transitions.parquet"
        pq.write_table(pa.Table.from_pylist(remembered), file)
    return root


def test_steps_by_each_rule(tmp_path: Path) -> None:
    data = dataset("steam")
    sessions, report = steam_sessions(data, write(tmp_path), embedder(data))
    first, second = sessions
    assert first.actions[:4] == (QUAKE, PORTAL, HALF_LIFE, DOOMED)
    assert first.actions[4] in (BRAID, FEZ)
    assert first.extras["grounding"] == ["exact", "normalised", "normalised", "similar", "similar"]
    assert first.extras["grounded_by"] == ["named", "named", "shown", "shown", "shown"]
    assert first.extras["raw_action"] == [
        "Quake",
        "portal",
        "Elden Ring",
        "Quake Live",
        "Doom Eternal",
    ]
    assert first.extras["thought"][1] == "because portal"
    assert second.actions == (HALF_LIFE,)
    assert report["grounding"]["exact"]["steps"] == 2
    assert report["grounding"]["normalised"]["steps"] == 2
    assert report["grounding"]["similar"] == {"steps": 2, "share": pytest.approx(1 / 3)}
    assert report["dropped_steps"] == {"repeated": 2, "below_min_similarity": 0}


def test_the_step_at_which_the_user_left_is_kept_without_a_reward(tmp_path: Path) -> None:
    data = dataset("steam")
    sessions, report = steam_sessions(data, write(tmp_path), embedder(data))
    assert sessions[0].extras["recorded_reward"] == [4.0, 4.0, 4.0, 4.0, None]
    assert [session.extras["left"] for session in sessions] == [True, False]
    assert report["left"] == 1


def test_histories_hold_what_is_found_by_title_only(tmp_path: Path) -> None:
    data = dataset("steam")
    sessions, report = steam_sessions(data, write(tmp_path), embedder(data))
    assert sessions[0].history == (PORTAL, HALF_LIFE)
    assert (report["history_items"], report["history_items_dropped"]) == (6, 2)


def test_report_counts_and_is_json(tmp_path: Path) -> None:
    data = dataset("steam")
    _, report = steam_sessions(data, write(tmp_path), embedder(data))
    assert json.loads(json.dumps(report)) == report
    assert (report["recorded_sessions"], report["recorded_steps"]) == (2, 8)
    assert (report["sessions"], report["steps"], report["users"]) == (2, 6, 1)
    assert report["mean_length"] == 3.0


def test_steam_users_are_never_those_of_the_dataset(tmp_path: Path) -> None:
    data = dataset("steam")
    sessions, _ = steam_sessions(data, write(tmp_path), embedder(data))
    assert {session.user for session in sessions} == {-1}


def test_amazon_users_are_those_of_the_dataset_in_test_runs(tmp_path: Path) -> None:
    data = dataset("amazon")
    printed = [*PRINTED, step(2, 0, "Fez", 15, split="train")]
    sessions, report = amazon_sessions(data, write(tmp_path, "amazon", printed), embedder(data))
    assert [session.user for session in sessions] == [1, 1, -1]
    assert report["known_users"] == 1


def test_memory_where_a_model_has_nothing_printed(tmp_path: Path) -> None:
    data = dataset("steam")
    root = write(tmp_path, remembered=MEMORY)
    sessions, report = steam_sessions(data, root, embedder(data), models=(GPT_4,))
    assert [session.actions for session in sessions] == [(FEZ, QUAKE)]
    assert sessions[0].history == (PORTAL,)
    assert sessions[0].source == GPT_4
    assert sessions[0].extras["recorded_reward"] == [None, None]
    assert report["recorded_sessions"] == 1
    both, _ = steam_sessions(data, root, embedder(data), models=("gpt-3.5-turbo-16k", GPT_4))
    assert [session.source for session in both] == ["gpt-3.5-turbo-16k"] * 2 + [GPT_4]


def test_a_threshold_leaves_out_and_counts(tmp_path: Path) -> None:
    data = dataset("steam")
    root = write(tmp_path, printed=[*PRINTED, step(2, 0, "Doom", 12)])
    sessions, report = steam_sessions(data, root, embedder(data), min_similarity=1.01)
    assert [session.actions for session in sessions] == [(QUAKE, PORTAL, HALF_LIFE), (HALF_LIFE,)]
    assert report["dropped_steps"]["below_min_similarity"] == 3
    assert report["dropped_sessions"] == 1


def test_no_recordings_are_no_error(tmp_path: Path) -> None:
    data = dataset("steam")
    assert steam_sessions(data, tmp_path, embedder(data)) == ([], {})


def test_bad_input_says_what_to_do(tmp_path: Path) -> None:
    data = dataset("steam")
    write(tmp_path)
    with pytest.raises(DataError, match=r"did you mean 'gpt-3\.5-turbo-16k'"):
        steam_sessions(data, tmp_path, embedder(data), models=("gpt-3.5-turbo",))
    write(tmp_path, printed=[step(0, 0, "Portal", 99)])
    with pytest.raises(DataError, match=r"99.* lacks"):
        steam_sessions(data, tmp_path, embedder(data))
    lacking = [{k: v for k, v in row.items() if k != "raw_action"} for row in PRINTED]
    write(tmp_path, printed=lacking)
    with pytest.raises(DataError, match="raw_action"):
        steam_sessions(data, tmp_path, embedder(data))
    file = write(tmp_path) / "llm_demos" / "steam_trajectories.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="steam_trajectories"):
        steam_sessions(data, tmp_path, embedder(data))
    write(tmp_path)
    (tmp_path / "steam" / "billp_catalogue.parquet").unlink()
    with pytest.raises(MissingDataError, match="billp_catalogue"):
        steam_sessions(data, tmp_path, embedder(data))


def remember(root: Path, rows: list[dict], reflections: list[dict]) -> Path:
    columns = {"sign": 1, "critic_value": 4.0}
    write(root, remembered=[{**columns, **row} for row in rows])
    if reflections:
        row = {"run": "run-1", "dataset": "steam", "model": "gpt-3.5-turbo-16k", "split": "test"}
        row |= {"inherited": False}
        table = pa.Table.from_pylist(
            [{**row, "line_no": line, **r} for line, r in enumerate(reflections)]
        )
        pq.write_table(table, root / "llm_demos" / "reflections.parquet")
    return root


def gpt_3_5(episode: int, t: int, shown: int, **more: Any) -> dict:
    return memory(episode, t, shown, **{"model": "gpt-3.5-turbo-16k", "run": "run-1", **more})


def test_memories_become_entries(tmp_path: Path) -> None:
    data = dataset("steam")
    rows = [
        gpt_3_5(0, 1, 12, sign=-1, critic_value=-5.0),  # out of order; grounded by text
        gpt_3_5(0, 0, 11),
        gpt_3_5(1, 0, 15, sign=None, critic_value=0.0, history_item_ids=[-1, 10]),
        gpt_3_5(2, 0, 13, critic_value=None, split="train", history_item_ids=[], run="run-2"),
        gpt_3_5(3, 0, 13, inherited=True),
        gpt_3_5(4, 0, 13, history_scope="recommended_only"),
        memory(5, 0, 13),
    ]
    reflections = [
        {"text": "Of the second session.", "line_no": 9},
        {"text": "Too much\n of the same."},
        {"text": "copied", "inherited": True},
        {"text": "about books", "dataset": "amazon"},
        {"text": "another model", "model": GPT_4},
        {"text": "in training", "split": "train", "run": "run-2"},
    ]
    root = remember(tmp_path, rows, reflections)
    entries, report = recorded_memories("steam", data, root, embedder(data))
    assert entries["experiences"] == [
        ("Portal; Doom", {"title": "Half Life", "encouraged": True}),
        ("Portal; Doom; Fez", {"title": "Doomed", "encouraged": False}),
        ("", {"title": "Quake", "encouraged": True}),
    ]
    assert entries["values"] == [
        ("Portal; Doom", {"value": 9.0}),
        ("Portal; Doom; Fez", {"value": 0.0}),
        ("Portal", {"value": 5.0}),
    ]
    assert entries["reflections"] == [
        ("Portal; Doom; Fez; Doom", {"text": "Too much of the same."}),
        ("Portal; Fez", {"text": "Of the second session."}),
        ("Quake", {"text": "in training"}),
    ]
    assert json.loads(json.dumps(report)) == report
    assert report["entries"] == {"reflections": 3, "experiences": 3, "values": 3}
    assert (report["encouraged"], report["repeated_reflections"]) == (2, 0)
    assert report["grounding"] == {"exact": 1, "normalised": 1, "similar": 1}
    trained, _ = recorded_memories("steam", data, root, embedder(data), splits=("train",))
    assert [len(kept) for kept in trained.values()] == [1, 1, 0]
    wide, _ = recorded_memories("steam", data, root, embedder(data), gamma=0.75)
    assert [value["value"] for _, value in wide["values"]] == [18.0, 0.0, 10.0]


def test_reflections_without_a_state_are_counted(tmp_path: Path) -> None:
    data = dataset("steam")
    rows = [
        gpt_3_5(0, 0, 13),
        gpt_3_5(1, 0, 13),
        {**gpt_3_5(0, 0, 13), "run": "early", "history_scope": "recommended_only"},
        {**gpt_3_5(0, 0, 13), "run": "short"},
    ]
    reflections = [
        {"text": "twice the same"},
        {"text": "twice the same"},
        {"text": "early", "run": "early"},
        {"text": "too", "run": "short"},
        {"text": "many", "run": "short"},
        {"text": "no sessions", "run": "gone"},
    ]
    root = remember(tmp_path, rows, reflections)
    entries, report = recorded_memories("steam", data, root, embedder(data))
    assert entries["reflections"] == [("Portal; Doom; Quake", {"text": "twice the same"})]
    assert report["repeated_reflections"] == 1
    assert report["unplaced_reflections"] == {
        "no_sessions": 1,
        "no_history": 1,
        "another_number": 2,
    }


def test_a_reflection_is_kept_under_the_last_ten_titles(tmp_path: Path) -> None:
    data = dataset("steam")
    rows = [gpt_3_5(0, 0, 13, history_item_ids=[10, 15] * 5)]
    root = remember(tmp_path, rows, [{"text": "so"}])
    entries, _ = recorded_memories("steam", data, root, embedder(data))
    assert entries["reflections"][0][0] == "Fez; " + "Portal; Fez; " * 4 + "Quake"


def test_memories_where_there_are_none(tmp_path: Path) -> None:
    data = dataset("steam")
    (tmp_path / "llm_demos").mkdir()
    entries, report = recorded_memories("steam", data, tmp_path, embedder(data))
    assert entries == {"reflections": [], "experiences": [], "values": []}
    assert report["grounding"] == {"exact": 0, "normalised": 0, "similar": 0}


def test_memories_of_something_else(tmp_path: Path) -> None:
    data = dataset("steam")
    root = remember(tmp_path, [gpt_3_5(0, 0, 10)], [])
    with pytest.raises(DataError, match="of the model 'gpt-5'"):
        recorded_memories("steam", data, root, embedder(data), models=("gpt-5",))
    with pytest.raises(DataError, match="did you mean 'steam'"):
        recorded_memories("steem", data, root, embedder(data))
    with pytest.raises(DataError, match=r"gamma=1\.0 came"):
        recorded_memories("steam", data, root, embedder(data), gamma=1.0)
    remember(tmp_path, [gpt_3_5(0, 0, 99)], [])
    with pytest.raises(DataError, match=r"99.* lacks"):
        recorded_memories("steam", data, root, embedder(data))


def test_episodes_as_they_were_recorded(tmp_path: Path) -> None:
    episodes, items = recorded_episodes("steam", write(tmp_path))
    assert [step.shown for step in episodes[0].steps] == [13, 13, 11, 13, 13, 12]
    assert [step.left for step in episodes[0].steps] == [False] * 5 + [True]
    assert items[15].title == "Fez"
    assert items[15].categories == ("Puzzle",)
    assert recorded_episodes("steam", tmp_path / "steam") == ([], {})


@pytest.mark.realdata
def test_the_recorded_memories(real_data: Path) -> None:
    data = load("steam", root=real_data)
    entries, report = recorded_memories("steam", data, real_data, embedder(data))
    assert report["entries"] == {"reflections": 1228, "experiences": 16506, "values": 16052}
    assert report["unplaced_reflections"] == {
        "no_sessions": 172,
        "no_history": 335,
        "another_number": 0,
    }
    assert sum(report["grounding"].values()) == 16506
    titles = set(data.catalogue.titles)
    assert all(value["title"] in titles for _, value in entries["experiences"])
    assert all(0.0 <= value["value"] <= 10.0 for _, value in entries["values"])
    # a reflection names items of the session that it is kept under, and hardly ones of the next
    lists = [[t for t in key.split("; ") if len(t) > 6] for key, _ in entries["reflections"]]
    spoken = [value["text"] for _, value in entries["reflections"]]
    own = sum(any(t in text for t in ts) for text, ts in zip(spoken, lists, strict=True))
    next_ = zip(spoken, lists[1:] + lists[:1], strict=True)
    assert own > 100
    assert sum(any(t in text for t in ts) for text, ts in next_) < own / 3


@pytest.mark.realdata
def test_the_recorded_steam_sessions(real_data: Path) -> None:
    data = load("steam", root=real_data)
    sessions, report = steam_sessions(data, real_data, embedder(data))
    assert (report["recorded_sessions"], report["recorded_steps"]) == (1040, 12682)
    assert report["steps"] == sum(len(session.actions) for session in sessions)
    assert report["left"] == 1035
    titled = report["grounding"]["exact"]["share"] + report["grounding"]["normalised"]["share"]
    assert titled > 0.5
    for session in sessions:
        assert len(set(session.actions)) == len(session.actions)
        assert all(0 <= item < data.n_items for item in (*session.actions, *session.history))
        for name in ("thought", "raw_action", "recorded_reward", "grounding"):
            assert len(session.extras[name]) == len(session.actions)
