"""A session: one stream's frames and questions in, its events out."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stream.cuts import is_cut
from stream.engine import Engine, Read, Script
from stream.export.times import format_time
from stream.frames import Event, Frame, JournalNotice
from stream.journal import Journal, JournalError, JournalReader
from stream.journal.keeping import Keeper
from stream.recall import Recollection, recall
from stream.sources.square import pad_to_square
from videollm import VideoLLM
from videollm.prompt import Prompt
from videollm.snapshot import Beside, SnapshotError, read_snapshot, snapshot

MAX_REPLY_TOKENS = 48
# Shares of the context: what moments may take when a full one begins anew, the longest question, and the
# longest system prompt.
MOMENTS_SHARE = 0.25
SYSTEM_SHARE = 0.25
QUESTION_SHARE = 0.25


@dataclass(frozen=True)
class Moment:
    """A frame after which something was said."""

    time: float
    pixels: Tensor  # uint8 [3, size, size]
    words: list[int]  # what follows the frame: the bracket's end, a question perhaps, what was said


class Session:
    """All that one stream owns: its part of the cache, its clock, its pending questions. The model is shared.

    Frame by frame: read it, keep silent where p(interval) is at least `threshold` (the model's own where
    None), else narrate; at most one reply at a time. A question is answered at its own time: after the frame
    of that time, before any later one.

    When the context is full, a new one begins with the latest moments, each with its frame: what it reads is
    what the model was trained to read, a stream in which much happens. An engine with a budget evicts
    instead, and the context never ends.

    A `journal` is given what is said and frames beside it (a `JournalReader` is only read), and a question
    about what the context no longer holds, or about a time that it names, is answered from there. The frames'
    times are then those of the journal's clock, which begins at `start`.

    Alone, a session is stepped by `step` and `finish`. Those of an `engine` may step together: what
    `watching` and `ending` give is submitted to it at the session's `slot`.
    """

    on_text: Callable[[str], None] | None = None
    """Hears of a reply while it is made: its text so far, word by word."""

    def __init__(
        self,
        model: VideoLLM,
        *,
        threshold: float | None = None,
        system_prompt: str | None = None,
        engine: Engine | None = None,
        journal: JournalReader | None = None,
    ) -> None:
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer; load it with VideoLLM.from_pretrained")
        self.model = model
        self.threshold = model.config.threshold if threshold is None else threshold
        self.prompt = Prompt.of(model.tokenizer, model.config, system_prompt)
        self.engine = engine or Engine(model)
        most = int(self.engine.context * SYSTEM_SHARE)
        if len(self.prompt.start) > most:
            raise ValueError(
                f"the system prompt is too long: {len(self.prompt.start)} tokens, at most {most}"
            )
        self.slot = self.engine.join()
        self.reset(journal)

    @property
    def seen_tokens(self) -> int:
        """How much is read; of the context, where a full one begins anew."""
        return self.engine.cache.seen[self.slot]

    @property
    def cache_bytes(self) -> int:
        """What the stream's keys and values fill now."""
        return self.engine.cache.filled_bytes(self.slot)

    def reset(self, journal: JournalReader | None = None) -> None:
        """Forget the stream and its journal; the next frame begins a new one, with this journal."""
        self.engine.reset(self.slot)
        self.journal = journal
        self._keeper = Keeper(self.model, journal) if isinstance(journal, Journal) else None
        self.time = self.journal.end if self.journal else 0.0
        self.start = self.journal.start if isinstance(self.journal, Journal) else 0.0
        self._held: float | None = None  # the context holds all that came since; None before a first frame
        self._evictions = self.engine.cache.evictions[self.slot]  # so many when that was set
        self._questions: list[tuple[float, str]] = []
        self._moments: list[Moment] = []
        self._seen: Tensor | None = None  # the latest frame, uint8 [3, size, size]
        self._lead = list(self.prompt.start)  # what is read before the next frame
        self._in_frames = False  # a bracket of frames is open

    def ask(self, question: str, time: float | None = None) -> None:
        """Ask at a time of the stream, in seconds; now where None. ValueError for an empty question and for
        one that would fill the context."""
        if not question.strip():
            raise ValueError("the question is empty")
        self._check_length("the question", len(self.prompt.ask(question, after_frame=True)))
        asked = (self.time if time is None else time, question.strip())
        bisect.insort(self._questions, asked, key=lambda entry: entry[0])

    def step(self, *frames: Frame) -> list[Event]:
        """Read a frame, or those that wait, and give what is said by then, in order of time.

        Several are read as one chunk, which takes less time than one by one and says the same.
        """
        return self.engine.run(self.slot, self.watching(*frames))

    def finish(self) -> list[Event]:
        """The stream has ended: answer what is still pending, from all that was seen."""
        return self.engine.run(self.slot, self.ending())

    def watching(self, *frames: Frame) -> Script:
        """What `step` does, for an engine that steps other sessions, too."""
        events: list[Event] = []
        if frames and self._held is None:
            self._held = frames[0].time
        waiting = list(frames)
        while waiting:
            events += yield from self._answer_until(waiting[0].time, included=False)
            events += self._kept((yield from self._make_room(self._frame_tokens + len(self.prompt.reply))))
            read, speaks = yield from self._look(self._before_question(waiting)[: self._room_for_frames()])
            said = (
                [Event(self.time, "narration", (yield from self._reply(self.prompt.reply)))] if speaks else []
            )
            events += self._kept(said, waiting[:read])
            del waiting[:read]
            events += yield from self._answer_until(self.time, included=True)
        return events

    def recounting(self, question: str | None, answer: str) -> Script:
        """Read what was asked (None: nothing) and answered in an earlier session, as if it had been here and
        now. ValueError where that would fill the context."""
        words, said = self.prompt.ask(question, after_frame=True), self.prompt.say(answer)[:-1]
        self._check_length("an earlier question with its answer", len(words) + len(said))
        return self._recount(question, words, said)

    def _recount(self, question: str | None, words: list[int], said: list[int]) -> Script:
        events = yield from self._make_room(len(words) + len(said))
        yield (yield from self._shorten(Read([*self._opening(question), *said])))
        self._has_said(words, said)
        return self._kept(events)

    def _check_length(self, what: str, tokens: int) -> None:
        if tokens > (most := int(self.engine.context * QUESTION_SHARE)):
            raise ValueError(f"{what} is too long: {tokens} tokens, and {most} are the most")

    def snapshot(self, path: Path) -> None:
        """Write the stream between two steps, all but its journal: what the cache holds, the clock, questions
        that are pending, moments. What lay at `path` stays there until all is written.

        OSError where it can't be written; RuntimeError in the middle of a step.
        """
        self._check_idle()
        self._notice_evictions()
        pictures = [moment.pixels for moment in self._moments]
        if self._seen is not None:
            pictures.append(self._seen)
        facts = {
            "time": self.time,
            "held": self._held,
            "questions": self._questions,
            "moments": [(moment.time, moment.words) for moment in self._moments],
            "lead": self._lead,
            "in_frames": self._in_frames,
        }
        tensors = {"pictures": torch.stack(pictures)} if pictures else {}  # [pictures, 3, size, size]
        snapshot(self.engine.cache, self.slot, path, Beside(tensors, facts))

    def restore(self, path: Path) -> None:
        """Go on with the stream that was written to `path`, in place of this one; the journal stays.

        Raises SnapshotError, and changes nothing, for a file of another model or budget, of another version,
        that is cut, or that holds a cache alone; OSError where there is none; RuntimeError in the middle of a
        step.
        """
        self._check_idle()
        state, beside = read_snapshot(self.engine.cache, path)
        facts = beside.facts
        if facts is None:
            raise SnapshotError(f"{path} holds a cache without its session")
        self.engine.cache.load(self.slot, state)
        pictures = list(beside.tensors.get("pictures", ()))
        self.time, self._held = facts["time"], facts["held"]
        self._evictions = self.engine.cache.evictions[self.slot]
        self._questions = [(time, question) for time, question in facts["questions"]]
        self._moments = [
            Moment(time, picture, words)
            for (time, words), picture in zip(facts["moments"], pictures, strict=False)
        ]
        self._seen = pictures[-1] if len(pictures) > len(self._moments) else None
        self._lead, self._in_frames = facts["lead"], facts["in_frames"]

    def _check_idle(self) -> None:
        if self.engine.busy_with(self.slot):
            raise RuntimeError("the stream is in the middle of a step")

    def tell(self, event: Event) -> list[Event]:
        """Let the journal have what others say of the stream, such as a feed; gives it, and its notices."""
        return self._kept([event])

    def _kept(self, events: list[Event], frames: Sequence[Frame] = ()) -> list[Event]:
        """The same events once the journal has them and the frames, and what it has to tell."""
        return [*events, *self._keeper.record(events, frames)] if self._keeper else events

    def _look(self, frames: list[Frame]) -> Generator[Read, Tensor, tuple[int, bool]]:
        """Read frames as one chunk up to the first at which the model would speak; how many these are, and
        whether it would."""
        size, frame_tokens = self.model.vision_tower.size, self.prompt.frame
        squares = [pad_to_square(frame.pixels, size) for frame in frames]
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)  # [frames, 3, size, size]
        markers = [self.prompt.cut if cut else [] for cut in self._cuts(squares)]
        lead = yield from self._shorten(Read([*self._lead, *markers[0]]), len(frame_tokens))
        ids, ends = [*lead.ids], []
        for index, marker in enumerate(markers):
            ids += [*([self.prompt.interval, *marker] if index else []), *frame_tokens]
            ends.append(len(ids))
        logits = yield Read(ids, pixels, tuple(ends))  # [frames, vocabulary]
        speaks = (logits.softmax(-1)[:, self.prompt.interval] < self.threshold).tolist()
        read = speaks.index(True) + 1 if True in speaks else len(frames)
        if read < len(frames):
            self.engine.cache.rewind(self.slot, ends[-1] - ends[read - 1])
        self._notice_evictions()
        self.time, self._seen = frames[read - 1].time, pixels[read - 1]
        self._lead, self._in_frames = [self.prompt.interval], True
        return read, speaks[read - 1]

    def _cuts(self, squares: list[np.ndarray]) -> list[bool]:
        """Which of these frames, uint8 [size, size, 3], show another scene than those before them."""
        if not self.prompt.cut:
            return [False] * len(squares)
        before = squares[0] if self._seen is None else self._seen.permute(1, 2, 0).numpy()
        return [is_cut(*pair) for pair in pairwise([before, *squares])]

    def _shorten(self, chunk: Read, coming: int = 0) -> Generator[Read, Tensor, Read]:
        """Read of a chunk what doesn't fit into one with `coming` more tokens, no frame cut in two; the rest,
        not yet read."""
        ids, pixels, frame = chunk.ids, chunk.pixels, self.prompt.frame
        most = self.engine.cache.room(self.slot)
        while self.engine.cache.evicts and len(ids) + coming > most:
            end = most - ids[:most].count(frame[0]) % len(frame)
            shown = ids[:end].count(frame[0]) // len(frame)
            yield Read(ids[:end], pixels[:shown] if pixels is not None and shown else None)
            ids, pixels = ids[end:], pixels[shown:] if pixels is not None and shown < len(pixels) else None
        return Read(ids, pixels)

    def _before_question(self, frames: list[Frame]) -> list[Frame]:
        """Those that come before the next question, or at its time; none has passed the first."""
        if not self._questions:
            return frames
        return [frame for frame in frames if frame.time <= self._questions[0][0]]

    def _room_for_frames(self) -> int:
        """How many frames fit into a chunk and into the context before a reply; one goes in always."""
        room = self._room - len(self.prompt.reply)
        if self.engine.cache.evicts:
            room = self.engine.cache.room(self.slot) - len(self._lead)
        return max(1, (room + 1) // (self._frame_tokens + 1))

    def ending(self) -> Script:
        """What `finish` does, for an engine that steps other sessions, too."""
        return (yield from self._answer_until(float("inf"), included=True))

    def _answer_until(self, time: float, included: bool) -> Script:
        events: list[Event] = []
        while self._questions and (
            self._questions[0][0] < time or (included and self._questions[0][0] == time)
        ):
            asked, question = self._questions.pop(0)
            self.time = max(self.time, min(asked, time)) if asked != float("inf") else self.time
            recollection, said = self._recall(question, min(asked, self.time))
            said.append(Event(asked, "question", question))
            if recollection:
                answer = yield from self._recollect(recollection)
                events += self._kept([*said, Event(asked, "answer", answer, recollection.evidence)])
                continue
            words = self.prompt.ask(question, after_frame=True)
            said = [*(yield from self._make_room(len(words))), *said]
            answer = yield from self._reply(words, self._opening(question))
            events += self._kept([*said, Event(asked, "answer", answer)])
        return events

    def _opening(self, question: str | None) -> list[int]:
        """What is read up to an answer. Where no bracket is open, one that nothing follows is not opened."""
        if self._in_frames:
            return self.prompt.ask(question, after_frame=True)
        before = [self.prompt.eos] if self.seen_tokens else self.prompt.opening
        return [*before, *self.prompt.ask(question, after_frame=False)]

    def _recall(self, question: str, now: float) -> tuple[Recollection | None, list[Event]]:
        """What the journal knows of it that the context doesn't hold, and a notice where it can't be read."""
        if self.journal is None:
            return None, []
        self._notice_evictions()
        held = float("inf") if self._held is None else self._held
        try:
            found = recall(self.journal, self.model, question, now, held)
        except JournalError as error:
            return None, [JournalNotice(self.time, "notice", str(error))]
        return found and found.within(self.engine.cache.span - MAX_REPLY_TOKENS, self.prompt), []

    def _notice_evictions(self) -> None:
        """What came before something was evicted is not all held."""
        evictions = self.engine.cache.evictions[self.slot]
        if evictions > self._evictions and self._held is not None:
            self._held, self._evictions = self.time, evictions

    def _recollect(self, recollection: Recollection) -> Generator[Read, Tensor, str]:
        """Answer in a context of its own: what is recalled, and the question. The stream's comes back."""
        cache = self.engine.cache
        stream = cache.state(self.slot)
        cache.reset(self.slot)
        said = yield from self._speak(Read(*recollection.reading(self.prompt, self.model.vision_tower.size)))
        cache.load(self.slot, stream)
        return self._text(said)

    def _reply(self, words: list[int], opening: list[int] | None = None) -> Generator[Read, Tensor, str]:
        """Let the model speak after `opening`; `words` are the same as they read right behind a frame."""
        said = yield from self._speak(Read(words if opening is None else opening))
        self._has_said(words, said)
        return self._text(said)

    def _has_said(self, words: list[int], said: list[int]) -> None:
        """A reply was read, but for its end; `words` are those before it, as right behind a frame."""
        self._lead, self._in_frames = [self.prompt.eos, *self.prompt.reopen], False
        if self._seen is not None and not self.engine.cache.evicts:
            self._moments.append(Moment(self.time, self._seen, [*words, *said]))

    def _speak(self, opening: Read) -> Generator[Read, Tensor, list[int]]:
        """What the model says next, greedily, to its end-of-text token."""
        logits = yield (yield from self._shorten(opening))  # [1, vocabulary]
        said: list[int] = []
        while len(said) < MAX_REPLY_TOKENS:
            token = int(logits[-1].argmax())
            if token == self.prompt.eos:
                break
            said.append(token)
            if self.on_text is not None:
                self.on_text(self._text(said))
            logits = yield Read([token])
        return said

    def _text(self, said: list[int]) -> str:
        return str(self.prompt.tokenizer.decode(said)).strip()

    @property
    def _frame_tokens(self) -> int:
        """How many a frame takes at most: behind a cut."""
        return len(self.prompt.cut) + len(self.prompt.frame)

    @property
    def _room(self) -> int:
        """How many tokens fit into the context before a reply, behind the lead."""
        return self.engine.context - self.seen_tokens - len(self._lead) - MAX_REPLY_TOKENS

    def _make_room(self, coming: int) -> Script:
        """Begin a new context where `coming` tokens and a reply don't fit into this one."""
        if self.engine.cache.evicts or coming <= self._room:
            return []
        kept = len(self._moments)
        while self._moment_tokens() > self.engine.context * MOMENTS_SHARE:
            self._moments.pop(0)
        self.engine.cache.reset(self.slot)
        self._held = self.time
        ids, pictures = list(self.prompt.start), [moment.pixels for moment in self._moments]
        for moment in self._moments:
            ids += [*self.prompt.frame, *moment.words, self.prompt.eos, *self.prompt.reopen]
        if self._in_frames and self._seen is not None:
            ids += self.prompt.frame
            pictures.append(self._seen)
        elif self._moments:
            # The last reply's end and the bracket wait in the lead already.
            ids = ids[: -len(self._lead)]
        if pictures:
            yield Read(ids, torch.stack(pictures))
        else:
            self._lead = ids
        if len(self._moments) == kept:
            return []
        since = self._moments[0].time if self._moments else self.time
        text = f"The context is full: what was before {format_time(since)} is forgotten."
        return [Event(self.time, "notice", text)]

    def _moment_tokens(self) -> int:
        return sum(len(self.prompt.frame) + len(moment.words) for moment in self._moments)
