"""The text around frames: VideoLLM-online's layout, as token ids.

    <bos>system text\\n
    [frame,frame,frame]
    Assistant: A cat is in view.<eos>
    [frame,frame]
    User: What is in view?
    Assistant: A cat.<eos>
    [frame ...

A frame's last token is followed by the interval token where the assistant keeps silent and by `]` where it
speaks or is asked. A model may be told of a hard cut, by a marker before the first frame behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from videollm.configuration import VideoLLMConfig


@dataclass(frozen=True)
class Prompt:
    """Token ids of every piece of the layout, for one tokenizer and configuration."""

    tokenizer: PreTrainedTokenizerBase
    opening: list[int]  # system text, where a question comes before any frame
    start: list[int]  # system text, and the bracket that opens the first run of frames
    reopen: list[int]  # after a reply: the bracket that opens the next run of frames
    frame: list[int]  # the placeholders of one frame
    cut: list[int]  # before a frame of another scene; empty where the model isn't told
    interval: int  # silent
    stop: int  # `]`: the assistant is about to speak
    reply: list[int]  # `]\nAssistant:`
    eos: int

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, config: VideoLLMConfig, system: str | None = None
    ) -> Prompt:
        """With the system text of the configuration where `system` gives none."""
        system = config.system_prompt if system is None else system

        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        reply = ids("]\nAssistant:")
        return cls(
            tokenizer=tokenizer,
            opening=bos + ids(system + "\n"),
            # As one text: where a tokenizer merges the line breaks, it has seen them merged.
            start=bos + ids(system + "\n\n["),
            reopen=ids("\n["),
            frame=[config.frame_token_id] * config.tokens_per_frame,
            cut=ids(config.cut_marker),
            interval=ids(config.frame_interval)[0],
            stop=reply[0],
            reply=reply,
            eos=tokenizer.eos_token_id,
        )

    def ask(self, question: str | None, after_frame: bool) -> list[int]:
        """Asks, and lets the assistant answer, or say something unasked; closes the run of frames where one
        is open."""
        user = f"\nUser: {question.strip()}" if question is not None else ""
        text = f"{']' if after_frame else ''}{user}\nAssistant:"
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def say(self, text: str) -> list[int]:
        """What the assistant says after `reply` or `ask`, to its end."""
        return [*self.tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"], self.eos]
