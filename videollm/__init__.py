"""A streaming video assistant on a mixture-of-depths language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videollm.configuration import VideoLLMConfig
    from videollm.modeling import VideoLLM

__all__ = ["VideoLLM", "VideoLLMConfig"]


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `videollm --help` must not wait for them.
    if name == "VideoLLM":
        from videollm.modeling import VideoLLM

        return VideoLLM
    if name == "VideoLLMConfig":
        from videollm.configuration import VideoLLMConfig

        return VideoLLMConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
