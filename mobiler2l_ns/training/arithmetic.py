"""The arithmetic of training: bf16 where the device computes in it, and fp32 where less is not enough."""

from contextlib import contextmanager
from typing import Iterator

import torch


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device has bf16 arithmetic of its own; emulating it would be slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, fp32 convolutions are not computed in TF32, which has ten bits like fp16; torch lets cuDNN do that."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, convolutions compute in fp32: outside of any autocast, and not in TF32."""
    with without_tf32(), torch.autocast(device.type, enabled=False):
        yield
