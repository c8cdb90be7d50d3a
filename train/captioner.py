"""What people would pick instead of a streaming video-LLM: a classifier's words, and a language model told of
them once a second.

The vision tower and the language model are those that the default model is made of, untrained:
EfficientNet-lite0 says its best ImageNet names of the whole picture, SmolLM2 is asked what is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from stream.frames import Event
from train.compose import FPS
from train.data.encoding import encode
from train.language import in_view
from train.material import class_names, vision_tower
from videollm import bases

CANDIDATES = 3  # names told to the language model, best first
REPLY_TOKENS = 24
SECOND = round(FPS)  # frames
SYSTEM = (
    "You watch a camera. Every second you are told what the picture looks like, the likeliest first. "
    "Answer with one short sentence that says what is new, or with the word nothing."
)
EXAMPLE = (
    ("The picture looks like: cat, fox, dog.", "A cat is in view."),
    ("The picture looks like: cat, dog, fox.", "nothing"),
    ("The picture looks like: teapot, cup, bowl.", "A teapot is in view."),
)


class Captioner:
    """Names of a clip's frames, once a second, and two ways of making narrations of them."""

    def __init__(self) -> None:
        self.tower = vision_tower()
        self.classifier, self.names = bases.imagenet_classifier(), class_names()

    def captions(self, frames: np.ndarray) -> Iterator[tuple[float, list[str]]]:
        """Seconds and the best names, of uint8 frames [frames, height, width, 3] at the model's rate."""
        summaries = torch.from_numpy(encode(self.tower, frames[::SECOND])[:, 0]).float()  # [seconds, dim]
        best = self.classifier(summaries).topk(CANDIDATES).indices.tolist()
        for index, classes in enumerate(best):
            yield index * SECOND / FPS, [self.names[each] for each in classes]

    def names_alone(self, frames: np.ndarray) -> list[Event]:
        """The best name, said whenever it changes."""
        events: list[Event] = []
        latest = ""
        for time, (best, *_) in self.captions(frames):
            if best != latest:
                events.append(Event(time, "narration", in_view([best])))
            latest = best
        return events

    def told(self, frames: np.ndarray) -> list[Event]:
        """What the language model says of the names, but for "nothing" and what it says again."""
        chat, latest = Chat(*self._language_model), ""
        events: list[Event] = []
        for time, names in self.captions(frames):
            said = chat.reply(f"The picture looks like: {', '.join(names)}.")
            if said not in ("", latest) and not said.lower().startswith("nothing"):
                events.append(Event(time, "narration", said))
                latest = said
        return events

    @cached_property
    def _language_model(self) -> tuple[Any, PreTrainedTokenizerBase]:
        return bases.language_model(bases.SMOLLM2)


class Chat:
    """A conversation with an instructed language model, its cache kept from turn to turn."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.cache = DynamicCache()
        messages = [{"role": "system", "content": SYSTEM}]
        for told, answered in EXAMPLE:
            messages += [{"role": "user", "content": told}, {"role": "assistant", "content": answered}]
        self.ids = self._tokens(str(tokenizer.apply_chat_template(messages, tokenize=False)))

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def reply(self, told: str) -> str:
        """The answer to one more message, greedily."""
        self.ids += self._tokens(f"<|im_start|>user\n{told}<|im_end|>\n<|im_start|>assistant\n")
        ids = torch.tensor([self.ids])
        out = self.model.generate(
            ids, past_key_values=self.cache, max_new_tokens=REPLY_TOKENS, do_sample=False
        )
        said = out[0, ids.shape[1] :].tolist()
        ended = said[-1] == self.tokenizer.eos_token_id
        self.ids += [*said, *self._tokens("\n" if ended else "<|im_end|>\n")]
        return str(self.tokenizer.decode(said, skip_special_tokens=True)).strip()
