"""A server under load over real sockets: `videollm bench serve`.

The server runs in a process of its own. Each client pushes the frames of the sample clip at a fixed rate as
far as its credits go, and hears all that is said; slow readers push without minding credits and hear nothing.
A session before them has warmed the server up. Beside what clients see stands the server's own step time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import multiprocessing
import random
import signal
import socket
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
import websockets
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from stream.engine import Engine, Read, Script
from stream.frames import Event
from ui.protocol import PATH, EncodedFrame, FrameFormat
from ui.settings import Settings

JPEG_QUALITY = 85
START_SECONDS = 300.0
DRAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Load:
    model: str
    device: str
    sessions: int
    fps: float
    seconds: float
    slow_readers: int
    step_ms: float | None
    """Time of a step, instead of a model's computation."""


@dataclass
class Client:
    """What one session saw."""

    started: float = 0.0
    """When it said `session.start`."""
    sent: dict[int, float] = field(default_factory=dict)  # when each frame that is not acknowledged yet went
    ack_ms: list[float] = field(default_factory=list)
    narration_ms: list[float] = field(default_factory=list)
    first_narration: tuple[float, float] | None = None
    """Seconds from `session.start` to the first, and from the first frame to the one that it is about."""
    read: int = 0
    dropped: int = 0
    held_back: int = 0
    """Frames not sent for want of credits."""
    failed: str | None = None
    _captured: dict[int, float] = field(default_factory=dict)

    def sends(self, sequence: int, captured: float) -> None:
        self.sent[sequence], self._captured[sequence] = time.perf_counter(), captured

    def hears(self, message: dict[str, Any]) -> None:
        now = time.perf_counter()
        if message["type"] == "frame.ack":
            self.read += message.get("read", 0)
            self.dropped += message.get("dropped", 0)
            for sequence in [sent for sent in self.sent if sent <= message["sequence"]]:
                self.ack_ms.append(1e3 * (now - self.sent.pop(sequence)))
        elif message["type"] == "narration":
            self.narration_ms.append(1e3 * (now - self._captured[message["sequence"]]))
            if self.first_narration is None:
                self.first_narration = now - self.started, message["start"]
        elif message["type"] == "error":
            self.failed = message["code"]


@dataclass(frozen=True)
class Steps:
    """The server's steps in a stretch of time."""

    count: int
    mean_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Result:
    """Latencies at the client: of acknowledgements from a frame's sending, of narrations from its capture to
    the whole text."""

    ack_p50_ms: float
    ack_p95_ms: float
    ack_p99_ms: float
    narration_p50_ms: float
    narration_p95_ms: float
    step: Steps
    """In the same run; a narration takes one for its frame, and one a word."""
    first_narration_p50_s: float
    """From `session.start`, of the sessions that heard one."""
    first_narration_worst_s: float
    first_narrated_frame_p50_s: float
    """Of this so much passed in the clip before what is told was to be seen."""
    frames_read: int
    frames_dropped: int
    frames_held_back: int
    reads_fewest: int
    """Of the sessions' counts of frames read."""
    reads_most: int
    fairness: float
    """Jain's index of those counts: 1 where all are alike."""
    narrations: int
    failed_sessions: int
    resident_mib: list[tuple[float, float]]
    """The server's memory at times of the run, in seconds."""


class FixedTimeStep(Engine):
    """Not a model: every step takes `seconds`, whatever is in it. One frame of ten is spoken about, in twelve
    words. What is left under load is the server's own work."""

    seconds = 0.0
    FRAMES_A_REPLY = 10
    WORDS = 12

    def step(self) -> dict[int, list[Event]]:
        time.sleep(self.seconds)
        return super().step()

    def _read(self, batch: list[tuple[int, tuple[Script, Read]]], done: dict[int, list[Event]]) -> None:
        for slot, (script, wanted) in batch:
            del self._running[slot]
            self._advance(slot, script, self._logits(wanted), done)

    def _logits(self, wanted: Read) -> Tensor:
        config, tokenizer = self.model.config, self.model.tokenizer
        assert tokenizer is not None
        ends = 1 if wanted.ends is None else len(wanted.ends)
        logits = torch.zeros(ends, config.text_config.vocab_size)
        if wanted.pixels is not None:
            silent = torch.tensor([random.random() >= 1 / self.FRAMES_A_REPLY for _ in range(ends)])
            logits[silent, tokenizer(config.frame_interval)["input_ids"][-1]] = 100.0
        elif random.random() < 1 / self.WORDS:
            logits[:, tokenizer.eos_token_id] = 1.0
        else:
            logits[:, random.randrange(1000, 2000)] = 1.0
        return logits


