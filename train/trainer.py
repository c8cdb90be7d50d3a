"""Trains a model on sequences, on the Trainer of transformers, in stages that go on where they were stopped.

A step's sequences are dealt into rows, packed without padding: one, or as many as there are processes times
steps of accumulation. Whichever, a step learns the same.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.kept import kept_shares
from train.objective import PARTS, Objective
from train.precision import mixed_precision
from train.sequences import IGNORED, Sequence, deal, pack
from videollm.prompt import Prompt

RATES = {"adapter": 1e-3, "connector": 3e-4, "router": 1e-3}
WARM_UP = 20  # steps
LARGEST_GRADIENT = 1.0
WEIGHTS, OPTIMIZER, SCHEDULE, STATE = (
    "learned.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
)

KINDS = ("silent", "speak", "words")  # of what is to be said

console = Console()


class TrainingError(Exception):
    """Training can't go on; the message is one line that says what to do."""


@dataclass(frozen=True)
class Stage(ABC):
    """A training stage of so many steps. `rates` are the top learning rates of the parts that learn; one of 0
    leaves its part as it is."""

    name: str
    steps: int
    rates: Mapping[str, float] = field(default_factory=lambda: RATES, kw_only=True)
    warm_up: int = field(default=WARM_UP, kw_only=True)

    @abstractmethod
    def sequences(self, step: int, seed: int) -> list[Sequence]:
        """What a step learns from; the same for the same step and seed."""


@dataclass(frozen=True)
class DrawnStage(Stage):
    """Each step's sequences are drawn anew."""

    draw: Callable[[np.random.Generator], list[Sequence]]

    def sequences(self, step: int, seed: int) -> list[Sequence]:
        return self.draw(np.random.default_rng([seed, step, *self.name.encode()]))


@dataclass(frozen=True)
class Settings:
    """How to train, whatever the stage.

    Stages are kept under `work`, every `save_every` steps. `accumulate` is in how many rows, one after the
    other, a process takes a step; with `checkpointing` decoder layers keep their inputs alone and are
    computed again in the backward pass: less memory, more time. `precision` is what `accelerate` calls mixed
    precision; `report_to` names what of the Trainer's integrations hears of the losses.
    """

    work: Path
    seed: int = 0
    accumulate: int = 1
    checkpointing: bool = False
    precision: str = field(default_factory=mixed_precision)
    save_every: int = 25
    log_every: int = 5
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """What is never learned from, looked at every so many steps. `sample` gives what the model says now, as
    text; every process calls it."""

    sequences: list[Sequence]
    every: int
    sample: Callable[[], str]


class Training:
    """A model in training: its stages run on the same weights, one after the other."""

    def __init__(self, adapted: PeftModel, settings: Settings, logits: bool = False) -> None:
        self.objective = Objective(adapted, logits)
        self.adapted = adapted
        self.model = self.objective.model
        assert self.model.tokenizer is not None
        self.prompt = Prompt.of(self.model.tokenizer, self.model.config)
        self.settings = settings
        if settings.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def run(self, stage: Stage, held_out: HeldOut | None = None) -> list[dict[str, Any]]:
        """Train, from where the stage was left; what was logged, from its beginning. A stage of no steps is
        passed over. ValueError where it was with another model; TrainingError where the loss is no number any
        more."""
        if stage.steps == 0:  # which the Trainer takes for "as many as there are"
            return []
        trainer = StageTrainer(self.objective, stage, self.settings, self.prompt, held_out)
        checkpoint = last_checkpoint(trainer.folder)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if not isinstance(self.objective, FSDPModule):
            # Without what this stage's precision wrapped the forward pass in.
            trainer.accelerator.unwrap_model(self.objective, keep_fp32_wrapper=False)
        return trainer.state.log_history

    def loss(self, sequences: list[Sequence]) -> float:
        """The loss of sequences that are not learned from, in the precision of the weights."""
        row = pack(sequences, self.model.device)
        with torch.no_grad():
            return self.objective(**vars(row), total=row.weights.sum().item())[0].item()


