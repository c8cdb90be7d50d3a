"""The names that the default model learns, and what counts as right when it speaks (`vocabulary.txt`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

# Said without an article: they are plural or come in pairs.
PLURALS = frozenset(
    {"binoculars", "headphones", "scissors", "grapes", "pants", "shoes", "shorts", "trousers", "sunglasses"}
)
MASS = frozenset({"asparagus", "garlic", "ginger", "broccoli", "corn", "milk", "toilet tissue"})
# Vowels that sound like consonants, and consonants that sound like vowels.
CONSONANT_SOUND = re.compile(r"^(uni|use|eu|ewe|one|ukulele|u-)", re.IGNORECASE)
VOWEL_SOUND = re.compile(r"^(hour|honest|heir|x-|mp3|f-|l-)", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One thing: its name, what else names it rightly, and where pictures of it come from."""

    name: str
    accept: tuple[str, ...]
    sources: tuple[str, ...]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        words = "|".join(re.escape(word) for word in (self.name, *self.accept))
        return re.compile(rf"(?<![\w-])(?:{words})(?:s|es)?(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    entries: tuple[Entry, ...]

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    @cached_property
    def by_source(self) -> dict[str, Entry]:
        return {source: entry for entry in self.entries for source in entry.sources}

    def __getitem__(self, name: str) -> Entry:
        return self.by_name[name]

    def names_thing(self, text: str, name: str) -> bool:
        """Whether a text names this thing, by a name that the list accepts."""
        return self[name].pattern.search(text) is not None


@lru_cache
def load_vocabulary() -> Vocabulary:
    """The committed list. ValueError for a line that is not `name | accepted | sources`, or a name twice."""
    entries = []
    for line in (Path(__file__).parent / "vocabulary.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 3:
            raise ValueError(f"vocabulary.txt: expected `name | accepted | sources`, got {line!r}")
        name, accept, sources = parts
        accepted = () if accept == "-" else tuple(word.strip() for word in accept.split(","))
        entries.append(Entry(name, accepted, tuple(source.strip() for source in sources.split(","))))
    vocabulary = Vocabulary(tuple(entries))
    if len(vocabulary.by_name) != len(entries):
        raise ValueError("vocabulary.txt: a name stands twice")
    return vocabulary


def is_plural(name: str) -> bool:
    return name in PLURALS


def with_article(name: str) -> str:
    """ "apple" -> "an apple", "scissors" -> "scissors"."""
    if is_plural(name) or name in MASS:
        return name
    vowel = VOWEL_SOUND.match(name) or (name[0].lower() in "aeiou" and not CONSONANT_SOUND.match(name))
    return f"{'an' if vowel else 'a'} {name}"
