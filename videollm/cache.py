"""The key-value cache of a growing context, in which layers may hold different numbers of tokens."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer


class StreamCache(Cache):
    """One growing layer cache a decoder layer: for contexts of unknown length, for gradients, and for
    unconverted models beside ours. Streams have a `LayerBudgetCache`, whose memory is fixed.

    A mixture-of-depths layer stores only the tokens that ran in it, so that layers' lengths differ;
    `seen_tokens` counts what the stream has read, and gives the next token its position.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(config.num_hidden_layers)])
        self.seen_tokens = 0

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values hold now."""
        stored = (getattr(layer, part) for layer in self.layers for part in ("keys", "values"))
        return sum(tensor.nbytes for tensor in stored if tensor is not None)

    def reset(self) -> None:
        """Forget everything and free the memory."""
        self.layers = [DynamicLayer() for _ in self.layers]
        self.seen_tokens = 0
