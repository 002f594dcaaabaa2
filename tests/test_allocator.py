"""Freed memory is kept where the C library can be told so, and left alone elsewhere."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ilrec_sb3 import allocator
from ilrec_sb3.allocator import keep_freed_memory

ON_GLIBC = platform.libc_ver()[0] == "glibc"

FAULTS = """
import resource, sys
import numpy as np
from ilrec_sb3.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    for _ in range(20):
        pieces = [np.ones(400_000) for _ in range(4)]  # of 3.2 MB
        del pieces
for _ in range(2):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str, **variables: str) -> int:
    environment = {k: v for k, v in os.environ.items() if k not in allocator._OF_THE_USER}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **variables},
    )
    return int(done.stdout)


def test_no_new_pages_are_asked_for_where_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator._OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory() is ON_GLIBC
    if ON_GLIBC:
        always_mapped = _faults("as it is", MALLOC_MMAP_THRESHOLD_="131072")
        assert _faults("kept") < always_mapped / 10


@pytest.mark.parametrize("name", allocator._OF_THE_USER)
def test_settings_of_the_user_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator._OF_THE_USER:
        monkeypatch.delenv(name, raising=False)

    def no_such_library(name: object) -> object:
        raise TypeError(f"bad argument type for built-in operation: {name}")

    monkeypatch.setattr(allocator.ctypes, "CDLL", no_such_library)
    assert not keep_freed_memory()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
