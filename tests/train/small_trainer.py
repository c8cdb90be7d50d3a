"""A small random model and lessons of noise for it.

As a program, `small_trainer.py ROUTER OUT`, it is trained by as many processes as are launched.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from accelerate.state import AcceleratorState
from conftest import byte_tokenizer, text_config, vision_config
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from train.narrating import narrate
from train.objective import adapt
from train.sequences import Sequence
from train.trainer import DrawnStage, HeldOut, Settings, Training
from videollm import VideoLLM, VideoLLMConfig
from videollm.configuration import ConnectorConfig, DepthConfig
from videollm.routers import ScoringRouter

GROUPS = [5, 4]


def small_training(work: Path, router: str = "top_k", **settings: object) -> Training:
    """In full precision, to be compared to the last digits."""
    torch.manual_seed(0)
    config = VideoLLMConfig(
        text_config=text_config(tie_word_embeddings=True),
        vision_config=vision_config(),
        connector_config=ConnectorConfig(kind="class_names", groups=GROUPS),
        depth_config=DepthConfig(router=router, ratio=0.3),
        system_prompt="Watch.",
    )
    model = VideoLLM(config)
    model.tokenizer = byte_tokenizer()
    for module in model.modules():
        if isinstance(module, ScoringRouter):
            torch.nn.init.normal_(module.score.weight)
    return Training(adapt(model), Settings(work, precision="no", log_every=1, **settings), logits=True)


def noise(rng: np.random.Generator, count: int = 4, frame: int = 300) -> list[Sequence]:
    """Sequences of one to six frames, learned from behind each frame and at some words."""
    sequences = []
    for _ in range(count):
        sequence = Sequence()
        sequence.read(rng.integers(0, 256, 8).tolist())
        for _ in range(rng.integers(1, 7)):
            sequence.read([frame] * 10)
            sequence.pictures.append(rng.standard_normal((10, sum(GROUPS)), np.float32))
            sequence.expect(int(rng.integers(256)), weight=2.0)
            for token in rng.integers(0, 256, rng.integers(1, 9)).tolist():
                sequence.say(token)
        sequences.append(sequence)
    return sequences


def losses(of: Training, stage: DrawnStage) -> list[float]:
    """Those of the stage's steps."""
    return [logged["loss"] for logged in of.run(stage) if "loss" in logged]


def looks(of: Training, stage: DrawnStage) -> tuple[list[float], list[str]]:
    """The losses of its steps and, once each, held-out ones; and what was said then."""
    rng = np.random.default_rng(7)
    features = torch.from_numpy(rng.standard_normal((2, 10, 32), np.float32))

    def sample() -> str:
        return repr(narrate(of.model, of.prompt, features, 2.0))

    logged = of.run(stage, HeldOut(noise(rng, count=3), 1, sample))
    found = [entry[name] for name in ("loss", "eval_loss") for entry in logged if name in entry]
    return found, [entry["sample"] for entry in logged if "sample" in entry]


def weights(of: Training) -> dict[str, Tensor]:
    """What is trained, whole, wherever its parts lie."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    whole = get_model_state_dict(of.objective, options=options)  # on one process alone
    learned = [name for name, weight in of.objective.named_parameters() if weight.requires_grad]
    return {name: whole[name].clone() for name in learned if whole}


def main(router: str, out: Path) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate shards on accelerators alone; all behind this door works on processes of a CPU, too.
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
        AcceleratorState._reset_state = staticmethod(lambda reset_partial_state=False: None)
    training = small_training(out.parent, router)
    found = [looks(training, DrawnStage(name, 2, noise)) for name in ("naming", "clips")]
    learned = weights(training)
    assert PartialState().num_processes == 2
    if PartialState().is_main_process:
        sharded = isinstance(training.objective, FSDPModule)
        torch.save({"looks": found, "weights": learned, "sharded": sharded}, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
