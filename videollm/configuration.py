"""Configuration of the whole model: vision tower, frame tokens, connector, decoder and its depth routing."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

Layers = Literal["interleaved", "all", "none"] | list[int]
SYSTEM_PROMPT = (
    "A multimodal AI assistant is helping users with some activities. "
    "Below is their conversation, interleaved with the list of video frames received by the assistant."
)


class DepthConfig(PreTrainedConfig):
    """Mixture-of-depths settings.

    `router` is a name of `videollm.routers`. `layers` says which decoder layers route where the router
    doesn't choose them itself: "interleaved" is every second one from layer 1 on, "all", "none", or a list
    of indices. `routes` says which tokens: those of "frames", between which text always runs, or "all" that
    a step reads, as in a language model without frames. `ratio` is the share r of them that run in such a
    layer: k = ceil(r n) of top-k, what "threshold" is trained towards. `gate` says how top-k's score s scales
    what the layer adds: "score" is s itself (VideoLLM-MoD), "tanh" is 1 + 0.2 tanh(s) (p-MoD; never far from
    the identity), "one" leaves it as it is. `threshold` is MoDification's p and `load_weight` its alpha.
    """

    model_type = "videollm_depth"

    def __init__(
        self,
        layers: Layers = "interleaved",
        ratio: float = 0.2,
        gate: Literal["score", "tanh", "one"] = "tanh",
        router: str = "top_k",
        routes: Literal["frames", "all"] = "frames",
        threshold: float = 0.5,
        load_weight: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"depth ratio must be above 0 and at most 1, got {ratio}")
        if gate not in ("score", "tanh", "one"):
            raise ValueError(f'depth gate must be "score", "tanh" or "one", got {gate!r}')
        if routes not in ("frames", "all"):
            raise ValueError(f'depth routes must be "frames" or "all", got {routes!r}')
        if not 0 < threshold < 1:
            raise ValueError(f"depth threshold must be between 0 and 1, got {threshold}")
        self.layers = layers
        self.ratio = ratio
        self.gate = gate
        self.router = router
        self.routes = routes
        self.threshold = threshold
        self.load_weight = load_weight
        super().__init__(**kwargs)

    def chosen_layers(self, num_layers: int) -> list[int]:
        """Indices of `layers` in a decoder of `num_layers`."""
        if self.layers == "none":
            return []
        if self.layers == "all":
            return list(range(num_layers))
        if self.layers == "interleaved":
            return list(range(1, num_layers, 2))
        if isinstance(self.layers, str) or not all(0 <= index < num_layers for index in self.layers):
            raise ValueError(
                f'depth layers must be "interleaved", "all", "none" or indices below {num_layers}, '
                f"got {self.layers!r}"
            )
        return sorted(set(self.layers))


class ConnectorConfig(PreTrainedConfig):
    """What stands between vision features and the decoder.

    "mlp" is Linear-GELU-Linear (VideoLLM-online). "class_names" speaks through the names of things: see
    `videollm.connector.ClassNameConnector`; `groups` are the sizes of its softmax groups, `powers` to which
    each one's classifier takes the features (1 where None), `labels` its classes' names, by which a question
    finds them in what was seen.
    """

    model_type = "videollm_connector"

    def __init__(
        self,
        kind: Literal["mlp", "class_names"] = "mlp",
        groups: list[int] | None = None,
        powers: list[float] | None = None,
        labels: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.kind = kind
        self.groups = groups or []
        self.powers = powers or [1.0] * len(self.groups)
        self.labels = labels or []
        super().__init__(**kwargs)


class VideoLLMConfig(PreTrainedConfig):
    """A vision tower, a connector and a decoder. A frame becomes `frame_cls` + `frame_grid`^2 tokens.

    `frame_token_id` stands in `input_ids` where a frame's tokens go; it lies outside the vocabulary by
    default, so that no tokenizer has to learn it. `frame_interval` is the text whose first token says
    "silent"; `cut_marker` is read before a frame that shows another scene than the one before, where the
    model was trained with one. `context_tokens` is the longest context that training has shown the model, the
    decoder's own limit where None: a session begins a new one before it leaves that range.
    `language_model_name` and `vision_name` name the unchanged parts that an adapter checkpoint builds on.
    """

    model_type = "videollm"
    sub_configs = {  # noqa: RUF012 - read by transformers as a class attribute
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "connector_config": ConnectorConfig,
        "depth_config": DepthConfig,
    }

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        connector_config: ConnectorConfig | dict[str, Any] | None = None,
        depth_config: DepthConfig | dict[str, Any] | None = None,
        frame_cls: bool = True,
        frame_grid: int = 3,
        frame_token_id: int | None = None,
        frame_interval: str = ",",
        cut_marker: str = "",
        system_prompt: str = SYSTEM_PROMPT,
        fps: float = 2.0,
        threshold: float = 0.725,
        context_tokens: int | None = None,
        language_model_name: str | None = None,
        vision_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = as_config(text_config, "llama")
        self.vision_config = as_config(vision_config, "siglip_vision_model")
        self.connector_config = (
            ConnectorConfig(**connector_config)
            if isinstance(connector_config, dict)
            else connector_config or ConnectorConfig()
        )
        self.depth_config = (
            DepthConfig(**depth_config) if isinstance(depth_config, dict) else depth_config or DepthConfig()
        )
        self.frame_cls = frame_cls
        self.frame_grid = frame_grid
        self.frame_token_id = self.text_config.vocab_size if frame_token_id is None else frame_token_id
        self.frame_interval = frame_interval
        self.cut_marker = cut_marker
        self.system_prompt = system_prompt
        self.fps = fps
        self.threshold = threshold
        self.context_tokens = context_tokens
        self.language_model_name = language_model_name
        self.vision_name = vision_name
        # The tie is a property of the decoder; `save_pretrained` reads it from the outer configuration.
        kwargs["tie_word_embeddings"] = bool(self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def tokens_per_frame(self) -> int:
        return int(self.frame_cls) + self.frame_grid**2

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        return self.text_config


def as_config(value: PreTrainedConfig | dict[str, Any] | None, default: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    fields = dict(value or {})
    return AutoConfig.for_model(fields.pop("model_type", default), **fields)
