"""nerfstudio's pipeline, with fine-tuning on the photos; it also tells the datamanager what it must know."""

import json
from dataclasses import dataclass, field
from typing import List, Optional, Type

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import comms

from mobiler2l_ns.finetuning import FineTuning, FineTuningConfig
from mobiler2l_ns.metrics import psnr


@dataclass
class DistillationPipelineConfig(VanillaPipelineConfig):
    """Pipeline of the student."""

    _target: Type = field(default_factory=lambda: DistillationPipeline)
    finetuning: FineTuningConfig = field(default_factory=FineTuningConfig)
    """Fine-tuning on the photos after distillation."""


class DistillationPipeline(VanillaPipeline):
    """VanillaPipeline of the student."""

    def __init__(self, config: DistillationPipelineConfig, *args, **kwargs):
        config.datamanager.upscale = config.model.network.upscale
        config.datamanager.validation_photos = config.finetuning.validation_photos if config.finetuning.steps else 0
        super().__init__(config, *args, **kwargs)
        self.finetuning: Optional[FineTuning] = None

    def validation_psnr(self) -> float:
        """PSNR in dB on the photos that are held out of the whole run."""
        photos, render = self.datamanager.validation, self.model.get_outputs_for_camera
        scores = [
            psnr(render(photos.cameras[i : i + 1])["rgb"].clamp(0, 1), photos.images[i].float() / 255)
            for i in range(len(photos))
        ]
        return sum(scores) / len(scores)

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> List[TrainingCallback]:
        """nerfstudio's, fine-tuning, and the run's record."""
        trainer, callbacks = attributes.trainer, []
        if self.datamanager.validation is not None:
            self.finetuning = FineTuning(
                self.config.finetuning, trainer, self.validation_psnr, self.datamanager.set_photo_share
            )
            callbacks = self.finetuning.callbacks()

        def save_record(step: int) -> None:
            if comms.is_main_process():
                record = {"steps": step + 1, "pool": self.datamanager.statistics()}
                if self.finetuning is not None:
                    record["finetuning"] = self.finetuning.statistics()
                (trainer.base_dir / "distillation.json").write_text(json.dumps(record, indent=2))

        record = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], save_record)
        return [*callbacks, record, *super().get_training_callbacks(attributes)]
