"""The arithmetic of training: bf16 where the device computes in it."""

import torch


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 arithmetic of its own; emulating it would be slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
