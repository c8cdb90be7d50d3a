"""VideoLLM-online's metrics on examples worked out by hand, and on dialogues of a model that is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import small_model

from train.data.annotations import Dialogue, Turn
from train.data.dialogue_sequence import dialogue_sequence
from train.evaluation import dialogues
from train.evaluation.feature_stream import FeatureStream
from train.metrics import streaming
from train.metrics.streaming import TurnScore, mean_scores
from train.sequences import IGNORED, Sequence
from videollm.configuration import VideoLLMConfig

SILENT, SPEAK = 0, 1


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def flags(text: str) -> torch.Tensor:
    """Frame ends at which a model speaks: "..x" at the third of three."""
    return torch.tensor([mark == "x" for mark in text], dtype=torch.bool)


def test_perplexity_is_the_inverse_geometric_mean_of_the_true_tokens() -> None:
    # 1 / sqrt(0.5 * 0.125) = 1 / 0.25 = 4
    logits = logits_of([[0.5, 0.3, 0.2], [0.8, 0.125, 0.075]])
    assert streaming.perplexity(logits, torch.tensor([0, 1])) == pytest.approx(4)


def test_words_are_right_up_to_the_first_wrong_one() -> None:
    # Right, right, wrong, right: two.
    logits = logits_of([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    assert streaming.leading_right(logits, torch.tensor([0, 1, 1, 0])) == 2
    assert streaming.leading_right(logits, torch.tensor([1, 1, 0, 0])) == 0
    assert streaming.leading_right(logits, torch.tensor([0, 1, 0, 0])) == 4


def test_a_model_speaks_where_silence_is_unlikely() -> None:
    # Silence at 0.8, at 0.6 (below 0.725), and at 0.4 beside a likelier token.
    logits = logits_of([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
    assert streaming.speaks(logits, SILENT, 0.725).tolist() == [False, True, True]
    assert streaming.speaks(logits, SILENT, 0.0).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("spoke", "later", "off"),
    [
        ("...x", "", 0),  # at the last frame, as it should
        (".x.x", "", 2),  # at the second of four: two frames early
        ("x", "", 0),
        ("....", "..x", -3),  # at the third frame after: three late
        ("....", "...", -3),  # at none of three: as late as was looked
        ("....", "", 0),  # nothing follows to be late at
    ],
)
def test_frames_early_and_late(spoke: str, later: str, off: int) -> None:
    assert streaming.frames_off(flags(spoke), flags(later)) == off


def test_fluency_ends_at_the_first_mistake() -> None:
    # Four frames and six words, four of them right: 8 of 10.
    assert streaming.narration_fluency(0, 4, right=4, words=6) == pytest.approx(0.8)
    # Two frames early: the first frame's silence, and the second's as the evaluator counts: 2 of 10.
    assert streaming.narration_fluency(2, 4, right=6, words=6) == pytest.approx(0.2)
    # Late: three silences, and the frame end to speak at is wrong: 3 of 10.
    assert streaming.narration_fluency(-1, 4, right=6, words=6) == pytest.approx(0.3)
    # Before a question two silences and three of four words: 5 of 6; with a word too much after one: 1 of 6.
    assert streaming.answer_fluency(flags(".."), right=3, words=4) == pytest.approx(5 / 6)
    assert streaming.answer_fluency(flags(".x"), right=4, words=4) == pytest.approx(1 / 6)


def test_means_are_over_the_turns_that_have_a_metric() -> None:
    turns = [TurnScore(lm_ppl=2.0, time_diff=1.0), TurnScore(lm_ppl=4.0), TurnScore()]
    assert mean_scores(turns) == {"lm_ppl": 3.0, "time_diff": 1.0}


class Scripted(FeatureStream):
    """A stream whose model gives silence at each frame the probability that the frame's features begin with,
    and every word of the sequence the probability 0.5, whatever is read before; what is read is kept."""

    def __init__(self) -> None:
        super().__init__(small_model())
        self.fed: list[int] = []

    def reset(self) -> None:
        self.fed = []

    def rewind(self, tokens: int) -> None:
        del self.fed[len(self.fed) - tokens :]

    def read(self, ids, features, ends):  # type: ignore[no-untyped-def]
        self.fed += ids
        rows, frames = [], iter(features)
        places = set(self.frame_ends(ids).tolist())
        for index, token in enumerate(ids):
            row = torch.full((301,), 1e-9)
            if index in places:
                silence = float(next(frames)[0, 0])
                row[self.prompt.interval], row[self.prompt.stop] = silence, 1 - silence
            else:
                # The next token of what is read, half, and one that is never true.
                row[ids[index + 1] if index + 1 < len(ids) else 0], row[255] = 0.5, 0.4
            rows.append(row)
            assert token >= 0
        return torch.stack(rows)[ends].log()


def sequence_of(stream: FeatureStream, silences: list[float], *turns: Turn) -> Sequence:
    frames = np.zeros((len(silences), 10, 32), np.float32)
    frames[:, 0, 0] = silences
    dialogue = Dialogue("clip", 0.0, len(silences) / 2, turns)
    return dialogue_sequence(stream.prompt, dialogue, frames, 2.0)


def test_a_dialogue_by_hand() -> None:
    """At 2 frames a second: three narrations, on time, a frame early, two late; then a question."""
    stream = Scripted()
    sequence = sequence_of(
        stream,
        [0.9, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.9],
        Turn(1.0, "assistant", "cat"),  # frame 2: speaks there
        Turn(3.0, "assistant", "dog"),  # frame 6: spoke at 5
        Turn(4.5, "assistant", "owl"),  # frame 9: speaks at 11
        Turn(6.0, "user", "what?"),
        Turn(6.0, "assistant", "owl"),
    )
    scores = dialogues.score(stream, sequence, fps=2.0, threshold=0.5)
    assert [turn.time_diff for turn in scores] == [0.0, 0.5, 1.0, None]
    # " cat" and the end are 5 tokens of bytes, each at 0.5 of a mass that is 0.9 and next to nothing.
    assert [turn.lm_ppl for turn in scores] == pytest.approx([1.8] * 4, rel=1e-3)
    assert [turn.lm_correctness for turn in scores] == [1.0] * 4
    # 3 + 5 of 8; frames 3 to 6, of which the evaluator counts 3, of 9; frames 7 to 9, two, of 8; the
    # question's frames 10 to 12, the first silent, the second not, of 8.
    assert [turn.fluency for turn in scores] == pytest.approx([1.0, 3 / 9, 2 / 8, 1 / 8])
    # What was shown in looking for a late word is forgotten: in all, the sequence was read.
    assert stream.fed == sequence.ids[: len(stream.fed)] and sequence.ids[len(stream.fed) :] == []


def test_being_late_is_looked_for_as_far_as_being_early() -> None:
    stream = Scripted()
    silences = [0.9, 0.9] + [0.9] * 6  # never speaks; its turn has two frames, one more is shown
    sequence = sequence_of(stream, silences, Turn(0.5, "assistant", "cat"))
    (turn,) = dialogues.score(stream, sequence, fps=2.0, threshold=0.5)
    assert turn.time_diff == 0.5


@pytest.mark.parametrize("router", ["full", "top_k"])
def test_reading_by_turns_scores_as_one_pass(router: str) -> None:
    """A real, if random, model: the words' perplexities are those of all positions read at once."""
    model = small_model(router=router, ratio=0.3)
    stream = FeatureStream(model)
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((12, 10, 32)).astype(np.float32)
    turns = (
        Turn(1.0, "assistant", "A cat."),
        Turn(3.0, "user", "Which?"),
        Turn(3.0, "assistant", "That."),
        Turn(5.0, "assistant", "It leaves."),
    )
    sequence = dialogue_sequence(stream.prompt, Dialogue("clip", 0.0, 6.0, turns), frames, 2.0)
    scores = dialogues.score(stream, sequence, fps=2.0, threshold=model.config.threshold)
    ids, targets = torch.tensor([sequence.ids]), torch.tensor(sequence.targets)
    embeds = model.connector(torch.from_numpy(frames))
    with torch.no_grad():
        logits = model(ids, frame_embeds=embeds).logits[0]
    placeholder = stream.prompt.frame[0]
    words = [i for i, t in enumerate(sequence.targets) if t != IGNORED and sequence.ids[i] != placeholder]
    each = torch.nn.functional.cross_entropy(logits[words], targets[words], reduction="none").tolist()
    lengths = [len(stream.prompt.say(turn.text)) for turn in turns if turn.role == "assistant"]
    starts = np.cumsum([0, *lengths])
    expected = [math.exp(np.mean(each[a:b])) for a, b in itertools.pairwise(starts)]
    assert [turn.lm_ppl for turn in scores] == pytest.approx(expected, rel=1e-3)


