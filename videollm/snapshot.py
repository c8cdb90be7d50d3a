"""A stream's cache in a file, and back, in this process or a later one."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videollm.layer_budget import LayerBudgetCache, StreamState

FORMAT = 1
KEY = "videollm_stream"  # of the metadata
BESIDE = "beside"


class SnapshotError(ValueError):
    """A file that no stream can go on from, or not with this cache."""


@dataclass(frozen=True)
class Beside:
    """What is written with a stream's cache by who owns the stream: tensors, and what JSON can say."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] | None = None


def snapshot(cache: LayerBudgetCache, slot: int, path: Path, beside: Beside | None = None) -> None:
    """Write what the cache holds of a stream as safetensors. What lay at `path` stays there until all is
    written. OSError where it can't be."""
    state, beside = cache.state(slot), beside or Beside()
    tensors = {
        f"{index}.{name}": tensor for index, held in enumerate(state.layers) for name, tensor in held.items()
    }
    tensors |= {f"{BESIDE}.{name}": tensor for name, tensor in beside.tensors.items()}
    facts = {
        "format": FORMAT,
        "cache": cache_facts(cache),
        "seen": state.seen,
        "positions": state.positions,
        BESIDE: beside.facts,
    }
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        save_file(tensors, temporary, metadata={KEY: json.dumps(facts)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{path} can't be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def restore(cache: LayerBudgetCache, slot: int, path: Path) -> None:
    """Let a slot hold the stream that was written to `path`, in place of its own.

    Raises what `read_snapshot` does, and changes nothing then.
    """
    state, _ = read_snapshot(cache, path)
    cache.load(slot, state)


def read_snapshot(cache: LayerBudgetCache, path: Path) -> tuple[StreamState, Beside]:
    """What was written to `path`, for `cache.load`, and what was written beside it.

    Raises SnapshotError for a file of another model, of a cache of other budgets, of another version, or that
    is cut; OSError where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no snapshot {path}")
    try:
        with safe_open(path, framework="pt", device=str(cache.lengths.device)) as file:
            facts = json.loads((file.metadata() or {}).get(KEY, "{}"))
            _check(cache, facts, path)
            layers: list[dict[str, Tensor]] = [{} for _ in cache.layers]
            beside = Beside(facts=facts.get(BESIDE))
            for key in file.keys():  # noqa: SIM118 - no mapping
                whose, name = key.split(".")
                held = beside.tensors if whose == BESIDE else layers[int(whose)]
                held[name] = file.get_tensor(key)
    except SafetensorError as error:
        raise SnapshotError(f"{path} is cut or no snapshot of a stream: {error}") from error
    return StreamState(layers, facts["positions"], facts["seen"]), beside


def cache_facts(cache: LayerBudgetCache) -> dict[str, Any]:
    """What a snapshot's cache and the one that takes it must have in common."""
    keys, budgets = cache.layers[0].keys, cache.budgets
    return {
        "model": cache.model,
        "layers": len(cache.layers),
        "kv_heads": keys.shape[1],
        "head_dim": keys.shape[3],
        "dtype": str(keys.dtype).removeprefix("torch."),
        "context": cache.context,
        "budgets": None if budgets is None else [list(budgets.entries), budgets.sinks, budgets.window],
        "headroom": None if budgets is None else budgets.headroom,
        "policy": None if cache.policy is None else repr(cache.policy),
    }


def _check(cache: LayerBudgetCache, facts: dict[str, Any], path: Path) -> None:
    if "format" not in facts:
        raise SnapshotError(f"{path} is no snapshot of a stream")
    if facts["format"] != FORMAT:
        raise SnapshotError(
            f"{path} has version {facts['format']} of the format, and this program reads {FORMAT}; "
            "begin the stream anew, or go on with the program that wrote it"
        )
    for name, ours in cache_facts(cache).items():
        theirs = facts["cache"].get(name)
        if theirs != ours:
            raise SnapshotError(
                f"{path} is of another {name}: {theirs}, and this cache has {ours}; "
                "load the model and give the budget that it was written with"
            )
