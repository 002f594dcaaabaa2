from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from ilrec_sb3.benchmark.workers import Died, in_parallel

# pieces are programs and the work is to evaluate them: workers import by name
DIE = "__import__('os')._exit(3)"
KILLED = "__import__('signal').raise_signal(9)"


def test_one_job_works_in_this_process() -> None:
    pieces = ["__import__('os').getpid()", "1 + 1"]
    assert list(in_parallel(eval, pieces, 1)) == [(0, os.getpid()), (1, 2)]


def test_a_worker_that_dies_takes_one_piece_with_it() -> None:
    pieces = ["0", DIE, "2", KILLED, "4", "__import__('os').getpid()"]
    found = dict(in_parallel(eval, pieces, 2))
    assert found.pop(5) != os.getpid()
    assert found == {0: 0, 1: Died(3), 2: 2, 3: Died(-9), 4: 4}
    assert str(Died(3)) == "the worker ended with exit code 3"
    assert "for want of memory" in str(Died(-9))
    assert "signal 15" in str(Died(-15))


def test_closing_stops_the_workers() -> None:
    pieces = ["__import__('os').getpid()", "__import__('time').sleep(60)"]
    started = time.monotonic()
    with closing(in_parallel(eval, pieces, 2)) as outcomes:
        number, pid = next(outcomes)
    assert number == 0
    assert time.monotonic() - started < 30
    wait_for_the_end_of([int(str(pid))])


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_the_work_raises_is_raised_here(jobs: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_parallel(eval, ["1 / 0", "1"], jobs))
    assert "Traceback" not in capfd.readouterr().err


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for_the_end_of(pids: list[int]) -> None:
    for _ in range(1_200):  # a worker first imports what it needs, which takes long when it is busy
        if not any(alive(pid) for pid in pids):
            return
        time.sleep(0.05)
    pytest.fail(f"still alive: {[pid for pid in pids if alive(pid)]}")


PROGRAM = r"""
import signal
from ilrec_sb3.benchmark.workers import in_parallel
if __name__ == "__main__":
    # a job of a shell's background has Ctrl-C ignored from the start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # in one write, so that the lines of two workers do not mix
    said = "__import__('os').write(1, b'%d\\n' % __import__('os').getpid())"
    piece = f"{said} and __import__('time').sleep(60)"
    list(in_parallel(eval, [piece, piece], 2))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(alive(pid) for pid in pids)
        parent.send_signal(how)
        wait_for_the_end_of([*pids, parent.pid])
        _, errors = parent.communicate(timeout=30)
    assert parent.returncode != 0
    # Ctrl-C is told once, by the parent
    assert errors.count("KeyboardInterrupt\n") <= 1


PROGRAM_THAT_STARTS = r"""
import os, time
if __name__ == "__main__":
    from ilrec_sb3.benchmark.workers import in_parallel
    list(in_parallel(eval, ["1", "2"], 2))
    print("went on", flush=True)
else:
    os.write(1, b"%d\n" % os.getpid())  # a worker imports this before all else
    time.sleep(1.5)
"""


def test_ctrl_c_does_not_reach_workers_that_are_still_importing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM_THAT_STARTS)
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        for pid in [int(parent.stdout.readline()) for _ in range(2)]:
            os.kill(pid, signal.SIGINT)
        said, errors = parent.communicate(timeout=30)
    assert (said, errors, parent.returncode) == ("went on\n", "", 0)
