"""One process of a distributed run on CPUs: test_distributed.py starts two of these with torchrun.

It trains the student whose pickled config lies in the folder on the command line, and leaves what it saw there.
"""

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from builders import StubTeacher

from mobiler2l_ns.data import time_budget
from mobiler2l_ns.export import command as export
from mobiler2l_ns.teacher import frozen
from mobiler2l_ns.trainer import DistillationTrainer


class RecordingTeacher(StubTeacher):
    """Remembers where it was rendered from."""

    def __init__(self):
        super().__init__()
        self.poses = []

    def render(self, camera):
        self.poses.append(camera.camera_to_worlds[0].clone())
        return super().render(camera)


class RecordingTrainer(DistillationTrainer):
    """Remembers batches, losses and gradients of all steps, and the weights before and after them."""

    def setup(self, *arguments):
        super().setup(*arguments)
        self.batches, self.losses, self.gradients, self.views = [], [], [], []
        self.first_weights = self.weights()
        next_train = self.pipeline.datamanager.next_train

        def remember(step):
            self.batches.append(next_train(step))
            return self.batches[-1]

        self.pipeline.datamanager.next_train = remember

    def weights(self) -> dict:
        return {name: value.clone() for name, value in self.pipeline.model.state_dict().items()}

    def train_iteration(self, step):
        found = super().train_iteration(step)
        self.losses.append(float(found[0].detach()))
        named = self.pipeline.model.network.named_parameters()
        self.gradients.append({name: parameter.grad.clone() for name, parameter in named})
        self.views.append(self.pipeline.datamanager.pool.num_added)
        return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    config = pickle.loads((folder / "config.pickle").read_bytes())
    config.output_dir = folder / f"outputs-{rank}"  # to see who writes what
    teacher = RecordingTeacher()
    frozen.TeacherConfig.setup = lambda self, device: teacher
    frozen.resolve_teacher = lambda *arguments: folder / f"teacher-{rank}" / "config.yml"
    export.ExportMobileR2L.export = lambda self: self.output_dir.mkdir()
    if rank > 0:  # a clock that stands still: alone, this process would never render a view while it trains
        time_budget.perf_counter = lambda: 0.0
    torch.manual_seed(config.machine.seed + rank)  # as nerfstudio's train_loop does

    trainer = RecordingTrainer(config, local_rank=rank, world_size=dist.get_world_size())
    trainer.setup()
    trainer.train()
    pool = trainer.pipeline.datamanager.pool
    found = {
        "camera": trainer.pipeline.datamanager.train_dataset.metadata["student_camera"],
        "teacher": trainer.config.pipeline.datamanager.teacher.load_config,
        "probes": teacher.probes, "poses": torch.stack(teacher.poses),
        "capacity": pool.capacity, "pictures": len(pool.images), "pool_bytes": pool.nbytes,
        "batches": [(*flat(rays), batch["alpha"], batch["depth"], batch["image"]) for rays, batch in trainer.batches],
        "losses": trainer.losses, "gradients": trainer.gradients, "views": trainer.views,
        "first_weights": trainer.first_weights, "weights": trainer.weights(),
    }  # fmt: skip

    config.load_dir, config.timestamp = folder / "alone", "resumed"
    trainer = RecordingTrainer(config, local_rank=rank, world_size=dist.get_world_size())
    trainer.setup()
    found["resumed_weights"] = trainer.weights()
    torch.save(found, folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def flat(rays) -> tuple:
    """The tensors of a bundle."""
    return rays.origins, rays.directions, rays.pixel_area, rays.metadata["directions_norm"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
