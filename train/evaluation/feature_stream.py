"""A model that reads one stream of features, as a session reads one of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from videollm.layer_budget import LayerBudgetCache
from videollm.modeling import VideoLLM
from videollm.prompt import Prompt


class FeatureStream:
    """Reads token ids with frames' features, and tells what the model would say next.

    Features [frames, tokens, dim] are the vision tower's, as a prepared folder holds them, or what else
    `embed` makes frame tokens of.
    """

    def __init__(self, model: VideoLLM, embed: Callable[[Tensor], Tensor] | None = None) -> None:
        assert model.tokenizer is not None
        self.model = model
        self.prompt = Prompt.of(model.tokenizer, model.config)
        self.embed = embed or model.connector
        self.cache = LayerBudgetCache(model)

    @property
    def room(self) -> int:
        """How many tokens still fit into the context."""
        return self.cache.room(0)

    def reset(self) -> None:
        """Forget the stream."""
        self.cache.reset()

    def rewind(self, tokens: int) -> None:
        """Forget so many of the tokens of the latest read."""
        self.cache.rewind(0, tokens)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], features: Sequence[np.ndarray] | np.ndarray, ends: Tensor) -> Tensor:
        """Read these tokens, a frame's features [tokens, dim] for each of the frames among them; the logits
        at `ends` (indices of tokens), float32 [ends, vocabulary]. ValueError where the context is full."""
        device = self.model.device
        embeds = None
        if len(features):
            frames = torch.from_numpy(np.stack(list(features))).float().to(device)  # [frames, tokens, dim]
            embeds = self.embed(frames.to(self.model.dtype))
        out = self.model(
            torch.tensor([list(ids)], device=device),
            frame_embeds=embeds,
            past_key_values=self.cache,
            logits_to_keep=_mask(ends, len(ids)).to(device),
        )
        return out.logits.float().cpu()

    def frame_ends(self, ids: Sequence[int]) -> Tensor:
        """The indices of frames' last tokens."""
        places = torch.tensor([token == self.prompt.frame[0] for token in ids]).nonzero().flatten()
        return places[len(self.prompt.frame) - 1 :: len(self.prompt.frame)]

    def say(self, logits: Tensor, most: int, draw: torch.Generator | None = None) -> list[int]:
        """What the model says behind what it has read, whose last token's `logits` are [1, vocabulary], up to
        its end-of-text token, to `most` tokens or to the context's end: greedily, or drawn from what it would
        say."""
        said: list[int] = []
        while len(said) < most and self.room > 0:
            chosen = (
                logits[-1].argmax() if draw is None else logits[-1].softmax(-1).multinomial(1, generator=draw)
            )
            if int(chosen) == self.prompt.eos:
                break
            said.append(int(chosen))
            logits = self.read(said[-1:], (), torch.tensor([0]))
        return said

    def text(self, said: list[int]) -> str:
        return str(self.prompt.tokenizer.decode(said)).strip()


def _mask(ends: Tensor, count: int) -> Tensor:
    return torch.zeros(1, count, dtype=torch.bool).index_fill(1, ends, True)  # [1, sequence]