def run(load: Load) -> Result:
    """Serve, load, and give what was seen. Raises RuntimeError where the server doesn't come up."""
    frames = _frames(load.fps)
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(load, theirs))
    process.start()
    try:
        if not ours.poll(START_SECONDS):
            raise RuntimeError("the server has not come up")
        port = ours.recv()
        assert process.pid is not None
        memory = psutil.Process(process.pid)
        asyncio.run(_warm_up(_uri(port), frames))
        before = _step_metrics(port)
        clients, resident = asyncio.run(_load(load, port, frames, lambda: memory.memory_info().rss / 2**20))
        after = _step_metrics(port)
    finally:
        process.terminate()
        process.join(30)
        process.kill()
    return _result(clients, resident, _steps(before, after))


def _serve(load: Load, port: Connection) -> None:
    from transformers.utils import logging

    from ui.app import create_app
    from ui.serving import Server
    from videollm import VideoLLM
    from videollm.inference import prepare_for_inference

    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    model = VideoLLM.from_pretrained(load.model)
    if load.step_ms is None:
        model.to(device=load.device)  # type: ignore[call-arg]  # wrapped by transformers without its own type
        prepare_for_inference(model)
    else:
        FixedTimeStep.seconds = load.step_ms / 1e3
        model.config.context_tokens = 1024  # never filled, but hundreds of streams have to be addressed
    settings = Settings(max_sessions=load.sessions + load.slow_readers)
    engine = (Engine if load.step_ms is None else FixedTimeStep)(model, settings.max_sessions)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as taken:
        server = Server(create_app(engine, load.model, settings), settings)
        port.send(taken.getsockname()[1])
        server.run(sockets=[taken])


def _frames(fps: float) -> list[bytes]:
    """The sample clip as JPEG files."""
    import io

    from PIL import Image

    from stream.sources import open_source
    from videollm.checkpoints import assets_folder

    files = []
    with open_source(str(assets_folder() / "sample.mp4"), fps) as source:
        for frame in source:
            target = io.BytesIO()
            Image.fromarray(frame.pixels).save(target, "JPEG", quality=JPEG_QUALITY)
            files.append(target.getvalue())
    return files


async def _load(
    load: Load, port: int, frames: list[bytes], resident: Callable[[], float]
) -> tuple[list[Client], list[tuple[float, float]]]:
    uri = _uri(port)
    clients = [Client() for _ in range(load.sessions)]
    began = time.perf_counter()
    memory: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            memory.append((round(time.perf_counter() - began, 1), round(resident(), 1)))
            await asyncio.sleep(max(1.0, load.seconds / 60))

    watching = asyncio.create_task(watch())
    slow = [asyncio.create_task(_read_slowly(load, uri, frames)) for _ in range(load.slow_readers)]
    await asyncio.gather(
        *[
            _push(load, uri, frames, client, index / load.sessions / load.fps)
            for index, client in enumerate(clients)
        ]
    )
    for task in (watching, *slow):
        task.cancel()
    await asyncio.gather(watching, *slow, return_exceptions=True)
    memory.append((round(time.perf_counter() - began, 1), round(resident(), 1)))
    return clients, memory


def _uri(port: int) -> str:
    return f"ws://127.0.0.1:{port}{PATH}"


async def _warm_up(uri: str, frames: list[bytes]) -> None:
    """A frame and a question: every kind of step is taken once."""
    async with websockets.connect(uri, compression=None, open_timeout=60) as connection:
        await connection.send(json.dumps({"type": "session.start"}))
        await connection.send(_packed(0, 0.0, frames))
        await connection.send(json.dumps({"type": "question", "id": "1", "text": "What is in view?"}))
        await connection.send(json.dumps({"type": "session.end"}))
        async for _ in connection:
            pass


