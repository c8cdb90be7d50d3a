"""Frames in, events out: sources, the feed that reads ahead, the session, exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream.session import Session

__all__ = ["Session"]


def __getattr__(name: str) -> Any:
    # The session needs torch, which takes seconds to import; readers and exports do not wait for it.
    if name == "Session":
        from stream.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
