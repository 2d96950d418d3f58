"""nerfstudio's pipeline; all it adds is that the datamanager learns the network's upscale factor."""

from dataclasses import dataclass, field
from typing import Type

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig


@dataclass
class DistillationPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the student."""

    _target: Type = field(default_factory=lambda: DistillationPipeline)


class DistillationPipeline(VanillaPipeline):
    """VanillaPipeline of the student."""

    def __init__(self, config: DistillationPipelineConfig, *args, **kwargs):
        config.datamanager.upscale = config.model.network.upscale
        super().__init__(config, *args, **kwargs)
