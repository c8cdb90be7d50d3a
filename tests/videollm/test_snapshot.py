"""A stream that was written goes on as if it had never stopped; a file that isn't its own is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import small_model
from safetensors import safe_open
from safetensors.torch import save_file

from videollm import VideoLLM
from videollm import snapshot as snapshots
from videollm.budgets import Budgets
from videollm.eviction import POLICIES, SnapKVPolicy, WindowPolicy
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, read
from videollm.snapshot import SnapshotError, restore, snapshot

BUDGETS = Budgets((40,) * 4, sinks=2, window=32, headroom=24)


def watch(model: VideoLLM, cache: LayerBudgetCache, slot: int, steps: range) -> list[torch.Tensor]:
    """Logits of each step of a stream: a frame and a few words."""
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    pixels = torch.randint(
        0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return [
        read(model, [Chunk(slot, [step % 200, *frame, 7], pixels[step : step + 1])], cache) for step in steps
    ]


@pytest.mark.parametrize("policy", [None, *POLICIES])
def test_a_stream_goes_on_where_it_was_written(policy: str | None, tmp_path: Path) -> None:
    def cache() -> LayerBudgetCache:
        model = small_model()
        model.config.context_tokens = 500
        return LayerBudgetCache(model, 2, policy and BUDGETS, policy and POLICIES[policy]())

    model, first = small_model(), cache()
    watch(model, first, 0, range(12))
    snapshot(first, 0, tmp_path / "stream")
    expected = watch(model, first, 0, range(12, 24))
    later = cache()
    watch(model, later, 1, range(20, 32))  # what the slot held before is gone
    restore(later, 1, tmp_path / "stream")
    assert later.seen == [0, 144]
    with pytest.raises(ValueError, match="can't be rewound"):
        later.rewind(1, 1)
    for ours, theirs in zip(watch(model, later, 1, range(12, 24)), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_snapshot_of_one_leaves_the_others_able_to_rewind(tiny: VideoLLM, tmp_path: Path) -> None:
    tiny.config.context_tokens = 500

    def logits(with_snapshot: bool) -> torch.Tensor:
        cache = LayerBudgetCache(tiny, 2, BUDGETS)
        for step in range(10):
            read(tiny, [Chunk(0, [step] * 9), Chunk(1, [step + 5] * 20)], cache)
            if with_snapshot:
                snapshot(cache, 0, tmp_path / "stream")
            cache.rewind(1, 15)
        return read(tiny, [Chunk(1, [3])], cache)

    assert torch.equal(logits(True), logits(False))


@pytest.fixture
def written(tiny: VideoLLM, tmp_path: Path) -> Path:
    tiny.config.context_tokens = 500
    cache = LayerBudgetCache(tiny, 1, BUDGETS)
    watch(tiny, cache, 0, range(6))
    snapshot(cache, 0, tmp_path / "stream")
    return tmp_path / "stream"


def refusal(cache: LayerBudgetCache, path: Path) -> str:
    """Why a file isn't taken; what the slot holds stays."""
    model = small_model()
    watch(model, cache, 0, range(2))
    held = [layer.state(0)["keys"].clone() for layer in cache.layers]
    with pytest.raises((SnapshotError, OSError)) as error:
        restore(cache, 0, path)
    assert cache.seen == [24]
    assert all(torch.equal(a, b.state(0)["keys"]) for a, b in zip(held, cache.layers, strict=True))
    return str(error.value)


def test_the_files_of_others_are_refused(tiny: VideoLLM, written: Path) -> None:
    other = small_model(seed=1)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    other.config.context_tokens = 500
    assert "another model" in refusal(LayerBudgetCache(other, 1, BUDGETS), written)
    wider = Budgets((41,) * 4, sinks=2, window=32, headroom=24)
    assert "another budgets" in refusal(LayerBudgetCache(tiny, 1, wider), written)
    assert "another policy" in refusal(LayerBudgetCache(tiny, 1, BUDGETS, WindowPolicy()), written)
    assert "another budgets" in refusal(LayerBudgetCache(tiny), written)


def test_another_version_and_damaged_files_are_refused(tiny: VideoLLM, written: Path, tmp_path: Path) -> None:
    cache = LayerBudgetCache(tiny, 1, BUDGETS)
    with safe_open(written, framework="pt") as file:
        facts = json.loads(file.metadata()[snapshots.KEY])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    newer = tmp_path / "newer"
    save_file(tensors, newer, metadata={snapshots.KEY: json.dumps(facts | {"format": 99})})
    assert "has version 99" in refusal(cache, newer)
    cache.reset()
    foreign = tmp_path / "foreign"
    save_file({"weight": torch.zeros(3)}, foreign)
    assert "is no snapshot" in refusal(cache, foreign)
    for length in (0, 5, 100, written.stat().st_size - 1):
        cache.reset()
        cut = tmp_path / "cut"
        cut.write_bytes(written.read_bytes()[:length])
        assert "is cut or no snapshot" in refusal(cache, cut)
    cache.reset()
    assert "there is no snapshot" in refusal(cache, tmp_path / "nowhere")


def test_what_was_written_before_stays_until_all_is(
    tiny: VideoLLM, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.read_bytes()
    cache = LayerBudgetCache(tiny, 1, Budgets((40,) * 4, sinks=2, window=32, headroom=24), SnapKVPolicy())
    watch(tiny, cache, 0, range(4))

    def half(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        snapshot(cache, 0, written)
    assert written.read_bytes() == before
    assert list(written.parent.iterdir()) == [written]
