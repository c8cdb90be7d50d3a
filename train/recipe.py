"""What `videollm train` is told: a model, prepared folders, and stages, as a YAML file."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from train.data.annotations import AnnotatedVideo
from train.sequences import LossWeights
from videollm.configuration import SYSTEM_PROMPT, DepthConfig, Layers
from videollm.routers import router_class

Rate = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
# How to get there, and nothing of what is learned.
ON_THE_WAY = (
    "accumulate",
    "checkpointing",
    "precision",
    "save_every",
    "log_every",
    "evaluate_every",
    "samples",
)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a recipe; a key that it doesn't know is an error that names it."""


class Depth(Section, frozen=True):
    """Mixture-of-depths: see `videollm.configuration.DepthConfig`."""

    router: str = "top_k"
    layers: Layers = "interleaved"
    ratio: float = 0.2
    gate: Literal["score", "tanh", "one"] = "tanh"
    threshold: float = 0.5
    load_weight: float = 0.01

    def __post_init__(self) -> None:
        router_class(self.config())

    def config(self) -> DepthConfig:
        return DepthConfig(**msgspec.structs.asdict(self))


class NewModel(Section, frozen=True):
    """A language model and a vision tower, joined by a new Linear-GELU-Linear connector. `dtype` is that of
    the weights that don't learn; adapters have `rank` and `alpha`."""

    language_model: str
    vision: str
    depth: Depth = Depth()
    rank: Count = 16
    alpha: Count = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    system_prompt: str = SYSTEM_PROMPT
    fps: Annotated[float, msgspec.Meta(gt=0)] = 2.0


class Part(Section, frozen=True):
    """A folder that `videollm prepare` wrote, or of its videos those of one split, and of these a share: each
    has its place between 0 and 1 by its name, and those from the first on and before the second are meant.
    What is said is the annotation's, or that of `dialogues`, a file that `videollm dialogues` wrote."""

    folder: Path
    split: str | None = None
    share: tuple[float, float] = (0.0, 1.0)
    dialogues: Path | None = None

    def holds(self, video: AnnotatedVideo) -> bool:
        place = zlib.crc32(video.video.encode()) / 2**32
        return self.split in (None, video.split) and self.share[0] <= place < self.share[1]


class Data(Section, frozen=True):
    """What is learned from, and what is held out; streams are cut into parts of so many seconds, and in each
    up to so many questions are asked at random times."""

    train: Annotated[list[Part], msgspec.Meta(min_length=1)]
    held_out: list[Part] = []
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    questions: Annotated[int, msgspec.Meta(ge=0)] = 0


class Rates(Section, frozen=True):
    """Top learning rates of the parts that learn; 0 leaves a part as it is."""

    adapter: Rate = 2e-4
    connector: Rate = 2e-4
    router: Rate = 2e-4

    def by_part(self) -> dict[str, float]:
        return msgspec.structs.asdict(self)


class StageRecipe(Section, frozen=True):
    """So many passes over the data, so many sequences a step; the rates rise over the share `warm_up` of the
    steps, and fall as a cosine."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[\w-]+$")]
    epochs: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    sequences: Count = 8
    rates: Rates = Rates()
    warm_up: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05

    def steps(self, sequences: int) -> int:
        """How many it takes to see so many sequences."""
        return max(1, math.ceil(self.epochs * sequences / self.sequences))


class Recipe(Section, frozen=True):
    """All of it. `model` is a new one, or an adapter checkpoint's name, such as pocket, to go on from."""

    out: Path
    model: str | NewModel
    data: Data
    stages: Annotated[list[StageRecipe], msgspec.Meta(min_length=1)]
    loss: LossWeights = LossWeights()
    seed: int = 0
    accumulate: Count = 1
    checkpointing: bool = False
    precision: Literal["auto", "float32", "bf16"] = "auto"
    save_every: Count = 100
    log_every: Count = 10
    evaluate_every: Count = 200
    samples: Annotated[int, msgspec.Meta(ge=0)] = 3

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len({*names}) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")

    def learned(self) -> bytes:
        """All that bears on what is learned, to be compared."""
        fields = msgspec.to_builtins(self, enc_hook=str)
        return msgspec.json.encode({name: fields[name] for name in fields if name not in ON_THE_WAY})


def read_recipe(path: Path) -> Recipe:
    """Raises ValueError, which names the key, for one that isn't right, and OSError where there is none."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Recipe, dec_hook=lambda kind, value: kind(value))
    except msgspec.DecodeError as error:  # which a ValidationError is, too
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
