"""What a full journal lets go of: old frames first, then those at which something was said, events last.

A sweep goes through the older half of the frames, oldest first, and removes every second one; then a new
one begins. So what is old grows ever thinner, and what is new stays dense.
"""

from __future__ import annotations

import sqlite3

BATCH = 32  # frames of one transaction: the log stays short
MERGED_PAGES = 16  # of the index of words
EVENTS_SHARE = 8  # one in so many events goes at a time


def thin(connection: sqlite3.Connection) -> bool:
    """Remove a little, in short transactions; False where nothing is left."""
    connection.execute("BEGIN IMMEDIATE")
    removed = _thin_frames(connection, said=0) or _thin_frames(connection, said=1)
    if not removed and _drop_events(connection):
        connection.execute("COMMIT")
        _shrink_index(connection)
        return True
    connection.execute("COMMIT")
    return removed


def _thin_frames(connection: sqlite3.Connection, said: int) -> bool:
    (count,) = connection.execute("SELECT count(*) FROM frame WHERE said = ?", (said,)).fetchone()
    if not count:
        return False
    # Where the sweep is lies in the journal: it goes on there whoever opens it next.
    (swept,) = connection.execute("SELECT reached FROM sweep WHERE said = ?", (said,)).fetchone()
    (half,) = connection.execute(
        "SELECT time FROM frame WHERE said = ? ORDER BY time LIMIT 1 OFFSET ?", (said, count // 2)
    ).fetchone()
    oldest = "SELECT id, time FROM frame WHERE said = ? AND time > ? AND time <= ? ORDER BY time LIMIT ?"
    batch = connection.execute(oldest, (said, swept, half, 2 * BATCH)).fetchall()
    if len(batch) < 2:  # the sweep is through: the next one begins
        batch = connection.execute(oldest, (said, -1, half, 2 * BATCH)).fetchall()
    gone = batch[1::2] or batch
    connection.executemany("DELETE FROM frame WHERE id = ?", [(id,) for id, _ in gone])
    connection.execute("UPDATE sweep SET reached = ? WHERE said = ?", (batch[-1][1], said))
    return True


def _drop_events(connection: sqlite3.Connection) -> bool:
    (count,) = connection.execute("SELECT count(*) FROM event").fetchone()
    if not count:
        return False
    connection.execute(
        "DELETE FROM event WHERE id IN (SELECT id FROM event ORDER BY time, id LIMIT ?)",
        (count // EVENTS_SHARE + 1,),
    )
    return True


def _shrink_index(connection: sqlite3.Connection) -> None:
    """Let the index of words forget what was removed, a few pages a transaction."""
    pages = -MERGED_PAGES  # below zero it begins a new merge of everything
    while True:
        before = connection.total_changes
        connection.execute("INSERT INTO event_text (event_text, rank) VALUES ('merge', ?)", (pages,))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if connection.total_changes - before < 2:  # as SQLite says that nothing is left to merge
            return
        pages = MERGED_PAGES
