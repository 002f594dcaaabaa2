"""Work spread over processes: a worker that dies takes one piece of work with it, not the rest."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from ilrec_sb3.allocator import keep_freed_memory
from recsim_env.errors import DataError

__all__ = ["LOCK", "Died", "in_parallel", "locked"]

T = TypeVar("T")
R = TypeVar("R")

LOCK = ".lock"
"""File in a folder that one process at a time works on."""

_SECONDS_TO_STOP = 5.0


@dataclass(frozen=True)
class Died:
    """What became of a piece of work whose worker died.

    Attributes:
        exit_code: Of the process; negative: the signal that killed it.
    """

    exit_code: int

    def __str__(self) -> str:
        """Says it in words."""
        if self.exit_code == -signal.SIGKILL:
            return "the worker was killed (signal 9), perhaps for want of memory"
        if self.exit_code < 0:
            return f"the worker was killed (signal {-self.exit_code})"
        return f"the worker ended with exit code {self.exit_code}"


@dataclass(frozen=True)
class _Raised:
    """What a piece of work raised."""

    error: Exception


def in_parallel(
    work: Callable[[T], R], pieces: Sequence[T], jobs: int
) -> Generator[tuple[int, R | Died]]:
    """Does pieces of work in processes, and yields what came of each as it is finished.

    Workers are spawned, hence ``work`` and the pieces must be importable by name. They leave Ctrl-C
    to this process, and end when it does, however it ends. Closing the generator stops them.

    Args:
        work: Called in a worker with one piece.
        pieces: What to do, in the order in which it is begun.
        jobs: Processes; with 1 all is done in this one.

    Yields:
        The number of the piece, and what ``work`` returned, or that the worker died.

    Raises:
        Exception: What ``work`` raised; the other workers are then stopped.
    """
    if jobs <= 1:
        for number, piece in enumerate(pieces):
            yield number, work(piece)
        return
    queue = deque(enumerate(pieces))
    workers: list[_Worker[T, R]] = []
    try:
        while queue or workers:
            while queue and len(workers) < jobs:
                workers.append(_Worker(work, queue))
            ready = wait([worker.connection for worker in workers])
            for worker in [worker for worker in workers if worker.connection in ready]:
                number, found = worker.number, worker.receive()
                if isinstance(found, _Raised):
                    raise found.error
                if isinstance(found, Died) or not queue:
                    worker.stop()
                    workers.remove(worker)
                else:
                    worker.send(queue)
                yield number, found
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.stop()


class _Worker(Generic[T, R]):
    """One process and the piece that it is at.

    Args:
        work: See `in_parallel`.
        queue: Numbered pieces; the first is taken.
    """

    def __init__(self, work: Callable[[T], R], queue: deque[tuple[int, T]]) -> None:
        context = mp.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, work), daemon=True
        )
        with _interrupts_held():
            self.process.start()
        theirs.close()  # theirs alone, so that the pipe breaks when the worker dies
        self.number = -1
        self.send(queue)

    def send(self, queue: deque[tuple[int, T]]) -> None:
        """Hands over the next piece."""
        self.number, piece = queue.popleft()
        try:
            self.connection.send(piece)
        except OSError:
            pass  # it is dead, which receiving will tell

    def receive(self) -> R | Died | _Raised:
        """Returns what came of the piece."""
        try:
            found: R | _Raised = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Died(self.process.exitcode or 0)
        return found

    def stop(self) -> None:
        """Ends the process; one that is idle goes by itself."""
        self.connection.close()
        self.process.join(_SECONDS_TO_STOP)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Starts processes that Ctrl-C does not reach even while they import; here it waits."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it with the first process would let Ctrl-C in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """What a worker does: one piece after the other until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    parent = mp.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    while True:
        try:
            piece = connection.recv()
        except EOFError:
            return
        try:
            found = work(piece)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where it was asked
            found = _Raised(error)
        connection.send(found)


def _end_with(sentinel: int) -> None:
    """Ends this process when its parent has ended, also where the parent was killed."""
    wait([sentinel])
    os._exit(1)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run; a killed one lets go by itself.

    Args:
        folder: Of the run; made where it is not there.

    Raises:
        DataError: Another process works on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(
            f"Another process works on {folder}: wait for it, or choose another folder with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()