class StageTrainer(transformers.Trainer):
    """One stage, on the Trainer of `transformers`.

    A checkpoint holds what learns, whole wherever its parts lie; a stage that was stopped may go on with
    another number of processes. `trainer_state.json` is the last that is written of one.
    """

    def __init__(
        self, objective: Objective, stage: Stage, settings: Settings, prompt: Prompt, held_out: HeldOut | None
    ) -> None:
        self.objective: Objective = objective
        self.stage, self.prompt, self.held_out = stage, prompt, held_out
        self.folder = settings.work / stage.name
        self.learned = {name for name, weight in objective.named_parameters() if weight.requires_grad}
        self._right = torch.zeros(len(KINDS), 2)  # how many of each kind are right, and of how many
        arguments = _arguments(stage, settings, held_out)
        super().__init__(
            objective,
            arguments,
            data_collator=_inputs,
            train_dataset=StepRows(stage, settings.seed, arguments.world_size * settings.accumulate),
            eval_dataset=None if held_out is None else EachInARow(held_out.sequences),
            callbacks=[Told(stage)],
        )
        self.remove_callback(PrinterCallback)
        if isinstance(objective, FSDPModule):  # since an earlier stage
            prepare = self.accelerator.prepare
            self.accelerator.prepare = lambda *parts: (
                self._prepare_sharded(*parts) if parts[0] is objective else prepare(*parts)
            )

    def _prepare_sharded(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """accelerate knows an optimizer's parameters by their addresses, and a process that holds no row of a
        small one has no address for it. They are the sharded ones already."""
        self.accelerator._models.append(objective)  # as its own preparation does
        return objective, self.accelerator.prepare_optimizer(optimizer)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        return SequentialSampler(cast(Any, train_dataset or self.train_dataset))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        parameters = [
            (name, weight) for name, weight in self.objective.named_parameters() if weight.requires_grad
        ]
        groups = [
            {"params": [p for name, p in parameters if mark in name], "lr": self.stage.rates[part]}
            for part, mark in PARTS.items()
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        share = partial(learning_rate, steps=self.stage.steps, warm_up=self.stage.warm_up)
        self.lr_scheduler = LambdaLR(cast(torch.optim.Optimizer, self.optimizer), share)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss, said = model(**inputs)
        if torch.is_grad_enabled():
            self._count_right(said, inputs["targets"])
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._check(loss, "loss")
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self._check(norm, "gradient")
        return norm

    def _check(self, value: Any, name: str) -> None:
        """TrainingError before a step that would spoil the weights."""
        if math.isfinite(float(value)):
            return
        kept = last_checkpoint(self.folder)
        where = "nothing was kept before" if kept is None else f"{kept} is kept"
        raise TrainingError(
            f"the {name} of step {self.state.global_step + 1} of {self.stage.name} is {float(value)}; "
            f"{where}; look at what was prepared, or lower the learning rates in another folder"
        )

    def _count_right(self, said: Tensor, targets: Tensor) -> None:
        wanted = targets[targets != IGNORED]
        silent, speak = wanted == self.prompt.interval, wanted == self.prompt.stop
        right = (said == wanted).float()
        counts = [torch.stack([right[mask].sum(), mask.sum()]) for mask in (silent, speak, ~silent & ~speak)]
        self._right = self._right.to(right.device) + torch.stack(counts)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        if "loss" in logs:
            for kind, (right, count) in zip(KINDS, self._right.tolist(), strict=True):
                if count:
                    logs[f"right_{kind}"] = right / count
            self._right = torch.zeros_like(self._right)
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss, the share of tokens that routers keep, and a sample of what is said."""
        assert self.held_out is not None
        with kept_shares(self.objective) as kept:
            metrics = super().evaluate(*args, **kwargs)
        shares = {f"kept_layer_{layer}": share for layer, share in kept.by_layer().items()}
        with self.accelerator.autocast(), _whole(self.objective):
            sample = self.held_out.sample()
        self.log({**shares, "sample": sample})
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        whole = get_model_state_dict(self.objective, options=options)
        if self.args.should_save:
            folder = self.folder if output_dir is None else Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            # A tied frozen weight may be among them.
            save_file(
                {name: cast(Tensor, whole[name]).contiguous() for name in self.learned}, folder / WEIGHTS
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        if weights.keys() != self.learned:
            raise ValueError(
                f"{resume_from_checkpoint} was kept of another model; remove it, or work in another folder"
            )
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.objective, cast(Any, weights), options=options)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:  # which shares it out in its own way
            super()._save_optimizer_and_scheduler(output_dir)
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self.objective, self._plain_optimizer(), options=options)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER, weights_only=True, map_location="cpu")
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.objective, self._plain_optimizer(), state, options=options)
        schedule = torch.load(Path(checkpoint) / SCHEDULE, weights_only=True)
        cast(Any, self.lr_scheduler).load_state_dict(schedule)

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapping."""
        return cast(Any, self.optimizer).optimizer


@contextmanager
def _whole(objective: nn.Module) -> Iterator[None]:
    """Gathers what is of no decoder layer, so that the model can be called from within; layers gather their
    own."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    yield
    objective.reshard()


class StepRows(Dataset[tuple[list[Sequence], float]]):
    """A stage's steps, each dealt into so many rows: a row's sequences, and what its loss is divided by."""

    def __init__(self, stage: Stage, seed: int, rows: int) -> None:
        self.stage, self.seed, self.rows = stage, seed, rows
        self._step, self._dealt, self._total = -1, list[list[Sequence]](), 0.0

    def __len__(self) -> int:
        return self.stage.steps * self.rows

    def __getitem__(self, index: int) -> tuple[list[Sequence], float]:
        step, row = divmod(index, self.rows)
        if step != self._step:
            sequences = self.stage.sequences(step, self.seed)
            self._step, self._dealt = step, deal(sequences, self.rows)
            # Gradients become means over rows: so does the weight that their losses are divided by.
            self._total = sum(sum(sequence.weights) for sequence in sequences) / self.rows
        return self._dealt[row], self._total


class EachInARow(Dataset[tuple[list[Sequence], float]]):
    """Held-out sequences, so that the mean of the rows' losses is that of all targets."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.held = sequences
        self.total = sum(sum(sequence.weights) for sequence in sequences) / len(sequences)

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> tuple[list[Sequence], float]:
        return [self.held[index]], self.total


def _inputs(items: list[tuple[list[Sequence], float]]) -> dict[str, Any]:
    """A batch, which is one row, as the objective takes it."""
    ((sequences, total),) = items
    return {**vars(pack(sequences, torch.device("cpu"))), "total": total}


class Told(TrainerCallback):
    """Tells of a stage, a line at a time."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        where = f"{self.stage.name} {state.global_step}/{self.stage.steps}"
        if "loss" in logs:
            right = " ".join(f"{k} {logs[f'right_{k}']:.2f}" for k in KINDS if f"right_{k}" in logs)
            console.print(f"{where} loss {logs['loss']:.3f} right: {right}", highlight=False)
        if "eval_loss" in logs:
            console.print(f"{where} held-out loss {logs['eval_loss']:.3f}", highlight=False)
        if "sample" in logs:
            kept = [f"{share:.2f}" for name, share in logs.items() if name.startswith("kept_layer_")]
            console.print(f"{where} kept by layer: {' '.join(kept)}", highlight=False)
            console.print(logs["sample"], highlight=False, markup=False)


def _arguments(stage: Stage, settings: Settings, held_out: HeldOut | None) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(settings.work / stage.name),
        max_steps=stage.steps,
        per_device_train_batch_size=1,  # a row, which is a batch of its own
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=LARGEST_GRADIENT,
        bf16=settings.precision == "bf16",
        use_cpu=not on_gpu,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=1,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="no" if held_out is None else "steps",
        eval_steps=None if held_out is None else held_out.every,
        report_to=list(settings.report_to) or "none",
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=True,
        log_level="error",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are several processes, never one
    return arguments


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; one that was being written when training stopped is not."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((path for path in found if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    return True


def learning_rate(step: int, steps: int, warm_up: int) -> float:
    """Share of the top rate: a short warm-up, then a cosine down to a twentieth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
