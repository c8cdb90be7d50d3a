"""The plug-in against lmms-eval's interface (0.7), which is not installed here: its registry asks the entry
point for a manifest, imports the class, and gives it requests."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import small_model
from PIL import Image


class Lmms(ABC):
    """What of `lmms_eval.api.model.lmms` a model has to do with."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = CacheHook()

    @abstractmethod
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]: ...

    @abstractmethod
    def generate_until(self, requests: list[Any]) -> list[str]: ...

    @abstractmethod
    def generate_until_multi_round(self, requests: list[Any]) -> list[str]: ...


class CacheHook:
    def __init__(self) -> None:
        self.kept: list[str] = []

    def add_partial(self, attr: str, req: Any, res: str) -> None:
        self.kept.append(res)


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instance:
    args: tuple[Any, ...]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("lmms_eval", {}),
        ("lmms_eval.api", {}),
        ("lmms_eval.api.model", {"lmms": Lmms}),
        ("lmms_eval.models", {}),
        ("lmms_eval.models.registry_v2", {"ModelManifest": Manifest}),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "train.evaluation.lmms_model", raising=False)


def test_the_harness_finds_the_model_and_runs_it(harness: None, tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "tiny")
    (found,) = entry_points(group="lmms_eval.models", name="videollm")
    manifest = found.load()()
    assert manifest.model_id == "videollm" and manifest.chat_class_path is None
    module, name = manifest.simple_class_path.rsplit(".", 1)
    made = getattr(importlib.import_module(module), name)
    model = made(pretrained=str(tmp_path / "tiny"), batch_size=1, device="cpu", max_batch_size=None)
    picture = Image.fromarray(np.full((40, 60, 3), 128, np.uint8))
    clip = str(Path(__file__).parents[2] / "assets" / "sample.mp4")
    model.task_dict = {"task": {"test": [{"shown": [picture]}, {"shown": [clip]}]}}
    settings = {"until": ["\n"]}
    requests = [
        Instance(("What?", settings, lambda doc: doc["shown"], number, "task", "test"))
        for number in (0, 1, 0)
    ]
    answers = model.generate_until(requests)
    assert len(answers) == 3 and answers == model.cache_hook.kept
    assert answers[0] == answers[2] != answers[1]
    with pytest.raises(NotImplementedError, match="choose tasks that generate"):
        model.loglikelihood(requests)
