"""nerfstudio's pipeline, whose datamanager learns the network's upscale factor and which windows were hard."""

from dataclasses import dataclass, field
from typing import Type

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import profiler


@dataclass
class DistillationPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the student."""

    _target: Type = field(default_factory=lambda: DistillationPipeline)


class DistillationPipeline(VanillaPipeline):
    """VanillaPipeline of the student."""

    def __init__(self, config: DistillationPipelineConfig, *args, **kwargs):
        config.datamanager.upscale = config.model.network.upscale
        super().__init__(config, *args, **kwargs)

    @profiler.time_function
    def get_train_loss_dict(self, step: int):
        """nerfstudio's lines, after which the datamanager hears how well each window was rendered."""
        ray_bundle, batch = self.datamanager.next_train(step)
        outputs = self._model(ray_bundle)
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        if self.config.datamanager.hard_share > 0:
            errors = (outputs["rgb"].detach() - batch["image"]).square().mean(dim=(1, 2, 3))
            self.datamanager.learn_from(errors)
        return outputs, losses, metrics
