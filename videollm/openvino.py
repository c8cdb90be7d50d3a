"""A convolutional vision backbone as an OpenVINO graph, for the CPU.

PyTorch's eager convolutions lay out their weights anew in every call, and padding and ReLU6 are passes of
their own; OpenVINO lays weights out once and fuses the rest: an image takes less than half of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST_FRAMES = 4096  # of a call, a bound that torch.export asks for


class OpenVINOBackbone(nn.Module):
    """What `backbone` computes, in float32, without gradients. Raises ImportError without OpenVINO."""

    def __init__(self, backbone: nn.Module, size: int) -> None:
        super().__init__()
        import openvino

        self.backbone = backbone  # its weights stay the module's
        frames = torch.export.Dim("frames", max=MOST_FRAMES)
        with torch.no_grad():
            program = torch.export.export(
                backbone, (torch.zeros(2, 3, size, size),), dynamic_shapes=({0: frames},)
            )
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # by itself it would take bfloat16 where there is some
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", settings)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pixels [frames, 3, size, size] to a feature map [frames, dim, rows, columns]."""
        return torch.from_numpy(self.compiled(pixel_values.numpy())[0])
