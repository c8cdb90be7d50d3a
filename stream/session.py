"""A session: one stream's frames and questions in, its events out."""

from __future__ import annotations

import bisect
from collections import deque

import torch
from torch import Tensor

from stream.frames import Event, Frame
from stream.sources.square import pad_to_square
from videollm import VideoLLM
from videollm.cache import StreamCache
from videollm.prompt import Prompt

MAX_REPLY_TOKENS = 48
# What a stream still knows of itself after its context was full: its latest sayings, as text.
SAYINGS_KEPT = 12


class Session:
    """All that one stream owns: its cache, its clock, its pending questions. The model is shared.

    Frame by frame: read it, keep silent where p(interval) is at least `threshold` (the model's own where
    None), else narrate; at most one reply at a time. A question is answered at its own time: after the frame
    of that time, before any later one.
    """

    def __init__(self, model: VideoLLM, *, threshold: float | None = None) -> None:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer; load it with VideoLLM.from_pretrained")
        self.model = model
        self.threshold = model.config.threshold if threshold is None else threshold
        self.prompt = Prompt.of(model.tokenizer, model.config)
        self.cache = StreamCache(model.config.text_config)
        self.reset()

    def reset(self) -> None:
        """Forget the stream; the next frame begins a new one."""
        self.cache.reset()
        self.time = 0.0
        self._questions: list[tuple[float, str]] = []
        self._sayings: deque[list[int]] = deque(maxlen=SAYINGS_KEPT)
        self._lead = list(self.prompt.start)  # what is read before the next frame
        self._in_frames = False  # a bracket of frames is open

    def ask(self, question: str, time: float | None = None) -> None:
        """Ask at a time of the stream, in seconds; now where None. ValueError for an empty question."""
        if not question.strip():
            raise ValueError("the question is empty")
        asked = (self.time if time is None else time, question.strip())
        bisect.insort(self._questions, asked, key=lambda entry: entry[0])

    @torch.inference_mode()
    def step(self, frame: Frame) -> list[Event]:
        """Read one frame and give what is said by then, in order of time."""
        events = self._answer_until(frame.time, included=False)
        self.time = frame.time
        events += self._make_room()
        pixels = torch.from_numpy(pad_to_square(frame.pixels, self.model.vision_tower.size))
        logits = self._read([*self._lead, *self.prompt.frame], pixels.permute(2, 0, 1)[None])
        self._lead, self._in_frames = [self.prompt.interval], True
        if logits.softmax(-1)[self.prompt.interval] < self.threshold:
            events.append(Event(frame.time, "narration", self._reply(self.prompt.reply)))
        return events + self._answer_until(frame.time, included=True)

    @torch.inference_mode()
    def finish(self) -> list[Event]:
        """The stream has ended: answer what is still pending, from all that was seen."""
        return self._answer_until(float("inf"), included=True)

    def _answer_until(self, time: float, included: bool) -> list[Event]:
        events = []
        while self._questions and (
            self._questions[0][0] < time or (included and self._questions[0][0] == time)
        ):
            asked, question = self._questions.pop(0)
            self.time = max(self.time, min(asked, time)) if asked != float("inf") else self.time
            events += self._make_room()
            events.append(Event(asked, "question", question))
            # Words said since the last frame wait in the lead; a bracket that nothing follows is not opened.
            lead = [] if self._in_frames else self._lead[: -len(self.prompt.reopen)]
            answer = self._reply([*lead, *self.prompt.ask(question, after_frame=self._in_frames)])
            events.append(Event(asked, "answer", answer))
        return events

    def _reply(self, opening: list[int]) -> str:
        """Let the model speak after `opening`, greedily, to its end-of-text token."""
        logits = self._read(opening)
        said: list[int] = []
        while len(said) < MAX_REPLY_TOKENS:
            token = int(logits.argmax())
            if token == self.prompt.eos:
                break
            said.append(token)
            logits = self._read([token])
        self._lead, self._in_frames = [self.prompt.eos, *self.prompt.reopen], False
        self._sayings.append(said)
        return str(self.prompt.tokenizer.decode(said)).strip()

    def _read(self, ids: list[int], pixels: Tensor | None = None) -> Tensor:
        """Feed tokens, and a frame in their place; the logits after the last one, [vocabulary]."""
        device = self.model.lm_head.weight.device
        out = self.model(
            torch.tensor([ids], device=device),
            pixel_values=pixels,
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        return out.logits[0, -1].float()

    def _make_room(self) -> list[Event]:
        """Where the trained context is full, begin a new one that knows the latest sayings as text."""
        longest_step = len(self._lead) + len(self.prompt.frame) + 4 * MAX_REPLY_TOKENS
        if self.cache.seen_tokens + longest_step <= self.model.config.text_config.max_position_embeddings:
            return []
        self.cache.reset()
        start = self.prompt.start[: -len(self.prompt.reopen)]
        sayings = [[*self.prompt.reply[1:], *said, self.prompt.eos] for said in self._sayings]
        self._lead = [*start, *(token for saying in sayings for token in saying), *self.prompt.reopen]
        self._in_frames = False
        text = "The context is full: older pictures are forgotten, the latest sayings are kept."
        return [Event(self.time, "notice", text)]
