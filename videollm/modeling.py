"""VideoLLM: vision tower -> connector -> mixture-of-depths decoder, as one `transformers` model."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from videollm.cache import StreamCache
from videollm.configuration import VideoLLMConfig
from videollm.connector import build_connector
from videollm.depth import MixtureOfDepthsLayer, convert
from videollm.packed import ATTENTION
from videollm.routers import ScoringRouter
from videollm.vision import VisionTower, build_tower


class VideoLLM(PreTrainedModel, GenerationMixin):
    """Frames and text in, next-token logits out.

    The decoder lies under `model` and `lm_head` and the connector under `connector`: the names of
    VideoLLM-online's checkpoints. The model holds no state of a stream; that is the cache's.
    """

    config_class = VideoLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["MixtureOfDepthsLayer", "LlamaDecoderLayer"]  # noqa: RUF012
    config: VideoLLMConfig
    vision_tower: VisionTower
    connector: nn.Module
    model: Any  # whichever decoder of transformers; their classes share no type that has `layers`
    lm_head: nn.Linear
    tokenizer: PreTrainedTokenizerBase | None = None

    def __init__(self, config: VideoLLMConfig) -> None:
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.vision_tower = build_tower(vision, config.frame_cls, config.frame_grid)
        self.connector = build_connector(
            config.connector_config, vision.hidden_size, text.hidden_size, config.tokens_per_frame
        )
        decoder = AutoModel.from_config(text)
        if text._attn_implementation == "sdpa":
            decoder.set_attn_implementation(ATTENTION)  # the same, and what streams need
        self.model = convert(decoder, config.depth_config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
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
        """Square frames, uint8 [frames, 3, size, size], to embeddings [frames, tokens, dim]."""
        return self.connector(self.vision_tower(frames))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        frame_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Next-token logits [batch, sequence, vocabulary] for text and frames in their order.

        `input_ids` [batch, sequence] holds `config.frame_token_id` where frames' tokens go, frames always
        whole; the frames themselves come as `pixel_values` (uint8 [frames, 3, size, size]) or, computed
        before, as `frame_embeds` [frames, tokens, dim], in reading order over the batch. Batches are padded
        on the right and need no mask, so that `attention_mask` may be left out and must be all ones.
        `labels` [batch, sequence] are the tokens themselves where they are to be learned and -100 elsewhere
        (the shift happens here). `logits_to_keep` is the number of last positions (0: all), or a mask
        [batch, sequence] of positions, for which logits are wanted; with a mask, and with labels, whose
        learned positions are such a mask, they come flat, [wanted, vocabulary]: a vocabulary is wide and
        most positions of a stream are frames. What routers add to the loss of training is `aux_loss`, and in
        `loss` already.
        """
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("pad batches on the right, without an attention mask")
        if frame_embeds is None and pixel_values is not None:
            frame_embeds = self.encode_frames(pixel_values)
        inputs_embeds, frame_index = self.embed(input_ids, frame_embeds)

        if past_key_values is None and use_cache:
            past_key_values = StreamCache(self.config.text_config)
        seen = past_key_values.seen_tokens if isinstance(past_key_values, StreamCache) else 0
        positions = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        router_losses: list[Tensor] = []
        out = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=self._dense_mask(inputs_embeds, past_key_values),
            position_ids=positions,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            frame_index=frame_index,
            router_losses=router_losses,
        )
        if isinstance(past_key_values, StreamCache):
            past_key_values.seen_tokens += input_ids.shape[1]

        hidden = out.last_hidden_state  # [batch, sequence, dim]
        router_loss = torch.stack(router_losses).sum() if router_losses else None
        if labels is not None:
            learned = labels[:, 1:] != -100
            logits = self.lm_head(hidden[:, :-1][learned])  # [learned, vocabulary]
            loss = nn.functional.cross_entropy(logits.float(), labels[:, 1:][learned])
            if router_loss is not None:
                loss = loss + router_loss
        else:
            wanted = (
                hidden[logits_to_keep] if isinstance(logits_to_keep, Tensor) else hidden[:, -logits_to_keep:]
            )
            loss, logits = None, self.lm_head(wanted)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=router_loss,
            logits=logits,
            past_key_values=past_key_values,
        )

    def embed(self, input_ids: Tensor, frame_embeds: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embeddings [batch, sequence, dim], and where in batch * sequence frames lie [frames, tokens]."""
        places = (input_ids == self.config.frame_token_id).flatten().nonzero().squeeze(1)
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
        return flat.view_as(embeds), places.view(frames, tokens)

    def _dense_mask(self, inputs_embeds: Tensor, cache: Cache | None) -> Any:
        """The mask of the layers that don't route. The stock decoder sizes one by layer 0, which is wrong
        only where that layer routes and others don't; then it has to be made here."""
        dense = [
            index
            for index, layer in enumerate(self.model.layers)
            if not isinstance(layer, MixtureOfDepthsLayer)
        ]
        if not dense or dense[0] == 0:
            return None
        return create_causal_mask(
            config=self.config.text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=None,
            past_key_values=cache,
            layer_idx=dense[0],
            allow_is_causal_skip=False,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, past_key_values: Cache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """`generate` starts with the whole prompt and its frames, and goes on token by token."""
        if not isinstance(past_key_values, StreamCache) or past_key_values.seen_tokens == 0:
            past_key_values = StreamCache(self.config.text_config)
            frames = {name: kwargs.get(name) for name in ("pixel_values", "frame_embeds")}
        else:
            input_ids, frames = input_ids[:, past_key_values.seen_tokens :], {}
        return {"input_ids": input_ids, "past_key_values": past_key_values, "logits_to_keep": 1, **frames}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ScoringRouter):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


AutoConfig.register("videollm", VideoLLMConfig)
AutoModel.register(VideoLLMConfig, VideoLLM)
AutoModelForCausalLM.register(VideoLLMConfig, VideoLLM)
