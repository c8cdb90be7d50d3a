"""Long texts in which something is hidden, read through a cache of fixed memory: perplexity and retrieval."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from videollm import layer_needs
from videollm.budgets.calibration import Calibration
from videollm.depth_lm import DepthLM
from videollm.layer_budget import LayerBudgetCache

PLACES = ("Paris", "Tokyo", "Cairo", "Lima", "Oslo", "Rome", "Delhi", "Berlin")
NEEDLE = "\n\nThe magic number of {place} is {number}.\n\n"
QUESTION = "\n\nThe magic number of {place} is"
MEASURED_EVERY = 512  # tokens of a calibration


@dataclass(frozen=True)
class Question:
    """Asked at a document's end; what is hidden in it answers."""

    ids: list[int]
    answer: list[int]
    depth: float  # where that is, a share of the text before the scored tokens


@dataclass(frozen=True)
class Document:
    """A text with needles in it; the perplexity is that of its last `scored` tokens."""

    ids: list[int]
    scored: int
    questions: list[Question]


@dataclass(frozen=True)
class Score:
    """What a model made of documents."""

    perplexity: float
    exact: float  # share of questions whose whole answer is what greedy decoding says
    digits: float  # share of the answers' tokens that are the likeliest behind the right ones before them
    log_probability: float  # of an answer's token, mean
    by_depth: dict[str, float]  # `exact` at each depth


def documents(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, length: int, count: int, scored: int
) -> list[Document]:
    """`count` documents of `length` tokens from a text [tokens], one behind the other, a needle of every
    place evenly spread in each before the scored tokens; places and numbers are drawn by the document's
    index. ValueError where the text is too short."""

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    made, source = [], iter(ids.tolist())
    for index in range(count):
        draw = random.Random(index)
        places = draw.sample(PLACES, len(PLACES))
        numbers = [str(draw.randrange(10_000, 100_000)) for _ in places]
        needles = [tokens(NEEDLE.format(place=p, number=n)) for p, n in zip(places, numbers, strict=True)]
        hay = length - scored - sum(map(len, needles))
        if hay < len(places):
            raise ValueError(f"a document of {length} tokens is too short for what is hidden in it")
        body = [token for token, _ in zip(source, range(hay + scored), strict=False)]
        if len(body) < hay + scored:
            raise ValueError(
                f"the text has {len(ids)} tokens, too few for {count} documents of {length}: give more"
            )
        depths = [(2 * place + 1) / (2 * len(places)) for place in range(len(places))]
        for depth, needle in reversed(list(zip(depths, needles, strict=True))):
            at = int(depth * hay)
            body[at:at] = needle
        questions = [
            Question(tokens(QUESTION.format(place=place)), tokens(f" {number}"), depth)
            for place, number, depth in zip(places, numbers, depths, strict=True)
        ]
        made.append(Document(body, scored, questions))
    return made


def read_text(
    model: DepthLM, ids: list[int], cache: LayerBudgetCache, chunk: int, logits_to_keep: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Read token ids in chunks behind what the cache's only slot holds: after each, how many are read, and
    the logits of its last so many tokens (0: all), [kept, vocabulary]."""
    for begin in range(0, len(ids), chunk):
        part = torch.tensor([ids[begin : begin + chunk]], device=model.device)  # [1, chunk]
        with torch.inference_mode():
            out = model(input_ids=part, past_key_values=cache, logits_to_keep=logits_to_keep)
        yield begin + part.shape[1], out.logits[0]


def score(
    model: DepthLM,
    made: list[Document],
    new_cache: Callable[[], LayerBudgetCache],
    chunk: int,
    evict_once: bool = False,
) -> tuple[Score, LayerBudgetCache]:
    """Read each document in chunks into a new cache, then ask its questions; the score, and the last cache.

    With `evict_once` the cache goes down to its budgets where the scored tokens begin, as compressors of
    prompts do; a headroom as long as the document keeps it from doing so before.
    """
    losses: list[float] = []
    answers: list[Answer] = []
    for document in made:
        cache = new_cache()
        losses += _read(model, document, cache, chunk, evict_once)
        answers += [_ask(model, question, cache) for question in document.questions]
    depths: dict[float, list[bool]] = {}
    for answer in answers:
        depths.setdefault(answer.depth, []).append(answer.exact)
    its = Score(
        perplexity=math.exp(mean(losses)),
        exact=mean(answer.exact for answer in answers),
        digits=mean(answer.digits for answer in answers),
        log_probability=mean(answer.log_probability for answer in answers),
        by_depth={f"{depth:.0%}": mean(right) for depth, right in sorted(depths.items())},
    )
    return its, cache


def _read(
    model: DepthLM, document: Document, cache: LayerBudgetCache, chunk: int, evict_once: bool
) -> list[float]:
    """The losses of the scored tokens, in nats."""
    first = len(document.ids) - document.scored
    before, scored = document.ids[:first], document.ids[first:]
    *_, (_, last) = read_text(model, before, cache, chunk, logits_to_keep=1)  # [1, vocabulary]
    if evict_once and cache.evicts:
        cache.evict(0)
    losses: list[float] = []
    for read, logits in read_text(model, scored, cache, chunk):
        expected = torch.tensor(scored[read - len(logits) : read], device=logits.device)
        predicted = torch.cat([last, logits[:-1]]).float()
        losses += torch.nn.functional.cross_entropy(predicted, expected, reduction="none").tolist()
        last = logits[-1:]
    return losses


class Answer(NamedTuple):
    """What a model made of a question; the names are those of `Score`."""

    depth: float
    exact: bool
    digits: float
    log_probability: float


def _ask(model: DepthLM, question: Question, cache: LayerBudgetCache) -> Answer:
    """What is asked is forgotten again; what its tokens evicted stays so."""
    ids, answer = [*question.ids, *question.answer], torch.tensor(question.answer, device=model.device)
    ((_, logits),) = read_text(model, ids, cache, len(ids), logits_to_keep=len(answer) + 1)
    cache.rewind(0, len(ids))
    saying = logits[:-1].float().log_softmax(-1)  # [answer, vocabulary]
    right = saying.argmax(-1) == answer
    likelihood = saying.gather(1, answer[:, None]).mean()
    return Answer(question.depth, bool(right.all()), float(right.float().mean()), float(likelihood))


def calibrate(
    model: DepthLM, name: str, source: str, ids: list[int], length: int, told: Callable[[int], None]
) -> Calibration:
    """What layers need while the model reads a text, `length` tokens at a time, measured all along; `told`
    hears how many tokens are read."""
    cache = LayerBudgetCache(model, 1, layer_needs.measuring_budgets(model))
    measured = []
    for begin in range(0, len(ids), length):
        cache.reset()
        for read, _ in read_text(model, ids[begin : begin + length], cache, cache.room(0), logits_to_keep=1):
            told(begin + read)
            if read % MEASURED_EVERY == 0 or begin + read == len(ids):
                measured.append(layer_needs.measure(cache, 0))
    return layer_needs.summarize(model, name, [source], len(ids), measured)
