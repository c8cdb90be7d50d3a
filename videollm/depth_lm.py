"""A language model of `transformers` as a mixture-of-depths one: what `videollm convert` makes, and the half
of VideoLLM that reads text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from videollm.cache import StreamCache
from videollm.configuration import DepthConfig, as_config
from videollm.depth import MixtureOfDepthsLayer, convert
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import ATTENTION, decode
from videollm.places import FramePlaces
from videollm.routers import ScoringRouter
from videollm.varlen import PackedSequences


class DepthLMConfig(PreTrainedConfig):
    """A decoder and its depth routing, of every token by default."""

    model_type = "depth_lm"
    sub_configs = {  # noqa: RUF012 - read by transformers as a class attribute
        "text_config": AutoConfig,
        "depth_config": DepthConfig,
    }

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        depth_config: DepthConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = as_config(text_config, "llama")
        self.depth_config = (
            DepthConfig(**depth_config)
            if isinstance(depth_config, dict)
            else depth_config or DepthConfig(router="threshold", routes="all")
        )
        kwargs["tie_word_embeddings"] = bool(self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        return self.text_config


class DepthLM(PreTrainedModel, GenerationMixin):
    """Text in, next-token logits out; the decoder lies under `model` and `lm_head`."""

    config_class = DepthLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["MixtureOfDepthsLayer", "LlamaDecoderLayer"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    config: Any  # DepthLMConfig, or another with `text_config` and `depth_config`
    model: Any  # whichever decoder of transformers; their classes share no type that has `layers`
    lm_head: nn.Linear

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.add_decoder()
        self.post_init()

    @property
    def context(self) -> int:
        """The longest context that training has shown the model, in tokens."""
        config = self.config
        return getattr(config, "context_tokens", None) or config.text_config.max_position_embeddings

    def add_decoder(self) -> None:
        """Build the decoder of the configuration, converted, and its head."""
        text = self.config.text_config
        decoder = AutoModel.from_config(text)
        if text._attn_implementation == "sdpa":
            decoder.set_attn_implementation(ATTENTION)  # the same, and what streams need
        self.model = convert(decoder, self.config.depth_config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        frames: FramePlaces | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        sequence_lengths: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Next-token logits [batch, sequence, vocabulary] for `input_ids` [batch, sequence] or embeddings.

        `frames` are None where there is only text. Sequences of different lengths come packed, as one row
        without padding, and their `sequence_lengths`: each attends to itself alone, and its positions begin
        at 0. Rows of a batch are of one length and need no mask, so that `attention_mask` may be left out and
        must be all ones.
        `past_key_values` is a `StreamCache`, which grows with what is read and lets gradients pass, or a
        `LayerBudgetCache`, whose memory is fixed and whose rows may hold unequal numbers.
        `labels` [batch, sequence] are the tokens themselves where they are to be learned and -100 elsewhere
        (the shift happens here). `logits_to_keep` is the number of last positions (0: all), or a mask
        [batch, sequence] of positions, for which logits are wanted; with a mask, and with labels, whose
        learned positions are such a mask, they come flat, [wanted, vocabulary]: a vocabulary is wide and
        most positions of a stream are frames. What routers add to the loss of training is `aux_loss`, and in
        `loss` already.
        """
        if attention_mask is not None and not attention_mask.all():
            raise ValueError("pack sequences of different lengths into one row (sequence_lengths=)")
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)  # [batch, sequence, dim]
        if past_key_values is None and use_cache:
            past_key_values = StreamCache(self.config.text_config)
        seen = past_key_values.seen_tokens if isinstance(past_key_values, StreamCache) else 0
        sequence = inputs_embeds.shape[1]
        device, packing = inputs_embeds.device, None
        positions = torch.arange(seen, seen + sequence, device=device)[None]  # [1, sequence]
        if sequence_lengths is not None:
            packing = self._packing(inputs_embeds, sequence_lengths, past_key_values)
            positions = torch.cat([torch.arange(length, device=device) for length in sequence_lengths])[None]
        router_losses: list[Tensor] = []
        if isinstance(past_key_values, LayerBudgetCache):
            hidden = self._read_rows(inputs_embeds, frames, past_key_values)  # [batch, sequence, dim]
        else:
            hidden = self.model(
                inputs_embeds=inputs_embeds,
                attention_mask=self._dense_mask(inputs_embeds, past_key_values, packing),
                position_ids=positions,
                past_key_values=past_key_values,
                use_cache=past_key_values is not None,
                frames=frames,
                router_losses=router_losses,
                packing=packing,
            ).last_hidden_state  # [batch, sequence, dim]
        if isinstance(past_key_values, StreamCache):
            past_key_values.seen_tokens += sequence

        router_loss = torch.stack(router_losses).sum() if router_losses else None
        if labels is not None:
            learned = labels[:, 1:] != -100
            if packing is not None:  # a sequence's end says nothing of the next one's beginning
                learned = learned & (positions[:, 1:] > 0)
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
            loss=loss, aux_loss=router_loss, logits=logits, past_key_values=past_key_values
        )

    def _read_rows(
        self, inputs_embeds: Tensor, frames: FramePlaces | None, cache: LayerBudgetCache
    ) -> Tensor:
        """[batch, sequence, dim] through the decoder, each row behind what its slot of the cache holds."""
        batch, sequence, _ = inputs_embeds.shape
        if batch != cache.slots:
            raise ValueError(f"a batch of {batch} needs a cache of as many slots, not of {cache.slots}")
        packed = inputs_embeds.flatten(0, 1)[None]  # [1, batch * sequence, dim]
        text = torch.ones(batch * sequence, dtype=torch.bool) if frames is None else frames.others
        hidden = decode(self, packed, frames, cache, [sequence] * batch, text.to(packed.device))
        return self.model.norm(hidden).view_as(inputs_embeds)

    def _packing(self, inputs_embeds: Tensor, lengths: Sequence[int], cache: Cache | None) -> PackedSequences:
        """Whose each token of the row is. ValueError where sequences can't be packed."""
        if inputs_embeds.shape[:2] != (1, sum(lengths)):
            raise ValueError(
                f"{len(lengths)} sequences of {sum(lengths)} tokens in all are no row of "
                f"{tuple(inputs_embeds.shape[:2])}"
            )
        if cache is not None:
            raise ValueError("packed sequences can't be cached; streams are read by videollm.packed.read")
        if self.config.text_config._attn_implementation != ATTENTION:
            raise ValueError(f'packed sequences need attn_implementation="{ATTENTION}", the default')
        depth = self.config.depth_config
        if depth.routes == "all" and depth.router not in ("full", "threshold"):
            raise ValueError(f"{depth.router} routes a whole row alike: it can't tell packed sequences apart")
        return PackedSequences.of(lengths, inputs_embeds.device)

    def _dense_mask(self, inputs_embeds: Tensor, cache: Cache | None, packing: PackedSequences | None) -> Any:
        """The mask of the layers that don't route. The stock decoder sizes one by layer 0, which is wrong
        only where that layer routes and others don't; then it has to be made here. It makes one of all
        tokens by each other where positions begin anew, unless it is given some mask of four dimensions:
        attention to packed sequences needs none."""
        if packing is not None:
            return inputs_embeds.new_empty(1, 1, 0, 0)
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
        if not isinstance(past_key_values, StreamCache | LayerBudgetCache):
            past_key_values = StreamCache(self.config.text_config)
        if past_key_values.seen_tokens == 0:
            frames: dict[str, Any] = {
                name: kwargs[name] for name in ("pixel_values", "frame_embeds") if name in kwargs
            }
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


AutoConfig.register("depth_lm", DepthLMConfig)
AutoModel.register(DepthLMConfig, DepthLM)
AutoModelForCausalLM.register(DepthLMConfig, DepthLM)
