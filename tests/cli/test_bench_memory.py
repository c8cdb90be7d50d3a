"""`videollm bench cache`, `rope` and `memory` at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, text_config
from transformers import AutoModelForCausalLM

from train import cache_quality, rope_quality
from train.long_text import score
from videollm.cli import run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(text_config(max_position_embeddings=768)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_quality, "QUICK", cache_quality.Load(512, 1, (0.2,), evict_once=False))


def rows_of(file: Path) -> dict[str, dict]:
    return {key: row for key, row in json.loads(file.read_text())["rows"].items() if "perplexity" in row}


def test_the_cache_benchmark_shows_every_way_and_goes_on_where_it_stopped(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, measured = tmp_path / "cache.json", []

    def counted(*arguments: object) -> object:
        measured.append(1)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return score(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_quality, "score", counted)
    command = ["bench", "cache", "--model", str(base), "--json", str(file)]
    assert run(command) == 130
    kept = rows_of(file)
    assert len(kept) == 4
    assert run(command) == 0
    rows = rows_of(file)
    assert len(measured) == 5 + 9 - 4 and len(rows) == 9
    assert next(iter(rows)) == "full" and all(rows[key] == kept[key] for key in kept)
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in table[-8:]] == [way.split()[0] for way in cache_quality.WAYS]
    sizes = {way: rows[f"20%, {way}"]["cache_mib"] for way in cache_quality.WAYS}
    shared = [size for way, size in sizes.items() if "snapkv" in way]
    assert max(shared) == pytest.approx(min(shared)), "budgets are shared out otherwise, not more"
    assert sizes["window"] < rows["full"]["cache_mib"]


def test_evicting_once_changes_what_is_evicted_and_nothing_else(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "often.json", tmp_path / "once.json"
    command = ["bench", "cache", "--model", str(base)]
    assert run([*command, "--json", str(files[0])]) == 0
    assert run([*command, "--evict-once", "--json", str(files[1])]) == 0
    often, once = map(rows_of, files)
    assert often["full"] == once["full"] and often["20%, h2o"] != once["20%, h2o"]
    facts = json.loads(files[1].read_text())
    assert facts["settings"]["evict_once"] and len(facts["settings"]["documents"]) == 1
    capsys.readouterr()
    assert run([*command, "--json", str(files[1])]) == 1
    assert "measured with another evict_once" in capsys.readouterr().err


def test_rope_types_are_those_of_the_configuration(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rope.json"
    command = ["bench", "rope", "--model", str(base), "--json", str(file)]
    assert run([*command, "--lengths", "1"]) == 0
    first = rows_of(file)
    assert list(first) == ["1x, default"]
    assert run([*command, "--lengths", "1,2"]) == 0
    rows = rows_of(file)
    assert list(rows) == ["1x, default", *(f"2x, {kind}" for kind in ("default", *rope_quality.EXTENSIONS))]
    assert rows["1x, default"] == first["1x, default"]
    assert len({row["perplexity"] for row in rows.values()}) == 5, "every type computes something else"
    assert len({row["entropy"] for row in rows.values()}) == 5
    assert rows["2x, yarn"]["tokens"] == 1536
    assert "entropy and log perplexity: correlation" in capsys.readouterr().out
    assert run(["bench", "rope", "--lengths", "long"]) == 2


def test_the_extended_model_reads_as_transformers_does(base: Path) -> None:
    decoder = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (1, 900), generator=torch.Generator().manual_seed(0))
    for rope_type in ("default", *rope_quality.EXTENSIONS):
        model = rope_quality.extended(decoder, rope_type, 2.0, 900 - rope_quality.CHUNK)
        theirs = AutoModelForCausalLM.from_config(model.config.text_config).eval()
        theirs.load_state_dict(decoder.state_dict())
        cache = rope_quality._keeping(model, 900 - rope_quality.CHUNK)
        with torch.inference_mode():
            parts = [model(input_ids=part, past_key_values=cache).logits for part in ids.split(200, 1)]
            expected = theirs(ids).logits
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-3, rtol=0)


def test_memory_by_the_hour(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "memory"]) == 0
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    table = {cells[1].strip(): [float(cell) for cell in cells[2:5]] for cells in lines}
    assert list(table) == ["full", "mixture-of-depths", "budget", "both"]
    assert table["full"] == pytest.approx([10.723, 2 * 10.723, 8 * 10.723], abs=0.01)
    assert table["budget"][0] == table["budget"][2]
    assert run(["bench", "memory", "--shape", "huge"]) == 2
    assert run(["bench", "memory", "--budget", "99%"]) == 2
    assert "no budget" in capsys.readouterr().err
