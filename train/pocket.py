"""Makes the default model from nothing: `python -m train.pocket --data ../shared/data --out assets/pocket`.

Stages, each kept under `--work` so that a run that was stopped goes on where it was:
  material    features of photographs and composed clips, by the frozen vision tower; the vocabulary's names,
              by regression on them; what classifiers say of pictures that they have not seen
              (`train.material`)
  naming      connector, routers and adapter on slide shows: a new thing is named, the same thing is not again
  clips       the same on composed clips, with silence, leaving things, and questions, and on glimpses: single
              frames of very many scenes (`train.lessons`), under changing names (`train.renaming`)
  export      a PEFT adapter with connector and routers, half precision, and the configuration
"""

from __future__ import annotations

from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from accelerate import PartialState
from peft import PeftModel
from rich.console import Console
from torch import Tensor

from train.classifier import POWER
from train.export import export
from train.lessons import Lessons
from train.material import Material, prepare, spoken_names
from train.objective import adapt
from train.options import Albums, Clips, ClipSteps, Data, NamingSteps, Work
from train.trainer import DrawnStage, Settings, Training
from videollm import bases
from videollm.bases import CheckpointError
from videollm.checkpoints import build, load_adapter
from videollm.configuration import ConnectorConfig, DepthConfig, VideoLLMConfig
from videollm.connector import ClassNameConnector
from videollm.modeling import VideoLLM

SYSTEM_PROMPT = "Watch and say what happens."
CUT_MARKER = "\n"
THRESHOLD = 0.5  # silent where that is likelier
PREPARATION = timedelta(hours=12)  # how long other processes wait for the one that prepares the material
CONTEXT_TOKENS = 2048  # a session may go somewhat beyond the longest sequence, of about 1400

console = Console()


def new_model(material: Material, depth: DepthConfig) -> VideoLLM:
    """The default model before training: its connector speaks the classes' names from the first moment."""
    model = build(
        VideoLLMConfig(
            language_model_name=bases.SMOLLM2,
            vision_name=bases.EFFICIENTNET_LITE0,
            connector_config=ConnectorConfig(
                kind="class_names",
                groups=[*map(len, material.names)],
                powers=[1.0, POWER],  # ImageNet's was fitted on features as they are
                labels=[*chain(*material.names)],
            ),
            depth_config=depth,
            threshold=THRESHOLD,
            cut_marker=CUT_MARKER,
            system_prompt=SYSTEM_PROMPT,
            context_tokens=CONTEXT_TOKENS,
        )
    )
    connector, tokenizer = cast(ClassNameConnector, model.connector), model.tokenizer
    assert tokenizer is not None
    spoken = [f" {name}" for name in chain(*material.names)]
    tokens = tokenizer(spoken, add_special_tokens=False)["input_ids"]
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        connector.names.weight.copy_(torch.stack([embeddings[ids].mean(0) for ids in tokens], dim=1))
        connector.classifier.weight.copy_(torch.cat([layer.weight for layer in material.classifiers]))
        connector.classifier.bias.copy_(torch.cat([layer.bias for layer in material.classifiers]))
    return model


def earlier_model(name: str) -> PeftModel:
    """The adapter checkpoint to go on from. CheckpointError where it can't be read or has other names."""
    earlier = load_adapter(name)
    if cast(VideoLLM, earlier.get_base_model()).config.connector_config.labels != [*chain(*spoken_names())]:
        raise CheckpointError(f"{name} has other names than train/vocabulary.txt; begin without --start")
    return earlier


def learned_weights(adapted: PeftModel) -> dict[str, Tensor]:
    """What a model learned, but for its classifier, by its names in the state."""
    return {
        name: weight.detach()
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and ".classifier." not in name
    }


def main(
    data: Data,
    out: Annotated[Path, typer.Option(help="where the model goes")] = Path("assets/pocket"),
    work: Work = Path("runs/pocket"),
    clips: Clips = 1300,
    albums: Albums = 600,
    naming_steps: NamingSteps = 200,
    clip_steps: ClipSteps = 800,
    seed: Annotated[
        int, typer.Option(help="of crops, lessons and weights; clips are drawn by their numbers")
    ] = 0,
    accumulate: Annotated[
        int, typer.Option(min=1, help="rows that a step is taken in, one after the other")
    ] = 1,
    start: Annotated[
        str | None, typer.Option(help="go on from this adapter checkpoint, but for its classifier")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option(help="compute activations again in the backward pass, to save memory")
    ] = False,
) -> None:
    """Make the default model from pictures and clips."""
    # A wrong one fails before the long preparation; its weights alone are kept meanwhile.
    earlier = {} if start is None else learned_weights(earlier_model(start))
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PREPARATION)
    with state.main_process_first():
        material = prepare(data, work, clips, albums, seed)
    torch.manual_seed(seed)  # every process begins with the same weights, whichever prepared the material
    settings = Settings(work, seed, accumulate, checkpointing)
    adapted = adapt(new_model(material, DepthConfig()))
    adapted.load_state_dict(earlier, strict=False)
    training = Training(adapted, settings, logits=True)
    lessons = Lessons.of(material, training.prompt)
    training.run(DrawnStage("naming", naming_steps, lessons.shows))
    training.run(DrawnStage("clips", clip_steps, lessons.clips))
    export(training.model, training.adapted, out)
    if PartialState().is_main_process:
        console.print(f"the model is in {out}")


if __name__ == "__main__":
    typer.run(main)
