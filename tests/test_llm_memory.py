"""The memory: recall against a brute-force version, ties, thresholds, threads and files."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_expert.memory import Recalled, VectorMemory, min_max
from recsim_env.artefacts import write_folder
from recsim_env.errors import ArtefactError, DataError
from recsim_env.text import TextEmbedder


class Numbers:
    """An embedder that reads the vector from the text: "1 0 2" is (1, 0, 2)."""

    def embed(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        return np.array([[float(part) for part in text.split()] for text in texts], np.float32)


def text(vector: npt.NDArray[np.float32]) -> str:
    return " ".join(str(float(value)) for value in vector)


def numbers(recalled: list[Recalled]) -> list[int]:
    return [entry.number for entry in recalled]


def brute_force(
    rows: npt.NDArray[np.float32], query: npt.NDArray[np.float32], threshold: float, top_k: int
) -> list[tuple[int, float]]:
    """Recalls by sorting every entry."""

    def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        norms = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
        return vectors / np.where(norms > 0, norms, 1.0)

    cosine = (unit(rows) @ unit(query)).round(5)
    normalised = min_max(cosine)
    order = sorted(range(len(rows)), key=lambda number: (-cosine[number], -number))[:top_k]
    return [(n, float(normalised[n])) for n in order if normalised[n] > threshold + 1e-4]


def test_min_max_by_hand() -> None:
    assert min_max(np.array([0.1, 0.5, 0.9, 0.3])) == pytest.approx([0.0, 0.5, 1.0, 0.25])
    assert min_max(np.array([-1.0, 1.0, 0.0])).tolist() == [0.0, 1.0, 0.5]


def test_min_max_of_equal_similarities_is_one() -> None:
    assert min_max(np.array([0.3])).tolist() == [1.0]
    assert min_max(np.full(4, -0.2, np.float32)).tolist() == [1.0] * 4


@given(values=hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1, 1)))
@settings(max_examples=50, deadline=None)
def test_min_max_keeps_the_order_and_the_range(values: npt.NDArray[np.float64]) -> None:
    result = min_max(values)
    assert result.min() >= 0.0
    assert result.max() == 1.0
    assert (np.diff(result[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.0, [2, 3, 1]), (0.7, [2, 3]), (0.8, [2]), (1.0, [])]
)
def test_the_threshold_by_hand(threshold: float, expected: list[int]) -> None:
    """Cosines with (1, 0) are 0, 0.6, 1 and 0.8, hence these are the normalised ones too."""
    memory = VectorMemory(Numbers(), threshold=threshold, top_k=9)
    memory.add(["0 1", "3 4", "1 0", "4 3"], [{"n": n} for n in range(4)])
    (found,) = memory.recall(["1 0"])
    assert numbers(found) == expected
    assert [entry.similarity for entry in found] == [{2: 1.0, 3: 0.8, 1: 0.6}[n] for n in expected]


def test_what_equals_the_threshold_but_for_rounding_is_not_above_it() -> None:
    """(0.28 - 0) / (0.8 - 0) is 0.35000000000000003 in floating point."""
    memory = VectorMemory(Numbers(), threshold=0.35)
    memory.add(["0 1", "7 24", "4 3"], [{}] * 3)
    assert numbers(memory.recall(["1 0"])[0]) == [2]


def test_normalisation_is_over_the_whole_memory_and_by_query() -> None:
    memory = VectorMemory(Numbers(), threshold=0.4, top_k=1)
    memory.add(["1 0", "-1 0", "0 1"], [{}] * 3)
    # with (0, 1): 0, 0, 1; with (1, 0): 1, -1, 0, normalised 1, 0, 0.5
    (up,), (right,) = memory.recall(["0 1", "1 0"])
    assert (up.number, up.similarity) == (2, 1.0)
    assert (right.number, right.similarity) == (0, 1.0)
    memory = VectorMemory(Numbers(), threshold=0.4, top_k=2)
    memory.add(["1 0", "-1 0", "0 1"], [{}] * 3)
    (found,) = memory.recall(["1 0"])
    assert [(e.number, e.similarity) for e in found] == [(0, 1.0), (2, 0.5)]


def test_an_empty_memory_recalls_nothing() -> None:
    memory = VectorMemory(Numbers())
    assert memory.recall(["1 0", "0 1"]) == [[], []]
    memory.add([], [])
    assert memory.recall(["1 0"]) == [[]]
    memory.add(["1 0"], [{}])
    assert memory.recall([]) == []


def test_a_single_entry_is_recalled_whatever_it_is() -> None:
    memory = VectorMemory(Numbers())
    memory.add(["1 0"], [{"title": "Rust"}])
    assert memory.recall(["-1 0"]) == [[Recalled(0, "1 0", {"title": "Rust"}, 1.0)]]


def test_of_a_tie_the_latest_come_first() -> None:
    memory = VectorMemory(Numbers(), top_k=3)
    memory.add(["0 1", *["1 0"] * 3, *["2 0"] * 3], [{}] * 7)
    assert numbers(memory.recall(["1 0"])[0]) == [6, 5, 4]


def test_a_tie_longer_than_the_first_search() -> None:
    memory = VectorMemory(Numbers(), top_k=4)
    memory.add(["1 0", *["1 1"] * 500, "0 1"], [{}] * 502)
    found = memory.recall(["1 0"] * 30)
    assert [numbers(row) for row in found] == [[0]] * 30
    memory.threshold = 0.5
    found = memory.recall(["1 0"] * 30)
    assert [numbers(row) for row in found] == [[0, 500, 499, 498]] * 30


def test_a_row_of_zeros_is_similar_to_nothing() -> None:
    memory = VectorMemory(Numbers(), threshold=0.0)
    memory.add(["0 0", "-1 0", "0 0"], [{}] * 3)
    assert [(e.number, e.similarity) for e in memory.recall(["1 0"])[0]] == [(2, 1.0), (0, 1.0)]
    assert numbers(memory.recall(["0 0"])[0]) == [2, 1, 0]


@given(
    rows=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.integers(-2, 2)
    ),
    queries=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=st.integers(-2, 2)
    ),
    threshold=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    top_k=st.integers(1, 8),
)
@settings(max_examples=80, deadline=None)
def test_recall_equals_brute_force(
    rows: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    threshold: float,
    top_k: int,
) -> None:
    """Small whole numbers make many ties and rows of zeros."""
    memory = VectorMemory(Numbers(), threshold=threshold, top_k=top_k)
    memory.add([text(row) for row in rows], [{}] * len(rows))
    found = memory.recall([text(query) for query in queries])
    for query, row in zip(queries, found, strict=True):
        expected = brute_force(rows, query, threshold, top_k)
        # A similarity within the rounding of the threshold may count as above it or not.
        clear = [entry for entry in row if entry.similarity > threshold + 1e-4]
        assert numbers(clear) == [number for number, _ in expected]
        similarities = [similarity for _, similarity in expected]
        assert [entry.similarity for entry in clear] == pytest.approx(similarities, abs=1e-4)
        assert all(entry.similarity > threshold for entry in row)


@given(
    rows=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.integers(-2, 2)
    ),
    queries=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(-2, 2)
    ),
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.31, 0.807, 0.95]),
    top_k=st.integers(1, 8),
    skipping=st.booleans(),
    by=st.sampled_from([None, "title", "key"]),
)
@settings(max_examples=150, deadline=None)
def test_recall_with_conditions_equals_brute_force(
    rows: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    seed: int,
    threshold: float,
    top_k: int,
    skipping: bool,
    by: str | None,
) -> None:
    """Every entry above the threshold first, then what is skipped, then what is not distinct."""
    rng = np.random.default_rng(seed)
    values = [
        {"title": f"t{title}", "session": int(session)}
        for title, session in rng.integers(0, 5, (len(rows), 2))
    ]
    keys = [text(row) for row in rows]
    memory = VectorMemory(Numbers(), threshold=threshold, top_k=top_k)
    memory.add(keys, values)
    own = rng.integers(0, 5, len(queries)).tolist()
    labels = {"title": [value["title"] for value in values], "key": keys}
    found = memory.recall(
        [text(query) for query in queries],
        skip=[lambda value, o=o: value["session"] == o for o in own] if skipping else None,
        distinct={"title": title_of, "key": key_of, None: None}[by],
    )
    for query, row, session in zip(queries, found, own, strict=True):
        everything = {n: (s, -i) for i, (n, s) in enumerate(brute_force(rows, query, -1.0, 99))}
        assume(all(abs(s - threshold) > 1e-3 for s, _ in everything.values()))
        kept = [
            n
            for n, (s, _) in everything.items()
            if s > threshold and not (skipping and values[n]["session"] == session)
        ]
        if by is not None:
            kept = list({labels[by][n]: n for n in sorted(kept)}.values())
        kept.sort(key=lambda n: everything[n], reverse=True)
        assert numbers(row) == kept[:top_k]
        expected = [everything[n][0] for n in kept[:top_k]]
        assert [entry.similarity for entry in row] == pytest.approx(expected, abs=1e-4)


def title_of(_key: str, value: Mapping[str, Any]) -> str:
    return str(value["title"])


def key_of(key: str, _value: Mapping[str, Any]) -> str:
    return key


def test_what_is_skipped_takes_no_place() -> None:
    """One's own session fills the neighbourhood of a state; the others' are still recalled."""
    memory = VectorMemory(Numbers(), threshold=0.5, top_k=3)
    memory.add([f"100 {step}" for step in range(30)], [{"session": 1}] * 30)
    memory.add(["9 4", "2 1", "1 1"], [{"session": 0}, {"session": 0}, {"session": 2}])
    memory.add(["0 1"], [{"session": 3}])
    queries = ["100 31", "100 31"]
    plain = memory.recall(queries)
    assert [entry.value["session"] for entry in plain[0]] == [1, 1, 1]
    others, all_of_them = memory.recall(
        queries, skip=[lambda value: value["session"] == 1, lambda value: "session" not in value]
    )
    assert numbers(others) == [30, 31, 32]
    assert all_of_them == plain[1]
    # 1 is still the similarity of the skipped entry that is nearest
    assert others[0].similarity < plain[0][0].similarity == 1.0


def test_the_latest_memory_of_a_title_decides() -> None:
    memory = VectorMemory(Numbers(), threshold=0.5, top_k=2)
    memory.add(
        ["1 0", "10 1", "10 2", "10 3", "10 4", "0 1", "-1 0"],
        [{"title": name, "n": n} for n, name in enumerate("aababab")],
    )
    # 0 to 4 are above the threshold; of these 3 is the latest "a" and 4 the latest "b"
    (found,) = memory.recall(["1 0"], distinct=title_of)
    assert numbers(found) == [3, 4]
    # where 3 is skipped, 1 decides, although it is less similar than 0
    (found,) = memory.recall(["1 0"], distinct=title_of, skip=[lambda value: value["n"] == 3])
    assert numbers(found) == [1, 4]
    (found,) = memory.recall(["1 0"], distinct=title_of, skip=[lambda value: value["n"] in (2, 4)])
    assert numbers(found) == [3]


def test_one_value_for_each_state() -> None:
    memory = VectorMemory(Numbers(), threshold=0.5, top_k=3)
    memory.add([*["1 0"] * 4, "2 1", "0 1"], [{"value": n} for n in range(6)])
    (found,) = memory.recall(["1 0"], distinct=key_of)
    assert [(entry.key, entry.value["value"]) for entry in found] == [("1 0", 3), ("2 1", 4)]


def test_conditions_are_one_for_each_query() -> None:
    memory = VectorMemory(Numbers())
    with pytest.raises(DataError, match="2 queries and 1 functions"):
        memory.recall(["1 0", "0 1"], skip=[lambda value: not value])


def test_a_key_is_kept_once(tmp_path: Path) -> None:
    memory = VectorMemory(Numbers(), threshold=0.5, top_k=9)
    memory.add(["1 0", "0 1", "1 0"], [{"n": n} for n in range(3)])
    memory.add(["0 1", "1 0"], [{"n": n} for n in range(3, 5)])
    assert memory._index.ntotal == 2
    memory.save(tmp_path / "memory")
    again = VectorMemory.load(tmp_path / "memory", Numbers())
    for both in (memory, again):
        assert [numbers(found) for found in both.recall(["1 0", "0 1"])] == [[4, 2, 0], [3, 1]]


def test_a_large_memory_equals_brute_force_and_batches_equal_single_queries() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 16)).astype(np.float32)
    rows[2000:] = rows[:1000]  # a thousand exact ties
    queries = rng.normal(size=(64, 16)).astype(np.float32)
    memory = VectorMemory(Numbers(), threshold=0.6, top_k=7)
    for start in range(0, 3000, 500):
        memory.add([text(row) for row in rows[start : start + 500]], [{}] * 500)
    asked = [text(query) for query in queries]
    together = memory.recall(asked)
    assert together == [memory.recall([query])[0] for query in asked]
    for query, found in zip(queries, together, strict=True):
        expected = brute_force(rows, query, 0.6, 7)
        assert numbers(found) == [number for number, _ in expected]


def test_growing_changes_what_is_recalled() -> None:
    memory = VectorMemory(Numbers(), threshold=0.9)
    memory.add(["1 1"], [{"n": 0}])
    assert memory.recall(["1 0"])[0][0].value == {"n": 0}
    memory.add(["1 0"], [{"n": 1}])
    assert [entry.value for entry in memory.recall(["1 0"])[0]] == [{"n": 1}]
    assert len(memory) == 2
    assert repr(memory) == "VectorMemory(entries=2, threshold=0.9, top_k=5)"


def test_values_are_copies() -> None:
    memory = VectorMemory(Numbers())
    value = {"titles": ["Rust"]}
    memory.add(["1 0"], [value])
    value["titles"].append("Dota")
    (first,) = memory.recall(["1 0"])[0]
    assert first.value == {"titles": ["Rust"]}
    first.value["titles"].append("Portal")
    assert memory.recall(["1 0"])[0][0].value == {"titles": ["Rust"]}


@pytest.mark.parametrize("value", [{"x": {1}}, {"x": float("nan")}, {"x": object()}, 3])
def test_values_that_json_cannot_hold_are_told(value: Any) -> None:
    memory = VectorMemory(Numbers())
    with pytest.raises(DataError, match="key '0 1' cannot be written as JSON"):
        memory.add(["1 0", "0 1"], [{}, value])
    assert len(memory) == 0


def test_what_does_not_fit_is_told() -> None:
    for settings_ in ({"threshold": -0.1}, {"threshold": 1.5}, {"top_k": 0}):
        with pytest.raises(DataError, match="expected a threshold in"):
            VectorMemory(Numbers(), **settings_)
    with pytest.raises(DataError, match="threshold=nan"):
        VectorMemory(Numbers(), threshold=float("nan"))
    memory = VectorMemory(Numbers())
    with pytest.raises(DataError, match="2 keys and 1 values"):
        memory.add(["1 0", "0 1"], [{}])
    memory.add(["1 0"], [{}])
    with pytest.raises(DataError, match="one embedder for one memory"):
        memory.add(["1 0 0"], [{}])
    with pytest.raises(DataError, match=r"expected finite numbers of shape \(1, 2\)"):
        memory.recall(["1 0 0"])
    assert len(memory) == 1


def test_keys_of_any_text(tmp_path: Path) -> None:
    embedder = TextEmbedder(dim=4).fit(["portal", "halo", "doom", "rust", "zelda"])
    memory = VectorMemory(embedder, threshold=0.0, top_k=9)
    keys = ["", "\x00", "\ud800 portal", "x" * 10_000, '{"a": [1]}\n', "\u2028\u202e"]
    memory.add(keys, [{"said": key} for key in keys])
    memory.save(tmp_path / "memory")
    again = VectorMemory.load(tmp_path / "memory", embedder)
    assert again.recall(keys) == memory.recall(keys)
    found = {entry.number: entry for entry in again.recall([keys[2]])[0]}
    assert (found[2].key, found[2].value) == (keys[2], {"said": keys[2]})
    assert found[2].similarity == 1.0


class Slow(faiss.IndexFlatIP):  # type: ignore[misc]
    """An index that gives other threads a turn between its own growth and that of the entries."""

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        super().add(rows)
        time.sleep(1e-4)


def test_threads_may_add_and_recall_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "IndexFlatIP", Slow)
    memory = VectorMemory(Numbers(), threshold=0.0)
    start = threading.Barrier(8)

    def add(worker: int) -> None:
        start.wait()
        for step in range(40):
            keys = [f"{worker + 1} {step}", f"{step} {worker + 1}"]
            memory.add(keys, [{"key": key} for key in keys])

    def recall(worker: int) -> bool:
        start.wait()
        found = [
            entry for step in range(40) for entry in memory.recall([f"{worker} {step + 1}"])[0]
        ]
        return all(entry.value["key"] == entry.key for entry in found)

    with ThreadPoolExecutor(8) as pool:
        adding = [pool.submit(add, worker) for worker in range(4)]
        recalling = [pool.submit(recall, worker) for worker in range(4)]
        assert [future.result() for future in adding] == [None] * 4
        assert [future.result() for future in recalling] == [True] * 4
    assert len(memory) == 4 * 40 * 2
    for query in ("1 23", "3 22", "20 1"):
        best = memory.recall([query])[0][0]  # vectors, keys and values are still in step
        assert (best.key, best.value, best.similarity) == (query, {"key": query}, 1.0)


def test_save_and_load(tmp_path: Path) -> None:
    memory = VectorMemory(Numbers(), threshold=0.3, top_k=2)
    memory.add(["1 0", "3 4", "0 1"], [{"n": 1}, {"titles": ["ä", None]}, {}])
    memory.save(tmp_path / "memory")
    again = VectorMemory.load(tmp_path / "memory", Numbers())
    assert (len(again), again.threshold, again.top_k) == (3, 0.3, 2)
    queries = ["1 0", "0 1", "1 1"]
    assert again.recall(queries) == memory.recall(queries)
    for both in (memory, again):
        both.add(["1 1"], [{"n": 4}])
    assert again.recall(queries) == memory.recall(queries)
    assert sorted(file.suffix for file in (tmp_path / "memory").iterdir()) == [
        ".json",
        ".json",
        ".safetensors",
    ]
    again.save(tmp_path / "memory")
    assert len(VectorMemory.load(tmp_path / "memory", Numbers())) == 4


def test_an_empty_memory_is_saved_too(tmp_path: Path) -> None:
    VectorMemory(Numbers(), threshold=0.5).save(tmp_path / "memory")
    again = VectorMemory.load(tmp_path / "memory", Numbers())
    assert (len(again), again.threshold) == (0, 0.5)
    again.add(["1 0"], [{}])
    assert len(again.recall(["1 0"])[0]) == 1


class Reversed(Numbers):
    def embed(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        return super().embed(texts)[:, ::-1]


class Longer(Numbers):
    def embed(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        return np.pad(super().embed(texts), ((0, 0), (0, 1)))


@pytest.mark.parametrize("embedder", [Reversed(), Longer()])
def test_another_embedder_is_told(tmp_path: Path, embedder: Numbers) -> None:
    memory = VectorMemory(Numbers())
    memory.add(["1 0"], [{}])
    memory.save(tmp_path / "memory")
    with pytest.raises(ArtefactError, match="made with another embedder or on another catalogue"):
        VectorMemory.load(tmp_path / "memory", embedder)


@pytest.mark.parametrize("name", ["memory.json", "memory.safetensors", "manifest.json"])
def test_a_broken_folder_is_told(tmp_path: Path, name: str) -> None:
    memory = VectorMemory(Numbers())
    memory.add(["1 0"], [{}])
    for number, content in enumerate((None, b"", b"{}")):
        folder = tmp_path / str(number)
        memory.save(folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(ArtefactError, match="does not hold a whole memory"):
            VectorMemory.load(folder, Numbers())
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(ArtefactError, match="check the path"):
        VectorMemory.load(tmp_path / "0", Numbers())


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"entries": []}, {"threshold": 7}, {"entries": [{"key": "1 0"}]}]
)
def test_a_whole_folder_of_something_else_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    memory = VectorMemory(Numbers())
    memory.add(["1 0"], [{}])
    memory.save(tmp_path / "memory")
    document = json.loads((tmp_path / "memory" / "memory.json").read_text())

    def write(target: Path) -> None:
        shutil.copy(tmp_path / "memory" / "memory.safetensors", target)
        (target / "memory.json").write_text(json.dumps({**document, **change}))

    write_folder(tmp_path / "changed", write)
    with pytest.raises(ArtefactError, match="that this release reads"):
        VectorMemory.load(tmp_path / "changed", Numbers())
