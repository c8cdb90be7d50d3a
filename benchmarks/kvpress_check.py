"""Our eviction beside kvpress's presses (NVIDIA), on the same model and the same token ids.

kvpress wants transformers below 5.3, so that it has its own environment:

    python -m venv kvpress-env
    kvpress-env/bin/pip install torch==2.13.0 kvpress "transformers<5.3"

    videollm bench cache --evict-once --json once.json
    kvpress-env/bin/python benchmarks/kvpress_check.py once.json

Both read the text before the scored tokens, compress once to as many entries, read the scored tokens and are
asked for the hidden numbers. kvpress keeps keys at the positions where they were; here they are turned to
contiguous ones. With fewer entries than twenty windows on average kvpress's PyramidKV is its SnapKV.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from kvpress import BasePress, ExpectedAttentionPress, PyramidKVPress, SnapKVPress, StreamingLLMPress
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

WINDOW = 32
OURS = {
    "SnapKV": "uniform + snapkv",
    "PyramidKV": "pyramid + snapkv",
    "StreamingLLM": "window",
    "ExpectedAttention": "expected_attention",
}


def press_named(name: str, entries: int, context: int) -> BasePress:
    """The press that leaves so many of a context's entries, set as the policies here are."""
    ratio = 1 - (entries + 0.5) / context  # they round down
    if name == "SnapKV":
        return SnapKVPress(ratio, window_size=WINDOW)
    if name == "PyramidKV":
        return PyramidKVPress(ratio, window_size=WINDOW)
    if name == "StreamingLLM":
        return StreamingLLMPress(ratio)
    return ExpectedAttentionPress(ratio, epsilon=0.02)


class Reader:
    """A model and the compressed cache of one document, read token by token: layers may be of unequal length,
    and then only a single query needs no mask."""

    def __init__(self, model: PreTrainedModel, context: list[int], press: BasePress | None) -> None:
        self.model, self.cache, self.position = model, DynamicCache(), len(context)
        with press(model) if press else contextlib.nullcontext():
            out = model(input_ids=torch.tensor([context]), past_key_values=self.cache, logits_to_keep=1)
        self.first = out.logits[0]  # [1, vocabulary]

    def read(self, ids: list[int]) -> Tensor:
        """Logits behind each token, [tokens, vocabulary]."""
        logits = []
        for token in ids:
            out = self.model(
                input_ids=torch.tensor([[token]]),
                past_key_values=self.cache,
                position_ids=torch.tensor([[self.position]]),
            )
            self.position += 1
            logits.append(out.logits[0])
        return torch.cat(logits)

    def forget(self, tokens: int) -> None:
        """What was read last."""
        self.position -= tokens
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :-tokens], layer.values[:, :, :-tokens]


@torch.inference_mode()
def score(
    model: PreTrainedModel, documents: list[dict[str, Any]], name: str, entries: int
) -> dict[str, float]:
    """What `videollm bench cache` tells, by kvpress; the whole cache where the name is "full"."""
    losses: list[float] = []
    exact, digits, likelihoods = [], [], []
    for document in documents:
        first = len(document["ids"]) - document["scored"]
        context, scored = document["ids"][:first], document["ids"][first:]
        reader = Reader(model, context, None if name == "full" else press_named(name, entries, first))
        predicted = torch.cat([reader.first, reader.read(scored)[:-1]])
        losses += torch.nn.functional.cross_entropy(
            predicted, torch.tensor(scored), reduction="none"
        ).tolist()
        for question in document["questions"]:
            ids, answer = question["ids"] + question["answer"], torch.tensor(question["answer"])
            saying = reader.read(ids)[-len(answer) - 1 : -1].log_softmax(-1)
            reader.forget(len(ids))
            right = saying.argmax(-1) == answer
            exact.append(float(right.all()))
            digits.append(float(right.float().mean()))
            likelihoods.append(float(saying.gather(1, answer[:, None]).mean()))
    return {
        "perplexity": math.exp(mean(losses)),
        "exact": mean(exact),
        "digits": mean(digits),
        "log_probability": mean(likelihoods),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path, help="what `videollm bench cache --evict-once --json` wrote")
    cache = Path(os.environ.get("VIDEOLLM_CACHE", Path.home() / ".cache" / "videollm"))
    parser.add_argument("--model", default=cache / "smollm2-135m-instruct", help="folder of the same model")
    arguments = parser.parse_args()
    figures = json.loads(arguments.figures.read_text())
    settings, rows = figures["settings"], figures["rows"]
    if not settings["evict_once"]:
        parser.error(f"{arguments.figures} was measured without --evict-once, which is what kvpress does")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    print(f"{'budget':8}{'press':20}{'perplexity':>24}{'exact':>20}{'digits':>20}{'log-probability':>24}")
    pair = "kvpress      here"
    print(f"{'':28}{pair:>24}{pair:>20}{pair:>20}{pair:>24}")
    budgets = sorted({row["budget"] for row in rows.values() if row.get("way") in OURS.values()})
    for budget, name in [(1.0, "full"), *((budget, name) for budget in budgets for name in OURS)]:
        ours = rows.get(f"{budget:.0%}, {OURS[name]}" if name in OURS else name)
        if ours is None:
            continue
        theirs = score(model, settings["documents"], name, int(budget * settings["length"]))
        print(
            f"{budget:<8.0%}{name:20}"
            f"{theirs['perplexity']:>14.3f}{ours['perplexity']:>10.3f}"
            f"{theirs['exact']:>10.0%}{ours['exact']:>10.0%}"
            f"{theirs['digits']:>10.0%}{ours['digits']:>10.0%}"
            f"{theirs['log_probability']:>14.2f}{ours['log_probability']:>10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
