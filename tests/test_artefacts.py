"""Folders and files are written whole or not at all, under keys that follow from their content."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from recsim_env import artefacts
from recsim_env.errors import ArtefactError


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    sizes: tuple[int, ...] = (8, 4)


def test_key_is_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'{"a":1,"b":"x"}').hexdigest()
    assert artefacts.key(b="x", a=1) == artefacts.key(a=1, b="x") == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": Settings(rate=0.2), "seed": 0},
        {"settings": Settings(sizes=(8, 5)), "seed": 0},
        {"settings": Settings(), "seed": 1},
        {"settings": Settings(), "seed": None},
        {"settings": Settings()},
        {"settings": dataclasses.asdict(Settings()), "seed": 0},
    ],
)
def test_key_changes_with_any_setting(changed: dict[str, object]) -> None:
    assert artefacts.key(**changed) != artefacts.key(settings=Settings(), seed=0)


def test_a_new_optional_field_leaves_keys_as_they_are() -> None:
    fields = [(f.name, f.type, f) for f in dataclasses.fields(Settings)]
    longer = dataclasses.make_dataclass("Settings", [*fields, ("more", int | None, None)])
    assert artefacts.key(a=longer()) == artefacts.key(a=Settings())
    assert artefacts.key(a=longer(more=0)) != artefacts.key(a=Settings())


def test_key_takes_numpy_and_paths_and_sets() -> None:
    one = artefacts.key(a=np.float32(0.5), b=np.arange(3), c=Path("x/y"), d={"q", "p"})
    assert one == artefacts.key(a=0.5, b=[0, 1, 2], c="x/y", d=["p", "q"])


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), print])
def test_key_refuses_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(ArtefactError, match="convert the odd one"):
        artefacts.key(a=value)


def test_cache_dir_argument_then_environment_then_user_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ILREC_CACHE", str(tmp_path / "from_environment"))
    assert artefacts.cache_dir(tmp_path / "given") == tmp_path / "given"
    assert artefacts.cache_dir() == tmp_path / "from_environment"
    monkeypatch.delenv("ILREC_CACHE")
    assert artefacts.cache_dir().name == "ilrec"


def _write_two(folder: Path) -> None:
    (folder / "a.txt").write_text("first")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.bin").write_bytes(b"\x00\x01")


def test_folder_is_whole_after_writing(tmp_path: Path) -> None:
    target = artefacts.write_folder(tmp_path / "deep" / "made", _write_two)
    assert artefacts.check_folder(target)
    files = json.loads((target / "manifest.json").read_text())["files"]
    assert files["sub/b.bin"]["size"] == 2
    assert set(files) == {"a.txt", "sub/b.bin"}
    assert [p.name for p in target.parent.iterdir()] == ["made"]


def test_folder_replaces_the_old_one(tmp_path: Path) -> None:
    artefacts.write_folder(tmp_path / "made", _write_two)
    artefacts.write_folder(tmp_path / "made", lambda f: (f / "c.txt").write_text("new") and None)
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["c.txt", "manifest.json"]
    assert artefacts.check_folder(tmp_path / "made")


def test_writers_at_the_same_time_leave_one_whole_folder(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(5):
            artefacts.write_folder(
                tmp_path / "made", lambda f: (f / "n.txt").write_text(str(number)) and None
            )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert artefacts.check_folder(tmp_path / "made")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_writer_whose_rival_is_replaced_by_a_third_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename, refused = tmp_path / "made", Path.rename, []

    def once_taken(self: Path, to: Path) -> Path:
        if to == target and not refused:  # the rival's folder came, and is gone again
            refused.append(self)
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", once_taken)
    artefacts.write_folder(target, lambda f: (f / "n.txt").write_text("1") and None)
    assert refused
    assert artefacts.check_folder(target)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_failing_writer_leaves_the_old_folder(tmp_path: Path) -> None:
    artefacts.write_folder(tmp_path / "made", _write_two)

    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        artefacts.write_folder(tmp_path / "made", fail)
    assert artefacts.check_folder(tmp_path / "made")
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("damage", ["missing", "cut", "changed", "no_manifest", "bad_manifest"])
def test_check_folder_sees_damage(tmp_path: Path, damage: str) -> None:
    target = artefacts.write_folder(tmp_path / "made", _write_two)
    if damage == "missing":
        (target / "sub" / "b.bin").unlink()
    elif damage == "cut":
        (target / "a.txt").write_text("fir")
    elif damage == "changed":
        (target / "a.txt").write_text("First")
    elif damage == "no_manifest":
        (target / "manifest.json").unlink()
    else:
        (target / "manifest.json").write_text("{")
    assert not artefacts.check_folder(target)


def test_check_folder_of_nothing(tmp_path: Path) -> None:
    assert not artefacts.check_folder(tmp_path / "nothing")


def test_write_file_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.json"
    artefacts.write_file(path, "old")
    artefacts.write_file(path, "née".encode())
    assert path.read_text(encoding="utf-8") == "née"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_fingerprint_tells_where_chunks_end() -> None:
    assert artefacts.fingerprint_bytes(b"ab", b"c") != artefacts.fingerprint_bytes(b"a", b"bc")
