"""A source pushed to a server, and what the server says about it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from stream.frames import Event, Frame
from videollm.cli.errors import CommandError

if TYPE_CHECKING:
    from stream.feed import Feed
    from ui.client import Stream

JPEG_QUALITY = 90
ALL_FRAMES = 60.0  # the source is sampled here: the server looks at all that comes


def push(
    feed: Feed,
    server: str,
    token: str | None,
    threshold: float | None,
    seen: Callable[[Frame], None],
    heard: Callable[[Event], None],
) -> None:
    """Send every frame as fast as the server takes them; `seen` hears of each before, `heard` of every event.
    Raises CommandError."""
    from ui.client import RefusedError

    try:
        asyncio.run(_push(feed, server, token, threshold, seen, heard))
    except RefusedError as error:
        raise CommandError(f"{server} refuses: {error}") from error
    except (ConnectionError, TimeoutError) as error:
        reason = error.strerror or str(error)
        message = f"{server} can't be reached ({reason}); is `videollm serve` running there?"
        raise CommandError(message) from error


async def _push(
    feed: Feed,
    server: str,
    token: str | None,
    threshold: float | None,
    seen: Callable[[Frame], None],
    heard: Callable[[Event], None],
) -> None:
    from ui.client import connect

    async with connect(server, token=token, fps=ALL_FRAMES, threshold=threshold) as stream:
        hearing = asyncio.create_task(_hear(stream, heard))
        items = iter(feed)
        while (item := await asyncio.to_thread(next, items, None)) is not None:
            if isinstance(item, Frame):
                seen(item)
                await stream.send(await asyncio.to_thread(_encoded, item), item.time)
            else:
                heard(item)
        await stream.end()
        await hearing


async def _hear(stream: Stream, heard: Callable[[Event], None]) -> None:
    async for event in stream:
        if event["type"] in ("narration", "notice"):
            heard(Event(event["start"], event["type"], event["text"]))


def _encoded(frame: Frame) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(frame.pixels).save(target, "JPEG", quality=JPEG_QUALITY)
    return target.getvalue()