def test_a_dialogue_longer_than_the_context_is_an_error() -> None:
    model = small_model()
    config: VideoLLMConfig = model.config
    config.context_tokens = 64
    stream = FeatureStream(model)
    frames = np.zeros((12, 10, 32), np.float32)
    sequence = dialogue_sequence(
        stream.prompt, Dialogue("clip", 0.0, 6.0, (Turn(5.0, "assistant", "A cat."),)), frames, 2.0
    )
    with pytest.raises(ValueError, match="context has 64"):
        dialogues.score(stream, sequence, 2.0, 0.7)


def test_a_stream_goes_on_from_what_was_asked() -> None:
    """Greedy answers are the same from a loaded state, and drawn ones by their seed."""
    stream = FeatureStream(small_model())
    frames = np.random.default_rng(0).standard_normal((2, 10, 32)).astype(np.float32)
    ids = [*stream.prompt.start, *stream.prompt.frame, stream.prompt.interval, *stream.prompt.frame]
    ids += stream.prompt.ask("What?", after_frame=True)
    logits = stream.read(ids, frames, torch.tensor([len(ids) - 1]))
    asked = stream.cache.state(0)
    first = stream.say(logits, 5)
    stream.cache.load(0, asked)
    assert stream.say(logits, 5) == first and len(first) == 5
    drawn = []
    for seed in (1, 1, 2):
        stream.cache.load(0, asked)
        drawn.append(stream.say(logits, 5, torch.Generator().manual_seed(seed)))
    assert drawn[0] == drawn[1] != drawn[2]
