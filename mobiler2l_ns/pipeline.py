"""nerfstudio's pipeline, with fine-tuning on the photos, and distributed on CPUs too.

It also tells the datamanager what it must know: the network's upscale factor and outputs, and which patches were hard.
"""

import json
from dataclasses import dataclass, field
from typing import List, Literal, Optional, Type

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import comms, profiler
from torch import nn
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel as DDP

from mobiler2l_ns.compat import check_command
from mobiler2l_ns.datamanager import merge_statistics
from mobiler2l_ns.training.distributed import broadcast_from_main, gather
from mobiler2l_ns.training.finetuning import FineTuning, FineTuningConfig
from mobiler2l_ns.training.metrics import patch_errors, psnr
from mobiler2l_ns.viewer.panels import ExportPanel
from mobiler2l_ns.viewer.start_view import StartView
from mobiler2l_ns.viewer.teacher_view import TeacherView


@dataclass
class DistillationPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the student."""

    _target: Type = field(default_factory=lambda: DistillationPipeline)
    finetuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    """Fine-tuning on the photos after distillation."""


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
        check_command(config.model.outputs)
        config.datamanager.upscale = config.model.network.upscale
        config.datamanager.channels = len(config.model.outputs)
        config.datamanager.points = config.model.points
        config.datamanager.validation_photos = config.finetuning.validation_photos if config.finetuning.steps else 0
        # As if alone: VanillaPipeline can distribute CUDA models only.
        super().__init__(config, device, test_mode, world_size=1, local_rank=local_rank, grad_scaler=grad_scaler)
        self.world_size = world_size
        self.finetuning: Optional[FineTuning] = None
        self.export = ExportPanel(self.model.copy_to_cpu)
        self.start_view = StartView(self.model)
        if config.datamanager.teacher is not None:
            self.comparison = TeacherView(config.datamanager.teacher, lambda: self.datamanager.teacher)
            self.model.viewer_outputs = self.comparison.forward  # the module itself would become one of the model's
        if world_size > 1:
            self._model = distribute(self._model, device)

    @profiler.time_function
    def get_train_loss_dict(self, step: int):
        """nerfstudio's lines, after which the datamanager hears how well each patch was rendered."""
        ray_bundle, batch = self.datamanager.next_train(step)
        outputs = self._model(ray_bundle)
        metrics = {**self.model.get_metrics_dict(outputs, batch), **self.datamanager.progress()}
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        if self.config.datamanager.hard_share > 0:
            self.datamanager.add_hard_patches(patch_errors(outputs["rgb"].detach(), batch["image"]))
        return outputs, losses, metrics

    def get_eval_loss_dict(self, step: int):
        """nerfstudio's, in time that is not the training's."""
        with self.datamanager.excluded():
            return super().get_eval_loss_dict(step)

    def get_eval_image_metrics_and_images(self, step: int):
        """nerfstudio's, in time that is not the training's."""
        with self.datamanager.excluded():
            return super().get_eval_image_metrics_and_images(step)

    def get_average_eval_image_metrics(self, *args, **kwargs):
        """nerfstudio's, in time that is not the training's, and without the teacher."""
        with self.datamanager.excluded():
            return super().get_average_eval_image_metrics(*args, **kwargs)

    def validation_psnr(self) -> float:
        """PSNR in dB on the photos that are held out of the whole run."""
        render = self.model.get_outputs_for_camera
        with self.datamanager.excluded():
            scores = [psnr(render(camera)["rgb"].clamp(0, 1), photo) for camera, photo in self.datamanager.validation]
        return sum(scores) / len(scores)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """nerfstudio's, fine-tuning, and the run's record."""
        callbacks = []
        if self.datamanager.validation is not None:
            self.finetuning = FineTuning(
                self.config.finetuning,
                attributes.trainer,
                lambda: broadcast_from_main(self.validation_psnr),
                self.datamanager.set_photo_share,
            )
            callbacks = self.finetuning.callbacks()

        def save_record(step: int) -> None:
            pools = gather(self.datamanager.statistics())
            if comms.is_main_process():
                record = {"steps": step + 1, "processes": len(pools), "pool": merge_statistics(pools)}
                if self.finetuning is not None:
                    record["finetuning"] = self.finetuning.statistics()
                (attributes.trainer.base_dir / "distillation.json").write_text(json.dumps(record, indent=2))

        # Before the model's own callbacks: the export reports what is recorded here.
        record = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], save_record)
        return [*callbacks, record, *super().get_training_callbacks(attributes)]


def distribute(model: Model, device: str) -> DDP:
    """The model with rank 0's weights and buffers, and with gradients that are means over all processes.

    On GPUs batch norm sees the whole batch; on CPUs, for which torch has none that does, each process's own part.
    """
    model.device_indicator_param.requires_grad_(False)  # nerfstudio's, never used: DDP would wait for its gradient
    if torch.device(device).type != "cuda":
        return DDP(model)
    return DDP(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[torch.device(device)])
