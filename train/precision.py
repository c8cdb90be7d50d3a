"""In which precision to train on a device."""

from __future__ import annotations

import torch


def mixed_precision() -> str:
    """What `accelerate` calls it: bfloat16 where the device multiplies it in hardware, which on the CPU takes
    two thirds of float32's time, and none elsewhere."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if has_bfloat16 else "no"
