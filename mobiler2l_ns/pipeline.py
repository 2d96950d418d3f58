"""nerfstudio's pipeline of the student: it connects datamanager, model, fine-tuning, viewer and export.

It also runs distributed on CPUs, for which VanillaPipeline is not made.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Type, cast

import torch
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig, module_wrapper
from nerfstudio.utils import comms, profiler
from nerfstudio.utils.rich_utils import CONSOLE
from torch import nn
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel as DDP

from mobiler2l_ns.compat import check_command
from mobiler2l_ns.data.photos import PhotoSet
from mobiler2l_ns.datamanager import DistillationDataManager, DistillationDataManagerConfig
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.export.command import ExportMobileR2L
from mobiler2l_ns.export.onnx_files import check_size
from mobiler2l_ns.export.report import RECORD
from mobiler2l_ns.files import write_json
from mobiler2l_ns.model import MobileR2LModel, MobileR2LModelConfig
from mobiler2l_ns.training.distributed import broadcast_from_main, gather
from mobiler2l_ns.training.finetuning import FineTuning, FineTuningConfig
from mobiler2l_ns.training.losses import ignore_unknown
from mobiler2l_ns.training.metrics import patch_errors, psnr
from mobiler2l_ns.viewer.panels import ExportPanel, StreamPanel
from mobiler2l_ns.viewer.start_view import StartView
from mobiler2l_ns.viewer.teacher_view import TeacherView


@dataclass
class DistillationPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the student."""

    _target: Type = field(default_factory=lambda: DistillationPipeline)
    datamanager: DistillationDataManagerConfig = field(default_factory=DistillationDataManagerConfig)
    """Data of the student."""
    model: MobileR2LModelConfig = field(default_factory=MobileR2LModelConfig)
    """The student."""
    finetuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    """Fine-tuning on the photos after distillation."""

    def go_on_from(self, state: Dict[str, Any]) -> None:
        """Takes over what an interrupted run measured: measured again, it would differ a little.

        Args:
            state: What ``DistillationPipeline.run_state`` returned.
        """
        if self.datamanager.near_far is None:
            near, far = state["data"]["near_far"]
            self.datamanager.near_far = (near, far)


