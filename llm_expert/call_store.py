"""The record of calls: one SQLite file that keeps every answer that was paid for."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType

from llm_expert.errors import StorageError

__all__ = ["FORMAT", "CallStore", "Spent", "Stored", "difference"]

FORMAT = 2
"""Version of the file's layout, kept in `PRAGMA user_version`; 1 had no table `spent`."""

_APPLICATION = 0x494C5243
"""`PRAGMA application_id` of these files."""
_BUSY_SECONDS = 10.0
_CANDIDATES = 2_000
"""So many prompts of a role are looked at when the nearest one is wanted."""
_DIFF_LINES = 8
_DIFF_WIDTH = 120
_NEAR_LIMIT = 1 << 17
"""So near to the limit of a file's size, in bytes, a write may have failed because of it."""


@dataclass(frozen=True)
class Stored:
    """One row of the record: a call and its answer.

    Args:
        key: What the call is found under.
        prompt_hash: Sha256 (hex) of `messages`.
        spec: The chat model.
        settings: Its settings, as JSON.
        messages: The rendered messages, as JSON: a list of [role, content].
        sample: Number of the draw.
        role: Who asked first; this and the next three are told in messages, not looked up.
        session: Number of the session, from 0.
        step: Number of the step in it, from 0.
        attempt: Number of the question, from 0.
        text: The answer.
        prompt_tokens: Of the prompt.
        completion_tokens: Of the answer.
        latency: Seconds.
    """

    key: str
    prompt_hash: str
    spec: str
    settings: str
    messages: str
    sample: int
    role: str
    session: int
    step: int
    attempt: int
    text: str
    prompt_tokens: int
    completion_tokens: int
    latency: float


@dataclass(frozen=True)
class Spent:
    """What empty answers to one call have cost.

    Args:
        answers: How many there were.
        prompt_tokens: Of all of them together.
        completion_tokens: Likewise.
    """

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