async def _push(load: Load, uri: str, frames: list[bytes], client: Client, offset: float) -> None:
    """One session: `fps` frames a second, begun a moment after the others'."""
    await asyncio.sleep(offset)
    try:
        async with websockets.connect(uri, compression=None, open_timeout=60) as connection:
            client.started = time.perf_counter()
            await connection.send(json.dumps({"type": "session.start", "fps": 60}))
            credits = json.loads(await connection.recv()).get("credits", 0)

            async def hear() -> None:
                nonlocal credits
                async for text in connection:
                    message = json.loads(text)
                    client.hears(message)
                    if message["type"] == "frame.ack":
                        credits += message["credits"]

            hearing = asyncio.create_task(hear())
            began = time.perf_counter()
            for number in range(math.ceil(load.seconds * load.fps)):
                await asyncio.sleep(began + number / load.fps - time.perf_counter())
                if credits <= 0:
                    client.held_back += 1
                    continue
                credits -= 1
                client.sends(number, began + number / load.fps)
                await connection.send(_packed(number, number / load.fps, frames))
            await connection.send(json.dumps({"type": "session.end"}))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hearing, DRAIN_SECONDS)
    except (OSError, websockets.WebSocketException) as error:
        client.failed = type(error).__name__


async def _read_slowly(load: Load, uri: str, frames: list[bytes]) -> None:
    """Push, and take nothing: again and again, since the server won't have it for long."""
    while True:
        with contextlib.suppress(OSError, websockets.WebSocketException):
            async with websockets.connect(uri, compression=None, max_queue=1) as connection:
                connection.transport.set_write_buffer_limits(high=2**16)
                await connection.send(json.dumps({"type": "session.start", "fps": 60, "threshold": 1.0}))
                for number in itertools.count():
                    await connection.send(_packed(number, number / load.fps, frames))
                    await asyncio.sleep(1 / load.fps)
        await asyncio.sleep(1.0)


def _packed(sequence: int, moment: float, frames: list[bytes]) -> bytes:
    return EncodedFrame(FrameFormat.JPEG, sequence, moment, frames[sequence % len(frames)]).pack()


def _step_metrics(port: int) -> dict[str, float]:
    """The histogram of steps so far: counts by upper bound [s], and their sum."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = next(family for family in families if family.name == "videollm_step_seconds").samples
    return {sample.labels.get("le", sample.name.rpartition("_")[2]): sample.value for sample in samples}


def _steps(before: dict[str, float], after: dict[str, float]) -> Steps:
    """Of what came in between; the percentile as Prometheus estimates it: straight within a bucket, the
    last of which is its lower bound."""
    added = {name: value - before[name] for name, value in after.items() if name != "created"}
    total, count = added.pop("sum"), added.pop("count")
    wanted, lower, below, p95 = 0.95 * count, 0.0, 0.0, math.nan
    for upper, up_to in sorted((float(bound), value) for bound, value in added.items()):
        if count and up_to >= wanted:
            inside = (wanted - below) / (up_to - below)
            p95 = lower if math.isinf(upper) else lower + (upper - lower) * inside
            break
        lower, below = upper, up_to
    return Steps(int(count), 1e3 * total / count if count else math.nan, 1e3 * p95)


def _result(clients: list[Client], resident: list[tuple[float, float]], steps: Steps) -> Result:
    acks = [latency for client in clients for latency in client.ack_ms]
    narrations = [latency for client in clients for latency in client.narration_ms]
    firsts = [client.first_narration for client in clients if client.first_narration is not None]
    reads = [client.read for client in clients]
    squares = sum(count * count for count in reads)
    return Result(
        ack_p50_ms=_percentile(acks, 0.5),
        ack_p95_ms=_percentile(acks, 0.95),
        ack_p99_ms=_percentile(acks, 0.99),
        narration_p50_ms=_percentile(narrations, 0.5),
        narration_p95_ms=_percentile(narrations, 0.95),
        step=steps,
        first_narration_p50_s=_percentile([heard for heard, _ in firsts], 0.5),
        first_narration_worst_s=_percentile([heard for heard, _ in firsts], 1.0),
        first_narrated_frame_p50_s=_percentile([shown for _, shown in firsts], 0.5),
        frames_read=sum(reads),
        frames_dropped=sum(client.dropped for client in clients),
        frames_held_back=sum(client.held_back for client in clients),
        reads_fewest=min(reads),
        reads_most=max(reads),
        fairness=sum(reads) ** 2 / (len(reads) * squares) if squares else math.nan,
        narrations=len(narrations),
        failed_sessions=sum(client.failed is not None for client in clients),
        resident_mib=resident,
    )


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else math.nan