class DistillationPipeline(VanillaPipeline):
    """VanillaPipeline of the student."""

    config: DistillationPipelineConfig
    datamanager: DistillationDataManager

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
        # The surface code learns from the teacher's depth, whatever the student's outputs are.
        config.datamanager.channels = 5 if config.model.surface_octaves > 0 else len(config.model.outputs)
        config.datamanager.points = config.model.points
        config.datamanager.validation_photos = config.finetuning.validation_photos if config.finetuning.steps else 0
        # As if alone: VanillaPipeline can distribute CUDA models only.
        super().__init__(config, device, test_mode, world_size=1, local_rank=local_rank, grad_scaler=grad_scaler)
        self.world_size = world_size
        self.finetuning: Optional[FineTuning] = None
        self.saved_finetuning: Dict[str, Any] = {}
        self.export = ExportPanel(self.model.copy_to_cpu, export_student)
        self.start_view = StartView(self.model)
        if self.datamanager.pool is not None:  # only ns-train loads the teacher
            change = functools.partial(change_share, self.datamanager)
            self.stream = StreamPanel(changeable_shares(self.datamanager), change)
        teacher = config.datamanager.teacher.load_config
        if teacher is not None:
            self.comparison = TeacherView(teacher, lambda: self.datamanager.teacher)
            self.model.viewer_outputs = self.comparison.forward  # the module itself would become one of the model's
        if world_size > 1:
            self._model = cast(Model, distribute(self._model, device))

    @property
    def model(self) -> MobileR2LModel:
        """The student, without the wrapper of a distributed run."""
        return cast(MobileR2LModel, module_wrapper(self._model))

    def run_state(self) -> Dict[str, Any]:
        """What a checkpoint keeps beside weights and optimizers."""
        finetuning = self.finetuning.state() if self.finetuning is not None else {}
        return {"data": self.datamanager.run_state(), "finetuning": finetuning}

    def resume(self, state: Dict[str, Any]) -> None:
        """Goes on from what a checkpoint has kept; fine-tuning, which the callbacks build, takes its part later."""
        self.datamanager.resume(state["data"])
        self.saved_finetuning = state["finetuning"]

    @profiler.time_function
    def get_train_loss_dict(self, step: int):
        """nerfstudio's, and the datamanager learns the error of each patch."""
        ray_bundle, batch = self.datamanager.next_train(step)
        outputs = self._model(ray_bundle)
        outputs, batch = ignore_unknown(outputs, batch)
        metrics = {**self.model.get_metrics_dict(outputs, batch), **self.datamanager.progress()}
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        if self.config.datamanager.hard_share > 0:
            self.datamanager.mixer.add_hard_patches(patch_errors(outputs["rgb"].detach(), batch["image"]))
        return outputs, losses, metrics

    def get_eval_loss_dict(self, step: int):
        """nerfstudio's, outside the training time and without the gradients, for which there may be no memory."""
        with self.datamanager.budget.exclude(), torch.no_grad():
            return super().get_eval_loss_dict(step)

    def get_eval_image_metrics_and_images(self, step: int):
        """nerfstudio's, outside the training time."""
        with self.datamanager.budget.exclude():
            return super().get_eval_image_metrics_and_images(step)

    def get_average_eval_image_metrics(self, *args, **kwargs):
        """nerfstudio's, outside the training time and without the teacher."""
        with self.datamanager.budget.exclude():
            return super().get_average_eval_image_metrics(*args, **kwargs)

    def validation_psnr(self) -> float:
        """PSNR in dB on the photos that are held out of the whole run."""
        assert self.datamanager.validation is not None
        return self.mean_psnr(self.datamanager.validation)

    def mean_psnr(self, photos: PhotoSet) -> float:
        """Mean PSNR in dB of the student's views of photos, outside the training time."""
        render = self.model.get_outputs_for_camera
        with self.datamanager.budget.exclude():
            scores = [psnr(render(camera)["rgb"].clamp(0, 1), photo) for camera, photo in photos]
        return sum(scores) / len(scores)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """nerfstudio's, fine-tuning, the viewer's statistics, the run's record, and the export."""
        assert attributes.trainer is not None
        callbacks, run_folder = [], attributes.trainer.base_dir
        if self.datamanager.validation is not None:
            self.finetuning = FineTuning(
                self.config.finetuning,
                attributes.trainer,
                lambda: broadcast_from_main(self.validation_psnr),
                self.datamanager.set_photo_share,
            )
            self.finetuning.resume(self.saved_finetuning)
            callbacks = self.finetuning.callbacks()
        after_step, after_training = (
            TrainingCallbackLocation.AFTER_TRAIN_ITERATION,
            TrainingCallbackLocation.AFTER_TRAIN,
        )
        return [
            *callbacks,
            TrainingCallback([after_step], self._show_statistics, update_every_num_iters=50),
            *super().get_training_callbacks(attributes),
            # The export's report contains the record.
            TrainingCallback([after_training], lambda step: self._save_record(run_folder, step)),
            TrainingCallback([after_training], lambda step: self._export(run_folder)),
        ]

    def _show_statistics(self, step: int) -> None:
        self.stream.show({**self.datamanager.statistics(), **self.datamanager.progress()})

    def _save_record(self, run_folder: Path, step: int) -> None:
        pools = gather(self.datamanager.statistics())
        if comms.is_main_process():
            record = {"steps": step + 1, "processes": len(pools), "pool": merge_statistics(pools)}
            if self.finetuning is not None:
                record["finetuning"] = self.finetuning.statistics()
            write_json(run_folder / RECORD, record)

    def _export(self, run_folder: Path) -> None:
        """Exports the trained student; a training that is done does not fail because that is not possible."""
        if self.config.model.export_when_done and comms.is_main_process():
            try:
                check_size(self.model)
                export = ExportMobileR2L(run_folder, run_folder / "export", num_views=0, overwrite=True)
                export.export()
            except UserError as error:
                CONSOLE.print(f"No export: {error}")


def export_student(run_folder: Path, output_dir: Path, student: nn.Module, step: int) -> None:
    """Exports a student that is at hand, for the viewer's button."""
    ExportMobileR2L(run_folder, output_dir, num_views=0, overwrite=True).export((cast(MobileR2LModel, student), step))


def changeable_shares(datamanager: DistillationDataManager) -> Dict[str, float]:
    """The shares that the viewer's sliders change; none with several processes, whose batches must agree."""
    if comms.get_world_size() > 1:
        return {}
    budget = datamanager.budget
    shares = {"filling_share": budget.filling_share, "teacher_share": budget.teacher_share}
    return {**shares, "photo_share": datamanager.photo_share} if datamanager.photos is not None else shares


def change_share(datamanager: DistillationDataManager, name: str, share: float) -> None:
    """Changes one of ``changeable_shares``."""
    if name == "photo_share":
        datamanager.set_photo_share(share)
        datamanager.budget.begin_phase()
    else:
        datamanager.budget.set_share(name, share)


def merge_statistics(statistics: List[Dict[str, float]]) -> Dict[str, float]:
    """Statistics of all processes as one: sizes and seconds are summed, the rest is the main process's."""
    summed = ("capacity", "views", "bytes", "teacher_seconds")
    return {**statistics[0], **{name: round(sum(part[name] for part in statistics), 2) for name in summed}}


def distribute(model: Model, device: str) -> DDP:
    """The model with rank 0's weights and buffers, and with gradients that are means over all processes.

    On GPUs batch norm sees the whole batch; on CPUs, for which torch has none that does, each process's own part.
    """
    model.device_indicator_param.requires_grad_(False)  # nerfstudio's, never used: DDP would wait for its gradient
    if torch.device(device).type != "cuda":
        return DDP(model)
    return DDP(nn.SyncBatchNorm.convert_sync_batchnorm(model), device_ids=[torch.device(device)])
