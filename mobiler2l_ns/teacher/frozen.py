"""The frozen teacher: any nerfstudio run, loaded without its data set, rendering views for the student.

What differs between teachers is in ``teacher_kinds``.
"""

from pathlib import Path
from typing import Dict, Optional, Protocol, Set, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from mobiler2l_ns.cameras import ray_lengths
from mobiler2l_ns.checkpoints import checkpoint_paths, find_runs, load_model, read_config
from mobiler2l_ns.errors import UserError
from mobiler2l_ns.teacher.fast_nerfacto import FastNerfacto, renders_as_nerfacto
from mobiler2l_ns.teacher.hash_encoding import accelerate_hash_grids
from mobiler2l_ns.teacher.kinds import (
    background,
    check_teacher,
    depth_is_z,
    final_outputs,
    pose_refinement,
    show_mean_appearance,
)


class Teacher(Protocol):
    """What a student needs of a teacher."""

    def render(self, camera: Cameras) -> Float[Tensor, "H W 3"]:
        """The picture, 0..1, that one camera (shape (1,)) sees."""
        ...

    def render_all(self, camera: Cameras) -> Float[Tensor, "H W 5"]:
        """The picture, its accumulation (0..1), and z in world units: distances from the camera plane.

        z is 0 where none is known, as along rays that meet nothing.
        """
        ...

    def surface_depths(self, camera: Cameras) -> Float[Tensor, "N"]:
        """Distances from the camera plane (z, not along the ray) of the surfaces that one camera sees."""
        ...


class FrozenTeacher:
    """A trained nerfstudio run as a Teacher.

    Args:
        config_path: The run's config.yml.
        device: Where it renders.

    Attributes:
        model: The run's model, frozen.
        step: Training step of its checkpoint.
        fast: Renders a nerfacto; None for other teachers, which nerfstudio renders.
        missing: Outputs that the model turned out not to have.
    """

    def __init__(self, config_path: Path, device):
        self.config_path = config_path
        check_teacher(config_path, read_config(config_path), device)
        self.model, self.step = load_model(config_path, device)
        show_mean_appearance(self.model)
        accelerate_hash_grids(self.model)
        self.fast = FastNerfacto(self.model) if renders_as_nerfacto(self.model) else None
        self.missing: Set[str] = set()
        moved = pose_refinement(self.model)
        if moved is not None:
            CONSOLE.print(
                f"The teacher moved its cameras by {moved[0]:.2g} units and {moved[1]:.2g} degrees on average, so "
                "photos at the given poses agree less with it: if that blurs, lower --pipeline.datamanager.photo-share."
            )

    @torch.no_grad()
    def render(self, camera: Cameras) -> Float[Tensor, "H W 3"]:
        return self._colours(self._outputs(camera))

    @torch.no_grad()
    def render_all(self, camera: Cameras) -> Float[Tensor, "H W 5"]:
        outputs = self._outputs(camera)
        rgb = self._colours(outputs)
        # At least what makes a colour on white possible: a scene's last sample and its black sky are no background.
        alpha = torch.maximum(outputs["accumulation"], 1 - rgb.amin(dim=-1, keepdim=True))
        return torch.cat([rgb, alpha, self._z(outputs, camera)], dim=-1)

    @torch.no_grad()
    def surface_depths(self, camera: Cameras) -> Float[Tensor, "N"]:
        z = self._z(self._outputs(camera), camera)
        if "depth" in self.missing:
            raise UserError(f"{self.config_path} says nothing about depth: pass --pipeline.datamanager.near-far.")
        return z[z > 0]

    def _colours(self, outputs: Dict[str, Tensor]) -> Float[Tensor, "H W 3"]:
        white = (1 - outputs["accumulation"]) * (1 - background(self.model, outputs))
        return (outputs["rgb"] + white).clamp(0, 1)

    def _z(self, outputs: Dict[str, Tensor], camera: Cameras) -> Float[Tensor, "H W 1"]:
        depth = outputs["depth"]
        if not depth_is_z(self.model):
            depth = depth / ray_lengths(camera.to(depth.device))
        # nerfacto's depth is where the ray becomes half opaque, and anything at all where it does not.
        return torch.where(outputs["accumulation"] > 0.5, depth, 0.0)

    def _outputs(self, camera: Cameras) -> Dict[str, Tensor]:
        camera = camera.to(self.model.device)
        render = self.model.get_outputs_for_camera if self.fast is None else self.fast.outputs_for_camera
        outputs = final_outputs(render(camera))
        if "rgb" not in outputs:
            raise UserError(f"{self.config_path} renders no rgb, only {', '.join(outputs)}: pass another teacher.")
        for name, value, instead in (("accumulation", 1.0, "is opaque"), ("depth", 0.0, "teaches none")):
            if name not in outputs:
                outputs[name] = torch.full_like(outputs["rgb"][..., :1], value)
                if name not in self.missing:
                    CONSOLE.print(f"The teacher says nothing about {name}: it {instead}.")
                    self.missing.add(name)
        return outputs


def depth_range(teacher: Teacher, cameras: Cameras, unbounded: bool = False) -> Tuple[float, float]:
    """Near and far plane, tight around what the teacher shows to the given cameras.

    One percent of the surfaces on either side is left out (floaters, sky), then the range grows by 3 percent: in z, or,
    unbounded, in 1/z, to at most twice as far.

    Raises:
        UserError: The teacher shows nothing at all.
    """
    depths = torch.cat([teacher.surface_depths(cameras[i : i + 1]).cpu() for i in range(len(cameras))])
    if len(depths) == 0:
        raise UserError("the teacher's views are empty: train it longer, or pass another one with "
                        "--pipeline.datamanager.teacher.")  # fmt: skip
    near, far = torch.quantile(depths[torch.randperm(len(depths))[: 1 << 20]], torch.tensor([0.01, 0.99])).tolist()
    if unbounded:
        margin = 0.03 * (1 / near - 1 / far)
        return 1 / (1 / near + margin), 1 / max(1 / far - margin, 0.5 / far)
    margin = 0.03 * (far - near) + 1e-3 * far
    return max(near - margin, 0.05 * near), far + margin


def resolve_teacher(teacher: Optional[Path], data: Path, outputs: Path) -> Path:
    """The config.yml of the teacher to use: the given one, or the newest run on the same data.

    Args:
        teacher: A run's config.yml or folder, or None.
        data: The student's capture.
        outputs: Where runs are looked for.

    Raises:
        UserError: The given teacher cannot be used, or none is found.
    """
    if teacher is not None:
        path = teacher / "config.yml" if teacher.is_dir() else teacher
        config = read_config(path)
        if _is_student(config):
            raise UserError(f"{path} is a student, not a teacher: pass the config.yml of a radiance field.")
        return path
    for path in find_runs(outputs):
        try:
            config = read_config(path)
        except UserError:
            continue  # another project's or an unfinished run: not ours to complain about
        run_data = config.pipeline.datamanager.data or config.data
        same_data = run_data is not None and Path(run_data).resolve() == data.resolve()
        if same_data and not _is_student(config) and checkpoint_paths(path, config):
            CONSOLE.print(f"Teacher: {path} (the newest run on {data})")
            return path
    raise UserError(
        f"no teacher for {data} was found in {outputs}/: train one with `ns-train mobiler2l-teacher --data {data}`, "
        "or pass a run's config.yml with --pipeline.datamanager.teacher."
    )


def _is_student(config) -> bool:
    return hasattr(config.pipeline.datamanager, "teacher")
