"""What training makes small, and what of a model learns."""

from __future__ import annotations

from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from train.sequences import IGNORED
from videollm.modeling import VideoLLM

ADAPTED = r"model\.layers.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
# The parts that learn, each at its own rate, and what tells their parameters' names.
PARTS = {"adapter": "lora_", "connector": "connector", "router": "router"}


def adapt(model: VideoLLM, rank: int = 16, alpha: int = 32) -> PeftModel:
    """Low-rank adapters on every linear layer of the decoder, connector and routers trained whole."""
    modules = ["connector", "router"]
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=ADAPTED, modules_to_save=modules)
    )


def trained_connector(model: VideoLLM) -> nn.Module:
    """The copy of the connector that PEFT trains in its place."""
    return cast(Any, model.connector).modules_to_save["default"]


class Objective(nn.Module):
    """A module, so that all that learns runs in its forward pass, where `accelerate` gathers what other
    processes hold and sets the precision.

    Pictures are the vision tower's features, or with `logits` what a class-name connector's classifier says
    of them: that one is not trained then.
    """

    def __init__(self, adapted: PeftModel, logits: bool = False) -> None:
        super().__init__()
        self.adapted = adapted
        self.logits = logits
        if logits:
            cast(Any, trained_connector(self.model)).classifier.requires_grad_(False)

    @property
    def model(self) -> VideoLLM:
        return cast(VideoLLM, self.adapted.get_base_model())

    def forward(
        self,
        ids: Tensor,
        targets: Tensor,
        weights: Tensor,
        lengths: list[int],
        pictures: Tensor,
        total: float,
    ) -> tuple[Tensor, Tensor]:
        """Of a row (`train.sequences.Row`): the loss, which is the sum over its targets divided by `total`,
        a scalar; and what is said where something is learned, [learned]."""
        connector: Any = trained_connector(self.model)
        frames = connector.speak(pictures) if self.logits else connector(pictures)  # [frames, tokens, dim]
        learned = targets != IGNORED  # [1, total]
        out = self.adapted(
            input_ids=ids, frame_embeds=frames, logits_to_keep=learned, sequence_lengths=lengths
        )
        each = F.cross_entropy(out.logits.float(), targets[learned], reduction="none")
        loss = (each * weights[learned]).sum() / total
        return loss if out.aux_loss is None else loss + out.aux_loss, out.logits.argmax(-1)
