"""Makes the default model from nothing: `python -m train.pocket --data ../shared/data --out assets/pocket`.

Stages, each kept under `--work` so that a run that was stopped goes on where it was:
  material    features of photographs and composed clips, by the frozen vision tower; the vocabulary's names,
              by regression on them; what classifiers say of pictures that they have not seen
              (`train.material`)
  naming      connector, routers and adapter on slide shows: a new thing is named, the same thing is not again
  clips       the same on composed clips, with silence, leaving things, and questions, and on glimpses: single
              frames of very many scenes (`train.lessons`), under changing names (`train.renaming`)
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

from train.lessons import Lessons
from train.material import Material, prepare
from train.options import Albums, Clips, ClipSteps, Data, NamingSteps, Work
from train.sequences import IGNORED, Sequence, collate
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
CONTEXT_TOKENS = 2048  # a session may go somewhat beyond the longest sequence, of about 1400

console = Console()


@dataclass(frozen=True)
class Stage:
    """A training stage of so many steps; `draw` gives the sequences of one."""

    name: str
    steps: int
    draw: Callable[[np.random.Generator], list[Sequence]]


def new_model(material: Material, depth: DepthConfig) -> VideoLLM:
    """The default model before training: its connector speaks the classes' names from the first moment."""
    model = build(
        VideoLLMConfig(
            language_model_name=bases.SMOLLM2,
            vision_name=bases.EFFICIENTNET_LITE0,
            connector_config=ConnectorConfig(
                kind="class_names",
                groups=[*map(len, material.names)],
                labels=[*chain(*material.names)],
            ),
            depth_config=depth,
            system_prompt=SYSTEM_PROMPT,
            context_tokens=CONTEXT_TOKENS,
        )
    )
    connector, tokenizer = cast(ClassNameConnector, model.connector), model.tokenizer
    assert tokenizer is not None
    spoken = [f" {name}" for name in chain(*material.names)]
    tokens = tokenizer(spoken, add_special_tokens=False)["input_ids"]
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        connector.names.weight.copy_(torch.stack([embeddings[ids].mean(0) for ids in tokens], dim=1))
        connector.classifier.weight.copy_(torch.cat([layer.weight for layer in material.classifiers]))
        connector.classifier.bias.copy_(torch.cat([layer.bias for layer in material.classifiers]))
    return model


def adapt(model: VideoLLM) -> PeftModel:
    """Rank-16 adapters on every linear layer of the decoder, connector and routers trained whole."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules=ADAPTED, modules_to_save=["connector", "router"])
    adapted = get_peft_model(model, config)
    # Lessons are its logits already.
    trained_connector(model).classifier.requires_grad_(False)
    return adapted


def trained_connector(model: VideoLLM) -> ClassNameConnector:
    """The copy of the connector that PEFT trains in its place."""
    return cast(Any, model.connector).modules_to_save["default"]


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
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * learning_rate(step, stage.steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                loss, right = self.loss(sequences)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
            optimizer.step()
            if step % 5 == 0:
                console.print(f"{stage.name} {step}/{stage.steps} loss {loss.item():.3f} right: {right}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
                self._save(state, optimizer, step + 1)

    def loss(self, sequences: list[Sequence]) -> tuple[Tensor, str]:
        """What training makes small, a scalar, and the shares of what is right, to be read."""
        batch = collate(sequences, self.prompt.eos)
        pictures = [picture for sequence in sequences for picture in sequence.pictures]
        logits_of_classes = torch.from_numpy(np.stack(pictures)).float()  # [frames, tokens, classes]
        frames = trained_connector(self.model).speak(logits_of_classes)
        learned = batch.targets != IGNORED
        out = self.adapted(input_ids=batch.ids, frame_embeds=frames, logits_to_keep=learned)
        logits = out.logits  # [learned, vocabulary]
        targets, weights = batch.targets[learned], batch.weights[learned]
        each = F.cross_entropy(logits.float(), targets, reduction="none")
        right = logits.argmax(-1) == targets
        silent, speak = targets == self.prompt.interval, weights > 1
        words = ~silent & ~speak
        shares = " ".join(
            f"{name} {right[mask].float().mean():.2f}"
            for name, mask in (("silent", silent), ("speak", speak), ("words", words))
        )
        loss = (each * weights).sum() / weights.sum()
        return loss if out.aux_loss is None else loss + out.aux_loss, shares

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
    data: Data,
    out: Annotated[Path, typer.Option(help="where the model goes")] = Path("assets/pocket"),
    work: Work = Path("runs/pocket"),
    clips: Clips = 1300,
    albums: Albums = 600,
    naming_steps: NamingSteps = 200,
    clip_steps: ClipSteps = 800,
    seed: Annotated[
        int, typer.Option(help="of crops, lessons and weights; clips are drawn by their numbers")
    ] = 0,
) -> None:
    """Make the default model from pictures and clips."""
    torch.manual_seed(seed)
    material = prepare(data, work, clips, albums, seed)
    trainer = Trainer(new_model(material, DepthConfig()), work, seed)
    lessons = Lessons.of(material, trainer.prompt)
    trainer.run(Stage("naming", naming_steps, lessons.shows))
    trainer.run(Stage("clips", clip_steps, lessons.clips))
    export(trainer.model, trainer.adapted, out)
    console.print(f"the model is in {out}")


if __name__ == "__main__":
    typer.run(main)
