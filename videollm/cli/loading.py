"""A named model, and a session on it."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from videollm.cli.errors import CommandError

if TYPE_CHECKING:
    import torch

    from stream.engine import Engine
    from stream.journal import JournalReader
    from stream.session import Session
    from videollm import VideoLLM

# Frames are scaled down to this inside the decoder: enough for every vision tower and for contact sheets,
# while a queue of 4K frames would hold hundreds of megabytes.
MAX_SIDE = 768


def refuse_namesake() -> None:
    """CommandError where the Hugging Face package `kernels` is installed beside this project.

    Both are imported as `kernels`; which of them wins depends on the order of installation.
    """
    try:
        found = version("kernels")
    except PackageNotFoundError:
        return
    raise CommandError(
        f"Hugging Face's package kernels {found} is installed and hides this project's package of that name; "
        "remove it: pip uninstall kernels"
    )


def quieten_transformers() -> None:
    """No progress bars and warnings of that library: none is the user's."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_session(
    model: str,
    device: str,
    threshold: float | None = None,
    budget: str | None = None,
    journal: JournalReader | None = None,
) -> Session:
    """Load the model onto the device and begin a session; with a budget, shared out by the model's
    calibration where it has one, tell the memory it takes. Raises CheckpointError, CommandError and
    typer.BadParameter."""
    engine = load_engine(model, device, budget)
    from stream.session import Session

    return Session(engine.model, threshold=threshold, engine=engine, journal=journal)


def load_engine(model: str, device: str, budget: str | None = None, slots: int = 1) -> Engine:
    """Load the model onto the device, for so many streams. Raises and tells as `load_session` does."""
    loaded = load_model(model, device)
    from stream.engine import Engine
    from videollm.budgets import build_budgets
    from videollm.budgets.calibration import calibration_file, read_calibration

    if budget is None:
        return Engine(loaded, slots)
    try:
        calibration = read_calibration(calibration_file(model))
        engine = Engine(loaded, slots, build_budgets(loaded, budget, calibration=calibration))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error
    shares = "the same in every layer" if calibration is None else f"by the calibration of {calibration.date}"
    size = engine.cache.nbytes / 2**20
    Console(stderr=True).print(f"cache: {size:.0f} MiB from beginning to end, {shares}", style="dim")
    return engine


def load_model(model: str, device: str) -> VideoLLM:
    """Load the model onto the device, ready for inference. Raises as `load_session` does."""
    loaded = load_for_figures(model, device)
    from videollm.inference import prepare_for_inference

    with Console(stderr=True).status(f"preparing {escape(model)}"):
        return prepare_for_inference(loaded)


def load_for_figures(model: str, device: str) -> VideoLLM:
    """Load the model onto the device in the precision that it was saved in, not made faster. Raises as
    `load_session` does."""
    refuse_namesake()
    chosen = pick_device(device)
    quieten_transformers()
    from videollm import VideoLLM

    with Console(stderr=True).status(f"loading {escape(model)}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers, none of the user's
        loaded = VideoLLM.from_pretrained(model)
        loaded.to(device=chosen)  # type: ignore[call-arg]  # transformers wraps the method without its own type
        return loaded


def absolute(model: str) -> str:
    """The model's name as it holds in any folder."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def pick_device(name: str) -> torch.device:
    """The device of that name, a CUDA device as the current one; `auto` is the first, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise typer.BadParameter(
            f"{name} is no device here; use auto, cpu, cuda or cuda:N", param_hint="--device"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise typer.BadParameter(f"{name} is not there; --device cpu runs everywhere", param_hint="--device")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # where Triton and CUDA graphs launch
    return device
