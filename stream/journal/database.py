"""The file of a journal: a SQLite database, one writer and any readers at a time.

In write-ahead mode a commit is with the operating system when it returns: a process that is killed at any
moment loses nothing that was committed, a machine without power at most the last seconds. A writer holds
a lock on `FILE-lock`, which the system lets go of when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import sqlite3
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

APPLICATION_ID = 0x766C6C6D  # "vllm" in ASCII: says that a SQLite file is a journal
VERSION = 1
WAIT_SECONDS = 1.0  # for another process that reads or writes at this moment
_MAGIC = b"SQLite format 3\0"

_SCHEMA = f"""
BEGIN IMMEDIATE;
-- A run is one program's watching; its clock begins at `start`, where the run before ended.
CREATE TABLE IF NOT EXISTS run (
    id INTEGER PRIMARY KEY, start REAL NOT NULL, began TEXT NOT NULL, source TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL, evidence TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS event_time ON event (time);
CREATE VIRTUAL TABLE IF NOT EXISTS event_text USING fts5 (
    text, content='event', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER IF NOT EXISTS event_added AFTER INSERT ON event BEGIN
    INSERT INTO event_text (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER IF NOT EXISTS event_removed AFTER DELETE ON event BEGIN
    INSERT INTO event_text (event_text, rowid, text) VALUES ('delete', old.id, old.text);
END;
-- Pictures lie apart, so that looking through signatures doesn't read them.
CREATE TABLE IF NOT EXISTS frame (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, said INTEGER NOT NULL, space INTEGER NOT NULL,
    signature BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS frame_time ON frame (said, time);
CREATE TABLE IF NOT EXISTS picture (frame INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS frame_removed AFTER DELETE ON frame BEGIN
    DELETE FROM picture WHERE frame = old.id;
END;
-- How far the thinning of frames has come.
CREATE TABLE IF NOT EXISTS sweep (said INTEGER PRIMARY KEY, reached REAL NOT NULL);
INSERT OR IGNORE INTO sweep VALUES (0, -1), (1, -1);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""


class JournalError(Exception):
    """A journal can't be opened; the message is one line that says what to do."""


def lock(path: Path) -> BinaryIO:
    """Become the one writer until the file that this gives is closed. JournalError where another one is."""
    file = path.with_name(f"{path.name}-lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise JournalError(
            f"{path} is being written by another program; end that one, or name another journal"
        ) from None
    return file


def open_to_write(path: Path) -> tuple[sqlite3.Connection, Path | None]:
    """The database, made where there is none. A damaged one is put aside; the second is where it lies now.

    Raises JournalError for a file that is no journal or one of another version, and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_magic(path)
    try:
        return _connect_to_write(path), None
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise unusable(path, error) from error
    aside = _put_aside(path)
    return _connect_to_write(path), aside


def open_to_read(path: Path) -> sqlite3.Connection:
    """The database of a finished journal, or of one that is being written. Raises JournalError."""
    if not path.is_file():
        raise JournalError(f"there is no journal {path}; videollm narrate SOURCE --journal {path} keeps one")
    _check_magic(path)
    connection = None
    try:
        connection = _connect(f"{path.resolve().as_uri()}?mode=ro")
        _check_kind(connection, path)
        if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            raise JournalError(f"{path} holds nothing yet")
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        raise unusable(path, error) from error
    except JournalError:
        if connection is not None:
            connection.close()
        raise
    return connection


def _connect(target: Path | str) -> sqlite3.Connection:
    # Sessions of an engine may be made in one thread and stepped in another, one at a time.
    return sqlite3.connect(
        target,
        timeout=WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        uri=isinstance(target, str),
    )


def _connect_to_write(path: Path) -> sqlite3.Connection:
    connection = _connect(path)
    try:
        _check_kind(connection, path)
        # Before anything is written: a damaged file is put aside as it was found.
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # Before write-ahead mode: so the file says what it is from its first commit on.
        connection.executescript(_SCHEMA)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_magic(path: Path) -> None:
    """JournalError for a file that SQLite has not begun."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if not _MAGIC.startswith(start):
        raise JournalError(f"{path} is not a journal; name another file")


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    """JournalError for another program's database, and for a journal of another version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and tables:
        raise JournalError(f"{path} is another program's database; name another file")
    if version not in (0, VERSION):
        raise JournalError(
            f"{path} is a journal of version {version}, and this program reads version {VERSION}; "
            "name another file, or use the program that wrote it"
        )


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # What quick_check finds has no code of SQLite's.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def unusable(path: Path, error: sqlite3.DatabaseError) -> JournalError:
    if _is_damage(error):
        return JournalError(f"{path} is damaged ({error}); narrate puts it aside and begins a new one")
    return JournalError(f"{path} can't be opened as a journal: {error}")


def _put_aside(path: Path) -> Path:
    """Give a damaged journal another name, with what belongs to it."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now():%Y-%m-%d-%H%M%S}")
    path.replace(aside)
    for ending in ("-wal", "-shm", "-journal"):
        beside = path.with_name(path.name + ending)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + ending))
    return aside
