"""Makes the default model from nothing: `python -m train.pocket --data ../shared/data --out assets/pocket`.

Stages, each kept under `--work` so that a run that was stopped goes on where it was:
  features    of photographs and composed clips, by the frozen vision tower, once
  classifier  the vocabulary's names, by regression on the features of one part of the media
  naming      connector, routers and adapter on slide shows: a new thing is named, the same thing is not again
  clips       the same on composed clips, with silence, leaving things, and questions, and on glimpses: single
              frames of so many scenes that they can't be learned by heart
  classifier  again, on all media
  export      a PEFT adapter with connector and routers, half precision, and the configuration
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from train import classifier
from train.compose import album
from train.features import ClipFeatures, PhotographFeatures, clip_features, join, photograph_features
from train.media import load_media
from train.sequences import IGNORED, Sequence, clip_sequence, collate
from train.slides import Slides
from train.vocabulary import load_vocabulary
from videollm import bases
from videollm.checkpoints import build
from videollm.configuration import ConnectorConfig, DepthConfig, VideoLLMConfig
from videollm.connector import ClassNameConnector
from videollm.modeling import VideoLLM
from videollm.prompt import Prompt

SYSTEM_PROMPT = "Watch and say what happens."
ADAPTED = r"model\.layers.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
LEARNING_RATES = {"lora_": 1e-3, "connector": 3e-4, "router": 1e-3}
WARM_UP = 20
SAVE_EVERY = 25
SHOWS_A_STEP = 9
SHOWS_AMONG_CLIPS = 0.12
GLIMPSES_AMONG_CLIPS = 0.33
GLIMPSES_A_STEP = 56
GLIMPSES_A_SEQUENCE = 8
GLIMPSE_STAYS_SHARE = 0.4
# Of the steps: what the free path sees of pictures can be learned by heart, so that it isn't always there.
FREE_PATH_DROPPED = 0.5
# A step of clips reads about as many frames whatever their length: excerpts of one clip, which are cheap and
# full of beginnings, or a few long ones of many clips, in which things may also stand still for long.
FRAMES_A_STEP = 96
EXCERPT = (5, 20)
LONG_SHARE = 0.2
LONG = (32, 96)
CONTEXT_TOKENS = 2048  # a session may go somewhat beyond the longest sequence, of about 1400
STANDS_SHARE = 0.3
STANDS = (8, 48)

console = Console()


@dataclass(frozen=True)
class Stage:
    """A training stage of so many steps; `draw` gives the sequences of one."""

    name: str
    steps: int
    draw: Callable[[np.random.Generator], list[Sequence]]


def class_names() -> list[str]:
    """ImageNet's 1000 names, in the order of its classifier."""
    return (Path(__file__).parent / "imagenet_names.txt").read_text().splitlines()


def new_model(learned: list[str], layer: nn.Linear) -> VideoLLM:
    """The default model before training: its connector speaks the classes' names from the first moment."""
    imagenet = bases.imagenet_classifier()
    groups = [imagenet.out_features, layer.out_features]
    model = build(
        VideoLLMConfig(
            language_model_name=bases.SMOLLM2,
            vision_name=bases.EFFICIENTNET_LITE0,
            connector_config=ConnectorConfig(kind="class_names", groups=groups, gated=True, hidden_size=256),
            depth_config=DepthConfig(layers="interleaved", ratio=0.2, gate="tanh"),
            system_prompt=SYSTEM_PROMPT,
            context_tokens=CONTEXT_TOKENS,
        )
    )
    connector, tokenizer = cast(ClassNameConnector, model.connector), model.tokenizer
    assert tokenizer is not None
    set_classifier(connector, imagenet, layer)
    spoken = [*class_names(), *learned, "nothing"]
    tokens = tokenizer([f" {name}" for name in spoken], add_special_tokens=False)["input_ids"]
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        connector.names.weight.copy_(torch.stack([embeddings[ids].mean(0) for ids in tokens], dim=1))
    return model


@torch.no_grad()
def set_classifier(connector: ClassNameConnector, imagenet: nn.Linear, learned: nn.Linear) -> None:
    """Put both groups' classifiers into the connector's."""
    connector.classifier.weight.copy_(torch.cat([imagenet.weight, learned.weight]))
    connector.classifier.bias.copy_(torch.cat([imagenet.bias, learned.bias]))


