"""The decoder alone beside llama.cpp on the same weights: `videollm bench decoder`.

Chunks of a word, of a frame (ten tokens and one between frames) and of eight frames that are read together,
behind the same history; tokens of text, so that every one of them runs in every layer of both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from stream.engine import Engine
from stream.measure import spread
from videollm import VideoLLM, bases
from videollm.inference import prepare_for_inference
from videollm.packed import Chunk, read

HISTORY = 200
CHUNKS = (1, 11, 88)
REPEATS = 15
TOKEN = 100
PACKAGED, REQUANTIZED = "Q4_1", "Q8_0"


@dataclass(frozen=True)
class Row:
    """Milliseconds of a chunk: median and spread (tenth and ninetieth percentile)."""

    way: str
    tokens: int
    median_ms: float
    low_ms: float
    high_ms: float


def measure(load: Callable[[], VideoLLM]) -> list[Row]:
    """Every way in turn, chunk by chunk. ImportError without llama-cpp-python."""
    model = load()
    with llama_cpp(PACKAGED) as packaged, llama_cpp(REQUANTIZED) as requantized:
        ways = {
            "float32": ours(model),
            "int8": ours(prepare_for_inference(load())),
            f"llama.cpp {PACKAGED}": packaged,
            f"llama.cpp {REQUANTIZED}": requantized,
        }
        rows = []
        for tokens in CHUNKS:
            times: dict[str, list[float]] = {way: [] for way in ways}
            for repeat in range(REPEATS + 2):  # the first two warm up
                for way, step in ways.items():
                    begun = time.perf_counter()
                    step(tokens)
                    if repeat >= 2:
                        times[way].append(1e3 * (time.perf_counter() - begun))
            for way, taken in times.items():
                low, median, high = spread(taken)
                rows.append(Row(way, tokens, median, low, high))
        return rows


def ours(model: VideoLLM) -> Callable[[int], None]:
    """Reads so many tokens behind the history, again and again."""
    engine = Engine(model)
    slot, cache = engine.join(), engine.cache
    read(model, [Chunk(slot, [TOKEN] * HISTORY)], cache)

    def step(tokens: int) -> None:
        read(model, [Chunk(slot, [TOKEN] * tokens)], cache)
        cache.rewind(slot, tokens)

    return step


@contextmanager
def llama_cpp(kind: str) -> Iterator[Callable[[int], None]]:
    """The same by llama.cpp: the packaged weights of SmolLM2 as they are, or with eight bits each."""
    import llama_cpp as library

    with tempfile.TemporaryDirectory() as folder:
        weights = bases.packaged_file(bases.SMOLLM2, bases.GGUF_FILE)
        if kind == REQUANTIZED:
            packaged, weights = weights, Path(folder) / "weights.gguf"
            settings = library.llama_model_quantize_default_params()
            settings.ftype, settings.allow_requantize = library.LLAMA_FTYPE_MOSTLY_Q8_0, True
            library.llama_model_quantize(str(packaged).encode(), str(weights).encode(), settings)
        threads = torch.get_num_threads()
        model = library.Llama(
            str(weights), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        model.eval([TOKEN] * HISTORY)

        def step(tokens: int) -> None:
            model.n_tokens = HISTORY  # it forgets what is behind when it goes on
            model.eval([TOKEN] * tokens)

        yield step
        model.close()
