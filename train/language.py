"""From what happens to what is said: one way of saying each thing, and five kinds of questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from train.compose import FPS, PLACES, Composition, Happening, Sight
from train.vocabulary import Vocabulary, is_plural, load_vocabulary, with_article

Placed = TypeVar("Placed", Sight, Happening)
QuestionKind = Literal["in view", "first", "where", "is there", "left"]
PHRASINGS: dict[QuestionKind, tuple[str, ...]] = {
    "in view": ("What is in view?", "What do you see?", "What is in the picture now?"),
    "first": ("What came first?", "What did you see first?"),
    "where": ("Where is {the}?",),
    "is there": ("Is there {a} in view?", "Is there {a}?", "Do you see {a}?"),
    "left": ("What left?", "What has left?"),
}
# Where a sentence could go on otherwise, as its first word could: one thing more or none, coming or leaving,
# and where.
TURNS = (
    *(" and", ",", " is", " are", " leaves", " leave", " appears", " appear"),
    *(" on", " in", " left", " middle", " right"),
)
WHERE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


@dataclass(frozen=True)
class Question:
    """A question with its answer. `names` are the things of which the answer must name one ("in view": each);
    where there is none, the answer must say so."""

    kind: QuestionKind
    text: str
    answer: str
    names: tuple[str, ...] = ()


def listed(names: Sequence[str]) -> str:
    """ "a lion", "a lion and an orange", "a lion, an orange and a cup"."""
    spoken = [with_article(name) for name in names]
    return spoken[0] if len(spoken) == 1 else f"{', '.join(spoken[:-1])} and {spoken[-1]}"


def plural(names: Sequence[str]) -> bool:
    return len(names) > 1 or is_plural(names[0])


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def in_view(names: Sequence[str]) -> str:
    return sentence(f"{listed(names)} {'are' if plural(names) else 'is'} in view")


def from_the_left(seen: Sequence[Placed]) -> list[Placed]:
    """In the order in which several things are listed: any order is true, one alone can be learned."""
    return sorted(seen, key=lambda thing: PLACES.index(thing.place))


def narration(happenings: Sequence[Happening]) -> str:
    """What is said of the happenings of one moment. ValueError where there are none."""
    if not happenings:
        raise ValueError("nothing happened, nothing is to be said")
    came = from_the_left([h for h in happenings if h.kind == "appears"])
    went = [h.name for h in from_the_left([h for h in happenings if h.kind == "leaves"])]
    parts = []
    if went:
        subject = " and ".join(f"the {name}" for name in went)
        parts.append(f"{subject} {'leave' if plural(went) else 'leaves'}")
    if came and came[0].cut:
        parts.append(in_view([h.name for h in came])[:-1])
        parts[-1] = f"{parts[-1][0].lower()}{parts[-1][1:]}"
    else:
        parts += [
            f"{with_article(h.name)} {'appear' if is_plural(h.name) else 'appears'} {WHERE[h.place]}"
            for h in came
        ]
    return sentence(" and ".join(parts))


def questions(clip: Composition, index: int, rng: np.random.Generator) -> list[Question]:
    """Every question that can be asked at a frame, one of each kind."""
    seen = [sight.name for sight in from_the_left(clip.sights[index])]
    past = [h for h in clip.happenings if round(h.time * FPS) <= index]
    appeared = [h for h in past if h.kind == "appears"]
    asked = [_in_view(seen, rng), _is_there(seen, appeared, rng), _left(seen, past, appeared, rng)]
    if appeared:
        asked.append(_first(appeared, rng))
    if seen and "footage" not in clip.kind:
        asked.append(_where(clip.sights[index], rng))
    return asked


def _phrase(kind: QuestionKind, rng: np.random.Generator, name: str = "") -> str:
    phrasing = str(rng.choice(PHRASINGS[kind])).replace("{the}", f"the {name}")
    if "{a}" in phrasing:
        phrasing = phrasing.replace("{a}", with_article(name))
    if is_plural(name):
        phrasing = phrasing.replace("Is there", "Are there").replace("Where is", "Where are")
    return phrasing


def _in_view(seen: list[str], rng: np.random.Generator) -> Question:
    answer = in_view(seen) if seen else "Nothing is in view."
    return Question("in view", _phrase("in view", rng), answer, tuple(seen))


def _first(appeared: list[Happening], rng: np.random.Generator) -> Question:
    together = [h.name for h in appeared if h.time == appeared[0].time]
    return Question(
        "first", _phrase("first", rng), sentence(f"the {together[0]} came first"), tuple(together)
    )


def _where(sights: tuple[Sight, ...], rng: np.random.Generator) -> Question:
    sight = sights[rng.integers(len(sights))]
    answer = f"the {sight.name} {'are' if is_plural(sight.name) else 'is'} {WHERE[sight.place]}"
    return Question("where", _phrase("where", rng, sight.name), sentence(answer), (sight.name,))


def _is_there(seen: list[str], appeared: list[Happening], rng: np.random.Generator) -> Question:
    if seen and rng.random() < 0.5:
        name = seen[rng.integers(len(seen))]
        verb = "are" if is_plural(name) else "is"
        return Question(
            "is there", _phrase("is there", rng, name), f"Yes, {with_article(name)} {verb} in view.", (name,)
        )
    gone = [h.name for h in appeared if h.name not in seen]
    vocabulary = load_vocabulary()
    others = [
        entry.name
        for entry in vocabulary.entries
        if not any(
            vocabulary.names_thing(name, entry.name) or vocabulary.names_thing(entry.name, name)
            for name in seen
        )
    ]
    name = gone[rng.integers(len(gone))] if gone and rng.random() < 0.3 else others[rng.integers(len(others))]
    verb = "are" if is_plural(name) else "is"
    return Question("is there", _phrase("is there", rng, name), f"No, there {verb} no {name} in view.")


def _left(
    seen: list[str], past: list[Happening], appeared: list[Happening], rng: np.random.Generator
) -> Question:
    gone = tuple(dict.fromkeys(h.name for h in appeared if h.name not in seen))
    if not gone:
        return Question("left", _phrase("left", rng), "Nothing left.")
    told = [h.name for h in past if h.kind == "leaves" and h.name in gone]
    last = told[-1] if told else gone[-1]
    return Question("left", _phrase("left", rng), sentence(f"the {last} left"), gone)


def answers(question: Question, said: str, vocabulary: Vocabulary) -> bool:
    """Whether what was said answers the question."""
    text = said.lower()
    named = [vocabulary.names_thing(said, name) for name in question.names]
    if question.kind == "in view":
        return all(named) if named else "nothing" in text
    if question.kind == "where":
        return next(place for place in WHERE.values() if place in question.answer) in text
    if question.kind == "is there":
        return text.startswith("yes" if question.names else "no")
    return any(named) if named else "nothing" in text
