"""The default model behind a real socket, on the sample clip."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from servers import Running, running

from stream.sources import open_source
from ui.client import Event, connect
from videollm import VideoLLM
from videollm.checkpoints import assets_folder


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(VideoLLM.from_pretrained("pocket"), max_sessions=2) as running_server:
        yield running_server


def sample() -> list[tuple[float, bytes]]:
    frames = []
    with open_source(str(assets_folder() / "sample.mp4"), 2, max_side=448) as source:
        for frame in source:
            target = io.BytesIO()
            Image.fromarray(frame.pixels).save(target, "JPEG", quality=90)
            frames.append((frame.time, target.getvalue()))
    return frames


def test_the_sample_clip_is_narrated_and_asked_about(server: Running) -> None:
    async def main() -> tuple[list[Event], str]:
        async with connect(server.address, fps=2) as stream:
            answer = ""
            for time, picture in sample():
                await stream.send(picture, time)
                if time == 5.0:
                    answer = await stream.ask("What is in view?")
            await stream.end()
            return [event async for event in stream], answer

    events, answer = asyncio.run(main())
    assert "cat" in answer.lower()
    said = [(event["start"], event["text"]) for event in events if event["type"] == "narration"]
    # The cat comes at 2 s and the coffee at 7 s.
    assert any(2 <= time <= 3 and "cat" in text.lower() for time, text in said), said
    assert any(7 <= time <= 8 and re.search("espresso|coffee|cup", text) for time, text in said), said
    for whole in (event for event in events if event["type"] in ("narration", "answer")):
        deltas = [
            event["text"]
            for event in events
            if event["type"] == f"{whole['type']}.delta" and event["id"] == whole["id"]
        ]
        assert "".join(deltas) == whole["text"]


def test_the_readmes_client_runs(server: Running, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number, (_, picture) in enumerate(sample()[:12]):
        (tmp_path / "frames" / f"{number:03}.jpg").write_bytes(picture)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    program = next(block for block in readme.split("```python\n") if "ui.client" in block).split("```")[0]
    program = program.replace("ws://127.0.0.1:7860", server.address)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout.lower()