def adapt(model: VideoLLM) -> PeftModel:
    """Rank-16 adapters on every linear layer of the decoder, connector and routers trained whole."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules=ADAPTED, modules_to_save=["connector", "router"])
    adapted = get_peft_model(model, config)
    # What the two classifiers know about pictures is not to be bent towards a few thousand sentences.
    trained_connector(model).classifier.requires_grad_(False)
    return adapted


def trained_connector(model: VideoLLM) -> ClassNameConnector:
    """The copy of the connector that PEFT trains in its place."""
    return cast(Any, model.connector).modules_to_save["default"]


@dataclass(frozen=True)
class Lessons:
    """Draws the sequences of a step: slide shows, glimpses, excerpts of clips, or long ones of many clips."""

    prompt: Prompt
    fps: float
    composed: list[ClipFeatures]
    albums: list[ClipFeatures]
    slides: Slides

    def shows(self, rng: np.random.Generator) -> list[Sequence]:
        return [self.slides.draw(rng) for _ in range(SHOWS_A_STEP)]

    def clips(self, rng: np.random.Generator) -> list[Sequence]:
        kind = rng.random()
        if kind < SHOWS_AMONG_CLIPS:
            return self.shows(rng)
        if kind < SHOWS_AMONG_CLIPS + GLIMPSES_AMONG_CLIPS:
            drawn = [self._glimpses(rng) for _ in range(GLIMPSES_A_STEP // GLIMPSES_A_SEQUENCE)]
        else:
            draw, (shortest, longest) = (
                (self._long, LONG) if rng.random() < LONG_SHARE else (self._excerpt, EXCERPT)
            )
            length = int(rng.integers(shortest, longest + 1))
            drawn = [draw(length, rng) for _ in range(FRAMES_A_STEP // length)]
        return [clip_sequence(self.prompt, clip, self.fps, rng) for clip in drawn]

    def _glimpses(self, rng: np.random.Generator) -> ClipFeatures:
        pieces = []
        for _ in range(GLIMPSES_A_SEQUENCE):
            page = self.albums[rng.integers(len(self.albums))]
            times = 2 if rng.random() < GLIMPSE_STAYS_SHARE else 1
            pieces.append((page, np.full(times, rng.integers(len(page.features)))))
        return join(pieces)

    def _excerpt(self, length: int, rng: np.random.Generator) -> ClipFeatures:
        clip = self._any(rng)
        frames = len(clip.features)
        start = int(rng.integers(max(0, frames - length) + 1))
        return join([(clip, np.arange(start, min(start + length, frames)))])

    def _long(self, length: int, rng: np.random.Generator) -> ClipFeatures:
        pieces: list[tuple[ClipFeatures, np.ndarray]] = []
        left = length
        while left > 0:
            clip = self._any(rng)
            indices = np.arange(len(clip.features))
            if rng.random() < STANDS_SHARE:
                indices = np.append(indices, np.full(rng.integers(*STANDS), indices[-1]))
            pieces.append((clip, indices[:left]))
            left -= len(pieces[-1][1])
        return join(pieces)

    def _any(self, rng: np.random.Generator) -> ClipFeatures:
        return self.composed[rng.integers(len(self.composed))]


class Trainer:
    """Runs stages on one model and keeps what was learned on disk every few steps."""

    def __init__(self, model: VideoLLM, work: Path, seed: int) -> None:
        assert model.tokenizer is not None
        self.model = model
        self.prompt = Prompt.of(model.tokenizer, model.config)
        self.adapted = adapt(model)
        self.work = work
        self.seed = seed
        self.trained = {n: p for n, p in self.adapted.named_parameters() if p.requires_grad}

    def run(self, stage: Stage) -> None:
        """Train, from where the stage was left."""
        groups = [
            {"params": [p for n, p in self.trained.items() if part in n], "lr": rate, "top": rate}
            for part, rate in LEARNING_RATES.items()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
        state = self.work / f"{stage.name}.pt"
        done = self._resume(state, optimizer)
        for step in range(done, stage.steps):
            rng = np.random.default_rng([self.seed, step, *stage.name.encode()])
            sequences = stage.draw(rng)
            free = rng.random() >= FREE_PATH_DROPPED
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * learning_rate(step, stage.steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                loss, right = self._loss(sequences, free)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
            optimizer.step()
            if step % 5 == 0:
                console.print(f"{stage.name} {step}/{stage.steps} loss {loss.item():.3f} right: {right}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
                self._save(state, optimizer, step + 1)

    def _loss(self, sequences: list[Sequence], free: bool) -> tuple[Tensor, str]:
        batch = collate(sequences, self.prompt.eos)
        pictures = [picture for sequence in sequences for picture in sequence.pictures]
        frames = embed(trained_connector(self.model), pictures, free)
        learned = batch.targets != IGNORED
        logits = self.adapted(
            input_ids=batch.ids, frame_embeds=frames, logits_to_keep=learned
        ).logits  # [learned, vocabulary]
        targets, weights = batch.targets[learned], batch.weights[learned]
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        right = logits.argmax(-1) == targets
        silent, speak = targets == self.prompt.interval, weights > 1
        words = ~silent & ~speak
        shares = " ".join(
            f"{name} {right[mask].float().mean():.2f}"
            for name, mask in (("silent", silent), ("speak", speak), ("words", words))
        )
        return (each * weights).sum() / weights.sum(), shares

    def _save(self, path: Path, optimizer: torch.optim.Optimizer, step: int) -> None:
        state = {"step": step, "weights": self.trained, "optimizer": optimizer.state_dict()}
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def _resume(self, path: Path, optimizer: torch.optim.Optimizer) -> int:
        if not path.is_file():
            return 0
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name, weight in state["weights"].items():
                self.trained[name].copy_(weight)
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]


def embed(connector: ClassNameConnector, pictures: list[np.ndarray], free: bool) -> Tensor:
    """Features and made-up shares, [tokens, dim or classes], to embeddings [frames, tokens, text dim], with
    or without what the free path sees."""

    def look(features: Tensor) -> Tensor:
        return connector(features) if free else connector.speak(connector.shares(features))

    classes = connector.names.in_features
    made_up = torch.tensor([picture.shape[1] == classes for picture in pictures])
    embeds = connector.places.new_empty(len(pictures), *connector.places.shape)
    for kind, speak in ((False, look), (True, connector.speak)):
        rows = (made_up == kind).nonzero().squeeze(1)
        if len(rows):
            stacked = torch.from_numpy(np.stack([pictures[row] for row in rows])).float()
            embeds = embeds.index_copy(0, rows, speak(stacked).to(embeds.dtype))
    return embeds


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware: a step takes two thirds of the time then."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def learning_rate(step: int, steps: int) -> float:
    """Share of the top rate: a short warm-up, then a cosine down to a twentieth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