_COLUMNS = ", ".join(f.name for f in fields(Stored))
_INSERT = (
    f"INSERT OR IGNORE INTO calls ({_COLUMNS}) VALUES ({', '.join('?' * len(fields(Stored)))})"
)
_SPEND = """
INSERT INTO spent (key, answers, prompt_tokens, completion_tokens) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    answers = answers + excluded.answers,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens
"""
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    prompt_hash TEXT NOT NULL,
    spec TEXT NOT NULL,
    settings TEXT NOT NULL,
    messages TEXT NOT NULL,
    sample INTEGER NOT NULL,
    role TEXT NOT NULL,
    session INTEGER NOT NULL,
    step INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    text TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    latency REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS spent (
    key TEXT PRIMARY KEY,
    answers INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class CallStore:
    """The record of calls in a file; a context manager.

    A row is committed and synced to the disk before `put` returns, so that neither a killed process
    nor a power cut loses an answer that was had. While the record is open there is a `-wal` file
    beside it; closing leaves the one file. Any thread may use it. It holds prompts, answers and
    counts, and no keys. A record of an older format is brought up to date where it is opened to
    write, and read as it is where it is not.

    Args:
        path: The file; it and its folder are made where they are not there.
        read_only: Nothing is made and nothing is written.

    Raises:
        StorageError: The file cannot be opened, or is not such a record.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._tells_spent = True
        self._place = self.path.absolute()  # SQLite keeps to it, whatever the working directory
        self._identity: tuple[int, int] | None = None
        try:
            self._connection = self._open()
            self._check(self._connection)
            self._identity = _identity(self._place)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise StorageError(_said(self.path, error, writing=not read_only)) from error
        except StorageError:
            self.close()
            raise

    def _open(self) -> sqlite3.Connection:
        """Returns a connection in autocommit mode."""
        if self.read_only:
            return self._open_to_read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )

    def _open_to_read(self) -> sqlite3.Connection:
        """Returns a connection that cannot write."""
        if not self.path.is_file():
            raise StorageError(
                f"There is no record of calls at {self.path}; give the path of one, or make one by "
                "a run that is not a replay."
            )
        return sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode=ro",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    def _check(self, connection: sqlite3.Connection) -> None:
        """Sees to it that the file is a record of this format, and makes it one where it is new."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > FORMAT and application == _APPLICATION:
            raise StorageError(
                f"The record of calls {self.path} has format {version} and this version reads "
                f"formats up to {FORMAT}; install a newer version of ilrec, or give another path."
            )
        fresh = not (version or application or tables)
        if application != _APPLICATION and (self.read_only or not fresh):
            raise StorageError(
                f"{self.path} is a SQLite file but no record of calls; give the path of a record, "
                "or one where nothing is yet."
            )
        if not self.read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            # FULL costs about 0.2 ms a row, and NORMAL would leave the last rows to a power cut.
            connection.execute("PRAGMA synchronous = FULL")
            if version < FORMAT:
                connection.executescript(_SCHEMA)
        self._tells_spent = not self.read_only or version >= FORMAT

    def get(self, key: str) -> Stored | None:
        """Returns the call of that key, or None.

        Raises:
            StorageError: The file cannot be read.
        """
        rows = self._rows("WHERE key = ?", key)
        return rows[0] if rows else None

    def put(self, call: Stored) -> None:
        """Writes a call; it is on disk when this returns. A key that is there stays as it is.

        Raises:
            StorageError: The file cannot be written.
        """
        with self._using(writing=True) as connection:
            connection.execute(_INSERT, tuple(vars(call).values()))
            self._check_place()

    def spend(self, key: str, spent: Spent) -> None:
        """Adds to what empty answers to a call have cost; it is on disk when this returns.

        Args:
            key: Of the call.
            spent: What is added.

        Raises:
            StorageError: The file cannot be written.
        """
        with self._using(writing=True) as connection:
            connection.execute(_SPEND, (key, *vars(spent).values()))
            self._check_place()

    def _check_place(self) -> None:
        """Raises where what was written is not in the file that is found under the path."""
        if _identity(self._place) != self._identity:
            raise StorageError(
                f"The record of calls {self.path} was removed or moved while the run wrote to it: "
                "put it back if it was moved (if it was removed, its answers are gone), and start "
                "the same command again."
            )

    def spent(self, key: str) -> Spent:
        """Returns what empty answers to a call have cost.

        Args:
            key: Of the call.

        Raises:
            StorageError: The file cannot be read.
        """
        if not self._tells_spent:
            return Spent()
        with self._using() as connection:
            row = connection.execute(
                "SELECT answers, prompt_tokens, completion_tokens FROM spent WHERE key = ?", (key,)
            ).fetchone()
        return Spent(*row) if row else Spent()

    def nearest(self, call: Stored) -> Stored | None:
        """Returns the recorded call that is nearest to one that is not recorded, to tell of it.

        It is one with the same prompt; else the last with the same role, session, step and attempt;
        else, of the same role, the one whose prompt shares most lines; else None.

        Args:
            call: What was asked; its answer plays no part.
        """
        same_prompt = self._rows(
            "WHERE prompt_hash = ? ORDER BY spec = ? DESC, settings = ? DESC, number LIMIT 1",
            *(call.prompt_hash, call.spec, call.settings),
        )
        if same_prompt:
            return same_prompt[0]
        same_tag = self._rows(
            "WHERE role = ? AND session = ? AND step = ? AND attempt = ? "
            "ORDER BY number DESC LIMIT 1",
            *(call.role, call.session, call.step, call.attempt),
        )
        if same_tag:
            return same_tag[0]
        lines = set(_lines(call.messages))
        same_role = self._rows(f"WHERE role = ? ORDER BY number LIMIT {_CANDIDATES}", call.role)
        return max(same_role, key=lambda row: _overlap(lines, row), default=None)

    def __len__(self) -> int:
        with self._using() as connection:
            (number,) = connection.execute("SELECT count(*) FROM calls").fetchone()
        return int(number)

    def __iter__(self) -> Iterator[Stored]:
        """Goes through the calls in the order in which they were answered."""
        return iter(self._rows("ORDER BY number"))

    def _rows(self, clause: str, *values: str | int) -> list[Stored]:
        with self._using() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM calls {clause}", values).fetchall()
        return [Stored(*row) for row in rows]

    @contextlib.contextmanager
    def _using(self, *, writing: bool = False) -> Iterator[sqlite3.Connection]:
        """Lends the connection to one thread; what goes wrong becomes a StorageError."""
        with self._lock:
            if self._connection is None:
                raise StorageError(
                    f"The record of calls {self.path} is closed; use it inside its `with`."
                )
            try:
                yield self._connection
            except (sqlite3.Error, OSError) as error:
                raise StorageError(_said(self.path, error, writing=writing)) from error

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is None:
            return
        if not self.read_only:
            # One file at rest, which can be copied and read from anywhere. Where that cannot be
            # (another process uses it, the disk is full) the log stays and is read with the file.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA journal_mode = DELETE")
        connection.close()

    def __enter__(self) -> CallStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of a file, or None where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _at_size_limit(path: Path) -> bool:
    """Tells whether the record or its log is as large as this process may make a file."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return False
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return False
    files = (path, path.with_name(f"{path.name}-wal"))
    size = max((file.stat().st_size for file in files if file.exists()), default=0)
    return size + _NEAR_LIMIT >= limit


def _said(path: Path, error: Exception, *, writing: bool) -> str:
    """Returns a sentence on why the record cannot be used."""
    verb = "written" if writing else "read"
    start = f"The record of calls {path} cannot be {verb}"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without SQLite's extended part
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return (
            f"{start}: the disk is full; free some space and start the same command again, it goes "
            "on where it stopped."
        )
    too_large = getattr(error, "errno", None) == errno.EFBIG
    if too_large or (code == sqlite3.SQLITE_IOERR and _at_size_limit(path)):
        return (
            f"{start}: it has reached the file size limit of this process; raise that (ulimit -f) "
            "and start the same command again, it goes on where it stopped."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return (
            f"{start}: it is damaged or no SQLite file ({error}); move it away or give another "
            "path."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{start}: the file or its folder is read-only or not there ({error}); mend that."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{start}: another process holds it; wait for that one to end, then start again."
    return f"{start} ({error}); see that its folder is there and can be written, then start again."


def _lines(messages: str) -> list[str]:
    """Returns a prompt as lines that a person can read, of the JSON of its messages."""
    lines: list[str] = []
    for role, content in json.loads(messages):
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        lines += [f"[{role}]", *text.split("\n")]
    return lines


def _overlap(lines: set[str], row: Stored) -> float:
    """Returns the share of lines that two prompts have in common, in [0, 1]."""
    others = set(_lines(row.messages))
    return len(lines & others) / len(lines | others)


def difference(recorded: Stored, asked: Stored) -> str:
    """Returns how a call differs from a recorded one, in words or as the first lines of a diff.

    Args:
        recorded: A call of the record.
        asked: One that is not there.
    """
    ours, theirs = json.loads(asked.settings), json.loads(recorded.settings)
    parts = [("model", recorded.spec, asked.spec), ("sample", recorded.sample, asked.sample)]
    parts += [(n, theirs.get(n), ours.get(n)) for n in sorted(theirs.keys() | ours.keys())]
    told = [f"{name} {old!r} recorded, {new!r} asked" for name, old, new in parts if old != new]
    if recorded.messages != asked.messages:
        told.append("the prompt, from here on:\n" + _diff(recorded, asked))
    return "; ".join(told)


def _diff(recorded: Stored, asked: Stored) -> str:
    """Returns the first lines of the unified diff of two prompts."""
    lines = difflib.unified_diff(
        _lines(recorded.messages), _lines(asked.messages), "recorded", "asked", "", "", 1, ""
    )
    shown = [line for line, _ in zip(lines, range(_DIFF_LINES + 1), strict=False)]
    cut = [f"{x[:_DIFF_WIDTH]}..." if len(x) > _DIFF_WIDTH else x for x in shown[:_DIFF_LINES]]
    return "\n".join(cut + ["..."] * (len(shown) > _DIFF_LINES))
