"""Trains a model on sequences, in stages that go on where they were stopped.

A step's sequences are dealt into rows, packed without padding: one, or as many as there are processes times
steps of accumulation. Whichever, a step learns the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn import functional as F

from train.precision import mixed_precision
from train.sequences import IGNORED, Row, Sequence, deal, pack
from videollm.connector import ClassNameConnector
from videollm.files import written_whole
from videollm.modeling import VideoLLM
from videollm.prompt import Prompt

ADAPTED = r"model\.layers.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
LEARNING_RATES = {"lora_": 1e-3, "connector": 3e-4, "router": 1e-3}
WARM_UP = 20
SAVE_EVERY = 25
LARGEST_GRADIENT = 1.0

console = Console()


@dataclass(frozen=True)
class Stage:
    """A training stage of so many steps; `draw` gives the sequences of one."""

    name: str
    steps: int
    draw: Callable[[np.random.Generator], list[Sequence]]


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


class Objective(nn.Module):
    """What training makes small. A module, so that all that learns runs in its forward pass, where
    `accelerate` gathers what other processes hold and sets the precision."""

    def __init__(self, adapted: PeftModel) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, row: Row, weight: float) -> tuple[Tensor, Tensor]:
        """Loss, the sum over the row's targets divided by `weight`, a scalar; and what is said where
        something is learned, [learned]."""
        connector = trained_connector(cast(VideoLLM, self.adapted.get_base_model()))
        frames = connector.speak(row.pictures)  # [frames, tokens, dim]
        learned = row.targets != IGNORED  # [1, total]
        out = self.adapted(
            input_ids=row.ids, frame_embeds=frames, logits_to_keep=learned, sequence_lengths=row.lengths
        )
        each = F.cross_entropy(out.logits.float(), row.targets[learned], reduction="none")
        loss = (each * row.weights[learned]).sum() / weight
        return loss if out.aux_loss is None else loss + out.aux_loss, out.logits.argmax(-1)


class Trainer:
    """Runs stages on one model and keeps what was learned on disk every few steps.

    `accumulate` is in how many rows, one after the other, a process takes a step; with `checkpointing`
    decoder layers keep their inputs alone and are computed again in the backward pass: less memory, more
    time.
    """

    def __init__(
        self, model: VideoLLM, work: Path, seed: int, accumulate: int = 1, checkpointing: bool = False
    ) -> None:
        assert model.tokenizer is not None
        self.model = model
        self.prompt = Prompt.of(model.tokenizer, model.config)
        self.adapted = adapt(model)
        self.work = work
        self.seed = seed
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision(), gradient_accumulation_steps=accumulate
        )
        objective = Objective(self.adapted).train()
        trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        groups = [
            {"params": [p for n, p in trained.items() if part in n], "lr": rate, "top": rate}
            for part, rate in LEARNING_RATES.items()
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
        self.trained = trained.keys()
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)

    def run(self, stage: Stage) -> None:
        """Train, from where the stage was left. ValueError where that was with another model."""
        self.optimizer.state.clear()  # of the stage before
        state = self.work / f"{stage.name}.pt"
        for step in range(self._resume(state), stage.steps):
            rng = np.random.default_rng([self.seed, step, *stage.name.encode()])
            sequences = stage.draw(rng)
            for group in self.optimizer.param_groups:
                group["lr"] = group["top"] * learning_rate(step, stage.steps)
            loss, right = self.step(sequences)
            if step % 5 == 0 and self.accelerator.is_main_process:
                console.print(f"{stage.name} {step}/{stage.steps} loss {loss:.3f} right: {right}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
                self._save(state, step + 1)

    def step(self, sequences: list[Sequence]) -> tuple[float, str]:
        """Learn from these; the loss, and the shares of what is right, to be read."""
        processes, accelerator = self.accelerator.num_processes, self.accelerator
        dealt = deal(sequences, processes * accelerator.gradient_accumulation_steps)
        # Gradients become means over rows: so does the weight that their losses are divided by.
        weight = sum(sum(sequence.weights) for sequence in sequences) / len(dealt)
        losses, said, targets = [], [], []
        for own in dealt[accelerator.process_index :: processes]:
            row = pack(own, accelerator.device)
            with accelerator.accumulate(self.objective):
                loss, words = self.objective(row, weight)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.objective.parameters(), LARGEST_GRADIENT)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
            said.append(words)
            targets.append(row.targets[row.targets != IGNORED])
        mean = cast(Tensor, accelerator.reduce(torch.stack(losses).mean(), "mean")).item()
        return mean, self._shares(torch.cat(said), torch.cat(targets))

    def loss(self, sequences: list[Sequence]) -> float:
        """The loss of sequences that are not learned from, in the precision of the weights."""
        row = pack(sequences, self.accelerator.device)
        with torch.no_grad():
            return Objective(self.adapted)(row, row.weights.sum().item())[0].item()

    def _shares(self, said: Tensor, targets: Tensor) -> str:
        """How much of what should be said is, [learned] both."""
        silent, speak = targets == self.prompt.interval, targets == self.prompt.stop
        right = (said == targets).float()
        return " ".join(
            f"{name} {right[mask].mean():.2f}"
            for name, mask in (("silent", silent), ("speak", speak), ("words", ~silent & ~speak))
        )

    def _save(self, path: Path, step: int) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights, optimizer = get_state_dict(self.objective, self.optimizer.optimizer, options=options)
        if self.accelerator.is_main_process:
            learned = {name: weights[name] for name in self.trained}  # a tied frozen weight may be among them
            with written_whole(path) as partial:
                torch.save({"step": step, "weights": learned, "optimizer": optimizer}, partial)

    def _resume(self, path: Path) -> int:
        if not path.is_file():
            return 0
        state = torch.load(path, weights_only=True)
        if state["weights"].keys() != self.trained:
            raise ValueError(f"{path} was kept of another model; remove it, or work in another folder")
        set_state_dict(
            self.objective,
            self.optimizer.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
        return state["step"]


def learning_rate(step: int, steps: int) -> float:
    """Share of the top rate: a short warm-up, then a cosine down to a twentieth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))
