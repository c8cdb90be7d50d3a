"""What training leaves: an adapter checkpoint with connector and routers, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from accelerate import PartialState
from peft import PeftModel
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from videollm.modeling import VideoLLM


def export(model: VideoLLM, adapted: PeftModel, folder: Path) -> None:
    """Write the adapter checkpoint that `VideoLLM.from_pretrained` reads; the model card stays as it is.

    Every process takes part, as each may hold a share of the weights; one of them writes.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(adapted, options=options))
    if not PartialState().is_main_process:
        return
    adapted.peft_config["default"].base_model_name_or_path = model.config.language_model_name
    card = folder / "README.md"
    written = card.read_text() if card.is_file() else None
    half = {name: weight.half() for name, weight in weights.items() if weight.is_floating_point()}
    adapted.save_pretrained(str(folder), state_dict=half, save_embedding_layers=False)
    card.unlink()  # PEFT's template
    if written is not None:
        card.write_text(written)
    model.config.save_pretrained(folder)
