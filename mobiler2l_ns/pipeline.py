"""nerfstudio's pipeline; it tells the datamanager the network's upscale factor, and distributes on CPUs too."""

from dataclasses import dataclass, field
from typing import Literal, Optional, Type

import torch
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import nn
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel as DDP


@dataclass
class DistillationPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the student."""

    _target: Type = field(default_factory=lambda: DistillationPipeline)


class DistillationPipeline(VanillaPipeline):
    """VanillaPipeline of the student."""

    def __init__(
        self,
        config: DistillationPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[GradScaler] = None,
    ):
        config.datamanager.upscale = config.model.network.upscale
        # As if alone: VanillaPipeline can distribute CUDA models only.
        super().__init__(config, device, test_mode, world_size=1, local_rank=local_rank, grad_scaler=grad_scaler)
        self.world_size = world_size
        if world_size > 1:
            self._model = distribute(self._model, device)


def distribute(model: Model, device: str) -> DDP:
    """The model with rank 0's weights and buffers, and with gradients that are means over all processes.

    On GPUs batch norm sees the whole batch; on CPUs, for which torch has none that does, each process's own part.
    """
    model.device_indicator_param.requires_grad_(False)  # nerfstudio's, never used: DDP would wait for its gradient
    if torch.device(device).type != "cuda":
        return DDP(model)
    return DDP(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[torch.device(device)])
