"""What a model in training says of frames whose features are known: a look between two steps."""

from __future__ import annotations

import torch
from torch import Tensor

from stream.frames import Event
from stream.session import MAX_REPLY_TOKENS
from videollm.cache import StreamCache
from videollm.modeling import VideoLLM
from videollm.prompt import Prompt


@torch.no_grad()
def narrate(model: VideoLLM, prompt: Prompt, features: Tensor, fps: float) -> list[Event]:
    """Narrations of a stream, as a session says them: features [frames, tokens, dim] of the vision tower,
    `fps` a second."""
    cache = StreamCache(model.config.text_config)

    def read(ids: list[int], frame: Tensor | None = None) -> Tensor:
        """Logits behind it, [vocabulary]; a frame's embeddings are [1, tokens, dim]."""
        row = torch.tensor([ids], device=features.device)
        return model(row, frame_embeds=frame, past_key_values=cache, logits_to_keep=1).logits[0, -1].float()

    def reply() -> str:
        said: list[int] = []
        token = int(read(prompt.reply).argmax())
        while token != prompt.eos and len(said) < MAX_REPLY_TOKENS:
            said.append(token)
            token = int(read([token]).argmax())
        return str(prompt.tokenizer.decode(said)).strip()

    events, lead = [], prompt.start
    for index, frame in enumerate(model.connector(features)):
        logits = read([*lead, *prompt.frame], frame[None])
        lead = [prompt.interval]
        if logits.softmax(-1)[prompt.interval] < model.config.threshold:
            events.append(Event(index / fps, "narration", reply()))
            lead = [prompt.eos, *prompt.reopen]
    return events
