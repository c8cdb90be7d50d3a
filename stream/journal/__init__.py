"""The journal of a stream on disk: what was said, and frames beside it, for as long as its size allows."""

from __future__ import annotations

from stream.journal.database import JournalError
from stream.journal.folder import JournalFolder
from stream.journal.reader import JournalReader, KeptFrame, Said
from stream.journal.writer import DEFAULT_SIZE, LEAST_SIZE, Journal

__all__ = [
    "DEFAULT_SIZE",
    "LEAST_SIZE",
    "Journal",
    "JournalError",
    "JournalFolder",
    "JournalReader",
    "KeptFrame",
    "Said",
]
