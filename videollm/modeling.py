"""VideoLLM: vision tower -> connector -> mixture-of-depths decoder, as one `transformers` model."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from videollm.configuration import VideoLLMConfig
from videollm.connector import build_connector
from videollm.depth_lm import DepthLM
from videollm.places import FramePlaces
from videollm.vision import VisionTower, build_tower

FRAMES_AT_ONCE = 32


class VideoLLM(DepthLM):
    """Frames and text in, next-token logits out.

    The decoder lies under `model` and `lm_head` and the connector under `connector`: the names of
    VideoLLM-online's checkpoints. The model holds no state of a stream; that is the cache's.
    """

    config_class = VideoLLMConfig  # type: ignore[assignment]
    config: VideoLLMConfig
    vision_tower: VisionTower
    connector: nn.Module
    tokenizer: PreTrainedTokenizerBase | None = None

    def __init__(self, config: VideoLLMConfig) -> None:
        PreTrainedModel.__init__(self, config)
        text, vision = config.text_config, config.vision_config
        self.vision_tower = build_tower(vision, config.frame_cls, config.frame_grid)
        self.connector = build_connector(
            config.connector_config, vision.hidden_size, text.hidden_size, config.tokens_per_frame
        )
        self.add_decoder()
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> VideoLLM:
        """Load "pocket", a folder or a hub id, whole checkpoints and adapters alike, with its tokenizer.

        Raises `videollm.checkpoints.CheckpointError` with one line on what to do.
        """
        from videollm.checkpoints import load

        return load(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Square frames, uint8 [frames, 3, size, size], to embeddings [frames, tokens, dim].

        Only so many go through the vision tower at once: when streams begin their contexts anew, hundreds may
        come, and what the tower needs for them would stay allocated.
        """
        return torch.cat([self.connector(self.vision_tower(part)) for part in frames.split(FRAMES_AT_ONCE)])

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        frame_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Next-token logits for text and frames in their order; for the rest see `DepthLM.forward`.

        `input_ids` [batch, sequence] holds `config.frame_token_id` where frames' tokens go, frames always
        whole; the frames themselves come as `pixel_values` (uint8 [frames, 3, size, size]) or, computed
        before, as `frame_embeds` [frames, tokens, dim], in reading order over the batch.
        """
        if frame_embeds is None and pixel_values is not None:
            frame_embeds = self.encode_frames(pixel_values)
        inputs_embeds, frames = self.embed(input_ids, frame_embeds)
        return super().forward(inputs_embeds=inputs_embeds, frames=frames, **kwargs)

    def is_text(self, input_ids: Tensor) -> Tensor:
        """Which tokens are words, not of a frame and not the interval behind one; shaped as `input_ids`."""
        return (input_ids != self.config.frame_token_id) & (input_ids != self._interval)

    @cached_property
    def _interval(self) -> int:
        """The token between frames; -1, which is none, without a tokenizer."""
        if self.tokenizer is None:
            return -1
        return int(self.tokenizer(self.config.frame_interval, add_special_tokens=False)["input_ids"][0])

    def embed(self, input_ids: Tensor, frame_embeds: Tensor | None) -> tuple[Tensor, FramePlaces | None]:
        """Embeddings [batch, sequence, dim], and where frames lie."""
        inside = (input_ids == self.config.frame_token_id).flatten()
        places = inside.nonzero().squeeze(1)
        tokens = self.config.tokens_per_frame
        frames = 0 if frame_embeds is None else frame_embeds.shape[0]
        if places.numel() != frames * tokens:
            raise ValueError(
                f"{places.numel()} frame tokens in the text, but {frames} frames of {tokens} tokens given"
            )
        text_ids = input_ids.clamp(max=self.config.text_config.vocab_size - 1)
        embeds = self.model.embed_tokens(text_ids)  # [batch, sequence, dim]
        if frame_embeds is None or frames == 0:
            return embeds, None
        flat = embeds.flatten(0, 1).index_copy(0, places, frame_embeds.flatten(0, 1).to(embeds.dtype))
        return flat.view_as(embeds), FramePlaces(places.view(frames, tokens), ~inside)


AutoConfig.register("videollm", VideoLLMConfig)
AutoModel.register(VideoLLMConfig, VideoLLM)
AutoModelForCausalLM.register(VideoLLMConfig, VideoLLM)
