"""Long-term anticipation on Ego4D: the twenty actions to come, told five times; the best counts (ED@Z=20)."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.data.annotations import AnnotatedVideo, Dialogue, Segment, Turn
from train.data.coin_tasks import numbered, sentence
from train.data.readers.ego4d_lta import label
from train.evaluation.asking import Asker
from train.evaluation.bench import Bench, Row
from train.metrics.edit_distance import edit_distance
from train.metrics.labels import nearest_label
from videollm.modeling import VideoLLM

SEEN, FUTURE, SEQUENCES = 8, 20, 5  # actions shown, Z to come, and K
QUESTION = f"What are the next {FUTURE} actions? Answer with a numbered list, one action a line."
_NUMBERED = re.compile(r"^\s*\d+[.)]\s*(.+)$")

Action = tuple[str, str]


@dataclass(frozen=True)
class Taxonomy:
    """The verbs and nouns that actions are made of, and the actions as they are said."""

    actions: dict[str, Action]

    @classmethod
    def of(cls, verbs: Sequence[str], nouns: Sequence[str]) -> Taxonomy:
        pairs = itertools.product(map(label, verbs), map(label, nouns))
        return cls({f"{verb} {noun}": (verb, noun) for verb, noun in pairs})

    @classmethod
    def read(cls, path: Path) -> Taxonomy:
        """Ego4D's `fho_lta_taxonomy.json`. ValueError for another file."""
        try:
            found = json.loads(path.read_text())
            return cls.of(found["verbs"], found["nouns"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no taxonomy of Ego4D, with lists of verbs and nouns") from error

    def action(self, text: str) -> Action:
        """The verb and noun of the action that a text is nearest to in edits."""
        if text in self.actions:
            return self.actions[text]
        names = list(self.actions)
        return self.actions[names[nearest_label(text, names)]]


class AnticipationBench(Bench):
    """Every place of a clip with so many actions before and behind it, as the benchmark has them.

    The K sequences are one that is said greedily and others drawn from what the model would say.
    """

    def __init__(self, model: VideoLLM, folder: Path, split: str | None, taxonomy: Taxonomy) -> None:
        self._asker = Asker(model, folder, split)
        self._taxonomy = taxonomy
        self._asked: dict[str, list[tuple[Dialogue, list[Action]]]] = defaultdict(list)
        for video in self._asker.videos:
            unknown = [s.text for s in video.segments if s.text not in taxonomy.actions]
            if unknown:
                raise ValueError(f"{video.video}: {unknown[0]!r} is no verb and noun of the taxonomy")
            for seen, future in examples(video):
                actions = [taxonomy.actions[segment.text] for segment in future]
                self._asked[video.video].append((dialogue_of(video, seen, future), actions))
        self.items = list(self._asked)
        if not self.items:
            raise ValueError(f"{folder} holds no clip of {SEEN + FUTURE} actions or more")

    def measure(self, item: str) -> Row:
        distances = []
        for dialogue, actions in self._asked[item]:
            texts = self._asker.answers(dialogue, SEQUENCES)
            said = [self.sequence(text) for text in texts]
            distances.append(
                {
                    "time": dialogue.end,
                    "verb": edit_distance([[v for v, _ in one] for one in said], [v for v, _ in actions]),
                    "noun": edit_distance([[n for _, n in one] for one in said], [n for _, n in actions]),
                    "action": edit_distance(said, actions),
                }
            )
        return {"distances": distances}

    def sequence(self, text: str) -> list[Action]:
        """The actions of a numbered list, Z of them: what is too much is cut off, the last one stands for
        what is missing, and where there is none the taxonomy's first."""
        lines = [match[1] for line in text.splitlines() if (match := _NUMBERED.match(line))]
        actions = [self._taxonomy.action(line.strip().rstrip(".").lower()) for line in lines[:FUTURE]]
        last = actions[-1] if actions else next(iter(self._taxonomy.actions.values()))
        return actions + [last] * (FUTURE - len(actions))

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        found = [distance for row in rows for distance in row["distances"]]
        means = {
            f"{kind}_ed@{FUTURE}": sum(d[kind] for d in found) / len(found)
            for kind in ("verb", "noun", "action")
        }
        return means | {"examples": len(found)}


def examples(video: AnnotatedVideo) -> list[tuple[tuple[Segment, ...], tuple[Segment, ...]]]:
    """Actions seen and to come, at every place of a clip that has enough of both."""
    segments = video.segments
    places = range(SEEN, len(segments) - FUTURE + 1)
    return [(segments[place - SEEN : place], segments[place : place + FUTURE]) for place in places]


def dialogue_of(video: AnnotatedVideo, seen: Sequence[Segment], future: Sequence[Segment]) -> Dialogue:
    """The seen actions' part of the clip, and the question at its end, with the true answer."""
    end = max(segment.start if segment.end is None else segment.end for segment in seen)
    answer = numbered(sentence(segment.text) for segment in future)
    turns = (Turn(end, "user", QUESTION), Turn(end, "assistant", answer))
    return Dialogue(video.video, seen[0].start, end, turns)
