"""Small random models that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

# Before anything imports Triton: without a GPU its kernels run on CPU tensors, where tests call them by name.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AddedToken,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
)

from stream import engine, session
from videollm import VideoLLM, VideoLLMConfig
from videollm.configuration import DepthConfig
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, read
from videollm.step_graphs import StepGraphs

NO_CHROMIUM = "Chromium is not installed"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was left out for want of a browser stands among the last lines, where it is seen."""
    skipped = terminalreporter.getreports("skipped")
    if left_out := sum(NO_CHROMIUM in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(
            f"LEFT OUT: {left_out} tests of the page in a browser. {NO_CHROMIUM}: apt install chromium",
            yellow=True,
        )


torch.set_num_threads(min(2, torch.get_num_threads()))

FAMILIES = {"llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}


def text_config(family: str = "llama", **fields: object) -> PreTrainedConfig:
    config = FAMILIES[family](
        **{
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
        }
        | fields
    )
    if family == "mistral":
        config.sliding_window = None
    return config


def vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token: a real tokenizer that needs no file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": AddedToken("<eos>"), "bos_token": AddedToken("<bos>")})
    return tokenizer


def small_model(family: str = "llama", seed: int = 0, **depth: object) -> VideoLLM:
    torch.manual_seed(seed)
    config = VideoLLMConfig(
        text_config=text_config(family),
        vision_config=vision_config(),
        depth_config=DepthConfig(**depth),
        system_prompt="Watch.",
    )
    model = VideoLLM(config).eval()
    model.tokenizer = byte_tokenizer()
    return model


@contextmanager
def terse_model(most: int = 6) -> Iterator[VideoLLM]:
    """A small model, and replies of so many tokens while the context lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "MAX_REPLY_TOKENS", most)
        yield small_model()


class Recorder:
    """Keeps what a session reads and what comes out, position by position."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: list[int] = []
        self.pixels: list[torch.Tensor] = []
        self.last: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(engine, "read", self.read)

    def read(
        self, model: VideoLLM, chunks: list[Chunk], cache: LayerBudgetCache, graphs: StepGraphs | None
    ) -> torch.Tensor:
        (chunk,) = chunks
        logits = read(model, chunks, cache, graphs)
        self.ids += chunk.ids
        if chunk.pixels is not None:
            self.pixels.append(chunk.pixels)
        self.last[len(self.ids) - 1] = logits[0]
        return logits

    def forget(self, positions: int) -> None:
        """Drop the first positions, and the frames in them."""
        width, marker = 10, 300
        dropped = self.ids[:positions].count(marker) // width
        self.pixels = [torch.cat(self.pixels)[dropped:]]
        self.ids = self.ids[positions:]
        self.last = {at - positions: logits for at, logits in self.last.items() if at >= positions}


@pytest.fixture
def tiny() -> VideoLLM:
    return small_model()