def export(model: VideoLLM, adapted: PeftModel, folder: Path) -> None:
    """Write the adapter checkpoint that `VideoLLM.from_pretrained` reads; the model card stays as it is."""
    adapted.peft_config["default"].base_model_name_or_path = model.config.language_model_name
    card = folder / "README.md"
    written = card.read_text() if card.is_file() else None
    adapted.half().save_pretrained(str(folder), save_embedding_layers=False)
    card.unlink()  # PEFT's template
    if written is not None:
        card.write_text(written)
    model.config.save_pretrained(folder)


def main(
    data: Annotated[Path, typer.Option(help="folder with the tar files of pictures and clips")],
    out: Annotated[Path, typer.Option(help="where the model goes")] = Path("assets/pocket"),
    work: Annotated[Path, typer.Option(help="where stages are kept")] = Path("runs/pocket"),
    clips: Annotated[int, typer.Option(help="number of composed clips")] = 1300,
    albums: Annotated[int, typer.Option(help="number of albums of single frames")] = 600,
    naming_steps: Annotated[int, typer.Option(help="steps of slide shows")] = 200,
    clip_steps: Annotated[int, typer.Option(help="steps of composed clips")] = 800,
    seed: Annotated[
        int, typer.Option(help="of crops, lessons and weights; clips are drawn by their numbers")
    ] = 0,
) -> None:
    """Make the default model from pictures and clips."""
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = load_vocabulary()
    tower = build(
        VideoLLMConfig(language_model_name=bases.SMOLLM2, vision_name=bases.EFFICIENTNET_LITE0)
    ).vision_tower
    photographs: list[list[PhotographFeatures]] = []
    composed: list[list[ClipFeatures]] = []
    seen: list[list[ClipFeatures]] = []  # by the classifiers alone: clips and albums
    for part, media in enumerate(load_media(data, "train").parts()):
        half = range(part * clips // 2, (part + 1) * clips // 2)
        photographs.append(photograph_features(media, tower, work / f"photographs-{part}", seed + part))
        composed.append(clip_features(media, tower, half, work / f"clips-{part}"))
        pages = clip_features(media, tower, range(albums // 2), work / f"albums-{part}", album)
        seen.append([*composed[-1], *pages])
    all_photographs = [*chain(*photographs)]

    imagenet = bases.imagenet_classifier()
    known = classifier.known_to_imagenet(all_photographs, imagenet, class_names(), vocabulary)
    console.print(f"known to ImageNet already: {', '.join(sorted(known))}")
    learned = sorted({entry.name for entry in vocabulary.entries})
    layer = classifier.fit(photographs[0], seen[0], learned, known, seed)
    trainer = Trainer(new_model(learned, layer), work, seed)
    lessons = Lessons(
        trainer.prompt,
        trainer.model.config.fps,
        [*chain(*composed)],
        # Of the part that the classifier hasn't seen: the decoder meets its doubt as it will be.
        [page for page in seen[1] if page.clip.kind == "album"],
        Slides(trainer.prompt, all_photographs, [class_names(), [*learned, "nothing"]]),
    )
    trainer.run(Stage("naming", naming_steps, lessons.shows))
    trainer.run(Stage("clips", clip_steps, lessons.clips))
    layer = classifier.fit(all_photographs, [*chain(*seen)], learned, known, seed)
    set_classifier(trained_connector(trainer.model), imagenet, layer)
    export(trainer.model, trainer.adapted, out)
    console.print(f"the model is in {out}")


if __name__ == "__main__":
    typer.run(main)
